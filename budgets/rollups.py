"""Bringing usage rows into the sums, and old hourly sums into daily ones. Runs in the writer's thread.

The hourly sums keep every dimension; those by day (`budgets.day_sums`) are made in the same transaction.
Each usage row is counted once: how far that went (the last usage id, `LedgerState` "rolled_up") moves in the same
transaction. A row's own time decides its bucket, the reporting period in force when it is counted decides its period.
Each pass also notes, per decision shape, the last usage row that names it (`LedgerState` named by the shape's digest),
so that retention finds the shapes nobody names any more without reading the usage rows again.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from budgets import day_sums, summed
from budgets.ledger_sql import ROLLUP_LOCK
from budgets.models.ledger import LedgerState, Usage, UsageRollup
from budgets.pace import Chunk
from budgets.summed import COUNTED, SUMS, WHO, rows_by_hour

PERIOD_S = 2.0
AGAIN_S = 0.05  # pause when there is more than one pass takes
PASS_ROWS, LEAST_ROWS = 4_000, 500  # in one pass; fewer where that takes longer than
PASS_S = 0.02
HOUR_S, DAY_S = summed.HOUR_S, summed.DAY_S
ROLLED_UP, REPORTING_PERIOD, PERIOD_SINCE = day_sums.ROLLED_UP, "period", "period_since"  # names in LedgerState


class Pass(NamedTuple):
    """What one pass did."""

    rows: int  # usage rows counted
    more: bool  # whether rows were left for the next pass, or the lock could not be had


class Rollups:
    """The writer's job that keeps the hourly sums up to date."""

    def __init__(self, *, pass_rows: int = PASS_ROWS) -> None:
        """`pass_rows` bounds one pass, which is one transaction."""
        self.period_s = PERIOD_S
        self._chunk = Chunk(pass_rows, least=min(LEAST_ROWS, pass_rows), longest_s=PASS_S)

    def run(self, connection: BaseDatabaseWrapper) -> None:
        """Count what is new; soon again when that was not all."""
        with self._chunk as rows:
            done = roll_up(connection, rows)
        caught_up = not done.more and cover(connection)
        self.period_s = PERIOD_S if caught_up else AGAIN_S

    def owner_ended(self, connection: BaseDatabaseWrapper, owner: str) -> None:
        """Nothing here belongs to a worker."""


def roll_up(connection: BaseDatabaseWrapper, limit: int = PASS_ROWS) -> Pass:
    """Count up to `limit` usage rows, in one transaction."""
    with transaction.atomic(using=connection.alias, durable=True):
        if not locked(connection):
            return Pass(0, more=True)
        rows = _count_rows(connection, limit)
    return Pass(rows, more=rows == limit)


def cover(connection: BaseDatabaseWrapper) -> bool:
    """Bring what older hourly sums hold into the sums by day, for some milliseconds; whether all is in them."""
    with transaction.atomic(using=connection.alias, durable=True):
        return locked(connection) and not day_sums.cover(connection)


def start_period(connection: BaseDatabaseWrapper, *, order: str, limit: int = PASS_ROWS) -> int | None:
    """Start a new reporting period: every row settled so far belongs to the one before.

    `order` is a name in `LedgerState` that says it was done: a repeat changes nothing. The number of the period that
    was started; None when more rows wait than one transaction takes, or the lock is another host's: try again.
    """
    with transaction.atomic(using=connection.alias, durable=True):
        if not locked(connection):
            return None
        done = LedgerState.objects.using(connection.alias).filter(name=order).values_list("value", flat=True).first()
        if done is not None:
            return done
        if _count_rows(connection, limit) == limit:
            return None
        period = state(connection, REPORTING_PERIOD) + 1
        set_state(connection, REPORTING_PERIOD, period)
        set_state(connection, PERIOD_SINCE, int(time.time()))
        set_state(connection, order, period)
    return period


def fold(connection: BaseDatabaseWrapper, *, since: int, before: int, limit: int) -> tuple[int, int]:
    """Add up to `limit` hourly sums that start in [`since`, `before`) to daily ones and delete them.

    How many there were, and the start of the last of them (`before` when none is left). None while another host settles
    or works on sums, and while the sums by day are being made: try again.
    """
    rollup = UsageRollup._meta.db_table
    with transaction.atomic(using=connection.alias, durable=True), connection.cursor() as cursor:
        if not locked(connection) or day_sums.hinders_folding(connection, before):
            return 0, since
        cursor.execute(
            f"SELECT id, start FROM {rollup} WHERE start >= %s AND start < %s AND seconds = %s "  # noqa: S608
            "ORDER BY start, id LIMIT %s",
            (since, before, HOUR_S, limit),
        )
        found = cursor.fetchall()
        if not found:
            return 0, before
        marks = ", ".join(["%s"] * len(found))
        ids = [row[0] for row in found]
        cursor.execute(_FOLD.format(marks=marks), ids)
        cursor.execute(f"DELETE FROM {rollup} WHERE id IN ({marks})", ids)  # noqa: S608
    return len(found), found[-1][1]


def locked(connection: BaseDatabaseWrapper) -> bool:
    """Whether no settling transaction of another host is under way (and none begins until this transaction ends).

    On PostgreSQL ids are given out before they are committed: a row that commits late would be passed over.
    """
    if connection.vendor != "postgresql":
        return True  # one writer
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", (ROLLUP_LOCK,))
        return bool(cursor.fetchone()[0])


def state(connection: BaseDatabaseWrapper, name: str) -> int:
    """A number of `LedgerState`; 0 when it was never set."""
    found = LedgerState.objects.using(connection.alias).filter(name=name).values_list("value", flat=True).first()
    return found or 0


def set_state(connection: BaseDatabaseWrapper, name: str, value: int) -> None:
    """Set a number of `LedgerState`."""
    with connection.cursor() as cursor:
        cursor.execute(_SET_STATE, (name, value))


def _count_rows(connection: BaseDatabaseWrapper, limit: int) -> int:
    low = state(connection, ROLLED_UP)
    with connection.cursor() as cursor:
        cursor.execute(_NEXT_IDS, (low, limit))
        rows, high = cursor.fetchone()
        if not rows:
            return 0
        period = state(connection, REPORTING_PERIOD)
        if connection.vendor == "postgresql":
            cursor.execute(_ROLL_UP_POSTGRES, (low, high, period))
        else:
            for statement in _EMPTY_COUNTED:
                cursor.execute(statement)
            cursor.execute(_COUNT, (low, high))
            cursor.execute(_ROLL_UP_SQLITE, (period,))
        day_sums.add(connection, day_sums.forget_if_behind(connection), period=period, low=low, high=high)
        cursor.execute(_NAMED_SHAPES, (low, high))
    set_state(connection, ROLLED_UP, high)
    return int(rows)


_USAGE, _ROLLUP, _STATE = (model._meta.db_table for model in (Usage, UsageRollup, LedgerState))
_WHO = ", ".join(WHO)
_COLUMNS = f"start, seconds, period, {_WHO}, {', '.join(SUMS)}"
_ADD = (
    f"ON CONFLICT (start, seconds, period, {_WHO}) DO UPDATE SET "
    f"{', '.join(f'{name} = {_ROLLUP}.{name} + excluded.{name}' for name in SUMS)}"
)
_NEXT_IDS = f"SELECT COUNT(*), MAX(id) FROM (SELECT id FROM {_USAGE} WHERE id > %s ORDER BY id LIMIT %s) AS next_rows"  # noqa: S608


_EMPTY_COUNTED = (
    f"CREATE TEMPORARY TABLE IF NOT EXISTS {COUNTED} (start, {_WHO}, {', '.join(SUMS)})",
    f"DELETE FROM {COUNTED}",  # noqa: S608
)
_COUNT = f"INSERT INTO {COUNTED} {rows_by_hour(False, _USAGE)}"
_ROLL_UP_SQLITE = (
    f"INSERT INTO {_ROLLUP} ({_COLUMNS}) SELECT start, {HOUR_S}, %s, {_WHO}, {', '.join(SUMS)} "  # noqa: S608
    f"FROM {COUNTED} WHERE true {_ADD}"
)
_ROLL_UP_POSTGRES = (
    f"WITH {COUNTED} AS MATERIALIZED ({rows_by_hour(True, _USAGE)}) "  # noqa: S608
    f"INSERT INTO {_ROLLUP} ({_COLUMNS}) SELECT start, {HOUR_S}, %s, {_WHO}, {', '.join(SUMS)} FROM {COUNTED} {_ADD}"
)
_NAMED_SHAPES = (
    f"INSERT INTO {_STATE} (name, value) SELECT shape, MAX(id) FROM {_USAGE} "  # noqa: S608
    "WHERE id > %s AND id <= %s AND shape <> '' GROUP BY shape "
    "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
_FOLD = (
    f"INSERT INTO {_ROLLUP} ({_COLUMNS}) "  # noqa: S608
    f"SELECT start - start %% {DAY_S}, {DAY_S}, period, {_WHO}, {', '.join(f'SUM({name})' for name in SUMS)} "
    f"FROM {_ROLLUP} WHERE id IN ({{marks}}) GROUP BY start - start %% {DAY_S}, period, {_WHO} {_ADD}"
)
_SET_STATE = (
    f"INSERT INTO {_STATE} (name, value) VALUES (%s, %s) "  # noqa: S608
    "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
