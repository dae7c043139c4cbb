"""What dialects share: making calls of translated requests, and reading the tool calls of canonical answers.

What else is read of answers is `providers.answers`, under whose names it can be had here too.

Signatures and encrypted reasoning of one provider have no place in another provider's API. There they travel in that
API's own opaque field, marked as ours (`wrapped`), and are put back where they belong when the client returns them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import msgspec

from gateway import strict
from gateway.errors import BadRequestError
from providers.answers import Chunks as Chunks
from providers.answers import choices_of as choices_of
from providers.answers import details_of as details_of
from providers.answers import loaded as loaded
from providers.answers import reason_of as reason_of
from providers.answers import spoken as spoken
from providers.answers import text_of as text_of
from providers.answers import usage_of as usage_of
from providers.canonical import Call

_MARK = b"hoosh:"  # six bytes: base64 tells them in eight characters of their own
_MARK_ENCODED = base64.b64encode(_MARK).decode()
_URL_SAFE = str.maketrans("-_", "+/")
_ESTIMATE_BYTES_PER_TOKEN = 4

MESSAGES_MAX = 4096
BLOCKS_MAX = 16_384
# Surcharges that are a question of price alone; every other one names what brings in tokens that no bound covers.
PRICE_ONLY = frozenset({"cache_control", "service_tier", "speed", "inference_geo"})

# Where blocks and calls stand in messages and items, and blocks in blocks.
_HOLDERS = ("content", "tool_calls", "images", "output", "source", "summary", "tools")
# What names a file or holds one, in any of the APIs, and blocks that are one.
_FILE_KEYS = frozenset({"file_id", "file_ids", "file_url", "file_data", "image_url"})
_FILE_TYPES = frozenset(
    {"image", "document", "file", "container_upload", "input_image", "input_file", "image_url", "computer_screenshot"}
)
_CITED = frozenset({"annotations", "citations"})  # they say where words came from; the files are not read again

AnyCall = TypeVar("AnyCall", bound=Call)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_DECODE_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)
_ENCODE_ERRORS = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)


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
        """`where` cannot be carried; `costs` names it where it brings in what is not in the body.

        Such names come from clients: one that reads like a question of price is told as a tool.
        """
        self.native_only = self.native_only or where
        if costs:
            self.surcharge = dearest(self.surcharge, "tools" if costs in PRICE_ONLY else costs)

    def dearer(self, name: str) -> None:
        """The same tokens cost more than the prices say: `name` is one of `PRICE_ONLY`."""
        self.surcharge = dearest(self.surcharge, name)

    def drop(self, where: str) -> None:
        """`where` is left out of the canonical form and changes little."""
        self._dropped[where] = None

    def apply(self, call: Call, dialect: str, native: bytes) -> None:
        """Write what was found into the call."""
        call.dialect, call.native, call.wants_usage = dialect, native, True
        call.native_only, call.dropped = self.native_only, tuple(self._dropped)
        call.surcharge = dearest(call.surcharge, self.surcharge)


def dearest(one: str, other: str) -> str:
    """Which of two surcharges counts: one beyond the price before one of price alone, else the first."""
    if one in PRICE_ONLY and other and other not in PRICE_ONLY:
        return other
    return one or other


def check_size(messages: Any, name: str) -> None:
    """Refuse more messages, or more blocks and calls in all of them, than anything here is meant to work on."""
    if not isinstance(messages, list):
        return  # refused, or read, by who knows what it should be
    if len(messages) > MESSAGES_MAX:
        refuse(name, f"may have at most {MESSAGES_MAX} items")
    waiting: list[Any] = list(messages)
    blocks = 0
    while waiting:
        item = waiting.pop()
        if not isinstance(item, dict):
            continue
        for holder in _HOLDERS:
            inner = item.get(holder)
            if isinstance(inner, list):
                blocks += len(inner)
                waiting += inner
            elif isinstance(inner, dict):
                waiting.append(inner)
        if blocks > BLOCKS_MAX:
            refuse(name, f"may have at most {BLOCKS_MAX} content blocks and tool calls in all")


def hidden_files(value: Any, *, besides: Collection[str] = ()) -> int:
    """How many files a part of a request may stand for that is not translated: none may be missing from a bound.

    Counted are objects, at any depth, that name a file, hold one or are one by their type; `besides` are keys of the
    outermost object that are looked at elsewhere.
    """
    if isinstance(value, dict) and besides:
        value = {key: inner for key, inner in value.items() if key not in besides}
    waiting, found = [value], 0
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            kind = item.get("type")
            keys = sum(item.get(key) is not None for key in _FILE_KEYS)
            one = isinstance(item.get("source"), dict) or (isinstance(kind, str) and kind in _FILE_TYPES)
            found += max(keys, int(one))
            waiting += [inner for key, inner in item.items() if key not in _CITED]
    return found


def refuse(param: str, what: str) -> NoReturn:
    """Raise the refusal of one field."""
    raise BadRequestError(f"'{param}' {what}.", param=param)


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
    waiting = [schema]
    while waiting:
        told = waiting.pop()
        if isinstance(told, list):
            waiting += told
        if not isinstance(told, dict):
            continue
        properties = told.get("properties")
        if told.get("type") == "object" or properties is not None:
            required = told.get("required")
            if told.get("additionalProperties") is not False or not isinstance(properties, dict):
                return False
            if not isinstance(required, list) or not properties.keys() <= {x for x in required if isinstance(x, str)}:
                return False
        waiting += [list(value.values()) if key in _MAPS else value for key, value in _inner(told)]
    return True


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


# --- tool calls of canonical answers ---------------------------------------------------------------------------------


def arguments_text(value: Any) -> str:
    """The arguments of a tool call, or a piece of them, as JSON text: some servers send the object itself."""
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return _encode(value).decode()
    except _ENCODE_ERRORS:
        return ""


class ToolCall:
    """A tool call as it comes together. `extra` is its well-formed `extra_content`, `index` the one it was told."""

    __slots__ = ("extra", "id", "index", "name", "number", "pieces")

    def __init__(self, number: int) -> None:
        self.number = self.index = number
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
            if new:
                call.index = index
        self._last = call
        call.id, call.name = call.id or id, call.name or name
        call.extra = call.extra or extra_of(piece.get("extra_content"))
        arguments = arguments_text(told.get("arguments"))
        if arguments:
            call.pieces.append(arguments)
        return call, arguments, new
