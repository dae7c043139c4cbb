"""The last tokens of a pool over two worker processes, and an operator who edits and moves limits under load."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import children, environment
from tests.chaos import http_run
from tests.chaos.books import Verdict
from tests.chaos.databases import AWAY, fetch
from tests.chaos.http_run import Scene
from tests.chaos.sampler import Sampler
from tests.load import Load, Outcome, ask

pytestmark = [pytest.mark.processes, pytest.mark.database]

BURST, ROOM = 200, 10
TRANSFERS = ("team red", "agent counting")


@pytest.fixture
def scene(short_dir: Path) -> Iterator[Scene]:
    with http_run.scene(short_dir, postgres=environment.on_postgres(), edge_tokens=10**6) as made:
        yield made


async def burst(scene: Scene, headers: dict[str, str], numbers: range) -> tuple[list[Outcome], float]:
    """Requests of the same length all at once; their outcomes, and seconds until the last had its answer."""
    outcomes = [Outcome(f"ok@burst-{number:03}", stream=False) for number in numbers]
    limits = httpx.Limits(max_connections=BURST)
    async with httpx.AsyncClient(
        base_url=scene.gateway.base_url, headers=headers, timeout=30, trust_env=False, limits=limits
    ) as client:
        began = time.monotonic()
        await asyncio.gather(*(ask(client, outcome) for outcome in outcomes))
        return outcomes, time.monotonic() - began


def test_of_two_hundred_at_once_exactly_ten_are_served_where_there_is_room_for_ten(scene: Scene) -> None:
    headers = scene.headers()[1]
    assert headers["x-hoosh-pool"] == "edge"
    (trial,), _took_s = asyncio.run(burst(scene, headers, range(999, 1000)))
    children.wait_for(scene.gateway.usage, "a usage row")
    (row,) = scene.gateway.rows("SELECT held, tokens FROM budgets_usage")
    assert row["tokens"] == trial.tokens
    room = (ROOM - 1) * row["tokens"] + row["held"]  # the tenth must be held for as well
    scene.shell(f"pool = Pool.objects.get(name='edge'); pool.capacity_tokens = {row['tokens'] + room}", save=True)
    outcomes, took_s = asyncio.run(burst(scene, headers, range(BURST)))
    assert Counter(outcome.status for outcome in outcomes) == {200: ROOM, 429: BURST - ROOM}
    assert took_s < 15


def test_limits_and_amounts_move_under_load_and_the_totals_stay(scene: Scene) -> None:
    edge = [scene.pools[name] for name in TRANSFERS]
    totals: Counter[int] = Counter()
    sampler = Sampler(scene, [scene.pools["rolling"]])
    sampler.start()

    def read_total() -> None:
        connection = scene.connect()
        try:
            query = "SELECT SUM(adjusted), SUM(capacity) FROM budgets_poolwindow WHERE unit = 0 AND pool_id IN "
            adjusted, capacity = fetch(connection, query + f"({edge[0]}, {edge[1]})")[0]
            totals[int(adjusted), int(capacity)] += 1
        finally:
            connection.close()

    async def scenario() -> list[Outcome]:
        async with Load(scene.gateway, clients=8, headers=scene.headers(), long_words=150) as load:
            await load.wait_complete(50)
            await asyncio.to_thread(
                scene.start_operator,
                rolling=["rolling"],
                limits=[["edge", 10**6, 10, 0, 5000], ["agent watched", 1, 10**9]],
                transfers=[[*TRANSFERS, 10**9]],
                period_s=0.1,
            )
            began = time.monotonic()
            while (took_s := time.monotonic() - began) < 8 or (scene.operator_did()["moved"] <= 12 and took_s < 60):
                await asyncio.sleep(0.05)
                try:
                    await asyncio.to_thread(read_total)
                except AWAY:
                    continue
            return load.outcomes

    outcomes = asyncio.run(scenario())
    did = scene.stop_operator()
    assert min(did["edited"], did["moved"]) > 10, did
    assert not did["failed"], (scene.directory / "operator.log").read_text()
    statuses = Counter(outcome.status for outcome in outcomes)
    assert statuses.keys() <= {200, 429}, statuses
    assert len(totals) == 1, totals
    assert next(iter(totals))[0] == 0
    http_run.wait_settled(scene)
    moved = "SELECT COUNT(*) AS entries, SUM(amount) AS total FROM budgets_ledgerentry WHERE kind = 'transfer'"
    wanted = {"entries": 2 * did["moved"], "total": 0}
    children.wait_for(lambda: scene.gateway.rows(moved) == [wanted], "every transfer to be carried out")
    scene.gateway.stop()
    sampler.stop()
    verdict = Verdict(0, over=sampler.over, bound=0)
    http_run.check(scene, outcomes, verdict)
    assert verdict.passed, verdict.problems
