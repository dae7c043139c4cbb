"""Names of models that inference refuses are known nowhere else: not as one model, not in lists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from mistralai.client import Mistral

from providers.config import CardDoc, ProviderDoc
from tests.gateway.harness import KEY, GatewayServer, route, wait_for

REFUSED = ["m-" + "x" * 255, "m-\x01", "m-\x00", "m-a\u202eb", "m-a\u00a0b", "m-\ue000"]
TAKEN = ["m-" + "x" * 254, "m-é 模型/b:7b", "m-a b"]
OPENAI: dict[str, str] = {}
ANTHROPIC = {"anthropic-version": "2023-06-01"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    demo = [ProviderDoc(number, f"demo{number}", "demo", "demo://local", "loopback") for number in (1, 2)]
    routes = [route(1, "m-*"), route(2, "n-*", 2), route(3, "m-exact\u202e")]
    cards = [CardDoc(pattern=name) for name in (*REFUSED, *TAKEN)]
    directory: Path = tmp_path_factory.mktemp("names")
    discovered = {2: ["n-good", "n-\u202ebad", "n-" + "x" * 255]}
    with GatewayServer(directory, providers=demo, routes=routes, cards=cards, discovered=discovered) as started:
        wait_for(lambda: httpx.get(f"{started.url}/v1/models", headers={"x-api-key": KEY}).status_code == 200)
        yield started


def get(server: GatewayServer, path: str, headers: dict[str, str]) -> tuple[int, Any]:
    got = httpx.get(f"{server.url}{path}", headers={"x-api-key": KEY, **headers}, timeout=10)
    return got.status_code, got.json()


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_inference_refuses_is_not_found_in_the_callers_shape(server: GatewayServer, name: str) -> None:
    body = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers={"x-api-key": KEY}, timeout=10)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "model")
    path = quote(name, safe="")
    status, told = get(server, f"/v1/models/{path}", OPENAI)
    assert (status, told["error"]["code"]) == (404, "model_not_found")
    assert told["error"]["message"].isprintable()
    status, told = get(server, f"/v1/models/{path}", ANTHROPIC)
    assert (status, told["type"], told["error"]["type"]) == (404, "error", "not_found_error")
    status, told = get(server, f"/v1beta/models/{path}", OPENAI)
    assert (status, told["error"]["status"]) == (404, "NOT_FOUND")
    reply = httpx.post(f"{server.url}/api/show", json={"model": name}, headers={"x-api-key": KEY}, timeout=10)
    assert reply.status_code in (400, 404)
    assert isinstance(reply.json()["error"], str)


@pytest.mark.parametrize("name", TAKEN)
def test_a_name_that_inference_takes_is_found(server: GatewayServer, name: str) -> None:
    for prefix, headers in (("/v1/models/", OPENAI), ("/v1/models/", ANTHROPIC), ("/v1beta/models/", OPENAI)):
        assert get(server, prefix + quote(name, safe=""), headers)[0] == 200


def test_lists_have_only_names_that_inference_takes(server: GatewayServer) -> None:
    plain = {model["id"] for model in get(server, "/v1/models", OPENAI)[1]["data"]}
    assert plain == {"n-good"}
    known = [model["id"] for model in get(server, "/v1/models/catalog", OPENAI)[1]["data"]]
    assert known == sorted([*TAKEN, "n-good"])
    assert json.dumps(known).count("\\u202e") == 0


def test_mistrals_sdk_gets_the_fields_without_which_it_reads_no_list(server: GatewayServer) -> None:
    with Mistral(api_key=KEY, server_url=server.url) as client:
        listed = client.models.list().data or []
        one = client.models.retrieve(model_id="m-a b")
    assert [(model.id, model.type) for model in listed] == [("n-good", "base")]
    assert one.type == "base"
    assert one.capabilities.completion_chat
    assert "type" not in get(server, "/v1/models", OPENAI)[1]["data"][0]
