"""The texts of canonical answers, whole or in pieces, and a rewriter of streams that may hold a piece back.

A stream tells several texts at once: content, reasoning and the arguments of each tool call, of each choice. Each is a
channel. What a channel holds back is handed out, in a chunk of its own, before another text of the same choice goes on,
before the choice is finished and at the end of the stream; so order is kept and nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from providers import sse
from providers.answers import choices_of, loaded

Name = tuple[object, ...]  # the kind of a text, and its number where there are several

_PLAIN = ("content", "refusal", "reasoning_content", "reasoning")
_CALLS = frozenset(["tool", "custom", "function"])
_ENVELOPE = ("id", "object", "created", "model", "system_fingerprint", "service_tier")

_encode = msgspec.json.Encoder().encode
_ENCODE_ERRORS = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)


class Channel:
    """One text of a stream. `held` is what was taken in and not handed out."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = ""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} holding {len(self.held)}>"

    def feed(self, text: str) -> str:
        """Take a piece; return what can be handed out."""
        raise NotImplementedError

    def finish(self) -> str:
        """Return the rest."""
        raise NotImplementedError


def message_parts(told: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What in a whole answer can have `fields`: the message of each choice, and the choice of a legacy completion."""
    for _, choice, message in choices_of(told, "message"):
        if message:
            yield message
        if isinstance(choice.get("text"), str):
            yield choice


def fields(part: dict[str, Any]) -> Iterator[tuple[Name, dict[str, Any], str]]:
    """The texts of a message, delta or legacy choice: channel, and the object and key that hold the string.

    Arguments that some server sends as an object become JSON text.
    """
    for name in (*_PLAIN, "text"):
        if isinstance(part.get(name), str):
            yield (name,), part, name
    if isinstance(part.get("content"), list):
        yield from _in_parts(part["content"])
    if isinstance(audio := part.get("audio"), dict) and isinstance(audio.get("transcript"), str):
        yield ("audio",), audio, "transcript"
    details = part.get("reasoning_details")
    for place, detail in enumerate(details if isinstance(details, list) else ()):
        for name in ("text", "summary"):
            if isinstance(detail, dict) and isinstance(detail.get(name), str):
                yield ("details", _number(detail, place), name), detail, name
    calls = part.get("tool_calls")
    for place, call in enumerate(calls if isinstance(calls, list) else ()):
        if isinstance(call, dict):
            number = _number(call, place)
            if isinstance(function := call.get("function"), dict) and _has_arguments(function):
                yield ("tool", number), function, "arguments"
            if isinstance(own := call.get("custom"), dict) and isinstance(own.get("input"), str):
                yield ("custom", number), own, "input"
    if isinstance(legacy := part.get("function_call"), dict) and _has_arguments(legacy):
        yield ("function",), legacy, "arguments"


def _in_parts(parts: list[Any]) -> Iterator[tuple[Name, dict[str, Any], str]]:
    for item in parts:
        if not isinstance(item, dict):
            continue
        thinks = item.get("type") in ("thinking", "reasoning")
        for name in ("text", "refusal", "thinking", "reasoning"):
            value = item.get(name)
            if isinstance(value, str):
                yield ("thinking",) if thinks else ("content",), item, name
            elif isinstance(value, list):
                for inner in value:
                    if isinstance(inner, dict) and isinstance(inner.get("text"), str):
                        yield ("thinking",), inner, "text"


def _number(item: dict[str, Any], place: int) -> int:
    index = item.get("index")
    return index if type(index) is int else place


def _has_arguments(function: dict[str, Any]) -> bool:
    value = function.get("arguments")
    if isinstance(value, dict | list):
        try:
            function["arguments"] = _encode(value).decode()
        except _ENCODE_ERRORS:
            return False
        return True
    return isinstance(value, str)


def _delta(name: Name, text: str) -> dict[str, Any]:
    """A delta that carries nothing but a piece of one channel."""
    kind = name[0]
    if kind == "tool":
        return {"tool_calls": [{"index": name[1], "function": {"arguments": text}}]}
    if kind == "custom":
        return {"tool_calls": [{"index": name[1], "custom": {"input": text}}]}
    if kind == "function":
        return {"function_call": {"arguments": text}}
    if kind == "details":
        return {"reasoning_details": [{"index": name[1], "type": f"reasoning.{name[2]}", str(name[2]): text}]}
    if kind == "audio":
        return {"audio": {"transcript": text}}
    return {"reasoning_content" if kind == "thinking" else str(kind): text}


class ChunkRewriter:
    """Passes a canonical stream on, each text of it through a channel that `make` makes for its name.

    Events in which nothing changes keep their bytes. `refused` is set by a channel: what it returned then was the last
    to deliver. With `without_logprobs`, tokens are not told one by one beside the
    text.
    """

    def __init__(self, make: Callable[[Name], Channel], *, without_logprobs: bool = False) -> None:
        self._make, self._without_logprobs = make, without_logprobs
        self._channels: dict[int, dict[Name, Channel]] = {}
        self._splitter = sse.Splitter(1 << 30)  # what comes here was bounded when it was read
        self._envelope: dict[str, Any] = {}
        self.refused = False

    def feed(self, data: bytes) -> bytes:
        """Take whole canonical events; return those to deliver instead, maybe none."""
        out: list[bytes] = []
        for event in self._splitter.feed(data):
            told = loaded(sse.data_of(event) or b"")
            if told:
                self._chunk(told, event, out)
            else:
                out.append(event)
            if self.refused:
                break
        return b"".join(out)

    def finish(self) -> bytes:
        """The stream ended: what is still held, in chunks of its own."""
        out: list[bytes] = []
        rest = self._splitter.rest()
        if rest.strip():
            out.append(self.feed(rest.rstrip(b"\r\n") + b"\n\n"))
        for index in self._channels:
            self._flush(index, frozenset(), out)
        return b"".join(out)

    def _chunk(self, told: dict[str, Any], event: bytes, out: list[bytes]) -> None:
        self._envelope = {name: told[name] for name in _ENVELOPE if name in told}
        changed, bare = False, "usage" not in told
        for index, choice, delta in choices_of(told, "delta"):
            channels = self._channels.setdefault(index, {})
            # A call of a tool begins without arguments: it is the next text all the same.
            told_now = [one for one in (*fields(delta), *_legacy(choice)) if one[1][one[2]] or one[0][0] in _CALLS]
            if told_now:
                self._flush(index, {name for name, _, _ in told_now}, out)
            present = [one for one in told_now if one[1][one[2]]]
            for name, holder, key in present:
                channel = channels.get(name) or channels.setdefault(name, self._make(name))
                text = holder[key]
                new = channel.feed(text)
                if choice.get("finish_reason") is not None:
                    new += channel.finish()
                if new != text:
                    holder[key], changed = new, True
                bare = bare and not new
            if choice.get("finish_reason") is not None:
                self._flush(index, frozenset(), out)
                bare = False
            if self._without_logprobs and choice.get("logprobs") is not None:
                choice["logprobs"], changed = None, True
            bare = bare and len(present) == 1 and (present[0][1] is choice or set(delta) == {present[0][2]})
            if self.refused:
                choice["finish_reason"], changed = None, True
        if not changed:
            out.append(event)
        elif not bare:  # a chunk that has nothing left to say is left out
            out.append(b"data: %b\n\n" % _encode(told))

    def _flush(self, index: int, besides: frozenset[Name] | set[Name], out: list[bytes]) -> None:
        """Hand out what the other channels of a choice hold."""
        for name, channel in self._channels.get(index, {}).items():
            if name not in besides and channel.held and (text := channel.finish()):
                choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": None}
                if name[0] == "text":
                    choice["text"] = text
                else:
                    choice["delta"] = _delta(name, text)
                out.append(b"data: %b\n\n" % _encode({**self._envelope, "choices": [choice]}))


def _legacy(choice: dict[str, Any]) -> Iterator[tuple[Name, dict[str, Any], str]]:
    if isinstance(choice.get("text"), str):
        yield ("text",), choice, "text"
