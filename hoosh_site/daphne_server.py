"""Daphne made safe for unattended use; import it before anything else touches Twisted.

Stock Daphne buffers replies without bound, collects request bodies of any size, waits for ever for unfinished
requests and cancels running ones at a stop. `HardenedServer` adds back-pressure, an early 413, deadlines for headers
and bodies, and a drain. It leans on the insides of Daphne 4.2 and Twisted's HTTPChannel, so an upgrade of either needs
tests/site/test_daphne_server.py, which holds every promise.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import daphne.server  # isort: skip  - installs the asyncio reactor; twisted.internet.reactor comes after it
from daphne.http_protocol import HTTPFactory, WebRequest
from twisted.internet import defer
from twisted.internet import reactor as installed_reactor

reactor: Any = installed_reactor
twisted_loop: asyncio.AbstractEventLoop = daphne.server.twisted_loop

_REPLY_413 = (
    b"HTTP/1.1 413 Payload Too Large\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 35\r\n\r\n"
    b"The request body is over the limit."
)
_REPLY_408 = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class DaphneLimits:
    """Bounds of the server. `body_bytes` is above the forwarder's, so that workers refuse first."""

    header_s: float = 10.0
    body_s: float = 330.0  # from the end of the headers to the end of the body
    body_bytes: int = 56 * 1024 * 1024
    linger_s: float = 5.0  # how long a refused body is still read and dropped, so that the client sees the answer
    drain_s: float = 10.0  # for running requests at a stop


class HardenedRequest(WebRequest):  # type: ignore[misc]
    """One request: counts its body, watches its deadlines and lets the socket's buffer hold back the application."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.writable = asyncio.Event()
        self.writable.set()
        self._received = 0
        self._refused = False
        self._producing = False
        self._timer: Any = None
        # The application reads forms. Twisted would read them as well, and answer by itself, without a body or an end,
        # what it cannot read.
        super().__init__(*args, **{**kwargs, "parsePOSTFormSubmission": False})
        # Twisted makes the request at its first line, so this is the deadline for the header lines.
        self._timer = reactor.callLater(self._limits.header_s, self._refuse, _REPLY_408)

    @property
    def _limits(self) -> DaphneLimits:
        limits: DaphneLimits = self.channel.factory.server.limits
        return limits

    # Push producer: the channel says when the socket's buffer is full.

    def pauseProducing(self) -> None:
        """The socket takes no more for now."""
        self.writable.clear()

    def resumeProducing(self) -> None:
        """There is room again."""
        self.writable.set()

    def stopProducing(self) -> None:
        """The connection ends; nobody may keep waiting for room."""
        self.writable.set()

    # Progress of the request

    def gotLength(self, length: int | None) -> None:
        """The headers are complete; `length` is the declared body, None when chunked."""
        self._stop_timer()
        self._timer = reactor.callLater(self._limits.body_s, self._refuse, _REPLY_408)
        super().gotLength(length)
        if length is not None and length > self._limits.body_bytes:
            self._refuse(_REPLY_413)

    def handleContentChunk(self, data: bytes) -> None:
        """A piece of the body: kept, or dropped once the request is refused."""
        self._received += len(data)
        if self._received > self._limits.body_bytes and not self._refused:
            self._refuse(_REPLY_413)
        if not self._refused:
            super().handleContentChunk(data)

    def process(self) -> Any:
        """The request is complete: run the application, unless it was refused."""
        self._stop_timer()
        if self._refused:
            self.channel.loseConnection()
            return None
        return super().process()

    def connectionLost(self, reason: Any) -> None:
        """The client has left."""
        self._stop_timer()
        self.writable.set()
        super().connectionLost(reason)

    # Reply

    def handle_reply(self, message: dict[str, Any]) -> None:
        """One message of the application; registers with the channel for as long as the reply lasts."""
        open_ = not self.finished and self.channel is not None
        if message.get("type") == "http.response.start" and open_ and not self._producing:
            self.registerProducer(self, True)
            self._producing = True
        elif message.get("type") == "http.response.body" and not message.get("more_body"):
            self._stop_producing()
        super().handle_reply(message)

    def handle_exception(self, exception: Exception) -> None:
        """The application failed: 500 before the reply has started, else the connection is cut."""
        if not self._response_started:
            super().handle_exception(exception)
        elif not self.finished and self.channel is not None:
            # A second start would raise into Daphne's own loop and stop it; a clean end would hide the failure.
            self._stop_producing()
            self.channel.transport.abortConnection()

    def _stop_producing(self) -> None:
        if self._producing and not self.finished and self.channel is not None:
            self.unregisterProducer()
        self._producing = False
        self.writable.set()

    def _refuse(self, reply: bytes) -> None:
        self._stop_timer()
        if self._refused or self.finished or self.channel is None:
            return
        self._refused = True
        self.channel.transport.write(reply)
        self._timer = reactor.callLater(self._limits.linger_s, self._drop)

    def _drop(self) -> None:
        self._timer = None
        if not self.finished and self.channel is not None:
            self.channel.transport.abortConnection()

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None


class HardenedFactory(HTTPFactory):  # type: ignore[misc]
    """Makes channels whose requests are `HardenedRequest`s and that must begin one in time."""

    def buildProtocol(self, addr: Any) -> Any:
        """A channel for one connection."""
        protocol = super().buildProtocol(addr)
        protocol.requestFactory = HardenedRequest
        reactor.callLater(self.server.limits.header_s, self._check_first_line, protocol)
        return protocol

    def _check_first_line(self, protocol: Any) -> None:
        channel = getattr(protocol, "_channel", protocol)
        if not channel.requests and channel._buffer and channel.transport is not None:
            # A first line that never ends; a silent connection is the channel's own timeout's business.
            channel.transport.abortConnection()


class HardenedServer(daphne.server.Server):  # type: ignore[misc]
    """Daphne over one Unix socket with `DaphneLimits`. `on_ready` is called once the socket is listening."""

    def __init__(
        self,
        application: Any,
        socket_path: Path | str,
        *,
        limits: DaphneLimits | None = None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        """`X-Forwarded-For` and `-Proto` are believed: only workers can reach the socket (mode 0600)."""
        self.limits = limits or DaphneLimits()
        self.socket_path = Path(socket_path)
        self._ports: list[Any] = []
        self._on_ready = on_ready
        super().__init__(
            application,
            endpoints=[f"unix:{str(socket_path).replace(':', chr(92) + ':')}:mode=600"],
            verbosity=0,
            http_timeout=None,
            proxy_forwarded_address_header="X-Forwarded-For",
            proxy_forwarded_proto_header="X-Forwarded-Proto",
            server_name="",
            application_close_timeout=5,
        )

    @property
    def http_factory(self) -> HTTPFactory:
        """The factory in use; `run` assigns the stock one, which is replaced."""
        return self._http_factory

    @http_factory.setter
    def http_factory(self, factory: HTTPFactory) -> None:
        self._http_factory = HardenedFactory(self)

    def run(self) -> None:
        """Serve until the reactor stops (SIGTERM, SIGINT or `stop`)."""
        self.socket_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Twisted refuses to bind over a socket that a killed process has left behind.
        self.socket_path.unlink(missing_ok=True)
        super().run()

    def listen_success(self, port: Any) -> None:
        """Keep the port, so that a drain can close it."""
        self._ports.append(port)
        super().listen_success(port)
        self._on_ready()

    async def handle_reply(self, protocol: Any, message: dict[str, Any]) -> None:
        """Pass a message to the request, then wait while the client's socket is full."""
        await super().handle_reply(protocol, message)
        writable = getattr(protocol, "writable", None)
        if writable is not None and not writable.is_set():
            await writable.wait()

    def kill_all_applications(self) -> Any:
        """Before the reactor stops: no new connections, running requests finish within `drain_s`, the rest is
        cancelled."""
        for port in self._ports:
            port.stopListening()
        finished: Any = defer.Deferred()
        ends_at = time.monotonic() + self.limits.drain_s

        def look() -> None:
            running = self._running()
            if running and time.monotonic() < ends_at:
                reactor.callLater(0.05, look)
                return
            for task in running:
                task.cancel()
            gathered = asyncio.ensure_future(asyncio.gather(*running, return_exceptions=True))
            gathered.add_done_callback(lambda _: finished.callback(None))

        look()
        return finished

    def _running(self) -> list[asyncio.Future[Any]]:
        tasks = (details.get("application_instance") for details in self.connections.values())
        return [task for task in tasks if task is not None and not task.done()]
