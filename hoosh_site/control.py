"""The control process: admin, API views and live pages on Daphne, the ledger's writer, the line to the workers, probes.

`ControlPlane` is everything but the web server, so that `runserver` can run it inside one process. `run_control` is the
process the supervisor starts (`python -m hoosh_site.control`).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import msgspec

from budgets.windows import WindowSpec
from gateway import plane as registry
from hoosh_site import child
from hoosh_site.feed import DatabaseSource, Feed, Source
from hoosh_site.link import (
    Ask,
    AuditPush,
    CachePurge,
    Granted,
    Happened,
    IdemAnswer,
    IdemBegin,
    IdemEnd,
    LinkServer,
    Recall,
    Return,
)

log = logging.getLogger("hoosh.control")

NICE = 10  # a page being rendered must not take the workers' time
BEAT_S = 1.0
SWITCH_S = 0.001  # a page being rendered must not keep the ledger waiting after each of its statements


class LedgerWriter(Protocol):
    """What the plane needs of `budgets.settle.Writer`, a thread of its own."""

    def start(self) -> None:
        """Begin to settle."""

    def stop(self) -> bool:
        """Read every journal to its end, then end; False when that took too long."""

    def grant(
        self,
        owner: str,
        pool_id: int,
        unit: int,
        window_start: int,
        seen_total: int,
        want: int,
        reply: Callable[[int, bool, bool, int, int], object],
        need: int = 0,
    ) -> None:
        """Lease from a purse; `reply(total, more, spent_out, available, others)` is called in the writer's thread."""

    def give_back(self, owner: str, pool_id: int, unit: int, window_start: int, returned_total: int) -> None:
        """Take back a part of a lease."""

    def sync_windows(self, specs: Sequence[WindowSpec]) -> Future[None]:
        """Make windows or change them, all of them or none."""


class RepliesStore(Protocol):
    """What the plane needs of `budgets.idempotency.IdempotencyStore`. Neither method waits."""

    def begin(
        self,
        owner: str,
        key_id: int,
        digest: str,
        request_digest: str,
        rid: str,
        reply: Callable[[str, int, str, bytes | None], object],
    ) -> None:
        """Register a request; `reply(state, status, content_type, body)` may be called in the writer's thread."""

    def end(
        self,
        owner: str,
        key_id: int,
        digest: str,
        rid: str,
        keep: bool,
        status: int,
        content_type: str,
        body: bytes | None,
    ) -> None:
        """Keep or forget it."""


EXPLAIN_S = 2.0  # how long a page waits for a worker's answer


class EventsLike(Protocol):
    """What the plane needs of `hoosh_site.event_plane.EventPlane`."""

    def start(self) -> None:
        """Begin to write events."""

    async def run(self) -> None:
        """Tell webhooks until cancelled."""

    def take(self, worker: int, items: Sequence[Sequence[Any]]) -> None:
        """What a worker told. Does not wait."""

    def ending(self) -> None:
        """End the open streams."""

    def stop(self) -> None:
        """End the thread."""


class Startable(Protocol):
    """What the plane needs of `hoosh_site.clockwork.Clockwork` and of `audit.anchors.Anchors`."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """Finish what is to be finished, then end the thread."""


class ControlPlane:
    """Writer, feed, line to the workers and probes. `start` and `stop` belong to one loop; the rest to any thread."""

    def __init__(
        self,
        *,
        writer: LedgerWriter,
        source: Source,
        link_path: Path,
        idempotency: RepliesStore,
        probe: Callable[[], Any] | None = None,
        events: EventsLike | None = None,
        clockwork: Startable | None = None,
        anchors: Startable | None = None,
    ) -> None:
        """`probe` is a coroutine function that runs until it is cancelled; None: no probes. So with the others."""
        self.writer = writer
        self.link = LinkServer(
            link_path,
            hello=lambda: [*self.feed.hello(), *self._checkpoint],
            on_ask=self._ask,
            on_return=self._return,
            on_idem_begin=self._idem_begin,
            on_idem_end=self._idem_end,
            on_happened=self._happened,
        )
        self._idempotency = idempotency
        self.feed = Feed(source, self.link.broadcast_threadsafe, sync_windows=writer.sync_windows)
        self._probe, self._events, self._clockwork, self._anchors = probe, events, clockwork, anchors
        self._checkpoint: list[AuditPush] = []  # the last one
        self._running: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start everything and make the plane known in this process."""
        self.writer.start()
        await self.link.start()
        self.feed.start()
        loop = asyncio.get_running_loop()
        if self._probe is not None:
            self._running.append(loop.create_task(self._probe()))
        if self._events is not None:
            self._events.start()
            self._running.append(loop.create_task(self._events.run()))
        if self._clockwork is not None:
            self._clockwork.start()
        if self._anchors is not None:
            self._anchors.start()
        registry.current = self

    async def stop(self) -> None:
        """Stop what lives on the loop; then call `finish`."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self.link.stop()

    def ending(self) -> None:
        """Called when the web server is told to stop, before it waits for what it still answers."""
        if self._events is not None:
            self._events.ending()

    def finish(self) -> None:
        """End the threads. The writer reads the journals to their ends first; the workers should be gone by then."""
        registry.current = None
        self.feed.stop()
        self.feed.join(5)
        if self._clockwork is not None:
            self._clockwork.stop()
        if self._events is not None:
            self._events.stop()
        self.writer.stop()
        if self._anchors is not None:
            self._anchors.stop()

    def wake(self, *, reimport: bool = False) -> None:
        """Look for changes now; with `reimport` also at the configuration file."""
        self.feed.wake(reimport=reimport)

    def workers(self) -> list[dict[str, Any]]:
        """One entry per connected worker: index, owner, pid, version, status, status_age_s."""
        return self.link.workers()

    def explain(self, body: bytes) -> bytes:
        """Where a request would go, told by a worker."""
        return self.link.explain(body, EXPLAIN_S)

    def recall(self, pool_id: int, unit: int, window_start: int) -> None:
        """Ask every worker to give back what is free of a purse."""
        self.link.broadcast_threadsafe([Recall(pool_id, window_start, unit)])

    def purge_caches(self, number: int) -> None:
        """Have every worker forget its kept answers; their status tells the `number` once they have."""
        self.link.broadcast_threadsafe([CachePurge(number)])

    def tell_checkpoint(self, size: int, root: bytes) -> None:
        """Tell every worker of the audit log's last checkpoint."""
        self._checkpoint = [AuditPush(f"{size}:{root.hex()}")]
        self.link.broadcast_threadsafe(self._checkpoint)

    def _ask(self, ask: Ask, reply: Callable[[Granted], None]) -> None:
        def answered(total: int, more: bool, spent_out: bool, available: int, others: int) -> None:
            reply(Granted(ask.pool_id, ask.window_start, total, more, spent_out, available, ask.unit, others))

        self.writer.grant(
            *(ask.owner, ask.pool_id, ask.unit, ask.window_start, ask.seen_total, ask.want), answered, need=ask.need
        )

    def _return(self, message: Return) -> None:
        self.writer.give_back(
            message.owner, message.pool_id, message.unit, message.window_start, message.returned_total
        )

    def _idem_begin(self, begin: IdemBegin, reply: Callable[[IdemAnswer], None]) -> None:
        def answered(state: str, status: int, content_type: str, body: bytes | None) -> None:
            reply(IdemAnswer(begin.number, state, status, content_type, body))

        self._idempotency.begin(begin.owner, begin.key_id, begin.digest, begin.request_digest, begin.rid, answered)

    def _idem_end(self, end: IdemEnd) -> None:
        self._idempotency.end(*msgspec.structs.astuple(end))

    def _happened(self, message: Happened) -> None:
        if self._events is not None:
            self._events.take(message.index, message.items)


def plane() -> registry.ControlPlane | None:
    """The running control plane of this process, or None."""
    return registry.current


def build_plane() -> ControlPlane:
    """The plane of this installation. Needs Django to be set up."""
    from django.conf import settings

    from budgets import jobs
    from budgets.anomaly_retention import AnomalyRetention
    from budgets.anomaly_watch import AnomalyWatch
    from budgets.idempotency import IdempotencyStore
    from budgets.settle import Writer
    from gateway import probes
    from hoosh_site import audit_plane
    from hoosh_site.clockwork import Clockwork
    from hoosh_site.event_plane import EventPlane
    from hoosh_site.live_figures import figures
    from providers import drafts, uses

    async def probe() -> None:
        await probes.run_forever(lambda: built.wake())

    watch = AnomalyWatch()
    used = uses.Uses(lambda: [worker.get("status") or {} for worker in built.workers()])
    audit = audit_plane.build(
        tell=lambda size, root: built.tell_checkpoint(size, root),
        submit=lambda work: writer.submit(work),
        rows=lambda: int(writer.stats()["rows"]),
    )
    writer = Writer(
        settings.HOOSH_JOURNAL_DIR,
        on_recall=lambda *purse: built.recall(*purse),
        jobs=[*jobs.default_jobs(), *audit.jobs],
        at_end=audit.at_end,
    )
    built = ControlPlane(
        writer=writer,
        source=DatabaseSource(),
        link_path=settings.HOOSH_LINK_SOCKET,
        idempotency=IdempotencyStore(writer),
        probe=probe,
        events=EventPlane(on_loops=watch.take),
        clockwork=Clockwork(
            [
                ("scheduled publications", drafts.publish_due),
                ("figures", figures.take),
                ("uses of credentials", used.look),
                ("anomalies", watch.look),
                ("old anomalies", AnomalyRetention().look),
            ]
        ),
        anchors=audit.anchors,
    )
    return built


def run_control(
    application: Any, plane: ControlPlane, *, socket_path: Path, pulse: child.Pulse, drain_s: float = 10.0
) -> None:
    """Serve `application` and run `plane` until SIGTERM or SIGINT; SIGHUP looks for changes at once."""
    from hoosh_site.daphne_server import DaphneLimits, HardenedServer, reactor, twisted_loop

    async def live() -> None:
        try:
            await plane.start()
        except Exception:
            log.exception("control_start_failed")
            os.kill(os.getpid(), signal.SIGTERM)
            return
        pulse.ready()
        while True:
            await asyncio.sleep(BEAT_S)
            pulse.beat()

    server = HardenedServer(
        application,
        socket_path,
        limits=DaphneLimits(drain_s=drain_s),
        on_ready=lambda: tasks.append(twisted_loop.create_task(live())),
    )
    tasks: list[asyncio.Task[None]] = []
    signal.signal(signal.SIGHUP, lambda *_: plane.wake(reimport=True))
    reactor.addSystemEventTrigger("before", "shutdown", plane.ending)
    server.run()
    plane.finish()


def main() -> None:
    """The process the supervisor starts."""
    parser = argparse.ArgumentParser(prog="hoosh-control")
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--parent-pid", type=int)
    options = parser.parse_args()
    child.enter(options.parent_pid, nice=NICE)
    sys.setswitchinterval(SWITCH_S)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hoosh_site.settings")
    os.environ["HOOSH_ROLE"] = "control"
    from gateway.metrics import has_room

    if not has_room():
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)  # making its files on a full disk would end this process

    import django

    import hoosh_site.daphne_server  # noqa: F401 - before anything else touches Twisted

    django.setup()
    from django.conf import settings

    from hoosh_site.asgi import application

    logging.getLogger("daphne").setLevel(logging.WARNING)
    run_control(
        application, build_plane(), socket_path=settings.HOOSH_CONTROL_SOCKET, pulse=child.Pulse(options.ready_fd)
    )


if __name__ == "__main__":
    main()
