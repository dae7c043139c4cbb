"""The upstream pool behind the httpx API, for everything off the hot path: probes, model lists, webhooks.

    async with open_client("https://api.example.com", "public") as client:
        models = (await client.get("/v1/models")).json()

Connections, egress checks and deadlines are those of `providers.upstream`; httpx's own pool, its proxies from the
environment and its redirects play no part. A client speaks to its one origin and refuses any other.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping

import httpx

from providers.failures import (
    ConnectFailedError,
    EgressRefusedError,
    ReplyTooLargeError,
    UpstreamError,
    UpstreamResetError,
    UpstreamTimeoutError,
)
from providers.upstream import Limits, Origin, Pool, StreamReply

BODY_BYTES = 8 * 1024 * 1024  # largest reply taken in, unless other limits are given
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"expect", b"upgrade"})
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_BREAKS = re.compile(rb"[\x00\r\n]")


class _Body(httpx.AsyncByteStream):
    """A reply's body, counted against the limit."""

    def __init__(self, reply: StreamReply, request: httpx.Request, limit: int) -> None:
        self._reply = reply
        self._request = request
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        taken = 0
        try:
            while data := await self._reply.read():
                taken += len(data)
                if taken > self._limit:
                    raise ReplyTooLargeError(f"the reply is larger than {self._limit} bytes")
                yield data
        except UpstreamError as exc:
            raise _as_httpx(exc, self._request) from exc

    async def aclose(self) -> None:
        self._reply.close()


class HooshTransport(httpx.AsyncBaseTransport):
    """Requests to one origin over a pool of its own. `limits` hold for each request; its `total_s` includes reading.
    `on_chain` is that of the pool."""

    def __init__(
        self,
        origin: Origin,
        limits: Limits,
        *,
        max_idle: int = 16,
        on_chain: Callable[[tuple[bytes, ...]], None] | None = None,
    ) -> None:
        self._origin = origin
        self._limits = limits
        self._pool = Pool(origin, max_idle=max_idle, on_chain=on_chain)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; the response's body is still unread. Raises httpx's own exceptions."""
        head = self._head(request)
        body = await request.aread()
        try:
            reply = await self._pool.stream(head, body, self._limits)
        except UpstreamError as exc:
            raise _as_httpx(exc, request) from exc
        return httpx.Response(
            reply.status, headers=reply.headers, stream=_Body(reply, request, self._limits.body_bytes), request=request
        )

    async def aclose(self) -> None:
        """Close the idle connections."""
        self._pool.close()

    def _head(self, request: httpx.Request) -> bytes:
        """Request line and headers, checked: httpx leaves the refusal of line breaks to its own connections."""
        url = request.url
        port = url.port or (443 if url.scheme == "https" else 80)
        origin = self._origin
        if origin.scheme != "unix" and (url.scheme, url.host, port) != (origin.scheme, origin.host, origin.port):
            raise httpx.UnsupportedProtocol(f"this client only speaks to {origin.authority}", request=request)
        method = request.method.encode("ascii", "replace")
        if method == b"HEAD" or not _NAME.match(method):
            raise httpx.UnsupportedProtocol(f"the method {request.method!r} is not supported", request=request)
        lines = [b"%b %b HTTP/1.1\r\n" % (method, url.raw_path)]
        for name, value in request.headers.raw:
            if not _NAME.match(name) or _BREAKS.search(value):
                raise httpx.LocalProtocolError("a header has a forbidden character", request=request)
            if name.lower() not in _FRAMING:
                lines.append(b"%b: %b\r\n" % (name, value))
        return b"".join(lines)


def open_client(
    base_url: str,
    address_class: str,
    ca_pem: str = "",
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
    *,
    pins: tuple[str, ...] = (),
    client_pem: str | None = "",
    on_chain: Callable[[tuple[bytes, ...]], None] | None = None,
) -> httpx.AsyncClient:
    """A client for one origin; paths given to it are appended to `base_url`. Use it as an async context manager.

    `timeout_s` bounds each call as a whole; `on_chain` is told the certificates of each TLS connection. Raises
    `ValueError` for a URL that `Origin.parse` does not take.
    """
    origin = Origin.parse(base_url, address_class, ca_pem, pins=pins, client_pem=client_pem)
    limits = Limits(
        connect_s=timeout_s, first_byte_s=timeout_s, gap_s=timeout_s, total_s=timeout_s, body_bytes=BODY_BYTES
    )
    return httpx.AsyncClient(
        base_url="http://localhost" if origin.scheme == "unix" else base_url,
        transport=HooshTransport(origin, limits, on_chain=on_chain),
        headers={"Accept-Encoding": "identity", **(headers or {})},
        timeout=None,  # noqa: S113  # the pool keeps the deadlines
        follow_redirects=False,
        trust_env=False,
    )


def _as_httpx(exc: UpstreamError, request: httpx.Request) -> httpx.TransportError:
    """The httpx exception that callers of its API expect for a failure."""
    kind: type[httpx.TransportError]
    match exc:
        case UpstreamTimeoutError():
            kind = httpx.ReadTimeout if exc.sent else httpx.ConnectTimeout
        case ConnectFailedError() | EgressRefusedError():
            kind = httpx.ConnectError
        case UpstreamResetError():
            kind = httpx.ReadError
        case _:
            kind = httpx.RemoteProtocolError
    return kind(str(exc), request=request)
