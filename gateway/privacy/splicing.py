"""Replacing the places that were found in a text, plain or JSON. JSON stays JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator

import msgspec

from gateway.privacy.texts import Text
from providers.privacy.scanner import Match, Span, merged

Replace = Callable[[str, str], str]  # the pattern and what matched: what is written instead

# The tokens of JSON text that can hold something: the inside of a string, a number.
_TOKEN = re.compile(rb'"((?:[^"\\]|\\.)*)"|(-?[0-9][0-9.eE+-]*)', re.DOTALL)
_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{4}|.)", re.DOTALL)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_DECODE_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


def rewrite(texts: list[Text], matches: Iterable[Match], replace: Replace, names: Collection[str] | None = None) -> int:
    """Replace the matches of these patterns (None = all) in their texts; how many texts changed.

    `matches` are of a scan of exactly these texts.
    """
    found: dict[int, list[Match]] = {}
    for match in matches:
        if names is None or match.pattern in names:
            found.setdefault(match.text, []).append(match)
    for number, own in found.items():
        text, spans = texts[number], merged(own)
        text.write(in_json(text.data(), spans, replace) if text.json else in_plain(text.data(), spans, replace))
    return len(found)


def in_plain(data: bytes, spans: Iterable[Span], replace: Replace) -> bytes:
    """Any text with the spans replaced."""
    pieces, at = [], 0
    for start, end, name in spans:
        pieces.append(data[at:start])
        pieces.append(replace(name, data[start:end].decode("utf-8", "surrogatepass")).encode("utf-8", "surrogatepass"))
        at = end
    pieces.append(data[at:])
    return b"".join(pieces)


def in_json(data: bytes, spans: list[Span], replace: Replace) -> bytes:
    """JSON text with the spans replaced inside of its strings; a number becomes a string. What is none is plain text.

    A span over several tokens is replaced in each of them.
    """
    try:
        _decode(data)
    except _DECODE_ERRORS:
        return in_plain(data, spans, replace)
    pieces: list[bytes] = []
    at = 0
    for start, end, number, name in _inside(data, spans):
        pieces.append(data[at:start])
        raw = data[start:end]
        value: str = raw.decode() if number else _decode(b'"%b"' % raw)
        told = _encode(replace(name, value))
        pieces.append(told if number else told[1:-1])
        at = end
    pieces.append(data[at:])
    return b"".join(pieces)


def _inside(data: bytes, spans: list[Span]) -> Iterator[tuple[int, int, bool, str]]:
    """What the spans cover of each token: start, end, whether it is a number, the pattern's name."""
    place = 0
    for token in _TOKEN.finditer(data):
        number = token[1] is None
        first, last = token.span(2 if number else 1)
        while place < len(spans) and spans[place][1] <= first:
            place += 1
        if place == len(spans):
            return
        done, ahead = first, place
        while ahead < len(spans) and spans[ahead][0] < last:
            start, end, name = spans[ahead]
            start, end = max(start, first), min(end, last)
            if number:
                start, end = first, last
            elif b"\\" in token[1]:
                start, end = _whole_escapes(data, first, last, start, end)
            start = max(start, done)
            if start < end:
                yield start, end, number, name
                done = end
            ahead += 1


def _whole_escapes(data: bytes, first: int, last: int, start: int, end: int) -> tuple[int, int]:
    """The span, widened where it begins or ends within an escape."""
    for escape in _ESCAPE.finditer(data, first, last):
        if escape.start() < start < escape.end():
            start = escape.start()
        if escape.start() < end < escape.end():
            end = escape.end()
    return start, end
