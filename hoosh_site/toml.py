"""Writing TOML: the part our own configuration file needs. Pure. Reading is `tomllib`'s."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SHORT = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def dumps(tables: Mapping[str, Any]) -> str:
    """A TOML document: plain values first, then tables, then arrays of tables, each in the order given.

    Values are str, bool, int, float, aware datetimes, lists of those, mappings and lists of mappings. Raises
    `TypeError` for anything else, `ValueError` for texts TOML cannot hold.
    """
    return "\n".join(_table(tables, ())).strip("\n") + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    nested = {key: value for key, value in table.items() if _is_nested(value)}
    for key, value in table.items():
        if key not in nested:
            yield f"{_key(key)} = {_value(value)}"
    for key, value in nested.items():
        name = ".".join(_key(step) for step in (*path, key))
        if isinstance(value, Mapping):
            yield from ("", f"[{name}]", *_table(value, (*path, key)))
        else:
            for entry in value:
                yield from ("", f"[[{name}]]", *_table(entry, (*path, key)))


def _is_nested(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(entry, Mapping) for entry in value)
    return isinstance(value, Mapping)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _text(key)


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value) if math.isfinite(value) else str(value)  # inf and nan are TOML, too
        case str():
            return _text(value)
        case dt.datetime() if value.tzinfo is not None:
            return value.isoformat()
        case list() | tuple():
            return "[" + ", ".join(_value(entry) for entry in value) + "]"
    raise TypeError(f"TOML has no {type(value).__name__} for {value!r}")


def _text(value: str) -> str:
    if "\n" in value and "\r" not in value:
        body = "".join(_escaped(character) if character != "\n" else "\n" for character in value)
        return f'"""\n{body}"""'
    return '"' + "".join(map(_escaped, value)) + '"'


def _escaped(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if "\ud800" <= character <= "\udfff":
        raise ValueError("TOML cannot hold half of a surrogate pair.")
    return f"\\u{ord(character):04x}" if character < " " or character == "\x7f" else character
