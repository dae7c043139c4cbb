"""What goes, what stays, and that it goes in small steps."""

from __future__ import annotations

import datetime as dt
import logging
from pathlib import Path

import pytest
from django.conf import settings
from django.db.models import Sum
from django.test import TestCase, TransactionTestCase
from django.test.utils import CaptureQueriesContext

from budgets import journal, retention, rollups
from budgets.models import (
    DecisionShape,
    LedgerState,
    PoolAlert,
    PoolSample,
    PoolWindow,
    Reservation,
    Usage,
    UsageRollup,
)
from budgets.pace import Chunk
from budgets.retention import JournalSearch, Kept, Retention
from tests import environment
from tests.budgets.ledger_rows import DAY_S, HOUR_S, NOON, add_usage, add_window, ledger_connection

pytestmark = pytest.mark.database

NOW = NOON + 100 * DAY_S
KEEP = Kept(days=30, rows=0, disk_free_bytes=1_000)
SHAPE = "ab" * 16


class RetentionCase(TestCase):
    databases = "__all__"

    def setUp(self) -> None:
        self.journals = environment.session_dir() / f"retention-{self.id()[-40:]}"
        self.journals.mkdir(exist_ok=True)
        rollups.set_state(ledger_connection(), retention.SINCE, 1)  # it began long ago

    def job(self, keep: Kept = KEEP, *, free_bytes: int = 10**9) -> Retention:
        return Retention(keep, journals=self.journals, free_bytes=lambda: free_bytes, clock=lambda: NOW)

    def work(self, job: Retention | None = None, *, most: int = 200) -> int:
        """Run until a whole round found nothing; how many runs that took."""
        job = job or self.job()
        for runs in range(1, most):
            job.run(ledger_connection())
            if job.period_s == retention.IDLE_S:
                return runs
        raise AssertionError("it did not come to an end")


class UsageTests(RetentionCase):
    def test_old_rows_go_and_young_ones_stay(self) -> None:
        add_usage(3, at_s=NOW - 31 * DAY_S)
        add_usage(2, at_s=NOW - 29 * DAY_S)
        rollups.roll_up(ledger_connection())
        self.work()
        assert Usage.objects.count() == 2
        assert UsageRollup.objects.aggregate(rows=Sum("attempts"))["rows"] == 5

    def test_rows_that_are_not_in_the_sums_stay(self) -> None:
        add_usage(3, at_s=NOW - 31 * DAY_S)
        rollups.roll_up(ledger_connection(), 2)
        self.work()
        assert Usage.objects.count() == 1
        rollups.roll_up(ledger_connection())
        self.work()
        assert Usage.objects.count() == 0

    def test_more_rows_than_allowed_go_oldest_first_but_those_of_a_day_stay(self) -> None:
        for days in (9, 8, 7, 6, 5):
            add_usage(at_s=NOW - days * DAY_S)
        add_usage(3, at_s=NOW - 20 * HOUR_S)
        rollups.roll_up(ledger_connection())
        self.work(self.job(KEEP._replace(rows=6)))
        assert Usage.objects.count() == 6
        assert Usage.objects.order_by("at")[0].at == dt.datetime.fromtimestamp(NOW - 7 * DAY_S, dt.UTC)
        self.work(self.job(KEEP._replace(rows=1)))
        assert Usage.objects.count() == 3

    def test_one_day_is_never_less_than_a_call_may_take(self) -> None:
        assert retention.cutoff_s(1, NOW) == NOW - 25 * HOUR_S
        assert retention.cutoff_s(2, NOW) == NOW - 2 * DAY_S

    def test_it_is_noted_from_when_on_rows_are_complete(self) -> None:
        add_usage(at_s=NOW - 31 * DAY_S)
        rollups.roll_up(ledger_connection())
        self.work()
        assert rollups.state(ledger_connection(), retention.USAGE_FROM) == NOW - 31 * DAY_S + 1

    def test_a_step_deletes_no_more_than_its_chunk(self) -> None:
        add_usage(7, at_s=NOW - 31 * DAY_S)
        rollups.roll_up(ledger_connection())
        sizes = [retention.delete_usage(ledger_connection(), before_s=NOW, limit=3) for _ in range(4)]
        assert sizes == [3, 3, 1, 0]

    def test_what_stays_for_ever_stays(self) -> None:
        window = add_window(1, window_start=1, window_end=2, committed=5)
        PoolAlert.objects.create(pool_id=1, percent=80, committed=5, capacity=6)
        self.work()
        assert PoolWindow.objects.get() == window
        assert PoolAlert.objects.count() == 1


class UpgradeTests(RetentionCase):
    def setUp(self) -> None:
        super().setUp()
        LedgerState.objects.filter(name=retention.SINCE).delete()
        self.now = NOW

    def job(self, keep: Kept = KEEP, *, free_bytes: int = 10**9) -> Retention:
        return Retention(keep, journals=self.journals, free_bytes=lambda: free_bytes, clock=lambda: self.now)

    def test_rows_an_earlier_version_kept_go_a_week_after_it_was_said_once(self) -> None:
        add_usage(3, at_s=NOW - 31 * DAY_S)
        rollups.roll_up(ledger_connection())
        with self.assertLogs("hoosh.ledger", logging.WARNING) as logs:
            self.work(self.job())
            self.now += 6 * DAY_S
            self.work(self.job())  # as after a restart
        assert [record.getMessage() for record in logs.records] == ["retention_begins"]
        assert logs.records[0].usage_days == 30
        assert Usage.objects.count() == 3
        self.now += DAY_S + 1
        self.work(self.job())
        assert Usage.objects.count() == 0

    def test_too_many_rows_wait_as_well(self) -> None:
        add_usage(9, at_s=NOW - 3 * DAY_S)
        rollups.roll_up(ledger_connection())
        job = self.job(KEEP._replace(rows=5))
        self.work(job)
        assert Usage.objects.count() == 9
        self.now += 7 * DAY_S + 1
        self.work(job)
        assert Usage.objects.count() == 5

    def test_where_nothing_would_go_it_begins_at_once(self) -> None:
        add_usage(2, at_s=NOW - 29 * DAY_S)
        rollups.roll_up(ledger_connection())
        with self.assertNoLogs("hoosh.ledger", logging.WARNING):
            self.work(self.job())
            self.now += 2 * DAY_S
            self.work(self.job())
        assert Usage.objects.count() == 0

    def test_on_a_full_disk_there_is_no_time_to_wait(self) -> None:
        if ledger_connection().vendor != "sqlite":
            self.skipTest("a PostgreSQL server's disk is another one")
        add_usage(3, at_s=NOW - 31 * DAY_S)
        rollups.roll_up(ledger_connection())
        with self.assertLogs("hoosh.ledger", logging.WARNING):
            self.work(self.job(free_bytes=0))
        assert Usage.objects.count() == 0


class ChunkTests(TestCase):
    def test_a_slow_step_makes_the_next_smaller_and_a_quick_one_larger(self) -> None:
        now = [0.0]

        def step(chunk: Chunk, took_s: float) -> int:
            with chunk as rows:
                now[0] += took_s
            return rows

        chunk = Chunk(400, least=50, longest_s=0.02, clock=lambda: now[0])
        assert [step(chunk, 0.1) for _ in range(5)] == [400, 200, 100, 50, 50]
        assert [step(chunk, 0.015) for _ in range(2)] == [50, 50]
        assert [step(chunk, 0.001) for _ in range(5)] == [50, 100, 200, 400, 400]


class DiskTests(RetentionCase):
    def test_a_full_disk_halves_the_days_step_by_step_down_to_one(self) -> None:
        if ledger_connection().vendor != "sqlite":
            self.skipTest("a PostgreSQL server's disk is another one")
        job = self.job(free_bytes=999)
        for days in (20, 10, 5, 2, 1.5, 1):
            add_usage(at_s=NOW - days * DAY_S)
        rollups.roll_up(ledger_connection())
        left = []
        with self.assertLogs("hoosh.ledger", logging.ERROR) as logs:
            for _ in range(6):
                self.work(job)
                left.append(Usage.objects.count())
        assert left == [5, 4, 3, 1, 1, 1]
        assert [record.getMessage() for record in logs.records] == ["disk_low"]  # once a minute

    def test_with_room_again_everything_is_kept_again(self) -> None:
        free = [0]
        job = Retention(KEEP, journals=self.journals, free_bytes=lambda: free[0], clock=lambda: NOW)
        with self.assertLogs("hoosh.ledger", logging.ERROR):
            self.work(job)
        free[0] = 1_000
        self.work(job)
        add_usage(at_s=NOW - 20 * DAY_S)
        rollups.roll_up(ledger_connection())
        self.work(job)
        assert Usage.objects.count() == 1

    def test_the_settings_say_what_is_kept(self) -> None:
        assert retention.kept() == Kept(30, 20_000_000 if settings.HOOSH_LEDGER_DB == "ledger" else 0, 512 * 1024**2)
        assert Retention()._free_bytes() > 0


class PagesTests(TransactionTestCase):
    databases = "__all__"

    def test_room_of_deleted_rows_goes_back_to_the_file_system(self) -> None:
        connection = ledger_connection()
        if connection.vendor != "sqlite":
            self.skipTest("PostgreSQL has its own vacuum")
        add_usage(2_000, model="m" * 200)
        Usage.objects.all().delete()
        with connection.cursor() as cursor:
            before = cursor.execute("PRAGMA page_count").fetchone()[0]
            while retention.give_back_pages(connection):
                pass
            assert cursor.execute("PRAGMA freelist_count").fetchone()[0] == 0
            assert cursor.execute("PRAGMA page_count").fetchone()[0] < before


class OtherRowsTests(RetentionCase):
    def test_resolved_reservations_go_after_thirty_days_and_open_ones_never(self) -> None:
        for number, (state, days) in enumerate((("open", 90), ("reported", 31), ("expired", 31), ("reported", 29))):
            at = dt.datetime.fromtimestamp(NOW - days * DAY_S, dt.UTC)
            Reservation.objects.create(
                **{"id": f"r{number}", "pool_id": 1, "draws": "1@0", "team_id": 1, "agent_id": 1, "key_id": 1},
                **{"tokens": 5, "state": state, "created_at": at, "expires_at": at},
            )
        self.work()
        assert set(Reservation.objects.values_list("id", flat=True)) == {"r0", "r3"}

    def test_samples_go_after_thirty_five_days(self) -> None:
        for days in (40, 36, 34):
            PoolSample.objects.create(pool_id=1, at_s=NOW - days * DAY_S, committed=1)
        self.work()
        assert PoolSample.objects.get().at_s == NOW - 34 * DAY_S

    def test_hourly_sums_become_daily_after_ninety_days(self) -> None:
        for at_s in (NOON, NOON + HOUR_S, NOON + 20 * DAY_S):
            add_usage(at_s=at_s)
        rollups.roll_up(ledger_connection())
        self.work()
        found = UsageRollup.objects.order_by("start").values_list("start", "seconds", "attempts")
        assert list(found) == [(NOON - 12 * HOUR_S, DAY_S, 2), (NOON + 20 * DAY_S, HOUR_S, 1)]

    def test_how_far_sums_are_daily_survives_a_restart(self) -> None:
        add_usage(at_s=NOON)
        rollups.roll_up(ledger_connection())
        self.work()
        folded_to = rollups.state(ledger_connection(), retention.FOLDED_TO)
        assert folded_to == NOW - 90 * DAY_S - 12 * HOUR_S
        with CaptureQueriesContext(ledger_connection()) as seen:
            self.work()
        asked = [query["sql"] for query in seen.captured_queries if "start <" in query["sql"]]
        assert len(asked) == 1
        assert f"start >= {folded_to}" in asked[0]


class ShapeTests(RetentionCase):
    def add_named(self, *, days: float) -> None:
        DecisionShape.objects.get_or_create(digest=SHAPE, defaults={"payload": "{}"})
        add_usage(at_s=NOW - days * DAY_S, shape=SHAPE)
        rollups.roll_up(ledger_connection())

    def test_a_shape_goes_with_the_last_row_that_names_it(self) -> None:
        self.add_named(days=40)
        self.add_named(days=10)
        self.work()
        assert DecisionShape.objects.exists()
        Usage.objects.all().delete()
        self.work()
        assert not DecisionShape.objects.exists()
        assert not LedgerState.objects.filter(name=SHAPE).exists()

    def test_a_shape_stays_while_a_journal_names_it(self) -> None:
        self.add_named(days=40)
        path = journal.segment_path(self.journals, "w", 1)
        path.write_bytes(b"x" * 5 + bytes.fromhex(SHAPE) + b"y")
        self.work()
        assert DecisionShape.objects.exists()
        path.unlink()
        add_usage()
        rollups.roll_up(ledger_connection())
        self.work()
        assert not DecisionShape.objects.exists()

    def test_a_shape_a_row_outside_the_sums_names_stays(self) -> None:
        self.add_named(days=40)
        add_usage(at_s=NOW, shape=SHAPE)
        self.work()
        assert DecisionShape.objects.exists()

    def test_a_shape_nobody_ever_named_stays(self) -> None:
        DecisionShape.objects.create(digest=SHAPE, payload="{}")
        self.work()
        assert DecisionShape.objects.exists()


def _search(directory: Path, *, steps: int = 20) -> bool | None:
    search = JournalSearch(directory, SHAPE)
    for _ in range(steps):
        found = search.step()
        if found is not None:
            return found
    return None


@pytest.mark.parametrize("offset", [0, 10, retention.SEARCH_BYTES - 8, retention.SEARCH_BYTES, 2_500_000])
def test_a_digest_is_found_wherever_it_stands_in_a_long_journal(short_dir: Path, offset: int) -> None:
    data = bytearray(3_000_000)
    data[offset : offset + 16] = bytes.fromhex(SHAPE)
    journal.segment_path(short_dir, "w", 1).write_bytes(data)
    assert _search(short_dir) is True


def test_what_is_written_during_the_search_is_found(short_dir: Path) -> None:
    path = journal.segment_path(short_dir, "w", 1)
    path.write_bytes(bytes(3_000_000))
    search = JournalSearch(short_dir, SHAPE)
    assert search.step() is None
    with path.open("ab") as file:
        file.write(bytes.fromhex(SHAPE))
    assert search.step() is True


def test_other_files_and_no_directory_name_nothing(short_dir: Path) -> None:
    (short_dir / "w.lock").write_bytes(bytes.fromhex(SHAPE))
    journal.segment_path(short_dir, "w", 1).touch()
    assert _search(short_dir) is False
    assert _search(short_dir / "none") is False
