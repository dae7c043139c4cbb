"""Rate limits over the real worker processes: one table for all, and what a killed worker held is free again."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import pytest

from gateway.limits.status import Status, read_status
from tests import children, environment
from tests.servers import Gateway, ProviderEntry, UpstreamProcess

pytestmark = pytest.mark.processes

# The keys of all tests here, made in one process, and a change of a limit.
_KEYS = """
from budgets import access, keys
agent = access.agent_named("blue", "bot", actor="test")
pool = access.default_pool("test")
for limits in ((30, None, None), (None, 100_000, 10), (None, None, None)):
    print(keys.create_key(agent, pool, "k", actor="test", limits=limits)[1])
"""
_CHANGE = """
from budgets import access
from budgets.models import Team
team = Team.objects.get(name="blue")
team.tokens_per_minute = 10
access.save_team(team, actor="test")
"""


@dataclass(frozen=True)
class Site:
    """Two workers before an upstream, and keys with 30 requests a minute, 10 requests at once and no limit."""

    gateway: Gateway
    rated: str
    counted: str
    free: str


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    directory = environment.session_dir() / "limits"
    up = UpstreamProcess(directory / "upstream").start()
    entry = ProviderEntry(up.base_url)
    try:
        with Gateway(directory, providers=[entry], workers=2, env={"HOOSH_ACCESS_LOG": "off"}) as gateway:
            found = [word for word in gateway.manage("shell", "-c", _KEYS).split() if word.startswith("hk-")]
            for key in found * 4:  # connections go to either worker
                children.wait_for(partial(knows, gateway, key), "the workers to know the keys", log=gateway.log)
            yield Site(gateway, *found)
    finally:
        up.stop()


def knows(gateway: Gateway, key: str) -> bool:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.get(f"{gateway.base_url}/v1/models", headers=headers, timeout=5, trust_env=False).is_success


def table(gateway: Gateway) -> Status:
    status = read_status(gateway.data_dir / "run" / "limits")
    assert status is not None
    return status


def counted(gateway: Gateway) -> tuple[int, int]:
    """Requests in flight of the key that is counted, and the tokens reserved for them."""
    found = [each for each in table(gateway).slots if each.concurrent == 10]
    return (found[0].in_flight, found[0].tokens_reserved) if found else (0, 0)


def body(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "count"}], "max_tokens": 5, **more}


def ask(gateway: Gateway, key: str, model: str = "ok") -> int:
    """The status of one request on a connection of its own: any worker may get it."""
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(
        f"{gateway.base_url}/v1/chat/completions", json=body(model), headers=headers, timeout=30
    ).status_code


def test_two_workers_let_exactly_the_limit_through(site: Site) -> None:
    gateway = site.gateway
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        found = Counter(pool.map(lambda _: ask(gateway, site.rated), range(60)))
    assert set(found) == {200, 429}
    assert 30 <= found[200] <= 30 + int((time.monotonic() - began) / 2)  # one more every 2 s
    assert len(table(gateway).owners) == 2
    assert len({row["owner"] for row in gateway.rows("SELECT owner FROM budgets_lease")}) == 2, "both workers had part"


@contextlib.contextmanager
def streams(gateway: Gateway, key: str, count: int) -> Iterator[list[str]]:
    """So many streams that stand still in the middle; how each of them ended, once it has."""
    ended: list[str] = []
    clients = [httpx.Client(timeout=30) for _ in range(count)]

    def read(client: httpx.Client) -> None:
        url, headers = f"{gateway.base_url}/v1/chat/completions", {"authorization": f"Bearer {key}"}
        try:
            with client.stream("POST", url, json=body("stall-mid", stream=True), headers=headers) as reply:
                assert reply.status_code == 200
                for _ in reply.iter_bytes():
                    pass
            ended.append("whole")
        except Exception as exc:
            ended.append(type(exc).__name__)

    threads = [threading.Thread(target=read, args=(client,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    yield ended
    for client in clients:
        client.close()
    for thread in threads:
        thread.join(30)


def test_what_a_killed_worker_had_in_flight_is_free_again_and_the_others_is_not(site: Site) -> None:
    gateway, key = site.gateway, site.counted
    with streams(gateway, key, 10) as ended:
        children.wait_for(lambda: counted(gateway)[0] == 10, "all streams to be under way", log=gateway.log)
        assert ask(gateway, key) == 429
        old = gateway.kill_worker(0)
        children.wait_for(lambda: counted(gateway)[0] == 10 - len(ended) < 10, "the dead worker's end")
        assert 1 <= len(ended) <= 9, "each worker had some of the streams"
        assert ask(gateway, key) == 200
        gateway.wait_restarted("worker", old)
        assert counted(gateway)[0] == 10 - len(ended)
        other = next(pid for pid in gateway.role_pids("worker") if pid != old)
        gateway.kill(other)
        children.wait_for(lambda: len(ended) == 10 and counted(gateway)[0] == 0, "the other worker's end")
        gateway.wait_restarted("worker", other)
        assert [ask(gateway, key) for _ in range(4)] == [200] * 4
        assert counted(gateway) == (0, 0)


def test_a_changed_limit_is_known_to_all_workers_within_a_second(site: Site) -> None:
    assert ask(site.gateway, site.free) == 200
    site.gateway.manage("shell", "-c", _CHANGE)
    ends_at = time.monotonic() + 1
    while [ask(site.gateway, site.free) for _ in range(6)] != [429] * 6:  # larger than 10 tokens
        assert time.monotonic() < ends_at, "a worker went on by the old limit"
