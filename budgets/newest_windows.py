"""What the ledger has of pools' newest windows, by which control finds after a restart where it was. Reads only."""

from __future__ import annotations

from collections.abc import Iterable

from budgets.limits import LedgerWindows
from budgets.models.ledger import PoolWindow
from budgets.windows import WindowSpec

_ROWS = 4  # two windows in two units


def of_pools(pool_ids: Iterable[int]) -> dict[int, LedgerWindows]:
    """The newest window of each pool, and when the one before began. Pools without any window are left out."""
    found: dict[int, LedgerWindows] = {}
    for pool_id in pool_ids:  # one short walk on an index each: sorting all windows of all pools would grow for ever
        rows = list(PoolWindow.objects.filter(pool_id=pool_id).order_by("-window_start", "-unit")[:_ROWS])
        if rows:
            start = rows[0].window_start
            earlier = [row.window_start for row in rows if row.window_start != start]
            specs = tuple(_spec(row) for row in rows if row.window_start == start)
            found[pool_id] = LedgerWindows(specs, earlier[0] if earlier else None)
    return found


def _spec(row: PoolWindow) -> WindowSpec:
    """What the row was made from: an operator's limit is the capacity without what was moved."""
    limit = None if row.capacity is None else row.capacity - row.adjusted
    return WindowSpec(row.pool_id, row.unit, row.window_start, row.window_end, limit, row.alerts)
