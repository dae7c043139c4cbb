"""The pages of privacy policies and patterns. Both have a box to try a text: what is found in it is shown, nothing of
it is stored or logged."""

from __future__ import annotations

from typing import Any, TypeVar

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.views.decorators.debug import sensitive_post_parameters

from audit.admin_tools import number
from providers import services, validation
from providers.admin_base import PublishingAdmin
from providers.compile import pattern_doc, privacy_doc
from providers.models import DataPattern, PrivacyPolicy
from providers.privacy.trial import Trial, of_pattern, of_policy
from providers.privacy.verdict import Verdict, policy_of
from providers.privacy_form import DataPatternForm, PrivacyPolicyForm, TrialForm

Row = TypeVar("Row", bound=models.Model)
_DONE = {
    "allow": "It would pass as it is.",
    "redact": "It would leave with placeholders instead, and the values would come back in the answer.",
    "local": "It would go to local providers only.",
    "refuse": "It would be refused.",
}


class _TriedAdmin(PublishingAdmin):
    """A page with a box to try a text by what is stored."""

    change_form_template = "admin/providers/privacypolicy/change_form.html"

    def trial(self, text: str, row: Any) -> Trial:
        """What is found in a text. Raises `ValueError` where the row cannot be used."""
        raise NotImplementedError

    def get_urls(self) -> list[URLPattern]:
        """The box's own address."""
        name = f"{self.opts.app_label}_{self.opts.model_name}_try"
        view = self.admin_site.admin_view(self.try_view)
        return [path("<int:row_id>/try/", view, name=name), *super().get_urls()]

    @method_decorator(sensitive_post_parameters())
    def try_view(self, request: HttpRequest, row_id: int) -> HttpResponse:
        """The page of the row again, with what was found in the text that came with the request."""
        row = self.get_object(request, str(row_id))
        if row is None:
            raise Http404("No such row.")
        if not self.has_view_permission(request, row):
            raise PermissionDenied
        page = reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_change", args=(row_id,))
        if request.method != "POST":
            return HttpResponseRedirect(page)
        form, context = TrialForm(request.POST), dict[str, Any]()
        if form.is_valid():
            try:
                trial = self.trial(form.cleaned_data["text"], row)
                context = {"trial": trial, "outcome": _outcome(trial.verdict)}
            except ValueError as exc:
                form.add_error(None, str(exc))
        request.method, request.POST = "GET", QueryDict()  # a page is shown, no row is sent
        return self.change_view(request, str(row_id), page, {**context, "trial_form": form})

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The form, and below it the box."""
        row_id = number(object_id)
        name = f"admin:{self.opts.app_label}_{self.opts.model_name}_try"
        context = {"trial_form": TrialForm(), "trial_url": reverse(name, args=(row_id,)) if row_id else ""}
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})


def _outcome(verdict: Verdict | None) -> str:
    """What a policy would do, in a sentence."""
    if verdict is None:
        return ""
    told = _DONE[verdict.action]
    if verdict.action == "local" and verdict.redact:
        told = f"{told[:-1]}, with placeholders for {', '.join(verdict.redact)}."
    return f"Level {verdict.level}. {told}"


@admin.register(PrivacyPolicy)
class PrivacyPolicyAdmin(_TriedAdmin):
    """What of a team's requests may leave, and how."""

    form = PrivacyPolicyForm
    list_display = ("name", "internal", "confidential", "restricted", "answers", "switched_off")
    search_fields = ("name",)
    ordering = ("name",)
    fieldsets = (
        (None, {"fields": ("name",)}),
        (
            "Requests",
            {
                "fields": (
                    "default_level",
                    "internal",
                    "confidential",
                    "restricted",
                    "redact_local",
                    "scan_tool_results",
                ),
                "description": "What is done with a request in which something of a level is found. The strictest of "
                "all that is found counts: refuse, then local, then placeholders.",
            },
        ),
        ("Answers", {"fields": ("scan_answers", ("answer_level", "answer_action"))}),
        ("What is looked for", {"classes": ("collapse", "hoosh-patterns"), "fields": ("disabled",)}),
        ("More", {"classes": ("collapse",), "fields": ("note",)}),
    )

    @admin.display(description="answers")
    def answers(self, policy: PrivacyPolicy) -> str:
        """What is done with answers."""
        return f"{policy.get_answer_action_display()} ({policy.answer_level})" if policy.scan_answers else "not scanned"

    @admin.display(description="switched off")
    def switched_off(self, policy: PrivacyPolicy) -> str:
        """How many patterns it does not look for."""
        return str(len(validation.split(policy.disabled)) or "-")

    def trial(self, text: str, row: PrivacyPolicy) -> Trial:
        """What this policy finds in a text."""
        patterns = [pattern_doc(pattern) for pattern in DataPattern.objects.filter(enabled=True).order_by("id")]
        return of_policy(text, policy_of(privacy_doc(row)), patterns)

    def write(self, row: PrivacyPolicy, actor: str) -> None:
        """Create or change a policy."""
        services.save_privacy_policy(row, actor=actor)

    def erase(self, row: PrivacyPolicy, actor: str) -> None:
        """Delete a policy nobody has."""
        services.delete_privacy_policy(row, actor=actor)


@admin.register(DataPattern)
class DataPatternAdmin(_TriedAdmin):
    """What policies look for beside the built-in patterns."""

    form = DataPatternForm
    list_display = ("name", "source", "level", "ignore_case", "enabled")
    list_filter = ("level", "enabled")
    search_fields = ("name", "source")
    ordering = ("name",)
    fields = ("name", "source", "level", "ignore_case", "enabled", "note")

    def trial(self, text: str, row: DataPattern) -> Trial:
        """What this pattern finds in a text."""
        return of_pattern(text, pattern_doc(row))

    def write(self, row: DataPattern, actor: str) -> None:
        """Create or change a pattern."""
        services.save_data_pattern(row, actor=actor)

    def erase(self, row: DataPattern, actor: str) -> None:
        """Delete a pattern no policy switches off."""
        services.delete_data_pattern(row, actor=actor)
