"""What kept answers cost where their route asks for a part of the first cost: held, charged, refused like any call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from budgets.prices import PICO_PER_USD
from budgets.records import Basis, PoolRecord, PriceRecord, Unit
from providers.config import ConfigDocument
from tests.gateway.harness import KEY, GatewayServer, held, key_record, provider, route, usage_rows, wait_for
from tests.gateway.test_caching import ask, result, words
from tests.upstream import FaultUpstream

PRICE = PriceRecord(id=1, provider="*", pattern="*", input=1_000_000, output=2_000_000)  # pico-USD per token
MONEY = 200_000_000  # pico-USD: enough to hold one call, and for a dozen hits behind it


@pytest.fixture
def up() -> Iterator[FaultUpstream]:
    with FaultUpstream() as made:
        yield made


def serving(directory: Path, up: FaultUpstream, percent: int, **more: Any) -> GatewayServer:
    """A worker with a pool that limits tokens and money, and a key of it."""
    return GatewayServer(
        directory,
        providers=[provider(1, up.url)],
        routes=[route(1, cache_s=60, cache_price_percent=percent)],
        prices=[PRICE],
        pools=[PoolRecord(id=1, name="default", units=(0, 1))],
        **{"keys": [key_record(1, KEY)], "capacity_pico": MONEY, **more},
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_hit_costs_its_part_of_the_first_answer_and_no_tokens(
    tmp_path: Path, up: FaultUpstream, *, stream: bool
) -> None:
    with serving(tmp_path, up, 25) as server:
        first, second = ask(server), ask(server, stream=stream)
        assert (result(first), result(second)) == ("miss", "hit")
        assert words(second) == words(first)
        wait_for(lambda: not server.runtime.jobs)
        assert held(server) == 0
    called, told = usage_rows(tmp_path)
    assert called.cost_pico > 0
    assert (told.cost_pico, told.tokens, told.held) == (called.cost_pico // 4, 0, 0)
    assert (told.basis, told.attempts, told.status) == (Basis.KEPT, 0, 200)
    assert {(draw.unit, draw.held) for draw in told.draws} == {(Unit.TOKENS, 0), (Unit.PICO_USD, told.cost_pico)}


def test_by_itself_a_hit_costs_nothing(tmp_path: Path, up: FaultUpstream) -> None:
    with serving(tmp_path, up, 0) as server:
        assert [result(ask(server)) for _ in range(2)] == ["miss", "hit"]
    _, told = usage_rows(tmp_path)
    assert (told.cost_pico, told.basis) == (0, Basis.NONE)
    assert all(draw.held < 0 for draw in told.draws)


def test_a_pool_without_the_money_refuses_and_books_nothing(tmp_path: Path, up: FaultUpstream) -> None:
    with serving(tmp_path, up, 100) as server:
        first = ask(server)
        cost = usage_rows(tmp_path)[0].cost_pico
        hits = 0
        while (reply := ask(server)).status_code == 200:
            assert result(reply) == "hit"
            hits += 1
            assert hits < 10_000
        assert reply.status_code == 429
        assert reply.json()["error"]["code"] == "insufficient_quota"
        assert float(reply.headers["x-hoosh-usd-needed"]) == cost / PICO_PER_USD
        assert result(first) == "miss"
        assert held(server) == 0
    rows = usage_rows(tmp_path)
    assert len(rows) == 1 + hits
    assert sum(row.cost_pico for row in rows) <= MONEY
    assert MONEY - sum(row.cost_pico for row in rows) < cost, "nothing was left lying"
    assert len(up.inference) == 1


def test_the_part_is_the_one_of_now(tmp_path: Path, up: FaultUpstream) -> None:
    with serving(tmp_path, up, 0) as server:
        ask(server)
        other = ConfigDocument(providers=(provider(1, up.url),), routes=(route(1, cache_s=60, cache_price_percent=50),))
        server.reconfigure(other)
        assert result(ask(server)) == "hit"
    called, told = usage_rows(tmp_path)
    assert told.cost_pico == called.cost_pico // 2
