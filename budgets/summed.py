"""What is summed of usage rows, and by what: names and SQL that the hourly and the daily sums share. Pure."""

from __future__ import annotations

from budgets.models.fields import HIGH_PICO

HOUR_S, DAY_S = 3_600, 86_400

# A column of the sums and its SQL over usage rows. Costs are summed in two parts: rows of up to a million USD each fit,
# as long as there are fewer than 9 billion.
SUMS: dict[str, str] = {
    "requests": "SUM(CASE WHEN attempt = 0 THEN 1 ELSE 0 END)",
    "attempts": "COUNT(*)",
    "errors": "SUM(CASE WHEN error <> '' THEN 1 ELSE 0 END)",
    "unpriced": "SUM(CASE WHEN price_id = 0 AND tokens > 0 THEN 1 ELSE 0 END)",
    **{
        name: f"SUM({name})"
        for name in (
            *("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"),
            *("tokens", "latency_us"),
        )
    },
    "cost_milli_usd": f"SUM(cost_pico / {HIGH_PICO})",
    "cost_rest_pico": f"SUM(cost_pico %% {HIGH_PICO})",
}
WHO = ("team_id", "agent_id", "key_id", "pool_id", "provider_id", "route_id", "endpoint", "model", "upstream_model")
TEXTS = frozenset(("endpoint", "model", "upstream_model"))  # of `WHO`; the others are ids
# On SQLite the writer groups the rows it counts once, into a temporary table of this name that all sums are made from.
# On PostgreSQL, where such a table is an expense to the catalogue, each statement groups them itself.
COUNTED = "hoosh_counted"


def rows_by_hour(postgres: bool, usage: str) -> str:
    """SQL that sums usage rows (ids from the first value to the second) by hour and `WHO`: a column each for "start",
    `WHO` and `SUMS`."""
    hour, group = _hour_of_row(postgres)
    sums = ", ".join(f"{expression} AS {name}" for name, expression in SUMS.items())
    who = ", ".join(WHO)
    return (
        f"SELECT {hour} AS start, {who}, {sums} FROM {usage} "  # noqa: S608
        f"WHERE id > %s AND id <= %s GROUP BY {group}, {who}"
    )


def _hour_of_row(postgres: bool) -> tuple[str, str]:
    """SQL for the start of a usage row's hour (Unix seconds, UTC), and what to group by to have it once an hour."""
    if postgres:
        hour = "date_trunc('hour', at, 'UTC')"
        return f"EXTRACT(epoch FROM {hour})::bigint", hour
    # SQLite keeps times as text in UTC; grouped by its first 13 characters, only groups are made into numbers.
    hour = "substr(at, 1, 13)"
    return f"CAST(strftime('%%s', {hour} || ':00:00') AS INTEGER)", hour
