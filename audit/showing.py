"""Entries as admin pages show them: changes as a table of before and after, everything else by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from django.utils.html import format_html
from django.utils.safestring import SafeString

from audit.reading import Readable

TONES = {"warning": "warn", "error": "bad", "critical": "bad"}
_CHANGES = "fields"
_HIDDEN = frozenset({_CHANGES, "object"})
_LONG = 400


class Change(NamedTuple):
    """One field of a change; None: there was, or is, no value."""

    name: str
    before: str | None
    after: str | None


class Shown:
    """What templates ask of an entry."""

    def __init__(self, read: Readable) -> None:
        self.read = read
        self.entry = read.entry
        self.actor, self.target = read.actor, read.target

    @property
    def level(self) -> SafeString:
        """A label, nothing for what is usual."""
        level = self.entry.level
        if level == "info":
            return SafeString()
        return format_html('<span class="hoosh-badge {}">{}</span>', TONES.get(level, ""), level)

    @property
    def changes(self) -> list[Change]:
        """What a change was from and to; lists of added and removed things as changes too."""
        found = [*_pairs(self.read.data.get(_CHANGES)), *_pairs(self.read.data), *_pairs(self.read.personal)]
        for name, value in self.read.data.items():
            if _is_list_change(value):
                found.append(Change(name, _listed(value["removed"]), _listed(value["added"])))
        return found

    @property
    def facts(self) -> list[tuple[str, str, bool]]:
        """The rest: name, value, and whether it is a person's own."""
        own = [(name, text(value), True) for name, value in self.read.personal.items() if not _is_pair(value)]
        return own + [
            (name, text(value), False)
            for name, value in self.read.data.items()
            if name not in _HIDDEN and not _is_pair(value) and not _is_list_change(value)
        ]

    @property
    def body(self) -> str:
        """What the entry commits to, indented for reading."""
        try:
            return json.dumps(json.loads(self.entry.body), indent=2, ensure_ascii=False)
        except ValueError:
            return self.entry.body

    @property
    def leaf(self) -> str:
        """The leaf hash, hexadecimal."""
        return bytes(self.entry.leaf).hex()


def text(value: Any) -> str:
    """A value for people; long ones end in dots."""
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= _LONG else f"{shown[:_LONG]}…"


def _pairs(values: Any) -> Iterator[Change]:
    """Fields with what they were and became. In the canonical form a missing value stands as "null" in a pair."""
    for name, pair in values.items() if isinstance(values, Mapping) else ():
        if _is_pair(pair):
            before, after = (None if value in (None, "null") else text(value) for value in pair)
            yield Change(str(name), before, after)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and not any(isinstance(each, list | dict) for each in value)


def _is_list_change(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"added", "removed"}


def _listed(values: Any) -> str | None:
    return ", ".join(map(str, values)) if isinstance(values, list) and values else None
