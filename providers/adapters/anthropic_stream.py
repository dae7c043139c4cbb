"""Readers for streams of Anthropic's Messages API: into canonical chunks, or as they are for callers of that API.

Both accept blocks that are open at once, as some servers send them. Formats: the API's public documentation.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from providers import sse
from providers.adapters import anthropic_reply as reply
from providers.adapters import chunks, problems
from providers.adapters.openai_compatible import utf8
from providers.adapters.passing import PassingReader
from providers.canonical import Usage

OPEN_BLOCKS_MAX = 1024
THINKING_CHARACTERS_MAX = 16 << 20  # kept of one block, to be handed out whole when it ends

_TOKEN_BYTES = 4  # of text a token has about as many, where the provider has not counted yet
_TEXT_FIELDS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


class _Usage:
    """The usage as far as it is known: the input exactly from the first event, the output in the last but one.

    Between the two the output is at least estimated, for streams that are cut.
    """

    __slots__ = ("_tally", "usage")

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self._tally = reply.Tally()

    def started(self, told: Any) -> None:
        usage = self._tally.add(told)
        if usage is not None:
            usage.reported = False
            self.usage = usage

    def grown(self, delivered_bytes: int) -> None:
        usage = self.usage
        if usage is not None and not usage.reported:
            usage.output = max(usage.output, delivered_bytes // _TOKEN_BYTES)

    def counted(self, told: Any) -> None:
        self.usage = self._tally.add(told) or self.usage


class _TextDelta(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    type: Literal["text_delta"]
    text: str


class _TextEvent(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """An event that is nothing but a piece of text. Anything else in it, and it is not decoded as one."""

    type: Literal["content_block_delta"]
    delta: _TextDelta
    index: int = 0


_decode_text = msgspec.json.Decoder(_TextEvent).decode


class _Block(msgspec.Struct):
    """An open content block. `tool` counts calls of tools only; `start` is the text's place in the content."""

    kind: str
    tool: int = -1
    input: Any = None
    fed: bool = False  # arguments came in pieces
    thinking: list[str] = msgspec.field(default_factory=list)
    length: int = 0
    signature: str = ""
    start: int = 0
    citations: list[Any] = msgspec.field(default_factory=list)


class MessageReader(chunks.ChunkReader):
    """Translates a stream of message events into chunks."""

    def __init__(self, *, wants_usage: bool) -> None:
        super().__init__(wants_usage=wants_usage)
        self._open: dict[int, _Block] = {}
        self._tools = 0
        self._characters = 0
        self._last: dict[str, Any] = {}  # the delta that told the stop reason
        self._counts = _Usage()

    def plain(self, name: bytes, data: bytes) -> bool:
        """Handle an event that is a piece of text and nothing else."""
        if name == b"error" or not self._begun:
            return False
        try:
            text = _decode_text(data).delta.text
        except reply.ERRORS:
            return False
        if text:
            self._characters += len(text)
            self.say(text)
            self._counts.grown(self.delivered_bytes)
        return True

    def event(self, name: bytes, told: dict[str, Any]) -> None:
        """Handle one event. Its type is told in the data, and by some servers only in the event's name."""
        kind = told.get("type") or name.decode("latin-1")
        if kind == "error" or name == b"error" or told.get("error") is not None:
            self.failed(reply.in_band(told))
        elif kind == "content_block_delta":
            self._delta(told.get("index", 0), told["delta"])
        elif kind == "content_block_start":
            self._start(told.get("index", 0), told["content_block"])
        elif kind == "content_block_stop":
            block = self._open.pop(told.get("index", 0), None)
            if block is not None:
                self._close(block)
        elif kind == "message_start":
            self._begin(told["message"])
        elif kind == "message_delta":
            self._counts.counted(told.get("usage"))
            delta = told.get("delta")
            if isinstance(delta, dict) and delta.get("stop_reason") is not None:
                self._last = delta
        elif kind == "message_stop":
            self._end()
        self._counts.grown(self.delivered_bytes)
        self.usage = self._counts.usage

    def _begin(self, message: dict[str, Any]) -> None:
        self.id, self.model = _string(message.get("id")), _string(message.get("model"))
        self._counts.started(message.get("usage"))
        if not self._begun:
            self.delta({})

    def _start(self, index: int, told: dict[str, Any]) -> None:
        if len(self._open) >= OPEN_BLOCKS_MAX:
            raise ValueError("too many open blocks")
        kind = told.get("type")
        block = self._open[index] = _Block(kind if isinstance(kind, str) else "", start=self._characters)
        if kind == "text":
            self._text(_string(told.get("text")))
            block.citations.extend(told.get("citations") or ())
        elif kind == "thinking":
            self._thought(block, _string(told.get("thinking")))
            block.signature = _string(told.get("signature"))
        elif kind == "redacted_thinking":
            self.delta({"reasoning_details": [reply.data_detail(_string(told.get("data")))]})
        elif kind == "tool_use":
            block.tool, block.input = self._tools, told.get("input")
            self._tools += 1
            name = _string(told.get("name"))
            call = chunks.tool_call(_string(told.get("id")), name, "", index=block.tool)
            self.delta({"tool_calls": [call]}, text=name)

    def _delta(self, index: int, told: dict[str, Any]) -> None:
        kind, block = told.get("type"), self._open.get(index)
        if kind == "text_delta":
            self._text(_string(told.get("text")))
            return
        if block is None:
            raise ValueError("a piece of no block")
        if kind == "input_json_delta":
            self._arguments(block, _string(told.get("partial_json")))
        elif kind == "thinking_delta":
            self._thought(block, _string(told.get("thinking")))
        elif kind == "signature_delta":
            block.signature += _string(told.get("signature"))
        elif kind == "citations_delta":
            block.citations.append(told.get("citation"))

    def _text(self, text: str) -> None:
        if text:
            self._characters += len(text)
            self.delta({"content": text}, text=text)

    def _thought(self, block: _Block, text: str) -> None:
        if not text:
            return
        block.length += len(text)
        if block.length > THINKING_CHARACTERS_MAX:
            raise ValueError("too much thinking")
        block.thinking.append(text)
        self.delta({"reasoning_content": text}, text=text)

    def _arguments(self, block: _Block, piece: str) -> None:
        # The provider's own tools stream their arguments in the same way: those are nobody's to run.
        if piece and block.tool >= 0:
            block.fed = True
            self.delta({"tool_calls": [{"index": block.tool, "function": {"arguments": piece}}]}, text=piece)

    def _close(self, block: _Block) -> None:
        if block.tool >= 0 and not block.fed:
            # A call without arguments comes without pieces; callers expect JSON all the same.
            self._arguments(block, chunks.json_text(block.input or {}))
        elif block.kind == "thinking" and block.signature:
            detail = reply.text_detail("".join(block.thinking), block.signature)
            self.delta({"reasoning_details": [detail]})
        elif block.citations:
            found = [reply.annotation(citation, block.start, self._characters) for citation in block.citations]
            named = [annotation for annotation in found if annotation is not None]
            if named:
                self.delta({"annotations": named})

    def _end(self) -> None:
        for index in sorted(self._open):
            self._close(self._open[index])
        self._open.clear()
        if words := reply.refusal(self._last):
            self.delta({"refusal": words})
        self.finished(reply.finish(self._last.get("stop_reason"), tools=self._tools > 0))
        self.usage = self._counts.usage
        self.ended()


def _string(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError("not a string")
    return value


class NativeReader(PassingReader):
    """Passes a stream on to a caller who speaks this API and reads it on the way. An error event is not passed on.

    The promises are those of `providers.adapters.StreamReader`. Events without a name get theirs: clients pass over
    what has none.
    """

    native = True

    def __init__(self) -> None:
        super().__init__()
        self._counts = _Usage()

    def _event(self, event: bytes) -> bytes:
        """What to deliver of one event."""
        event = utf8(event).removeprefix(b"\xef\xbb\xbf")
        name, data = sse.fields(event)
        if data is None or not data.strip():
            return b""
        told = reply.loads(data)
        if not isinstance(told, dict):
            self.error = problems.problem("protocol")
            return b""
        kind = told.get("type")
        if not isinstance(kind, str) or not kind.isidentifier():
            kind = name.decode("latin-1")
        if kind == "error" or name == b"error" or told.get("error") is not None:
            self.error = reply.in_band(told)
            return b""
        self._read(kind, told)
        return event if name or not kind else b"event: %b\n%b" % (kind.encode(), event)

    def _read(self, kind: str, told: dict[str, Any]) -> None:
        if kind == "content_block_delta":
            delta = told.get("delta")
            if isinstance(delta, dict):
                self._count(delta.get(_TEXT_FIELDS.get(str(delta.get("type")), "")))
        elif kind == "content_block_start":
            block = told.get("content_block")
            if isinstance(block, dict):
                self._count(block.get("name") or block.get("text") or block.get("thinking"))
        elif kind == "message_start":
            message = told.get("message")
            self._counts.started(message.get("usage") if isinstance(message, dict) else None)
        elif kind == "message_delta":
            self._counts.counted(told.get("usage"))
        elif kind == "message_stop":
            self.done = True
        self.usage = self._counts.usage

    def _count(self, text: Any) -> None:
        if isinstance(text, str) and text:
            self.events += 1
            self.delivered_bytes += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
            self._counts.grown(self.delivered_bytes)
