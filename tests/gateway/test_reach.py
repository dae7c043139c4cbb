"""Keys that may be used for some endpoints, or from some addresses, only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from budgets import validation
from budgets.records import ENDPOINTS
from gateway import counting, endpoints
from gateway.errors import ForbiddenError
from gateway.reach import Reach
from tests.gateway.harness import KEY, GatewayServer, key_record, provider, route
from tests.upstream import FaultUpstream


def code(reach: Reach, endpoint: str = "chat", client: str = "192.0.2.1") -> str | None:
    try:
        reach.check(endpoint, client)
    except ForbiddenError as error:
        return error.code
    return None


def test_the_names_are_those_of_the_path_table():
    found = {endpoint.name for endpoint in (*endpoints.INFERENCE.values(), *endpoints._GEMINI.values())}
    found |= {counter.endpoint.name for counter in counting.COUNTERS.values()}
    assert set(ENDPOINTS) == found
    assert len(",".join(ENDPOINTS)) <= 200


def test_only_the_named_endpoints_are_open():
    reach = Reach(["chat", "embeddings"], [])
    assert code(reach) is None
    assert code(reach, "embeddings") is None
    assert code(reach, "messages") == "endpoint_not_allowed"
    assert code(reach, "") is None, "lists of models are every key's"


@pytest.mark.parametrize(
    ("client", "allowed"),
    [
        ("10.1.2.3", True),
        ("11.0.0.1", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("::ffff:10.1.2.3", True),
        ("2001:db8::5", True),
        ("2001:db9::5", False),
        ("", False),
        ("testclient", False),
    ],
)
def test_only_the_named_networks_are_open(client, allowed):
    reach = Reach([], ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"])
    assert code(reach, client=client) == (None if allowed else "address_not_allowed")


@pytest.mark.parametrize("written", ["10.0.0.1/8", "10.0.0.0/33", "example.org", "10.0.0.0-10.0.0.9", "10.*"])
def test_what_is_no_network_is_refused_in_the_form(written):
    with pytest.raises(validation.ValidationError):
        validation.addresses(f"192.0.2.1, {written}")


def test_unknown_endpoints_are_refused_in_the_form():
    validation.endpoints("chat, responses")
    validation.endpoints("")
    with pytest.raises(validation.ValidationError):
        validation.endpoints("chat, images")


LIMITED, ELSEWHERE = "hk-only-chat", "hk-only-elsewhere"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GatewayServer]:
    keys = [
        key_record(1, KEY),
        key_record(2, LIMITED, endpoints=("chat",), addresses=("127.0.0.0/8", "::1")),
        key_record(3, ELSEWHERE, addresses=("10.0.0.0/8",)),
    ]
    with (
        FaultUpstream() as up,
        GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)], keys=keys) as found,
    ):
        yield found


def ask(server: GatewayServer, path: str, key: str) -> tuple[int, str]:
    content = {"model": "ok", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "input": "hi"}
    reply = httpx.post(server.url + path, json=content, headers={"authorization": f"Bearer {key}"})
    return reply.status_code, reply.text


def test_a_key_is_refused_where_it_may_not_be_used(server: GatewayServer) -> None:
    assert ask(server, "/v1/chat/completions", LIMITED)[0] == 200
    for path in ("/v1/messages", "/v1/embeddings", "/v1/responses"):
        status, text = ask(server, path, LIMITED)
        assert status == 403, path
        assert "may not be used for the endpoint" in text
        assert ask(server, path, KEY)[0] != 403, path
    status, text = ask(server, "/v1/chat/completions", ELSEWHERE)
    assert (status, '"address_not_allowed"' in text) == (403, True)


def test_refusals_are_told_as_the_api_tells_them(server: GatewayServer) -> None:
    status, text = ask(server, "/v1/messages", LIMITED)
    assert (status, json.loads(text)["error"]["type"]) == (403, "permission_error")
    status, text = ask(server, "/v1/embeddings", LIMITED)
    assert json.loads(text)["error"]["code"] == "endpoint_not_allowed"


def test_the_list_of_models_is_for_every_endpoint_but_not_for_every_address(server: GatewayServer) -> None:
    for key, status in ((KEY, 200), (LIMITED, 200), (ELSEWHERE, 403)):
        assert httpx.get(f"{server.url}/v1/models", headers={"x-api-key": key}).status_code == status


def test_a_limited_key_counts_tokens_only_where_it_may(server: GatewayServer) -> None:
    assert ask(server, "/v1/messages/count_tokens", LIMITED)[0] == 403
    assert ask(server, "/v1/messages/count_tokens", KEY)[0] == 200
