"""What can go wrong on the way to an upstream, as one small tree. Pure; `gateway.errors` maps it for clients.

    UpstreamError
    ├── ConnectFailedError     kind "connect" or "tls": no usable connection came about
    ├── EgressRefusedError     kind "egress": the address is not one this provider may be reached at
    ├── UpstreamResetError     kind "write" or "reset": the connection ended before the reply did
    ├── UpstreamProtocolError  kind "protocol": the reply is not HTTP, or not HTTP we accept
    ├── UpstreamTimeoutError   kind "first_byte_timeout", "gap_timeout" or "total_timeout"
    └── ReplyTooLargeError     kind "too_large": the reply passed its limit

`sent` is False only where it is certain that the upstream has read no byte of the request; only then may a request
that is not idempotent be sent elsewhere without asking. Messages name hosts and reasons, never what a request or reply
says.
"""

from __future__ import annotations


class UpstreamError(Exception):
    """A call without a complete reply. `kind` says how it failed, `sent` whether the upstream may have seen it."""

    kind: str
    sent: bool

    def __init__(self, message: str, *, kind: str, sent: bool) -> None:
        super().__init__(message)
        self.kind = kind
        self.sent = sent


class ConnectFailedError(UpstreamError):
    """No connection: name not found, refused, unreachable, not in time, or TLS not agreed. Never sent."""

    def __init__(self, message: str, *, kind: str = "connect") -> None:
        super().__init__(message, kind=kind, sent=False)


class EgressRefusedError(UpstreamError):
    """The host resolves to an address outside the class the operator approved, or to one never allowed. Never sent."""

    def __init__(self, message: str) -> None:
        super().__init__(message, kind="egress", sent=False)


class UpstreamResetError(UpstreamError):
    """The connection ended early. With `sent` True the outcome upstream is unknown."""

    def __init__(self, message: str, *, kind: str = "reset", sent: bool = True) -> None:
        super().__init__(message, kind=kind, sent=sent)


class UpstreamProtocolError(UpstreamError):
    """The upstream answered with something that cannot be taken as an HTTP/1.1 reply."""

    def __init__(self, message: str) -> None:
        super().__init__(message, kind="protocol", sent=True)


class UpstreamTimeoutError(UpstreamError):
    """A deadline passed; `kind` names which."""


class ReplyTooLargeError(UpstreamError):
    """The reply is larger than its limit; what arrived of it is thrown away."""

    def __init__(self, message: str) -> None:
        super().__init__(message, kind="too_large", sent=True)
