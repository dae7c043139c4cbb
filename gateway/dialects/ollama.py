"""Ollama's own API as clients speak it: /api/chat, /api/generate, /api/embed and the old /api/embeddings.

Each parser makes a `Call` in the canonical form and keeps what the client sent for a provider that speaks this API
itself. Streams are the default here. Options that tune the server or its sampler and have no canonical name are left
out where another provider answers; what would make it another answer (`suffix`, `raw`, `template`, `context`, image
sizes) can only go to a provider that speaks this API. Source of the formats: Ollama's API documentation and the types
of its public Go client, whose parser takes field names in any mixture of cases: one that differs only in case from a
known one is refused, because two readers of the body would not agree.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn

import msgspec

from gateway import strict
from gateway.dialects import ollama_answers, openai, reading
from gateway.dialects.names import renamed
from gateway.dialects.ollama_answers import OllamaCall, Writer
from gateway.dialects.ollama_models import parse_show, ps, show, tags, version
from gateway.errors import BadRequestError, GatewayError
from gateway.exchange import Exchange
from providers.canonical import Call

__all__ = [
    "CHAT",
    "EMBED",
    "EMBEDDINGS",
    "GENERATE",
    "OLLAMA",
    "parse_chat",
    "parse_embed",
    "parse_embeddings",
    "parse_generate",
    "parse_show",
    "ps",
    "show",
    "tags",
    "version",
]

NAME = "ollama"

# Option -> canonical field.
_OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "num_predict": "max_tokens",
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": "top_k",
        "min_p": "min_p",
        "seed": "seed",
        "stop": "stop",
        "presence_penalty": "presence_penalty",
        "frequency_penalty": "frequency_penalty",
        "repeat_penalty": "repetition_penalty",
    }
)
# What became of which field (`gateway.dialects.names`).
_NAMES: Mapping[str, str] = MappingProxyType(
    {canonical: f"options.{option}" for option, canonical in _OPTIONS.items()}
    | {
        "messages": "messages[]",
        "reasoning_content": "messages.thinking",
        "reasoning_effort": "think",
        "response_format": "format",
    }
)
_GENERATE_NAMES: Mapping[str, str] = MappingProxyType({**_NAMES, "messages": "prompt"})
_COMMON = frozenset(("model", "stream", "options", "format", "think", "logprobs", "top_logprobs", "pool"))
_HARMLESS = frozenset(("keep_alive", "truncate", "shift"))
_CHAT = _COMMON | {"messages", "tools"}
_NATIVE = ("suffix", "raw", "template", "context", "width", "height", "steps")
_GENERATE = _COMMON | {"prompt", "system", "images"} | frozenset(_NATIVE)
_EMBED = frozenset(("model", "input", "dimensions", "truncate", "pool"))
_EMBEDDINGS = frozenset(("model", "prompt", "pool"))
_MESSAGE = frozenset(("role", "content", "images", "tool_calls", "tool_name", "tool_call_id", "thinking"))
_EFFORTS: Mapping[Any, str] = MappingProxyType({"low": "low", "medium": "medium", "high": "high", "max": "xhigh"})
# How base64 of an image begins, by what it is.
_IMAGES = (("iVBORw0KGg", "png"), ("/9j/", "jpeg"), ("R0lGOD", "gif"), ("UklGR", "webp"))

_encode = msgspec.json.Encoder().encode


# --- inference ----------------------------------------------------------------------------------------------------


def parse_chat(body: bytes, exchange: Exchange | None = None) -> Call:
    """Validate a body of /api/chat. Raises `BadRequestError` with `param` set to the field at fault."""
    doc, body = _load(body, _CHAT, other=("prompt", "/api/generate"))
    canonical, dropped = _common(doc, _CHAT)
    canonical["messages"] = _messages(doc.get("messages"))
    tools = doc.get("tools")
    if tools is not None and type(tools) is not list:
        _refuse("tools", "must be an array")
    if tools:
        canonical["tools"] = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    return _made(openai.chat_call, canonical, body, dropped)


def parse_generate(body: bytes, exchange: Exchange | None = None) -> Call:
    """Validate a body of /api/generate. Raises `BadRequestError` with `param` set to the field at fault."""
    doc, body = _load(body, _GENERATE, other=("messages", "/api/chat"))
    canonical, dropped = _common(doc, _GENERATE)
    prompt = _text(doc, "prompt")
    if not prompt:
        _refuse("prompt", "must be a non-empty string; models are not loaded or unloaded through the gateway")
    system = _text(doc, "system")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": _content(prompt, doc.get("images"), "images")})
    canonical["messages"] = messages
    native_only = next((name for name in _NATIVE if doc.get(name)), "")
    return _made(openai.chat_call, canonical, body, dropped, native_only, _GENERATE_NAMES)


def parse_embed(body: bytes, exchange: Exchange | None = None) -> Call:
    """Validate a body of /api/embed. Raises `BadRequestError` with `param` set to the field at fault."""
    doc, body = _load(body, _EMBED, other=("prompt", "/api/embeddings"))
    given = doc.get("input")
    if type(given) is list and any(type(text) is not str for text in given):
        _refuse("input", "must be a non-empty string or an array of strings")
    dropped = _left(doc, _EMBED)
    if doc.get("truncate") is True:
        dropped.append("truncate")
    dimensions = {"dimensions": doc["dimensions"]} if doc.get("dimensions") else {}
    return _vectors(doc, given, body, dropped, "input", **dimensions)


def parse_embeddings(body: bytes, exchange: Exchange | None = None) -> Call:
    """Validate a body of the old /api/embeddings. Raises `BadRequestError` with `param` set to the field at fault."""
    doc, body = _load(body, _EMBEDDINGS, other=("input", "/api/embed"))
    prompt = _text(doc, "prompt")
    if not prompt:
        _refuse("prompt", "must be a non-empty string")
    return _vectors(doc, prompt, body, _left(doc, _EMBEDDINGS), "prompt")


def _vectors(doc: strict.Document, given: Any, body: bytes, dropped: list[str], field: str, **more: Any) -> Call:
    canonical = {"model": doc.get("model"), "input": given, "encoding_format": "float", **more}
    if doc.get("pool") is not None:
        canonical["pool"] = doc["pool"]
    return _made(openai.embeddings_call, canonical, body, dropped, names={"input": field})


def _load(body: bytes, known: frozenset[str], *, other: tuple[str, str]) -> tuple[strict.Document, bytes]:
    """The decoded body. `other` is the field that tells a body of another endpoint, and that endpoint."""
    doc, body = strict.load(body)
    field, path = other
    if field in doc:
        _refuse(field, f"belongs to {path}")
    _refuse_lookalikes(doc, known | _HARMLESS, "")
    return doc, body


def _refuse_lookalikes(doc: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    for name in doc:
        if name not in known and name.casefold() in known:
            _refuse(where + name[:64], f"is not known; write '{name.casefold()}'")


def _left(doc: strict.Document, known: frozenset[str]) -> list[str]:
    """Fields that are left out of the canonical form; one that says nothing is not counted."""
    return [name for name, value in doc.items() if name not in known and value is not None and value != {}]


def _made(
    parse: Callable[[strict.Document, bytes], Call],
    canonical: dict[str, Any],
    body: bytes,
    dropped: list[str],
    native_only: str = "",
    names: Mapping[str, str] = _NAMES,
) -> Call:
    """The call; what the canonical form refuses is told in this API's names."""
    try:
        call = parse(canonical, _encode(canonical))
    except BadRequestError as error:
        if not error.param:
            raise
        message, param = renamed(names, error.message, error.param)
        raise BadRequestError(message, param=param) from None
    values = {name: getattr(call, name) for name in call.__struct_fields__}
    values |= {
        "dialect": NAME,
        "native": body,
        "native_only": native_only,
        "dropped": tuple(dropped),
        "names": names,
        "wants_usage": True,
    }
    return OllamaCall(**values, started_ns=time.monotonic_ns())


def _common(doc: strict.Document, known: frozenset[str]) -> tuple[dict[str, Any], list[str]]:
    """The canonical fields that chat and generate share, and what has none."""
    dropped = _left(doc, known)
    canonical: dict[str, Any] = {"model": doc.get("model"), "messages": []}
    stream = doc.get("stream")
    if stream is not None and type(stream) is not bool:
        _refuse("stream", "must be true or false")
    if stream is not False:
        canonical |= {"stream": True, "stream_options": {"include_usage": True}}
    _options(doc.get("options"), canonical, dropped)
    wanted = doc.get("format")
    if wanted == "json":
        canonical["response_format"] = {"type": "json_object"}
    elif type(wanted) is dict and wanted:
        canonical["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}
    elif wanted:
        _refuse("format", "must be 'json' or a JSON schema")
    think = doc.get("think")
    if think is True:
        canonical["reasoning_effort"] = "medium"
    elif think is not None and think is not False and think != "":  # few models of others take that they may not reason
        if type(think) is not str or think not in _EFFORTS:
            _refuse("think", "must be true, false, 'low', 'medium', 'high' or 'max'")
        canonical["reasoning_effort"] = _EFFORTS[think]
    if doc.get("logprobs") is not None:
        if type(doc["logprobs"]) is not bool:
            _refuse("logprobs", "must be true or false")
        if doc["logprobs"]:
            canonical["logprobs"] = True
            if doc.get("top_logprobs") is not None:
                canonical["top_logprobs"] = doc["top_logprobs"]
    if doc.get("pool") is not None:
        canonical["pool"] = doc["pool"]
    return canonical, dropped


def _options(options: Any, canonical: dict[str, Any], dropped: list[str]) -> None:
    if options is None:
        return
    if type(options) is not dict:
        _refuse("options", "must be an object")
    for option, value in options.items():
        if value is None:
            continue
        name = _OPTIONS.get(option)
        if name is None:
            dropped.append(f"options.{option}")
        elif name != "max_tokens":
            canonical[name] = value
        else:
            whole = int(value) if type(value) is float and value.is_integer() else value
            if type(whole) is not int:
                _refuse("options.num_predict", "must be an integer")
            if whole > 0:  # others mean "no limit"
                canonical[name] = whole


# --- messages -----------------------------------------------------------------------------------------------------


def _messages(messages: Any) -> list[dict[str, Any]]:
    if type(messages) is not list or not messages:
        _refuse("messages", "must be a non-empty array; models are not loaded or unloaded through the gateway")
    reading.check_size(messages, "messages")
    made: list[dict[str, Any]] = []
    unanswered = _Unanswered()
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if type(message) is not dict:
            _refuse(where, "must be an object")
        _refuse_lookalikes(message, _MESSAGE, f"{where}.")
        role = message.get("role")
        if type(role) is not str or not role:
            _refuse(f"{where}.role", "must be a string such as 'user'")
        text = _text(message, "content", f"{where}.")
        told: dict[str, Any] = {"role": role.lower()}
        told["content"] = _content(text, message.get("images"), f"{where}.images")
        if told["role"] == "assistant":
            if thinking := _text(message, "thinking", f"{where}."):
                told["reasoning_content"] = thinking
            if calls := _tool_calls(message.get("tool_calls"), index):
                told |= {"content": told["content"] or None, "tool_calls": calls}
                for call in calls:
                    unanswered.add(call["id"], call["function"]["name"])
        elif told["role"] == "tool":
            told |= _answered(message, unanswered, index)
        made.append(told)
    return made


def _content(text: str, images: Any, where: str) -> Any:
    """Text, or parts where there are images."""
    if images is None or images == []:
        return text
    if type(images) is not list or any(type(image) is not str or not image for image in images):
        _refuse(where, "must be an array of images in base64")
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    for place, image in enumerate(images):
        if image.startswith(("data:", "http:", "https:", "file:")):
            _refuse(f"{where}[{place}]", "must be base64 and nothing else")
        kind = next((kind for start, kind in _IMAGES if image.startswith(start)), "jpeg")
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{image}"}})
    return parts


def _tool_calls(calls: Any, index: int) -> list[dict[str, Any]]:
    """Tool calls of an earlier answer; the ids that are optional here are made from the call's place."""
    if calls is None:
        return []
    if type(calls) is not list:
        _refuse(f"messages[{index}].tool_calls", "must be an array")
    made = []
    for place, call in enumerate(calls):
        where = f"messages[{index}].tool_calls[{place}]"
        function = call.get("function") if type(call) is dict else None
        if type(function) is not dict or type(function.get("name")) is not str:
            _refuse(f"{where}.function", "must be an object with the string 'name'")
        arguments = function.get("arguments")
        if arguments is not None and type(arguments) is not dict:
            _refuse(f"{where}.function.arguments", "must be an object")
        id = call.get("id")
        if type(id) is not str or not id:
            id = f"call_{index}_{place}"
        written = _encode(arguments or {}).decode()
        made.append({"id": id, "type": "function", "function": {"name": function["name"], "arguments": written}})
    return made


class _Unanswered:
    """Tool calls without a result yet, in their order; each is found and taken in constant time."""

    def __init__(self) -> None:
        self._all: deque[list[str]] = deque()
        self._by_id: dict[str, deque[list[str]]] = {}
        self._by_name: dict[str, deque[list[str]]] = {}

    def add(self, id: str, name: str) -> None:
        """A call. The same list stands in all three queues, and is empty once it was taken."""
        call = [id]
        self._all.append(call)
        self._by_id.setdefault(id, deque()).append(call)
        self._by_name.setdefault(name, deque()).append(call)

    def take(self, id: str, name: str) -> str:
        """The id of the call that a result answers; "" when there is none."""
        if id:
            return self._first(self._by_id.get(id))
        return self._first(self._by_name.get(name)) or self._first(self._all)

    def _first(self, calls: deque[list[str]] | None) -> str:
        while calls:
            call = calls.popleft()
            if call:
                return call.pop()
        return ""


def _answered(message: dict[str, Any], unanswered: _Unanswered, index: int) -> dict[str, Any]:
    """Which call a tool's result answers: the one it names, else the first open one of that tool, else the first."""
    where = f"messages[{index}]."
    id, name = _text(message, "tool_call_id", where), _text(message, "tool_name", where)
    if found := unanswered.take(id, name):
        return {"tool_call_id": found}
    return {"tool_call_id": id or f"call_{index}", **({"name": name} if name else {})}


def _tool(tool: Any, where: str) -> dict[str, Any]:
    if type(tool) is not dict or type(tool.get("function")) is not dict:
        _refuse(where, "must be an object with a 'function'")
    return {**tool, "type": tool.get("type") or "function"}


def _text(doc: Mapping[str, Any], name: str, where: str = "") -> str:
    value = doc.get(name)
    if value is not None and type(value) is not str:
        _refuse(where + name, "must be a string")
    return value or ""


def _refuse(param: str, what: str) -> NoReturn:
    raise BadRequestError(f"'{param}' {what}.", param=param)


# --- answers ------------------------------------------------------------------------------------------------------


class _Ollama:
    """What all endpoints share: NDJSON streams, errors of one field, nothing that keeps a quiet stream alive (clients
    parse every line)."""

    name = NAME
    stream_type = b"application/x-ndjson"
    ping = b""
    id_header = b""
    generate = False

    def error(self, error: GatewayError, request_id: str) -> bytes:
        """The body of an error answer."""
        return ollama_answers.error_body(error)

    def in_band(self, error: GatewayError) -> bytes:
        """The line that tells an error inside a stream."""
        return ollama_answers.error_body(error) + b"\n"

    def answer(self, call: Call, body: bytes) -> bytes:
        """The whole answer, from a chat completion."""
        return ollama_answers.answer(call, body, generate=self.generate)

    def writer(self, call: Call, request_id: str) -> Writer:
        """A writer for one streamed answer."""
        return Writer(call, generate=self.generate)


class _Generate(_Ollama):
    generate = True


class _Embed(_Ollama):
    """Whole answers only, from canonical embeddings."""

    single = False

    def answer(self, call: Call, body: bytes) -> bytes:
        """The whole answer, from canonical embeddings."""
        return ollama_answers.vectors(call, body, single=self.single)


class _Embeddings(_Embed):
    single = True


CHAT = OLLAMA = _Ollama()
GENERATE = _Generate()
EMBED = _Embed()
EMBEDDINGS = _Embeddings()
