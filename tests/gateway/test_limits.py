"""Rate limits through a whole worker: what counts for whom, what a refusal says, that everything is given back."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from cryptography.fernet import Fernet

from budgets.records import KeyRecord, Limited
from gateway import limiting
from gateway.errors import BudgetExceededError, GatewayError, PriceUnknownError, RateLimitedError
from gateway.limits.limiter import LIMIT_MAX
from gateway.limits.status import SlotStatus, read_status
from tests.gateway.harness import (
    KEY,
    OTHER_KEY,
    GatewayServer,
    canned,
    held,
    hold_records,
    key_record,
    provider,
    route,
    usage_rows,
    wait_for,
)
from tests.gateway.test_idempotent_requests import Memory
from tests.upstream import FaultUpstream

CHAT = "/v1/chat/completions"
RATE_HEADERS = [f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")]
ONCE: Limited = (1, 0, 0)  # one request a minute
ALONE: Limited = (0, 0, 1)  # one request at a time

pytestmark = pytest.mark.usefixtures("worker_binding")


@pytest.fixture
def up() -> Iterator[FaultUpstream]:
    with FaultUpstream() as server:
        yield server


def start(directory: Path, url: str, *, routes: Any = (), keys: Any = (), **more: Any) -> GatewayServer:
    (directory / "vault.key").write_bytes(Fernet.generate_key() + b"\n")
    (directory / "vault.key").chmod(0o600)
    keys = keys or limited_keys(**{name: more.pop(name) for name in ("key", "agent", "team") if name in more})
    providers = more.pop("providers", [provider(1, url)])
    return GatewayServer(directory, providers=providers, routes=routes or [route(1)], keys=keys, **more)


def limited_keys(key: Limited = (0, 0, 0), agent: Limited = (0, 0, 0), team: Limited = (0, 0, 0)) -> list[KeyRecord]:
    """Two keys of one agent, the first with limits of its own."""
    one = key_record(1, KEY, key_limits=key, agent_limits=agent, team_limits=team)
    other = key_record(2, OTHER_KEY, agent_limits=agent, team_limits=team)
    return [one, msgspec.structs.replace(other, agent_id=one.agent_id, team_id=one.team_id)]


def body(model: str = "ok", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "one two"}], "max_tokens": 5, **more}


def ask(server: GatewayServer, key: str = KEY, *, path: str = CHAT, **more: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body(**more), headers={"authorization": f"Bearer {key}"}, timeout=20)


def slot(directory: Path, name: str) -> SlotStatus:
    """What stands in the table of limits."""
    status = read_status(directory / "limits")
    assert status is not None
    return next(each for each in status.slots if each.name == name)


def code(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, "" if reply.is_success else str(reply.json()["error"]["code"])


SERVED, REFUSED = (200, ""), (429, "rate_limit_exceeded")


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_minutes_requests_may_come_at_once_and_then_waiting_as_told_helps(up: FaultUpstream, tmp_path: Path) -> None:
    with start(tmp_path, up.url, key=(60, 0, 0)) as server, httpx.Client(timeout=20) as client:
        headers = {"authorization": f"Bearer {KEY}"}
        began, served = time.monotonic(), 0
        while (reply := client.post(server.url + CHAT, json=body(), headers=headers)).is_success:
            served += 1
            assert reply.headers["x-ratelimit-limit-requests"] == "60"
            assert int(reply.headers["x-ratelimit-remaining-requests"]) >= 60 - served
            assert "x-ratelimit-limit-tokens" not in reply.headers
        assert 60 <= served <= 60 + int(time.monotonic() - began)
        assert code(reply) == REFUSED
        assert reply.headers["x-ratelimit-remaining-requests"] == "0"
        assert 58 < float(reply.headers["x-ratelimit-reset-requests"].removesuffix("s").replace("1m0", "60")) <= 60
        assert reply.json()["error"]["type"] == "rate_limit_error"
        assert reply.json()["error"]["message"] == "The limit of 60 requests per minute of this API key is reached."
        time.sleep(int(reply.headers["retry-after"]))
        assert client.post(server.url + CHAT, json=body(), headers=headers).is_success
        assert len(up.inference) == served + 1


@pytest.mark.parametrize(
    ("whose", "told", "others"),
    [
        ("key", "this API key", SERVED),
        ("agent", "this agent", REFUSED),
        ("team", "this team", REFUSED),
        ("provider", "the provider that answers 'ok'", REFUSED),
        ("route", "the route that answers 'ok'", REFUSED),
    ],
)
def test_each_of_them_has_a_limit_of_its_own(
    up: FaultUpstream, tmp_path: Path, whose: str, told: str, others: tuple[int, str]
) -> None:
    more: dict[str, Any] = {whose: ONCE} if whose in ("key", "agent", "team") else {}
    if whose == "provider":
        more = {"providers": [provider(1, up.url, requests_per_minute=1)]}
    elif whose == "route":
        more = {"routes": [route(1, requests_per_minute=1)]}
    with start(tmp_path, up.url, **more) as server:
        assert code(ask(server)) == SERVED
        reply = ask(server)
        assert code(reply) == REFUSED
        assert reply.json()["error"]["message"] == f"The limit of 1 requests per minute of {told} is reached."
        assert reply.headers["x-ratelimit-limit-requests"] == "1"
        assert 50 <= int(reply.headers["retry-after"]) <= 60
        assert code(ask(server, OTHER_KEY)) == others


def test_a_request_that_is_refused_costs_nothing_and_holds_nothing(up: FaultUpstream, tmp_path: Path) -> None:
    with start(tmp_path, up.url, key=(5, 0, 0), team=ONCE) as server:
        assert code(ask(server)) == SERVED
        assert [code(ask(server, stream=stream)) for stream in (False, True)] == [REFUSED, REFUSED]
        assert len(up.inference) == len(usage_rows(tmp_path)) == len(hold_records(tmp_path)) == 1
        assert held(server) == 0
        assert slot(tmp_path, "key:1").requests_remaining == 4  # the team's refusals took nothing from the key


def test_nothing_limited_means_no_headers_and_no_entry_in_the_table(up: FaultUpstream, tmp_path: Path) -> None:
    with start(tmp_path, up.url) as server:
        reply = ask(server)
        assert reply.is_success
        assert not [name for name in reply.headers if name.startswith("x-ratelimit")]
        status = read_status(tmp_path / "limits")
        assert status is not None
        assert status.slots == ()


def test_a_changed_limit_acts_on_the_next_request(up: FaultUpstream, tmp_path: Path) -> None:
    with start(tmp_path, up.url) as server:

        def change(limits: Limited) -> None:
            record = msgspec.structs.replace(server.keys[0], key_limits=limits)
            server.call(server.runtime.on_access, 2, False, [record], [])
            digest = record.digest
            wait_for(lambda: server.runtime.snapshot and server.runtime.snapshot.keys[digest].record == record)

        change(ONCE)
        assert [code(ask(server)) for _ in range(2)] == [SERVED, REFUSED]
        change((0, 0, 0))
        assert code(ask(server)) == SERVED
        limited = msgspec.structs.replace(server.document.routes[0], requests_per_minute=1)
        server.reconfigure(msgspec.structs.replace(server.document, routes=(limited,)))
        assert [code(ask(server)) for _ in range(2)] == [SERVED, REFUSED]


def test_a_limit_above_the_largest_stops_no_worker(up: FaultUpstream, tmp_path: Path) -> None:
    with start(tmp_path, up.url, key=(2**31 - 1, 2**31 - 1, 2**31 - 1)) as server:
        reply = ask(server)
        assert reply.is_success
        assert reply.headers["x-ratelimit-limit-requests"] == str(LIMIT_MAX)


# --- tokens -----------------------------------------------------------------------------------------------------------


def completion(prompt: int, output: int) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    message = {"role": "assistant", "content": "hello"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps(
        {"id": "x", "object": "chat.completion", "model": "ok", "choices": [choice], "usage": usage}
    ).encode()


def test_tokens_are_reserved_as_estimated_and_what_was_not_used_flows_back(tmp_path: Path) -> None:
    with canned(200, completion(2, 10), wait_s=2.0) as url, start(tmp_path, url, key=(0, 1000, 0)) as server:
        first: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: first.append(ask(server, max_tokens=900)))
        asking.start()
        wait_for(lambda: server.runtime.jobs and next(iter(server.runtime.jobs)).ticket)
        reserved = slot(tmp_path, "key:1").tokens_reserved
        assert 900 < reserved < 950
        during = ask(server, max_tokens=900)
        assert code(during) == REFUSED
        assert during.headers["x-ratelimit-limit-tokens"] == "1000"
        assert int(during.headers["x-ratelimit-remaining-tokens"]) < 120
        assert int(during.headers["retry-after"]) > 40
        asking.join()
        assert first[0].is_success
        assert int(first[0].headers["x-ratelimit-remaining-tokens"]) == 1000 - reserved
        left = slot(tmp_path, "key:1").tokens_remaining
        assert left is not None
        assert 988 <= left <= 1000
        assert code(ask(server, max_tokens=900)) == SERVED


def test_more_tokens_than_estimated_count_all_the_same(up: FaultUpstream, tmp_path: Path) -> None:
    with start(tmp_path, up.url, key=(0, 600, 0)) as server:
        assert code(ask(server, model="big-usage", max_tokens=90)) == SERVED  # reports ten times that
        reply = ask(server)
        assert code(reply) == REFUSED
        assert reply.headers["x-ratelimit-remaining-tokens"] == "0"
        assert 20 <= int(reply.headers["retry-after"]) <= 60


def test_calls_that_failed_count_once_each(up: FaultUpstream, tmp_path: Path) -> None:
    routes = [route(1, duplicates_allowed=True), route(2, priority=20, duplicates_allowed=True)]
    text = "word " * 400
    with start(tmp_path, up.url, key=(0, 6000, 0), routes=routes) as server:
        began = time.monotonic()
        reply = ask(server, model="refuse", messages=[{"role": "user", "content": text}])
        assert reply.status_code == 502
        used = [row.tokens for row in usage_rows(tmp_path)]
        assert len(used) == 2
        assert min(used) > 200
        left = slot(tmp_path, "key:1").tokens_remaining
        refilled = int(100 * (time.monotonic() - began)) + 1
        assert left is not None
        assert 6000 - sum(used) <= left <= 6000 - sum(used) + refilled


def test_what_the_provider_did_not_take_flows_back(up: FaultUpstream, tmp_path: Path) -> None:
    limited = [provider(1, up.url, tokens_per_minute=1000)]
    with start(tmp_path, up.url, key=(0, 1000, 0), providers=limited) as server:
        for stream in (False, True):
            assert ask(server, model="boom-400", max_tokens=900, stream=stream).status_code == 400
        assert slot(tmp_path, "provider:1").tokens_remaining == slot(tmp_path, "key:1").tokens_remaining == 1000


def test_a_request_larger_than_the_limit_is_told_that_waiting_does_not_help(up: FaultUpstream, tmp_path: Path) -> None:
    with start(tmp_path, up.url, agent=(0, 100, 0)) as server:
        reply = ask(server, max_tokens=200)
        assert code(reply) == (429, "request_too_large_for_limit")
        assert reply.headers["x-should-retry"] == "false"
        assert "retry-after" not in reply.headers
        assert reply.headers["x-ratelimit-remaining-tokens"] == "100"
        assert "100 tokens per minute of this agent" in reply.json()["error"]["message"]
        assert code(ask(server)) == SERVED


def test_a_route_expects_no_more_output_than_its_cap(up: FaultUpstream, tmp_path: Path) -> None:
    with start(tmp_path, up.url, routes=[route(1, output_cap=20, tokens_per_minute=200)]) as server:
        assert code(ask(server, max_tokens=5000)) == SERVED


# --- requests at once -------------------------------------------------------------------------------------------------


def open_stream(server: GatewayServer, model: str) -> tuple[httpx.Client, httpx.Response]:
    client = httpx.Client(timeout=20)
    request = client.build_request(
        "POST", server.url + CHAT, json=body(model, stream=True), headers={"authorization": f"Bearer {KEY}"}
    )
    return client, client.send(request, stream=True)


def end_by_reading(client: httpx.Client, reply: httpx.Response, up: FaultUpstream) -> None:
    reply.read()


def end_by_leaving(client: httpx.Client, reply: httpx.Response, up: FaultUpstream) -> None:
    reply.close()
    client.close()


def end_upstream(client: httpx.Client, reply: httpx.Response, up: FaultUpstream) -> None:
    up.close_connections()
    with pytest.raises(httpx.RemoteProtocolError):
        reply.read()


@pytest.mark.parametrize(
    ("model", "end"), [("slow-60ms", end_by_reading), ("stall-mid", end_by_leaving), ("stall-mid", end_upstream)]
)
def test_one_at_a_time_means_until_the_one_before_has_ended(
    up: FaultUpstream, tmp_path: Path, model: str, end: Callable[[httpx.Client, httpx.Response, FaultUpstream], None]
) -> None:
    limited: Any = {"key": ALONE, "team": ALONE, "routes": [route(1, concurrent_requests=1)]}
    with start(tmp_path, up.url, **limited) as server:
        client, reply = open_stream(server, model)
        assert reply.status_code == 200
        refused = ask(server)
        assert code(refused) == REFUSED
        assert refused.headers["retry-after"] == "1"
        assert "1 requests at once" in refused.json()["error"]["message"]
        assert not [name for name in refused.headers if name.startswith("x-ratelimit")]
        assert [slot(tmp_path, name).in_flight for name in ("key:1", "team:100", "route:1")] == [1, 1, 1]
        end(client, reply, up)
        if end is end_by_reading:
            assert code(ask(server)) == SERVED  # at once
        else:
            wait_for(lambda: code(ask(server)) == SERVED)
        assert [slot(tmp_path, name).in_flight for name in ("key:1", "team:100", "route:1")] == [0, 0, 0]
        client.close()


def test_a_client_that_sends_one_after_another_is_never_told_it_sends_two(up: FaultUpstream, tmp_path: Path) -> None:
    limited = [provider(1, up.url, concurrent_requests=1)]
    with start(tmp_path, up.url, key=ALONE, providers=limited) as server, httpx.Client(timeout=20) as client:
        headers = {"authorization": f"Bearer {KEY}"}
        for model, stream in itertools.islice(itertools.cycle([("ok", False), ("ok", True), ("boom-400", False)]), 60):
            reply = client.post(server.url + CHAT, json=body(model, stream=stream), headers=headers)
            assert reply.status_code == (200 if model == "ok" else 400)


def test_a_call_that_no_budget_allows_is_not_under_way(up: FaultUpstream, tmp_path: Path) -> None:
    with start(tmp_path, up.url, routes=[route(1, concurrent_requests=1, tokens_per_minute=900)], capacity=0) as server:
        for _ in range(2):
            assert code(ask(server, max_tokens=500)) == (429, "insufficient_quota")
        left = slot(tmp_path, "route:1")
        assert (left.in_flight, left.tokens_remaining) == (0, 900)


def test_limits_hold_over_workers_and_are_free_again_when_one_stops(up: FaultUpstream, tmp_path: Path) -> None:
    with start(tmp_path, up.url, key=(3, 0, 1)) as first:
        with start(tmp_path, up.url, key=(3, 0, 1), bank=first.bank) as second:
            client, _ = open_stream(first, "stall-mid")
            assert code(ask(second)) == REFUSED
            client.close()
            wait_for(lambda: slot(tmp_path, "key:1").in_flight == 0)
            assert [code(ask(server)) for server in (second, first)] == [SERVED, SERVED]
            assert code(ask(second)) == code(ask(first)) == REFUSED  # three in all
        assert slot(tmp_path, "key:1").in_flight == 0


# --- several candidates -----------------------------------------------------------------------------------------------


def test_a_candidate_at_its_limit_is_passed_over_and_the_soonest_limit_is_told(
    up: FaultUpstream, tmp_path: Path
) -> None:
    routes = [route(1, requests_per_minute=1), route(2, priority=20, requests_per_minute=2)]
    with start(tmp_path, up.url, key=(100, 0, 0), routes=routes) as server:
        assert [ask(server).headers["x-hoosh-route"] for _ in range(3)] == ["r1", "r2", "r2"]
        reply = ask(server)
        assert code(reply) == REFUSED
        assert reply.headers["retry-after"] == "30"  # r2 answers again before r1
        assert reply.headers.get_list("x-ratelimit-limit-requests") == ["2"]
        assert [reply.headers.get_list(name) for name in RATE_HEADERS[3:]] == [[], [], []]
        assert len(up.inference) == 3
        assert slot(tmp_path, "key:1").requests_remaining == 96


def test_a_request_that_is_too_large_for_one_route_goes_to_another(up: FaultUpstream, tmp_path: Path) -> None:
    routes = [route(1, tokens_per_minute=50), route(2, priority=20, tokens_per_minute=5000)]
    with start(tmp_path, up.url, routes=routes) as server:
        assert ask(server, max_tokens=400).headers["x-hoosh-route"] == "r2"
        spent = ask(server, max_tokens=4900)
        assert code(spent) == REFUSED  # the limit that will allow it, not the one that never does
        assert int(spent.headers["retry-after"]) >= 1


def test_of_two_reasons_the_one_that_ends_first_is_told() -> None:
    soon, late, never = RateLimitedError(retry_after_s=2), RateLimitedError(retry_after_s=30), RateLimitedError()
    unpriced, spent = PriceUnknownError("p", "m"), BudgetExceededError()
    cases: list[tuple[GatewayError | None, GatewayError, GatewayError]] = [
        *((None, late, late), (late, soon, soon), (soon, late, soon), (never, late, late), (late, never, late)),
        *((unpriced, late, late), (late, unpriced, late), (unpriced, never, unpriced), (spent, soon, spent)),
    ]
    for first, then, told in cases:
        assert limiting.sooner(first, then) is told


# --- what the client hears --------------------------------------------------------------------------------------------


_MESSAGES = [{"role": "user", "content": "one two"}]
_CONTENTS = [{"role": "user", "parts": [{"text": "one two"}]}]


_REFUSALS: list[tuple[str, dict[str, Any], list[Any]]] = [
    (CHAT, {"messages": _MESSAGES}, ["error", "code", "rate_limit_exceeded"]),
    ("/v1/completions", {"prompt": "one two"}, ["error", "type", "rate_limit_error"]),
    ("/v1/embeddings", {"input": "one two"}, ["error", "code", "rate_limit_exceeded"]),
    ("/v1/responses", {"input": "one two"}, ["error", "code", "rate_limit_exceeded"]),
    ("/v1/messages", {"messages": _MESSAGES, "max_tokens": 5}, ["error", "type", "rate_limit_error"]),
    ("/v1beta/models/ok:generateContent", {"contents": _CONTENTS}, ["error", "status", "RESOURCE_EXHAUSTED"]),
    ("/v1beta/models/ok:streamGenerateContent?alt=sse", {"contents": _CONTENTS}, ["error", "code", 429]),
    ("/api/chat", {"messages": _MESSAGES}, ["error", "The limit of 1 requests per minute of this API key is reached."]),
    (
        "/api/generate",
        {"prompt": "one two"},
        ["error", "The limit of 1 requests per minute of this API key is reached."],
    ),
]


def test_a_refusal_is_told_in_the_callers_dialect(up: FaultUpstream, tmp_path: Path) -> None:
    texts = [f"{KEY}{number}" for number in range(len(_REFUSALS))]
    keys = [key_record(number, text, key_limits=ONCE) for number, text in enumerate(texts, 1)]
    with start(tmp_path, up.url, keys=keys) as server:
        for text, (path, sent, (*place, wanted)) in zip(texts, _REFUSALS, strict=True):
            for status in (200, 429):
                headers = {"authorization": f"Bearer {text}"}
                reply = httpx.post(server.url + path, json={"model": "ok", **sent}, headers=headers, timeout=20)
                assert reply.status_code == status, (path, reply.text)
                assert reply.headers["x-ratelimit-remaining-requests"] == "0"
            assert 50 <= int(reply.headers["retry-after"]) <= 60
            told = reply.json()
            for name in place:
                told = told[name]
            assert told == wanted, path


def test_streams_carry_the_headers_and_count_as_one_request(up: FaultUpstream, tmp_path: Path) -> None:
    with start(tmp_path, up.url, key=(10, 10_000, 5)) as server:
        reply = ask(server, stream=True)
        assert reply.is_success
        told = [reply.headers[name] for name in RATE_HEADERS]
        assert (told[0], told[1], told[2], told[3]) == ("10", "9", "6s", "10000")
        assert 0 < 10_000 - int(told[4]) < 100
        assert told[5].endswith("ms")
        assert slot(tmp_path, "key:1").in_flight == 0


def test_counting_tokens_and_lists_are_not_limited(up: FaultUpstream, tmp_path: Path) -> None:
    with start(tmp_path, up.url, key=ONCE) as server:
        assert [code(ask(server)) for _ in range(2)] == [SERVED, REFUSED]
        counted = ask(server, path="/v1/messages/count_tokens")
        assert counted.is_success
        assert not [name for name in counted.headers if name.startswith("x-ratelimit")]
        assert httpx.get(server.url + "/v1/models", headers={"authorization": f"Bearer {KEY}"}).is_success


def test_a_replayed_answer_is_not_counted_and_a_refused_request_may_be_sent_again(
    up: FaultUpstream, tmp_path: Path
) -> None:
    with start(tmp_path, up.url, key=ONCE) as server:
        memory = Memory(server)

        def once(name: str) -> httpx.Response:
            headers = {"authorization": f"Bearer {KEY}", "idempotency-key": name}
            return httpx.post(server.url + CHAT, json=body(), headers=headers, timeout=20)

        assert code(once("a")) == SERVED
        again = once("a")
        assert (code(again), again.headers["x-hoosh-idempotent-replay"]) == (SERVED, "true")
        assert code(once("b")) == REFUSED
        assert len(memory.rows) == 1  # nothing is remembered of what was refused
        assert len(up.inference) == 1


def test_an_answer_from_the_cache_counts_as_a_request_without_tokens(up: FaultUpstream, tmp_path: Path) -> None:
    limited = {"key": (2, 1000, 1), "routes": [route(1, cache_s=60, requests_per_minute=1)]}
    with start(tmp_path, up.url, **limited) as server:
        replies = [ask(server, max_tokens=300) for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 429]
        assert [reply.headers.get("x-hoosh-cache") for reply in replies] == ["miss", "hit", None]
        left = slot(tmp_path, "key:1")
        assert left.tokens_remaining is not None
        assert 1000 - 302 <= left.tokens_remaining <= 1000 - 302 + 60
        assert (left.in_flight, left.tokens_reserved) == (0, 0)
