"""What moves money other than usage is on its way into the log with the move itself."""

from __future__ import annotations

from typing import Any

import pytest

from audit.models import LedgerOutboxEntry
from budgets import ledger_books, transfers
from budgets.ledger import Ledger
from budgets.models import LedgerEntry, PoolWindow
from budgets.records import Unit
from tests.audit.test_batches import record, settle
from tests.budgets.ledger_case import TOKENS, LedgerCase, spec
from tests.budgets.ledger_rows import ledger_connection

pytestmark = pytest.mark.database


def told() -> list[tuple[str, dict[str, Any]]]:
    return [(row.action, row.data) for row in LedgerOutboxEntry.objects.order_by("id")]


class MoneyMovesCase(LedgerCase):
    def test_an_entry_of_the_ledger_is_told_with_its_amount_actor_and_reason(self) -> None:
        Ledger(ledger_connection()).sync_windows([spec(capacity=100)])
        with ledger_books.opened(ledger_connection()) as books:
            purse = books.purse(TOKENS)
            assert purse is not None
            transfers.correct(purse, 2**60)
            books.enter(LedgerEntry.Kind.CORRECTION, purse, 2**60, order_id=3, order_token="t", actor="ann", note="why")
        (row,) = LedgerOutboxEntry.objects.all()
        assert (row.action, row.actor, row.target, row.number) == ("balance.correction", "ann", "pool 7", 1)
        assert row.data == {
            **{"object": "budgets.pool:7", "unit": "tokens", "window_start": "0"},
            **{"amount": str(2**60), "order_id": 3, "note": "why"},
        }

    def test_nothing_is_told_of_a_move_that_was_undone(self) -> None:
        Ledger(ledger_connection()).sync_windows([spec(capacity=100)])

        def undone() -> None:
            with ledger_books.opened(ledger_connection()) as books:
                purse = books.purse(TOKENS)
                assert purse is not None
                books.enter(LedgerEntry.Kind.CORRECTION, purse, 1)
                books.save()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            undone()
        assert told() == []

    def test_a_limit_that_changes_is_told_and_one_that_does_not_is_not(self) -> None:
        ledger = Ledger(ledger_connection())
        for capacity in (100, 100, 250, 250, None):
            ledger.sync_windows([spec(capacity=capacity)])
        place = {"object": "budgets.pool:7", "unit": "tokens", "window_start": "0"}
        assert told() == [
            ("window.limit_changed", {**place, "capacity": ["100", "250"]}),
            ("window.limit_changed", {**place, "capacity": ["250", "none"]}),
        ]

    def test_a_limit_that_is_passed_is_told_once_in_a_while(self) -> None:
        ledger = Ledger(ledger_connection())
        ledger.sync_windows([spec(capacity=15)])
        for _ in range(4):
            ledger.settle("w", [record(10)], {}, None)
        assert told() == [
            (
                "budget.limit_passed",
                {"object": "budgets.pool:7", "unit": "tokens", "window_start": "0", "overrun": "5"},
            )
        ]

    def test_a_dead_worker_whose_journal_cannot_be_trusted_is_told(self) -> None:
        Ledger(ledger_connection()).quarantine_owner("w", (1, 2))
        (row,) = LedgerOutboxEntry.objects.all()
        assert (row.action, row.target, row.level) == ("lease.quarantined", "w", "error")

    def test_more_used_than_leased_is_told(self) -> None:
        Ledger(ledger_connection()).sync_windows([spec(capacity=5)])
        held = record(10)
        held.draws = (held.draws[0].__class__(*TOKENS, 10),)
        settle(held)
        ((action, data),) = told()
        assert (action, data["owner"], data["amount"], data["overrun"]) == ("budget.overrun", "w", "10", "5")
        assert PoolWindow.objects.get(unit=Unit.TOKENS).committed == 10
