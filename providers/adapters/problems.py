"""Upstream failures into `UpstreamProblem`s: what may be shown, what must not, and who must act.

The provider's own words are kept only where the caller can use them (its request was refused), and only when they came
as JSON; addresses, credentials and markup are taken out. Everything else gets words of our own.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Iterable
from typing import Any

import msgspec

from providers.canonical import UpstreamProblem

MESSAGE_CHARACTERS = 1000
RETRY_AFTER_MAX_S = 3600.0
_BODY_BYTES = 1 << 20  # of an error body, more is not read

_WORDS = {
    "client": "The provider refused this request.",
    "credential": "The provider refused the gateway's credential or account. An operator must check it.",
    "rate_limit": "The provider's rate limit was reached. Wait and try again.",
    "overloaded": "The provider is overloaded. Try again later.",
    "server": "The provider failed to answer this request.",
    "protocol": "The provider's answer could not be understood.",
    "cut": "The provider's answer ended before it was complete.",
}
_CODES = {
    "client": "upstream_refused",
    "credential": "upstream_credential",
    "rate_limit": "upstream_rate_limited",
    "overloaded": "upstream_overloaded",
    "server": "upstream_error",
    "protocol": "upstream_invalid_reply",
    "cut": "upstream_cut",
}
# What an error's code or type stands for when no HTTP status says it.
_STATUS_OF = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "too_many_requests": 429,
    "insufficient_quota": 402,
    "billing_error": 402,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "permission_error": 403,
    "invalid_request_error": 400,
    "invalid_request": 400,
    "BadRequestError": 400,
    "tool_use_failed": 400,
    "context_length_exceeded": 400,
    "exceed_context_size_error": 400,
    "model_not_found": 404,
    "not_found_error": 404,
    "NotFoundError": 404,
    "overloaded_error": 503,
    "unavailable_error": 503,
    "timeout_error": 504,
}
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PARAM = re.compile(r"[A-Za-z0-9_.\[\]-]{1,128}")
_MARKUP = re.compile(r"<\s*(?:!doctype|html|head|body|script|center|h1|title)\b", re.IGNORECASE)
_SECRET = re.compile(
    r"(?i:\b(?:bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,})"
    r"|(?i:\b(?:api[-_ ]?key|token|secret|password|authorization)\b[\"']?\s*[=:]\s*[\"']?[^\s\"',;]{4,})"
    r"|\b(?:sk|hk|rk|pk|gsk|xai|key|AIza|ghp|hf|org|proj)[-_]?[A-Za-z0-9_*-]{12,}"
    r"|\b(?=[A-Za-z_-]{0,63}\d)[A-Za-z0-9_-]{32,}\b"
)
_ADDRESS = re.compile(
    r"\b[a-zA-Z][a-zA-Z0-9+.-]{1,15}://[^\s\"'<>]+"
    r"|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?\b"
    r"|\[?\b(?:(?:[0-9a-fA-F]{1,4}:){3,7}|(?:[0-9a-fA-F]{1,4}:){1,6}:(?:[0-9a-fA-F]{1,4}:){0,5})[0-9a-fA-F]{1,4}\b\]?"
    r"(?::\d{1,5})?"
    r"|\[::[0-9a-fA-F:.]*\](?::\d{1,5})?"
    r"|\blocalhost(?::\d{1,5})?\b"
    r"|\b(?:[a-zA-Z0-9-]{1,63}\.){1,9}[a-zA-Z0-9-]{1,63}:\d{2,5}\b"
    r"|\b(?:[a-zA-Z0-9-]{1,63}\.){1,9}(?:internal|local|lan|corp|intranet|svc|cluster\.local)\b"
)
_SPACE = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")

_decode = msgspec.json.Decoder().decode


def problem(
    reason: str, *, status: int = 502, message: str = "", code: str = "", retry_after_s: float | None = None
) -> UpstreamProblem:
    """A problem in our own words; `reason` as in `UpstreamProblem`."""
    return UpstreamProblem(
        status=status,
        code=code or _CODES[reason],
        message=message or _WORDS[reason],
        reason=reason,
        retry_after_s=retry_after_s,
    )


def from_reply(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> UpstreamProblem:
    """Read a reply that is not 2xx, of any content type: JSON in any known shape, HTML, text, nothing."""
    found = _classified(status, _loads(body))
    found.retry_after_s = _retry_after_s(headers)
    return found


def from_success(body: bytes) -> UpstreamProblem:
    """Read a 2xx reply that is not an answer: an error object under a good status, or nonsense."""
    told = _loads(body)
    if isinstance(told, dict) and (told.get("error") is not None or told.get("object") == "error"):
        return _in_band(told)
    return problem("protocol")


def from_in_band(data: bytes) -> UpstreamProblem:
    """Read the data of an error event in a stream."""
    return _in_band(_loads(data))


def _in_band(told: Any) -> UpstreamProblem:
    error = _error_of(told)
    code, kind = error.get("code"), error.get("type")
    status = code if type(code) is int and 400 <= code <= 599 else 0
    return _classified(status or _STATUS_OF.get(str(code)) or _STATUS_OF.get(str(kind)) or 502, told)


def _loads(body: bytes) -> Any:
    """The decoded body, None when it is not JSON or too large to be an error."""
    try:
        return _decode(body.decode("utf-8", "replace")) if len(body) <= _BODY_BYTES else None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def clean(text: str) -> str:
    """A provider's message without markup, addresses, credentials and control characters; at most 1,000 characters."""
    cut = len(text) > MESSAGE_CHARACTERS
    text = _SPACE.sub(" ", text[:MESSAGE_CHARACTERS]).strip()  # first: the patterns below are slow on long texts
    if cut:
        text = text.rpartition(" ")[0] or text  # half a credential would not be known for one
    if _MARKUP.search(text):
        return ""
    text = _ADDRESS.sub("[address]", _SECRET.sub("[secret]", text))
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text[: MESSAGE_CHARACTERS - 1] + "…" if cut or len(text) > MESSAGE_CHARACTERS else text


def _classified(status: int, told: Any) -> UpstreamProblem:
    error = _error_of(told)
    reason = _reason(status, error)
    if reason != "client":
        return problem(reason, status=status)
    words = error.get("message")
    code, kind, param = error.get("code"), error.get("type"), error.get("param")
    return UpstreamProblem(
        status=status,
        code=code if isinstance(code, str) and _NAME.fullmatch(code) else _CODES[reason],
        message=(clean(words) if isinstance(words, str) else "") or _WORDS[reason],
        reason=reason,
        type=kind if isinstance(kind, str) and _NAME.fullmatch(kind) else "",
        param=param if isinstance(param, str) and _PARAM.fullmatch(param) else None,
    )


def _reason(status: int, error: dict[str, Any]) -> str:
    if status == 429:
        # "Your account has no money left" is no reason for the caller to wait.
        return "credential" if "insufficient_quota" in (error.get("code"), error.get("type")) else "rate_limit"
    if status in (401, 402, 403, 407):
        return "credential"
    if status in (503, 529):
        return "overloaded"
    if status == 408 or status >= 500:
        return "server"
    return "client" if 400 <= status < 500 else "protocol"


def _error_of(told: Any) -> dict[str, Any]:
    """The error object in any of the shapes seen: nested, flat, a string, a list around it, a web framework's."""
    if isinstance(told, list) and told:
        told = told[0]
    if not isinstance(told, dict):
        return {}
    error = told.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str):
        return {**told, "message": error}
    if isinstance(told.get("message"), str):
        return told
    inner = told.get("message")
    detail = inner.get("detail") if isinstance(inner, dict) else told.get("detail")
    if isinstance(detail, str):
        return {"message": detail}
    if isinstance(detail, list) and detail and isinstance(detail[0], dict):
        steps = detail[0].get("loc")
        where = ".".join(str(step) for step in steps if step != "body") if isinstance(steps, list) else ""
        return {"message": str(detail[0].get("msg", "")), "param": where}
    return {}


def _retry_after_s(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """What the provider wishes, in seconds from now, from `retry-after-ms` or `retry-after` (seconds or a date)."""
    seconds: float | None = None
    for name, value in headers:
        try:
            if name == b"retry-after-ms":
                return _bounded(float(value) / 1000)
            if name == b"retry-after":
                seconds = _seconds(value.decode("ascii").strip())
        except (ValueError, TypeError, OverflowError):
            continue
    return None if seconds is None else _bounded(seconds)


def _seconds(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()


def _bounded(seconds: float) -> float | None:
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S) if seconds == seconds else None
