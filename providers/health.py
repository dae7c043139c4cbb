"""Passive health of an upstream: what calls have shown, per (provider, credential). Pure: the clock is passed in.

States of a circuit: closed (calls go through), open (left out until a time), half-open (one probing call at a time).
Five consecutive failures open it by default; the open time grows with each ejection in a row and is jittered, so
that workers do not come back in step. A refused rate (429) is no failure: it sets a cooldown.
"""

from __future__ import annotations

import random
from collections.abc import Callable

OPEN_S_MAX = 300.0
JITTER = 0.2
PROBE_S = 60.0  # a probing call that never reports back blocks further probes no longer than this


class Circuit:
    """The circuit of one upstream. Times are seconds of one monotonic clock."""

    __slots__ = (
        "_random",
        "cooldown_until",
        "ejections",
        "failures",
        "last_error",
        "open_until",
        "probing_until",
        "started_at",
    )

    def __init__(self, rand: Callable[[], float] = random.random) -> None:
        self.failures = 0
        self.ejections = 0
        self.open_until = 0.0
        self.cooldown_until = 0.0
        self.probing_until = 0.0
        self.started_at = 0.0  # of the last call; 0 = there was none
        self.last_error = ""
        self._random = rand

    @property
    def quiet(self) -> bool:
        """True while nothing at all speaks against the upstream: the answer a hot path can take without a clock."""
        return not self.open_until and not self.cooldown_until

    def reason(self, now: float) -> str:
        """Why a call should not go there now; empty = it may."""
        if now < self.cooldown_until:
            return f"rate limited by the provider for {self.cooldown_until - now:.0f} s"
        if self.open_until:
            if now < self.open_until:
                return f"circuit open after {self.failures} failures"
            if now < self.probing_until:
                return "circuit half-open, a probe is under way"
        elif self.cooldown_until:
            self.cooldown_until = 0.0
        return ""

    def started(self, now: float) -> None:
        """A call is being sent; in the half-open state it is the probe."""
        self.started_at = now
        if self.open_until and now >= self.open_until:
            self.probing_until = now + PROBE_S

    def succeeded(self) -> None:
        """The upstream answered: everything held against it is forgotten."""
        self.failures = self.ejections = 0
        self.open_until = self.probing_until = self.cooldown_until = 0.0
        self.last_error = ""

    def failed(self, now: float, *, threshold: int, open_s: float, error: str) -> bool:
        """A call failed on the upstream's side. Returns True when this opened the circuit (or opened it again)."""
        self.failures += 1
        self.last_error = error
        half_open = self.open_until > 0 and now >= self.open_until
        if not half_open and (self.failures < threshold or self.open_until):
            return False
        self.ejections += 1
        span = min(open_s * self.ejections, OPEN_S_MAX)
        self.open_until = now + span * (1 + JITTER * (2 * self._random() - 1))
        self.probing_until = 0.0
        return True

    def abandoned(self) -> None:
        """The call ended without telling anything about the upstream (the client left): a probe may be tried again."""
        self.probing_until = 0.0

    def cool_down(self, now: float, seconds: float) -> None:
        """The provider asked to be left alone for a while (429 with Retry-After)."""
        self.cooldown_until = max(self.cooldown_until, now + min(max(seconds, 0.0), OPEN_S_MAX))
        self.probing_until = 0.0
