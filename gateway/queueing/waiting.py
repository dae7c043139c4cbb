"""The queue on a worker's event loop: whoever waits is a future, and one timer runs while anybody does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from gateway.limits.limiter import Limiter, Subjects
from gateway.queueing.room import Choice, Outcome, Place, Room, Waiter

POLL_S: Final = 0.025  # how late a place that another worker gave back may be noticed
_AT_ONCE: Final = 10  # of those that look again after a change: a millisecond or two of the loop


class Queue:
    """A worker's queue."""

    def __init__(self, limiter: Limiter) -> None:
        self.room = Room(limiter)
        self._timer: asyncio.TimerHandle | None = None

    async def wait(
        self,
        choices: Sequence[Choice],
        *,
        rank: int,
        key: int,
        tokens: int,
        now: float,
        until: float,
        is_stale: Callable[[], bool],
    ) -> Outcome:
        """Wait for one of the choices; how it ended. A place must be used or given back by the caller.

        Where the task is cancelled the waiter is gone at once, and a place it had got already goes to the next.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def end(outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        waiter = Waiter(
            rank=rank, key=key, tokens=tokens, since=now, until=until, end=end, is_over=future.done, is_stale=is_stale
        )
        self.room.enter(waiter, choices, now)
        self._watch()
        try:
            return await future
        except BaseException:
            self.room.leave(waiter)
            if future.done() and not future.cancelled() and isinstance(got := future.result(), Place):
                self.give_back(got)
            raise

    async def changed(self) -> None:
        """Keys, routes or limits may be others now: whoever waits by what has changed looks again, in the order they
        came, some at a time."""
        ended = 0
        for waiter in list(self.room.waiting):
            ended += self.room.changed(waiter)
            if ended == _AT_ONCE:
                ended = 0
                await asyncio.sleep(0)  # they take their turn here

    def give_back(self, place: Place) -> None:
        """A place that was not used: the call was not made."""
        place.ticket.settle(0)
        subjects = place.ticket.leave()
        if subjects is not None:
            self.freed(subjects)

    def freed(self, subjects: Subjects) -> None:
        """A call of this worker is over: those who are next get its places."""
        if self.room.waiting:
            self.room.freed(subjects, time.monotonic())

    def report(self) -> dict[str, Any]:
        """Plain figures for `Runtime.status()`."""
        return self.room.report(time.monotonic())

    def _watch(self) -> None:
        if self._timer is None and self.room.waiting:
            self._timer = asyncio.get_running_loop().call_later(POLL_S, self._look)

    def _look(self) -> None:
        self._timer = None
        try:
            self.room.tick(time.monotonic())
        finally:
            self._watch()
