"""Where requests of this worker get their holds: wallets by purse, and what happens to them as pools change.

A request draws on a `Chain` of purses, all of them or none (see `budgets.chain`, and `budgets.queues` for those who
must wait). Belongs to one event loop; nothing in here blocks. The line to control is two callables that somebody else
connects, `send_ask(owner, pool_id, unit, window_start, seen_total, want, need)` and
`send_return(owner, pool_id, unit, window_start, returned_total)`; control's side calls `on_granted`, `on_recall`,
`connected` and `disconnected`.

Errors: `PoolSpentError` when control said that a purse is empty (the caller's limit), `NoLeaseError` when control did
not answer (ours), `PoolDisabledError` when a pool is disabled or not there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from budgets.chain import UNITS, Account, Chain, PurseKey, limits, purse_key
from budgets.line import Line, SendAsk, SendReturn
from budgets.queues import DeskError, Draws, NoLeaseError, PoolDisabledError, PoolSpentError, Queues
from budgets.records import Draw, PoolRecord
from budgets.wallet import Wallet

__all__ = ("Desk", "DeskError", "NoLeaseError", "PoolDisabledError", "PoolSpentError", "Room")

PRIMED_PURSES = 64  # so many purses get a first lease before anyone asks
RETRY_LIFETIME_S = 60  # told to refused callers where nothing is out and no new window begins
RETRY_MOST_S = 60  # … and at most, where holds are out
MEAN_WEIGHT = 1 / 16  # of the newest hold's duration in their mean
CHAINS_MAX = 16_384
CLOSED_WELL = 1024  # so many purses of windows that are over are remembered until the line breaks
CLOSED_MAX = (
    16_384  # … and so many where control confirms nothing; what the oldest had comes back with this worker's end
)
IDLE_MAX = 256


class Room(NamedTuple):
    """What a new request could get, by unit; None = no limit, or not known before control's first answer."""

    tokens: int | None
    pico: int | None


class Desk:
    """Holds, settles and releases for the requests of one worker."""

    def __init__(
        self,
        owner: str,
        *,
        send_ask: SendAsk | None = None,
        send_return: SendReturn | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.mean_hold_s = 1.0
        self._clock = clock
        self._wall_clock = wall_clock
        self._line = Line(owner, send_ask, send_return)
        self._queues = Queues(self._line, spent=self._spent, release=self.release, clock=clock)
        self._accounts: dict[PurseKey, Account] = {}
        self._closed: dict[PurseKey, Account] = {}  # of windows that are over, until control knows what came back
        self._pools: dict[int, PoolRecord] = {}
        self._chains: dict[tuple[int, ...], Chain] = {}

    @property
    def owner(self) -> str:
        """The name of this incarnation of the worker."""
        return self._line.owner

    @property
    def send_ask(self) -> SendAsk | None:
        """How an ask reaches control."""
        return self._line.send_ask

    @send_ask.setter
    def send_ask(self, send_ask: SendAsk | None) -> None:
        self._line.send_ask = send_ask

    @property
    def send_return(self) -> SendReturn | None:
        """How a return reaches control."""
        return self._line.send_return

    @send_return.setter
    def send_return(self, send_return: SendReturn | None) -> None:
        self._line.send_return = send_return

    # --- what requests call -----------------------------------------------------------------------------------------

    def chain(self, ids: tuple[int, ...]) -> Chain:
        """The chain over these pools, as they are now. Raises `PoolDisabledError`."""
        chain = self._chains.get(ids)
        return chain if chain is not None else self._make_chain(ids)

    def hold(self, chain: Chain, tokens: int, pico: int) -> Draws | None:
        """Hold a bound on every purse now; None when one lacks it or others wait already. Then use `wait_hold`."""
        for account, unit, whole in chain.held:
            amount = pico if unit else tokens
            if amount and (account.waiters or (amount if whole else 1) > account.wallet.free):
                return None
        return self._queues.take(chain, tokens, pico)

    async def wait_hold(self, chain: Chain, tokens: int, pico: int, timeout_s: float) -> Draws:
        """Hold a bound on every purse, in the order of arrival, waiting at most `timeout_s` for some to come (back).

        Raises `PoolSpentError`, at once when nothing that is out could bring enough; `NoLeaseError` when control gives
        no answer within a second; `PoolDisabledError` when that happens meanwhile. Cancelling gives up the place, or
        the holds that were just made. When a window ends meanwhile, the holds are made in the next one.
        """
        draws = self.hold(chain, tokens, pico)
        return draws if draws is not None else await self._queues.wait(chain, tokens, pico, timeout_s)

    def settle(self, draws: Sequence[Draw], tokens: int, pico: int) -> None:
        """End a request's holds: this much was consumed (more than held = an overrun). Journal the end first."""
        for draw in draws:
            held = draw.held
            if held < 0:
                continue
            account = self._accounts.get((draw.pool_id, draw.unit, draw.window_start))
            if account is None:
                continue  # nothing was held, of a window that is over: the ledger charges it
            wallet = account.wallet
            wallet.settle(held, pico if draw.unit else tokens)
            if account.waiters:
                self._queues.stir(account)
            elif account.closing:
                self._close(account)
            elif wallet.free < wallet.low:
                self._line.ask_ahead(account)

    def release(self, draws: Sequence[Draw]) -> None:
        """End holds of which nothing was consumed."""
        self.settle(draws, 0, 0)

    def took(self, held_s: float) -> None:
        """Learn how long a hold lasted: what callers who are refused are told to wait for."""
        self.mean_hold_s += (held_s - self.mean_hold_s) * MEAN_WEIGHT

    def available(self, chain: Chain) -> Room:
        """The least that the purses which bound a request have, as far as known here."""
        room: list[int | None] = [None, None]
        for account, unit, whole in chain.held:
            if whole and account.answers:
                known, left = room[unit], _left(account)
                room[unit] = left if known is None else min(known, left)
        return Room(*room)

    def room_to_shorten(self, chain: Chain, tokens: int, pico: int) -> Room | None:
        """What is available, if every purse that lacks something of this bound is of a pool that shortens answers."""
        for leg in chain.legs:
            if leg.account is not None and leg.account.answers and not leg.pool.shorten:
                amount = leg.amount(tokens, pico)
                if amount and amount > _left(leg.account):
                    return None
        return self.available(chain)

    # --- what the worker's runtime and its line to control call -----------------------------------------------------

    def set_pools(self, pools: Iterable[PoolRecord]) -> None:
        """Learn the pools and their windows; the first few get a lease before anyone asks.

        What is free in a window that ended goes back at once, the rest as its holds end. Who waits, waits on for the
        next window.
        """
        old, new = self._pools, {pool.id: pool for pool in pools}
        changed = old.keys() - new.keys()
        for pool_id, pool in new.items():
            before = old.get(pool_id)
            if before is not pool and before != pool:
                changed.add(pool_id)
        if changed:
            self._pools = new
            self._chains.clear()
            closing = self._mark_closing(old, changed)
            self._queues.rechain(changed, self.chain)
            for account in closing:
                self._close(account)
        self._prime()

    def on_granted(
        self,
        pool_id: int,
        unit: int,
        window_start: int,
        total: int,
        more: bool,
        spent_out: bool,
        available: int,
        others: int = 0,
    ) -> None:
        """Control's answer to an ask: the absolute total granted, what is left in the purse beside leases, and what
        other workers have left in theirs."""
        key = (pool_id, unit, window_start)
        account = self._accounts.get(key)
        if account is None:
            if self._came_late(key, total):
                return
            account = self._account(key)
        wallet, low = account.wallet, account.wallet.low
        new = wallet.granted(total, more=more, spent_out=spent_out)
        if account.checking:  # nothing was asked for, so nothing was refused
            account.checking, wallet.low = False, low
            wallet.forget_ask()
        account.answers += 1
        account.unanswered = max(0, account.unanswered - 1)
        account.available, account.others = available, others
        account.spent_out = spent_out
        if account.closing:
            self._close(account)
        else:
            self._queues.answered(account, new=new > 0)

    def on_recall(self, pool_id: int, unit: int, window_start: int) -> None:
        """Another worker needs some of this purse: give back what is free. Who waits here asks anew, for all it needs.

        Kept is what the first in the queue of a later purse needs of this one: since all workers take purses in one
        order, who is furthest can then finish. For a second at most, or it would lie idle for long.
        """
        account = self._accounts.get((pool_id, unit, window_start))
        if account is None:
            return
        self._line.give_back(account, keep=self._queues.claims(account))
        account.wallet.forget_ask()
        self._line.ask_for_first(account)

    def connected(self) -> None:
        """The line to control is up: answers still due are lost, returns may have been. Say and ask again.

        What a lost answer granted would otherwise lie in this worker's lease, known to nobody who could use it.
        """
        self._line.up = True
        for account in list(self._closed.values()):
            account.unanswered = 0
            self._confirm(account)
        for account in list(self._accounts.values()):
            lost = account.unanswered or account.need  # an unmet need may have been met later, unasked
            account.wallet.forget_ask()
            account.unanswered = 0
            if account.wallet.returned:
                self._line.say_returned(account.key, account.wallet)
            if account.waiters:
                self._line.ask_for_first(account)
            elif account.wallet.free < account.wallet.low:
                self._line.ask_ahead(account)
            elif lost:
                self._line.ask_total(account)
        self._prime()

    def disconnected(self) -> None:
        """The line to control is down: requests live on what is leased."""
        self._line.up = False

    def return_all(self) -> None:
        """Give everything that is free back (a worker that drains needs no more)."""
        for account in self._accounts.values():
            self._line.give_back(account)

    def idle(self) -> list[list[int]]:
        """[pool id, unit, window start, free] of purses with something free, at most 256 of them."""
        free = ([*account.key, account.wallet.free] for account in self._accounts.values() if account.wallet.free > 0)
        return list(islice(free, IDLE_MAX))

    def status(self) -> list[dict[str, Any]]:
        """One entry per wallet with its figures, for health pages."""
        return [
            {
                "pool_id": account.key[0],
                "unit": account.key[1],
                "window_start": account.key[2],
                "free": account.wallet.free,
                "held": account.wallet.held,
                "used": account.wallet.used,
                "granted": account.wallet.total,
                "returned": account.wallet.returned,
                "waiting": len(account.waiters),
                "available": account.available,
            }
            for account in self._accounts.values()
        ]

    # --- inside -----------------------------------------------------------------------------------------------------

    def _account(self, key: PurseKey) -> Account:
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Account(key, Wallet(clock=self._clock))
        return account

    def _make_chain(self, ids: tuple[int, ...]) -> Chain:
        pools = []
        for pool_id in sorted(set(ids)):
            pool = self._pools.get(pool_id)
            if pool is None or not pool.enabled:
                raise PoolDisabledError(pool_id)
            pools.append(pool)
        if len(self._chains) >= CHAINS_MAX:
            self._chains.pop(next(iter(self._chains)))
        chain = self._chains[ids] = Chain(pools, self._account)
        return chain

    def _mark_closing(self, old: dict[int, PoolRecord], changed: set[int]) -> list[Account]:
        """Set which accounts of changed pools are drawn on no more; those."""
        closing = []
        for pool_id in changed:
            before, now = old.get(pool_id), self._pools.get(pool_id)
            for unit in UNITS:
                account = self._accounts.get(purse_key(before, unit)) if before is not None else None
                if account is not None and (now is None or purse_key(now, unit) != account.key):
                    account.closing = True
                    closing.append(account)
                account = self._accounts.get(purse_key(now, unit)) if now is not None else None
                if account is not None and now is not None:
                    account.closing = not limits(now, unit)
                    closing += [account] * account.closing
        return closing

    def _close(self, account: Account) -> None:
        """Give back what is free of a purse nobody draws on, and forget it when it is empty and will not come back."""
        self._line.give_back(account)
        pool = self._pools.get(account.key[0])
        over = pool is not None and pool.window_start > account.key[2]
        if over and not account.wallet.held and not account.waiters:
            if account.timer is not None:
                account.timer.cancel()
            del self._accounts[account.key]
            self._closed[account.key] = account
            if len(self._closed) > CLOSED_WELL:
                self._confirm_oldest()

    def _came_late(self, key: PurseKey, total: int) -> bool:
        """Whether a grant is for a window that is over and forgotten; what it brings goes back."""
        account = self._closed.get(key)
        if account is None:
            pool = self._pools.get(key[0])
            return pool is not None and pool.window_start > key[2]
        account.wallet.granted(total, more=False, spent_out=False)
        account.unanswered = max(0, account.unanswered - 1)
        if account.wallet.give_back():
            account.checking = False  # control has yet to read this
            self._line.say_returned(key, account.wallet)
        elif account.checking and not account.unanswered:
            del self._closed[key]
        return True

    def _confirm(self, account: Account) -> None:
        """Say once more what was given back of a closed purse, and have control answer when it has read that."""
        self._line.say_returned(account.key, account.wallet)
        self._line.ask_total(account)

    def _confirm_oldest(self) -> None:
        """Have the purse that was closed first confirmed, so that it can be forgotten."""
        oldest = self._closed.pop(next(iter(self._closed)))
        if len(self._closed) < CLOSED_MAX:
            self._closed[oldest.key] = oldest
            self._confirm(oldest)

    def _prime(self) -> None:
        primed = 0
        for pool in self._pools.values():
            if primed >= PRIMED_PURSES:
                return
            for unit in UNITS:
                if limits(pool, unit):
                    primed += 1
                    account = self._account(purse_key(pool, unit))
                    if not account.answers and account.wallet.may_ask():
                        self._line.ask(account, 0)

    def _spent(self, account: Account, wanted: int) -> PoolSpentError:
        pool_id, unit, window_start = account.key
        pool = self._pools.get(pool_id)
        end = pool.window_end if pool is not None and pool.window_start == window_start else 0
        if not account.spent_out or account.wallet.held:
            retry_after_s = min(RETRY_MOST_S, max(1, math.ceil(self.mean_hold_s)))
        elif end:
            retry_after_s = max(1, math.ceil(end - self._wall_clock()))
        else:
            retry_after_s = RETRY_LIFETIME_S
        available = _left(account)
        if account.spent_out and available + account.others < wanted:
            available += account.others  # all there is, and still too little
        return PoolSpentError(
            pool_id, unit=unit, available=available, wanted=wanted, retry_after_s=retry_after_s, window_end=end
        )


def _left(account: Account) -> int:
    return max(0, account.available) + max(0, account.wallet.free)
