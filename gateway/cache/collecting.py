"""Putting a canonical stream together into the whole answer it stands for, while it passes. Pure.

The answer is the one a request without `stream` would have got: content, reasoning, tool calls and log probabilities
joined, signatures kept. There is none when the stream was cut, refused or filtered, when it holds anything this module
does not know how to join, or when it is larger than may be kept: a guess would be told again and again.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from typing import Any

import msgspec

from gateway.cache.keeping import has_ended
from gateway.dialects.reading import ToolCalls, extra_of
from gateway.dialects.responses_reasoning import merged
from providers import sse
from providers.adapters.chunks import usage_object
from providers.answers import choices_of, loaded
from providers.canonical import Usage

CHOICES_MAX = 128
PIECE_BYTES = 64  # what a piece costs in memory besides its text, roughly

CHUNK, WHOLE = "chat.completion.chunk", "chat.completion"
TEXT = "text_completion"

# Padding against guessing by length, and what servers measure or annotate: nothing of the answer itself.
PASSED_OVER = frozenset(
    {
        "obfuscation",
        "p",
        "nonce",
        "timings",
        "time_info",
        "x_groq",
        "prompt_filter_results",
        "content_filter_results",
        "content_filter_offsets",
        "content_filter_result",
        "prompt_logprobs",
        "prompt_token_ids",
        "kv_transfer_params",
    }
)
_ENVELOPE = frozenset({"id", "object", "created", "model", "choices", "usage", "error"})
_CHOICE = frozenset({"index", "delta", "finish_reason", "logprobs", "text"})
_TEXTS = frozenset({"content", "reasoning_content", "reasoning"})
_LISTS = frozenset({"reasoning_details", "annotations"})
_CALL = frozenset({"index", "id", "type", "function", "extra_content"})
_FUNCTION = frozenset({"name", "arguments"})
_SCALARS = (str, int, float, bool)

_encode = msgspec.json.Encoder().encode


class _UnusualError(Exception):
    """The stream holds something that cannot be joined."""


class Collector:
    """Takes one canonical stream of chat or completions, in any pieces; `answer` is what it comes to."""

    __slots__ = ("_choices", "_envelope", "_left", "_splitter", "_usage", "failed")

    def __init__(self, endpoint: str = "chat", *, most_bytes: int = 1024 * 1024) -> None:
        """At most `most_bytes` of text and structure are held; a larger answer is given up, and its memory with it."""
        self.failed = endpoint not in ("chat", "completions")
        self._left = most_bytes
        self._splitter = sse.Splitter(most_bytes)
        kind = WHOLE if endpoint == "chat" else TEXT
        self._envelope: dict[str, Any] = {"id": "", "object": kind, "created": 0, "model": ""}
        self._choices: dict[int, _Choice] = {}
        self._usage: dict[str, Any] | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream. Never raises."""
        if self.failed:
            return
        try:
            for event in self._splitter.feed(data):
                self._event(event)
        except (_UnusualError, sse.EventTooLargeError):
            self._give_up()

    def answer(self, usage: Usage | None = None) -> bytes | None:
        """The whole answer, once the stream has ended well; None when there is none to keep.

        `usage` is told in it where the stream held none itself.
        """
        if not self.failed and (rest := self._splitter.rest().rstrip(b"\r\n")):
            self.feed(rest + b"\n\n")
        if self.failed or not self._choices:
            return None
        choices = [self._choices[index] for index in sorted(self._choices)]
        if not all(has_ended(choice.finish) for choice in choices):
            return None
        told = {**self._envelope, "choices": [choice.whole() for choice in choices]}
        if self._usage is not None:
            told["usage"] = self._usage
        elif usage is not None:
            told["usage"] = usage_object(usage)
        return _encode(told)

    def _give_up(self) -> None:
        self.failed = True
        self._choices.clear()
        self._splitter.rest()

    def _event(self, event: bytes) -> None:
        data = sse.data_of(event)
        if data is None or not (data := data.strip()) or data == b"[DONE]":
            return
        told = loaded(data)
        kind, kinds = told.get("object"), (TEXT,) if self._envelope["object"] == TEXT else (CHUNK, WHOLE)
        if not told or told.get("error") is not None or (kind and kind not in kinds):
            raise _UnusualError
        self._head(told)
        listed = told.get("choices")
        if listed is not None and (not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed)):
            raise _UnusualError
        for index, choice, delta in choices_of(told, "delta"):
            known = self._choices.get(index)
            if known is None:
                if len(self._choices) >= CHOICES_MAX:
                    raise _UnusualError
                known = self._choices[index] = _Choice(index, text=self._envelope["object"] == TEXT)
            self._left -= known.take(choice, delta)
        if self._left < 0:
            raise _UnusualError

    def _head(self, told: Mapping[str, Any]) -> None:
        envelope = self._envelope
        for name, value in told.items():
            if value is None or name in PASSED_OVER:
                continue
            if name == "usage":
                if value and isinstance(value, dict):
                    self._usage = value
            elif name in ("id", "model", "created"):
                if isinstance(value, int if name == "created" else str) and not envelope.get(name):
                    envelope[name] = value
            elif name not in _ENVELOPE:
                if isinstance(value, _SCALARS):
                    self._left -= 0 if name in envelope else _cost(name) + _cost(value)
                    envelope[name] = value
                elif value:
                    raise _UnusualError


class _Choice:
    """One choice as it comes together."""

    __slots__ = ("_calls", "_extra", "_extras", "_lists", "_logprobs", "_text", "_texts", "finish", "index")

    def __init__(self, index: int, *, text: bool) -> None:
        self.index = index
        self.finish: str | None = None
        self._text = text
        self._texts: dict[str, StringIO] = {}
        self._lists: dict[str, list[Any]] = {}
        self._calls = ToolCalls()
        self._extra: dict[str, Any] = {}
        self._extras: dict[str, Any] = {}  # of the choice itself: how a server says where it stopped
        self._logprobs: dict[str, list[Any]] | None = None

    def take(self, choice: Mapping[str, Any], delta: Mapping[str, Any]) -> int:
        """Add one chunk's part; the bytes it is worth. Raises `_UnusualError`."""
        size = self._add_fields(choice)
        if self._text:
            return size + self._add_text("text", choice.get("text"))
        for name, value in delta.items():
            if name in _TEXTS:
                size += self._add_text(name, value)
            elif value is None or value == "" or value == [] or value == {}:
                continue
            elif name in _LISTS:
                size += self._add_list(name, value)
            elif name == "tool_calls":
                size += self._add_calls(delta)
            elif name == "extra_content":
                size += self._add_extra(value)
            elif name != "role" or value != "assistant":
                raise _UnusualError
        return size

    def _add_fields(self, choice: Mapping[str, Any]) -> int:
        """What stands beside the delta: how the choice ended, log probabilities, and what servers add to these."""
        if choice.get("delta" if self._text else "text") or not isinstance(choice.get("delta"), dict | None):
            raise _UnusualError
        size = 0
        for name, value in choice.items():
            if value is None or name in PASSED_OVER:
                continue
            if name == "finish_reason":
                if not isinstance(value, str):
                    raise _UnusualError
                self.finish = value or self.finish
            elif name not in _CHOICE:
                if not isinstance(value, _SCALARS):
                    raise _UnusualError
                size += 0 if name in self._extras else _cost(name) + _cost(value)
                self._extras[name] = value
        return size + self._add_logprobs(choice.get("logprobs"))

    def whole(self) -> dict[str, Any]:
        """The choice as a whole answer has it."""
        told: dict[str, Any] = {"index": self.index}
        texts = {name: text.getvalue() for name, text in self._texts.items()}
        if self._text:
            told["text"] = texts.get("text", "")
        else:
            message: dict[str, Any] = {"role": "assistant", "content": texts.pop("content", None), "refusal": None}
            message.update(texts)
            message.update(self._lists)
            if self._extra:
                message["extra_content"] = self._extra
            if self._calls.all:
                message["tool_calls"] = [_whole_call(call) for call in self._calls.all]
            told["message"] = message
        told["logprobs"] = self._logprobs
        return {**told, "finish_reason": self.finish, **self._extras}

    def _add_text(self, name: str, value: Any) -> int:
        if value is None:
            return 0
        if not isinstance(value, str):
            raise _UnusualError
        held = self._texts.get(name)
        if held is None:
            held = self._texts[name] = StringIO(newline="")  # no line ends are translated
        held.write(value)
        return len(value) if value.isascii() else len(value.encode())

    def _add_list(self, name: str, value: Any) -> int:
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise _UnusualError
        held = self._lists.setdefault(name, [])
        if name == "annotations":
            held += value
        else:
            merged(held, value)
        return len(_encode(value)) + PIECE_BYTES * len(value)

    def _add_calls(self, delta: Mapping[str, Any]) -> int:
        pieces = delta["tool_calls"]
        if not isinstance(pieces, list):
            raise _UnusualError
        for piece in pieces:
            if not _is_plain_call(piece):
                raise _UnusualError
        return sum(
            len(arguments) + PIECE_BYTES + (len(call.name) + len(call.id) if new else 0)
            for call, arguments, new in self._calls.take(delta)
        )

    def _add_extra(self, value: Any) -> int:
        extra = extra_of(value)
        if extra != value or extra is None:
            raise _UnusualError
        self._extra |= extra
        return len(extra["google"]["thought_signature"]) + PIECE_BYTES

    def _add_logprobs(self, told: Any) -> int:
        if told is None:
            return 0
        if not isinstance(told, dict):
            raise _UnusualError
        held = self._logprobs = {} if self._logprobs is None else self._logprobs
        for name, values in told.items():
            if values is not None:
                if not isinstance(values, list):
                    raise _UnusualError
                held.setdefault(name, []).extend(values)
        return len(_encode(told)) * 2  # decoded it is that much larger


def _cost(value: Any) -> int:
    return PIECE_BYTES + (len(value) if isinstance(value, str) else 0)


def _is_plain_call(piece: Any) -> bool:
    """Whether a piece of a tool call holds nothing but what `ToolCalls` joins."""
    if not isinstance(piece, dict) or not _has_only(piece, _CALL) or piece.get("type") not in (None, "", "function"):
        return False
    function, extra = piece.get("function"), piece.get("extra_content")
    if extra and extra_of(extra) != extra:
        return False
    return function is None or (isinstance(function, dict) and _has_only(function, _FUNCTION))


def _has_only(told: Mapping[str, Any], names: frozenset[str]) -> bool:
    return all(name in names or value is None for name, value in told.items())


def _whole_call(call: Any) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": "".join(call.pieces)},
    }
    if call.extra is not None:
        told["extra_content"] = call.extra
    return told
