"""The desk against a control made of the ledger's own arithmetic: answers come through the loop, as over the line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest

from budgets import transfers
from budgets.desk import Desk, NoLeaseError, PoolSpentError
from budgets.records import PoolRecord

POOL = 7


class Control:
    """One pool window and the leases of any number of desks."""

    def __init__(self, capacity: int) -> None:
        self.window = SimpleNamespace(capacity=capacity, committed=0, leased=0, overrun=0)
        self.leases: dict[str, SimpleNamespace] = {}
        self.desks: dict[str, Desk] = {}
        self.asks = 0
        self.silent = False

    def desk(self, owner: str) -> Desk:
        desk = Desk(owner, send_ask=self.ask, send_return=self.give_back)
        self.leases[owner] = SimpleNamespace(granted=0, returned=0, remaining=0)
        self.desks[owner] = desk
        return desk

    def ask(self, owner: str, pool_id: int, window_start: int, seen_total: int, want: int, need: int) -> None:
        self.asks += 1
        if not self.silent:
            asyncio.get_running_loop().call_soon(self.answer, owner, pool_id, window_start, seen_total, want, need)

    def answer(self, owner: str, pool_id: int, window_start: int, seen_total: int, want: int, need: int) -> None:
        lease = self.leases[owner]
        others = sum(other.remaining for name, other in self.leases.items() if name != owner)
        free = transfers.free_tokens(self.window)
        tokens, more, repeated = 0, True, lease.granted > seen_total
        if not repeated:
            tokens, more = transfers.block_size(free=free, want=want, need=need, workers=len(self.desks))
            transfers.grant(self.window, lease, tokens)
        left = max(0, transfers.free_tokens(self.window))
        spent_out = not tokens and not repeated and left + others < max(1, need)
        self.desks[owner].on_granted(pool_id, window_start, lease.granted, more, spent_out, left)
        if need and not tokens and not repeated and others:
            for name, desk in self.desks.items():
                if name != owner:
                    desk.on_recall(pool_id, window_start)

    def give_back(self, owner: str, pool_id: int, window_start: int, returned_total: int) -> None:
        transfers.give_back(self.window, self.leases[owner], returned_total)


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await story()

    asyncio.run(limited())


async def take(desk: Desk, tokens: int, *, timeout_s: float = 1.0) -> None:
    if not desk.hold(POOL, tokens):
        await desk.wait_hold(POOL, tokens, timeout_s)


def test_the_first_request_waits_for_a_lease_and_the_next_does_not() -> None:
    async def story() -> None:
        desk = Control(1_000_000).desk("a")
        assert not desk.hold(POOL, 100)
        await desk.wait_hold(POOL, 100, 5)
        assert desk.hold(POOL, 100)

    run(story)


def test_pools_get_a_lease_before_anyone_asks() -> None:
    async def story() -> None:
        control = Control(1_000_000)
        desk = control.desk("a")
        assert desk.available(POOL) is None
        desk.set_pools([PoolRecord(POOL, "default"), PoolRecord(8, "off", enabled=False)])
        await asyncio.sleep(0.01)
        assert desk.hold(POOL, 100)
        assert control.asks == 1
        assert desk.available(POOL) == 1_000_000 - 100

    run(story)


def test_of_a_hundred_at_once_exactly_those_that_fit_are_served() -> None:
    async def story() -> None:
        control = Control(1_000)
        desk = control.desk("a")
        served: list[int] = []

        async def request(number: int) -> None:
            await take(desk, 100)
            served.append(number)
            await asyncio.sleep(0.05)
            desk.settle(POOL, 100, 100)

        started = time.monotonic()
        results = await asyncio.gather(*(request(number) for number in range(100)), return_exceptions=True)
        assert time.monotonic() - started < 1.5
        assert served == list(range(10))
        assert sum(isinstance(result, PoolSpentError) for result in results) == 90
        assert control.asks < 40

    run(story)


def test_tokens_that_come_back_are_given_in_the_order_of_arrival() -> None:
    async def story() -> None:
        desk = Control(100).desk("a")
        await take(desk, 100)
        order: list[int] = []

        async def wait(number: int) -> None:
            await take(desk, 50, timeout_s=5)
            order.append(number)

        tasks = []
        for number in range(4):
            tasks.append(asyncio.create_task(wait(number)))
            await asyncio.sleep(0.01)
        desk.release(POOL, 100)
        await asyncio.sleep(0.01)
        assert order == [0, 1]
        assert not desk.hold(POOL, 0), "a newcomer must not overtake"
        desk.release(POOL, 50)
        desk.release(POOL, 50)
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3]

    run(story)


def test_a_spent_pool_refuses_at_once_with_the_numbers() -> None:
    async def story() -> None:
        desk = Control(1_000).desk("a")
        await take(desk, 900)
        desk.settle(POOL, 900, 900)
        for _ in range(3):
            started = time.monotonic()
            with pytest.raises(PoolSpentError) as caught:
                await take(desk, 200, timeout_s=5)
            assert time.monotonic() - started < 0.5
            assert (caught.value.pool, caught.value.available, caught.value.wanted) == (POOL, 100, 200)
            assert caught.value.retry_after_s > 0

    run(story)


def test_a_pool_with_holds_out_refuses_after_the_wait() -> None:
    async def story() -> None:
        desk = Control(1_000).desk("a")
        await take(desk, 900)
        started = time.monotonic()
        with pytest.raises(PoolSpentError):
            await take(desk, 200, timeout_s=0.4)
        assert time.monotonic() - started >= 0.39

    run(story)


def test_without_an_answer_it_is_our_fault_and_not_the_callers() -> None:
    async def story() -> None:
        control = Control(1_000)
        control.silent = True
        desk = control.desk("a")
        started = time.monotonic()
        with pytest.raises(NoLeaseError):
            await take(desk, 100, timeout_s=5)
        assert 0.9 < time.monotonic() - started < 1.5

    run(story)


def test_a_disconnected_desk_lives_on_its_lease_and_asks_when_the_line_is_back() -> None:
    async def story() -> None:
        control = Control(1_000)
        desk = control.desk("a")
        await take(desk, 500)
        desk.disconnected()
        assert desk.hold(POOL, 100)
        asks = control.asks
        waiting = asyncio.create_task(take(desk, 300))
        await asyncio.sleep(0.1)
        assert control.asks == asks
        desk.release(POOL, 500)
        await waiting
        desk.release(POOL, 300)
        waiting = asyncio.create_task(take(desk, 900))
        await asyncio.sleep(0.1)
        desk.connected()
        await waiting

    run(story)


def test_a_lost_answer_is_asked_for_again() -> None:
    async def story() -> None:
        control = Control(1_000)
        control.silent = True
        desk = control.desk("a")
        waiting = asyncio.create_task(take(desk, 100))
        await asyncio.sleep(0.05)
        control.silent = False
        await waiting

    run(story)


def test_whoever_leaves_the_queue_takes_nothing_along() -> None:
    async def story() -> None:
        control = Control(100)
        desk = control.desk("a")
        await take(desk, 100)
        first = asyncio.create_task(take(desk, 100, timeout_s=5))
        second = asyncio.create_task(take(desk, 60, timeout_s=5))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0.01)
        desk.release(POOL, 100)
        await second
        desk.release(POOL, 60)
        # The hold was made, and the task cancelled before it could see that.
        await asyncio.sleep(0.3)
        control.window.capacity = 300
        control.silent = True
        late = asyncio.create_task(take(desk, 200, timeout_s=5))
        await asyncio.sleep(0.01)
        control.answer("a", POOL, 0, control.leases["a"].granted, 200, 200)
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        assert desk.status()[0]["held"] == 0

    run(story)


def test_idle_tokens_of_one_worker_reach_another_that_needs_them() -> None:
    async def story() -> None:
        control = Control(10_000)
        idle, busy = control.desk("idle"), control.desk("busy")
        await take(idle, 6_000)
        idle.release(POOL, 6_000)
        assert control.leases["idle"].remaining >= 6_000
        await take(busy, 9_000)
        assert control.window.leased <= 10_000

    run(story)


def test_two_workers_that_both_lack_tokens_do_not_starve_each_other() -> None:
    async def story() -> None:
        control = Control(9_000)
        one, two = control.desk("one"), control.desk("two")
        await asyncio.gather(take(one, 4_000), take(two, 4_000))
        one.release(POOL, 4_000)
        two.release(POOL, 4_000)

        async def work(desk: Desk) -> None:
            await take(desk, 8_000, timeout_s=5)
            await asyncio.sleep(0.02)
            desk.release(POOL, 8_000)

        await asyncio.gather(work(one), work(two), work(one), work(two))

    run(story)


def test_an_overrun_is_paid_by_the_next_grant() -> None:
    async def story() -> None:
        control = Control(100_000)
        desk = control.desk("a")
        await take(desk, 100)
        free = desk.status()[0]["free"]
        desk.settle(POOL, 100, 100 + free + 500)
        await asyncio.sleep(0.01)
        status = desk.status()[0]
        assert status["free"] > 0
        assert status["free"] + status["used"] == status["granted"]

    run(story)


def test_draining_returns_what_is_free_and_keeps_what_is_held() -> None:
    async def story() -> None:
        control = Control(100_000)
        desk = control.desk("a")
        await take(desk, 100)
        desk.return_all()
        assert control.window.leased == 100
        desk.settle(POOL, 100, 40)
        desk.return_all()
        assert control.window.leased == 40

    run(story)


def test_returns_that_were_lost_are_told_again() -> None:
    async def story() -> None:
        control = Control(100_000)
        desk = control.desk("a")
        await take(desk, 100)
        desk.disconnected()
        desk.return_all()
        assert control.window.leased > 100
        desk.connected()
        assert control.window.leased == 100

    run(story)


def test_a_request_that_must_not_wait_is_refused_at_once() -> None:
    async def story() -> None:
        desk = Control(100).desk("a")
        await take(desk, 80, timeout_s=0)
        for timeout_s in (0, 0.05, 0):
            begin = time.monotonic()
            with pytest.raises(PoolSpentError):
                await asyncio.wait_for(desk.wait_hold(POOL, 80, timeout_s), 2)
            assert time.monotonic() - begin < 0.5
        assert desk.status()[0]["waiting"] == 0

    run(story)


def test_a_first_request_that_must_not_wait_still_gets_what_there_is() -> None:
    async def story() -> None:
        await Control(1_000_000).desk("a").wait_hold(POOL, 80, 0)

    run(story)
