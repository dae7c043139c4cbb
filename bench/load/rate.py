"""Open-loop latency: requests at a fixed rate, timed from when they were due.

Run as `python -m bench.load.rate PORT RATE SECONDS`. Environment: KEY, MODEL. Prints one JSON
object; latencies in microseconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

import uvloop

from bench.load.client import Connection, chat_request

CONNECTIONS = 16


class Probe:
    """Sends on idle connections when a request is due; `missed` counts those that found none idle."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.idle: list[Connection] = []
        self.latencies_s: list[float] = []
        self.missed = 0
        self.errors = 0

    def on_reply(self, connection: Connection, reply: bytes) -> None:
        """Take the time of one reply."""
        if not reply:
            self.errors += 1
            return
        if reply.startswith(b"HTTP/1.1 200"):
            self.latencies_s.append(time.perf_counter() - connection.sent_at)
        else:
            self.errors += 1
        self.idle.append(connection)

    async def run(self, port: int, rate: float, duration_s: float) -> None:
        """Open the connections and send for `duration_s`."""
        loop = asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            _, connection = await loop.create_connection(lambda: Connection(self.on_reply), "127.0.0.1", port)
            self.idle.append(connection)
        start = time.perf_counter()
        for number in range(int(rate * duration_s)):
            due = start + number / rate
            wait_s = due - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            if self.idle:
                self.idle.pop().send(self._request, due)
            else:
                self.missed += 1
        await asyncio.sleep(0.5)

    def summary(self) -> dict[str, float]:
        """Percentiles of what was measured."""
        values = sorted(self.latencies_s)
        if not values:
            return {"requests": 0, "p50_us": 0, "p99_us": 0, "errors": self.errors, "missed": self.missed}
        return {
            "requests": len(values),
            "p50_us": round(values[len(values) // 2] * 1e6),
            "p99_us": round(values[int(len(values) * 0.99)] * 1e6),
            "errors": self.errors,
            "missed": self.missed,
        }


def main() -> None:
    """Run one probe and print its summary."""
    port, rate, duration_s = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    request = chat_request(os.environ.get("MODEL", "bench-unary"), os.environ.get("KEY", ""), stream=False)
    probe = Probe(request)
    uvloop.run(probe.run(port, rate, duration_s))
    print(json.dumps(probe.summary()))


if __name__ == "__main__":
    main()
