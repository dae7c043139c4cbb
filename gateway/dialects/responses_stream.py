"""Canonical chunks as the event stream of the Responses API. Pure.

One output item is open at a time, in the order in which the answer began them. A chunk that belongs to a later item
waits until the open one is known to be complete: text and reasoning as soon as something else begins, a tool call when
its arguments are whole. Formats and order of events: the API's public documentation.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.dialects import reading
from gateway.dialects import responses_answer as answers
from gateway.dialects import responses_reasoning as reasoning
from gateway.dialects.responses_blocks import AnyBlock, Block, Events, Message, Reasoning, ToolCall
from gateway.errors import GatewayError
from providers import responses_items as items
from providers import sse
from providers.canonical import Call

Json = dict[str, Any]

EVENT_LIMIT_BYTES = 64 << 20  # canonical events come from readers that have limits of their own

_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)
_ODD = (TypeError, ValueError, KeyError, AttributeError, IndexError)
_decode = msgspec.json.Decoder().decode


class Writer:
    """Writes one stream; the promises are those of `gateway.dialects.base.StreamWriter`."""

    def __init__(self, call: Call) -> None:
        self._frame = answers.Frame(call)
        self._events = Events()
        self._splitter = sse.Splitter(EVENT_LIMIT_BYTES)
        self._begun = False
        self._id = self._model = ""
        self._created = 0
        self._usage: Json | None = None
        self._finish = ""
        self._blocks: list[Block] = []  # the first is open, the others wait
        self._output: list[Json] = []
        self._calls: dict[Any, ToolCall] = {}  # by the index in the chunks
        self._call_ids: dict[Any, str] = {}
        self._call_index: Any = 0
        self._extra: Json = {}  # of the text; told at the end, as it must not part the text

    # --- StreamWriter -----------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> bytes:
        """What the client gets for these events."""
        try:
            events = self._splitter.feed(data)
        except sse.EventTooLargeError:
            return b""
        for event in events:
            self._event(event)
        return self._events.taken()

    def finish(self) -> bytes:
        """The end of a complete answer."""
        if rest := self._splitter.rest():
            self._event(rest)
        incomplete = items.incomplete_reason(reading.reason_of(self._finish))
        self._begin()
        if not self._output and all(block.empty() for block in self._blocks):
            self._give(self._message(), "output_text", "", [])
        while self._blocks:
            self._close(incomplete=bool(incomplete))
        if self._extra:
            self._reasoning().sealed.text |= self._extra
            self._close()
        status = "incomplete" if incomplete else "completed"
        details = {"reason": incomplete} if incomplete else None
        self._events.write(f"response.{status}", response=self._response(status, incomplete_details=details))
        return self._events.taken()

    def fail(self, error: GatewayError) -> bytes:
        """The end of an answer that failed after it had begun: an `error` event, and the response that failed."""
        self._begin()
        self._events.raw(answers.error_event(error, self._events.number))
        self._events.write("response.failed", response=self._response("failed", error=answers.failed(error)))
        return self._events.taken()

    def fail_alone(self, error: GatewayError) -> bytes:
        """The same where another's events came before: without a beginning."""
        self._begun = True
        return self.fail(error)

    # --- chunks -----------------------------------------------------------------------------------------------------

    def _event(self, event: bytes) -> None:
        data = sse.data_of(event)
        try:
            told = _decode(data) if data else None
        except _ERRORS:
            return
        if not isinstance(told, dict):
            return
        try:
            self._chunk(told)
        except _ODD:  # a provider's nonsense; what could be read of the chunk was written
            pass

    def _chunk(self, told: Json) -> None:
        self._id = self._id or reading.text_of(told, "id")
        self._model = self._model or reading.text_of(told, "model")
        created = told.get("created")
        self._created = self._created or (created if type(created) is int else 0)
        self._begin()
        self._usage = answers.usage_of(told) or self._usage
        choices = told.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return
        self._finish = reading.text_of(choice, "finish_reason") or self._finish
        delta = choice.get("delta")
        if isinstance(delta, dict):
            self._delta(delta, choice.get("logprobs"))

    def _delta(self, delta: Json, logprobs: Any) -> None:
        if text := answers.reasoned(delta):
            self._give(self._reasoning(), text)
        if details := delta.get("reasoning_details"):
            self._detail(details)
        known = items.logprobs_of(logprobs.get("content")) if isinstance(logprobs, dict) else []
        for kind, text in answers.texts(delta.get("content")):
            if text and kind == "text":
                self._give(self._message(), "output_text", text, known)
                known = []
            elif text:
                self._give(self._reasoning(), text)
        refusal = delta.get("refusal")
        if isinstance(refusal, str) and refusal:
            self._give(self._message(), "refusal", refusal, [])
        for annotation in items.flat_annotations(delta.get("annotations")):
            self._give(self._message(), "annotation", annotation, [])
        self._extra |= answers.extra_of(delta)
        pieces = delta.get("tool_calls")
        for piece in pieces if isinstance(pieces, list) else ():
            if isinstance(piece, dict):
                self._tool(piece)

    def _detail(self, details: Any) -> None:
        """Entries of `reasoning_details`: one with a signature or something encrypted ends its block."""
        block = self._reasoning()
        reasoning.merged(block.details, details)
        last = block.details[-1] if block.details else {}
        if reasoning.worth_keeping(last) and last.get("index") is None:
            self._advance()
            if self._blocks[0] is block:
                self._close()

    def _tool(self, piece: Json) -> None:
        function = piece.get("function")
        function = function if isinstance(function, dict) else {}
        name, id = reading.text_of(function, "name"), reading.text_of(piece, "id")
        arguments = reading.arguments_text(function.get("arguments"))
        index = piece.get("index") if type(piece.get("index")) is int else None
        index = self._call_index if index is None and not id else index
        self._call_index = index
        block = self._calls.get(index)
        if id and not name:
            self._call_ids[index] = id
        if name and (block is None or (id and id != block.call_id)):
            id = id or self._call_ids.pop(index, "") or f"call_{self._frame.stem}_{len(self._calls)}"
            if extra := answers.extra_of(piece):
                self._reasoning().sealed.calls[id] = extra
            block = self._calls[index] = ToolCall(self._events, self._frame, id, name)
            self._new(block)
        elif block is not None and (extra := answers.extra_of(piece)):
            self._reasoning().sealed.calls[block.call_id] = extra
        if block is not None and arguments and not block.closed:
            self._give(block, arguments)

    # --- blocks -----------------------------------------------------------------------------------------------------

    def _reasoning(self) -> Reasoning:
        for block in self._blocks:
            if isinstance(block, Reasoning):
                return block
        return self._new(Reasoning(self._events, self._frame))

    def _message(self) -> Message:
        for block in self._blocks:
            if isinstance(block, Message):
                return block
        return self._new(Message(self._events, self._frame))

    def _new(self, block: AnyBlock) -> AnyBlock:
        self._blocks.append(block)
        self._advance()
        return block

    def _give(self, block: Block, *piece: Any) -> None:
        block.take(*piece)
        if len(self._blocks) > 1 or block.index < 0:
            self._advance()

    def _advance(self) -> None:
        """Close the first blocks as far as they are complete and others wait; begin the one that is first then."""
        while len(self._blocks) > 1 and self._blocks[0].complete():
            self._close()
        first = self._blocks[0]
        if first.index < 0 and first.ready():
            first.open(len(self._output))

    def _close(self, *, incomplete: bool = False) -> None:
        """End the first block."""
        block = self._blocks.pop(0)
        block.closed = True
        if block.empty():
            return
        if block.index < 0:
            block.open(len(self._output))
        cut = incomplete and not self._blocks
        self._output.append(block.close("incomplete" if cut else "completed"))

    # --- the response -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        response = self._response("in_progress")
        self._created = response["created_at"]
        self._events.write("response.created", response=response)
        self._events.write("response.in_progress", response=response)

    def _response(self, status: str, **more: Any) -> Json:
        return self._frame.response(
            id=self._id,
            model=self._model,
            created=self._created,
            status=status,
            output=self._output if status != "in_progress" else [],
            usage=self._usage if status != "in_progress" else None,
            **more,
        )
