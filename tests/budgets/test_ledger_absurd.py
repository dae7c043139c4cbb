"""Amounts nobody can mean and rows changed by hand: they stop neither the worker's books nor anybody else's."""

from __future__ import annotations

import msgspec
import pytest
from django.db import connections

from budgets import transfers
from budgets.models import Lease, PoolWindow, Usage, UsageRollup
from budgets.rollups import Rollups
from tests.budgets.ledger_case import MONEY, TOKENS, USD, LedgerCase, spec
from tests.budgets.records import POOL, money_of, new_rid, tokens_of, usage_record

pytestmark = pytest.mark.database

OTHER = (POOL + 1, 0, 0)


def refuse_changes(vendor: str, row: int) -> list[str]:
    """Statements after which no change of a purse's row is accepted."""
    table = PoolWindow._meta.db_table
    if vendor == "sqlite":
        refuse = "BEGIN SELECT RAISE(ABORT, 'refused'); END"
        return [f"CREATE TRIGGER refuse_changes BEFORE UPDATE ON {table} WHEN NEW.id = {row} {refuse}"]
    return [
        "CREATE FUNCTION refuse_changes() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = 'check_violation'; END $$",
        f"CREATE TRIGGER refuse_changes BEFORE UPDATE ON {table} FOR EACH ROW WHEN (NEW.id = {row}) "
        "EXECUTE FUNCTION refuse_changes()",
    ]


class AbsurdTests(LedgerCase):
    def test_a_mistyped_price_on_a_money_lease(self) -> None:
        """Each call costs more than 9 million million USD; several in one batch, and batch after batch."""
        writer = self.start_writer(period_s=60)
        self.sync(writer, spec(MONEY, capacity=4_000_000 * USD))
        worker = self.open_journal()
        total = self.ask(writer, need=1, key=MONEY).next()[0]
        draws = (tokens_of(POOL, 10), money_of(POOL, 1))
        for count in range(1, 4):
            for _ in range(12):
                worker.complete(usage_record(new_rid(), 5, cost_pico=9 * 10**18, draws=draws))
            writer.settle_now().result(10)
            assert self.figures()[0] == count * 12 * 5, "its tokens are charged as ever"
        assert writer.stats()["errors"] == 0
        assert self.figures(MONEY) == (transfers.CAPACITY_LIMIT, 0, transfers.CAPACITY_LIMIT - 4_000_000 * USD)
        lease = Lease.objects.get(window__unit=1)
        assert (type(lease.granted), lease.granted) == (int, transfers.CAPACITY_LIMIT)
        answer = self.ask(writer, seen=total, need=1, key=MONEY).next()
        assert answer[0] == transfers.CAPACITY_LIMIT, "it learns of its debt"
        worker.close()
        writer.settle_now().result(10)
        assert not Lease.objects.exists()

    def test_absurd_counts_are_cut_so_that_sums_over_many_rows_stay_in_range(self) -> None:
        writer = self.start_writer(capacity=None, period_s=60)
        worker = self.open_journal()
        for _ in range(20):
            record = usage_record(new_rid(), 9 * 10**18, draws=(tokens_of(POOL),))
            worker.complete(msgspec.structs.replace(record, input_tokens=9 * 10**18, output_tokens=9 * 10**18))
        writer.settle_now().result(10)
        writer.submit(Rollups().run).result(10)
        row = UsageRollup.objects.get()
        assert (row.requests, row.input_tokens, row.output_tokens) == (20, 20 * 10**15, 20 * 10**15)
        assert writer.stats()["errors"] == 0

    def test_a_purse_that_cannot_be_charged_leaves_the_others_alone(self) -> None:
        """The database refuses every change of one row."""
        writer = self.start_writer(period_s=60)
        self.sync(writer, spec(OTHER, capacity=10_000))
        workers = [self.open_journal(owner) for owner in ("w", "v")]
        total = self.ask(writer, "w", need=500).next()[0]
        self.ask(writer, "w", need=500, key=OTHER).next()
        connection = connections[PoolWindow.objects.db]
        with connection.cursor() as cursor:
            for statement in refuse_changes(connection.vendor, self.window().pk):
                cursor.execute(statement)
        self.addCleanup(self.allow_changes)
        for worker in workers:
            worker.complete(usage_record(new_rid(), 100, draws=(tokens_of(POOL, 100), tokens_of(OTHER[0], 100))))
        writer.settle_now().result(10)
        assert Usage.objects.count() == 2
        assert (self.window(OTHER).committed, self.window().committed) == (200, 0)
        lease = Lease.objects.get(owner="w", window=self.window())
        assert (lease.state, lease.remaining) == (Lease.State.QUARANTINED, total)
        for worker in workers:
            worker.close()
        writer.settle_now().result(10)
        assert self.figures(OTHER) == (200, 0, 0), "both are buried"
        assert Lease.objects.get() == lease, "an operator decides about it"
        assert list(self.directory.glob("?.*")) == []

    def allow_changes(self) -> None:
        connection = connections[PoolWindow.objects.db]
        with connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                cursor.execute("DROP FUNCTION refuse_changes() CASCADE")
            else:
                cursor.execute("DROP TRIGGER refuse_changes")

    def test_a_purse_that_says_that_less_is_leased_than_its_leases(self) -> None:
        writer = self.start_writer(period_s=60)
        self.sync(writer, spec(OTHER, capacity=10_000))
        workers = [self.open_journal(owner) for owner in ("w", "v")]
        for owner in ("w", "v"):
            for key in (TOKENS, OTHER):
                self.ask(writer, owner, need=500, key=key).next()
        PoolWindow.objects.filter(pool_id=POOL).update(leased=3)
        for worker in workers:
            worker.complete(usage_record(new_rid(), 100, draws=(tokens_of(POOL, 100), tokens_of(OTHER[0], 100))))
        writer.settle_now().result(10)
        assert (self.window().committed, self.window(OTHER).committed) == (200, 200)
        writer.give_back("w", *TOKENS, 50)
        assert self.ask(writer, "v", seen=10**6, need=1, key=TOKENS).next()
        for worker in workers:
            worker.close()
        writer.settle_now().result(10)
        assert writer.stats()["errors"] == writer.stats()["outages"] == 0
        assert self.figures(OTHER) == self.figures() == (200, 0, 0)
