"""What the pipeline needs of a server: one request coming in, one answer going out. Knows nothing of ASGI."""

from __future__ import annotations

import asyncio
from typing import Protocol

Headers = list[tuple[bytes, bytes]]


class Exchange(Protocol):
    """One HTTP request and its answer, bound to a server by `gateway.app` (ASGI) or another binding.

    `begin` is called once, then `write` any number of times, then `finish`; or `respond` alone. An answer that was
    begun and not finished is cut by the server: the client sees an incomplete body. `write` and `finish` wait while
    the client's socket buffer is full. When the client leaves, `gone` becomes true and the task that handles the
    exchange is cancelled, unless `keep_running` was set.
    """

    method: str
    path: str
    query: bytes
    headers: Headers
    client: str
    gone: bool
    begun: bool
    keep_running: bool
    task: asyncio.Task[None] | None  # the one that handles the exchange

    async def read_body(self, limit_bytes: int, timeout_s: float) -> bytes:
        """The whole request body. Raises PayloadTooLargeError or RequestTimeoutError."""

    async def respond(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """A complete answer in one go; adds Content-Length."""

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Start an answer whose length is not known."""

    async def write(self, data: bytes) -> None:
        """One piece of the body."""

    async def finish(self, data: bytes = b"") -> None:
        """The last piece of the body, and its clean end."""
