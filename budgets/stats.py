"""Figures of the ledger's writer, kept in memory since its start. Written by its thread, read by any."""

from __future__ import annotations

from collections import deque
from typing import Any

_KEPT = 1024  # latest measurements the percentiles and maxima are over


class WriterStats:
    """Counters and latest durations; durations are seconds."""

    def __init__(self) -> None:
        self.rows = 0  # usage rows inserted
        self.batches = 0
        self.replays = 0  # batches in which rows were in the ledger already
        self.duplicates = 0  # rows left out of those
        self.unfinished = 0  # holds of dead owners that were charged
        self.buried = 0  # owners
        self.quarantined = 0  # owners
        self.torn = 0  # half-written last records dropped
        self.grants = 0
        self.recalls = 0
        self.overrun_tokens = 0  # charged beyond what was leased
        self.outages = 0  # failures of the database
        self.errors = 0
        self._lags: deque[float] = deque(maxlen=_KEPT)
        self._passes: deque[float] = deque(maxlen=_KEPT)
        self._grant_waits: deque[float] = deque(maxlen=_KEPT)

    def lag(self, seconds: float) -> None:
        """Note how old a batch's first record was when it was in the ledger."""
        self._lags.append(seconds)

    def settle_pass(self, seconds: float) -> None:
        """Note how long one look at all journals took."""
        self._passes.append(seconds)

    def grant(self, seconds: float) -> None:
        """Note how long an ask waited for its answer."""
        self.grants += 1
        self._grant_waits.append(seconds)

    def as_dict(self) -> dict[str, Any]:
        """All figures by name."""
        counters = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        durations: dict[str, float] = {}
        for name, values in (("lag", self._lags), ("settle", self._passes), ("grant", self._grant_waits)):
            ordered = sorted(values)
            durations[f"{name}_p50_s"] = round(ordered[len(ordered) // 2], 4) if ordered else 0.0
            durations[f"{name}_max_s"] = round(ordered[-1], 4) if ordered else 0.0
        return {**counters, **durations}
