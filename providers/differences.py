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
