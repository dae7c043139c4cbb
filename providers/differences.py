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
    """A unified difference with three lines around each change, at most `LINE_LIMIT` lines."""
    before, after = pretty(old).splitlines(), pretty(new).splitlines()
    head = 0
    for left, right in zip(before, after, strict=False):
        if left != right:
            break
        head += 1
    # The equal beginning is left out but for its last lines: comparing costs more than linear time.
    skipped = max(0, head - 3)
    lines = difflib.unified_diff(before[skipped:], after[skipped:], n=3, lineterm="")
    return [_line(text) for text in islice(lines, 2, LINE_LIMIT + 2)]


def _line(text: str) -> Line:
    kind = _KINDS.get(text[:1], "same")
    return Line(kind, "⋯" if kind == "hunk" else text)  # its line numbers would count from the part left out
