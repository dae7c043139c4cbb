"""The audit log's record of one usage row: canonical JSON of what was charged, to whom, for what. Never any text.

Every settled row's record is hashed into its batch (`audit.batches`), so this is done once per request: by a template
for everything that is alike in many rows, filled in with the few values that are not. What is hashed is what is
stored, with texts cut and numbers limited as they are: `record_of` gives the same bytes for the row in the database.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import msgspec

from budgets.ledger_sql import Row
from budgets.models.fields import pico
from budgets.models.ledger import Usage
from budgets.records import UsageRecord

# The record's keys in their order, and the fields of `UsageRecord` they are taken from.
KEYS = {
    "agent": "agent_id",
    "at": "at_us",
    "attempt": "attempt",
    "audio_in": "input_audio_tokens",
    "audio_out": "output_audio_tokens",
    "basis": "basis",
    "cache_write": "cache_write_tokens",
    "cached": "cached_tokens",
    "config": "config_version",
    "cost_pico": "cost_pico",
    "decision": "shape",
    "endpoint": "endpoint",
    "error": "error",
    "id": "rid",
    "image_in": "input_image_tokens",
    "input": "input_tokens",
    "key": "key_id",
    "model": "model",
    "output": "output_tokens",
    "pool": "pool_id",
    "pools": "draws",
    "price": "price_id",
    "provider": "provider_id",
    "reasoning": "reasoning_tokens",
    "route": "route_id",
    "status": "status",
    "stream": "stream",
    "team": "team_id",
    "tokens": "tokens",
    "upstream_model": "upstream_model",
}
_OWN = ("at", "cached", "cost_pico", "id", "input", "output", "reasoning", "tokens")  # differ from row to row
_FIELDS = UsageRecord.__struct_fields__
_PLACES = {key: _FIELDS.index(field) for key, field in KEYS.items()}
_ALIKE = tuple(key for key in KEYS if key not in _OWN)
_alike: Callable[[Sequence[Any]], tuple[Any, ...]] = itemgetter(*(_PLACES[key] for key in _ALIKE))
_own: Callable[[Sequence[Any]], tuple[Any, ...]] = itemgetter(*(_PLACES[key] for key in _OWN))
_TEMPLATES = 10_000  # remembered; then all are forgotten
_templates: dict[tuple[Any, ...], str] = {}
_encode = msgspec.json.Encoder().encode
_STORED = {"draws": "pools", "at_us": "at", "cost_pico": "cost_usd"}


def records_of(rows: Sequence[Row]) -> list[bytes]:
    """The records of rows as `ledger_sql.usage_rows` gives them, in their order."""
    templates = _templates
    found: list[bytes] = []
    for values, _charged in rows:
        alike = _alike(values)
        template = templates.get(alike)
        if template is None:
            template = _remember(alike)
        found.append((template % _own(values)).replace(" ", "T", 1).encode())  # in "at": only a number stands before it
    return found


def record_of(row: Usage) -> bytes:
    """The record of a row that is in the database."""
    values = [getattr(row, _STORED.get(name, name)) for name in _FIELDS]
    at = row.at.astimezone(dt.UTC)
    values[_PLACES["at"]] = f"{at:%Y-%m-%d %H:%M:%S.%f}"
    values[_PLACES["cost_pico"]] = pico(row.cost_usd)
    return (_template(_alike(values)) % _own(values)).replace(" ", "T", 1).encode()


def _remember(alike: tuple[Any, ...]) -> str:
    if len(_templates) >= _TEMPLATES:
        _templates.clear()
    template = _templates[alike] = _template(alike)
    return template


def _template(alike: tuple[Any, ...]) -> str:
    """The record with gaps for what each row has of its own."""
    known = dict(zip(_ALIKE, alike, strict=True))
    parts = []
    for key in KEYS:
        value = known.get(key)
        if value is None:
            text = {"id": '"%s"', "at": '"%sZ"'}.get(key, '"%d"')
        elif isinstance(value, bool):
            text = '"true"' if value else '"false"'
        elif isinstance(value, int):
            text = f'"{value}"'
        else:
            text = _encode(value).decode().replace("%", "%%")
        parts.append(f'"{key}":{text}')
    return f"{{{','.join(parts)}}}"
