"""Requests that carry an Idempotency-Key, through the whole request path: run once, replayed, charged once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet

from tests.gateway.harness import KEY, GatewayServer, held, provider, route, usage_rows
from tests.upstream import FaultUpstream

CHAT = "/v1/chat/completions"


class Memory:
    """What control keeps, in memory, for one worker."""

    def __init__(self, server: GatewayServer) -> None:
        self.book = server.runtime.idempotency
        self.loop = server.loop
        self.rows: dict[str, dict[str, Any]] = {}
        self.book.send_begin, self.book.send_end = self.begin, self.end

    def begin(self, owner: str, number: int, key_id: int, digest: str, request_digest: str, rid: str) -> bool:
        known = digest in self.rows
        row = self.rows.setdefault(digest, {"request": request_digest, "reply": None})
        answer: tuple[Any, ...] = ("new", 0, "", None)
        if row["request"] != request_digest:
            answer = ("mismatch", 0, "", None)
        elif row["reply"] is not None:
            answer = ("done", *row["reply"])
        elif known:
            answer = ("running", 0, "", None)
        self.loop.call_soon(self.book.on_answer, number, *answer)
        return True

    def end(self, owner: str, key_id: int, digest: str, rid: str, keep: bool, *reply: Any) -> bool:
        if keep:
            self.rows[digest]["reply"] = reply
        else:
            self.rows.pop(digest, None)
        return True


@pytest.fixture
def up() -> Iterator[FaultUpstream]:
    with FaultUpstream() as server:
        yield server


@pytest.fixture
def server(up: FaultUpstream, tmp_path: Path) -> Iterator[GatewayServer]:
    (tmp_path / "vault.key").write_bytes(Fernet.generate_key() + b"\n")
    (tmp_path / "vault.key").chmod(0o600)
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as running:
        yield running


def post(server: GatewayServer, name: str, *, model: str = "ok", **more: Any) -> httpx.Response:
    payload = {"model": model, "messages": [{"role": "user", "content": "one two"}], "max_tokens": 5, **more}
    headers = {"x-api-key": KEY} | ({"idempotency-key": name} if name else {})
    return httpx.post(server.url + CHAT, json=payload, headers=headers, timeout=20)


@pytest.mark.parametrize("stream", [False, True])
def test_a_repeated_request_gets_the_same_answer_and_is_charged_once(
    server: GatewayServer, up: FaultUpstream, tmp_path: Path, stream: bool
) -> None:
    Memory(server)
    first, second = post(server, "a", stream=stream), post(server, "a", stream=stream)
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.content == first.content
    assert second.headers["content-type"] == first.headers["content-type"]
    assert second.headers["x-hoosh-idempotent-replay"] == "true"
    assert "x-hoosh-idempotent-replay" not in first.headers
    assert post(server, "b", stream=stream).status_code == 200
    assert post(server, "", stream=stream).status_code == 200
    assert (len(up.inference), len(usage_rows(tmp_path))) == (3, 3)
    assert held(server) == 0


def test_another_body_is_a_mismatch_and_what_the_gateway_refused_may_be_sent_again(
    server: GatewayServer, up: FaultUpstream
) -> None:
    memory = Memory(server)
    assert post(server, "a", n="x").status_code == 400
    assert memory.rows == {}
    assert post(server, "a").status_code == 200
    other = post(server, "a", max_tokens=6)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_mismatch")
    elsewhere = httpx.post(
        server.url + CHAT,
        content=other.request.content.replace(b'"max_tokens":6', b'"max_tokens":5'),
        headers={"x-api-key": KEY, "idempotency-key": "a", "x-hoosh-pool": "another"},
    )
    assert (elsewhere.status_code, elsewhere.json()["error"]["code"]) == (422, "idempotency_mismatch")
    assert len(up.inference) == 1


def test_what_the_provider_found_wrong_is_replayed_and_its_failures_are_not(
    server: GatewayServer, up: FaultUpstream
) -> None:
    Memory(server)
    assert [post(server, "a", model="boom-404").status_code for _ in range(2)] == [404, 404]
    assert len(up.inference) == 1
    assert [post(server, "b", model="boom-500").status_code for _ in range(2)] == [502, 502]
    assert len(up.inference) == 3


def test_without_control_nothing_runs_that_might_be_a_repetition(server: GatewayServer, up: FaultUpstream) -> None:
    reply = post(server, "a")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "idempotency_unavailable")
    assert up.inference == []
    assert post(server, "").status_code == 200
