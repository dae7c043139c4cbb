"""Several desks on shared pools: nobody waits for ever, nothing that is there is refused, nothing is spent twice."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import pytest

from budgets.desk import Desk, DeskError, PoolSpentError
from budgets.records import Draw, PoolRecord
from tests.chaos.memory_ledger import MemoryLedger, MemoryLine

POOLS = 4
CHAINS = [(1, 2, 3, 4), (4, 3), (2, 1), (3, 1, 4), (4, 2), (1,), (3, 2), (2, 3, 4)]


def desks_on(ledger: MemoryLedger, count: int, pools: list[PoolRecord]) -> tuple[MemoryLine, list[Desk]]:
    line = MemoryLine(ledger, asyncio.get_running_loop().call_soon)
    desks = [Desk(f"w{number}") for number in range(count)]
    for desk in desks:
        line.connect(desk)
        desk.set_pools(pools)
    return line, desks


class Crossing:
    """Clients of several desks whose chains cross, in pools with room for a few requests at a time."""

    def __init__(self, *, holds: int, seed: int, capacity: int, wait_s: float) -> None:
        self.left = holds
        self.chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.longest_wait_s = 0.0
        self.wait_s = wait_s
        self.pools = [PoolRecord(id=number, name=f"p{number}", units=(0, 1)) for number in range(1, POOLS + 1)]
        purses = {(pool.id, unit, 0): capacity * (1 + unit * 999) for pool in self.pools for unit in (0, 1)}
        self.ledger = MemoryLedger(purses)

    async def client(self, desk: Desk) -> None:
        while self.left > 0:
            self.left -= 1
            ids, tokens = self.chance.choice(CHAINS), self.chance.randint(1, 100)
            chain = desk.chain(ids)
            draws = desk.hold(chain, tokens, tokens * 1000)
            if draws is None:
                began = time.monotonic()
                try:
                    draws = await desk.wait_hold(chain, tokens, tokens * 1000, self.wait_s)
                except DeskError as exc:
                    self.counts[type(exc).__name__] += 1
                    continue
                finally:
                    self.longest_wait_s = max(self.longest_wait_s, time.monotonic() - began)
                self.counts["waited"] += 1
            await asyncio.sleep(0)
            desk.release(draws)
            self.counts["served"] += 1

    async def run(self, *, desks: int, clients: int) -> list[Desk]:
        _line, made = desks_on(self.ledger, desks, self.pools)
        await asyncio.sleep(0.01)
        await asyncio.gather(*(self.client(desk) for desk in made for _ in range(clients)))
        return made


@pytest.mark.parametrize("seed", [1, 2])
def test_crossing_chains_never_wait_for_each_other_for_ever(seed: int) -> None:
    crossing = Crossing(holds=50_000, seed=seed, capacity=900, wait_s=5)

    async def scenario() -> None:
        desks = await crossing.run(desks=4, clients=6)
        assert all(entry["held"] == 0 and entry["waiting"] == 0 for desk in desks for entry in desk.status())
        # Whatever lies idle anywhere can be had by one request that needs all of it.
        async with asyncio.timeout(5):
            chain = desks[0].chain((1, 2, 3, 4))
            desks[0].release(await desks[0].wait_hold(chain, 900, 900_000, 4))

    asyncio.run(scenario())
    assert crossing.counts["waited"] > 100, "the pools are not tight enough for this test"
    assert crossing.counts["served"] >= 0.99 * 50_000, crossing.counts
    assert crossing.longest_wait_s < 5.5


def test_an_idle_lease_elsewhere_refuses_nobody() -> None:
    async def scenario() -> tuple[int, int]:
        pool = PoolRecord(id=1, name="shared")
        ledger = MemoryLedger({(1, 0, 0): 10_000, (1, 1, 0): None})
        _line, (idle, *busy) = desks_on(ledger, 4, [pool])
        everything = await idle.wait_hold(idle.chain((1,)), 9_000, 0, 1)
        idle.release(everything)
        assert idle.idle() == [[1, 0, 0, pytest.approx(9_500, abs=1_000)]]
        served: Counter[str] = Counter()

        async def exhaust(desk: Desk) -> None:
            while True:
                try:
                    draws = await desk.wait_hold(desk.chain((1,)), 100, 0, 2)
                except PoolSpentError:
                    return
                await asyncio.sleep(0)
                spend(desk, draws, 100)
                served[desk.owner] += 1

        await asyncio.gather(*(exhaust(desk) for desk in busy for _ in range(3)))
        left = sum(row[3] for desk in (idle, *busy) for row in desk.idle())
        return served.total(), left

    def spend(desk: Desk, draws: tuple[Draw, ...], tokens: int) -> None:
        desk.settle(draws, tokens, 0)

    served, left = asyncio.run(scenario())
    assert served == 100, f"{left} tokens lay idle"
