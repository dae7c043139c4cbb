"""Who has a rate limit, and how much of it is used at this moment on this host."""

from __future__ import annotations

from typing import Any, ClassVar

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from gateway.api.authentication import caller_of
from hoosh_site.limits_page import SHOWN, VIEW_LIMITS, Measure, lines
from hoosh_site.management_api.access import may
from hoosh_site.management_api.rows import Acting


class MeasureSerializer(serializers.Serializer[None]):
    """One limit and what is used of it now."""

    limit = serializers.IntegerField()
    used = serializers.IntegerField()


class LimitSerializer(serializers.Serializer[None]):
    """Something with limits; null = it has none of that kind."""

    kind = serializers.ChoiceField(choices=("API key", "agent", "team", "provider", "route"))
    name = serializers.CharField()
    requests_per_minute = MeasureSerializer(allow_null=True)
    tokens_per_minute = MeasureSerializer(allow_null=True)
    concurrent_requests = MeasureSerializer(allow_null=True)
    in_flight = serializers.IntegerField()


class LimitsSerializer(serializers.Serializer[None]):
    """The fullest first."""

    workers = serializers.IntegerField(help_text="0 = there is no running gateway to ask.")
    data = LimitSerializer(many=True)  # type: ignore[assignment]  # a field, not the property
    more = serializers.IntegerField(help_text="Lines that are not told.")


class Limits(Acting):
    """What is used of the rate limits at this moment; each kind of row is told to who may see these rows."""

    label = "budgets.apikey"
    verbs: ClassVar = {"retrieve": "view"}

    def needed(self) -> list[str]:
        """Any of the rows that have limits."""
        caller: Any = self.request.user
        return [name for name in VIEW_LIMITS if may(caller, name)][:1] or super().needed()

    @extend_schema(responses=LimitsSerializer)
    def retrieve(self, request: Request) -> Response:
        """The rate limits, and what is used of them now."""
        caller = caller_of(request)
        found, workers = lines(lambda name: may(caller, name))
        told = [
            {
                "kind": each.kind,
                "name": each.name,
                "requests_per_minute": _measure(each.requests),
                "tokens_per_minute": _measure(each.tokens),
                "concurrent_requests": _measure(each.concurrent),
                "in_flight": each.in_flight,
            }
            for each in found[:SHOWN]
        ]
        return Response({"workers": workers, "data": told, "more": max(0, len(found) - SHOWN)})


def _measure(found: Measure | None) -> dict[str, int] | None:
    return None if found is None else {"limit": found.limit, "used": found.used}
