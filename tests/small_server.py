"""A real HTTP server on a loopback port that answers fixed replies by path: for probes, discovery and commands."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class SmallServer:
    """`replies` maps a path to (status, body) or (status, body, headers); a dict or list body is sent as JSON. Or
    to what makes such a reply of the request's headers.

    Everything asked is in `asked` as (method, path, headers, body). `delay_s` holds every answer back.
    """

    def __init__(self, replies: dict[str, Any], *, delay_s: float = 0.0) -> None:
        self.replies, self.delay_s = replies, delay_s
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> SmallServer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            server_version, sys_version = "small", ""

            def answer(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.asked.append((self.command, self.path, headers, self.rfile.read(length)))
                time.sleep(server.delay_s)
                reply = server.replies.get(self.path, (404, {"error": {"message": "no"}}))
                status, body, *more = reply(headers) if callable(reply) else reply
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                given: dict[str, Any] = more[0] if more else {}
                for name, value in {
                    "content-type": "application/json",
                    "content-length": str(len(data)),
                    **given,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer

            def log_message(self, *args: object) -> None:
                pass

        return Handler


@contextmanager
def silent_port():
    """A port that accepts connections and never says anything."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def closed_port() -> int:
    """A loopback port nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
