"""Fixtures for tests that talk to the fault upstream: the loops to run on and a server per test module."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvloop

from tests.providers.pools import Runner
from tests.upstream import FaultUpstream


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Runner:
    """Run an async function on a fresh loop; anything the loop had to report by itself fails the test."""

    def runner(main: Callable[[], Awaitable[Any]]) -> Any:
        reports: list[dict[str, Any]] = []

        async def watched() -> Any:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
            value = await asyncio.wait_for(main(), 20)
            gc.collect(1)
            return value

        factory = uvloop.new_event_loop if request.param == "uvloop" else None
        with asyncio.Runner(loop_factory=factory) as loop:
            value = loop.run(watched())
        assert reports == []
        return value

    return runner


@pytest.fixture(scope="module")
def shared() -> Iterator[FaultUpstream]:
    with FaultUpstream() as up:
        yield up


@pytest.fixture
def up(shared: FaultUpstream) -> FaultUpstream:
    shared.requests.clear()
    return shared
