"""Everything the gateway may answer instead of what was asked for: one tree, named by who must act.

    GatewayError
    ├── ClientError                    the caller changes the request
    │   ├── BadRequestError            400
    │   ├── UnauthorizedError          401
    │   ├── ForbiddenError             403
    │   │   └── PriceUnknownError      403  money is limited and nobody knows what the model costs
    │   ├── NotFoundError              404
    │   │   └── ModelNotFoundError     404, param "model"
    │   ├── MethodNotAllowedError      405
    │   ├── RequestTimeoutError        408  the body came too slowly
    │   ├── PayloadTooLargeError       413
    │   └── UnsupportedMediaError      415
    ├── LimitError                     the caller waits, or an operator raises the limit
    │   ├── BudgetExceededError        429  insufficient_quota; a retry is told not to help
    │   └── RateLimitedError           429
    │       └── BusyError              429  all places of a route or provider are taken: one may come free
    ├── UpstreamFailureError           the provider, or the operator who set it up
    │   ├── UpstreamRefusedError       the provider's own 4xx or 429, passed on
    │   ├── UpstreamCredentialError    502  the provider refused our key: the operator acts
    │   ├── UpstreamBadReplyError      502  unreachable, failed, cut short or nonsense
    │   └── UpstreamTimeoutError       504
    └── GatewayUnavailableError        503  the gateway itself: starting, draining, overloaded, control away
        ├── QueueFullError             503  too many wait for a place already
        └── QueueTimeoutError          503  no place came free in time, or would

All of them are told in the OpenAI API's shape; other dialects translate from the same attributes.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from providers.canonical import UpstreamProblem


class GatewayError(Exception):
    """A refusal or failure with everything a reply needs.

    `status`, `type` and `code` are the class's unless given. `param` names the request field at fault.
    `retry_after_s` becomes `Retry-After`, `should_retry` becomes `x-should-retry` (None sends neither).
    `extra_headers` are added to the reply as they are.
    """

    status: int = 500
    type: str = "server_error"
    code: str | None = None
    should_retry: bool | None = None
    message_default: ClassVar[str] = "The gateway failed to handle this request."

    def __init__(
        self,
        message: str = "",
        *,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
        status: int | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
        extra_headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        self.message = message or self.message_default
        super().__init__(self.message)
        self.param = param
        self.retry_after_s = retry_after_s
        self.extra_headers = extra_headers
        if code is not None:
            self.code = code
        if type is not None:
            self.type = type
        if status is not None:
            self.status = status
        if should_retry is not None:
            self.should_retry = should_retry

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of the error reply: content type, retry advice and whatever the error carries."""
        headers = [(b"content-type", b"application/json")]
        if self.retry_after_s is not None:
            # Rounded up: a client that waits a little too long succeeds, one that waits too little is refused again.
            headers.append((b"retry-after", b"%d" % max(1, -int(-self.retry_after_s // 1))))
        if self.should_retry is not None:
            headers.append((b"x-should-retry", b"true" if self.should_retry else b"false"))
        headers.extend(self.extra_headers)
        return headers


class ClientError(GatewayError):
    """The request must change before it can succeed."""

    status = 400
    type = "invalid_request_error"


class BadRequestError(ClientError):
    """The body or a header is not acceptable; `param` names the field."""

    code = "invalid_request"
    message_default = "The request is not valid."


class UnauthorizedError(ClientError):
    """No usable credential."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"
    should_retry = False  # some clients repeat a 401 for minutes
    message_default = "No valid API key was given. Send it as 'Authorization: Bearer hk-…'."

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """As the base, plus the challenge HTTP asks for."""
        return [*super().headers, (b"www-authenticate", b"Bearer")]


class ForbiddenError(ClientError):
    """The credential is known but may not do this."""

    status = 403
    type = "permission_error"
    code = "forbidden"
    message_default = "This API key may not do that."


class PriceUnknownError(ForbiddenError):
    """A pool limits money and no price is known for what the call would be sent to: an operator must enter one."""

    code = "price_unknown"

    def __init__(self, provider: str, model: str) -> None:
        super().__init__(
            f"No price is known for the model '{model[:256]}' of the provider '{provider[:100]}', and a pool of this "
            "request limits money. Have an operator enter a price.",
            param="model",
        )


class NotFoundError(ClientError):
    """There is nothing at this path."""

    status = 404
    type = "not_found_error"
    code = "not_found"
    message_default = "There is nothing at this path."


class ModelNotFoundError(NotFoundError):
    """No route serves the model for this key."""

    type = "invalid_request_error"
    code = "model_not_found"

    def __init__(self, model: str, message: str = "") -> None:
        shown = model if len(model) <= 256 else model[:256] + "…"
        text = f"The model '{shown}' is not served here or this key may not use it. GET /v1/models lists what is."
        super().__init__(message or text, param="model")


class MethodNotAllowedError(ClientError):
    """The path exists, not with this method."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, method: str, allowed: tuple[str, ...]) -> None:
        joined = ", ".join(allowed)
        super().__init__(
            f"This path does not answer {method[:16]}; use {joined}.",
            extra_headers=((b"allow", joined.encode("ascii")),),
        )


class RequestTimeoutError(ClientError):
    """The request body did not arrive in time."""

    status = 408
    code = "request_timeout"
    message_default = "The request body did not arrive in time. Send it faster or make it smaller."


class PayloadTooLargeError(ClientError):
    """The body is over the limit."""

    status = 413
    code = "payload_too_large"

    def __init__(self, limit_bytes: int, message: str = "") -> None:
        super().__init__(message or f"The request body is larger than {limit_bytes} bytes. Send a smaller one.")


class UnsupportedMediaError(ClientError):
    """The body's content type or encoding cannot be read."""

    status = 415
    code = "unsupported_media_type"
    message_default = "The body must be JSON. Send 'Content-Type: application/json' and no Content-Encoding."


class LimitError(GatewayError):
    """A limit of the caller's was reached."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    message_default = "Too many requests. Wait as long as Retry-After says."


class BudgetExceededError(LimitError):
    """The pool has too little left for this request. Clients are told not to repeat it by themselves."""

    type = "insufficient_quota"
    code = "insufficient_quota"
    should_retry = False
    message_default = "A budget of this key is used up. Ask an operator to raise it."


class RateLimitedError(LimitError):
    """More requests or tokens per time than allowed."""


class BusyError(RateLimitedError):
    """Of a route or provider as many requests are under way as may be at once; where there is a queue, it is waited."""


class UpstreamFailureError(GatewayError):
    """The provider did not give an answer that could be passed on."""

    status = 502
    type = "upstream_error"
    code = "upstream_error"
    message_default = "The provider could not answer this request."


class UpstreamRefusedError(UpstreamFailureError):
    """The provider refused the request itself; its status and words are passed on."""

    status = 400
    type = "invalid_request_error"


class UpstreamCredentialError(UpstreamFailureError):
    """The provider refused the gateway's own credential or account."""

    code = "upstream_credential"
    should_retry = False
    message_default = "The provider refused the gateway's credential. An operator must check it."


class UpstreamBadReplyError(UpstreamFailureError):
    """The provider was unreachable, failed, ended early or answered nonsense."""


class UpstreamTimeoutError(UpstreamFailureError):
    """The provider did not answer in time."""

    status = 504
    code = "upstream_timeout"
    message_default = "The provider did not answer in time."


class GatewayUnavailableError(GatewayError):
    """The gateway itself cannot serve now; the same request may succeed later."""

    status = 503
    type = "server_error"
    code = "unavailable"
    message_default = "The gateway cannot serve this request now. Try again later."


class QueueFullError(GatewayUnavailableError):
    """As many requests wait for a place as may."""

    code = "queue_full"
    message_default = "Too many requests wait for a place already. Try again later."


class QueueTimeoutError(GatewayUnavailableError):
    """No route had a place for the request within the time it may wait, or would have had."""

    code = "queue_timeout"
    message_default = "No place came free in time. Try again later."


def from_problem(problem: UpstreamProblem) -> UpstreamFailureError:
    """The error to answer with when `problem` ended the last attempt."""
    reason = problem.reason
    if reason == "client":
        return UpstreamRefusedError(
            problem.message, status=problem.status, type=problem.type or None, code=problem.code, param=problem.param
        )
    if reason == "rate_limit":
        wait_s = problem.retry_after_s
        return UpstreamRefusedError(
            problem.message, status=429, type="rate_limit_error", code=problem.code, retry_after_s=wait_s
        )
    if reason == "credential":
        return UpstreamCredentialError(problem.message, code=problem.code)
    if problem.status in (408, 504):
        return UpstreamTimeoutError()
    return UpstreamBadReplyError(problem.message, code=problem.code, retry_after_s=problem.retry_after_s)


_TRANSPORT = {
    "connect": ("The provider could not be reached.", "upstream_unreachable"),
    "tls": ("No secure connection to the provider could be made.", "upstream_tls"),
    "egress": (
        "The provider's address is not one the gateway may connect to. An operator must check it.",
        "egress_refused",
    ),
    "write": ("The provider closed the connection before it had read the request.", "upstream_reset"),
    "reset": ("The provider closed the connection before its answer was complete.", "upstream_cut"),
    "protocol": ("The provider's answer could not be understood.", "upstream_invalid_reply"),
    "too_large": ("The provider's answer is larger than the gateway passes on.", "upstream_reply_too_large"),
}


def from_transport(kind: str) -> UpstreamFailureError:
    """The error for a failed connection; `kind` is the transport error's ("connect", "first_byte_timeout", …)."""
    if kind.endswith("_timeout"):
        return UpstreamTimeoutError()
    message, code = _TRANSPORT.get(kind, ("", "upstream_error"))
    return UpstreamBadReplyError(message, code=code)


_encode = msgspec.json.Encoder().encode


def to_openai(exc: GatewayError) -> bytes:
    """The JSON body in the OpenAI API's shape: always message, type, param and code."""
    error = {"message": exc.message, "type": exc.type, "param": exc.param, "code": exc.code}
    return _encode({"error": error})


def in_band(exc: GatewayError) -> bytes:
    """The event that tells a failure inside a stream that has begun. The connection is closed behind it."""
    return b"data: %b\n\n" % to_openai(exc)
