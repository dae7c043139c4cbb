"""The live part of the first page: what the gateway does now, in cards and charts.

Figures of the last hour come from the workers' metrics (`hoosh_site.live_figures`), older ones and money from the
ledger's rollups: nothing here scans requests. One look costs the same however many pages are open: it is kept for
some seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractUser, AnonymousUser
from django.contrib.sessions.backends.db import SessionStore
from django.core.exceptions import PermissionDenied
from django.core.handlers.asgi import ASGIRequest
from django.db import close_old_connections
from django.db.models import Sum
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.template.loader import render_to_string
from django.utils.safestring import SafeString

from budgets import reports
from budgets.balances import balances
from budgets.models import Pool, UsageRollup
from budgets.pool_state import Outlook, outlook
from gateway import plane
from gateway.event_streams import hub
from hoosh_site import attention, charts
from hoosh_site.kept import Kept
from hoosh_site.live_figures import Figures, Span, figures
from providers.models import Provider

STREAM_S = 5.0  # between two looks of an open page
STREAMS_MAX = 32
_HOUR_S, _DAY_S = 3600, 86_400
_CAUSES = 6
_PROVIDERS = 40
_POOLS_READ, _POOLS_GUESSED, _POOLS = 500, 20, 5
_MINUTES = 60


@dataclass
class Traffic:
    """What the workers did. None = not known (yet)."""

    requests_per_minute: float | None = None
    errors_percent: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    first_p50_ms: float | None = None
    first_p95_ms: float | None = None
    hit_percent: float | None = None
    inflight: int = 0
    causes: list[tuple[str, int]] = field(default_factory=list)  # refusals of the last hour by code, the most first
    charts: list[SafeString] = field(default_factory=list)


@dataclass
class Spending:
    """Sums of the ledger."""

    today_usd: Decimal = Decimal(0)
    today_tokens: int = 0
    month_usd: Decimal = Decimal(0)
    charts: list[SafeString] = field(default_factory=list)


@dataclass(frozen=True)
class Lamp:
    """One provider in the strip."""

    pk: int
    name: str
    tone: str  # "good", "bad" or ""
    words: str


@dataclass(frozen=True)
class RunningOut:
    """A pool with the guess when it is spent."""

    pk: int
    name: str
    outlook: Outlook


def traffic(source: Figures = figures) -> Traffic:
    """What the workers did in the last minutes and the last hour."""
    found = Traffic()
    if (latest := source.latest()) is not None:
        found.inflight = int(latest.inflight)
    if (span := source.over(300)) is not None:
        found.requests_per_minute = span.total / span.seconds * 60
        found.errors_percent = 100 * span.errors / span.total if span.total else None
        found.p50_ms, found.p95_ms = span.duration_ms(0.5), span.duration_ms(0.95)
        found.first_p50_ms, found.first_p95_ms = span.first_byte_ms(0.5), span.first_byte_ms(0.95)
    if (hour := source.over(_HOUR_S)) is not None:
        found.hit_percent = None if hour.hit_share is None else 100 * hour.hit_share
        codes = sorted(hour.refusals.items(), key=lambda item: (-item[1], item[0]))
        found.causes = [(code, round(count)) for code, count in codes if count >= 1][:_CAUSES]
        found.charts = _traffic_charts(source.spans(60, _MINUTES))
    return found


def _traffic_charts(spans: Sequence[Span | None]) -> list[SafeString]:
    ticks = [f"{len(spans) - i} min ago" for i in range(len(spans))]

    def counts(wanted: Callable[[Span], float]) -> list[float]:
        return [0.0 if span is None else wanted(span) / span.seconds * 60 for span in spans]

    def times(wanted: Callable[[Span], float | None]) -> list[float | None]:
        return [None if span is None else wanted(span) for span in spans]

    return [
        charts.stacked(
            [
                ("answered", "good", counts(lambda span: span.total - span.errors)),
                ("not answered", "bad", counts(lambda span: span.errors)),
            ],
            label="Requests per minute",
            ticks=ticks,
        ),
        charts.stacked([("tokens", "plain", counts(lambda span: span.tokens))], label="Tokens per minute", ticks=ticks),
        charts.lines(
            [
                ("95 of 100 within", "warn", times(lambda span: span.duration_ms(0.95))),
                ("half within", "plain", times(lambda span: span.duration_ms(0.5))),
            ],
            label="Half and 95 of 100 within",
            unit="ms",
            ticks=ticks,
        ),
    ]


def spending(now: float | None = None) -> Spending:
    """What was spent today and this month (UTC), and the hours of the last day."""
    at = time.time() if now is None else now
    today = int(at) // _DAY_S * _DAY_S
    month = today - (time.gmtime(at).tm_mday - 1) * _DAY_S
    found = Spending()
    for total in reports.totals(since=today):
        found.today_usd, found.today_tokens = total.cost_usd, total.tokens
    for total in reports.totals(since=month):
        found.month_usd = total.cost_usd
    found.charts = _hours(int(at))
    return found


def _hours(now_s: int) -> list[SafeString]:
    first = now_s // _HOUR_S * _HOUR_S - 23 * _HOUR_S
    rows = UsageRollup.objects.using(settings.HOOSH_LEDGER_DB).filter(start__gte=first, seconds=_HOUR_S).order_by()
    sums = rows.values_list("start").annotate(
        all=Sum("requests"), bad=Sum("errors"), milli=Sum("cost_milli_usd"), rest=Sum("cost_rest_pico")
    )
    by_hour = {start: values for start, *values in sums}
    hours = [first + i * _HOUR_S for i in range(24)]
    ticks = [time.strftime("%H:00 UTC", time.gmtime(hour)) for hour in hours]
    nothing = [0, 0, 0, 0]
    cells = [by_hour.get(hour, nothing) for hour in hours]
    return [
        charts.stacked(
            [
                ("requests", "good", [float(max(0, cell[0] - cell[1])) for cell in cells]),
                ("failed calls", "bad", [float(cell[1]) for cell in cells]),
            ],
            label="Requests per hour",
            ticks=ticks,
        ),
        charts.stacked(
            [("USD", "plain", [cell[2] / 1e3 + cell[3] / 1e12 for cell in cells])],
            label="Cost per hour",
            ticks=ticks,
            unit="USD",
        ),
    ]


def lamps() -> list[Lamp]:
    """The enabled providers and what was seen of them last."""
    found = []
    for provider in Provider.objects.filter(enabled=True).select_related("probe").order_by("name")[:_PROVIDERS]:
        probe = getattr(provider, "probe", None)
        if probe is None or probe.checked_at is None:
            found.append(Lamp(provider.pk, provider.name, "", "not checked yet"))
        elif probe.ok:
            words = f"up, {probe.latency_ms:.0f} ms" if probe.latency_ms is not None else "up"
            found.append(Lamp(provider.pk, provider.name, "good", words))
        else:
            found.append(Lamp(provider.pk, provider.name, "bad", probe.detail or "down"))
    return found


def running_out() -> list[RunningOut]:
    """Of the pools that are used most, those that are spent or will be before their windows end."""
    rows = list(Pool.objects.filter(enabled=True).order_by("id")[:_POOLS_READ])
    known, now = balances(rows), time.time()
    rows.sort(key=lambda row: -known[row.pk].used_permille)
    found = []
    for row in rows[:_POOLS_GUESSED]:
        for purse in known[row.pk].limited:
            guess = outlook(row, known[row.pk], purse, now)
            if guess.tone:
                found.append(RunningOut(row.pk, row.name, guess))
    return found[:_POOLS]


_traffic, _spending, _lamps, _pools = Kept(traffic), Kept(spending), Kept(lamps), Kept(running_out)


def forget() -> None:
    """Look at everything anew: for tests, whose database changes under it."""
    for kept in (_traffic, _spending, _lamps, _pools):
        kept.forget()
    attention.forget_rows()


def pools_running_out() -> list[RunningOut]:
    """As the page shows them, at most some seconds old."""
    return _pools.get()


# Part of the page -> how it is read, and who may see it.
_PARTS: dict[str, tuple[Kept[Any], str]] = {
    "traffic": (_traffic, "budgets.view_usage"),
    "spending": (_spending, "budgets.view_usage"),
    "lamps": (_lamps, "providers.view_provider"),
    "running_out": (_pools, "budgets.view_pool"),
}


def live(user: AbstractUser | AnonymousUser) -> dict[str, Any]:
    """The parts this user may see, for the template `admin/hoosh/live.html`."""
    found = {name: kept.get() for name, (kept, permission) in _PARTS.items() if user.has_perm(permission)}
    pools = attention.running_out(found.pop("running_out", ()))
    if pools or attention.is_for(user):
        found["attention"] = attention.attention(user, pools)
    return found


def live_view(page: Any, request: HttpRequest) -> HttpResponse:
    """The live part alone, for pages that ask for it again and again."""
    found = live(request.user)
    if not found:
        raise PermissionDenied
    return HttpResponse(_fragment(found))


def _fragment(found: dict[str, Any]) -> str:
    return render_to_string("admin/hoosh/live.html", {"live": found})


_open = 0


def _is_ending(drained: frozenset[str]) -> bool:
    """Whether control stops, or a worker that is not among `drained`: open streams would keep it waiting."""
    return hub.ending or bool(plane.draining() - drained)


def stream_view(page: Any, request: HttpRequest) -> HttpResponseBase:
    """The same as server-sent events: the part as it is, anew every few seconds while its reader may see it."""
    if not live(request.user):
        raise PermissionDenied
    if not isinstance(request, ASGIRequest):
        return HttpResponse(status=204)  # a server of one thread per request cannot stream: the page asks again instead
    if _open >= STREAMS_MAX:
        return HttpResponse("Too many pages are open.", status=503, headers={"retry-after": "10"})
    events = _events(int(request.user.pk or 0), request.session.session_key or "")
    response = StreamingHttpResponse(events, content_type="text/event-stream")
    response["cache-control"] = "no-cache"
    response["x-accel-buffering"] = "no"
    return response


async def _events(user_id: int, session_key: str) -> AsyncIterator[bytes]:
    global _open
    _open += 1
    try:
        told, drained = "", plane.draining()
        yield b"retry: 3000\n\n"
        while not _is_ending(drained):
            fragment = await sync_to_async(_told_to, thread_sensitive=False)(user_id, session_key)
            if fragment is None:
                return
            if fragment != told:
                told = fragment
                yield b"".join(b"data: %b\n" % line.encode() for line in fragment.splitlines()) + b"\n"
            else:
                yield b": still the same\n\n"
            for _ in range(int(STREAM_S)):
                if _is_ending(drained):
                    return
                await asyncio.sleep(1)
    finally:
        _open -= 1


def _told_to(user_id: int, session_key: str) -> str | None:
    """The part for this user; None when they signed out or may not see it any more."""
    try:
        if not SessionStore().exists(session_key):
            return None
        user = get_user_model()._default_manager.filter(pk=user_id, is_active=True, is_staff=True).first()
        found = live(user) if user is not None else {}
        return _fragment(found) if found else None
    finally:
        close_old_connections()
