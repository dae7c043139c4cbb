"""The httpx API over the upstream pool."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from providers.transport import BODY_BYTES, open_client
from tests.upstream import FaultUpstream, text_of


def run(
    call: Callable[[httpx.AsyncClient], Awaitable[Any]], url: str, address_class: str = "loopback", **kw: Any
) -> Any:
    async def main() -> Any:
        async with open_client(url, address_class, **kw) as client:
            return await call(client)

    return asyncio.run(main())


def chat(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}


def test_models_are_listed_over_kept_connections(up: FaultUpstream) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        for _ in range(3):
            reply = await client.get("/v1/models", params={"limit": "5"})
            reply.raise_for_status()
            assert [model["id"] for model in reply.json()["data"]] == up.models

    run(call, f"{up.url}/openai", headers={"Authorization": "Bearer sk-x"})
    assert {request.connection for request in up.requests} == {up.requests[0].connection}
    sent = up.requests[0]
    assert sent.path == "/openai/v1/models?limit=5"
    assert sent.headers["authorization"] == "Bearer sk-x"
    assert sent.headers["host"] == f"127.0.0.1:{up.port}"
    assert sent.headers["accept-encoding"] == "identity"
    names = [name.lower() for name, _ in sent.raw_headers]
    assert names.count("content-length") == 1
    assert "connection" not in names
    up.wait_for(lambda: up.open_connections == 0)


def test_a_body_is_sent_and_a_stream_can_be_left_early(up: FaultUpstream) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        reply = await client.post("/v1/chat/completions", json=chat("gzip", max_tokens=3))
        assert reply.json()["choices"][0]["message"]["content"] == text_of(3)
        async with client.stream("POST", "/v1/chat/completions", json=chat("gap-20", stream=True, max_tokens=99)) as r:
            async for _ in r.aiter_bytes():
                break

    run(call, up.url)
    up.wait_for(lambda: up.requests[1].closed_by_peer, 1.0)


def test_redirects_are_not_followed_and_no_header_goes_along(up: FaultUpstream) -> None:
    async def call(client: httpx.AsyncClient) -> int:
        return (await client.post("/v1/chat/completions", json=chat("redirect"))).status_code

    assert run(call, up.url, headers={"Authorization": "Bearer secret"}) == 307
    assert [request.path for request in up.requests] == ["/v1/chat/completions"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "http://localhost:{port}/x", "https://127.0.0.1:{port}/x"])
def test_another_origin_is_refused(up: FaultUpstream, url: str) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        with pytest.raises(httpx.UnsupportedProtocol, match="only speaks to"):
            await client.get(url.format(port=up.port))

    run(call, up.url)
    assert up.requests == []


def test_environment_proxies_are_ignored(up: FaultUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def call(client: httpx.AsyncClient) -> int:
        return (await client.get("/health")).status_code

    assert run(call, up.url) == 200


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("refuse", httpx.ReadError),
        ("cut", httpx.ReadError),
        ("stall-first", httpx.ReadTimeout),
        ("drip", httpx.ReadTimeout),
        ("bad-status", httpx.RemoteProtocolError),
        ("gzip-bomb", httpx.RemoteProtocolError),
        ("huge-line", httpx.RemoteProtocolError),
    ],
)
def test_failures_are_the_exceptions_httpx_users_know(
    up: FaultUpstream, model: str, error: type[httpx.TransportError]
) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        with pytest.raises(error) as caught:
            await client.post("/v1/chat/completions", json=chat(model))
        assert caught.value.request.url.path == "/v1/chat/completions"

    start = time.monotonic()
    run(call, up.url, timeout_s=0.3)
    assert time.monotonic() - start < 1.5
    assert BODY_BYTES < 64 * 1024 * 1024


def test_an_address_of_another_class_is_a_connect_error(up: FaultUpstream) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        with pytest.raises(httpx.ConnectError, match="approved as public"):
            await client.get("/v1/models")

    run(call, up.url, "public")
    assert up.requests == []


def test_line_breaks_in_headers_and_odd_methods_are_refused(up: FaultUpstream) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        with pytest.raises(httpx.LocalProtocolError):
            await client.get("/v1/models", headers={"X-A": "1\r\nX-B: 2"})
        with pytest.raises(httpx.LocalProtocolError):
            await client.get("/v1/models", headers={"X A": "1"})
        for method in ("HEAD", "GET /x HTTP/1.1\r\n", ""):
            with pytest.raises(httpx.UnsupportedProtocol):
                await client.request(method, "/v1/models")

    run(call, up.url)
    assert up.requests == []


def test_unix_sockets_and_private_authorities_work(tmp_path: Path) -> None:
    async def call(client: httpx.AsyncClient) -> int:
        return (await client.get("/v1/models")).status_code

    with FaultUpstream(unix_path=str(tmp_path / "u.sock")) as own:
        assert run(call, own.url, "unix") == 200
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with FaultUpstream(tls=context, name="localhost") as own:
        assert run(call, own.url, ca_pem=authority.cert_pem.bytes().decode()) == 200


@pytest.mark.parametrize("url", ["ftp://x", "http://u:p@x", "", "demo://local"])
def test_a_url_that_is_no_origin_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        open_client(url, "public")
