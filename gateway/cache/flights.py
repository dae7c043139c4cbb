"""One call for many equal requests at a time: the first one makes it, the others wait for its answer.

Whoever comes first to a key leads. Those that come while it is under way wait, each at most as long as it wants to. A
leader that ends without an answer (it failed, or its client left) is followed by exactly one of those waiting, in the
order in which they came; one whose answer cannot be shared sends all of them on their own way at once, since waiting
for one another would gain them nothing. Keys hold the tenant, so nobody ever waits for another tenant's request.

    with await flights.join(key, wait_s) as seat:
        if seat.entry is not None: ...      # another request's answer
        else: ...                           # call; if seat.leads, seat.land(entry or None) with what came of it
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final

from gateway.cache.store import Entry

WAITING_MAX = 1024  # requests that wait for one; those that come then go on their own


class _Word:
    """What a waiting request is told where it is not told an answer."""


_LEAD: Final = _Word()  # the one before came to nothing: it is your turn
_ALONE: Final = _Word()  # do not wait any longer

_Told = asyncio.Future[Entry | _Word]
_Waiting = dict[_Told, None]  # in the order in which they came


class Seat:
    """A request's place in a flight. `entry`: the answer it waited for. `leads`: others may wait for its own.

    Leaving the `with` block, however that happens, gives the lead to the next.
    """

    __slots__ = ("_flights", "_key", "entry", "leads")

    def __init__(self, flights: Flights, key: bytes, *, leads: bool = False, entry: Entry | None = None) -> None:
        self._flights, self._key, self.leads, self.entry = flights, key, leads, entry

    def land(self, entry: Entry | None) -> None:
        """The call was answered: hand the answer to all that wait; None = it cannot be shared."""
        if self.leads:
            self.leads = False
            self._flights._land(self._key, entry)

    def close(self) -> None:
        """The call came to nothing, unless it has landed: let the next one lead."""
        if self.leads:
            self.leads = False
            self._flights._pass_on(self._key)

    def __enter__(self) -> Seat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Flights:
    """The calls under way by key. `joined` counts the requests that were answered by another one's call."""

    __slots__ = ("_under_way", "joined")

    def __init__(self) -> None:
        self._under_way: dict[bytes, _Waiting] = {}
        self.joined = 0

    def __len__(self) -> int:
        return len(self._under_way)

    def waiting(self, key: bytes) -> int:
        """How many requests wait for a key's answer."""
        return len(self._under_way.get(key, ()))

    async def join(self, key: bytes, wait_s: float) -> Seat:
        """A seat: the lead if nobody has it, else the leader's answer, or neither after `wait_s` seconds."""
        waiting = self._under_way.get(key)
        if waiting is None:
            self._under_way[key] = {}
            return Seat(self, key, leads=True)
        if wait_s <= 0 or len(waiting) >= WAITING_MAX:
            return Seat(self, key)
        loop = asyncio.get_running_loop()
        future: _Told = loop.create_future()
        waiting[future] = None
        timer = loop.call_later(wait_s, _tell, future, _ALONE)
        try:
            told = await future
        except asyncio.CancelledError:
            # It may have been told just before: the lead must not be lost with it.
            if future.done() and not future.cancelled() and future.result() is _LEAD:
                self._pass_on(key)
            raise
        finally:
            timer.cancel()
            waiting.pop(future, None)
        if isinstance(told, _Word):
            return Seat(self, key, leads=told is _LEAD)
        self.joined += 1
        return Seat(self, key, entry=told)

    def _land(self, key: bytes, entry: Entry | None) -> None:
        for future in self._under_way.pop(key):
            _tell(future, _ALONE if entry is None else entry)

    def _pass_on(self, key: bytes) -> None:
        waiting = self._under_way[key]
        for future in list(waiting):
            del waiting[future]
            if _tell(future, _LEAD):
                return
        del self._under_way[key]


def _tell(future: _Told, told: Entry | _Word) -> bool:
    """Tell a waiting request, once; False when it does not wait any more."""
    if future.done():
        return False
    future.set_result(told)
    return True
