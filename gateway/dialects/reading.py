"""What dialects share: reading canonical answers and chunks piece by piece, and making calls of translated requests.

Canonical answers may come from any server that speaks the OpenAI API, so nothing in them is taken for granted:
reasoning has two names, content may be a list of parts, the pieces of tool calls may be mixed, lack an index or repeat
an id.

Signatures and encrypted reasoning of one provider have no place in another provider's API. There they travel in that
API's own opaque field, marked as ours (`wrapped`), and are put back where they belong when the client returns them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from gateway import strict
from gateway.errors import BadRequestError
from providers import sse
from providers.canonical import Call, Usage, parse_usage

_MARK = b"hoosh:"  # six bytes: base64 tells them in eight characters of their own
_MARK_ENCODED = base64.b64encode(_MARK).decode()
_URL_SAFE = str.maketrans("-_", "+/")
_ESTIMATE_BYTES_PER_TOKEN = 4

AnyCall = TypeVar("AnyCall", bound=Call)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_DECODE_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


class Findings:
    """What a parser noticed in a request besides what it translated; `apply` writes it into the call.

    `native_only` and `surcharge` keep the first place that was told, `dropped` each name once.
    """

    __slots__ = ("_dropped", "native_only", "surcharge")

    def __init__(self) -> None:
        self.native_only = ""
        self.surcharge = ""
        self._dropped: dict[str, None] = {}

    def only(self, where: str, *, costs: str = "") -> None:
        """`where` cannot be carried; `costs` names it where it makes the request dearer than its tokens."""
        self.native_only = self.native_only or where
        self.surcharge = self.surcharge or costs

    def drop(self, where: str) -> None:
        """`where` is left out of the canonical form and changes little."""
        self._dropped[where] = None

    def apply(self, call: Call, dialect: str, native: bytes) -> None:
        """Write what was found into the call."""
        call.dialect, call.native, call.wants_usage = dialect, native, True
        call.native_only, call.dropped = self.native_only, tuple(self._dropped)
        call.surcharge = call.surcharge or self.surcharge


def made(
    kind: type[AnyCall],
    parse: Callable[[strict.Document, bytes], Call],
    canonical: dict[str, Any],
    names: Mapping[str, str],
    **more: Any,
) -> AnyCall:
    """The call of a translated request, as the dialect's own kind of call with the fields `more`.

    What the canonical form refuses is told in the dialect's `names`.
    """
    try:
        call = parse(canonical, _encode(canonical))
    except BadRequestError as error:
        name = names.get((error.param or "").partition("[")[0])
        if not name or not error.param:
            raise
        raise BadRequestError(error.message.replace(f"'{error.param}'", f"'{name}'"), param=name) from None
    return kind(**{name: getattr(call, name) for name in call.__struct_fields__}, **more)


def native(
    doc: strict.Document, body: bytes, known: Collection[str], findings: Findings, *, removed: Collection[str] = ()
) -> bytes:
    """What a provider of the same API gets: the client's bytes, less what is not the client's to decide.

    Taken out are the gateway's own `pool`, the fields `removed`, and every field that decides what a request costs
    (`strict.GUARDED`) and is none of this API's `known` ones: it is translated into nothing here and might mean
    something to the server behind.
    """
    strays = [name for name in doc if name in removed or (name in strict.GUARDED and name not in known)]
    if not strays:
        return body
    for name in strays:
        if name != "pool":
            findings.drop(name)
    return _encode({name: value for name, value in doc.items() if name not in strays})


def answer_format(schema: dict[str, Any]) -> dict[str, Any]:
    """The canonical `response_format` of a JSON schema. Strict where the schema is closed, as strict ones must be."""
    told: dict[str, Any] = {"name": "answer", "schema": schema}
    if _is_closed(schema):
        told["strict"] = True
    return {"type": "json_schema", "json_schema": told}


def _is_closed(schema: Any) -> bool:
    """Whether every object in the schema allows exactly its own properties and requires all of them."""
    if isinstance(schema, list):
        return all(map(_is_closed, schema))
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties")
    if schema.get("type") == "object" or properties is not None:
        required = schema.get("required")
        if schema.get("additionalProperties") is not False or not isinstance(properties, dict):
            return False
        if not isinstance(required, list) or any(name not in required for name in properties):
            return False
    return all(_is_closed(list(value.values()) if key in _MAPS else value) for key, value in _inner(schema))


_MAPS = ("properties", "$defs", "definitions", "patternProperties")


def _inner(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in schema.items():
        if key in _MAPS:
            if isinstance(value, dict):
                yield key, value
        elif key in ("items", "prefixItems", "anyOf", "oneOf", "allOf", "not"):
            yield key, value


def effort_of(budget: int) -> str:
    """The effort that a thinking budget in tokens stands for."""
    if budget < 4096:
        return "low"
    return "medium" if budget < 16_384 else "high"


def estimate(call: Call) -> int:
    """Input tokens of a call, roughly, for places that want a number before there is one."""
    return max(1, (call.size - call.media_bytes) // _ESTIMATE_BYTES_PER_TOKEN)


# --- what travels through another API's opaque fields ---------------------------------------------------------------


def wrapped(told: Mapping[str, Any]) -> str:
    """JSON as an opaque text, in base64: some APIs take nothing else for a signature."""
    return base64.b64encode(_MARK + _encode(told)).decode()


def unwrapped(text: Any) -> dict[str, Any] | None:
    """What `wrapped` was given; None for a text of anybody else's."""
    if not isinstance(text, str) or not text.startswith(_MARK_ENCODED):
        return None
    try:
        # SDKs decode and encode such fields, in either alphabet and with or without padding.
        raw = base64.b64decode(text.translate(_URL_SAFE) + "=" * (-len(text) % 4), validate=True)
        told = _decode(raw[len(_MARK) :])
    except (binascii.Error, *_DECODE_ERRORS):
        return None
    return told if isinstance(told, dict) else None


def extra_of(told: Any) -> dict[str, Any] | None:
    """A well-formed `extra_content` with a thought signature in it; None for anything else."""
    google = told.get("google") if isinstance(told, dict) else None
    signature = google.get("thought_signature") if isinstance(google, dict) else None
    return {"google": {"thought_signature": signature}} if isinstance(signature, str) and signature else None


def signature_of(holder: Mapping[str, Any]) -> str:
    """The thought signature in the `extra_content` of a tool call, message or delta."""
    extra = extra_of(holder.get("extra_content"))
    return extra["google"]["thought_signature"] if extra is not None else ""


# --- canonical answers ----------------------------------------------------------------------------------------------


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

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The chunks that `data` completes."""
        for event in self._splitter.feed(data):
            told = loaded(sse.data_of(event) or b"")
            if told:
                yield told

    def rest(self) -> Iterator[dict[str, Any]]:
        """The chunk whose empty line never came."""
        held = self._splitter.rest().strip()
        return self.feed(held + b"\n\n") if held else iter(())


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


class ToolCall:
    """A tool call as it comes together. `extra` is its well-formed `extra_content`."""

    __slots__ = ("extra", "id", "name", "number", "pieces")

    def __init__(self, number: int) -> None:
        self.number = number
        self.id = self.name = ""
        self.extra: dict[str, Any] | None = None
        self.pieces: list[str] = []

    def arguments(self) -> msgspec.Raw | None:
        """The arguments, once they are a JSON object; none at all are an empty one. Numbers keep their digits."""
        text = "".join(self.pieces).strip()
        if not text:
            return msgspec.Raw(b"{}")
        raw = text.encode("utf-8", "replace")
        try:
            told = _decode(raw)
            return msgspec.Raw(msgspec.json.format(raw, indent=-1)) if isinstance(told, dict) else None
        except _DECODE_ERRORS:
            return None


class ToolCalls:
    """The tool calls of one answer, whole or in pieces, in the order in which they began."""

    __slots__ = ("_at", "_last", "all")

    def __init__(self) -> None:
        self.all: list[ToolCall] = []
        self._at: dict[int, ToolCall] = {}
        self._last: ToolCall | None = None

    def take(self, message: Mapping[str, Any], *, whole: bool = False) -> Iterator[tuple[ToolCall, str, bool]]:
        """Each call that the message or delta has a piece of: the call, the new arguments, and whether it is new.

        `whole`: every piece is a call of its own.
        """
        pieces = message.get("tool_calls")
        legacy = message.get("function_call")
        if isinstance(legacy, dict):
            pieces = [{"index": 0, "function": legacy}]
        for place, piece in enumerate(pieces if isinstance(pieces, list) else ()):
            if isinstance(piece, dict):
                yield self._piece({**piece, "index": place} if whole else piece)

    def _piece(self, piece: dict[str, Any]) -> tuple[ToolCall, str, bool]:
        function = piece.get("function")
        told = function if isinstance(function, dict) else {}
        id, name, index = text_of(piece, "id"), text_of(told, "name"), piece.get("index")
        known = self._at.get(index) if type(index) is int else self._last
        if (
            known is not None
            and name
            and known.name
            and ((known.id and id != known.id) if id else type(index) is not int)
        ):
            known = None  # servers that count every call as the first, or do not count
        new = known is None
        call = ToolCall(len(self.all)) if known is None else known
        if new:
            self.all.append(call)
        if type(index) is int:
            self._at[index] = call
        self._last = call
        call.id, call.name = call.id or id, call.name or name
        call.extra = call.extra or extra_of(piece.get("extra_content"))
        arguments = told.get("arguments")
        if arguments is not None and not isinstance(arguments, str):
            arguments = _encode(arguments).decode()
        if arguments:
            call.pieces.append(arguments)
        return call, arguments or "", new
