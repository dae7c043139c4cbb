"""A real worker process around a runtime of a few lines: what processes do is tested without what requests do."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from hoosh_site import child
from hoosh_site.supervisor import Plan, ServeError, Supervisor, Timing, default_command
from hoosh_site.worker import WorkerOptions, run_worker


class StubDesk:
    """A desk that only remembers."""

    send_ask = send_return = None
    line = "never"

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def on_granted(self, *values: Any) -> None:
        self.told.append(values)

    def on_recall(self, *values: Any) -> None:
        self.told.append(values)

    def connected(self) -> None:
        self.line = "up"

    def disconnected(self) -> None:
        self.line = "down"


class StubIdempotency:
    """Remembers what it was answered."""

    send_begin = send_end = None
    line = "never"

    def __init__(self) -> None:
        self.answers: list[tuple[Any, ...]] = []

    def on_answer(self, *values: Any) -> None:
        self.answers.append(values)

    def disconnected(self) -> None:
        self.line = "down"


class StubRuntime:
    """Answers who it is and what it was told; streams slowly."""

    inference_pattern = r"^v1/chat/completions$"
    inference_paths = ("/v1/chat/completions",)

    def __init__(self) -> None:
        self.desk = StubDesk()
        self.idempotency = StubIdempotency()
        self.config_version = 0
        self.keys: set[int] = set()
        self.access_seen = self.draining = self.stopped = False
        self.streams: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        return self.config_version > 0 and self.access_seen

    async def start(self) -> None: ...

    async def stop(self) -> None:
        self.stopped = True

    def drain(self) -> None:
        self.draining = True

    def abort_streams(self) -> None:
        for task in self.streams:
            task.cancel()

    def status(self) -> dict[str, Any]:
        return {"config_version": self.config_version, "keys": sorted(self.keys), "line": self.desk.line}

    def on_config(self, version: int, blob: bytes) -> None:
        self.config_version = version

    def on_secrets(self, items: Any) -> None: ...

    def on_access(self, seq: int, full: bool, keys: Any, pools: Any) -> None:
        self.access_seen = True
        self.keys |= {key.id for key in keys}

    def on_cards(self, cards: Any, prices: Any, models: Any) -> None: ...

    def on_health(self, down: Any) -> None: ...

    def on_cache_purge(self, number: int) -> None: ...

    def on_warming(self, questions: Any) -> None: ...

    def on_audit(self, head: str) -> None: ...

    def explain(self, body: bytes) -> bytes:
        return body

    def asgi(self, forward: Any) -> Any:
        return self.answer

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"connection", b"close")] if self.draining else []
        events = int(parse_qs(scope["query_string"].decode()).get("events", ["0"])[0])
        if not events:
            body = json.dumps({"pid": os.getpid(), **self.status()}).encode()
            headers.append((b"content-length", b"%d" % len(body)))
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        task = asyncio.current_task()
        assert task is not None
        self.streams.add(task)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        end = b"data: [DONE]\n\n"
        try:
            for number in range(events):
                await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
                await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            task.uncancel()
            end = b'data: {"error":"drained"}\n\n'
        finally:
            self.streams.discard(task)
        await send({"type": "http.response.body", "body": end})


def worker_main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    for name in ("--index", "--socket-fd", "--ready-fd", "--parent-pid"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--drain-s", type=float, required=True)
    options = parser.parse_args(arguments)
    child.enter(options.parent_pid)
    os.environ["HOOSH_ROLE"] = "worker"
    from django.conf import settings

    run_worker(
        WorkerOptions(
            index=options.index,
            link_socket=settings.HOOSH_LINK_SOCKET,
            control_socket=settings.HOOSH_CONTROL_SOCKET,
            run_dir=settings.HOOSH_RUN_DIR,
            version="stub",
            drain_s=options.drain_s,
            trusted_proxies=tuple(settings.HOOSH_TRUSTED_PROXIES),
        ),
        lambda _options, _trust: StubRuntime(),
        listener=socket.socket(fileno=options.socket_fd),
        pulse=child.Pulse(options.ready_fd),
    )


def supervisor_main(port: int, workers: int, run_dir: Path, drain_s: float) -> None:
    def command(role: str, index: int, socket_fd: int | None, ready_fd: int) -> list[str]:
        ours = default_command(role, index, socket_fd, ready_fd)
        if role == "worker":
            ours[1:3] = ["-m", "tests.site.stub_worker", "worker", "--drain-s", str(drain_s)]
        return ours

    try:
        sys.exit(Supervisor(Plan("127.0.0.1", port, workers, run_dir, command, Timing(drain_s=drain_s))).run())
    except ServeError as exc:
        sys.exit(str(exc))


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        worker_main(sys.argv[2:])
    else:
        supervisor_main(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), float(sys.argv[5]))
