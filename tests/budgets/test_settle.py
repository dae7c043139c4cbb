"""The ledger's writer on a real database, over real journals."""

from __future__ import annotations

import datetime
from decimal import Decimal

import pytest

from budgets import journal
from budgets.models import DecisionShape, JournalPosition, PoolWindow, Usage
from budgets.records import Basis, Unit, UsageRecord
from tests.budgets.ledger_case import LedgerCase
from tests.budgets.records import POOL, hold_record, new_rid, usage_record

pytestmark = pytest.mark.database

SHAPE = bytes(range(16))


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
            if name not in ("rid", "at_us", "cost_pico", "shape", "draws"):
                assert getattr(row, name) == getattr(record, name), name
        assert (row.rid, row.shape, row.at, row.pools) == (rid.hex(), SHAPE.hex(), at, f"{POOL}@0")
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
        assert (window.unit, window.capacity, window.committed, window.overrun) == (Unit.TOKENS, 0, 5, 5)
        assert writer.is_alive()
