"""The pages of team leads: their teams' agents, keys, pools and usage, and nothing of anybody else's.

Every address names the team; a team that one does not lead is not found, whether it exists or not.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, cast

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path, reverse
from django.utils import timezone
from django.utils.crypto import get_random_string
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from audit.admin_tools import LiveSite
from budgets import keys, reports
from budgets.balances import balances
from budgets.forms import SUBMISSION, claim_submission
from budgets.models import ApiKey, Team
from hoosh_site.people import team_keys
from hoosh_site.people.pages import person, show, signed_in

_SHOWN = 200
_DAYS = 30
_SENT_BEFORE = "its key was created and shown then. Find it in the list."


def _team(request: HttpRequest, team_id: int) -> Team:
    team = Team.objects.filter(pk=team_id, leads__user=person(request)).first()
    if team is None:
        raise Http404("No such team.")
    return team


def _key(team: Team, key_id: int) -> ApiKey:
    key = team_keys.team_keys(team).filter(pk=key_id).first()
    if key is None:
        raise Http404("No such key.")
    if not team_keys.is_theirs(key):
        raise PermissionDenied
    return key


@require_safe
@signed_in
def teams(request: HttpRequest) -> HttpResponse:
    """The teams one leads; straight to it where it is one."""
    led = list(Team.objects.filter(leads__user=person(request)).order_by("name"))
    if len(led) == 1:
        return HttpResponseRedirect(reverse("people:team_one", args=(led[0].pk,)))
    return show(request, "people/teams.html", "Your teams", {"teams": led})


@require_safe
@signed_in
def one(request: HttpRequest, team_id: int) -> HttpResponse:
    """A team: pools, usage of the last days, agents, keys."""
    team = _team(request, team_id)
    pools = team_keys.pools_of(team)
    known = balances(pools)
    shown = list(team_keys.team_keys(team)[: _SHOWN + 1])
    rows = [
        {
            "key": key,
            "used": keys.last_used(key),
            "is_alive": team_keys.is_alive(key),
            "is_theirs": team_keys.is_theirs(key),
        }
        for key in shown[:_SHOWN]
    ]
    context: dict[str, Any] = {
        "team": team,
        "agents": list(team.agents.order_by("name")[:_SHOWN]),
        "pools": [(pool, known[pool.pk]) for pool in pools],
        "rows": rows,
        "more": len(shown) > _SHOWN,
        "usage": _usage(team),
        "days": _DAYS,
        "may_add": bool(team_keys.patterns(team)),
        SUBMISSION: get_random_string(22),
    }
    return show(request, "people/team.html", team.name, context)


def _usage(team: Team) -> list[tuple[str, reports.Total]]:
    """What the team's agents used of late, the dearest first."""
    today = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)
    since = int((today - dt.timedelta(days=_DAYS - 1)).timestamp())
    found = reports.totals(("agent",), filters={"team": [team.pk]}, since=since)
    names = dict(team.agents.values_list("pk", "name"))
    return [(names.get(int(str(total.keys["agent"])), f"#{total.keys['agent']}"), total) for total in found[:_SHOWN]]


@require_http_methods(["GET", "POST"])
@signed_in
def add_key(request: HttpRequest, team_id: int) -> HttpResponse:
    """The form for a new key, and the key, once."""
    team = _team(request, team_id)
    form = team_keys.TeamKeyForm(request.POST if request.method == "POST" else None, team=team)
    if request.method == "POST" and form.is_valid():
        try:
            claim_submission(request, _SENT_BEFORE)
            made, text = form.make(person(request).get_username())
            return _show_once(request, team, made, text)
        except ValidationError as exc:
            form.add_error(None, exc.messages)
    context = {"team": team, "form": form, SUBMISSION: get_random_string(22)}
    return show(request, "people/team_add_key.html", "New API key", context)


@require_POST
@signed_in
def rotate(request: HttpRequest, team_id: int, key_id: int) -> HttpResponse:
    """A new key with the same rights; the old one goes on for a day."""
    team = _team(request, team_id)
    key = _key(team, key_id)
    try:
        claim_submission(request, _SENT_BEFORE)
        made, text = keys.rotate_key(key, actor=person(request).get_username())
    except ValidationError as exc:
        messages.error(request, " ".join(exc.messages))
        return HttpResponseRedirect(reverse("people:team_one", args=(team.pk,)))
    return _show_once(request, team, made, text)


@require_http_methods(["GET", "POST"])
@signed_in
def revoke(request: HttpRequest, team_id: int, key_id: int) -> HttpResponse:
    """Ask, then stop a key for good."""
    team = _team(request, team_id)
    key = _key(team, key_id)
    if request.method != "POST":
        context = {"team": team, "key": key, "used": keys.last_used(key)}
        return show(request, "people/team_revoke.html", "Revoke this key?", context)
    keys.revoke_key(key, actor=person(request).get_username())
    _wake()
    messages.success(request, f"“{key.name}” is revoked; it is refused within a second.")
    return HttpResponseRedirect(reverse("people:team_one", args=(team.pk,)))


def _show_once(request: HttpRequest, team: Team, key: ApiKey, text: str) -> HttpResponse:
    _wake()
    old = key.rotated_from
    context = {"team": team, "key": key, "text": text, "old": old, "used": keys.last_used(old) if old else None}
    return show(request, "people/team_key.html", f"API key “{key.name}” was created", context)


def _wake() -> None:
    """Live at once, as from admin."""
    cast(LiveSite, admin.site).wake()


urlpatterns = [
    path("team/", teams, name="team"),
    path("team/<int:team_id>/", one, name="team_one"),
    path("team/<int:team_id>/keys/add/", add_key, name="team_add_key"),
    path("team/<int:team_id>/keys/<int:key_id>/rotate/", rotate, name="team_rotate"),
    path("team/<int:team_id>/keys/<int:key_id>/revoke/", revoke, name="team_revoke"),
]
