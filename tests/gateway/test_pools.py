"""Which pools a request draws on, how it is refused, and what its records say of them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from budgets.records import OBSERVED, Draw, PoolRecord
from gateway.dialects import openai
from gateway.endpoints import Endpoint
from providers.config import SettingsDoc
from tests.gateway.harness import (
    KEY,
    Bank,
    GatewayServer,
    held,
    hold_records,
    key_record,
    provider,
    route,
    usage_rows,
    wait_for,
)
from tests.upstream import FaultUpstream

CHAT = "/v1/chat/completions"
TEAM, AGENT, OWN, DEFAULT, PROJECT, ALLOWED, STRANGE, OFF = range(1, 9)
NAMES = ("team", "agent", "own", "default", "project", "shared-1", "strange", "off")


def pools(**changes: dict[str, Any]) -> list[PoolRecord]:
    """One pool of each sort; `changes` by name."""
    more: dict[str, dict[str, Any]] = {
        "project": {"team_id": 100},
        "off": {"enabled": False},
        "strange": {"team_id": 7},
    }
    return [
        PoolRecord(id=number, name=name, **(more.get(name, {}) | changes.get(name, {})))
        for number, name in enumerate(NAMES, 1)
    ]


def key(**more: Any) -> Any:
    return key_record(
        1, KEY, pool_id=DEFAULT, **{"budget_ids": (TEAM, AGENT, OWN), "pools_allowed": ("shared-*",)} | more
    )


@pytest.fixture
def up() -> Iterator[FaultUpstream]:
    with FaultUpstream() as server:
        yield server


def start(up: FaultUpstream, directory: Path, **more: Any) -> GatewayServer:
    options: dict[str, Any] = {"pools": pools(), "keys": [key()], "settings": SettingsDoc(hold_wait_s=0.3)} | more
    return GatewayServer(directory, providers=[provider(1, up.url)], routes=[route(1)], **options)


def post(server: GatewayServer, *, header: str = "", model: str = "ok", **more: Any) -> httpx.Response:
    payload = {"model": model, "messages": [{"role": "user", "content": "one two three"}], "max_tokens": 20, **more}
    headers = {"x-api-key": KEY} | ({"x-hoosh-pool": header} if header else {})
    return httpx.post(server.url + CHAT, json=payload, headers=headers, timeout=20)


def drawn(draws: tuple[Draw, ...]) -> list[int]:
    return sorted({draw.pool_id for draw in draws})


def code_of(reply: httpx.Response) -> tuple[int, str | None]:
    return reply.status_code, reply.json().get("error", {}).get("code")


@pytest.mark.usefixtures("binding")
def test_every_budget_and_the_default_pool_are_drawn_on_and_both_records_say_so(
    up: FaultUpstream, tmp_path: Path
) -> None:
    with start(up, tmp_path) as server:
        assert post(server).status_code == 200
        (row,) = usage_rows(tmp_path)
        (hold,) = hold_records(tmp_path)
        assert held(server) == 0
        used = {entry["pool_id"]: entry["used"] for entry in server.runtime.desk.status() if entry["used"]}
    assert used == dict.fromkeys((TEAM, AGENT, OWN, DEFAULT), row.tokens)
    assert (
        row.draws
        == hold.draws
        == tuple(
            Draw(number, unit, 0, OBSERVED if unit else row.held)
            for number in (TEAM, AGENT, OWN, DEFAULT)
            for unit in (0, 1)
        )
    )
    assert (row.pool_id, hold.pool_id, row.held, hold.tokens) == (DEFAULT, DEFAULT, hold.tokens, row.held)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("project", [TEAM, AGENT, OWN, PROJECT]),
        ("shared-1", [TEAM, AGENT, OWN, ALLOWED]),
        ("default", [TEAM, AGENT, OWN, DEFAULT]),
        ("agent", [TEAM, AGENT, OWN, DEFAULT]),
    ],
)
@pytest.mark.parametrize("where", ["header", "body"])
def test_a_named_pool_takes_the_place_of_the_default_one(
    up: FaultUpstream, tmp_path: Path, named: str, expected: list[int], where: str
) -> None:
    with start(up, tmp_path) as server:
        reply = post(server, header=named) if where == "header" else post(server, pool=named)
        assert reply.status_code == 200
        assert "pool" not in up.inference[-1].json
        (row,) = usage_rows(tmp_path)
    assert drawn(row.draws) == expected
    assert row.pool_id == (DEFAULT if named == "agent" else expected[-1])


def test_two_different_names_are_refused_wherever_they_stand(up: FaultUpstream, tmp_path: Path) -> None:
    with start(up, tmp_path) as server:
        assert post(server, header="project", pool="project").status_code == 200
        assert code_of(post(server, header="project", pool="default")) == (400, "invalid_request")
        twice = httpx.post(
            server.url + CHAT,
            json={"model": "ok", "messages": [{"role": "user", "content": "x"}]},
            headers=[("x-api-key", KEY), ("x-hoosh-pool", "project"), ("x-hoosh-pool", "default")],
            timeout=20,
        )
        assert code_of(twice) == (400, "invalid_request")
        assert len(up.inference) == 1


@pytest.mark.parametrize(
    ("named", "answer"),
    [
        ("nobody", (400, "unknown_pool")),
        ("off", (400, "unknown_pool")),
        ("strange", (403, "pool_not_allowed")),
    ],
)
def test_pools_a_key_may_not_name(up: FaultUpstream, tmp_path: Path, named: str, answer: tuple[int, str]) -> None:
    with start(up, tmp_path) as server:
        for reply in (post(server, header=named), post(server, pool=named)):
            assert code_of(reply) == answer
            assert reply.json()["error"]["param"] == "pool"
    assert up.inference == []


def test_a_disabled_pool_in_the_chain_refuses_and_is_named(up: FaultUpstream, tmp_path: Path) -> None:
    with start(up, tmp_path, pools=pools(agent={"enabled": False})) as server:
        reply = post(server)
        assert code_of(reply) == (403, "pool_disabled")
        assert "'agent'" in reply.json()["error"]["message"]
        assert held(server) == 0


def test_the_refusal_names_the_pool_that_lacks_and_nothing_stays_held(up: FaultUpstream, tmp_path: Path) -> None:
    end = int(time.time()) + 600
    bank = Bank({(number, 0): 10**6 for number in range(1, 9)} | {(OWN, 0): 100})
    with start(up, tmp_path, bank=bank, pools=pools(own={"window_start": end - 3600, "window_end": end})) as server:
        reply = post(server)
        assert code_of(reply) == (429, "insufficient_quota")
        assert reply.headers["x-should-retry"] == "false"
        assert reply.headers["x-hoosh-tokens-available"] == "100"
        needed = int(reply.headers["x-hoosh-tokens-needed"])
        assert needed > 100
        assert 590 <= int(reply.headers["retry-after"]) <= 600
        message = reply.json()["error"]["message"]
        assert f"'own' has 100 tokens left, this request may need up to {needed}" in message
        assert time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(end)) in message
        assert held(server) == 0
    assert up.inference == []


def test_a_soft_pool_lets_through_what_passes_its_limit_and_then_refuses(up: FaultUpstream, tmp_path: Path) -> None:
    bank = Bank({(number, 0): 10**6 for number in range(1, 9)} | {(OWN, 0): 10})
    with start(up, tmp_path, bank=bank, pools=pools(own={"mode": "soft"})) as server:
        assert post(server).status_code == 200
        (row,) = usage_rows(tmp_path)
        assert next(draw.held for draw in row.draws if draw.pool_id == OWN) == 1
        assert row.tokens > 10
        reply = post(server)
        assert code_of(reply) == (429, "insufficient_quota")
        assert "'own' is spent" in reply.json()["error"]["message"]


def test_an_observing_pool_never_refuses(up: FaultUpstream, tmp_path: Path) -> None:
    bank = Bank({(number, 0): 10**6 for number in range(1, 9)} | {(OWN, 0): 0})
    with start(up, tmp_path, bank=bank, pools=pools(own={"mode": "observe"})) as server:
        assert post(server).status_code == 200
        (row,) = usage_rows(tmp_path)
    assert {draw.held for draw in row.draws if draw.pool_id == OWN} == {OBSERVED}


def test_each_attempt_has_its_own_hold_and_row_on_every_purse(up: FaultUpstream, tmp_path: Path) -> None:
    routes = [route(1, "m", upstream_model="boom-500", priority=1), route(2, "m", 1, upstream_model="ok", priority=2)]
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=routes, pools=pools(), keys=[key()]) as server:
        assert post(server, model="m").status_code == 200
        assert held(server) == 0
        rows, holds = usage_rows(tmp_path), hold_records(tmp_path)
    assert [(row.attempt, drawn(row.draws)) for row in rows] == [(0, [1, 2, 3, 4]), (1, [1, 2, 3, 4])]
    assert [hold.attempt for hold in holds] == [0, 1]
    assert rows[0].tokens == 0


def test_a_window_that_ends_takes_the_next_request_along(up: FaultUpstream, tmp_path: Path) -> None:
    def window(start: int) -> list[PoolRecord]:
        return pools(team={"window_start": start, "window_end": start + 3600})

    with start(up, tmp_path, pools=window(3600)) as server:
        assert post(server).status_code == 200
        server.call(server.runtime.on_access, 2, False, [], window(7200)[:1])
        wait_for(lambda: server.runtime.snapshot.pools[TEAM].window_start == 7200)
        assert post(server).status_code == 200
        first, second = usage_rows(tmp_path)
        kept = {e["window_start"] for e in server.runtime.desk.status() if e["pool_id"] == TEAM}
    assert [first.draws[0].window_start, second.draws[0].window_start] == [3600, 7200]
    assert kept == {7200}


def test_the_status_tells_what_lies_idle(up: FaultUpstream, tmp_path: Path) -> None:
    with start(up, tmp_path) as server:
        assert post(server).status_code == 200
        idle = server.runtime.status()["idle"]
    assert {row[0] for row in idle} >= {TEAM, AGENT, OWN, DEFAULT}
    assert all(row[3] > 0 for row in idle)


def test_an_endpoint_cannot_be_registered_without_a_bound() -> None:
    with pytest.raises(TypeError, match="bound"):
        Endpoint("free", "/v1/free", openai.parse_chat)  # type: ignore[call-arg]


def test_ten_of_a_hundred_over_two_workers_are_served_and_the_others_refused_within_the_wait(
    up: FaultUpstream, tmp_path: Path
) -> None:
    """Capacity for ten requests of known use, and for the bound of the last of them."""
    message = json.dumps(
        {"model": "think-100ms", "messages": [{"role": "user", "content": "one two three"}], "max_tokens": 100}
    ).encode()
    bound, used, wait_s = len(message) + 16 + 100, 3 + 100, 5.0
    bank = Bank({(1, 0): 9 * used + bound, (2, 0): 0}, block=1)
    options: dict[str, Any] = {
        "providers": [provider(1, up.url)],
        "routes": [route(1)],
        "settings": SettingsDoc(hold_wait_s=wait_s),
        "bank": bank,
    }
    statuses: list[int] = []
    longest_s: list[float] = []
    with GatewayServer(tmp_path / "a", **options) as one, GatewayServer(tmp_path / "b", **options) as two:

        def ask(server: GatewayServer) -> None:
            begin = time.monotonic()
            reply = httpx.post(server.url + CHAT, content=message, headers={"x-api-key": KEY}, timeout=30)
            longest_s.append(time.monotonic() - begin)
            statuses.append(reply.status_code)

        threads = [threading.Thread(target=ask, args=((one, two)[number % 2],)) for number in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rows = usage_rows(tmp_path / "a") + usage_rows(tmp_path / "b")
        assert held(one) == held(two) == 0
    assert statuses.count(200) == 10
    assert statuses.count(429) == 90
    assert sum(row.tokens for row in rows) == 10 * used
    assert max(longest_s) < wait_s + 2
