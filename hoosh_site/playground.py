"""The playground: ask a model from a page of the admin, as an app would, and see what it cost and why it went there.

The page's script calls the inference API itself, with a key that was made for this person and ends within the hour, so
what is seen is what every client gets. Nothing of a question or an answer is kept here.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from django import forms
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.template.response import TemplateResponse
from django.utils import timezone

from audit.admin_tools import operator
from budgets import access, keys
from budgets.models import ApiKey, Pool
from providers.models import ProviderProbe, Route

TEAM, AGENT = "operators", "playground"
KEY_S = 3600
MAY_ADD_KEYS = "budgets.add_apikey"
NAMES_SHOWN = 1000


class PoolForm(forms.Form):
    """What the questions are charged to."""

    pool = forms.ModelChoiceField(Pool.objects.filter(enabled=True).order_by("name"), empty_label=None)


def may_play(user: Any) -> bool:
    """Whether the page is for this user: it makes a key for them and names routes."""
    return bool(user.has_perm(MAY_ADD_KEYS) and user.has_perm("providers.view_route"))


def playground_view(page: Any, request: HttpRequest) -> HttpResponse:
    """The page."""
    if not may_play(request.user):
        raise PermissionDenied
    routes = Route.objects.filter(enabled=True, provider__enabled=True)
    context = {
        **page.admin_site.each_context(request),
        "title": "Playground",
        "form": PoolForm(),
        "models": _models(routes),
        "routes": routes.order_by("name").values_list("name", flat=True)[:NAMES_SHOWN],
        "minutes": KEY_S // 60,
    }
    return TemplateResponse(request, "admin/hoosh/playground.html", context)


def _models(routes: Any) -> list[str]:
    names = set(routes.exclude(pattern__contains="*").values_list("pattern", flat=True)[:NAMES_SHOWN])
    for found in ProviderProbe.objects.filter(provider__enabled=True).values_list("models", flat=True):
        names.update(found[:NAMES_SHOWN])
    return sorted(names)[:NAMES_SHOWN]


def playground_key_view(page: Any, request: HttpRequest) -> HttpResponse:
    """Make a key for this person that ends within the hour; the one before is revoked. JSON, for the page's script;
    like all pages of the admin it is never stored by browsers or proxies."""
    if not may_play(request.user):
        raise PermissionDenied
    if request.method != "POST":
        return HttpResponseNotAllowed(("POST",))
    form = PoolForm(request.POST)
    if not form.is_valid():
        return JsonResponse({"error": "Choose a pool."}, status=400)
    actor = operator(request)
    name = f"playground {actor}"[:100]
    with transaction.atomic():
        agent = access.agent_named(TEAM, AGENT, actor=actor)
        for old in ApiKey.objects.filter(agent=agent, name=name, revoked_at__isnull=True):
            keys.revoke_key(old, actor=actor)
        expires_at = timezone.now() + dt.timedelta(seconds=KEY_S)
        _, text = keys.create_key(
            agent, form.cleaned_data["pool"], name, ("inference", "routes"), actor=actor, expires_at=expires_at
        )
    page.admin_site.wake()
    return JsonResponse({"key": text, "expires_at": expires_at.timestamp()})
