"""What an operator may write into teams, agents, keys, pools and prices: field validators of forms and services."""

from __future__ import annotations

import ipaddress
import re

from django.core.exceptions import ValidationError

from budgets import windows
from budgets.records import ENDPOINTS

SCOPES = ("inference", "routes", "operator", "admin")
CAPACITY_LIMIT = 10**15  # tokens; sums of many pools stay far inside 64 bits
CAPACITY_LIMIT_USD = 4_000_000  # a limit and as much again carried over stay inside 64 bits of pico-USD
PRICE_LIMIT_USD = 1_000_000  # per million tokens, or per request
PERCENT_LIMIT = 1000
RATE_LIMIT = 10**9  # requests or tokens per minute, requests at once: as far as the workers' counters go
SYSTEM_LIMIT = 32_000  # characters of a question asked ahead
QUESTION_LIMIT = 8_000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNSENDABLE = re.compile(r"[\x00\ud800-\udfff]")


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


def model(value: str) -> None:
    """The name of one model, as a request may carry it."""
    pattern(value)
    if "*" in value:
        raise ValidationError("Name one model; a request cannot carry a pattern.", code="model")


def text(value: str) -> None:
    """What a request may carry as a message: something other than white space, and no half characters."""
    if not value.strip() or _UNSENDABLE.search(value):
        raise ValidationError("Write a text.", code="text")


def patterns(value: str) -> None:
    """A comma-separated list of globs."""
    for entry in split(value):
        pattern(entry)


def time_zone(value: str) -> None:
    """A name of the time-zone database."""
    try:
        windows.zone(value)
    except ValueError as exc:
        raise ValidationError(str(exc), code="time_zone") from exc


def percents(value: str) -> None:
    """A comma-separated list of whole percents above zero."""
    for entry in split(value):
        if not (entry.isascii() and entry.isdigit() and 1 <= int(entry) <= PERCENT_LIMIT):
            raise ValidationError(
                f"Percents are whole numbers from 1 to {PERCENT_LIMIT}, comma-separated.", code="percents"
            )


def scopes(value: str) -> None:
    """A comma-separated list of scopes: at least one, known ones only."""
    entries = split(value)
    unknown = [entry for entry in entries if entry not in SCOPES]
    if unknown or not entries:
        raise ValidationError(f"Scopes are {', '.join(SCOPES)}, comma-separated.", code="scopes")


def endpoints(value: str) -> None:
    """A comma-separated list of names of inference endpoints."""
    unknown = [entry for entry in split(value) if entry not in ENDPOINTS]
    if unknown:
        raise ValidationError(f"Endpoints are {', '.join(ENDPOINTS)}, comma-separated.", code="endpoints")


def addresses(value: str) -> None:
    """A comma-separated list of addresses and networks in CIDR notation."""
    for entry in split(value):
        try:
            ipaddress.ip_network(entry)
        except ValueError as exc:
            raise ValidationError(
                f"“{entry[:64]}” is neither an address nor a network such as 10.0.0.0/8.", code="addresses"
            ) from exc
