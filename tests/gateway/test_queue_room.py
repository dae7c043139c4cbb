"""Who waits for a place, in one worker and in several that share a table: nothing is exceeded, lost or kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.limits.limiter import Limiter, Limits, Refusal, Subjects, Ticket, group
from gateway.limits.slots import Slots
from gateway.queueing.room import (
    ANYBODY,
    LEFT_S,
    MEASURED,
    SLICE_S,
    Choice,
    Displaced,
    Outcome,
    Place,
    Room,
    TooLate,
    Waiter,
)

INTERACTIVE, AGENT, BATCH = range(3)
POLL_S = 0.025


class Worker:
    """A room over the host's table, as a worker uses it, and what its waiters heard."""

    def __init__(self, path: Path) -> None:
        self.limiter = Limiter(Slots(path))
        self.room = Room(self.limiter)
        self.now = 0.0
        self.heard: list[tuple[str, Outcome]] = []
        self.held: list[Ticket] = []

    def wait(
        self,
        name: str,
        *subjects: Subjects,
        rank: int = 0,
        key: int = 1,
        tokens: int = 0,
        until: float = 1e9,
        is_over: Callable[[], bool] = lambda: False,
    ) -> Waiter:
        def end(outcome: Outcome) -> None:
            self.heard.append((name, outcome))
            if isinstance(outcome, Place):
                self.held.append(outcome.ticket)

        waiter = Waiter(rank=rank, key=key, tokens=tokens, since=self.now, until=until, end=end, is_over=is_over)
        choices = [Choice(f"{name} by {number}", each, tokens) for number, each in enumerate(subjects)]
        self.room.enter(waiter, choices, self.now)
        return waiter

    def take(self, subjects: Subjects) -> Ticket:
        """A call that did not have to wait."""
        ticket = self.limiter.admit(subjects)
        assert isinstance(ticket, Ticket)
        self.held.append(ticket)
        return ticket

    def end(self, ticket: Ticket | None = None) -> None:
        """The oldest call under way, or this one, is over."""
        ticket = ticket or self.held[0]
        self.held.remove(ticket)
        subjects = ticket.leave()
        assert subjects is not None
        self.room.freed(subjects, self.now)

    @property
    def served(self) -> list[str]:
        return [name for name, outcome in self.heard if isinstance(outcome, Place)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "limits"


@pytest.fixture
def worker(path: Path) -> Iterator[Worker]:
    made = Worker(path)
    yield made
    made.limiter.slots.close()


def route(id: int = 1, limit: int = 1, **more: int) -> Subjects:
    return group(("route", id, Limits(concurrent=limit, **more)))


def told(worker: Worker) -> int:
    """How many (subject, class, key) of this host wait, as the table has it."""
    return worker.limiter.slots.in_flight(ANYBODY)


# --- one worker -------------------------------------------------------------------------------------------------------


def test_a_place_that_comes_free_is_handed_to_exactly_one_and_never_seen_free(worker: Worker) -> None:
    subjects = route()
    worker.take(subjects)
    for name in "abc":
        worker.wait(name, subjects)
    assert worker.served == []
    for done in ("a", "ab", "abc"):
        worker.end()
        assert "".join(worker.served) == done
        assert worker.limiter.slots.in_flight(b"route:1") == 1
    worker.end()
    assert worker.limiter.slots.in_flight(b"route:1") == 0
    assert (worker.room.waiting, worker.room._doors, worker.room._groups, told(worker)) == ({}, {}, {}, 0)


def test_while_somebody_waits_nobody_may_just_pass(worker: Worker) -> None:
    both = group(("route", 1, Limits(concurrent=5)), ("provider", 1, Limits(concurrent=1)))
    other = group(("route", 2, Limits(concurrent=5)), ("provider", 1, Limits(concurrent=1)))
    worker.take(both)
    assert worker.room.awaited(both) is None
    waiter = worker.wait("a", both)
    awaited = worker.room.awaited(other)
    assert awaited is not None
    assert awaited.name == b"provider:1"
    assert worker.room.awaited(route(2, 5)) is None  # its own limit nobody waits for
    worker.room.leave(waiter)
    assert worker.room.awaited(other) is None


def test_a_place_that_is_free_already_is_handed_at_once_to_whoever_is_next(worker: Worker, path: Path) -> None:
    subjects, other = route(), Worker(path)
    other.take(subjects)
    worker.wait("batch", subjects, rank=BATCH)
    other.end()
    worker.wait("interactive", subjects, rank=INTERACTIVE, key=2)
    assert worker.served == ["interactive"]
    other.limiter.slots.close()


def test_one_that_leaves_gets_nothing_and_the_next_is_not_held_up(worker: Worker) -> None:
    subjects = route()
    worker.take(subjects)
    first = worker.wait("a", subjects)
    over = [False]
    worker.wait("b", subjects, key=2, is_over=lambda: over[0])
    worker.wait("c", subjects, key=3)
    worker.room.leave(first)
    worker.room.leave(first)
    over[0] = True  # its task was cancelled, but has not run yet
    worker.end()
    assert worker.served == ["c"]
    assert worker.room.counts["left"] == 2
    assert told(worker) == 0


def test_who_has_waited_long_enough_hears_so(worker: Worker) -> None:
    subjects = route()
    worker.take(subjects)
    worker.wait("short", subjects, until=1.0)
    worker.wait("long", subjects, until=5.0)
    worker.room.tick(0.9)
    assert worker.heard == []
    worker.room.tick(1.0)
    assert worker.heard == [("short", TooLate(None))]
    worker.end()
    assert worker.served == ["long"]
    assert worker.room.counts["timed_out"] == 1


def test_any_of_several_candidates_will_do_and_the_other_places_stay_free(worker: Worker) -> None:
    one, two = route(1), route(2)
    worker.take(one)
    ticket = worker.take(two)
    worker.wait("a", one, two)
    worker.wait("b", one, key=2)
    worker.end(ticket)
    assert worker.heard[0][1] == Place("a by 1", worker.held[-1])
    assert worker.room.report(0)["at"] == {"route:1": 1}
    worker.end()
    assert worker.served == ["a", "b"]


def test_who_lacks_the_place_of_another_subject_goes_there_and_holds_up_nobody(worker: Worker) -> None:
    here = group(("route", 1, Limits(concurrent=1)), ("provider", 1, Limits(concurrent=2)))
    there = group(("route", 2, Limits(concurrent=9)), ("provider", 1, Limits(concurrent=2)))
    elsewhere = group(("route", 1, Limits(concurrent=1)), ("provider", 2, Limits(concurrent=2)))
    first = worker.take(here)
    worker.wait("a", here)
    blocking = [worker.take(there) for _ in range(1)]
    worker.wait("b", elsewhere, key=2)
    blocking.append(worker.take(route(3)))
    worker.end(first)
    assert worker.served == ["a"]
    blocking.append(worker.held[-1])
    assert worker.room.report(0)["at"] == {"route:1": 1}
    full = group(("provider", 1, Limits(concurrent=2)))
    assert isinstance(worker.limiter.admit(full), Refusal)
    worker.wait("c", here, key=3)
    worker.end(blocking[-1])  # the route's place is b's; c goes on to wait there
    assert worker.served == ["a", "b"]
    worker.end(worker.held[-1])
    assert worker.served == ["a", "b", "c"]
    assert told(worker) == 0


def test_a_limit_per_minute_that_is_reached_meanwhile_ends_the_wait(worker: Worker) -> None:
    subjects = route(1, 1, requests_per_minute=2)
    worker.take(subjects)
    worker.wait("a", subjects)
    worker.wait("b", subjects, key=2)
    worker.end()
    worker.end()
    assert worker.served == ["a"]
    name, outcome = worker.heard[-1]
    assert (name, isinstance(outcome, Refusal) and outcome.reason) == ("b", "requests")
    assert worker.room.counts["limited"] == 1
    assert (worker.room.waiting, told(worker)) == ({}, 0)


def test_a_full_room_makes_way_for_a_higher_class_and_for_keys_that_wait_less(worker: Worker) -> None:
    subjects = route()
    worker.take(subjects)
    for number in range(6):
        worker.wait(f"greedy{number}", subjects, rank=AGENT, key=1)
    for number in range(2):
        worker.wait(f"other{number}", subjects, rank=AGENT, key=2)
    assert worker.room.make_way(AGENT, 1, 9)
    assert not worker.room.make_way(AGENT, 1, 8)
    assert not worker.room.make_way(BATCH, 3, 8)
    assert worker.room.make_way(AGENT, 2, 8)
    assert worker.heard == [("greedy5", Displaced())]  # the newest of who waits most
    worker.wait("other2", subjects, rank=AGENT, key=2)
    assert worker.room.make_way(INTERACTIVE, 1, 8)
    assert worker.heard[1:] == [("greedy4", Displaced())]
    assert worker.room.counts["refused_full"] == 4
    assert not Room(worker.limiter).make_way(INTERACTIVE, 1, 0)


def test_how_long_one_more_would_wait_is_known_once_it_was_measured(worker: Worker) -> None:
    subjects = route()
    choice = [Choice("x", subjects, 0)]
    worker.take(subjects)
    for number in range(40):
        worker.wait(f"a{number}", subjects)
    for _ in range(MEASURED + 1):
        assert worker.room.expected_s(INTERACTIVE, 1, choice) is None
        worker.now += 0.5
        worker.end()
    assert worker.room.expected_s(INTERACTIVE, 1, choice) == pytest.approx((40 - MEASURED) * 0.5)
    assert worker.room.expected_s(INTERACTIVE, 2, choice) == pytest.approx(0.5)  # another key does not queue behind it
    assert worker.room.expected_s(INTERACTIVE, 1, [*choice, Choice("y", route(2), 0)]) is None


def test_the_report_tells_who_waits_for_what_and_what_became_of_the_others(worker: Worker) -> None:
    subjects = route()
    worker.take(subjects)
    worker.wait("a", subjects, rank=BATCH)
    worker.now = 2.0
    worker.wait("b", subjects, rank=AGENT, key=2)
    worker.now = 3.0
    assert worker.room.report(3.0) == {
        **{"waiting": [0, 1, 1], "oldest_ms": 3000, "admitted": 0, "timed_out": 0, "refused_full": 0},
        **{"refused_early": 0, "left": 0, "limited": 0, "waited_ms": 0, "at": {"route:1": 2}},
    }
    worker.end()
    report = worker.room.report(3.0)
    assert (report["waiting"], report["admitted"], report["waited_ms"], report["oldest_ms"]) == (
        [0, 0, 1],
        1,
        1000,
        3000,
    )


def test_a_raised_limit_lets_those_who_came_with_it_through(worker: Worker) -> None:
    worker.take(route(1, 1))
    worker.wait("old", route(1, 1))
    worker.wait("new", route(1, 3), key=2)
    worker.room.tick(1.0)
    assert worker.served == []  # nobody passes the one before
    worker.end()
    worker.room.tick(1.1)
    assert worker.served == ["old", "new"]


# --- several workers --------------------------------------------------------------------------------------------------


class Host:
    """Workers of one host, in simulated time: calls take `service_s`, each worker looks every `POLL_S`."""

    def __init__(self, path: Path, limit: int, service_s: float, workers: int = 2) -> None:
        self.subjects = route(1, limit)
        self.limit, self.service_s, self.now = limit, service_s, 0.0
        self.workers = [Worker(path) for _ in range(workers)]
        self.ends: list[tuple[float, int, Ticket]] = []
        self.places: list[list[tuple[float, str]]] = [[] for _ in self.workers]
        self.chance = random.Random(7)
        self.most = 0
        self.clients: list[tuple[int, str, int, int]] = []  # worker, name, class, key: each always waits or is served
        self.polls = [self.chance.uniform(0, POLL_S) for _ in self.workers]

    def join(self, worker: int, name: str, *, count: int, rank: int = 0, key: int | None = None) -> None:
        """So many clients; each with a key of its own, or all with this one."""
        for _ in range(count):
            at = key if key is not None else len(self.clients) + 100
            self.clients.append((worker, name, rank, at))
            self._ask(worker, name, rank, at)

    def _ask(self, number: int, name: str, rank: int, key: int) -> None:
        worker = self.workers[number]
        worker.now = self.now

        def end(outcome: Outcome) -> None:
            assert isinstance(outcome, Place)
            self.places[number].append((self.now, name))
            self.ends.append((self.now + self.service_s * self.chance.uniform(0.9, 1.1), number, outcome.ticket))
            self.ends.sort(key=lambda entry: entry[:2])
            self.again.append((number, name, rank, key))

        waiter = Waiter(rank=rank, key=key, tokens=0, since=self.now, until=1e9, end=end)
        self.again: list[Any] = getattr(self, "again", [])
        worker.room.enter(waiter, [Choice(name, self.subjects, 0)], self.now)

    def run(self, until: float) -> None:
        """Let time pass."""
        while True:
            poll = min(range(len(self.polls)), key=self.polls.__getitem__)
            at = min(self.polls[poll], self.ends[0][0] if self.ends else 1e9)
            if at > until:
                self.now = until
                return
            self.now = at
            if self.ends and self.ends[0][0] <= self.polls[poll]:
                _, number, ticket = self.ends.pop(0)
                ticket.leave()
                self.workers[number].room.freed(self.subjects, self.now)
            else:
                self.polls[poll] += POLL_S
                self.workers[poll].room.tick(self.now)
            self.most = max(self.most, self.workers[0].limiter.slots.in_flight(b"route:1"))
            again, self.again = self.again, []
            for entry in again:
                self._ask(*entry)

    def count(self, worker: int, name: str = "", since: float = 0.0) -> int:
        """How many places that worker's clients of that name got."""
        return sum(at >= since and (not name or name == got) for at, got in self.places[worker])

    def close(self) -> None:
        for worker in self.workers:
            worker.limiter.slots.close()


@pytest.fixture
def host(path: Path) -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(limit: int, service_s: float = 0.02, workers: int = 2) -> Host:
        made.append(Host(path, limit, service_s, workers))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(("limit", "least"), [(1, 0.85), (2, 0.85), (3, 0.9), (8, 0.95)])
def test_a_worker_that_comes_late_gets_its_share_and_little_is_lost(
    host: Callable[..., Host], limit: int, least: float
) -> None:
    made = host(limit)
    made.join(0, "first", count=30)
    made.run(2.0)
    alone = made.count(0) / 2.0
    assert alone == pytest.approx(limit / 0.02, rel=0.05)
    made.join(1, "late", count=30)
    made.run(3.0)
    made.run(9.0)
    first, late = made.count(0, since=3.0), made.count(1, since=3.0)
    assert 0.7 <= first / late <= 1.4
    assert (first + late) / 6.0 >= least * alone
    assert made.most <= limit
    waited = next(at for at, _ in made.places[1]) - 2.0
    assert waited <= SLICE_S + LEFT_S + 0.05


def test_places_are_shared_by_keys_and_not_by_how_much_each_sends(host: Callable[..., Host]) -> None:
    made = host(8)
    made.join(0, "greedy", count=200, key=1)
    made.join(1, "others", count=21)
    made.run(1.0)
    made.run(5.0)
    greedy, others = made.count(0, since=1.0), made.count(1, since=1.0)
    assert others / greedy > 5  # 21 to 1 by keys, but a worker with anybody has a place in turns


def test_a_higher_class_of_another_worker_goes_before_a_lower_one_of_this(host: Callable[..., Host]) -> None:
    made = host(8)
    made.join(0, "batch", count=50, rank=BATCH, key=1)
    made.run(1.0)
    made.join(1, "interactive", count=20, key=2)
    made.run(1.2)
    made.run(4.0)
    batch, interactive = made.count(0, since=1.2), made.count(1, since=1.2)
    assert 5 <= interactive / batch <= 20
    assert batch > 10  # and yet it is not starved


def test_the_places_of_a_worker_that_hangs_are_taken_by_the_others_after_a_moment(
    host: Callable[..., Host],
) -> None:
    made = host(4)
    made.join(0, "hangs", count=20)
    made.join(1, "lives", count=20)
    made.run(1.0)
    made.ends = [entry for entry in made.ends if entry[1] == 1] + [
        entry for entry in made.ends if entry[1] == 0 and entry[2].leave() is None
    ]
    made.polls[0] = 1e9  # it neither looks nor ends anything, and its keys stand in the table
    before = made.count(1)
    made.run(3.0)
    assert made.count(1) - before >= 2 * 2.0 / 0.02 * 0.9
    assert made.most <= 4


def test_what_a_worker_that_stops_has_told_is_gone_with_it(path: Path) -> None:
    one, two, subjects = Worker(path), Worker(path), route()
    two.take(subjects)
    one.wait("a", subjects)
    assert two.room.awaited(subjects) is not None
    one.limiter.slots.close()
    assert two.room.awaited(subjects) is None
    assert told(two) == 0
    two.limiter.slots.close()
