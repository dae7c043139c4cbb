"""Taking connections from a listening socket, many per turn of the loop.

libuv, which uvloop is built on, accepts one connection per turn. A turn lasts as long as all that is ready takes: on a
busy worker some 50 ms, so that the last of 500 clients that connect at once would wait seconds for its first answer.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

log = logging.getLogger("hoosh.worker")

ACCEPT_MAX = 128  # per turn; the rest comes with the next
PAUSE_S = 0.1  # after an error such as too many open files


class Acceptor:
    """Accepts on `listener` and gives each connection a protocol; looks like an asyncio server to uvicorn."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        factory: Callable[[], asyncio.Protocol],
        *,
        backlog: int,
    ) -> None:
        """Start accepting. The listener stays the caller's to close."""
        self._loop, self._listener, self._factory = loop, listener, factory
        self._adopting: set[asyncio.Task[None]] = set()
        self._resume: asyncio.TimerHandle | None = None
        self._closed = False
        listener.setblocking(False)
        listener.listen(backlog)
        loop.add_reader(listener.fileno(), self._ready)

    def close(self) -> None:
        """Accept no more; connections accepted so far go on."""
        if not self._closed:
            self._closed = True
            if self._resume is not None:
                self._resume.cancel()
            self._loop.remove_reader(self._listener.fileno())

    async def wait_closed(self) -> None:
        """Until every accepted connection has its protocol."""
        if self._adopting:
            await asyncio.wait(self._adopting)

    def _ready(self) -> None:
        for _ in range(ACCEPT_MAX):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                log.warning("connections_not_accepted", extra={"reason": str(exc)})
                self._loop.remove_reader(self._listener.fileno())
                self._resume = self._loop.call_later(PAUSE_S, self._again)
                return
            task = self._loop.create_task(self._adopt(connection))
            self._adopting.add(task)
            task.add_done_callback(self._adopting.discard)

    def _again(self) -> None:
        self._resume = None
        self._loop.add_reader(self._listener.fileno(), self._ready)

    async def _adopt(self, connection: socket.socket) -> None:
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(self._factory, connection)
        except OSError:  # the peer has left already
            connection.close()
