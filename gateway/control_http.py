"""HTTP/1.1 to control over its Unix socket, one exchange at a time per connection, and how an exchange can fail.

Made for `gateway.forward`, which streams request bodies; calls to providers go through `providers.upstream`.
"""

from __future__ import annotations

import asyncio
from typing import cast

import httptools

BUFFER_BYTES = 256 * 1024  # of a reply, before reading from control pauses


class ForwardError(Exception):
    """A request that could not be forwarded, or a reply that ended early."""


class ControlAwayError(ForwardError):
    """Control does not accept connections, or went away before it answered anything."""


class ReplyCutError(ForwardError):
    """Control's reply ended in its middle. Raised to the server, which closes the client's connection."""


class ClientGoneError(ForwardError):
    """The client disconnected."""


class BodyTooLargeError(ForwardError):
    """The request body is over the limit."""


class BodyTimeoutError(ForwardError):
    """The request body did not arrive in time."""


class ReplyTimeoutError(ForwardError):
    """Control took the request and did not answer in time."""


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection to control, used for one exchange at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.idle_since = 0.0
        self.reused = False
        self._parser = httptools.HttpResponseParser(self)
        self._writable = asyncio.Event()
        self._writable.set()
        self._news = asyncio.Event()
        self.begin(head_only=False)

    def begin(self, *, head_only: bool) -> None:
        """Forget the last exchange; `head_only` says that the reply will have no body whatever its headers say."""
        self.head_only = head_only
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.touched = False  # has any byte of a reply arrived
        self.complete = False
        self.keep = False
        self._started = False
        self._failure: ForwardError | None = None
        self._pieces: list[bytes] = []
        self._held = 0
        self._paused = False

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of asyncio's

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed: an exchange that is not complete has failed."""
        self.transport = None
        self._writable.set()
        # Control always declares where a body ends, so an end by closing is a cut as well.
        if not self.complete:
            self.fail(ReplyCutError("control closed the connection in the middle of its reply"))

    def pause_writing(self) -> None:
        """The socket's buffer is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """There is room again."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Bytes of the reply."""
        self.touched = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            if not self.complete:
                self.fail(ReplyCutError(f"control's reply is not HTTP: {exc}"))
            self.close()

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header of the reply."""
        if not self._started:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The reply's head is complete."""
        status = self._parser.get_status_code()
        if status < 200:
            self.headers = []
            return
        self.status, self._started = status, True
        self.keep = self._parser.should_keep_alive()
        if self.head_only:
            # The parser cannot know that no body follows, so its state is spent with this reply.
            self.complete, self.keep = True, False
        self._news.set()

    def on_body(self, body: bytes) -> None:
        """A piece of the reply's body; reading pauses when too much is held."""
        if self.complete:
            return
        self._pieces.append(body)
        self._held += len(body)
        if self._held > BUFFER_BYTES and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()
        self._news.set()

    def on_message_complete(self) -> None:
        """The reply is complete."""
        if self._started:
            self.complete = True
            self._news.set()

    # for the forwarder

    def fail(self, failure: ForwardError) -> None:
        """End the exchange with `failure`; what waits for the reply gets it raised."""
        if self._failure is None:
            self._failure = failure
        self._news.set()

    def close(self) -> None:
        """Drop the connection at once."""
        if self.transport is not None:
            self.transport.abort()

    async def write(self, data: bytes) -> None:
        """Send once there is room. On a dead connection nothing happens: the reader's side tells."""
        await self._writable.wait()
        if self.transport is not None:
            self.transport.write(data)

    async def wait_started(self) -> None:
        """Return once the reply's status and headers are there; raises what ended the exchange before."""
        while not self._started:
            if self._failure is not None:
                raise self._failure
            self._news.clear()
            await self._news.wait()

    async def read(self) -> bytes:
        """All body bytes at hand, b"" at the end; raises what ended the exchange."""
        while not self._pieces:
            if self.complete:
                return b""
            if self._failure is not None:
                raise self._failure
            self._news.clear()
            await self._news.wait()
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._held = 0
        if self._paused and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()
        return data

    @property
    def drained(self) -> bool:
        """Whether the whole reply has been read out."""
        return self.complete and not self._pieces
