"""Where requests of this worker get their tokens: wallets by pool, asks to control, and the queue of those who wait.

Belongs to one event loop; nothing in here blocks. The line to control is two callables that somebody else connects:
`send_ask(owner, pool_id, window_start, seen_total, want, need)` and
`send_return(owner, pool_id, window_start, returned_total)`; control's side calls `on_granted`, `on_recall`,
`connected` and `disconnected`.

Errors: `PoolSpentError` when control said that there are no tokens (the caller's limit), `NoLeaseError` when control
did not answer (ours).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from budgets.records import PoolRecord
from budgets.wallet import ASK_AGAIN_S, Wallet

COLD_WAIT_S = 1.0  # how long a request waits for control's first answer
PRIMED_POOLS = 64  # so many pools get a first lease before anyone asks
RETRY_SOON_S, RETRY_LATE_S = 5, 60  # told to refused callers: tokens are out and may come back / nothing may

SendAsk = Callable[[str, int, int, int, int, int], object]
SendReturn = Callable[[str, int, int, int], object]


class DeskError(Exception):
    """A request cannot get its tokens."""


class PoolSpentError(DeskError):
    """The pool has not enough tokens. `available` and `wanted` in tokens, `retry_after_s` in seconds."""

    def __init__(self, pool: int, *, available: int, wanted: int, retry_after_s: int) -> None:
        super().__init__(f"pool {pool} has {available} tokens available, {wanted} are wanted")
        self.pool = pool
        self.available = available
        self.wanted = wanted
        self.retry_after_s = retry_after_s


class NoLeaseError(DeskError):
    """Control did not answer in time, so nothing is known to be left."""

    def __init__(self, pool: int) -> None:
        super().__init__(f"control did not grant tokens of pool {pool} in time")
        self.pool = pool
        self.retry_after_s = 1


class _Waiter:
    """One request in the queue. `answers` is how many answers control had given when it came."""

    __slots__ = ("answers", "future", "late", "tokens")

    def __init__(self, tokens: int, answers: int, future: asyncio.Future[None]) -> None:
        self.tokens = tokens
        self.answers = answers
        self.future = future
        self.late = False  # its time is over, and only control's first answer is still waited for


class _Account:
    """A wallet, its queue and what control said last."""

    __slots__ = (
        "answers",
        "available",
        "need",
        "pool_id",
        "spent_out",
        "timer",
        "unanswered",
        "waiters",
        "wallet",
        "window_start",
    )

    def __init__(self, pool_id: int, window_start: int, wallet: Wallet) -> None:
        self.pool_id = pool_id
        self.window_start = window_start
        self.wallet = wallet
        self.waiters: deque[_Waiter] = deque()
        self.answers = 0
        self.available = 0  # in the pool beside what is leased, at the last answer
        self.need = 0  # of the last ask; of all unanswered ones the largest, since an answer does not say to which
        self.unanswered = 0
        self.spent_out = False
        self.timer: asyncio.TimerHandle | None = None


class Desk:
    """Holds, settles and releases tokens for the requests of one worker. Amounts are tokens."""

    def __init__(
        self,
        owner: str,
        *,
        send_ask: SendAsk | None = None,
        send_return: SendReturn | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.owner = owner
        self.send_ask = send_ask
        self.send_return = send_return
        self._clock = clock
        self._accounts: dict[tuple[int, int], _Account] = {}
        self._windows: dict[int, int] = {}
        self._connected = True

    # --- what requests call -----------------------------------------------------------------------------------------

    def hold(self, pool_id: int, tokens: int, window_start: int | None = None) -> bool:
        """Hold `tokens` now; False when they are not at hand or others wait already. Then use `wait_hold`."""
        account = self._account(pool_id, window_start)
        wallet = account.wallet
        if account.waiters or not wallet.try_hold(tokens):
            return False
        if wallet.free < wallet.low:
            self._ask_ahead(account)
        return True

    async def wait_hold(self, pool_id: int, tokens: int, timeout_s: float, window_start: int | None = None) -> None:
        """Hold `tokens`, in the order of arrival, waiting at most `timeout_s` for tokens to come (back).

        Raises `PoolSpentError`, at once when nothing that is out could bring enough; `NoLeaseError` when control gives
        no answer within a second. Cancelling gives up the place, or the hold that was just made.
        """
        account = self._account(pool_id, window_start)
        if not account.waiters and account.wallet.try_hold(tokens):
            return
        loop = asyncio.get_running_loop()
        waiter = _Waiter(tokens, account.answers, loop.create_future())
        if account.spent_out and account.wallet.in_vain() and self._hopeless(account, waiter):
            raise self._spent(account, waiter)
        account.waiters.append(waiter)
        timers = (
            loop.call_later(COLD_WAIT_S, self._unanswered, account, waiter),
            loop.call_later(timeout_s, self._too_late, account, waiter),
        )
        try:
            if account.waiters[0] is waiter:
                self._ask_for_first(account)
            await waiter.future
        except asyncio.CancelledError:
            future = waiter.future
            if future.done() and not future.cancelled() and future.exception() is None:
                account.wallet.release(tokens)
            raise
        finally:
            for timer in timers:
                timer.cancel()
            self._leave(account, waiter)

    def settle(self, pool_id: int, held: int, used: int, window_start: int | None = None) -> None:
        """End a hold: `used` tokens were consumed (more than `held` = an overrun). Journal the end first."""
        account = self._account(pool_id, window_start)
        wallet = account.wallet
        wallet.settle(held, used)
        if account.waiters:
            self._serve(account)
            self._ask_for_first(account)
        elif wallet.free < wallet.low:
            self._ask_ahead(account)

    def release(self, pool_id: int, held: int, window_start: int | None = None) -> None:
        """End a hold of which nothing was consumed."""
        self.settle(pool_id, held, 0, window_start)

    def available(self, pool_id: int) -> int | None:
        """Tokens a new request could get, as far as known here; None before control's first answer."""
        account = self._account(pool_id, None)
        if not account.answers:
            return None
        return max(0, account.available) + max(0, account.wallet.free)

    # --- what the worker's runtime and its line to control call -----------------------------------------------------

    def set_pools(self, pools: Iterable[PoolRecord]) -> None:
        """Learn the pools and their windows; the first few get a lease before anyone asks."""
        self._windows = {pool.id: pool.window_start for pool in pools if pool.enabled}
        self._prime()

    def on_granted(
        self, pool_id: int, window_start: int, total: int, more: bool, spent_out: bool, available: int
    ) -> None:
        """Control's answer to an ask: the absolute total granted, and what is left in the pool beside leases."""
        account = self._account(pool_id, window_start)
        new = account.wallet.granted(total, more=more, spent_out=spent_out)
        account.answers += 1
        account.unanswered = max(0, account.unanswered - 1)
        account.available = available
        account.spent_out = spent_out
        self._serve(account)
        self._refuse_late(account)
        if spent_out:
            self._refuse_hopeless(account)
        if account.waiters:
            if new:
                self._ask_for_first(account)
            elif account.timer is None:
                account.timer = asyncio.get_running_loop().call_later(ASK_AGAIN_S, self._ask_again, account)

    def on_recall(self, pool_id: int, window_start: int) -> None:
        """Another worker needs tokens: give back what is free. Who waits here asks anew, for all it needs."""
        account = self._accounts.get((pool_id, window_start))
        if account is None:
            return
        self._give_back(account)
        account.wallet.forget_ask()
        self._ask_for_first(account)

    def connected(self) -> None:
        """The line to control is up: answers still due are lost, returns may have been. Say and ask again."""
        self._connected = True
        for account in self._accounts.values():
            account.wallet.forget_ask()
            account.unanswered = 0
            if account.wallet.returned:
                self._send_return(account)
            if account.waiters:
                self._ask_for_first(account)
            elif account.wallet.free < account.wallet.low:
                self._ask_ahead(account)
        self._prime()

    def disconnected(self) -> None:
        """The line to control is down: requests live on what is leased."""
        self._connected = False

    def return_all(self) -> None:
        """Give every free token back (a worker that drains needs no more)."""
        for account in self._accounts.values():
            self._give_back(account)

    def status(self) -> list[dict[str, Any]]:
        """One entry per wallet with its figures, for health pages."""
        return [
            {
                "pool_id": account.pool_id,
                "window_start": account.window_start,
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

    def _account(self, pool_id: int, window_start: int | None) -> _Account:
        key = (pool_id, self._windows.get(pool_id, 0) if window_start is None else window_start)
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = _Account(*key, Wallet(clock=self._clock))
        return account

    def _prime(self) -> None:
        for pool_id in list(self._windows)[:PRIMED_POOLS]:
            account = self._account(pool_id, None)
            if not account.answers and account.wallet.may_ask():
                self._ask(account, 0)

    def _serve(self, account: _Account) -> None:
        waiters, wallet = account.waiters, account.wallet
        while waiters:
            first = waiters[0]
            if not first.future.done():
                if not wallet.try_hold(first.tokens):
                    return
                first.future.set_result(None)
            waiters.popleft()

    def _refuse_late(self, account: _Account) -> None:
        for waiter in [waiter for waiter in account.waiters if waiter.late]:
            account.waiters.remove(waiter)
            self._refuse(account, waiter)

    def _refuse_hopeless(self, account: _Account) -> None:
        for waiter in list(account.waiters):
            if self._hopeless(account, waiter):
                account.waiters.remove(waiter)
                self._refuse(account, waiter)

    def _hopeless(self, account: _Account, waiter: _Waiter) -> bool:
        """Whether control, which said that the pool is spent, and all that is held here could not serve it together."""
        wallet = account.wallet
        return waiter.tokens > wallet.free + wallet.held and waiter.tokens - wallet.free >= account.need

    def _refuse(self, account: _Account, waiter: _Waiter) -> None:
        if not waiter.future.done():
            waiter.future.set_exception(self._spent(account, waiter))

    def _spent(self, account: _Account, waiter: _Waiter) -> PoolSpentError:
        nothing_out = account.spent_out and not account.wallet.held
        return PoolSpentError(
            account.pool_id,
            available=max(0, account.available) + max(0, account.wallet.free),
            wanted=waiter.tokens,
            retry_after_s=RETRY_LATE_S if nothing_out else RETRY_SOON_S,
        )

    def _unanswered(self, account: _Account, waiter: _Waiter) -> None:
        if not waiter.future.done() and account.answers == waiter.answers:
            waiter.future.set_exception(NoLeaseError(account.pool_id))

    def _too_late(self, account: _Account, waiter: _Waiter) -> None:
        if account.answers == waiter.answers:
            # Control has not spoken since: its answer or `_unanswered` decides, not a purse nobody has looked into.
            waiter.late = True
            return
        self._refuse(account, waiter)

    def _leave(self, account: _Account, waiter: _Waiter) -> None:
        """Take a request that ended out of the queue; the next one is then the first."""
        try:
            account.waiters.remove(waiter)
        except ValueError:
            pass
        if account.waiters:
            self._serve(account)
            self._ask_for_first(account)

    def _ask_again(self, account: _Account) -> None:
        account.timer = None
        account.wallet.forget_ask()
        self._ask_for_first(account)

    def _ask_for_first(self, account: _Account) -> None:
        if not account.waiters:
            return
        if account.wallet.may_ask():
            self._ask(account, account.waiters[0].tokens - account.wallet.free)
        if account.timer is None:
            account.timer = asyncio.get_running_loop().call_later(ASK_AGAIN_S, self._ask_again, account)

    def _ask_ahead(self, account: _Account) -> None:
        if account.wallet.wants() is not None:
            self._ask(account, 0)

    def _ask(self, account: _Account, need: int) -> None:
        if self.send_ask is None or not self._connected:
            return
        wallet = account.wallet
        account.need = max(account.need, need) if account.unanswered else need
        account.unanswered += 1
        wallet.asking()
        want = max(wallet.block(), sum(waiter.tokens for waiter in account.waiters)) - min(0, wallet.free)
        self.send_ask(self.owner, account.pool_id, account.window_start, wallet.total, want, need)

    def _give_back(self, account: _Account) -> None:
        if account.wallet.give_back() and self._connected:
            self._send_return(account)

    def _send_return(self, account: _Account) -> None:
        if self.send_return is not None:
            self.send_return(self.owner, account.pool_id, account.window_start, account.wallet.returned)
