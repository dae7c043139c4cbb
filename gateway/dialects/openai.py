"""The OpenAI API as clients speak it: request bodies into `Call`s, and answers, which are canonical as they are.

Checked is what the gateway itself acts on or prices, and the ranges the API documents for the common sampling
fields; every other field passes through untouched for the provider to judge. `null` means absent, as in the API.
"""

from __future__ import annotations

import uuid
from typing import Any, NoReturn

from gateway import strict
from gateway.errors import BadRequestError, GatewayError, in_band, to_openai
from gateway.exchange import Exchange
from providers import globs
from providers.canonical import OPENAI, Call

MESSAGES_MAX = 4096
OUTPUTS_MAX = 128  # n and best_of
LIMIT_MAX = 2**31 - 1
DIMENSIONS_MAX = 65_536

_RANGES = {"temperature": (0, 2), "top_p": (0, 1)}
_NUMBERS = frozenset(_RANGES)
# Fields some servers read beside or instead of the ones that are priced here.
_REFUSED = {
    "n_predict": "Use 'max_tokens' instead of 'n_predict'.",
    "n_cmpl": "Use 'n' instead of 'n_cmpl'.",
    "models": "Name one 'model'; fallback models are set up in the gateway's routes.",
}
_REFUSED_FIELDS = frozenset(_REFUSED)
# Fields with which a request may cost more than its tokens do, and the tiers that do not.
_SURCHARGED = frozenset({"service_tier", "web_search_options"})
_PLAIN_TIERS = ("auto", "default", "flex", "standard_only")


class OpenAI:
    """Errors, answers and streams in the canonical form itself. Also the writer of its streams: they pass."""

    name = OPENAI
    stream_type = b"text/event-stream; charset=utf-8"
    ping = b": ping\n\n"
    id_header = b""

    def error(self, error: GatewayError, request_id: str) -> bytes:
        """Always message, type, param and code."""
        return to_openai(error)

    def in_band(self, error: GatewayError) -> bytes:
        """An event with an error object."""
        return in_band(error)

    def answer(self, call: Call, body: bytes) -> bytes:
        """The same bytes; embeddings get the id without which Mistral's SDK does not take them."""
        return _with_id(body) if call.endpoint == "embeddings" and b'"id"' not in body else body

    def writer(self, call: Call, request_id: str) -> OpenAI:
        """It keeps nothing of a stream, so one serves all."""
        return self

    def feed(self, data: bytes) -> bytes:
        """The same bytes."""
        return data

    def finish(self) -> bytes:
        """The terminal event."""
        return b"data: [DONE]\n\n"

    def fail(self, error: GatewayError) -> bytes:
        """An event with an error object, and no terminal event."""
        return in_band(error)


def _with_id(body: bytes) -> bytes:
    start = body.find(b"{") + 1
    return b'{"id":"embd-%b",%b' % (uuid.uuid4().hex.encode(), body[start:])


DIALECT = OpenAI()


def parse_chat(body: bytes, exchange: Exchange | None = None) -> Call:
    """Validate a chat-completions body. Raises `BadRequestError` with `param` set to the field at fault."""
    return chat_call(*strict.load(body))


def chat_call(doc: strict.Document, body: bytes) -> Call:
    """The call of a decoded chat-completions body and its bytes. Other dialects end here, with what they translated."""
    call = _common("chat", doc, body)
    messages = doc.get("messages")
    if type(messages) is not list or not messages:
        _refuse("messages", "must be a non-empty array")
    if len(messages) > MESSAGES_MAX:
        _refuse("messages", f"may have at most {MESSAGES_MAX} items")
    call.messages = len(messages)
    for index, message in enumerate(messages):
        if type(message) is not dict:
            _refuse(f"messages[{index}]", "must be an object")
        role = message.get("role")
        if type(role) is not str or not role:
            _refuse(f"messages[{index}].role", "must be a string such as 'user'")
        content = message.get("content")
        if type(content) is list:
            for place, part in enumerate(content):
                _part(call, part, index, place)
        elif content is None:
            if message.get("audio") is not None:  # an earlier spoken answer, by its id
                call.audios += 1
        elif type(content) is not str:
            _refuse(f"messages[{index}].content", "must be a string, an array of parts or null")
    _limit(call, doc)
    call.n = max(_count(doc, "n", OUTPUTS_MAX, 1), _count(doc, "best_of", OUTPUTS_MAX, 1))
    tools = doc.get("tools")
    if tools is not None and type(tools) is not list:
        _refuse("tools", "must be an array")
    response_format = doc.get("response_format")
    if response_format is not None and type(response_format) is not dict:
        _refuse("response_format", "must be an object")
    return call


def parse_completions(body: bytes, exchange: Exchange | None = None) -> Call:
    """Validate a legacy completions body. Raises `BadRequestError` with `param` set to the field at fault."""
    doc, body = strict.load(body)
    call = _common("completions", doc, body)
    _texts(call, doc, "prompt")
    suffix = doc.get("suffix")
    if suffix is not None:
        if type(suffix) is not str:
            _refuse("suffix", "must be a string")
        if call.prompt_tokens:
            call.prompt_tokens += len(suffix.encode())
    echo = doc.get("echo")
    if echo is not None and type(echo) is not bool:
        _refuse("echo", "must be true or false")
    _limit(call, doc)
    outputs, best_of = _count(doc, "n", OUTPUTS_MAX, 1), _count(doc, "best_of", OUTPUTS_MAX, 0)
    if best_of and best_of < outputs:
        _refuse("best_of", "must not be smaller than 'n'")
    call.n = max(outputs, best_of) * call.messages
    return call


def parse_embeddings(body: bytes, exchange: Exchange | None = None) -> Call:
    """Validate an embeddings body. Raises `BadRequestError` with `param` set to the field at fault."""
    return embeddings_call(*strict.load(body))


def embeddings_call(doc: strict.Document, body: bytes) -> Call:
    """The call of a decoded embeddings body and its bytes."""
    call = _common("embeddings", doc, body)
    if call.stream:
        _refuse("stream", "is not possible for embeddings; leave it out")
    _texts(call, doc, "input")
    encoding = doc.get("encoding_format")
    if encoding is not None:
        if encoding not in ("float", "base64"):
            _refuse("encoding_format", "must be 'float' or 'base64'")
        call.encoding = encoding
    call.dimensions = _count(doc, "dimensions", DIMENSIONS_MAX, 0) or None
    call.n = 0
    return call


def _common(endpoint: str, doc: strict.Document, body: bytes) -> Call:
    model = doc.get("model")
    if type(model) is not str or not model:
        _refuse("model", "must be a non-empty string")
    if not globs.is_valid(model):
        _refuse("model", f"must have at most {globs.CHARACTERS} characters and no control characters")
    fields = frozenset(doc)
    if not _REFUSED_FIELDS.isdisjoint(fields):
        name = min(_REFUSED_FIELDS & fields)
        raise BadRequestError(_REFUSED[name], param=name)
    if not _NUMBERS.isdisjoint(fields):
        _check_ranges(doc)
    call = Call(endpoint, model, body, fields)
    if not _SURCHARGED.isdisjoint(fields):
        call.surcharge = _surcharge(doc)
    stream = doc.get("stream")
    if stream is not None:
        if type(stream) is not bool:
            _refuse("stream", "must be true or false")
        call.stream = stream
    options = doc.get("stream_options")
    if options is not None:
        call.wants_usage = _asks_usage(options) and call.stream
    pool = doc.get("pool")
    if pool is not None:
        if type(pool) is not str or not globs.is_valid(pool):
            _refuse("pool", "must be the name of a pool")
        call.pool = pool
    stop = doc.get("stop")
    if (
        stop is not None
        and type(stop) is not str
        and (type(stop) is not list or not all(type(item) is str for item in stop))
    ):
        _refuse("stop", "must be a string or an array of strings")
    return call


def _check_ranges(doc: strict.Document) -> None:
    for name, (low, high) in _RANGES.items():
        value = doc.get(name)
        if value is not None and ((type(value) is not float and type(value) is not int) or not low <= value <= high):
            _refuse(name, f"must be a number from {low} to {high}")


def _surcharge(doc: strict.Document) -> str:
    """The field that asks for more; a search comes first, since it brings more tokens, not only dearer ones."""
    if doc.get("web_search_options") is not None:
        return "web_search_options"
    tier = doc.get("service_tier")
    return "service_tier" if tier is not None and tier not in _PLAIN_TIERS else ""


def _asks_usage(options: Any) -> bool:
    if type(options) is not dict:
        _refuse("stream_options", "must be an object")
    asked = options.get("include_usage")
    if asked is not None and type(asked) is not bool:
        _refuse("stream_options.include_usage", "must be true or false")
    return asked is True


def _limit(call: Call, doc: strict.Document) -> None:
    old, new = _count(doc, "max_tokens", LIMIT_MAX, 0), _count(doc, "max_completion_tokens", LIMIT_MAX, 0)
    if old and new and old != new:
        _refuse("max_tokens", "and 'max_completion_tokens' differ; send one of them")
    if new:
        call.limit, call.limit_field = new, "max_completion_tokens"
    elif old:
        call.limit, call.limit_field = old, "max_tokens"


def _count(doc: strict.Document, name: str, maximum: int, absent: int) -> int:
    value = doc.get(name)
    if value is None:
        return absent
    if type(value) is not int or not 1 <= value <= maximum:
        _refuse(name, f"must be an integer from 1 to {maximum}")
    return value


def _texts(call: Call, doc: strict.Document, name: str) -> None:
    """Count prompts or inputs: a string, an array of strings, an array of token numbers, or an array of those."""
    value = doc.get(name)
    if type(value) is str and value:
        call.messages = 1
        return
    if type(value) is not list or not value:
        _refuse(name, "must be a non-empty string or array")
    kinds = set(map(type, value))
    if kinds == {str}:
        call.messages = len(value)
        if name == "input" and "" in value:
            _refuse(name, "must not hold empty strings")
    elif kinds == {int}:
        call.messages = 1
        call.prompt_tokens = _tokens(value, name)
    elif kinds == {list}:
        call.messages = len(value)
        call.prompt_tokens = sum(_tokens(item, name) for item in value)
    else:
        _refuse(name, "must be a string, an array of strings, or token numbers")


def _tokens(value: list[Any], name: str) -> int:
    if set(map(type, value)) != {int} or min(value) < 0 or max(value) > LIMIT_MAX:
        _refuse(name, "must hold non-empty arrays of token numbers")
    return len(value)


def _part(call: Call, part: Any, index: int, place: int) -> None:
    """Count one content part and the bytes of its payload."""
    where = f"messages[{index}].content[{place}]"
    if type(part) is not dict or type(kind := part.get("type")) is not str:
        _refuse(where, "must be an object with a 'type'")
    if kind == "text":
        if type(part.get("text")) is not str:
            _refuse(f"{where}.text", "must be a string")
        return
    if kind == "image_url":
        call.images += 1
        call.media_bytes += _payload(part, kind, "url", where, data_url=True)
    elif kind == "input_audio":
        call.audios += 1
        call.media_bytes += _payload(part, kind, "data", where, data_url=False)
    elif kind == "audio_url":
        call.audios += 1
        call.media_bytes += _payload(part, kind, "url", where, data_url=True)
    elif kind == "file":
        call.files += 1
        call.media_bytes += _payload(part, kind, "file_data", where, data_url=False)
    elif kind not in ("refusal", "thinking", "reasoning"):
        call.others += 1


def _payload(part: dict[str, Any], kind: str, key: str, where: str, *, data_url: bool) -> int:
    holder = part.get(kind)
    value = holder.get(key) if type(holder) is dict else holder
    if kind == "file" and type(holder) is dict and value is None:
        return 0  # named by file_id
    if type(value) is not str:
        _refuse(f"{where}.{kind}", f"must be an object with the string '{key}'")
    # Characters, not bytes of the body: an escaped slash would make the body longer, never shorter.
    return len(value) if not data_url or value.startswith("data:") else 0


def _refuse(param: str, what: str) -> NoReturn:
    raise BadRequestError(f"'{param}' {what}.", param=param)
