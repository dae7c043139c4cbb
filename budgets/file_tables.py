"""Reading tables of a configuration file of our own: what is wrong is collected by its place, so that one look tells
an operator everything."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from django.core.exceptions import ValidationError
from django.utils import timezone


@dataclass(slots=True)
class Outcome:
    """What an import did, one sentence each, and what the operator should know."""

    changes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def at(place: str, write: Any, *arguments: Any, **options: Any) -> Any:
    """Call `write`; what it refuses is refused with the place before each sentence."""
    try:
        return write(*arguments, **options)
    except ValidationError as exc:
        raise ValidationError([f"{place}: {message}" for message in exc.messages]) from exc


def each(found: Mapping[str, Any], key: str, reasons: list[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """The tables [[key]], each with its place: "pool[1]"."""
    entries = found.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        reasons.append(f"{key} must be written as [[{key}]].")
        return []
    return [(f"{key}[{number}]", entry) for number, entry in enumerate(entries, 1)]


def refuse_unknown(where: str, table: Mapping[str, Any], known: Iterable[str], reasons: list[str]) -> None:
    """Note every key of a table that is not one of `known`."""
    reasons += [f"{where}.{key} is not known." for key in table if key not in known]


def whole(place: str, value: object, reasons: list[str]) -> int:
    """A whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    reasons.append(f"{place} must be a whole number.")
    return 0


def moment(place: str, value: object, reasons: list[str]) -> dt.datetime:
    """A moment, in UTC."""
    if not isinstance(value, dt.datetime) or value.tzinfo is None:
        reasons.append(f"{place} must be a date with time and zone, such as 2026-01-01T00:00:00Z.")
        return timezone.now()
    try:
        return value.astimezone(dt.UTC)
    except OverflowError:
        reasons.append(f"{place} lies outside of the years 1 to 9999 in UTC.")
        return timezone.now()


def amount(place: str, value: object, reasons: list[str]) -> Decimal:
    """An amount of USD."""
    try:
        found = Decimal(value) if isinstance(value, str | int) and not isinstance(value, bool) else Decimal("NaN")
    except InvalidOperation:
        found = Decimal("NaN")
    if not found.is_finite():
        reasons.append(f'{place} must be an amount in quotes, such as "2.50".')
        return Decimal(0)
    return found
