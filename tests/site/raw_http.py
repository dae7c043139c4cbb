"""Raw HTTP over sockets for tests: what a client library would never send, and exactly what came back."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from hoosh_site.strict_http import HttpLimits, strict_protocol

App = Callable[[Any, Any, Any], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(app: App, limits: HttpLimits | None = None) -> AsyncIterator[int]:
    """The application behind the strict protocol on a free loopback port."""
    config = uvicorn.Config(
        app,
        http=strict_protocol(limits or HttpLimits()),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
    )
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}),  # type: ignore[call-arg]
        "127.0.0.1",
        0,
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        for task in list(state.tasks):
            task.cancel()
        await asyncio.sleep(0.01)


async def talk(
    port: int | str, *pieces: bytes, wait_s: float = 2.0, pause_s: float = 0.0, quiet_s: float | None = None
) -> bytes:
    """Send pieces, then read until the server closes, `wait_s` is over or, after some answer, it is quiet for
    `quiet_s`. A port that is a string is the path of a Unix socket."""
    if isinstance(port, str):
        reader, writer = await asyncio.open_unix_connection(port)
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = b""
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            if pause_s:
                await asyncio.sleep(pause_s)
        async with asyncio.timeout(wait_s):
            while data := await asyncio.wait_for(reader.read(65536), quiet_s if got else None):
                got += data
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return got


def statuses(answer: bytes) -> list[int]:
    """Status codes of all replies in a byte string."""
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
