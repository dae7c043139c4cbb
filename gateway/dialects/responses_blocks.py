"""Output items of the Responses API while they are streamed: each writes the events of its own life. Pure.

Formats and order of events: the API's public documentation.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from gateway.dialects import responses_answer as answers
from gateway.dialects import responses_reasoning as reasoning
from gateway.dialects import responses_tools as tools
from providers import responses_items as items

Json = dict[str, Any]

WHOLE_TRIES = 64  # how often arguments are looked at to see whether they are whole, while other items wait

_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Events:
    """Writes events, numbered."""

    def __init__(self) -> None:
        self.number = 0
        self._out: list[bytes] = []

    def write(self, kind: str, **fields: Any) -> None:
        """One event of this type."""
        self.raw({"type": kind, "sequence_number": self.number, **fields})

    def raw(self, data: Json) -> None:
        """One event with all its data."""
        self._out.append(b"event: %b\ndata: %b\n\n" % (data["type"].encode(), _encode(data)))
        self.number += 1

    def taken(self) -> bytes:
        """What was written since the last call."""
        out = b"".join(self._out)
        self._out.clear()
        return out


class Block:
    """One output item. While it is not open, its pieces wait; `index` is its place in the output once it is."""

    kind = ""

    def __init__(self, events: Events, frame: answers.Frame) -> None:
        self.events, self.frame = events, frame
        self.index = -1
        self.closed = False
        self.waiting: list[tuple[Any, ...]] = []

    def take(self, *piece: Any) -> None:
        """A piece of the item."""
        if self.index < 0:
            self.waiting.append(piece)
        else:
            self.piece(*piece)

    def open(self, index: int) -> None:
        """Begin the item."""
        self.index = index
        self.begin()
        for piece in self.waiting:
            self.piece(*piece)
        self.waiting.clear()

    def ready(self) -> bool:
        """Whether the item can be begun."""
        return True

    def empty(self) -> bool:
        """Whether there is nothing to tell at all."""
        return False

    def complete(self) -> bool:
        """Whether the item may be closed because another one has begun."""
        return True

    def write(self, kind: str, **fields: Any) -> None:
        """An event about this item."""
        self.events.write(kind, item_id=self.id, output_index=self.index, **fields)

    def added(self, item: Json) -> None:
        """The event that begins an item."""
        self.events.write("response.output_item.added", output_index=self.index, item=item)

    def done(self, item: Json) -> Json:
        """The event that ends an item; returns it for the response."""
        self.events.write("response.output_item.done", output_index=self.index, item=item)
        return item

    @property
    def id(self) -> str:
        """The item's id."""
        raise NotImplementedError

    def begin(self) -> None:
        """Write the events that open the item."""
        raise NotImplementedError

    def piece(self, *piece: Any) -> None:
        """Write a piece of the open item."""
        raise NotImplementedError

    def close(self, status: str) -> Json:
        """Write the events that end the item; returns it as it is in the response."""
        raise NotImplementedError


class Reasoning(Block):
    """A reasoning item. Its text is its summary; what has to come back with it is known only at its end."""

    kind = "reasoning"

    def __init__(self, events: Events, frame: answers.Frame) -> None:
        super().__init__(events, frame)
        self.texts: list[str] = []
        self.details: list[Json] = []
        self.sealed = reasoning.Sealed()
        self._id = ""

    @property
    def id(self) -> str:
        """The item's id: the provider's own where nothing else is in it than what that provider encrypted."""
        if not self._id:
            own = self._own()
            self._id = (own and own.get("id")) or self.frame.reasoning_id(self.index)
        return self._id

    def ready(self) -> bool:
        """Whether there is text: what the item is called depends on what else is in it."""
        return bool(self.waiting)

    def empty(self) -> bool:
        """Whether there is neither text nor anything to send back."""
        return not (self.waiting or self.texts or self.sealed or any(map(reasoning.worth_keeping, self.details)))

    def begin(self) -> None:
        """Write the events that open the item."""
        self.added({"type": "reasoning", "id": self.id, "summary": []})

    def piece(self, *piece: Any) -> None:
        """Write a piece of its text."""
        (text,) = piece
        if not self.texts:
            self.write("response.reasoning_summary_part.added", summary_index=0, part=_summary(""))
        self.texts.append(text)
        self.write("response.reasoning_summary_text.delta", summary_index=0, delta=text)

    def close(self, status: str) -> Json:
        """Write the events that end the item."""
        own, text = self._own(), "".join(self.texts)
        if own is not None and self.id == own.get("id") and not text:
            return self.done(items.reasoning_item(own))
        if text:
            self.write("response.reasoning_summary_text.done", summary_index=0, text=text)
            self.write("response.reasoning_summary_part.done", summary_index=0, part=_summary(text))
        kept = [detail for detail in self.details if reasoning.worth_keeping(detail)]
        sealed = reasoning.Sealed(kept, self.sealed.calls, self.sealed.text)
        return self.done(answers.reasoning_item(self.id, text, sealed))

    def _own(self) -> Json | None:
        """What a provider of this API encrypted, where it is all there is to send back."""
        if len(self.details) != 1 or self.sealed or not items.is_encrypted(self.details[0]):
            return None
        return self.details[0]


class Message(Block):
    """An answer in words: text, and refusals."""

    kind = "message"

    def __init__(self, events: Events, frame: answers.Frame) -> None:
        super().__init__(events, frame)
        self.parts: list[Json] = []
        self._texts: list[str] = []
        self._open = ""

    @property
    def id(self) -> str:
        """The item's id."""
        return self.frame.item_id("msg", self.index)

    def begin(self) -> None:
        """Write the events that open the item."""
        self.added(answers.message_item(self.id, [], "in_progress"))

    def piece(self, *piece: Any) -> None:
        """Write a piece: its kind ("output_text", "refusal" or "annotation"), and what it is."""
        kind, told, logprobs = piece
        if kind == "annotation":
            self._part("output_text")
            place = self.parts[-1]["annotations"]
            at = {"content_index": len(self.parts) - 1, "annotation_index": len(place)}
            self.write("response.output_text.annotation.added", **at, annotation=told)
            place.append(told)
            return
        self._part(kind)
        if not told:
            return
        self._texts.append(told)
        at = {"content_index": len(self.parts) - 1}
        if kind == "output_text":
            self.parts[-1]["logprobs"] += logprobs
            self.write("response.output_text.delta", **at, delta=told, logprobs=logprobs)
        else:
            self.write("response.refusal.delta", **at, delta=told)

    def _part(self, kind: str) -> None:
        """Have a part of this kind open."""
        if self._open == kind:
            return
        self._end_part()
        self._open = kind
        self.parts.append(answers.text_part("") if kind == "output_text" else {"type": kind, "refusal": ""})
        self.write("response.content_part.added", content_index=len(self.parts) - 1, part=self.parts[-1])

    def _end_part(self) -> None:
        if not self._open:
            return
        part, text = self.parts[-1], "".join(self._texts)
        at = {"content_index": len(self.parts) - 1}
        if self._open == "output_text":
            part["text"] = text
            self.write("response.output_text.done", **at, text=text, logprobs=part["logprobs"])
        else:
            part["refusal"] = text
            self.write("response.refusal.done", **at, refusal=text)
        self.write("response.content_part.done", **at, part=part)
        self._texts, self._open = [], ""

    def close(self, status: str) -> Json:
        """Write the events that end the item."""
        self._end_part()
        return self.done(answers.message_item(self.id, self.parts, status))


class ToolCall(Block):
    """A call of a function, or of a tool that takes free text: that one's input is told in one piece, when whole."""

    kind = "tool"

    def __init__(self, events: Events, frame: answers.Frame, id: str, name: str) -> None:
        super().__init__(events, frame)
        self.call_id, self.name = id, name
        self.arguments: list[str] = []
        self._tries = WHOLE_TRIES
        self._custom = frame.tools.origin_of(name).custom

    @property
    def id(self) -> str:
        """The item's id."""
        return self.frame.item_id("ctc" if self._custom else "fc", self.index)

    def begin(self) -> None:
        """Write the events that open the item."""
        self.added(self.frame.call_item(self.index, self.call_id, self.name, "", "in_progress"))

    def take(self, *piece: Any) -> None:
        """A piece of the arguments."""
        self.arguments.append(piece[0])
        super().take(*piece)

    def piece(self, *piece: Any) -> None:
        """Write a piece of the arguments."""
        if not self._custom:
            self.write("response.function_call_arguments.delta", delta=piece[0])

    def complete(self) -> bool:
        """Whether the arguments are whole."""
        if not self._tries or not self.arguments or not self.arguments[-1].rstrip().endswith("}"):
            return False
        self._tries -= 1
        try:
            return isinstance(_decode("".join(self.arguments)), dict)
        except _ERRORS:
            return False

    def close(self, status: str) -> Json:
        """Write the events that end the item. A call without arguments has an empty object."""
        if not "".join(self.arguments).strip() and status == "completed":
            self.take("{}")
        arguments = "".join(self.arguments)
        if self._custom:
            text = tools.input_of(arguments) if arguments else ""
            if text:
                self.write("response.custom_tool_call_input.delta", delta=text)
            self.write("response.custom_tool_call_input.done", input=text)
        else:
            self.write("response.function_call_arguments.done", arguments=arguments)
        return self.done(self.frame.call_item(self.index, self.call_id, self.name, arguments, status))


AnyBlock = TypeVar("AnyBlock", bound=Block)


def _summary(text: str) -> Json:
    return {"type": "summary_text", "text": text}
