"""What the tests of the upstream pool share: calls to make and conditions to wait for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from providers.upstream import Limits, Origin, Pool, Reply, StreamReply, UpstreamError
from tests.upstream import FaultUpstream

Runner = Callable[[Callable[[], Awaitable[Any]]], Any]
CALM = Limits(total_s=15.0)
QUICK = Limits(connect_s=1.0, first_byte_s=0.15, gap_s=0.15, total_s=5.0)  # only for what must time out


def pool_for(up: FaultUpstream, **options: Any) -> Pool:
    return Pool(Origin.parse(up.url, "unix" if up.unix_path else "loopback"), **options)


def head(pool: Pool, path: str = "/v1/chat/completions") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: {pool.origin.authority}\r\n"
        "Content-Type: application/json\r\nAccept-Encoding: identity\r\n"
    ).encode()


def body(model: str, **fields: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


async def ask(pool: Pool, model: str, limits: Limits = CALM, **fields: Any) -> Reply:
    return await pool.request(head(pool), body(model, **fields), limits)


async def ask_stream(pool: Pool, model: str, limits: Limits = CALM, **fields: Any) -> StreamReply:
    return await pool.stream(head(pool), body(model, stream=True, **fields), limits)


async def failure_of(awaitable: Awaitable[Any]) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await awaitable
    return caught.value


async def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.005)


def text_in(stream: bytes) -> str:
    words = []
    for event in stream.replace(b"\r\n", b"\n").split(b"\n\n"):
        if event.startswith(b"data: {"):
            choices = json.loads(event[6:]).get("choices") or [{}]
            words.append(choices[0].get("delta", {}).get("content", ""))
    return "".join(words)


@contextlib.asynccontextmanager
async def raw_server(*pieces: bytes, gap_s: float = 0.0, deaf: bool = False) -> AsyncIterator[Pool]:
    """A pool for a server that answers a request's head with these bytes and then says nothing more.

    Unless it is `deaf` (reads nothing behind the head), it must see its connections end before this exits.
    """
    over = asyncio.Event()
    handlers: set[Any] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(gap_s)
            await (over.wait() if deaf else reader.read())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield Pool(Origin.parse(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "loopback"))
    finally:
        over.set()
        server.close()
        _, unfinished = await asyncio.wait(handlers, timeout=2)
        assert not unfinished
