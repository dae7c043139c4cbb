"""When windows begin and end: over time zones, years and clocks that are set."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from budgets import windows
from budgets.windows import Span, calendar_span, current_span

CALENDAR = [kind for kind in windows.KINDS if kind != "lifetime"]
LONGEST_S = {"hour": 3600, "day": 25 * 3600, "week": 7 * 86400 + 3600, "month": 31 * 86400 + 3600}

kinds = st.sampled_from(CALENDAR)
zones = st.sampled_from(sorted(windows.zone_names()))
moments = st.integers(int(dt.datetime(1990, 1, 1, tzinfo=dt.UTC).timestamp()), 4_102_444_800)  # to the year 2100
steps = st.integers(-40 * 86400, 40 * 86400)


def at(text: str, zone: str = "UTC", *, fold: int = 0) -> int:
    """Unix seconds of a local time."""
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp())


@settings(deadline=None, max_examples=600)
@given(kinds, zones, moments)
# Clocks set within an hour, back across midnight, and a day that was left out.
@example("hour", "Australia/Lord_Howe", at("2026-10-04T02:45", "Australia/Lord_Howe"))
@example("hour", "Australia/Lord_Howe", at("2026-04-05T01:45", "Australia/Lord_Howe", fold=1))
@example("day", "America/St_Johns", at("2010-11-06T23:30", "America/St_Johns", fold=1))
@example("day", "America/St_Johns", at("2010-11-07T00:00:30", "America/St_Johns"))
@example("day", "Asia/Pyongyang", at("2018-05-05T00:15", "Asia/Pyongyang"))
@example("day", "Pacific/Apia", at("2011-12-31T00:00", "Pacific/Apia"))
@example("day", "Africa/Cairo", at("2026-04-24T01:00", "Africa/Cairo"))
def test_windows_tile_time(kind: str, zone: str, now: int) -> None:
    span = calendar_span(kind, zone, now)
    assert span.start <= now < span.end
    assert 0 < span.end - span.start <= LONGEST_S[kind]
    assert calendar_span(kind, zone, span.start) == span
    assert calendar_span(kind, zone, span.end - 1) == span
    assert calendar_span(kind, zone, span.end).start == span.end
    assert calendar_span(kind, zone, span.start - 1).end == span.start


@settings(deadline=None, max_examples=300)
@given(kinds, zones, moments)
def test_windows_follow_the_local_calendar(kind: str, zone: str, now: int) -> None:
    """The local date or hour before a window is another, and within it the same but where clocks were set."""
    span = calendar_span(kind, zone, now)
    before, first, last = (
        dt.datetime.fromtimestamp(moment, ZoneInfo(zone)) for moment in (span.start - 1, span.start, span.end - 1)
    )
    if before.utcoffset() != first.utcoffset() or first.utcoffset() != last.utcoffset():
        return  # the examples below
    assert (first.minute, first.second, last.minute, last.second) == (0, 0, 59, 59)
    if kind == "hour":
        assert span.end - span.start == 3600
        return
    assert (first.hour, last.hour) == (0, 23)
    if kind == "week":
        assert (first.isoweekday(), last.isoweekday()) == (1, 7)
    if kind == "month":
        assert first.day == 1
        assert (last + dt.timedelta(seconds=1)).day == 1


@settings(deadline=None, max_examples=300)
@given(kinds, zones, moments, st.lists(steps, min_size=1, max_size=30))
def test_a_clock_that_is_set_opens_no_window_twice(kind: str, zone: str, now: int, steps_s: list[int]) -> None:
    newest, opened, reached = 0, set[int](), 0
    for step_s in [0, *steps_s]:
        now = max(0, now + step_s)
        reached = max(reached, now)
        span = current_span(kind, zone, now, newest=newest)
        assert span.start >= newest
        assert span.end > now
        assert span.end > span.start
        if span.start != newest:
            assert span.start not in opened
            assert span == calendar_span(kind, zone, now)
        opened.add(span.start)
        newest = span.start
    # So many windows were opened as the calendar has up to the latest moment at most, each at its own start.
    assert all(calendar_span(kind, zone, start).start == start <= reached for start in opened)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(windows.KINDS), st.sampled_from(windows.KINDS), zones, zones, moments, st.integers(1, 10**7))
def test_a_change_of_kind_or_zone_opens_a_window_of_its_own(
    old: str, new: str, old_zone: str, new_zone: str, now: int, later_s: int
) -> None:
    before = current_span(old, old_zone, now)
    since = now + later_s
    after = current_span(new, new_zone, since, since=since, newest=before.start)
    assert after.start == since > before.start
    assert after.end == calendar_span(new, new_zone, since).end
    if after.end:  # and then the calendar goes on
        following = current_span(new, new_zone, after.end, since=since, newest=after.start)
        assert following == calendar_span(new, new_zone, after.end)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(windows.KINDS), zones, moments, st.integers(0, 10**8), st.integers(0, 10**8))
def test_a_change_while_the_clock_is_behind_reopens_nothing(
    kind: str, zone: str, now: int, behind_s: int, change_s: int
) -> None:
    newest, behind = now, now - behind_s
    span = current_span(kind, zone, behind, since=max(0, behind - change_s), newest=newest)
    assert span.start == newest
    assert span.end == 0 or span.end > max(behind, newest)


def test_a_lifetime_never_ends() -> None:
    assert current_span("lifetime", "UTC", 1e9) == Span(0, 0)
    assert current_span("lifetime", "Asia/Tokyo", 1e9, since=900, newest=800) == Span(900, 0)


@pytest.mark.parametrize(
    ("kind", "zone", "now", "start", "end", "hours"),
    [
        ("day", "Europe/Berlin", "2026-03-29T12:00", "2026-03-29T00:00", "2026-03-30T00:00", 23),
        ("day", "Europe/Berlin", "2026-10-25T12:00", "2026-10-25T00:00", "2026-10-26T00:00", 25),
        ("day", "UTC", "2026-12-31T23:59:59", "2026-12-31T00:00", "2027-01-01T00:00", 24),
        ("month", "Europe/Berlin", "2026-03-31T23:59", "2026-03-01T00:00", "2026-04-01T00:00", 31 * 24 - 1),
        ("month", "UTC", "2028-02-29T12:00", "2028-02-01T00:00", "2028-03-01T00:00", 29 * 24),
        ("month", "Asia/Kathmandu", "2026-12-31T23:00", "2026-12-01T00:00", "2027-01-01T00:00", 31 * 24),
        ("week", "America/New_York", "2026-03-08T23:59", "2026-03-02T00:00", "2026-03-09T00:00", 7 * 24 - 1),
        ("week", "UTC", "2026-01-01T00:00", "2025-12-29T00:00", "2026-01-05T00:00", 7 * 24),
        ("hour", "Asia/Kathmandu", "2026-05-05T10:30", "2026-05-05T10:00", "2026-05-05T11:00", 1),
        ("hour", "Australia/Lord_Howe", "2026-10-04T02:45", "2026-10-04T02:30", "2026-10-04T03:00", 0.5),
    ],
)
def test_known_days(kind: str, zone: str, now: str, start: str, end: str, hours: float) -> None:
    span = calendar_span(kind, zone, at(now, zone))
    assert span == Span(at(start, zone), at(end, zone))
    assert span.end - span.start == hours * 3600


def test_the_hour_that_is_there_twice_is_two_windows() -> None:
    first, second = (
        calendar_span("hour", "Europe/Berlin", at("2026-10-25T02:30", "Europe/Berlin", fold=f)) for f in (0, 1)
    )
    assert first.end == second.start
    assert second.end - first.start == 7200


def test_where_midnight_is_skipped_the_day_begins_with_the_change() -> None:
    span = calendar_span("day", "Africa/Cairo", at("2026-04-24T12:00", "Africa/Cairo"))  # 00:00 became 01:00
    assert span.start == at("2026-04-24T01:00", "Africa/Cairo")
    assert span.end - span.start == 23 * 3600


def test_where_clocks_go_back_across_midnight_the_new_day_has_begun_for_good() -> None:
    zone = "America/St_Johns"  # 00:01 on the 7th became 23:01 on the 6th
    first_midnight = at("2010-11-07T00:00", zone)
    for text, fold in (("2010-11-07T00:00:30", 0), ("2010-11-06T23:30", 1), ("2010-11-07T12:00", 0)):
        assert calendar_span("day", zone, at(text, zone, fold=fold)).start == first_midnight


def test_where_clocks_go_forward_to_midnight_the_day_begins_with_the_change() -> None:
    zone = "Asia/Pyongyang"  # 23:30 on the 4th became 00:00 on the 5th
    span = calendar_span("day", zone, at("2018-05-05T00:15", zone))
    assert span.start == at("2018-05-04T23:29:59", zone) + 1


def test_unknown_kinds_and_zones_are_errors() -> None:
    with pytest.raises(ValueError, match="no window"):
        calendar_span("year", "UTC", 1e9)
    for name in ("Mars/Olympus", "", "../etc/passwd", "utc "):
        with pytest.raises(ValueError, match="no time zone"):
            calendar_span("day", name, 1e9)
