"""The queues of those who wait for their holds, one per purse.

Who waits holds nothing. It stands in the queue of the first purse (in the order of chains) that lacks something or
where somebody waits who came before. When that purse gets more, the head of its queue is tried on all its purses:
either it takes all of them at once, or it moves to the queue of the next lacking one, keeping its place by arrival.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Callable

from budgets.chain import Account, Chain, Waiter
from budgets.line import Line
from budgets.records import Draw

COLD_WAIT_S = 1.0  # how long a request waits for control's answer on one purse
CLAIM_S = 1.0  # how long a queue's head may keep another purse's tokens from being called back

Draws = tuple[Draw, ...]


class DeskError(Exception):
    """A request cannot get its holds."""


class PoolSpentError(DeskError):
    """A purse has not enough. `available` and `wanted` are in its `unit`, `retry_after_s` in seconds."""

    def __init__(
        self, pool_id: int, *, unit: int = 0, available: int, wanted: int, retry_after_s: int, window_end: int = 0
    ) -> None:
        super().__init__(f"pool {pool_id} (unit {unit}) has {available} available, {wanted} are wanted")
        self.pool_id = pool_id
        self.unit = unit
        self.available = available
        self.wanted = wanted
        self.retry_after_s = retry_after_s
        self.window_end = window_end  # Unix seconds; 0 = never


class NoLeaseError(DeskError):
    """Control did not answer in time, so nothing is known to be left."""

    def __init__(self, pool_id: int, unit: int = 0) -> None:
        super().__init__(f"control did not grant anything of pool {pool_id} (unit {unit}) in time")
        self.pool_id = pool_id
        self.unit = unit
        self.retry_after_s = 1


class PoolDisabledError(DeskError):
    """A pool of the chain is disabled or was deleted."""

    def __init__(self, pool_id: int) -> None:
        super().__init__(f"pool {pool_id} is disabled")
        self.pool_id = pool_id


class Queues:
    """All queues of one worker.

    `spent` makes the refusal of a purse that has not the wanted amount, `release` takes holds back that came too late.
    """

    def __init__(
        self,
        line: Line,
        *,
        spent: Callable[[Account, int], PoolSpentError],
        release: Callable[[Draws], None],
        clock: Callable[[], float],
    ) -> None:
        self._line = line
        self._spent = spent
        self._release = release
        self._clock = clock
        self._crowded: set[Account] = set()  # where somebody waits, or did a moment ago
        self._arrivals = 0

    def take(self, chain: Chain, tokens: int, pico: int) -> Draws:
        """Hold a bound on every purse of a chain; the caller has seen that all of them have it."""
        draws = []
        for account, unit, whole, _, counted in chain.legs:
            if account is None:
                draws.append(counted)
                continue
            amount = pico if unit else tokens
            if amount:
                if not whole:
                    amount = 1
                wallet = account.wallet
                taken = wallet.try_hold(amount)
                assert taken
                if wallet.free < wallet.low:
                    self._line.ask_ahead(account)
            draws.append(Draw(counted.pool_id, unit, counted.window_start, amount))
        return tuple(draws)

    async def wait(self, chain: Chain, tokens: int, pico: int, timeout_s: float) -> Draws:
        """Hold a bound on every purse in the order of arrival. Raises as `Desk.wait_hold` says."""
        loop = asyncio.get_running_loop()
        self._arrivals += 1
        waiter = Waiter(chain, tokens, pico, self._arrivals, loop.create_future())
        for account, amount in waiter.needs.items():
            if account.spent_out and account.wallet.in_vain() and _hopeless(account, amount):
                raise self._spent(account, amount)
        timer = loop.call_later(timeout_s, self._too_late, waiter)
        try:
            self._try(waiter)
            self._ask_for_cold(waiter)
            return await waiter.future
        except asyncio.CancelledError:
            future = waiter.future
            if future.done() and not future.cancelled() and future.exception() is None:
                self._release(future.result())
            raise
        finally:
            timer.cancel()
            self._leave(waiter)

    def stir(self, account: Account) -> None:
        """Something came into a purse, or the head of its queue may be another one: serve whom it suffices for."""
        self._serve(account)
        self._line.ask_for_first(account)

    def answered(self, account: Account, *, new: bool) -> None:
        """Control has answered an ask: serve, refuse those for whom there will be nothing, ask on for the rest."""
        self._serve(account)
        for waiter in list(account.waiters):
            if account.spent_out and _hopeless(account, waiter.needs.get(account, 0)):
                self._refuse(waiter)
            elif not account.need:
                waiter.answers = account.answers  # to an ask made ahead: nobody has asked for this one's sake yet
            elif waiter.late:
                self._refuse(waiter)
        self._serve(account)
        if not account.waiters:
            return
        if new:
            self._line.ask_for_first(account)
        else:
            self._line.ask_later(account)

    def claims(self, account: Account) -> int:
        """What the heads of later purses' queues need of this one, for a second after they got there."""
        since = self._clock() - CLAIM_S
        claims = 0
        for other in tuple(self._crowded):
            if not other.waiters:
                self._crowded.discard(other)
            elif other.key > account.key and other.waiters[0].joined_at > since:
                claims += other.waiters[0].needs.get(account, 0)
        return claims

    def rechain(self, changed: set[int], chain_of: Callable[[tuple[int, ...]], Chain]) -> None:
        """Let those who wait for changed pools wait for what these are now."""
        self._crowded = {account for account in self._crowded if account.waiters}
        waiting = [waiter for account in self._crowded for waiter in account.waiters if not waiter.future.done()]
        moved = sorted((waiter for waiter in waiting if not changed.isdisjoint(waiter.chain.ids)), key=_arrival)
        left = {waiter.account for waiter in moved}
        for waiter in moved:
            try:
                chain = chain_of(waiter.chain.ids)
            except PoolDisabledError as error:
                self._refuse(waiter, error)
                continue
            assert waiter.account is not None
            waiter.account.waiters.remove(waiter)
            waiter.account = None
            waiter.draw_on(chain)
        for waiter in moved:
            if not waiter.future.done():
                self._try(waiter)
        for account in left:
            if account is not None:
                self.stir(account)

    def _try(self, waiter: Waiter) -> None:
        """Give a waiter that stands nowhere its holds, or a place in the queue of the first purse that lacks some."""
        account = waiter.lacking()
        if waiter.cold is not None:
            waiter.cold.cancel()
        if account is None:
            waiter.account = None
            waiter.future.set_result(self.take(waiter.chain, waiter.tokens, waiter.pico))
            return
        waiter.account, waiter.answers, waiter.joined_at = account, account.answers, self._clock()
        waiter.cold = asyncio.get_running_loop().call_later(COLD_WAIT_S, self._unanswered, waiter)
        insort(account.waiters, waiter, key=_arrival)
        self._crowded.add(account)
        if account.waiters[0] is waiter:
            self._line.ask_for_first(account)

    def _serve(self, account: Account) -> None:
        """Try the head of a queue on all its purses, as long as this purse is not what it lacks."""
        waiters = account.waiters
        while waiters:
            first = waiters[0]
            if first.future.done():
                del waiters[0]
            elif first.lacking() is account:
                return
            else:
                del waiters[0]
                self._try(first)

    def _leave(self, waiter: Waiter) -> None:
        """Take a request that ended out of its queue; the next one is then the first."""
        if waiter.cold is not None:
            waiter.cold.cancel()
        account, waiter.account = waiter.account, None
        if account is None:
            return
        if waiter in account.waiters:
            account.waiters.remove(waiter)
        self.stir(account)

    def _refuse(self, waiter: Waiter, error: DeskError | None = None) -> None:
        """End a waiter's waiting and take it out of its queue, which must be served next."""
        account, waiter.account = waiter.account, None
        assert account is not None
        account.waiters.remove(waiter)
        if not waiter.future.done():
            waiter.future.set_exception(error or self._spent(account, waiter.needs.get(account, 0)))

    def _unanswered(self, waiter: Waiter) -> None:
        account = waiter.account
        if account is not None and not waiter.future.done() and account.answers == waiter.answers:
            self._refuse(waiter, NoLeaseError(account.key[0], account.key[1]))
            self.stir(account)

    def _too_late(self, waiter: Waiter) -> None:
        account = waiter.account
        if account is None or waiter.future.done():
            return
        if account.answers == waiter.answers:
            # Control has not spoken since: its answer or `_unanswered` decides, not a purse nobody has looked into.
            waiter.late = True
            return
        self._refuse(waiter)
        self.stir(account)

    def _ask_for_cold(self, waiter: Waiter) -> None:
        """Ask for the purses control has said nothing of yet all at once, not one after the other."""
        for account, amount in waiter.needs.items():
            if not account.answers and account is not waiter.account and account.wallet.may_ask():
                self._line.ask(account, 0, ahead=amount)


def _arrival(waiter: Waiter) -> int:
    return waiter.arrival


def _hopeless(account: Account, amount: int) -> bool:
    """Whether an amount can never come together of a purse that control said is spent: what is not leased and what
    other workers have is less than was asked for, and all that is free or held here does not make up for the rest."""
    wallet = account.wallet
    return amount - wallet.free - wallet.held >= max(1, account.need)
