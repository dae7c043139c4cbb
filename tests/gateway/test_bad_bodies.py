"""Bodies that must never reach an upstream, through a real server, small and larger than one read of the socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.gateway.harness import KEY, GatewayServer, provider, route, usage_rows
from tests.upstream import FaultUpstream

PATHS = ("/v1/chat/completions", "/v1/completions")
NUMBERS = {
    "true": b"true",
    "a string": b'"10"',
    "a fraction": b"1.5",
    "negative": b"-1",
    "zero": b"0",
    "64 bits": b"9223372036854775808",
    "5000 digits": b"9" * 5000,
}
FIELDS = ("max_tokens", "n", "max_completion_tokens")


def body(size: int, extra: bytes = b"", *, text: bytes = b"") -> bytes:
    """A sound request of about `size` bytes but for what is added to it. Serves both endpoints."""
    text = text + b"x" * max(0, size - len(extra) - len(text) - 90)
    return b'{"model":"ok","messages":[{"role":"user","content":"%b"}],"prompt":"p"%b}' % (text, extra)


MALFORMED: dict[str, Callable[[int], bytes]] = {
    "NaN": lambda size: body(size, b',"temperature":NaN'),
    "NaN in an unread field": lambda size: body(size, b',"x":{"y":[NaN]}'),
    "Infinity": lambda size: body(size, b',"x":-Infinity'),
    "1e400": lambda size: body(size, b',"x":1e400'),
    "a nested key twice": lambda size: body(size, b',"stream_options":{"include_usage":true,"include_usage":false}'),
    "a key twice": lambda size: body(size, b',"model":"other"'),
    "a key twice, escaped": lambda size: body(size, b',"mod\\u0065l":"other"'),
    "a limit twice, escaped": lambda size: body(size, b',"max_tokens":1,"max\\u005ftokens":99'),
    "a lone surrogate": lambda size: body(size, text=b"\\ud800"),
    "a lone surrogate in an unread field": lambda size: body(size, b',"x":"\\udc00"'),
    "depth 100000": lambda size: body(size, b',"x":' + b"[" * 100_000 + b"]" * 100_000),
    "UTF-16": lambda size: body(size).decode().encode("utf-16"),
    "UTF-16 without a mark": lambda size: body(size).decode().encode("utf-16-le"),
    "a byte order mark": lambda size: b"\xef\xbb\xbf" + body(size),
    "bad UTF-8": lambda size: body(size, text=b"\xff"),
    "NUL": lambda size: body(size, text=b"\x00"),
    "NUL behind": lambda size: body(size) + b"\x00",
    "two values": lambda size: body(size) * 2,
    "cut": lambda size: body(size)[:-1],
}


@pytest.fixture(scope="module")
def up() -> Iterator[FaultUpstream]:
    with FaultUpstream() as server:
        yield server


@pytest.fixture(scope="module")
def server(up: FaultUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    directory: Path = tmp_path_factory.mktemp("gateway")
    server = GatewayServer(directory, providers=[provider(1, up.url)], routes=[route(1)])
    server.binding = "worker"
    with server:
        yield server


def assert_refused(up: FaultUpstream, server: GatewayServer, path: str, content: bytes, param: str | None) -> None:
    before = len(up.inference)
    reply = httpx.post(server.url + path, content=content, headers={"authorization": f"Bearer {KEY}"}, timeout=20)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    if param is not None:
        assert error["param"] == param
    assert reply.headers["content-type"] == "application/json"
    assert len(up.inference) == before
    assert usage_rows(server.directory) == []
    assert not server.runtime.jobs


@pytest.mark.parametrize("size", [1_000, 76_000])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("make", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_body_is_refused_and_never_sent_on(
    up: FaultUpstream, server: GatewayServer, make: Callable[[int], bytes], path: str, size: int
) -> None:
    assert_refused(up, server, path, make(size), None)


@pytest.mark.parametrize("size", [1_000, 76_000])
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", NUMBERS.values(), ids=NUMBERS)
def test_a_limit_that_is_no_plain_positive_number_is_refused(
    up: FaultUpstream, server: GatewayServer, value: bytes, field: str, size: int
) -> None:
    content = body(size, b',"%b":%b' % (field.encode(), value))
    assert_refused(up, server, "/v1/chat/completions", content, None if len(value) > 100 else field)


@pytest.mark.parametrize("size", [1_000, 76_000])
def test_the_same_body_without_the_fault_is_served(tmp_path: Path, size: int) -> None:
    with FaultUpstream() as up, GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        for path in PATHS:
            content = body(size, b',"max_tokens":2,"n":1')
            reply = httpx.post(server.url + path, content=content, headers={"authorization": f"Bearer {KEY}"})
            assert reply.status_code == 200, reply.text
            assert json.loads(up.inference[-1].body)["max_tokens"] == 2
