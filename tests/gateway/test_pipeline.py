"""Whole answers through the request path: what works, each refusal, fallback, accounting."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from budgets.records import Basis, PoolRecord, PriceRecord
from providers.config import CardDoc, PolicyDoc, SettingsDoc
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


@pytest.fixture
def up() -> Iterator[FaultUpstream]:
    with FaultUpstream() as server:
        yield server


def body(model: str = "ok", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "one two three"}], **more}


def post(
    server: GatewayServer, payload: Any, *, path: str = CHAT, key: str | None = KEY, **more: Any
) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    headers.update(more.pop("headers", {}))
    content = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return httpx.post(server.url + path, content=content, headers=headers, timeout=20, **more)


def assert_error(reply: httpx.Response, status: int, code: str | None, param: str | None = None) -> None:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["message"]
    if param is not None:
        assert error["param"] == param
    assert reply.headers["x-request-id"]


@pytest.mark.usefixtures("binding")
def test_a_chat_request_is_answered_and_booked(up: FaultUpstream, tmp_path: Path) -> None:
    prices = [PriceRecord(id=5, provider="*", pattern="*", input=2_000_000, output=10_000_000)]
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)], prices=prices) as server:
        reply = post(server, body(max_tokens=4), headers={"x-request-id": "mine-1"})
        assert reply.status_code == 200
        answer = reply.json()
        assert answer["choices"][0]["message"]["content"] == text_of(4)
        assert reply.headers["x-request-id"] == "mine-1"
        assert reply.headers["x-hoosh-route"] == "r1"
        assert reply.headers["x-hoosh-config"] == "1"
        rid = reply.headers["x-hoosh-request"]
        sent = up.inference[-1]
        assert sent.json["max_tokens"] == 4
        assert sent.json["messages"] == body()["messages"]
        (row,) = usage_rows(tmp_path)
    assert row.rid.hex() == rid
    assert (row.input_tokens, row.output_tokens, row.tokens) == (3, 4, 7)
    assert row.cost_pico == 3 * 2_000_000 + 4 * 10_000_000
    assert (row.status, row.basis, row.price_id, row.route_id, row.provider_id) == (200, Basis.REPORTED, 5, 1, 1)
    assert (row.key_id, row.agent_id, row.team_id, row.pool_id) == (1, 10, 100, 1)
    assert row.client_request_id == "mine-1"
    assert row.held >= row.tokens
    assert row.latency_us > 0
    line = json.loads((tmp_path / "access.jsonl").read_text().splitlines()[-1])
    assert line["request_id"] == rid
    assert line["status"] == 200
    assert "one two three" not in (tmp_path / "access.jsonl").read_text()


def test_completions_and_embeddings_are_served_too(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        reply = post(server, {"model": "ok", "prompt": "one two", "max_tokens": 3}, path="/v1/completions")
        assert reply.json()["choices"][0]["text"] == text_of(3)
        reply = post(server, {"model": "ok", "input": ["a b", "c"]}, path="/v1/embeddings")
        assert len(reply.json()["data"]) == 2
        assert [row.endpoint for row in usage_rows(tmp_path)] == ["completions", "embeddings"]


def test_an_absent_limit_is_written_upstream_under_the_kinds_own_name(up: FaultUpstream, tmp_path: Path) -> None:
    providers = [provider(1, up.url), provider(2, up.url, kind="openai")]
    routes = [route(1, "a*", upstream_model="ok"), route(2, "b*", 2, upstream_model="ok")]
    cards = [CardDoc(pattern="ok", max_output_tokens=1500)]
    with GatewayServer(tmp_path, providers=providers, routes=routes, cards=cards) as server:
        assert post(server, body("a1")).status_code == 200
        assert up.inference[-1].json["max_tokens"] == 1500
        assert up.inference[-1].json["model"] == "ok"
        assert post(server, body("b1")).status_code == 200
        assert up.inference[-1].json["max_completion_tokens"] == 1500
        assert "max_tokens" not in up.inference[-1].json


def test_a_route_cap_shortens_what_a_request_may_ask_for(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1, output_cap=5)]) as server:
        assert post(server, body(max_tokens=50)).json()["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize("carrier", ["authorization", "x-api-key", "api-key", "x-goog-api-key"])
def test_every_credential_carrier_works(up: FaultUpstream, tmp_path: Path, carrier: str) -> None:
    value = f"bearer {KEY}" if carrier == "authorization" else KEY
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        assert post(server, body(), key=None, headers={carrier: value}).status_code == 200
    assert KEY not in json.dumps([str(r.headers) for r in up.requests])


@pytest.mark.usefixtures("binding")
def test_bad_credentials_are_refused_before_the_body_is_read(up: FaultUpstream, tmp_path: Path) -> None:
    keys = [
        key_record(1, KEY),
        key_record(3, "hk-revoked", enabled=False),
        key_record(4, "hk-expired", expires_at=time.time() - 1),
        key_record(5, "hk-operator", scopes=("operator",)),
        key_record(6, "hk-gpt-only", models=("gpt-*",)),
    ]
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)], keys=keys) as server:
        assert_error(post(server, b"nonsense", key=None), 401, "invalid_api_key")
        assert_error(post(server, body(), key="hk-wrong"), 401, "invalid_api_key")
        assert_error(post(server, body(), key="hk-revoked"), 401, "invalid_api_key")
        assert_error(post(server, body(), key="hk-expired"), 401, "key_expired")
        assert_error(post(server, body(), key="hk-operator"), 403, "forbidden")
        assert_error(post(server, body(), key=None, headers={"authorization": f"Basic {KEY}"}), 401, "invalid_api_key")
        assert_error(post(server, body(), headers={"x-api-key": OTHER_KEY}), 400, "conflicting_credentials")
        assert post(server, body(), headers={"x-api-key": KEY}).status_code == 200
        assert_error(post(server, body("ok"), key="hk-gpt-only"), 404, "model_not_found", "model")
        assert post(server, body("gpt-x"), key="hk-gpt-only").status_code == 200
    assert len(usage_rows(tmp_path)) == 2


@pytest.mark.usefixtures("binding")
def test_bad_bodies_are_refused_in_the_openai_shape_without_a_call(up: FaultUpstream, tmp_path: Path) -> None:
    bad = [b"", b"{", b"[]", b"null", b'{"model":"ok"}', b'{"model":"ok","messages":[]}', b"\xff\xfe{}"]
    bad.append(b'{"model":"ok","model":"other","messages":[{"role":"user","content":"x"}]}')
    bad.append(b'{"model":"ok","messages":[{"role":"user","content":"x"}],"temperature":NaN}')
    bad.append(b'{"model":"ok","messages":[{"role":"user","content":"x"}],"max_tokens":-1}')
    settings = SettingsDoc(body_limit_bytes=100_000)
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)], settings=settings) as server:
        for payload in bad:
            reply = post(server, payload)
            assert reply.status_code == 400, payload
            assert reply.json()["error"]["type"] == "invalid_request_error"
        big = body()
        big["messages"][0]["content"] = "x" * 100_001
        assert_error(post(server, big), 413, "payload_too_large")
        assert_error(post(server, body(), headers={"content-encoding": "gzip"}), 415, "unsupported_media_type")
        assert_error(
            httpx.get(server.url + CHAT, headers={"authorization": f"Bearer {KEY}"}), 405, "method_not_allowed"
        )
        assert_error(post(server, body(pool="nope")), 400, "unknown_pool", "pool")
        assert_error(post(server, body(pool="other")), 403, "pool_not_allowed", "pool")
        assert post(server, body(pool="default")).status_code == 200
        assert "pool" not in up.inference[-1].json
    assert len(up.inference) == 1


def test_a_model_without_a_route_is_404(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1, "gpt-*")]) as server:
        assert_error(post(server, body("claude")), 404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("rate-limit", 429, None),
        ("boom-500", 502, "upstream_error"),
        ("boom-503", 502, "upstream_overloaded"),
        ("unauthorized", 502, None),
        ("html-error", 502, None),
        ("not-json", 502, "upstream_invalid_reply"),
        ("json-error", 502, None),
        ("redirect", 502, None),
        ("refuse", 502, "upstream_cut"),
        ("refuse-rst", 502, "upstream_cut"),
        ("cut", 502, "upstream_cut"),
        ("bad-status", 502, "upstream_invalid_reply"),
        ("gzip-bomb", 502, None),
        ("boom-404", 404, None),
        ("boom-422", 422, None),
    ],
)
def test_upstream_failures_become_typed_errors_and_never_leak(
    up: FaultUpstream, tmp_path: Path, model: str, status: int, code: str | None
) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        reply = post(server, body(model))
        assert reply.status_code == status, reply.text
        error = reply.json()["error"]
        if code:
            assert error["code"] == code
        assert "127.0.0.1" not in reply.text
        assert "<html" not in reply.text.lower()
        if model == "rate-limit":
            assert reply.headers["retry-after"] == "7"
        (row,) = usage_rows(tmp_path)
        assert row.status == status
        assert row.tokens <= row.held


@pytest.mark.usefixtures("binding")
def test_timeouts_are_504_and_close_the_upstream_call(up: FaultUpstream, tmp_path: Path) -> None:
    routes = [
        route(1, "stall-first", first_byte_timeout_s=0.2),
        route(2, "stall-mid", gap_timeout_s=0.2),
        route(3, "drip", total_timeout_s=0.3),
    ]
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=routes) as server:
        for model in ("stall-first", "stall-mid", "drip"):
            started = time.monotonic()
            assert_error(post(server, body(model)), 504, "upstream_timeout")
            assert time.monotonic() - started < 2
        up.wait_for(lambda: all(r.closed_by_peer for r in up.inference))


def two_routes(up: FaultUpstream, first: str, **more: Any) -> dict[str, Any]:
    return {
        "providers": [provider(1, up.url), provider(2, up.url)],
        "routes": [
            route(1, "m", upstream_model=first, priority=1, **more),
            route(2, "m", 2, upstream_model="ok", priority=2),
        ],
    }


@pytest.mark.parametrize("first", ["rate-limit", "boom-500", "boom-503", "unauthorized", "html-error", "not-json"])
def test_a_refusing_provider_is_followed_by_the_next_candidate(up: FaultUpstream, tmp_path: Path, first: str) -> None:
    with GatewayServer(tmp_path, **two_routes(up, first)) as server:
        reply = post(server, body("m", max_tokens=2))
        assert reply.status_code == 200
        assert reply.headers["x-hoosh-route"] == "r2"
        rows = usage_rows(tmp_path)
    assert [(row.attempt, row.provider_id, row.status == 200) for row in rows] == [(0, 1, False), (1, 2, True)]


def test_a_provider_that_cannot_be_reached_is_followed_by_the_next(up: FaultUpstream, tmp_path: Path) -> None:
    setup = two_routes(up, "ok")
    setup["providers"][0] = provider(1, "http://127.0.0.1:1")
    with GatewayServer(tmp_path, **setup) as server:
        assert post(server, body("m")).headers["x-hoosh-route"] == "r2"
        first, second = usage_rows(tmp_path)
    assert (first.tokens, first.basis) == (0, Basis.NONE)
    assert second.basis == Basis.REPORTED


def test_a_request_that_was_sent_goes_elsewhere_only_where_the_route_allows_it(
    up: FaultUpstream, tmp_path: Path
) -> None:
    with GatewayServer(tmp_path / "a", **two_routes(up, "refuse")) as server:
        assert_error(post(server, body("m")), 502, "upstream_cut")
    with GatewayServer(tmp_path / "b", **two_routes(up, "refuse", duplicates_allowed=True)) as server:
        assert post(server, body("m")).status_code == 200
        first, second = usage_rows(tmp_path / "b")
    assert first.basis == Basis.ESTIMATED
    assert first.tokens > 0
    assert second.status == 200


@pytest.mark.parametrize("first", ["bad-status", "bad-chunk", "huge-header", "upgrade"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_no_http_is_followed_by_the_next_candidate(
    up: FaultUpstream, tmp_path: Path, first: str, stream: bool
) -> None:
    with GatewayServer(tmp_path, **two_routes(up, first)) as server:
        assert post(server, body("m", stream=stream)).headers.get("x-hoosh-route") == "r2"
        nonsense, good = usage_rows(tmp_path)
    assert (nonsense.status, nonsense.basis, good.status) == (502, Basis.ESTIMATED, 200)


def test_the_deadline_is_of_the_first_candidate_also_where_that_was_passed_over(
    up: FaultUpstream, tmp_path: Path
) -> None:
    setup = two_routes(up, "ok", total_timeout_s=0.4, requests_per_minute=1)
    setup["routes"][1] = route(2, "m", 2, upstream_model="stall-first", priority=2)
    with GatewayServer(tmp_path, **setup) as server:
        assert post(server, body("m")).status_code == 200
        started = time.monotonic()
        assert_error(post(server, body("m")), 504, "upstream_timeout")
        assert 0.3 < time.monotonic() - started < 3


def test_a_probing_call_that_says_nothing_of_the_upstream_leaves_the_next_one_to_probe(
    up: FaultUpstream, tmp_path: Path
) -> None:
    settings = SettingsDoc(breaker_failures=1, breaker_open_s=0.1)
    providers = [provider(1, up.url), provider(2, up.url)]
    routes = [route(1, "*", priority=1), route(2, "*", 2, upstream_model="ok", priority=2)]
    with GatewayServer(tmp_path, providers=providers, routes=routes, settings=settings) as server:
        assert post(server, body("boom-500")).headers["x-hoosh-route"] == "r2"
        time.sleep(0.15)
        with pytest.raises(httpx.RemoteProtocolError):
            post(server, body("flood", max_tokens=2, stream=True))
        (overrun,) = [row for row in usage_rows(tmp_path) if row.error == "limit_exceeded"]
        assert overrun.route_id == 1, "it was the probe"
        assert post(server, body("ok")).headers["x-hoosh-route"] == "r1"


def test_a_request_the_provider_finds_wrong_is_not_repeated(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, **two_routes(up, "boom-400")) as server:
        assert post(server, body("m")).status_code == 400
    assert len(up.inference) == 1


def test_five_failures_open_the_circuit_and_the_next_candidate_is_asked_first(
    up: FaultUpstream, tmp_path: Path
) -> None:
    with GatewayServer(tmp_path, **two_routes(up, "boom-500")) as server:
        for _ in range(5):
            assert post(server, body("m")).status_code == 200
        before = len(up.inference)
        assert post(server, body("m")).status_code == 200
        assert len(up.inference) == before + 1
        assert server.runtime.status()["circuits"][0]["failures"] == 5


def test_a_corrected_address_need_not_wait_for_the_circuit_of_the_wrong_one(up: FaultUpstream, tmp_path: Path) -> None:
    setup = two_routes(up, "ok")
    right = setup["providers"][0]
    setup["providers"][0] = provider(1, "http://127.0.0.1:1")
    with GatewayServer(tmp_path, **setup) as server:
        for _ in range(6):
            assert post(server, body("m")).headers["x-hoosh-route"] == "r2"
        assert server.runtime.status()["circuits"][0]["failures"] == 5, "the sixth was not even tried there"
        other_route = msgspec.structs.replace(server.document.routes[0], priority=0)
        server.reconfigure(msgspec.structs.replace(server.document, routes=(other_route, server.document.routes[1])))
        assert post(server, body("m")).headers["x-hoosh-route"] == "r2", "what calls have shown outlives a change"
        providers = (right, server.document.providers[1])
        server.reconfigure(msgspec.structs.replace(server.document, providers=providers))
        assert post(server, body("m")).headers["x-hoosh-route"] == "r1"


def test_round_robin_takes_turns(up: FaultUpstream, tmp_path: Path) -> None:
    policies = [PolicyDoc(id=1, name="rr", pattern="*", strategy="round_robin")]
    with GatewayServer(tmp_path, **two_routes(up, "ok"), policies=policies) as server:
        assert [post(server, body("m")).headers["x-hoosh-route"] for _ in range(4)] == ["r1", "r2", "r1", "r2"]


def test_usage_that_is_missing_or_absurd_is_estimated_and_marked(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        for model in ("no-usage", "null-usage", "absurd-usage"):
            assert post(server, body(model, max_tokens=6)).status_code == 200
        rows = usage_rows(tmp_path)
    for row in rows:
        assert row.basis == Basis.ESTIMATED
        assert row.output_tokens > 0
        assert row.input_tokens > 0


def test_a_provider_that_reports_more_than_was_held_is_charged_in_full(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        assert post(server, body("big-usage", max_tokens=200)).status_code == 200
        (row,) = usage_rows(tmp_path)
    assert row.output_tokens == 2000


def test_the_pools_edge_is_a_429_with_the_numbers(up: FaultUpstream, tmp_path: Path) -> None:
    settings = SettingsDoc(hold_wait_s=0.2)
    with GatewayServer(
        tmp_path, providers=[provider(1, up.url)], routes=[route(1)], capacity=1000, settings=settings
    ) as server:
        assert post(server, body(max_tokens=500)).status_code == 200
        reply = post(server, body(max_tokens=5000))
        assert_error(reply, 429, "insufficient_quota")
        assert reply.json()["error"]["type"] == "insufficient_quota"
        assert reply.headers["x-should-retry"] == "false"
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.headers["x-hoosh-tokens-available"] == "497"
    assert len(up.inference) == 1


def test_ten_of_a_hundred_fit_and_exactly_ten_are_served(up: FaultUpstream, tmp_path: Path) -> None:
    message = json.dumps(body("think-300ms", max_tokens=100))
    settings = SettingsDoc(hold_wait_s=0.5)
    probe = len(message) + 16 + 100
    used = 3 + 100
    with GatewayServer(
        tmp_path, providers=[provider(1, up.url)], routes=[route(1)], capacity=9 * used + probe, settings=settings
    ) as server:
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(post(server, message.encode()).status_code))
            for _ in range(40)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(row.tokens for row in usage_rows(tmp_path)) <= 9 * used + probe
    assert set(statuses) == {200, 429}
    assert statuses.count(200) <= 10


def test_without_an_answer_from_control_it_is_503(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        server.pools.append(PoolRecord(id=3, name="third"))
        server.keys.append(key_record(9, "hk-third", pool_id=3))
        server.bank.silent = True
        server.call(server.push)
        wait_for(lambda: 3 in server.runtime.snapshot.pools)
        reply = post(server, body(), key="hk-third")
        assert_error(reply, 503, "no_lease")
        assert reply.headers["retry-after"] == "1"


def test_a_new_configuration_serves_the_next_request(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, **two_routes(up, "ok")) as server:
        assert post(server, body("m")).headers["x-hoosh-route"] == "r1"
        document = server.document
        server.reconfigure(msgspec.structs.replace(document, routes=document.routes[1:]))
        reply = post(server, body("m"))
        assert reply.headers["x-hoosh-route"] == "r2"
        assert reply.headers["x-hoosh-config"] == "2"
        server.call(server.runtime.on_config, 3, b"garbage")
        wait_for(lambda: server.runtime.status()["build_error"])
        assert post(server, body("m")).headers["x-hoosh-config"] == "2"


def test_a_revoked_key_stops(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        assert post(server, body()).status_code == 200
        server.call(server.runtime.on_access, 2, False, [key_record(1, KEY, enabled=False)], [])
        wait_for(lambda: post(server, body()).status_code == 401, timeout_s=1)
        assert post(server, body(), key=OTHER_KEY).status_code == 200


@pytest.mark.usefixtures("binding")
def test_models_are_listed_as_far_as_the_key_may_use_them(up: FaultUpstream, tmp_path: Path) -> None:
    keys = [key_record(1, KEY), key_record(2, OTHER_KEY, models=("gpt-*",))]
    routes = [route(1, "gpt-*"), route(2, "fixed/name")]
    with GatewayServer(
        tmp_path, providers=[provider(1, up.url)], routes=routes, keys=keys, discovered={1: ["gpt-a", "gpt-b", "x"]}
    ) as server:

        def get(path: str, key: str = KEY) -> httpx.Response:
            return httpx.get(server.url + path, headers={"x-api-key": key})

        listed = get("/v1/models").json()
        assert [model["id"] for model in listed["data"]] == ["fixed/name", "gpt-a", "gpt-b"]
        assert listed["data"][0] == {"id": "fixed/name", "object": "model", "created": 0, "owned_by": "up1"}
        assert [m["id"] for m in get("/v1/models", OTHER_KEY).json()["data"]] == ["gpt-a", "gpt-b"]
        assert get("/v1/models/gpt-a").json()["id"] == "gpt-a"
        assert get("/v1/models/gpt-unlisted").json()["id"] == "gpt-unlisted"
        assert get("/v1/models/fixed%2Fname").json()["id"] == "fixed/name"
        assert_error(get("/v1/models/zzz"), 404, "model_not_found")
        assert_error(get("/v1/models/fixed/name", OTHER_KEY), 404, "model_not_found")
        assert_error(httpx.get(server.url + "/v1/models"), 401, "invalid_api_key")


@pytest.mark.usefixtures("binding")
def test_memory_answers_preflights_and_forwarding(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        assert httpx.get(server.url + "/livez").status_code == 200
        assert httpx.get(server.url + "/readyz").status_code == 200
        assert httpx.head(server.url + "/").status_code == 200
        assert httpx.get(server.url + "/").json()["name"] == "hoosh"
        assert httpx.get(server.url + "/v1/health?x=1").json()["status"] == "ok"
        origin = {"origin": "https://page.example", "access-control-request-method": "POST"}
        reply = httpx.options(server.url + CHAT, headers=origin)
        assert reply.status_code == 204
        assert reply.headers["access-control-allow-origin"] == "*"
        reply = post(server, body(), headers={"origin": "https://page.example"})
        assert reply.headers["access-control-allow-origin"] == "*"
        assert httpx.get(server.url + "/admin/").text == "control: /admin/"
        reply = httpx.get(server.url + "/v1/costs", headers={"origin": "https://page.example"})
        assert reply.text == "control: /v1/costs"
        assert reply.headers["access-control-allow-origin"] == "*"


@pytest.mark.usefixtures("binding")
def test_a_body_that_does_not_arrive_is_408(up: FaultUpstream, tmp_path: Path) -> None:
    settings = SettingsDoc(body_timeout_s=0.3)
    with (
        GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)], settings=settings) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as client,
    ):
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 100\r\n\r\n{{"
        client.sendall(head.encode())
        assert b" 408 " in client.recv(4096)


@pytest.mark.usefixtures("binding")
def test_a_client_that_leaves_cancels_the_upstream_call_and_is_charged_for_the_prompt(
    up: FaultUpstream, tmp_path: Path
) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + CHAT, json=body("stall-first"), headers={"x-api-key": KEY}, timeout=0.3)
        up.wait_for(lambda: up.inference and up.inference[-1].closed_by_peer, timeout_s=1)
        (row,) = wait_for(lambda: usage_rows(tmp_path))
        assert (row.status, row.error, row.basis) == (499, "client_left", Basis.ESTIMATED)
        assert row.input_tokens > 0
        assert held(server) == 0


@pytest.mark.usefixtures("binding")
def test_a_whole_answer_that_is_cut_by_a_stop_is_booked_as_that(up: FaultUpstream, tmp_path: Path) -> None:
    replies: list[httpx.Response] = []
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        client = threading.Thread(target=lambda: replies.append(post(server, body("stall-first"))))
        client.start()
        up.wait_for(lambda: up.inference)
        server.call(server.runtime.abort_streams)
        client.join(5)
        (row,) = usage_rows(tmp_path)
        assert held(server) == 0
    assert_error(replies[0], 503, "shutting_down")
    assert (row.status, row.error, row.basis) == (503, "shutting_down", Basis.ESTIMATED)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "content", "kind"),
    [
        (500, b'{"detail":[{"loc":null,"msg":"x"}]}', "application/json"),
        (503, b"<" * 1000, "text/html"),
        (503, b"<" * 100_000, "text/html"),
        (503, b"<" * 3_000_000, "text/html"),
    ],
)
def test_an_error_page_of_any_size_and_shape_is_followed_by_the_next_candidate(
    up: FaultUpstream, tmp_path: Path, status: int, content: bytes, kind: str, stream: bool
) -> None:
    routes = [route(1, priority=1), route(2, provider_id=2, priority=2)]
    with (
        canned(status, content, kind=kind) as bad,
        GatewayServer(tmp_path, providers=[provider(1, bad), provider(2, up.url)], routes=routes) as server,
    ):
        reply = post(server, body("ok", stream=stream))
        assert (reply.status_code, reply.headers["x-hoosh-route"]) == (200, "r2")
        first, second = usage_rows(tmp_path)
    assert (first.basis, first.tokens, second.status) == (Basis.NONE, 0, 200)


def test_a_hold_that_must_not_wait_is_refused_promptly(up: FaultUpstream, tmp_path: Path) -> None:
    settings = SettingsDoc(hold_wait_s=0)
    with GatewayServer(
        tmp_path, providers=[provider(1, up.url)], routes=[route(1)], capacity=1000, settings=settings
    ) as server:
        assert post(server, body(max_tokens=500)).status_code == 200
        begin = time.monotonic()
        assert_error(post(server, body(max_tokens=5000)), 429, "insufficient_quota")
        assert time.monotonic() - begin < 1


@pytest.mark.usefixtures("binding")
def test_a_models_name_is_unquoted_once(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        for quoted, name in (("foo%25bar", "foo%bar"), ("a%2541", "a%41"), ("a%2Fb", "a/b"), ("%2525", "%25")):
            reply = httpx.get(f"{server.url}/v1/models/{quoted}", headers={"x-api-key": KEY})
            assert reply.json()["id"] == name


@pytest.mark.usefixtures("binding")
def test_answers_name_the_audit_logs_last_checkpoint_where_that_is_wanted(up: FaultUpstream, tmp_path: Path) -> None:
    for wanted in (False, True):
        settings = SettingsDoc(audit_header=wanted)
        directory = tmp_path / str(wanted)
        directory.mkdir()
        with GatewayServer(directory, providers=[provider(1, up.url)], routes=[route(1)], settings=settings) as server:
            assert "x-hoosh-audit" not in post(server, body()).headers  # there is none yet
            server.runtime.on_audit("12:00ff")
            assert post(server, body()).headers.get("x-hoosh-audit") == ("12:00ff" if wanted else None)
            refused = post(server, b"{")
            assert refused.status_code == 400
            assert refused.headers.get("x-hoosh-audit") == ("12:00ff" if wanted else None)
