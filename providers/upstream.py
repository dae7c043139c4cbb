"""Connections to upstreams: HTTP/1.1 over TCP, TLS or a Unix socket, kept alive, with deadlines and back-pressure.

    pool = Pool(Origin.parse("https://api.example.com", "public"))
    reply = await pool.request(head, body, Limits())           # the whole reply
    reply = await pool.stream(head, body, Limits())            # after its headers; then `await reply.read()`

`head` is the request line and header lines, each ended by CRLF, without Content-Length and without the empty line; it
should ask for `Accept-Encoding: identity`. Head and body leave in one write. What is promised:

- Failures are `UpstreamError`s with an exact `sent` (see `providers.failures`); nothing is ever sent a second time.
- Cancelling the awaiting task closes the connection. Redirects are replies like any other.
- A stream buffers at most `BUFFER_BYTES` and one read more, then reading from the socket stops until it is read.
- An idle connection that the peer closed, or sent anything on, is not used again.
- The connection is made to an address that was checked against the origin's address class (`providers.egress`).
- Where the origin has pins, nothing is sent over a connection whose certificates match none of them (`providers.tls`).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from providers import tls
from providers.connection import BUFFER_BYTES, Connection, Limits, Reply, StreamReply
from providers.egress import UNIX, resolve, split_url
from providers.failures import (
    ConnectFailedError,
    EgressRefusedError,
    ReplyTooLargeError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamResetError,
    UpstreamTimeoutError,
)

__all__ = [
    "BUFFER_BYTES",
    "ConnectFailedError",
    "EgressRefusedError",
    "Limits",
    "Origin",
    "Pool",
    "Reply",
    "ReplyTooLargeError",
    "StreamReply",
    "UpstreamError",
    "UpstreamProtocolError",
    "UpstreamResetError",
    "UpstreamTimeoutError",
]


@dataclass(frozen=True, slots=True)
class Origin:
    """One server as an operator approved it; what a pool connects to. For a Unix socket `host` is its path."""

    scheme: str  # "http" | "https" | "unix"
    host: str
    port: int
    prefix: str = ""  # path in front of every request path, from the base URL
    address_class: str = "public"  # "loopback" | "private" | "public" | "unix"
    ca_pem: str = ""  # private certificate authorities, PEM; empty = the system's
    pins: tuple[str, ...] = ()  # of which the server's chain must have one; empty = any chain the authorities allow
    # Certificate chain to show and its key, PEM; empty = none. None = there is one, but it could not be opened: then
    # nothing is connected to.
    client_pem: str | None = field(default="", repr=False)

    @classmethod
    def parse(
        cls,
        base_url: str,
        address_class: str,
        ca_pem: str = "",
        *,
        pins: tuple[str, ...] = (),
        client_pem: str | None = "",
    ) -> Origin:
        """From a provider's base URL. Raises `ValueError` on anything that is not http, https or unix, or is odd."""
        address = split_url(base_url)
        if (address.scheme == "unix") != (address_class == UNIX):
            raise ValueError(f"{base_url} cannot be of address class {address_class}.")
        if address.scheme != "https" and (pins or client_pem != ""):
            raise ValueError(f"{base_url} has no TLS: it can have neither certificate pins nor a client certificate.")
        return cls(*address, address_class, ca_pem, pins, client_pem)

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        if self.scheme == "unix":
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


class Pool:
    """Keep-alive connections to one origin, for one credential. Bound to the running loop at its first use.

    There is no limit on connections in use (admission is the caller's); at most `max_idle` are kept idle. Not safe to
    share between threads. `on_chain` is told the certificates of each TLS connection that came up, before pins are
    looked at: DER, verified, the server's own first.
    """

    def __init__(
        self, origin: Origin, *, max_idle: int = 256, on_chain: Callable[[tuple[bytes, ...]], None] | None = None
    ) -> None:
        self.origin = origin
        self.max_idle = max_idle
        self._on_chain = on_chain
        self._context: ssl.SSLContext | None = None
        self.loop: asyncio.AbstractEventLoop
        self.time: Callable[[], float]
        self._bound = self._closed = False
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()

    @property
    def idle_count(self) -> int:
        """Connections kept for the next request."""
        return len(self._idle)

    @property
    def open_count(self) -> int:
        """All connections, idle ones included."""
        return len(self._open)

    async def request(
        self, head: bytes, body: bytes, limits: Limits, sending: Callable[[], None] | None = None
    ) -> Reply:
        """Send and read the whole reply, of any status. Raises `UpstreamError`; cancelling closes the connection."""
        if not self._bound:
            self._bind()
        started = self.time()
        conn = self._reuse(started) or await self._connect(limits, started)
        future: asyncio.Future[Reply] = self.loop.create_future()
        data = b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)
        if sending is not None:
            sending()  # from here on a caller that is cancelled must take it as sent
        conn.begin(data, limits, started, future, streaming=False)
        try:
            return await future
        except BaseException:
            if conn.future is future:
                conn.drop()
            elif not future.cancelled():
                future.exception()  # It came in the same turn of the loop as a cancellation: nobody else will ask.
            raise

    async def stream(
        self, head: bytes, body: bytes, limits: Limits, sending: Callable[[], None] | None = None
    ) -> StreamReply:
        """Send and wait for the reply's headers only; the body is then read from the `StreamReply`.

        Raises `UpstreamError`; cancelling closes the connection. `limits.body_bytes` does not apply.
        """
        if not self._bound:
            self._bind()
        started = self.time()
        conn = self._reuse(started) or await self._connect(limits, started)
        future: asyncio.Future[StreamReply] = self.loop.create_future()
        data = b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)
        if sending is not None:
            sending()  # from here on a caller that is cancelled must take it as sent
        conn.begin(data, limits, started, future, streaming=True)
        try:
            return await future
        except BaseException:
            if conn.future is future:
                conn.drop()
            elif not future.cancelled() and future.exception() is None:
                future.result().close()  # The head came in the same turn of the loop as a cancellation.
            raise

    def close(self) -> None:
        """Keep nothing any more: idle connections close now, those in use when their exchange is over."""
        self._closed = True
        idle, self._idle = self._idle, []
        for conn in idle:
            conn.drop()

    def opened(self, conn: Connection) -> None:
        """A connection came up (called by it)."""
        self._open.add(conn)

    def lost(self, conn: Connection) -> None:
        """A connection ended (called by it)."""
        self._open.discard(conn)
        if conn in self._idle:
            self._idle.remove(conn)

    def release(self, conn: Connection) -> None:
        """A connection finished its exchange and may carry another (called by it)."""
        if self._closed or len(self._idle) >= self.max_idle:
            conn.drop()
        else:
            self._idle.append(conn)

    def _bind(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.time = self.loop.time
        self._bound = True

    def _reuse(self, now: float) -> Connection | None:
        idle = self._idle
        while idle:
            conn = idle.pop()
            if conn.usable(now):
                return conn
        return None

    async def _connect(self, limits: Limits, started: float) -> Connection:
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError("a pool belongs to the event loop that used it first")
        left = started + limits.total_s - self.time()
        try:
            async with asyncio.timeout(min(limits.connect_s, left)):
                return await self._open_one(limits.connect_s)
        except TimeoutError as exc:
            where = self.origin.authority
            if left < limits.connect_s:
                message = f"{where} did not accept a connection within the {limits.total_s:g} s for the whole call"
                raise UpstreamTimeoutError(message, kind="total_timeout", sent=False) from exc
            raise ConnectFailedError(f"{where} did not accept a connection within {limits.connect_s:g} s") from exc

    async def _open_one(self, connect_s: float) -> Connection:
        origin = self.origin
        if origin.scheme == "unix":
            try:
                _, conn = await self.loop.create_unix_connection(self._new, origin.host)
            except OSError as exc:
                raise ConnectFailedError(f"{origin.host}: {exc}") from exc
            return conn
        if origin.client_pem is None:
            message = f"the key of the client certificate for {origin.authority} cannot be opened; save it again"
            raise ConnectFailedError(message, kind="tls")
        addresses = await resolve(origin.host, origin.port, origin.address_class)
        failure: OSError | None = None
        for i, (family, sockaddr) in enumerate(addresses):
            try:
                sock = await self._dial(family, sockaddr, connect_s / (len(addresses) - i))
            except OSError as exc:  # A TimeoutError is one.
                failure = exc
            else:
                return await self._adopt(sock)
        raise ConnectFailedError(f"{origin.authority} was not reached: {failure!s:.200}") from failure

    async def _dial(self, family: int, sockaddr: Any, timeout_s: float) -> socket.socket:
        """A TCP connection to exactly this checked address, within this address's share of the time."""
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            async with asyncio.timeout(timeout_s):
                await self.loop.sock_connect(sock, sockaddr)
        except TimeoutError as exc:
            sock.close()
            raise TimeoutError(f"no answer from {sockaddr[0]}") from exc
        except BaseException:
            sock.close()
            raise
        return sock

    async def _adopt(self, sock: socket.socket) -> Connection:
        """The connection over a connected socket, with TLS where the origin wants it; nothing was sent yet."""
        origin = self.origin
        is_tls = origin.scheme == "https"
        try:
            context = self._tls_context() if is_tls else None
            name = origin.host if is_tls else None
            transport, conn = await self.loop.create_connection(self._new, sock=sock, ssl=context, server_hostname=name)
        except TimeoutError:
            sock.close()
            raise
        except (OSError, ValueError) as exc:  # Every TLS failure is one of them.
            sock.close()
            raise ConnectFailedError(f"{origin.authority}: {exc!s:.200}", kind="tls" if is_tls else "connect") from exc
        except BaseException:
            sock.close()
            raise
        if is_tls and (origin.pins or self._on_chain is not None):
            try:
                self._look_at_chain(tls.verified_chain(transport.get_extra_info("ssl_object")))
            except BaseException:
                conn.drop()
                raise
        return conn

    def _tls_context(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = tls.context(self.origin.ca_pem, self.origin.client_pem or "")
        return self._context

    def _look_at_chain(self, chain: tuple[bytes, ...]) -> None:
        """Raises where the origin has pins and the chain has none of them."""
        if self._on_chain is not None:
            self._on_chain(chain)
        origin = self.origin
        if not origin.pins:
            return
        found = tls.pins_of(chain)
        if not any(pin in origin.pins for pin in found):
            shown = found[0] if found else "no certificate that can be read"
            message = f"{origin.authority} is pinned to other certificates than it has: it presented {shown}"
            raise ConnectFailedError(message, kind="tls")

    def _new(self) -> Connection:
        return Connection(self)
