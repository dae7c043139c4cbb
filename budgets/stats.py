"""Figures of the ledger's writer, kept in memory since its start. Written by its thread, read by any."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

_KEPT = 1024  # latest measurements the percentiles and maxima are over
_EVENTS = 4096  # remembered at most
QUIET_S = 60.0  # a condition that lasts is logged so often


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
        self.overrun_pico = 0  # likewise, pico-USD
        self.alerts = 0  # shares of a limit that were reached
        self.carried = 0  # rests that were carried over to a next window
        self.jobs_failed = 0
        self.outages = 0  # failures of the database
        self.errors = 0
        self._lags: deque[float] = deque(maxlen=_KEPT)
        self._passes: deque[float] = deque(maxlen=_KEPT)
        self._grant_waits: deque[float] = deque(maxlen=_KEPT)
        self._jobs: deque[float] = deque(maxlen=_KEPT)
        self._said: dict[object, float] = {}

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

    def job(self, seconds: float) -> None:
        """Note how long a job held up the thread."""
        self._jobs.append(seconds)

    def first_in_a_while(self, event: object) -> bool:
        """Whether `event` was not asked about within `QUIET_S`: then it is worth a line in the log."""
        now = time.monotonic()
        if now - self._said.get(event, -QUIET_S) < QUIET_S:
            return False
        if len(self._said) >= _EVENTS:
            self._said.clear()
        self._said[event] = now
        return True

    def as_dict(self) -> dict[str, Any]:
        """All figures by name."""
        counters = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        durations: dict[str, float] = {}
        for name, values in (
            *(("lag", self._lags), ("settle", self._passes)),
            *(("grant", self._grant_waits), ("job", self._jobs)),
        ):
            ordered = sorted(values)
            durations[f"{name}_p50_s"] = round(ordered[len(ordered) // 2], 4) if ordered else 0.0
            durations[f"{name}_max_s"] = round(ordered[-1], 4) if ordered else 0.0
        return {**counters, **durations}
