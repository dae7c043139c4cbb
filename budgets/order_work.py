"""What each kind of order does to the ledger: one transaction each, harmless when repeated. For `budgets.orders`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper

from budgets import amounts, bad_journals, burial, retention, rollups, transfers
from budgets.ledger import Ledger
from budgets.ledger_books import Key, PurseRow, opened
from budgets.models.access import LedgerOrder
from budgets.models.ledger import Lease, LedgerEntry, PoolWindow
from budgets.records import Unit

DONE, REFUSED = LedgerOrder.State.DONE.value, LedgerOrder.State.REFUSED.value
LATER = "later"
_BATCH = 2_000  # records of a journal settled in one transaction
_LONGEST_CALL_S = 86_400  # a record may be of a call that began so long before those around it


class Outcome(NamedTuple):
    """What came of an order; `LATER`: it stays open and is taken again."""

    state: str
    text: str = ""


def correct(connection: BaseDatabaseWrapper, order: LedgerOrder) -> Outcome:
    """Add a signed amount to what a purse has charged. What then lies above the limit shows as overrun."""
    pool_id, unit, start, amount = (order.payload[name] for name in ("pool_id", "unit", "window_start", "amount"))
    with opened(connection) as books:
        purse = books.purse((pool_id, unit, start))
        if not _entered(connection, order):
            if purse is None:
                return Outcome(REFUSED, "The pool has no such window.")
            if purse.committed + amount < 0:
                charged = amounts.shown(unit, purse.committed)
                return Outcome(REFUSED, f"Only {charged} were charged: more cannot be given back.")
            if purse.committed + amount > transfers.CAPACITY_LIMIT:
                return Outcome(REFUSED, "The sum would be larger than the ledger can keep.")
            transfers.correct(purse, amount)
            books.enter(LedgerEntry.Kind.CORRECTION, purse, amount, **_signed(order))
    return Outcome(DONE, f"{amounts.signed(unit, amount)} charged.")


def transfer(connection: BaseDatabaseWrapper, order: LedgerOrder) -> Outcome:
    """Move a free amount between the current windows of two pools. Both limits together stay what they were."""
    source_id, target_id, unit, amount = (order.payload[name] for name in ("from_pool", "to_pool", "unit", "amount"))
    done = Outcome(DONE, f"{amounts.shown(unit, amount)} moved.")
    with opened(connection) as books:
        if _entered(connection, order):
            return done
        keys = [_current(connection, pool_id, unit) for pool_id in (source_id, target_id)]
        purses = books.purses(key for key in keys if key is not None)
        pair = [purses[key] for key in keys if key in purses]
        if _entered(connection, order):  # by the writer of another host, for which these locks waited
            return done
        refusal = _transfer_refusal(pair, unit, amount)
        if refusal:
            return Outcome(REFUSED, refusal)
        source, target = pair
        if transfers.move_free(source, target, amount) != amount:
            raise AssertionError("a transfer that was checked under the locks did not move all")
        books.enter(LedgerEntry.Kind.TRANSFER, source, -amount, **_signed(order))
        books.enter(LedgerEntry.Kind.TRANSFER, target, amount, **_signed(order))
    return done


def resolve(connection: BaseDatabaseWrapper, order: LedgerOrder, journals: Path) -> Outcome:
    """Write a dead worker's quarantined leases off as spent, or give them back. Its files are done with then."""
    owner, spent = order.payload["owner"], order.kind == "write_off"
    known = _quarantined(connection, owner) or owner in bad_journals.owners(journals)
    if not known and not _entered(connection, order):
        return Outcome(REFUSED, "There is no quarantined lease of this owner.")
    found = Ledger(connection).resolve(owner, spent=spent, **_signed(order))
    pairs = ((Unit.TOKENS, found["tokens"]), (Unit.PICO_USD, found["pico_usd"]))
    what = " and ".join(amounts.shown(unit, amount) for unit, amount in pairs if amount) or "Nothing"
    return Outcome(DONE, f"{what} {'written off as spent' if spent else 'given back'}.")


def replay(connection: BaseDatabaseWrapper, order: LedgerOrder, journals: Path) -> Outcome:
    """Settle what can be read of a quarantined worker's files, after they were restored or by a newer version.

    Records that are in the ledger change nothing. The leases stay quarantined.
    """
    owner = order.payload["owner"]
    if not _quarantined(connection, owner):
        return Outcome(REFUSED, "There is no quarantined lease of this owner.")
    try:
        oldest_s = bad_journals.oldest_s(journals, owner)
        if oldest_s is not None and oldest_s - _LONGEST_CALL_S < rollups.state(connection, retention.USAGE_FROM):
            # Whether such a record was charged can no longer be seen: its usage row may be deleted by now.
            return Outcome(REFUSED, "It begins before the usage rows that are kept: it could be charged twice.")
        found = burial.replay(Ledger(connection), journals, owner, _BATCH)
    except FileNotFoundError:
        return Outcome(REFUSED, "Its files are not in this host's journal directory.")
    words = f"{found['records']:,} usage records read, {found['new']:,} of them new."
    return Outcome(DONE, f"{words} Still damaged: {found['damaged']}." if found["damaged"] else words)


def _current(connection: BaseDatabaseWrapper, pool_id: int, unit: int) -> Key | None:
    rows = PoolWindow.objects.using(connection.alias).filter(pool_id=pool_id, unit=unit).order_by("-window_start")
    found = rows.values_list("window_start", "window_end").first()
    if found is None or (found[1] and found[1] <= time.time()):
        return None
    return pool_id, unit, found[0]


def _transfer_refusal(pair: list[PurseRow], unit: int, amount: int) -> str:
    if len(pair) < 2:
        return "One of the pools has no current window."
    if any(purse.capacity is None for purse in pair):
        return "One of the pools has no limit in this unit."
    free = max(0, transfers.free_amount(pair[0]))
    if free < amount:
        return f"Only {amounts.shown(unit, free)} are free there; what workers hold does not count."
    if (pair[1].capacity or 0) + amount > transfers.CAPACITY_LIMIT:
        return "The limit would be larger than the ledger can keep."
    return ""


def _entered(connection: BaseDatabaseWrapper, order: LedgerOrder) -> bool:
    return LedgerEntry.objects.using(connection.alias).filter(order_token=order.token).exists()


def _quarantined(connection: BaseDatabaseWrapper, owner: str) -> bool:
    leases = Lease.objects.using(connection.alias).filter(owner=owner, state=Lease.State.QUARANTINED)
    return leases.exists()


def _signed(order: LedgerOrder) -> dict[str, Any]:
    return {"order_id": order.pk, "order_token": order.token, "actor": order.actor, "note": order.note}
