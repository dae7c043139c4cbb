"""A small application on the hardened Daphne, started as a process by test_daphne_server.py."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from hoosh_site.daphne_server import DaphneLimits, HardenedServer

PIECE = b"x" * 65536


async def application(scope: Any, receive: Any, send: Any) -> None:
    path = scope["path"]
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        if not message["more_body"]:
            break
    if path == "/fails":
        raise RuntimeError("no")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    if path == "/fails-late":
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        raise RuntimeError("no")
    if path == "/endless":
        for count in range(6400):  # 400 MiB
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            if count % 16 == 0:
                await asyncio.sleep(0)
    if path == "/slow":
        for number in range(8):
            await send({"type": "http.response.body", "body": b"%d," % number, "more_body": True})
            await asyncio.sleep(0.1)
    body = f"{size} {scope['client'][0] if scope['client'] else ''} {scope['scheme']}".encode()
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    limits = DaphneLimits(header_s=0.4, body_s=0.8, body_bytes=1_000_000, linger_s=1.0, drain_s=float(sys.argv[2]))
    HardenedServer(application, sys.argv[1], limits=limits, on_ready=lambda: print("up", flush=True)).run()
