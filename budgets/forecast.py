"""When a purse will run out, from how fast it was spent lately. Pure.

From consecutive samples (t_i, c_i) of what was charged, the rate of each stretch is

    r_i = (c_i - c_(i-1)) / d_i                       d_i = t_i - t_(i-1), in seconds

and its exponentially weighted mean and variance, with the time constant tau = max(30 min, window / 24), are

    w_i = 1 - exp(-d_i / tau)                         e_i = r_i - m_(i-1)
    m_i = m_(i-1) + w_i * e_i                         v_i = (1 - w_i) * (v_(i-1) + w_i * e_i ** 2)

starting with m_1 = r_1 and v_1 = 0. With sigma = sqrt(v), what is left runs out

    at the rate m: now + left / m    earliest: now + left / (m + 2 sigma)    latest: now + left / (m - 2 sigma)

A moment behind the window's end, or at a rate of zero or less, is None: it does not run out. A stretch in which the
charged amount fell is a correction, not spending, and tells nothing about the rate: it is left out. The last sample
is left out where now is less than half a minute later, because a rate over moments says nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

LEAST_TAU_S = 1_800.0
TAUS_PER_WINDOW = 24
LEAST_STRETCH_S = 30.0
LIFETIME_TAU_S = 86_400.0  # where the window has no end


class Forecast(NamedTuple):
    """A guess. Moments are Unix seconds; `rate` and `sigma` are units (tokens or pico-USD) per second."""

    rate: float
    sigma: float
    run_out: float | None  # at the rate of late
    earliest: float | None
    latest: float | None


def time_constant_s(window_start: int, window_end: int) -> float:
    """How far back the rate looks: what is older than a few times this hardly counts."""
    if not window_end:
        return LIFETIME_TAU_S
    return max(LEAST_TAU_S, (window_end - window_start) / TAUS_PER_WINDOW)


def forecast(
    samples: Iterable[tuple[int, int]],
    *,
    now: float,
    committed: int,
    capacity: int | None,
    window_start: int,
    window_end: int,
) -> Forecast | None:
    """The forecast of a purse with these samples (Unix seconds, charged), oldest first.

    `committed` is what is charged now. None without a limit, or while two moments are not known. A window that is not a
    pool's lifetime began with nothing charged, which is a sample as well.
    """
    if capacity is None:
        return None
    points: list[tuple[float, int]] = [(window_start, 0)] if window_start else []
    points += [(at_s, amount) for at_s, amount in samples if at_s < now]
    if len(points) > 1 and now - points[-1][0] < LEAST_STRETCH_S:
        del points[-1]
    points.append((now, committed))
    rate, variance, known = 0.0, 0.0, False
    tau_s = time_constant_s(window_start, window_end)
    for (before_s, before), (at_s, amount) in itertools.pairwise(points):
        took_s = at_s - before_s
        if took_s <= 0 or amount < before:
            continue
        found = (amount - before) / took_s
        if not known:
            rate, known = found, True
            continue
        weight = -math.expm1(-took_s / tau_s)
        error = found - rate
        rate += weight * error
        variance = (1 - weight) * (variance + weight * error * error)
    if not known:
        return None
    sigma = math.sqrt(variance)
    left = capacity - committed

    def when(speed: float) -> float | None:
        if left <= 0:
            return now
        if speed <= 0 or not math.isfinite(moment := now + left / speed):
            return None
        return None if window_end and moment >= window_end else moment

    return Forecast(rate, sigma, when(rate), when(rate + 2 * sigma), when(rate - 2 * sigma))
