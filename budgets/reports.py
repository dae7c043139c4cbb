"""What was used and what it cost, summed by who, where and what: exact to the last pico-USD.

The sums are those of `UsageRollup` plus the usage rows that were not rolled up yet, read in one statement, so that no
row is missing or counted twice while the rollups move on. Reading is all that happens here.
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

from budgets.models.fields import HIGH_PICO, usd
from budgets.models.ledger import LedgerState, Usage, UsageRollup

Key = int | str | dt.date

CURRENT: Final = -1  # the reporting period in force
DAY_S = 86_400
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
    sql, values = query.statement(filters or {}, since, until, period, unpriced_only=unpriced_only)
    if limit is not None:
        sql += f" LIMIT {limit + 1:d}"
    with query.connection.cursor() as cursor:
        cursor.execute(sql, values)
        rows = cursor.fetchall()
    if limit is not None and len(rows) > limit:
        raise TooManyGroupsError(limit)
    return _ordered(total for row in rows if (total := query.total(query.group_by, row)).attempts)


def tables(
    *names: str,
    filters: Mapping[str, Collection[Key]] | None = None,
    since: int | None = None,
    until: int | None = None,
    period: int | None = None,
) -> dict[str, list[Total]]:
    """For each of these dimensions the sums by it, in one reading of the ledger; the rest as for `totals`."""
    query = _query(names, filters or {}, since, until)
    cells, values = query.statement(filters or {}, since, until, period, unpriced_only=False)
    sums = ", ".join(f"SUM({name})" for name in _SUMMED)
    parts = []
    for number in range(len(names)):
        keys = [f"g{place}" if place == number else _nothing(name) for place, name in enumerate(names)]
        parts.append(f"SELECT {number}, {', '.join(keys)}, {sums} FROM cells GROUP BY g{number}")  # noqa: S608
    found: list[list[Total]] = [[] for _ in names]
    with query.connection.cursor() as cursor:
        cursor.execute(f"WITH cells AS MATERIALIZED ({cells}) {' UNION ALL '.join(parts)}", values)
        for number, *row in cursor.fetchall():
            key, figures = row[number], row[len(names) :]
            if (total := query.total((names[number],), [key, *figures])).attempts:
                found[number].append(total)
    return {name: _ordered(table) for name, table in zip(names, found, strict=True)}


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
    """One statement over both tables. Every name in it is one of the constants of this module."""

    def __init__(self, connection: BaseDatabaseWrapper, group_by: tuple[str, ...]) -> None:
        self.connection = connection
        self.group_by = group_by
        self._rollups = {**_COLUMNS, "day": f"start - start %% {DAY_S}", "period": "period"}
        self._rows = {**_COLUMNS, "day": self._day_of_row(), "period": _state("period")}

    def statement(
        self,
        filters: Mapping[str, Collection[Key]],
        since: int | None,
        until: int | None,
        period: int | None,
        *,
        unpriced_only: bool,
    ) -> tuple[str, list[Any]]:
        """The statement and its values."""
        rollups, rollup_values = self._conditions(self._rollups, filters, period)
        rows, row_values = self._conditions(self._rows, filters, period)
        if unpriced_only:
            rollups.append("unpriced > 0")
            rows.append("price_id = 0 AND tokens > 0")
        rows.insert(0, f"id > {_state('rolled_up')}")
        for sign, moment in ((">=", since), ("<", until)):
            if moment is not None:
                rollups.append(f"start {sign} %s")
                rollup_values.append(moment)
                rows.append(f"at {sign} %s")
                row_values.append(self._moment(moment))
        groups = [f"g{number}" for number in range(len(self.group_by))]
        parts = (
            self._part(UsageRollup._meta.db_table, self._rollups, rollups, {name: name for name in _SUMMED}),
            self._part(Usage._meta.db_table, self._rows, rows, _OF_ROW),
        )
        sums = ", ".join(f"SUM({name}) AS {name}" for name in _SUMMED)
        sql = f"SELECT {', '.join([*groups, sums])} FROM ({' UNION ALL '.join(parts)}) AS parts"  # noqa: S608
        if groups:
            sql += f" GROUP BY {', '.join(groups)}"
        return sql, rollup_values + row_values

    @staticmethod
    def total(names: Sequence[str], row: Sequence[Any]) -> Total:
        """A row of an answer that begins with the values of these dimensions."""
        width = len(names)
        keys = {name: _key(name, value) for name, value in zip(names, row[:width], strict=True)}
        *counts, milli, rest = (int(value or 0) for value in row[width:])
        return Total(keys=keys, cost_usd=usd(milli * HIGH_PICO + rest), **dict(zip(_COUNTS, counts, strict=True)))

    def _part(self, table: str, columns: Mapping[str, str], where: Sequence[str], sums: Mapping[str, str]) -> str:
        keys = [f"{columns[name]} AS g{number}" for number, name in enumerate(self.group_by)]
        summed = [f"{expression} AS {name}" for name, expression in sums.items()]
        condition = f" WHERE {' AND '.join(where)}" if where else ""
        return f"SELECT {', '.join([*keys, *summed])} FROM {table}{condition}"  # noqa: S608

    def _conditions(
        self, columns: Mapping[str, str], filters: Mapping[str, Collection[Key]], period: int | None
    ) -> tuple[list[str], list[Any]]:
        conditions: list[str] = []
        values: list[Any] = []
        for name, wanted in filters.items():
            marks = ", ".join(["%s"] * len(wanted))
            conditions.append(f"{columns[name]} IN ({marks})" if wanted else "1 = 0")
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


def _stored(value: Key) -> int | str:
    if isinstance(value, dt.date):
        return int(dt.datetime.combine(value, dt.time(), dt.UTC).timestamp())
    return value


def _key(name: str, value: Any) -> Key:
    if name == "day":
        return dt.datetime.fromtimestamp(int(value), dt.UTC).date()
    return value if isinstance(value, str) else int(value)


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
