"""The admin page that answers "where would this go, and why": a worker is asked, no provider is called."""

from __future__ import annotations

import json
from typing import Any

from django import forms
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from gateway import plane
from gateway.endpoints import INFERENCE
from providers.models import Route

_BODY_HELP = (
    "JSON; optional. A whole request as a client sends it, or only what matters: "
    '{"max_tokens": 500, "tools": [{"type": "function", "function": {"name": "f"}}]}'
)


class QuestionForm(forms.Form):
    """A model, and what of a request has a say in where it goes."""

    model = forms.CharField(max_length=256, widget=forms.TextInput({"list": "known-models"}))
    path = forms.ChoiceField(label="Endpoint", choices=[(path, path) for path in INFERENCE])
    tags = forms.CharField(max_length=256, required=False, help_text="As in the header x-hoosh-tags.")
    body = forms.CharField(
        label="Request", required=False, max_length=200_000, widget=forms.Textarea({"rows": 6}), help_text=_BODY_HELP
    )

    def clean_body(self) -> dict[str, Any]:
        """The request as a JSON object."""
        text: str = self.cleaned_data["body"].strip()
        try:
            told = json.loads(text) if text else {}
        except (ValueError, RecursionError) as exc:
            raise forms.ValidationError(f"This is not JSON: {exc}.") from None
        if not isinstance(told, dict):
            raise forms.ValidationError("Enter a JSON object.")
        return told


def explain_view(page: Any, request: HttpRequest) -> HttpResponse:
    """The page. Who may see routes may ask."""
    if not request.user.has_perm("providers.view_route"):
        raise PermissionDenied
    asked = "model" in request.GET
    form = QuestionForm(request.GET if asked else None, initial={"path": next(iter(INFERENCE))})
    answer: dict[str, Any] = {}
    problem = ""
    if asked and form.is_valid():
        data = form.cleaned_data
        question = {**data["body"], "model": data["model"], "path": data["path"], "tags": data["tags"]}
        answer, problem = _ask(question)
    names = Route.objects.filter(enabled=True).exclude(pattern__contains="*").values_list("pattern", flat=True)
    context = {
        **page.admin_site.each_context(request),
        "title": "Where would this go?",
        "form": form,
        "answer": answer,
        "problem": problem,
        "models": sorted(set(names[:500])),
    }
    return TemplateResponse(request, "admin/providers/route/explain.html", context)


def _ask(question: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A worker's answer, and what is wrong if there is none."""
    if plane.current is None:
        return {}, "This process runs no gateway, so there is nobody to ask."
    try:
        told: dict[str, Any] = json.loads(plane.current.explain(json.dumps(question).encode()))
    except RuntimeError as exc:
        return {}, f"There is no answer: {exc}."
    return ({}, str(told["error"])) if "error" in told else (told, "")
