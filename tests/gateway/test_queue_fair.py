"""Who is next: classes by their weights, keys by their tokens, nobody forgotten, nothing left behind."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.queueing.fair import REQUEST_TOKENS, WEIGHTS, FairQueue

INTERACTIVE, AGENT, BATCH = range(3)


def serve(queue: FairQueue[str], count: int) -> list[str]:
    """The next so many, as they are served."""
    served = []
    for _ in range(count):
        item = queue.first()
        assert item is not None
        queue.take(item)
        served.append(item)
    return served


def crowd(queue: FairQueue[str], name: str, count: int, *, rank: int = 0, key: int = 1, tokens: int = 0) -> None:
    for number in range(count):
        queue.add(f"{name}{number}", rank=rank, key=key, tokens=tokens)


# --- classes ----------------------------------------------------------------------------------------------------------


def test_of_twenty_one_places_sixteen_go_to_interactive_four_to_agents_and_one_to_batch() -> None:
    queue: FairQueue[str] = FairQueue()
    for rank, name in enumerate("iab"):
        crowd(queue, name, 200, rank=rank, key=rank)
    served = [item[0] for item in serve(queue, 105)]
    for start in range(0, 105, 21):
        assert Counter(served[start : start + 21]) == {"i": 16, "a": 4, "b": 1}


@pytest.mark.parametrize("backlog", [5, 300])
def test_a_higher_class_goes_before_all_of_a_lower_one_that_came_first(backlog: int) -> None:
    queue: FairQueue[str] = FairQueue()
    crowd(queue, "b", backlog, rank=BATCH)
    serve(queue, 3)  # what was given to a lower class alone is not held against the higher one
    queue.add("i", rank=INTERACTIVE, key=2, tokens=0)
    queue.add("a", rank=AGENT, key=3, tokens=0)
    assert serve(queue, 3) == ["i", "a", "b3"]


def test_a_class_that_comes_back_again_and_again_never_starves_the_others() -> None:
    queue: FairQueue[str] = FairQueue()
    crowd(queue, "b", 10, rank=BATCH)
    served: list[str] = []
    for number in range(100):
        queue.add(f"i{number}", rank=INTERACTIVE, key=2, tokens=0)  # there is always exactly one of the first class
        while queue.waiting(INTERACTIVE):
            served += serve(queue, 1)
    assert Counter(item[0] for item in served)["b"] in (6, 7)  # one to sixteen


# --- keys -------------------------------------------------------------------------------------------------------------


def test_keys_of_one_class_take_turns_however_many_one_of_them_sends() -> None:
    queue: FairQueue[str] = FairQueue()
    crowd(queue, "greedy", 500, key=1)
    crowd(queue, "x", 3, key=2)
    crowd(queue, "y", 3, key=3)
    first = Counter(item.rstrip("0123456789") for item in serve(queue, 9))
    assert first == {"greedy": 3, "x": 3, "y": 3}


def test_one_that_comes_late_does_not_stand_behind_the_backlog_of_another_key() -> None:
    queue: FairQueue[str] = FairQueue()
    crowd(queue, "greedy", 500, key=1)
    serve(queue, 100)
    queue.add("late", rank=INTERACTIVE, key=2, tokens=4000)
    assert "late" in serve(queue, 2)


def test_a_key_that_asks_one_at_a_time_cannot_get_around_what_it_used() -> None:
    queue: FairQueue[str] = FairQueue()
    crowd(queue, "small", 50, key=1)
    large = 0
    queue.add("large", rank=INTERACTIVE, key=2, tokens=REQUEST_TOKENS * 9)
    for _ in range(44):
        if serve(queue, 1) == ["large"]:
            large += 1
            queue.add("large", rank=INTERACTIVE, key=2, tokens=REQUEST_TOKENS * 9)
    assert large == 4  # each is worth ten small ones


def test_tokens_are_shared_and_not_requests() -> None:
    queue: FairQueue[str] = FairQueue()
    crowd(queue, "small", 100, key=1, tokens=0)
    crowd(queue, "large", 100, key=2, tokens=3 * REQUEST_TOKENS)
    shares = Counter(item.rstrip("0123456789") for item in serve(queue, 100))
    assert shares == {"small": 80, "large": 20}


def test_requests_of_one_key_keep_their_order() -> None:
    queue: FairQueue[str] = FairQueue()
    crowd(queue, "a", 5, key=1)
    crowd(queue, "b", 5, key=2)
    served = serve(queue, 10)
    assert [item for item in served if item[0] == "a"] == [f"a{number}" for number in range(5)]


# --- leaving ----------------------------------------------------------------------------------------------------------


def test_who_leaves_is_never_served_and_owes_nothing() -> None:
    queue: FairQueue[str] = FairQueue()
    crowd(queue, "a", 3, key=1, tokens=10_000)
    crowd(queue, "b", 2, key=2)
    for item in ("a0", "a1", "b0"):
        queue.remove(item)
    assert (len(queue), "a0" in queue) == (2, False)
    assert serve(queue, 2) == ["a2", "b1"]
    assert queue.first() is None


def test_who_waits_already_cannot_be_added_again() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("a", rank=0, key=1, tokens=0)
    with pytest.raises(ValueError, match="already"):
        queue.add("a", rank=1, key=2, tokens=0)


def test_a_place_that_never_comes_free_does_not_let_memory_grow() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("first", rank=0, key=0, tokens=0)
    for number in range(5000):
        queue.add("passing", rank=0, key=number, tokens=0)
        queue.remove("passing")
    assert len(queue._classes[0]._order) < 200
    assert (queue._classes[0]._debts, len(queue._where), len(queue._classes[0].flows)) == ({}, 1, 1)


def test_what_keys_owe_is_forgotten_when_it_is_paid_and_when_nobody_competes() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("stays", rank=0, key=0, tokens=0)
    for number in range(1, 5000):
        queue.add(f"more{number}", rank=0, key=0, tokens=0)
        queue.add(f"once{number}", rank=0, key=number, tokens=0)
        serve(queue, 2)
        assert len(queue._classes[0]._debts) <= 1024 + 1
    serve(queue, 1)
    assert (queue._classes[0]._debts, queue._classes[0]._order, queue.first()) == ({}, [], None)


# --- how long ---------------------------------------------------------------------------------------------------------


def test_how_many_stand_before_a_newcomer_is_told_by_what_is_fair() -> None:
    queue: FairQueue[str] = FairQueue()
    assert queue.ahead(rank=AGENT, key=1) == 0
    crowd(queue, "greedy", 100, rank=AGENT, key=1)
    assert queue.ahead(rank=AGENT, key=1) == 100
    assert queue.ahead(rank=AGENT, key=2) == 0  # a key of its own
    crowd(queue, "other", 10, rank=AGENT, key=2)
    assert queue.ahead(rank=AGENT, key=2) == 20  # they take turns
    assert queue.ahead(rank=AGENT, key=1) == 110
    crowd(queue, "batch", 50, rank=BATCH, key=3)
    assert queue.ahead(rank=INTERACTIVE, key=4) == 0
    assert queue.ahead(rank=AGENT, key=2) == 20 + 21 // 4
    assert queue.ahead(rank=BATCH, key=4) == 4


# --- whatever happens -------------------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 2), st.integers(1, 4), st.integers(0, 5000)),
            st.tuples(st.just("take")),
            st.tuples(st.just("remove"), st.integers(0, 30)),
        ),
        max_size=120,
    )
)
def test_everybody_is_served_once_or_left(steps: list[tuple[str | int, ...]]) -> None:
    queue: FairQueue[int] = FairQueue()
    waiting: dict[int, tuple[int, int]] = {}
    numbers: Iterator[int] = itertools.count()
    for step in steps:
        if step[0] == "add":
            number, rank, key = next(numbers), int(step[1]), int(step[2])
            queue.add(number, rank=rank, key=key, tokens=int(step[3]))
            waiting[number] = rank, key
        elif step[0] == "take" and waiting:
            first = queue.first()
            assert first is not None
            queue.take(first)
            del waiting[first]
        elif step[0] == "remove" and waiting:
            item = list(waiting)[int(step[1]) % len(waiting)]
            queue.remove(item)
            del waiting[item]
        assert len(queue) == len(waiting)
        for rank in range(len(WEIGHTS)):
            of_rank = [key for at, key in waiting.values() if at == rank]
            assert (queue.waiting(rank), queue.keys(rank)) == (len(of_rank), len(set(of_rank)))
    left = set()
    while (item := queue.first()) is not None:
        queue.take(item)
        left.add(item)
    assert left == set(waiting)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2000), min_size=2, max_size=6), st.integers(0, 2**32))
def test_over_time_keys_that_always_wait_get_equal_tokens(sizes: list[int], seed: int) -> None:
    queue: FairQueue[tuple[int, int]] = FairQueue()
    used = dict.fromkeys(range(len(sizes)), 0)
    numbers = itertools.count(seed)

    def more(key: int) -> None:
        queue.add((key, next(numbers)), rank=0, key=key, tokens=sizes[key])

    for key in used:
        more(key)
        more(key)
    for _ in range(400):
        item = queue.first()
        assert item is not None
        queue.take(item)
        used[item[0]] += REQUEST_TOKENS + sizes[item[0]]
        more(item[0])
    # Start-time fair queuing: no two that wait all the time are further apart than a request of each.
    assert max(used.values()) - min(used.values()) <= 2 * (REQUEST_TOKENS + max(sizes))
