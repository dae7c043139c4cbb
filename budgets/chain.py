"""What one request draws on: the purses of several pools, in the order in which they are taken. Pure.

A purse is one pool's window in one unit, named (pool id, unit, window start); amounts are tokens or pico-USD by its
unit. All waiting goes by that order, on every worker, so that no two requests can each wait for what the other has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import NamedTuple

from budgets.records import OBSERVED, Draw, PoolRecord, Unit
from budgets.wallet import Wallet

PurseKey = tuple[int, int, int]
UNITS = (int(Unit.TOKENS), int(Unit.PICO_USD))


class Account:
    """A purse on this worker: its wallet, its queue and what control said of it last."""

    __slots__ = (
        "answers",
        "available",
        "checking",
        "closing",
        "key",
        "need",
        "others",
        "spent_out",
        "timer",
        "unanswered",
        "waiters",
        "wallet",
    )

    def __init__(self, key: PurseKey, wallet: Wallet) -> None:
        self.key = key
        self.wallet = wallet
        self.waiters: list[Waiter] = []  # by arrival
        self.answers = 0
        self.available = 0  # in the purse beside what is leased, at the last answer
        self.others = 0  # left in other workers' leases, at the last answer
        self.need = 0  # of the last ask; of all unanswered ones the largest, since an answer does not say to which
        self.unanswered = 0
        self.checking = False  # the last thing said was a question for the total
        self.spent_out = False
        self.closing = False  # no request draws on it any more: whatever is free goes back
        self.timer: asyncio.TimerHandle | None = None


class Leg(NamedTuple):
    """One purse of a chain. Without an `account` it is only counted, and `counted` is its share in every request."""

    account: Account | None
    unit: int
    whole: bool  # hold the whole bound (mode "hard"), else a token or a pico-dollar ("soft")
    pool: PoolRecord
    counted: Draw

    def amount(self, tokens: int, pico: int) -> int:
        """What a request of this bound must hold here; nothing of nothing."""
        bound = pico if self.unit else tokens
        return bound if self.whole or not bound else 1


class Chain:
    """Every purse of a combination of pools, ordered by (pool id, unit). Valid until the pools change."""

    __slots__ = ("held", "ids", "legs", "limits_money", "shortens", "starts")

    def __init__(self, pools: Iterable[PoolRecord], account: Callable[[PurseKey], Account]) -> None:
        ordered = sorted(pools, key=lambda pool: pool.id)
        self.ids = tuple(pool.id for pool in ordered)
        self.starts = {pool.id: pool.window_start for pool in ordered}
        self.legs = tuple(_leg(pool, unit, account) for pool in ordered for unit in UNITS)
        self.held = tuple((leg.account, leg.unit, leg.whole) for leg in self.legs if leg.account is not None)
        self.limits_money = any(unit == Unit.PICO_USD for _, unit, _ in self.held)
        self.shortens = any(pool.shorten for pool in ordered)


def purse_key(pool: PoolRecord, unit: int) -> PurseKey:
    """The name of a pool's present purse."""
    return (pool.id, unit, pool.window_start)


def limits(pool: PoolRecord, unit: int) -> bool:
    """Whether requests must hold something of the pool in this unit."""
    return pool.enabled and pool.mode != "observe" and unit in pool.units


def _leg(pool: PoolRecord, unit: int, account: Callable[[PurseKey], Account]) -> Leg:
    key = purse_key(pool, unit)
    return Leg(
        account=account(key) if limits(pool, unit) else None,
        unit=unit,
        whole=pool.mode != "soft",
        pool=pool,
        counted=Draw(pool.id, unit, pool.window_start, OBSERVED),
    )


class Waiter:
    """A request that waits for its holds, in the queue of the first purse that lacks something. It holds nothing."""

    __slots__ = (
        "account",
        "answers",
        "arrival",
        "chain",
        "cold",
        "future",
        "joined_at",
        "late",
        "needs",
        "pico",
        "tokens",
    )

    def __init__(
        self, chain: Chain, tokens: int, pico: int, arrival: int, future: asyncio.Future[tuple[Draw, ...]]
    ) -> None:
        self.tokens, self.pico = tokens, pico
        self.arrival = arrival
        self.future = future
        self.late = False  # its time is over, and only an answer of control's is still waited for
        self.account: Account | None = None  # where it stands
        self.answers = 0  # that control had given for this purse when it joined the queue
        self.joined_at = 0.0
        self.cold: asyncio.TimerHandle | None = None
        self.chain: Chain
        self.needs: dict[Account, int]
        self.draw_on(chain)

    def draw_on(self, chain: Chain) -> None:
        """Set the chain, at first and when its pools have changed."""
        self.chain = chain
        amounts = ((leg.account, leg.amount(self.tokens, self.pico)) for leg in chain.legs)
        self.needs = {account: amount for account, amount in amounts if account is not None and amount}

    def lacking(self) -> Account | None:
        """The first purse that has too little, or in which somebody who came before waits; None = all may be taken."""
        for account, amount in self.needs.items():
            if amount > account.wallet.free:
                return account
            waiters = account.waiters
            if waiters and waiters[0].arrival < self.arrival:
                return account
        return None
