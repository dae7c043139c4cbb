"""The streaming upstream of the benchmark: server-sent events at a pace that the model name sets.

Run as `python -m bench.mock PORT`. The model "bench-sse-30x5" is answered with 30 events, 5 ms apart: words, then the
usage event, then [DONE]. `python -m bench.mock` has no other behaviour: faults are `tests.upstream`'s.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
import sys
from typing import cast

import uvloop

_MODEL = re.compile(rb'"model":\s*"bench-sse-(\d+)x(\d+)"')
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"


def whole(body: bytes) -> bytes:
    """A JSON reply in one piece, with its head."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def event(data: bytes, name: bytes = b"") -> bytes:
    """One server-sent event."""
    return b"event: %b\ndata: %b\n\n" % (name, data) if name else b"data: %b\n\n" % data


def chunk(data: bytes) -> bytes:
    """One chunk of a reply without length."""
    return b"%x\r\n%b\r\n" % (len(data), data)


_MODELS = whole(b'{"object":"list","data":[]}')


@functools.cache
def answer(events: int) -> tuple[bytes, ...]:
    """The writes of one answer with so many events, the last of which ends it."""
    base = {
        "id": "chatcmpl-9f3a1c77d2b94e0a8c51",
        "object": "chat.completion.chunk",
        "created": 1_760_000_000,
        "model": "bench-sse",
        "system_fingerprint": "fp_0aa8d3e20b",
    }
    words = events - 2

    def told(choices: list[object], usage: object) -> bytes:
        values = {**base, "choices": choices, "usage": usage}
        return chunk(event(json.dumps(values, separators=(",", ":")).encode()))

    def word(number: int) -> list[object]:
        finish = "stop" if number == words - 1 else None
        return [{"index": 0, "delta": {"content": f" word{number % 100:02d}"}, "finish_reason": finish}]

    usage = {"prompt_tokens": 182, "completion_tokens": words, "total_tokens": 182 + words}
    end = chunk(event(b"[DONE]")) + STREAM_END
    return (*(told(word(number), None) for number in range(words)), told([], usage), end)


class Mock(asyncio.Protocol):
    """One connection: a request at a time, as HTTP/1.1 clients without pipelining send them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop streaming."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0 and self._transport is not None:
            length = _LENGTH.search(self._received, 0, end)
            total = end + 4 + (int(length[1]) if length else 0)
            if len(self._received) < total:
                return
            request, self._received = self._received[:total], self._received[total:]
            head, pieces, gap_s = self.reply(request, end)
            self._transport.write(head)
            if pieces:
                self._send(pieces, 0, gap_s)

    def reply(self, request: bytes, end: int) -> tuple[bytes, tuple[bytes, ...], float]:
        """What is written at once, what is written after it, and the seconds between two of those writes.

        `end` is where the head of the request ends.
        """
        wanted = _MODEL.search(request, end)
        return (STREAM_HEAD, answer(int(wanted[1])), int(wanted[2]) / 1000) if wanted else (_MODELS, (), 0.0)

    def _send(self, events: tuple[bytes, ...], index: int, gap_s: float) -> None:
        if self._transport is None:
            return
        self._transport.write(events[index])
        if index + 1 < len(events):
            self._loop.call_later(gap_s, self._send, events, index + 1, gap_s)


async def main(port: int, protocol: type[Mock] = Mock) -> None:
    """Listen on loopback until killed."""
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
