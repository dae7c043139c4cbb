"""A worker process: the inference API on uvicorn; everything else is forwarded to control.

The process opens no database connection and sets up no Django application. It serves on a socket the supervisor has
opened, learns everything from control over the link, and at a stop drains without losing a request that is already on
the wire: no new connections, `connection: close` on each next reply, idle connections closed after two seconds, running
streams until shortly before the deadline, when the runtime ends them itself.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import logging.config
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec
import uvicorn
from channels.routing import ProtocolTypeRouter, URLRouter
from django.urls import re_path

from gateway.forward import Forwarder, ProxyTrust, Receive, Scope, Send
from hoosh_site import child
from hoosh_site.acceptor import Acceptor
from hoosh_site.link import (
    AccessPush,
    Ask,
    AuditPush,
    CachePurge,
    CardsPush,
    ConfigPush,
    Explain,
    Explained,
    Granted,
    Happened,
    HealthPush,
    IdemAnswer,
    IdemBegin,
    IdemEnd,
    LinkClient,
    Recall,
    Register,
    Return,
    SecretsPush,
    Status,
    WarmPush,
)
from hoosh_site.strict_http import HttpLimits, strict_protocol

log = logging.getLogger("hoosh.worker")

FIRST_PUSH_S = 20.0  # how long a start waits for control; then the worker serves and /readyz says 503
LAME_DUCK_S = 2.0  # how long idle connections may still bring a request once the drain has begun
ABORT_BEFORE_S = 1.0  # streams are ended this long before the deadline
KEEP_ALIVE_S = 75  # above every client pool's own limit, so that clients close first


class KnownPaths(URLRouter):  # type: ignore[misc]
    """Channels' router, which tries no patterns for a path that is known letter by letter: that is most requests, and
    each is spared a pattern, its match and a copy of the scope."""

    def __init__(self, routes: list[Any], known: Mapping[str, Any]) -> None:
        super().__init__(routes)
        self._known = known

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """One request."""
        application = self._known.get(scope["path"])
        if application is None or scope["root_path"]:
            application = super().__call__
        found: Awaitable[None] = application(scope, receive, send)
        return found


class DeskLike(Protocol):
    """The part of `budgets.desk.Desk` that the line to control moves."""

    send_ask: Callable[[str, int, int, int, int, int, int], object] | None
    send_return: Callable[[str, int, int, int, int], object] | None

    def on_granted(
        self,
        pool_id: int,
        unit: int,
        window_start: int,
        total: int,
        more: bool,
        spent_out: bool,
        available: int,
        others: int = 0,
    ) -> None:
        """Control's answer to an ask."""

    def on_recall(self, pool_id: int, unit: int, window_start: int) -> None:
        """Give back what is free."""

    def connected(self) -> None:
        """The line is up."""

    def disconnected(self) -> None:
        """The line is down."""


class IdempotencyLike(Protocol):
    """The part of `gateway.idempotency` that the line to control moves. Both callables are false while there is no
    line; their arguments are the fields of `IdemBegin` and `IdemEnd` in order."""

    send_begin: Callable[[str, int, int, str, str, str], bool] | None
    send_end: Callable[[str, int, str, str, bool, int, str, bytes | None], bool] | None

    def on_answer(self, number: int, state: str, status: int, content_type: str, body: bytes | None) -> None:
        """Control's answer to `send_begin` of that number."""

    def disconnected(self) -> None:
        """The line is down: what has no answer yet gets none."""


class HappeningsLike(Protocol):
    """The part of `gateway.happenings` that the line to control moves. False while there is no line."""

    send: Callable[[list[tuple[Any, ...]]], bool] | None


@runtime_checkable
class Tells(Protocol):
    """A runtime that tells what happens in it."""

    @property
    def happenings(self) -> HappeningsLike:
        """What waits to be told."""


class RuntimeLike(Protocol):
    """What a worker needs of `gateway.runtime.Runtime`."""

    inference_pattern: str
    inference_paths: Collection[str]  # those of them that most requests are sent to

    @property
    def desk(self) -> DeskLike:
        """Where tokens and money are held."""

    @property
    def idempotency(self) -> IdempotencyLike:
        """What is known of requests that carry an `Idempotency-Key`."""

    @property
    def ready(self) -> bool:
        """Whether a configuration and keys are loaded."""

    async def start(self) -> None:
        """Open what requests need; may raise."""

    async def stop(self) -> None:
        """Flush and close."""

    def drain(self) -> None:
        """Answer `connection: close` from now on."""

    def abort_streams(self) -> None:
        """End what still runs, in the API's own words."""

    def asgi(self, forward: Any) -> Any:
        """The application for `inference_pattern`; `forward` takes what belongs to control."""

    def status(self) -> dict[str, Any]:
        """Plain figures for health pages."""

    def on_config(self, version: int, blob: bytes) -> None:
        """A published configuration."""

    def on_secrets(self, items: Mapping[int, str]) -> None:
        """Ciphertexts by credential id."""

    def on_access(self, seq: int, full: bool, keys: Sequence[Any], pools: Sequence[Any]) -> None:
        """Keys and pools."""

    def on_cards(self, cards: Sequence[Any], prices: Sequence[Any], models: Mapping[int, Sequence[str]]) -> None:
        """Cards, prices, discovered models."""

    def explain(self, body: bytes) -> bytes:
        """`gateway.runtime.Runtime.explain`."""

    def on_health(self, down: Iterable[int]) -> None:
        """Providers whose probes fail."""

    def on_cache_purge(self, number: int) -> None:
        """Kept answers are to be forgotten."""

    def on_warming(self, questions: Sequence[Any]) -> None:
        """Questions whose answers are to be kept."""

    def on_audit(self, head: str) -> None:
        """The audit log's last checkpoint."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Where a worker finds everything. Times in seconds."""

    index: int
    link_socket: Path
    control_socket: Path
    run_dir: Path
    version: str
    drain_s: float = 30.0
    trusted_proxies: tuple[str, ...] = ()
    limits: HttpLimits = field(default_factory=HttpLimits)
    owner: str = field(default_factory=lambda: f"w-{os.getpid()}-{secrets.token_hex(4)}")


def connect(runtime: RuntimeLike, path: Path, register: Register) -> LinkClient:
    """A client whose messages move `runtime`, its desk and its idempotency. Call `start` on it inside the loop."""
    desk, idempotency = runtime.desk, runtime.idempotency

    def down() -> None:
        desk.disconnected()
        idempotency.disconnected()

    def explain(asked: Explain) -> None:
        client.send(Explained(register.owner, asked.number, runtime.explain(asked.body)))

    client = LinkClient(
        path,
        register=register,
        callbacks={
            ConfigPush: lambda push: runtime.on_config(push.version, push.blob),
            SecretsPush: lambda push: runtime.on_secrets(push.items),
            AccessPush: lambda push: runtime.on_access(push.seq, push.full, push.keys, push.pools),
            CardsPush: lambda push: runtime.on_cards(push.cards, push.prices, push.models),
            HealthPush: lambda push: runtime.on_health(push.down),
            Granted: lambda push: desk.on_granted(
                *(push.pool_id, push.unit, push.window_start, push.total, push.more, push.spent_out),
                *(push.available, push.others),
            ),
            Explain: explain,
            CachePurge: lambda push: runtime.on_cache_purge(push.number),
            WarmPush: lambda push: runtime.on_warming(push.questions),
            AuditPush: lambda push: runtime.on_audit(push.head),
            Recall: lambda push: desk.on_recall(push.pool_id, push.unit, push.window_start),
            IdemAnswer: lambda push: idempotency.on_answer(
                push.number, push.state, push.status, push.content_type, push.body
            ),
        },
        on_up=desk.connected,
        on_down=down,
    )
    desk.send_ask = lambda owner, pool, unit, window, seen, want, need: client.send(
        Ask(owner, pool, window, seen, want, need, unit)
    )
    desk.send_return = lambda owner, pool, unit, window, total: client.send(Return(owner, pool, window, total, unit))
    idempotency.send_begin = lambda *fields: client.send(IdemBegin(*fields))
    idempotency.send_end = lambda *fields: client.send(IdemEnd(*fields))
    if isinstance(runtime, Tells):
        runtime.happenings.send = lambda items: client.send(Happened(register.owner, register.index, items))
    return client


class Worker:
    """One worker's application and its life: runtime, link, forwarder, status."""

    def __init__(self, options: WorkerOptions, runtime: RuntimeLike, trust: ProxyTrust) -> None:
        self.options, self.runtime = options, runtime
        self.draining = False
        self.forwarder = Forwarder(options.control_socket, trust, draining=lambda: self.draining)
        self.link: LinkClient | None = None
        self._status_written = True
        inference = runtime.asgi(self.forwarder)
        routes = [
            re_path(runtime.inference_pattern, inference),
            re_path(r"", self.forwarder),  # type: ignore[arg-type]
        ]
        http = KnownPaths(routes, dict.fromkeys(runtime.inference_paths, inference))
        self.asgi = ProtocolTypeRouter({"http": http, "lifespan": self._lifespan})

    async def start(self) -> None:
        """Open the runtime, connect to control and wait a little for the first configuration and keys."""
        options = self.options
        await self.runtime.start()
        register = Register(options.owner, options.index, os.getpid(), options.version)
        self.link = connect(self.runtime, options.link_socket, register)
        self.link.start()
        ends_at = time.monotonic() + FIRST_PUSH_S
        while not self.runtime.ready and time.monotonic() < ends_at:  # noqa: ASYNC110 - once, at the start
            await asyncio.sleep(0.01)
        if not self.runtime.ready:
            log.warning("worker_starts_without_configuration", extra={"index": options.index})

    async def stop(self) -> None:
        """Close everything; the server has stopped by now."""
        self.forwarder.close()
        await self.runtime.stop()
        if self.link is not None:
            await self.link.close()

    def drain(self) -> None:
        """Answer `connection: close` from now on."""
        self.draining = True
        self.runtime.drain()

    def abort(self) -> None:
        """End what still runs: inference in its own words, forwarded replies by a cut."""
        self.runtime.abort_streams()
        self.forwarder.abort()

    def report(self) -> None:
        """Tell control and the status file how things are. Called once a second; never raises for a full disk."""
        status = self.runtime.status()
        if self.link is not None:
            self.link.send(Status(self.options.owner, self.options.index, status))
        path = self._status_path
        try:
            draft = path.with_suffix(".draft")
            draft.write_bytes(msgspec.json.encode(status))
            draft.replace(path)
        except OSError as exc:
            if self._status_written:  # once, not once a second
                log.warning("status_not_written", extra={"reason": str(exc)})
            self._status_written = False
        else:
            self._status_written = True

    @property
    def _status_path(self) -> Path:
        return self.options.run_dir / f"worker-{self.options.index}.status"

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start()
        except Exception as exc:
            log.exception("worker_start_failed")
            await send({"type": "lifespan.startup.failed", "message": str(exc)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})


# Requests leave no cycles behind, so the collector only has to catch what slips through: less often than by default,
# yet often enough that no collection of what is young holds up the loop for long (ten thousand objects: 1.5 ms).
GC_THRESHOLDS = (10_000, 10, 50)


class WorkerServer(uvicorn.Server):
    """uvicorn's server with a heartbeat and a drain that loses nothing."""

    def __init__(self, config: uvicorn.Config, worker: Worker, pulse: child.Pulse) -> None:
        super().__init__(config)
        self._worker, self._pulse = worker, pulse

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then tell the supervisor."""
        await super().startup([])  # everything but the listening
        loop = asyncio.get_running_loop()
        for listener in sockets or []:
            self.servers.append(Acceptor(loop, listener, self._protocol, backlog=self.config.backlog))  # type: ignore[arg-type]
        # What exists now lives as long as the process: later collections need not look at it.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        self._pulse.ready()

    def _protocol(self) -> asyncio.Protocol:
        http = self.config.http_protocol_class
        return http(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)  # type: ignore[call-arg]

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; each second the heartbeat and the status."""
        if counter % 10 == 0:
            self._beat()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, end what is left shortly before the deadline, then stop."""
        begin = time.monotonic()
        ends_at = begin + self._worker.options.drain_s - ABORT_BEFORE_S
        self._worker.drain()
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        # Idle connections may carry a request that is already on the wire: give it an answer that says `close`.
        await self._wait_until(min(ends_at, begin + LAME_DUCK_S))
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._wait_until(ends_at)
        if self.server_state.connections:
            self._worker.abort()
        await super().shutdown(None)

    async def _wait_until(self, ends_at: float) -> None:
        ticks = 0
        while self.server_state.connections and time.monotonic() < ends_at and not self.force_exit:
            await asyncio.sleep(0.02)
            ticks += 1
            if ticks % 50 == 0:
                self._beat()

    def _beat(self) -> None:
        self._pulse.beat()
        try:
            self._worker.report()
        except Exception:
            log.exception("worker_report_failed")


def _not_cut_on_purpose(record: logging.LogRecord) -> bool:
    """Drops uvicorn's complaint about replies without an end: cutting a failed stream is how its failure is told."""
    return "returned without completing response" not in str(record.msg)


def run_worker(
    options: WorkerOptions,
    runtime_factory: Callable[[WorkerOptions, ProxyTrust], RuntimeLike],
    *,
    listener: socket.socket,
    pulse: child.Pulse,
) -> None:
    """Serve on `listener` until SIGTERM or SIGINT, then drain and return."""
    # uvicorn raises the signal again once it has drained; a clean stop must not look like a death by signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    logging.getLogger("uvicorn.error").addFilter(_not_cut_on_purpose)
    trust = ProxyTrust(options.trusted_proxies)
    worker = Worker(options, runtime_factory(options, trust), trust)
    config = uvicorn.Config(
        worker.asgi,
        loop="uvloop",
        http=strict_protocol(options.limits),
        ws="none",
        lifespan="on",
        interface="asgi3",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        backlog=2048,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
    WorkerServer(config, worker, pulse).run(sockets=[listener])


def default_runtime(options: WorkerOptions, trust: ProxyTrust) -> RuntimeLike:
    """The real runtime, from the settings."""
    from django.conf import settings

    from gateway.runtime import Runtime, RuntimeOptions

    def client_of(scope: MutableMapping[str, Any]) -> str:
        return trust.client_of(scope)[0]

    return Runtime(
        RuntimeOptions(
            owner=options.owner,
            index=options.index,
            journal_dir=settings.HOOSH_JOURNAL_DIR,
            vault_path=settings.HOOSH_KEYS_DIR / "vault.key",
            version=options.version,
            access_log=settings.HOOSH_ACCESS_LOG,
            journal_sync=settings.HOOSH_JOURNAL_SYNC,
            trust=client_of,
            limits_path=options.run_dir / "limits",
            embedder_path=settings.HOOSH_EMBEDDER,
        )
    )


def options_from_settings(index: int) -> WorkerOptions:
    """A worker's options as the settings have them."""
    from django.conf import settings

    return WorkerOptions(
        index=index,
        link_socket=settings.HOOSH_LINK_SOCKET,
        control_socket=settings.HOOSH_CONTROL_SOCKET,
        run_dir=settings.HOOSH_RUN_DIR,
        version=settings.HOOSH_VERSION,
        drain_s=settings.HOOSH_DRAIN_S,
        trusted_proxies=tuple(settings.HOOSH_TRUSTED_PROXIES),
    )


def main() -> None:
    """The process the supervisor starts."""
    parser = argparse.ArgumentParser(prog="hoosh-worker")
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--parent-pid", type=int)
    arguments = parser.parse_args()
    child.enter(arguments.parent_pid)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hoosh_site.settings")
    os.environ["HOOSH_ROLE"] = "worker"
    from django.conf import settings

    logging.config.dictConfig(settings.LOGGING)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    run_worker(
        options_from_settings(arguments.index),
        default_runtime,
        listener=socket.socket(fileno=arguments.socket_fd),
        pulse=child.Pulse(arguments.ready_fd),
    )


if __name__ == "__main__":
    main()
