"""Settling what draws on several purses: each is charged in its unit, once, whatever is replayed."""

from __future__ import annotations

import logging
import zlib
from typing import Any

import msgspec
import pytest
from django.conf import settings
from django.db import OperationalError, connections, transaction

from budgets import journal
from budgets.ledger import Ledger
from budgets.ledger_books import Key
from budgets.models import JournalPosition, Lease, PoolAlert, PoolWindow, Usage
from budgets.records import Draw, HoldRecord, Unit, UsageRecord, draws_of
from tests.budgets.ledger_case import MONEY, TOKENS, USD, LedgerCase, spec
from tests.budgets.records import POOL, hold_record, money_of, new_rid, tokens_of, usage_record

pytestmark = pytest.mark.database

TEAM: Key = (3, Unit.TOKENS.value, 1_000)
TEAM_MONEY: Key = (3, Unit.PICO_USD.value, 1_000)


class DrawTests(LedgerCase):
    def test_each_purse_is_charged_in_its_unit_from_leases_or_directly(self) -> None:
        writer = self.start_writer(period_s=60)
        self.sync(writer, spec(MONEY, capacity=None), spec(TEAM, capacity=None), spec(TEAM_MONEY, capacity=USD))
        worker = self.open_journal()
        tokens = self.ask(writer, need=1_000).next()[0]
        money = self.ask(writer, need=10**9, key=TEAM_MONEY).next()[0]
        draws = (tokens_of(3, start=1_000), money_of(3, 10**9, start=1_000), tokens_of(POOL, 1_000), money_of(POOL))
        worker.complete(usage_record(new_rid(), 70, cost_pico=500, draws=draws, input_audio_tokens=3))
        worker.complete(usage_record(new_rid(), 30, cost_pico=0, draws=draws))
        worker.complete(usage_record(new_rid(), 0, cost_pico=7, draws=draws, input_image_tokens=4))
        writer.settle_now().result(10)
        assert self.figures() == (100, tokens - 100, 0)
        assert self.figures(MONEY) == (507, 0, 0)
        assert self.figures(TEAM) == (100, 0, 0)
        assert self.figures(TEAM_MONEY) == (507, money - 507, 0)
        rows = Usage.objects.order_by("id")
        assert {row.pools for row in rows} == {f"3@1000 {POOL}@0"}
        assert [(row.input_audio_tokens, row.input_image_tokens) for row in rows] == [(3, 0), (0, 0), (0, 4)]

    def test_purses_nobody_made_are_made_and_charged(self) -> None:
        writer = self.start_writer(capacity=None, period_s=60)
        self.open_journal().complete(
            usage_record(
                new_rid(), 70, cost_pico=9, draws=(tokens_of(1, 100), money_of(1), tokens_of(2), money_of(2, 5))
            )
        )
        writer.settle_now().result(10)
        windows = PoolWindow.objects.order_by("pool_id", "unit").values_list("capacity", "committed", "overrun")
        assert list(windows) == [(0, 70, 70), (None, 9, 0), (None, 70, 0), (0, 9, 9)]
        assert set(Lease.objects.values_list("remaining", flat=True)) == {0}

    def test_a_pool_that_observes_may_pass_its_limit(self) -> None:
        writer = self.start_writer(capacity=100, period_s=60)
        worker = self.open_journal()
        for _ in range(3):
            worker.complete(usage_record(new_rid(), 50, draws=(tokens_of(POOL),)))
        writer.settle_now().result(10)
        assert self.figures() == (150, 0, 50)
        assert not Lease.objects.exists()

    def test_a_unit_of_a_later_version_is_left_alone(self) -> None:
        writer = self.start_writer(period_s=60)
        self.open_journal().complete(
            usage_record(new_rid(), 50, draws=(Draw(POOL, 0, 0, -1), Draw(POOL, 9, 0, -1), Draw(POOL, -1, 0, 5)))
        )
        writer.settle_now().result(10)
        assert self.figures() == (50, 0, 0)
        assert PoolWindow.objects.count() == 1
        assert writer.stats()["errors"] == 0

    def test_many_pools_are_named_as_far_as_there_is_room(self) -> None:
        writer = self.start_writer(period_s=60)
        draws = tuple(tokens_of(10**6 + number, start=1_700_000_000) for number in range(40))
        self.open_journal().complete(usage_record(new_rid(), 5, draws=draws))
        writer.settle_now().result(10)
        named = Usage.objects.get().pools.split(" ")
        assert len(" ".join(named)) <= 255
        assert named == [f"{10**6 + number}@1700000000" for number in range(len(named))]
        assert PoolWindow.objects.filter(committed=5).count() == 40

    def test_absurd_amounts_stop_nothing(self) -> None:
        writer = self.start_writer(period_s=60)
        worker = self.open_journal()
        draws = (tokens_of(POOL), money_of(POOL))
        for _ in range(20):
            worker.complete(usage_record(new_rid(), 2**63, cost_pico=2**62, draws=draws))
            worker.complete(usage_record(new_rid(), -5, cost_pico=-(2**62), draws=draws))
            worker.complete(usage_record(new_rid(), 0, latency_us=2**64 - 1, attempts=2**40, status=-(2**60)))
        worker.complete(usage_record(new_rid(), 1, draws=(tokens_of(2**63 - 1, start=2**63 - 1),)))
        writer.settle_now().result(10)
        assert Usage.objects.count() == 61
        assert self.figures()[0] == 20 * 10**15
        assert self.window(MONEY).committed == 8 * 10**18
        assert writer.stats()["errors"] == writer.stats()["outages"] == 0

    def test_a_large_batch_says_in_every_column_what_each_record_says(self) -> None:
        writer = self.start_writer(period_s=60)
        worker = self.open_journal()
        records = {}
        for number in range(620):  # parts of 500, 50 and fewer are inserted in different ways
            record = usage_record(new_rid(), number, cost_pico=number * 3, draws=(tokens_of(number % 3 + 1),))
            record.error = "odd" if number % 7 == 0 else ""
            records[record.rid.hex()] = record
            worker.complete(record)
        writer.settle_now().result(10)
        rows = {row.rid: row for row in Usage.objects.all()}
        assert rows.keys() == records.keys()
        for rid, record in records.items():
            for name in UsageRecord.__struct_fields__:
                if name not in ("rid", "at_us", "cost_pico", "shape", "draws"):
                    assert getattr(rows[rid], name) == getattr(record, name), name
            assert rows[rid].pools == f"{record.draws[0].pool_id}@0"
            assert int(rows[rid].at.timestamp() * 10**6) == record.at_us
            assert rows[rid].cost_usd * USD == record.cost_pico
        for pool_id in (1, 2, 3):
            charged = sum(record.tokens for record in records.values() if record.draws[0].pool_id == pool_id)
            assert self.figures((pool_id, 0, 0)) == (charged, 0, 0)

    def test_records_of_before_there_were_draws_are_still_settled(self) -> None:
        writer = self.start_writer(period_s=60)
        worker = self.open_journal()
        total = self.ask(writer, need=1_000).next()[0]
        ended, silent = new_rid(), new_rid()
        old_usage = msgspec.structs.astuple(usage_record(ended, 40))
        old_hold = msgspec.structs.astuple(hold_record(silent, 300))
        old_usage = old_usage[: UsageRecord.__struct_fields__.index("input_audio_tokens")]
        old_hold = old_hold[: HoldRecord.__struct_fields__.index("draws")]
        with journal.segment_path(self.directory, "w", 1).open("ab") as file:
            for kind, rid, values in ((journal.COMPLETE, ended, old_usage), (journal.HOLD, silent, old_hold)):
                payload = journal.KEY.pack(rid, 0) + msgspec.msgpack.encode(values)
                body = journal.HEAD.pack(kind, len(payload)) + payload
                file.write(body + journal.CRC.pack(zlib.crc32(body)))
        writer.settle_now().result(10)
        assert self.figures() == (40, total - 40, 0)
        worker.close()
        writer.settle_now().result(10)
        assert self.figures() == (340, 0, 0)
        assert set(Usage.objects.values_list("pools", flat=True)) == {f"{POOL}@0"}

    def test_a_dead_workers_hold_costs_what_its_tokens_cost_at_most(self) -> None:
        writer = self.start_writer(period_s=60)
        self.sync(writer, spec(MONEY, capacity=USD))
        worker = self.open_journal()
        self.ask(writer, need=2_000).next()
        self.ask(writer, need=10**9, key=MONEY).next()
        silent, streamed = new_rid(), new_rid()
        prices: dict[str, Any] = {"price_id": 9, "input_pico": 100, "output_pico": 1_000, "request_pico": 7}
        draws = (tokens_of(POOL, 500), money_of(POOL, 330_007))
        for rid in (silent, streamed):
            worker.hold(hold_record(rid, 500, input_bound=200, draws=draws, **prices))
        worker.delivered(streamed, 0, 10, 12)
        worker.close()
        writer.settle_now().result(10)
        costs = {row.rid: (row.cost_usd * USD, row.price_id, row.pools) for row in Usage.objects.all()}
        assert costs == {
            silent.hex(): (7 + 200 * 100 + 300 * 1_000, 9, f"{POOL}@0"),
            streamed.hex(): (7 + 200 * 100 + 10 * 1_000, 9, f"{POOL}@0"),
        }
        assert self.figures() == (710, 0, 0)
        assert self.figures(MONEY) == (320_007 + 30_007, 0, 0)


class ReplayTests(LedgerCase):
    """The same records again: no purse is charged twice."""

    PURSES = (TOKENS, MONEY, TEAM, TEAM_MONEY)
    DRAWS = (tokens_of(3, start=1_000), money_of(3, 10**6, start=1_000), tokens_of(POOL, 5), money_of(POOL))

    def charged(self) -> list[int]:
        return [self.figures(key)[0] for key in self.PURSES]

    def test_a_journal_read_again_from_its_start(self) -> None:
        writer = self.start_writer()
        worker = self.open_journal()
        for _ in range(10):
            worker.complete(usage_record(new_rid(), 5, cost_pico=3, draws=self.DRAWS))
        writer.settle_now().result(10)
        writer.stop()
        JournalPosition.objects.all().delete()
        worker.complete(usage_record(new_rid(), 7, cost_pico=1, draws=self.DRAWS))
        again = self.start_writer(capacity=None)
        again.settle_now().result(10)
        assert self.charged() == [57, 31, 57, 31]
        assert (again.stats()["replays"], again.stats()["duplicates"]) == (1, 10)

    def test_a_commit_whose_answer_was_lost(self) -> None:
        """The database has committed, the writer hears of a failure: it reads everything anew and replays."""
        writer = self.start_writer(period_s=60)
        worker = self.open_journal()
        lost = 0

        def lose(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if sql.startswith("INSERT") and JournalPosition._meta.db_table in sql:
                transaction.on_commit(answer_is_lost, using=settings.HOOSH_LEDGER_DB)
            return execute(sql, params, many, context)

        def answer_is_lost() -> None:
            nonlocal lost
            lost += 1
            raise OperationalError("the server closed the connection")

        writer.submit(lambda connection: connection.execute_wrappers.append(lose)).result(10)
        for number in range(1, 4):
            for _ in range(5):
                worker.complete(usage_record(new_rid(), 5, cost_pico=3, draws=self.DRAWS))
            with pytest.raises(OperationalError):
                writer.settle_now().result(10)
            assert lost == number
            writer.settle_now().result(10)
            assert self.charged() == [25 * number, 15 * number, 25 * number, 15 * number]
        assert writer.stats()["outages"] == 3

    def test_two_ledgers_that_settle_the_same_journal(self) -> None:
        """What one control process settled while it was thought dead, the next one finds done."""
        records = [usage_record(new_rid(), 5, cost_pico=3, draws=self.DRAWS) for _ in range(20)]
        first, second = (Ledger(connections[settings.HOOSH_LEDGER_DB]) for _ in range(2))
        assert first.settle("w", records[:10], {}, (1, 100)) == 10
        assert second.settle("w", records, {}, (1, 200)) == 10
        assert first.settle("w", records[5:], {}, (1, 200)) == 0
        assert self.charged() == [100, 60, 100, 60]


class AlertTests(LedgerCase):
    def use(self, tokens: int) -> None:
        self.worker.complete(usage_record(new_rid(), tokens, draws=(tokens_of(POOL, tokens),)))
        self.writer.settle_now().result(10)

    def setUp(self) -> None:
        super().setUp()
        self.writer = self.start_writer(period_s=60)
        self.worker = self.open_journal()

    def alerts(self) -> list[tuple[int, int, int]]:
        return list(PoolAlert.objects.order_by("percent").values_list("percent", "committed", "capacity"))

    def test_each_share_is_alerted_once(self) -> None:
        self.sync(self.writer, spec(capacity=1_000, alerts="50,80,100"))
        self.use(499)
        assert self.alerts() == []
        with self.assertLogs("hoosh.ledger", logging.WARNING) as logged:
            self.use(1)
        event = next(record for record in logged.records if record.msg == "pool_alert")
        assert (event.pool_id, event.percent, event.committed, event.capacity) == (POOL, 50, 500, 1_000)  # type: ignore[attr-defined]
        self.use(100)
        self.use(500)
        assert self.alerts() == [(50, 500, 1_000), (80, 1_100, 1_000), (100, 1_100, 1_000)]
        assert self.writer.stats()["alerts"] == 3
        self.sync(self.writer, spec(capacity=5_000, alerts="50,80,100"))
        self.use(2_000)
        assert len(self.alerts()) == 3, "once per window"

    def test_a_changed_limit_or_list_may_alert_as_well(self) -> None:
        self.sync(self.writer, spec(capacity=1_000, alerts="80"))
        self.use(500)
        self.sync(self.writer, spec(capacity=600, alerts="80"))
        assert self.alerts() == [(80, 500, 600)]
        self.sync(self.writer, spec(capacity=600, alerts="10,80"))
        assert self.alerts() == [(10, 500, 600), (80, 500, 600)]

    def test_without_a_limit_there_are_no_shares(self) -> None:
        self.sync(self.writer, spec(capacity=None, alerts="1"))
        self.use(500)
        assert self.alerts() == []

    def test_nothing_is_alerted_of_a_batch_that_was_taken_back(self) -> None:
        self.sync(self.writer, spec(capacity=1_000, alerts="50"))
        record = usage_record(new_rid(), 600, draws=(tokens_of(POOL),))
        known = usage_record(new_rid(), 1, draws=(tokens_of(POOL),))
        self.worker.complete(known)
        self.writer.settle_now().result(10)
        self.worker.complete(known)
        self.worker.complete(record)
        with self.assertLogs("hoosh.ledger", logging.WARNING) as logged:
            self.writer.settle_now().result(10)
        assert [entry.msg for entry in logged.records].count("pool_alert") == 1
        assert self.alerts() == [(50, 601, 1_000)]

    def test_what_passes_a_limit_again_and_again_is_logged_once_in_a_while(self) -> None:
        self.sync(self.writer, spec(capacity=100), spec(MONEY, capacity=1))
        with self.assertLogs("hoosh.ledger", logging.INFO) as logged:
            for _ in range(5):
                self.worker.complete(
                    usage_record(new_rid(), 300, draws=(tokens_of(POOL, 1), money_of(POOL)), cost_pico=50)
                )
                self.writer.settle_now().result(10)
        events = [(record.msg, record.levelname) for record in logged.records]
        assert sorted(events) == [("lease_overrun", "ERROR"), ("limit_passed", "INFO")]
        assert self.writer.stats()["overrun_tokens"] == 1_500


def test_old_records_draw_on_the_tokens_of_one_pool() -> None:
    record = usage_record(new_rid(), 5, held=9)
    assert draws_of(record) == (Draw(POOL, Unit.TOKENS, 0, 9),)
