"""Many streams held at once, each read to its end. `python -m bench.load.streams PORT STREAMS`.

Environment: KEY, MODEL ("bench-sse-NxGAP"). Starts are spread over two seconds. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

import uvloop

from bench.load.client import Connection, chat_request

SPREAD_S = 2.0
TIMEOUT_S = 120.0


class Holder:
    """Opens one connection per stream and counts the ends."""

    def __init__(self, request: bytes, streams: int) -> None:
        self._request = request
        self._streams = streams
        self._left = streams
        self._over = asyncio.Event()
        self._ended: set[int] = set()
        self.complete = 0
        self.events = 0

    def on_reply(self, connection: Connection, reply: bytes) -> None:
        """Count one finished (or lost) stream."""
        if id(connection) in self._ended:
            return
        self._ended.add(id(connection))
        self.events += reply.count(b"data: ")
        self.complete += reply.startswith(b"HTTP/1.1 200") and reply.count(b"data: [DONE]") == 1
        self._left -= 1
        if self._left == 0:
            self._over.set()

    async def run(self, port: int) -> dict[str, float]:
        """Hold all streams; returns the counts."""
        loop = asyncio.get_running_loop()
        kept = []
        start = time.perf_counter()
        for number in range(self._streams):
            wait_s = start + number * SPREAD_S / self._streams - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            _, connection = await loop.create_connection(lambda: Connection(self.on_reply), "127.0.0.1", port)
            connection.send(self._request, time.perf_counter())
            kept.append(connection)
        try:
            await asyncio.wait_for(self._over.wait(), TIMEOUT_S)
        except TimeoutError:
            pass  # the count of complete streams tells
        return {
            "streams": self._streams,
            "complete": self.complete,
            "events": self.events,
            "seconds": round(time.perf_counter() - start, 2),
        }


async def main(port: int, streams: int) -> None:
    """Run and print the counts."""
    request = chat_request(os.environ["MODEL"], os.environ.get("KEY", ""), stream=True)
    print(json.dumps(await Holder(request, streams).run(port)))


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
