"""What control tells workers, and when."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from budgets.limits import LedgerWindows, PoolLimits
from budgets.records import KeyRecord, PoolRecord, PriceRecord, WarmRecord
from budgets.windows import WindowSpec
from hoosh_site.feed import Feed
from hoosh_site.link import AccessPush, CardsPush, ConfigPush, HealthPush, SecretsPush, WarmPush
from providers.config import CardDoc


class Tables:
    """A source in memory."""

    def __init__(self) -> None:
        self.numbers = {"secrets": 0, "cards": 0, "prices": 0, "access": 0}
        self.version: tuple[int, bytes] | None = None
        self.sealed: dict[int, str] = {}
        self.models: dict[int, list[str]] = {}
        self.sick: list[int] = []
        self.questions: list[WarmRecord] = []
        self.keys: list[tuple[int, KeyRecord]] = []
        self.pools: list[PoolLimits] = []
        self.ledger: dict[int, LedgerWindows] = {}
        self.asked: list[set[int]] = []
        self.imports = 0
        self.broken = self.broken_config = self.broken_windows = False
        self.broken_file = False
        self.failures = 0

    def counters(self) -> dict[str, int]:
        if self.broken:
            raise RuntimeError("the database is away")
        return dict(self.numbers)

    def config(self) -> tuple[int, bytes] | None:
        if self.broken_config:
            raise RuntimeError("the database is away")
        return self.version

    def secrets(self) -> dict[int, str]:
        return dict(self.sealed)

    def cards(self) -> list[CardDoc]:
        return []

    def prices(self) -> list[PriceRecord]:
        return []

    def discovered(self) -> dict[int, list[str]]:
        return dict(self.models)

    def down(self) -> list[int]:
        return list(self.sick)

    def access_since(self, seq: int) -> tuple[int, list[KeyRecord], list[PoolLimits]]:
        return self.numbers["access"], [key for at, key in self.keys if at > seq], list(self.pools)

    def warming(self) -> list[WarmRecord]:
        return list(self.questions)

    def windows(self, pool_ids: Collection[int]) -> dict[int, LedgerWindows]:
        if self.broken_windows:
            raise RuntimeError("the ledger is away")
        self.asked.append(set(pool_ids))
        return {pool_id: self.ledger[pool_id] for pool_id in pool_ids if pool_id in self.ledger}

    def reimport(self) -> None:
        self.imports += 1
        if self.broken_file:
            raise ValueError("not TOML")

    def failed(self) -> None:
        self.failures += 1


class Bench:
    """A feed over tables, with everything it pushed and synced."""

    def __init__(self) -> None:
        self.tables = Tables()
        self.pushed: list[Any] = []
        self.order: list[str] = []
        self.synced: list[list[WindowSpec]] = []
        self.ledger_away = False
        self.now = 1_000_000_000
        self.feed = Feed(self.tables, self._push, sync_windows=self._sync, clock=lambda: self.now, period_s=0.02)

    def _push(self, messages: Sequence[Any]) -> None:
        self.pushed += messages
        self.order.append("push")

    def _sync(self, specs: Sequence[WindowSpec]) -> Future[None]:
        future: Future[None] = Future()
        if self.ledger_away:
            future.set_exception(RuntimeError("the ledger is away"))
            return future
        self.synced.append(list(specs))
        self.order.append("sync")
        future.set_result(None)
        return future

    def capacities(self) -> list[dict[int, int | None]]:
        """The limits of tokens by pool of each sync."""
        return [{spec.pool_id: spec.capacity for spec in specs if spec.unit == 0} for specs in self.synced]

    def look(self, *, everything: bool = True) -> list[Any]:
        self.pushed = []
        self.feed.look(everything=everything)
        return self.pushed


def pool(number: int, name: str, tokens: int) -> PoolLimits:
    """A lifetime pool with a limit of tokens."""
    return PoolLimits(PoolRecord(number, name), "lifetime", "UTC", 0, (tokens, None), "80,100", False)


def in_ledger(*limits: PoolLimits) -> dict[int, LedgerWindows]:
    """The lifetime windows of these pools, as the ledger has them."""
    return {
        each.record.id: LedgerWindows(
            tuple(WindowSpec(each.record.id, unit, 0, 0, each.capacities[unit], each.alerts) for unit in (0, 1)), None
        )
        for each in limits
    }


def key(number: int, *, enabled: bool = True) -> KeyRecord:
    return KeyRecord(number, bytes([number]) * 32, "hk-", f"key {number}", 1, 1, 1, enabled=enabled)


def test_before_the_first_look_there_is_nothing_to_say() -> None:
    assert Bench().feed.hello() == []


def test_an_empty_installation_is_told_too_so_that_workers_get_ready() -> None:
    bench = Bench()
    bench.tables.version = (1, b"doc")
    kinds = [type(message) for message in bench.look()]
    assert kinds == [SecretsPush, CardsPush, AccessPush, ConfigPush, HealthPush]
    assert bench.look() == []


def test_only_what_changed_is_pushed() -> None:
    bench = Bench()
    bench.tables.version = (1, b"doc")
    bench.look()
    bench.tables.numbers["access"] = 5
    bench.tables.keys.append((5, key(1)))
    assert bench.look() == [AccessPush(5, False, [key(1)], [])]
    bench.tables.version = (2, b"new")
    assert bench.look() == [ConfigPush(2, b"new")]
    bench.tables.numbers["secrets"], bench.tables.sealed = 1, {1: "x"}
    assert bench.look() == [SecretsPush({1: "x"})]
    bench.tables.numbers["prices"] = 1
    assert bench.look() == [CardsPush([], [], {})]
    bench.tables.sick = [4]
    assert bench.look() == [HealthPush([4])]


def test_what_probes_find_is_looked_at_less_often() -> None:
    bench = Bench()
    bench.look()
    bench.tables.sick, bench.tables.models = [1], {1: ["m"]}
    assert bench.look(everything=False) == []
    assert bench.look() == [CardsPush([], [], {1: ["m"]}), HealthPush([1])]


def test_a_worker_that_connects_later_hears_the_merged_state() -> None:
    bench = Bench()
    bench.tables.version = (1, b"doc")
    bench.tables.numbers["access"], bench.tables.keys = 1, [(1, key(1)), (1, key(2))]
    bench.tables.pools = [pool(1, "default", 10)]
    bench.look()
    bench.tables.numbers["access"], bench.tables.keys = 2, [(2, key(2, enabled=False))]
    bench.look()
    access = next(message for message in bench.feed.hello() if isinstance(message, AccessPush))
    assert access == AccessPush(2, True, [key(1), key(2, enabled=False)], [PoolRecord(1, "default")])


def test_a_pools_window_is_in_the_ledger_before_workers_hear_of_it() -> None:
    bench = Bench()
    bench.tables.numbers["access"] = 1
    bench.tables.pools = [pool(1, "default", 10), pool(2, "known", 20)]
    bench.tables.ledger = in_ledger(pool(2, "known", 20))
    bench.look()
    assert bench.synced == [[WindowSpec(1, 0, 0, 0, 10, "80,100"), WindowSpec(1, 1, 0, 0, None, "80,100")]]
    assert bench.order == ["sync", "push"]
    bench.tables.numbers["access"] = 2
    bench.tables.pools[0] = pool(1, "default", 15)
    bench.look()
    assert bench.capacities() == [{1: 10}, {1: 15}]
    assert bench.tables.asked == [{1, 2}]


def test_a_change_of_a_pool_reaches_the_ledger_and_the_workers_in_one_look() -> None:
    bench = Bench()
    bench.tables.numbers["access"], bench.tables.pools = 1, [pool(1, "default", 10), pool(2, "other", 10)]
    bench.look()
    record = PoolRecord(1, "new", mode="soft", enabled=False, units=(0, 1), shorten=True, team_id=4)
    changed = pool(1, "", 0)._replace(record=record, capacities=(7, 9), alerts="50", carry_over=True)
    bench.tables.numbers["access"], bench.tables.pools[0] = 2, changed
    assert bench.look() == [AccessPush(2, False, [], [record])]
    assert bench.synced[1:] == [[WindowSpec(1, 0, 0, 0, 7, "50"), WindowSpec(1, 1, 0, 0, 9, "50")]]


def test_a_restored_database_is_read_from_the_start() -> None:
    bench = Bench()
    bench.tables.numbers["access"], bench.tables.keys = 9, [(9, key(1))]
    bench.look()
    bench.tables.numbers["access"], bench.tables.keys = 3, [(3, key(2))]
    assert bench.look() == [AccessPush(3, True, [key(2)], [])]


def test_the_thread_rides_out_an_outage_and_a_broken_file() -> None:
    bench = Bench()
    bench.tables.broken_file = True
    bench.feed.start()
    assert bench.feed.polled.wait(2)
    bench.tables.broken = True
    time.sleep(0.1)
    assert bench.tables.failures >= 2
    bench.tables.broken, bench.tables.version = False, (7, b"doc")
    ends_at = time.monotonic() + 2
    while ConfigPush(7, b"doc") not in bench.pushed and time.monotonic() < ends_at:
        time.sleep(0.01)
    assert ConfigPush(7, b"doc") in bench.pushed
    before = bench.tables.imports
    bench.feed.wake(reimport=True)
    time.sleep(0.1)
    assert bench.tables.imports == before + 1
    bench.feed.stop()
    bench.feed.join(2)
    assert not bench.feed.is_alive()


def test_a_look_that_fails_half_way_loses_no_revocation() -> None:
    bench = Bench()
    bench.tables.version = (1, b"doc")
    bench.tables.numbers["access"], bench.tables.keys = 1, [(1, key(1))]
    bench.look()
    bench.tables.numbers["access"], bench.tables.keys = 2, [(2, key(1, enabled=False))]
    bench.tables.broken_config = True
    with pytest.raises(RuntimeError):
        bench.look()
    assert bench.pushed == []
    access = next(message for message in bench.feed.hello() if isinstance(message, AccessPush))
    assert access == AccessPush(1, True, [key(1)], [])
    bench.tables.broken_config = False
    assert bench.look() == [AccessPush(2, False, [key(1, enabled=False)], [])]
    assert bench.look() == []


@pytest.mark.parametrize("at_start", [True, False])
def test_without_the_ledger_everything_is_pushed_and_capacities_are_tried_again(at_start: bool) -> None:
    bench = Bench()
    if not at_start:
        bench.look()
    bench.ledger_away, bench.tables.broken_windows = True, at_start
    bench.tables.numbers["access"], bench.tables.keys = 1, [(1, key(1, enabled=False))]
    bench.tables.pools = [pool(1, "default", 10)]
    bench.tables.version, bench.tables.sick = (1, b"doc"), [3]
    news = bench.look()
    assert AccessPush(1, at_start, [key(1, enabled=False)], [PoolRecord(1, "default")]) in news
    assert ConfigPush(1, b"doc") in news
    assert HealthPush([3]) in news
    bench.ledger_away = bench.tables.broken_windows = False
    assert bench.look() == []
    assert bench.synced == []  # not at every look
    ends_at = time.monotonic() + 5
    while not bench.synced and time.monotonic() < ends_at:
        time.sleep(0.05)
        assert bench.look(everything=False) == []
    assert bench.capacities() == [{1: 10}]


def test_a_pool_that_was_deleted_disappears_from_the_workers_in_a_full_push() -> None:
    bench = Bench()
    bench.tables.numbers["access"], bench.tables.keys = 1, [(1, key(1)), (1, key(2))]
    bench.tables.pools = [pool(1, "default", 10), pool(2, "old", 20)]
    bench.look()
    bench.tables.numbers["access"], bench.tables.keys = 2, [(2, key(2, enabled=False))]
    bench.tables.pools.pop()
    told = AccessPush(2, True, [key(1), key(2, enabled=False)], [PoolRecord(1, "default")])
    assert bench.look() == [told]
    assert told in bench.feed.hello()
    bench.tables.numbers["access"], bench.tables.keys = 3, [(3, key(3))]
    assert bench.look() == [AccessPush(3, False, [key(3)], [])]


def test_a_look_that_fails_half_way_forgets_no_deletion() -> None:
    bench = Bench()
    bench.tables.numbers["access"], bench.tables.pools = 1, [pool(1, "default", 10), pool(2, "old", 20)]
    bench.look()
    bench.tables.numbers["access"] = 2
    bench.tables.pools.pop()
    bench.tables.broken_config = True
    with pytest.raises(RuntimeError):
        bench.look()
    bench.tables.broken_config = False
    assert bench.look() == [AccessPush(2, True, [], [PoolRecord(1, "default")])]


def test_windows_begin_while_the_sites_database_is_away() -> None:
    bench = Bench()
    bench.tables.numbers["access"], bench.tables.pools = 1, [pool(1, "p", 10)._replace(window="hour")]
    bench.look()
    bench.tables.broken = True
    bench.now += 3600
    with pytest.raises(RuntimeError):
        bench.look()
    (told,) = bench.pushed
    assert (told.full, told.keys, told.pools[0].window_start) == (False, [], bench.now - bench.now % 3600)


def test_questions_asked_ahead_are_told_when_they_change_and_to_who_connects_later() -> None:
    bench = Bench()
    bench.look()
    assert not any(isinstance(message, WarmPush) for message in bench.feed.hello())
    question = WarmRecord(1, 2, "m", "", "Q?")
    bench.tables.numbers["warming"], bench.tables.questions = 1, [question]
    assert bench.look() == [WarmPush([question])]
    assert bench.look() == []
    assert bench.feed.hello()[-1] == WarmPush([question])
    bench.tables.numbers["warming"], bench.tables.questions = 2, []
    assert bench.look() == [WarmPush([])]
    assert WarmPush([]) in bench.feed.hello()
