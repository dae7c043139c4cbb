"""Operators' orders: placed with their audit entry, carried out exactly once, refused with a reason."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import OperationalError, connections
from django.test import TestCase, TransactionTestCase

from audit.models import OutboxEntry
from budgets import order_work, rollups, transfers
from budgets.ledger_books import opened
from budgets.models import (
    Lease,
    LedgerEntry,
    LedgerOrder,
    LedgerState,
    PoolAlert,
    PoolWindow,
    Usage,
    UsageRollup,
)
from budgets.orders import Orders, place, wait
from budgets.transfers import CAPACITY_LIMIT
from tests import environment
from tests.budgets.ledger_rows import DAY_S, add_usage, add_window, ledger_connection

pytestmark = pytest.mark.database

CORRECTION = {"pool_id": 1, "unit": 0, "window_start": 0, "amount": -100}
TRANSFER = {"from_pool": 1, "to_pool": 2, "unit": 0, "amount": 300}


class PlaceTests(TestCase):
    databases = "__all__"

    def test_an_order_is_recorded_with_who_and_why(self) -> None:
        order = place("correction", CORRECTION, actor="ann", note="double bill")
        assert (order.state, order.payload) == ("open", CORRECTION)
        entry = OutboxEntry.objects.get()
        assert (entry.action, entry.actor, entry.target) == ("ledger.correction", "ann", f"order {order.pk}")
        assert entry.data == {"order": order.pk, **CORRECTION, "note": "double bill"}

    def test_what_makes_no_sense_is_refused_and_leaves_nothing(self) -> None:
        bad: list[tuple[str, dict[str, Any]]] = [
            ("dance", {}),
            ("correction", {}),
            ("correction", {**CORRECTION, "amount": 0}),
            ("correction", {**CORRECTION, "amount": 1.5}),
            ("correction", {**CORRECTION, "amount": True}),
            ("correction", {**CORRECTION, "amount": 2**63}),
            ("correction", {**CORRECTION, "unit": 2}),
            ("correction", {**CORRECTION, "colour": 1}),
            ("transfer", {**TRANSFER, "amount": -1}),
            ("transfer", {**TRANSFER, "to_pool": 1}),
            ("write_off", {}),
            ("release", {"owner": "../x"}),
            ("replay", {"owner": 5}),
            ("period", {"days": 1}),
            ("prune", {"days": 0}),
            ("prune", {}),
        ]
        for kind, payload in bad:
            with self.subTest(kind=kind, payload=payload), pytest.raises(ValidationError):
                place(kind, payload, actor="ann")
        with pytest.raises(ValidationError):
            place("period", {}, actor="ann", note="x" * 501)
        assert not LedgerOrder.objects.exists()
        assert not OutboxEntry.objects.exists()


class OrderCase(TransactionTestCase):
    databases = "__all__"

    def setUp(self) -> None:
        self.journals = environment.session_dir() / f"orders-{self.id()[-40:]}"
        self.journals.mkdir(exist_ok=True)
        self.job = Orders(self.journals)
        self.addCleanup(self.job.finish)

    def carry_out(self, kind: str, payload: dict[str, Any], *, most: int = 50) -> LedgerOrder:
        return self.work(place(kind, payload, actor="ann", note="why"), most=most)

    def work(self, order: LedgerOrder, *, most: int = 50) -> LedgerOrder:
        for _ in range(most):
            self.job.run(ledger_connection())
            self.job.finish()
            order.refresh_from_db()
            if order.state != "open":
                return order
        raise AssertionError("the order stayed open")

    def repeat(self, order: LedgerOrder) -> LedgerOrder:
        """As after a death of control between the ledger's transaction and the mark."""
        LedgerOrder.objects.filter(pk=order.pk).update(state="open", result="", done_at=None)
        return self.work(order)

    def purse(self, pool_id: int = 1, **names: Any) -> PoolWindow:
        return PoolWindow.objects.get(pool_id=pool_id, **names)


class CorrectionTests(OrderCase):
    def test_a_correction_moves_what_is_charged_once_and_is_entered(self) -> None:
        add_window(1, committed=400)
        order = self.carry_out("correction", CORRECTION)
        assert (order.state, order.result) == ("done", "-100 tokens charged.")
        assert order.done_at is not None
        assert self.repeat(order).state == "done"
        assert self.purse().committed == 300
        entry = LedgerEntry.objects.get()
        assert (entry.kind, entry.order_id, entry.amount) == ("correction", order.pk, -100)
        assert (entry.actor, entry.note) == ("ann", "why")

    def test_a_number_that_is_given_out_again_is_another_order(self) -> None:
        """The site's database was restored from a backup that is older than the order."""
        add_window(1, committed=400)
        first = self.carry_out("correction", CORRECTION)
        number = first.pk
        first.delete()
        payload = {**CORRECTION, "amount": -50}
        again = LedgerOrder.objects.create(pk=number, kind="correction", payload=payload, actor="ben")
        assert self.work(again).result == "-50 tokens charged."
        assert self.purse().committed == 250
        assert self.repeat(again).state == "done"
        assert self.purse().committed == 250
        assert LedgerEntry.objects.filter(order_id=number).count() == 2

    def test_more_than_was_charged_cannot_be_given_back(self) -> None:
        add_window(1, committed=99)
        order = self.carry_out("correction", CORRECTION)
        assert (order.state, order.result) == ("refused", "Only 99 tokens were charged: more cannot be given back.")
        assert self.purse().committed == 99
        assert not LedgerEntry.objects.exists()

    def test_what_passes_the_limit_is_overrun(self) -> None:
        add_window(1, capacity=1_000, committed=900)
        self.carry_out("correction", {**CORRECTION, "amount": 250})
        assert (self.purse().committed, self.purse().overrun) == (1_150, 150)
        self.carry_out("correction", {**CORRECTION, "amount": -200})
        assert (self.purse().committed, self.purse().overrun) == (950, 0)

    def test_a_correction_raises_the_alerts_it_reaches(self) -> None:
        add_window(1, capacity=1_000, committed=100, alerts="50,80,100")
        self.carry_out("correction", {**CORRECTION, "amount": 700})
        assert sorted(PoolAlert.objects.values_list("percent", flat=True)) == [50, 80]

    def test_money_and_unlimited_purses_are_corrected_likewise(self) -> None:
        add_window(1, unit=1, capacity=None, committed=10**12)
        order = self.carry_out("correction", {**CORRECTION, "unit": 1, "amount": -(10**12) // 2})
        assert order.result == "-$0.50 charged."
        assert self.purse().committed == 10**12 // 2

    def test_no_such_window_and_sums_beyond_the_column_are_refused(self) -> None:
        assert self.carry_out("correction", CORRECTION).result == "The pool has no such window."
        add_window(1, capacity=None, committed=CAPACITY_LIMIT - 1)
        order = self.carry_out("correction", {**CORRECTION, "amount": 2})
        assert order.state == "refused"
        assert self.purse().committed == CAPACITY_LIMIT - 1


class TransferTests(OrderCase):
    def test_a_transfer_keeps_the_total_and_happens_once(self) -> None:
        add_window(1, capacity=1_000, committed=200)
        add_window(2, capacity=500, window_start=50, window_end=2**40)
        order = self.carry_out("transfer", TRANSFER)
        assert (order.state, order.result) == ("done", "300 tokens moved.")
        self.repeat(order)
        assert (self.purse(1).capacity, self.purse(1).adjusted) == (700, -300)
        assert (self.purse(2).capacity, self.purse(2).adjusted) == (800, 300)
        entries = LedgerEntry.objects.order_by("amount").values_list("kind", "pool_id", "window_start", "amount")
        assert list(entries) == [("transfer", 1, 0, -300), ("transfer", 2, 50, 300)]

    def test_only_what_is_free_can_go(self) -> None:
        window = add_window(1, capacity=1_000, committed=400, leased=301)
        Lease.objects.create(owner="w", window=window, granted=301, remaining=301)
        add_window(2)
        order = self.carry_out("transfer", TRANSFER)
        assert order.state == "refused"
        assert order.result.startswith("Only 299 tokens are free")
        assert (self.purse(1).capacity, self.purse(2).capacity) == (1_000, 1_000)
        assert not LedgerEntry.objects.exists()

    def test_pools_without_a_limit_and_pools_without_a_window_are_refused(self) -> None:
        add_window(1)
        assert "no current window" in self.carry_out("transfer", TRANSFER).result
        add_window(2, capacity=None)
        assert "no limit" in self.carry_out("transfer", TRANSFER).result
        add_window(3, window_start=5, window_end=int(time.time()) - 1)
        assert "no current window" in self.carry_out("transfer", {**TRANSFER, "to_pool": 3}).result
        assert self.purse(1).capacity == 1_000

    def test_the_newest_window_is_meant(self) -> None:
        add_window(1, window_start=10, window_end=20)
        add_window(1, window_start=20, window_end=2**40)
        add_window(2)
        self.carry_out("transfer", TRANSFER)
        assert self.purse(1, window_start=10).capacity == 1_000
        assert self.purse(1, window_start=20).capacity == 700

    def test_two_hosts_that_take_the_same_order_move_it_once(self) -> None:
        """The other host's writer has it done, but not committed, when ours looks whether it is done."""
        add_window(1)
        add_window(2)
        order = place("transfer", TRANSFER, actor="ann")
        outcomes: list[object] = []

        def ours() -> None:
            try:
                outcomes.append(order_work.transfer(ledger_connection(), order))
            except Exception as exc:
                outcomes.append(exc)
            finally:
                ledger_connection().close()

        thread = threading.Thread(target=ours)
        with opened(ledger_connection()) as books:
            purses = books.purses([(1, 0, 0), (2, 0, 0)])
            thread.start()
            time.sleep(0.3)  # it waits for the locks
            transfers.move_free(purses[1, 0, 0], purses[2, 0, 0], 300)
            for pool_id, amount in ((1, -300), (2, 300)):
                names = {"order_id": order.pk, "order_token": order.token}
                books.enter(LedgerEntry.Kind.TRANSFER, purses[pool_id, 0, 0], amount, **names)
        thread.join(10)
        assert outcomes == [("done", "300 tokens moved.")]
        assert (self.purse(1).capacity, self.purse(2).capacity) == (700, 1_300)

    def test_many_transfers_in_circles_keep_the_total(self) -> None:
        for pool_id in (1, 2, 3):
            add_window(pool_id, capacity=1_000)
        placed = [
            place("transfer", {"from_pool": a, "to_pool": b, "unit": 0, "amount": amount}, actor="ann")
            for a, b, amount in ((1, 2, 700), (2, 3, 1_500), (3, 1, 2_400), (1, 2, 2_701), (3, 2, 100), (1, 3, 1))
        ]
        for order in placed:
            self.work(order)
            total = sum(PoolWindow.objects.values_list("capacity", flat=True))
            assert total == 3_000
        assert [order.state for order in placed] == ["done", "done", "done", "refused", "done", "done"]


class LeaseTests(OrderCase):
    def quarantine(self) -> None:
        window = add_window(1, capacity=1_000, committed=100, leased=250)
        Lease.objects.create(owner="w1", window=window, granted=300, remaining=250, state="quarantined")

    def test_written_off_counts_as_spent_once(self) -> None:
        self.quarantine()
        order = self.carry_out("write_off", {"owner": "w1"})
        assert (order.state, order.result) == ("done", "250 tokens written off as spent.")
        again = self.repeat(order)
        assert (again.state, again.result) == ("done", "250 tokens written off as spent.")
        assert (self.purse().committed, self.purse().leased) == (350, 0)
        assert not Lease.objects.exists()

    def test_released_is_free_again(self) -> None:
        self.quarantine()
        assert self.carry_out("release", {"owner": "w1"}).result == "250 tokens given back."
        assert (self.purse().committed, self.purse().leased) == (100, 0)
        assert LedgerEntry.objects.get().kind == "release"

    def test_live_and_unknown_owners_are_refused(self) -> None:
        window = add_window(1, capacity=1_000, leased=250)
        Lease.objects.create(owner="live", window=window, granted=250, remaining=250)
        for kind in ("write_off", "release", "replay"):
            for owner in ("live", "nobody"):
                assert self.carry_out(kind, {"owner": owner}).state == "refused"
        assert Lease.objects.get().remaining == 250

    def test_a_replay_needs_the_files(self) -> None:
        self.quarantine()
        assert "not in this host's" in self.carry_out("replay", {"owner": "w1"}).result


class PeriodTests(OrderCase):
    def test_a_period_begins_once(self) -> None:
        add_usage(3)
        order = self.carry_out("period", {})
        assert (order.state, order.result) == ("done", "Reporting period 1 began.")
        assert self.repeat(order).result == "Reporting period 1 began."
        assert rollups.state(ledger_connection(), rollups.REPORTING_PERIOD) == 1
        assert UsageRollup.objects.get().period == 0

    def test_marks_of_finished_orders_are_forgotten_by_the_next_process(self) -> None:
        self.carry_out("period", {})
        assert LedgerState.objects.filter(name__startswith="order:").exists()
        Orders(self.journals).run(ledger_connection())
        assert not LedgerState.objects.filter(name__startswith="order:").exists()


class PruneTests(OrderCase):
    def test_old_rows_go_and_the_order_says_how_many(self) -> None:
        add_usage(3, at_s=time.time() - 8 * DAY_S)
        add_usage(2, at_s=time.time() - 6 * DAY_S)
        rollups.roll_up(ledger_connection())
        order = self.carry_out("prune", {"days": 7})
        assert (order.state, order.result) == ("done", "3 usage rows deleted.")
        assert Usage.objects.count() == 2


class JobTests(OrderCase):
    def test_an_unknown_kind_is_refused(self) -> None:
        order = LedgerOrder.objects.create(kind="dance", actor="ann")
        assert self.work(order).state == "refused"

    def test_an_order_that_breaks_is_refused_and_the_next_one_is_done(self) -> None:
        broken = LedgerOrder.objects.create(kind="correction", payload={}, actor="ann")
        add_window(1, committed=500)
        with self.assertLogs("hoosh.ledger", "ERROR"):
            order = self.carry_out("correction", CORRECTION)
        broken.refresh_from_db()
        assert (broken.state, order.state) == ("refused", "done")

    def test_what_the_database_refuses_for_good_does_not_hold_up_the_next_order(self) -> None:
        add_usage(2, latency_us=2**63 - 1)  # a sum no column holds
        add_window(1, committed=500)
        period = place("period", {}, actor="ann")
        with self.assertLogs("hoosh.ledger", "ERROR"):
            order = self.carry_out("correction", CORRECTION)
        period.refresh_from_db()
        assert (period.state, order.state) == ("refused", "done")
        assert self.purse().committed == 400

    def test_an_order_stays_open_while_the_ledger_is_locked(self) -> None:
        connection = ledger_connection()
        if connection.vendor != "sqlite":
            self.skipTest("PostgreSQL waits for the lock")
        add_window(1, committed=500)
        order = place("correction", CORRECTION, actor="ann")
        other = connection.copy()
        try:
            with other.cursor() as cursor, connection.cursor() as own:
                own.execute("PRAGMA busy_timeout = 20")
                cursor.execute("BEGIN IMMEDIATE")
                with pytest.raises(OperationalError, match="locked"):
                    self.job.run(connection)
                cursor.execute("ROLLBACK")
        finally:
            other.close()
            connection.close()
        order.refresh_from_db()
        assert order.state == "open"
        assert self.work(order).state == "done"

    def test_an_operators_long_transaction_on_the_site_does_not_hold_up_the_job(self) -> None:
        connection = ledger_connection()
        if connection.vendor != "sqlite":
            self.skipTest("PostgreSQL locks rows, not the file")
        add_window(1, committed=500)
        order = place("correction", CORRECTION, actor="ann")
        other = connections["default"].copy()
        try:
            with other.cursor() as cursor:
                cursor.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            self.job.run(connection)
            assert time.monotonic() - began < 0.5
            assert self.purse().committed == 400
            self.job.run(connection)  # not taken a second time while its mark waits
            order.refresh_from_db()
            assert order.state == "open"
            with other.cursor() as cursor:
                cursor.execute("ROLLBACK")
            self.job.finish()
        finally:
            other.close()
        order.refresh_from_db()
        assert order.state == "done"

    def test_wait_ends_with_the_order_or_with_the_time(self) -> None:
        add_window(1, committed=500)
        order = place("correction", CORRECTION, actor="ann")
        assert wait(order, 0.1).state == "open"

        def later() -> None:
            time.sleep(0.1)
            self.job.run(ledger_connection())
            self.job.finish()
            connections.close_all()

        thread = threading.Thread(target=later)
        thread.start()
        assert wait(order, 10).state == "done"
        thread.join()

    def test_a_refused_order_stays_refused_when_it_would_now_succeed(self) -> None:
        add_window(1, committed=0)
        order = self.carry_out("correction", CORRECTION)
        assert order.state == "refused"
        PoolWindow.objects.update(committed=500)
        self.job.run(ledger_connection())
        assert self.purse().committed == 500
