"""When an agent spends unlike itself: exponentially weighted mean and variance of its spending per five minutes. Pure.

With x the spending of a stretch of `STRETCH_S` in which the agent spent anything, m and v mean and variance before it:

    expected  m
    sigma     s = max(sqrt(v), FLOOR_SHARE * m, the unit's least sigma)
    anomaly   x > m + SIGMAS * s, once `LEAST` stretches are known
    learned   y = min(x, m + SIGMAS * s) from then on, x before
              d = y - m;  m += ALPHA * d;  v = (1 - ALPHA) * (v + ALPHA * d * d)

(T. Finch, "Incremental calculation of weighted mean and variance", 2009, section 9.) Stretches without spending teach
nothing: nights would else make every morning an anomaly. What is learned is cut at the bound, so that a new level is
accepted step by step and one outlier does not hide the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

STRETCH_S = 300
ALPHA = 0.05  # of the newest stretch; half of what is known is of the last 14
SIGMAS = 4.0
LEAST = 24  # stretches: two hours of work
FLOOR_SHARE = 0.25  # of the mean: an agent that always spends the same is not alarming at one percent more
FLOORS = {"usd": 0.01, "tokens": 1000.0}  # least sigma by unit


@dataclass(slots=True)
class History:
    """What is known of one agent in one unit."""

    mean: float = 0.0
    variance: float = 0.0
    count: int = 0  # stretches learned


@dataclass(frozen=True, slots=True)
class Bound:
    """What an agent is expected to spend in a stretch."""

    expected: float
    sigma: float
    is_known: bool  # whether enough is known to judge

    @property
    def limit(self) -> float:
        """More than this is an anomaly."""
        return self.expected + SIGMAS * self.sigma

    def is_broken_by(self, spent: float) -> bool:
        """Whether so much in one stretch is an anomaly."""
        return self.is_known and spent > self.limit


def bound(history: History, unit: str) -> Bound:
    """What the history says of the next stretch."""
    sigma = max(math.sqrt(history.variance), FLOOR_SHARE * history.mean, FLOORS[unit])
    return Bound(history.mean, sigma, history.count >= LEAST)


def learn(history: History, spent: float, unit: str) -> None:
    """Add one stretch in which something was spent. The first few weigh as in a plain mean, so that the very first does
    not stay."""
    known = bound(history, unit)
    value = min(spent, known.limit) if known.is_known else spent
    alpha = max(ALPHA, 1.0 / (history.count + 1))
    difference = value - history.mean
    history.mean += alpha * difference
    history.variance = (1.0 - alpha) * (history.variance + alpha * difference * difference)
    history.count += 1
