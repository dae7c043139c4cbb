"""One HTTP/1.1 connection to an upstream and the exchange on it; `providers.upstream` keeps and hands out connections.

Everything happens in protocol callbacks: an exchange costs no task and at most one timer (an armed timer is kept over
exchanges and only moved when a deadline comes before it). No exception leaves a callback: what goes wrong becomes the
`UpstreamError` of the exchange, and its connection is closed.
"""

from __future__ import annotations

import asyncio
import functools
import select
import ssl
from collections.abc import Callable
from typing import Any, Protocol, cast

import httptools
import msgspec

from providers import tls
from providers.failures import (
    ConnectFailedError,
    ReplyTooLargeError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamResetError,
    UpstreamTimeoutError,
)
from providers.inflate import InflateError, Inflater, inflate_all

BUFFER_BYTES = 256 * 1024  # unread bytes of a stream at which reading from the socket stops
HEADER_BYTES = 128 * 1024  # headers of one reply, interim replies included; also its trailers
IDLE_S = 60.0  # an idle connection older than this is not used again
TIMER_SLACK_S = 0.002  # timers may fire this early: loop clocks are cached and rounded to milliseconds

# What a connection is doing: nothing, waiting for a reply's head, for its first body byte, for the rest.
_IDLE, _HEAD, _FIRST, _BODY = range(4)
_BODILESS = frozenset({204, 304})
_TELLING = frozenset({b"content-length", b"transfer-encoding", b"content-encoding", b"keep-alive"})

Headers = list[tuple[bytes, bytes]]


class Limits(msgspec.Struct, frozen=True):
    """Deadlines of one call in seconds, and the size limit of a reply that is read whole.

    `first_byte_s` runs from the write to the first byte of the reply's body (headers do not end it: servers send them
    before a model begins to think); `gap_s` runs between reads after that, not while our own reader is the slow one;
    `total_s` runs from the call, connecting included.
    """

    connect_s: float = 5.0
    first_byte_s: float = 120.0
    gap_s: float = 60.0
    total_s: float = 600.0
    body_bytes: int = 64 * 1024 * 1024


class Reply:
    """A reply read whole. Header names are lower case, in the order they came; a compressed body is taken apart."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


class StreamReply:
    """A reply whose body is still arriving. One task reads it; `close` it in `finally` (harmless at the end)."""

    __slots__ = ("_conn", "_done", "_error", "_inflater", "_parts", "_waiter", "headers", "status")

    def __init__(self, status: int, headers: Headers, conn: Connection, inflater: Inflater | None) -> None:
        self.status = status
        self.headers = headers
        self._conn: Connection | None = conn  # until the exchange is over: connections outlive their replies
        self._inflater = inflater
        self._parts = conn.parts  # filled by the connection until then
        self._done = False
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """All bytes at hand, joined; waits for some; b"" at the end, and again after it.

        Raises `UpstreamError` once what arrived before the failure has been read. Cancelling it closes the connection.
        """
        while True:
            if self._parts or (self._inflater is not None and self._inflater.pending):
                if data := self._take():
                    return data
            elif self._error is not None:
                raise self._error
            elif self._done:
                if self._inflater is not None:
                    self._end_inflater(self._inflater)
                return b""
            else:
                waiter = self._begin_wait()
                try:
                    await waiter
                except BaseException:
                    self.close()
                    raise
                finally:
                    self._waiter = None

    async def wait(self, timeout_s: float) -> bool:
        """Whether `read` has something to say (bytes, end or error), waiting up to `timeout_s` for it.

        Nothing is closed when the time is over, so a quiet stream can be given pings; cancelling closes as in `read`.
        """
        if self._ready():
            return True
        waiter = self._begin_wait()
        timer = waiter.get_loop().call_later(timeout_s, self.notify)
        try:
            await waiter
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()
            self._waiter = None
        return self._ready()

    async def read_all(self, limit: int) -> bytes:
        """The rest of the body. Raises `ReplyTooLargeError`, and closes, when it is more than `limit` bytes."""
        parts: list[bytes] = []
        size = 0
        while data := await self.read():
            size += len(data)
            if size > limit:
                self.close()
                raise ReplyTooLargeError(f"the reply is larger than {limit} bytes")
            parts.append(data)
        return b"".join(parts)

    def close(self) -> None:
        """Done with it: an unfinished exchange's connection is closed at once, unread bytes are dropped."""
        conn, self._conn = self._conn, None
        self._parts.clear()
        self._inflater = None
        if not self._done and self._error is None:
            self._error = UpstreamResetError("the reply was closed by its reader")
        if conn is not None:
            conn.drop()
        self.notify()

    def notify(self) -> None:
        """There is something to read: wake the reader (called by the connection)."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def end(self, error: UpstreamError | None) -> None:
        """The exchange is over, well or with an error; the connection is no longer ours (called by it)."""
        self._conn = None
        self._done = error is None
        self._error = error
        self.notify()

    def _take(self) -> bytes:
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        conn = self._conn
        if conn is not None:
            conn.waiting = 0
        if self._inflater is not None:
            try:
                data = self._inflater.feed(data, BUFFER_BYTES)
            except InflateError as exc:
                self._refuse(exc)
            if self._inflater.pending:
                return data
        if conn is not None and conn.paused:
            conn.resume()
        return data

    def _end_inflater(self, inflater: Inflater) -> None:
        try:
            inflater.finish()
        except InflateError as exc:
            self._refuse(exc)

    def _refuse(self, exc: InflateError) -> None:
        self._error = UpstreamProtocolError(str(exc))
        self.close()
        raise self._error from exc

    def _ready(self) -> bool:
        pending = self._inflater is not None and self._inflater.pending
        return bool(self._parts) or self._done or pending or self._error is not None

    def _begin_wait(self) -> asyncio.Future[None]:
        if self._waiter is not None:
            raise RuntimeError("a reply is read by one task at a time")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiter = waiter
        return waiter


class Keeper(Protocol):
    """What a connection needs of the pool it belongs to."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop both live on."""

    @property
    def time(self) -> Callable[[], float]:
        """That loop's clock."""

    def opened(self, conn: Connection) -> None:
        """The connection came up."""

    def lost(self, conn: Connection) -> None:
        """The connection ended."""

    def release(self, conn: Connection) -> None:
        """The connection finished its exchange and may carry another."""


class _ReplyStopError(Exception):
    """Raised inside parser callbacks to stop the parser; carries what to fail the exchange with."""

    def __init__(self, error: UpstreamError) -> None:
        super().__init__(str(error))
        self.error = error


class Connection(asyncio.Protocol):
    """One connection. `future` is set from `begin` until the head (stream) or all (unary) of the reply is there;
    `reply` is set while a stream's body arrives; both None means that nobody waits."""

    __slots__ = (
        "_encoding", "_gap_started", "_head_bytes", "_headers", "_interim", "_keep", "_keep_s", "_length", "_limits",
        "_parser", "_poll", "_pool", "_sized", "_started", "_state", "_status", "_streaming", "_time", "_timer",
        "_timer_at", "_tls13", "_transport", "_written_at", "future", "idle_at", "parts", "paused", "reply", "waiting",
    )  # fmt: skip

    def __init__(self, pool: Keeper) -> None:
        self._pool = pool
        self._time = pool.time
        self._transport: asyncio.Transport | None = None
        self.future: asyncio.Future[Any] | None = None  # of a Reply, or of a StreamReply when `_streaming`
        self.reply: StreamReply | None = None
        self.paused = False
        self.idle_at = 0.0
        self._state = _IDLE
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._keep = True
        self._keep_s = IDLE_S
        self.parts: list[bytes] = []  # of the body
        self.waiting = 0  # their bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is up."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from it
        self._parser = httptools.HttpResponseParser(self)
        encrypted = transport.get_extra_info("ssl_object")
        self._tls13 = encrypted is not None and encrypted.version() == "TLSv1.3"
        poll = select.poll()
        poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN | select.POLLRDHUP)
        self._poll: Callable[[int], list[tuple[int, int]]] = poll.poll
        self._pool.opened(self)

    def usable(self, now: float) -> bool:
        """Whether an idle connection may carry another request: young enough, open, and nothing waits to be read
        (that would be its end, or bytes that answer no question). One that may not is closed."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        if now - self.idle_at > self._keep_s or self._poll(0):
            transport.abort()
            return False
        return True

    def begin(
        self, data: bytes, limits: Limits, started: float, future: asyncio.Future[Any], *, streaming: bool
    ) -> None:
        """Send a request; `future` gets the reply, or an `UpstreamError`. `started` is when the call began."""
        transport = self._transport
        if transport is None or transport.is_closing():
            future.set_exception(UpstreamResetError("the connection closed before the write", kind="write", sent=False))
            return
        self.future = future
        self._state = _HEAD
        self._streaming = streaming
        self._limits = limits
        self._started = started
        self._headers: Headers = []
        self._head_bytes = self.waiting = 0
        self.parts = []
        self._encoding = self._length = b""
        self._interim = self._sized = False
        transport.write(data)
        if transport.is_closing():
            self._fail(UpstreamResetError("the connection refused the write", kind="write", sent=False))
            return
        self._written_at = now = self._time()
        self._arm(min(now + limits.first_byte_s, started + limits.total_s))

    def drop(self) -> None:
        """Close at once, whatever is going on; nobody is told."""
        self.future = self.reply = None
        self._state = _IDLE
        if self._transport is not None:
            self._transport.abort()

    def resume(self) -> None:
        """The reader has caught up: read from the socket again."""
        self.paused = False
        self._gap_started = self._time()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Bytes from the upstream."""
        if self._state == _IDLE:
            self.drop()
            return
        waiting = self.waiting
        try:
            self._parser.feed_data(data)
        except Exception as exc:
            if self._state != _IDLE:
                self._fail(_error_of(exc))
                return
            self._keep = False  # The reply is whole, what stopped the parser lies behind it.
        if self._state == _IDLE:
            self._finish()
        else:
            self._go_on(0 if self.waiting > waiting else len(data))

    def eof_received(self) -> None:
        """The upstream sends no more; the transport closes and `connection_lost` judges."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection ended: that is the end of a reply without a length, and a failure for any other."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport = None
        self._pool.lost(self)
        if self._state == _IDLE:
            return
        if exc is None and self._state >= _FIRST and not self._sized:
            self._keep = False
            self._state = _IDLE
            self._finish()
            return
        when = "before" if self._state == _HEAD else "during"
        why = f": {exc!s:.200}" if isinstance(exc, ssl.SSLError) else ""
        error: UpstreamError
        if self._refused_ours(exc):
            error = ConnectFailedError(f"the upstream ended the TLS handshake{why}", kind="tls")
        else:
            error = UpstreamResetError(f"the upstream closed the connection {when} its reply{why}")
        error.__cause__ = exc
        self._fail(error)

    def _refused_ours(self, exc: Exception | None) -> bool:
        """Whether the server refused our certificate. With TLS 1.3 it says so only now, when the handshake is over on
        this side: of what was written to it, it has read nothing. A connection that answered before was accepted."""
        said_nothing = self._state == _HEAD and not self._head_bytes and not self.idle_at
        return said_nothing and self._tls13 and tls.refuses_ours(exc)

    def on_message_begin(self) -> None:
        """A reply begins; a second one to the same request is nobody's, and ends the connection."""
        if self._state == _IDLE:
            raise _ReplyStopError(UpstreamProtocolError("bytes behind the reply"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line (trailers come here too, and are dropped)."""
        if self._state != _HEAD:
            return
        name = name.lower()
        self._headers.append((name, value))
        if name not in _TELLING:
            return
        if name == b"content-length":
            self._length = value
            self._sized = True
        elif name == b"transfer-encoding":
            self._sized = value.lower().rpartition(b",")[2].strip() == b"chunked"
        elif name == b"content-encoding":
            self._encoding = value.strip().lower()
        else:
            self._keep_s = _keep_alive_of(value)

    def on_headers_complete(self) -> None:
        """The head is there: an interim one is skipped, a stream's is handed over."""
        status = self._parser.get_status_code()
        if status < 200:
            if status == 101:
                raise _ReplyStopError(UpstreamProtocolError("the upstream switched protocols"))
            self._interim = True
            return
        self._state = _FIRST
        self._status = status
        self._keep = self._parser.should_keep_alive()
        self._sized = self._sized or self._keep or status in _BODILESS
        if self._encoding == b"identity":
            self._encoding = b""
        if not self._streaming:
            if self._length and int(self._length) > self._limits.body_bytes:
                raise _too_large(self._limits)
            return
        try:
            inflater = Inflater(self._encoding) if self._encoding else None
        except InflateError as exc:
            raise _ReplyStopError(UpstreamProtocolError(str(exc))) from exc
        headers = _plain_headers(self._headers) if inflater else self._headers
        self.reply = StreamReply(status, headers, self, inflater)
        future, self.future = self.future, None
        if future is not None and not future.done():
            future.set_result(self.reply)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._state = _BODY
        self.parts.append(data)
        self.waiting += len(data)
        if self.waiting > self._limits.body_bytes and not self._streaming:
            raise _too_large(self._limits)

    def on_message_complete(self) -> None:
        """The end of an interim reply, or of the reply."""
        if self._interim:
            self._interim = self._sized = False
            self._encoding = self._length = b""
            self._headers = []
            return
        self._state = _IDLE

    def _go_on(self, bodiless: int) -> None:
        """One read did not complete the reply; `bodiless` is its size if it brought nothing of the body."""
        if bodiless:
            # The parser holds back unfinished header and trailer lines, without a limit of its own.
            self._head_bytes += bodiless
            if self._head_bytes > HEADER_BYTES:
                self._fail(UpstreamProtocolError("the reply's headers are too large"))
                return
        else:
            self._head_bytes = 0
        if self._state == _HEAD:
            return
        self._gap_started = now = self._time()
        if self._state == _BODY and now + self._limits.gap_s < self._timer_at:
            self._arm(now + self._limits.gap_s)
        if self.reply is None or not self.parts:
            return
        self.reply.notify()
        if self.waiting > BUFFER_BYTES and not self.paused:
            transport = self._transport
            if transport is not None and not transport.is_closing():
                self.paused = True
                transport.pause_reading()

    def _finish(self) -> None:
        """The reply is complete: hand it over, then the connection back."""
        if self.reply is not None:
            self.reply.end(None)
        elif self.future is not None and not self.future.done():
            try:
                self.future.set_result(self._whole())
            except Exception as exc:
                self._fail(_error_of(exc))
                return
        self.future = self.reply = None
        self.parts = []
        transport = self._transport
        if transport is None:
            return
        if self.paused:
            self.resume()
        # A reply that came before the whole request was taken leaves the rest of it in the way of the next one, and
        # of an orderly close too, which would wait for a peer that may never read it.
        if self._keep and not transport.is_closing() and transport.get_write_buffer_size() == 0:
            self.idle_at = self._time()
            self._pool.release(self)
        else:
            transport.abort()

    def _whole(self) -> Reply:
        parts = self.parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        headers = self._headers
        if self._encoding and body:
            body = inflate_all(self._encoding, body, self._limits.body_bytes)
            headers = _plain_headers(headers)
        return Reply(self._status, headers, body)

    def _fail(self, error: UpstreamError) -> None:
        """The exchange failed: tell whoever waits, close the connection."""
        future, reply = self.future, self.reply
        self.drop()
        self.parts = []
        if reply is not None:
            reply.end(error)
        elif future is not None and not future.done():
            future.set_exception(error)

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._pool.loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        """The armed deadline, or one before it, may have passed; the exchange it was armed for may be long over."""
        self._timer = None
        now = self._time() + TIMER_SLACK_S
        if self._state == _IDLE:
            if now < self.idle_at + self._keep_s:
                self._arm(self.idle_at + self._keep_s)
            else:
                self.drop()
            return
        limits = self._limits
        total_at = self._started + limits.total_s
        if self._state != _BODY:
            due, which, limit_s = self._written_at + limits.first_byte_s, "first_byte", limits.first_byte_s
        else:
            due = now + limits.gap_s if self.paused else self._gap_started + limits.gap_s
            which, limit_s = "gap", limits.gap_s
        if now >= total_at:
            self._fail(_timeout("total", limits.total_s))
        elif now >= due:
            self._fail(_timeout(which, limit_s))
        else:
            self._arm(min(due, total_at))


_WAITED_FOR = {
    "first_byte": "the reply's body did not begin",
    "gap": "nothing more of the reply came",
    "total": "the reply was not complete",
}


def _timeout(which: str, limit_s: float) -> UpstreamTimeoutError:
    return UpstreamTimeoutError(f"{_WAITED_FOR[which]} within {limit_s:g} s", kind=f"{which}_timeout", sent=True)


def _too_large(limits: Limits) -> _ReplyStopError:
    return _ReplyStopError(ReplyTooLargeError(f"the reply is larger than {limits.body_bytes} bytes"))


def _error_of(exc: Exception) -> UpstreamError:
    """What is wrong with a reply: our own refusal inside a parser callback, a bad body, or bytes that are not HTTP."""
    if isinstance(exc, InflateError):
        return UpstreamProtocolError(str(exc))
    cause = exc.__context__
    if isinstance(cause, _ReplyStopError):
        return cause.error
    error = UpstreamProtocolError(f"the reply is not valid HTTP/1.1: {exc}")
    error.__cause__ = cause if isinstance(cause, Exception) else exc
    return error


def _plain_headers(headers: Headers) -> Headers:
    """Without what described the compressed form."""
    return [(name, value) for name, value in headers if name not in (b"content-encoding", b"content-length")]


@functools.lru_cache(maxsize=256)
def _keep_alive_of(value: bytes) -> float:
    """How long a `Keep-Alive` header lets us use an idle connection: a second less than the peer keeps it."""
    for part in value.lower().split(b","):
        name, _, seconds = part.strip().partition(b"=")
        if name == b"timeout" and seconds.isdigit() and len(seconds) < 7:
            return min(IDLE_S, max(0.5, int(seconds) - 1.0))
    return IDLE_S
