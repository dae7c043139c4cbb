"""The Gemini API as clients speak it: `models/M:generateContent` and its neighbours, model lists and errors.

The model and the action stand in the path (`route`), the kind of a stream in the query (`dialect_of`): with `alt=sse`
events, else one JSON array. Each parser makes a `Call` in the canonical form and keeps what the client sent for a
provider of the same API; an array is always translated, as such a provider is asked for events. Checked is what is
translated, priced or enforced; fields that are not known are left out. What only such a provider can do is noted as
`native_only`, and as a surcharge where it costs more than the request's own tokens. Format: the public API reference
and the types of the public Python client, 3.4.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from gateway import strict
from gateway.dialects import openai, reading
from gateway.dialects.gemini_contents import PARTS_MAX, Conversation, camel, field, json_schema, many, only_text, refuse
from gateway.dialects.gemini_stream import GeminiCall, Writer, answer, error_body
from gateway.errors import GatewayError, NotFoundError
from gateway.exchange import Exchange
from providers.canonical import Call

NAME = "gemini"

GENERATE, STREAM, COUNT = "generateContent", "streamGenerateContent", "countTokens"
_WHOLE = "generateContentRequest"  # what :countTokens takes in place of `contents`
EMBED, EMBED_BATCH = "embedContent", "batchEmbedContents"
ACTIONS = frozenset({GENERATE, STREAM, COUNT, EMBED, EMBED_BATCH})

_PRICED = frozenset({"model", "tools", "service_tier"})  # of the fields that decide a price, the ones this API has
_TRANSLATED = frozenset(
    {"contents", "systemInstruction", "tools", "toolConfig", "generationConfig", "cachedContent", "serviceTier"}
    | {"continuationToken", "model", "pool"}
)
_EMBEDDED = frozenset({"model", "content", "taskType", "title", "outputDimensionality", "requests", "pool"})
# Tools of the API that the client runs itself. The others run at the provider; what they bring in is not in the body.
_CLIENT_TOOLS = frozenset({"computerUse"})
_NUMBERS: Mapping[str, str] = MappingProxyType(
    {
        "temperature": "temperature",
        "topP": "top_p",
        "topK": "top_k",
        "presencePenalty": "presence_penalty",
        "frequencyPenalty": "frequency_penalty",
    }
)
_COUNTS: Mapping[str, str] = MappingProxyType({"maxOutputTokens": "max_tokens", "candidateCount": "n", "seed": "seed"})
_CONFIGURED = frozenset(
    {*_NUMBERS, *_COUNTS, "stopSequences", "responseLogprobs", "logprobs", "thinkingConfig", "responseModalities"}
    | {"responseMimeType", "responseSchema", "responseJsonSchema", "_responseJsonSchema", "speechConfig", "imageConfig"}
)
# What became of which field (`gateway.dialects.names`).
_NAMES: Mapping[str, str] = MappingProxyType(
    {canonical: f"generationConfig.{theirs}" for theirs, canonical in (*_NUMBERS.items(), *_COUNTS.items())}
    | {
        "messages": "contents",
        "reasoning_content": "contents.parts.thought",
        "reasoning_details": "contents.parts.thoughtSignature",
        "input": "content",
        "dimensions": "outputDimensionality",
        "stop": "generationConfig.stopSequences",
        "logprobs": "generationConfig.responseLogprobs",
        "top_logprobs": "generationConfig.logprobs",
        "reasoning_effort": "generationConfig.thinkingConfig.thinkingLevel",
        "response_format": "generationConfig.responseMimeType",
        "service_tier": "serviceTier",
        "tools": "tools",  # theirs hold several functions each
        "tool_choice": "toolConfig.functionCallingConfig",
    }
)
_LEVELS = frozenset({"minimal", "low", "medium", "high", "xhigh"})
_TIERS = frozenset({"", "unspecified", "standard"})

_encode = msgspec.json.Encoder().encode


# --- paths ----------------------------------------------------------------------------------------------------------


def route(path: str) -> tuple[str, str] | None:
    """Model and action of a path such as `/v1beta/models/M:generateContent`; None for a path of another kind.

    The path is a decoded one, as servers hand it on. Any prefix before `/models/` (or `/tunedModels/`) is taken, and
    none. M may hold slashes and may repeat the prefix `models/`.
    """
    kind = "/tunedModels/" if "/models/" not in path and "/tunedModels/" in path else "/models/"
    _, found, rest = path.partition(kind)
    name, colon, action = rest.rpartition(":")
    if not found or not colon or not name or action not in ACTIONS:
        return None
    name = name.removeprefix("models/")
    return (f"tunedModels/{name}" if kind == "/tunedModels/" else name), action


def is_sse(query: bytes) -> bool:
    """Whether a stream is asked for as events."""
    given = urllib.parse.parse_qs(query.decode("latin-1"))
    return any(value.partition(";")[0] == "sse" for name in ("alt", "$alt") for value in given.get(name, ()))


def _routed(exchange: Exchange | None, doc: strict.Document, *actions: str) -> tuple[str, str]:
    """Model and action of the request. A model in the body must be that of the path, where providers look."""
    given = doc.get("model")
    if given is not None and type(given) is not str:
        refuse("model", "must be a string")
    named = (given or "").removeprefix("models/")
    if exchange is None:
        return named, actions[0]
    found = route(exchange.path)
    if found is None or found[1] not in actions:
        raise NotFoundError("There is nothing at this path. Write '/v1beta/models/MODEL:generateContent'.")
    if named and named != found[0]:
        refuse("model", "differs from the model in the path; leave it out")
    return found


# --- chat -----------------------------------------------------------------------------------------------------------


def parse_generate(body: bytes, exchange: Exchange | None = None) -> Call:
    """Validate a body of :generateContent or :streamGenerateContent. Raises `BadRequestError` with `param` set to the
    field at fault, `NotFoundError` for another path."""
    doc, body = strict.load(body)
    model, action = _routed(exchange, doc, GENERATE, STREAM)
    stream = action == STREAM
    return _chat(doc, body, model, stream=stream, array=stream and exchange is not None and not is_sse(exchange.query))


def parse_count(body: bytes, exchange: Exchange | None = None) -> Call:
    """Validate a body of :countTokens: `contents`, or a whole request under `generateContentRequest`."""
    doc, body = strict.load(body)
    model, _ = _routed(exchange, doc, COUNT)
    whole = field(doc, _WHOLE)
    if whole is None:
        return _chat(*_without(doc, body, _WHOLE, "generate_content_request"), model)
    if type(whole) is not dict:
        refuse(_WHOLE, "must be an object")
    if field(doc, "contents") is not None:
        refuse("contents", f"and '{_WHOLE}' exclude each other")
    if field(whole, _WHOLE, f"{_WHOLE}.") is not None:
        refuse(f"{_WHOLE}.{_WHOLE}", "cannot stand inside of another")
    whole, _ = _without(whole, b"", _WHOLE, "generate_content_request")
    _routed(exchange, whole, COUNT)
    pool = {"pool": doc["pool"]} if doc.get("pool") is not None else {}
    return _chat({**whole, **pool}, _encode(whole), model)


def _without(doc: strict.Document, body: bytes, *names: str) -> tuple[strict.Document, bytes]:
    """A body less some of its fields, so that no one behind reads what was passed over here."""
    if not any(name in doc for name in names):
        return doc, body
    doc = {name: value for name, value in doc.items() if name not in names}
    return doc, _encode(doc)


def count_answer(tokens: int) -> bytes:
    """The answer of :countTokens."""
    return _encode({"totalTokens": tokens})


def _chat(doc: strict.Document, body: bytes, model: str, *, stream: bool = False, array: bool = False) -> GeminiCall:
    findings = reading.Findings()
    conversation = Conversation(findings)
    conversation.system(field(doc, "systemInstruction"))
    conversation.read(field(doc, "contents"))
    canonical: dict[str, Any] = {"model": model, "messages": conversation.messages}
    _tools(doc, canonical, findings)
    config = field(doc, "generationConfig")
    if config is not None and type(config) is not dict:
        refuse("generationConfig", "must be an object")
    names = dict(_NAMES)
    thoughts = _configured(config or {}, canonical, names, findings)
    _rest(doc, canonical, findings)
    if stream:
        canonical |= {"stream": True, "stream_options": {"include_usage": True}}
    call = reading.made(GeminiCall, openai.chat_call, canonical, names, thoughts=thoughts, array=array)
    call.names = names
    if array and findings.native_only:
        refuse(findings.native_only, "cannot be streamed as a JSON array; ask with '?alt=sse'")
    if conversation.changed:
        body = _encode(doc)
    native = reading.native(doc, body, _PRICED, findings)
    findings.apply(call, NAME, b"" if array else native)
    return call


def _rest(doc: strict.Document, canonical: dict[str, Any], findings: reading.Findings) -> None:
    """Fields of the whole request besides the conversation, its tools and the generation's settings."""
    if field(doc, "cachedContent"):
        findings.only("cachedContent", costs="cachedContent")
    if field(doc, "continuationToken"):
        findings.only("continuationToken")
    tier = field(doc, "serviceTier")
    if tier is not None:
        if type(tier) is not str:
            refuse("serviceTier", "must be a string")
        tier = tier.lower().removeprefix("service_tier_")
        if tier not in _TIERS:
            canonical["service_tier"] = tier
    if doc.get("pool") is not None:
        canonical["pool"] = doc["pool"]
    for name, value in doc.items():
        known = camel(name) in _TRANSLATED or name in strict.GUARDED
        if not known and value is not None and value != []:
            findings.drop(camel(name))


def _tools(doc: strict.Document, canonical: dict[str, Any], findings: reading.Findings) -> None:
    tools: list[dict[str, Any]] = []
    for index, tool in enumerate(many(field(doc, "tools"), "tools")):
        where = f"tools[{index}]."
        for name, value in tool.items():
            kind = camel(name)
            if kind == "functionDeclarations":
                declared = many(field(tool, kind, where), where + kind)
                tools.extend(_function(item, f"{where}{kind}[{place}].") for place, item in enumerate(declared))
            elif value is not None and value is not False and value != []:
                findings.only(where + kind, costs="" if kind in _CLIENT_TOOLS else kind)
    if not tools:
        return
    choice, names = _choice(field(doc, "toolConfig"))
    if names:
        allowed = frozenset(names)
        tools = [tool for tool in tools if tool["function"]["name"] in allowed]
        if not tools:
            refuse("toolConfig.functionCallingConfig.allowedFunctionNames", "must name declared functions")
    canonical["tools"] = tools
    if choice == "required" and len(names) == 1:
        canonical["tool_choice"] = {"type": "function", "function": {"name": names[0]}}
    elif choice:
        canonical["tool_choice"] = choice


def _function(declared: dict[str, Any], where: str) -> dict[str, Any]:
    name, described = declared.get("name"), declared.get("description")
    if type(name) is not str or not name:
        refuse(f"{where}name", "must be a non-empty string")
    function: dict[str, Any] = {"name": name}
    if described is not None:
        if type(described) is not str:
            refuse(f"{where}description", "must be a string")
        function["description"] = described
    schema = field(declared, "parametersJsonSchema", where)
    if schema is not None and type(schema) is not dict:
        refuse(f"{where}parametersJsonSchema", "must be a JSON schema")
    if schema is None and (given := declared.get("parameters")) is not None:
        schema = json_schema(given, f"{where}parameters")
    function["parameters"] = schema or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


_MODES = {"": "", "MODE_UNSPECIFIED": "", "AUTO": "auto", "ANY": "required", "NONE": "none", "VALIDATED": "auto"}


def _choice(config: Any) -> tuple[str, list[str]]:
    """The canonical tool choice, and the functions it is among ([] for all)."""
    where = "toolConfig."
    for name in ("", "functionCallingConfig"):
        config = field(config, name, where) if name and config else config
        if config is None:
            return "", []
        if type(config) is not dict:
            refuse((where + name).removesuffix("."), "must be an object")
    where = "toolConfig.functionCallingConfig."
    mode = config.get("mode") or ""
    if type(mode) is not str or mode.upper() not in _MODES:
        refuse(f"{where}mode", "must be 'AUTO', 'ANY', 'NONE' or 'VALIDATED'")
    names = field(config, "allowedFunctionNames", where) or []
    if type(names) is not list or any(type(name) is not str for name in names):
        refuse(f"{where}allowedFunctionNames", "must be an array of strings")
    return _MODES[mode.upper()], names if mode.upper() in ("ANY", "VALIDATED") else []


def _configured(
    config: dict[str, Any], canonical: dict[str, Any], names: dict[str, str], findings: reading.Findings
) -> bool:
    """Carry the generation's settings over; return whether thoughts are to be shown."""
    where = "generationConfig."
    for name, canonical_name in _NUMBERS.items():
        value = field(config, name, where)
        if value is not None:
            if type(value) not in (int, float):
                refuse(where + name, "must be a number")
            canonical[canonical_name] = int(value) if name == "topK" and value == int(value) else value
    for name, canonical_name in _COUNTS.items():
        value = field(config, name, where)
        if value is not None:
            if type(value) is not int:
                refuse(where + name, "must be an integer")
            canonical[canonical_name] = value
    stop = field(config, "stopSequences", where)
    if stop:
        if type(stop) is not list or any(type(text) is not str for text in stop):
            refuse(f"{where}stopSequences", "must be an array of strings")
        canonical["stop"] = stop
    if field(config, "responseLogprobs", where) is True:
        canonical["logprobs"] = True
        if (top := config.get("logprobs")) is not None:
            if type(top) is not int:
                refuse(f"{where}logprobs", "must be an integer")
            canonical["top_logprobs"] = top
    _format(config, canonical, names, findings)
    _media(config, findings)
    for name, value in config.items():
        known = name if name in _CONFIGURED else camel(name)
        if known not in _CONFIGURED and value is not None:
            findings.drop(where + known)
    return _thinking(field(config, "thinkingConfig", where), canonical, names, findings)


def _format(
    config: dict[str, Any], canonical: dict[str, Any], names: dict[str, str], findings: reading.Findings
) -> None:
    where = "generationConfig."
    kind, schema = field(config, "responseMimeType", where), None
    if kind is not None and type(kind) is not str:
        refuse(f"{where}responseMimeType", "must be a string")
    for name in ("responseJsonSchema", "_responseJsonSchema"):
        given = config.get(name) if name[0] == "_" else field(config, name, where)
        if given is not None:
            if type(given) is not dict:
                refuse(where + name, "must be a JSON schema")
            schema, names["response_format"] = given, where + name
    if schema is None and (given := field(config, "responseSchema", where)) is not None:
        schema, names["response_format"] = json_schema(given, f"{where}responseSchema"), f"{where}responseSchema"
    if kind not in (None, "", "text/plain", "application/json"):
        findings.only(f"{where}responseMimeType")
    elif schema is not None:
        canonical["response_format"] = reading.answer_format(schema)
    elif kind == "application/json":
        canonical["response_format"] = {"type": "json_object"}


def _media(config: dict[str, Any], findings: reading.Findings) -> None:
    """Answers that are more than text. Their tokens have prices of their own."""
    where = "generationConfig."
    kinds = field(config, "responseModalities", where) or []
    if type(kinds) is not list or any(type(kind) is not str for kind in kinds):
        refuse(f"{where}responseModalities", "must be an array of strings")
    if any(kind.upper() not in ("TEXT", "MODALITY_UNSPECIFIED") for kind in kinds):
        findings.only(f"{where}responseModalities", costs="responseModalities")
    for name in ("speechConfig", "imageConfig"):
        if field(config, name, where):
            findings.only(where + name, costs=name)


def _thinking(config: Any, canonical: dict[str, Any], names: dict[str, str], findings: reading.Findings) -> bool:
    where = "generationConfig.thinkingConfig."
    if config is None:
        return False
    if type(config) is not dict:
        refuse(where.removesuffix("."), "must be an object")
    level, budget = field(config, "thinkingLevel", where), field(config, "thinkingBudget", where)
    if level is not None and type(level) is not str:
        refuse(f"{where}thinkingLevel", "must be a string")
    if budget is not None and type(budget) is not int:
        refuse(f"{where}thinkingBudget", "must be an integer")
    if level and level.lower() in _LEVELS:
        canonical["reasoning_effort"] = level.lower()
    elif budget is not None and budget > 0:
        canonical["reasoning_effort"] = reading.effort_of(budget)
        names["reasoning_effort"] = f"{where}thinkingBudget"
    elif budget == 0:  # few models of others take that they may not reason
        findings.drop(f"{where}thinkingBudget")
    return field(config, "includeThoughts", where) is True


# --- embeddings -----------------------------------------------------------------------------------------------------


def parse_embed(body: bytes, exchange: Exchange | None = None) -> Call:
    """Validate a body of :embedContent or :batchEmbedContents. Raises as `parse_generate` does."""
    doc, body = strict.load(body)
    given = doc.get("requests")
    model, action = _routed(exchange, doc, EMBED if given is None else EMBED_BATCH, EMBED, EMBED_BATCH)
    batch = action == EMBED_BATCH
    if batch and (type(given) is not list or not given):
        refuse("requests", "must be a non-empty array")
    if not batch and given is not None:
        refuse("requests", f"is for :{EMBED_BATCH}; send 'content'")
    if batch and doc.get("content") is not None:
        refuse("content", "and 'requests' exclude each other")
    doc, body = _without(doc, body, "content" if batch else "requests")
    requests = many(given, "requests") if batch else [doc]
    findings = reading.Findings()
    texts, sizes, parts = [], set(), 0
    for index, request in enumerate(requests):
        where = f"requests[{index}]." if batch else ""
        if batch:
            _routed(exchange, request, EMBED_BATCH)
            if not model:
                model = reading.text_of(request, "model").removeprefix("models/")
        read, count = _embedded_text(request.get("content"), f"{where}content", PARTS_MAX - parts)
        texts.append(read)
        parts += count
        sizes.add(_size(request, where))
        for name, value in request.items():
            known = camel(name)
            if known in ("taskType", "title") and value and value != "TASK_TYPE_UNSPECIFIED":
                findings.only(where + known)
            elif known not in _EMBEDDED and value is not None:
                findings.drop(known)
    if len(sizes) > 1:
        refuse("requests", "must all have the same 'outputDimensionality'")
    canonical: dict[str, Any] = {"model": model, "input": texts, "encoding_format": "float"}
    if size := sizes.pop():
        canonical["dimensions"] = size
    if doc.get("pool") is not None:
        canonical["pool"] = doc["pool"]
    names = {**_NAMES, "input": "requests"} if batch else _NAMES
    call = reading.made(GeminiCall, openai.embeddings_call, canonical, names, batch=batch)
    call.names = names
    findings.apply(call, NAME, reading.native(doc, body, _PRICED, findings))
    return call


def _embedded_text(content: Any, where: str, limit: int) -> tuple[str, int]:
    """The text to embed, and the number of its parts, which must not be above `limit`."""
    if type(content) is not dict:
        refuse(where, "must be an object with 'parts'")
    parts = many(content.get("parts"), f"{where}.parts")
    if len(parts) > limit:
        refuse(f"{where}.parts", f"must not bring the request above {PARTS_MAX} parts; send fewer")
    texts = [only_text(part, f"{where}.parts[{place}].") for place, part in enumerate(parts)]
    if not any(texts):
        refuse(where, "must hold text")
    return "\n".join(texts), len(parts)


def _size(request: dict[str, Any], where: str) -> int | None:
    size = field(request, "outputDimensionality", where)
    if size is not None and type(size) is not int:
        refuse(f"{where}outputDimensionality", "must be an integer")
    return size or None


# --- answers --------------------------------------------------------------------------------------------------------


class GeminiDialect:
    """Errors, answers and streams in the shape of this API (see `gateway.dialects.base.Dialect`).

    `array`: streams are one JSON array, not events.
    """

    name = NAME
    id_header = b""

    def __init__(self, *, array: bool) -> None:
        self._array = array
        self.stream_type = b"application/json; charset=utf-8" if array else b"text/event-stream; charset=utf-8"
        # Blank lines: the clients of this API take a comment in its events for broken JSON.
        self.ping = b"\n" if array else b"\n\n"

    def error(self, error: GatewayError, request_id: str) -> bytes:
        """The body of an error answer."""
        return b"[%b]" % error_body(error) if self._array else error_body(error)

    def in_band(self, error: GatewayError) -> bytes:
        """The event that tells an error inside a stream."""
        return b",\n%b\n]" % error_body(error) if self._array else b"data: %b\n\n" % error_body(error)

    def answer(self, call: Call, body: bytes) -> bytes:
        """A whole answer, from a chat completion or embeddings. Never raises."""
        return answer(call, body)

    def writer(self, call: Call, request_id: str) -> Writer:
        """A writer for one streamed answer."""
        return Writer(call, request_id, array=self._array)


GEMINI_SSE = GeminiDialect(array=False)
GEMINI_ARRAY = GeminiDialect(array=True)


def dialect_of(exchange: Exchange) -> GeminiDialect:
    """The dialect a request of this API is answered in."""
    found = route(exchange.path)
    array = found is not None and found[1] == STREAM and not is_sse(exchange.query)
    return GEMINI_ARRAY if array else GEMINI_SSE


def models(names: Sequence[str]) -> bytes:
    """The list of models, on one page."""
    return _encode({"models": [_model(name) for name in names]})


def model(name: str) -> bytes:
    """One model."""
    return _encode(_model(name))


def _model(name: str) -> dict[str, Any]:
    return {
        "name": f"models/{name}",
        "version": "",
        "displayName": name,
        "supportedGenerationMethods": [GENERATE, STREAM, COUNT, EMBED, EMBED_BATCH],
    }
