"""What happens in the gateway, for operators' programs: a stream that can be resumed, and the newest events at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib.auth import get_user_model
from django.db import close_old_connections
from django.http import StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from budgets.models import ApiKey
from events import names
from events.models import Event
from gateway.api.authentication import Caller, IsOperator, caller_of
from gateway.api.serializers import ErrorSerializer
from gateway.api.views import ControlView
from gateway.errors import BadRequestError, GatewayUnavailableError
from gateway.event_streams import Stream, hub, told

RECENT, RECENT_MAX = 128, 1000
_CHUNK = 500
_SEARCHED = 10_000  # events looked at for the newest of chosen topics
_ID_DIGITS = 18
_TOPIC = OpenApiParameter(
    "topic", description="Topics or names, comma-separated or repeated; * stands for one part, # for the rest."
)
_REFUSED = {
    400: OpenApiResponse(ErrorSerializer, "A parameter is not what it should be; `param` names it."),
    401: OpenApiResponse(ErrorSerializer, "No usable API key."),
    403: OpenApiResponse(ErrorSerializer, "The key is not an operator's."),
}


class EventSerializer(serializers.Serializer[None]):
    """One event. Events that hoosh had carry its fields, `event` and those of the kind, besides."""

    id = serializers.IntegerField()
    at = serializers.DateTimeField()
    topic = serializers.CharField()
    name = serializers.CharField()
    level = serializers.ChoiceField(choices=("info", "warning", "error"))
    data = serializers.DictField()  # type: ignore[assignment]  # a field, not the property
    event = serializers.CharField(required=False)


class EventsSerializer(serializers.Serializer[None]):
    """Events, oldest first."""

    events = EventSerializer(many=True)


class EventStreamResponse(StreamingHttpResponse):
    """A stream of events, closed when its reader leaves: Django closes what `aiter` gives it."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream, content_type="text/event-stream")
        self._stream = stream
        self["Cache-Control"] = "no-store"
        self["X-Accel-Buffering"] = "no"

    def __aiter__(self) -> Stream:
        return self._stream


class EventsView(ControlView):
    """Events as they happen."""

    permission_classes = (IsOperator,)

    @extend_schema(
        parameters=[
            _TOPIC,
            OpenApiParameter("after", OpenApiTypes.INT64, description="Begin behind the event with this id."),
            OpenApiParameter("Last-Event-ID", OpenApiTypes.INT64, OpenApiParameter.HEADER, description="As `after`."),
        ],
        responses={
            (200, "text/event-stream"): OpenApiTypes.STR,
            503: OpenApiResponse(ErrorSerializer, "Too many streams are open."),
            **_REFUSED,
        },
        summary="Stream of events",
    )
    def get(self, request: Request) -> HttpResponseBase:
        """`text/event-stream`. Without an id only what happens from now on; with one everything behind it."""
        stream = hub.open(_wanted(request), _after(request), still_operator(caller_of(request)))
        if stream is None:
            raise GatewayUnavailableError(
                "Too many event streams are open. Close one, or read /v1/events/recent.",
                code="streams_busy",
                retry_after_s=5,
            )
        close_old_connections()  # what follows may take days
        return EventStreamResponse(stream)


class RecentView(ControlView):
    """The newest events."""

    permission_classes = (IsOperator,)

    @extend_schema(
        parameters=[_TOPIC, OpenApiParameter("limit", int, description=f"1 to {RECENT_MAX}; {RECENT} if left out.")],
        responses={200: EventsSerializer, **_REFUSED},
        summary="The newest events",
    )
    def get(self, request: Request) -> Response:
        """Oldest first."""
        limit = _number(request.query_params.getlist("limit"), "limit", most=RECENT_MAX, least=1)
        found = recent(_wanted(request), RECENT if limit is None else limit)
        return Response({"events": [told(event) for event in found]})


def recent(wanted: names.Wanted, limit: int) -> list[Event]:
    """The newest chosen events, oldest first. Of few among very many, only those among the newest ten thousand."""
    rows = Event.objects.order_by("-id")
    if wanted.everything:
        return list(rows[:limit])[::-1]
    found: list[Event] = []
    searched, before = 0, None
    while len(found) < limit and searched < _SEARCHED:
        chunk = list((rows if before is None else rows.filter(id__lt=before))[:_CHUNK])
        found += (event for event in chunk if wanted.has(event.topic, event.name))
        if len(chunk) < _CHUNK:
            break
        searched, before = searched + _CHUNK, chunk[-1].pk
    return found[:limit][::-1]


def still_operator(caller: Caller) -> Callable[[], bool]:
    """Asks whether a caller who was an operator at the start of a stream is one now."""
    key, user = caller.key, caller.user

    def key_may() -> bool:
        assert key is not None
        row = ApiKey.objects.select_related("agent__team").filter(pk=key.pk, revoked_at=None).first()
        if row is None or (row.expires_at is not None and row.expires_at <= timezone.now()):
            return False
        return row.agent.enabled and row.agent.team.enabled and Caller(key=row).is_operator

    def user_may() -> bool:
        assert user is not None
        row: Any = get_user_model().objects.filter(pk=user.pk, is_active=True, is_staff=True).first()
        return row is not None and Caller(user=row).is_operator

    return key_may if key is not None else user_may


def _wanted(request: Request) -> names.Wanted:
    try:
        return names.Wanted.parse(",".join(request.query_params.getlist("topic")))
    except ValueError as exc:
        raise BadRequestError(str(exc), param="topic") from exc


def _after(request: Request) -> int | None:
    """The id to begin behind. The header counts: a browser that comes back sends it beside its first address."""
    header = request.headers.get("Last-Event-ID", "").strip()
    if header:
        return _number([header], "Last-Event-ID")
    return _number(request.query_params.getlist("after"), "after")


def _number(values: list[str], param: str, *, least: int = 0, most: int = 10**_ID_DIGITS - 1) -> int | None:
    if not values:
        return None
    text = values[0]
    if len(values) > 1 or not (text.isascii() and text.isdigit() and len(text) <= _ID_DIGITS):
        raise BadRequestError(f"'{param}' must be one whole number.", param=param)
    if not least <= int(text) <= most:
        raise BadRequestError(f"'{param}' must be a whole number from {least} to {most}.", param=param)
    return int(text)
