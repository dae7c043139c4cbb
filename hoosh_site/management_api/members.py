"""Teams, agents and API keys."""

from __future__ import annotations

import datetime as dt
from typing import Any, ClassVar

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from budgets import access, keys, validation
from budgets.models import Agent, ApiKey, Pool, Team
from budgets.records import ENDPOINTS
from hoosh_site.management_api.access import demand, demand_scopes
from hoosh_site.management_api.fields import Joined, Named, Numbered, RowSerializer, Strict, Whole
from hoosh_site.management_api.paging import Filter
from hoosh_site.management_api.rows import Rows, hold_access, once, search
from hoosh_site.people.roles import CHANGE_PRIVACY
from providers.models import PrivacyPolicy

_LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")
_OVERLAP_S, _OVERLAP_MAX_S = 86_400, 30 * 86_400


def _budget() -> Named:
    return Named(queryset=Pool.objects.all(), allow_null=True, required=False, help_text="A pool's name.")


class Live(Rows):
    """Rows that workers learn of at once."""

    def gate(self) -> None:
        """Before the row."""
        hold_access()


class TeamSerializer(RowSerializer):
    """A group of people that owns agents."""

    pool = _budget()
    privacy_policy = Named(queryset=PrivacyPolicy.objects.all(), allow_null=True, required=False)

    class Meta:
        model = Team
        fields = ("id", "name", "enabled", "pool", "privacy_policy", *_LIMITS, "note", "managed_by", "created_at")
        read_only_fields = ("id", "managed_by", "created_at")


class Teams(Live):
    """Disabling one stops the keys of all its agents within a second."""

    label = "budgets.team"
    serializer_class = TeamSerializer
    queryset = Team.objects.select_related("pool", "privacy_policy")
    filters = {**search(), "enabled": Filter("enabled", "truth")}

    def save(self, row: Team, actor: str) -> None:
        """Create or change a team. What may leave is decided by who may change privacy policies."""
        before = Team.objects.filter(pk=row.pk).first()
        if row.privacy_policy_id != (before.privacy_policy_id if before is not None else None):
            demand(self.request, CHANGE_PRIVACY)
        access.save_team(row, actor=actor)

    def erase(self, row: Team, actor: str) -> None:
        """Delete a team without agents and projects."""
        access.delete_team(row, actor=actor)


class AgentSerializer(RowSerializer):
    """An app or agent of a team."""

    team = Named(queryset=Team.objects.all(), help_text="The team's name.")
    pool = _budget()

    class Meta:
        model = Agent
        fields = (
            *("id", "team", "name", "enabled", "pool", *_LIMITS, "anomaly_action", "loop_limit", "throttle_rpm"),
            *("throttled_until", "note", "managed_by", "created_at"),
        )
        read_only_fields = ("id", "throttled_until", "managed_by", "created_at")


class Agents(Live):
    """Apps and agents of teams; an agent's name is its team's own."""

    label = "budgets.agent"
    serializer_class = AgentSerializer
    queryset = Agent.objects.select_related("team", "pool")
    filters = {**search(), "team": Filter("team__name"), "enabled": Filter("enabled", "truth")}

    def save(self, row: Agent, actor: str) -> None:
        """Create or change an agent."""
        access.save_agent(row, actor=actor)

    def erase(self, row: Agent, actor: str) -> None:
        """Delete an agent that never had a key."""
        access.delete_agent(row, actor=actor)


class KeySerializer(RowSerializer):
    """An API key. Its text is told once, when it is made."""

    agent = Numbered(queryset=Agent.objects.all(), help_text="The agent's id: its name is its team's own.")
    agent_name = serializers.CharField(source="agent.name", read_only=True)
    team = serializers.CharField(source="agent.team.name", read_only=True)
    pool = Named(queryset=Pool.objects.all(), help_text="The default pool's name.")
    own_pool = _budget()
    pools_allowed = Joined(required=False, help_text="Globs over further pools a request may name.")
    scopes = Joined(
        required=False,
        allow_empty=False,
        help_text=f"Of {', '.join(validation.SCOPES)}. Only who could do all they allow gives operator and admin.",
    )
    models_allowed = Joined(required=False, help_text="Globs; empty = every model.")
    endpoints_allowed = Joined(required=False, help_text=f"Of {', '.join(ENDPOINTS)}; empty = every endpoint.")
    addresses_allowed = Joined(required=False, help_text="Addresses and networks; empty = from anywhere.")

    class Meta:
        model = ApiKey
        fields = (
            *("id", "name", "agent", "agent_name", "team", "prefix", "scopes", "models_allowed", "pool", "own_pool"),
            *(
                "endpoints_allowed",
                "addresses_allowed",
                "pools_allowed",
                *_LIMITS,
                "queue_class",
                "expires_at",
                "revoked_at",
                "rotated_from",
                "managed_by",
                "created_at",
            ),
        )
        read_only_fields = ("id", "prefix", "revoked_at", "rotated_from", "managed_by", "created_at")


class NewKeySerializer(KeySerializer):
    """A key that was just made, with its text."""

    key = serializers.CharField(read_only=True, help_text="The text: it is stored nowhere and told this once.")

    class Meta(KeySerializer.Meta):
        fields = (*KeySerializer.Meta.fields, "key")  # type: ignore[assignment]


class OverlapSerializer(Strict):
    """How long the old key goes on working."""

    overlap_s = Whole(min_value=0, max_value=_OVERLAP_MAX_S, required=False, default=_OVERLAP_S)


class Keys(Live):
    """Keys are revoked, never deleted: usage rows name them."""

    label = "budgets.apikey"
    bodiless = frozenset({"revoke"})
    serializer_class = KeySerializer
    queryset = ApiKey.objects.select_related("agent__team", "pool", "own_pool")
    filters = {
        **search(),
        "prefix": Filter("prefix"),
        "agent": Filter("agent_id", "id"),
        "team": Filter("agent__team__name"),
        "pool": Filter("pool__name"),
        "is_live": Filter("revoked_at__isnull", "truth", "True: not revoked."),
    }
    verbs: ClassVar = {"rotate": "change add"}

    @extend_schema(responses={201: NewKeySerializer})
    def create(self, request: Request, **path: Any) -> Response:
        """A new key. The answer holds its text, which exists nowhere else."""
        values = self.read(request)
        scopes = validation.split(values.get("scopes", "inference"))
        demand_scopes(request, scopes)
        with once(request), self.writing():
            row, text = keys.create_key(
                values["agent"],
                values["pool"],
                values["name"],
                scopes,
                actor=self.actor,
                models_allowed=validation.split(values.get("models_allowed", "")),
                own_pool=values.get("own_pool"),
                pools_allowed=validation.split(values.get("pools_allowed", "")),
                expires_at=values.get("expires_at"),
                limits=(values.get(_LIMITS[0]), values.get(_LIMITS[1]), values.get(_LIMITS[2])),
                queue_class=values.get("queue_class", "interactive"),
                endpoints=validation.split(values.get("endpoints_allowed", "")),
                addresses=validation.split(values.get("addresses_allowed", "")),
            )
        return self.told(self.again(row), status=201, key=text)

    def save(self, row: ApiKey, actor: str) -> None:
        """Change a key; nobody saves one that can do, or could do before, more than they can."""
        before = ApiKey.objects.get(pk=row.pk)
        demand_scopes(self.request, {*validation.split(before.scopes), *validation.split(row.scopes)})
        keys.update_key(row, actor=actor)

    @extend_schema(request=OverlapSerializer, responses={201: NewKeySerializer}, summary="A new key for an old one")
    def rotate(self, request: Request, **path: Any) -> Response:
        """With the same rights; the old one goes on for a while and then expires."""
        serializer = OverlapSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        overlap = dt.timedelta(seconds=serializer.validated_data["overlap_s"])
        with once(request), self.writing():
            old = self.row()
            demand_scopes(request, validation.split(old.scopes))
            made, text = keys.rotate_key(old, actor=self.actor, overlap=overlap)
        response = self.told(self.again(made), status=201, key=text)
        response["Location"] = f"{request.path.rstrip('/').rpartition('/')[0].rpartition('/')[0]}/{made.pk}"
        return response

    @extend_schema(request=None, responses=KeySerializer, summary="Stop a key for good")
    def revoke(self, request: Request, **path: Any) -> Response:
        """Workers refuse it within a second. Revoking twice changes nothing."""
        with self.writing():
            row = keys.revoke_key(self.row(), actor=self.actor)
        return self.told(self.again(row))
