"""Streams of the OpenAI Responses API: translated into canonical chunks, or passed through to a caller who speaks it.

Formats: the API's public documentation. Servers that imitate it leave out fields and events (indices, `.done` events,
deltas); what counts here is the text that came, completed from the items told as done and from the last event.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from providers import responses_items as items
from providers import sse
from providers.adapters import chunks, problems
from providers.adapters import responses_reply as reply
from providers.adapters.openai_compatible import utf8
from providers.adapters.passing import PassingReader
from providers.canonical import UpstreamProblem, Usage, parse_usage

# The first and the last events repeat the whole request; images come inside events too.
EVENT_LIMIT_BYTES = 16 << 20

_ENDS = frozenset({"response.completed", "response.incomplete"})
_FAILURES = frozenset({"response.failed", "response.cancelled", "error"})
_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


class _Event(msgspec.Struct, gc=False):
    """What is read of an event that passes through."""

    type: str = ""
    delta: Any = None
    response: Any = None
    error: Any = None


_decode_event = msgspec.json.Decoder(_Event).decode


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def _usage(response: Any) -> Usage | None:
    usage = response.get("usage") if isinstance(response, dict) else None
    return parse_usage(usage) if isinstance(usage, dict) else None


class NativeReader(PassingReader):
    """Reads a stream that passes through; the promises are those of `providers.adapters.StreamReader`."""

    native = True

    def __init__(self) -> None:
        super().__init__(limit_bytes=EVENT_LIMIT_BYTES)

    def _event(self, event: bytes) -> bytes:
        """What passes of one event."""
        event = utf8(event)
        data = sse.data_of(event)
        if data is None or not data.strip() or data.strip() == b"[DONE]":
            return b""
        try:
            told = _decode_event(data)
        except _ERRORS:
            self.error = problems.problem("protocol")
            return b""
        kind = told.type or sse.name_of(event).decode("utf-8", "replace")
        if isinstance(told.response, dict):
            self.usage = _usage(told.response) or self.usage
        if kind in _FAILURES or (told.error and not told.type):
            self.error = _failure(kind, told.response, reply.loads(data))
            return b""
        if kind in _ENDS:
            self.done = True
        elif kind.endswith(".delta") and isinstance(told.delta, str) and told.delta:
            self.events += 1
            self.delivered_bytes += _size(told.delta)
        return event


def _failure(kind: str, response: Any, told: Any) -> UpstreamProblem:
    if kind == "error" or not isinstance(response, dict):
        return reply.failure(told)
    return reply.failure(response.get("error"))


class _Tool:
    """One tool call of a stream: its place among the calls and how much of its arguments was handed out."""

    __slots__ = ("custom", "index", "sent")

    def __init__(self, index: int, *, custom: bool) -> None:
        self.index, self.custom, self.sent = index, custom, 0


class ItemReader(chunks.ChunkReader):
    """Reads a stream into canonical chunks; the promises are those of `providers.adapters.StreamReader`."""

    def __init__(self, *, wants_usage: bool, model: str = "") -> None:
        super().__init__(wants_usage=wants_usage)
        self.model = model  # until the provider names it; some do at the end only
        self._splitter = sse.Splitter(EVENT_LIMIT_BYTES)
        self._tools: list[_Tool] = []
        self._by_key: dict[Any, _Tool] = {}
        self._texts = {"content": _Text(), "refusal": _Text(), "reasoning_content": _Text()}
        self._reasoning_kind = ""
        self._details: set[str] = set()
        self._logprobs: list[dict[str, Any]] = []
        self._handlers: dict[str, Callable[[dict[str, Any]], None]] = {
            "response.created": self._begun_by,
            "response.in_progress": self._begun_by,
            "response.queued": self._begun_by,
            "response.output_item.added": self._added,
            "response.output_item.done": self._item_done,
            "response.output_text.delta": self._text,
            "response.refusal.delta": self._refusal,
            "response.reasoning_summary_text.delta": self._reasoning,
            "response.reasoning_text.delta": self._reasoning,
            "response.function_call_arguments.delta": self._arguments,
            "response.custom_tool_call_input.delta": self._arguments,
            "response.output_text.annotation.added": self._annotation,
            "response.completed": self._end,
            "response.incomplete": self._end,
        }

    def event(self, name: bytes, told: dict[str, Any]) -> None:
        """Handle one event; those that tell nothing the canonical form has are passed over."""
        kind = told.get("type") or name.decode("utf-8", "replace")
        if kind in _FAILURES or (told.get("error") and "type" not in told):
            self.usage = _usage(told.get("response")) or self.usage
            self.failed(_failure(kind, told.get("response"), told))
        elif handler := self._handlers.get(kind):
            handler(told)

    def _write(self, choices: list[dict[str, Any]], **more: Any) -> None:
        if self._logprobs and choices:
            choices[0]["logprobs"] = {"content": self._logprobs, "refusal": None}
            self._logprobs = []
        super()._write(choices, **more)

    def _begun_by(self, told: dict[str, Any]) -> None:
        response = told.get("response")
        if isinstance(response, dict):
            for name in ("id", "model"):
                value = response.get(name)
                if isinstance(value, str) and value:
                    setattr(self, name, value)

    # --- text, refusals, reasoning ----------------------------------------------------------------------------------

    def _say(self, field: str, piece: Any, key: Any) -> None:
        """Hand out a piece of text. With another `key` than the piece before it, a gap is put between them."""
        if not isinstance(piece, str) or not piece:
            return
        piece = self._texts[field].take(piece, key)
        self.delta({field: piece}, text=piece)

    def _text(self, told: dict[str, Any]) -> None:
        self._logprobs = items.logprobs_of(told.get("logprobs"))
        self._say("content", told.get("delta"), _item_key(told))

    def _refusal(self, told: dict[str, Any]) -> None:
        self._say("refusal", told.get("delta"), _item_key(told))

    def _reasoning(self, told: dict[str, Any]) -> None:
        self._reasoning_kind = self._reasoning_kind or told["type"]
        if told["type"] == self._reasoning_kind:  # a summary beside the reasoning itself would tell it twice
            place = told.get("summary_index", told.get("content_index"))
            self._say("reasoning_content", told.get("delta"), (_item_key(told), place))

    def _annotation(self, told: dict[str, Any]) -> None:
        if found := items.canonical_annotations([told.get("annotation")]):
            self.delta({"annotations": found})

    # --- tool calls -------------------------------------------------------------------------------------------------

    def _added(self, told: dict[str, Any]) -> None:
        item = told.get("item")
        if call := reply.call_of(item):
            self._open(call, item, told)

    def _open(self, call: dict[str, Any], item: Any, told: dict[str, Any]) -> _Tool:
        custom = call["type"] == "custom"
        tool = _Tool(len(self._tools), custom=custom)
        self._tools.append(tool)
        for key in (("call", call["id"]), ("item", item.get("id")), ("output", told.get("output_index"))):
            if key[1] is not None:
                self._by_key[key] = tool
        inner = call["custom"] if custom else call["function"]
        empty = {"name": inner["name"], "input" if custom else "arguments": ""}
        piece = {"index": tool.index, "id": call["id"], "type": call["type"], call["type"]: empty}
        self.delta({"tool_calls": [piece]}, text=inner["name"])
        return tool

    def _arguments(self, told: dict[str, Any]) -> None:
        tool = self._by_key.get(("item", told.get("item_id"))) or self._by_key.get(("output", told.get("output_index")))
        if tool is None and self._tools and told.get("item_id") is None and told.get("output_index") is None:
            tool = self._tools[-1]
        piece = told.get("delta")
        if tool is not None and isinstance(piece, str) and piece:
            self._argue(tool, piece)

    def _argue(self, tool: _Tool, piece: str) -> None:
        tool.sent += len(piece)
        kind, field = ("custom", "input") if tool.custom else ("function", "arguments")
        self.delta({"tool_calls": [{"index": tool.index, kind: {field: piece}}]}, text=piece)

    # --- items told as done, and the end ----------------------------------------------------------------------------

    def _item_done(self, told: dict[str, Any]) -> None:
        """What of this item did not come in pieces is handed out now."""
        item = told.get("item")
        if not isinstance(item, dict):
            return
        kind = item.get("type")
        if kind == "message":
            self._rest("content", reply.message_text(item))
            self._rest("refusal", reply.message_text(item, "refusal"))
        elif kind == "reasoning":
            self._rest("reasoning_content", items.reasoning_text(item))
            detail = items.detail_of(item)
            if detail is not None and detail["data"] not in self._details:
                self._details.add(detail["data"])
                self.delta({"reasoning_details": [detail]})
        elif call := reply.call_of(item):
            tool = self._by_key.get(("call", call["id"])) or self._open(call, item, told)
            whole = call["custom"]["input"] if tool.custom else call["function"]["arguments"]
            if len(whole) > tool.sent:
                self._argue(tool, whole[tool.sent :])

    def _rest(self, field: str, whole: str) -> None:
        if missing := self._texts[field].rest(whole):
            self.delta({field: missing}, text=missing)

    def _end(self, told: dict[str, Any]) -> None:
        self._begun_by(told)
        response = told.get("response")
        response = response if isinstance(response, dict) else {}
        self.usage = _usage(response) or self.usage
        for text in self._texts.values():
            text.accounted = 0
        output = response.get("output")
        for item in output if isinstance(output, list) else ():
            self._item_done({"item": item})
        if told.get("type") == "response.incomplete":
            response = {**response, "status": "incomplete"}
        self.finished(items.finish_reason(response, calls=bool(self._tools)))
        self.ended()


class _Text:
    """One kind of text over a stream: what was handed out, and up to where the items done so far account for it."""

    __slots__ = ("accounted", "key", "pieces")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.accounted = 0
        self.key: Any = None

    def take(self, piece: str, key: Any) -> str:
        """The piece to hand out: with a gap before it where another item or part begins."""
        if self.pieces and key != self.key:
            piece = items.GAP + piece
        self.key = key
        self.pieces.append(piece)
        return piece

    def rest(self, whole: str) -> str:
        """What was not handed out of the next item's text, `whole`. Text that differs from it counts as all of it."""
        sent = "".join(self.pieces)
        start = self.accounted
        if start and sent.startswith(items.GAP, start):
            start += len(items.GAP)
        if sent.startswith(whole, start):
            self.accounted = start + len(whole) if whole else self.accounted
            return ""
        came = sent[start:]
        missing = whole[len(came) :] if whole.startswith(came) else ""
        if missing and sent and not came:
            missing = items.GAP + missing
        self.pieces.append(missing)
        self.accounted = len(sent) + len(missing)
        return missing


def _item_key(told: dict[str, Any]) -> tuple[Any, Any]:
    return told.get("item_id"), told.get("output_index")
