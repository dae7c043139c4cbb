r"""JSON text that comes in pieces, in its plainest spelling, so that no escape hides what a string says. Pure.

`\u0041` and `A` are the same to whoever reads the JSON, `\/` and `/` are. Looked for are values as they are read.
"""

from __future__ import annotations

import re

_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)",
    re.DOTALL,
)
_UNFINISHED = re.compile(r"\\(?:u(?:[dD](?:[89abAB](?:[0-9a-fA-F](?:[0-9a-fA-F](?:\\(?:u[0-9a-fA-F]{0,3})?)?)?)?)?)?)?")
_UNFINISHED_SHORT = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_TAIL = 12  # characters of the longest escape, a pair of surrogates
_KEPT = {0x22: r"\"", 0x5C: r"\\", 0x08: r"\b", 0x09: r"\t", 0x0A: r"\n", 0x0C: r"\f", 0x0D: r"\r"}


class PlainSpelling:
    """Takes one JSON text in pieces and gives it back with every escape undone that JSON does not ask for.

    The value is the same. Text that does not begin as an object, an array or a string of JSON passes as it is.
    """

    __slots__ = ("_begun", "_is_json", "_rest")

    def __init__(self) -> None:
        self._begun = self._is_json = False
        self._rest = ""  # an escape that is not complete yet

    def feed(self, text: str) -> str:
        """The next piece; an escape at its end is kept until it is complete."""
        if not self._begun and (begun := text.lstrip()):
            self._begun, self._is_json = True, begun[0] in '{["'
        if not self._is_json:
            return text
        text = self._rest + text
        place = _unfinished(text)
        self._rest = text[place:]
        return _ESCAPE.sub(_plain, text[:place])

    def finish(self) -> str:
        """What was kept of an escape that never became one."""
        rest, self._rest = self._rest, ""
        return _ESCAPE.sub(_plain, rest)


def _plain(found: re.Match[str]) -> str:
    told = found[0]
    if told == r"\/":
        return "/"
    if told[1] != "u" or len(told) < 6:
        return told
    code = int(told[2:6], 16)
    if len(told) == 12:
        return chr(0x10000 + ((code - 0xD800) << 10) + (int(told[8:12], 16) - 0xDC00))
    if code in _KEPT:
        return _KEPT[code]
    return told if code < 0x20 or 0xD800 <= code < 0xE000 else chr(code)


def _unfinished(text: str) -> int:
    """Where an escape begins that the end of `text` cuts; the length of `text` when none does."""
    first = max(0, len(text) - _TAIL)
    place = text.find("\\", first)
    while place >= 0:
        before = len(text[:place]) - len(text[:place].rstrip("\\"))
        if not before % 2 and (_UNFINISHED.fullmatch(text, place) or _UNFINISHED_SHORT.fullmatch(text, place)):
            return place
        place = text.find("\\", place + 1)
    return len(text)


def escape_start(data: bytes, place: int) -> int:
    """Where the escape begins that `place` would cut, else `place`. `data` begins outside of an escape."""
    for start in range(place - 1, max(-1, place - 6), -1):
        if data[start : start + 1] == b"\\" and _is_escape(data, start) and place < start + escape_length(data, start):
            return start
    return place


def escape_length(data: bytes, start: int) -> int:
    """How long the escape at `start` is."""
    return 6 if data[start + 1 : start + 2] == b"u" else 2


def _is_escape(data: bytes, place: int) -> bool:
    """Whether the backslash at `place` begins an escape, and is not the second half of one."""
    return not (place - len(data[:place].rstrip(b"\\"))) % 2
