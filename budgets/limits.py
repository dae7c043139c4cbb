"""What the site says about a pool, as control needs it to keep the ledger's windows. Pure: no Django, no I/O."""

from __future__ import annotations

from typing import NamedTuple

from budgets.records import PoolRecord, Unit
from budgets.windows import Span, WindowSpec, current_span


class PoolLimits(NamedTuple):
    """A pool's row: what workers are told (`record`, still without a window) and what its windows come from."""

    record: PoolRecord
    window: str  # one of `windows.KINDS`
    time_zone: str
    since: int  # Unix seconds of the last change of kind or zone; 0 = never changed
    capacities: tuple[int | None, ...]  # per window, by `Unit` value: tokens, pico-USD; None = no limit
    alerts: str  # percents, comma-separated, ascending
    carry_over: bool


class LedgerWindows(NamedTuple):
    """What the ledger has of one pool: `rows` of its newest window, and the start of the one before that."""

    rows: tuple[WindowSpec, ...]
    previous: int | None


class Starts(NamedTuple):
    """The starts of a pool's two newest windows in the ledger; None = there is none."""

    newest: int | None = None
    previous: int | None = None

    def opened(self, start: int) -> Starts:
        """The same after the window of that start was made."""
        return self if start == self.newest else Starts(start, self.newest)


def span_of(pool: PoolLimits, now: float, starts: Starts) -> Span:
    """The window a pool is in. Raises `ValueError` for a time zone nobody knows (any more)."""
    return current_span(pool.window, pool.time_zone, now, since=pool.since, newest=starts.newest or 0)


def specs_of(pool: PoolLimits, span: Span, starts: Starts) -> list[WindowSpec]:
    """What the ledger should have for that window: a row in each unit, also where there is no limit."""
    before = starts.previous if span.start == starts.newest else starts.newest
    return [
        WindowSpec(
            *(pool.record.id, unit, span.start, span.end),
            capacity=pool.capacities[unit],
            alerts=pool.alerts,
            carry_from=before if pool.carry_over and pool.capacities[unit] is not None else None,
        )
        for unit in Unit
    ]
