"""What each purse had charged over time: taken by the writer, read for forecasts.

A purse of a current window gets a sample a minute while it moves. After a day one per five minutes is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from budgets import rollups
from budgets.forecast import Forecast, forecast, time_constant_s
from budgets.models.ledger import PoolSample, PoolWindow
from budgets.pace import Chunk

PERIOD_S = 60.0
FULL_S = 86_400  # so long every sample is kept
THIN_S = 300  # afterwards one per so many seconds
THIN_ROWS, LEAST_ROWS = 5_000, 500  # looked at in one step; fewer where that takes longer than
THIN_STEP_S = 0.02
AGAIN_S = 0.1  # between two steps while there is more to thin: as fast as any number of pools takes samples
THINNED = "thinned"  # in LedgerState: the last sample looked at
_TAUS_READ = 5  # what is older weighs less than 1 %
_POINTS = 150  # about as many points are read for one forecast


class Samples:
    """The writer's job that takes samples and thins old ones."""

    def __init__(self, clock: Callable[[], float] = time.time, *, thin_rows: int = THIN_ROWS) -> None:
        """`thin_rows` bounds one step of thinning, which is one transaction."""
        self.period_s = PERIOD_S
        self._clock = clock
        self._chunk = Chunk(thin_rows, least=min(LEAST_ROWS, thin_rows), longest_s=THIN_STEP_S)
        self._thinning, self._take_at = False, 0.0  # whether there was more to thin; monotonic

    def run(self, connection: BaseDatabaseWrapper) -> None:
        """Once a minute take a sample of every purse that moved; thin out what became a day old, soon again when that
        was not all."""
        if not self._thinning or time.monotonic() >= self._take_at:
            self._take_at = time.monotonic() + PERIOD_S
            take(connection, int(self._clock()))
        with self._chunk as rows:
            self._thinning = thin(connection, int(self._clock()), rows).more
        self.period_s = AGAIN_S if self._thinning else max(AGAIN_S, self._take_at - time.monotonic())

    def owner_ended(self, connection: BaseDatabaseWrapper, owner: str) -> None:
        """Nothing here belongs to a worker."""


def take(connection: BaseDatabaseWrapper, now_s: int) -> int:
    """Sample every purse of a current window whose charged amount changed since its last sample; how many."""
    with transaction.atomic(using=connection.alias, durable=True), connection.cursor() as cursor:
        cursor.execute(_TAKE, (now_s, now_s))
        return int(cursor.rowcount)


class Thinned(NamedTuple):
    """What one step of thinning did."""

    gone: int  # samples deleted
    more: bool  # whether there is more to do


def thin(connection: BaseDatabaseWrapper, now_s: int, limit: int = THIN_ROWS) -> Thinned:
    """Of samples that became a day old keep the last of every five minutes; looks at `limit` of them."""
    with transaction.atomic(using=connection.alias, durable=True), connection.cursor() as cursor:
        low = rollups.state(connection, THINNED)
        cursor.execute(f"SELECT id, at_s FROM {_SAMPLE} WHERE id > %s ORDER BY id LIMIT %s", (low, limit))  # noqa: S608
        old = [number for number, at_s in cursor.fetchall() if at_s < now_s - FULL_S - THIN_S]
        if not old:
            return Thinned(0, more=False)
        cursor.execute(_THIN, (low, old[-1], now_s - FULL_S - THIN_S))
        gone = int(cursor.rowcount)
        rollups.set_state(connection, THINNED, old[-1])
    return Thinned(gone, more=len(old) == limit)


def forecast_of(window: PoolWindow, now: float | None = None) -> Forecast | None:
    """When a purse (a row read from the ledger) will run out; None where nobody can say. One query of a few ms."""
    if window.capacity is None:
        return None
    now = time.time() if now is None else now
    return forecast(
        history(window, now),
        now=now,
        committed=window.committed,
        capacity=window.capacity,
        window_start=window.window_start,
        window_end=window.window_end,
    )


def history(window: PoolWindow, now: float) -> list[tuple[int, int]]:
    """(Unix seconds, charged) of a purse as far back as a forecast looks, at most a few hundred, oldest first."""
    reach_s = time_constant_s(window.window_start, window.window_end) * _TAUS_READ
    step_s = max(1, int(reach_s / _POINTS))
    rows = PoolSample.objects.filter(
        pool_id=window.pool_id, unit=window.unit, window_start=window.window_start, at_s__gte=int(now - reach_s)
    ).order_by("at_s")
    last: dict[int, tuple[int, int]] = {}
    for at_s, committed in rows.values_list("at_s", "committed").iterator():
        last[at_s // step_s] = (at_s, committed)
    return list(last.values())


_SAMPLE, _WINDOW = PoolSample._meta.db_table, PoolWindow._meta.db_table
_LAST = (
    f"(SELECT s.committed FROM {_SAMPLE} s WHERE s.pool_id = w.pool_id AND s.unit = w.unit "  # noqa: S608
    "AND s.window_start = w.window_start ORDER BY s.at_s DESC LIMIT 1)"
)
# Windows stay for ever: so each pool's newest one is walked to on the index, instead of looking at all of them.
_TAKE = (
    f"INSERT INTO {_SAMPLE} (pool_id, unit, window_start, at_s, committed) "  # noqa: S608
    f"WITH RECURSIVE pools (id) AS (SELECT MIN(pool_id) FROM {_WINDOW} UNION ALL "
    f"SELECT (SELECT MIN(pool_id) FROM {_WINDOW} WHERE pool_id > pools.id) FROM pools WHERE pools.id IS NOT NULL) "
    f"SELECT w.pool_id, w.unit, w.window_start, %s, w.committed FROM pools JOIN {_WINDOW} w ON w.pool_id = pools.id "
    f"AND w.window_start = (SELECT MAX(window_start) FROM {_WINDOW} WHERE pool_id = pools.id) "
    f"WHERE (w.window_end = 0 OR w.window_end > %s) AND w.committed <> COALESCE({_LAST}, 0) "
    "ON CONFLICT (pool_id, unit, window_start, at_s) DO NOTHING"
)
_THIN = (
    f"DELETE FROM {_SAMPLE} WHERE id > %s AND id <= %s AND at_s < %s AND EXISTS ("  # noqa: S608
    f"SELECT 1 FROM {_SAMPLE} later WHERE later.pool_id = {_SAMPLE}.pool_id AND later.unit = {_SAMPLE}.unit "
    f"AND later.window_start = {_SAMPLE}.window_start AND later.at_s > {_SAMPLE}.at_s "
    f"AND later.at_s < {_SAMPLE}.at_s - {_SAMPLE}.at_s %% {THIN_S} + {THIN_S})"
)
