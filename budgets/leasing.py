"""Leases granted and taken back inside one transaction, for any number of asks and returns. No statement of its own:
everything is read before, by `Ledger.leasing`, and written when the transaction ends.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import NamedTuple

from budgets import transfers
from budgets.ledger_books import NO_WORKER, Books, Key, LeaseRow, Others, PurseRow
from budgets.models.ledger import Lease

log = logging.getLogger("hoosh.ledger")

Wanted = Collection[tuple[str, Key]]  # owners, and the purses they ask for or return to


class BadAskError(ValueError):
    """A total that no ledger can have granted."""


class Answer(NamedTuple):
    """What an ask came to; amounts in the purse's unit."""

    total: int  # granted to the owner so far, absolute
    granted: int  # of it, just now
    more: bool  # asking ahead is welcome
    spent_out: bool  # not even all that other workers have left would do
    available: int  # in the purse, leased to nobody
    others: int  # left in other workers' leases
    repeated: bool  # the owner had not seen an earlier answer: nothing was granted


class Leasing:
    """The asks and returns of one transaction. Each sees what those before it changed."""

    def __init__(self, books: Books, wanted: Wanted) -> None:
        """Locks the purses and reads the leases of all that are `wanted`; others are not known in here."""
        self._books = books
        self._purses = books.purses({key for _owner, key in wanted})
        books.read_leases(*{owner for owner, _key in wanted})
        self._workers = books.workers()
        self._made: set[tuple[str, int]] = set()

    def grant(self, owner: str, key: Key, *, seen_total: int, want: int, need: int) -> Answer | None:
        """Lease to an owner, or repeat an answer it has not seen. None = there is no such purse.

        An ask without `want` and `need` is a question: it is answered with the total, and nothing is granted.
        Raises `BadAskError` for a total that cannot be.
        """
        purse = self._purses.get(key)
        if purse is None:
            return None
        if seen_total > transfers.CAPACITY_LIMIT:
            raise BadAskError(f"{owner} has seen a total of {seen_total} in {key}")
        lease = self._lease(owner, purse)
        before, others = lease.remaining, self._others(lease)
        amount, more, repeated = 0, True, lease.granted > seen_total
        if lease.granted < seen_total:
            pool_id, unit, window_start = key
            where = {"pool_id": pool_id, "unit": unit, "window_start": window_start}
            log.error("lease_adopted", extra={"owner": owner, **where, "total": seen_total})
            transfers.adopt(purse, lease, seen_total)
        if not repeated and (want or need):
            free = min(transfers.free_amount(purse), transfers.room(lease))
            amount, more = transfers.block_size(
                free=free, want=want, need=need, workers=others.owners + 1, unit=purse.unit
            )
        if amount:
            transfers.grant(purse, lease, amount)
        self._count(lease, lease.remaining - before)
        available = max(0, transfers.free_amount(purse))
        limited = purse.capacity is not None
        spent_out = limited and not (amount or repeated) and available + others.remaining < max(1, need)
        return Answer(lease.granted, amount, more, spent_out, available, others.remaining, repeated)

    def give_back(self, owner: str, key: Key, returned_total: int) -> int:
        """Take back what an owner returned; `returned_total` is absolute. What came back just now."""
        purse = self._purses.get(key)
        if purse is None:
            return 0
        lease = self._lease(owner, purse)
        amount = transfers.give_back(purse, lease, returned_total)
        self._count(lease, -amount)
        return amount

    def _lease(self, owner: str, purse: PurseRow) -> LeaseRow:
        lease = self._books.lease(owner, purse)
        if not lease.id and (owner, purse.id) not in self._made:
            self._made.add((owner, purse.id))
            if _is_workers(lease):
                self._workers.setdefault(purse.id, Others(0, 0)).owners += 1
        return lease

    def _others(self, lease: LeaseRow) -> Others:
        """What other workers have of a lease's purse and could be asked to give back."""
        all_of_them = self._workers.get(lease.window_id, Others(0, 0))
        if not _is_workers(lease):
            return Others(all_of_them.owners, all_of_them.remaining)
        return Others(all_of_them.owners - 1, all_of_them.remaining - lease.remaining)

    def _count(self, lease: LeaseRow, amount: int) -> None:
        if amount and _is_workers(lease):
            self._workers[lease.window_id].remaining += amount


def _is_workers(lease: LeaseRow) -> bool:
    """Whether a lease is of a worker that can be asked to give back (see `Books.workers`)."""
    return lease.state == Lease.State.ACTIVE and NO_WORKER not in lease.owner
