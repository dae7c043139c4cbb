"""Telling a whole canonical answer as the canonical stream it could have come in. Pure.

The chunks have the answer's own id, model and time, and come in the order in which models speak: the role, reasoning
with its signatures, the content in pieces of a few words, tool calls, the finish reason, and the usage chunk for those
who want it. The terminal event is not among them: the writer of the caller's dialect adds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from gateway.cache.collecting import CHUNK, TEXT
from providers.adapters.chunks import usage_object
from providers.answers import details_of, loaded, text_of
from providers.canonical import Usage

PIECES_MAX = 512  # of a long text: its pieces are longer, so that telling it does not hold up the loop
ARGUMENTS_PIECE = 32  # characters
_PIECE_CHARACTERS = 32  # of a piece of words, about

# Six words, or what stands for them where words are long or not parted by spaces.
_words = re.compile(r"(?:\s*\S{1,16}){1,6}\s*|\s+").findall

_encode = msgspec.json.Encoder().encode

_MESSAGE = frozenset(
    {"role", "content", "reasoning_content", "reasoning", "reasoning_details", "tool_calls", "extra_content"}
)
_ENVELOPE = frozenset({"id", "object", "created", "model", "choices", "usage"})
_SCALARS = (str, int, float, bool)


def replay(answer: bytes, *, wants_usage: bool, usage: Usage | None = None) -> Iterator[bytes]:
    """The events of a whole answer (a chat or text completion). `usage` is told where the answer tells none.

    Nothing is lost: parts of a message that have no pieces are told whole, in a chunk of their own. What is no answer
    has no events.
    """
    told = loaded(answer)
    choices = told.get("choices")
    listed = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    if not listed:
        return
    teller = _Teller(told, wants_usage=wants_usage)
    for place, choice in enumerate(listed):
        index = choice.get("index")
        yield from teller.choice(choice, index if type(index) is int else place)
    if wants_usage:
        given = told.get("usage")
        if not isinstance(given, dict):
            given = None if usage is None else usage_object(usage)
        if given is not None:
            yield teller.usage(given)


def gathered(events: Iterator[bytes], most_bytes: int = 16 * 1024) -> Iterator[bytes]:
    """The same events, joined into writes of about that size."""
    held: list[bytes] = []
    size = 0
    for event in events:
        held.append(event)
        size += len(event)
        if size >= most_bytes:
            yield b"".join(held)
            held.clear()
            size = 0
    if held:
        yield b"".join(held)


class _Teller:
    """Writes the chunks of one answer; what they all repeat is encoded once."""

    __slots__ = ("_end", "_head", "_more", "_text")

    def __init__(self, told: Mapping[str, Any], *, wants_usage: bool) -> None:
        self._text = told.get("object") == TEXT
        envelope = {
            "id": told.get("id") or "",
            "object": TEXT if self._text else CHUNK,
            "created": told.get("created") or 0,
            "model": told.get("model") or "",
        }
        others = {name: value for name, value in told.items() if name not in _ENVELOPE and value is not None}
        envelope |= {name: value for name, value in others.items() if isinstance(value, _SCALARS)}
        # What a server tells of the whole answer (sources, say) goes with the first chunk.
        more = {name: value for name, value in others.items() if name not in envelope}
        self._more = b"," + _encode(more)[1:-1] if more else b""
        self._head = b"data: " + _encode(envelope)[:-1]
        self._end = b',"usage":null}\n\n' if wants_usage else b"}\n\n"

    def choice(self, choice: Mapping[str, Any], index: int) -> Iterator[bytes]:
        """The chunks of one choice."""
        if self._text:
            parts = self._pieces_with_logprobs(choice, index, "text", text_of(choice, "text"))
        else:
            message = choice.get("message")
            parts = self._message(choice, message if isinstance(message, dict) else {}, index)
        yield from parts
        known = ("index", "message", "text", "logprobs", "finish_reason")
        extras = {name: value for name, value in choice.items() if name not in known and value is not None}
        told: dict[str, Any] = {"index": index, "logprobs": None, **({"text": ""} if self._text else {"delta": {}})}
        yield self._chunk(_encode([{**told, "finish_reason": choice.get("finish_reason"), **extras}]))

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The usage chunk."""
        return b'%b%b,"choices":[],"usage":%b}\n\n' % (self._head, self._taken(), _encode(usage))

    def _message(self, choice: Mapping[str, Any], message: Mapping[str, Any], index: int) -> Iterator[bytes]:
        content = message.get("content")
        role = {"role": message.get("role") or "assistant", "content": "" if isinstance(content, str) else None}
        yield self._delta(index, _encode(role))
        yield from self._reasoning(message, index)
        if isinstance(content, str):
            yield from self._pieces_with_logprobs(choice, index, "content", content)
        else:
            if content is not None:
                yield self._delta(index, _encode({"content": content}))
            if choice.get("logprobs") is not None:
                yield self._delta(index, b"{}", choice["logprobs"])
        others = {name: value for name, value in message.items() if name not in _MESSAGE and value not in (None, [])}
        if extra := message.get("extra_content"):
            others["extra_content"] = extra
        if others:
            yield self._delta(index, _encode(others))
        calls = message.get("tool_calls")
        for place, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, dict):
                yield from self._call(call, place, index)

    def _reasoning(self, message: Mapping[str, Any], index: int) -> Iterator[bytes]:
        names = [name for name in ("reasoning_content", "reasoning") if isinstance(message.get(name), str)]
        details = details_of(message)
        thought = message[names[0]] if len(names) == 1 else ""
        texts = [text_of(detail, "text") for detail in details if detail.get("type") == "reasoning.text"]
        if thought and "".join(texts) == thought:
            # Each signature belongs to the text before it: callers of other dialects get both as one block.
            for detail in details:
                if detail.get("type") == "reasoning.text":
                    yield from self._pieces(index, names[0], text_of(detail, "text"))
                yield self._detail(detail, index)
            return
        for name in names:
            yield from self._pieces(index, name, message[name])
        for detail in details:
            yield self._detail(detail, index)

    def _detail(self, detail: dict[str, Any], index: int) -> bytes:
        return self._delta(index, _encode({"reasoning_details": [detail]}))

    def _call(self, call: dict[str, Any], place: int, index: int) -> Iterator[bytes]:
        function = call.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
            yield self._delta(index, _encode({"tool_calls": [{**call, "index": place}]}))
            return
        begun = {**call, "index": place, "function": {**function, "arguments": ""}}
        yield self._delta(index, _encode({"tool_calls": [begun]}))
        arguments = function["arguments"]
        step = max(ARGUMENTS_PIECE, -(-len(arguments) // PIECES_MAX))
        for start in range(0, len(arguments), step):
            piece = _encode(arguments[start : start + step])
            yield self._delta(index, b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (place, piece))

    def _pieces_with_logprobs(self, choice: Mapping[str, Any], index: int, name: str, text: str) -> Iterator[bytes]:
        """A text, and beside each piece of it the log probabilities of its tokens, where these can be told apart."""
        logprobs = choice.get("logprobs")
        if logprobs is None:
            yield from self._pieces(index, name, text)
            return
        tokens = logprobs.get("content") if isinstance(logprobs, dict) and len(logprobs) == 1 else None
        if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens) or self._text:
            tokens = []
        words = [text_of(token, "token") for token in tokens]
        if not tokens or "".join(words) != text:
            yield self._piece(index, name, text, logprobs)
            return
        step = max(6, -(-len(tokens) // PIECES_MAX))
        for start in range(0, len(tokens), step):
            end = start + step
            yield self._piece(index, name, "".join(words[start:end]), {"content": tokens[start:end]})

    def _pieces(self, index: int, name: str, text: str) -> Iterator[bytes]:
        step = -(-len(text) // PIECES_MAX)
        if step <= _PIECE_CHARACTERS:
            pieces = _words(text)
        else:
            pieces = [text[start : start + step] for start in range(0, len(text), step)]
        for piece in pieces:
            yield self._piece(index, name, piece)

    def _piece(self, index: int, name: str, text: str, logprobs: Any = None) -> bytes:
        if not self._text:
            return self._delta(index, b'{"%b":%b}' % (name.encode(), _encode(text)), logprobs)
        told = b"null" if logprobs is None else _encode(logprobs)
        return self._chunk(
            b'[{"index":%d,"text":%b,"logprobs":%b,"finish_reason":null}]' % (index, _encode(text), told)
        )

    def _delta(self, index: int, delta: bytes, logprobs: Any = None) -> bytes:
        told = b"null" if logprobs is None else _encode(logprobs)
        return self._chunk(b'[{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":null}]' % (index, delta, told))

    def _chunk(self, choices: bytes) -> bytes:
        return b'%b%b,"choices":%b%b' % (self._head, self._taken(), choices, self._end)

    def _taken(self) -> bytes:
        more, self._more = self._more, b""
        return more
