"""What an operator may write into teams, agents, keys, pools and prices: field validators of forms and services."""

from __future__ import annotations

import re

from django.core.exceptions import ValidationError

SCOPES = ("inference", "operator")
CAPACITY_LIMIT = 10**15  # tokens; sums of many pools stay far inside 64 bits
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def split(text: str) -> tuple[str, ...]:
    """The entries of a comma-separated field, blanks dropped, order kept, doubles removed."""
    return tuple(dict.fromkeys(entry.strip() for entry in text.split(",") if entry.strip()))


def name(value: str) -> None:
    """A name people read: no control characters, no blanks at its ends."""
    if not value or value != value.strip() or _CONTROL.search(value):
        raise ValidationError("A name has no control characters and no blanks at its ends.", code="name")


def pattern(value: str) -> None:
    """A glob over model names: 1 to 256 characters, `*` the only wildcard."""
    if not 1 <= len(value) <= 256 or value != value.strip() or _CONTROL.search(value):
        raise ValidationError("A pattern has 1 to 256 characters, none of them control characters.", code="pattern")


def patterns(value: str) -> None:
    """A comma-separated list of globs."""
    for entry in split(value):
        pattern(entry)


def scopes(value: str) -> None:
    """A comma-separated list of scopes: at least one, known ones only."""
    entries = split(value)
    unknown = [entry for entry in entries if entry not in SCOPES]
    if unknown or not entries:
        raise ValidationError(f"Scopes are {' and '.join(SCOPES)}, comma-separated.", code="scopes")
