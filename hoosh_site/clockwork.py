"""What control does by the clock beside the ledger: a thread of its own, so that nothing else waits for it."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence

from django.db import connections

log = logging.getLogger("hoosh.clockwork")

PERIOD_S = 1.0
STOP_S = 5.0

Work = Callable[[], object]


class Clockwork:
    """Does each piece of work every second. What one raises is logged, once while it stays the same, and stops none."""

    def __init__(self, work: Sequence[tuple[str, Work]], *, period_s: float = PERIOD_S) -> None:
        """`work` are names and callables, done in this order."""
        self._work, self._period_s = tuple(work), period_s
        self._stop: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._complaints: dict[str, str] = {}
        self._thread = threading.Thread(target=self._run, name="clockwork", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End behind the piece of work under way."""
        self._stop.put(None)
        self._thread.join(STOP_S)

    def once(self) -> None:
        """One round."""
        for name, work in self._work:
            try:
                work()
                self._complaints.pop(name, None)
            except Exception as exc:
                complaint = f"{type(exc).__name__}: {exc}"
                if complaint != self._complaints.get(name):
                    log.error("clockwork_failed", extra={"what": name, "reason": complaint}, exc_info=exc)
                self._complaints[name] = complaint
                connections.close_all()

    def _run(self) -> None:
        try:
            while True:
                try:
                    self._stop.get(timeout=self._period_s)
                except queue.Empty:
                    self.once()
                else:
                    return
        finally:
            connections.close_all()
