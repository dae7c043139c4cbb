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
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import certifi

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

    @classmethod
    def parse(cls, base_url: str, address_class: str, ca_pem: str = "") -> Origin:
        """From a provider's base URL. Raises `ValueError` on anything that is not http, https or unix, or is odd."""
        address = split_url(base_url)
        if (address.scheme == "unix") != (address_class == UNIX):
            raise ValueError(f"{base_url} cannot be of address class {address_class}.")
        return cls(address.scheme, address.host, address.port, address.prefix, address_class, ca_pem)

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
    share between threads.
    """

    def __init__(self, origin: Origin, *, max_idle: int = 256) -> None:
        self.origin = origin
        self.max_idle = max_idle
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
        tls = origin.scheme == "https"
        # Client certificates belong into `_tls_context`. Certificate pins are to be checked here, on the transport's
        # peer certificate, before the connection is given to a request.
        try:
            context = _tls_context(origin.ca_pem) if tls else None
            name = origin.host if tls else None
            _, conn = await self.loop.create_connection(self._new, sock=sock, ssl=context, server_hostname=name)
        except TimeoutError:
            sock.close()
            raise
        except (OSError, ValueError) as exc:  # Every TLS failure is one of them.
            sock.close()
            raise ConnectFailedError(f"{origin.authority}: {exc!s:.200}", kind="tls" if tls else "connect") from exc
        except BaseException:
            sock.close()
            raise
        return conn

    def _new(self) -> Connection:
        return Connection(self)


@functools.lru_cache(maxsize=64)
def _tls_context(ca_pem: str) -> ssl.SSLContext:
    """The context for a set of authorities: only those given, else the system's, else certifi's."""
    if ca_pem:
        context = ssl.create_default_context(cadata=ca_pem)
    else:
        context = ssl.create_default_context()
        if not context.cert_store_stats()["x509_ca"]:
            context.load_verify_locations(certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    return context
