"""The shapes of `/v1/tokens/*`. Numbers are taken literally: "5", 5.0 and true are no whole numbers."""

from __future__ import annotations

from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from budgets.reservations import TOKENS_MAX, TTL_MAX_S, TTL_S

_NAME_MAX = 100
_ID_MAX = 40


@extend_schema_field(OpenApiTypes.INT64)
class WholeNumberField(serializers.Field[int, Any, int, Any]):
    """A JSON number without a fraction, within limits."""

    def __init__(self, *, least: int = 0, most: int = TOKENS_MAX, **options: Any) -> None:
        super().__init__(**options)
        self.least, self.most = least, most

    def to_internal_value(self, data: Any) -> int:
        """The number; anything else is refused, not converted."""
        if type(data) is not int or not self.least <= data <= self.most:
            raise serializers.ValidationError(
                f"{self.field_name} must be a whole number from {self.least} to {self.most}."
            )
        return data

    def to_representation(self, value: int) -> int:
        """As it is."""
        return value


@extend_schema_field(OpenApiTypes.STR)
class TextField(serializers.Field[str, Any, str, Any]):
    """A JSON text that is not empty."""

    def __init__(self, *, most: int, **options: Any) -> None:
        super().__init__(**options)
        self.most = most

    def to_internal_value(self, data: Any) -> str:
        """The text; a number is refused, not converted."""
        if not isinstance(data, str) or not 1 <= len(data) <= self.most:
            raise serializers.ValidationError(f"{self.field_name} must be a text of 1 to {self.most} characters.")
        return data

    def to_representation(self, value: str) -> str:
        """As it is."""
        return value


def _pool() -> TextField:
    return TextField(most=_NAME_MAX, required=False, help_text="Name of a pool; without it the key's default pool.")


class CheckRequestSerializer(serializers.Serializer[None]):
    """Is there room?"""

    pool = _pool()
    tokens = WholeNumberField()


class CheckSerializer(serializers.Serializer[None]):
    """Whether there is room now, which says nothing about a moment later."""

    allowed = serializers.BooleanField()
    available = serializers.IntegerField(allow_null=True, help_text="null = no pool of the chain has a limit")


class ReserveRequestSerializer(serializers.Serializer[None]):
    """Set tokens aside."""

    pool = _pool()
    tokens = WholeNumberField(least=1)
    ttl_s = WholeNumberField(
        least=1, most=TTL_MAX_S, required=False, help_text=f"Seconds until it ends by itself; {TTL_S} by default."
    )


class ReserveSerializer(serializers.Serializer[None]):
    """The reservation, or that there was no room for it."""

    reserved = serializers.BooleanField()
    available = serializers.IntegerField(allow_null=True, help_text="What is left now; null = no limit")
    id = serializers.CharField(allow_null=True)
    expires_at = serializers.DateTimeField(allow_null=True)


class ReportRequestSerializer(serializers.Serializer[None]):
    """What was used of a reservation."""

    pool = _pool()
    id = TextField(most=_ID_MAX, required=False, help_text="Without it: your key's oldest open one on the pool.")
    actual = WholeNumberField()
    reserved = WholeNumberField(required=False, help_text="Taken for compatibility; the reservation itself counts.")


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
