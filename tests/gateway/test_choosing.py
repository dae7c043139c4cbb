"""Strategies, needs, tags, sticky conversations, credentials and explanations, through a worker and real sockets."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from budgets.records import PriceRecord
from providers.config import CardDoc, CredentialDoc, PolicyDoc, SettingsDoc
from providers.vault import Vault
from tests.gateway.harness import KEY, OTHER_KEY, GatewayServer, key_record, provider, route, usage_rows
from tests.upstream import FaultUpstream

CHAT = "/v1/chat/completions"
PNG = "data:image/png;base64,iVBORw0KGgo="
SEES = {"content": [{"type": "image_url", "image_url": {"url": PNG}}, {"type": "text", "text": "what is it"}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def up() -> Iterator[FaultUpstream]:
    with FaultUpstream() as server:
        yield server


def body(model: str = "m", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "one two three"}], "max_tokens": 2, **more}


def post(server: GatewayServer, payload: Any, path: str = CHAT, *, key: str = KEY, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(
        server.url + path,
        json=payload,
        headers={"authorization": f"Bearer {key}", **named},
        timeout=20,
        trust_env=False,
    )


def routed(server: GatewayServer, payload: Any, **headers: str) -> str:
    reply = post(server, payload, **headers)
    assert reply.status_code == 200, reply.text
    return reply.headers["x-hoosh-route"]


def decision(reply: httpx.Response) -> Any:
    return json.loads(reply.headers["x-hoosh-decision"])


def world(directory: Path, up: FaultUpstream, strategy: str, *routes: Any, **more: Any) -> GatewayServer:
    """One provider for each route, all of them the same upstream."""
    policies = [PolicyDoc(id=1, name="mine", pattern="*", strategy=strategy, **more.pop("policy", {}))]
    providers = [provider(each.provider_id, up.url) for each in routes]
    return GatewayServer(directory, providers=providers, routes=routes, policies=policies, **more)


def to(number: int, model: str = "ok", **more: Any) -> Any:
    return route(number, "m", number, upstream_model=model, **more)


def test_weights_share_the_requests(up: FaultUpstream, tmp_path: Path) -> None:
    with world(tmp_path, up, "weighted", to(1, weight=3), to(2, weight=1), to(3, weight=0)) as server:
        counts = Counter(routed(server, body()) for _ in range(120))
    assert counts["r3"] == 0
    assert counts["r2"] > 8
    assert counts["r1"] > counts["r2"]


def test_direct_has_no_second_choice(up: FaultUpstream, tmp_path: Path) -> None:
    with world(tmp_path, up, "direct", to(1, "boom-500", priority=1), to(2, priority=2)) as server:
        reply = post(server, body(), x_hoosh_explain="1")
        assert reply.status_code == 502
        assert decision(reply)["rejected"] == [{"route": "r2", "reason": "direct: only the first is asked"}]
    assert len(up.inference) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_fastest_of_late_is_asked_once_all_were_tried(up: FaultUpstream, tmp_path: Path, stream: bool) -> None:
    with world(tmp_path, up, "lowest_latency", to(1, "first-300ms"), to(2), to(3, "first-150ms")) as server:
        asked = [routed(server, body(stream=stream)) for _ in range(6)]
        told = decision(post(server, body(stream=stream), x_hoosh_explain="1"))
        other = decision(post(server, body(stream=not stream), x_hoosh_explain="1"))
    assert sorted(asked[:3]) == ["r1", "r2", "r3"]
    assert asked[3:] == ["r2"] * 3
    assert [each["route"] for each in told["candidates"]] == ["r2", "r3", "r1"]
    assert all(each["score"].endswith(" ms") for each in told["candidates"])
    assert {each["score"] for each in other["candidates"]} == {"unexplored"}, "streams and whole answers are two things"


def test_of_one_that_nothing_is_known_of_one_answer_is_awaited_first(up: FaultUpstream, tmp_path: Path) -> None:
    with world(tmp_path, up, "lowest_latency", to(1), to(2, "first-300ms", priority=99)) as server:
        assert routed(server, body()) == "r1"
        slow = threading.Thread(target=routed, args=(server, body()))
        slow.start()
        time.sleep(0.1)
        assert [routed(server, body()) for _ in range(3)] == ["r1"] * 3
        slow.join()
        assert {row.route_id for row in usage_rows(tmp_path)} == {1, 2}


def test_the_least_busy_is_asked(up: FaultUpstream, tmp_path: Path) -> None:
    with world(tmp_path, up, "least_busy", to(1, "first-300ms", priority=1), to(2, priority=2)) as server:
        threads = [threading.Thread(target=post, args=(server, body())) for _ in range(1)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        reply = post(server, body(), x_hoosh_explain="1")
        assert reply.headers["x-hoosh-route"] == "r2"
        assert decision(reply)["candidates"][0]["score"] == "0 under way"
        for thread in threads:
            thread.join()
        assert routed(server, body()) == "r1", "when nobody is busy, the order counts"


def test_the_cheapest_for_the_request_is_asked(up: FaultUpstream, tmp_path: Path) -> None:
    prices = [
        PriceRecord(1, "up1", "*", input=1_000_000, output=50_000_000),  # cheap to ask, dear to answer
        PriceRecord(2, "up2", "*", input=9_000_000, output=1_000_000),
        PriceRecord(3, "up3", "*", input=90_000_000, output=90_000_000),
    ]
    routes = [to(1), to(2), to(3), to(4)]
    with world(tmp_path, up, "least_cost", *routes, prices=prices) as server:
        reply = post(server, body(max_tokens=5000), x_hoosh_explain="1")
        assert [each["route"] for each in decision(reply)["candidates"]] == ["r2", "r1", "r3", "r4"]
        assert decision(reply)["candidates"][3]["score"] == "no price known"
        long = [{"role": "user", "content": "x" * 20_000}]
        assert routed(server, body(max_tokens=1, messages=long)) == "r1"


def test_a_conversation_stays_where_it_is(up: FaultUpstream, tmp_path: Path) -> None:
    routes = [to(number, sticky=True) for number in (1, 2, 3)]
    with world(tmp_path, up, "round_robin", *routes) as server:

        def talk(start: str, turns: int, key: str = KEY, **headers: str) -> set[str]:
            said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": start}]
            seen = set()
            for _ in range(turns):
                reply = post(server, body(messages=said), key=key, **headers)
                seen.add(reply.headers["x-hoosh-route"])
                said += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "and then?"}]
            return seen

        each = [talk(f"story {number}", 4) for number in range(12)]
        assert all(len(seen) == 1 for seen in each)
        assert len(set.union(*each)) == 3, "different conversations are spread"
        by_session = [talk(f"any {number}", 1, x_hoosh_session="s-1") for number in range(6)]
        assert len(set.union(*by_session)) == 1
        by_key = {
            post(server, body(prompt_cache_key="k"), x_hoosh_explain="1").headers["x-hoosh-route"] for _ in "1234"
        }
        assert len(by_key) == 1
        told = decision(post(server, body(), x_hoosh_explain="1"))
        assert {one["score"] for one in told["candidates"]} == {"sticky"}


def test_pictures_never_go_to_a_model_without_eyes(up: FaultUpstream, tmp_path: Path) -> None:
    cards = [CardDoc("blind", capabilities=("tools",)), CardDoc("sees", capabilities=("vision", "tools"))]
    routes = [to(1, "blind", priority=1), to(2, "sees", priority=2)]
    with world(tmp_path, up, "priority", *routes, cards=cards) as server:
        assert routed(server, body()) == "r1"
        reply = post(server, body(messages=[{"role": "user", **SEES}]), x_hoosh_explain="1")
        assert reply.headers["x-hoosh-route"] == "r2"
        assert {"route": "r1", "reason": "does not take images"} in decision(reply)["rejected"]
    with world(tmp_path / "b", up, "priority", to(1, "blind"), cards=cards) as server:
        reply = post(server, body(messages=[{"role": "user", **SEES}]))
        assert reply.status_code == 400
        assert reply.json()["error"]["code"] == "no_suitable_route"
        assert "does not take images" in reply.json()["error"]["message"]


def test_tools_go_to_a_model_that_knows_them_and_to_another_only_where_there_is_none(
    up: FaultUpstream, tmp_path: Path
) -> None:
    cards = [CardDoc("plain", capabilities=("vision",)), CardDoc("able", capabilities=("tools", "json_schema"))]
    routes = [to(1, "plain", priority=1), to(2, "able", priority=2)]
    shape = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    with world(tmp_path, up, "priority", *routes, cards=cards) as server:
        assert routed(server, body(tools=[TOOL])) == "r2"
        assert routed(server, body(response_format=shape)) == "r2"
        assert routed(server, body(tools=[])) == "r1"
        assert routed(server, body(response_format={"type": "json_object"})) == "r1"
    with world(tmp_path / "b", up, "priority", to(1, "plain"), cards=cards) as server:
        assert routed(server, body(tools=[TOOL])) == "r1"


def test_tags_choose_among_the_routes(up: FaultUpstream, tmp_path: Path) -> None:
    routes = [to(1, tags=("us",), priority=1), to(2, tags=("eu", "fast"), priority=2)]
    with world(tmp_path, up, "priority", *routes) as server:
        assert routed(server, body(), x_hoosh_tags="eu, fast") == "r2"
        assert routed(server, body(), x_hoosh_tags="us") == "r1"
        refused = post(server, body(), x_hoosh_tags="eu,slow")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_suitable_route")
        assert post(server, body(), x_hoosh_tags=",".join("abcdefghi")).status_code == 400
    with world(tmp_path / "b", up, "priority", *routes, policy={"tags": ("fast",)}) as server:
        assert routed(server, body()) == "r2"


def with_credentials(directory: Path, up: FaultUpstream, *secrets: str, **more: Any) -> GatewayServer:
    directory.mkdir(exist_ok=True)
    (directory / "vault.key").write_bytes(Vault.new_key() + b"\n")
    (directory / "vault.key").chmod(0o600)
    docs = tuple(CredentialDoc(id=n, name=f"c{n}", revision=1) for n in range(1, len(secrets) + 1))
    providers = [provider(1, up.url, credentials=docs), provider(2, up.url)]
    server = GatewayServer(directory, providers=providers, routes=[to(1, priority=1), to(2, priority=2)], **more)
    server.__enter__()
    vault = Vault.load(directory / "vault.key")
    sealed = {n: vault.seal(secret, up.url) for n, secret in enumerate(secrets, 1)}
    server.call(server.runtime.on_secrets, sealed)
    server.reconfigure(server.document)
    return server


def credentials_of(up: FaultUpstream) -> list[str]:
    return [sent.headers.get("authorization", "") for sent in up.inference]


def test_credentials_take_turns_and_one_that_is_limited_rests(up: FaultUpstream, tmp_path: Path) -> None:
    server = with_credentials(tmp_path, up, "one", "two", "three")
    try:
        for _ in range(6):
            assert routed(server, body()) == "r1"
        assert Counter(credentials_of(up)) == {f"Bearer {name}": 2 for name in ("one", "two", "three")}
        up.requests.clear()
        up.script("rate-limit")  # Retry-After: 7
        reply = post(server, body(), x_hoosh_explain="1")
        assert reply.headers["x-hoosh-route"] == "r1", "the next credential of the same provider"
        (failed,) = decision(reply)["attempts"]
        assert (failed["route"], failed["status"]) == ("r1", 429)
        limited = credentials_of(up)[0]
        up.requests.clear()
        for _ in range(6):
            assert routed(server, body()) == "r1"
        others = {f"Bearer {name}" for name in ("one", "two", "three")} - {limited}
        assert Counter(credentials_of(up)) == dict.fromkeys(others, 3), "also the one behind the gap has one turn"
        up.script("rate-limit", "rate-limit")
        assert routed(server, body()) == "r2", "when all of them are limited, the next candidate"
        rows = usage_rows(tmp_path)
        assert [row.attempt for row in rows[-3:]] == [0, 1, 2]
    finally:
        server.__exit__()


def test_a_refused_credential_is_followed_by_the_next(up: FaultUpstream, tmp_path: Path) -> None:
    server = with_credentials(tmp_path, up, "one", "two")
    try:
        up.script("unauthorized")
        assert routed(server, body()) == "r1"
        assert len(set(credentials_of(up))) == 2
    finally:
        server.__exit__()


def test_further_calls_are_bounded_when_everything_fails(up: FaultUpstream, tmp_path: Path) -> None:
    settings = SettingsDoc(breaker_failures=10**6, retry_percent=0)
    routes = [to(1, "boom-500"), to(2, "boom-503")]
    with world(tmp_path, up, "priority", *routes, settings=settings) as server:
        for _ in range(60):
            assert post(server, body()).status_code == 502
    windows = 3  # the longest it can take
    assert 60 + 5 <= len(up.inference) <= 60 + 5 * windows


def test_when_everything_fails_a_fifth_more_is_called_and_no_more(up: FaultUpstream, tmp_path: Path) -> None:
    settings = SettingsDoc(breaker_failures=10**6)
    routes = [to(1, "boom-500"), to(2, "boom-503"), to(3, "boom-500")]
    with world(tmp_path, up, "priority", *routes, settings=settings) as server:
        for _ in range(200):
            assert post(server, body()).status_code == 502
    assert 200 * 1.1 < len(up.inference) <= 200 * 1.2


def test_a_candidate_that_is_passed_over_is_no_further_call(up: FaultUpstream, tmp_path: Path) -> None:
    settings = SettingsDoc(breaker_failures=10**6, retry_percent=0)
    limited = to(2, priority=2, requests_per_minute=1)
    routes = [to(1, "boom-500", priority=1), limited, to(3, priority=3)]
    with world(tmp_path, up, "priority", *routes, settings=settings) as server:
        assert [routed(server, body()) for _ in range(25)] == ["r2", *["r3"] * 24]


# --- explanations -----------------------------------------------------------------------------------------------------

EXPLAIN = "/v1/route/explain"


def test_where_a_request_would_go_is_told_without_calling_anyone(up: FaultUpstream, tmp_path: Path) -> None:
    prices = [PriceRecord(1, "up1", "*", input=2_000_000, output=4_000_000, request=500_000)]
    routes = [to(1, priority=1), to(2, priority=2, output_cap=3), route(3, "m", 1, enabled=False)]
    with world(tmp_path, up, "priority", *routes, prices=prices) as server:
        reply = post(server, body(max_tokens=10), EXPLAIN)
        assert reply.status_code == 200
        told = reply.json()
        assert (told["object"], told["model"], told["strategy"], told["policy"]) == (
            *("route.explanation", "m", "priority", "mine"),
        )
        first, second = told["candidates"]
        assert (first["route"], first["provider"], first["model"], first["reason"]) == ("r1", "up1", "ok", "priority 1")
        hold = first["hold"]
        assert hold["output_tokens"] == 10
        assert hold["input_tokens"] >= 3
        usd = (hold["input_tokens"] * 2_000_000 + 10 * 4_000_000 + 500_000) / 1e12
        assert float(hold["usd"]) == pytest.approx(usd)
        assert second["hold"] == {"input_tokens": hold["input_tokens"], "output_tokens": 3, "usd": None}
        assert told["rejected"] == [{"route": "r3", "reason": "route disabled"}]
        assert told["refusal"] is None
        only = post(server, {"model": "m"}, EXPLAIN).json()
        assert [each["route"] for each in only["candidates"]] == ["r1", "r2"]
        asked = {"path": "/v1/messages", "model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
        assert post(server, asked, EXPLAIN).json()["candidates"][0]["hold"]["output_tokens"] == 5
    assert up.inference == []
    assert usage_rows(tmp_path) == []


def test_what_would_be_refused_is_told_as_such(up: FaultUpstream, tmp_path: Path) -> None:
    cards = [CardDoc("blind", capabilities=("tools",))]
    with world(tmp_path, up, "priority", to(1, "blind"), cards=cards) as server:
        told = post(server, body(messages=[{"role": "user", **SEES}]), EXPLAIN).json()
        assert (told["refusal"]["code"], told["candidates"]) == ("no_suitable_route", [])
        assert told["rejected"] == [{"route": "r1", "reason": "does not take images"}]
        told = post(server, body("nobody"), EXPLAIN).json()
        assert (told["refusal"]["status"], told["refusal"]["code"]) == (404, "model_not_found")
        told = post(server, body(max_tokens=-1), EXPLAIN).json()
        assert (told["refusal"]["status"], told["refusal"]["param"]) == (400, "max_tokens")


def test_wrong_questions_are_refused(up: FaultUpstream, tmp_path: Path) -> None:
    with world(tmp_path, up, "priority", to(1)) as server:
        assert post(server, {"model": "m", "path": "/v1/nothing"}, EXPLAIN).status_code == 400
        assert post(server, [1], EXPLAIN).status_code == 400
        assert post(server, {"model": "m"}, EXPLAIN, key="hk-wrong").status_code == 401
        assert httpx.post(server.url + EXPLAIN, json={"model": "m"}).status_code == 401
        assert httpx.get(server.url + EXPLAIN).status_code == 405
        twice = b'{"model": "m", "model": "n"}'
        reply = httpx.post(server.url + EXPLAIN, content=twice, headers={"authorization": f"Bearer {OTHER_KEY}"})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "model")
        nested = "[" * 100_000
        reply = httpx.post(server.url + EXPLAIN, content=nested, headers={"authorization": f"Bearer {OTHER_KEY}"})
        assert reply.status_code == 400


def test_the_decision_is_told_in_a_header_only_on_request(up: FaultUpstream, tmp_path: Path) -> None:
    with world(tmp_path, up, "priority", to(1, "boom-500", priority=1), to(2, priority=2)) as server:
        assert "x-hoosh-decision" not in post(server, body()).headers
        for stream in (False, True):
            told = decision(post(server, body(stream=stream), x_hoosh_explain="1"))
            assert told["answered"] == "r2"
            assert told["attempts"] == [{"route": "r1", "status": 502, "error": "upstream_error"}]
            assert [each["route"] for each in told["candidates"]] == ["r1", "r2"]


def test_a_question_takes_nobodys_turn(up: FaultUpstream, tmp_path: Path) -> None:
    with world(tmp_path, up, "round_robin", to(1), to(2), to(3)) as server:
        for expected in ("r1", "r2", "r3", "r1"):
            for _ in range(2):
                assert post(server, body(), EXPLAIN).json()["candidates"][0]["route"] == expected
            assert routed(server, body()) == expected


def test_a_key_learns_nothing_of_the_routes_of_a_model_it_may_not_use(up: FaultUpstream, tmp_path: Path) -> None:
    keys = [key_record(1, KEY, models=("other",)), key_record(2, OTHER_KEY)]
    with world(tmp_path, up, "priority", to(1, enabled=False), keys=keys) as server:
        told = post(server, body(), EXPLAIN, key=OTHER_KEY).json()
        assert told["rejected"] == [{"route": "r1", "reason": "route disabled"}]
        told = post(server, body(), EXPLAIN).json()
        assert (told["rejected"], told["refusal"]["code"]) == ([], "model_not_found")
