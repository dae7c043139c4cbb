"""A real server that plays Ollama and Synapse for `test_backends`: how a pull goes is chosen by the model's name."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STEPS = 3  # lines of progress behind the first one
FIRST, LAST = {"status": "pulling manifest"}, {"status": "success"}


def step(number: int) -> dict[str, Any]:
    return {"status": "pulling 6a0746a1ec1a", "total": STEPS, "completed": number}


class BackendServer:
    """`models` are those it has; `asked` everything it was asked as (method, path, headers, decoded body).

    Pulls: "ok"; "slow" (a line every 20 ms for ever), "flood" (lines without a pause), "quiet" (one line, then nothing
    for `quiet_s`, then success), "silent" (no answer), "later" (0.3 s, then success), "missing" (an error behind the
    first line), "broken" (an error behind all lines), "cut", "reset", "unfinished" (ends without success), "nonsense",
    "long" (a line without an end), "boom" (500), "html" (502), "refused" (400), "money" (401), "at-once" (success and
    nothing else).
    `left` are the models whose pull ended because the client left. `replies` answers other paths by (method, path).
    """

    def __init__(self, *models: str, quiet_s: float = 60.0) -> None:
        self.models, self.quiet_s = list(models), quiet_s
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []
        self.left: list[str] = []
        self.replies: dict[tuple[str, str], tuple[int, bytes]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"play": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def paths(self) -> list[str]:
        """What was asked, without the probes."""
        return [f"{method} {path}" for method, path, _, _ in self.asked if path != "/v1/models"]

    @property
    def probes(self) -> int:
        return sum(path == "/v1/models" for _, path, _, _ in self.asked)

    def __enter__(self) -> BackendServer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    """One connection to a `BackendServer`, which `play` is."""

    protocol_version = "HTTP/1.1"
    play: BackendServer

    def answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        data = self.rfile.read(length)
        body = json.loads(data) if data else None
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.play.asked.append((self.command, self.path, headers, body))
        match self.command, self.path:
            case "GET", "/v1/models":
                self.reply(200, {"data": [{"id": name} for name in self.play.models]})
            case "POST", "/api/pull":
                self.pull(body["model"])
            case "DELETE", "/api/delete":
                self.forget(body["model"])
            case asked:
                status, told = self.play.replies.get(asked, (404, b'{"error":"no such thing"}'))
                self.reply(status, told)

    do_GET = do_POST = do_DELETE = answer

    def forget(self, model: str) -> None:
        if model == "silent":
            time.sleep(self.play.quiet_s)
        elif model not in self.play.models:
            self.reply(404, {"error": f"model '{model}' not found"})
        else:
            self.play.models.remove(model)
            self.reply(200, b"")

    def pull(self, model: str) -> None:
        match model.partition(":")[0]:
            case "boom":
                self.reply(500, {"error": "disk full on http://10.0.0.5/x"})
            case "html":
                self.reply(502, b"<html><h1>Bad gateway</h1></html>")
            case "refused":
                self.reply(400, {"error": "invalid model name"})
            case "money":
                self.reply(401, {"error": "unauthorized"})
            case "silent":
                time.sleep(self.play.quiet_s)
                self.close_connection = True
            case name:
                self.stream(name, model)

    def stream(self, name: str, model: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/x-ndjson")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            if self.tell(name):
                self.wfile.write(b"0\r\n\r\n")
            else:
                self.close_connection = True
        except (BrokenPipeError, ConnectionResetError):
            self.play.left.append(model)
            self.close_connection = True
        if name in ("ok", "later", "quiet", "at-once"):
            self.play.models.append(model)

    def tell(self, name: str) -> bool:
        """Whether the answer ends as HTTP wants it."""
        if name == "at-once":
            self.line(LAST)
            return True
        self.line(FIRST)
        if name == "missing":
            self.line({"error": "pull model manifest: file does not exist"})
            return True
        while name in ("slow", "flood"):
            self.line(step(1))
            time.sleep(0.02 if name == "slow" else 0)
        if name in ("later", "quiet"):
            time.sleep(0.3 if name == "later" else self.play.quiet_s)
        for number in range(1, STEPS + 1):
            self.line(step(number))
        match name:
            case "cut":
                return False
            case "reset":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                time.sleep(0.1)
                self.connection.close()
                return False
            case "broken":
                self.line({"error": "no space left on device"})
            case "nonsense":
                self.chunk(b"[1, 2\n")
            case "long":
                self.chunk(b"x" * 100_000)
                time.sleep(1)
            case "unfinished":
                pass
            case _:
                self.line(LAST)
        return True

    def line(self, told: dict[str, Any]) -> None:
        self.chunk(json.dumps(told).encode() + b"\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def reply(self, status: int, told: Any) -> None:
        data = told if isinstance(told, bytes) else json.dumps(told).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        if 300 <= status < 400:
            self.send_header("location", "/elsewhere")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass
