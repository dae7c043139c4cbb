"""When a pool's window begins and ends. Pure.

Hours, days, weeks (from Monday) and months follow the calendar of the pool's time zone; a lifetime has no end. Only
control computes windows: workers are told, so that no two processes can disagree about the time.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

KINDS = ("lifetime", "hour", "day", "week", "month")
LIFETIME = 0  # the start of a window that never ended another
_HOUR_S = 3600


class Span(NamedTuple):
    """A window, in Unix seconds: `start` belongs to it, `end` to the next one; an `end` of 0 never comes."""

    start: int
    end: int


class WindowSpec(NamedTuple):
    """What the ledger should have for one pool's window in one unit. `capacity` None = no limit."""

    pool_id: int
    unit: int
    window_start: int
    window_end: int
    capacity: int | None
    alerts: str = ""  # percents of the capacity, comma-separated
    carry_from: int | None = None  # start of the window whose free rest is added to this one


@lru_cache(maxsize=64)
def zone(name: str) -> ZoneInfo:
    """The time zone of that name. Raises `ValueError` when there is none."""
    if name not in zone_names():
        raise ValueError(f"There is no time zone named '{name[:64]}'.")
    return ZoneInfo(name)


@lru_cache(maxsize=1)
def zone_names() -> frozenset[str]:
    """Every name a pool's time zone may have."""
    return frozenset(available_timezones())


def calendar_span(kind: str, zone_name: str, now: float) -> Span:
    """The calendar's window of `kind` around `now` (Unix seconds): it has begun and not ended, and each one begins
    where the one before ends.

    Across a change of the clocks a day has 23 or 25 hours; the hour that is there twice is two windows. A change
    within an hour ends the hour, and where clocks are set back across midnight the new day has begun for good.
    """
    if kind == "lifetime":
        return Span(LIFETIME, 0)
    place = zone(zone_name)
    if kind == "hour":
        return _hour(int(now), place)
    first = _first_day(kind, dt.datetime.fromtimestamp(now, place).date())
    end = _begin(_next_day(kind, first), place)
    if end <= now:
        first = _next_day(kind, first)
        return Span(end, _begin(_next_day(kind, first), place))
    return Span(_begin(first, place), end)


def current_span(kind: str, zone_name: str, now: float, *, since: int = 0, newest: int = 0) -> Span:
    """The window a pool is in.

    `since` is when its kind or zone was last changed: that moment begins a window of its own. `newest` is the start
    of the newest window in the ledger: a clock that was set back opens none anew.
    """
    span = calendar_span(kind, zone_name, now)
    start = max(span.start, since, newest)
    if span.end and start >= span.end:  # the clock was set back by more than a window
        return Span(start, calendar_span(kind, zone_name, start).end)
    return Span(start, span.end)


def _first_day(kind: str, day: dt.date) -> dt.date:
    if kind == "day":
        return day
    if kind == "week":
        return day - dt.timedelta(days=day.weekday())
    if kind == "month":
        return day.replace(day=1)
    raise ValueError(f"There is no window of the kind '{kind}'.")


def _next_day(kind: str, first: dt.date) -> dt.date:
    if kind == "month":
        return (first + dt.timedelta(days=32)).replace(day=1)
    return first + dt.timedelta(days=7 if kind == "week" else 1)


def _begin(day: dt.date, place: ZoneInfo) -> int:
    """The first midnight of a day. Where a change of the clocks skips that, the change itself has this timestamp."""
    return int(dt.datetime.combine(day, dt.time(), place).timestamp())


def _hour(now: int, place: ZoneInfo) -> Span:
    offset_s = _offset_s(now, place)
    start = (now + offset_s) // _HOUR_S * _HOUR_S - offset_s
    end = start + _HOUR_S
    if _offset_s(start, place) != offset_s:
        start = _first(start, now, lambda at: _offset_s(at, place) == offset_s)
    if _offset_s(end - 1, place) != offset_s:
        end = _first(now, end - 1, lambda at: _offset_s(at, place) != offset_s)
    return Span(start, end)


def _offset_s(at: int, place: ZoneInfo) -> int:
    offset = dt.datetime.fromtimestamp(at, place).utcoffset()
    return int(offset.total_seconds()) if offset else 0


def _first(early: int, late: int, holds: Callable[[int], bool]) -> int:
    """The first second from `early` to `late` at which something holds that holds at `late` and goes on holding."""
    while early < late:
        middle = (early + late) // 2
        if holds(middle):
            late = middle
        else:
            early = middle + 1
    return late
