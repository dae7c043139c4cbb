"""Who waits for a place at routes and providers that limit their requests at once: all workers together."""

from __future__ import annotations

from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from gateway import plane
from gateway.api.authentication import HasKey, caller_of
from gateway.api.serializers import ErrorSerializer
from gateway.api.views import ControlView
from gateway.queueing import stats

_PUBLIC = ("queued", "pending", "processing", "waiting", "oldest_wait_ms", "mean_wait_ms")


class WaitingSerializer(serializers.Serializer[None]):
    """How many wait, by class."""

    interactive = serializers.IntegerField()
    agent = serializers.IntegerField()
    batch = serializers.IntegerField()


class QueueStatusSerializer(serializers.Serializer[None]):
    """All connected workers together, as they told it within the last second. What is behind `mean_wait_ms` is for
    operators; what is counted begins at 0 with each worker."""

    queued = serializers.IntegerField(help_text="Requests that wait for a place.")
    pending = serializers.IntegerField(help_text="The same.")
    processing = serializers.IntegerField(help_text="Requests under way that do not wait.")
    waiting = WaitingSerializer()
    oldest_wait_ms = serializers.IntegerField(help_text="How long the one that waits longest has waited.")
    mean_wait_ms = serializers.FloatField(help_text="Of those that got a place after waiting.")
    admitted = serializers.IntegerField(required=False, help_text="Waited and got a place.")
    timed_out = serializers.IntegerField(required=False, help_text="No place came free in time.")
    refused_full = serializers.IntegerField(required=False, help_text="Too many waited already.")
    refused_early = serializers.IntegerField(required=False, help_text="Would have waited too long.")
    left = serializers.IntegerField(required=False, help_text="Clients that left while they waited.")
    limited = serializers.IntegerField(required=False, help_text="Met a limit per minute when a place came free.")
    at = serializers.DictField(
        child=serializers.IntegerField(), required=False, help_text="How many wait for what, as in `provider:3`."
    )
    workers = serializers.IntegerField(required=False, help_text="How many told their figures.")


class QueueStatusView(ControlView):
    """Who waits."""

    permission_classes = (HasKey,)

    @extend_schema(
        responses={200: QueueStatusSerializer, 401: OpenApiResponse(ErrorSerializer, "No usable API key.")},
        summary="Requests that wait for a place",
    )
    def get(self, request: Request) -> Response:
        """The queues of all workers, added up."""
        control = plane.current
        statuses = [entry["status"] for entry in control.workers()] if control is not None else []
        reports = [status["queue"] for status in statuses if isinstance(status.get("queue"), dict)]
        told = stats.told(reports, requests=sum(status.get("requests", 0) for status in statuses))
        if not caller_of(request).is_operator:
            return Response({name: told[name] for name in _PUBLIC})
        return Response({**told, "at": stats.waiting_at(reports), "workers": len(reports)})
