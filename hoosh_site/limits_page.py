"""The admin page of rate limits: who has one, and how much of it is used at this moment on this host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.db.models import Model, Q
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse

from budgets.models import Agent, ApiKey, Team
from gateway import plane
from gateway.limits.limiter import name_of
from gateway.limits.status import SlotStatus, read_status
from gateway.queueing import stats
from providers.models import Provider, Route

SHOWN = 500
_LIMITED = (
    Q(requests_per_minute__isnull=False) | Q(tokens_per_minute__isnull=False) | Q(concurrent_requests__isnull=False)
)
# Kind of the workers' table -> what it is called here, its rows, and what its names are read from.
_KINDS: tuple[tuple[str, str, type[Model], tuple[str, ...]], ...] = (
    ("key", "API key", ApiKey, ()),
    ("agent", "agent", Agent, ("team",)),
    ("team", "team", Team, ()),
    ("provider", "provider", Provider, ()),
    ("route", "route", Route, ()),
)


def _view(model: type[Model]) -> str:
    return f"{model._meta.app_label}.view_{model._meta.model_name}"


VIEW_LIMITS = tuple(_view(model) for _, _, model, _ in _KINDS)


@dataclass(frozen=True, slots=True)
class Measure:
    """One limit and what is used of it now."""

    limit: int
    used: int

    @property
    def share(self) -> int:
        """Percent, at most 100."""
        return min(100, self.used * 100 // self.limit)


@dataclass(frozen=True, slots=True)
class Line:
    """Something with limits; what has none of a kind is None."""

    kind: str
    name: str
    url: str
    requests: Measure | None
    tokens: Measure | None
    concurrent: Measure | None
    in_flight: int
    waiting: int  # for a place, as workers told it within the last second

    @property
    def share(self) -> int:
        """Percent of the limit that is used most."""
        return max(measure.share for measure in (self.requests, self.tokens, self.concurrent) if measure is not None)


def may_see(user: Any) -> bool:
    """Whether the page has anything for this user."""
    return any(user.has_perm(name) for name in VIEW_LIMITS)


def limits_view(page: Any, request: HttpRequest) -> HttpResponse:
    """The page. Each kind of row is shown to who may see these rows."""
    if not may_see(request.user):
        raise PermissionDenied
    found, workers = lines(request.user.has_perm)
    context = {
        **page.admin_site.each_context(request),
        "title": "Limits",
        "lines": found[:SHOWN],
        "more": max(0, len(found) - SHOWN),
        "workers": workers,
        "queue": stats.told(queue_reports(), requests=0),
    }
    return TemplateResponse(request, "admin/hoosh/limits.html", context)


def queue_reports() -> list[dict[str, Any]]:
    """What the connected workers said last of their queues."""
    control = plane.current
    statuses = [entry["status"] for entry in control.workers()] if control is not None else []
    return [status["queue"] for status in statuses if isinstance(status.get("queue"), dict)]


def lines(has_perm: Callable[[str], bool]) -> tuple[list[Line], int]:
    """What has a limit and may be seen with these permissions, the fullest first; and how many workers there are."""
    try:
        status = read_status(settings.HOOSH_RUN_DIR / "limits")
    except OSError:  # the table belongs to the user the workers run as
        status = None
    slots = {slot.name: slot for slot in status.slots} if status is not None else {}
    waiting = stats.waiting_at(queue_reports())
    found = [line for kind in _KINDS if has_perm(_view(kind[2])) for line in _lines(*kind, slots, waiting)]
    found.sort(key=lambda line: (-line.waiting, -line.share, line.kind, line.name))
    return found, len(status.owners) if status is not None else 0


def _lines(
    kind: str,
    label: str,
    model: type[Model],
    related: tuple[str, ...],
    slots: dict[str, SlotStatus],
    waiting: dict[str, int],
) -> Iterator[Line]:
    """The rows of a model that have a limit."""
    rows: Any = model._default_manager.filter(_LIMITED)
    if model is ApiKey:
        rows = rows.filter(revoked_at__isnull=True)
    for row in rows.select_related(*related) if related else rows:
        name = name_of(kind, row.pk).decode()
        slot = slots.get(name)
        in_flight = slot.in_flight if slot else 0
        yield Line(
            kind=label,
            name=str(row),
            url=reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_change", args=(row.pk,)),
            requests=_measure(
                row.requests_per_minute,
                *((slot.requests_per_minute, slot.requests_remaining) if slot else (None, None)),
            ),
            tokens=_measure(
                row.tokens_per_minute, *((slot.tokens_per_minute, slot.tokens_remaining) if slot else (None, None))
            ),
            concurrent=Measure(row.concurrent_requests, in_flight) if row.concurrent_requests else None,
            in_flight=in_flight,
            waiting=waiting.get(name, 0),
        )


def _measure(limit: int | None, limit_then: int | None, remaining: int | None) -> Measure | None:
    """The used share of a bucket is kept when its limit changes; workers write the new one at the next request."""
    if limit is None:
        return None
    if not limit_then or remaining is None:
        return Measure(limit, 0)
    return Measure(limit, max(0, limit_then - remaining) * limit // limit_then)
