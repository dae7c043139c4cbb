"""How fast an upstream model answers: what calls have shown, remembered over configurations. Pure: the clock is passed.

The estimate is an exponential moving average: the first sample as it is, then 0.7 of the old value and 0.3 of the new
sample. It fades: after `HALF_LIFE_S` without a sample it counts for half, so that whoever was slow once is looked at
again. Whole answers and streams (to their first piece) are kept apart: they are not comparable.
"""

from __future__ import annotations

import math

OLD, NEW = 0.7, 0.3
HALF_LIFE_S = 300.0
FADING_PER_S = math.log10(2) / HALF_LIFE_S  # powers of ten
UNKNOWN = -math.inf
_LEAST_S = 1e-9


class Average:
    """One average, in seconds.

    `level` tells the same as `at` without the clock, so that averages can be compared: what it counts for at `now` is
    10 ** (level - now * FADING_PER_S). `UNKNOWN` where nothing is known.
    """

    __slots__ = ("level", "seen_at", "value_s")

    def __init__(self) -> None:
        self.value_s = 0.0
        self.seen_at = 0.0
        self.level = UNKNOWN

    def add(self, seconds: float, now: float) -> None:
        """A sample. `now` is a monotonic clock."""
        self.value_s = OLD * self.value_s + NEW * seconds if self.seen_at else seconds
        self.seen_at = now
        self.level = math.log10(max(self.value_s, _LEAST_S)) + now * FADING_PER_S

    def at(self, now: float) -> float | None:
        """What it counts for now; None where nothing is known."""
        if not self.seen_at:
            return None
        return float(self.value_s * 0.5 ** ((now - self.seen_at) / HALF_LIFE_S))


class Pace:
    """The averages of one upstream model. `exploring` counts calls under way to one of which nothing is known."""

    __slots__ = ("exploring", "streams", "whole")

    def __init__(self) -> None:
        self.whole = Average()
        self.streams = Average()
        self.exploring = 0

    def of(self, *, stream: bool) -> Average:
        """The average of streams or of whole answers."""
        return self.streams if stream else self.whole


class RetryBudget:
    """How many further upstream calls requests may make: a share of the requests of the last seconds, and a floor.

    Fallbacks help while few calls fail; when all fail they only multiply the load. So the floor is high while they
    help, and low once `VAIN` of them have failed in a row, until one does not. Counted in two windows of `WINDOW_S`,
    the present one and, by the part of it that is still less than a window ago, the one before.
    """

    WINDOW_S = 10.0
    FLOOR_PER_S = 3.0
    VAIN = 5
    VAIN_FLOOR_PER_S = 0.3
    __slots__ = ("_before", "_began", "_now", "_vain")

    def __init__(self) -> None:
        self._vain = 0  # further calls that failed since one did not
        self._began = 0.0
        self._now = [0, 0]  # requests, further calls
        self._before = [0, 0]

    def request(self, now: float) -> None:
        """A request makes its first call."""
        self._turn(now)
        self._now[0] += 1

    def allows(self, now: float, share: float) -> bool:
        """Whether a further call may be made; it is counted if so. `share` of the requests, e.g. 0.2."""
        self._turn(now)
        past = 1 - (now - self._began) / self.WINDOW_S
        requests = self._now[0] + past * self._before[0]
        further = self._now[1] + past * self._before[1]
        floor_per_s = self.FLOOR_PER_S if self._vain < self.VAIN else self.VAIN_FLOOR_PER_S
        if further + 1 > max(floor_per_s * self.WINDOW_S, share * requests):
            return False
        self._now[1] += 1
        return True

    def ended(self, *, helped: bool) -> None:
        """What came of a further call."""
        self._vain = 0 if helped else self._vain + 1

    def unused(self) -> None:
        """A further call that was allowed was not made."""
        self._now[1] = max(0, self._now[1] - 1)

    def _turn(self, now: float) -> None:
        passed = now - self._began
        if passed >= self.WINDOW_S:
            self._before = self._now if passed < 2 * self.WINDOW_S else [0, 0]
            self._now = [0, 0]
            self._began = now - passed % self.WINDOW_S
