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
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_MODELS = b'{"object":"list","data":[]}'
_OTHER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_MODELS), _MODELS)


def _chunk(data: bytes) -> bytes:
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


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

    def event(choices: list[object], usage: object) -> bytes:
        return _chunk(json.dumps({**base, "choices": choices, "usage": usage}, separators=(",", ":")).encode())

    def word(number: int) -> list[object]:
        finish = "stop" if number == words - 1 else None
        return [{"index": 0, "delta": {"content": f" word{number % 100:02d}"}, "finish_reason": finish}]

    usage = {"prompt_tokens": 182, "completion_tokens": words, "total_tokens": 182 + words}
    return (*(event(word(number), None) for number in range(words)), event([], usage), _chunk(b"[DONE]") + b"0\r\n\r\n")


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
            wanted = _MODEL.search(request, end)
            if wanted:
                self._transport.write(_HEAD)
                self._send(answer(int(wanted[1])), 0, int(wanted[2]) / 1000)
            else:
                self._transport.write(_OTHER)

    def _send(self, events: tuple[bytes, ...], index: int, gap_s: float) -> None:
        if self._transport is None:
            return
        self._transport.write(events[index])
        if index + 1 < len(events):
            self._loop.call_later(gap_s, self._send, events, index + 1, gap_s)


async def main(port: int) -> None:
    """Listen on loopback until killed."""
    server = await asyncio.get_running_loop().create_server(Mock, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
