"""Repeated requests and reservations while the gateway's own processes are killed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests import children
from tests.servers import Gateway, ProviderEntry, UpstreamProcess, request_id

pytestmark = [pytest.mark.processes, pytest.mark.database]

StartGateway = Callable[..., Gateway]
ONCE = {"idempotency-key": "once-1"}


@pytest.fixture
def gateway(start_gateway: StartGateway, upstream_process: UpstreamProcess) -> Gateway:
    return start_gateway(providers=[ProviderEntry(upstream_process.base_url)], workers=2)


def ask(gateway: Gateway, model: str, *, stream: bool = False) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "count"}], "max_tokens": 5, "stream": stream}
    headers = {**gateway.auth, **ONCE}
    return httpx.post(f"{gateway.base_url}/v1/chat/completions", json=body, headers=headers, timeout=30)


def ask_until_answered(gateway: Gateway, model: str) -> httpx.Response:
    """Repeat, as a careful client does, while the answer is that somebody else runs it or nobody knows."""

    def once() -> httpx.Response | None:
        with contextlib.suppress(httpx.TransportError):
            reply = ask(gateway, model)
            if reply.status_code == 200:
                return reply
            assert reply.status_code in (409, 503), reply.text
        return None

    return children.wait_for(once, "an answer", timeout_s=30)


def control(gateway: Gateway, what: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = httpx.post(f"{gateway.base_url}/v1/tokens/{what}", json=body, headers=gateway.auth, timeout=30)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def test_a_request_whose_worker_is_killed_runs_again_and_then_no_more(
    gateway: Gateway, upstream_process: UpstreamProcess
) -> None:
    cut: list[BaseException] = []

    def first() -> None:
        try:
            ask(gateway, "first-2000ms")
        except httpx.TransportError as exc:
            cut.append(exc)

    asking = threading.Thread(target=first)
    asking.start()
    row = children.wait_for(
        lambda: next(iter(gateway.rows("SELECT owner FROM budgets_idempotentreply")), None), "the request to run"
    )
    assert ask(gateway, "first-2000ms").status_code == 409
    pid = int(row["owner"].split("-")[1])
    gateway.kill_worker(gateway.role_pids("worker").index(pid))
    asking.join(30)
    assert len(cut) == 1
    again = ask_until_answered(gateway, "first-2000ms")
    replay = ask_until_answered(gateway, "first-2000ms")
    assert replay.headers["x-hoosh-idempotent-replay"] == "true"
    assert replay.content == again.content


def test_answers_and_reservations_survive_control(gateway: Gateway, upstream_process: UpstreamProcess) -> None:
    streamed = ask(gateway, "ok", stream=True)
    everything = {"tokens": 10_000_000 - gateway.wait_settled(request_id(streamed.headers))["tokens"]}
    children.wait_for(lambda: control(gateway, "check", everything)["allowed"], "idle tokens to count as available")
    all_of_it = control(gateway, "reserve", everything)
    assert all_of_it["reserved"] is True, "what lies idle at the workers is called back"
    control(gateway, "report", {"actual": 0, "id": all_of_it["id"]})
    reserved = control(gateway, "reserve", {"tokens": 1000})
    assert reserved["reserved"] is True
    old = gateway.kill_control()
    gateway.wait_restarted("control", old)
    replay = ask_until_answered_stream(gateway)
    assert (replay.content, replay.headers["x-hoosh-idempotent-replay"]) == (streamed.content, "true")
    assert len([entry for entry in upstream_process.truth() if entry["model"] == "ok"]) == 1
    before = control(gateway, "check", {"tokens": 0})["available"]
    reported = control(gateway, "report", {"actual": 10, "id": reserved["id"]})
    assert reported["available"] == before + 990
    assert control(gateway, "report", {"actual": 10, "id": reserved["id"]})["id"] == reserved["id"]
    rows = gateway.rows("SELECT tokens FROM budgets_usage WHERE endpoint = 'tokens'")
    assert sorted(row["tokens"] for row in rows) == [0, 10]


def ask_until_answered_stream(gateway: Gateway) -> httpx.Response:
    """The stream's repetition, once the workers have found the new control."""
    return children.wait_for(
        lambda: reply if (reply := ask(gateway, "ok", stream=True)).status_code == 200 else None, "the replay"
    )
