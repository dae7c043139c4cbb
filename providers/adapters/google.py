"""The adapter for Google's Gemini API (`generativelanguage.googleapis.com`, and whatever else speaks it).

Operations: `generate` and `generate_stream` (`:generateContent`, `:streamGenerateContent?alt=sse`), `embeddings`
(`:batchEmbedContents`) and `count` (`:countTokens`). Canonical requests are translated (`google_request`), answers read
back (`google_reply`, `google_stream`); what a caller of the "gemini" dialect sent goes through as it is, but for the
output limit and what is the gateway's own. Formats: the public API reference.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable
from typing import Any

import msgspec

from providers.adapters import chunks, embeddings, params, problems
from providers.adapters import google_reply as reply
from providers.adapters import google_request as request
from providers.adapters.google_stream import GoogleNativeReader, GoogleReader
from providers.adapters.openai_compatible import utf8
from providers.canonical import Answer, Call, Request, Target, UnsupportedParamError, UpstreamProblem, Usage

DIALECT = "gemini"

Headers = Iterable[tuple[bytes, bytes]]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
# A provider's nonsense where it was not expected: lists that hold no numbers, numbers that are none, …
_REPLY_ERRORS = (TypeError, ValueError, KeyError, AttributeError, OverflowError, RecursionError, struct.error)


class Google:
    """Requests and replies of the Gemini API."""

    local = False
    stream_types: tuple[bytes, ...] = (b"text/event-stream",)

    def build(self, call: Call, target: Target, limit: int | None) -> Request:
        """The upstream request. `limit` is the output limit to enforce in tokens; None leaves the client's as it is.

        Raises `UnsupportedParamError` for what the API cannot honour and what may not be dropped.
        """
        try:
            return _built(call, target, limit)
        except RecursionError:
            raise _too_deep(target) from None

    def build_count(self, call: Call, target: Target) -> Request:
        """The request that has the provider count a call's input: conversation, system prompt and tools.

        Raises `UnsupportedParamError` for content the API cannot take.
        """
        try:
            counted, headers = _counted(call, target)
            return Request(_encode({"generateContentRequest": counted}), "count", headers=headers)
        except RecursionError:
            raise _too_deep(target) from None

    def read_unary(
        self, call: Call, status: int, headers: Headers, body: bytes, target: Target | None = None
    ) -> Answer:
        """Read a whole reply with status 2xx. Never raises."""
        told = reply.loaded(body)
        try:
            if not isinstance(told, dict) or told.get("error") is not None:
                return Answer(b"", problem=reply.in_band(told))
            if call.endpoint == "embeddings":
                return _embedded(call, told, body, target)
            if _is_native(call):
                return _passed(told, body)
            return _answer(call, told, target)
        except _REPLY_ERRORS:
            return Answer(b"", problem=problems.problem("protocol"))

    def open_stream(self, call: Call, target: Target | None = None) -> GoogleReader | GoogleNativeReader:
        """A reader for the reply to a streaming call."""
        if _is_native(call):
            return GoogleNativeReader()
        return GoogleReader(
            wants_usage=call.wants_usage, model=_model(call, target), outputs=call.n, single=_is_single(call)
        )

    def read_error(self, status: int, headers: Headers, body: bytes) -> UpstreamProblem:
        """Read a reply whose status is not 2xx."""
        return reply.read_error(status, headers, body)

    def read_count(self, body: bytes) -> int | None:
        """The number of tokens in a reply to `build_count`; None when it tells none."""
        told = reply.loaded(body)
        total = told.get("totalTokens") if isinstance(told, dict) else None
        return total if type(total) is int and total >= 0 else None

    def read_models(self, body: bytes) -> list[str]:
        """The names in the provider's model list that generate or embed, without the `models/` before them."""
        told = reply.loaded(body)
        listed = told.get("models") if isinstance(told, dict) else None
        names = []
        for item in listed if isinstance(listed, list) else ():
            name = item.get("name") if isinstance(item, dict) else None
            methods = item.get("supportedGenerationMethods") if isinstance(item, dict) else None
            useful = not isinstance(methods, list) or any(
                method in ("generateContent", "embedContent", "batchEmbedContents") for method in methods
            )
            if isinstance(name, str) and name and useful:
                names.append(name.removeprefix("models/"))
        return names


def _model(call: Call, target: Target | None) -> str:
    return (target.upstream_model if target is not None else "") or call.model


def _resource(call: Call, target: Target) -> str:
    """The model's name as bodies tell it."""
    model = _model(call, target)
    return model if "/" in model else f"models/{model}"


def _is_native(call: Call) -> bool:
    return call.dialect == DIALECT and bool(call.native)


def _is_single(call: Call) -> bool:
    """Whether the caller takes one tool call at most."""
    return "parallel_tool_calls" in call.fields and bytes(_decode_fields(call.body)["parallel_tool_calls"]) == b"false"


def _too_deep(target: Target) -> UnsupportedParamError:
    """What was decoded at the very limit of nesting may lie a little deeper here."""
    return params.unsupported("messages", target, "The request is nested too deeply")


def _built(call: Call, target: Target, limit: int | None) -> Request:
    if call.endpoint == "embeddings":
        return _embed(call, target)
    operation = "generate_stream" if call.stream else "generate"
    if _is_native(call):
        return Request(_native(call, target, limit), operation, headers=call.native_headers)
    if call.endpoint != "chat":
        raise params.unsupported("prompt", target)
    body, left = request.translated(_decode(call.body), call, target, call.limit if limit is None else limit)
    return Request(_encode(body), operation, left)


def _counted(call: Call, target: Target) -> tuple[dict[str, Any], bytes]:
    """The request whose input is counted, and the header lines that go with it."""
    if _is_native(call):
        fields = _decode_fields(call.native)
        whole = fields.get("generateContentRequest") or fields.get("generate_content_request")
        counted: dict[str, Any] = dict(fields if whole is None else _decode_fields(whole))
        counted.pop("pool", None)
        return {**counted, "model": _resource(call, target)}, call.native_headers
    doc = _decode(call.body)
    shown = {name: doc[name] for name in ("messages", "tools") if name in doc}
    return {**request.translated(shown, call, target, None)[0], "model": _resource(call, target)}, b""


# --- the caller's own bytes -----------------------------------------------------------------------------------------


def _native(call: Call, target: Target, limit: int | None) -> bytes:
    """The body a caller of this API sent, with the limit written. Both spellings the API takes of a field are known."""
    fields = _decode_fields(call.native)
    signed = _signed(fields["contents"]) if "contents" in fields and request.levelled(call, target) else None
    if signed is not None:
        fields["contents"] = msgspec.Raw(_encode(signed))
    elif limit is None and "pool" not in fields and "model" not in fields:
        return call.native
    fields.pop("pool", None)
    fields.pop("model", None)  # stands in the path
    if limit is not None:
        config: dict[str, msgspec.Raw] = {}
        for name in ("generation_config", "generationConfig"):
            raw = fields.pop(name, None)
            if raw is not None and bytes(raw)[:1] == b"{":
                config.update(_decode_fields(raw))
        config.pop("max_output_tokens", None)
        config["maxOutputTokens"] = msgspec.Raw(b"%d" % limit)
        fields["generationConfig"] = msgspec.Raw(_encode(config))
    return _encode(fields)


def _signed(raw: msgspec.Raw) -> list[Any] | None:
    """The turns with a stand-in for the signature that calls of other models lack; None when none lacks it."""
    turns = _decode(raw)
    changed = False
    for turn in turns if isinstance(turns, list) else ():
        parts = turn.get("parts") if isinstance(turn, dict) and turn.get("role") == "model" else None
        called = [part for part in parts if _is_call(part)] if isinstance(parts, list) else []
        if called and not any(part.get("thoughtSignature") or part.get("thought_signature") for part in called):
            called[0]["thoughtSignature"] = request.STAND_IN
            changed = True
    return turns if changed else None


def _is_call(part: Any) -> bool:
    return isinstance(part, dict) and ("functionCall" in part or "function_call" in part)


def _passed(told: dict[str, Any], body: bytes) -> Answer:
    if not isinstance(told.get("candidates"), list) and not isinstance(told.get("promptFeedback"), dict):
        return Answer(b"", problem=problems.problem("protocol"))
    return Answer(utf8(body), reply.usage(told.get("usageMetadata")), reply.size_of(told), native=True)


# --- whole answers --------------------------------------------------------------------------------------------------


def _answer(call: Call, told: dict[str, Any], target: Target | None) -> Answer:
    """A whole answer as a chat completion; a refused prompt is an empty one that says it was filtered."""
    usage = reply.usage(told.get("usageMetadata"))
    id, model = reply.names_of(told, _model(call, target))
    single, outputs = _is_single(call), call.n
    choices, size = [], 0
    for index, raw in reply.candidates_of(told):
        state = reply.Candidate(index, single=single)
        state.finish = reply.finish_of(raw)
        problem = reply.broken(state.finish) if outputs <= 1 else None
        if problem is not None:
            return Answer(b"", usage, problem=problem)
        message, generated = _message(state, raw, id)
        size += generated
        choices.append(_choice(state, message, reply.logprobs_of(raw)))
    if not choices:
        if not reply.is_blocked(told):
            return Answer(b"", usage, problem=problems.problem("protocol"))
        state = reply.Candidate(0)
        state.finish = reply.BLOCKED
        choices.append(_choice(state, {"content": ""}, None))
    completion: dict[str, Any] = {
        "id": id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": sorted(choices, key=lambda choice: choice["index"]),
    }
    if usage is not None:
        completion["usage"] = chunks.usage_object(usage)
    return Answer(_encode(completion), usage, size)


def _message(state: reply.Candidate, raw: dict[str, Any], id: str) -> tuple[dict[str, Any], int]:
    """The message a candidate comes to, and the bytes generated in it."""
    message: dict[str, Any] = {}
    size = 0
    for delta, text in state.pieces(raw, id):
        size += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        for name, value in delta.items():
            if name == "tool_calls":
                value[0].pop("index")
            if isinstance(value, str | list):
                message[name] = message[name] + value if name in message else value
            else:
                message[name] = value
    if "content" not in message and "tool_calls" not in message:
        message["content"] = ""
    return message, size


def _choice(state: reply.Candidate, message: dict[str, Any], logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "index": state.index,
        "message": {"role": "assistant", "content": None, "refusal": None, **message},
        "logprobs": logprobs,
        "finish_reason": state.reason(),
    }


# --- embeddings -----------------------------------------------------------------------------------------------------


def _is_batch(call: Call) -> bool:
    """Whether the caller of this API asked for a batch itself; single texts are answered in another shape."""
    return _is_native(call) and "requests" in _decode_fields(call.native)


def _embed(call: Call, target: Target) -> Request:
    model = _resource(call, target)
    if _is_batch(call):
        fields = _decode_fields(call.native)
        fields.pop("pool", None)
        # Each must name the model of the path.
        each = [{**one, "model": model} for one in msgspec.json.decode(fields["requests"], type=list[dict[str, Any]])]
        return Request(_encode({**fields, "requests": each}), "embeddings", headers=call.native_headers)
    if _is_native(call):  # one text, with what else is told of it
        fields = _decode_fields(call.native)
        fields.pop("pool", None)
        one = {name: _decode(value) for name, value in fields.items()}
        return Request(_encode({"requests": [{**one, "model": model}]}), "embeddings", headers=call.native_headers)
    doc = _decode(call.body)
    left = params.dropped(doc, target, request.RULES, request.EMBEDDINGS)
    given = doc["input"]
    texts = [given] if isinstance(given, str) else given
    if not all(isinstance(text, str) for text in texts):
        what = f"The provider ({target.kind.label}) takes text only, no token numbers"
        raise params.unsupported("input", target, what)
    shape: dict[str, Any] = {"model": model}
    if call.dimensions is not None:
        shape["outputDimensionality"] = call.dimensions
    requests = [{**shape, "content": {"parts": [{"text": text}]}} for text in texts]
    return Request(_encode({"requests": requests}), "embeddings", left)


def _embedded(call: Call, told: dict[str, Any], body: bytes, target: Target | None) -> Answer:
    usage = reply.usage(told.get("usageMetadata"), generates=False)
    found = told.get("embeddings")
    if isinstance(found, list) and _is_batch(call):
        return Answer(utf8(body), usage, native=True)
    if not isinstance(found, list) or (call.messages and len(found) != call.messages):
        return Answer(b"", usage, problem=problems.problem("protocol"))
    base64 = call.encoding == "base64"
    vectors = [item["values"] for item in found]
    if not all(isinstance(vector, list) and set(map(type, vector)) <= {int, float} for vector in vectors):
        return Answer(b"", usage, problem=problems.problem("protocol"))
    data = [
        {"object": "embedding", "index": index, "embedding": embeddings.packed(vector) if base64 else vector}
        for index, vector in enumerate(vectors)
    ]
    # Clients cannot read an answer without the object; older models tell no numbers for it.
    known = usage or Usage(0)
    shown = {"prompt_tokens": known.input, "total_tokens": known.input}
    listed = {"object": "list", "data": data, "model": _model(call, target), "usage": shown}
    return Answer(_encode(listed), usage)
