"""The ledger's writer on a real database, over real journals."""

from __future__ import annotations

import datetime
import queue
import shutil
import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import IntegrityError, OperationalError, connections, transaction
from django.test import TransactionTestCase

from budgets import journal
from budgets.journal import Journal
from budgets.models import DecisionShape, JournalPosition, Lease, PoolWindow, Usage
from budgets.records import Basis, UsageRecord
from budgets.settle import Writer, WriterStoppedError
from tests.budgets.records import POOL, hold_record, new_rid, usage_record

pytestmark = pytest.mark.database

SHAPE = bytes(range(16))


class LedgerCase(TransactionTestCase):
    """A directory of journals and a writer over it, quick to look."""

    databases = "__all__"

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="hj-"))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.recalls: list[tuple[int, int]] = []
        self.journals: list[Journal] = []

    def start_writer(self, *, capacity: int | None = 100_000, period_s: float = 0.02, **options: Any) -> Writer:
        writer = Writer(
            self.directory, period_s=period_s, on_recall=lambda *window: self.recalls.append(window), **options
        )
        writer.start()
        self.addCleanup(writer.stop)
        if capacity is not None:
            writer.sync_pool(POOL, 0, capacity).result(10)
        return writer

    def open_journal(self, owner: str = "w", **options: Any) -> Journal:
        opened = Journal.open(self.directory, owner, **options)
        self.addCleanup(opened.close)
        return opened

    def ask(self, writer: Writer, owner: str = "w", *, seen: int = 0, want: int = 1, need: int = 0) -> Answers:
        answers = Answers()
        writer.grant(owner, POOL, 0, seen, want, answers, need)
        return answers

    def window(self) -> PoolWindow:
        return PoolWindow.objects.get(pool_id=POOL)

    def figures(self) -> tuple[int, int, int]:
        window = self.window()
        assert window.leased == sum(lease.remaining for lease in Lease.objects.all())
        return window.committed, window.leased, window.overrun

    def eventually(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.01)


class Answers:
    """A reply callback that keeps what it was told."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[int, bool, bool, int]] = queue.Queue()

    def __call__(self, total: int, more: bool, spent_out: bool, available: int) -> None:
        self._queue.put((total, more, spent_out, available))

    def next(self, timeout_s: float = 10) -> tuple[int, bool, bool, int]:
        return self._queue.get(timeout=timeout_s)

    def none_within(self, timeout_s: float) -> bool:
        try:
            self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return True
        return False


class GrantTests(LedgerCase):
    def test_a_first_block_is_a_share_of_what_is_free(self) -> None:
        writer = self.start_writer(capacity=160_000)
        assert self.ask(writer).next() == (10_000, True, False, 150_000)
        assert self.figures() == (0, 10_000, 0)

    def test_an_answer_that_was_lost_is_repeated_and_nothing_is_granted(self) -> None:
        writer = self.start_writer()
        total = self.ask(writer).next()[0]
        assert self.ask(writer, seen=0).next()[0] == total
        assert self.figures() == (0, total, 0)
        assert self.ask(writer, seen=total).next()[0] > total

    def test_a_need_is_given_whole_or_not_at_all(self) -> None:
        writer = self.start_writer(capacity=1_000)
        assert self.ask(writer, need=600).next()[0] >= 600
        total = self.window().leased
        answer = self.ask(writer, "v", need=1_000 - total + 1)
        assert answer.next()[0] == 0
        assert self.ask(writer, "v", need=1_000 - total).next() == (1_000 - total, False, False, 0)

    def test_the_last_tokens_can_be_used(self) -> None:
        writer = self.start_writer(capacity=1_000)
        seen = 0
        for _ in range(100):
            seen = self.ask(writer, seen=seen, need=10).next()[0]
            if seen == 1_000:
                break
        assert seen == 1_000
        assert self.ask(writer, seen=seen, need=1).next() == (1_000, False, True, 0)

    def test_a_pool_is_spent_only_when_nobody_could_return_enough(self) -> None:
        writer = self.start_writer(capacity=1_000)
        self.ask(writer, "idle", want=1_000, need=900).next()
        left = 1_000 - self.window().leased
        _total, _more, spent_out, available = self.ask(writer, "w", need=left + 1).next()
        assert (spent_out, available) == (False, left)
        assert self.ask(writer, "w", need=1_001).next()[2] is True

    def test_returned_tokens_go_to_whoever_lacked_them(self) -> None:
        writer = self.start_writer(capacity=1_000)
        total = self.ask(writer, "idle", need=1_000).next()[0]
        hungry = self.ask(writer, "w", need=400)
        assert hungry.next()[0] == 0
        assert self.recalls == [(POOL, 0)]
        writer.give_back("idle", POOL, 0, total)
        assert hungry.next()[0] >= 400

    def test_a_raised_capacity_serves_those_who_wait(self) -> None:
        writer = self.start_writer(capacity=1_000)
        self.ask(writer, "idle", need=1_000).next()
        hungry = self.ask(writer, "w", need=400)
        assert hungry.next()[0] == 0
        writer.sync_pool(POOL, 0, 10_000).result(10)
        assert hungry.next()[0] >= 400

    def test_a_repeated_return_is_taken_once(self) -> None:
        writer = self.start_writer(capacity=1_000)
        self.ask(writer, need=600).next()
        before = self.window().leased
        for _ in range(3):
            writer.give_back("w", POOL, 0, 500)
        writer.give_back("w", POOL, 0, 100)
        writer.settle_now().result(10)
        assert self.figures() == (0, before - 500, 0)

    def test_an_unknown_window_is_not_answered(self) -> None:
        writer = self.start_writer(capacity=None)
        assert self.ask(writer, need=10).none_within(0.2)

    def test_a_total_that_the_ledger_lost_is_adopted(self) -> None:
        writer = self.start_writer(capacity=100_000)
        total = self.ask(writer, seen=5_000).next()[0]
        assert total > 5_000
        assert self.figures()[1] == total

    def test_a_lowered_capacity_stops_grants_and_breaks_nothing(self) -> None:
        writer = self.start_writer(capacity=100_000)
        worker = self.open_journal()
        total = self.ask(writer, need=10_000).next()[0]
        writer.sync_pool(POOL, 0, 5_000).result(10)
        assert self.figures() == (0, total, total - 5_000)
        assert self.ask(writer, seen=total, need=10).next() == (total, False, True, 0)
        worker.complete(usage_record(new_rid(), 8_000))
        writer.settle_now().result(10)
        assert self.figures()[0] == 8_000
        worker.close()
        self.eventually(lambda: not Lease.objects.exists())
        assert self.figures() == (8_000, 0, 3_000)
        writer.sync_pool(POOL, 0, 20_000).result(10)
        assert self.figures() == (8_000, 0, 0)

    def test_the_database_itself_refuses_more_than_the_capacity(self) -> None:
        window = PoolWindow.objects.create(pool_id=1, capacity=100, committed=60, leased=40)
        for change in ({"leased": 41}, {"committed": -1}, {"overrun": -1}):
            with pytest.raises(IntegrityError), transaction.atomic(using=settings.HOOSH_LEDGER_DB):
                PoolWindow.objects.filter(pk=window.pk).update(**change)


class SettleTests(LedgerCase):
    def test_usage_is_settled_and_charged(self) -> None:
        writer = self.start_writer(period_s=60)
        worker = self.open_journal()
        total = self.ask(writer, need=1_000).next()[0]
        rid, at = new_rid(), datetime.datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=datetime.UTC)
        record = usage_record(
            *(rid, 70),
            **{"held": 100, "at_us": int(at.timestamp()) * 10**6 + 123456, "shape": SHAPE, "stream": True},
            **{"cost_pico": 1_234_567_890_123, "client_request_id": "their-id", "basis": int(Basis.ESTIMATED)},
        )
        worker.hold(hold_record(rid, 100))
        worker.shape(SHAPE, b'{"order":[1,2]}')
        worker.complete(record)
        writer.settle_now().result(10)
        row = Usage.objects.get()
        for name in UsageRecord.__struct_fields__:
            if name not in ("rid", "at_us", "cost_pico", "shape"):
                assert getattr(row, name) == getattr(record, name), name
        assert (row.rid, row.shape, row.at) == (rid.hex(), SHAPE.hex(), at)
        assert row.cost_usd == Decimal("1.234567890123")
        assert DecisionShape.objects.get().payload == '{"order":[1,2]}'
        assert self.figures() == (70, total - 70, 0)

    def test_rows_can_be_found_by_time(self) -> None:
        writer = self.start_writer()
        self.open_journal().complete(usage_record(new_rid(), 1))
        self.eventually(Usage.objects.exists)
        now = datetime.datetime.now(datetime.UTC)
        minute = datetime.timedelta(minutes=1)
        assert Usage.objects.filter(at__gte=now - minute, at__lt=now + minute).count() == 1
        assert writer.stats()["rows"] == 1

    def test_a_journal_read_again_from_the_start_changes_nothing(self) -> None:
        writer = self.start_writer()
        worker = self.open_journal()
        self.ask(writer, need=1_000).next()
        for _ in range(10):
            worker.complete(usage_record(new_rid(), 5))
        writer.settle_now().result(10)
        before = self.figures()
        writer.stop()
        JournalPosition.objects.all().delete()
        worker.complete(usage_record(new_rid(), 7))
        again = self.start_writer(capacity=None)
        again.settle_now().result(10)
        assert self.figures() == (before[0] + 7, before[1] - 7, 0)
        assert Usage.objects.count() == 11
        assert (again.stats()["replays"], again.stats()["duplicates"]) == (1, 10)

    def test_one_end_journaled_twice_is_charged_once(self) -> None:
        writer = self.start_writer()
        worker = self.open_journal()
        record = usage_record(new_rid(), 5)
        worker.complete(record)
        worker.complete(record)
        worker.complete(usage_record(record.rid, 6, attempt=1))
        self.eventually(lambda: Usage.objects.count() == 2)
        assert self.figures()[0] == 11
        assert writer.stats()["duplicates"] == 1

    def test_a_large_batch_is_settled_in_pieces(self) -> None:
        writer = self.start_writer(period_s=60, batch_records=100)
        worker = self.open_journal(segment_bytes=10_000)
        total = self.ask(writer, need=1_000).next()[0]
        for _ in range(450):
            rid = new_rid()
            worker.hold(hold_record(rid, 2))
            worker.complete(usage_record(rid, 1))
        writer.settle_now().result(20)
        assert self.figures() == (450, total - 450, 0)
        assert Usage.objects.count() == 450
        assert writer.stats()["batches"] >= 5
        assert len(journal.list_segments(self.directory, "w")) == 1, "settled segments are removed"

    def test_what_a_provider_reports_beyond_the_hold_is_written_and_told_to_the_worker(self) -> None:
        writer = self.start_writer(capacity=1_000, period_s=60)
        worker = self.open_journal()
        total = self.ask(writer, need=100).next()[0]
        worker.complete(usage_record(new_rid(), total + 30, held=total))
        writer.settle_now().result(10)
        assert self.figures() == (total + 30, 0, 0)
        assert self.ask(writer, seen=total).next()[0] == total + 30
        worker.complete(usage_record(new_rid(), 5_000, held=10))
        writer.settle_now().result(10)
        assert self.figures() == (total + 5_030, 0, total + 5_030 - 1_000)
        assert self.ask(writer, seen=total + 5_030, need=1).next()[2] is True

    def test_texts_no_database_takes_are_repaired_and_the_rest_of_the_batch_is_kept(self) -> None:
        writer = self.start_writer()
        worker = self.open_journal()
        worker.complete(usage_record(new_rid(), 5, model="nul\0 " + "long" * 100))
        worker.complete(usage_record(new_rid(), 6, attempts=10**6, latency_us=2**63))
        worker.complete(usage_record(new_rid(), 7))
        self.eventually(lambda: Usage.objects.count() == 3)
        assert self.figures()[0] == 18
        assert writer.stats()["errors"] == 0

    def test_usage_of_a_pool_without_a_window_is_still_written(self) -> None:
        writer = self.start_writer()
        self.open_journal().complete(usage_record(new_rid(), 5, pool_id=99))
        self.eventually(Usage.objects.exists)
        window = PoolWindow.objects.get(pool_id=99)
        assert (window.capacity, window.committed, window.overrun) == (0, 5, 5)
        assert writer.is_alive()


class DeadOwnerTests(LedgerCase):
    def test_a_dead_workers_holds_are_charged_and_its_lease_goes_back(self) -> None:
        writer = self.start_writer(period_s=60)
        worker = self.open_journal()
        self.ask(writer, need=5_000).next()
        ended, silent, streamed, released = (new_rid() for _ in range(4))
        for rid in (ended, silent, streamed, released):
            worker.hold(hold_record(rid, 1_000, input_bound=200))
        worker.complete(usage_record(ended, 300, held=1_000))
        worker.delivered(streamed, 0, 64, 120)
        worker.release(released, 0)
        worker.close()
        writer.settle_now().result(10)
        assert self.figures() == (300 + 1_000 + 264, 0, 0)
        assert not Lease.objects.exists()
        assert not JournalPosition.objects.exists()
        assert [path.name for path in self.directory.iterdir()] == ["writer.lock"]
        basis = dict(Usage.objects.values_list("rid", "basis"))
        assert basis == {
            ended.hex(): Basis.REPORTED,
            silent.hex(): Basis.BOUND,
            streamed.hex(): Basis.DELIVERED,
        }

    def test_a_live_workers_open_holds_are_left_alone(self) -> None:
        writer = self.start_writer(period_s=60)
        worker = self.open_journal()
        total = self.ask(writer, need=5_000).next()[0]
        worker.hold(hold_record(new_rid(), 1_000))
        writer.settle_now().result(10)
        assert self.figures() == (0, total, 0)
        assert writer.stats()["open_holds"] == 1

    def test_a_restarted_control_finds_open_holds_again(self) -> None:
        writer = self.start_writer(period_s=60)
        worker = self.open_journal()
        total = self.ask(writer, need=5_000).next()[0]
        worker.hold(hold_record(new_rid(), 1_000))
        worker.complete(usage_record(new_rid(), 10))
        assert writer.stop()
        assert self.figures() == (10, total - 10, 0)
        worker.close()
        self.start_writer(capacity=None, period_s=60).settle_now().result(10)
        assert self.figures() == (1_010, 0, 0)

    def test_files_left_behind_a_finished_burial_change_nothing(self) -> None:
        writer = self.start_writer(period_s=60)
        worker = self.open_journal()
        self.ask(writer, need=5_000).next()
        worker.hold(hold_record(new_rid(), 1_000))
        worker.complete(usage_record(new_rid(), 10))
        worker.close()
        copies = {path: path.read_bytes() for path in self.directory.glob("w.*")}
        writer.settle_now().result(10)
        for path, data in copies.items():
            path.write_bytes(data)
        writer.settle_now().result(10)
        assert self.figures() == (1_010, 0, 0)
        assert Usage.objects.count() == 2
        assert writer.stats()["buried"] == 2

    def test_a_damaged_journal_is_set_aside_and_its_lease_stays_counted(self) -> None:
        writer = self.start_writer(period_s=60)
        worker = self.open_journal()
        total = self.ask(writer, need=5_000).next()[0]
        worker.complete(usage_record(new_rid(), 10))
        start = journal.segment_path(self.directory, "w", 1).stat().st_size
        worker.complete(usage_record(new_rid(), 20))
        worker.complete(usage_record(new_rid(), 30))
        worker.close()
        with journal.segment_path(self.directory, "w", 1).open("r+b") as file:
            file.seek(start + 8)
            file.write(b"\xff\xff")
        writer.settle_now().result(10)
        assert self.figures() == (40, total - 40, 0)
        assert Lease.objects.get().state == Lease.State.QUARANTINED
        assert {path.suffix for path in self.directory.glob("w.*")} == {".bad"}
        assert writer.stats()["quarantined"] == 1
        writer.settle_now().result(10)
        assert writer.write_off("w").result(10) == total - 40
        assert self.figures() == (total, 0, 0)
        assert not Lease.objects.exists()

    def test_a_quarantined_lease_is_not_waited_for(self) -> None:
        writer = self.start_writer(capacity=1_000)
        self.ask(writer, "bad", need=1_000).next()
        Lease.objects.update(state=Lease.State.QUARANTINED)
        assert self.ask(writer, "w", need=1).next()[2] is True

    def test_an_owner_that_died_before_its_first_segment_is_cleared_away(self) -> None:
        journal.lock_path(self.directory, "w").write_bytes(b"")
        writer = self.start_writer()
        self.eventually(lambda: writer.stats()["buried"] == 1)
        assert not journal.lock_path(self.directory, "w").exists()


class ThreadTests(LedgerCase):
    def test_stopping_settles_to_the_end_first(self) -> None:
        writer = self.start_writer(period_s=60)
        worker = self.open_journal()
        self.ask(writer, need=1_000).next()
        for _ in range(100):
            worker.complete(usage_record(new_rid(), 1))
        worker.close()
        assert writer.stop()
        assert self.figures() == (100, 0, 0)

    def test_work_is_done_in_the_writers_thread_with_its_connection(self) -> None:
        writer = self.start_writer()

        def work(connection: Any) -> int:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 42")
                return int(cursor.fetchone()[0])

        assert writer.submit(work).result(10) == 42

    def test_a_failing_piece_of_work_tells_its_caller_and_nobody_else(self) -> None:
        writer = self.start_writer()

        def fail(_connection: Any) -> None:
            raise KeyError("mine")

        with pytest.raises(KeyError):
            writer.submit(fail).result(10)
        assert self.ask(writer, need=10).next()[0] >= 10

    def test_after_the_end_work_is_refused(self) -> None:
        writer = self.start_writer()
        writer.stop()
        with pytest.raises(WriterStoppedError):
            writer.submit(lambda _connection: None).result(10)

    def test_a_second_writer_on_the_directory_waits_for_the_first_to_end(self) -> None:
        first = self.start_writer()
        second = self.start_writer(capacity=None)
        assert not second.ready.wait(0.2)
        first.stop()
        assert second.ready.wait(10)

    def test_a_second_writer_that_never_got_its_turn_can_be_stopped(self) -> None:
        self.start_writer()
        second = self.start_writer(capacity=None)
        assert second.stop(5)

    def test_an_outage_of_the_database_is_ridden_out(self) -> None:
        writer = self.start_writer()
        worker = self.open_journal()
        total = self.ask(writer, need=1_000).next()[0]

        def break_connection(connection: Any) -> None:
            connection.close()
            raise OperationalError("the server went away")

        for number in range(5):
            worker.complete(usage_record(new_rid(), 10))
            with pytest.raises(OperationalError):
                writer.submit(break_connection).result(10)
            self.eventually(lambda number=number: self.window().committed == 10 * (number + 1))
        assert self.figures() == (50, total - 50, 0)
        assert writer.stats()["outages"] == 5

    def test_tables_that_are_away_for_a_while_cost_nothing(self) -> None:
        writer = self.start_writer()
        worker = self.open_journal()
        self.ask(writer, need=1_000).next()
        connection, table = connections[settings.HOOSH_LEDGER_DB], Usage._meta.db_table
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {table} RENAME TO away")
        worker.complete(usage_record(new_rid(), 10))
        self.eventually(lambda: writer.stats()["outages"] > 0)
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE away RENAME TO {table}")
        self.eventually(lambda: self.window().committed == 10)
        assert Usage.objects.count() == 1
