"""Usage rows as they are written, for the pages that watch them: one reader of the ledger for all of them.

The reader looks twice a second at what is behind the last row it saw, and only while somebody watches. It is bounded
everywhere: so many watchers, so many rows in one look (what is more is counted and passed over, never queued), so many
rows in memory. A row that another host commits behind a later one may be missing here; the list of requests has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.db import connections
from django.urls import reverse

from budgets import amounts
from budgets.models import Agent, ApiKey, Usage
from budgets.usage_search import Search
from gateway import plane

log = logging.getLogger("hoosh.tail")

STREAMS_MAX = 32
ROWS_MAX = 200  # of one look
LOOK_S = 0.5
PING_S = 15.0
NAMES_KEPT = 5000


class Names:
    """Names of keys and agents by id, read when they are first needed and kept for a while. Belongs to one thread."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], str] = {}

    def of(self, rows: list[Usage]) -> dict[tuple[str, int], str]:
        """("key" or "agent", id) -> name, for these rows at least."""
        if len(self._known) > NAMES_KEPT:
            self._known.clear()
        missing = {row.key_id for row in rows if ("key", row.key_id) not in self._known}
        if missing:
            found = dict(ApiKey.objects.filter(pk__in=missing).values_list("pk", "name"))
            self._known.update({("key", number): found.get(number, f"#{number}") for number in missing})
        missing = {row.agent_id for row in rows if ("agent", row.agent_id) not in self._known}
        if missing:
            agents = {row.pk: str(row) for row in Agent.objects.select_related("team").filter(pk__in=missing)}
            self._known.update({("agent", number): agents.get(number, f"#{number}") for number in missing})
        return self._known


def newest() -> int:
    """The id of the newest row; 0 when there is none."""
    return Usage.objects.order_by("-id").values_list("id", flat=True).first() or 0


def after(number: int) -> tuple[list[Usage], int]:
    """Rows behind the one with this id, oldest first: the newest `ROWS_MAX` of them, and how many were passed over."""
    top = newest()
    low = max(number, top - ROWS_MAX)  # ids have few gaps
    rows = list(Usage.objects.filter(id__gt=low, id__lte=top).order_by("id"))
    return rows, low - number


def told(rows: list[Usage], names: Names, providers: dict[int, str]) -> list[dict[str, Any]]:
    """Rows as the page's script shows them; texts only."""
    known = names.of(rows)
    return [
        {
            "id": row.pk,
            "at": f"{row.at:%H:%M:%S}",
            "status": row.status,
            "error": row.error,
            "model": row.model,
            "provider": providers.get(row.provider_id, f"#{row.provider_id}" if row.provider_id else ""),
            "key": known["key", row.key_id],
            "agent": known["agent", row.agent_id],
            "tokens": f"{row.tokens:,}",
            "cost": amounts.usd(row.cost_usd),
            "ms": f"{row.latency_us // 1000:,}",
            "url": reverse("admin:budgets_usage_change", args=(row.pk,)),
        }
        for row in rows
    ]


class TailHub:
    """The open watches of this process and their reader. `open` and `end_all` may be called from any thread."""

    def __init__(self, *, most: int = STREAMS_MAX, look_s: float = LOOK_S, ping_s: float = PING_S) -> None:
        """`most` are open at once; the reader looks every `look_s`; a quiet watch gets a comment every `ping_s`."""
        self.ping_s = ping_s
        self.ends = 0  # how often all were told to end
        self.names = Names()
        self._ending = False
        self._most, self._look_s = most, look_s
        self._lock = threading.Lock()
        self._tails: set[Tail] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader: asyncio.Task[None] | None = None
        self._drained: frozenset[str] = frozenset()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tail")

    def open(self, search: Search, providers: dict[int, str], allowed: Callable[[], bool]) -> Tail | None:
        """A watch of the rows that match from now on; None when too many are open."""
        with self._lock:
            if self._ending or len(self._tails) >= self._most:
                return None
            tail = Tail(self, search, providers, allowed)
            self._tails.add(tail)
            return tail

    @property
    def watchers(self) -> int:
        """How many are open."""
        return len(self._tails)

    def end_all(self, *, for_good: bool = False) -> None:
        """End every open watch in a clean way; with `for_good` no other is opened."""
        self._ending = self._ending or for_good
        self.ends += 1
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._tell, [], 0)

    def attach(self) -> None:
        """Have the reader running. On the loop."""
        loop = asyncio.get_running_loop()
        if self._reader is None or self._reader.done() or self._loop is not loop:
            self._loop = loop
            # A context of its own: that of a request ends with the request, and its thread with it.
            self._reader = loop.create_task(self._read_on(), context=contextvars.Context())

    def detach(self, tail: Tail) -> None:
        """Nobody watches here any more. The reader ends with the last one."""
        with self._lock:
            self._tails.discard(tail)

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        """Do it in the thread that reads the ledger."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, _guarded, work)

    async def _read_on(self) -> None:
        front = -1
        try:
            while self._tails:
                try:
                    self._look_at_workers()
                    if front < 0:
                        front = await self.in_thread(newest)
                    else:
                        rows, skipped = await self.in_thread(functools.partial(after, front))
                        if rows:
                            front = rows[-1].pk
                            self._tell(rows, skipped)
                except Exception as exc:  # the database is away: look again
                    log.warning("tail_unread", extra={"reason": f"{type(exc).__name__}: {exc}"})
                await asyncio.sleep(self._look_s)
            self._reader = None
        finally:
            with contextlib.suppress(RuntimeError):  # the interpreter is ending
                self._executor.submit(connections.close_all)

    def _look_at_workers(self) -> None:
        """A worker that drains waits for its connections: its watchers shall come back by another worker."""
        draining = plane.draining()
        if draining - self._drained:
            self.ends += 1
            self._tell([], 0)
        self._drained = draining

    def _tell(self, rows: list[Usage], skipped: int) -> None:
        for tail in list(self._tails):
            tail.take(rows, skipped)


class Tail:
    """What one watcher gets, as pieces of `text/event-stream`. Close it with `aclose`."""

    def __init__(self, hub: TailHub, search: Search, providers: dict[int, str], allowed: Callable[[], bool]) -> None:
        self._hub, self._search, self._providers, self._allowed = hub, search, providers, allowed
        self._rows: list[Usage] = []
        self._skipped = 0
        self._news = asyncio.Event()
        self._begun = self._ended = False
        self._ends = hub.ends
        self._checked_at = time.monotonic()

    def __aiter__(self) -> Tail:
        return self

    def take(self, rows: list[Usage], skipped: int) -> None:
        """New rows; those that match wait here, at most as many as one look brings."""
        self._rows += [row for row in rows if self._search.matches(row)]
        self._skipped += skipped + max(0, len(self._rows) - ROWS_MAX)
        del self._rows[:-ROWS_MAX]
        self._news.set()

    async def __anext__(self) -> bytes:
        if self._ended:
            raise StopAsyncIteration
        if not self._begun:
            self._begun = True
            self._hub.attach()
            return b"retry: 1000\n: open\n\n"
        while True:
            if self._hub.ends != self._ends:
                self._ended = True
                return b": the end\n\n"
            if self._rows or self._skipped:
                return await self._frame()
            left_s = self._checked_at + self._hub.ping_s - time.monotonic()
            if left_s <= 0:
                return await self._ping()
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._news.wait()

    async def aclose(self) -> None:
        """Nobody reads any more."""
        self._ended = True
        self._hub.detach(self)

    async def _frame(self) -> bytes:
        rows, self._rows = self._rows, []
        skipped, self._skipped = self._skipped, 0
        shown = await self._hub.in_thread(lambda: told(rows, self._hub.names, self._providers))
        return b"data: %b\n\n" % json.dumps({"rows": shown, "skipped": skipped}).encode()

    async def _ping(self) -> bytes:
        self._checked_at = time.monotonic()
        with contextlib.suppress(Exception):  # the database is away: nothing can be told either
            self._ended = not await self._hub.in_thread(self._allowed)
        return b": still here\n\n"


def _guarded(work: Callable[[], Any]) -> Any:
    """Work in the reader's thread; a connection that may be broken is not used again."""
    try:
        return work()
    except Exception:
        connections.close_all()
        raise


hub = TailHub()
