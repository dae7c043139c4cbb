"""Money on the request path: what is held, what is charged, what has no price, and how limits follow what is left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from budgets.records import PRICE_FREE, PRICE_UNKNOWN, Basis, PoolRecord, PriceRecord
from gateway.holding import usd
from providers.config import CardDoc, SettingsDoc
from tests.gateway.harness import (
    KEY,
    OTHER_KEY,
    Bank,
    GatewayServer,
    canned,
    held,
    hold_records,
    key_record,
    provider,
    route,
    usage_rows,
)
from tests.upstream import FaultUpstream

CHAT = "/v1/chat/completions"
INPUT, OUTPUT = 2_000_000, 10_000_000  # pico-USD: 2 and 10 USD per million tokens
PRICE = PriceRecord(id=5, provider="*", pattern="*", input=INPUT, output=OUTPUT, cached_read=INPUT // 2)
MONEY = PoolRecord(id=1, name="money", units=(1,))


@pytest.fixture
def up() -> Iterator[FaultUpstream]:
    with FaultUpstream() as server:
        yield server


def start(up: FaultUpstream, directory: Path, **more: Any) -> GatewayServer:
    options: dict[str, Any] = {
        "providers": [provider(1, up.url)],
        "routes": [route(1)],
        "pools": [MONEY],
        "keys": [key_record(1, KEY)],
        "prices": [PRICE],
        "settings": SettingsDoc(hold_wait_s=0.2),
    }
    return GatewayServer(directory, **(options | more))


def payload(model: str = "ok", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "one two three"}], **more}


def post(server: GatewayServer, body: dict[str, Any], key: str = KEY) -> httpx.Response:
    return httpx.post(server.url + CHAT, json=body, headers={"x-api-key": key}, timeout=20)


def code_of(reply: httpx.Response) -> tuple[int, str | None]:
    return reply.status_code, reply.json().get("error", {}).get("code")


def input_bound(body: dict[str, Any]) -> int:
    return len(json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()) + 16


def test_the_dearest_tokens_are_held_and_the_real_cost_is_charged(up: FaultUpstream, tmp_path: Path) -> None:
    body = payload(max_tokens=4)
    with start(up, tmp_path) as server:
        assert post(server, body).status_code == 200
        (hold,), (row,) = hold_records(tmp_path), usage_rows(tmp_path)
        (purse,) = server.runtime.desk.status()
    assert (hold.price_id, hold.input_pico, hold.output_pico, hold.request_pico) == (5, INPUT, OUTPUT, 0)
    assert hold.draws[1].held == hold.input_bound * INPUT + 4 * OUTPUT
    assert row.cost_pico == 3 * INPUT + 4 * OUTPUT
    assert (row.price_id, purse["unit"], purse["used"], purse["held"]) == (5, 1, row.cost_pico, 0)


def test_every_class_of_tokens_has_its_price_and_its_column(up: FaultUpstream, tmp_path: Path) -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "total_tokens": 150,
        "prompt_tokens_details": {"cached_tokens": 10, "audio_tokens": 20, "image_tokens": 30},
        "completion_tokens_details": {"reasoning_tokens": 5, "audio_tokens": 15},
    }
    answer = {"id": "x", "object": "chat.completion", "choices": [{"message": {"content": "hi"}}], "usage": usage}
    price = PriceRecord(
        id=6,
        provider="*",
        pattern="*",
        input=1_000,
        cached_read=100,
        input_audio=3_000,
        input_image=2_000,
        output=10_000,
        reasoning=20_000,
        output_audio=50_000,
        request=7,
    )
    with canned(200, json.dumps(answer).encode()) as url, start(up, tmp_path, prices=[price]) as server:
        server.reconfigure(type(server.document)(providers=(provider(1, url),), routes=(route(1),)))
        assert post(server, payload(max_tokens=60)).status_code == 200
        (row,), (hold,) = usage_rows(tmp_path), hold_records(tmp_path)
    assert (row.cached_tokens, row.input_audio_tokens, row.input_image_tokens) == (10, 20, 30)
    assert (row.reasoning_tokens, row.output_audio_tokens) == (5, 15)
    assert row.cost_pico == 7 + 10 * 100 + 20 * 3_000 + 30 * 2_000 + 40 * 1_000 + 5 * 20_000 + 15 * 50_000 + 30 * 10_000
    assert (hold.input_pico, hold.output_pico, hold.request_pico) == (3_000, 50_000, 7)


def test_a_refusal_for_money_says_so_in_dollars(up: FaultUpstream, tmp_path: Path) -> None:
    with start(up, tmp_path, capacity_pico=5 * 10**9) as server:  # half a cent
        reply = post(server, payload(max_tokens=1_000))
        assert code_of(reply) == (429, "insufficient_quota")
        assert reply.headers["x-hoosh-usd-available"] == "0.005"
        needed = reply.headers["x-hoosh-usd-needed"]
        assert 0.01 < float(needed) < 0.02
        assert f"'money' has 0.005 USD left, this request may need up to {needed} USD" in reply.text
        assert "x-hoosh-tokens-needed" not in reply.headers
        assert held(server) == 0


@pytest.mark.parametrize(
    ("pico", "text"),
    [(0, "0"), (1, "0.000000000001"), (10**12, "1"), (1_500_000_000_000, "1.5"), (12_345 * 10**12, "12345")],
)
def test_dollars_are_written_exactly(pico: int, text: str) -> None:
    assert usd(pico) == text


def test_without_a_price_the_operators_choice_decides(up: FaultUpstream, tmp_path: Path) -> None:
    with start(up, tmp_path / "a", prices=[]) as server:
        reply = post(server, payload())
        assert code_of(reply) == (403, "price_unknown")
        assert (reply.json()["error"]["param"], "'up1'" in reply.text) == ("model", True)
        assert held(server) == 0
    assert up.inference == []
    settings = SettingsDoc(unknown_price="observe")
    with start(up, tmp_path / "b", prices=[], settings=settings) as server:
        assert post(server, payload()).status_code == 200
        (row,), (hold,) = usage_rows(tmp_path / "b"), hold_records(tmp_path / "b")
    assert (row.price_id, row.cost_pico, hold.price_id, hold.draws[1].held) == (PRICE_UNKNOWN, 0, PRICE_UNKNOWN, 0)
    tokens_only = [PoolRecord(id=1, name="tokens")]
    with start(up, tmp_path / "c", prices=[], pools=tokens_only) as server:
        assert post(server, payload()).status_code == 200


def test_a_candidate_without_a_price_is_passed_over_for_one_that_has_one(up: FaultUpstream, tmp_path: Path) -> None:
    priced = PriceRecord(id=8, provider="up2", pattern="*", input=INPUT, output=OUTPUT)
    with start(
        up,
        tmp_path,
        providers=[provider(1, up.url), provider(2, up.url)],
        routes=[route(1, priority=1), route(2, provider_id=2, priority=2)],
        prices=[priced],
    ) as server:
        assert post(server, payload()).headers["x-hoosh-route"] == "r2"
        (row,) = usage_rows(tmp_path)
        assert (row.price_id, row.attempt) == (8, 0)
        failing = post(server, payload("boom-500"))
        assert code_of(failing)[0] == 502, "what the provider said counts, not that another has no price"


def test_a_local_provider_is_free_unless_it_is_priced(up: FaultUpstream, tmp_path: Path) -> None:
    local = provider(1, up.url, kind="vllm")
    with start(up, tmp_path / "a", providers=[local], prices=[], capacity_pico=0) as server:
        assert post(server, payload()).status_code == 200, "no money is needed, and none is there"
        (row,) = usage_rows(tmp_path / "a")
    assert (row.price_id, row.cost_pico) == (PRICE_FREE, 0)
    with start(up, tmp_path / "b", providers=[local]) as server:
        assert post(server, payload()).status_code == 200
        (row,) = usage_rows(tmp_path / "b")
    assert (row.price_id, row.cost_pico > 0) == (5, True)


@pytest.mark.parametrize(("kind", "none"), [("vllm", PRICE_FREE), ("custom", PRICE_UNKNOWN)])
def test_a_price_for_long_requests_only_is_held_where_short_ones_may_go_without(
    up: FaultUpstream, tmp_path: Path, kind: str, none: int
) -> None:
    some = [provider(1, up.url, kind=kind)]
    settings = SettingsDoc(unknown_price="observe")
    for name, tokens, price_id, cost in (("a", 2, 7, 3 * INPUT + 4 * OUTPUT), ("b", 50, none, 0)):
        prices = [PriceRecord(id=7, provider="*", pattern="*", input=INPUT, output=OUTPUT, from_tokens=tokens)]
        with start(up, tmp_path / name, providers=some, prices=prices, settings=settings) as server:
            assert post(server, payload(max_tokens=4)).status_code == 200
            (row,), (hold,) = usage_rows(tmp_path / name), hold_records(tmp_path / name)
        assert (row.price_id, row.cost_pico) == (price_id, cost)
        assert hold.draws[1].held == hold.input_bound * INPUT + 4 * OUTPUT, "never less than it may cost"
    with start(up, tmp_path / "c", prices=prices) as server:
        assert code_of(post(server, payload())) == (403, "price_unknown"), "a short one would have no price"


SEARCH: dict[str, Any] = {"web_search_options": {}}


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("more", [{"service_tier": "priority"}, {"service_tier": ["x"]}, {"service_tier": 1}, SEARCH])
def test_what_costs_more_than_the_prices_say_is_refused_where_money_is_limited(
    up: FaultUpstream, tmp_path: Path, mode: str, more: dict[str, Any]
) -> None:
    (field,) = more
    pools = [PoolRecord(id=1, name="money", units=(1,), mode=mode), PoolRecord(id=2, name="tokens")]
    keys = [key_record(1, KEY), key_record(2, OTHER_KEY, pool_id=2)]
    with start(up, tmp_path, pools=pools, keys=keys) as server:
        reply = post(server, payload(**more))
        assert (*code_of(reply), reply.json()["error"]["param"]) == (400, "invalid_request", field)
        assert ("limits money" if more is not SEARCH else "has a limit") in reply.text
        assert held(server) == 0
        spelled = post(server, payload(**{field.title(): more[field]}))
        assert (*code_of(spelled), up.inference) == (400, "invalid_request", [])
        other = post(server, payload(**more), OTHER_KEY)
        if more is SEARCH:  # what a search reads is input that no bound covers
            assert (*code_of(other), up.inference) == (400, "invalid_request", [])
        else:
            assert other.status_code == 200
            assert up.inference[-1].json[field] == more[field]
        for tier in (None, "auto", "default", "flex", "standard_only"):
            assert post(server, payload(service_tier=tier, web_search_options=None)).status_code == 200


def test_a_routes_own_price_and_a_dearer_tier_are_used(up: FaultUpstream, tmp_path: Path) -> None:
    prices = [
        PRICE,
        PriceRecord(id=20, provider="*", pattern="*", route="r1", input=1, output=2),
        PriceRecord(id=21, provider="*", pattern="*", route="r1", from_tokens=50, input=10, output=20),
    ]
    with start(up, tmp_path, prices=prices) as server:
        assert post(server, payload(max_tokens=4)).status_code == 200
        (row,), (hold,) = usage_rows(tmp_path), hold_records(tmp_path)
    assert (row.price_id, row.cost_pico) == (20, 3 * 1 + 4 * 2)
    assert (hold.price_id, hold.input_pico, hold.output_pico) == (21, 10, 20), "the bound may reach the tier"


def test_an_absent_limit_is_a_quarter_of_what_the_money_left_buys(up: FaultUpstream, tmp_path: Path) -> None:
    cards = [CardDoc(pattern="*", max_output_tokens=6_000)]
    for name, tokens in (("a", 20_000), ("b", 100_000), ("c", 3_000)):
        with start(up, tmp_path / name, cards=cards, capacity_pico=tokens * OUTPUT) as server:
            assert post(server, payload("ok", max_tokens=1)).status_code == 200  # now it is known what there is
            left = (tokens * OUTPUT - usage_rows(tmp_path / name)[0].cost_pico) // OUTPUT
            assert post(server, payload()).status_code == 200
            assert up.inference[-1].json["max_tokens"] == min(6_000, max(1_024, left // 4))


SHORT = PoolRecord(id=1, name="short", units=(0, 1), shorten=True)


def test_an_answer_is_shortened_to_what_the_pool_has_left_where_that_is_allowed(
    up: FaultUpstream, tmp_path: Path
) -> None:
    body = payload(max_tokens=5_000)
    bound = input_bound(body)
    with start(up, tmp_path, pools=[SHORT], capacity=bound + 700) as server:
        reply = post(server, body)
        assert reply.status_code == 200
        assert reply.headers["x-hoosh-output-limit"] == "700"
        assert up.inference[-1].json["max_tokens"] == 700
        (row,) = usage_rows(tmp_path)
        assert row.held == bound + 700
        assert "x-hoosh-output-limit" not in post(server, payload(max_tokens=3)).headers


def test_money_and_choices_count_when_an_answer_is_shortened(up: FaultUpstream, tmp_path: Path) -> None:
    body = payload(max_tokens=5_000, n=2)
    capacity = input_bound(body) * INPUT + 2 * 400 * OUTPUT
    with start(up, tmp_path, pools=[SHORT], capacity_pico=capacity) as server:
        reply = post(server, body)
        assert (reply.status_code, reply.headers["x-hoosh-output-limit"]) == (200, "400")


@pytest.mark.parametrize(
    ("room", "more", "pool"),
    [
        (255, {}, SHORT),
        (700, {"tools": []}, SHORT),
        (700, {"response_format": {"type": "json_object"}}, SHORT),
        (700, {"guided_json": {}}, SHORT),
        (700, {}, PoolRecord(id=1, name="plain")),
    ],
)
def test_what_must_not_be_shortened_is_refused(
    up: FaultUpstream, tmp_path: Path, room: int, more: dict[str, Any], pool: PoolRecord
) -> None:
    body = payload(max_tokens=5_000, **more)
    with start(up, tmp_path, pools=[pool], capacity=input_bound(body) + room) as server:
        assert code_of(post(server, body)) == (429, "insufficient_quota")
        assert held(server) == 0
    assert up.inference == []


def test_a_pool_that_does_not_shorten_is_not_overruled_by_one_that_does(up: FaultUpstream, tmp_path: Path) -> None:
    body = payload(max_tokens=5_000)
    room = input_bound(body) + 700
    pools = [SHORT, PoolRecord(id=2, name="plain")]
    keys = [key_record(1, KEY, budget_ids=(2,))]
    for name, short, plain, status in (("a", room, 10**6, 200), ("b", 10**6, room, 429), ("c", room, room, 429)):
        bank = Bank({(1, 0): short, (1, 1): 10**15, (2, 0): plain})
        with start(up, tmp_path / name, pools=pools, keys=keys, bank=bank) as server:
            assert post(server, body).status_code == status, name


@pytest.mark.parametrize(("reported", "expected"), [(2, (9, Basis.ESTIMATED)), (40, (40, Basis.REPORTED))])
def test_a_provider_that_reports_less_than_was_delivered_is_not_believed(
    up: FaultUpstream, tmp_path: Path, reported: int, expected: tuple[int, Basis]
) -> None:
    chunk = '{"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"w "}}]}'
    usage = (
        '{"id":"x","object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":%d}}'
    )
    events = [chunk] * 9 + [usage % reported, "[DONE]"]
    data = "".join(f"data: {event}\n\n" for event in events).encode()
    with (
        canned(200, data, kind="text/event-stream") as url,
        start(up, tmp_path, providers=[provider(1, url)]) as server,
    ):
        assert post(server, payload(stream=True, max_tokens=50)).status_code == 200
        (row,) = usage_rows(tmp_path)
    assert (row.output_tokens, row.basis, row.cost_pico) == (*expected, 3 * INPUT + expected[0] * OUTPUT)


def test_an_overrun_is_charged_in_full_to_every_purse(up: FaultUpstream, tmp_path: Path) -> None:
    pools = [PoolRecord(id=1, name="both", units=(0, 1))]
    with start(up, tmp_path, pools=pools) as server:
        assert post(server, payload("big-usage", max_tokens=200)).status_code == 200
        (row,) = usage_rows(tmp_path)
        used = {entry["unit"]: entry["used"] for entry in server.runtime.desk.status()}
    assert row.tokens > row.held
    assert used == {0: row.tokens, 1: row.cost_pico}
    assert row.cost_pico > row.draws[1].held


def test_the_demo_provider_costs_nothing(up: FaultUpstream, tmp_path: Path) -> None:
    demo = provider(1, "demo://local", kind="demo")
    with start(up, tmp_path, providers=[demo], prices=[], capacity_pico=0) as server:
        assert post(server, payload("demo", max_tokens=5)).status_code == 200
        (row,) = usage_rows(tmp_path)
    assert (row.price_id, row.cost_pico) == (PRICE_FREE, 0)
