"""The gateway's processes are killed under load: what was answered is booked, exactly once, and the rest is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest

from tests import children
from tests.load import WORDS, Load, Outcome, ask, assert_all_returned, assert_balanced, settle_and_check
from tests.servers import Gateway, ProviderEntry, UpstreamProcess

pytestmark = pytest.mark.processes

StartGateway = Callable[..., Gateway]


@pytest.fixture
def gateway(start_gateway: StartGateway, upstream_process: UpstreamProcess) -> Gateway:
    return start_gateway(providers=[ProviderEntry(upstream_process.base_url)])


def test_killing_a_worker_under_load_loses_and_doubles_nothing(
    gateway: Gateway, upstream_process: UpstreamProcess
) -> None:
    async def scenario() -> list[Outcome]:
        async with Load(gateway, behaviour="slow-2ms") as load:
            for _ in range(3):
                await load.wait_complete(30)
                old = gateway.kill_worker()
                await asyncio.to_thread(gateway.wait_restarted, "worker", old)
            await load.wait_complete(30)
        return load.outcomes

    outcomes = asyncio.run(scenario())
    settle_and_check(gateway, upstream_process, outcomes)
    gateway.stop()
    assert_balanced(gateway)
    assert_all_returned(gateway)


def test_killing_control_under_load_breaks_no_request(gateway: Gateway, upstream_process: UpstreamProcess) -> None:
    async def scenario() -> list[Outcome]:
        async with Load(gateway, behaviour="slow-2ms") as load:
            for _ in range(3):
                await load.wait_complete(30)
                old = gateway.kill_control()
                await load.wait_complete(30)
                await asyncio.to_thread(gateway.wait_restarted, "control", old)
        return load.outcomes

    outcomes = asyncio.run(scenario())
    assert [outcome for outcome in outcomes if not outcome.complete] == []
    settle_and_check(gateway, upstream_process, outcomes)
    gateway.stop()
    assert_all_returned(gateway)


def test_killing_worker_and_control_at_once_loses_nothing(gateway: Gateway, upstream_process: UpstreamProcess) -> None:
    async def scenario() -> list[Outcome]:
        async with Load(gateway, behaviour="slow-2ms") as load:
            await load.wait_complete(30)
            control, worker = gateway.kill_control(), gateway.kill_worker()
            await asyncio.to_thread(gateway.wait_restarted, "control", control)
            await asyncio.to_thread(gateway.wait_restarted, "worker", worker)
            await load.wait_complete(30)
        return load.outcomes

    settle_and_check(gateway, upstream_process, asyncio.run(scenario()))


def test_an_upstream_killed_mid_stream_ends_it_with_an_error_event_and_its_delivered_part_is_charged(
    gateway: Gateway, upstream_process: UpstreamProcess
) -> None:
    outcome = Outcome("slow-20ms@cut", stream=True)

    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=gateway.base_url, headers=gateway.auth, timeout=30) as client:
            asking = asyncio.create_task(ask(client, outcome, words=500))
            async with asyncio.timeout(10):
                while outcome.words < 5:
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(upstream_process.kill)
            async with asyncio.timeout(10):
                with pytest.raises(httpx.RemoteProtocolError):  # the connection is cut: no clean end of a cut stream
                    await asking

    asyncio.run(scenario())
    assert (outcome.status, outcome.complete, outcome.error_event) == (200, False, True), outcome
    row = children.wait_for(
        lambda: next((row for row in gateway.usage().values() if row["model"] == outcome.model), None),
        "the cut request to be booked",
    )
    assert row["error"]
    assert row["tokens"] >= outcome.words >= 5


def test_a_stream_running_at_sigterm_is_finished_and_booked(gateway: Gateway) -> None:
    outcome = Outcome("slow-20ms@drain", stream=True)

    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=gateway.base_url, headers=gateway.auth, timeout=30) as client:
            asking = asyncio.create_task(ask(client, outcome, words=50))
            async with asyncio.timeout(10):
                while outcome.words < 3:
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(gateway.stop)
            await asking

    asyncio.run(scenario())
    assert (outcome.complete, outcome.words) == (True, 50), outcome
    (row,) = [row for row in gateway.usage().values() if row["model"] == outcome.model]
    assert row["tokens"] == outcome.tokens
    assert_all_returned(gateway)


@pytest.mark.database
def test_a_request_through_all_processes_is_booked_in_the_database(
    gateway: Gateway, upstream_process: UpstreamProcess
) -> None:
    outcomes = [Outcome("ok@unary", stream=False), Outcome("ok@stream", stream=True)]

    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=gateway.base_url, headers=gateway.auth, timeout=30) as client:
            for outcome in outcomes:
                await ask(client, outcome)

    asyncio.run(scenario())
    assert [(outcome.complete, outcome.words) for outcome in outcomes] == [(True, WORDS), (True, WORDS)]
    settle_and_check(gateway, upstream_process, outcomes)
