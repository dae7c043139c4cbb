"""Reading canonical answers and chunks piece by piece.

They may come from any server that speaks the OpenAI API, so nothing in them is taken for granted: reasoning has two
names, content may be a list of parts, the pieces of tool calls may be mixed, lack an index or repeat an id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from providers import sse
from providers.canonical import Usage, parse_usage

_PLAIN_BYTES = 4096  # chunks with more than this in them say more than a piece of text

# A number that no float can hold is infinite: no reason to lose an answer, least of all where nobody reads it.
_decode = msgspec.json.Decoder(float_hook=float).decode
_DECODE_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


class _Delta(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    content: str
    role: Any = None
    refusal: None = None
    reasoning_content: None = None
    reasoning: None = None
    tool_calls: None = None
    function_call: None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta
    index: int = 0
    finish_reason: None = None


class _Text(msgspec.Struct, gc=False):
    """A chunk that adds a piece of text to one choice and nothing else; who wrote it is in every chunk."""

    choices: tuple[_Choice]
    usage: None = None


_decode_text = msgspec.json.Decoder(_Text).decode


def loaded(body: bytes) -> dict[str, Any]:
    """A decoded answer; empty when it is none."""
    try:
        told = _decode(body if body.isascii() else body.decode("utf-8", "replace"))
    except _DECODE_ERRORS:
        return {}
    return told if isinstance(told, dict) else {}


class Chunks:
    """Cuts a canonical stream into decoded chunks; what is none is passed over."""

    __slots__ = ("_splitter",)

    def __init__(self) -> None:
        self._splitter = sse.Splitter(1 << 30)  # what comes here was bounded when it was read

    def cut(self, data: bytes) -> list[bytes]:
        """The JSON of the chunks that `data` completes, nonsense among them: for `loaded` or `text_alone`."""
        return [sse.fields(event)[1] or b"" for event in self._splitter.feed(data)]

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The chunks that `data` completes."""
        for body in self.cut(data):
            told = loaded(body)
            if told:
                yield told

    def rest(self) -> Iterator[dict[str, Any]]:
        """The chunk whose empty line never came."""
        held = self._splitter.rest().strip()
        return self.feed(held + b"\n\n") if held else iter(())


def text_alone(body: bytes) -> str:
    """The text of a chunk that adds text to the first choice and says nothing else, as most do; "" for all others.

    Read several times as fast as by `loaded`, `choices_of` and `spoken`, which come to the same.
    """
    if len(body) > _PLAIN_BYTES:
        return ""
    try:
        choice = _decode_text(body).choices[0]
    except _DECODE_ERRORS:
        return ""
    return "" if choice.index else choice.delta.content


def choices_of(told: Mapping[str, Any], part: str) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
    """Index, choice and `part` ("message" or "delta") of each choice of an answer or chunk."""
    choices = told.get("choices")
    for place, choice in enumerate(choices if isinstance(choices, list) else ()):
        if isinstance(choice, dict):
            index, held = choice.get("index"), choice.get(part)
            yield index if type(index) is int else place, choice, held if isinstance(held, dict) else {}


def usage_of(told: Mapping[str, Any]) -> Usage | None:
    """The usage an answer or chunk tells. Reasoning that its output count leaves out is added."""
    given = told.get("usage")
    if not isinstance(given, dict):
        return None
    usage = parse_usage(given)
    total = given.get("total_tokens")
    if usage is not None and type(total) is int and total > usage.input + usage.output:
        return parse_usage(given, reasoning_excluded=True)
    return usage


def reason_of(value: Any) -> str:
    """A finish reason as one of the four there are: what is not known is a stop."""
    if value in ("length", "model_length", "max_tokens"):
        return "length"
    if value in ("tool_calls", "function_call"):
        return "tool_calls"
    return "content_filter" if value == "content_filter" else "stop"


def text_of(holder: Mapping[str, Any], name: str) -> str:
    """A field that should be a string, "" when it is none."""
    value = holder.get(name)
    return value if isinstance(value, str) else ""


def spoken(message: Mapping[str, Any]) -> tuple[str, str]:
    """The content and the reasoning of a message or delta, as text."""
    content, reasoning = message.get("content"), text_of(message, "reasoning_content")
    reasoning = reasoning or text_of(message, "reasoning")
    if isinstance(content, str):
        return content, reasoning
    said, thought = [], [reasoning]
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict):
            if part.get("type") in ("thinking", "reasoning"):
                thought.append(_joined(part.get("thinking") or part.get("reasoning") or part.get("text")))
            else:
                said.append(text_of(part, "text"))
    return "".join(said), "".join(thought)


def _joined(value: Any) -> str:
    if isinstance(value, list):
        return "".join(text_of(item, "text") for item in value if isinstance(item, dict))
    return value if isinstance(value, str) else ""


def details_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The reasoning details of a message or delta."""
    details = message.get("reasoning_details")
    return [item for item in details if isinstance(item, dict)] if isinstance(details, list) else []
