"""Minutes of random kills of workers and control under load: nothing lost, doubled, stranded or above the capacity."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import pytest

from tests.children import ChildError
from tests.load import Load, Outcome, assert_all_returned, settle_and_check
from tests.servers import Gateway, ProviderEntry, UpstreamProcess

pytestmark = [pytest.mark.processes, pytest.mark.chaos]

DURATION_S = 60


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("workers", [1, 2])
def test_random_kills_leave_the_accounts_right(
    start_gateway: Callable[..., Gateway], upstream_process: UpstreamProcess, workers: int, seed: int
) -> None:
    gateway = start_gateway(providers=[ProviderEntry(upstream_process.base_url)], workers=workers)
    chance = random.Random(seed)

    async def scenario() -> list[Outcome]:
        end = time.monotonic() + DURATION_S
        async with Load(gateway, behaviour="slow-2ms") as load:
            while time.monotonic() < end:
                await asyncio.sleep(chance.uniform(0.2, 2.0))
                kill = gateway.kill_control if chance.random() < 0.5 else gateway.kill_worker
                try:
                    kill()
                except (IndexError, ProcessLookupError, ChildError):
                    continue  # it is dead already, its successor not there yet
            await asyncio.to_thread(gateway.wait_ready)
            await load.wait_complete(20)
        return load.outcomes

    outcomes = asyncio.run(scenario())
    settle_and_check(gateway, upstream_process, outcomes)
    gateway.stop()
    assert_all_returned(gateway)
