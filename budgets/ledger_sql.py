"""The bulk statements of the ledger: one statement per table and batch, for SQLite and for PostgreSQL.

A batch travels as one JSON text and is unpacked by the database, because a Python loop over rows holds up (or is held
up by) the other threads of the process at every row. Both databases ignore rows whose key is there already and report
how many they took.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import CharField

from budgets.models.ledger import DecisionShape, JournalPosition, Usage
from budgets.records import UsageRecord

_BIGINT, _SMALLINT = 2**63 - 1, 2**15 - 1
_RID, _ATTEMPT, _AT, _COST, _SHAPE = (
    UsageRecord.__struct_fields__.index(name) for name in ("rid", "attempt", "at_us", "cost_pico", "shape")
)
_COLUMN_OF = {"at_us": "at", "cost_pico": "cost_usd"}
_COLUMNS = tuple(_COLUMN_OF.get(name, name) for name in UsageRecord.__struct_fields__)
_TEXTS = tuple(  # where a text stands and how long its column is
    (index, field.max_length)
    for index, field in enumerate(map(Usage._meta.get_field, _COLUMNS))
    if isinstance(field, CharField) and index not in (_RID, _SHAPE)
)
_encode = msgspec.json.Encoder().encode

Row = list[Any]


def usage_row(record: UsageRecord) -> Row:
    """A usage record as the statements below want it: values in field order, texts cut to their columns' length."""
    row = list(msgspec.structs.astuple(record))
    row[_RID] = record.rid.hex()
    row[_SHAPE] = record.shape.hex()
    for index, limit in _TEXTS:
        row[index] = row[index][:limit]
    return row


def storable_row(row: Row) -> Row:
    """The row with everything replaced that a database could refuse (NUL characters, numbers out of range)."""
    clean: Row = []
    for index, value in enumerate(row):
        if isinstance(value, str):
            clean.append(value.replace("\0", "\N{REPLACEMENT CHARACTER}"))
        elif isinstance(value, int) and not isinstance(value, bool):
            limit = _SMALLINT if _COLUMNS[index] in ("attempt", "attempts", "basis", "status") else _BIGINT
            floor = 0 if _COLUMNS[index] in ("attempt", "attempts", "basis") else -limit
            clean.append(max(floor, min(limit, value)))
        else:
            clean.append(value)
    clean[_AT] = max(0, min(clean[_AT], 253_402_300_799_000_000))  # the last microsecond Python's dates can show
    clean[_COST] = max(-(10**23), min(10**18, clean[_COST]))
    return clean


def row_key(row: Row) -> tuple[str, int]:
    """The primary identity of a usage row: request id (hex) and attempt."""
    return row[_RID], row[_ATTEMPT]


def insert_usage(connection: BaseDatabaseWrapper, rows: list[Row]) -> int:
    """Insert usage rows, leaving out those whose (request id, attempt) exists; how many were inserted."""
    sql = _USAGE_POSTGRES if connection.vendor == "postgresql" else _USAGE_SQLITE
    with connection.cursor() as cursor:
        cursor.execute(sql, (_encode(rows).decode(),))
        return int(cursor.rowcount)


def existing_usage(connection: BaseDatabaseWrapper, rows: list[Row]) -> set[tuple[str, int]]:
    """Which of the rows' (request id, attempt) are in the ledger already."""
    request_ids = _encode(list({row[_RID] for row in rows})).decode()
    sql = _EXISTING_POSTGRES if connection.vendor == "postgresql" else _EXISTING_SQLITE
    with connection.cursor() as cursor:
        cursor.execute(sql, (request_ids,))
        return {(rid, attempt) for rid, attempt in cursor.fetchall()}


def insert_shapes(connection: BaseDatabaseWrapper, shapes: Iterable[tuple[bytes, bytes]]) -> None:
    """Insert decision shapes that are not known yet."""
    items = [
        (digest.hex(), payload.decode("utf-8", "backslashreplace").replace("\0", "")) for digest, payload in shapes
    ]
    sql = _SHAPES_POSTGRES if connection.vendor == "postgresql" else _SHAPES_SQLITE
    with connection.cursor() as cursor:
        cursor.execute(sql, (_encode(items).decode(),))


def store_position(connection: BaseDatabaseWrapper, owner: str, position: tuple[int, int]) -> None:
    """Remember where the owner's journal must be read from after a restart."""
    with connection.cursor() as cursor:
        cursor.execute(_POSITION, (owner, *position))


def _sqlite_value(index: int) -> str:
    value = f"json_extract(value, '$[{index}]')"
    if index == _AT:  # as Django writes it: text with microseconds
        seconds = f"strftime('%%Y-%%m-%%d %%H:%%M:%%S', {value} / 1000000, 'unixepoch')"
        return f"{seconds} || printf('.%%06d', {value} %% 1000000)"
    return f"{value} / 1e12" if index == _COST else value


def _postgres_value(index: int) -> str:
    field = Usage._meta.get_field(_COLUMNS[index])
    value = f"(r ->> {index})"
    if index == _AT:
        return f"timestamptz 'epoch' + {value}::bigint * interval '1 microsecond'"
    if index == _COST:
        return f"{value}::numeric / 1000000000000"
    kind = {
        "BooleanField": "::boolean",
        "BigIntegerField": "::bigint",
        "IntegerField": "::integer",
        "PositiveSmallIntegerField": "::smallint",
    }
    return value + kind.get(field.get_internal_type(), "")


_USAGE = f"{Usage._meta.db_table} ({', '.join(_COLUMNS)})"
_INDEXES = range(len(_COLUMNS))
# Materialized: otherwise SQLite writes a row's array out as text once more for every column (3 times the cost).
_USAGE_SQLITE = (
    f"INSERT OR IGNORE INTO {_USAGE} WITH batch (value) AS MATERIALIZED (SELECT value FROM json_each(%s)) "  # noqa: S608
    f"SELECT {', '.join(map(_sqlite_value, _INDEXES))} FROM batch"
)
_USAGE_POSTGRES = (
    f"INSERT INTO {_USAGE} SELECT {', '.join(map(_postgres_value, _INDEXES))} "  # noqa: S608
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
