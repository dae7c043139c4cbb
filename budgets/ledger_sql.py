"""The bulk statements of the ledger: one statement per table and batch, for SQLite and for PostgreSQL.

A batch travels in few statements, to PostgreSQL as one JSON text that it takes apart itself, because a Python loop over
rows holds up (or is held up by) the other threads of the process at every row. Both databases ignore rows whose key is
there already and report how many they took.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain, repeat
from typing import Any, cast

import msgspec
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import CharField, Field

from budgets.models.ledger import DecisionShape, JournalPosition, Usage
from budgets.records import UsageRecord, draws_of

ROLLUP_LOCK = 726001  # PostgreSQL advisory lock: shared while usage rows are inserted, exclusive while they are summed

_BIGINT, _SMALLINT, _INT = 2**63 - 1, 2**15 - 1, 2**31 - 1
_TOKENS_LIMIT, _COST_LIMIT = 10**15, 10**18  # what an absurd row is cut to, so that sums stay inside 64 bits
_RID, _ATTEMPT, _AT, TOKENS, COST, _SHAPE, _POOLS = (
    UsageRecord.__struct_fields__.index(name)
    for name in ("rid", "attempt", "at_us", "tokens", "cost_pico", "shape", "draws")
)
_FIELD_OF = {"at_us": "at", "cost_pico": "cost_usd", "draws": "pools"}
_FIELDS = tuple(
    cast("Field[Any, Any]", Usage._meta.get_field(_FIELD_OF.get(name, name))) for name in UsageRecord.__struct_fields__
)
_TEXTS = tuple(  # where a text stands and how long its column is
    (index, field.max_length or 0)
    for index, field in enumerate(_FIELDS)
    if isinstance(field, CharField) and index not in (_RID, _SHAPE, _POOLS)
)
_SUMMED = tuple(
    index
    for index, name in enumerate(UsageRecord.__struct_fields__)
    if name in ("tokens", "held", "latency_us", "ttft_us") or name.endswith("_tokens")
)
_POOLS_LENGTH = _FIELDS[_POOLS].max_length
_RANGES = {"PositiveSmallIntegerField": (0, _SMALLINT), "IntegerField": (-_INT, _INT)}
_PARTS = (100, 10, 1)  # rows bound at once on SQLite: other threads of the process may run between two
_LAST_SECOND = 253_402_300_799  # Python's dates end there
_encode = msgspec.json.Encoder().encode

Chain = tuple[tuple[int, int, int, bool], ...]  # pool id, unit, window's start, whether it is charged without a lease


class Charged:
    """The purses that rows are charged to: one object for all rows of a batch that have the same."""

    __slots__ = ("chain", "pools")

    def __init__(self, purses: Chain) -> None:
        self.chain = purses
        self.pools = _pools_text(purses)


Row = tuple[list[Any], Charged]  # the values of the columns in the order of `UsageRecord`, and where they are charged


def usage_rows(records: Iterable[UsageRecord]) -> list[Row]:
    """Usage records as the statements below want them: texts cut to their columns' length."""
    astuple = msgspec.structs.astuple
    last, second_text = -1, ""
    known: dict[Chain, Charged] = {}
    rows: list[Row] = []
    for record in records:
        draws = record.draws or draws_of(record)
        purses = tuple([(draw.pool_id, draw.unit, draw.window_start, draw.held < 0) for draw in draws])
        charged = known.get(purses)
        if charged is None:
            charged = known[purses] = Charged(purses)
        values = list(astuple(record))
        second = record.at_us // 1_000_000
        if second != last:
            last, second_text = second, _second_text(second)
        values[_AT] = f"{second_text}.{record.at_us - second * 1_000_000:06d}"
        values[_RID] = record.rid.hex()
        values[_SHAPE] = record.shape.hex()
        values[_POOLS] = charged.pools
        for index, limit in _TEXTS:
            if len(values[index]) > limit:
                values[index] = values[index][:limit]
        absurd = record.tokens > _TOKENS_LIMIT or record.cost_pico > _COST_LIMIT
        rows.append(storable_row((values, charged)) if absurd else (values, charged))
    return rows


def storable_row(row: Row) -> Row:
    """The row with everything replaced that a database could refuse (NUL characters, numbers out of range)."""
    values, charged = row
    clean: list[Any] = []
    for field, value in zip(_FIELDS, values, strict=True):
        if isinstance(value, str):
            clean.append(value.replace("\0", "\N{REPLACEMENT CHARACTER}"))
        elif isinstance(value, int) and not isinstance(value, bool):
            low, high = _RANGES.get(field.get_internal_type(), (-_BIGINT, _BIGINT))
            clean.append(max(low, min(high, value)))
        else:
            clean.append(value)
    for index in _SUMMED:
        clean[index] = max(-_TOKENS_LIMIT, min(_TOKENS_LIMIT, clean[index]))
    clean[COST] = max(-_COST_LIMIT, min(_COST_LIMIT, clean[COST]))
    purses = tuple((min(_BIGINT, pool), unit, min(_BIGINT, start), free) for pool, unit, start, free in charged.chain)
    return clean, charged if purses == charged.chain else Charged(purses)


def row_key(row: Row) -> tuple[str, int]:
    """The primary identity of a usage row: request id (hex) and attempt."""
    return row[0][_RID], row[0][_ATTEMPT]


def keep_out_rollups(connection: BaseDatabaseWrapper) -> None:
    """To be called first in a transaction that inserts usage rows: sums wait until it is over, and it for them.

    Otherwise a row of another host that commits late, with a lower id than rows that were summed already, would be
    missed. On SQLite there is one writer.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", (ROLLUP_LOCK,))


def insert_usage(connection: BaseDatabaseWrapper, rows: list[Row], batch_id: int) -> int:
    """Insert usage rows, leaving out those whose (request id, attempt) exists; how many were inserted.

    `batch_id` is the batch of the audit log they are in. Raises `DataError`, `IntegrityError` or `OverflowError` when
    the database refuses one (see `storable_row`).
    """
    batch = [values for values, _charged in rows]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(_USAGE_POSTGRES, (batch_id, _encode(batch).decode()))
            return int(cursor.rowcount)
        inserted = at = 0
        with connection.wrap_database_errors:
            for size in _PARTS:
                while len(batch) - at >= size:
                    # Past Django's cursor, which would look for a placeholder some thousand times in every statement.
                    parts = chain.from_iterable(zip(batch[at : at + size], repeat((batch_id,))))
                    values = list(chain.from_iterable(parts))
                    sqlite3.Cursor.execute(cursor.cursor, _usage_values(size), values)
                    inserted += int(cursor.rowcount)
                    at += size
        return inserted


def existing_usage(connection: BaseDatabaseWrapper, rows: list[Row]) -> set[tuple[str, int]]:
    """Which of the rows' (request id, attempt) are in the ledger already."""
    request_ids = _encode(list({values[_RID] for values, _charged in rows})).decode()
    sql = _EXISTING_POSTGRES if connection.vendor == "postgresql" else _EXISTING_SQLITE
    with connection.cursor() as cursor:
        cursor.execute(sql, (request_ids,))
        return {(rid, attempt) for rid, attempt in cursor.fetchall()}


def insert_shapes(connection: BaseDatabaseWrapper, shapes: Iterable[tuple[bytes, bytes]]) -> None:
    """Insert decision shapes that are not known yet; in one order, because hosts that share a database meet here."""
    items = [
        (digest.hex(), payload.decode("utf-8", "backslashreplace").replace("\0", ""))
        for digest, payload in sorted(shapes)
    ]
    sql = _SHAPES_POSTGRES if connection.vendor == "postgresql" else _SHAPES_SQLITE
    with connection.cursor() as cursor:
        cursor.execute(sql, (_encode(items).decode(),))


def store_position(connection: BaseDatabaseWrapper, owner: str, position: tuple[int, int]) -> None:
    """Remember where the owner's journal must be read from after a restart."""
    with connection.cursor() as cursor:
        cursor.execute(_POSITION, (owner, *position))


def _pools_text(purses: Chain) -> str:
    """The distinct pools of a chain as `id@window-start`, ascending; as many as fit into the column."""
    text = ""
    for pool_id, start in sorted({(pool_id, start) for pool_id, _unit, start, _observed in purses}):
        longer = f"{text} {pool_id}@{start}" if text else f"{pool_id}@{start}"
        if len(longer) > (_POOLS_LENGTH or 0):
            break
        text = longer
    return text


def _second_text(second: int) -> str:
    """A Unix time as both databases read it, in UTC; those Python's dates cannot show become the nearest they can."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(max(0, min(_LAST_SECOND, second))))


def _postgres_value(index: int) -> str:
    value = f"(r ->> {index})"
    if index == _AT:
        return f"({value} || '+00')::timestamptz"
    kind = {
        "BooleanField": "::boolean",
        "BigIntegerField": "::bigint",
        "IntegerField": "::integer",
        "PositiveSmallIntegerField": "::smallint",
    }
    name = "BigIntegerField" if index == COST else _FIELDS[index].get_internal_type()
    return value + kind.get(name, "")


_USAGE = f"{Usage._meta.db_table} ({', '.join(str(field.column) for field in _FIELDS)}, batch)"
_INDEXES = range(len(_FIELDS))


@lru_cache(maxsize=len(_PARTS))
def _usage_values(rows: int) -> str:
    """The statement for so many rows on SQLite, in its own style of parameters, without numbers: with them it would
    take SQLite 0.4 s to read the statement for 500 rows."""
    row = f"({', '.join('?' * (len(_FIELDS) + 1))})"
    return f"INSERT OR IGNORE INTO {_USAGE} VALUES {', '.join([row] * rows)}"  # noqa: S608


_USAGE_POSTGRES = (
    f"INSERT INTO {_USAGE} SELECT {', '.join(map(_postgres_value, _INDEXES))}, %s "  # noqa: S608
    "FROM jsonb_array_elements(%s::jsonb) AS r ON CONFLICT (rid, attempt) DO NOTHING"
)
_EXISTING = f"SELECT rid, attempt FROM {Usage._meta.db_table} WHERE rid IN "  # noqa: S608
_EXISTING_SQLITE = _EXISTING + "(SELECT value FROM json_each(%s))"  # noqa: S608
_EXISTING_POSTGRES = _EXISTING + "(SELECT jsonb_array_elements_text(%s::jsonb))"
_SHAPES = f"{DecisionShape._meta.db_table} (digest, payload)"
_SHAPES_SQLITE = (
    f"INSERT OR IGNORE INTO {_SHAPES} SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') "  # noqa: S608
    "FROM json_each(%s)"
)
_SHAPES_POSTGRES = (
    f"INSERT INTO {_SHAPES} SELECT r ->> 0, r ->> 1 FROM jsonb_array_elements(%s::jsonb) AS r "  # noqa: S608
    "ON CONFLICT (digest) DO NOTHING"
)
_POSITION = (
    f"INSERT INTO {JournalPosition._meta.db_table} (owner, segment, offset_bytes) VALUES (%s, %s, %s) "  # noqa: S608
    "ON CONFLICT (owner) DO UPDATE SET segment = excluded.segment, offset_bytes = excluded.offset_bytes"
)
