"""What a team lead may do to keys: make one like a key the team has, rotate, revoke. Never more rights than before.

The rights of a team are those of its keys: which pools, models, endpoints and addresses is decided by whoever makes
its first key. A lead's key is like one of them, narrower where the lead wants.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from django import forms
from django.db.models import Q, QuerySet
from django.utils import timezone

from budgets import keys, scopes, validation
from budgets.models import Agent, ApiKey, Pool, Team
from providers.globs import any_matcher


def team_keys(team: Team) -> QuerySet[ApiKey]:
    """The keys of a team's agents, the newest first."""
    return ApiKey.objects.filter(agent__team=team).select_related("agent__team", "pool").order_by("-pk")


def is_theirs(key: ApiKey) -> bool:
    """Whether a lead may rotate and revoke it: keys that can do more than a lead are left to operators."""
    return scopes.OF_LEADS.issuperset(validation.split(key.scopes))


def is_alive(key: ApiKey) -> bool:
    """Neither revoked nor expired."""
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > timezone.now())


def patterns(team: Team) -> list[ApiKey]:
    """The keys a new one may be like."""
    alive = Q(revoked_at__isnull=True) & (Q(expires_at__isnull=True) | Q(expires_at__gt=timezone.now()))
    return [key for key in team_keys(team).filter(alive)[:500] if is_theirs(key)]


class TeamKeyForm(forms.Form):
    """A new key of a team, like one it has."""

    name = forms.CharField(max_length=100, validators=[validation.name], help_text="What it is for.")
    like = forms.TypedChoiceField(
        label="With the rights of", coerce=int, help_text="Its pools, models, endpoints, addresses and limits."
    )
    agent = forms.ModelChoiceField(Agent.objects.none())
    models = forms.CharField(
        max_length=1024,
        required=False,
        validators=[validation.patterns],
        help_text="Fewer models than that key may use, comma-separated. Blank = the same.",
    )
    days = forms.IntegerField(
        label="Expires in days", min_value=1, max_value=3650, required=False, help_text="Blank = as that key."
    )

    def __init__(self, *args: Any, team: Team, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.patterns = {key.pk: key for key in patterns(team)}
        self.fields["like"].choices = [  # type: ignore[attr-defined]
            (key.pk, f"{key.name} ({key.prefix}…): {key.pool}, {key.models_allowed or 'every model'}")
            for key in self.patterns.values()
        ]
        self.fields["agent"].queryset = Agent.objects.filter(team=team, enabled=True)  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        """Only less than the key it is like."""
        data: dict[str, Any] = super().clean() or self.cleaned_data
        like = self.patterns.get(data.get("like", 0))
        if like is None:
            return data
        allowed = validation.split(like.models_allowed)
        may_use = any_matcher(allowed) if allowed else None
        wanted = validation.split(data.get("models", ""))
        more = [each for each in wanted if may_use and each not in allowed and ("*" in each or not may_use(each))]
        if more:
            self.add_error("models", f"That key may not use {', '.join(more)[:200]}.")
        return data

    def make(self, actor: str) -> tuple[ApiKey, str]:
        """The key, and its text for the one time it is shown."""
        data = self.cleaned_data
        like = self.patterns[data["like"]]
        days = data["days"]
        until = timezone.now() + dt.timedelta(days=days) if days else None
        ends = [each for each in (until, like.expires_at) if each is not None]
        return keys.create_key(
            data["agent"],
            like.pool,
            data["name"],
            validation.split(like.scopes),
            actor=actor,
            models_allowed=validation.split(data["models"]) or validation.split(like.models_allowed),
            own_pool=like.own_pool,
            pools_allowed=validation.split(like.pools_allowed),
            expires_at=min(ends, default=None),
            limits=like.limits,
            queue_class=like.queue_class,
            endpoints=validation.split(like.endpoints_allowed),
            addresses=validation.split(like.addresses_allowed),
        )


def pools_of(team: Team) -> list[Pool]:
    """The pools a team draws on: its budget and projects, and those of its agents and live keys."""
    mine = Q(pk=team.pool_id) | Q(team=team) | Q(pk__in=Agent.objects.filter(team=team).values("pool_id"))
    alive = ApiKey.objects.filter(agent__team=team, revoked_at__isnull=True)
    mine |= Q(pk__in=alive.values("pool_id")) | Q(pk__in=alive.values("own_pool_id"))
    return list(Pool.objects.filter(mine).order_by("name")[:200])
