"""Requests that name the route they want."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.gateway.harness import KEY, OTHER_KEY, GatewayServer, key_record, provider, route
from tests.upstream import FaultUpstream

BODY = {"model": "m", "messages": [{"role": "user", "content": "one two"}], "max_tokens": 2}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GatewayServer]:
    keys = [key_record(1, KEY, scopes=("inference", "routes")), key_record(2, OTHER_KEY)]
    with FaultUpstream() as up:
        routes = [route(1, "m", 1, upstream_model="ok"), route(2, "m", 2, upstream_model="boom-500", priority=20)]
        providers = [provider(1, up.url), provider(2, up.url)]
        with GatewayServer(tmp_path, providers=providers, routes=routes, keys=keys) as made:
            yield made


def ask(server: GatewayServer, wanted: str, *, key: str = KEY, path: str = "/v1/chat/completions") -> httpx.Response:
    headers = {b"authorization": f"Bearer {key}".encode(), b"x-hoosh-route": wanted.encode()}
    return httpx.post(server.url + path, json=BODY, headers=headers, timeout=20, trust_env=False)


def test_only_the_named_route_is_called(server: GatewayServer) -> None:
    assert ask(server, "r1").headers["x-hoosh-route"] == "r1"
    failed = ask(server, "r2")
    assert (failed.status_code, failed.headers["x-hoosh-route"]) == (502, "r2"), "and nobody in its place"


def test_a_key_without_the_scope_may_not_choose(server: GatewayServer) -> None:
    reply = ask(server, "r1", key=OTHER_KEY)
    assert reply.status_code == 403
    assert "scope 'routes'" in reply.json()["error"]["message"]


@pytest.mark.parametrize("name", ["nobody", "r\u00e4", "r1,r2"])
def test_a_name_no_route_has_is_refused_in_words(server: GatewayServer, name: str) -> None:
    reply = ask(server, name)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "no_suitable_route")


def test_explaining_goes_by_it_too(server: GatewayServer) -> None:
    told = ask(server, "r2", path="/v1/route/explain").json()
    assert [each["route"] for each in told["candidates"]] == ["r2"]
    assert told["rejected"] == [{"route": "r1", "reason": "is not the route that was asked for"}]
    assert ask(server, "r2", key=OTHER_KEY, path="/v1/route/explain").json()["refusal"]["status"] == 403


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("x-hoosh-route", ("r1", "r2")),
        ("x-hoosh-pool", ("default", "other")),
        ("x-hoosh-session", ("a", "b")),
        ("x-hoosh-explain", ("1", "0")),
        ("x-hoosh-priority", ("batch", "agent")),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/route/explain"])
def test_a_header_of_ours_given_twice_with_two_values_is_refused(
    server: GatewayServer, name: str, values: tuple[str, str], path: str
) -> None:
    for order in (values, values[::-1]):
        headers = [("authorization", f"Bearer {KEY}"), *((name, value) for value in order)]
        reply = httpx.post(server.url + path, json=BODY, headers=headers, timeout=20, trust_env=False)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, name)
        assert "different values" in reply.json()["error"]["message"]


def test_a_header_of_ours_may_come_twice_with_one_value(server: GatewayServer) -> None:
    for path in ("/v1/chat/completions", "/v1/route/explain"):
        headers = [("authorization", f"Bearer {KEY}"), ("x-hoosh-route", "r1"), ("x-hoosh-route", "r1")]
        reply = httpx.post(server.url + path, json=BODY, headers=headers, timeout=20, trust_env=False)
        assert reply.status_code == 200
