"""What happened, read only: usage, sums, alerts, events, the audit log, the ledger."""

from __future__ import annotations

import datetime as dt
from typing import Any, ClassVar

from django.db.models import QuerySet
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from audit import reading
from audit.models import AuditEntry, OutboxEntry
from budgets import reports
from budgets.models import Lease, LedgerEntry, PoolAlert, PoolWindow, Reservation, Usage
from events.models import Event
from gateway.errors import BadRequestError
from hoosh_site.management_api.paging import Filter, one, whole
from hoosh_site.management_api.rows import Acting, ReadOnlyRows

GROUPS_MAX = 2000
_GROUP_BY, _SINCE, _UNTIL, _PERIOD = "group_by", "since", "until", "period"
TIME = {
    "since": Filter("at__gte", "time", "From this moment on."),
    "until": Filter("at__lt", "time", "Before this moment."),
}
_POOL = {"pool": Filter("pool_id", "id", "The pool's id.")}


class UsageSerializer(serializers.ModelSerializer[Usage]):
    """One upstream call: what it used, what it cost, for whom."""

    cost_usd = serializers.SerializerMethodField(help_text="Exact, as text.")

    class Meta:
        model = Usage
        fields = (
            *("id", "rid", "attempt", "at", "key_id", "agent_id", "team_id", "pool_id", "window_start", "pools"),
            *("route_id", "provider_id", "endpoint", "model", "upstream_model", "status", "error", "stream"),
            *("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"),
            *("input_audio_tokens", "output_audio_tokens", "input_image_tokens", "tokens", "held", "cost_usd"),
            *("price_id", "basis", "latency_us", "ttft_us", "config_version", "shape", "client_request_id"),
        )

    def get_cost_usd(self, row: Usage) -> str:
        """A decimal text."""
        return f"{row.cost_usd:f}"


class UsageRows(ReadOnlyRows):
    """Newest first; without `since` those of the last day."""

    label = "budgets.usage"
    serializer_class = UsageSerializer
    queryset = Usage.objects.all()
    keyset = ("at", "id")
    newest_first = True
    filters = {
        **TIME,
        **{name: Filter(f"{name}_id", "id", "An id.") for name in ("key", "agent", "team", "pool", "provider")},
        "request": Filter("rid", about="Our id of a request, without dashes."),
        "client_request_id": Filter("client_request_id"),
        "status": Filter("status", "id"),
        "model": Filter("model"),
    }

    def filter_queryset(self, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """A stretch of time is always chosen: a rare row would else be looked for in the whole table."""
        rows = super().filter_queryset(queryset)
        if self.action == "list" and "since" not in self.request.query_params:
            rows = rows.filter(at__gte=timezone.now() - dt.timedelta(days=1))
        return rows


class WindowSerializer(serializers.ModelSerializer[PoolWindow]):
    """A pool's window in one unit: 0 = tokens, 1 = pico-USD."""

    class Meta:
        model = PoolWindow
        fields = (
            *("id", "pool_id", "unit", "window_start", "window_end", "capacity", "adjusted", "committed", "leased"),
            "overrun",
        )


class Windows(ReadOnlyRows):
    """The windows of all pools, newest first."""

    label = "budgets.poolwindow"
    serializer_class = WindowSerializer
    queryset = PoolWindow.objects.all()
    newest_first = True
    filters = {**_POOL, "unit": Filter("unit", "id")}


class EntrySerializer(serializers.ModelSerializer[LedgerEntry]):
    """A correction, transfer or the like, as the ledger has it."""

    class Meta:
        model = LedgerEntry
        fields = ("id", "kind", "order_id", "pool_id", "unit", "window_start", "amount", "actor", "note", "at")


class Entries(ReadOnlyRows):
    """What was done to balances, newest first."""

    label = "budgets.ledgerentry"
    serializer_class = EntrySerializer
    queryset = LedgerEntry.objects.all()
    newest_first = True
    filters = {**_POOL, "kind": Filter("kind")}


class LeaseSerializer(serializers.ModelSerializer[Lease]):
    """What a worker may spend of a window."""

    pool_id = serializers.IntegerField(source="window.pool_id")
    unit = serializers.IntegerField(source="window.unit")

    class Meta:
        model = Lease
        fields = ("id", "owner", "pool_id", "unit", "granted", "returned", "remaining", "state")


class Leases(ReadOnlyRows):
    """What workers hold; quarantined ones wait for an order."""

    label = "budgets.lease"
    serializer_class = LeaseSerializer
    queryset = Lease.objects.select_related("window")
    filters = {"pool": Filter("window__pool_id", "id"), "state": Filter("state"), "owner": Filter("owner")}


class ReservationSerializer(serializers.ModelSerializer[Reservation]):
    """Tokens a caller set aside itself."""

    class Meta:
        model = Reservation
        fields = (
            *("id", "pool_id", "team_id", "agent_id", "key_id", "tokens", "actual", "state"),
            *("created_at", "expires_at"),
        )


class Reservations(ReadOnlyRows):
    """Newest first."""

    label = "budgets.reservation"
    serializer_class = ReservationSerializer
    queryset = Reservation.objects.all()
    newest_first = True
    filters = {**_POOL, "key": Filter("key_id", "id"), "state": Filter("state")}


class AlertSerializer(serializers.ModelSerializer[PoolAlert]):
    """A share of a limit that was reached."""

    class Meta:
        model = PoolAlert
        fields = ("id", "pool_id", "unit", "window_start", "percent", "committed", "capacity", "at")


class Alerts(ReadOnlyRows):
    """Newest first."""

    label = "budgets.poolalert"
    serializer_class = AlertSerializer
    queryset = PoolAlert.objects.all()
    newest_first = True
    filters = {**_POOL, **TIME}


class RecordedEventSerializer(serializers.ModelSerializer[Event]):
    """One thing that happened."""

    class Meta:
        model = Event
        fields = ("id", "at", "topic", "name", "level", "data")


class Events(ReadOnlyRows):
    """Newest first. To be told as they happen, see `GET /v1/events` and webhooks."""

    label = "events.event"
    serializer_class = RecordedEventSerializer
    queryset = Event.objects.all()
    newest_first = True
    filters = {**TIME, **{name: Filter(name) for name in ("topic", "name", "level")}}


class LoggedSerializer(serializers.ModelSerializer[AuditEntry]):
    """Who did what to which row. `actor` and `target` are names; those of people who were erased are "erased"."""

    data = serializers.DictField()  # type: ignore[assignment]  # a field, not the property

    class Meta:
        model = AuditEntry
        fields = ("seq", "at", "action", "actor", "target", "level", "data")

    def to_representation(self, instance: AuditEntry) -> dict[str, Any]:
        """What was sealed is opened."""
        (read,) = reading.readable([instance])
        at = serializers.DateTimeField().to_representation(instance.at)
        told = {"seq": instance.seq, "at": at, "action": instance.action, "actor": read.actor, "target": read.target}
        return {**told, "level": instance.level, "data": {**read.data, **read.personal}}


class AuditEntries(ReadOnlyRows):
    """Newest first. More ways to ask, and proofs: `GET /v1/audit`."""

    label = "audit.auditentry"
    serializer_class = LoggedSerializer
    queryset = AuditEntry.objects.all()
    keyset = ("seq",)
    newest_first = True
    filters = {**TIME, **{name: Filter(name) for name in ("action", "level")}}


class OnItsWaySerializer(serializers.ModelSerializer[OutboxEntry]):
    """What will be an audit entry within a second."""

    data = serializers.DictField()  # type: ignore[assignment]  # a field, not the property

    class Meta:
        model = OutboxEntry
        fields = ("id", "at", "action", "actor", "target", "level", "data")


class WaitingEntries(ReadOnlyRows):
    """Audit entries that are not in the log yet, newest first: normally none for longer than a second."""

    label = "audit.outboxentry"
    serializer_class = OnItsWaySerializer
    queryset = OutboxEntry.objects.all()
    newest_first = True
    filters = {name: Filter(name) for name in ("action", "level")}


class TotalSerializer(serializers.Serializer[None]):
    """The sums of one group."""

    keys = serializers.DictField(help_text="The group: ids, texts, for day a date in UTC.")
    cost_usd = serializers.CharField(help_text="Exact.")
    requests = serializers.IntegerField()
    attempts = serializers.IntegerField()
    errors = serializers.IntegerField()  # type: ignore[assignment]  # a field, not the property
    unpriced = serializers.IntegerField()
    input_tokens = serializers.IntegerField()
    cached_tokens = serializers.IntegerField()
    cache_write_tokens = serializers.IntegerField()
    output_tokens = serializers.IntegerField()
    reasoning_tokens = serializers.IntegerField()
    tokens = serializers.IntegerField()
    latency_us = serializers.IntegerField(help_text="Sum over the attempts.")


class UsageReportSerializer(serializers.Serializer[None]):
    """Sums, the most expensive group first."""

    data = TotalSerializer(many=True)  # type: ignore[assignment]  # a field, not the property


_FILTERS = tuple(name for name in reports.DIMENSIONS if name not in ("day", "period"))
_SUMS = ("requests", "attempts", "errors", "unpriced", "input_tokens", "cached_tokens", "cache_write_tokens")
_MORE_SUMS = ("output_tokens", "reasoning_tokens", "tokens", "latency_us")


_DAY = OpenApiTypes.DATE
_PARAMETERS = [
    OpenApiParameter(_GROUP_BY, str, description=f"Comma-separated, of {', '.join(reports.DIMENSIONS)}."),
    OpenApiParameter(_SINCE, _DAY, description="The first day, UTC."),
    OpenApiParameter(_UNTIL, _DAY, description="The last day, UTC."),
    OpenApiParameter(_PERIOD, str, description="A reporting period's number, current or all (as by default)."),
    *(OpenApiParameter(name, str, description="Only this one.") for name in _FILTERS),
]


class Reports(Acting):
    """Sums over everything, also over rows that are deleted by now."""

    label = "budgets.usage"
    verbs: ClassVar = {"usage": "view"}
    query: ClassVar = {"usage": frozenset({_GROUP_BY, _SINCE, _UNTIL, _PERIOD, *_FILTERS})}

    @extend_schema(parameters=_PARAMETERS, responses=UsageReportSerializer, summary="Usage and costs, summed")
    def usage(self, request: Request) -> Response:
        """Exact to the last pico-USD; at most two thousand groups."""
        groups = [each.strip() for each in (one(request, _GROUP_BY) or "").split(",") if each.strip()]
        if unknown := [each for each in groups if each not in reports.DIMENSIONS]:
            known = ", ".join(reports.DIMENSIONS)
            raise BadRequestError(f"There is no '{unknown[0][:64]}'. Group by {known}.", param=_GROUP_BY)
        since, until = _midnight(request, _SINCE), _midnight(request, _UNTIL, days=1)
        if since is not None and until is not None and since >= until:
            raise BadRequestError(f"'{_UNTIL}' is a day before '{_SINCE}'.", param=_UNTIL)
        try:
            found = reports.totals(
                groups,
                filters={name: [value] for name in _FILTERS if (value := _value(request, name)) is not None},
                since=since,
                until=until,
                period=_period(request),
                limit=GROUPS_MAX,
            )
        except reports.TooManyGroupsError as exc:
            raise BadRequestError(f"{exc} Ask for a shorter time or fewer dimensions.", param=_GROUP_BY) from exc
        return Response({"data": [_told(total) for total in found]})


def _told(total: reports.Total) -> dict[str, Any]:
    sums = {name: getattr(total, name) for name in (*_SUMS, *_MORE_SUMS)}
    return {"keys": dict(total.keys), "cost_usd": f"{total.cost_usd:f}", **sums}


def _value(request: Request, name: str) -> int | str | None:
    if name in ("endpoint", "model", "upstream_model"):
        return one(request, name)
    return whole(request, name, 0, least=0, most=10**18 - 1) if name in request.query_params else None


def _midnight(request: Request, name: str, *, days: int = 0) -> int | None:
    text = one(request, name)
    if text is None:
        return None
    try:
        day = dt.date.fromisoformat(text)
    except ValueError:
        raise BadRequestError(f"'{name}' must be a day such as 2027-01-31.", param=name) from None
    if not 1970 <= day.year < 9999:
        raise BadRequestError(f"'{name}' is out of range: a year from 1970 to 9998.", param=name)
    return int(dt.datetime.combine(day + dt.timedelta(days=days), dt.time(), dt.UTC).timestamp())


def _period(request: Request) -> int | None:
    text = one(request, _PERIOD)
    if text in (None, "all"):
        return None
    return reports.CURRENT if text == "current" else whole(request, _PERIOD, 0, least=0, most=10**9)
