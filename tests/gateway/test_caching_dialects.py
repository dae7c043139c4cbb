"""Kept answers for clients of every API in front of providers of every kind: what is made from what, and what is not.

An answer that a provider gave in its caller's own API is passed on as it is. Whole, it is kept as that and told again
to such callers; streamed, it is not kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest

from providers.config import SettingsDoc
from tests.gateway.matrix_clients import CLIENTS, Reply
from tests.gateway.matrix_world import NATIVE, Got, World, check_schema, pairs, routes_of
from tests.provider_fakes import ProviderFakes
from tests.provider_fakes_base import Json

_REWRITTEN = ("openai", "completions", "gemini_array")  # canonical, or never as it is


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    def keeping(numbers: dict[str, int]) -> list[object]:
        return [msgspec.structs.replace(route, cache_s=300) for route in routes_of(numbers)]

    settings = SettingsDoc(breaker_failures=10**6)
    directory = tmp_path_factory.mktemp("caching")
    with ProviderFakes() as fakes, World(directory, fakes, settings, routes=keeping) as made:  # type: ignore[arg-type]
        yield made


def understood(name: str, got: Got, *, stream: bool) -> Reply:
    """A good answer as the client reads it, less what is another in every answer."""
    client = CLIENTS[name]
    assert got.status == 200, got.data
    assert got.clean
    check_schema(client, got, stream=stream)
    if not stream:
        assert got.headers["content-type"] == "application/json"
        return replace(client.whole(got.data), id="", turn=None)
    assert got.headers["content-type"] == client.stream_type
    return replace(client.streamed(got.data), id="", turn=None)


def passes(name: str, row: str) -> bool:
    """Whether the provider's own bytes reach the client."""
    return name not in _REWRITTEN and row in NATIVE[name]


@pytest.mark.parametrize("prompt", ["plain", "tools", "thinking"])
@pytest.mark.parametrize(("name", "row", "stream"), pairs())
def test_an_answer_is_told_again_as_far_as_it_is_kept(
    world: World, name: str, row: str, stream: bool, prompt: str
) -> None:
    client, model = CLIENTS[name], f"m-{row}"
    tools, thinks = prompt == "tools" and client.tools, prompt == "thinking" and client.thinks
    if (prompt == "tools" and not tools) or (prompt == "thinking" and not thinks):
        pytest.skip("not in this API")
    words = f"{'THINK ' if thinks else ''}{name} {stream}"
    told = []
    for streamed in (stream, stream, not stream):
        body = client.body(model, words, stream=streamed, tools=tools, think=thinks)
        told.append(world.ask(client, model, body, stream=streamed))
    native = passes(name, row)
    again = "miss" if native and stream else "hit"
    # A stream as an array is asked for apart from the whole answer.
    other = "miss" if native or name == "gemini_array" else "hit"
    assert [got.headers["x-hoosh-cache"] for got in told] == ["miss", again, other]
    assert [len(got.seen) for got in told] == [1, int(again == "miss"), int(other == "miss")]
    first, second, third = (
        understood(name, replace(got, seen=told[0].seen), stream=streamed)
        for got, streamed in zip(told, (stream, stream, not stream), strict=True)
    )
    assert second == first
    assert third == first or other == "miss"
    assert third.text == first.text
    assert first.text or first.calls
    row_ = world.row(told[1])
    assert (row_.attempts, row_.tokens > 0) == ((1, True) if again == "miss" else (0, False))


def test_clients_of_different_apis_share_nothing(world: World) -> None:
    for name in ("openai", "anthropic", "gemini", "ollama_chat", "responses"):
        client = CLIENTS[name]
        got = world.ask(client, "m-custom", client.body("m-custom", "the same"), stream=False)
        assert got.headers["x-hoosh-cache"] == "miss"


@pytest.mark.parametrize(
    ("name", "row", "more"),
    [("anthropic", "openai", {"top_k": 5}), ("gemini", "custom", {"safetySettings": [{"category": "X"}]})],
    ids=["by-the-provider", "by-the-api"],
)
def test_what_was_left_out_of_a_request_is_told_with_its_kept_answer_too(
    world: World, name: str, row: str, more: Json
) -> None:
    client, model = CLIENTS[name], f"m-{row}"
    body = client.body(model, "left out", **more)
    first, second = (world.ask(client, model, body, stream=False) for _ in range(2))
    assert second.headers["x-hoosh-cache"] == "hit"
    assert first.headers["x-hoosh-dropped-params"] == second.headers["x-hoosh-dropped-params"] == next(iter(more))
