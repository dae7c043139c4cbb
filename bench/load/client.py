"""A small HTTP/1.1 client for load: one connection, one request at a time, framing only as far as we need it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import cast

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def chat_request(model: str, key: str, *, stream: bool) -> bytes:
    """A chat request of about 1 KB, complete with its head."""
    values: dict[str, object] = {
        "model": model,
        "messages": [{"role": "user", "content": "Please summarise the following paragraph. " * 20}],
        "max_tokens": 256,
    }
    if stream:
        values |= {"stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps(values, separators=(",", ":")).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """Calls `on_reply(connection, reply)` with the raw bytes of each whole reply; b"" when the connection is lost."""

    def __init__(self, on_reply: Callable[[Connection, bytes], None]) -> None:
        self._on_reply = on_reply
        self._parts: list[bytes] = []
        self._wanted = 0  # total bytes of the reply; 0 = head not complete yet, -1 = chunked
        self.transport: asyncio.Transport | None = None
        self.sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        """Report a reply that will not come."""
        self.transport = None
        self._on_reply(self, b"")

    def send(self, request: bytes, now: float) -> None:
        """Write a request; `now` is kept as `sent_at`."""
        self._parts, self._wanted, self.sent_at = [], 0, now
        if self.transport is not None:
            self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Collect until the reply is complete."""
        self._parts.append(data)
        if self._wanted == 0:
            self._read_head()
        if self._wanted == -1:
            complete = b"".join(self._parts[-2:]).endswith(b"0\r\n\r\n")
        else:
            complete = self._wanted > 0 and sum(map(len, self._parts)) >= self._wanted
        if complete:
            self._on_reply(self, b"".join(self._parts))

    def _read_head(self) -> None:
        received = b"".join(self._parts)
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(received, 0, end)
        self._wanted = end + 4 + int(length[1]) if length else -1
