"""What is charged where the provider does not say it, or nobody is left to hear it: never more than was held."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from budgets.bound import TOKENS_PER_FILE, TOKENS_PER_IMAGE
from budgets.desk import Desk
from budgets.journal import BYTES_PER_TOKEN
from budgets.journal_reader import unfinished
from budgets.prices import PriceBound
from budgets.records import Basis, PoolRecord, PriceRecord
from gateway import strict
from gateway.attempt import Attempt
from gateway.holding import _STRUCTURED
from providers.canonical import Call
from tests.gateway.harness import (
    KEY,
    GatewayServer,
    canned,
    delivered_marks,
    held,
    hold_records,
    provider,
    route,
    usage_rows,
    wait_for,
)
from tests.upstream import FaultUpstream

CHAT = "/v1/chat/completions"


@pytest.fixture
def up() -> Iterator[FaultUpstream]:
    with FaultUpstream() as server:
        yield server


def payload(content: Any = "one two three", model: str = "ok", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], **more}


def post(url: str, directory: Path, body: dict[str, Any]) -> httpx.Response:
    with GatewayServer(directory, providers=[provider(1, url)], routes=[route(1)]) as server:
        return httpx.post(server.url + CHAT, json=body, headers={"x-api-key": KEY}, timeout=20)


def answer(text: str) -> bytes:
    """A whole answer that reports no usage."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
    return json.dumps({"id": "x", "object": "chat.completion", "choices": [choice]}).encode()


def stream(*texts: str) -> bytes:
    chunk = '{"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":%s}}]}'
    return "".join(f"data: {event}\n\n" for event in [*(chunk % json.dumps(text) for text in texts), "[DONE]"]).encode()


@pytest.mark.parametrize("texts", [["hi"] * 3, ["internationalization " * 9] * 3])
def test_a_mark_never_announces_more_than_was_held(tmp_path: Path, texts: list[str]) -> None:
    with canned(200, stream(*texts), kind="text/event-stream") as url:
        assert post(url, tmp_path, payload(stream=True, max_tokens=4)).status_code == 200
    (hold,), marks = hold_records(tmp_path), delivered_marks(tmp_path)
    assert marks
    for events, text_bytes in marks:
        assert events <= 4
        assert text_bytes <= 4 * BYTES_PER_TOKEN
        assert unfinished(hold, events=events, delivered_bytes=text_bytes).tokens <= hold.tokens


def test_marks_stop_when_the_whole_bound_is_announced(up: FaultUpstream, tmp_path: Path) -> None:
    assert post(up.url, tmp_path, payload(model="gap-2", stream=True, max_tokens=150)).status_code == 200
    marks = delivered_marks(tmp_path)
    assert marks[-1][0] == 150
    assert len(marks) <= 6
    assert marks == sorted(set(marks))


def test_a_long_answer_without_usage_is_charged_up_to_the_limit_that_was_sent(tmp_path: Path) -> None:
    for name, data, kind in (
        ("a", answer("internationalization " * 290), "application/json"),
        ("b", stream(*["internationalization " * 29] * 10), "text/event-stream"),
    ):
        with canned(200, data, kind=kind) as url:
            body = payload(max_tokens=100, stream=name == "b")
            assert post(url, tmp_path / name, body).status_code == 200
        (row,) = usage_rows(tmp_path / name)
        assert (row.output_tokens, row.basis) == (100, Basis.ESTIMATED)
        assert row.tokens <= row.held


def test_media_of_a_request_without_usage_are_charged_by_the_table(tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 4000}}
    file = {"type": "file", "file": {"file_data": "B" * 4000}}
    text = {"type": "text", "text": "hi"}
    with canned(200, answer("ok")) as url:
        assert post(url, tmp_path, payload([text, *[image] * 10, file], max_tokens=100)).status_code == 200
    (row,) = usage_rows(tmp_path)
    media = 10 * TOKENS_PER_IMAGE + TOKENS_PER_FILE
    assert media < row.input_tokens < media + 1_000
    assert row.tokens <= row.held


@pytest.mark.usefixtures("binding")
@pytest.mark.parametrize("policy", ["drain", "cap"])
def test_what_is_read_on_after_the_client_left_is_marked_as_well(
    up: FaultUpstream, tmp_path: Path, policy: str
) -> None:
    routes = [route(1, on_disconnect=policy, disconnect_cap=200)]
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=routes) as server:
        body = payload(model="gap-2", stream=True, max_tokens=300)
        with httpx.stream("POST", server.url + CHAT, json=body, headers={"x-api-key": KEY}) as reply:
            next(reply.iter_raw())
        (row,) = wait_for(lambda: usage_rows(tmp_path))
        wait_for(lambda: held(server) == 0)
    assert (row.status, row.error) == (499, "client_left")
    assert row.output_tokens >= 200
    assert row.output_tokens <= delivered_marks(tmp_path)[-1][0] <= 300


def test_a_fault_of_our_own_before_the_hold_is_journaled_gives_it_back(up: FaultUpstream, tmp_path: Path) -> None:
    prices = [PriceRecord(id=2**70, provider="*", pattern="*", input=1, output=1)]  # no journal can hold such an id
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)], prices=prices) as server:
        reply = httpx.post(server.url + CHAT, json=payload(), headers={"x-api-key": KEY}, timeout=20)
        assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
        wait_for(lambda: held(server) == 0)
        assert {entry["used"] for entry in server.runtime.desk.status()} == {0}
    assert up.inference == []


def test_a_fault_of_our_own_at_the_end_gives_nothing_back_that_the_ledger_will_charge() -> None:
    desk = Desk("w")
    desk.set_pools([PoolRecord(id=1, name="default", units=(0, 1))])
    for unit in (0, 1):
        desk.on_granted(1, unit, 0, 10_000, False, False, 0)
    job: Any = SimpleNamespace(
        call=Call("chat", "m", b"{}"),
        attempts=0,
        pool_id=1,
        runtime=SimpleNamespace(desk=desk),
        decision=object(),
        snapshot=None,
    )
    nothing: Any = None
    attempt = Attempt(job, nothing, nothing, nothing, input_bound=50, limit=50, price=PriceBound(1, 9, 9, 0))
    draws = desk.hold(desk.chain((1,)), attempt.held, attempt.held_pico)
    assert draws
    attempt.begin(draws)
    with pytest.raises(AssertionError):
        attempt.settle(status=200, usage=None, basis=Basis.NONE)  # no record can be made of this job
    assert [(entry["held"], entry["used"]) for entry in desk.status()] == [(0, 100), (0, 900)]


def test_no_spelling_of_a_field_dodges_the_rule_against_shortening() -> None:
    assert strict.GUARDED >= _STRUCTURED
