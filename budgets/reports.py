"""What was used and what it cost, summed by who, where and what: exact to the last pico-USD.

The sums are those of `UsageRollup` plus the usage rows that were not rolled up yet, read in one statement, so that no
row is missing or counted twice while the rollups move on. Reading is all that happens here.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from budgets.models.fields import usd
from budgets.models.ledger import LedgerState, Usage, UsageRollup

Key = int | str | dt.date

CURRENT: Final = -1  # the reporting period in force
DAY_S = 86_400
_STEP = 10**6  # amounts are summed as quotient and remainder: a sum of whole amounts may not fit into 64 bits
_COLUMNS: Mapping[str, str] = {
    **{f"{name}": f"{name}_id" for name in ("team", "agent", "key", "pool", "provider", "route")},
    **{name: name for name in ("endpoint", "model", "upstream_model")},
}
DIMENSIONS = (*_COLUMNS, "day", "period")
_COUNTS = (
    *("requests", "attempts", "errors", "unpriced"),
    *("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens", "tokens"),
    "latency_us",
)


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
) -> list[Total]:
    """Sums by `group_by` (names of `DIMENSIONS`), the most expensive first; one row at most without any.

    `filters` names the values of dimensions that are counted (`{"team": [3]}`). `since` (included) and `until` (not
    included) are Unix seconds at the start of a day in UTC: older rollups know nothing shorter. `period` is a
    reporting period's number, `CURRENT`, or None for all. Raises `ValueError` for a dimension that does not exist and
    for times within a day.
    """
    filters = filters or {}
    unknown = [name for name in (*group_by, *filters) if name not in DIMENSIONS]
    if unknown:
        raise ValueError(f"There is no dimension '{unknown[0]}'.")
    if any(moment is not None and moment % DAY_S for moment in (since, until)):
        raise ValueError("Costs are kept by whole days in UTC.")
    connection = connections[settings.HOOSH_LEDGER_DB]
    query = _Query(connection, tuple(dict.fromkeys(group_by)))
    sql, values = query.statement(filters, since, until, period)
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        found = [query.total(row) for row in cursor.fetchall()]
    found = [total for total in found if total.attempts]
    found.sort(key=lambda total: (-total.cost_usd, -total.tokens, *map(str, total.keys.values())))
    return found


class _Query:
    """One statement over both tables. Every name in it is one of the constants of this module."""

    def __init__(self, connection: BaseDatabaseWrapper, group_by: tuple[str, ...]) -> None:
        self._connection = connection
        self._group_by = group_by
        self._rollups = {**_COLUMNS, "day": f"start - start %% {DAY_S}", "period": "period"}
        self._rows = {**_COLUMNS, "day": self._day_of_row(), "period": _state("period")}

    def statement(
        self,
        filters: Mapping[str, Collection[Key]],
        since: int | None,
        until: int | None,
        period: int | None,
    ) -> tuple[str, list[Any]]:
        """The statement and its values."""
        rollups, rollup_values = self._conditions(self._rollups, filters, period)
        rows, row_values = self._conditions(self._rows, filters, period)
        rows.insert(0, f"id > {_state('rolled_up')}")
        for sign, moment in ((">=", since), ("<", until)):
            if moment is not None:
                rollups.append(f"start {sign} %s")
                rollup_values.append(moment)
                rows.append(f"at {sign} %s")
                row_values.append(self._moment(moment))
        groups = [f"g{number}" for number in range(len(self._group_by))]
        parts = (
            self._part(UsageRollup._meta.db_table, self._rollups, rollups, {name: name for name in _COUNTS}),
            self._part(Usage._meta.db_table, self._rows, rows, _OF_ROW),
        )
        sums = ", ".join(f"SUM({name})" for name in (*_COUNTS, "cost_high", "cost_low"))
        sql = f"SELECT {', '.join([*groups, sums])} FROM ({' UNION ALL '.join(parts)}) AS parts"  # noqa: S608
        if groups:
            sql += f" GROUP BY {', '.join(groups)}"
        return sql, rollup_values + row_values

    def total(self, row: Sequence[Any]) -> Total:
        """A row of the answer."""
        width = len(self._group_by)
        keys = {name: _key(name, value) for name, value in zip(self._group_by, row[:width], strict=True)}
        *counts, high, low = (int(value or 0) for value in row[width:])
        return Total(keys=keys, cost_usd=usd(high * _STEP + low), **dict(zip(_COUNTS, counts, strict=True)))

    def _part(self, table: str, columns: Mapping[str, str], where: Sequence[str], counts: Mapping[str, str]) -> str:
        keys = [f"{columns[name]} AS g{number}" for number, name in enumerate(self._group_by)]
        sums = [f"{expression} AS {name}" for name, expression in counts.items()]
        money = [f"cost_pico / {_STEP} AS cost_high", f"cost_pico %% {_STEP} AS cost_low"]
        condition = f" WHERE {' AND '.join(where)}" if where else ""
        return f"SELECT {', '.join([*keys, *sums, *money])} FROM {table}{condition}"  # noqa: S608

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
        if self._connection.vendor == "postgresql":
            return "EXTRACT(epoch FROM date_trunc('day', at, 'UTC'))::bigint"
        return "CAST(strftime('%%s', substr(at, 1, 10)) AS INTEGER)"

    def _moment(self, moment: int) -> Any:
        at = dt.datetime.fromtimestamp(moment, dt.UTC)
        return self._connection.ops.adapt_datetimefield_value(at)


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
}
