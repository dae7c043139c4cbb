"""Guarding what models say: private values in answers are masked, or the answer is cut.

Whole answers are looked at at once. Of a streamed text, `HOLD_BYTES` are held back at its end, and the run of visible
ASCII characters that reaches into them (`RUN_BYTES` of it at most); a match that ends in there, and may go on, is held
from its start. What was handed out last stays in view, so that a value is known by the words before it. A value that a
pattern knows within these bounds therefore never gets out in part, however the stream is cut.

Arguments of tools, and content that was asked to be JSON, are looked at as what they say, not as how it is spelled:
escapes hide nothing, and what is masked leaves JSON behind.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import msgspec

from gateway.privacy.channels import Channel, ChunkRewriter, Name, fields, message_parts
from gateway.privacy.redaction import label
from gateway.privacy.spelling import PlainSpelling, escape_length, escape_start
from gateway.privacy.splicing import rewrite
from gateway.privacy.texts import Text, blanked
from providers.answers import choices_of, loaded
from providers.privacy.scanner import Match, Scanner, merged
from providers.privacy.verdict import AnswerAction

HOLD_BYTES = 256
RUN_BYTES = 4096
CONTEXT_BYTES = 256
HELD_MAX = 64 * 1024  # a match that grows beyond this is not waited for: the answer is cut

_VISIBLE = bytes(range(33, 127))
_QUOTES = re.compile(rb'\\.|"', re.DOTALL)
_JSON_CHANNELS = frozenset(["tool", "function"])

_encode = msgspec.json.Encoder().encode


def mask(pattern: str, value: str = "") -> str:
    """What stands for a value that is not given out."""
    return f"[REDACTED:{label(pattern)}]"


class Guarded(msgspec.Struct, frozen=True):
    """A whole answer after the look at it. With `refused`, `body` is empty and nothing may be delivered. `patterns` are
    the names found, with how often."""

    body: bytes
    refused: bool = False
    patterns: tuple[tuple[str, int], ...] = ()


class AnswerGuard:
    """What is looked for in answers, and what is done then. Shared by all requests of one policy."""

    __slots__ = ("action", "names", "scanner")

    def __init__(self, scanner: Scanner, names: Collection[str], action: AnswerAction) -> None:
        self.scanner, self.names, self.action = scanner, frozenset(names), action

    def found(self, data: list[str | bytes]) -> tuple[list[Match], bool]:
        """The matches that matter, and whether there are more than were counted."""
        findings = self.scanner.scan(data)
        return [match for match in findings.matches if match.pattern in self.names], findings.overflow

    def whole(self, body: bytes, *, json_content: bool = False) -> Guarded:
        """Look at a whole canonical answer. Its bytes are kept where nothing is found. `json_content`: what it says was
        asked to be JSON."""
        told = loaded(body)
        texts = [
            Text(holder, key, holder[key], json=_is_json(name, json_content))
            for part in message_parts(told)
            for name, holder, key in fields(part)
        ]
        matches, overflow = self.found([text.scanned for text in texts]) if texts else ([], False)
        if not matches and not overflow:
            return Guarded(body)
        counts = _counts(matches)
        if overflow or self.action == "refuse":
            return Guarded(b"", True, counts)
        rewrite(texts, matches, mask)
        for _, choice, _ in choices_of(told, "message"):
            if choice.get("logprobs") is not None:
                choice["logprobs"] = None  # they tell the text token by token
        return Guarded(_encode(told), False, counts)

    def stream(self, *, json_content: bool = False) -> StreamGuard:
        """A guard for one streamed answer."""
        return StreamGuard(self, json_content=json_content)


def _is_json(name: Name, json_content: bool) -> bool:
    return name[0] in _JSON_CHANNELS or (json_content and name[0] == "content")


def _counts(matches: list[Match]) -> tuple[tuple[str, int], ...]:
    counted: dict[str, int] = {}
    for match in matches:
        counted[match.pattern] = counted.get(match.pattern, 0) + 1
    return tuple(sorted(counted.items()))


class StreamGuard(ChunkRewriter):
    """Looks at a canonical stream as it passes.

    Once `refused` is set nothing more may be delivered than what `feed` returned: the caller tells the error in band,
    with the code `content_policy`, and cuts the stream.
    """

    def __init__(self, guard: AnswerGuard, *, json_content: bool = False) -> None:
        super().__init__(lambda name: _Held(self, guard, json=_is_json(name, json_content)), without_logprobs=True)
        self._counts: dict[str, int] = {}

    def feed(self, data: bytes) -> bytes:
        """Take whole canonical events; return those to deliver instead, maybe none."""
        return b"" if self.refused else super().feed(data)

    def finish(self) -> bytes:
        """The stream ended: what is still held, looked at."""
        return b"" if self.refused else super().finish()

    def patterns(self) -> tuple[tuple[str, int], ...]:
        """The names found so far, with how often."""
        return tuple(sorted(self._counts.items()))

    def count(self, pattern: str) -> None:
        """A value was kept back."""
        self._counts[pattern] = self._counts.get(pattern, 0) + 1


class _Held(Channel):
    """One text of a guarded stream."""

    __slots__ = ("_carry", "_context", "_data", "_guard", "_in_string", "_json", "_spelling", "_stream")

    def __init__(self, stream: StreamGuard, guard: AnswerGuard, *, json: bool) -> None:
        super().__init__()
        self._stream, self._guard, self._json = stream, guard, json
        self._spelling = PlainSpelling() if json else None
        self._in_string = False  # where what is handed out next begins, in JSON text
        self._carry = b""  # the first half of an escape
        self._context = b""
        self._data = b""

    def feed(self, text: str) -> str:
        """What is safe to hand out."""
        return self._release(text if self._spelling is None else self._spelling.feed(text), final=False)

    def finish(self) -> str:
        """The rest, with nothing held any more."""
        return self._release("" if self._spelling is None else self._spelling.finish(), final=True)

    def _release(self, text: str, *, final: bool) -> str:
        if self._stream.refused:
            return ""
        self._data += text.encode("utf-8", "replace")
        begin = len(self._context)
        data = self._context + self._data
        limit = len(data) if final else _boundary(data, begin)
        if self._json and not final:
            limit = max(begin, escape_start(data, limit))
        if limit == begin and not final and len(self._data) <= HELD_MAX:
            self.held = "…"  # whatever it is, there is something
            return ""
        matches, overflow = self._guard.found([blanked(data) if self._json else data])
        out: list[bytes] = []
        at = begin
        for start, end, name in merged(matches):
            if end <= at:
                continue
            if self._json:
                start, end = escape_start(data, start), _escape_end(data, end)
            start = max(start, at)
            if end > limit:
                limit = min(limit, start)
                break
            out.append(data[at:start])
            self._turn(data[at:start])
            self._stream.count(name)
            if self._guard.action == "refuse":
                self._stream.refused = True
                break
            told = mask(name)
            out.append((told if self._in_string or not self._json else f'"{told}"').encode())
            self._turn(data[start:end])
            at = end
        if self._stream.refused or overflow or (not final and len(data) - limit > HELD_MAX):
            self._stream.refused = True
            self._data, self.held = b"", ""
            return b"".join(out).decode("utf-8", "replace")
        limit = max(limit, at)
        out.append(data[at:limit])
        self._turn(data[at:limit])
        first = max(0, limit - CONTEXT_BYTES)
        self._context, self._data = data[escape_start(data, first) if self._json else first : limit], data[limit:]
        self.held = "…" if self._data else ""
        return b"".join(out).decode("utf-8", "replace")

    def _turn(self, data: bytes) -> None:
        """Keep track of whether JSON text stands inside a string."""
        if self._json:
            data = self._carry + data
            self._in_string ^= sum(found[0] == b'"' for found in _QUOTES.finditer(data)) % 2 == 1
            self._carry = b"\\" if (len(data) - len(data.rstrip(b"\\"))) % 2 else b""


def _escape_end(data: bytes, end: int) -> int:
    """The end of the escape that `end` would cut; `end` itself when it cuts none."""
    start = escape_start(data, end)
    return end if start == end else start + escape_length(data, start)


def _boundary(data: bytes, begin: int) -> int:
    """Up to where a text that goes on can be handed out."""
    end = len(data) - HOLD_BYTES
    if end <= begin:
        return begin
    while end > begin and data[end] & 0xC0 == 0x80:  # within a character
        end -= 1
    least = max(begin, end - RUN_BYTES)
    run = least + len(data[least:end].rstrip(_VISIBLE))
    return end if run == least and end - least == RUN_BYTES else run
