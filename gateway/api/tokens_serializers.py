"""The shapes of `/v1/tokens/*`."""

from __future__ import annotations

from rest_framework import serializers

from budgets.models import Reservation
from budgets.reservations import TOKENS_MAX, TTL_MAX_S, TTL_S
from gateway.api.fields import TextField, WholeNumberField

_NAME_MAX = 100
_ID_MAX = 40


def _pool() -> TextField:
    return TextField(most=_NAME_MAX, required=False, help_text="Name of a pool; without it the key's default pool.")


class CheckRequestSerializer(serializers.Serializer[None]):
    """Is there room?"""

    pool = _pool()
    tokens = WholeNumberField(most=TOKENS_MAX)


class CheckSerializer(serializers.Serializer[None]):
    """Whether there is room now, which says nothing about a moment later."""

    allowed = serializers.BooleanField()
    available = serializers.IntegerField(allow_null=True, help_text="null = no pool of the chain has a limit")


class ReserveRequestSerializer(serializers.Serializer[None]):
    """Set tokens aside."""

    pool = _pool()
    tokens = WholeNumberField(least=1, most=TOKENS_MAX)
    ttl_s = WholeNumberField(
        least=1, most=TTL_MAX_S, required=False, help_text=f"Seconds until it ends by itself; {TTL_S} by default."
    )


class ReserveSerializer(serializers.Serializer[None]):
    """The reservation, or that there was no room for it."""

    reserved = serializers.BooleanField()
    available = serializers.IntegerField(allow_null=True, help_text="What is left now; null = no limit")
    id = serializers.CharField(allow_null=True)
    expires_at = serializers.DateTimeField(allow_null=True)
    state = serializers.ChoiceField(
        list(Reservation.State.choices), allow_null=True, help_text="A repeated call may find it reported or expired."
    )


class ReportRequestSerializer(serializers.Serializer[None]):
    """What was used of a reservation."""

    pool = _pool()
    id = TextField(most=_ID_MAX, required=False, help_text="Without it: your key's oldest open one on the pool.")
    actual = WholeNumberField(most=TOKENS_MAX)
    reserved = WholeNumberField(
        most=TOKENS_MAX, required=False, help_text="Taken for compatibility; the reservation itself counts."
    )


class ReportSerializer(serializers.Serializer[None]):
    """The pool after the report."""

    used = serializers.IntegerField()
    available = serializers.IntegerField(allow_null=True, help_text="null = no limit")
    id = serializers.CharField()


class PoolSerializer(serializers.Serializer[None]):
    """One pool in its present window. Limits of null are none; money is decimal text."""

    name = serializers.CharField()
    capacity = serializers.IntegerField(allow_null=True)
    used = serializers.IntegerField()
    available = serializers.IntegerField(allow_null=True)
    reserved = serializers.IntegerField(help_text="Held for running requests and by reservations.")
    capacity_usd = serializers.CharField(allow_null=True)
    used_usd = serializers.CharField()
    available_usd = serializers.CharField(allow_null=True)
    window = serializers.CharField()
    window_start = serializers.DateTimeField(allow_null=True, help_text="null = the beginning")
    window_end = serializers.DateTimeField(allow_null=True, help_text="null = never")
    mode = serializers.CharField()


class PoolsSerializer(serializers.Serializer[None]):
    """The pools the caller may use, by name."""

    pools = PoolSerializer(many=True)
