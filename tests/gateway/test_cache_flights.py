"""The answer cache of a worker: many equal requests at a time, and the cache as the request path uses it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cache import stats
from gateway.cache.answers import AnswerCache
from gateway.cache.control import PLAIN, control_of
from gateway.cache.flights import WAITING_MAX, Flights, Seat
from gateway.cache.key import KEY_BYTES, key_of
from gateway.cache.store import Entry
from gateway.dialects import openai
from providers.canonical import Usage

TEAM = b"team:1"
BODY = b'{"model":"m","messages":[{"role":"user","content":"Hello"}]}'


def entry(body: bytes = b"{}", **fields: Any) -> Entry:
    return Entry(body, **fields)


# --- waiting for equal requests ---------------------------------------------------------------------------------------


def run(scenario: Callable[[Flights], Awaitable[None]]) -> None:
    async def limited() -> None:
        flights = Flights()
        async with asyncio.timeout(8):
            await scenario(flights)
        assert len(flights) == 0, "a flight was left behind"

    asyncio.run(limited())


async def waiters(flights: Flights, count: int, name: bytes = b"k", wait_s: float = 5) -> list[asyncio.Task[Seat]]:
    """Requests that wait by now."""
    tasks = [asyncio.create_task(flights.join(name, wait_s)) for _ in range(count)]
    await asyncio.sleep(0)
    assert flights.waiting(name) == count
    return tasks


def test_one_request_calls_and_the_others_get_its_answer() -> None:
    async def scenario(flights: Flights) -> None:
        with await flights.join(b"k", 5) as leader:
            assert leader.leads
            tasks = await waiters(flights, 20)
            leader.land(entry(b"told"))
        seats = await asyncio.gather(*tasks)
        assert [(seat.leads, seat.entry and seat.entry.body) for seat in seats] == [(False, b"told")] * 20
        assert flights.joined == 20

    run(scenario)


def test_other_keys_wait_for_nobody() -> None:
    async def scenario(flights: Flights) -> None:
        keys = [key_of(openai.parse_chat(BODY), team) or b"" for team in (b"a", b"b")]
        with await flights.join(keys[0], 5) as one, await flights.join(keys[1], 5) as other:
            assert one.leads
            assert other.leads

    run(scenario)


def test_after_a_leader_that_failed_exactly_one_leads_in_the_order_they_came() -> None:
    async def scenario(flights: Flights) -> None:
        tasks = []
        with contextlib.suppress(ZeroDivisionError), await flights.join(b"k", 5):
            tasks += await waiters(flights, 3)
            raise ZeroDivisionError
        await asyncio.sleep(0.01)
        assert [task.done() for task in tasks] == [True, False, False]
        with tasks[0].result() as seat:
            assert seat.leads
        await asyncio.sleep(0.01)
        assert [task.done() for task in tasks] == [True, True, False]
        with tasks[1].result() as seat:
            seat.land(entry(b"told"))
        last = await tasks[2]
        assert last.entry is not None

    run(scenario)


def test_a_leader_that_is_cancelled_leaves_nothing_locked() -> None:
    async def scenario(flights: Flights) -> None:
        async def leads() -> None:
            with await flights.join(b"k", 5):
                await asyncio.sleep(60)

        leader = asyncio.create_task(leads())
        await asyncio.sleep(0)
        (waiter,) = await waiters(flights, 1)
        leader.cancel()
        with await waiter as seat:
            assert seat.leads

    run(scenario)


def test_an_answer_that_cannot_be_shared_lets_everybody_go_at_once() -> None:
    async def scenario(flights: Flights) -> None:
        with await flights.join(b"k", 5) as leader:
            tasks = await waiters(flights, 3)
            leader.land(None)
        seats = await asyncio.gather(*tasks)
        assert [(seat.leads, seat.entry) for seat in seats] == [(False, None)] * 3
        with await flights.join(b"k", 5) as seat:
            assert seat.leads

    run(scenario)


def test_who_has_waited_long_enough_goes_alone_and_does_not_touch_the_flight() -> None:
    async def scenario(flights: Flights) -> None:
        with await flights.join(b"k", 5) as leader:
            with await flights.join(b"k", 0.01) as seat:
                assert (seat.leads, seat.entry) == (False, None)
            with await flights.join(b"k", 0) as seat:
                assert (seat.leads, seat.entry) == (False, None)
            assert flights.waiting(b"k") == 0
            (task,) = await waiters(flights, 1)
            leader.land(entry())
        assert (await task).entry is not None

    run(scenario)


def test_no_more_wait_than_may() -> None:
    async def scenario(flights: Flights) -> None:
        with await flights.join(b"k", 5) as leader:
            tasks = await waiters(flights, WAITING_MAX)
            alone = await flights.join(b"k", 60)
            assert (alone.leads, alone.entry) == (False, None)
            leader.land(None)
        await asyncio.gather(*tasks)

    run(scenario)


def test_who_leaves_while_waiting_is_passed_over() -> None:
    async def scenario(flights: Flights) -> None:
        with await flights.join(b"k", 5):
            first, second = await waiters(flights, 2)
            first.cancel()
            await asyncio.sleep(0)
            assert flights.waiting(b"k") == 1
        with await second as seat:
            assert seat.leads

    run(scenario)


def test_a_lead_given_to_one_that_leaves_in_the_same_moment_is_not_lost() -> None:
    async def scenario(flights: Flights) -> None:
        leader = await flights.join(b"k", 5)
        first, second = await waiters(flights, 2)
        leader.close()  # the first is told that it leads …
        first.cancel()  # … and is cancelled before it can hear it
        with await second as seat:
            assert seat.leads
        assert first.cancelled()

    run(scenario)


def test_a_lead_that_comes_with_the_end_of_the_wait_is_told_once() -> None:
    async def scenario(flights: Flights) -> None:
        leader = await flights.join(b"k", 5)
        (task,) = await waiters(flights, 1, wait_s=0.02)
        leader.close()
        await asyncio.sleep(0.05)  # the timer would have run by now
        with task.result() as seat:
            assert seat.leads
        leader.land(entry())  # too late: the flight is another's
        leader.close()

    run(scenario)


@given(st.lists(st.sampled_from(["join", "land", "none", "close", "cancel", "turn"]), max_size=60))
@settings(max_examples=80, deadline=None)
def test_whatever_happens_there_is_one_leader_and_nobody_waits_without_one(steps: list[str]) -> None:
    async def scenario(flights: Flights) -> None:
        tasks: list[asyncio.Task[Seat]] = []

        def leaders() -> list[Seat]:
            done = (task.result() for task in tasks if task.done() and not task.cancelled())
            return [seat for seat in done if seat.leads]

        for step in steps:
            leader = next(iter(leaders()), None)
            if step == "join":
                tasks.append(asyncio.create_task(flights.join(b"k", 60)))
            elif step == "cancel" and tasks:
                tasks[len(steps) % len(tasks)].cancel()
            elif step == "turn":
                await asyncio.sleep(0)
            elif leader is not None and step in ("land", "none"):
                leader.land(entry() if step == "land" else None)
            elif leader is not None and step == "close":
                leader.close()
            assert len(leaders()) <= 1
        for _ in range(len(tasks) + 3):
            await asyncio.sleep(0.0)
            for seat in leaders():
                seat.close()
        await asyncio.sleep(0)
        for seat in leaders():
            seat.close()
        # A task that was done before it was cancelled may hold a lead that nobody took up; its seat is closed above.
        assert all(task.done() for task in tasks)

    run(scenario)


# --- all of it --------------------------------------------------------------------------------------------------------


def test_a_worker_counts_what_it_saved_its_callers() -> None:
    cache = AnswerCache()
    name = key_of(openai.parse_chat(BODY), TEAM)
    assert name is not None
    assert cache.find(name, PLAIN, stream=False) is None
    cache.missed()
    assert cache.keep(name, entry(b"told", usage=Usage(10, output=5), cost_pico=2_000_000), 60)
    assert cache.find(name, PLAIN, stream=True) is not None
    assert cache.find(name, control_of(b"no-cache"), stream=False) is None
    cache.missed()
    told = stats.told(stats.added([cache.counts(), cache.counts(), {"hits": 1}]), enabled=True, ttl_s=60)
    assert (told["hits"], told["misses"], told["hit_rate"]) == (3, 4, 0.429)
    assert (told["saved_tokens"], told["saved_usd"], told["entries"]) == (30, 4e-06, 2)
    assert told["enabled"] is True
    told_beside = {"embedding_failures", "warmed", "warming_failures"}  # by what fills the cache
    assert cache.counts().keys() | told_beside == set(stats.COUNTERS)
    assert cache.purge(tenant=TEAM) == 1
    assert cache.find(name, PLAIN, stream=False) is None


def test_a_cache_that_nobody_asked_has_a_hit_rate() -> None:
    assert stats.told({}, enabled=False, ttl_s=0)["hit_rate"] == 0.0


def test_who_waited_is_counted_as_a_hit_and_the_answer_is_there_for_the_next() -> None:
    async def scenario() -> None:
        cache, name = AnswerCache(), b"k" * KEY_BYTES
        with await cache.join(name, PLAIN, 5) as leader:
            waiting = asyncio.create_task(cache.join(name, PLAIN, 5))
            fresh = await cache.join(name, control_of(b"no-cache"), 5)
            assert (fresh.leads, fresh.entry) == (False, None)
            for header in (b"no-store", b"max-age=0"):
                assert not (await cache.join(name, control_of(header), 5)).leads
            await asyncio.sleep(0)
            cache.keep(name, entry(b"told"), 60, leader)
        seat = await waiting
        assert cache.joined(seat, stream=True) is not None
        assert cache.find(name, PLAIN, stream=False) is not None
        assert (cache.counts()["hits"], cache.counts()["joined"]) == (2, 1)

    asyncio.run(scenario())


def test_an_answer_too_large_to_keep_still_reaches_those_that_wait() -> None:
    async def scenario() -> None:
        cache = AnswerCache(entry_max_bytes=10)
        with await cache.join(b"k", PLAIN, 5) as leader:
            waiting = asyncio.create_task(cache.join(b"k", PLAIN, 5))
            await asyncio.sleep(0)
            assert not cache.keep(b"k", entry(b"x" * 11), 60, leader)
        assert cache.joined(await waiting, stream=False) is not None

    asyncio.run(scenario())


def test_a_providers_own_answer_is_of_no_use_to_one_that_waits_for_a_stream() -> None:
    async def scenario() -> None:
        cache = AnswerCache()
        with await cache.join(b"k", PLAIN, 5) as leader:
            waiting = asyncio.create_task(cache.join(b"k", PLAIN, 5))
            await asyncio.sleep(0)
            cache.keep(b"k", entry(b"{}", native="gemini"), 60, leader)
        assert cache.joined(await waiting, stream=True) is None

    asyncio.run(scenario())
