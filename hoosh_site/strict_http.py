"""What an ASGI application cannot see of HTTP/1.1, refused before one is asked: a thin subclass of uvicorn's protocol.

The parser itself already refuses bare LF, folded headers, NUL, Content-Length beside Transfer-Encoding and repeated or
malformed lengths. Added here: a deadline and a size for the header block, a cap on connections, exactly one sane Host,
`chunked` as the only transfer coding, no absolute-form targets, no trailers, no header names with an underscore, no
endless pipelines. A refusal is answered once (400, 408, 431 or 503) and the connection is closed; nothing that follows
a refused request on the same connection is ever read as a request.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

LINGER_S = 1.0  # how long a refused peer may go on sending before the connection is dropped
_HOST_BYTES = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_~:[]%"


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of one listener."""

    header_s: float = 10.0  # from the first byte (or the connection's start) to the end of the headers
    header_bytes: int = 16 * 1024  # request line and headers together
    header_count: int = 100
    connections: int = 10_000  # at once, per worker
    pipelined: int = 16  # requests waiting behind one that is being answered


class _State(enum.Enum):
    HEADERS = 1  # reading a request's head, or waiting for one
    BODY = 2
    REFUSED = 3


class RefusedError(Exception):
    """A request that must not be served: status and a sentence for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def error_reply(status: int, message: str) -> bytes:
    """A complete raw HTTP/1.1 answer that closes the connection, in the API's error shape."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = {431: "headers_too_large", 408: "request_timeout", 503: "overloaded"}.get(status, "bad_request")
    body = msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n{'retry-after: 1' + chr(13) + chr(10) if status == 503 else ''}"
        "connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


class CorkedTransport:
    """A transport for one reply: its first write is kept until the second, then both leave together.

    A head and a body written apart cost the sender a second system call and the reader a second wake-up.
    """

    __slots__ = ("_head", "_transport", "write")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.write = self._keep

    def _keep(self, data: bytes) -> None:
        self._head = data
        self.write = self._join

    def _join(self, data: bytes) -> None:
        self._transport.write(self._head + data)
        self.write = self._transport.write

    def close(self) -> None:
        """Close behind what was kept."""
        if self.write == self._join:
            self._join(b"")
        self._transport.close()

    def is_closing(self) -> bool:
        """As the transport says."""
        return self._transport.is_closing()


class StrictProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol with the refusals named in the module's docstring."""

    limits = HttpLimits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._state = _State.HEADERS
        self._fresh = True  # nothing of the next request has arrived yet
        self._size = 0
        self._header_timer: asyncio.TimerHandle | None = None
        self._hosts: list[bytes] = []
        self._coding: bytes | None = None
        self._refusal: RefusedError | None = None
        self._replaying = False  # a made-up head is being fed: its callbacks say nothing new
        self._ending = False  # the request being read is the connection's last
        self._served: RequestResponseCycle | None = None  # the one being answered; `cycle` is the one being read
        self.on_gone: Callable[[], None] | None = None  # told when the client leaves; see `gateway.app.Connection`
        self.task: asyncio.Task[None] | None = None  # of the request being answered

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first request; note a connection over the cap (answered at its first byte)."""
        super().connection_made(transport)
        self._arm()
        if len(self.connections) > self.limits.connections:
            self._refusal = RefusedError(503, "Too many connections. Try again in a moment.")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock; tell the exchange under way, which then need not spend a task on watching."""
        self._disarm()
        self.pipeline.clear()  # what waits is never started
        served = self._served
        if served is not None and not served.response_complete:
            served.disconnected = True  # the base class tells the last one it has read only
            served.message_event.set()
        super().connection_lost(exc)
        if self.on_gone is not None:
            self.on_gone()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, or drop it on a refused connection."""
        if self._state is _State.REFUSED:
            return
        self._unset_keepalive_if_required()
        if self._refusal is not None:
            self._refuse(self._refusal)
            return
        self._fresh = False
        in_head = self._state is _State.HEADERS
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as exc:
                self._decline_upgrade(data[exc.args[0] :])
        except httptools.HttpParserError:
            self._refuse(self._reason())
        else:
            # A head that came whole, as nearly all do, needs no clock.
            if self._state is _State.HEADERS and not self._fresh:
                self._watch_head(len(data) if in_head else 0)

    def _watch_head(self, received: int) -> None:
        # The parser reports whole headers only, so an endless one shows as chunks without an end.
        self._size += received
        if self._size > self.limits.header_bytes * 2:
            self._refuse(RefusedError(431, f"The headers are over {self.limits.header_bytes} bytes."))
        elif self._header_timer is None:
            self._arm()

    def _decline_upgrade(self, rest: bytes) -> None:
        """Answer a request that offered an upgrade as plain HTTP/1.1; the connection ends with it.

        The parser stops at such a request and leaves its body unread, so the body goes through a parser that has not
        seen the offer.
        """
        framing = next((pair for pair in self.headers if pair[0] in (b"content-length", b"transfer-encoding")), None)
        if framing is not None:
            self.parser = httptools.HttpRequestParser(self)
            self._replaying = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%b: %b\r\n\r\n" % framing)
            if not self._replaying:  # a body of no bytes is complete already
                self._end_behind_reply()
                return
            self._replaying, self._state = False, _State.BODY
            self.cycle.keep_alive = False
            self._ending = True
            self.parser.feed_data(rest)
        else:
            self._end_behind_reply()

    # Parser callbacks: an exception here ends the parse and reaches `data_received` as HttpParserError.

    def on_message_begin(self) -> None:
        """A request line starts."""
        if self._replaying:
            return
        if self._ending:
            self._fail(400, "The connection has ended.")
        self._state, self._fresh, self._size = _State.HEADERS, False, 0
        self._hosts, self._coding = [], None
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        if self._replaying:
            return
        self._size += len(url)
        if self._size > self.limits.header_bytes:
            self._fail(431, f"The request target is over {self.limits.header_bytes} bytes.")
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; trailers behind a chunked body are counted and dropped."""
        if self._replaying:
            return
        self._size += len(name) + len(value) + 4
        if self._size > self.limits.header_bytes:
            self._fail(431, f"The headers are over {self.limits.header_bytes} bytes.")
        if self._state is not _State.HEADERS or b"_" in name:
            return
        if len(self.headers) >= self.limits.header_count:
            self._fail(431, f"More than {self.limits.header_count} headers.")
        kept = name.lower()
        self.headers.append((kept, value))  # what uvicorn's own method does, without a call per header
        if kept == b"host":
            self._hosts.append(value)
        elif kept == b"transfer-encoding":
            self._coding = value
        elif kept == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True

    def on_headers_complete(self) -> None:
        """The head is complete: judge it, then let uvicorn start the application."""
        if self._replaying:
            return
        self._disarm()
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._fail(400, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        if self.parser.get_method() == b"CONNECT" or not self.url.startswith((b"/", b"*")):
            self._fail(400, "The request target must be a path.")
        if len(self._hosts) != 1 and (self._hosts or version == "1.1"):
            self._fail(400, "Exactly one Host header is required.")
        if self._hosts and (not self._hosts[0] or self._hosts[0].translate(None, _HOST_BYTES)):
            self._fail(400, "The Host header is not valid.")
        if self._coding is not None and (version == "1.0" or self._coding.lower() != b"chunked"):
            self._fail(400, "Only `Transfer-Encoding: chunked` is understood.")
        if len(self.pipeline) >= self.limits.pipelined:
            self._fail(400, "Too many pipelined requests.")
        self.scope["hoosh.connection"] = self  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()
        if self.pipeline:
            self._read_on()  # the base class stops reading behind a request that must wait
        self._state = _State.BODY

    def on_message_complete(self) -> None:
        """The body is complete: what follows is the next request."""
        if self._replaying:
            self._replaying = False
        elif self.parser.should_upgrade() and (self._coding is not None or self._has_length()):
            return  # the parser has skipped the body; see `_decline_upgrade`
        self._disarm()
        self._state, self._fresh = _State.HEADERS, True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """A reply that came before the end of its request's body: the rest is dropped, and must come in time."""
        super().on_response_complete()
        cycle = self.cycle
        if cycle.response_complete and cycle.more_body and not self.transport.is_closing():
            self._disarm()
            self._header_timer = self.loop.call_later(self.limits.header_s, self.transport.abort)

    # What the gateway's ASGI binding asks for (`gateway.app.Connection`)

    def listen(self, gone: Callable[[], None]) -> None:
        """Tell `gone` when the client leaves. The base class stops reading at 64 KiB of a body and resumes only when
        it is asked for more; a socket that is not read does not tell that its peer has left."""
        self.on_gone = gone
        self._read_on()

    def body(self, receive: Any) -> bytes | None:
        """The whole body of a request, if all of it was read before its application asked; None else."""
        cycle: RequestResponseCycle = receive.__self__
        if cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        cycle.message_event.clear()
        return body

    def piece(self, send: Any, data: bytes) -> bool:
        """Write a piece of a chunked reply, as an ASGI message would; False = use that."""
        cycle: RequestResponseCycle = send.__self__
        if cycle.flow.write_paused or cycle.disconnected or not (cycle.chunked_encoding and data):
            return False
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def cork(self, send: Any) -> None:
        """Let the head of the reply that `send` is about to start wait for the first piece of its body: one write."""
        cycle = send.__self__
        cycle.transport = CorkedTransport(cycle.transport)

    def reply(self, send: Any, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """Send a complete reply in one write, what two ASGI messages would do in two; False = use those instead.

        `headers` must be sound already (lower-case names, no line ends) and hold the content-length.
        """
        cycle: RequestResponseCycle = send.__self__
        if cycle.flow.write_paused or cycle.disconnected or cycle.response_started:
            return False
        parts = [STATUS_LINE[status]]
        for name, value in cycle.default_headers:
            parts += (name, b": ", value, b"\r\n")
        says_close = False
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
            if name == b"connection":
                cycle.keep_alive, says_close = False, True
        parts += (b"\r\n" if cycle.keep_alive or says_close else b"connection: close\r\n\r\n", body)
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.transport.write(b"".join(parts))
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()
        return True

    # Helpers

    def _read_on(self) -> None:
        if not self.pipeline or len(self.cycle.body) <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._served = cycle
        task = self.task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _has_length(self) -> bool:
        return any(name == b"content-length" for name, _ in self.headers)

    def _fail(self, status: int, message: str) -> None:
        self._refusal = RefusedError(status, message)
        raise self._refusal

    def _arm(self) -> None:
        self._header_timer = self.loop.call_later(self.limits.header_s, self._header_deadline)

    def _disarm(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _header_deadline(self) -> None:
        self._header_timer = None
        if self._fresh and self._running() is None:
            self.transport.close()  # a connection on which nothing was ever asked needs no answer
        else:
            self._refuse(RefusedError(408, "The request's headers did not arrive in time."))

    def _reason(self) -> RefusedError:
        return self._refusal or RefusedError(400, "This is not a valid HTTP/1.1 request.")

    def _running(self) -> RequestResponseCycle | None:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, whatever the base class says
        return cycle if cycle is not None and not cycle.response_complete else None

    def _end_behind_reply(self) -> None:
        """Read nothing more; close behind the last reply that is due."""
        self._state = _State.REFUSED
        self._disarm()
        running = self._running()
        if running is not None:
            running.keep_alive = False
        else:
            self.transport.close()

    def _refuse(self, refusal: RefusedError) -> None:
        """Answer once and close; a reply that is under way for an earlier request is left to end first."""
        running, broken_body = self._running(), self._state is _State.BODY
        if running is not None and not broken_body:
            self._end_behind_reply()
            return
        self._state = _State.REFUSED
        self._disarm()
        if running is not None:
            # The request being answered is itself the broken one: its application is told that the client left.
            running.disconnected = True
            running.message_event.set()
            if running.response_started or self.pipeline:
                self.transport.abort()
                return
        if not self.transport.is_closing():
            self.transport.write(error_reply(refusal.status, refusal.message))
            # Closing at once would reset the connection while bytes are still arriving, and the answer would be lost.
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.loop.call_later(LINGER_S, self.transport.abort)


def strict_protocol(limits: HttpLimits) -> type[StrictProtocol]:
    """The protocol class with the given bounds, for `uvicorn.Config(http=…)`."""
    return type("BoundedStrictProtocol", (StrictProtocol,), {"limits": limits})
