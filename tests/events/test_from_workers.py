"""What workers see becomes events: refusals, circuits that open and close, providers that want less, spent pools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests import children, environment
from tests.servers import Gateway, ProviderEntry
from tests.upstream import FaultUpstream

pytestmark = pytest.mark.processes

_PREPARE = """
from budgets import access, keys
from budgets.models import Pool
from providers import services
row = services.gateway_settings()
row.breaker_failures, row.breaker_open_s, row.probe_interval_s, row.max_attempts = 2, 1.5, 0, 1
services.save_settings(row, actor="test")
pool = Pool.objects.get(name="default")
pool.capacity_tokens, pool.alert_percents = 5000, "1"
access.save_pool(pool, actor="test")
spent = access.save_pool(Pool(name="spent", capacity_tokens=0), actor="test")
agent = access.agent_named("default", "default", actor="test")
print(keys.create_key(agent, spent, "spent", ["inference"], actor="test")[1])
"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[FaultUpstream]:
    with FaultUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(upstream: FaultUpstream) -> Iterator[Gateway]:
    options: dict[str, Any] = {
        "providers": [ProviderEntry(upstream.url, kind="custom")],
        "env": {"HOOSH_EVENTS_SAMPLE": "1"},
    }
    with Gateway(environment.session_dir() / "from-workers", **options) as running:
        yield running


@pytest.fixture(scope="module")
def spent(gateway: Gateway) -> str:
    """A key whose pool is empty; the gateway's settings and its default pool are made ready besides."""
    key = gateway.manage("shell", "-c", _PREPARE).split()[-1]
    children.wait_for(lambda: ask(gateway, "ok", key) == 429, "the gateway to know the new key", log=gateway.log)
    return key


def ask(gateway: Gateway, model: str, key: str = "") -> int:
    payload = {"model": model, "messages": [{"role": "user", "content": "say a few words"}], "max_tokens": 5}
    headers = {"authorization": f"Bearer {key or gateway.key}"}
    url = f"{gateway.base_url}/v1/chat/completions"
    return httpx.post(url, json=payload, headers=headers, timeout=20, trust_env=False).status_code


def recent(gateway: Gateway, topic: str) -> list[dict[str, Any]]:
    url = f"{gateway.base_url}/v1/events/recent?topic={topic}"
    found: list[dict[str, Any]] = httpx.get(url, headers=gateway.auth, timeout=20, trust_env=False).json()["events"]
    return found


def wait(gateway: Gateway, topic: str, done: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    children.wait_for(lambda: done(recent(gateway, topic)), f"events of {topic}", log=gateway.log, step_s=0.3)
    return recent(gateway, topic)


def test_refusals_are_told_once_per_kind_key_and_minute(gateway: Gateway, spent: str) -> None:
    for _ in range(4):
        assert ask(gateway, "ok", "hk-nobody") == 401
        assert ask(gateway, "ok", spent) == 429
    found = wait(gateway, "requests/refused", lambda events: len({event["data"]["code"] for event in events}) == 2)
    told = [event["data"] for event in found if "more" not in event["data"]]
    assert {(data["kind"], data["code"], data["status"]) for data in told} == {
        ("auth", "invalid_api_key", 401),
        ("budget", "insufficient_quota", 429),
    }
    assert len(told) <= 4  # two, or four when a minute ended meanwhile
    of_key = next(data for data in told if data["kind"] == "budget")
    assert spent.startswith(of_key["key"])
    assert of_key["model"] == "ok"
    assert len(of_key["request_id"]) == 32
    assert spent not in str(found)


def test_a_circuit_that_opens_and_closes_is_told(gateway: Gateway, spent: str) -> None:
    for _ in range(3):
        ask(gateway, "boom-500")
    wait(gateway, "providers/circuit", lambda events: any(event["data"]["state"] == "open" for event in events))
    children.wait_for(lambda: ask(gateway, "ok") == 200, "the provider to be asked again")
    found = wait(gateway, "providers/circuit", lambda events: events[-1]["data"]["state"] == "closed")
    assert found[0]["data"]["state"] == "open"
    assert found[0]["level"] == "warning"
    assert found[0]["data"]["error"]


def test_a_provider_that_refuses_for_now_is_told_as_hoosh_did(gateway: Gateway, spent: str) -> None:
    ask(gateway, "rate-limit-1")
    found = wait(gateway, "providers/rate_limit", lambda events: bool(events))
    assert found[0]["event"] == "rate_limited"
    assert found[0]["provider"] == found[0]["data"]["provider"]


def test_calls_and_a_share_of_a_limit_are_told(gateway: Gateway, spent: str) -> None:
    children.wait_for(lambda: ask(gateway, "ok") == 200, "the provider to be asked again")
    done = wait(gateway, "inference_completed", lambda events: bool(events))
    assert {done[-1]["model"], done[-1]["event"]} == {"ok", "inference_completed"}
    assert done[-1]["tokens"] > 0
    failed = wait(gateway, "inference.failed", lambda events: bool(events))
    assert failed[-1]["event"] == "inference_failed"
    assert failed[-1]["error"]

    def told(events: list[dict[str, Any]]) -> bool:
        return bool(events) or ask(gateway, "ok") == 0

    (alert, *_) = wait(gateway, "budgets/threshold", told)
    assert (alert["data"]["pool"], alert["data"]["unit"], alert["data"]["percent"]) == ("default", "tokens", 1)
