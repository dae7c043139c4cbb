"""The arithmetic of the ledger: how amounts move between purses and leases. Used inside transactions, touches none.

A purse is one pool's window in one unit (tokens or pico-USD). The functions change the rows they are given and keep,
for every purse,

    committed + leased <= capacity + overrun        leased == sum of its leases' `remaining`

`overrun` is zero unless the truth does not fit: a provider reported more than was held, the pool does not refuse, or
an operator lowered the capacity below what is in use. The database's CHECK constraints say the same once more.
A `capacity` of None is no limit: what is charged there is only counted and nothing is leased ahead.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Protocol

from budgets.records import Unit

log = logging.getLogger("hoosh.ledger")

SHARES = 16  # an ask far from the edge may take this part of what is free, over all workers
# Near the edge a prefetch gets at least this much, while there is that much: 2,048 tokens, 0.01 USD.
EDGE = {Unit.TOKENS: 2048, Unit.PICO_USD: 10**10}
# A prefetch is never more: what a lease was granted in all only grows, and must not reach the limit below.
BLOCK_LIMIT = 10**15
# Columns have 64 bits: no purse grows above this by what is carried or moved into it, and no count goes on above it.
CAPACITY_LIMIT = 8 * 10**18


class Purse(Protocol):
    """The columns of a `PoolWindow` that move."""

    capacity: int | None
    adjusted: int
    committed: int
    leased: int
    overrun: int


class LeaseRow(Protocol):
    """The columns of a `Lease` that move."""

    granted: int
    returned: int
    remaining: int


def free_amount(purse: Purse) -> int:
    """What can still be leased; zero or negative when the purse is spent, zero where there is no limit."""
    return 0 if purse.capacity is None else purse.capacity - purse.committed - purse.leased


def room(lease: LeaseRow) -> int:
    """How much more a lease can be granted in all its life."""
    return max(0, CAPACITY_LIMIT - lease.granted)


def block_size(*, free: int, want: int, need: int, workers: int, unit: int = Unit.TOKENS) -> tuple[int, bool]:
    """How much to lease out of `free`, and whether that left enough for asking ahead again.

    `need` (what a waiting request lacks) is given whole or not at all, so that the last of it is not scattered over
    workers none of which can use it. Near the edge a block is a quarter of what is free.
    """
    if free <= 0 or free < need:
        return 0, False
    block = max(min(max(want, free // (SHARES * max(1, workers))), BLOCK_LIMIT), need)
    if block <= free // 4:
        return block, True
    return min(free, max(need, min(BLOCK_LIMIT, max(free // 4, EDGE[Unit(unit)])))), False


def grant(purse: Purse, lease: LeaseRow, amount: int) -> None:
    """Lease `amount` out of what is free."""
    assert 0 <= amount <= max(0, free_amount(purse))
    _extend(purse, lease, amount)


def adopt(purse: Purse, lease: LeaseRow, total: int) -> None:
    """Raise the lease to `total` granted, which its owner already has (the ledger was restored from a copy).

    Not by more than the purse's counts can take.
    """
    _extend(purse, lease, max(0, min(total - lease.granted, CAPACITY_LIMIT - purse.committed - purse.leased)))


def give_back(purse: Purse, lease: LeaseRow, returned_total: int) -> int:
    """Take back what the owner returned since the last message; `returned_total` is absolute. The amount."""
    amount = min(max(0, returned_total - lease.returned), lease.remaining)
    lease.returned += amount
    _take(purse, lease, amount)
    _set_overrun(purse)
    return amount


def charge(purse: Purse, lease: LeaseRow, amount: int) -> int:
    """Move `amount` from the lease to committed. What the lease lacks is granted on the spot; the amount of that.

    The owner's wallet is in debt by as much and learns of it by the new total, so nothing is paid twice. What a lease
    cannot be granted any more (a mistyped price) is charged without it, and the wallet stays in debt.
    """
    assert amount >= 0
    lacking = max(0, amount - lease.remaining)
    lease.granted += min(lacking, room(lease))
    _take(purse, lease, amount - lacking)
    _commit(purse, amount)
    return lacking


def charge_observed(purse: Purse, amount: int) -> None:
    """Count `amount` as committed without a lease: the pool does not refuse in this unit."""
    assert amount >= 0
    _commit(purse, amount)


def correct(purse: Purse, amount: int) -> int:
    """Add `amount` (less than zero: give back) to committed, which never falls below zero; the amount added."""
    before = purse.committed
    _commit(purse, max(amount, -before))
    return purse.committed - before


def set_limit(purse: Purse, limit: int | None) -> None:
    """Change the operator's limit; what was carried or transferred stays on top of it (or away from it).

    Lowered below what is in use, nothing is taken away: there are only no new grants.
    """
    assert limit is None or limit >= 0
    purse.capacity = None if limit is None else max(0, limit + purse.adjusted)
    _set_overrun(purse)


def move_free(source: Purse, target: Purse, amount: int | None = None) -> int:
    """Move up to `amount` (None = all) of what is free to another purse; the amount moved.

    The sum of both capacities stays the same. Purses without a limit neither give nor take.
    """
    if source.capacity is None or target.capacity is None:
        return 0
    free = min(max(0, free_amount(source)), max(0, CAPACITY_LIMIT - target.capacity))
    moved = free if amount is None else min(free, amount)
    assert moved >= 0
    source.capacity -= moved
    source.adjusted -= moved
    target.capacity += moved
    target.adjusted += moved
    _set_overrun(target)
    return moved


def end_lease(purse: Purse, lease: LeaseRow, *, spent: bool) -> int:
    """Close a lease: its rest goes back to the purse or, when `spent`, counts as charged. The rest."""
    amount = lease.remaining
    _take(purse, lease, amount)
    _commit(purse, amount if spent else 0)
    return amount


def reached(purse: Purse, alerts: str) -> set[int]:
    """Which of the `alerts` (percents of the capacity, comma-separated) what was charged has reached."""
    if not alerts or purse.capacity is None or not purse.committed:
        return set()
    committed, capacity = purse.committed * 100, purse.capacity
    return {percent for percent in _percents(alerts) if committed >= percent * capacity}


@lru_cache(maxsize=256)
def _percents(alerts: str) -> tuple[int, ...]:
    return tuple(int(entry) for entry in map(str.strip, alerts.split(",")) if entry.isascii() and entry.isdigit())


def _extend(purse: Purse, lease: LeaseRow, amount: int) -> None:
    lease.granted += amount
    lease.remaining += amount
    purse.leased += amount
    _set_overrun(purse)


def _take(purse: Purse, lease: LeaseRow, amount: int) -> None:
    """Take `amount` of what remains out of a lease.

    A purse that says that less is leased than its leases do was changed by hand. It must not stop the books of all
    others, so it is set right as far as can be.
    """
    lease.remaining -= amount
    purse.leased -= amount
    if purse.leased < 0:
        log.error("purse_inconsistent", extra={"purse": getattr(purse, "key", None), "leased": purse.leased})
        purse.leased = 0


def _commit(purse: Purse, amount: int) -> None:
    most = max(purse.committed, CAPACITY_LIMIT - purse.leased)
    purse.committed = min(most, purse.committed + amount)
    _set_overrun(purse)


def _set_overrun(purse: Purse) -> None:
    purse.overrun = max(0, -free_amount(purse))
