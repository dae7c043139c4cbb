"""How long the worker's event loop is held up: the same small question each millisecond, over one connection.

Run as `python -m bench.load.stall PORT SECONDS PID...`. What is asked (`/livez`) is answered from memory, so an answer
takes long only where something else ran: in the worker, which is a stall of its loop, or beside it, which is none. The
processes' own CPU time during a question tells these apart. Prints one JSON object; times in microseconds.
"""

from __future__ import annotations

import json
import socket
import sys
import time

from bench import processes

GAP_S = 0.001
_REQUEST = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def main() -> None:
    """Ask for so many seconds and print how long the answers took."""
    port, seconds, pids = int(sys.argv[1]), float(sys.argv[2]), [int(pid) for pid in sys.argv[3:]]
    took, stalls = [], []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            used_s, begin = processes.cpu_s(pids), time.perf_counter()
            connection.sendall(_REQUEST)
            if not connection.recv(65536).startswith(b"HTTP/1.1 200"):
                raise SystemExit("the worker does not say that it lives")
            took.append(time.perf_counter() - begin)
            stalls.append(min(took[-1], processes.cpu_s(pids) - used_s))
            time.sleep(GAP_S)
    told = {"max_us": max(took), "stall_us": max(stalls), "stall_p999_us": sorted(stalls)[int(len(stalls) * 0.999)]}
    print(json.dumps({"requests": len(took), **{name: round(value * 1e6) for name, value in told.items()}}))


if __name__ == "__main__":
    main()
