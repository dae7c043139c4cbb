"""Canonical answers and streams as Anthropic's Messages API tells them: content blocks, their events, errors.

A stream has one block open at a time: what belongs to a later block waits until the one before it is complete. Thinking
is told where the request asked for it. A signature of another provider travels in a block of redacted thinking of its
own (`reading.wrapped`), which clients send back as they got it. Format: the API's public documentation.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from gateway.dialects import reading
from gateway.dialects.anthropic_blocks import FORMAT
from gateway.errors import GatewayError
from providers import answers
from providers.canonical import Call, Usage

SHOWN, HIDDEN = "shown", "hidden"

_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_ERRORS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_WHOLE_TRIES = 64  # how often arguments are looked at to see whether they are whole, while other blocks wait
_INVALID = "INVALID_JSON"  # the key the documentation suggests for arguments that are no JSON object

# The event of which a stream has the most.
_TEXT_DELTA = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":%d,"delta":{"type":"text_delta","text":%b}}\n\n'
)

_encode = msgspec.json.Encoder().encode

Block = dict[str, Any]

_TEXT: Block = {"type": "text", "text": ""}
_THINKING: Block = {"type": "thinking", "thinking": "", "signature": ""}


class AnthropicCall(Call):
    """A call that came in this API. `thinking` is what is told of reasoning: all, signatures only, or "" nothing."""

    thinking: str = ""


# --- errors ---------------------------------------------------------------------------------------------------------


def error_body(error: GatewayError, request_id: str) -> bytes:
    """An error as this API tells it; its type follows from the status."""
    kind = _ERRORS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    told: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": error.message}}
    if request_id:
        told["request_id"] = request_id
    return _encode(told)


def error_event(error: GatewayError, request_id: str) -> bytes:
    """The event that tells an error inside a stream."""
    return b"event: error\ndata: %b\n\n" % error_body(error, request_id)


# --- what both kinds of answers share -------------------------------------------------------------------------------


def usage_object(usage: Usage) -> dict[str, Any]:
    """A usage as this API tells it: the input without what was read from or written to the cache."""
    told: dict[str, Any] = {
        "input_tokens": max(0, usage.input - usage.cached - usage.cache_write),
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.output,
    }
    if usage.reasoning:
        told["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    return told


def _estimated(input_tokens: int, output_bytes: int) -> Usage:
    return Usage(input_tokens, output=-(-output_bytes // 4), reported=False)


def _stop_reason(reason: Any, *, tools: bool, refused: bool) -> str:
    told = _REASONS[reading.reason_of(reason)]
    if tools and told == "end_turn":  # some servers call the end of every answer a stop
        return "tool_use"
    return "refusal" if refused and told == "end_turn" else told


def _id_of(call: reading.ToolCall) -> str:
    return call.id or f"toolu_{secrets.token_hex(12)}"


def _signature(detail: Mapping[str, Any]) -> str:
    """The signature of a piece of reasoning; one of another provider's is wrapped with all that belongs to it."""
    signature = reading.text_of(detail, "signature")
    if not signature or detail.get("format") in (None, FORMAT):
        return signature
    return reading.wrapped({"detail": {name: value for name, value in detail.items() if name != "text"}})


def _redacted(detail: Mapping[str, Any]) -> Block | None:
    """The block of an encrypted piece of reasoning; None for pieces of other kinds."""
    data = reading.text_of(detail, "data")
    if detail.get("type") != "reasoning.encrypted" or not data:
        return None
    if detail.get("format") not in (None, FORMAT):
        data = reading.wrapped({"detail": detail})
    return {"type": "redacted_thinking", "data": data}


def _wrapped(told: dict[str, Any]) -> Block:
    return {"type": "redacted_thinking", "data": reading.wrapped(told)}


# --- whole answers --------------------------------------------------------------------------------------------------


def answer(call: Call, body: bytes) -> bytes:
    """A whole message, from a chat completion. Never raises."""
    told = reading.loaded(body)
    message: dict[str, Any] = {}
    reason: Any = None
    for index, choice, held in reading.choices_of(told, "message"):
        if index == 0:
            message, reason = held, choice.get("finish_reason")
            break
    content, refusal = _content(message, _shown(call)), reading.text_of(message, "refusal")
    usage = reading.usage_of(told) or _estimated(reading.estimate(call), _size(content))
    used = any(block["type"] == "tool_use" for block in content)
    return _encode(
        {
            "id": reading.text_of(told, "id") or f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": reading.text_of(told, "model") or call.model,
            "content": content,
            "stop_reason": _stop_reason(reason, tools=used, refused=bool(refusal)),
            "stop_sequence": None,
            "usage": usage_object(usage),
        }
    )


def _shown(call: Call) -> str:
    return call.thinking if isinstance(call, AnthropicCall) else ""


def _size(content: list[Block]) -> int:
    """Bytes of what a model generated."""
    size = 0
    for block in content:
        for name in ("text", "thinking", "name"):
            size += len(reading.text_of(block, name).encode("utf-8", "replace"))
        if "input" in block:
            size += len(_encode(block["input"]))
    return size


def _content(message: Mapping[str, Any], shown: str) -> list[Block]:
    text, thought = reading.spoken(message)
    blocks = list(_thoughts(message, thought, shown))
    blocks.extend({"type": "text", "text": said} for said in (text, reading.text_of(message, "refusal")) if said)
    if shown and (extra := reading.extra_of(message.get("extra_content"))):
        blocks.append(_wrapped({"extra_content": extra}))
    for tool, _, _ in reading.ToolCalls().take(message, whole=True):
        id, arguments = _id_of(tool), tool.arguments()
        if tool.extra is not None:
            blocks.append(_wrapped({"call": id, "extra_content": tool.extra}))
        given: Any = {_INVALID: "".join(tool.pieces)} if arguments is None else arguments
        blocks.append({"type": "tool_use", "id": id, "name": tool.name, "input": given})
    return blocks


def _thoughts(message: Mapping[str, Any], thought: str, shown: str) -> Iterator[Block]:
    if not shown:
        return
    told = False  # the signed blocks hold the whole text
    for detail in reading.details_of(message):
        signature = _signature(detail)
        if detail.get("type") == "reasoning.text" and signature:
            text = reading.text_of(detail, "text") or ("" if told else thought)
            yield {"type": "thinking", "thinking": text if shown == SHOWN else "", "signature": signature}
            told = True
        elif block := _redacted(detail):
            if thought and not told and shown == SHOWN:
                yield {"type": "thinking", "thinking": thought, "signature": ""}
                told = True
            yield block
    if thought and not told and shown == SHOWN:
        yield {"type": "thinking", "thinking": thought, "signature": ""}


# --- streams --------------------------------------------------------------------------------------------------------


class _Open:
    """A content block of a stream: being told, or waiting for its turn with all that came for it."""

    __slots__ = ("begun", "kind", "over", "signed", "start", "tool", "tries", "waiting")

    def __init__(self, kind: str, start: Block, tool: reading.ToolCall | None = None) -> None:
        self.kind, self.start, self.tool = kind, start, tool
        self.begun = self.over = self.signed = False
        self.waiting: list[Block] = []
        self.tries = _WHOLE_TRIES

    def is_complete(self) -> bool:
        """Whether nothing can follow, now that a later block has begun. Text can: it would open a block of its own."""
        if self.tool is None:
            return True
        if not self.tries or not self.tool.pieces or not self.tool.pieces[-1].rstrip().endswith("}"):
            return False
        self.tries -= 1
        return self.tool.arguments() is not None


class Writer:
    """One streamed message; the promises are those of `gateway.dialects.base.StreamWriter`.

    `input_estimate` is told in the first event, where the exact count is not known yet; the last one corrects it.
    """

    def __init__(self, call: Call, request_id: str, *, input_estimate: int) -> None:
        self._call, self._request_id, self._estimate = call, request_id, input_estimate
        self._shown = _shown(call)
        self._chunks = reading.Chunks()
        self._tools = reading.ToolCalls()
        self._blocks: deque[_Open] = deque()  # the first is the one being told
        self._of_tool: dict[int, _Open] = {}
        self._out: list[bytes] = []
        self._index = -1
        self._bytes = 0
        self._begun = self._refused = False
        self._reason: Any = None
        self._usage: Usage | None = None

    def feed(self, data: bytes) -> bytes:
        """The events for these canonical chunks."""
        for body in self._chunks.cut(data):
            if self._begun and (text := answers.text_alone(body)):
                self._say(text)
            elif chunk := reading.loaded(body):
                self._chunk(chunk)
        return self._taken()

    def finish(self) -> bytes:
        """The rest of the answer and the events that end it."""
        for chunk in self._chunks.rest():
            self._chunk(chunk)
        self._begin({})
        while self._blocks:
            self._tell(self._blocks[0])
            self._close(self._blocks.popleft())
        usage = self._usage or _estimated(self._estimate, self._bytes)
        reason = _stop_reason(self._reason, tools=bool(self._tools.all), refused=self._refused)
        delta = {"stop_reason": reason, "stop_sequence": None}
        self._event("message_delta", {"delta": delta, "usage": usage_object(usage)})
        self._event("message_stop", {})
        return self._taken()

    def fail(self, error: GatewayError) -> bytes:
        """The event that tells an error; blocks stay open, as the API leaves them."""
        return error_event(error, self._request_id)

    # --- one chunk --------------------------------------------------------------------------------------------------

    def _chunk(self, chunk: dict[str, Any]) -> None:
        self._usage = reading.usage_of(chunk) or self._usage
        self._begin(chunk)
        for index, choice, delta in reading.choices_of(chunk, "delta"):
            if index == 0:
                self._reason = reading.text_of(choice, "finish_reason") or self._reason
                self._delta(delta)

    def _delta(self, delta: dict[str, Any]) -> None:
        text, thought = reading.spoken(delta)
        if self._shown:
            if thought:
                self._think(thought)
            for detail in reading.details_of(delta):
                self._detail(detail, told=bool(thought))
        refusal = reading.text_of(delta, "refusal")
        self._refused = self._refused or bool(refusal)
        for said in (text, refusal):
            if said:
                self._say(said)
        if self._shown and (extra := reading.extra_of(delta.get("extra_content"))):
            self._push(_Open("redacted", _wrapped({"extra_content": extra})))
        for tool, arguments, new in self._tools.take(delta):
            self._tool(tool, arguments, new=new)

    def _say(self, text: str) -> None:
        self._count(text)
        block = self._last("text", _TEXT)
        if block.begun:
            self._out.append(_TEXT_DELTA % (self._index, _encode(text)))
        else:
            block.waiting.append({"type": "text_delta", "text": text})

    def _think(self, text: str) -> None:
        if self._shown == SHOWN:
            self._count(text)
            self._put(self._last("thinking", _THINKING), {"type": "thinking_delta", "thinking": text})

    def _detail(self, detail: dict[str, Any], *, told: bool) -> None:
        """Reasoning that is signed or encrypted. `told`: its text came in the same delta."""
        if block := _redacted(detail):
            self._push(_Open("redacted", block))
            return
        text, signature = reading.text_of(detail, "text") or reading.text_of(detail, "summary"), _signature(detail)
        if not signature:
            if text and not told:
                self._think(text)
            return
        last = self._blocks[-1] if self._blocks else None
        if last is None or last.kind != "thinking" or last.signed:
            if text and not told:
                self._think(text)
            last = self._last("thinking", _THINKING)
        self._put(last, {"type": "signature_delta", "signature": signature})
        last.signed = True

    def _tool(self, tool: reading.ToolCall, arguments: str, *, new: bool) -> None:
        if new:
            tool.id = _id_of(tool)
            block = self._of_tool[tool.number] = _Open("tool_use", {}, tool)
            if tool.extra is not None:
                self._push(_Open("redacted", _wrapped({"call": tool.id, "extra_content": tool.extra})))
            self._count(tool.name)
            self._push(block)
        block = self._of_tool[tool.number]
        if arguments and not block.over:
            self._count(arguments)
            self._put(block, {"type": "input_json_delta", "partial_json": arguments})
            if arguments.rstrip().endswith("}"):
                self._advance()

    # --- blocks in their order --------------------------------------------------------------------------------------

    def _last(self, kind: str, start: Block) -> _Open:
        """The last block if it is of this kind and may grow, else a new one."""
        if not self._blocks or self._blocks[-1].kind != kind or self._blocks[-1].signed:
            self._push(_Open(kind, start))
        return self._blocks[-1]

    def _push(self, block: _Open) -> None:
        self._blocks.append(block)
        self._advance()

    def _advance(self) -> None:
        """Tell the first block; where others wait behind it and it is complete, go on to them."""
        while self._blocks:
            first = self._blocks[0]
            if first.tool is None or first.tool.name:
                self._tell(first)
            if len(self._blocks) == 1 or not first.is_complete():
                return
            self._tell(first)
            self._close(self._blocks.popleft())

    def _put(self, block: _Open, delta: Block) -> None:
        if block.begun:
            self._event("content_block_delta", {"index": self._index, "delta": delta})
        else:
            block.waiting.append(delta)

    def _tell(self, block: _Open) -> None:
        if block.begun:
            return
        block.begun = True
        self._index += 1
        start = block.start
        if block.tool is not None:
            start = {"type": "tool_use", "id": block.tool.id, "name": block.tool.name, "input": {}}
        self._event("content_block_start", {"index": self._index, "content_block": start})
        for delta in block.waiting:
            self._event("content_block_delta", {"index": self._index, "delta": delta})
        block.waiting.clear()

    def _close(self, block: _Open) -> None:
        block.over = True
        self._event("content_block_stop", {"index": self._index})

    # --- events -----------------------------------------------------------------------------------------------------

    def _begin(self, chunk: dict[str, Any]) -> None:
        if self._begun:
            return
        self._begun = True
        message: dict[str, Any] = {
            "id": reading.text_of(chunk, "id") or f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": reading.text_of(chunk, "model") or self._call.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_object(Usage(self._estimate)),
        }
        self._event("message_start", {"message": message})

    def _count(self, text: str) -> None:
        self._bytes += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))

    def _event(self, name: str, told: dict[str, Any]) -> None:
        self._out.append(b"event: %b\ndata: %b\n\n" % (name.encode(), _encode({"type": name, **told})))

    def _taken(self) -> bytes:
        out = b"".join(self._out)
        self._out.clear()
        return out
