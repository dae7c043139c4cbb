"""Canonical answers and streams as the Gemini API tells them: `GenerateContentResponse` objects, embeddings, errors.

A stream is a row of such objects, each with the next parts, as events or as one JSON array. Function calls are told
when they are whole, in the last object, with the finish reason and the usage. Thoughts are told where the request asked
for them. What other providers signed or encrypted travels as the signature of the first function call
(`reading.wrapped`), the one field clients of this API must send back. Format: the public API reference.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from gateway.dialects import reading
from gateway.dialects.gemini_contents import FORMAT
from gateway.errors import GatewayError, UnauthorizedError
from providers.canonical import Call, Usage

_REASONS = {"stop": "STOP", "tool_calls": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "FAILED_PRECONDITION",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

_encode = msgspec.json.Encoder().encode

Part = dict[str, Any]


class GeminiCall(Call):
    """A call that came in this API.

    `thoughts`: the answer tells them. `array`: its stream is one JSON array. `batch`: embeddings were asked for in a
    batch, and are told as one.
    """

    thoughts: bool = False
    array: bool = False
    batch: bool = False


_NO_KEY = "No valid API key was given. Send it as 'x-goog-api-key: hk-…'."  # where clients of this API put it


def error_body(error: GatewayError) -> bytes:
    """An error as this API tells it: the HTTP status, and the name that Google's APIs have for it."""
    name = _STATUSES.get(error.status, "INVALID_ARGUMENT" if error.status < 500 else "INTERNAL")
    message = _NO_KEY if error.message == UnauthorizedError.message_default else error.message
    return _encode({"error": {"code": error.status, "message": message, "status": name}})


def usage_metadata(usage: Usage) -> dict[str, int]:
    """A usage as this API tells it: the answer's tokens without its thoughts."""
    told = {
        "promptTokenCount": usage.input,
        "candidatesTokenCount": usage.output - usage.reasoning,
        "totalTokenCount": usage.input + usage.output,
    }
    if usage.cached:
        told["cachedContentTokenCount"] = usage.cached
    if usage.reasoning:
        told["thoughtsTokenCount"] = usage.reasoning
    return told


# --- parts ----------------------------------------------------------------------------------------------------------


class _Candidate:
    """One answer as it comes in; the same for whole ones, which come in one piece."""

    __slots__ = ("_details", "_thoughts", "index", "reason", "tools")

    def __init__(self, index: int, *, thoughts: bool) -> None:
        self.index = index
        self.reason: Any = None
        self.tools = reading.ToolCalls()
        self._details: list[dict[str, Any]] = []
        self._thoughts = thoughts

    def parts(self, message: Mapping[str, Any], *, whole: bool = False) -> list[Part]:
        """What a message or delta adds, but for its tool calls."""
        text, thought = reading.spoken(message)
        details = reading.details_of(message)
        if whole and any(_is_own(detail) for detail in details):
            thought = ""  # the signed pieces hold all of it
        parts: list[Part] = []
        if thought and self._thoughts:
            parts.append({"text": thought, "thought": True})
        for detail in details:
            parts.extend(self._detail(detail, told=bool(thought), whole=whole))
        if text:
            parts.append({"text": text})
        if refusal := reading.text_of(message, "refusal"):
            parts.append({"text": refusal})
        if signature := reading.signature_of(message):
            if not parts or "thought" in parts[-1]:
                parts.append({"text": ""})
            parts[-1]["thoughtSignature"] = signature
        parts.extend(_images(message))
        for _ in self.tools.take(message, whole=whole):
            pass
        return parts

    def _detail(self, detail: dict[str, Any], *, told: bool, whole: bool) -> Iterator[Part]:
        """The part of a signed thought of this API; what others signed waits for the first function call."""
        signature, text = reading.text_of(detail, "signature"), reading.text_of(detail, "text")
        if _is_own(detail):
            if self._thoughts:
                # In a stream its text went before it, in pieces.
                yield {"text": text if whole else "", "thought": True, "thoughtSignature": signature}
        elif signature or reading.text_of(detail, "data"):
            self._details.append(detail)
        elif text and self._thoughts and not told:
            yield {"text": text, "thought": True}

    def calls(self) -> tuple[list[Part], bool]:
        """The parts of the function calls, and whether one of them cannot be told: its arguments are no object."""
        parts: list[Part] = []
        broken = False
        for tool in self.tools.all:
            arguments = tool.arguments()
            if arguments is None or not tool.name:
                broken = True
                continue
            told: dict[str, Any] = {"name": tool.name, "args": arguments}
            part: Part = {"functionCall": {"id": tool.id, **told} if tool.id else told}
            if self._details:
                wrap: dict[str, Any] = {"reasoning_details": self._details}
                if tool.extra is not None:
                    wrap["extra_content"] = tool.extra
                part["thoughtSignature"] = reading.wrapped(wrap)
                self._details = []
            elif tool.extra is not None:
                part["thoughtSignature"] = tool.extra["google"]["thought_signature"]
            parts.append(part)
        return parts, broken

    def ended(self, parts: list[Part]) -> dict[str, Any]:
        """The candidate at its end, with these parts before its function calls."""
        calls, broken = self.calls()
        reason = _REASONS[reading.reason_of(self.reason)]
        told = self.told([*parts, *calls] or [{"text": ""}])
        if broken and reason == "STOP":
            reason = "MALFORMED_FUNCTION_CALL"
            told["finishMessage"] = "The model's function call was not valid JSON."
        return {**told, "finishReason": reason}

    def told(self, parts: list[Part]) -> dict[str, Any]:
        """The candidate with these parts."""
        return {"content": {"parts": parts, "role": "model"}, "index": self.index}


def _is_own(detail: Mapping[str, Any]) -> bool:
    """Whether a piece of reasoning was signed by this API."""
    return detail.get("format") == FORMAT and bool(reading.text_of(detail, "signature"))


def _images(message: Mapping[str, Any]) -> Iterator[Part]:
    """Pictures that a model made, as some servers of the OpenAI API add them to a message."""
    images = message.get("images")
    for image in images if isinstance(images, list) else ():
        held = image.get("image_url") if isinstance(image, dict) else None
        head, comma, data = reading.text_of(held if isinstance(held, dict) else {}, "url").partition(",")
        if comma and head.startswith("data:") and head.endswith(";base64"):
            yield {"inlineData": {"mimeType": head.removeprefix("data:").partition(";")[0], "data": data}}


def _logprobs(choice: Mapping[str, Any]) -> dict[str, Any] | None:
    told = choice.get("logprobs")
    content = told.get("content") if isinstance(told, dict) else None
    if not isinstance(content, list) or not content:
        return None
    tokens = [item for item in content if isinstance(item, dict)]
    tops = [item.get("top_logprobs") for item in tokens]
    return {
        "topCandidates": [
            {"candidates": [_token(one) for one in top if isinstance(one, dict)] if isinstance(top, list) else []}
            for top in tops
        ],
        "chosenCandidates": [_token(item) for item in tokens],
    }


def _token(item: dict[str, Any]) -> dict[str, Any]:
    return {"token": reading.text_of(item, "token"), "logProbability": item.get("logprob")}


def _thoughts(call: Call) -> bool:
    return call.thoughts if isinstance(call, GeminiCall) else False


# --- whole answers --------------------------------------------------------------------------------------------------


def answer(call: Call, body: bytes) -> bytes:
    """A whole answer, from a chat completion or embeddings. Never raises."""
    told = reading.loaded(body)
    if call.endpoint == "embeddings":
        return _embeddings(call, told)
    candidates = []
    for index, choice, message in reading.choices_of(told, "message"):
        candidate = _Candidate(index, thoughts=_thoughts(call))
        candidate.reason = choice.get("finish_reason")
        shown = candidate.ended(candidate.parts(message, whole=True))
        if logprobs := _logprobs(choice):
            shown["logprobsResult"] = logprobs
        candidates.append(shown)
    response: dict[str, Any] = {"candidates": candidates}
    usage = reading.usage_of(told)
    if usage is not None:
        response["usageMetadata"] = usage_metadata(usage)
    return _encode({**response, **_names(told, call, "")})


def _names(told: Mapping[str, Any], call: Call, request_id: str) -> dict[str, str]:
    id = reading.text_of(told, "id") or request_id
    names = {"modelVersion": reading.text_of(told, "model") or call.model}
    return {**names, "responseId": id} if id else names


def _embeddings(call: Call, told: Mapping[str, Any]) -> bytes:
    data = told.get("data")
    items = [item for item in data if isinstance(item, dict)] if isinstance(data, list) else []
    items.sort(key=lambda item: item["index"] if type(item.get("index")) is int else 0)
    listed = [{"values": _vector(item.get("embedding"))} for item in items]
    usage = told.get("usage")
    counted = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    more = {"usageMetadata": {"promptTokenCount": counted}} if type(counted) is int and counted > 0 else {}
    if isinstance(call, GeminiCall) and call.batch:
        return _encode({"embeddings": listed, **more})
    return _encode({"embedding": listed[0] if listed else {"values": []}, **more})


def _vector(value: Any) -> Any:
    """The numbers of an embedding; some servers answer in base64 whatever they were asked for."""
    if not isinstance(value, str):
        return value if isinstance(value, list) else []
    try:
        raw = base64.b64decode(value, validate=True)
        return list(struct.unpack(f"<{len(raw) // 4}f", raw))
    except (ValueError, struct.error):
        return []


# --- streams --------------------------------------------------------------------------------------------------------


class Writer:
    """One streamed answer; the promises are those of `gateway.dialects.base.StreamWriter`."""

    def __init__(self, call: Call, request_id: str, *, array: bool) -> None:
        self._call, self._array = call, array
        self._request_id = request_id
        self._chunks = reading.Chunks()
        self._candidates: dict[int, _Candidate] = {}
        self._names: dict[str, str] = {}
        self._usage: Usage | None = None
        self._begun = False

    def feed(self, data: bytes) -> bytes:
        """One response for each chunk that has something to tell."""
        return b"".join(map(self._chunk, self._chunks.feed(data)))

    def finish(self) -> bytes:
        """The last response: function calls, finish reasons and the usage."""
        out = b"".join(map(self._chunk, self._chunks.rest()))
        if not self._candidates:
            self._candidate(0)
        ended = [self._candidates[index].ended([]) for index in sorted(self._candidates)]
        response: dict[str, Any] = {"candidates": ended}
        if self._usage is not None:
            response["usageMetadata"] = usage_metadata(self._usage)
        return out + self._response(response) + (b"\n]" if self._array else b"")

    def fail(self, error: GatewayError) -> bytes:
        """The event, or the last element of the array, that tells an error."""
        return self._framed(error_body(error)) + (b"\n]" if self._array else b"")

    def _chunk(self, chunk: dict[str, Any]) -> bytes:
        self._usage = reading.usage_of(chunk) or self._usage
        self._names = self._names or _names(chunk, self._call, self._request_id)
        told = []
        for index, choice, delta in reading.choices_of(chunk, "delta"):
            candidate = self._candidate(index)
            candidate.reason = choice.get("finish_reason") or candidate.reason
            parts, logprobs = candidate.parts(delta), _logprobs(choice)
            if parts or logprobs:
                shown = candidate.told(parts or [{"text": ""}])
                told.append({**shown, "logprobsResult": logprobs} if logprobs else shown)
        return self._response({"candidates": told}) if told else b""

    def _candidate(self, index: int) -> _Candidate:
        found = self._candidates.get(index)
        if found is None:
            found = self._candidates[index] = _Candidate(index, thoughts=_thoughts(self._call))
        return found

    def _response(self, response: dict[str, Any]) -> bytes:
        names = self._names or _names({}, self._call, self._request_id)
        return self._framed(_encode({**response, **names}))

    def _framed(self, body: bytes) -> bytes:
        first, self._begun = not self._begun, True
        if self._array:
            return (b"[" if first else b",\n") + body
        return b"data: %b\n\n" % body
