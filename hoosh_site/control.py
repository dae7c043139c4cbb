"""The control process: admin, API views and live pages on Daphne, the ledger's writer, the line to the workers, probes.

`ControlPlane` is everything but the web server, so that `runserver` can run it inside one process. `run_control` is the
process the supervisor starts (`python -m hoosh_site.control`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from gateway import plane as registry
from hoosh_site import child
from hoosh_site.feed import DatabaseSource, Feed, Source
from hoosh_site.link import Ask, Granted, LinkServer, Recall, Return

log = logging.getLogger("hoosh.control")

LIFETIME_WINDOW = 0
SYNC_POOLS_S = 2.0  # what revocations may have to wait for a ledger that does not answer
NICE = 10  # a page being rendered must not take the workers' time
BEAT_S = 1.0


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
        window_start: int,
        seen_total: int,
        want: int,
        reply: Callable[[int, bool, bool, int], None],
        need: int = 0,
    ) -> None:
        """Lease tokens; `reply(total, more, spent_out, available)` is called in the writer's thread."""

    def give_back(self, owner: str, pool_id: int, window_start: int, returned_total: int) -> None:
        """Take back tokens of a lease."""

    def sync_pool(self, pool_id: int, window_start: int, capacity: int) -> Future[None]:
        """Make or change the window of a pool."""


class ControlPlane:
    """Writer, feed, line to the workers and probes. `start` and `stop` belong to one loop; the rest to any thread."""

    def __init__(
        self, *, writer: LedgerWriter, source: Source, link_path: Path, probe: Callable[[], Any] | None = None
    ) -> None:
        """`probe` is a coroutine function that runs until it is cancelled; None: no probes."""
        self.writer = writer
        self.link = LinkServer(link_path, hello=lambda: self.feed.hello(), on_ask=self._ask, on_return=self._return)
        self.feed = Feed(source, self.link.broadcast_threadsafe, sync_pools=self._sync_pools)
        self._probe = probe
        self._probing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start everything and make the plane known in this process."""
        self.writer.start()
        await self.link.start()
        self.feed.start()
        if self._probe is not None:
            self._probing = asyncio.get_running_loop().create_task(self._probe())
        registry.current = self

    async def stop(self) -> None:
        """Stop what lives on the loop; then call `finish`."""
        if self._probing is not None:
            self._probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probing
        await self.link.stop()

    def finish(self) -> None:
        """End the threads. The writer reads the journals to their ends first; the workers should be gone by then."""
        registry.current = None
        self.feed.stop()
        self.feed.join(5)
        self.writer.stop()

    def wake(self, *, reimport: bool = False) -> None:
        """Look for changes now; with `reimport` also at the configuration file."""
        self.feed.wake(reimport=reimport)

    def workers(self) -> list[dict[str, Any]]:
        """One entry per connected worker: index, owner, pid, version, status, status_age_s."""
        return self.link.workers()

    def recall(self, pool_id: int, window_start: int) -> None:
        """Ask every worker to give back free tokens of a pool."""
        self.link.broadcast_threadsafe([Recall(pool_id, window_start)])

    def _sync_pools(self, capacities: Mapping[int, int]) -> None:
        waiting = [self.writer.sync_pool(pool, LIFETIME_WINDOW, size) for pool, size in capacities.items()]
        ends_at = time.monotonic() + SYNC_POOLS_S
        try:
            for future in waiting:
                future.result(max(0.0, ends_at - time.monotonic()))
        finally:
            for future in waiting:
                future.cancel()

    def _ask(self, ask: Ask, reply: Callable[[Granted], None]) -> None:
        def answered(total: int, more: bool, spent_out: bool, available: int) -> None:
            reply(Granted(ask.pool_id, ask.window_start, total, more, spent_out, available))

        self.writer.grant(ask.owner, ask.pool_id, ask.window_start, ask.seen_total, ask.want, answered, need=ask.need)

    def _return(self, message: Return) -> None:
        self.writer.give_back(message.owner, message.pool_id, message.window_start, message.returned_total)


def plane() -> registry.ControlPlane | None:
    """The running control plane of this process, or None."""
    return registry.current


def build_plane() -> ControlPlane:
    """The plane of this installation. Needs Django to be set up."""
    from django.conf import settings

    from budgets.settle import Writer
    from gateway import probes

    async def probe() -> None:
        await probes.run_forever(lambda: built.wake())

    built = ControlPlane(
        writer=Writer(settings.HOOSH_JOURNAL_DIR, on_recall=lambda pool_id, start: built.recall(pool_id, start)),
        source=DatabaseSource(),
        link_path=settings.HOOSH_LINK_SOCKET,
        probe=probe,
    )
    return built


def run_control(
    application: Any, plane: ControlPlane, *, socket_path: Path, pulse: child.Pulse, drain_s: float = 10.0
) -> None:
    """Serve `application` and run `plane` until SIGTERM or SIGINT; SIGHUP looks for changes at once."""
    from hoosh_site.daphne_server import DaphneLimits, HardenedServer, twisted_loop

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
    server.run()
    plane.finish()


def main() -> None:
    """The process the supervisor starts."""
    parser = argparse.ArgumentParser(prog="hoosh-control")
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--parent-pid", type=int)
    options = parser.parse_args()
    child.enter(options.parent_pid, nice=NICE)
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
