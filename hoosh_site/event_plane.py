"""What control does about events: writes those that workers and the ledger bring, deletes old ones, tells webhooks."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from django.conf import settings
from django.db import connections

from events import retention
from gateway import event_sources
from gateway.event_streams import hub
from hoosh_site import usage_tail
from hoosh_site.webhook_delivery import Deliverer

log = logging.getLogger("hoosh.events")

PERIOD_S = 1.0
WAITING = 5000  # items of workers not written yet; the oldest go first
WRITTEN = 500  # of them in one transaction
CHUNKS = 20  # of alerts or usage rows turned into events in one pass
IDLE_S = 60.0  # between two looks for events that are too old, when there was none
STOP_S = 5.0


class EventPlane:
    """Started and stopped by the control plane. `take` and `ending` may be called from any thread and never wait."""

    def __init__(
        self,
        *,
        sample: float | None = None,
        days: int | None = None,
        deliverer: Deliverer | None = None,
        on_loops: Callable[[int, Sequence[Any]], object] | None = None,
    ) -> None:
        """`sample` and `days` left out come from the settings; `on_loops` gets what a worker told of prompts."""
        self._on_loops = on_loops
        self._sample = settings.HOOSH_EVENTS_SAMPLE if sample is None else sample
        self._days = settings.HOOSH_EVENTS_DAYS if days is None else days
        self._deliverer = deliverer or Deliverer()
        self._waiting: deque[tuple[int, Sequence[Any]]] = deque(maxlen=WAITING)
        self._stop: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._prune_at = 0.0
        self._complaints: dict[str, str] = {}
        self._thread = threading.Thread(target=self._work, name="events", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    async def run(self) -> None:
        """Tell webhooks until cancelled."""
        await self._deliverer.run()

    def take(self, worker: int, items: Sequence[Sequence[Any]]) -> None:
        """What a worker told (`gateway.happenings`)."""
        prompts = [item for item in items if item and item[0] == "loop"]
        if prompts and self._on_loops is not None:
            self._on_loops(worker, prompts)
        self._waiting.extend((worker, item) for item in items if not item or item[0] != "loop")

    def ending(self) -> None:
        """Control is about to stop: end the open streams, which would never end by themselves."""
        hub.end_all(for_good=True)
        usage_tail.hub.end_all(for_good=True)

    def stop(self) -> None:
        """Write what waits, then end."""
        self._stop.put(None)
        self._thread.join(STOP_S)

    def _work(self) -> None:
        try:
            while True:
                try:
                    self._stop.get(timeout=PERIOD_S)
                except queue.Empty:
                    self.once()
                else:
                    self._attempt("workers", self._write_waiting)
                    return
        finally:
            connections.close_all()

    def once(self) -> None:
        """One pass; each part is tried whatever became of the others."""
        self._attempt("workers", self._write_waiting)
        self._attempt("alerts", lambda: _chunks(event_sources.from_alerts))
        self._attempt("usage", lambda: _chunks(lambda: event_sources.from_usage(self._sample)))
        if time.monotonic() >= self._prune_at:
            self._attempt("retention", self._prune)

    def _write_waiting(self) -> None:
        while self._waiting:
            items = [self._waiting[index] for index in range(min(WRITTEN, len(self._waiting)))]
            event_sources.from_workers(items)
            for item in items:
                if self._waiting and self._waiting[0] is item:  # others may have gone for want of room
                    self._waiting.popleft()

    def _prune(self) -> None:
        if not retention.delete_chunk(self._days):
            self._prune_at = time.monotonic() + IDLE_S

    def _attempt(self, what: str, work: Callable[[], object]) -> None:
        try:
            work()
            self._complaints.pop(what, None)
        except Exception as exc:
            complaint = f"{type(exc).__name__}: {exc}"
            if complaint != self._complaints.get(what):  # not once a second
                log.error("events_failed", extra={"what": what, "reason": complaint}, exc_info=exc)
            self._complaints[what] = complaint
            connections.close_all()


def _chunks(step: Callable[[], bool]) -> None:
    for _ in range(CHUNKS):
        if not step():
            return
