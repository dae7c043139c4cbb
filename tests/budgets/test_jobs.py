"""Samples, the jobs together in a real writer, and a writer for commands."""

from __future__ import annotations

import fcntl
import os
import time

import pytest
from django.test import TestCase, TransactionTestCase

from budgets import retention, rollups, samples
from budgets.jobs import attended, default_jobs, writer_runs
from budgets.journal import Journal
from budgets.models import PoolSample, PoolWindow, Usage, UsageRollup
from budgets.orders import Orders, place, wait
from budgets.settle import Writer
from budgets.windows import WindowSpec
from tests import environment
from tests.budgets.ledger_rows import DAY_S, NOON, add_usage, add_window, ledger_connection
from tests.budgets.records import POOL, new_rid, usage_record

pytestmark = pytest.mark.database


def take(now_s: int = NOON) -> int:
    return samples.take(ledger_connection(), now_s)


class SampleTests(TestCase):
    databases = "__all__"

    def test_a_purse_is_sampled_while_it_moves(self) -> None:
        window = add_window(1, committed=5)
        add_window(2)
        assert take(NOON) == 1
        assert take(NOON + 60) == 0
        PoolWindow.objects.filter(pk=window.pk).update(committed=9)
        assert take(NOON + 120) == 1
        found = PoolSample.objects.order_by("at_s").values_list("pool_id", "at_s", "committed")
        assert list(found) == [(1, NOON, 5), (1, NOON + 120, 9)]

    def test_a_fall_is_a_movement_and_units_are_apart(self) -> None:
        window = add_window(1, committed=5)
        add_window(1, unit=1, committed=7)
        take(NOON)
        PoolWindow.objects.filter(pk=window.pk).update(committed=0)
        assert take(NOON + 60) == 1
        assert sorted(PoolSample.objects.values_list("unit", "committed")) == [(0, 0), (0, 5), (1, 7)]

    def test_windows_that_ended_are_not_sampled(self) -> None:
        add_window(1, window_start=NOON - 100, window_end=NOON, committed=5)
        add_window(1, window_start=NOON, window_end=NOON + 100, committed=5)
        assert take(NOON) == 1
        assert PoolSample.objects.get().window_start == NOON

    def test_twice_in_one_second_is_once(self) -> None:
        window = add_window(1, committed=5)
        take()
        PoolWindow.objects.filter(pk=window.pk).update(committed=9)
        assert take() == 0

    def test_after_a_day_the_last_of_every_five_minutes_is_kept(self) -> None:
        first = NOON - 600
        for minute in range(0, 20):
            PoolSample.objects.create(pool_id=1, at_s=first + minute * 60, committed=minute)
            PoolSample.objects.create(pool_id=2, at_s=first + minute * 60, committed=minute)
        now_s = first + 900 + DAY_S + samples.THIN_S  # the last five minutes are younger than a day
        removed = [samples.thin(ledger_connection(), now_s).gone for _ in range(3)]
        assert removed == [24, 0, 0]
        kept = PoolSample.objects.filter(pool_id=1).order_by("at_s").values_list("committed", flat=True)
        assert list(kept) == [4, 9, 14, 15, 16, 17, 18, 19]

    def test_thinning_goes_on_until_it_has_caught_up_and_samples_stay_a_minute_apart(self) -> None:
        for minute in range(10):
            PoolSample.objects.bulk_create(
                PoolSample(pool_id=pool, at_s=NOON - 2 * DAY_S + minute * 60, committed=minute + 1)
                for pool in range(1, 11)
            )
        window = add_window(1, committed=5)
        now_s = [NOON]
        job = samples.Samples(lambda: now_s[0], thin_rows=25)
        periods = []
        for number in range(5):
            job.run(ledger_connection())
            periods.append(job.period_s)
            now_s[0] += 1
            PoolWindow.objects.filter(pk=window.pk).update(committed=6 + number)
        assert periods[:4] == [samples.AGAIN_S] * 4
        assert samples.AGAIN_S < periods[4] <= samples.PERIOD_S
        assert PoolSample.objects.filter(at_s__gte=NOON).count() == 1
        assert PoolSample.objects.filter(at_s__lt=NOON).count() == 10 * 2

    def test_taking_samples_does_not_look_at_windows_that_are_over(self) -> None:
        if ledger_connection().vendor != "sqlite":
            self.skipTest("the plan of SQLite is looked at")
        with ledger_connection().cursor() as cursor:
            cursor.execute(f"EXPLAIN QUERY PLAN {samples._TAKE}", (NOON, NOON))
            plan = [row[3] for row in cursor.fetchall()]
        assert any("w USING INDEX" in line for line in plan)
        assert not [line for line in plan if line.startswith("SCAN") and "pools" not in line and "CONSTANT" not in line]

    def test_the_forecast_of_a_row_looks_at_its_own_samples(self) -> None:
        window = add_window(1, capacity=10_000, committed=1_200)
        for minute in range(20):
            PoolSample.objects.create(pool_id=1, at_s=NOON + minute * 60, committed=minute * 60)
            PoolSample.objects.create(pool_id=1, unit=1, at_s=NOON + minute * 60, committed=minute**5)
            PoolSample.objects.create(pool_id=2, at_s=NOON + minute * 60, committed=minute**5)
        found = samples.forecast_of(window, NOON + 1_200)
        assert found is not None
        assert found.rate == pytest.approx(1)
        assert found.run_out == pytest.approx(NOON + 1_200 + 8_800)

    def test_a_long_history_is_read_as_a_few_hundred_points(self) -> None:
        window = add_window(1, window_start=NOON, window_end=NOON + 30 * DAY_S)
        for minute in range(0, 3_000):
            PoolSample.objects.create(pool_id=1, window_start=NOON, at_s=NOON + minute * 60, committed=minute)
        points = samples.history(window, NOON + 180_000)
        assert 20 < len(points) < 400
        assert points[-1] == (NOON + 2_999 * 60, 2_999)

    def test_no_limit_has_no_forecast(self) -> None:
        assert samples.forecast_of(add_window(1, capacity=None)) is None


class WriterTests(TransactionTestCase):
    databases = "__all__"

    def setUp(self) -> None:
        self.directory = environment.session_dir() / f"jobs-{self.id()[-40:]}"
        self.directory.mkdir(exist_ok=True)

    def test_the_default_jobs_do_their_work_beside_settling(self) -> None:
        writer = Writer(self.directory, period_s=0.02, jobs=default_jobs())
        writer.start()
        self.addCleanup(writer.stop)
        writer.sync_windows([WindowSpec(POOL, unit, 0, 0, 10_000) for unit in (0, 1)]).result(10)
        opened = Journal.open(self.directory, "w1")
        self.addCleanup(opened.close)
        for _ in range(3):
            opened.complete(usage_record(new_rid(), 10, price_id=1))
        writer.settle_now().result(10)
        writer.run_jobs().result(10)
        order = place("transfer", {"from_pool": POOL, "to_pool": 99, "unit": 0, "amount": 1}, actor="ann")
        assert wait(order, 10).state == "refused"
        deadline = time.monotonic() + 60
        while not UsageRollup.objects.exists():
            assert time.monotonic() < deadline, "nothing was summed"
            writer.run_jobs().result(10)
        assert UsageRollup.objects.get().tokens == 30
        assert PoolSample.objects.filter(unit=0).get().committed == 30
        assert writer.stats()["jobs_failed"] == 0

    def test_without_control_a_command_has_a_writer_of_its_own(self) -> None:
        add_window(1, committed=500)
        assert not writer_runs(self.directory)
        with attended(self.directory) as own:
            assert own
            assert writer_runs(self.directory)
            order = place("correction", {"pool_id": 1, "unit": 0, "window_start": 0, "amount": -1}, actor="ann")
            assert wait(order, 10).state == "done"
        assert not writer_runs(self.directory)

    def test_with_a_running_control_nothing_is_started(self) -> None:
        lock_fd = os.open(self.directory / "writer.lock", os.O_CREAT | os.O_RDWR, 0o600)
        self.addCleanup(os.close, lock_fd)
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        with attended(self.directory) as own:
            assert not own
        assert writer_runs(self.directory)

    def test_retention_and_sums_keep_up_with_rows_that_come_in(self) -> None:
        """A bound far above what any machine needs: money waits at most one such step."""
        rollups.set_state(ledger_connection(), retention.SINCE, 1)
        add_usage(5_000, at_s=time.time() - 40 * DAY_S)
        worst = 0.0
        jobs = default_jobs()
        for _ in range(400):
            for job in jobs:
                if isinstance(job, Orders):
                    continue
                began = time.monotonic()
                job.run(ledger_connection())
                worst = max(worst, time.monotonic() - began)
            if not Usage.objects.exists():
                break
        assert not Usage.objects.exists()
        assert rollups.state(ledger_connection(), rollups.ROLLED_UP) > 0
        assert worst < 1.0
