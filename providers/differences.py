"""Two configuration documents as readable text, and what differs between them. Pure."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from itertools import islice

import msgspec

from providers.config import ConfigDocument, encode

LINE_LIMIT = 2_000
_KINDS = {"+": "add", "-": "del", "@": "hunk"}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a difference; `kind` is "add", "del", "hunk" or "same"."""

    kind: str
    text: str


def pretty(document: ConfigDocument) -> str:
    """The document as JSON indented by two."""
    return msgspec.json.format(encode(document), indent=2).decode()


def difference(old: ConfigDocument, new: ConfigDocument) -> list[Line]:
    """A unified difference with three lines around each change, at most `LINE_LIMIT` lines; each part names its row."""
    before, after = pretty(old).splitlines(), pretty(new).splitlines()
    head = 0
    for left, right in zip(before, after, strict=False):
        if left != right:
            break
        head += 1
    # The equal beginning is left out but for its last lines: comparing costs more than linear time.
    skipped = max(0, head - 3)
    places = _places(after)[skipped:]
    lines = difflib.unified_diff(before[skipped:], after[skipped:], n=3, lineterm="")
    return [_line(text, places) for text in islice(lines, 2, LINE_LIMIT + 2)]


def _line(text: str, places: list[str]) -> Line:
    kind = _KINDS.get(text[:1], "same")
    if kind != "hunk":
        return Line(kind, text)
    # "@@ -12,7 +12,9 @@": line numbers of a document nobody sees numbered; the row's name says more.
    start = int(text.split("+", 1)[1].split(" ", 1)[0].split(",", 1)[0])
    place = places[min(max(start - 1, 0), len(places) - 1)] if places else ""
    return Line(kind, f"⋯ {place}".rstrip())


def _places(lines: list[str]) -> list[str]:
    """For each line of a document the section and the name of the row it is in."""
    found: list[str] = []
    section = name = ""
    for line in lines:
        if line.startswith('  "'):
            section, name = line.split('"', 2)[1], ""
        elif line == "    {":
            name = ""
        elif line.startswith('      "name": '):
            name = line[14:].rstrip(",").strip('"')
        found.append(f"{section}, {name}" if name else section)
    return found


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one row: `what` is "added", "removed" or "changed"; `fields` are (name, before, after) as text."""

    section: str
    name: str
    what: str
    fields: tuple[tuple[str, str, str], ...] = ()


_SECTIONS = (
    ("providers", "Provider"),
    ("routes", "Route"),
    ("policies", "Routing policy"),
    ("patterns", "Data pattern"),
    ("privacy", "Privacy policy"),
)
_TEXT_LIMIT = 120


def described(old: ConfigDocument, new: ConfigDocument) -> list[Change]:
    """What differs, row by row. A row is the same one while its id is, whatever its name; providers are told by name
    where routes mention them."""
    found: list[Change] = []
    if fields := _fields(old.settings, new.settings, {}, {}):
        found.append(Change("Gateway settings", "", "changed", fields))
    providers = {row.id: row.name for row in old.providers}, {row.id: row.name for row in new.providers}
    for attribute, section in _SECTIONS:
        before = {row.id: row for row in getattr(old, attribute)}
        after = {row.id: row for row in getattr(new, attribute)}
        for number, row in before.items():
            if number not in after:
                found.append(Change(section, row.name, "removed"))
        for number, row in after.items():
            if number not in before:
                found.append(Change(section, row.name, "added", _fields(None, row, *providers)))
            elif fields := _fields(before[number], row, *providers):
                found.append(Change(section, row.name, "changed", fields))
    return found


def _fields(
    old: msgspec.Struct | None, new: msgspec.Struct, providers_before: dict[int, str], providers_after: dict[int, str]
) -> tuple[tuple[str, str, str], ...]:
    """The fields that differ; of a new row those that are not as they are by default."""
    found = []
    names, values = new.__struct_fields__[::-1], type(new).__struct_defaults__[::-1]
    defaults: dict[str, object] = dict(zip(names, values, strict=False))
    for name in new.__struct_fields__:
        if name in ("id", "name") and (old is None or getattr(old, name) == getattr(new, name)):
            continue
        before = defaults.get(name) if old is None else getattr(old, name)
        after = getattr(new, name)
        if before == after:
            continue
        if name == "provider_id":
            told = "" if old is None else providers_before.get(int(str(before)), str(before))
            found.append(("provider", told, providers_after.get(after, str(after))))
        else:
            found.append((name, "" if old is None else _shown(before), _shown(after)))
    return tuple(found)


def _shown(value: object) -> str:
    if value is None or value == "" or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        text = ", ".join(getattr(each, "name", str(each)) + _revision(each) for each in value)
    else:
        text = str(value)
    text = text.replace("\n", " ")
    return text if len(text) <= _TEXT_LIMIT else text[: _TEXT_LIMIT - 1] + "…"


def _revision(value: object) -> str:
    """A credential whose secret was replaced is told apart by its revision."""
    revision, enabled = getattr(value, "revision", None), getattr(value, "enabled", True)
    if revision is None:
        return ""
    return f" (revision {revision})" if enabled else f" (revision {revision}, off)"
