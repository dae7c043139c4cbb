"""What was used and what it cost, summed by who, where and what: exact to the last pico-USD.

The sums are those of `UsageDay`, where a cut of it knows all that is asked for, else of `UsageRollup`, plus the usage
rows that are in neither yet, read in one statement, so that no row is missing or counted twice while the sums move on.
Reading is all that happens here.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from budgets import day_sums, summed
from budgets.models.fields import HIGH_PICO, usd
from budgets.models.ledger import LedgerState, Usage, UsageDay, UsageRollup

Key = int | str | dt.date

CURRENT: Final = -1  # the reporting period in force
DAY_S = summed.DAY_S
_TEXTS = ("endpoint", "model", "upstream_model")
_COLUMNS: Mapping[str, str] = {
    **{f"{name}": f"{name}_id" for name in ("team", "agent", "key", "pool", "provider", "route")},
    **{name: name for name in _TEXTS},
}
DIMENSIONS = (*_COLUMNS, "day", "period")
_COUNTS = (
    *("requests", "attempts", "errors", "unpriced"),
    *("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens", "tokens"),
    "latency_us",
)
_SUMMED = (*_COUNTS, "cost_milli_usd", "cost_rest_pico")


class TooManyGroupsError(ValueError):
    """There are more groups than were asked for at most (`limit`)."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"There are more than {limit:,} groups.")
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Total:
    """The sums over one group. `keys` holds its dimensions: ids, texts, for "day" a date in UTC.

    `requests` counts first attempts, `attempts` all upstream calls, `unpriced` those of them that used tokens no price
    was known for (they are in `cost_usd` with nothing). `latency_us` is the sum over the attempts.
    """

    keys: Mapping[str, Key]
    cost_usd: Decimal
    requests: int
    attempts: int
    errors: int
    unpriced: int
    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    tokens: int
    latency_us: int


def totals(
    group_by: Sequence[str] = (),
    *,
    filters: Mapping[str, Collection[Key]] | None = None,
    since: int | None = None,
    until: int | None = None,
    period: int | None = None,
    limit: int | None = None,
    unpriced_only: bool = False,
) -> list[Total]:
    """Sums by `group_by` (names of `DIMENSIONS`), the most expensive first; one row at most without any.

    `filters` names the values of dimensions that are counted (`{"team": [3]}`). `since` (included) and `until` (not
    included) are Unix seconds at the start of a day in UTC: older rollups know nothing shorter. `period` is a
    reporting period's number, `CURRENT`, or None for all. With `unpriced_only` nothing counts but what no price was
    known for (and what was summed together with it). Raises `TooManyGroupsError` when there are more than `limit`
    groups, `ValueError` for a dimension that does not exist and for times within a day.
    """
    query = _query(group_by, filters or {}, since, until)
    source = query.source((*query.group_by, *(filters or {})), since)
    sql, values = query.statement(
        query.group_by, source, filters or {}, since, until, period, unpriced_only=unpriced_only
    )
    if limit is not None:
        sql += f" LIMIT {limit + 1:d}"
    with query.connection.cursor() as cursor:
        cursor.execute(sql, values)
        rows = cursor.fetchall()
    if limit is not None and len(rows) > limit:
        raise TooManyGroupsError(limit)
    return _ordered(total for row in rows if (total := query.total(query.group_by, row)).attempts)


@dataclass(frozen=True, slots=True)
class Leading:
    """The most expensive groups of a dimension, and what all of them come to by day."""

    first: list[Total]  # ordered
    groups: int  # how many there are, those included
    days: list[Total]


def leading(
    name: str,
    *,
    top: int,
    filters: Mapping[str, Collection[Key]] | None = None,
    since: int | None = None,
    until: int | None = None,
    period: int | None = None,
) -> Leading:
    """The `top` most expensive groups by this dimension (not "day") of all there are; the rest as for `totals`."""
    query = _query((name, "day"), filters or {}, since, until)
    cells, values, groups, days = _ranked(query, name, filters or {}, since, until, period, top)
    nothing, zeros = _nothing(name), ", ".join(["0"] * (len(_SUMMED) - 1))
    day = "CAST(d AS text)" if name in _TEXTS else "d"
    figures = ", ".join(_SUMMED)
    parts: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    with query.connection.cursor() as cursor:
        cursor.execute(
            f"WITH {', '.join(cells)} SELECT 0, g0, {figures} FROM ({groups}) AS groups "  # noqa: S608
            f"UNION ALL SELECT 1, {nothing}, COUNT(*), {zeros} FROM every_group "
            f"UNION ALL SELECT 2, {day}, {figures} FROM ({days}) AS days",
            values,
        )
        for part, *row in cursor.fetchall():
            parts[part].append(row)
    return Leading(
        _ordered(query.total((name,), row) for row in parts[0]),
        int(parts[1][0][1]),
        _ordered(query.total(("day",), row) for row in parts[2]),
    )


def _ranked(
    query: _Query,
    name: str,
    filters: Mapping[str, Collection[Key]],
    since: int | None,
    until: int | None,
    period: int | None,
    top: int,
) -> tuple[list[str], list[Any], str, str]:
    """For `leading`: common table expressions, of which `every_group` has a row for each group; the values; and
    statements for the sums of the first groups (g0) and of the days (d)."""
    scope = (filters, since, until, period)
    source, of_days = query.source((name, *filters), since), query.source(filters, since)
    best = f"SELECT g0 FROM every_group ORDER BY {_RANK}, g0 LIMIT {top:d}"  # noqa: S608
    if source is None:  # the hourly sums are many: read once
        sums = ", ".join(f"SUM({each}) AS {each}" for each in _SUMMED)
        cells, values = query.statement((name, "day"), None, *scope)
        every = f"SELECT g0, {sums} FROM cells GROUP BY g0"  # noqa: S608
        made = [f"cells AS MATERIALIZED ({cells})", f"every_group AS MATERIALIZED ({every})"]
        groups = f"SELECT * FROM every_group WHERE g0 IN ({best})"  # noqa: S608
        return made, values, groups, f"SELECT g1 AS d, {sums} FROM cells GROUP BY g1"  # noqa: S608
    # Daily sums are read twice: everything of the few shown costs less than everything of ten thousand.
    every, values = query.statement((name,), source, *scope, summed=_RANKING)
    made = [f"every_group AS MATERIALIZED ({every})", f"best AS MATERIALIZED ({best})"]
    groups, more = query.statement((name,), source, *scope, within=(name, "SELECT g0 FROM best"))
    days, last = query.statement(("day",), of_days or source, *scope)
    return made, [*values, *more, *last], groups, f"SELECT g0 AS d, {', '.join(_SUMMED)} FROM ({days}) AS by_day"  # noqa: S608


def _nothing(name: str) -> str:
    """NULL of a dimension's kind: PostgreSQL wants to know."""
    return f"CAST(NULL AS {'text' if name in _TEXTS else 'bigint'})"


def _query(
    group_by: Sequence[str], filters: Mapping[str, Collection[Key]], since: int | None, until: int | None
) -> _Query:
    unknown = [name for name in (*group_by, *filters) if name not in DIMENSIONS]
    if unknown:
        raise ValueError(f"There is no dimension '{unknown[0]}'.")
    if any(moment is not None and moment % DAY_S for moment in (since, until)):
        raise ValueError("Costs are kept by whole days in UTC.")
    return _Query(connections[settings.HOOSH_LEDGER_DB], tuple(dict.fromkeys(group_by)))


def _ordered(found: Iterable[Total]) -> list[Total]:
    return sorted(found, key=lambda total: (-total.cost_usd, -total.tokens, *map(str, total.keys.values())))


class _Query:
    """One statement over sums and usage rows. Every name in it is one of the constants of this module."""

    def __init__(self, connection: BaseDatabaseWrapper, group_by: tuple[str, ...]) -> None:
        self.connection = connection
        self.group_by = group_by
        self._covered = day_sums.covered(connection)
        self._sums = {**_COLUMNS, "day": f"start - start %% {DAY_S}", "period": "period"}
        self._rows = {**_COLUMNS, "day": self._day_of_row(), "period": _state("period")}
        # The rows not summed yet are few and found by their ids, never along an index by key or agent.
        plain = {name: f"({column} + 0)" for name, column in _COLUMNS.items() if name not in _TEXTS}
        self._row_conditions = self._rows | plain

    def source(self, names: Iterable[str], since: int | None) -> day_sums.Cut | None:
        """The cut of the daily sums that knows these dimensions from `since` on; None = only the hourly sums do."""
        columns = {_COLUMNS[name] for name in names if name in _COLUMNS}
        return day_sums.fitting(columns, self._covered, since)

    def statement(
        self,
        group_by: Sequence[str],
        source: day_sums.Cut | None,
        filters: Mapping[str, Collection[Key]],
        since: int | None,
        until: int | None,
        period: int | None,
        *,
        unpriced_only: bool = False,
        summed: Sequence[str] = _SUMMED,
        within: tuple[str, str] | None = None,
    ) -> tuple[str, list[Any]]:
        """The statement and its values; `within` is a dimension and a query for the values of it that count."""
        sums, sum_values = self._conditions(self._sums, filters, period)
        rows, row_values = self._conditions(self._row_conditions, filters, period)
        if source is not None:
            sums.insert(0, f"cut = {source.number:d}")
        elif "team" not in filters:
            self._narrow(sums, sum_values, filters)
        if unpriced_only:
            sums.append("unpriced > 0")
            rows.append("price_id = 0 AND tokens > 0")
        rows.insert(0, f"id > {_state('rolled_up')}")
        for sign, moment in ((">=", since), ("<", until)):
            if moment is not None:
                sums.append(f"start {sign} %s")
                sum_values.append(moment)
                rows.append(f"at {sign} %s")
                row_values.append(self._moment(moment))
        if within is not None:
            sums.append(f"{self._sums[within[0]]} IN ({within[1]})")
            rows.append(f"{self._row_conditions[within[0]]} IN ({within[1]})")
        groups = [f"g{number}" for number in range(len(group_by))]
        table = (UsageRollup if source is None else UsageDay)._meta.db_table
        parts = (
            self._part(group_by, table, self._sums, sums, {name: name for name in summed}),
            self._part(group_by, Usage._meta.db_table, self._rows, rows, {name: _OF_ROW[name] for name in summed}),
        )
        figures = ", ".join(f"SUM({name}) AS {name}" for name in summed)
        sql = f"SELECT {', '.join([*groups, figures])} FROM ({' UNION ALL '.join(parts)}) AS parts"  # noqa: S608
        if groups:
            sql += f" GROUP BY {', '.join(groups)}"
        return sql, sum_values + row_values

    def _narrow(self, conditions: list[str], values: list[Any], filters: Mapping[str, Collection[Key]]) -> None:
        """Hourly sums have an index by team: name the teams in which the wanted agents or keys were."""
        for name in ("key", "agent"):
            if name in filters and (cut := self.source((name,), None)):
                conditions.append(
                    f"team_id IN (SELECT team_id FROM {UsageDay._meta.db_table} "  # noqa: S608
                    f"WHERE cut = {cut.number:d} AND {_COLUMNS[name]} IN ({_marks(filters[name])}))"
                )
                values += map(_stored, filters[name])
                return

    @staticmethod
    def total(names: Sequence[str], row: Sequence[Any]) -> Total:
        """A row of an answer that begins with the values of these dimensions."""
        width = len(names)
        keys = {name: _key(name, value) for name, value in zip(names, row[:width], strict=True)}
        *counts, milli, rest = (int(value or 0) for value in row[width:])
        return Total(keys=keys, cost_usd=usd(milli * HIGH_PICO + rest), **dict(zip(_COUNTS, counts, strict=True)))

    @staticmethod
    def _part(
        group_by: Sequence[str],
        table: str,
        columns: Mapping[str, str],
        where: Sequence[str],
        sums: Mapping[str, str],
    ) -> str:
        keys = [f"{columns[name]} AS g{number}" for number, name in enumerate(group_by)]
        summed = [f"{expression} AS {name}" for name, expression in sums.items()]
        condition = f" WHERE {' AND '.join(where)}" if where else ""
        return f"SELECT {', '.join([*keys, *summed])} FROM {table}{condition}"  # noqa: S608

    def _conditions(
        self, columns: Mapping[str, str], filters: Mapping[str, Collection[Key]], period: int | None
    ) -> tuple[list[str], list[Any]]:
        conditions: list[str] = []
        values: list[Any] = []
        for name, wanted in filters.items():
            conditions.append(f"{columns[name]} IN ({_marks(wanted)})" if wanted else "1 = 0")
            values += [_stored(value) for value in wanted]
        if period == CURRENT:
            conditions.append(f"{columns['period']} = {_state('period')}")
        elif period is not None:
            conditions.append(f"{columns['period']} = %s")
            values.append(period)
        return conditions, values

    def _day_of_row(self) -> str:
        if self.connection.vendor == "postgresql":
            return "EXTRACT(epoch FROM date_trunc('day', at, 'UTC'))::bigint"
        return "CAST(strftime('%%s', substr(at, 1, 10)) AS INTEGER)"

    def _moment(self, moment: int) -> Any:
        at = dt.datetime.fromtimestamp(moment, dt.UTC)
        return self.connection.ops.adapt_datetimefield_value(at)


def _state(name: str) -> str:
    return f"COALESCE((SELECT value FROM {LedgerState._meta.db_table} WHERE name = '{name}'), 0)"  # noqa: S608


def _marks(wanted: Collection[Key]) -> str:
    return ", ".join(["%s"] * len(wanted))


def _stored(value: Key) -> int | str:
    if isinstance(value, dt.date):
        return int(dt.datetime.combine(value, dt.time(), dt.UTC).timestamp())
    return value


def _key(name: str, value: Any) -> Key:
    if name == "day":
        return dt.datetime.fromtimestamp(int(value), dt.UTC).date()
    return value if isinstance(value, str) else int(value)


# Both parts of a cost as one number in two columns: what is left of the second is never negative.
_REST = f"((cost_rest_pico %% {HIGH_PICO} + {HIGH_PICO}) %% {HIGH_PICO})"
_RANK = f"cost_milli_usd + (cost_rest_pico - {_REST}) / {HIGH_PICO} DESC, {_REST} DESC, tokens DESC"
_RANKING = ("cost_milli_usd", "cost_rest_pico", "tokens")

# What a usage row counts for; the same as the job that makes the rollups counts.
_OF_ROW: Mapping[str, str] = {
    **{name: name for name in _COUNTS},
    "requests": "CASE WHEN attempt = 0 THEN 1 ELSE 0 END",
    "attempts": "1",
    "errors": "CASE WHEN error <> '' THEN 1 ELSE 0 END",
    "unpriced": "CASE WHEN price_id = 0 AND tokens > 0 THEN 1 ELSE 0 END",
    "cost_milli_usd": f"cost_pico / {HIGH_PICO}",
    "cost_rest_pico": f"cost_pico %% {HIGH_PICO}",
}
