"""The feed over the real tables and the real writer: limits and windows from an operator's form to the workers."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from django.utils import timezone

from budgets import access, newest_windows
from budgets.models import LedgerEntry, Pool, PoolWindow
from budgets.records import PoolRecord
from budgets.settle import Writer
from hoosh_site.feed import DatabaseSource, Feed
from hoosh_site.link import AccessPush
from tests.budgets.ledger_case import LedgerCase

pytestmark = pytest.mark.database

HOUR = 3600
DAY = 24 * HOUR
NOON = int(dt.datetime(2026, 6, 10, 12, tzinfo=dt.UTC).timestamp())
TODAY = NOON - 12 * HOUR


class FeedLedgerTests(LedgerCase):
    def setUp(self) -> None:
        super().setUp()
        self.now: float = NOON
        self.pushed: list[Any] = []
        self.writer = self.start_writer(capacity=None)
        self.feed = self.new_feed(self.writer)

    def new_feed(self, writer: Writer, **options: Any) -> Feed:
        return Feed(DatabaseSource(), self.push, sync_windows=writer.sync_windows, clock=lambda: self.now, **options)

    def push(self, messages: Sequence[Any]) -> None:
        self.pushed += messages

    def told(self) -> dict[str, PoolRecord]:
        """Look, and say what was told of pools in it."""
        self.pushed.clear()
        self.feed.look()
        return {pool.name: pool for message in self.pushed if isinstance(message, AccessPush) for pool in message.pools}

    def pool(self, name: str = "p", **fields: Any) -> Pool:
        return access.save_pool(Pool(name=name, **fields), actor="a")

    def limits(self, pool: Pool) -> list[tuple[int, int, int | None]]:
        rows = PoolWindow.objects.filter(pool_id=pool.pk).order_by("window_start", "unit")
        return list(rows.values_list("window_start", "unit", "capacity"))

    def test_a_pool_is_in_the_ledger_in_both_units_when_workers_hear_of_it(self) -> None:
        pool = self.pool(capacity_tokens=7, capacity_usd=Decimal("0.5"), alert_percents="90")
        assert self.told() == {"p": PoolRecord(pool.pk, "p", units=(0, 1))}
        assert self.limits(pool) == [(0, 0, 7), (0, 1, 5 * 10**11)]
        assert set(PoolWindow.objects.values_list("window_end", "alerts")) == {(0, "90")}
        pool.capacity_tokens, pool.capacity_usd, pool.mode, pool.alert_percents = None, Decimal(0), "soft", ""
        access.save_pool(pool, actor="a")
        assert self.told() == {"p": PoolRecord(pool.pk, "p", "soft", units=(1,))}
        assert self.limits(pool) == [(0, 0, None), (0, 1, 0)]
        pool.enabled = False
        access.save_pool(pool, actor="a")
        assert self.told()["p"].enabled is False
        access.delete_pool(pool, actor="a")
        self.told()
        assert [(message.full, message.pools) for message in self.pushed] == [(True, [])]
        assert PoolWindow.objects.count() == 2  # balances stay

    def test_hundreds_of_windows_begin_together_and_quickly(self) -> None:
        for number in range(300):
            Pool(name=f"p{number}", window="day", capacity_usd=1, carry_over=number % 2 == 0).save()
        access.save_pool(Pool(name="last", window="hour"), actor="a")
        assert len(self.told()) == 301
        self.now = TODAY + DAY
        began = time.monotonic()
        pools = self.told()
        took_s = time.monotonic() - began
        assert len(pools) == 301
        assert {pool.window_start for pool in pools.values()} == {TODAY + DAY}
        assert PoolWindow.objects.filter(window_start=TODAY + DAY).count() == 602
        assert LedgerEntry.objects.filter(kind="carry").count() == 150 * 4
        assert took_s < 5

    def test_a_rest_is_carried_over_and_a_restart_carries_it_no_second_time(self) -> None:
        pool = self.pool(window="day", capacity_tokens=100, carry_over=True)
        self.told()
        self.now += DAY
        assert self.told()["p"].window_start == TODAY + DAY
        carried = [(TODAY, 0, 0), (TODAY, 1, None), (TODAY + DAY, 0, 200), (TODAY + DAY, 1, None)]
        assert self.limits(pool) == carried
        self.writer.stop()
        self.writer = self.start_writer(capacity=None)
        self.feed = self.new_feed(self.writer)
        assert self.told()["p"].window_start == TODAY + DAY
        assert self.limits(pool) == carried
        (known,) = newest_windows.of_pools([pool.pk, 10**9]).values()
        assert [(row.window_start, row.capacity) for row in known.rows] == [(TODAY + DAY, None), (TODAY + DAY, 100)]
        assert known.previous == TODAY
        pool.capacity_tokens = 30
        access.save_pool(pool, actor="a")
        self.told()
        assert self.limits(pool) == [*carried[:2], (TODAY + DAY, 0, 130), carried[3]]

    def test_an_operators_change_of_the_window_begins_one_now(self) -> None:
        pool = self.pool()
        self.told()
        pool.window, pool.time_zone = "month", "Asia/Tokyo"
        now = int(timezone.now().timestamp())
        access.save_pool(pool, actor="a")
        self.now = now + 1
        told = self.told()["p"]
        assert now <= told.window_start <= now + 5
        assert told.window_end > told.window_start

    def test_a_writer_that_has_ended_keeps_nobody_waiting(self) -> None:
        pool = self.pool(window="hour")
        self.told()
        self.writer.stop()
        self.now += HOUR
        pool.enabled = False
        access.save_pool(pool, actor="a")
        began = time.monotonic()
        told = self.told()["p"]
        assert time.monotonic() - began < 1
        assert (told.enabled, told.window_start) == (False, NOON)
        self.feed = self.new_feed(self.start_writer(capacity=None))
        assert self.told()["p"].window_start == NOON + HOUR

    def test_a_running_feed_tells_of_a_boundary_within_half_a_second(self) -> None:
        self.pool(window="hour")
        starts_at = time.monotonic() + 1.0
        told_at: list[tuple[float, int]] = []

        def push(messages: Sequence[Any]) -> None:
            for message in messages:
                if isinstance(message, AccessPush) and message.pools:
                    told_at.append((time.monotonic(), message.pools[0].window_start))

        feed = Feed(
            DatabaseSource(),
            push,
            sync_windows=self.writer.sync_windows,
            clock=lambda: NOON + HOUR + time.monotonic() - starts_at,
        )
        feed.start()
        self.addCleanup(feed.join, 5)
        self.addCleanup(feed.stop)
        self.eventually(lambda: len(told_at) == 2)
        assert [start for _, start in told_at] == [NOON, NOON + HOUR]
        assert 0 <= told_at[1][0] - starts_at < 0.5
