"""Whole replies and errors of the OpenAI Responses API into the canonical form. Pure; nothing here raises.

Formats: the API's public documentation. Errors come in three shapes: an HTTP error as everywhere in the OpenAI API, the
`error` of a response that failed, and the `error` event of a stream, whose fields are flat or inside an object.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from providers import responses_items as items
from providers.adapters import chunks, problems
from providers.adapters.openai_compatible import utf8
from providers.canonical import Answer, UpstreamProblem, parse_usage

# Codes of a failed response for which the request itself is at fault.
_CLIENT_CODES = frozenset(
    {
        "invalid_prompt",
        "data_residency_mismatch",
        "bio_policy",
        "cyber_policy",
        "misalignment_policy_violation",
        "invalid_image",
        "invalid_image_format",
        "invalid_base64_image",
        "invalid_image_url",
        "image_too_large",
        "image_too_small",
        "image_parse_error",
        "image_content_policy_violation",
        "invalid_image_mode",
        "image_file_too_large",
        "unsupported_image_media_type",
        "empty_image_file",
        "failed_to_download_image",
        "image_file_not_found",
    }
)
_STATUS_OF = {"vector_store_timeout": 504, "server_is_overloaded": 503, "slow_down": 503}

_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def loads(body: bytes) -> Any:
    """The decoded body; None when it is not JSON."""
    try:
        return _decode(body if body.isascii() else body.decode("utf-8", "replace"))
    except _ERRORS:
        return None


def read(body: bytes, *, native: bool, model: str = "") -> Answer:
    """A reply with status 2xx as an answer; `model` is the name used where the reply has none."""
    told = loads(body)
    if not isinstance(told, dict) or not isinstance(told.get("output"), list):
        if isinstance(told, dict) and (error := told.get("error")):
            return Answer(b"", problem=failure(error))
        return Answer(b"", problem=problems.from_success(body))
    usage = parse_usage(told["usage"]) if isinstance(told.get("usage"), dict) else None
    status = told.get("status")
    if status not in (None, "completed", "incomplete"):
        problem = failure(told.get("error")) if status == "failed" else problems.problem("server")
        return Answer(b"", usage, problem=problem)
    try:
        message, logprobs = message_of(told["output"])
        size = generated(message)
    except (TypeError, ValueError, KeyError, AttributeError):
        return Answer(b"", usage, problem=problems.problem("protocol"))
    if native:
        return Answer(utf8(body), usage, size, native=True)
    finish = items.finish_reason(told, calls="tool_calls" in message)
    created = told.get("created_at")
    answer = chunks.completion(
        id=_text(told.get("id")),
        model=_text(told.get("model")) or model,
        message=message,
        finish_reason=finish,
        usage=usage,
        created=int(created) if isinstance(created, (int, float)) and 0 < created < 1e12 else 0,
    )
    if logprobs:
        whole = _decode(answer)
        whole["choices"][0]["logprobs"] = {"content": logprobs, "refusal": None}
        answer = _encode(whole)
    return Answer(answer, usage, size)


def message_of(output: list[Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The canonical message of a response's output, and the log probabilities of its text."""
    texts: list[str] = []
    refusals: list[str] = []
    reasoning: list[str] = []
    details: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    logprobs: list[dict[str, Any]] = []
    for item in output:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "message":
            texts.append(message_text(item))
            refusals.append(message_text(item, "refusal"))
            for part in _parts(item):
                annotations += items.canonical_annotations(part.get("annotations"))
                logprobs += items.logprobs_of(part.get("logprobs"))
        elif kind == "reasoning":
            reasoning.append(items.reasoning_text(item))
            if detail := items.detail_of(item):
                details.append(detail)
        elif call := call_of(item):
            calls.append(call)
    message: dict[str, Any] = {}
    for name, found in (("reasoning_content", reasoning), ("refusal", refusals), ("content", texts)):
        if joined := items.GAP.join(filter(None, found)):
            message[name] = joined
    lists = (("reasoning_details", details), ("annotations", annotations), ("tool_calls", calls))
    message |= {name: many for name, many in lists if many}
    if not calls and "refusal" not in message:
        message.setdefault("content", "")
    return message, logprobs


def message_text(item: Mapping[str, Any], name: str = "text") -> str:
    """The text of a message item, or with `name` "refusal" its refusal."""
    content = item.get("content")
    if isinstance(content, str):
        return content if name == "text" else ""
    found = [part.get(name) for part in _parts(item)]
    return "".join(text for text in found if isinstance(text, str))


def _parts(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = item.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def call_of(item: Any) -> dict[str, Any] | None:
    """The canonical tool call of an item; None for items that are none."""
    kind = item.get("type") if isinstance(item, dict) else None
    if kind not in ("function_call", "custom_tool_call"):
        return None
    id, name = _text(item.get("call_id")) or _text(item.get("id")), _text(item.get("name"))
    if kind == "custom_tool_call":
        return {"id": id, "type": "custom", "custom": {"name": name, "input": _text(item.get("input"))}}
    return chunks.tool_call(id, name, _text(item.get("arguments")))


def generated(message: Mapping[str, Any]) -> int:
    """UTF-8 bytes of what a model generated in a message."""
    texts = [message.get("content"), message.get("refusal"), message.get("reasoning_content")]
    for call in message.get("tool_calls") or ():
        texts += (call.get("function") or call.get("custom")).values()
    return sum(len(text.encode("utf-8", "replace")) for text in texts if isinstance(text, str))


def failure(error: Any) -> UpstreamProblem:
    """The problem told by an error object of a response or an event, in any of their shapes."""
    if isinstance(error, dict) and isinstance(error.get("error"), dict):
        error = error["error"]
    if not isinstance(error, dict):
        error = {"message": error} if isinstance(error, str) else {}
    code = error.get("code")
    if isinstance(code, str) and code in _STATUS_OF:
        return problems.from_reply(_STATUS_OF[code], (), _encode({"error": error}))
    if isinstance(code, str) and code in _CLIENT_CODES:
        return problems.from_reply(400, (), _encode({"error": {**error, "type": "invalid_request_error"}}))
    return problems.from_in_band(_encode({"error": {**error, "message": _text(error.get("message"))}}))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
