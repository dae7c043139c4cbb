"""What Anthropic's Messages API answers: whole messages, usage, stop reasons and errors. Pure; nothing here raises.

The stream readers share the pieces. Formats: the API's public documentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from providers.adapters import chunks, problems
from providers.adapters.anthropic_messages import FORMAT
from providers.adapters.openai_compatible import utf8
from providers.canonical import MAX_TOKENS, Answer, UpstreamProblem, Usage, parse_usage

ERROR_BYTES = 1 << 20  # of an error body, more is not read
ERRORS = (msgspec.MsgspecError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)

# What an error's type stands for where no HTTP status says it.
_STATUS_OF = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_FINISHES = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}
_CODE = re.compile(r"[a-z_]{1,64}")
_COUNTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def loads(data: bytes) -> Any:
    """The decoded JSON, None when it is none."""
    try:
        return _decode(data if data.isascii() else data.decode("utf-8", "replace"))
    except ERRORS:
        return None


def read(body: bytes, *, native: bool) -> Answer:
    """Read a whole message: as a chat completion, or as it is for a caller who speaks this API."""
    told = loads(body)
    content = told.get("content") if isinstance(told, dict) else None
    if not isinstance(told, dict) or not isinstance(content, list) or told.get("type") == "error":
        is_error = isinstance(told, dict) and told.get("error") is not None
        return Answer(b"", problem=in_band(told) if is_error else problems.problem("protocol"))
    usage = Tally().add(told.get("usage"))
    try:
        found = _Message(content)
        if native:
            return Answer(utf8(body), usage, found.size, native=True)
        return Answer(_completion(told, found, usage), usage, found.size)
    except ERRORS:
        return Answer(b"", usage, problem=problems.problem("protocol"))


def error(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> UpstreamProblem:
    """Read a reply whose status is not 2xx, in this API's shape or any other."""
    headers = list(headers)
    found = problems.from_reply(status, headers, body)
    told = loads(body) if len(body) <= ERROR_BYTES else None
    inner = told.get("error") if isinstance(told, dict) else None
    if not isinstance(inner, dict):
        return found
    details = inner.get("details")
    code = details.get("error_code") if isinstance(details, dict) else None
    words = inner.get("message")
    # The account has no money left: nothing the caller can change, and no reason to wait.
    if (status == 429 and isinstance(code, str) and code.endswith("spend_limit_reached")) or (
        status == 400 and isinstance(words, str) and "credit balance is too low" in words
    ):
        return problems.problem("credential", status=status)
    if found.reason == "client" and isinstance(code, str) and _CODE.fullmatch(code):
        found.code = code
    return found


def in_band(told: Any) -> UpstreamProblem:
    """Read an error object that came under a good status: an `error` event, or a whole body."""
    inner = told.get("error") if isinstance(told, dict) else None
    kind = inner.get("type") if isinstance(inner, dict) else None
    status = _STATUS_OF.get(kind) if isinstance(kind, str) else None
    try:
        body = _encode(told)
    except ERRORS:
        return problems.problem("protocol")
    return error(status, (), body) if status is not None else problems.from_in_band(body)


def finish(stop_reason: Any, *, tools: bool) -> str:
    """The finish reason; `tools`: the answer holds calls of tools."""
    known = _FINISHES.get(stop_reason) if isinstance(stop_reason, str) else None
    return known or ("tool_calls" if tools else "stop")


def refusal(told: Mapping[str, Any]) -> str:
    """What the API says of a refusal, "" when nothing. `told` holds `stop_reason` and `stop_details`."""
    details = told.get("stop_details")
    words = details.get("explanation") if isinstance(details, dict) else None
    return words if told.get("stop_reason") == "refusal" and isinstance(words, str) else ""


def text_detail(text: str, signature: str) -> dict[str, Any]:
    """Signed thinking as the canonical form keeps it. Unsigned ones are told only: nobody takes them back."""
    return {"type": "reasoning.text", "text": text, "signature": signature, "format": FORMAT}


def data_detail(data: str) -> dict[str, Any]:
    """A block of thinking that only the provider can read."""
    return {"type": "reasoning.encrypted", "data": data, "format": FORMAT}


def annotation(citation: Any, start: int, end: int) -> dict[str, Any] | None:
    """A citation that names an address; `start` and `end` are the cited text's place in the content.

    None for places inside documents, which the canonical form cannot name.
    """
    if not isinstance(citation, dict):
        return None
    url, title = citation.get("url") or citation.get("source"), citation.get("title")
    if not isinstance(url, str):
        return None
    told = {"url": url, "title": title if isinstance(title, str) else "", "start_index": start, "end_index": end}
    return {"type": "url_citation", "url_citation": told}


class Tally:
    """The usage of one answer, whose parts come in several events. Counts are cumulative: the last one told counts.

    The API's input excludes what the cache gave and took; it is added here. One absurd number makes that telling
    count as missing. Nought does not replace a number: servers that fill in what they do not repeat send it.
    """

    __slots__ = ("_told",)

    def __init__(self) -> None:
        self._told: dict[str, int] = {}

    def add(self, told: Any) -> Usage | None:
        """Take one usage object; the usage so far, None when this one says nothing usable."""
        if not isinstance(told, dict):
            return None
        now = dict(self._told)
        for name in _COUNTS:
            value = told.get(name)
            if value is None:
                continue
            number = _whole(value)
            if number is None or not 0 <= number <= MAX_TOKENS:
                return None
            now[name] = number or now.get(name, 0)
        details = told.get("output_tokens_details")
        thinking = _whole(details.get("thinking_tokens")) if isinstance(details, dict) else None
        if thinking is not None and 0 < thinking <= MAX_TOKENS:
            now["thinking"] = thinking
        usage = _usage(now)
        if usage is not None or "output_tokens" not in now:
            self._told = now
        return usage


def _usage(told: dict[str, int]) -> Usage | None:
    if "input_tokens" not in told or "output_tokens" not in told:
        return None
    cached, written = told.get("cache_read_input_tokens", 0), told.get("cache_creation_input_tokens", 0)
    return parse_usage(
        {
            "prompt_tokens": told["input_tokens"] + cached + written,
            "completion_tokens": told["output_tokens"],
            "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
            "completion_tokens_details": {"reasoning_tokens": told.get("thinking", 0)},
        }
    )


def _whole(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


class _Message:
    """The content of a whole message. Blocks that the canonical form has no place for are passed over."""

    def __init__(self, content: list[Any]) -> None:
        self.text: list[str] = []
        self.thinking: list[str] = []
        self.details: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.size = 0  # UTF-8 bytes of what a model generated
        self._length = 0  # characters of the text so far
        for block in content:
            if isinstance(block, dict):
                self._take(block)

    def _take(self, block: dict[str, Any]) -> None:
        kind = block.get("type")
        if kind == "text":
            text, start = _string(block.get("text")), self._length
            self.text.append(text)
            self._length += len(text)
            self.size += len(text.encode("utf-8", "replace"))
            for citation in block.get("citations") or ():
                found = annotation(citation, start, self._length)
                if found is not None:
                    self.annotations.append(found)
        elif kind == "thinking":
            text, signature = _string(block.get("thinking")), _string(block.get("signature"))
            self.thinking.append(text)
            if signature:  # the text may be empty: some models show no thinking
                self.details.append(text_detail(text, signature))
            self.size += len(text.encode("utf-8", "replace"))
        elif kind == "redacted_thinking":
            self.details.append(data_detail(_string(block.get("data"))))
        elif kind == "tool_use":
            name, given = _string(block.get("name")), block.get("input")
            arguments = chunks.json_text(given or {})
            self.calls.append(chunks.tool_call(_string(block.get("id")), name, arguments))
            self.size += len(name) + len(arguments.encode("utf-8", "replace"))


def _string(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError("not a string")
    return value


def _completion(told: dict[str, Any], found: _Message, usage: Usage | None) -> bytes:
    text = "".join(found.text)
    message: dict[str, Any] = {"content": text if text or not found.calls else None}
    if words := refusal(told):
        message["refusal"] = words
    if thinking := "".join(found.thinking):
        message["reasoning_content"] = thinking
    if found.details:
        message["reasoning_details"] = found.details
    if found.calls:
        message["tool_calls"] = found.calls
    if found.annotations:
        message["annotations"] = found.annotations
    return chunks.completion(
        id=_string(told.get("id")),
        model=_string(told.get("model")),
        message=message,
        finish_reason=finish(told.get("stop_reason"), tools=bool(found.calls)),
        usage=usage,
    )
