"""What forbids publishing patterns and privacy policies. Pure over the document; `providers.compile` asks."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from django.core.exceptions import ValidationError

from providers import validation
from providers.config import ConfigDocument, PatternDoc, PrivacyDoc
from providers.privacy.about import ABOUT
from providers.privacy.patterns import LEVELS, compile_error
from providers.privacy.verdict import policy_of

Told = tuple[str, str, str]  # the row, the field, what to do


def problems(document: ConfigDocument) -> Iterator[Told]:
    """Row, field and remedy of everything that is wrong."""
    for pattern in document.patterns:
        yield from _pattern(pattern)
    names = {*ABOUT, *(pattern.name for pattern in document.patterns)}
    for policy in document.privacy:
        yield from _policy(policy, names)
    default = document.settings.privacy_policy_id
    if default and default not in {policy.id for policy in document.privacy}:
        yield "Gateway settings", "privacy policy", "it does not exist; choose another or none."


def _pattern(pattern: PatternDoc) -> Iterator[Told]:
    row = f"Data pattern “{pattern.name}”"
    yield from _checked(row, "name", pattern.name)
    if pattern.name in ABOUT:
        yield row, "name", "a built-in pattern has this name; rename it."
    if pattern.level not in LEVELS[1:]:
        yield row, "level", f"choose one of {', '.join(LEVELS[1:])}."
    if reason := compile_error(pattern.source):
        yield row, "regular expression", reason


def _policy(policy: PrivacyDoc, names: set[str]) -> Iterator[Told]:
    row = f"Privacy policy “{policy.name}”"
    try:
        validation.name(policy.name)
    except ValidationError as exc:
        yield row, "name", " ".join(exc.messages)
    try:
        policy_of(policy)
    except msgspec.ValidationError as exc:
        yield row, "levels and actions", f"choose among those there are ({exc})."
    if unknown := [name for name in policy.disabled if name not in names]:
        yield row, "patterns switched off", f"there is no pattern named {', '.join(unknown)}."


def _checked(row: str, field: str, value: str) -> Iterator[Told]:
    try:
        validation.label_name(value)
    except ValidationError as exc:
        yield row, field, " ".join(exc.messages)
