"""Kept answers as operators see them: what the caches of all workers hold and have saved, and forgetting all of it."""

from __future__ import annotations

import time
from typing import Any

from django.db.models import Max
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from audit.record import record
from gateway import plane
from gateway.api.authentication import HasKey, IsOperator, caller_of
from gateway.api.serializers import ErrorSerializer
from gateway.api.views import ControlView
from gateway.cache import stats
from gateway.cache.store import OVERHEAD_BYTES
from gateway.errors import GatewayUnavailableError
from providers.models import Route

WAIT_S = 5.0  # workers tell their state once a second
_STEP_S = 0.05
_PUBLIC = ("enabled", "entries", "max_entries", "hits", "misses", "evictions", "hit_rate", "ttl_secs")
_REFUSED = {
    401: OpenApiResponse(ErrorSerializer, "No usable API key."),
    403: OpenApiResponse(ErrorSerializer, "The key may not do this."),
}


class CacheStatsSerializer(serializers.Serializer[None]):
    """All connected workers together, as they told it within the last second. What is behind `ttl_secs` is for
    operators; figures begin at 0 with each worker."""

    enabled = serializers.BooleanField(help_text="Whether any route keeps answers.")
    entries = serializers.IntegerField()
    max_entries = serializers.IntegerField(help_text="As many as fit, were they empty: the bound is in bytes.")
    hits = serializers.IntegerField(help_text="Answers told without a call.")
    misses = serializers.IntegerField()
    evictions = serializers.IntegerField(help_text="Dropped to make room.")
    hit_rate = serializers.FloatField(help_text="hits / (hits + misses)")
    ttl_secs = serializers.IntegerField(help_text="The longest of the routes.")
    bytes = serializers.IntegerField(required=False)
    max_bytes = serializers.IntegerField(required=False)
    joined = serializers.IntegerField(required=False, help_text="Hits that waited for an equal request's answer.")
    stored = serializers.IntegerField(required=False)
    refused = serializers.IntegerField(required=False, help_text="Too large to be kept.")
    expired = serializers.IntegerField(required=False)
    purged = serializers.IntegerField(required=False)
    saved_tokens = serializers.IntegerField(required=False)
    saved_usd = serializers.FloatField(required=False, help_text="What the hits cost the first time.")
    similar = serializers.IntegerField(required=False, help_text="Hits by a question put in other words.")
    similar_misses = serializers.IntegerField(required=False, help_text="Questions to which none was similar.")
    vectors = serializers.IntegerField(required=False, help_text="Questions that others are compared with.")
    vector_bytes = serializers.IntegerField(required=False)
    embedding_failures = serializers.IntegerField(required=False, help_text="Questions of which no vector was had.")
    warmed = serializers.IntegerField(required=False, help_text="Answers kept before anybody asked.")
    warming_failures = serializers.IntegerField(required=False, help_text="Questions asked ahead in vain.")
    workers = serializers.IntegerField(required=False, help_text="How many told their figures.")


class CachePurgeSerializer(serializers.Serializer[None]):
    """Every connected worker has forgotten its kept answers."""

    purged = serializers.BooleanField()
    workers = serializers.IntegerField()


class CacheStatsView(ControlView):
    """What is kept."""

    permission_classes = (HasKey,)

    @extend_schema(responses={200: CacheStatsSerializer, **_REFUSED}, summary="Kept answers")
    def get(self, request: Request) -> Response:
        """The caches of all workers, added up."""
        control = plane.current
        statuses = [entry["status"] for entry in control.workers()] if control is not None else []
        reports = [status["cache"] for status in statuses if isinstance(status.get("cache"), dict)]
        longest = Route.objects.filter(enabled=True).aggregate(longest=Max("cache_s"))["longest"] or 0
        told = stats.told(stats.added(reports), enabled=longest > 0, ttl_s=longest)
        told["max_entries"] = told["max_bytes"] // OVERHEAD_BYTES
        if not caller_of(request).is_operator:
            return Response({name: told[name] for name in _PUBLIC})
        shown: dict[str, Any] = {**{name: told[name] for name in _PUBLIC}, **told, "workers": len(reports)}
        return Response(shown)


class CachePurgeView(ControlView):
    """Forget what is kept."""

    permission_classes = (IsOperator,)

    @extend_schema(
        request=None,
        responses={200: CachePurgeSerializer, 503: ErrorSerializer, **_REFUSED},
        summary="Forget all kept answers",
    )
    def post(self, request: Request) -> Response:
        """Answers when every connected worker has done it; otherwise says why not. It can be repeated."""
        control = plane.current
        if control is None:
            raise GatewayUnavailableError("This process does not control any worker.", code="no_control_plane")
        record("cache.purged", actor=caller_of(request).name)
        number = time.time_ns()
        control.purge_caches(number)
        end = time.monotonic() + WAIT_S
        while True:
            workers = control.workers()
            behind = [entry["index"] for entry in workers if entry["status"].get("cache_purge", 0) < number]
            if workers and not behind:
                return Response({"purged": True, "workers": len(workers)})
            if time.monotonic() >= end:
                why = f"worker {behind[0]} has not told that it did" if behind else "no worker is connected"
                raise GatewayUnavailableError(
                    f"The caches may not be empty: {why}. Repeat it.", code="purge_incomplete", retry_after_s=1
                )
            time.sleep(_STEP_S)
