"""The desk of one pool against a control made of the ledger's own arithmetic."""

from __future__ import annotations

import asyncio
import time

import pytest

from budgets.desk import CLOSED_WELL, Desk, NoLeaseError, PoolSpentError
from budgets.records import Draw, PoolRecord
from tests.budgets import model_control
from tests.budgets.model_control import POOL, Control, run, wallet

PLAIN = PoolRecord(POOL, "default")
KEY = (POOL, 0, 0)


async def take(desk: Desk, tokens: int, *, timeout_s: float = 1.0) -> tuple[Draw, ...]:
    return await model_control.take(desk, (POOL,), tokens, wait_s=timeout_s)


def share(held: int) -> tuple[Draw, ...]:
    return (Draw(POOL, 0, 0, held),)


def hold(desk: Desk, tokens: int) -> tuple[Draw, ...] | None:
    return desk.hold(desk.chain((POOL,)), tokens, 0)


def test_the_first_request_waits_for_a_lease_and_the_next_does_not() -> None:
    async def story() -> None:
        desk = Control(1_000_000).desk("a", [PLAIN])
        assert not hold(desk, 100)
        await desk.wait_hold(desk.chain((POOL,)), 100, 0, 5)
        assert hold(desk, 100)

    run(story)


def test_pools_get_a_lease_before_anyone_asks() -> None:
    async def story() -> None:
        control = Control(1_000_000)
        desk = control.desk("a", [PLAIN])
        desk.set_pools([PLAIN, PoolRecord(8, "off", enabled=False)])
        assert desk.available(desk.chain((POOL,))) == (None, None)
        await asyncio.sleep(0.01)
        assert hold(desk, 100)
        assert control.asks == 1
        assert desk.available(desk.chain((POOL,))) == (1_000_000 - 100, None)

    run(story)


def test_of_a_hundred_at_once_exactly_those_that_fit_are_served() -> None:
    async def story() -> None:
        control = Control(1_000)
        desk = control.desk("a", [PLAIN])
        served: list[int] = []

        async def request(number: int) -> None:
            await take(desk, 100)
            served.append(number)
            await asyncio.sleep(0.05)
            desk.settle(share(100), 100, 0)

        started = time.monotonic()
        results = await asyncio.gather(*(request(number) for number in range(100)), return_exceptions=True)
        assert time.monotonic() - started < 1.5
        assert served == list(range(10))
        assert sum(isinstance(result, PoolSpentError) for result in results) == 90
        assert control.asks < 40

    run(story)


def test_tokens_that_come_back_are_given_in_the_order_of_arrival() -> None:
    async def story() -> None:
        desk = Control(100).desk("a", [PLAIN])
        await take(desk, 100)
        order: list[int] = []

        async def wait(number: int) -> None:
            await take(desk, 50, timeout_s=5)
            order.append(number)

        tasks = []
        for number in range(4):
            tasks.append(asyncio.create_task(wait(number)))
            await asyncio.sleep(0.01)
        desk.release(share(100))
        await asyncio.sleep(0.01)
        assert order == [0, 1]
        assert not hold(desk, 1), "a newcomer must not overtake"
        assert hold(desk, 0), "who needs nothing needs not wait"
        desk.release(share(50))
        desk.release(share(50))
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3]

    run(story)


def test_a_spent_pool_refuses_at_once_with_the_numbers() -> None:
    async def story() -> None:
        desk = Control(1_000).desk("a", [PLAIN])
        await take(desk, 900)
        desk.settle(share(900), 900, 0)
        for _ in range(3):
            started = time.monotonic()
            with pytest.raises(PoolSpentError) as caught:
                await take(desk, 200, timeout_s=5)
            assert time.monotonic() - started < 0.5
            assert (caught.value.pool_id, caught.value.available, caught.value.wanted) == (POOL, 100, 200)
            assert caught.value.retry_after_s > 0

    run(story)


def test_the_numbers_of_a_spent_pool_count_what_other_workers_have() -> None:
    async def story() -> None:
        control = Control(1_000)
        desk, other = control.desk("a", [PLAIN]), control.desk("b", [PLAIN])
        await take(other, 300)
        await take(desk, 400)
        with pytest.raises(PoolSpentError) as caught:
            await take(desk, 2_000, timeout_s=5)
        assert (caught.value.available, caught.value.wanted) == (600, 2_000)

    run(story)


def test_a_pool_with_holds_out_refuses_after_the_wait() -> None:
    async def story() -> None:
        desk = Control(1_000).desk("a", [PLAIN])
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
        desk = control.desk("a", [PLAIN])
        started = time.monotonic()
        with pytest.raises(NoLeaseError):
            await take(desk, 100, timeout_s=5)
        assert 0.9 < time.monotonic() - started < 1.5

    run(story)


def test_a_disconnected_desk_lives_on_its_lease_and_asks_when_the_line_is_back() -> None:
    async def story() -> None:
        control = Control(1_000)
        desk = control.desk("a", [PLAIN])
        await take(desk, 500)
        desk.disconnected()
        assert hold(desk, 100)
        asks = control.asks
        waiting = asyncio.create_task(take(desk, 300))
        await asyncio.sleep(0.1)
        assert control.asks == asks
        desk.release(share(500))
        await waiting
        desk.release(share(300))
        waiting = asyncio.create_task(take(desk, 900))
        await asyncio.sleep(0.1)
        desk.connected()
        await waiting

    run(story)


def test_a_lost_answer_is_asked_for_again() -> None:
    async def story() -> None:
        control = Control(1_000)
        control.silent = True
        desk = control.desk("a", [PLAIN])
        waiting = asyncio.create_task(take(desk, 100))
        await asyncio.sleep(0.05)
        control.silent = False
        await waiting

    run(story)


def test_whoever_leaves_the_queue_takes_nothing_along() -> None:
    async def story() -> None:
        control = Control(100)
        desk = control.desk("a", [PLAIN])
        await take(desk, 100)
        first = asyncio.create_task(take(desk, 100, timeout_s=5))
        second = asyncio.create_task(take(desk, 60, timeout_s=5))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0.01)
        desk.release(share(100))
        await second
        desk.release(share(60))
        # The hold was made, and the task cancelled before it could see that.
        await asyncio.sleep(0.3)
        control.purse.capacity = 300
        control.silent = True
        late = asyncio.create_task(take(desk, 200, timeout_s=5))
        await asyncio.sleep(0.01)
        control.answer("a", (POOL, 0, 0), control.lease("a", (POOL, 0, 0)).granted, 200, 200)
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        assert wallet(desk)["held"] == 0

    run(story)


def test_idle_tokens_of_one_worker_reach_another_that_needs_them() -> None:
    async def story() -> None:
        control = Control(10_000)
        idle, busy = control.desk("idle", [PLAIN]), control.desk("busy", [PLAIN])
        await take(idle, 6_000)
        idle.release(share(6_000))
        assert control.lease("idle", (POOL, 0, 0)).remaining >= 6_000
        await take(busy, 9_000)
        assert control.purse.leased <= 10_000

    run(story)


def test_two_workers_that_both_lack_tokens_do_not_starve_each_other() -> None:
    async def story() -> None:
        control = Control(9_000)
        one, two = control.desk("one", [PLAIN]), control.desk("two", [PLAIN])
        await asyncio.gather(take(one, 4_000), take(two, 4_000))
        one.release(share(4_000))
        two.release(share(4_000))

        async def work(desk: Desk) -> None:
            await take(desk, 8_000, timeout_s=5)
            await asyncio.sleep(0.02)
            desk.release(share(8_000))

        await asyncio.gather(work(one), work(two), work(one), work(two))

    run(story)


def test_an_overrun_is_paid_by_the_next_grant() -> None:
    async def story() -> None:
        control = Control(100_000)
        desk = control.desk("a", [PLAIN])
        await take(desk, 100)
        free = wallet(desk)["free"]
        desk.settle(share(100), 100 + free + 500, 0)
        await asyncio.sleep(0.01)
        status = wallet(desk)
        assert status["free"] > 0
        assert status["free"] + status["used"] == status["granted"]

    run(story)


def test_draining_returns_what_is_free_and_keeps_what_is_held() -> None:
    async def story() -> None:
        control = Control(100_000)
        desk = control.desk("a", [PLAIN])
        await take(desk, 100)
        desk.return_all()
        assert control.purse.leased == 100
        desk.settle(share(100), 40, 0)
        desk.return_all()
        assert control.purse.leased == 40

    run(story)


def test_returns_that_were_lost_are_told_again() -> None:
    async def story() -> None:
        control = Control(100_000)
        desk = control.desk("a", [PLAIN])
        await take(desk, 100)
        desk.disconnected()
        desk.return_all()
        assert control.purse.leased > 100
        desk.connected()
        assert control.purse.leased == 100

    run(story)


def test_what_a_lost_answer_granted_is_found_again() -> None:
    async def story() -> None:
        control = Control(100_000)
        one, two = control.desk("one", [PLAIN]), control.desk("two", [PLAIN])
        await asyncio.sleep(0.01)
        early = await take(one, wallet(one)["free"])
        await asyncio.sleep(0.01)
        leaving = asyncio.create_task(take(one, 60_000))
        await asyncio.sleep(0)
        control.cut(one)  # control has the ask, and nobody hears the answer
        await asyncio.sleep(0.01)
        leaving.cancel()
        one.release(early)
        assert control.lease("one", KEY).granted > wallet(one)["granted"] + 50_000
        control.mend(one)
        await asyncio.sleep(0.01)
        assert control.lease("one", KEY).granted == wallet(one)["granted"]
        await take(two, 90_000)
        asks = control.asks
        control.cut(one)
        control.mend(one)
        assert control.asks == asks, "there is nothing to ask for"

    run(story)


def test_what_was_granted_after_a_need_could_not_be_met_is_found_again_too() -> None:
    async def story() -> None:
        control = Control(10_000)
        one, two = control.desk("one", [PLAIN]), control.desk("two", [PLAIN])
        await asyncio.sleep(0.01)
        everything = await take(two, 9_000)
        leaving = asyncio.create_task(take(one, 8_000))
        await asyncio.sleep(0.01)  # it was told that there is nothing yet
        control.cut(one)
        two.release(everything)
        two.return_all()
        leaving.cancel()
        await asyncio.sleep(0.01)
        assert control.lease("one", KEY).granted > wallet(one)["granted"]
        control.mend(one)
        await asyncio.sleep(0.01)
        assert control.lease("one", KEY).granted == wallet(one)["granted"]
        await take(two, 9_900)

    run(story)


def windows(count: int, start: int) -> list[PoolRecord]:
    return [PoolRecord(number, f"p{number}", window_start=start, window_end=start + 10) for number in range(count)]


def test_no_number_of_windows_that_end_while_control_is_away_is_forgotten_and_none_is_told_for_ever() -> None:
    async def story() -> None:
        count = CLOSED_WELL + 100
        keys = [(number, 0, 10) for number in range(count)]
        control = Control({(number, 0, start): 10_000 for number in range(count) for start in (10, 20)})
        desk = control.desk("a", windows(count, 10))
        for key in keys:
            control.answer("a", key, 0, 1_000, 0)
        await asyncio.sleep(0.05)
        control.cut(desk)
        desk.set_pools(windows(count, 20))
        assert sum(control.purses[key].leased for key in keys) > count * 100
        control.mend(desk)
        assert sum(control.purses[key].leased for key in keys) == 0
        await asyncio.sleep(0.05)
        control.cut(desk)
        returns = control.returns
        control.mend(desk)
        assert control.returns == returns

    run(story)


def test_a_grant_lost_at_a_windows_end_goes_back_when_the_line_does() -> None:
    async def story() -> None:
        control = Control({(0, 0, 10): 10_000, (0, 0, 20): 10_000})
        desk = control.desk("a", windows(1, 10))
        await asyncio.sleep(0)
        control.cut(desk)
        await asyncio.sleep(0.01)
        desk.set_pools(windows(1, 20))
        assert control.purses[0, 0, 10].leased > 0
        control.mend(desk)
        await asyncio.sleep(0.01)
        assert control.purses[0, 0, 10].leased == 0

    run(story)


def test_windows_that_end_while_control_is_there_are_forgotten_in_time() -> None:
    async def story() -> None:
        control = Control({(number, 0, start): 1_000 for number in range(8) for start in range(10, 3_000, 10)})
        desk = control.desk("a", windows(8, 10))
        for start in range(20, 3_000, 10):
            await asyncio.sleep(0.001)
            desk.set_pools(windows(8, start))
        await asyncio.sleep(0.01)
        assert len(desk._closed) <= CLOSED_WELL
        assert sum(purse.leased for (_, _, at), purse in control.purses.items() if at < 2_990) == 0

    run(story)


def test_a_request_that_must_not_wait_is_refused_at_once() -> None:
    async def story() -> None:
        desk = Control(100).desk("a", [PLAIN])
        await take(desk, 80, timeout_s=0)
        for timeout_s in (0, 0.05, 0):
            begin = time.monotonic()
            with pytest.raises(PoolSpentError):
                await asyncio.wait_for(desk.wait_hold(desk.chain((POOL,)), 80, 0, timeout_s), 2)
            assert time.monotonic() - begin < 0.5
        assert wallet(desk)["waiting"] == 0

    run(story)


def test_a_first_request_that_must_not_wait_still_gets_what_there_is() -> None:
    async def story() -> None:
        desk = Control(1_000_000).desk("a", [PLAIN])
        assert await desk.wait_hold(desk.chain((POOL,)), 80, 0, 0)

    run(story)
