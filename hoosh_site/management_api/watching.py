"""What wants somebody's attention, agents that behave unlike themselves, questions asked ahead."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from budgets import access, anomaly_watch, warming
from budgets.models import Anomaly, ApiKey, WarmQuestion
from gateway.api.authentication import Caller, caller_of
from gateway.errors import ForbiddenError
from hoosh_site.attention import attention, is_for, running_out
from hoosh_site.home import pools_running_out
from hoosh_site.management_api.access import may
from hoosh_site.management_api.fields import Numbered, RowSerializer
from hoosh_site.management_api.paging import Filter
from hoosh_site.management_api.records import TIME
from hoosh_site.management_api.rows import ANYBODY, Acting, ReadOnlyRows, Rows, wake


class AnomalySerializer(serializers.ModelSerializer[Anomaly]):
    """An agent spent far more than it used to, or asked the same again and again."""

    agent_name = serializers.CharField(source="agent.name")
    team = serializers.CharField(source="agent.team.name")

    class Meta:
        model = Anomaly
        fields = (
            *("id", "at", "kind", "agent", "agent_name", "team", "stretch", "unit", "observed", "expected", "sigma"),
            *("prompt", "throttled", "state", "acknowledged_by", "acknowledged_at"),
        )


class Anomalies(ReadOnlyRows):
    """What agents did unlike themselves, newest first."""

    label = "budgets.anomaly"
    bodiless = frozenset({"acknowledge"})
    serializer_class = AnomalySerializer
    queryset = Anomaly.objects.select_related("agent__team")
    newest_first = True
    filters = {
        **TIME,
        "state": Filter("state", about="open or acknowledged."),
        "kind": Filter("kind", about="spend or loop."),
        "agent": Filter("agent_id", "id"),
        "team": Filter("agent__team__name"),
    }

    @extend_schema(request=None, responses=AnomalySerializer, summary="Say that it was seen")
    def acknowledge(self, request: Request, **path: Any) -> Response:
        """An agent that is held back for it goes on. Again is harmless."""
        anomaly_watch.acknowledge(self.row(), actor=self.actor)
        wake()
        return Response(self.get_serializer(self.row()).data)


class AskedAheadSerializer(RowSerializer):
    """A question whose answer workers keep before anybody asks it."""

    key = Numbered(queryset=ApiKey.objects.all(), help_text="The API key's id: it asks and pays.")

    class Meta:
        model = WarmQuestion
        fields = ("id", "key", "model", "system", "question", "enabled", "note", "created_at")
        read_only_fields = ("id", "created_at")


class AskedAhead(Rows):
    """Questions that workers ask by themselves, so that the first client gets a kept answer."""

    label = "budgets.warmquestion"
    serializer_class = AskedAheadSerializer
    queryset = WarmQuestion.objects.select_related("key")
    filters = {
        "key": Filter("key_id", "id", "The API key's id."),
        "model": Filter("model", about="Exactly this model."),
        "enabled": Filter("enabled", "truth"),
    }

    def gate(self) -> None:
        """Before the row."""
        access.hold(warming.WARMING)

    def save(self, row: WarmQuestion, actor: str) -> None:
        """Create or change a question."""
        warming.save_question(row, actor=actor)

    def erase(self, row: WarmQuestion, actor: str) -> None:
        """Delete a question. What is kept of it stays until its time is over."""
        warming.delete_question(row, actor=actor)


class AlertLineSerializer(serializers.Serializer[None]):
    """One line of the list."""

    kind = serializers.CharField(help_text="Anomaly, Certificate, Key, Pool, …")
    tone = serializers.ChoiceField(
        choices=("bad", "warn", ""),
        help_text="bad: something does not work; warn: it soon will not; empty: it waits for somebody.",
    )
    text = serializers.CharField()


class AttentionSerializer(serializers.Serializer[None]):
    """What somebody should know of, the worst first."""

    data = AlertLineSerializer(many=True)  # type: ignore[assignment]  # a field, not the property


class _Asking:
    """A caller as the first page knows people: by permissions."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def has_perm(self, permission: str) -> bool:
        """Whether the caller has it."""
        return may(self._caller, permission)


class Attention(Acting):
    """What the first page has under "Needs attention"."""

    label = ANYBODY

    @extend_schema(responses=AttentionSerializer, summary="What needs attention, as far as the caller may see it")
    def retrieve(self, request: Request) -> Response:
        """The same few lines of each kind as on the first page, at most some seconds old."""
        user: Any = _Asking(caller_of(request))
        sees_pools = user.has_perm("budgets.view_pool")
        if not sees_pools and not is_for(user):
            raise ForbiddenError("This needs an API key with the scope “admin”, or a permission to see something.")
        pools = running_out(pools_running_out()) if sees_pools else []
        lines = [each.alert for each in attention(user, pools)]
        return Response({"data": [{"kind": line.kind, "tone": line.tone, "text": line.text} for line in lines]})
