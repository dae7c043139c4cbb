"""Open streams of events in the control process: one reader of the table for all of them.

The reader looks once a second, and at once when an event is committed in this process; commands insert from others. It
keeps the newest events, so a stream that has caught up asks no database. A stream ends when its reader lost the right
to it, when control stops, and when a worker begins to drain: the reader then comes back with the last id it has seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
from django.db import connections

from events import names, order
from events.models import Event
from events.wake import listen
from gateway import plane

log = logging.getLogger("hoosh.events")

STREAMS_MAX = 64
KEPT = 1024  # events in memory
CHUNK = 200
LOOK_S = 1.0
SOON_S = 0.05  # before another look when an event stands behind one that is not committed yet
PING_S = 15.0
RETRY_MS = 1000

_encode = msgspec.json.Encoder().encode
_T = TypeVar("_T")


def told(event: Event) -> dict[str, Any]:
    """An event as programs see it."""
    return names.told(event.pk, event.at, event.topic, event.name, event.level, event.data)


class Piece:
    """An event made ready to be sent."""

    __slots__ = ("frame", "name", "number", "topic")

    def __init__(self, event: Event) -> None:
        self.number, self.topic, self.name = event.pk, event.topic, event.name
        self.frame = b"id: %d\nevent: %b\ndata: %b\n\n" % (event.pk, event.name.encode(), _encode(told(event)))


class Hub:
    """The open streams of this process and their reader. `open` and `end_all` may be called from any thread."""

    def __init__(self, *, most: int = STREAMS_MAX, ping_s: float = PING_S) -> None:
        """`most` streams are open at once; a quiet one gets a comment every `ping_s`."""
        self.ping_s = ping_s
        self.ending = False
        self.front = 0  # everything up to this id has been read
        self.ends = 0  # how often all streams were told to end
        self.news = asyncio.Event()
        self._most = most
        self._lock = threading.Lock()
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._kept: deque[Piece] = deque(maxlen=KEPT)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader: asyncio.Task[None] | None = None
        self._looked = asyncio.Event()  # since the reader began
        self._soon = asyncio.Event()
        self._drained: frozenset[str] = frozenset()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="events")

    def open(self, wanted: names.Wanted, after: int | None, allowed: Callable[[], bool]) -> Stream | None:
        """A stream of what comes behind the event `after` (None: from now on); None when too many are open.

        `allowed` says, in a thread, whether its reader may go on reading.
        """
        with self._lock:
            if self.ending or len(self._streams) >= self._most:
                return None
            stream = Stream(self, wanted, after, allowed)
            self._streams.add(stream)
            return stream

    @property
    def streams(self) -> int:
        """How many are open."""
        return len(self._streams)

    def end_all(self, *, for_good: bool = False) -> None:
        """End every open stream in a clean way; with `for_good` no other is opened."""
        self.ending = self.ending or for_good
        self.ends += 1
        self._call(self._tell)

    # --- on the loop ------------------------------------------------------------------------------------------------

    async def attach(self) -> None:
        """Have the reader running, and wait for its first look."""
        loop = asyncio.get_running_loop()
        if self._reader is None or self._reader.done() or self._loop is not loop:
            self._loop = loop
            self.news, self._looked, self._soon = asyncio.Event(), asyncio.Event(), asyncio.Event()
            self._kept.clear()
            self.front = -1
            # A context of its own: that of a request ends with the request, and its thread with it.
            self._reader = loop.create_task(self._read_on(), context=contextvars.Context())
        await self._looked.wait()

    def detach(self, stream: Stream) -> None:
        """The stream is closed. The reader ends with the last one."""
        with self._lock:
            self._streams.discard(stream)
        self._call(self._soon.set)

    async def pieces(self, cursor: int) -> list[Piece]:
        """Events behind `cursor` that have been read, oldest first: none only when there are none."""
        if cursor >= self.front:
            return []
        kept = self._kept
        first = kept[0].number if kept else self.front + 1
        if cursor + 1 < first:
            kept = deque(kept)  # what is dropped from it meanwhile must not be missed
            if found := await self.in_thread(lambda: order.between(cursor, first, CHUNK)):
                return [Piece(event) for event in found]
        return [piece for piece in kept if piece.number > cursor]

    async def in_thread(self, work: Callable[[], _T]) -> _T:
        """Do it in the thread that reads the table."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, _guarded, work)

    async def _read_on(self) -> None:
        loop = asyncio.get_running_loop()
        soon = self._soon
        end = listen(lambda: _threadsafe(loop, soon.set))
        try:
            while self._streams:  # nothing is awaited between this and the end: who attaches then starts another reader
                soon.clear()
                waits = await self._look()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SOON_S if waits else LOOK_S):
                        await soon.wait()
            self._reader = None
        finally:
            end()
            with contextlib.suppress(RuntimeError):  # the interpreter is ending
                self._executor.submit(connections.close_all)

    async def _look(self) -> bool:
        try:
            self._look_at_workers()
            if self.front < 0:
                self.front = await self.in_thread(order.newest)
                self._looked.set()
            cursor = self.front
            events, waits = await self.in_thread(lambda: order.after(cursor, CHUNK))
        except Exception as exc:
            log.warning("events_unread", extra={"reason": f"{type(exc).__name__}: {exc}"})
            return False
        if events:
            self._kept.extend(Piece(event) for event in events)
            self.front = events[-1].pk
            self._tell()
        return waits or len(events) == CHUNK

    def _look_at_workers(self) -> None:
        """A worker that drains waits for its connections: its readers shall come back by another worker."""
        draining = plane.draining()
        if draining - self._drained:
            self.end_all()
        self._drained = draining

    def _tell(self) -> None:
        self.news.set()
        self.news = asyncio.Event()

    def _call(self, work: Callable[[], object]) -> None:
        if self._loop is not None:
            _threadsafe(self._loop, work)


class Stream:
    """What one reader gets, as pieces of `text/event-stream`. Close it with `aclose`."""

    def __init__(self, hub: Hub, wanted: names.Wanted, after: int | None, allowed: Callable[[], bool]) -> None:
        self._hub, self._wanted, self._allowed = hub, wanted, allowed
        self._cursor = -1 if after is None else after
        self._from_now = after is None
        self._begun = self._ended = False
        self._ends = hub.ends
        self._checked_at = time.monotonic()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        if self._ended:
            raise StopAsyncIteration
        if not self._begun:
            return await self._begin()
        while True:
            if self._hub.ends != self._ends:
                self._ended = True
                return b"retry: %d\n" % RETRY_MS
            left_s = self._checked_at + self._hub.ping_s - time.monotonic()
            if left_s <= 0:
                return await self._ping()
            news = self._hub.news
            if frames := await self._frames():
                return frames
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await news.wait()

    async def aclose(self) -> None:
        """Nobody reads any more."""
        self._ended = True
        self._hub.detach(self)

    async def _begin(self) -> bytes:
        try:
            async with asyncio.timeout(self._hub.ping_s):
                await self._hub.attach()
        except TimeoutError:  # the database is away
            return b":\n"
        self._begun = True
        if self._from_now or self._cursor > self._hub.front:  # an id of before the database was restored
            self._cursor = self._hub.front
        # No blank line: some readers would take that for an event without data.
        return b"retry: %d\n: open\n" % RETRY_MS

    async def _frames(self) -> bytes:
        front = self._hub.front
        while pieces := await self._hub.pieces(self._cursor):
            self._cursor = pieces[-1].number
            if frames := b"".join(piece.frame for piece in pieces if self._wanted.has(piece.topic, piece.name)):
                return frames
        self._cursor = max(self._cursor, front)
        return b""

    async def _ping(self) -> bytes:
        self._checked_at = time.monotonic()
        try:
            self._ended = not await self._hub.in_thread(self._allowed)
        except Exception as exc:  # the database is away: nothing can be told either
            log.warning("events_unread", extra={"reason": f"{type(exc).__name__}: {exc}"})
        return b":\n"


def _guarded(work: Callable[[], _T]) -> _T:
    """Work in the reader's thread; a connection that may be broken is not used again."""
    try:
        return work()
    except Exception:
        connections.close_all()
        raise


def _threadsafe(loop: asyncio.AbstractEventLoop, work: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(work)


hub = Hub()
