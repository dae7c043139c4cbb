"""Windows of pools in the ledger: made, changed, followed by the next, whose start gets what was left."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
from concurrent.futures import wait
from pathlib import Path

import pytest
from django.conf import settings
from django.db import DatabaseError, connections, transaction
from django.test import TransactionTestCase
from django.test.utils import CaptureQueriesContext

from budgets import transfers
from budgets.grants import Grants, Return
from budgets.ledger import Ledger
from budgets.ledger_books import Key, opened
from budgets.ledger_sql import ROLLUP_LOCK
from budgets.models import Lease, LedgerEntry, PoolAlert, PoolWindow
from budgets.records import Draw, Unit
from budgets.settle import Writer
from budgets.stats import WriterStats
from tests.budgets.ledger_case import MONEY, TOKENS, LedgerCase, spec
from tests.budgets.records import POOL, new_rid, tokens_of, usage_record

pytestmark = pytest.mark.database

FIRST: Key = (POOL, Unit.TOKENS.value, 1_000)
SECOND: Key = (POOL, Unit.TOKENS.value, 2_000)
THIRD: Key = (POOL, Unit.TOKENS.value, 3_000)


class SyncTests(LedgerCase):
    def test_windows_are_made_and_changed_together(self) -> None:
        writer = self.start_writer(capacity=None)
        self.sync(writer, spec(FIRST, capacity=100, end=2_000, alerts="80"), spec((POOL, 1, 1_000), capacity=None))
        rows = PoolWindow.objects.order_by("unit").values_list("capacity", "window_end", "alerts", "adjusted")
        assert list(rows) == [(100, 2_000, "80", 0), (None, 0, "", 0)]
        self.sync(writer, spec(FIRST, capacity=None, end=2_500), spec((POOL, 1, 1_000), capacity=7, alerts="1"))
        assert list(rows.all()) == [(None, 2_500, "", 0), (7, 0, "1", 0)]
        assert not PoolAlert.objects.exists()

    def test_all_or_nothing(self) -> None:
        writer = self.start_writer(capacity=None)
        self.sync(writer, spec(TOKENS, capacity=100))
        with pytest.raises(DatabaseError):
            self.sync(writer, spec(TOKENS, capacity=50), spec(MONEY, capacity=5), spec(FIRST, capacity=-1))
        assert list(PoolWindow.objects.values_list("capacity", flat=True)) == [100]
        self.sync(writer, spec(TOKENS, capacity=60))
        assert self.window().capacity == 60

    def test_nothing_is_leased_where_there_is_no_limit(self) -> None:
        writer = self.start_writer(capacity=None)
        self.sync(writer, spec(TOKENS, capacity=None))
        answers = self.ask(writer, need=10)
        assert answers.next() == (0, False, False, 0)
        self.sync(writer, spec(TOKENS, capacity=1_000))
        assert answers.next()[0] >= 10

    def test_a_limit_that_is_taken_away_leaves_leases_alone(self) -> None:
        writer = self.start_writer(capacity=1_000)
        worker = self.open_journal()
        total = self.ask(writer, need=500).next()[0]
        self.sync(writer, spec(TOKENS, capacity=None))
        worker.complete(usage_record(new_rid(), 200, draws=(tokens_of(POOL, 500),)))
        writer.settle_now().result(10)
        assert self.figures() == (200, total - 200, 0)
        self.sync(writer, spec(TOKENS, capacity=100))
        assert self.figures() == (200, total - 200, total - 100)

    def test_what_was_transferred_stays_when_the_limit_is_changed(self) -> None:
        writer = self.start_writer(capacity=1_000)
        self.sync(writer, spec((8, 0, 0), capacity=10))
        ledger_alias = settings.HOOSH_LEDGER_DB
        with opened(connections[ledger_alias]) as books:
            purses = books.purses([TOKENS, (8, 0, 0)])
            transfers.move_free(purses[TOKENS], purses[8, 0, 0], 300)
        self.sync(writer, spec(TOKENS, capacity=2_000), spec((8, 0, 0), capacity=10))
        assert (self.window().capacity, self.window((8, 0, 0)).capacity) == (1_700, 310)
        self.sync(writer, spec(TOKENS, capacity=100))
        assert self.window().capacity == 0

    def test_many_windows_at_once(self) -> None:
        writer = self.start_writer(capacity=None)
        specs = [spec((pool, unit, 0), capacity=pool) for pool in range(1, 1_001) for unit in (0, 1)]
        self.sync(writer, *specs)
        self.sync(writer, *specs)
        assert PoolWindow.objects.filter(capacity__gt=0).count() == 2_000


class CarryTests(LedgerCase):
    def next_window(self, writer: Writer, key: Key = SECOND, *, after: Key = FIRST, capacity: int = 1_000) -> None:
        self.sync(writer, spec(key, capacity=capacity, carry_from=after[2]))

    def capacities(self, *keys: Key) -> list[int | None]:
        return [self.window(key).capacity for key in keys]

    def test_what_is_free_is_moved_to_the_next_window(self) -> None:
        writer = self.start_writer(capacity=None)
        self.sync(writer, spec(FIRST, capacity=1_000))
        self.open_journal().complete(usage_record(new_rid(), 300, draws=(tokens_of(POOL, start=1_000),)))
        writer.settle_now().result(10)
        for _ in range(3):
            self.next_window(writer)
        assert self.capacities(FIRST, SECOND) == [300, 1_700]
        entries = LedgerEntry.objects.order_by("window_start").values_list("kind", "window_start", "amount", "order_id")
        assert list(entries) == [("carry", 1_000, -700, None), ("carry", 2_000, 700, None)]
        self.next_window(writer, capacity=500)
        assert self.capacities(FIRST, SECOND) == [300, 1_200], "the rest stays on top of a changed limit"

    def test_what_comes_back_later_is_carried_later(self) -> None:
        writer = self.start_writer(capacity=None)
        self.sync(writer, spec(FIRST, capacity=1_000))
        total = self.ask(writer, need=600, key=FIRST).next()[0]
        self.next_window(writer)
        assert self.capacities(FIRST, SECOND) == [total, 2_000 - total]
        self.ask(writer, "idle", need=300, key=SECOND).next()
        left = transfers.free_amount(self.window(SECOND))
        hungry = self.ask(writer, "v", need=left + 100, key=SECOND)
        assert hungry.next()[0] == 0
        writer.give_back("w", *FIRST, 400)
        assert hungry.next()[0] >= left + 100
        assert self.capacities(FIRST, SECOND) == [total - 400, 2_400 - total]

    def test_what_a_dead_worker_left_is_carried_as_well(self) -> None:
        writer = self.start_writer(capacity=None)
        worker = self.open_journal()
        self.sync(writer, spec(FIRST, capacity=1_000))
        self.ask(writer, need=600, key=FIRST).next()
        self.next_window(writer)
        worker.complete(usage_record(new_rid(), 100, draws=(tokens_of(POOL, 600, start=1_000),)))
        worker.close()
        self.eventually(lambda: not Lease.objects.exists())
        self.eventually(lambda: self.capacities(FIRST, SECOND) == [100, 1_900])

    def test_what_becomes_free_by_other_ways_is_found(self) -> None:
        writer = self.start_writer(capacity=None)
        self.sync(writer, spec(FIRST, capacity=1_000))
        self.ask(writer, need=1_000, key=FIRST).next()
        self.next_window(writer)
        assert self.capacities(FIRST, SECOND) == [1_000, 1_000]

        def end_lease(connection: object) -> None:
            with opened(connections[settings.HOOSH_LEDGER_DB]) as books:
                books.purse(FIRST)
                for lease in books.read_leases("w"):
                    books.end_lease(lease, spent=False)

        writer.submit(end_lease).result(10)
        self.eventually(lambda: self.capacities(FIRST, SECOND) == [0, 2_000])

    def test_a_rest_of_a_rest_goes_all_the_way(self) -> None:
        writer = self.start_writer(capacity=None)
        self.sync(writer, spec(FIRST, capacity=1_000))
        self.ask(writer, need=1_000, key=FIRST).next()
        self.next_window(writer)
        self.ask(writer, need=1_000, key=SECOND).next()
        self.next_window(writer, THIRD, after=SECOND)
        writer.give_back("w", *FIRST, 900)
        self.eventually(lambda: self.capacities(FIRST, SECOND, THIRD) == [100, 1_000, 1_900])
        writer.give_back("w", *SECOND, 1_000)
        self.eventually(lambda: self.capacities(FIRST, SECOND, THIRD) == [100, 0, 2_900])

    def test_a_new_control_process_carries_rests_of_windows_before_the_last_all_the_way(self) -> None:
        """Their owner lives on: what it returns after the restart came from two and three windows back."""
        fourth: Key = (POOL, Unit.TOKENS.value, 4_000)
        writer = self.start_writer(capacity=None)
        self.sync(writer, spec(FIRST, capacity=1_000))
        self.ask(writer, need=1_000, key=FIRST).next()
        self.next_window(writer)
        self.ask(writer, need=1_000, key=SECOND).next()
        self.next_window(writer, THIRD, after=SECOND)
        self.next_window(writer, fourth, after=THIRD)
        assert self.capacities(FIRST, SECOND, THIRD, fourth) == [1_000, 1_000, 0, 2_000]
        writer.stop()
        again = self.start_writer(capacity=None)
        self.next_window(again, fourth, after=THIRD)
        again.give_back("w", *FIRST, 900)
        self.eventually(lambda: self.capacities(FIRST, SECOND, THIRD, fourth) == [100, 1_000, 0, 2_900])
        again.give_back("w", *SECOND, 400)
        self.eventually(lambda: self.capacities(FIRST, SECOND, THIRD, fourth) == [100, 600, 0, 3_300])

    def test_a_rest_that_came_back_and_was_not_carried_on_when_control_died_is_carried_by_the_next(self) -> None:
        writer = self.start_writer(capacity=None)
        self.sync(writer, spec(FIRST, capacity=10_000))
        self.ask(writer, need=700, key=FIRST).next()
        leased = self.window(FIRST).leased
        self.next_window(writer)
        self.next_window(writer, THIRD, after=SECOND)
        writer.stop()
        ledger = Ledger(connections[settings.HOOSH_LEDGER_DB])
        with ledger.leasing([("w", FIRST)]) as leasing:
            assert leasing.give_back("w", FIRST, leased) == leased
        again = self.start_writer(capacity=None)
        self.next_window(again, THIRD, after=SECOND)
        self.eventually(lambda: self.capacities(FIRST, SECOND, THIRD) == [0, 0, 12_000])

    def test_a_lease_that_stays_quarantined_costs_no_more_with_every_window(self) -> None:
        writer = self.start_writer(capacity=None, period_s=60)
        self.sync(writer, spec((POOL, 0, 1_000), capacity=1_000))
        self.ask(writer, "bad", need=1_000, key=(POOL, 0, 1_000)).next()
        Lease.objects.update(state=Lease.State.QUARANTINED)
        for start in range(2_000, 30_000, 1_000):
            self.sync(writer, spec((POOL, 0, start), capacity=10, carry_from=start - 1_000))
            writer.run_jobs().result(10)
        assert len(writer._grants._carried) <= 2
        assert self.window((POOL, 0, 29_000)).capacity == 280
        Lease.objects.all().delete()
        PoolWindow.objects.filter(window_start=1_000).update(leased=0)
        writer.run_jobs().result(10)
        assert self.window((POOL, 0, 29_000)).capacity == 1_280, "what was in it goes all the way"

    def test_many_returns_at_a_boundary_are_carried_in_few_statements(self) -> None:
        writer = self.start_writer(capacity=None, period_s=60)
        pools = range(1, 61)
        self.sync(writer, *(spec((pool, unit, 1_000), capacity=10**6) for pool in pools for unit in (0, 1)))
        for pool in pools:
            for unit in (0, 1):
                answer = self.ask(writer, key=(pool, unit, 1_000))
        answer.next()
        specs = [spec((pool, unit, 2_000), capacity=10**6, carry_from=1_000) for pool in pools for unit in (0, 1)]
        connection = connections[PoolWindow.objects.db]
        ledger, grants = Ledger(connection), Grants(None, WriterStats())
        with CaptureQueriesContext(connection) as asked:
            grants.sync_windows(ledger, specs)
            grants.serve(ledger, [Return("w", (pool, unit, 1_000), 10**6) for pool in pools for unit in (0, 1)])
        assert len(asked) < 40, "however many purses they are"
        assert {row.capacity for row in PoolWindow.objects.filter(window_start=2_000)} == {2 * 10**6}

    def test_an_overrun_is_not_carried_and_no_limit_carries_nothing(self) -> None:
        writer = self.start_writer(capacity=None)
        self.sync(writer, spec(FIRST, capacity=100), spec((POOL, 1, 1_000), capacity=None))
        self.open_journal().complete(usage_record(new_rid(), 300, draws=(tokens_of(POOL, start=1_000),)))
        writer.settle_now().result(10)
        self.next_window(writer)
        self.sync(writer, spec((POOL, 1, 2_000), capacity=50, carry_from=1_000))
        assert self.capacities(FIRST, SECOND, (POOL, 1, 1_000), (POOL, 1, 2_000)) == [100, 1_000, None, 50]
        assert not LedgerEntry.objects.exists()

    def test_a_window_begun_with_carrying_over_takes_rests_also_after_it_is_switched_off(self) -> None:
        writer = self.start_writer(capacity=None)
        self.sync(writer, spec(FIRST, capacity=1_000))
        self.ask(writer, need=1_000, key=FIRST).next()
        self.next_window(writer)
        self.sync(writer, spec(SECOND, capacity=1_000))
        writer.give_back("w", *FIRST, 900)
        self.eventually(lambda: self.capacities(FIRST, SECOND) == [100, 1_900])
        self.sync(writer, spec(THIRD, capacity=1_000))
        writer.run_jobs().result(10)
        assert self.capacities(FIRST, SECOND, THIRD) == [100, 1_900, 1_000]

    def test_a_window_begun_without_carrying_over_takes_nothing_when_it_is_switched_on(self) -> None:
        """Neither from the window before nor from those before that, whatever comes back there and who restarts."""
        fourth: Key = (POOL, Unit.TOKENS.value, 4_000)
        writer = self.start_writer(capacity=None)
        self.sync(writer, spec(FIRST, capacity=1_000))
        self.ask(writer, need=1_000, key=FIRST).next()
        self.next_window(writer)  # carries over
        self.sync(writer, spec(THIRD, capacity=1_000))  # does not
        writer.stop()
        writer = self.start_writer(capacity=None)
        self.next_window(writer, THIRD, after=SECOND)  # switched on meanwhile
        writer.give_back("w", *FIRST, 900)
        writer.run_jobs().result(10)
        assert self.capacities(SECOND, THIRD) == [1_000, 1_000]
        self.next_window(writer, fourth, after=THIRD)
        writer.run_jobs().result(10)
        assert self.capacities(FIRST, SECOND, THIRD, fourth) == [1_000, 1_000, 0, 2_000]
        assert set(PoolWindow.objects.values_list("carry_from", flat=True)) == {-1, 1_000, 3_000}

    def test_all_of_a_window_that_came_back_while_control_was_dying_is_carried_by_the_next(self) -> None:
        """At the boundary nothing was free, so nothing was carried yet that would tell of it."""
        writer = self.start_writer(capacity=None)
        self.sync(writer, spec(FIRST, capacity=1_000))
        self.ask(writer, need=1_000, key=FIRST).next()
        self.next_window(writer)
        self.next_window(writer, THIRD, after=SECOND)
        writer.stop()
        ledger = Ledger(connections[settings.HOOSH_LEDGER_DB])
        with ledger.leasing([("w", FIRST)]) as leasing:
            leasing.give_back("w", FIRST, 1_000)
        again = self.start_writer(capacity=None)
        self.next_window(again, THIRD, after=SECOND)
        self.eventually(lambda: self.capacities(FIRST, SECOND, THIRD) == [0, 0, 3_000])

    def test_a_window_that_usage_came_to_before_control_opened_it_is_opened_like_any_other(self) -> None:
        writer = self.start_writer(capacity=None)
        self.sync(writer, spec(FIRST, capacity=1_000))
        self.open_journal().complete(usage_record(new_rid(), 30, draws=(tokens_of(POOL, start=2_000),)))
        writer.settle_now().result(10)
        assert self.window(SECOND).carry_from is None
        self.next_window(writer)
        assert (self.capacities(FIRST, SECOND), self.window(SECOND).carry_from) == ([0, 2_000], 1_000)

    def test_a_window_that_never_was_leaves_nothing(self) -> None:
        writer = self.start_writer(capacity=None)
        self.next_window(writer)
        assert self.capacities(SECOND) == [1_000]
        assert writer.stats()["errors"] == 0


class TwoHostsTests(TransactionTestCase):
    """Two control processes on one database. On SQLite there is one host: its writers take turns."""

    databases = "__all__"

    def setUp(self) -> None:
        if connections[settings.HOOSH_LEDGER_DB].vendor != "postgresql":
            self.skipTest("only a database server is shared by hosts")

    def start_writer(self, *, period_s: float) -> Writer:
        """The writer of one more host."""
        directory = Path(tempfile.mkdtemp(prefix="hj-"))
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        writer = Writer(directory, period_s=period_s)
        writer.start()
        self.addCleanup(writer.stop)
        assert writer.ready.wait(10)
        return writer

    def test_writers_that_meet_on_the_same_purses_neither_wait_in_a_circle_nor_lose_anything(self) -> None:
        keys = [(pool, unit, start) for pool in range(1, 5) for unit in (0, 1) for start in (0, 1_000)]
        specs = [spec(key, capacity=10**6, alerts="1,2,3", carry_from=0 if key[2] else None) for key in keys]
        writers = []
        for _ in range(2):
            writers.append(self.start_writer(period_s=0.01))
        chance, futures, charged = random.Random(5), [], dict.fromkeys(keys, 0)
        for number in range(60):
            for writer, owner in zip(writers, ("a", "b"), strict=True):
                chance.shuffle(specs)
                futures.append(writer.sync_windows(specs[: chance.randrange(1, len(specs))]))
                records = []
                for _ in range(5):
                    drawn = chance.sample(keys, 6)
                    records.append(
                        usage_record(
                            *(new_rid(), 3),
                            cost_pico=2,
                            draws=tuple(Draw(*key, chance.choice((-1, 10))) for key in drawn),
                        )
                    )
                    for key in drawn:
                        charged[key] += 2 if key[1] else 3
                shapes = {bytes([chance.randrange(9)] * 16): b"{}" for _ in range(4)}
                futures.append(
                    writer.submit(
                        lambda connection, owner=owner, records=records, shapes=shapes, number=number: Ledger(
                            connection
                        ).settle(owner, records, shapes, (1, number))
                    )
                )
                for key in chance.sample(keys, 8):
                    writer.grant(owner, *key, 0, 10, lambda *answer: None, 5)
                    writer.give_back(owner, *chance.choice(keys), chance.randrange(1_000))
                if number % 10 == 9:
                    futures.append(writer.submit(lambda connection, owner=owner: Ledger(connection).end_owner(owner)))
        wait(futures, 60)
        for future in futures:
            future.result(0)
        for writer in writers:
            assert writer.stats()["outages"] == writer.stats()["errors"] == 0
        for key, amount in charged.items():
            row = PoolWindow.objects.get(pool_id=key[0], unit=key[1], window_start=key[2])
            assert row.committed == amount
            assert row.leased == sum(Lease.objects.filter(window=row).values_list("remaining", flat=True))
        total = sum(PoolWindow.objects.values_list("capacity", flat=True))
        assert total == 10**6 * PoolWindow.objects.filter(window_end=0, alerts="1,2,3").count()

    def test_usage_is_not_inserted_while_it_is_summed(self) -> None:
        writer = self.start_writer(period_s=60)
        record = usage_record(new_rid(), 3, draws=(tokens_of(1),))
        with transaction.atomic(using=settings.HOOSH_LEDGER_DB):
            with connections[settings.HOOSH_LEDGER_DB].cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", (ROLLUP_LOCK,))
            future = writer.submit(lambda connection: Ledger(connection).settle("w", [record], {}, (1, 1)))
            assert wait([future], 0.3).not_done
        assert future.result(10) == 1

    def test_a_window_made_by_two_hosts_at_once_is_one(self) -> None:
        ledgers = []
        barrier = threading.Barrier(2)

        def sync() -> None:
            connection = connections[settings.HOOSH_LEDGER_DB]
            try:
                for start in range(1, 30):
                    barrier.wait(10)
                    ledgers.append(Ledger(connection).sync_windows([spec((1, 0, start), capacity=5)]))
            finally:
                connection.close()

        threads = [threading.Thread(target=sync) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(ledgers) == 58
        assert PoolWindow.objects.filter(capacity=5).count() == 29
