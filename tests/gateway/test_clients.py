"""Clients that leave or read oddly: each is noticed, booked once, and nobody is called for nobody."""

from __future__ import annotations

import gc
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from budgets.records import Basis
from tests.gateway.harness import KEY, GatewayServer, canned, held, provider, route, usage_rows, wait_for
from tests.upstream import FaultUpstream

CHAT = "/v1/chat/completions"


@pytest.fixture
def up() -> Iterator[FaultUpstream]:
    with FaultUpstream() as server:
        yield server


def request(model: str, *, size: int = 10, **more: Any) -> bytes:
    """A whole request as it goes over the wire."""
    content = json.dumps({"model": model, "messages": [{"role": "user", "content": "x" * size}], **more}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nx-api-key: {KEY}\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


@pytest.mark.usefixtures("binding")
@pytest.mark.parametrize(
    ("first", "size", "stream"),
    [
        (10_000, 1_000, False),
        (1_000, 100_000, False),
        (1_000, 400_000, True),
        (500_000, 400_000, False),
        (1_000, 3_000_000, False),
    ],
)
def test_a_client_that_leaves_is_noticed_whatever_the_size_of_its_body(
    up: FaultUpstream, tmp_path: Path, first: int, size: int, stream: bool
) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            whole = request("stall-mid" if stream else "stall-first", size=size, stream=stream)
            client.sendall(whole[:first])
            time.sleep(0.05)
            client.sendall(whole[first:])
            up.wait_for(lambda: up.inference)
            time.sleep(0.1)
            assert server.runtime.jobs
        wait_for(lambda: not server.runtime.jobs, timeout_s=2)
        up.wait_for(lambda: up.inference[-1].closed_by_peer, timeout_s=2)
        (row,) = usage_rows(tmp_path)
        assert (row.status, row.error) == (499, "client_left")
        assert held(server) == 0


@pytest.mark.usefixtures("worker_binding")
@pytest.mark.parametrize("waiting", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_with_pipelined_requests_waiting_is_noticed_and_they_are_dropped(
    up: FaultUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture, stream: bool, waiting: int
) -> None:
    with (
        caplog.at_level(logging.DEBUG, "asyncio"),
        GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server,
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            one = request("stall-mid" if stream else "stall-first", stream=stream)
            client.sendall(one)
            up.wait_for(lambda: up.inference)
            client.sendall(one * waiting)
            time.sleep(0.2)
        wait_for(lambda: not server.runtime.jobs, timeout_s=2)
        up.wait_for(lambda: up.inference[-1].closed_by_peer, timeout_s=2)
        time.sleep(0.1)
        gc.collect()
    assert len(up.inference) == 1
    assert [row.error for row in usage_rows(tmp_path)] == ["client_left"]
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio" and record.levelno > 20] == []


@pytest.mark.usefixtures("worker_binding")
def test_pipelined_requests_are_answered_in_order(up: FaultUpstream, tmp_path: Path) -> None:
    with (
        GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as client,
    ):
        sizes = (10, 100_000, 200_000, 10)
        client.sendall(b"".join(request("first-300ms" if size == 10 else "ok", size=size) for size in sizes))
        got = b""
        while got.count(b'"object":"chat.completion"') + got.count(b'"object": "chat.completion"') < len(sizes):
            piece = client.recv(65536)
            assert piece, got
            got += piece
        assert got.count(b"HTTP/1.1 200 OK") == len(sizes)
        assert [len(sent.body) > 50_000 for sent in up.inference] == [False, True, True, False]


@pytest.mark.usefixtures("binding")
@pytest.mark.parametrize("stream", [False, True])
def test_leaving_while_the_gateway_still_connects_charges_nothing(tmp_path: Path, stream: bool) -> None:
    # A listener that takes connections and never answers the TLS hello: connecting does not end.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with GatewayServer(tmp_path, providers=[provider(1, url)], routes=[route(1)]) as server:
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
                client.sendall(request("m", stream=stream))
                wait_for(lambda: server.runtime.jobs)
                time.sleep(0.2)
            wait_for(lambda: not server.runtime.jobs, timeout_s=2)
            (row,) = usage_rows(tmp_path)
            assert held(server) == 0
    assert (row.status, row.error, row.tokens, row.basis) == (499, "client_left", 0, Basis.NONE)


@pytest.mark.usefixtures("binding")
def test_after_a_draining_route_failed_nobody_is_called_for_a_client_that_left(
    up: FaultUpstream, tmp_path: Path
) -> None:
    failing = b'data: {"error":{"message":"x","code":"rate_limit_exceeded"}}\n\n'
    routes = [route(1, priority=1, on_disconnect="drain"), route(2, provider_id=2, priority=2)]
    with (
        canned(200, failing, wait_s=0.6, kind="text/event-stream") as slow,
        GatewayServer(tmp_path, providers=[provider(1, slow), provider(2, up.url)], routes=routes) as server,
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            client.sendall(request("slow-20ms", stream=True))
            time.sleep(0.2)
        wait_for(lambda: not server.runtime.jobs)
        assert up.inference == []
        assert [row.attempt for row in usage_rows(tmp_path)] == [0]


@pytest.mark.usefixtures("binding")
def test_a_client_that_leaves_the_route_behind_a_draining_one_cancels_it(up: FaultUpstream, tmp_path: Path) -> None:
    failing = b'data: {"error":{"message":"x","code":"rate_limit_exceeded"}}\n\n'
    routes = [route(1, priority=1, on_disconnect="drain"), route(2, provider_id=2, priority=2)]
    with (
        canned(200, failing, kind="text/event-stream") as first,
        GatewayServer(tmp_path, providers=[provider(1, first), provider(2, up.url)], routes=routes) as server,
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            client.sendall(request("stall-first", stream=True))
            up.wait_for(lambda: up.inference)
        up.wait_for(lambda: up.inference[-1].closed_by_peer, timeout_s=2)
        wait_for(lambda: not server.runtime.jobs, timeout_s=2)


@pytest.mark.usefixtures("binding")
def test_a_draining_route_reads_a_whole_answer_nobody_waits_for_and_charges_what_it_cost(
    up: FaultUpstream, tmp_path: Path
) -> None:
    routes = [route(1, on_disconnect="drain")]
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=routes) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            client.sendall(request("think-300ms"))
            up.wait_for(lambda: up.inference)
        (row,) = wait_for(lambda: usage_rows(tmp_path))
        wait_for(lambda: not server.runtime.jobs)
        assert held(server) == 0
    assert (row.status, row.error, row.basis) == (499, "client_left", Basis.REPORTED)
    assert row.output_tokens > 0
