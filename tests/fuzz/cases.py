"""How many cases each fuzz test runs. HOOSH_FUZZ=10 runs ten times as many, and other ones every time."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_TIMES = int(os.environ.get("HOOSH_FUZZ", "0"))


def cases(number: int) -> settings:
    """Settings for a fuzz test of so many cases; the same cases in every run unless HOOSH_FUZZ is set."""
    return settings(
        max_examples=number * max(1, _TIMES),
        derandomize=not _TIMES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
