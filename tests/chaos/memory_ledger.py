"""A ledger without a database, for tests of desks against each other: the real grants and the real arithmetic.

Runs in the desks' own loop, so that a hundred thousand requests take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from budgets import transfers
from budgets.desk import Desk
from budgets.grants import GrantRequest, Grants, Return
from budgets.leasing import Answer
from budgets.stats import WriterStats

Key = tuple[int, int, int]  # pool, unit, start of the window


@dataclass
class Purse:
    """A row of `PoolWindow`."""

    capacity: int | None
    adjusted: int = 0
    committed: int = 0
    leased: int = 0
    overrun: int = 0


@dataclass
class LeaseRow:
    """A row of `Lease`."""

    granted: int = 0
    returned: int = 0
    remaining: int = 0


class MemoryLedger:
    """What `Grants` needs of `budgets.ledger.Ledger`."""

    def __init__(self, capacities: Mapping[Key, int | None]) -> None:
        self.purses = {key: Purse(capacity) for key, capacity in capacities.items()}
        self.leases: dict[tuple[str, Key], LeaseRow] = {}

    @contextmanager
    def leasing(self, wanted: object) -> Iterator[MemoryLedger]:
        """See `Ledger.leasing`."""
        yield self

    def grant(self, owner: str, key: Key, *, seen_total: int, want: int, need: int) -> Answer | None:
        """See `Leasing.grant`."""
        purse = self.purses.get(key)
        if purse is None:
            return None
        lease = self.leases.setdefault((owner, key), LeaseRow())
        others = [row for (name, at), row in self.leases.items() if at == key and name != owner]
        amount, more, repeated = 0, True, lease.granted > seen_total
        if not repeated:
            amount, more = transfers.block_size(
                free=transfers.free_amount(purse), want=want, need=need, workers=len(others) + 1, unit=key[1]
            )
        if amount:
            transfers.grant(purse, lease, amount)
        available = max(0, transfers.free_amount(purse))
        rest = sum(row.remaining for row in others)
        spent_out = not (amount or repeated) and available + rest < max(1, need)
        self.check(key)
        return Answer(lease.granted, amount, more, spent_out, available, rest, repeated)

    def give_back(self, owner: str, key: Key, returned_total: int) -> int:
        """See `Leasing.give_back`."""
        amount = transfers.give_back(self.purses[key], self.leases[owner, key], returned_total)
        self.check(key)
        return amount

    def charge(self, owner: str, key: Key, amount: int) -> None:
        """What settling does with a held draw."""
        transfers.charge(self.purses[key], self.leases[owner, key], amount)
        self.check(key)

    def check(self, key: Key) -> None:
        """The promise about a purse, after every step."""
        purse = self.purses[key]
        leased = sum(row.remaining for (_owner, at), row in self.leases.items() if at == key)
        assert purse.leased == leased
        if purse.capacity is not None:
            assert purse.committed + purse.leased <= purse.capacity + purse.overrun
            assert not purse.overrun


class MemoryLine:
    """Connects desks to that ledger. Messages take a turn of the loop each way, as on the line."""

    def __init__(self, ledger: MemoryLedger, later: Callable[..., Any]) -> None:
        """`later(callback, *arguments)` is the loop's `call_soon`."""
        self.ledger = ledger
        self.grants = Grants(self._recall, WriterStats())
        self.desks: dict[str, Desk] = {}
        self._later = later

    def connect(self, desk: Desk) -> None:
        """Have this desk ask and return here."""
        self.desks[desk.owner] = desk
        desk.send_ask = lambda *fields: self._later(self._ask, *fields)
        desk.send_return = lambda *fields: self._later(self._give_back, *fields)
        desk.connected()

    def _ask(self, owner: str, pool_id: int, unit: int, start: int, seen_total: int, want: int, need: int) -> None:
        def reply(total: int, more: bool, spent_out: bool, available: int, others: int) -> None:
            self._later(self.desks[owner].on_granted, pool_id, unit, start, total, more, spent_out, available, others)

        request = GrantRequest(owner, pool_id, unit, start, seen_total, want, need, reply)
        self.grants.serve(self.ledger, [request])  # type: ignore[arg-type]

    def _give_back(self, owner: str, pool_id: int, unit: int, start: int, returned_total: int) -> None:
        self.grants.serve(self.ledger, [Return(owner, (pool_id, unit, start), returned_total)])  # type: ignore[arg-type]

    def _recall(self, pool_id: int, unit: int, start: int) -> None:
        for desk in self.desks.values():
            self._later(desk.on_recall, pool_id, unit, start)
