"""What one worker may still spend from one purse: a pure state machine over amounts (tokens or pico-USD).

A wallet is filled by grants (absolute totals, so that an answer that is lost or repeated does no harm) and drained by
holds. At every moment

    free + held + used == total - returned

where `used` is everything charged here since the wallet was made; the part of it that the ledger has not applied yet
is still inside the worker's lease, so all that can ever be charged stays within what was leased. Only a provider that
reports more than was held (an overrun) makes `free` negative; the next grant pays that debt first.

No I/O and no asyncio in here; the clock is injected.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LEASE_S = 10.0  # a grant should last this long at the wallet's own rate
RATE_SPAN_S = 0.5  # shortest span a rate is computed over
ASK_AGAIN_S = 0.25  # pause after an answer that brought nothing
ASK_LOST_S = 1.0  # an ask without an answer counts as lost after this


class Wallet:
    """One purse on this worker. Amounts are in the purse's unit, never negative in calls."""

    __slots__ = (
        "_asked_at",
        "_clock",
        "_not_before",
        "_rate",
        "_rate_at",
        "_rate_used",
        "asked",
        "free",
        "held",
        "low",
        "returned",
        "total",
        "used",
    )

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.free = 0
        self.held = 0
        self.used = 0
        self.total = 0  # granted in all, as the ledger said last
        self.returned = 0  # given back in all
        self.low = 0  # below this much free, ask for more
        self.asked = False
        self._clock = clock
        self._asked_at = 0.0
        self._not_before = 0.0
        self._rate = 0.0
        self._rate_at = clock()
        self._rate_used = 0

    def try_hold(self, tokens: int) -> bool:
        """Move `tokens` from free to held; False, with nothing changed, when they are not there."""
        if tokens > self.free:
            return False
        self.free -= tokens
        self.held += tokens
        return True

    def settle(self, held: int, used: int) -> None:
        """End a hold of `held` tokens of which `used` were consumed (more than held = an overrun, taken from free)."""
        assert 0 <= held <= self.held
        assert used >= 0
        self.held -= held
        self.free += held - used
        self.used += used

    def release(self, held: int) -> None:
        """End a hold of which nothing was consumed."""
        self.settle(held, 0)

    def granted(self, total: int, *, more: bool, spent_out: bool) -> int:
        """Take an answer in: `total` is absolute, `more` says that asking ahead is welcome. Returns what is new.

        A total below the known one is a late answer and changes nothing but the ask.
        """
        new = max(0, total - self.total)
        self.total += new
        self.free += new
        self.asked = False
        self.low = max(0, self.free) // 2 if more and not spent_out else 0
        if new == 0:
            self._not_before = self._clock() + ASK_AGAIN_S
        return new

    def give_back(self, keep: int = 0) -> int:
        """Return all free tokens but `keep`; the amount. Asking ahead stops until a grant says that there is more."""
        tokens = max(0, self.free - keep)
        self.free -= tokens
        self.returned += tokens
        self.low = 0
        return tokens

    def wants(self) -> int | None:
        """How much to ask for now, for running ahead of demand; None while there is enough or an ask is under way."""
        if self.free >= self.low:
            return None
        return self.block() if self.may_ask() else None

    def may_ask(self) -> bool:
        """Whether an ask makes sense now: none is under way (or it is so old that it is lost) or was just in vain."""
        now = self._clock()
        return now >= self._not_before and not (self.asked and now - self._asked_at < ASK_LOST_S)

    def in_vain(self) -> bool:
        """Whether the last answer brought nothing and is so fresh that another would say the same."""
        return self._clock() < self._not_before

    def block(self) -> int:
        """What keeps this wallet going for `LEASE_S` at its recent rate, what is held included."""
        return int(self.rate() * LEASE_S) + self.held + 1

    def asking(self) -> None:
        """Note that an ask was sent."""
        self.asked = True
        self._asked_at = self._clock()

    def forget_ask(self) -> None:
        """Note that another ask may be sent now: the line to control is new, or things have changed."""
        self.asked = False
        self._not_before = 0.0

    def rate(self) -> float:
        """What was charged per second since the rate was last looked at (at least `RATE_SPAN_S` ago)."""
        now = self._clock()
        span_s = now - self._rate_at
        if span_s >= RATE_SPAN_S:
            self._rate = (self.used - self._rate_used) / span_s
            self._rate_at, self._rate_used = now, self.used
        return self._rate
