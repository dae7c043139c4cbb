"""Requests that draw on several purses at once: all or none, in one order, whoever else waits. Time is virtual."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from budgets.chain import PurseKey
from budgets.desk import Desk, NoLeaseError, PoolDisabledError, PoolSpentError
from budgets.records import OBSERVED, Draw, PoolRecord
from tests.budgets.model_control import Control, run_virtually, take, wallet

TEAM, AGENT, PROJECT = 1, 2, 3
BOTH = (0, 1)


def pool(pool_id: int, **more: Any) -> PoolRecord:
    return PoolRecord(pool_id, f"pool {pool_id}", **more)


def now() -> float:
    return asyncio.get_running_loop().time()


def virtual(control: Control, owner: str, pools: list[PoolRecord], **more: Any) -> Desk:
    return control.desk(owner, pools, clock=now, **more)


def held(desk: Desk) -> dict[PurseKey, int]:
    return {(e["pool_id"], e["unit"], e["window_start"]): e["held"] for e in desk.status() if e["held"]}


def test_a_chain_holds_tokens_and_money_of_every_pool_in_one_order() -> None:
    async def story() -> None:
        control = Control({(TEAM, 0, 0): 10**6, (TEAM, 1, 0): 10**15, (PROJECT, 1, 0): 10**15})
        pools = [pool(PROJECT, units=(1,)), pool(TEAM, units=BOTH), pool(AGENT, mode="observe", units=BOTH)]
        desk = virtual(control, "a", pools)
        draws = await take(desk, (PROJECT, TEAM, AGENT, TEAM), 500, 7_000)
        assert draws == (
            Draw(TEAM, 0, 0, 500),
            Draw(TEAM, 1, 0, 7_000),
            Draw(AGENT, 0, 0, OBSERVED),
            Draw(AGENT, 1, 0, OBSERVED),
            Draw(PROJECT, 0, 0, OBSERVED),
            Draw(PROJECT, 1, 0, 7_000),
        )
        desk.settle(draws, 40, 600)
        assert not held(desk)
        used = {key: wallet(desk, key)["used"] for key in control.purses}
        assert used == {(TEAM, 0, 0): 40, (TEAM, 1, 0): 600, (PROJECT, 1, 0): 600}

    run_virtually(story)


def test_a_soft_pool_refuses_only_when_nothing_is_left() -> None:
    async def story() -> None:
        control = Control({(TEAM, 0, 0): 1_000})
        desk = virtual(control, "a", [pool(TEAM, mode="soft")])
        draws = await take(desk, (TEAM,), 50_000)
        assert draws[0].held == 1
        desk.settle(draws, 1_500, 0)
        control.charge("a", draws, 1_500, 0)
        assert control.purses[TEAM, 0, 0].overrun == 500
        with pytest.raises(PoolSpentError) as caught:
            await take(desk, (TEAM,), 50_000)
        assert (caught.value.available, caught.value.wanted) == (0, 1)

    run_virtually(story)


def test_an_observing_pool_never_refuses_and_never_asks() -> None:
    async def story() -> None:
        control = Control({})
        desk = virtual(control, "a", [pool(TEAM, mode="observe", units=BOTH)])
        draws = desk.hold(desk.chain((TEAM,)), 10**9, 10**15)
        assert draws is not None
        desk.settle(draws, 10**9, 10**15)
        assert (control.asks, desk.status()) == (0, [])

    run_virtually(story)


def test_what_costs_nothing_needs_no_money() -> None:
    async def story() -> None:
        control = Control({(TEAM, 0, 0): 10**6, (TEAM, 1, 0): 0})
        desk = virtual(control, "a", [pool(TEAM, units=BOTH)])
        draws = await take(desk, (TEAM,), 100, 0)
        assert [draw.held for draw in draws] == [100, 0]
        with pytest.raises(PoolSpentError) as caught:
            await take(desk, (TEAM,), 100, 1)
        assert caught.value.unit == 1
        desk.settle(draws, 100, 0)

    run_virtually(story)


def test_disabled_and_unknown_pools_are_told_apart_from_empty_ones() -> None:
    async def story() -> None:
        desk = virtual(Control({}), "a", [pool(TEAM), pool(AGENT, enabled=False)])
        for missing in (AGENT, 99):
            with pytest.raises(PoolDisabledError) as caught:
                desk.chain((TEAM, missing))
            assert caught.value.pool_id == missing

    run_virtually(story)


def test_who_waits_holds_nothing_and_is_served_when_the_last_purse_has_enough() -> None:
    async def story() -> None:
        control = Control({(TEAM, 0, 0): 1_000, (AGENT, 0, 0): 1_000})
        desk = virtual(control, "a", [pool(TEAM), pool(AGENT)])
        first = await take(desk, (AGENT,), 900)
        waiting = asyncio.create_task(take(desk, (TEAM, AGENT), 800, wait_s=5))
        await asyncio.sleep(0.3)
        assert held(desk) == {(AGENT, 0, 0): 900}
        others = await take(desk, (TEAM,), 900)  # in the way of the one who waits, and served
        desk.release(first)
        await asyncio.sleep(0.3)
        assert not waiting.done()
        assert held(desk) == {(TEAM, 0, 0): 900}
        late = await take(desk, (AGENT,), 900, wait_s=0)
        desk.release(others)
        await asyncio.sleep(0.3)
        assert not waiting.done()
        desk.release(late)
        assert [draw.held for draw in await waiting if draw.unit == 0] == [800, 800]

    run_virtually(story)


def test_a_waiter_keeps_its_place_by_arrival_when_it_moves_to_another_queue() -> None:
    async def story() -> None:
        control = Control({(TEAM, 0, 0): 100, (AGENT, 0, 0): 100})
        desk = virtual(control, "a", [pool(TEAM), pool(AGENT)])
        order: list[str] = []

        async def wait(name: str, ids: tuple[int, ...]) -> tuple[Draw, ...]:
            draws = await take(desk, ids, 100, wait_s=5)
            order.append(name)
            return draws

        team, agent = await take(desk, (TEAM,), 100), await take(desk, (AGENT,), 100)
        older = asyncio.create_task(wait("older", (TEAM, AGENT)))
        await asyncio.sleep(0.1)
        newer = asyncio.create_task(wait("newer", (AGENT,)))
        await asyncio.sleep(0.1)
        desk.release(team)  # the older one now stands before the newer one in the other queue
        await asyncio.sleep(0.1)
        desk.release(agent)
        desk.release(await older)
        desk.release(await newer)
        assert order == ["older", "newer"]

    run_virtually(story)


def test_nobody_overtakes_on_a_later_purse_either() -> None:
    async def story() -> None:
        control = Control({(TEAM, 0, 0): 100, (AGENT, 0, 0): 100})
        desk = virtual(control, "a", [pool(TEAM), pool(AGENT)])
        team, agent = await take(desk, (TEAM,), 100), await take(desk, (AGENT,), 40)
        older = asyncio.create_task(take(desk, (AGENT,), 100, wait_s=5))
        await asyncio.sleep(0.1)
        newer = asyncio.create_task(take(desk, (TEAM, AGENT), 50, wait_s=5))
        await asyncio.sleep(0.1)
        desk.release(team)
        await asyncio.sleep(0.1)
        assert wallet(desk, (AGENT, 0, 0))["free"] == 60
        assert not newer.done()
        desk.release(agent)
        await asyncio.sleep(0.1)
        assert (older.done(), newer.done()) == (True, False)
        desk.release(await older)
        assert await newer

    run_virtually(story)


def test_a_hopeless_purse_refuses_at_once_with_its_own_numbers() -> None:
    async def story() -> None:
        control = Control({(TEAM, 0, 0): 10**6, (AGENT, 1, 0): 5_000})
        desk = virtual(control, "a", [pool(TEAM), pool(AGENT, units=(1,))])
        begin = now()
        for _ in range(2):
            with pytest.raises(PoolSpentError) as caught:
                await take(desk, (TEAM, AGENT), 100, 6_000, wait_s=5)
            spent = caught.value
            assert (spent.pool_id, spent.unit, spent.available, spent.wanted) == (AGENT, 1, 5_000, 6_000)
        assert now() - begin < 0.5
        assert not held(desk)

    run_virtually(story)


def test_without_an_answer_for_one_of_the_purses_it_is_our_fault() -> None:
    async def story() -> None:
        control = Control({(TEAM, 0, 0): 10**6})  # nothing is ever said of the other
        desk = virtual(control, "a", [pool(TEAM), pool(AGENT)])
        await take(desk, (TEAM,), 1)
        begin = now()
        with pytest.raises(NoLeaseError) as caught:
            await take(desk, (TEAM, AGENT), 100, wait_s=5)
        assert caught.value.pool_id == AGENT
        assert now() - begin == pytest.approx(1, abs=0.1)

    run_virtually(story)


def test_all_cold_purses_are_asked_for_at_once() -> None:
    async def story() -> None:
        control = Control({(number, 0, 0): 10**6 for number in range(1, 200)})
        desk = virtual(control, "a", [pool(number) for number in range(1, 200)])
        await asyncio.sleep(0.01)
        asked = control.asks
        begin = now()
        await take(desk, (150, 160, 170), 10)
        assert control.asks == asked + 3
        assert now() - begin < 0.01

    run_virtually(story)


def test_a_recall_keeps_what_the_head_of_a_later_queue_needs_but_not_for_long() -> None:
    async def story() -> None:
        control = Control({(TEAM, 0, 0): 1_000, (AGENT, 0, 0): 1_000})
        pools = [pool(TEAM), pool(AGENT)]
        desk, other = virtual(control, "a", pools), virtual(control, "b", pools)
        agent = await take(other, (AGENT,), 900)
        await take(desk, (TEAM,), 700)
        desk.release((Draw(TEAM, 0, 0, 700),))
        waiting = asyncio.create_task(take(desk, (TEAM, AGENT), 600, wait_s=5))
        await asyncio.sleep(0.05)
        desk.on_recall(TEAM, 0, 0)
        assert wallet(desk, (TEAM, 0, 0))["free"] == 600
        desk.on_recall(AGENT, 0, 0)
        assert wallet(desk, (AGENT, 0, 0))["free"] == 0
        await asyncio.sleep(1.1)
        desk.on_recall(TEAM, 0, 0)
        assert wallet(desk, (TEAM, 0, 0))["free"] == 0
        other.release(agent)
        assert await waiting

    run_virtually(story)


def test_retry_after_is_the_windows_end_when_nothing_is_out_and_else_what_holds_last() -> None:
    async def story() -> None:
        control = Control({(TEAM, 0, 7200): 100, (AGENT, 0, 0): 100})
        pools = [pool(TEAM, window_start=7200, window_end=10_800), pool(AGENT)]
        desk = virtual(control, "a", pools, wall_clock=lambda: 10_000.5)

        async def refused(pool_id: int, tokens: int) -> int:
            with pytest.raises(PoolSpentError) as caught:
                await take(desk, (pool_id,), tokens, wait_s=0.5)
            return caught.value.retry_after_s

        assert await refused(TEAM, 101) == 800
        assert await refused(AGENT, 101) == 60
        await take(desk, (TEAM,), 100)
        for _ in range(200):
            desk.took(12.2)
        assert await refused(TEAM, 50) == 13
        for _ in range(200):
            desk.took(700)
        assert await refused(TEAM, 50) == 60

    run_virtually(story)


def windows(start: int) -> list[PoolRecord]:
    return [pool(TEAM, window_start=start, window_end=start + 3600)]


def test_at_a_window_change_idle_amounts_go_back_at_once_and_the_rest_as_holds_end() -> None:
    async def story() -> None:
        old, new = (TEAM, 0, 3600), (TEAM, 0, 7200)
        control = Control({old: 1_000, new: 1_000})
        desk = virtual(control, "a", windows(3600))
        one, two = await take(desk, (TEAM,), 300), await take(desk, (TEAM,), 200)
        desk.set_pools(windows(7200))
        assert control.purses[old].leased == 500
        assert [draw.window_start for draw in await take(desk, (TEAM,), 100)] == [7200, 7200]
        control.charge("a", one, 50, 0)
        desk.settle(one, 50, 0)
        assert (control.purses[old].leased, control.purses[old].committed) == (200, 50)
        desk.release(two)
        assert control.purses[old].leased == 0
        assert [entry["window_start"] for entry in desk.status()] == [7200], "the empty old purse is forgotten"
        desk.settle((Draw(TEAM, 0, 3600, 0), Draw(TEAM, 1, 3600, OBSERVED)), 5, 0)  # nothing held, nothing to do

    run_virtually(story)


def test_a_grant_that_comes_after_its_window_was_forgotten_goes_back() -> None:
    async def story() -> None:
        old = (TEAM, 0, 3600)
        control = Control({old: 100_000, (TEAM, 0, 7200): 1_000})
        desk = virtual(control, "a", windows(3600))
        draws = await take(desk, (TEAM,), 300)
        control.charge("a", draws, 300, 0)
        desk.settle(draws, 300, 0)
        seen = wallet(desk, old)["granted"]
        desk.set_pools(windows(7200))
        assert control.purses[old].leased == 0
        control.answer("a", old, seen, 5_000, 0)
        assert control.lease("a", old).granted > seen
        assert control.purses[old].leased == 0
        control.desks["a"].on_granted(TEAM, 0, 1800, 10**6, True, False, 0)  # older than anything known
        assert all(entry["window_start"] == 7200 for entry in desk.status())

    run_virtually(story)


def test_returns_of_a_forgotten_window_are_told_again_when_the_line_is_back() -> None:
    async def story() -> None:
        old = (TEAM, 0, 3600)
        control = Control({old: 1_000, (TEAM, 0, 7200): 1_000})
        desk = virtual(control, "a", windows(3600))
        desk.release(await take(desk, (TEAM,), 300))
        desk.disconnected()
        desk.set_pools(windows(7200))
        assert control.purses[old].leased > 0
        desk.connected()
        assert control.purses[old].leased == 0

    run_virtually(story)


def test_who_waits_at_a_window_change_gets_the_next_window() -> None:
    async def story() -> None:
        control = Control({(TEAM, 0, 3600): 100, (TEAM, 0, 7200): 100})
        desk = virtual(control, "a", windows(3600))
        await take(desk, (TEAM,), 90)
        waiting = asyncio.create_task(take(desk, (TEAM,), 90, wait_s=5))
        await asyncio.sleep(0.3)
        desk.set_pools(windows(7200))
        assert [draw.window_start for draw in await waiting] == [7200, 7200]

    run_virtually(story)


def test_who_waits_for_a_pool_that_is_disabled_is_told_so() -> None:
    async def story() -> None:
        desk = virtual(Control({(TEAM, 0, 0): 100}), "a", [pool(TEAM)])
        await take(desk, (TEAM,), 90)
        waiting = asyncio.create_task(take(desk, (TEAM,), 90, wait_s=5))
        await asyncio.sleep(0.3)
        desk.set_pools([pool(TEAM, enabled=False)])
        with pytest.raises(PoolDisabledError):
            await waiting

    run_virtually(story)


def test_a_unit_whose_limit_goes_and_comes_back_keeps_its_books() -> None:
    async def story() -> None:
        key = (TEAM, 0, 0)
        control = Control({key: 1_000, (TEAM, 1, 0): 10**6})
        desk = virtual(control, "a", [pool(TEAM)])
        draws = await take(desk, (TEAM,), 300)
        desk.set_pools([pool(TEAM, units=(1,))])
        assert control.purses[key].leased == 300
        assert [draw.held for draw in await take(desk, (TEAM,), 10**9, 5)] == [OBSERVED, 5]
        control.charge("a", draws, 100, 0)
        desk.settle(draws, 100, 0)
        assert control.purses[key].leased == 0
        desk.set_pools([pool(TEAM)])
        with pytest.raises(PoolSpentError):
            await take(desk, (TEAM,), 901)
        assert await take(desk, (TEAM,), 900)
        control.check()

    run_virtually(story)


def test_idle_amounts_are_listed_for_those_who_count_them_as_available() -> None:
    async def story() -> None:
        control = Control({(number, 0, 0): 10**6 for number in range(1, 400)})
        desk = virtual(control, "a", [pool(number) for number in range(1, 400)])
        assert desk.idle() == []
        for number in range(1, 300):
            desk.on_granted(number, 0, 0, 1_000, False, False, 0)
        rows = desk.idle()
        assert len(rows) == 256
        assert rows[0] == [1, 0, 0, 1_000]

    run_virtually(story)


def test_room_is_the_least_of_the_purses_that_bound_a_request() -> None:
    async def story() -> None:
        keys = {(TEAM, 0, 0): 10_000, (TEAM, 1, 0): 9_000, (AGENT, 0, 0): 500, (PROJECT, 0, 0): 20}
        control = Control(keys)
        pools = [pool(TEAM, units=BOTH), pool(AGENT, shorten=True), pool(PROJECT, mode="soft")]
        desk = virtual(control, "a", pools)
        await asyncio.sleep(0.01)
        chain = desk.chain((TEAM, AGENT, PROJECT))
        assert desk.available(chain) == (500, 9_000)
        assert desk.room_to_shorten(chain, 600, 10) == (500, 9_000)
        assert desk.room_to_shorten(chain, 600, 9_001) is None, "the pool that lacks does not shorten"
        assert desk.available(desk.chain((PROJECT,))) == (None, None)

    run_virtually(story)


@pytest.mark.parametrize("seed", range(4))
def test_crossing_chains_over_several_workers_never_lock_and_never_lose_anything(seed: int) -> None:
    """25,000 requests each: every one fits into its purses, so every one must be served, whoever is in its way."""
    requests, workers, purses = 25_000, 4, 5
    chance = random.Random(seed)
    pools = [pool(number, units=BOTH if number % 2 else (0,)) for number in range(1, purses + 1)]
    capacities = {(p.id, unit, 0): 1_000 for p in pools for unit in p.units}

    async def story() -> None:
        control = Control(capacities, latency_s=0.001)
        desks = [virtual(control, f"w{number}", pools) for number in range(workers)]
        out: list[Counter[PurseKey]] = [Counter() for _ in desks]
        served = 0

        async def client(number: int) -> None:
            nonlocal served
            desk, mine = desks[number % workers], out[number % workers]
            for _ in range(requests // (workers * 8)):
                ids = tuple(chance.sample(range(1, purses + 1), chance.randint(1, 4)))
                tokens, pico = chance.choice((20, 200, 600, 1_000)), chance.choice((0, 300, 1_000))
                draws = await take(desk, ids, tokens, pico, wait_s=300)
                taken = {(d.pool_id, d.unit, d.window_start): d.held for d in draws if d.held != OBSERVED}
                wanted = {key: pico if key[1] else tokens for key in capacities if key[0] in ids}
                assert taken == wanted, "all of them, and all at once"
                mine.update(taken)
                await asyncio.sleep(chance.random() * 0.01)
                mine.subtract(taken)
                desk.release(draws)
                served += 1
                if served % 97 == 0:
                    check(control, desks, out, all_awake=False)

        await asyncio.gather(*(client(number) for number in range(workers * 8)))
        assert served == requests // (workers * 8) * workers * 8
        for desk in desks:
            desk.return_all()
        check(control, desks, out)
        assert all(purse.leased == 0 for purse in control.purses.values())

    run_virtually(story)


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_lost_whatever_happens_to_requests_windows_and_the_line(seed: int) -> None:
    """Overruns, callers that leave, refusals, windows that end and a line that breaks, 10,000 requests each."""
    requests, clients, workers = 10_000, 24, 3
    chance = random.Random(seed)

    async def story() -> None:
        control = Control({}, latency_s=0.03)
        pools = open_window(control, 1)
        desks = [virtual(control, f"w{number}", pools) for number in range(workers)]
        charged: Counter[PurseKey] = Counter()
        ended: Counter[str] = Counter()

        async def request(desk: Desk) -> None:
            ids = tuple(chance.sample((1, 2, 3, 4), chance.randint(1, 3)))
            tokens, pico = chance.randint(1, 900), chance.randint(0, 900)
            draws = await take(desk, ids, tokens, pico, wait_s=chance.choice((0, 0.1, 5)))
            try:
                await asyncio.sleep(chance.random() * 0.02)
            finally:
                used, cost = (chance.randint(0, 2 * bound) if chance.random() < 0.1 else 0 for bound in (tokens, pico))
                control.charge(desk.owner, draws, used, cost)
                desk.settle(draws, used, cost)
                for draw in draws:
                    if draw.held >= 0:
                        charged[draw.pool_id, draw.unit, draw.window_start] += cost if draw.unit else used

        async def client(number: int) -> None:
            for _ in range(requests // clients):
                task = asyncio.create_task(request(desks[number % workers]))
                if chance.random() < 0.1:
                    await asyncio.sleep(chance.random() * 0.1)
                    task.cancel()
                try:
                    await task
                    ended["served"] += 1
                except (asyncio.CancelledError, PoolSpentError, NoLeaseError) as error:
                    ended[type(error).__name__] += 1

        async def operate() -> None:
            for start in range(2, 10**6):
                await asyncio.sleep(1)
                line = desks[chance.randrange(workers)]
                control.cut(line)
                await asyncio.sleep(chance.random() * 2)
                control.mend(line)
                pools = open_window(control, start)
                for desk in desks:
                    await asyncio.sleep(chance.random() * 0.1)
                    desk.set_pools(pools)

        operator = asyncio.create_task(operate())
        await asyncio.gather(*(client(number) for number in range(clients)))
        operator.cancel()
        await asyncio.sleep(1)
        for desk in desks:
            control.mend(desk)
        await asyncio.sleep(1)
        for desk in desks:
            desk.return_all()
            assert not held(desk)
        control.check()
        for key, purse in control.purses.items():
            assert (purse.leased, purse.committed) == (0, charged[key]), key
        assert ended["served"] > requests // 2
        assert len(ended) >= 3

    run_virtually(story)


def open_window(control: Control, start: int) -> list[PoolRecord]:
    """Four pools in a window of their own, with room for a few requests at a time."""
    pools = [pool(1, units=BOTH), pool(2), pool(3, mode="soft", units=BOTH), pool(4, mode="observe")]
    for entry in pools[:3]:
        for unit in entry.units:
            purse = Control({(entry.id, unit, start): 20_000}).purse
            control.purses[entry.id, unit, start] = purse
    return [
        PoolRecord(p.id, p.name, mode=p.mode, units=p.units, window_start=start, window_end=start + 1) for p in pools
    ]


def check(control: Control, desks: list[Desk], out: list[Counter[PurseKey]], *, all_awake: bool = True) -> None:
    """Nothing is overspent, created or lost, and nobody who waits holds anything.

    While requests run, some may have been given their holds and not know it yet.
    """
    control.check()
    for desk, held_by_requests in zip(desks, out, strict=True):
        for entry in desk.status():
            key = (entry["pool_id"], entry["unit"], entry["window_start"])
            assert entry["held"] == held_by_requests[key] or not all_awake
            assert entry["held"] >= held_by_requests[key]
            assert entry["free"] + entry["held"] + entry["used"] == entry["granted"] - entry["returned"]
            assert entry["free"] >= 0


def test_the_check_would_see_a_hold_that_was_made_twice() -> None:
    async def story() -> None:
        control = Control({(TEAM, 0, 0): 1_000})
        desk = virtual(control, "a", [pool(TEAM)])
        draws = await take(desk, (TEAM,), 100)
        with pytest.raises(AssertionError):
            check(control, [desk], [Counter()])
        desk.release(draws)
        check(control, [desk], [Counter()])
        with pytest.raises(AssertionError):
            desk.release(draws)

    run_virtually(story)
