"""The one byte form of everything the log commits to: RFC 8785 (JCS), narrowed to objects, arrays and strings.

Numbers are decimal strings, so that no reader rounds 64-bit ids and money; keys are ASCII, so that sorting them by
bytes, code points or UTF-16 units is the same. Pure: imports nothing of Django.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import msgspec

_encode_sorted = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.decode


def encode(value: Mapping[str, Any]) -> bytes:
    """The canonical form of an object, UTF-8 without white space.

    Text, int, bool, float, Decimal, datetime and date become strings as `text_of` has it, in nested objects and arrays
    too. An absent value and None are the same: None is left out of objects, and "null" in arrays, where its place
    counts. Lone surrogates become U+FFFD. A key with characters beyond ASCII, or with a backslash, is written with
    Python's `unicode_escape`. Raises TypeError for anything else.
    """
    plain = _plain_object(value)
    try:
        return _encode_sorted(plain)
    except UnicodeEncodeError:
        return _encode_sorted(_without_surrogates(plain))


def encode_strings(value: Mapping[str, str]) -> bytes:
    """`encode` for an object that has only ASCII keys and text already; the quick way for records made in bulk."""
    try:
        return _encode_sorted(value)
    except UnicodeEncodeError:
        return _encode_sorted(_without_surrogates(dict(value)))


def is_canonical(data: bytes) -> bool:
    """Whether `data` is an object in canonical form, byte for byte."""
    try:
        value = _decode(data)
        return isinstance(value, dict) and encode(value) == data
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False


def text_of(value: object) -> str:
    """How a single value is written: integers in decimal, "true" and "false", the shortest text of a float, a Decimal
    without exponent, a moment in UTC as `moment_text` has it. Raises TypeError for other types."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return moment_text(value)
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"no canonical form for {type(value).__name__}")


def moment_text(moment: datetime) -> str:
    """`moment` (aware) in UTC with six decimals: "2026-11-05T09:30:00.000000Z"."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _plain_object(value: Mapping[Any, Any]) -> dict[str, Any]:
    plain = {
        key: item if type(item) is str else str(item) if type(item) is int else _plain(item)
        for key, item in value.items()
        if item is not None
    }
    # Mostly there is nothing to do, so that all keys are looked at in one go.
    keys = "".join([key if type(key) is str else "\\" for key in plain])
    if not keys.isascii() or "\\" in keys:
        return {_ascii_key(key): item for key, item in plain.items()}
    return plain


def _plain(value: object) -> Any:
    if type(value) is str:
        return value
    if isinstance(value, Mapping):
        return _plain_object(value)
    if isinstance(value, list | tuple):
        return ["null" if item is None else _plain(item) for item in value]
    return text_of(value)


def _ascii_key(key: object) -> str:
    text = text_of(key)
    if text.isascii() and "\\" not in text:
        return text
    # Escaping the backslash as well keeps two different keys different.
    return text.encode("unicode_escape").decode("ascii")


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, dict):
        return {key: _without_surrogates(item) for key, item in value.items()}
    return [_without_surrogates(item) for item in value]
