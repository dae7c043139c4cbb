"""The adapter for Ollama's own API: /api/chat, /api/embed and, for callers that speak it themselves, /api/generate.

Its own API and not its OpenAI path, which ignores `max_completion_tokens` (a limit that is not sent is no limit) and
has no place for `num_ctx` and `truncate`. A prompt that does not fit the context is refused, as other providers do, and
not silently cut, which is Ollama's default.

Source of the formats: Ollama's API documentation and the types of its public Go client. Capability labels of a model's
card that are acted on: `num_ctx:N` sets the context size, `truncate` leaves Ollama's cutting of long prompts on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from providers.adapters import chunks, embeddings, ollama_replies, params, problems
from providers.adapters.ollama_messages import translated, untranslatable
from providers.adapters.openai_compatible import utf8
from providers.adapters.params import DROP, REFUSE
from providers.canonical import Answer, Call, Request, Target, UpstreamProblem, UsageWire, usage_of

Headers = Iterable[tuple[bytes, bytes]]

NAME = "ollama"  # of the dialect and of the adapter

# Canonical field -> option.
_OPTIONS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repetition_penalty": "repeat_penalty",
}
_TRANSLATED = frozenset(
    ("messages", "tools", "tool_choice", "response_format", "reasoning_effort", "stop", "logprobs", "top_logprobs")
) | frozenset(_OPTIONS)
_RULES: Mapping[str, str] = MappingProxyType(
    {
        # More answers than one, other tokens, other kinds of answer, functions nobody hears of: the answer differs.
        **dict.fromkeys(("n", "best_of", "logit_bias", "audio", "modalities", "functions", "function_call"), REFUSE),
        **dict.fromkeys(("web_search_options", "structured_outputs", "json_schema", "grammar"), REFUSE),
        **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), REFUSE),
        **dict.fromkeys(("parallel_tool_calls", "prediction", "verbosity", "service_tier", "store"), DROP),
        **dict.fromkeys(("user", "metadata", "safety_identifier", "prompt_cache_key"), DROP),
    }
)
_EMBED_TRANSLATED = frozenset(("input", "dimensions", "encoding_format"))
_THINK: Mapping[str, bool | str] = MappingProxyType(
    {"none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "max", "max": "max"}
)
# What is written into a native body. Ollama's parser takes these names in any mixture of cases.
_WRITTEN = frozenset(("model", "stream", "options", "messages", "prompt", "input", "pool"))

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Vectors(msgspec.Struct, gc=False):
    embeddings: list[msgspec.Raw]
    model: str = ""
    prompt_eval_count: int | None = None


_decode_vectors = msgspec.json.Decoder(_Vectors).decode
_decode_vector = msgspec.json.Decoder(list[float]).decode


class Ollama:
    """Requests and replies of Ollama's own API."""

    local = False
    stream_types = (b"application/x-ndjson",)

    def build(self, call: Call, target: Target, limit: int | None) -> Request:
        """The upstream request. Raises `UnsupportedParamError`."""
        if _is_native(call):
            return _native(call, target, limit)
        if call.endpoint == "embeddings":
            return _embed(call, target)
        if call.endpoint != "chat":
            raise params.unsupported("prompt", target, "This provider answers legacy completions on another path")
        return _chat(call, target, call.limit if limit is None else limit)

    def read_unary(
        self, call: Call, status: int, headers: Headers, body: bytes, target: Target | None = None
    ) -> Answer:
        """Read a whole reply with status 2xx."""
        if call.endpoint == "embeddings":
            return _read_vectors(call, body)
        told = ollama_replies.load(body)
        if not isinstance(told, dict):
            return Answer(b"", problem=problems.problem("protocol"))
        if told.get("error") is not None:
            return Answer(b"", problem=ollama_replies.problem_in_band(told))
        if told.get("done") is False:
            return Answer(b"", problem=problems.problem("cut"))
        try:
            return _read_answer(told, utf8(body) if _is_native(call) else b"")
        except (TypeError, KeyError, ValueError, AttributeError):
            return Answer(b"", problem=problems.problem("protocol"))

    def open_stream(
        self, call: Call, target: Target | None = None
    ) -> ollama_replies.Reader | ollama_replies.NativeReader:
        """A reader for the reply to a streaming call."""
        if _is_native(call):
            return ollama_replies.NativeReader()
        return ollama_replies.Reader(wants_usage=call.wants_usage)

    def read_error(self, status: int, headers: Headers, body: bytes) -> UpstreamProblem:
        """Read a reply whose status is not 2xx."""
        return ollama_replies.problem_of(status, headers, body)


def _is_native(call: Call) -> bool:
    return call.dialect == NAME and bool(call.native)


# --- requests -----------------------------------------------------------------------------------------------------


def _native(call: Call, target: Target, limit: int | None) -> Request:
    """The caller's own body, with model, stream and output limit written.

    A body with a `prompt` is one of /api/generate, or for embeddings one of the old /api/embeddings: that one goes to
    /api/embed, the only one of the two that counts tokens.
    """
    given = _decode_fields(call.native)
    values = {name: raw for name, raw in given.items() if name == (low := name.casefold()) or low not in _WRITTEN}
    values.pop("pool", None)
    values["model"] = _raw(target.upstream_model or call.model)
    if call.endpoint == "embeddings":
        operation = "embeddings"
        if "input" not in values and "prompt" in values:
            values["input"] = values.pop("prompt")
        limit = None
    else:
        operation = "generate_text" if "prompt" in values and "messages" not in values else "chat"
        values["stream"] = _raw(call.stream)
    context = _context(target)
    if limit is not None or context is not None:
        given_options = _decode(values.get("options", b"null"))
        options = given_options if isinstance(given_options, dict) else {}
        if limit is not None:
            options["num_predict"] = limit
        if context is not None and options.get("num_ctx") is None:
            options["num_ctx"] = context
        values["options"] = _raw(options)
    return Request(_encode(values), operation)


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(_encode(value))


def _context(target: Target) -> int | None:
    """The context size a label of the model's card sets."""
    for label in sorted(target.labels):
        name, _, size = label.partition(":")
        if name == "num_ctx" and size.isascii() and size.isdigit() and 0 < len(size) <= 9:
            return int(size)
    return None


def _embed(call: Call, target: Target) -> Request:
    doc = _decode(call.body)
    dropped = params.dropped(doc, target, {}, _EMBED_TRANSLATED)
    if call.prompt_tokens:
        raise params.unsupported("input", target, "The provider (Ollama) embeds text, not token numbers")
    told: dict[str, Any] = {"model": target.upstream_model or call.model, "input": doc["input"]}
    if "truncate" not in target.labels:
        told["truncate"] = False
    if call.dimensions is not None:
        told["dimensions"] = call.dimensions
    if (context := _context(target)) is not None:
        told["options"] = {"num_ctx": context}
    return Request(_encode(told), "embeddings", dropped)


def _chat(call: Call, target: Target, limit: int | None) -> Request:
    doc = _decode(call.body)
    dropped = list(params.dropped(doc, target, _RULES, _TRANSLATED))
    told: dict[str, Any] = {
        "model": target.upstream_model or call.model,
        "messages": translated(doc["messages"], target),
        "stream": call.stream,  # the API's default is true
    }
    if "truncate" not in target.labels:
        told["truncate"] = False
    tools = _tools(doc, target, dropped)
    if tools:
        told["tools"] = tools
    wanted = _format(doc.get("response_format"), target)
    if wanted is not None:
        told["format"] = wanted
    effort = doc.get("reasoning_effort")
    if effort is not None:
        if not isinstance(effort, str) or effort not in _THINK:
            raise params.unsupported("reasoning_effort", target, f"The provider has no effort like {effort!r}"[:120])
        told["think"] = _THINK[effort]
    if doc.get("logprobs") is True:
        told["logprobs"] = True
        if doc.get("top_logprobs") is not None:
            told["top_logprobs"] = doc["top_logprobs"]
    options = _options(doc, target, limit)
    if options:
        told["options"] = options
    return Request(_encode(told), "chat", tuple(dropped))


def _options(doc: dict[str, Any], target: Target, limit: int | None) -> dict[str, Any]:
    options = {option: doc[name] for name, option in _OPTIONS.items() if doc.get(name) is not None}
    stop = doc.get("stop")
    if stop:
        options["stop"] = [stop] if isinstance(stop, str) else stop
    if limit is not None:
        options["num_predict"] = limit
    context = _context(target)
    if context is not None:
        options["num_ctx"] = context
    return options


def _tools(doc: dict[str, Any], target: Target, dropped: list[str]) -> list[dict[str, Any]]:
    """The tools to offer. The API cannot force a call; it can be kept from one by not hearing of the tools."""
    choice = doc.get("tool_choice")
    if choice == "none":
        return []
    if choice is not None and choice != "auto":
        if target.strict:
            raise params.unsupported("tool_choice", target, "The provider (Ollama) cannot be made to call a tool")
        dropped.append("tool_choice")
    made = []
    for index, tool in enumerate(doc.get("tools") or ()):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict):
            untranslatable(f"tools[{index}]", target, "takes only tools of the type 'function'")
        known = {
            name: function[name] for name in ("name", "description", "parameters") if function.get(name) is not None
        }
        made.append({"type": "function", "function": {"parameters": {"type": "object", "properties": {}}, **known}})
    return made


def _format(wanted: dict[str, Any] | None, target: Target) -> Any:
    """The `format` for a response format: None, "json" or a schema."""
    kind = None if wanted is None else wanted.get("type")
    if kind is None or kind == "text":
        return None
    if kind == "json_object":
        return "json"
    holder = wanted.get("json_schema") if wanted is not None and kind == "json_schema" else None
    if not isinstance(holder, dict):
        untranslatable("response_format", target, "takes 'text', 'json_object' or 'json_schema' with a schema")
    return holder.get("schema") or "json"


# --- replies ------------------------------------------------------------------------------------------------------


def _read_answer(told: dict[str, Any], native: bytes) -> Answer:
    """A whole answer of chat or generate; `native` is its body where it is passed on. Raises on nonsense."""
    if told.get("message") is None and told.get("response") is None:
        return Answer(b"", problem=problems.problem("protocol"))
    message = ollama_replies.message_of(told)
    calls = ollama_replies.calls_of(told, message, 0, streamed=False)
    made = len(ollama_replies.generated(message, calls).encode("utf-8", "replace"))
    usage = ollama_replies.usage_of(told, generated=made > 0)
    if native:
        return Answer(native, usage, made, native=True)
    content, thinking = ollama_replies.text_of(message, "content"), ollama_replies.text_of(message, "thinking")
    canonical: dict[str, Any] = {"content": content or (None if calls else "")}
    if thinking:
        canonical["reasoning_content"] = thinking
    if calls:
        canonical["tool_calls"] = calls
    model = told.get("model")
    body = chunks.completion(
        id=ollama_replies.id_of(told),
        model=model if isinstance(model, str) else "",
        message=canonical,
        finish_reason=ollama_replies.finish_of(told, called=bool(calls)),
        usage=usage,
    )
    logprobs = ollama_replies.logprobs_of(told)
    if logprobs is not None:
        answer = _decode(body)
        answer["choices"][0]["logprobs"] = logprobs
        body = _encode(answer)
    return Answer(body, usage, made)


def _read_vectors(call: Call, body: bytes) -> Answer:
    """A reply of /api/embed: passed on, or in the canonical form; as the old API's where that was asked."""
    try:
        reply = _decode_vectors(body)
        vectors = [_decode_vector(raw) for raw in reply.embeddings]
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Answer(b"", problem=_no_vectors(body))
    if not vectors or (call.messages and len(vectors) != call.messages):
        return Answer(b"", problem=problems.problem("protocol"))
    count = reply.prompt_eval_count
    usage = None if count is None else usage_of(UsageWire(prompt_tokens=count), generates=False)
    if _is_native(call):
        if "input" not in _decode_fields(call.native):
            body = _encode({"embedding": reply.embeddings[0]})
        return Answer(body, usage, native=True)
    items: list[dict[str, Any]] = []
    for index, vector in enumerate(vectors):
        try:
            value = embeddings.packed(vector) if call.encoding == "base64" else reply.embeddings[index]
        except (ValueError, OverflowError, msgspec.MsgspecError):
            return Answer(b"", problem=problems.problem("protocol"))
        items.append({"object": "embedding", "index": index, "embedding": value})
    tokens = usage.input if usage is not None else 0
    told = {
        "object": "list",
        "data": items,
        "model": reply.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Answer(_encode(told), usage)


def _no_vectors(body: bytes) -> UpstreamProblem:
    told = ollama_replies.load(body)
    if isinstance(told, dict) and told.get("error") is not None:
        return ollama_replies.problem_in_band(told)
    return problems.problem("protocol")
