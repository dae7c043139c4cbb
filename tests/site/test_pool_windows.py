"""Which window the feed says a pool is in, by a clock that is set, stops and jumps, and a ledger that goes away."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from zoneinfo import ZoneInfo

import pytest
from django.db import OperationalError

from budgets.limits import LedgerWindows, PoolLimits
from budgets.records import PoolRecord
from budgets.windows import WindowSpec, calendar_span
from hoosh_site.pool_windows import PoolWindows

HOUR = 3600
DAY = 24 * HOUR
NOON = int(dt.datetime(2026, 6, 10, 12, tzinfo=dt.UTC).timestamp())  # a Wednesday
TODAY = NOON - 12 * HOUR


def limits(number: int = 1, window: str = "day", **more: object) -> PoolLimits:
    """A pool of 100 tokens and 5 pico-USD in each window."""
    base = PoolLimits(PoolRecord(number, f"pool {number}"), window, "UTC", 0, (100, 5), "80", carry_over=False)
    return base._replace(**more)


class Ledger:
    """What is kept, whoever asks: survives a restart of control."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int, int], WindowSpec] = {}  # by pool, unit, start
        self.opened: list[tuple[int, int, int]] = []
        self.syncs: list[list[WindowSpec]] = []
        self.failure: Exception | None = None
        self.refused: set[int] = set()  # pools that no sync with them in it passes
        self.hung: list[tuple[Future[None], list[WindowSpec]]] | None = None

    def read(self, pool_ids: Collection[int]) -> dict[int, LedgerWindows]:
        if self.failure is not None:
            raise self.failure
        found = {}
        for pool_id in pool_ids:
            starts = sorted({start for pool, _, start in self.rows if pool == pool_id}, reverse=True)
            if starts:
                rows = [spec for (pool, _, start), spec in self.rows.items() if (pool, start) == (pool_id, starts[0])]
                plain = tuple(spec._replace(carry_from=None) for spec in rows)
                found[pool_id] = LedgerWindows(plain, starts[1] if starts[1:] else None)
        return found

    def sync(self, specs: Sequence[WindowSpec]) -> Future[None]:
        future: Future[None] = Future()
        if self.hung is not None:
            self.hung.append((future, list(specs)))
        else:
            self.do(future, specs)
        return future

    def do(self, future: Future[None], specs: Sequence[WindowSpec]) -> None:
        if self.failure is not None:
            future.set_exception(self.failure)
            return
        if self.refused & {spec.pool_id for spec in specs}:
            future.set_exception(ValueError("out of range"))
            return
        self.syncs.append(list(specs))
        for spec in specs:
            key = (spec.pool_id, spec.unit, spec.window_start)
            if key not in self.rows:
                self.opened.append(key)
            self.rows[key] = spec
        future.set_result(None)


class Clocked:
    """Windows over a ledger, at a time the test says."""

    def __init__(self, *pools: PoolLimits, ledger: Ledger | None = None, now: float = NOON) -> None:
        self.ledger = ledger or Ledger()
        self.now = now
        self.failures = 0
        self.windows = PoolWindows(
            *(self.ledger.read, self.ledger.sync),
            clock=lambda: self.now,
            failed=self._failed,
            wait_s=0.05,
            retry_s=0.05,
        )
        self.windows.set_pools(pools)
        self.windows.look()

    def _failed(self) -> None:
        self.failures += 1

    def at(self, now: float) -> tuple[int, int]:
        """Set the clock, look, and say pool 1's window as workers are told."""
        self.now = now
        self.windows.look()
        return self.span()

    def span(self, pool_id: int = 1) -> tuple[int, int]:
        record = self.windows.records()[pool_id]
        return record.window_start, record.window_end

    def restart(self, *pools: PoolLimits) -> Clocked:
        return Clocked(*pools, ledger=self.ledger, now=self.now)


def test_a_new_pool_is_in_the_calendars_window_in_both_units() -> None:
    clocked = Clocked(limits())
    assert clocked.span() == (TODAY, TODAY + DAY)
    assert clocked.ledger.syncs == [
        [WindowSpec(1, 0, TODAY, TODAY + DAY, 100, "80"), WindowSpec(1, 1, TODAY, TODAY + DAY, 5, "80")]
    ]


def test_a_window_without_limit_has_rows_all_the_same() -> None:
    clocked = Clocked(limits(capacities=(None, None), carry_over=True))
    assert [(spec.unit, spec.capacity, spec.carry_from) for spec in clocked.ledger.syncs[0]] == [
        (0, None, None),
        (1, None, None),
    ]


def test_windows_roll_at_the_boundary_and_not_before() -> None:
    clocked = Clocked(limits())
    before = clocked.windows.records()
    assert clocked.at(TODAY + DAY - 0.001) == (TODAY, TODAY + DAY)
    assert clocked.windows.records() is before
    assert clocked.at(TODAY + DAY) == (TODAY + DAY, TODAY + 2 * DAY)
    assert len(clocked.ledger.syncs) == 2


def test_the_feed_waits_no_longer_than_to_the_boundary() -> None:
    clocked = Clocked(limits(), limits(2, "lifetime"))
    assert clocked.windows.wait_s(0.25) == 0.25
    clocked.now = TODAY + DAY - 0.1
    assert clocked.windows.wait_s(0.25) == pytest.approx(0.1, abs=0.001)
    clocked.now = TODAY + DAY + 5  # late already: the ledger may be away, and nothing spins
    assert clocked.windows.wait_s(0.25) == 0.25
    assert Clocked(limits(1, "lifetime")).windows.wait_s(0.25) == 0.25


def test_a_clock_set_back_reopens_nothing_and_opens_nothing_early() -> None:
    clocked = Clocked(limits(1, "hour"))
    assert clocked.at(NOON + HOUR) == (NOON + HOUR, NOON + 2 * HOUR)
    for back in (NOON + HOUR - 1, NOON, NOON - 5 * DAY, NOON + 2 * HOUR - 1):
        assert clocked.at(back) == (NOON + HOUR, NOON + 2 * HOUR)
    assert clocked.at(NOON + 2 * HOUR) == (NOON + 2 * HOUR, NOON + 3 * HOUR)
    assert len(clocked.ledger.opened) == len(set(clocked.ledger.opened)) == 6


def test_a_clock_that_jumps_ahead_and_back_doubles_no_window() -> None:
    clocked = Clocked(limits())
    assert clocked.at(NOON + 3 * DAY) == (TODAY + 3 * DAY, TODAY + 4 * DAY)
    for now in (NOON, NOON + DAY, NOON + 2 * DAY, NOON + 3 * DAY):
        assert clocked.at(now) == (TODAY + 3 * DAY, TODAY + 4 * DAY)
    assert clocked.at(TODAY + 4 * DAY) == (TODAY + 4 * DAY, TODAY + 5 * DAY)
    assert sorted({start for _, _, start in clocked.ledger.opened}) == [TODAY, TODAY + 3 * DAY, TODAY + 4 * DAY]


def test_control_that_comes_back_goes_on_in_the_newest_window() -> None:
    clocked = Clocked(limits())
    again = clocked.restart(limits())
    assert again.span() == (TODAY, TODAY + DAY)
    assert len(again.ledger.syncs) == 1  # nothing to tell the ledger
    clocked.now = NOON - DAY  # the clock is wrong at the start
    assert clocked.restart(limits()).span() == (TODAY, TODAY + DAY)
    clocked.now = NOON + 2 * DAY  # it was away over a boundary
    assert clocked.restart(limits()).span() == (TODAY + 2 * DAY, TODAY + 3 * DAY)


def test_carry_over_names_the_window_before_even_after_a_restart() -> None:
    carried = limits(carry_over=True)
    clocked = Clocked(carried)
    assert {spec.carry_from for spec in clocked.ledger.syncs[0]} == {None}
    clocked.at(TODAY + 3 * DAY)  # control was away for two days
    assert {(spec.window_start, spec.carry_from) for spec in clocked.ledger.syncs[1]} == {(TODAY + 3 * DAY, TODAY)}
    again = clocked.restart(carried)
    assert {(spec.window_start, spec.carry_from) for spec in again.ledger.syncs[2]} == {(TODAY + 3 * DAY, TODAY)}
    again.windows.set_pools([limits()])
    again.windows.look()
    assert {spec.carry_from for spec in again.ledger.syncs[3]} == {None}


def test_another_kind_of_window_begins_when_it_was_chosen() -> None:
    clocked = Clocked(limits())
    clocked.now = NOON + 600.5
    clocked.windows.set_pools([limits(window="month", since=NOON + 600)])
    assert clocked.at(clocked.now) == (NOON + 600, calendar_span("month", "UTC", NOON).end)
    clocked.windows.set_pools([limits(window="lifetime", since=NOON + 700)])
    assert clocked.at(NOON + 700) == (NOON + 700, 0)
    clocked.windows.set_pools([limits(window="day", since=NOON + 800)])
    assert clocked.at(NOON + 800) == (NOON + 800, TODAY + DAY)
    assert clocked.at(TODAY + DAY) == (TODAY + DAY, TODAY + 2 * DAY)


@pytest.mark.parametrize(
    ("window", "first", "second"),
    [
        ("day", "2026-03-29", "2026-03-30"),  # 23 hours
        ("day", "2026-10-25", "2026-10-26"),  # 25 hours
        ("month", "2026-02-01", "2026-03-01"),
        ("month", "2026-12-01", "2027-01-01"),
        ("week", "2026-03-23", "2026-03-30"),
    ],
)
def test_calendar_days_of_the_pools_zone(window: str, first: str, second: str) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    start, end = (int(dt.datetime.fromisoformat(text).replace(tzinfo=berlin).timestamp()) for text in (first, second))
    clocked = Clocked(limits(1, window, time_zone="Europe/Berlin"), now=start)
    assert clocked.span() == (start, end)
    assert clocked.at(end - 1) == (start, end)
    assert clocked.at(end)[0] == end


def test_hundreds_of_pools_roll_in_one_sync() -> None:
    pools = [limits(number, ("day", "hour")[number % 2]) for number in range(1, 601)]
    clocked = Clocked(*pools)
    clocked.at(TODAY + DAY)
    assert [len(specs) for specs in clocked.ledger.syncs] == [1200, 1200]
    assert all(clocked.span(pool.record.id)[0] == TODAY + DAY for pool in pools)


def test_without_the_ledger_pools_keep_their_window_and_everything_else_is_told() -> None:
    clocked = Clocked(limits())
    clocked.ledger.failure = OperationalError("away")
    assert clocked.at(TODAY + DAY) == (TODAY, TODAY + DAY)
    clocked.windows.set_pools([limits(record=PoolRecord(1, "pool 1", enabled=False)), limits(2)])
    assert clocked.at(TODAY + DAY + 1) == (TODAY, TODAY + DAY)
    assert clocked.windows.records()[1].enabled is False
    assert clocked.span(2) == (TODAY + DAY, TODAY + 2 * DAY)  # a guess: there is none to keep
    clocked.ledger.failure = None
    time.sleep(0.06)
    assert clocked.at(TODAY + DAY + 2) == (TODAY + DAY, TODAY + 2 * DAY)
    assert clocked.failures >= 1


def test_an_outage_over_several_boundaries_opens_only_the_window_of_now() -> None:
    clocked = Clocked(limits(1, "hour", carry_over=True))
    clocked.ledger.failure = OperationalError("away")
    for hour in range(1, 5):
        assert clocked.at(NOON + hour * HOUR) == (NOON, NOON + HOUR)
    clocked.ledger.failure = None
    time.sleep(0.06)
    assert clocked.at(NOON + 4 * HOUR) == (NOON + 4 * HOUR, NOON + 5 * HOUR)
    assert {spec.carry_from for spec in clocked.ledger.syncs[-1]} == {NOON}


def test_a_ledger_that_does_not_answer_is_waited_for_once() -> None:
    clocked = Clocked(limits(1, "hour"))
    clocked.ledger.hung = []
    began = time.monotonic()
    for seconds in range(20):
        assert clocked.at(NOON + HOUR + seconds) == (NOON, NOON + HOUR)
    assert time.monotonic() - began < 1
    ((future, specs),) = clocked.ledger.hung  # asked once
    clocked.ledger.hung = None
    clocked.ledger.do(future, specs)
    assert clocked.at(NOON + HOUR + 30) == (NOON + HOUR, NOON + 2 * HOUR)


def test_an_answer_for_a_pool_that_is_gone_is_forgotten() -> None:
    clocked = Clocked(limits(1, "hour"))
    clocked.ledger.hung = []
    clocked.at(NOON + HOUR)
    ((future, specs),) = clocked.ledger.hung
    clocked.windows.set_pools([])
    clocked.ledger.hung = None
    clocked.ledger.do(future, specs)
    clocked.windows.look()
    assert clocked.windows.records() == {}
    clocked.windows.set_pools([limits(1, "hour")])
    assert clocked.at(NOON) == (NOON + HOUR, NOON + 2 * HOUR)  # read again, so nothing is opened twice


def test_one_pool_the_ledger_refuses_does_not_keep_the_others_in_their_window() -> None:
    clocked = Clocked(limits(1), limits(2), limits(3))
    clocked.ledger.refused = {2}
    clocked.at(TODAY + DAY)
    time.sleep(0.06)
    clocked.at(TODAY + DAY + 1)
    assert [clocked.span(number)[0] for number in (1, 2, 3)] == [TODAY + DAY, TODAY, TODAY + DAY]
    clocked.ledger.refused = set()
    time.sleep(0.06)
    clocked.at(TODAY + DAY + 2)
    assert clocked.span(2)[0] == TODAY + DAY


def test_a_time_zone_that_is_no_more_keeps_nobody_else_from_rolling() -> None:
    clocked = Clocked(limits(1), limits(2))
    clocked.windows.set_pools([limits(1, time_zone="Mars/Olympus", capacities=(50, None)), limits(2)])
    clocked.at(TODAY + DAY)
    assert clocked.span(1)[0] == TODAY
    assert clocked.span(2)[0] == TODAY + DAY
    assert clocked.ledger.rows[1, 0, TODAY].capacity == 50


def test_limits_change_in_the_window_that_is_open() -> None:
    clocked = Clocked(limits())
    clocked.windows.set_pools([limits(capacities=(7, None), alerts="50,90")])
    clocked.windows.look()
    assert clocked.ledger.syncs[1] == [
        WindowSpec(1, 0, TODAY, TODAY + DAY, 7, "50,90"),
        WindowSpec(1, 1, TODAY, TODAY + DAY, None, "50,90"),
    ]
    clocked.windows.set_pools([limits(capacities=(7, None), alerts="50,90")])
    clocked.windows.look()
    assert len(clocked.ledger.syncs) == 2
