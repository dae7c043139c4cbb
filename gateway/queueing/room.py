"""Everybody who waits in this worker for a place at a route or provider that limits its requests at once.

    room = Room(limiter)
    waiter = Waiter(rank=1, key=12, tokens=900, since=now, until=now + 5, end=got.append)
    room.enter(waiter, [Choice(step, candidate.limited, 900)], now)
    ...
    room.freed(subjects, now)     # a call of this worker has ended
    room.tick(now)                # now and then while somebody waits: the places others gave back, and the late
    room.leave(waiter)            # it does not want to wait any longer

A waiter stands at a *door*, one per subject that had no place for it; with several candidates, at several. A door has a
`FairQueue`. Where a place may be free, whoever is next at that door asks the host's table for it (`gateway.limits`), so
no limit is ever exceeded, and what it gets is handed to it as a ticket: one place, one waiter woken. One that lacks
another subject's place goes on to that door, where it keeps no place of this one meanwhile.

**Several workers.** A worker hands the places of its own calls to its own waiters, because others notice them only when
they look. So that none keeps them all, each tells the table how many keys wait at a door of its, by class, and takes
no more than its share of the limit, which is in proportion to that, weighted as classes are. What is more it leaves to
others: whole places at once, the rest of a division `SLICE_S` each in turns. A place that nobody takes for `LEFT_S` is
anybody's, so nothing depends on another worker being alive.

Used from one thread; times are seconds of one monotonic clock and are passed in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from gateway.limits.limiter import Limiter, Limits, Refusal, Subject, Subjects, Ticket, group, name_of
from gateway.queueing.fair import WEIGHTS, FairQueue
from gateway.queueing.stats import OUTCOMES

SLICE_S: Final = 0.25
LEFT_S: Final = 0.1
MEASURED: Final = 8  # places given, before their pace is trusted
SUBJECTS_TOLD: Final = 200
_SMOOTHING = 16
_ANYBODY = ("waiting", 0, Limits(), True)
ANYBODY: Final = name_of(*_ANYBODY[:2])  # what the table has all of them under, so that one look tells of none


class Choice(NamedTuple):
    """One way to serve a waiter: what it is called for itself, what must have a place, tokens as estimated there."""

    what: Any
    subjects: Subjects
    tokens: int


class Place(NamedTuple):
    """What a waiter got."""

    what: Any
    ticket: Ticket


class TooLate(NamedTuple):
    """Its time is over; `wait_s` is what a newcomer would wait by now, None = unknown."""

    wait_s: float | None


class Displaced(NamedTuple):
    """The room is full, and somebody with fewer that wait, or of a higher class, has taken its place in it."""


class Changed(NamedTuple):
    """What it waited by is no longer what is: it must look again where to wait, or whether it may."""


Outcome = Place | Refusal | TooLate | Displaced | Changed


class Waiter:
    """A request that waits. `end` is called once, unless it leaves; `is_over` says that nobody listens any more, and
    `is_stale` that what it waits by has changed."""

    __slots__ = ("blocked", "end", "is_over", "is_stale", "key", "rank", "since", "tokens", "until")

    def __init__(
        self,
        *,
        rank: int,
        key: int,
        tokens: int,
        since: float,
        until: float,
        end: Callable[[Outcome], object],
        is_over: Callable[[], bool] = lambda: False,
        is_stale: Callable[[], bool] = lambda: False,
    ) -> None:
        self.rank, self.key, self.tokens, self.since, self.until = rank, key, tokens, since, until
        self.end, self.is_over, self.is_stale = end, is_over, is_stale
        self.blocked: dict[int, list[Choice]] = {}  # by the key of the subject that had no place


@functools.lru_cache(maxsize=4096)
def waiting_for(kind: str, id: int) -> tuple[tuple[bytes, Subjects], ...]:
    """By class: the name under which the table has how many keys wait for a subject on this host, and what to count
    there, and under `ANYBODY`, for each of them."""
    kinds = [f"wait{rank}-{kind}" for rank in range(len(WEIGHTS))]
    return tuple((name_of(each, id), group((each, id, Limits(), True), _ANYBODY)) for each in kinds)


class _Door:
    """A subject and who waits for it. It exists while somebody does."""

    def __init__(self, subject: Subject, limiter: Limiter) -> None:
        self.subject, self._limiter = subject, limiter
        self.queue: FairQueue[Waiter] = FairQueue()
        self.slice_at = -SLICE_S  # when we left a place to others, or took one they had left
        self.free_since: float | None = None
        self._of = waiting_for(subject.kind, subject.id)
        self._tickets: dict[tuple[int, int], Ticket] = {}  # what tells the others, by class and key
        self._counts: dict[tuple[int, int], int] = {}
        self._given_at: float | None = None
        self._pace_s, self._measured = 0.0, 0

    def add(self, waiter: Waiter) -> None:
        self.queue.add(waiter, rank=waiter.rank, key=waiter.key, tokens=waiter.tokens)
        at = waiter.rank, waiter.key
        self._counts[at] = self._counts.get(at, 0) + 1
        if at not in self._tickets:
            told = self._limiter.admit(self._of[waiter.rank][1])
            assert isinstance(told, Ticket), "nothing is limited there"
            self._tickets[at] = told

    def drop(self, waiter: Waiter) -> None:
        """It is in the queue no longer."""
        at = waiter.rank, waiter.key
        self._counts[at] -= 1
        if not self._counts[at]:
            del self._counts[at]
            self._tickets.pop(at).leave()

    def gave(self, now: float) -> None:
        """A place was given: the mean time between two of them is what waiting costs."""
        if self._given_at is not None:
            self._measured += 1
            share = max(1 / self._measured, 1 / _SMOOTHING)
            self._pace_s += (now - self._given_at - self._pace_s) * share
        self._given_at = now

    def expected_s(self, rank: int, key: int) -> float | None:
        """How long one more of that class and key would wait here; None = not known yet."""
        if self._measured < MEASURED:
            return None
        return (self.queue.ahead(rank=rank, key=key) + 1) * self._pace_s

    def has_place(self) -> bool:
        """Whether the table has one. No lock; who is let through the door asks properly."""
        return self._limiter.slots.in_flight(self.subject.name) < self.subject.concurrent

    def may_take(self, now: float, *, ours: bool) -> bool:
        """Whether this worker may take a place that is free; `ours`: one of its own calls has just given it back."""
        slots = self._limiter.slots
        here = sum(weight * self.queue.keys(rank) for rank, weight in enumerate(WEIGHTS))
        everywhere = sum(weight * slots.in_flight(name) for (name, _), weight in zip(self._of, WEIGHTS, strict=True))
        if everywhere <= here:
            return True
        share = self.subject.concurrent * here / everywhere
        held = slots.own_in_flight(self.subject.name) + 1
        if held <= share:
            return True
        is_rest = held <= math.ceil(share)
        if ours:
            if is_rest and now - self.slice_at < SLICE_S:
                return True
            self.slice_at, self.free_since = now, now
            return False
        if self.free_since is None:
            self.free_since = now
        if (is_rest and now - self.slice_at >= LEFT_S) or now - self.free_since >= LEFT_S:
            self.slice_at, self.free_since = now, None
            return True
        return False


class Room:
    """All who wait in one worker."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._doors: dict[int, _Door] = {}
        self._groups: dict[tuple[int, int], dict[Waiter, None]] = {}  # by class and key, in the order they came
        self.waiting: dict[Waiter, None] = {}  # in the order they came
        self.counts: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
        self.waited_ms = 0.0  # by those that got a place

    # --- coming and going ---------------------------------------------------------------------------------------------

    def awaited(self, subjects: Subjects) -> Subject | None:
        """Which of the subjects somebody waits for already, in any worker of the host, so that nobody may just pass."""
        in_flight = self._limiter.slots.in_flight
        if not in_flight(ANYBODY) and not self._doors:
            return None
        for subject in subjects.members:
            if subject.concurrent and (
                subject.key in self._doors or any(in_flight(name) for name, _ in waiting_for(subject.kind, subject.id))
            ):
                return subject
        return None

    def make_way(self, rank: int, key: int, size: int) -> bool:
        """Whether one more may wait where `size` is the most. In a full room the newest of a lower class makes way, or
        of the key that waits most in the same class, where that is more than this key would have."""
        if len(self.waiting) < size:
            return True
        if not self.waiting:
            return False
        lowest, largest = max(self._groups, key=lambda at: (at[0], len(self._groups[at])))
        newest = self._groups[lowest, largest]
        own = len(self._groups.get((rank, key), ()))
        if lowest < rank or (lowest == rank and len(newest) <= own + 1):
            self.counts["refused_full"] += 1
            return False
        self._end(next(reversed(newest)), Displaced(), "refused_full")
        return True

    def expected_s(self, rank: int, key: int, choices: Sequence[Choice]) -> float | None:
        """How long one more would wait for the soonest of its choices; None = not known."""
        soonest: float | None = None
        for choice in choices:
            subject = self.awaited(choice.subjects)
            door = self._doors.get(subject.key) if subject is not None else None
            wait_s = door.expected_s(rank, key) if door is not None else None
            if wait_s is None:
                return None
            soonest = wait_s if soonest is None else min(soonest, wait_s)
        return soonest

    def enter(self, waiter: Waiter, choices: Sequence[Choice], now: float) -> None:
        """Let it wait for any of the choices, the first ones rather; at the first subject of each that limits requests
        at once. Places that are free go to whoever is next, which may be this one."""
        self.waiting[waiter] = None
        self._groups.setdefault((waiter.rank, waiter.key), {})[waiter] = None
        for choice in choices:
            subject = self.awaited(choice.subjects) or next(each for each in choice.subjects if each.concurrent)
            self._stand(waiter, choice, subject)
        for number in list(waiter.blocked):
            if number in self._doors:
                self._give(self._doors[number], now, ours=False)

    def leave(self, waiter: Waiter) -> None:
        """It does not want to wait any longer. Harmless where it does not wait."""
        if waiter in self.waiting:
            self.counts["left"] += 1
            self._forget(waiter)

    def changed(self, waiter: Waiter) -> bool:
        """End its wait where what it waits by has changed; it is in no figure, for it comes again. Whether it ended."""
        if waiter not in self.waiting or not waiter.is_stale():
            return False
        self._forget(waiter)
        waiter.end(Changed())
        return True

    def freed(self, subjects: Subjects, now: float) -> None:
        """A call of this worker has given back its places: those who are next get them."""
        for subject in subjects.members:
            door = self._doors.get(subject.key)
            if door is not None:
                self._give(door, now, ours=True)

    def tick(self, now: float) -> None:
        """End those whose time is over, and give what other workers have given back."""
        for waiter in [waiter for waiter in self.waiting if waiter.until <= now]:
            wait_s = self._soonest(waiter)
            self._end(waiter, TooLate(wait_s), "timed_out")
        for door in list(self._doors.values()):
            self._give(door, now, ours=False)

    def _soonest(self, waiter: Waiter) -> float | None:
        waits = [self._doors[number].expected_s(waiter.rank, waiter.key) for number in waiter.blocked]
        return min((wait_s for wait_s in waits if wait_s is not None), default=None)

    # --- places -------------------------------------------------------------------------------------------------------

    def _give(self, door: _Door, now: float, *, ours: bool) -> None:
        while (waiter := door.queue.first()) is not None:
            if not door.has_place():
                door.free_since = None
                return
            if not door.may_take(now, ours=ours):
                return
            if waiter.is_over():
                self.leave(waiter)
            elif not self._serve(door, waiter, now):
                return
            else:
                ours = False  # if there are more, others have given them back

    def _serve(self, door: _Door, waiter: Waiter, now: float) -> bool:
        """Try to get a place for whoever is next; False where the door has none."""
        number = door.subject.key
        while choices := waiter.blocked.get(number):
            choice = choices[0]
            answer = self._limiter.admit(choice.subjects, choice.tokens)
            if isinstance(answer, Ticket):
                door.queue.take(waiter)
                door.drop(waiter)
                del waiter.blocked[number]
                self._shut(number)
                door.gave(now)
                self.waited_ms += (now - waiter.since) * 1000
                self._end(waiter, Place(choice.what, answer), "admitted")
                return True
            elsewhere = next(each for each in choice.subjects if (each.kind, each.id) == (answer.kind, answer.id))
            if answer.reason == "concurrent" and elsewhere.key == number:
                return False
            choices.pop(0)
            if answer.reason == "concurrent":
                self._stand(waiter, choice, elsewhere)
            elif len(waiter.blocked) == 1 and not choices:  # no way is left, and this is why
                self._end(waiter, answer, "limited")
                return True
        self._away(waiter, number)
        return True

    def _stand(self, waiter: Waiter, choice: Choice, subject: Subject) -> None:
        """Let it wait for that subject with that choice."""
        known = waiter.blocked.get(subject.key)
        if known is not None:
            known.append(choice)
            return
        waiter.blocked[subject.key] = [choice]
        door = self._doors.get(subject.key)
        if door is None:
            door = self._doors[subject.key] = _Door(subject, self._limiter)
        door.subject = subject  # its limit may have been changed
        door.add(waiter)

    def _away(self, waiter: Waiter, number: int) -> None:
        """It stands at that door no longer."""
        if waiter.blocked.pop(number, None) is None:
            return
        door = self._doors[number]
        door.queue.remove(waiter)
        door.drop(waiter)
        self._shut(number)

    def _shut(self, number: int) -> None:
        door = self._doors.get(number)
        if door is not None and not len(door.queue):
            del self._doors[number]

    def _end(self, waiter: Waiter, outcome: Outcome, counted: str) -> None:
        self.counts[counted] += 1
        self._forget(waiter)
        waiter.end(outcome)

    def _forget(self, waiter: Waiter) -> None:
        for number in list(waiter.blocked):
            self._away(waiter, number)
        del self.waiting[waiter]
        group_at = waiter.rank, waiter.key
        of_key = self._groups[group_at]
        del of_key[waiter]
        if not of_key:
            del self._groups[group_at]

    # --- what control and operators may know --------------------------------------------------------------------------

    def waiting_by_class(self) -> list[int]:
        """How many wait now."""
        waiting = [0] * len(WEIGHTS)
        for (rank, _), of_key in self._groups.items():
            waiting[rank] += len(of_key)
        return waiting

    def report(self, now: float) -> dict[str, Any]:
        """Plain figures for `Runtime.status()`; what they mean says `gateway.queueing.stats`."""
        oldest = next(iter(self.waiting), None)
        return {
            "waiting": self.waiting_by_class(),
            "oldest_ms": round((now - oldest.since) * 1000) if oldest is not None else 0,
            **self.counts,
            "waited_ms": round(self.waited_ms),
            "at": dict(self._at()),
        }

    def _at(self) -> Iterator[tuple[str, int]]:
        for door in list(self._doors.values())[:SUBJECTS_TOLD]:
            yield f"{door.subject.kind}:{door.subject.id}", len(door.queue)
