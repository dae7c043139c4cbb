"""Streams through the request path: the contract towards the client, whatever the upstream or the client does."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from budgets.records import Basis
from providers.config import SettingsDoc
from tests.gateway.harness import KEY, GatewayServer, held, provider, route, usage_rows, wait_for
from tests.upstream import FaultUpstream, text_of

CHAT = "/v1/chat/completions"


@pytest.fixture
def up() -> Iterator[FaultUpstream]:
    with FaultUpstream() as server:
        yield server


def body(model: str = "ok", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "one two three"}], "stream": True, **more}


def read(server: GatewayServer, payload: dict[str, Any]) -> tuple[httpx.Response, bytes, bool]:
    """The reply's head, its bytes and whether it ended cleanly."""
    data, clean = b"", True
    with httpx.stream("POST", server.url + CHAT, json=payload, headers={"x-api-key": KEY}, timeout=20) as reply:
        try:
            for piece in reply.iter_raw():
                data += piece
        except httpx.RemoteProtocolError:
            clean = False
    return reply, data, clean


def events(data: bytes) -> list[Any]:
    """Data of each event; "[DONE]" as text."""
    found = []
    for event in data.replace(b"\r\n", b"\n").split(b"\n\n"):
        lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
        if lines:
            text = b"\n".join(lines)
            found.append("[DONE]" if text == b"[DONE]" else json.loads(text))
    return found


def text(found: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for event in found
        if isinstance(event, dict)
        for choice in event.get("choices", ())
    )


@pytest.mark.usefixtures("binding")
def test_a_stream_is_delivered_with_one_done_and_booked_with_its_usage(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        reply, data, clean = read(server, body(max_tokens=5))
        found = events(data)
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert clean
        assert found[-1] == "[DONE]"
        assert data.count(b"[DONE]") == 1
        assert text(found) == text_of(5)
        assert not any(isinstance(event, dict) and event.get("usage") for event in found)
        assert up.inference[-1].json["stream_options"] == {"include_usage": True}
        (row,) = usage_rows(tmp_path)
    assert (row.output_tokens, row.basis, row.stream, row.status) == (5, Basis.REPORTED, True, 200)
    assert 0 < row.ttft_us <= row.latency_us


def test_the_usage_chunk_reaches_a_client_that_asked_for_it(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        _, data, _ = read(server, body(max_tokens=3, stream_options={"include_usage": True}))
        found = events(data)
    assert found[-2]["usage"]["completion_tokens"] == 3
    assert found[-2]["choices"] == []


@pytest.mark.parametrize("model", ["double-done", "crlf", "comments", "joined", "utf8-split", "finish-usage", "gzip"])
def test_odd_but_complete_streams_end_well(up: FaultUpstream, tmp_path: Path, model: str) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        _, data, clean = read(server, body(model, max_tokens=6))
        found = events(data)
        (row,) = usage_rows(tmp_path)
    assert clean
    assert found.count("[DONE]") == 1
    assert found[-1] == "[DONE]"
    expected = "".join(f"w{i}😀 " for i in range(6)) if model == "utf8-split" else text_of(6)
    assert text(found) == expected
    assert row.output_tokens == 6


@pytest.mark.usefixtures("binding")
@pytest.mark.parametrize(
    "model", ["cut", "cut-rst", "cut-event", "error-event", "error-event-done", "error-event-named", "no-done"]
)
def test_a_stream_that_fails_midway_ends_with_an_error_event_and_a_cut(
    up: FaultUpstream, tmp_path: Path, model: str
) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        reply, data, clean = read(server, body(model, max_tokens=6))
        found = events(data)
        (row,) = wait_for(lambda: usage_rows(tmp_path))
        assert held(server) == 0
    assert reply.status_code == 200
    assert not clean
    assert "[DONE]" not in found
    assert set(found[-1]["error"]) == {"message", "type", "param", "code"}
    assert text(found).startswith(text_of(3))
    assert row.status >= 400
    assert row.output_tokens >= 3


def test_a_stream_that_stalls_is_ended_by_the_gap_timeout(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1, gap_timeout_s=0.3)]) as server:
        started = time.monotonic()
        _, data, clean = read(server, body("stall-mid", max_tokens=6))
        assert time.monotonic() - started < 3
    assert not clean
    assert events(data)[-1]["error"]["code"] == "upstream_timeout"


@pytest.mark.parametrize(
    ("model", "status"),
    [
        ("boom-500", 502),
        ("rate-limit", 429),
        ("not-json", 502),
        ("html-error", 502),
        ("cut-first", 502),
        ("error-first", 502),
        ("huge-line", 502),
        ("boom-404", 404),
    ],
)
def test_a_failure_before_the_first_event_is_a_plain_error(
    up: FaultUpstream, tmp_path: Path, model: str, status: int
) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        reply, data, clean = read(server, body(model))
        assert held(server) == 0
    assert reply.status_code == status, data
    assert clean
    assert json.loads(data)["error"]["message"]


@pytest.mark.usefixtures("binding")
@pytest.mark.parametrize("first", ["boom-500", "error-first", "not-json", "unauthorized", "rate-limit"])
def test_fallback_happens_while_nothing_was_delivered(up: FaultUpstream, tmp_path: Path, first: str) -> None:
    routes = [route(1, "m", upstream_model=first, priority=1), route(2, "m", 2, upstream_model="ok", priority=2)]
    with GatewayServer(tmp_path, providers=[provider(1, up.url), provider(2, up.url)], routes=routes) as server:
        reply, data, clean = read(server, body("m", max_tokens=4))
        assert [row.status == 200 for row in usage_rows(tmp_path)] == [False, True]
    assert clean
    assert reply.headers["x-hoosh-route"] == "r2"
    assert text(events(data)) == text_of(4)


def test_nothing_is_repeated_elsewhere_after_the_first_byte(up: FaultUpstream, tmp_path: Path) -> None:
    routes = [
        route(1, "m", upstream_model="cut", priority=1, duplicates_allowed=True),
        route(2, "m", 2, upstream_model="ok", priority=2),
    ]
    with GatewayServer(tmp_path, providers=[provider(1, up.url), provider(2, up.url)], routes=routes) as server:
        _, data, clean = read(server, body("m", max_tokens=6))
    assert not clean
    assert text(events(data)) == text_of(3)
    assert len(up.inference) == 1


def test_missing_usage_is_counted_from_what_was_delivered(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        for model in ("no-usage", "absurd-usage", "null-usage"):
            assert events(read(server, body(model, max_tokens=20))[1])[-1] == "[DONE]"
        rows = usage_rows(tmp_path)
    assert [row.basis for row in rows] == [Basis.ESTIMATED] * 3
    assert all(row.output_tokens >= 20 for row in rows)


@pytest.mark.usefixtures("binding")
def test_a_quiet_stream_is_pinged_between_events(up: FaultUpstream, tmp_path: Path) -> None:
    settings = SettingsDoc(ping_interval_s=0.3)
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)], settings=settings) as server:
        _, data, clean = read(server, body("gap-900", max_tokens=3))
    assert clean
    assert b": ping\n\n" in data
    assert text(events(data)) == text_of(3)


@pytest.mark.usefixtures("binding")
@pytest.mark.parametrize("model", ["gap-50", "stall-mid"])
def test_a_client_that_leaves_cancels_upstream_and_pays_what_was_delivered(
    up: FaultUpstream, tmp_path: Path, model: str
) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        with httpx.stream(
            "POST", server.url + CHAT, json=body(model, max_tokens=400), headers={"x-api-key": KEY}
        ) as reply:
            seen = b""
            for piece in reply.iter_raw():
                seen += piece
                if seen.count(b"data:") >= 4:
                    break
        up.wait_for(lambda: up.inference[-1].closed_by_peer, timeout_s=1)
        (row,) = wait_for(lambda: usage_rows(tmp_path))
        assert held(server) == 0
    assert (row.status, row.error) == (499, "client_left")
    assert 3 <= row.output_tokens < 100


@pytest.mark.usefixtures("binding")
def test_a_route_may_drain_the_upstream_when_the_client_leaves(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1, on_disconnect="drain")]) as server:
        with httpx.stream(
            "POST", server.url + CHAT, json=body("gap-20", max_tokens=30), headers={"x-api-key": KEY}
        ) as reply:
            next(reply.iter_raw())
        (row,) = wait_for(lambda: usage_rows(tmp_path))
    assert row.output_tokens == 30
    assert (row.basis, row.status, row.error) == (Basis.REPORTED, 499, "client_left")


@pytest.mark.usefixtures("binding")
def test_a_route_may_read_on_for_so_many_tokens_and_then_cancel(up: FaultUpstream, tmp_path: Path) -> None:
    routes = [route(1, on_disconnect="cap", disconnect_cap=20)]
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=routes) as server:
        with httpx.stream(
            "POST", server.url + CHAT, json=body("gap-20", max_tokens=400), headers={"x-api-key": KEY}
        ) as reply:
            next(reply.iter_raw())
        (row,) = wait_for(lambda: usage_rows(tmp_path))
        up.wait_for(lambda: up.inference[-1].closed_by_peer, timeout_s=1)
        assert held(server) == 0
    assert (row.status, row.error, row.basis) == (499, "client_left", Basis.ESTIMATED)
    assert 20 <= row.output_tokens < 60, "what was read is charged, and no more is read"


@pytest.mark.usefixtures("binding")
def test_an_answer_that_ends_before_the_cap_is_charged_as_reported(up: FaultUpstream, tmp_path: Path) -> None:
    routes = [route(1, on_disconnect="cap", disconnect_cap=1000)]
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=routes) as server:
        with httpx.stream(
            "POST", server.url + CHAT, json=body("gap-20", max_tokens=30), headers={"x-api-key": KEY}
        ) as reply:
            next(reply.iter_raw())
        (row,) = wait_for(lambda: usage_rows(tmp_path))
    assert (row.output_tokens, row.basis, row.status) == (30, Basis.REPORTED, 499)


@pytest.mark.usefixtures("binding")
def test_a_slow_reader_stops_the_upstream_and_not_the_gateway(up: FaultUpstream, tmp_path: Path) -> None:
    with (
        GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server,
        socket.socket() as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        payload = json.dumps(body("flood", max_tokens=8000)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nx-api-key: {KEY}\r\nContent-Length: {len(payload)}\r\n\r\n"
        client.sendall(head.encode() + payload)
        time.sleep(1.5)
        assert read(server, body(max_tokens=3))[2]
        assert not up.inference[0].closed_by_peer
        client.close()
        up.wait_for(lambda: up.inference[0].closed_by_peer, timeout_s=2)


@pytest.mark.usefixtures("binding")
def test_running_streams_are_ended_with_an_error_when_the_worker_must_stop(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        with httpx.stream(
            "POST", server.url + CHAT, json=body("gap-50", max_tokens=400), headers={"x-api-key": KEY}
        ) as reply:
            pieces = reply.iter_raw()
            data = next(pieces)
            server.call(server.runtime.drain)
            server.call(server.runtime.abort_streams)
            with contextlib.suppress(httpx.RemoteProtocolError):
                for piece in pieces:
                    data += piece
        (row,) = wait_for(lambda: usage_rows(tmp_path))
    assert events(data)[-1]["error"]["code"] == "shutting_down"
    assert (row.status, row.error) == (503, "shutting_down")


@pytest.mark.usefixtures("binding")
def test_many_streams_at_once_do_not_mix(up: FaultUpstream, tmp_path: Path) -> None:
    results: list[tuple[int, str]] = []
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:

        def one(n: int) -> None:
            results.append((n, text(events(read(server, body("gap-2", max_tokens=n))[1]))))

        threads = [threading.Thread(target=one, args=(n,)) for n in range(1, 25)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rows = usage_rows(tmp_path)
    assert sorted(results) == [(n, text_of(n)) for n in range(1, 25)]
    assert sorted(row.output_tokens for row in rows) == list(range(1, 25))
