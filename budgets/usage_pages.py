"""One page of usage rows that match a search, newest first, at a cost that does not depend on how rare they are.

Rows are read along one index, and at most `LOOK` of them for one page: where fewer than a page match, the page says how
far back it looked and the next one goes on from there. Hours in which nothing can match are passed over by the hourly
sums. Reading is all that happens here.
"""

from __future__ import annotations

import datetime as dt
from typing import NamedTuple

from django.db.models import Q, QuerySet

from budgets.models import LedgerState, Usage, UsageRollup
from budgets.rollups import DAY_S, HOUR_S, ROLLED_UP
from budgets.usage_search import Search

LOOK = 40_000  # rows read for one page
_STRETCHES = 48  # of hours with matches, read for one page
_SUMS = 96  # hours (or days) looked up in the sums for one page

Span = tuple[dt.datetime, dt.datetime]  # from, included, and to, not included


class UsagePage(NamedTuple):
    """What was found, and where to go on: behind (`at`, `id`). `looked_to` is set where the page stopped early."""

    rows: list[Usage]
    behind: tuple[dt.datetime, int] | None
    looked_to: dt.datetime | None


def read(rows: QuerySet[Usage], search: Search, span: Span | None, limit: int, *, look: int = LOOK) -> UsagePage:
    """Up to `limit` of `rows` (already behind the cursor) that match, inside `span` (None: of any time)."""
    if search.is_empty:
        return UsagePage([], None, None)
    base = rows.filter(*search.along).order_by("-at", "-id")
    if search.is_along_one:
        return _whole(base.filter(at__gte=span[0], at__lt=span[1]) if span else base, limit)
    assert span is not None, "only an id is looked for without a time"
    found: list[Usage] = []
    parts, is_cut = _stretches(search, span) if search.groups else ([span], False)
    for number, (start, end) in enumerate(parts, start=1):
        part = base.filter(at__gte=start, at__lt=end)
        seen = part[: look + 1].count()
        edge = part.values_list("at", "id")[look] if seen > look else None
        if edge is not None:
            # One lower bound, or SQLite might read from the other one. And not "later, or as late and with a greater
            # id": for an OR it reads two indexes and sorts.
            part = base.filter(~Q(at=edge[0], id__lte=edge[1]), at__gte=edge[0], at__lt=end)
        found += part.filter(*search.rest)[: limit + 1 - len(found)]
        if len(found) > limit:
            return UsagePage(found[:limit], (found[limit - 1].at, found[limit - 1].pk), None)
        if edge is not None:
            return UsagePage(found, (edge[0], edge[1] + 1), edge[0])
        look -= seen
        if (look <= 0 and number < len(parts)) or (is_cut and number == len(parts)):
            return UsagePage(found, (start, 0), start)
    return UsagePage(found, None, None)


def _whole(rows: QuerySet[Usage], limit: int) -> UsagePage:
    found = list(rows[: limit + 1])
    if len(found) <= limit:
        return UsagePage(found, None, None)
    return UsagePage(found[:limit], (found[limit - 1].at, found[limit - 1].pk), None)


def _stretches(search: Search, span: Span) -> tuple[list[Span], bool]:
    """The parts of `span` that may have matches, newest first, and whether there may be more behind them."""
    begin, end = span
    fresh = max(begin, _not_summed_from(begin))
    sums = UsageRollup.objects.filter(start__lt=_seconds(fresh), start__gt=_seconds(begin) - DAY_S, **search.groups)
    known = list(sums.order_by("-start").values_list("start", "seconds").distinct()[:_SUMS])
    parts: list[Span] = [(fresh, end)] if fresh < end else []
    for start, seconds in known:
        low, high = max(begin, _moment(start)), min(end, fresh, _moment(start + seconds))
        if low >= high:
            continue
        if parts and parts[-1][0] <= high:
            parts[-1] = min(low, parts[-1][0]), parts[-1][1]
        else:
            parts.append((low, high))
    return parts[:_STRETCHES], len(known) == _SUMS or len(parts) > _STRETCHES


def _not_summed_from(begin: dt.datetime) -> dt.datetime:
    """From this hour on rows may be in no sum yet."""
    done = LedgerState.objects.filter(name=ROLLED_UP).values_list("value", flat=True).first()
    last = Usage.objects.filter(pk=done).values_list("at", flat=True).first() if done else None
    if last is None:
        return begin
    return _moment(_seconds(last) // HOUR_S * HOUR_S)


def _seconds(at: dt.datetime) -> int:
    return int(at.timestamp())


def _moment(seconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
