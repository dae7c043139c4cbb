"""Kept answers through a real worker: what is told again, to whom and for how long, and what never is.

The answer of the upstream says which call it was of (its `id`), so an answer that was kept can be told from a new one.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from budgets.records import Basis, PoolRecord
from gateway.cache.flights import Flights
from gateway.caching import Keeping
from providers.config import ConfigDocument, PolicyDoc, SettingsDoc
from tests.gateway.harness import (
    KEY,
    OTHER_KEY,
    GatewayServer,
    canned,
    held,
    key_record,
    provider,
    route,
    usage_rows,
    wait_for,
)
from tests.upstream import FaultUpstream, text_of

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FaultUpstream, GatewayServer]]:
    """An upstream, and a worker whose one route keeps answers for a minute."""
    directory = tmp_path_factory.mktemp("caching")
    with (
        FaultUpstream() as up,
        GatewayServer(directory, providers=[provider(1, up.url)], routes=[route(1, cache_s=60)]) as server,
    ):
        yield up, server


@pytest.fixture
def up(shared: tuple[FaultUpstream, GatewayServer]) -> FaultUpstream:
    """The upstream; nobody has asked it anything yet."""
    shared[0].requests.clear()
    return shared[0]


@pytest.fixture
def server(shared: tuple[FaultUpstream, GatewayServer], up: FaultUpstream) -> GatewayServer:
    """The worker as it was configured at first; nothing is kept yet."""
    gateway = shared[1]
    first = ConfigDocument(providers=(provider(1, up.url),), routes=(route(1, cache_s=60),))
    if gateway.document != first:
        gateway.reconfigure(first)
    wait_for(lambda: not gateway.runtime.jobs)
    gateway.call(gateway.runtime.cache.purge)
    return gateway


def ask(
    server: GatewayServer, model: str = "ok", *, path: str = CHAT, key: str = KEY, control: str = "", **more: Any
) -> httpx.Response:
    """One request; `control` is its Cache-Control header."""
    headers = {"authorization": f"Bearer {key}", **more.pop("headers", {})}
    if control:
        headers["cache-control"] = control
    body = {"model": model, "max_tokens": 5, **more}
    if path == CHAT:
        body = {"messages": [{"role": "user", "content": "one two three"}], **body}
    return httpx.post(server.url + path, json=body, headers=headers, timeout=20)


def words(reply: httpx.Response) -> str:
    """The text of an answer, whole or streamed; it must have ended well."""
    assert reply.status_code == 200, reply.text
    if "event-stream" not in reply.headers["content-type"]:
        return str(reply.json()["choices"][0]["message"]["content"])
    lines = [line[6:] for line in reply.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


def result(reply: httpx.Response) -> str:
    """What the cache had to do with it."""
    return reply.headers.get("x-hoosh-cache", "")


@pytest.mark.usefixtures("binding")
def test_the_same_request_gets_the_same_bytes_without_a_second_call(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1, cache_s=60)]) as server:
        first, second = ask(server), ask(server)
        assert (result(first), result(second)) == ("miss", "hit")
        assert second.content == first.content
        assert len(up.inference) == 1
        assert second.headers["age"] in ("0", "1")
        assert "age" not in first.headers
        assert second.headers["content-type"] == first.headers["content-type"]
        assert second.headers["x-hoosh-request"] != first.headers["x-hoosh-request"]
        assert "x-hoosh-route" not in second.headers, "no route was called"
        called, told = usage_rows(tmp_path)
        assert held(server) == 0
    assert (called.tokens, called.attempts, called.basis) == (8, 1, Basis.REPORTED)
    assert (told.tokens, told.cost_pico, told.held, told.attempts, told.basis) == (0, 0, 0, 0, Basis.NONE)
    assert (told.status, told.error, told.route_id, told.provider_id) == (200, "", 1, 1)
    assert (told.model, told.upstream_model, told.rid.hex()) == ("ok", "ok", second.headers["x-hoosh-request"])
    assert {draw.pool_id for draw in told.draws} == {1}
    assert all(draw.held < 0 for draw in told.draws), "nothing was held of any pool"
    assert 0 < told.ttft_us <= told.latency_us


def test_the_order_of_keys_and_white_space_make_no_other_request(up: FaultUpstream, server: GatewayServer) -> None:
    ask(server)
    body = b'{ "max_tokens":5,\n "messages":[{"content":"one two three","role":"user"}], "model":"ok" }'
    reply = httpx.post(server.url + CHAT, content=body, headers={"x-api-key": KEY})
    assert result(reply) == "hit"
    assert len(up.inference) == 1


@pytest.mark.parametrize("first", [False, True], ids=["whole-first", "stream-first"])
def test_streams_and_whole_answers_are_made_from_each_other(
    up: FaultUpstream, server: GatewayServer, first: bool
) -> None:
    replies = [ask(server, stream=stream) for stream in (first, not first, first)]
    assert [result(reply) for reply in replies] == ["miss", "hit", "hit"]
    assert {words(reply) for reply in replies} == {text_of(5)}
    assert len(up.inference) == 1


def test_a_kept_answer_ends_with_the_usage_chunk_where_the_client_wants_it(server: GatewayServer) -> None:
    plain = ask(server, stream=True)
    told = ask(server, stream=True, stream_options={"include_usage": True})
    assert (result(plain), result(told)) == ("miss", "hit")
    assert '"completion_tokens"' not in plain.text
    assert '"completion_tokens":5' in told.text.replace(" ", "")


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.5},
        {"max_tokens": 6},
        {"seed": 1},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one two three"}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
        {"response_format": {"type": "json_object"}},
        {"model": "m1"},
    ],
    ids=["temperature", "limit", "seed", "system", "tools", "format", "model"],
)
def test_whatever_else_is_asked_is_another_request(
    up: FaultUpstream, server: GatewayServer, more: dict[str, Any]
) -> None:
    ask(server)
    changed = {"model": "ok", **more}
    assert result(ask(server, changed.pop("model"), **changed)) == "miss"
    assert len(up.inference) == 2


def test_teams_share_nothing_and_the_keys_of_one_share_all(up: FaultUpstream, tmp_path: Path) -> None:
    third = "hk-third-123456789abcdefghijklmnopqrstuvwxyzABCDEF"
    keys = [key_record(1, KEY), key_record(2, OTHER_KEY, pool_id=2)]
    keys.append(msgspec.structs.replace(key_record(3, third), team_id=keys[0].team_id))
    routes = [route(1, cache_s=60)]
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=routes, keys=keys) as server:
        assert [result(ask(server, key=key)) for key in (KEY, OTHER_KEY, third, OTHER_KEY)] == [
            *("miss", "miss", "hit", "hit")
        ]
        assert len(up.inference) == 2


def test_a_route_that_keeps_nothing_says_nothing(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        assert [result(ask(server)), result(ask(server, control="no-cache"))] == ["", ""]
        assert len(up.inference) == 2
        none = ask(server, control="only-if-cached")
        assert (none.status_code, none.json()["error"]["code"]) == (504, "not_cached")
        assert len(up.inference) == 2, "who wants nothing but a kept answer pays for no other"


def test_an_answer_is_told_until_its_time_is_over(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1, cache_s=1)]) as server:
        assert [result(ask(server)), result(ask(server))] == ["miss", "hit"]
        time.sleep(1.05)
        assert result(ask(server)) == "miss"
        assert len(up.inference) == 2


# --- what the caller wants ------------------------------------------------------------------------------------------


def test_no_cache_calls_and_keeps_the_new_answer(up: FaultUpstream, server: GatewayServer) -> None:
    old = ask(server)
    new = ask(server, control="no-cache")
    assert (result(new), len(up.inference)) == ("bypass", 2)
    assert new.json()["id"] != old.json()["id"]
    assert ask(server).json()["id"] == new.json()["id"]


def test_no_store_neither_looks_nor_keeps(up: FaultUpstream, server: GatewayServer) -> None:
    assert result(ask(server, control="no-store")) == "bypass"
    assert result(ask(server)) == "miss"
    assert result(ask(server, control="No-Store")) == "bypass"
    assert len(up.inference) == 3


def test_max_age_wants_a_young_answer(up: FaultUpstream, server: GatewayServer) -> None:
    ask(server)
    assert result(ask(server, control="max-age=60")) == "hit"
    assert result(ask(server, control="max-age=0")) == "miss"
    assert len(up.inference) == 2


def test_only_if_cached_is_answered_without_a_call_or_not_at_all(up: FaultUpstream, server: GatewayServer) -> None:
    none = ask(server, control="only-if-cached")
    assert (none.status_code, none.json()["error"]["code"], result(none)) == (504, "not_cached", "miss")
    assert not up.inference
    ask(server)
    assert result(ask(server, control="only-if-cached")) == "hit"
    unkeepable = ask(server, control="only-if-cached", store=True)
    assert (unkeepable.status_code, result(unkeepable)) == (504, "bypass")
    assert len(up.inference) == 1


@pytest.mark.parametrize("control", ["max-age", "max-age=soon", "no-store=1", "only-if-cached=yes"])
def test_a_header_that_could_be_misread_is_refused(up: FaultUpstream, server: GatewayServer, control: str) -> None:
    reply = ask(server, control=control)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "cache-control")
    assert not up.inference


def test_several_headers_count_as_one(up: FaultUpstream, server: GatewayServer) -> None:
    ask(server)
    headers = [("x-api-key", KEY), ("cache-control", "max-age=60"), ("cache-control", "no-store")]
    body = {"model": "ok", "max_tokens": 5, "messages": [{"role": "user", "content": "one two three"}]}
    assert result(httpx.post(server.url + CHAT, json=body, headers=headers)) == "bypass"


def test_requests_with_effects_outside_are_not_looked_up(up: FaultUpstream, server: GatewayServer) -> None:
    for _ in range(2):
        assert result(ask(server, store=True)) == "bypass"
    assert len(up.inference) == 2


# --- what is not kept -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("behaviour", ["boom-500", "rate-limit", "boom-400", "json-error", "cut", "error-event"])
def test_failures_are_not_kept(up: FaultUpstream, server: GatewayServer, behaviour: str, stream: bool) -> None:
    up.script(behaviour)
    try:
        assert stream or ask(server).status_code >= 400
        if stream:
            ask(server, stream=True)
    except httpx.RemoteProtocolError:
        assert stream, "a stream that was cut"
    wait_for(lambda: not server.runtime.jobs)
    later = ask(server, stream=stream)
    assert (result(later), words(later)) == ("miss", text_of(5))


def answer(finish: str, **message: Any) -> bytes:
    told = {"role": "assistant", "content": "Hm.", **message}
    return json.dumps(
        {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": "ok",
            "choices": [{"index": 0, "message": told, "finish_reason": finish}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
        }
    ).encode()


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        (answer("stop"), "hit"),
        (answer("length"), "hit"),
        (answer("content_filter"), "miss"),
        (answer("stop", refusal="No."), "miss"),
    ],
    ids=["whole", "at-the-callers-limit", "filtered", "refused"],
)
def test_only_whole_answers_are_kept(tmp_path: Path, told: bytes, kept: str) -> None:
    with (
        canned(200, told) as url,
        GatewayServer(tmp_path, providers=[provider(1, url)], routes=[route(1, cache_s=60)]) as server,
    ):
        assert [result(ask(server)), result(ask(server))] == ["miss", kept]


@pytest.mark.parametrize(
    ("body", "cap"),
    [({}, 4), ({"max_tokens": None}, None), ({"max_tokens": None}, 4)],
    ids=["below-the-callers", "default", "of-the-route"],
)
def test_an_answer_that_ended_at_a_limit_of_ours_is_not_kept(
    tmp_path: Path, body: dict[str, Any], cap: int | None
) -> None:
    with (
        canned(200, answer("length")) as url,
        GatewayServer(tmp_path, providers=[provider(1, url)], routes=[route(1, cache_s=60, output_cap=cap)]) as server,
    ):
        assert [result(ask(server, **body)), result(ask(server, **body))] == ["miss", "miss"]


def test_an_answer_shortened_for_its_pool_is_not_kept_where_it_was_cut(tmp_path: Path) -> None:
    pools = [PoolRecord(id=1, name="default", shorten=True)]
    with (
        canned(200, answer("length")) as url,
        GatewayServer(
            tmp_path,
            providers=[provider(1, url)],
            routes=[route(1, cache_s=60)],
            pools=pools,
            keys=[key_record(1, KEY)],
            capacity=1000,
            settings=SettingsDoc(hold_wait_s=0.2),
        ) as server,
    ):
        for _ in range(2):
            reply = ask(server, max_tokens=2000)
            assert int(reply.headers["x-hoosh-output-limit"]) < 1000
            assert result(reply) == "miss"


def test_the_answer_of_a_fallback_model_is_not_kept(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(
        tmp_path,
        providers=[provider(1, up.url)],
        routes=[route(1, "first", cache_s=60), route(2, "second", cache_s=60)],
        policies=[PolicyDoc(id=1, name="p", pattern="first", strategy="priority", fallbacks=("second",))],
    ) as server:
        up.script("boom-503")
        fell = ask(server, "first")
        assert (fell.headers["x-hoosh-route"], result(fell)) == ("r2", "miss")
        assert result(ask(server, "first")) == "miss"
        assert result(ask(server, "first")) == "hit"


def test_the_answer_of_another_route_for_the_same_model_is_kept_for_as_long_as_that_says(
    up: FaultUpstream, tmp_path: Path
) -> None:
    with GatewayServer(
        tmp_path,
        providers=[provider(1, up.url)],
        routes=[route(1, cache_s=60, priority=1), route(2, priority=2)],
    ) as server:
        up.script("boom-503")
        assert result(ask(server)) == "miss"
        assert result(ask(server)) == "miss", "the second route keeps nothing"
        assert result(ask(server)) == "hit"


# --- many at once -----------------------------------------------------------------------------------------------------


def at_once(server: GatewayServer, count: int, model: str, **more: Any) -> list[httpx.Response]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: ask(server, model, **more), range(count)))


@pytest.mark.usefixtures("binding")
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_twenty_equal_requests_make_one_call(up: FaultUpstream, tmp_path: Path, stream: bool) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1, cache_s=60)]) as server:
        replies = at_once(server, 20, "first-300ms", stream=stream)
        assert len(up.inference) == 1
        assert sorted(map(result, replies)) == ["hit"] * 19 + ["miss"]
        assert {words(reply) for reply in replies} == {text_of(5)}
        assert sum(row.tokens for row in usage_rows(tmp_path)) == 8
        assert len(usage_rows(tmp_path)) == 20
        counts = server.runtime.cache.counts()
        assert (counts["hits"], counts["saved_tokens"]) == (19, 19 * 8)
        assert counts["joined"] > 0


def test_after_a_leader_that_failed_one_other_calls_for_all(up: FaultUpstream, tmp_path: Path) -> None:
    routes = [route(1, cache_s=60, first_byte_timeout_s=0.7)]
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=routes) as server:
        up.script("stall-first", "ok")
        replies = at_once(server, 6, "m")
        assert sorted(reply.status_code for reply in replies) == [200] * 5 + [504]
        assert len(up.inference) == 2


@pytest.mark.usefixtures("worker_binding")
def test_when_the_client_that_calls_leaves_another_one_calls(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1, cache_s=60)]) as server:
        up.script("stall-first", "first-300ms")

        def leave() -> None:
            body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "one two three"}]}
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(server.url + CHAT, json=body, headers={"x-api-key": KEY}, timeout=0.6)

        leader = threading.Thread(target=leave)
        leader.start()
        wait_for(lambda: len(up.inference) == 1)
        replies = at_once(server, 4, "m")
        leader.join()
        assert {words(reply) for reply in replies} == {text_of(5)}
        assert len(up.inference) == 2
        assert len(server.runtime.cache.flights) == 0
        wait_for(lambda: held(server) == 0)


def test_those_that_wait_for_what_cannot_be_kept_go_on_their_own(up: FaultUpstream, server: GatewayServer) -> None:
    up.script(*["first-300ms"] * 3)
    replies = at_once(server, 3, "m", store=True)
    assert [result(reply) for reply in replies] == ["bypass"] * 3
    assert len(up.inference) == 3


def test_nobody_waits_for_a_route_that_keeps_nothing(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(
        tmp_path,
        providers=[provider(1, up.url)],
        routes=[route(1, priority=1), route(2, cache_s=60, priority=2)],
    ) as server:
        at_once(server, 3, "first-300ms")
        assert len(up.inference) == 3
        assert server.runtime.cache.counts()["joined"] == 0


def test_who_waits_in_vain_has_half_of_its_time_left_for_its_own_call(up: FaultUpstream, tmp_path: Path) -> None:
    routes = [route(1, cache_s=60, total_timeout_s=1.0)]
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=routes) as server:
        up.script("stall-first", "ok", "ok")
        started = time.monotonic()
        replies = at_once(server, 2, "m")
        took_s = time.monotonic() - started
    assert sorted(reply.status_code for reply in replies) == [200, 504]
    assert took_s < 2.5


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda route_, provider_: (msgspec.structs.replace(route_, upstream_model="m1"), provider_),
        lambda route_, provider_: (msgspec.structs.replace(route_, output_cap=4), provider_),
        lambda route_, provider_: (msgspec.structs.replace(route_, cache_s=30), provider_),
        lambda route_, provider_: (route_, msgspec.structs.replace(provider_, base_url=f"{provider_.base_url}/next")),
        lambda route_, provider_: (route_, msgspec.structs.replace(provider_, kind="vllm")),
    ],
    ids=["upstream-model", "cap", "time", "base-url", "kind"],
)
def test_under_another_configuration_no_old_answer_is_told(
    up: FaultUpstream, server: GatewayServer, change: Any
) -> None:
    assert [result(ask(server)), result(ask(server))] == ["miss", "hit"]
    document = server.document
    route_, provider_ = change(document.routes[0], document.providers[0])
    server.reconfigure(msgspec.structs.replace(document, routes=(route_,), providers=(provider_,)))
    assert result(ask(server)) == "miss"
    assert len(up.inference) == 2
    server.reconfigure(document)
    assert result(ask(server)) == "hit", "the old routes are back, and the answer is theirs"


def test_a_change_that_does_not_touch_the_routes_keeps_what_is_kept(up: FaultUpstream, server: GatewayServer) -> None:
    ask(server)
    settings = msgspec.structs.replace(server.document.settings, ping_interval_s=9.0)
    server.reconfigure(msgspec.structs.replace(server.document, settings=settings))
    assert result(ask(server)) == "hit"


def test_a_provider_moved_to_another_one_while_a_call_is_under_way_answers_only_for_itself(
    up: FaultUpstream, server: GatewayServer
) -> None:
    with ThreadPoolExecutor(1) as pool, FaultUpstream() as next_up:
        late = pool.submit(ask, server, "first-300ms")
        wait_for(lambda: up.inference)
        moved = msgspec.structs.replace(server.document.providers[0], base_url=next_up.url)
        server.reconfigure(msgspec.structs.replace(server.document, providers=(moved,)))
        assert late.result().status_code == 200
        assert result(ask(server, "first-300ms")) == "miss"
        assert len(next_up.inference) == 1


def test_a_kept_answer_is_told_while_its_provider_is_away(up: FaultUpstream, server: GatewayServer) -> None:
    ask(server)
    up.stop_listening()
    try:
        assert words(ask(server)) == text_of(5)
    finally:
        up.listen_again()


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_memory_is_bounded_by_the_setting_and_follows_it(tmp_path: Path) -> None:
    large = answer("stop", content="x" * 300_000)
    with (
        canned(200, large) as url,
        GatewayServer(
            tmp_path,
            providers=[provider(1, url)],
            routes=[route(1, cache_s=60)],
            settings=SettingsDoc(cache_mb=1),
        ) as server,
    ):
        for seed in range(6):
            assert result(ask(server, seed=seed)) == "miss"
        counts = server.runtime.cache.counts()
        assert (counts["entries"], counts["evictions"]) == (3, 3)
        assert counts["bytes"] <= counts["max_bytes"] == 1 << 20
        assert result(ask(server, seed=5)) == "hit"
        assert result(ask(server, seed=0)) == "miss"
        settings = msgspec.structs.replace(server.document.settings, cache_mb=2)
        server.reconfigure(msgspec.structs.replace(server.document, settings=settings))
        assert server.runtime.cache.counts()["max_bytes"] == 2 << 20


def test_an_answer_of_more_than_a_mebibyte_is_not_kept(tmp_path: Path) -> None:
    with (
        canned(200, answer("stop", content="x" * (1 << 20))) as url,
        GatewayServer(tmp_path, providers=[provider(1, url)], routes=[route(1, cache_s=60)]) as server,
    ):
        assert [result(ask(server)), result(ask(server))] == ["miss", "miss"]
        assert server.runtime.cache.counts()["refused"] == 2


def test_what_a_purge_met_on_its_way_is_not_kept(up: FaultUpstream, server: GatewayServer) -> None:
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(ask, server, "first-300ms")
        wait_for(lambda: up.inference)
        server.call(server.runtime.cache.purge)
        assert late.result().status_code == 200
    assert result(ask(server, "first-300ms")) == "miss"
    assert len(server.runtime.cache.store) == 1


# --- other endpoints --------------------------------------------------------------------------------------------------


def test_embeddings_and_legacy_completions_are_kept(up: FaultUpstream, server: GatewayServer) -> None:
    for path, body in (
        ("/v1/embeddings", {"input": ["one", "two"], "max_tokens": None}),
        ("/v1/completions", {"prompt": "Once"}),
    ):
        body = {name: value for name, value in body.items() if value is not None}
        first, second = (ask(server, path=path, **body) for _ in range(2))
        assert (result(first), result(second)) == ("miss", "hit"), first.text
        assert all(second.json()[name] == first.json()[name] for name in first.json() if name != "id")
    streamed = ask(server, path="/v1/completions", prompt="Once", stream=True)
    assert result(streamed) == "hit"
    assert "".join(_texts(streamed)) == first.json()["choices"][0]["text"]
    assert len(up.inference) == 2


def _texts(reply: httpx.Response) -> Iterator[str]:
    for line in reply.text.split("\n"):
        if line.startswith("data: {"):
            yield from (choice["text"] for choice in json.loads(line[6:])["choices"])


def test_a_stream_that_cannot_be_joined_lets_those_that_wait_go_at_once() -> None:
    flights = Flights()
    seat = asyncio.run(flights.join(b"key", 1))
    keeping = Keeping(b"key", seat, "chat", stream=True, purges=0)
    keeping.hear(b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n')
    assert seat.leads
    keeping.hear(b'data: {"choices":[{"index":0,"delta":{"unheard_of":{"a":1}}}]}\n\n')
    assert not seat.leads
    assert len(flights) == 0
