"""Sums of usage rows by day and by some of their dimensions: what reports read.

A *cut* keeps some dimensions and sums over the rest; its rows hold 0 or "" for those. Every row of usage is in all cuts
from the moment it is in the hourly sums: the same transaction adds it to both. A report is made from the smallest cut
that knows all dimensions it asks for, else from the hourly sums; both come to the same figures.

What the hourly sums held before there were cuts is brought in from the newest hour to the oldest, an hour at a time.
`LedgerState` "sums:<cut>" says how far that is: everything that starts at or after it is in the cut, 0 = everything.
"sums:to" is the last usage row in the cuts. Where it is not the last one in the hourly sums (a version that knows no
cuts has worked on the ledger meanwhile), the cuts are made anew.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper

from budgets.models.ledger import LedgerState, Usage, UsageDay, UsageRollup
from budgets.summed import COUNTED, DAY_S, SUMS, TEXTS, WHO, rows_by_hour

_WHERE = ("provider_id", "route_id", "endpoint", "model", "upstream_model")
_FAR = 2**62  # later than any usage row: nothing is in the cut, and nothing of an earlier one is left there
_CLEARED_ROWS = 2_000  # deleted at once
STEP_S = 0.01  # a step ends with the hour in which so much time has passed
ROLLED_UP, _TO, _COVERED = "rolled_up", "sums:to", "sums:"  # names in LedgerState


class Cut(NamedTuple):
    """Which dimensions a cut keeps, as columns of `UsageDay`."""

    number: int  # as stored
    columns: tuple[str, ...]


# In the order in which a report prefers them: the fewest rows first.
CUTS: Mapping[str, Cut] = MappingProxyType(
    {
        "team": Cut(1, ("team_id",)),
        "agent": Cut(2, ("team_id", "agent_id", "pool_id", "provider_id")),
        "where": Cut(3, _WHERE),
        "team_where": Cut(4, ("team_id", "pool_id", *_WHERE)),
        "key": Cut(5, ("team_id", "agent_id", "key_id", "pool_id", "provider_id")),
    }
)
_STATES = {f"{_COVERED}{name}": name for name in CUTS}


def fitting(columns: Collection[str], covered: Mapping[str, int], since: int | None) -> Cut | None:
    """The smallest cut that keeps these columns and holds everything from `since` on (None = ever)."""
    for name, cut in CUTS.items():
        if covered.get(name, _FAR) <= (since or 0) and set(columns) <= set(cut.columns):
            return cut
    return None


def covered(connection: BaseDatabaseWrapper) -> dict[str, int]:
    """For each cut that may be read, since when (Unix seconds) it holds everything the hourly sums hold."""
    states = _states(connection)
    return _of_cuts(states) if _in_step(states) else {}


def forget_if_behind(connection: BaseDatabaseWrapper) -> dict[str, int]:
    """As `covered`, before the writer adds to the cuts: those that missed something are given up, to be made anew."""
    states = _states(connection)
    if _in_step(states):
        return _of_cuts(states)
    LedgerState.objects.using(connection.alias).filter(name__in=_STATES).delete()
    _set(connection, _TO, states.get(ROLLED_UP, 0))
    return {}


def add(connection: BaseDatabaseWrapper, known: Mapping[str, int], *, period: int, low: int, high: int) -> None:
    """Add the usage rows with ids in (`low`, `high`] to the cuts; `known` is what `forget_if_behind` gave.

    In the transaction that adds them to the hourly sums, behind that (on SQLite it leaves them in `COUNTED`).
    """
    if known:
        postgres = connection.vendor == "postgresql"
        sql = _adding(postgres, tuple(sorted(known.items())), period)
        with connection.cursor() as cursor:
            cursor.execute(sql, (low, high) if postgres else ())
    _set(connection, _TO, high)


def cover(connection: BaseDatabaseWrapper, *, step_s: float = STEP_S) -> bool:
    """Bring older hourly sums into the cuts for about `step_s`, one hour at least; whether anything is left to do.

    In a transaction in which no usage row is counted. One hour's sums for one cut are one statement.
    """
    began, worked = time.monotonic(), False
    known = forget_if_behind(connection)
    while missing := [name for name in CUTS if known.get(name) != 0]:
        if worked and time.monotonic() - began >= step_s:
            return True
        worked, name = True, max(missing, key=lambda each: known.get(each, _FAR + 1))
        since = _cleared(connection, name) if name not in known else _older(connection, name, known[name])
        if since is not None:
            known[name] = since
            _set(connection, f"{_COVERED}{name}", since)
    return False


def hinders_folding(connection: BaseDatabaseWrapper, before: int) -> bool:
    """Whether hourly sums of before that moment may not become daily ones yet: the cuts hold a part of them."""
    return any(0 < since < before for since in _of_cuts(_states(connection)).values())


def _cleared(connection: BaseDatabaseWrapper, name: str) -> int | None:
    """Delete some of what an earlier cut left; `_FAR` when nothing was left."""
    with connection.cursor() as cursor:
        cursor.execute(_CLEAR, (CUTS[name].number, _CLEARED_ROWS))
        return None if cursor.rowcount > 0 else _FAR


def _older(connection: BaseDatabaseWrapper, name: str, since: int) -> int:
    """Bring in the newest hour before `since`: its start, 0 when there is none."""
    with connection.cursor() as cursor:
        cursor.execute(_NEWEST, (since,))
        start = cursor.fetchone()[0]
        if start is None:
            return 0
        cursor.execute(_COVER[name], (start,))
    return int(start)


def _states(connection: BaseDatabaseWrapper) -> dict[str, int]:
    names = (ROLLED_UP, _TO, *_STATES)
    return dict(LedgerState.objects.using(connection.alias).filter(name__in=names).values_list("name", "value"))


def _in_step(states: Mapping[str, int]) -> bool:
    return states.get(_TO) == states.get(ROLLED_UP, 0)


def _of_cuts(states: Mapping[str, int]) -> dict[str, int]:
    return {name: states[state] for state, name in _STATES.items() if state in states}


def _set(connection: BaseDatabaseWrapper, name: str, value: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_SET, (name, value))


@lru_cache(maxsize=8)
def _adding(postgres: bool, known: tuple[tuple[str, int], ...], period: int) -> str:
    """The statement that adds usage rows to the cuts, to each as far back as it is known. The rows are grouped once."""
    parts = []
    for name, since in known:
        where = f" WHERE start >= {since:d}" if since else ""
        parts.append(_part(CUTS[name], f"{period:d}", f"{COUNTED}{where}", ""))
    counted = f"WITH {COUNTED} AS MATERIALIZED ({rows_by_hour(True, _USAGE)})" if postgres else ""
    return f"INSERT INTO {_DAYS} ({_COLUMNS}) {counted} {' UNION ALL '.join(parts)} {_ADD}"


def _part(cut: Cut, period: str, source: str, also_by: str) -> str:
    """The rows of a cut, summed from rows with the columns of hourly sums."""
    who = ", ".join(name if name in cut.columns else ("''" if name in TEXTS else "0") for name in WHO)
    day = f"start - start %% {DAY_S}"
    return (
        f"SELECT {cut.number}, {day}, {period}, {who}, {', '.join(f'SUM({name})' for name in SUMS)} "  # noqa: S608
        f"FROM {source} GROUP BY {', '.join([day, *cut.columns])}{also_by}"
    )


_USAGE, _ROLLUP, _DAYS, _STATE = (model._meta.db_table for model in (Usage, UsageRollup, UsageDay, LedgerState))
_WHO = ", ".join(WHO)
_COLUMNS = f"cut, start, period, {_WHO}, {', '.join(SUMS)}"
_ADD = (
    f"ON CONFLICT (cut, start, period, {_WHO}) DO UPDATE SET "
    f"{', '.join(f'{name} = {_DAYS}.{name} + excluded.{name}' for name in SUMS)}"
)
_COVER = {
    name: f"INSERT INTO {_DAYS} ({_COLUMNS}) {_part(cut, 'period', f'{_ROLLUP} WHERE start = %s', ', period')} {_ADD}"
    for name, cut in CUTS.items()
}
_NEWEST = f"SELECT MAX(start) FROM {_ROLLUP} WHERE start < %s"  # noqa: S608
_CLEAR = f"DELETE FROM {_DAYS} WHERE id IN (SELECT id FROM {_DAYS} WHERE cut = %s LIMIT %s)"  # noqa: S608
_SET = (
    f"INSERT INTO {_STATE} (name, value) VALUES (%s, %s) "  # noqa: S608
    "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
