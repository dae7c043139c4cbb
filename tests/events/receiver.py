"""A receiver of webhooks on a real socket. It checks signatures as Standard Webhooks tells receivers to, on its own."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Received:
    """One call as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        return json.loads(self.body)


@dataclass
class Receiver:
    """Answers each call with what `answer` says: a status, a status with headers, or None = never."""

    answer: Callable[[Received], Any] = lambda received: 204
    port: int = 0
    calls: list[Received] = field(default_factory=list)
    taken: list[Received] = field(default_factory=list)  # those answered with 2xx

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?for=tests"

    def __enter__(self) -> Receiver:
        owner = self
        self.ending = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                received = Received(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                owner.calls.append(received)
                answer = owner.answer(received)
                if answer is None:
                    owner.ending.wait(30)
                    self.close_connection = True
                    return
                status, headers = answer if isinstance(answer, tuple) else (answer, {})
                if 200 <= status < 300:
                    owner.taken.append(received)
                self.send_response(status)
                for name, value in {"content-length": "0", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.ending.set()
        self.server.shutdown()
        self.server.server_close()


def is_genuine(received: Received, secret: str, *, tolerance_s: int = 300) -> bool:
    """The check of the specification: signed content is id.timestamp.body, the key is what stands behind whsec_."""
    scheme, _, text = secret.partition("_")
    assert scheme == "whsec"
    sent_at = int(received.headers["webhook-timestamp"])
    content = received.headers["webhook-id"].encode() + b"." + str(sent_at).encode() + b"." + received.body
    expected = hmac.digest(base64.b64decode(text, validate=True), content, hashlib.sha256)
    given = [each.split(",", 1) for each in received.headers["webhook-signature"].split(" ")]
    fresh = abs(time.time() - sent_at) < tolerance_s
    return fresh and any(
        version == "v1" and hmac.compare_digest(base64.b64decode(signature), expected) for version, signature in given
    )
