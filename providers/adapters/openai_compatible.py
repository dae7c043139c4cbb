"""The adapter for every upstream that speaks the OpenAI API. Bytes pass through wherever nothing must change.

Requests: the model's name is replaced in place where it stands near either end of the body, missing fields are
appended; anything else is rebuilt from the top-level values, each of which keeps its bytes. Replies: decoded only as
far as usage, errors and the amount of generated text go.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from providers import sse
from providers.adapters import embeddings, problems, quirks
from providers.adapters.passing import PassingReader
from providers.canonical import (
    OPENAI,
    Answer,
    Call,
    Request,
    Target,
    UpstreamProblem,
    UsageWire,
    parse_usage,
    usage_of,
)

Headers = Iterable[tuple[bytes, bytes]]

_NEAR_BYTES = 1024  # how far from either end of a body the model's name is looked for
_LIMIT_FIELDS = frozenset(("max_tokens", "max_completion_tokens"))
_NULL = msgspec.Raw(b"null")
_FIRST = b'{"model":'
_BRACE = ord("}")
_REPLY_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)

_encode = msgspec.json.Encoder().encode
_decode_any = msgspec.json.Decoder().decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    function: _Function | None = None


class _Text(msgspec.Struct, gc=False):
    """A message or a delta: everything in it that a model generated."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Text | None = None
    message: _Text | None = None
    text: str | None = None


class _GroqPart(msgspec.Struct, gc=False):
    usage: UsageWire | None = None


class _Reply(msgspec.Struct, gc=False):
    """What is read of a stream chunk or a whole answer of chat and completions."""

    choices: list[_Choice] | None = None
    usage: UsageWire | None = None
    error: Any = None
    x_groq: _GroqPart | None = None
    object: str | None = None


class _Names(msgspec.Struct, gc=False):
    """What a usage chunk repeats from the chunks before it."""

    id: msgspec.Raw = _NULL
    created: msgspec.Raw = _NULL
    model: msgspec.Raw = _NULL
    object: msgspec.Raw = _NULL


_decode_reply = msgspec.json.Decoder(_Reply).decode
_decode_names = msgspec.json.Decoder(_Names).decode


class OpenAICompatible:
    """Requests and replies in the OpenAI API's own shape."""

    local = False
    stream_types = (b"text/event-stream",)

    def build(self, call: Call, target: Target, limit: int | None) -> Request:
        """The upstream request: model, output limit and usage request written, gateway-only fields taken out.

        `limit` is in tokens; None leaves the client's own, under the field name the upstream reads. Fields that the
        kind is declared not to honour are left out or, with `UnsupportedParamError`, refused.
        """
        kind = target.kind
        if kind.plain and call.endpoint == "chat" and (call.dialect != OPENAI or quirks.is_foreign(call.body)):
            call = quirks.plain(call)
        if kind.call_ids and b'"tool_call' in call.body:
            call = quirks.with_fitting_ids(call, kind.call_ids)
        if (kind.quirks and not kind.quirks.isdisjoint(call.fields)) or (kind.only and quirks.is_odd(call, kind)):
            call, dropped = quirks.applied(call, target)
            return Request(self._body(call, target, limit), call.endpoint, dropped)
        return Request(self._body(call, target, limit), call.endpoint)

    def _body(self, call: Call, target: Target, limit: int | None) -> bytes:
        fields, kind, tail = call.fields, target.kind, b""
        wanted = call.limit if limit is None else limit
        if "pool" in fields:
            return _rebuilt(call, target, wanted)
        if wanted is not None and call.endpoint != "embeddings":
            field = _limit_field(call, target)
            if call.limit is None:
                if not _LIMIT_FIELDS.isdisjoint(fields):  # null
                    return _rebuilt(call, target, wanted)
                tail = b',"%b":%d' % (field.encode(), wanted)
            elif wanted != call.limit or field != call.limit_field or fields >= _LIMIT_FIELDS:
                return _rebuilt(call, target, wanted)
        if not kind.stream_usage:
            if "stream_options" in fields:
                return _rebuilt(call, target, wanted)
        elif call.stream and not call.wants_usage:
            if "stream_options" in fields:
                return _rebuilt(call, target, wanted)
            tail += b',"stream_options":{"include_usage":true}'
        body = call.body
        if target.upstream_model and target.upstream_model != call.model:
            spliced = _with_model(body, _encode(call.model), _encode(target.upstream_model))
            if spliced is None:
                return _rebuilt(call, target, wanted)
            body = spliced
        if not tail:
            return body
        if body[-1] != _BRACE:
            body = body.rstrip()
        return b"%b%b}" % (body[:-1], tail)

    def read_unary(
        self, call: Call, status: int, headers: Headers, body: bytes, target: Target | None = None
    ) -> Answer:
        """Read a whole reply with status 2xx. The body is passed on as it is when it is an answer at all."""
        if call.endpoint == "embeddings":
            return embeddings.read(call, body)
        excluded = target is not None and target.kind.reasoning_excluded
        try:
            reply = _decode_reply(body)
        except _REPLY_ERRORS:
            return _read_odd(body, excluded=excluded)
        if reply.choices is None:
            return Answer(b"", problem=problems.from_success(body))
        wire = reply.usage or (reply.x_groq.usage if reply.x_groq is not None else None)
        usage = None if wire is None else usage_of(wire, reasoning_excluded=excluded)
        return Answer(utf8(body), usage, sum(map(_generated, reply.choices)))

    def open_stream(self, call: Call, target: Target | None = None) -> ChunkReader:
        """A reader for the reply to a streaming call."""
        excluded = target is not None and target.kind.reasoning_excluded
        return ChunkReader(keep_usage=call.wants_usage, reasoning_excluded=excluded)

    def read_error(self, status: int, headers: Headers, body: bytes) -> UpstreamProblem:
        """Read a reply whose status is not 2xx."""
        return problems.from_reply(status, headers, body)


class ChunkReader(PassingReader):
    """Reads one stream of chunks; the promises are those of `providers.adapters.StreamReader`."""

    native = False
    __slots__ = ("_excluded", "_last", "_usage_due", "_wanted")

    def __init__(self, *, keep_usage: bool, reasoning_excluded: bool = False) -> None:
        super().__init__()
        self._wanted = keep_usage
        self._usage_due = keep_usage  # still to be delivered
        self._excluded = reasoning_excluded
        self._last = b""  # data of the last chunk delivered

    def feed(self, chunk: bytes) -> bytes:
        """As the base; one whole event, which is what most reads bring, needs no cutting."""
        if chunk.find(b"\n\n") == len(chunk) - 2 and self._splitter.empty and b"\r" not in chunk and len(chunk) > 2:
            return b"" if self._over() else self._event(chunk)
        return super().feed(chunk)

    def _event(self, event: bytes) -> bytes:
        """What to deliver of one event: `event` itself when it passes, b"" when nothing."""
        if not event.isascii():
            event = utf8(event)
        named = False
        if event[:6] == b"data: " and event.find(b"\n") == len(event) - 2:
            data = event[6:-2]
        else:
            event = sse.without_comments(event.removeprefix(b"\xef\xbb\xbf"))
            found = sse.data_of(event)
            if not found:
                return b""
            data = found
            named = sse.name_of(event) == b"error"
        try:
            reply = _decode_reply(data)
        except _REPLY_ERRORS:
            return self._odd_event(event, data, named=named)
        wire, choices = reply.usage, reply.choices
        if wire is None and reply.x_groq is not None:
            wire = reply.x_groq.usage
        if wire is not None:
            self.usage = usage_of(wire, reasoning_excluded=self._excluded) or self.usage
        if named or reply.error is not None or reply.object == "error":
            self.error = problems.from_in_band(data)
            return b""
        if choices:
            for choice in choices:
                size = _generated(choice)
                if size:
                    self.events += 1
                    self.delivered_bytes += size
        elif reply.usage is not None and not self._wanted:
            return b""
        if reply.usage is not None:
            self._usage_due = False
        self._last = data
        return event

    def _odd_event(self, event: bytes, data: bytes, *, named: bool) -> bytes:
        """An event that is no chunk as expected: the terminal, an error in words, fields of other types, nonsense."""
        stripped = data.strip()
        if stripped == b"[DONE]":
            self.done = True
            return self._late_usage()
        if not stripped:
            return b""
        try:
            told = _decode_any(data)
        except _REPLY_ERRORS:
            told = None
        if named or not isinstance(told, dict) or told.get("error") is not None:
            self.error = problems.from_in_band(data) if named or told is not None else problems.problem("protocol")
            return b""
        usage, choices = told.get("usage"), told.get("choices")
        if isinstance(usage, dict):
            self.usage = parse_usage(usage, reasoning_excluded=self._excluded) or self.usage
            if not choices and not self._wanted:
                return b""
            self._usage_due = False
        for size in _loosely_generated(choices):
            self.events += 1
            self.delivered_bytes += size
        self._last = data
        return event

    def _late_usage(self) -> bytes:
        """The usage chunk the client asked for, where the upstream told usage only in a place of its own."""
        if not self._usage_due or self.usage is None:
            return b""
        try:
            names = _decode_names(self._last)
        except _REPLY_ERRORS:
            return b""
        usage = self.usage
        chunk: dict[str, Any] = {
            "id": names.id,
            "object": names.object,
            "created": names.created,
            "model": names.model,
            "choices": [],
            "usage": {
                "prompt_tokens": usage.input,
                "completion_tokens": usage.output,
                "total_tokens": usage.input + usage.output,
                "prompt_tokens_details": {"cached_tokens": usage.cached},
                "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
            },
        }
        return b"data: %b\n\n" % _encode(chunk)


def utf8(body: bytes) -> bytes:
    """`body` itself when it is UTF-8, else with U+FFFD in place of what is not."""
    if body.isascii():
        return body
    try:
        body.decode()
    except UnicodeDecodeError:
        return body.decode("utf-8", "replace").encode()
    return body


def _with_model(body: bytes, old: bytes, new: bytes) -> bytes | None:
    """`body` with its top-level model replaced; None when it is not found near either end.

    `body` is valid JSON without duplicate keys. Before its first and behind its last bracket inside the outer pair,
    keys are top-level ones; a literal `"model":"…"` there cannot be part of a string, whose quotes would be escaped.
    """
    if body.startswith(_FIRST + old):  # what the common clients send
        return b"%b%b%b" % (_FIRST, new, body[len(_FIRST) + len(old) :])
    if b"\\" in old:
        return None
    for found in (b'"model":' + old, b'"model": ' + old):
        at = body.find(found, 0, _NEAR_BYTES)
        if at >= 0 and body.find(b"{", 1, at) < 0 and body.find(b"[", 1, at) < 0:
            return b'%b"model":%b%b' % (body[:at], new, body[at + len(found) :])
        at = body.rfind(found, max(0, len(body) - _NEAR_BYTES))
        if at >= 0:
            end = at + len(found)
            if body.find(b"]", end) < 0 and body.find(b"}", end) == len(body) - 1:
                return b'%b"model":%b%b' % (body[:at], new, body[end:])
    return None


def _rebuilt(call: Call, target: Target, limit: int | None) -> bytes:
    """The body from its top-level values, each with its bytes as they were unless it has to change."""
    values = _decode_fields(call.body)
    values.pop("pool", None)
    if target.upstream_model:
        values["model"] = msgspec.Raw(_encode(target.upstream_model))
    if limit is not None and call.endpoint != "embeddings":
        field = _limit_field(call, target)
        for other in _LIMIT_FIELDS:
            if other != field:
                values.pop(other, None)
        values[field] = msgspec.Raw(b"%d" % limit)
    if not target.kind.stream_usage:
        values.pop("stream_options", None)
    elif call.stream and not call.wants_usage:
        given = values.get("stream_options")
        options = None if given is None else _decode_any(given)
        asked = {**options, "include_usage": True} if isinstance(options, dict) else {"include_usage": True}
        values["stream_options"] = msgspec.Raw(_encode(asked))
    return _encode(values)


def _limit_field(call: Call, target: Target) -> str:
    return target.kind.limit_field if call.endpoint == "chat" else "max_tokens"


def _read_odd(body: bytes, *, excluded: bool) -> Answer:
    """A reply that does not fit the structs: not JSON, not an answer, or one with fields of other types."""
    try:
        told = _decode_any(body.decode("utf-8", "replace"))
    except _REPLY_ERRORS:
        told = None
    if not isinstance(told, dict) or not isinstance(told.get("choices"), list):
        return Answer(b"", problem=problems.from_success(body))
    usage = told.get("usage")
    found = parse_usage(usage, reasoning_excluded=excluded) if isinstance(usage, dict) else None
    return Answer(utf8(body), found, sum(_loosely_generated(told["choices"])))


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _generated(choice: _Choice) -> int:
    """UTF-8 bytes of what a model generated in this choice."""
    text = choice.delta or choice.message
    if text is None:
        return _size(choice.text) if choice.text else 0
    size = 0
    if text.content:
        size = _size(text.content)
    if text.reasoning_content:
        size += _size(text.reasoning_content)
    elif text.reasoning:  # some servers send the same words under both names
        size += _size(text.reasoning)
    if text.refusal:
        size += _size(text.refusal)
    if text.tool_calls:
        for call in text.tool_calls:
            size += _of_function(call.function)
    if text.function_call is not None:
        size += _of_function(text.function_call)
    return size


def _of_function(function: _Function | None) -> int:
    if function is None:
        return 0
    return _size(function.name or "") + _size(function.arguments or "")


def _loosely_generated(choices: Any) -> list[int]:
    """Bytes of generated text per choice that has some, where content is of unexpected types."""
    sizes = []
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        part = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
        size = sum(map(_strings, part.values())) if isinstance(part, dict) else 0
        size -= _strings(part.get("role")) if isinstance(part, dict) else 0
        if size > 0:
            sizes.append(size)
    return sizes


def _strings(value: Any) -> int:
    """UTF-8 bytes of all strings in a decoded value, keys left out."""
    if isinstance(value, str):
        return _size(value)
    if isinstance(value, dict):
        return sum(_strings(item) for key, item in value.items() if key not in ("type", "id"))
    return sum(map(_strings, value)) if isinstance(value, list) else 0
