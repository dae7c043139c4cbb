"""Canonical answers as responses of the Responses API: the response object, its output items, its errors. Pure.

Formats: the API's public documentation. Nothing is stored here, so every response says `store: false`.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from gateway.dialects import reading
from gateway.dialects import responses_reasoning as reasoning
from gateway.dialects import responses_tools as tools
from gateway.errors import BadRequestError, GatewayError
from providers import responses_items as items
from providers.canonical import Call

Json = dict[str, Any]

_ID = re.compile(r"[A-Za-z0-9_-]{6,120}")
_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)
# Codes that clients of this API act on, beside the ones that a status stands for.
_TOLD_CODES = frozenset({"context_length_exceeded", "insufficient_quota", "rate_limit_exceeded", "invalid_prompt"})

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Frame:
    """What an answer repeats of the request, and the way back from functions to the client's tools."""

    def __init__(self, call: Call) -> None:
        doc = _loads(call.native)
        self._model = call.model
        self._doc = doc if isinstance(doc, dict) else {}
        try:
            self.tools = tools.read(self._doc)
        except BadRequestError:  # the body is not the one that was parsed
            self.tools = tools.Tools()
        self.stem = uuid.uuid4().hex
        self._given = {name: _raw(self._doc.get(name)) for name in ("instructions", "metadata", "tools")}

    def response(
        self, *, id: str, model: str, created: int, status: str, output: list[Json], usage: Any = None, **more: Any
    ) -> Json:
        """A response object. `more` replaces fields that are null otherwise."""
        doc, text = self._doc, self._doc.get("text")
        shape = text if isinstance(text, dict) else {}
        reason = doc.get("reasoning")
        effort = reason if isinstance(reason, dict) else {}
        told = {
            "id": response_id(id, self.stem),
            "object": "response",
            "created_at": created or int(time.time()),
            "status": status,
            "background": False,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": None,
            "incomplete_details": None,
            "instructions": self._given["instructions"],
            "max_output_tokens": doc.get("max_output_tokens"),
            "max_tool_calls": doc.get("max_tool_calls"),
            "metadata": self._given["metadata"] or {},
            "model": model or self._model,
            "output": output,
            "parallel_tool_calls": doc.get("parallel_tool_calls") is not False,
            "previous_response_id": None,
            "prompt_cache_key": doc.get("prompt_cache_key"),
            "reasoning": {"effort": effort.get("effort"), "summary": effort.get("summary")},
            "safety_identifier": doc.get("safety_identifier"),
            "service_tier": doc.get("service_tier"),
            "store": False,
            "temperature": doc.get("temperature"),
            "text": {"format": {"type": "text"}, **shape},
            "tool_choice": doc.get("tool_choice") or "auto",
            "tools": self._given["tools"] or [],
            "top_logprobs": doc.get("top_logprobs") or 0,
            "top_p": doc.get("top_p"),
            "truncation": doc.get("truncation") or "disabled",
            "usage": usage,
            "user": doc.get("user"),
        }
        return {**told, **more}

    def call_item(self, index: int, id: str, function: str, arguments: str, status: str) -> Json:
        """The item of a tool call, as the client knows the tool."""
        origin = self.tools.origin_of(function)
        space = {"namespace": origin.namespace} if origin.namespace else {}
        told = {"id": self.item_id("ctc" if origin.custom else "fc", index), "status": status, "call_id": id}
        if origin.custom:
            text = tools.input_of(arguments) if arguments else ""
            return {"type": "custom_tool_call", **told, "name": origin.name, **space, "input": text}
        return {"type": "function_call", **told, "name": origin.name, **space, "arguments": arguments}

    def item_id(self, prefix: str, index: int) -> str:
        """The id of an output item."""
        return f"{prefix}_{self.stem}_{index}"

    def reasoning_id(self, index: int) -> str:
        """The id of a reasoning item made here."""
        return f"{reasoning.ID_PREFIX}{self.stem}_{index}"


def response_id(id: str, stem: str) -> str:
    """The id of a response: recognisably the provider's where that has one."""
    if not _ID.fullmatch(id):
        return f"resp_{stem}"
    return id if id.startswith("resp_") else f"resp_{id.removeprefix('chatcmpl-')}"


def message_item(id: str, parts: list[Json], status: str) -> Json:
    """The item of an answer in words."""
    return {"type": "message", "id": id, "status": status, "role": "assistant", "content": parts}


def text_part(text: str, annotations: list[Json] | None = None, logprobs: list[Json] | None = None) -> Json:
    """A part of such an item."""
    return {"type": "output_text", "text": text, "annotations": annotations or [], "logprobs": logprobs or []}


def reasoning_item(id: str, text: str, sealed: reasoning.Sealed) -> Json:
    """The item of a reasoning text and what has to come back with it."""
    item: Json = {"type": "reasoning", "id": id, "summary": items.summary_of(text)}
    if sealed:
        item["encrypted_content"] = reasoning.seal(sealed)
    return item


def texts(content: Any) -> Iterator[tuple[str, str]]:
    """The texts of a message's or delta's content, each with what it is: "text" or "thinking"."""
    if isinstance(content, str):
        yield "text", content
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict):
            continue
        inner = part.get("thinking")
        if isinstance(part.get("text"), str):
            yield "text", part["text"]
        elif isinstance(inner, str):
            yield "thinking", inner
        elif inner is not None:
            for _, text in texts(inner):
                yield "thinking", text


def reasoned(message: Mapping[str, Any]) -> str:
    """The reasoning of a message or delta: providers have two names for it."""
    text = message.get("reasoning_content") or message.get("reasoning")
    return text if isinstance(text, str) else ""


def failed(error: GatewayError) -> Json:
    """The `error` of a response that failed."""
    code = error.code or ""
    if code not in _TOLD_CODES:
        if error.status == 429:
            code = "rate_limit_exceeded"
        else:
            code = "invalid_prompt" if 400 <= error.status < 500 else "server_error"
    return {"code": code, "message": error.message}


def error_event(error: GatewayError, number: int) -> Json:
    """The data of an `error` event: flat as documented, and nested as clients look for it."""
    told = {"code": error.code, "message": error.message, "param": error.param}
    return {"type": "error", "sequence_number": number, **told, "error": {"type": error.type, **told}}


def usage_of(told: Json) -> Json | None:
    """The usage of a canonical answer or chunk as this API tells it; None when there is none."""
    usage = reading.usage_of(told)
    return None if usage is None else items.usage_object(usage)


def whole(call: Call, body: bytes) -> bytes:
    """The response of a whole canonical answer. Never raises."""
    frame = Frame(call)
    told = _loads(body)
    told = told if isinstance(told, dict) else {}
    choices = told.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    incomplete = items.incomplete_reason(reading.reason_of(choice.get("finish_reason")))
    output = _output(frame, message if isinstance(message, dict) else {}, choice.get("logprobs"))
    if incomplete and output and "status" in output[-1]:
        output[-1]["status"] = "incomplete"
    created = told.get("created")
    return _encode(
        frame.response(
            id=_text(told.get("id")),
            model=_text(told.get("model")),
            created=created if type(created) is int else 0,
            status="incomplete" if incomplete else "completed",
            output=output,
            usage=usage_of(told),
            incomplete_details={"reason": incomplete} if incomplete else None,
        )
    )


def _output(frame: Frame, message: Json, logprobs: Any) -> list[Json]:
    output = _reasoning(frame, message)
    text = "".join(text for kind, text in texts(message.get("content")) if kind == "text")
    parts = []
    if text:
        known = logprobs.get("content") if isinstance(logprobs, dict) else None
        parts.append(text_part(text, items.flat_annotations(message.get("annotations")), items.logprobs_of(known)))
    if refusal := _text(message.get("refusal")):
        parts.append({"type": "refusal", "refusal": refusal})
    calls = [call for call in _calls(message) if isinstance(call.get("function"), dict)]
    if parts or not (calls or output):
        output.append(message_item(frame.item_id("msg", len(output)), parts or [text_part("")], "completed"))
    for call in calls:
        function, index = call["function"], len(output)
        id = _text(call.get("id")) or f"call_{frame.stem}_{index}"
        arguments = reading.arguments_text(function.get("arguments")) or "{}"
        output.append(frame.call_item(index, id, _text(function.get("name")), arguments, "completed"))
    return output


def _calls(message: Json) -> list[Json]:
    calls = message.get("tool_calls")
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def _reasoning(frame: Frame, message: Json) -> list[Json]:
    text = reasoned(message) or "".join(text for kind, text in texts(message.get("content")) if kind == "thinking")
    details = reasoning.merged([], message.get("reasoning_details"))
    own = [detail for detail in details if items.is_encrypted(detail)]
    output = [items.reasoning_item(detail, id=frame.reasoning_id(place)) for place, detail in enumerate(own)]
    if output and text and not any(item["summary"] for item in output):
        output[0]["summary"] = items.summary_of(text)
    sealed = reasoning.Sealed(
        [detail for detail in details if detail not in own and reasoning.worth_keeping(detail)],
        {call["id"]: extra for call in _calls(message) if (extra := extra_of(call)) and _text(call.get("id"))},
        extra_of(message),
    )
    if sealed or (text and not output):
        words = "" if output else text
        output.append(reasoning_item(frame.reasoning_id(len(output)), words, sealed))
    return output


def extra_of(holder: Mapping[str, Any]) -> Json:
    """The `extra_content` of a tool call, a message or a delta."""
    extra = holder.get("extra_content")
    return extra if isinstance(extra, dict) else {}


def _loads(body: bytes) -> Any:
    try:
        return _decode(body)
    except _ERRORS:
        return None


def _raw(value: Any) -> Any:
    """A value that is written again and again, encoded once."""
    return None if value is None else msgspec.Raw(_encode(value))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
