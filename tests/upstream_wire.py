"""The connections of the fault upstream, and the record of what came over them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.upstream import FaultUpstream


class GoneError(Exception):
    """The client closed the connection while it was being answered."""


class EndError(Exception):
    """The behaviour ended the connection itself."""


@dataclass
class Request:
    """One request as it arrived, and what became of its answer. Times are `time.monotonic()` seconds."""

    number: int
    connection: int  # requests with the same number came over the same connection
    method: str
    path: str
    headers: dict[str, str]  # names in lower case; of repeated ones the last
    raw_headers: list[tuple[str, str]]
    body: bytes
    behaviour: str
    at: float
    words_sent: int = 0
    bytes_sent: int = 0
    finished_at: float | None = None  # the answer went out completely, or the behaviour ended by itself
    closed_by_peer_at: float | None = None  # the client closed before that
    connection_closed_at: float | None = None

    @property
    def json(self) -> Any:
        """The body decoded, None when it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def model(self) -> str:
        """The model the request named, empty when none."""
        body = self.json
        return str(body.get("model", "")) if isinstance(body, dict) else ""

    @property
    def closed_by_peer(self) -> bool:
        """Whether the client left before the answer was complete."""
        return self.closed_by_peer_at is not None

    def truth(self) -> dict[str, Any]:
        """One line of the truth file."""
        return {
            "number": self.number,
            "connection": self.connection,
            "path": self.path,
            "model": self.model,
            "behaviour": self.behaviour,
            "request_id": self.headers.get("x-request-id", ""),
            "words_sent": self.words_sent,
            "bytes_sent": self.bytes_sent,
            "finished": self.finished_at is not None,
            "closed_by_peer": self.closed_by_peer,
            "at": self.at,
        }


class Connection(asyncio.Protocol):
    """One accepted connection: buffers what arrives, knows when the peer left, writes under back-pressure."""

    def __init__(self, server: FaultUpstream) -> None:
        self.server = server
        self.buffer = bytearray()
        self.arrived = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self.gone = asyncio.Event()
        self.request: Request | None = None
        self.requests: list[Request] = []
        self.on_next = ""  # what the next request on this connection meets: "", "close-read", "close-unread"
        self.number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.number = self.server._opened(self)
        self.task = asyncio.get_running_loop().create_task(self.server._serve(self))

    def data_received(self, data: bytes) -> None:
        if self.on_next == "close-unread":
            self.server.unread_closes += 1
            self.reset()
            return
        self.buffer += data
        self.arrived.set()

    def eof_received(self) -> None:
        return None

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        now = time.monotonic()
        for request in self.requests:
            request.connection_closed_at = now
        if self.request is not None and self.request.finished_at is None:
            self.request.closed_by_peer_at = now
        for event in (self.gone, self.arrived, self.writable):
            event.set()
        self.server._closed(self)

    def reset(self) -> None:
        """Close with a TCP reset."""
        raw = self.transport.get_extra_info("socket")
        if raw is not None and raw.family != socket.AF_UNIX:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    async def send(self, data: bytes) -> None:
        """Write, wait while the peer does not read, raise when it left."""
        if self.gone.is_set() or self.transport.is_closing():
            raise GoneError
        self.transport.write(data)
        if self.request is not None:
            self.request.bytes_sent += len(data)
        if not self.writable.is_set():
            await self.writable.wait()
        if self.gone.is_set():
            raise GoneError

    async def nap(self, seconds: float) -> None:
        """Sleep, but raise at once when the peer leaves."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.gone.wait(), seconds)
        if self.gone.is_set():
            raise GoneError

    async def silence(self) -> None:
        """Say nothing until the peer leaves."""
        await self.gone.wait()
        raise GoneError

    async def read_until(self, mark: bytes) -> bytes:
        start = 0
        while (end := self.buffer.find(mark, start)) < 0:
            start = max(0, len(self.buffer) - len(mark))
            await self._more()
        return self._take(end + len(mark))

    async def read_exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            await self._more()
        return self._take(count)

    def _take(self, count: int) -> bytes:
        data = bytes(memoryview(self.buffer)[:count])
        del self.buffer[:count]
        return data

    async def _more(self) -> None:
        if self.gone.is_set():
            raise GoneError
        self.arrived.clear()
        await self.arrived.wait()
