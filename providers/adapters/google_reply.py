"""What Google's Gemini API answers, read into the canonical form: parts, finish reasons, usage and errors.

Shared by whole answers (`google`) and streams (`google_stream`): a stream is a row of whole `GenerateContentResponse`
objects, each with the next parts. Formats: the API reference of `models.generateContent` and the error model of
Google's APIs (`google.rpc.Status`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from providers.adapters import chunks, problems
from providers.canonical import MAX_TOKENS, UpstreamProblem, Usage, parse_usage

DETAIL_FORMAT = "google-gemini-v1"  # of `reasoning_details` that carry a thought signature of this API
BLOCKED = "PROMPT_BLOCKED"  # our own finish reason, where the prompt itself was refused and there is no candidate
CANDIDATES_MAX = 128
PLAIN_BYTES = 4096  # responses with more than this in them say more than a piece of text

_LENGTH = frozenset({"MAX_TOKENS", "CONTINUATION"})
_FILTERED = frozenset(
    {
        BLOCKED,
        "SAFETY",
        "RECITATION",
        "LANGUAGE",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
        "IMAGE_OTHER",
        "ESCALATION",
        "PUP_LIMITED_DISABLED",
        "MODEL_ARMOR",
    }
)
# The answer is not what the model meant to say, and the canonical form has no finish reason for that.
_BROKEN = frozenset({"MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"})
_UNSIGNED = "MISSING_THOUGHT_SIGNATURE"
_UNSPECIFIED = "FINISH_REASON_UNSPECIFIED"

# HTTP statuses of the names in `error.status`, for errors that do not tell the number.
_STATUSES = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_STATUS_NAME = re.compile(r"[A-Z_]{1,64}")
_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")
_TOO_LONG = re.compile(r"input token count .{0,40}exceeds the maximum", re.IGNORECASE)
# A precondition that fails for the operator's account, not for what this request says.
_ACCOUNT = re.compile(r"billing|location is not supported|free tier|not available in your country", re.IGNORECASE)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_DECODE_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


class _Part(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    text: str


class _Content(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    parts: tuple[_Part]
    role: Any = None


class _Candidate(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    content: _Content
    index: int = 0
    safetyRatings: Any = None
    finishReason: None = None


class _Text(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A response that is nothing but a piece of text for one candidate. Anything else in it, and it is not one."""

    candidates: tuple[_Candidate]
    usageMetadata: dict[str, Any] | None = None
    modelVersion: Any = None
    responseId: Any = None
    createTime: Any = None


_decode_text = msgspec.json.Decoder(_Text).decode


class Candidate:
    """One answer of a response as it comes in, part by part; its index is the choice's.

    `finish` is the provider's reason once it was told. `single`: the caller wants one tool call at most, which the API
    cannot be asked for; calls behind the first are left out, and the model makes them after it saw the first result.
    """

    __slots__ = ("_single", "_thought", "begun", "calls", "finish", "generated", "index")

    def __init__(self, index: int, *, single: bool = False) -> None:
        self.index = index
        self.finish = ""
        self.begun = False
        self.calls = 0
        self.generated = False
        self._single = single
        self._thought: list[str] = []  # the reasoning since the last signature

    def pieces(self, raw: Mapping[str, Any], response_id: str) -> Iterator[tuple[dict[str, Any], str]]:
        """The canonical deltas of what this response adds to the candidate, each with the text generated in it."""
        for part in parts_of(raw):
            call, text = part.get("functionCall"), part.get("text")
            signature = part.get("thoughtSignature")
            signed = _extra(signature) if isinstance(signature, str) and signature else {}
            if isinstance(call, dict):
                if not (self._single and self.calls):
                    yield self._call(call, signed, response_id)
            elif isinstance(text, str) and part.get("thought") is True:
                self._thought.append(text)
                if text:
                    yield {"reasoning_content": text}, text
                if signed:
                    detail = {"type": "reasoning.text", "text": "".join(self._thought), "signature": signature}
                    self._thought.clear()
                    yield {"reasoning_details": [{**detail, "format": DETAIL_FORMAT}]}, ""
            elif isinstance(text, str):
                if text or signed:
                    self.generated = self.generated or bool(text)
                    yield {"content": text, **signed}, text
            elif isinstance(blob := part.get("inlineData"), dict):
                kind, data = blob.get("mimeType"), blob.get("data")
                if isinstance(kind, str) and isinstance(data, str):
                    self.generated = True
                    url = f"data:{kind};base64,{data}"
                    yield {"images": [{"type": "image_url", "image_url": {"url": url}}]}, ""

    def reason(self) -> str:
        """The canonical finish reason."""
        if self.finish in _LENGTH:
            return "length"
        if self.finish in _FILTERED:
            return "content_filter"
        if self.calls:  # told as STOP by the provider
            return "tool_calls"
        # An unknown reason for an answer without any text: something was withheld.
        return "stop" if self.generated or self.finish in ("", "STOP", _UNSPECIFIED) else "content_filter"

    def _call(self, call: Mapping[str, Any], signed: dict[str, Any], response_id: str) -> tuple[dict[str, Any], str]:
        index, args = self.calls, call.get("args")
        name = str(call.get("name") or "")
        arguments = chunks.json_text(args) if isinstance(args, dict) else "{}"
        told = call.get("id")
        id = told if isinstance(told, str) and told else made_id(response_id, self.index, index, name, arguments)
        self.calls += 1
        self.generated = True
        return {"tool_calls": [chunks.tool_call(id, name, arguments, index=index, **signed)]}, name + arguments


def made_id(response_id: str, candidate: int, index: int, name: str, arguments: str) -> str:
    """An id for a call that came without one: the same for the same call, another for the next answer's."""
    told = "\0".join((response_id, str(candidate), str(index), name, arguments)).encode("utf-8", "replace")
    return f"call_{index}_{hashlib.blake2b(told, digest_size=10).hexdigest()}"


def names_of(told: Mapping[str, Any], model: str) -> tuple[str, str]:
    """The id and the model an answer goes by: the upstream's own where it names them, else `model` and one made."""
    id, version = told.get("responseId"), told.get("modelVersion")
    if not isinstance(id, str) or not id:
        id = f"gemini-{hashlib.blake2b(_encode(told), digest_size=12).hexdigest()}"
    return id, version if isinstance(version, str) and version else model


def _extra(signature: str) -> dict[str, Any]:
    return {"extra_content": {"google": {"thought_signature": signature}}}


def parts_of(candidate: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The parts of a candidate, nonsense left out."""
    content = candidate.get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict):
            yield part


def text_alone(body: bytes) -> tuple[str, dict[str, Any] | None] | None:
    """The text and the usage of a response that adds text to the first candidate and says nothing else.

    None for all others, and for those with more in them than a piece of text.
    """
    if len(body) > PLAIN_BYTES:
        return None
    try:
        told = _decode_text(body)
    except _DECODE_ERRORS:
        return None
    candidate = told.candidates[0]
    text = candidate.content.parts[0].text
    return (text, told.usageMetadata) if text and not candidate.index else None


def candidates_of(told: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The candidates of a response with their indices; 0 is not told."""
    found = told.get("candidates")
    listed = [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
    indexed = []
    for place, item in enumerate(listed[:CANDIDATES_MAX]):
        index = item.get("index", 0 if len(listed) == 1 else place)
        indexed.append((index if type(index) is int and 0 <= index < CANDIDATES_MAX else place, item))
    return indexed


def finish_of(candidate: Mapping[str, Any]) -> str:
    """The finish reason of a candidate, "" while it goes on."""
    reason = candidate.get("finishReason")
    return reason if isinstance(reason, str) and reason != _UNSPECIFIED else ""


def is_blocked(told: Mapping[str, Any]) -> bool:
    """Whether the prompt was refused: the response has feedback on it and no candidate."""
    feedback = told.get("promptFeedback")
    return isinstance(feedback, dict) and isinstance(feedback.get("blockReason"), str) and not told.get("candidates")


def broken(reason: str) -> UpstreamProblem | None:
    """The failure a finish reason stands for; None for those of an answer that can be passed on."""
    if reason in _BROKEN:
        words = reason.replace("_", " ").lower()
        message = f"The model's answer could not be used ({words}). Try again."
        return problems.problem("server", message=message, code=reason.lower())
    if reason == _UNSIGNED:
        message = "A tool call in the conversation lacks its thought signature. Send it back as it was received."
        return problems.problem("client", status=400, message=message, code=reason.lower())
    return None


def size_of(told: Mapping[str, Any]) -> int:
    """UTF-8 bytes of all that a model generated in a response."""
    size = 0
    for _, candidate in candidates_of(told):
        for part in parts_of(candidate):
            text, call = part.get("text"), part.get("functionCall")
            if isinstance(text, str):
                size += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
            if isinstance(call, dict):
                args = call.get("args")
                size += len(str(call.get("name") or "").encode("utf-8", "replace"))
                size += len(_encode(args)) if isinstance(args, dict) else 2
    return size


def logprobs_of(candidate: Mapping[str, Any]) -> dict[str, Any] | None:
    """The log probabilities of a candidate's tokens as the canonical form tells them."""
    result = candidate.get("logprobsResult")
    chosen = result.get("chosenCandidates") if isinstance(result, dict) else None
    if not isinstance(result, dict) or not isinstance(chosen, list):
        return None
    tops = result.get("topCandidates")
    content = []
    for place, item in enumerate(chosen):
        if (token := _token(item)) is None:
            continue
        top = tops[place] if isinstance(tops, list) and place < len(tops) else None
        others = top.get("candidates") if isinstance(top, dict) else None
        told = [_token(other) for other in others] if isinstance(others, list) else []
        content.append({**token, "top_logprobs": [other for other in told if other is not None]})
    return {"content": content, "refusal": None}


def _token(item: Any) -> dict[str, Any] | None:
    if not isinstance(item, dict) or not isinstance(text := item.get("token", ""), str):
        return None
    logprob = item.get("logProbability", 0)  # 0 is not told
    number = logprob if isinstance(logprob, int | float) and not isinstance(logprob, bool) else 0
    return {"token": text, "logprob": number, "bytes": list(text.encode("utf-8", "replace"))}


def usage(metadata: Any, *, generates: bool = True) -> Usage | None:
    """Read `usageMetadata`: the prompt with what tools put into it, the answer with its thoughts.

    Counts of 0 are not told. None when it is missing or absurd.
    """
    if not isinstance(metadata, dict):
        return None
    names = ("promptTokenCount", "toolUsePromptTokenCount", "candidatesTokenCount", "thoughtsTokenCount")
    counts = [_count(metadata.get(name)) for name in names]
    total = _count(metadata.get("totalTokenCount"))
    if None in counts or total is None:
        return None
    prompt, tools, answer, thoughts = (count or 0 for count in counts)
    if not prompt:
        prompt = total - tools - answer - thoughts
        if prompt < 0 or not total:
            return None
    given, made = _modalities(metadata, "promptTokensDetails"), _modalities(metadata, "candidatesTokensDetails")
    read: dict[str, Any] = {
        "prompt_tokens": prompt + tools,
        "completion_tokens": answer + thoughts,
        "prompt_tokens_details": {
            "cached_tokens": _count(metadata.get("cachedContentTokenCount")) or 0,
            "audio_tokens": given.get("AUDIO", 0),
            "image_tokens": given.get("IMAGE", 0),
        },
        "completion_tokens_details": {"reasoning_tokens": thoughts, "audio_tokens": made.get("AUDIO", 0)},
    }
    return parse_usage(read, generates=generates)


def _count(value: Any) -> int | None:
    """A count, 0 where there is none, None where it is absurd."""
    if value is None:
        return 0
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else None


def _modalities(metadata: Mapping[str, Any], name: str) -> dict[str, int]:
    found: dict[str, int] = {}
    details = metadata.get(name)
    for item in details if isinstance(details, list) else ():
        if isinstance(item, dict) and isinstance(modality := item.get("modality"), str):
            found[modality] = found.get(modality, 0) + (_count(item.get("tokenCount")) or 0)
    return found


# --- errors ---------------------------------------------------------------------------------------------------------


def read_error(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> UpstreamProblem:
    """Read a reply whose status is not 2xx: `{"error": {code, message, status, details}}`, or a list around it."""
    found = problems.from_reply(status, headers, body)
    return _refined(found, _error_of(_loads(body)))


def in_band(told: Any) -> UpstreamProblem:
    """Read an error object inside an answer of status 200; what is none is nonsense."""
    error = _error_of(told)
    if not error:
        return problems.problem("protocol")
    code, name = error.get("code"), error.get("status")
    known = _STATUSES.get(name, 502) if isinstance(name, str) else 502
    status = code if type(code) is int and 400 <= code <= 599 else known
    return _refined(problems.from_reply(status, (), _encode({"error": error})), error)


def loaded(body: bytes) -> Any:
    """A decoded body of any size, None when it is not JSON."""
    try:
        return _decode(body if body.isascii() else body.decode("utf-8", "replace"))
    except _DECODE_ERRORS:
        return None


def _loads(body: bytes) -> Any:
    return loaded(body) if len(body) <= 1 << 20 else None


def _error_of(told: Any) -> dict[str, Any]:
    if isinstance(told, list) and told:
        told = told[0]
    error = told.get("error") if isinstance(told, dict) else None
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) else {}


def _refined(found: UpstreamProblem, error: Mapping[str, Any]) -> UpstreamProblem:
    """What the general reading cannot know: a bad key is told as a bad request, the wish to wait in the body."""
    listed = error.get("details")
    details = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    if found.reason == "client":
        reasons = {item.get("reason") for item in details if isinstance(item.get("reason"), str)}
        words = error.get("message")
        account = error.get("status") == "FAILED_PRECONDITION" and isinstance(words, str) and _ACCOUNT.search(words)
        if account or any(str(reason).startswith("API_KEY_") for reason in reasons):
            return problems.problem("credential", status=found.status)
        name = error.get("status")
        if isinstance(words, str) and _TOO_LONG.search(words):
            found.code = "context_length_exceeded"  # the word clients shorten their conversations for
        elif isinstance(name, str) and _STATUS_NAME.fullmatch(name):
            found.code = name.lower()
    if found.retry_after_s is None and found.reason in ("rate_limit", "overloaded"):
        for item in details:
            delay = item.get("retryDelay")
            if isinstance(delay, str) and (match := _DELAY.fullmatch(delay)):
                found.retry_after_s = min(float(match[1]), problems.RETRY_AFTER_MAX_S)
    return found
