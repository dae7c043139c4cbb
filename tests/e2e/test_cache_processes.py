"""Kept answers over the gateway's own processes: what the books say of them, and what a killed worker takes along."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from tests import children
from tests.servers import Gateway, ProviderEntry, UpstreamProcess, request_id

pytestmark = [pytest.mark.processes, pytest.mark.database]

StartGateway = Callable[..., Gateway]
CACHE = "[cache]\nenabled = true\nttl_secs = 600"
_PRICE = """
from budgets import access
from budgets.models import Price
from decimal import Decimal
from django.utils import timezone
access.add_price(
    Price(provider="*", pattern="*", output_usd_per_mtok=Decimal(10), valid_from=timezone.now()), actor="test"
)
"""
_HALF = """
from providers import services
from providers.models import Route
for route in Route.objects.filter(cache_s__gt=0):
    route.cache_price_percent = 50
    services.save_route(route, actor="test")
"""


@contextlib.contextmanager
def client(gateway: Gateway) -> Iterator[httpx.Client]:
    """A client on one connection: its requests meet one worker."""
    with httpx.Client(base_url=gateway.base_url, headers=gateway.auth, timeout=30, trust_env=False) as made:
        yield made


def ask(http: httpx.Client, model: str = "ok", *, stream: bool = False) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "count"}], "max_tokens": 5, "stream": stream}
    reply = http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return reply


def is_priced(http: httpx.Client) -> bool:
    """Whether the worker knows the route and the price."""
    reply = http.get("/v1/models/ok")
    return reply.status_code == 200 and reply.json()["pricing"]["state"] == "known"


def purses(gateway: Gateway) -> list[dict[str, Any]]:
    """What every pool has used, by the ledger."""
    return gateway.rows("SELECT pool_id, unit, window_start, committed FROM budgets_poolwindow ORDER BY pool_id, unit")


def calls(upstream: UpstreamProcess) -> int:
    return len([entry for entry in upstream.truth() if entry["model"] == "ok"])


def test_a_kept_answer_is_in_the_books_with_nothing_and_costs_no_pool(
    start_gateway: StartGateway, upstream_process: UpstreamProcess
) -> None:
    gateway = start_gateway(providers=[ProviderEntry(upstream_process.base_url)], extra_toml=CACHE)
    gateway.manage("shell", "-c", _PRICE)
    with client(gateway) as http:
        children.wait_for(lambda: is_priced(http), "the worker to know the model and its price", log=gateway.log)
        first = ask(http)
        called = gateway.wait_settled(request_id(first.headers))
        before = purses(gateway)
        for stream in (False, True):
            hit = ask(http, stream=stream)
            assert hit.headers["x-hoosh-cache"] == "hit"
            row = gateway.wait_settled(request_id(hit.headers))
            assert (row["tokens"], row["held"], row["attempts"], row["cost_pico"]) == (0, 0, 0, 0)
            assert (row["pools"], row["key_id"], row["route_id"]) == (
                called["pools"],
                called["key_id"],
                called["route_id"],
            )
            told = http.get(f"/v1/requests/{hit.headers['x-hoosh-request']}").json()
            assert (told["cached"], told["tokens"], told["stream"], told["status"]) == (True, 0, stream, 200)
            assert Decimal(told["cost_usd"]) == 0
            assert [entry["basis"] for entry in told["attempts"]] == ["none"]
            assert told["decision"]["candidates"]
        assert not http.get(f"/v1/requests/{first.headers['x-hoosh-request']}").json()["cached"]
        assert purses(gateway) == before
        assert any(purse["committed"] for purse in before)
        costs = http.get("/v1/costs").json()
        assert (costs["total_requests"], costs["total_completion_tokens"]) == (3, called["output_tokens"])
        assert Decimal(costs["total_cost_usd"]) == Decimal("0.00005")
        assert [record["unpriced_count"] for record in costs["records"]] == [0]
        assert calls(upstream_process) == 1
        stats = children.wait_for(
            lambda: told if (told := http.get("/v1/cache/stats").json())["hits"] == 2 else None, "the worker's figures"
        )
        assert (stats["enabled"], stats["ttl_secs"], stats["entries"], stats["misses"]) == (True, 600, 1, 1)
        assert stats["saved_tokens"] == 2 * called["tokens"]
        counted = 'hoosh_cache_total{result="hit"} 2.0'
        children.wait_for(lambda: counted in http.get("/metrics").text, "the counter")
        a_hit_costs_its_part(gateway, http, called["cost_pico"])
        assert http.post("/v1/cache/purge").json() == {"purged": True, "workers": 1}
        assert ask(http).headers["x-hoosh-cache"] == "miss"


def a_hit_costs_its_part(gateway: Gateway, http: httpx.Client, first_cost: int) -> None:
    """Where the route asks for half of the first cost, the ledger charges half of it and no tokens."""
    before = {(purse["pool_id"], purse["unit"]): purse["committed"] for purse in purses(gateway)}
    gateway.manage("shell", "-c", _HALF)

    def charged() -> dict[str, Any] | None:
        row = gateway.wait_settled(request_id(ask(http).headers))
        return row if row["cost_pico"] else None

    row = children.wait_for(charged, "the worker to know the part", log=gateway.log)
    assert (row["cost_pico"], row["tokens"], row["attempts"]) == (first_cost // 2, 0, 0)
    after = {(purse["pool_id"], purse["unit"]): purse["committed"] for purse in purses(gateway)}
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
        (1, 1): first_cost // 2
    }
    told = http.get(f"/v1/requests/{row['rid']}").json()
    assert [entry["basis"] for entry in told["attempts"]] == ["kept"]
    assert told["cached"]


def test_each_worker_keeps_its_own_and_a_killed_one_loses_it_and_nothing_else(
    start_gateway: StartGateway, upstream_process: UpstreamProcess
) -> None:
    gateway = start_gateway(providers=[ProviderEntry(upstream_process.base_url)], workers=2, extra_toml=CACHE)
    made = []
    model = f"{gateway.base_url}/v1/models/ok"
    children.wait_for(
        lambda: all(httpx.get(model, headers=gateway.auth, trust_env=False).is_success for _ in range(8)),
        "both workers to know the model",
    )
    # Connections go to either worker: both have to call, and afterwards neither has to.
    while calls(upstream_process) < 2:
        with client(gateway) as http:
            made.append(ask(http))
        assert len(made) < 200
    for _ in range(10):
        with client(gateway) as http:
            made.append(ask(http))
            assert made[-1].headers["x-hoosh-cache"] == "hit"
    assert calls(upstream_process) == 2
    old = gateway.kill_worker(0)
    gateway.wait_restarted("worker", old)
    while calls(upstream_process) < 3:
        with client(gateway) as http:
            made.append(ask(http))
        assert len(made) < 400
    rows = [gateway.wait_settled(request_id(reply.headers)) for reply in made]
    assert sum(row["tokens"] > 0 for row in rows) == 3
    assert sum(reply.headers["x-hoosh-cache"] == "miss" for reply in made) == 3
    used = [purse["committed"] for purse in purses(gateway) if purse["unit"] == 0 and purse["committed"]]
    assert used == [sum(row["tokens"] for row in rows)]


_QUESTION = """
from budgets import warming
from budgets.models import ApiKey, WarmQuestion
warming.save_question(WarmQuestion(key=ApiKey.objects.first(), model="ok", question="How tall is it?"), actor="test")
"""


def test_questions_of_the_list_are_asked_by_every_worker_and_charged_to_their_key(
    start_gateway: StartGateway, upstream_process: UpstreamProcess
) -> None:
    gateway = start_gateway(providers=[ProviderEntry(upstream_process.base_url)], workers=2, extra_toml=CACHE)
    gateway.manage("shell", "-c", _QUESTION)

    def stats() -> dict[str, Any]:
        told: dict[str, Any] = httpx.get(f"{gateway.base_url}/v1/cache/stats", headers=gateway.auth).json()
        return told

    children.wait_for(lambda: stats()["warmed"] == 2, "both workers to ask it", log=gateway.log)
    assert calls(upstream_process) == 2
    rows = children.wait_for(
        lambda: found if len(found := gateway.rows(_WARMED)) == 2 else None, "the usage rows", log=gateway.log
    )
    assert all(row["tokens"] > 0 and row["key_id"] > 0 for row in rows)
    body = {"model": "ok", "messages": [{"role": "user", "content": "How tall is it?"}]}
    with client(gateway) as http:
        assert http.post("/v1/chat/completions", json=body).headers["x-hoosh-cache"] == "hit"


_WARMED = "SELECT key_id, tokens FROM budgets_usage WHERE client_request_id = 'warming-1'"
