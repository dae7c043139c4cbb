"""The arithmetic of the ledger: how tokens move between a pool window and a lease. Pure; used inside transactions.

The functions change the two rows they are given and keep, for every window,

    committed + leased <= capacity + overrun        leased == sum of its leases' `remaining`

`overrun` is zero unless the truth does not fit: a provider reported more than was held, or an operator lowered the
capacity below what is in use. The database's CHECK constraints say the same once more.
"""

from __future__ import annotations

from typing import Protocol

SHARES = 16  # an ask far from the edge may take this part of what is free, over all workers
EDGE_TOKENS = 2048  # near the edge a prefetch gets at least this much, while there is that much


class Window(Protocol):
    """The columns of a `PoolWindow` that move."""

    capacity: int
    committed: int
    leased: int
    overrun: int


class LeaseRow(Protocol):
    """The columns of a `Lease` that move."""

    granted: int
    returned: int
    remaining: int


def free_tokens(window: Window) -> int:
    """What can still be leased; zero or negative when the window is spent."""
    return window.capacity - window.committed - window.leased


def block_size(*, free: int, want: int, need: int, workers: int) -> tuple[int, bool]:
    """How much to lease out of `free`, and whether that left enough for asking ahead again.

    `need` (what a waiting request lacks) is given whole or not at all, so that the last tokens are not scattered over
    workers none of which can use them. Near the edge a block is a quarter of what is free.
    """
    if free <= 0 or free < need:
        return 0, False
    block = max(want, need, free // (SHARES * max(1, workers)))
    if block <= free // 4:
        return block, True
    return min(free, max(need, free // 4, min(free, EDGE_TOKENS))), False


def grant(window: Window, lease: LeaseRow, tokens: int) -> None:
    """Lease `tokens` out of the window's free tokens."""
    assert 0 <= tokens <= max(0, free_tokens(window))
    _extend(window, lease, tokens)


def adopt(window: Window, lease: LeaseRow, total: int) -> None:
    """Raise the lease to `total` granted tokens, which its owner already has (the ledger was restored from a copy)."""
    _extend(window, lease, max(0, total - lease.granted))


def give_back(window: Window, lease: LeaseRow, returned_total: int) -> int:
    """Take back what the owner returned since the last message; `returned_total` is absolute. The amount."""
    tokens = min(max(0, returned_total - lease.returned), lease.remaining)
    lease.returned += tokens
    lease.remaining -= tokens
    window.leased -= tokens
    _shrink_overrun(window)
    return tokens


def charge(window: Window, lease: LeaseRow, tokens: int) -> int:
    """Move `tokens` from the lease to committed. What the lease lacks is granted on the spot; the amount of that.

    The owner's wallet is in debt by as much and learns of it by the new total, so nothing is paid twice.
    """
    assert tokens >= 0
    lacking = max(0, tokens - lease.remaining)
    if lacking:
        _extend(window, lease, lacking)
    lease.remaining -= tokens
    window.leased -= tokens
    window.committed += tokens
    _shrink_overrun(window)
    return lacking


def set_capacity(window: Window, capacity: int) -> None:
    """Change the limit. Lowered below what is in use, nothing is taken away: there are only no new grants."""
    assert capacity >= 0
    window.capacity = capacity
    window.overrun = max(0, -free_tokens(window))


def end_lease(window: Window, lease: LeaseRow, *, spent: bool) -> None:
    """Close a lease: its rest goes back to the window or, when `spent`, counts as charged."""
    tokens = lease.remaining
    lease.remaining = 0
    window.leased -= tokens
    if spent:
        window.committed += tokens
    _shrink_overrun(window)


def _extend(window: Window, lease: LeaseRow, tokens: int) -> None:
    lease.granted += tokens
    lease.remaining += tokens
    window.leased += tokens
    window.overrun = max(window.overrun, -free_tokens(window))


def _shrink_overrun(window: Window) -> None:
    window.overrun = min(window.overrun, max(0, -free_tokens(window)))
