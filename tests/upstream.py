"""A real upstream that misbehaves on purpose: an OpenAI-compatible TCP server for tests.

    with FaultUpstream() as up:            # runs in a thread of its own, usable from sync and async tests
        ... up.url ...                     # "http://127.0.0.1:PORT", no /v1
        up.requests[-1].json               # everything it was sent
        up.script("boom-503", "ok")        # overrides the model name for the next two inference requests

    python -m tests.upstream PORT [--truth FILE]

Paths: POST /v1/chat/completions, /v1/completions, /v1/embeddings, GET /v1/models, GET /health (with any path prefix in
front). Answers are deterministic: `max_tokens` or `max_completion_tokens` = n words (8 without one), the text of choice
0 is `text_of(n)` = "w0 w1 w2 ", one streamed event per word (after a role event, before a finish event). Usage is
`prompt_tokens_of(body)` (whitespace-separated words in the input, at least 1) and n, sent in streams only when
`stream_options.include_usage` is true. `n` choices are answered interleaved.

The model name chooses the behaviour. "NAME@anything" behaves as NAME; a name ending in "gap-50" (alone or as
"cut-gap-50") waits 50 ms before every streamed word; any other name behaves as "ok".

    ok                  a proper answer                     slow-5ms            5 ms before every word (any number)
    first-300ms         waits 300 ms, then as ok            think-300ms         headers at once, then 300 ms nothing
    stall-first         reads the request, then silence     stall-headers       headers, then silence
    stall-mid           3 words (or half a body), silence   drip                one byte per 2 ms
    rate-limit          429, Retry-After: 7                 rate-limit-2        the same with Retry-After: 2
    boom-500, boom-503  that status (any three digits)      unauthorized        401 in OpenAI's shape
    html-error          502 with an HTML page               redirect            307 to this server's /canary
    not-json            200 text/plain "hello"              json-error          200 with an error object (not a stream)
    refuse              closes after reading the request    refuse-rst          the same with a TCP reset
    cut                 3 words, closed unfinished          cut-rst             3 words, TCP reset
    cut-first           headers, then closed unfinished     cut-event           cut in the middle of the fourth event
    error-event         3 words, error event, clean end     error-event-done    the same and then [DONE]
    error-event-named   3 words, "event: error" event       error-first         an error event before any word
    no-usage            never reports usage                 null-usage          "usage": null
    absurd-usage        negative, 1e18 and text as usage    big-usage           ten times the words it sent
    finish-usage        usage on the finish chunk           double-done         [DONE] twice and a word behind it
    no-done             ends cleanly without [DONE]         crlf                CRLF line ends in events
    comments            comment lines between events        joined              the whole stream in one write
    utf8-split          4-byte characters split over TCP segments (text of word i is "wi😀 ")
    huge-line           one line of 64 MiB                  flood               64 KiB events until the client leaves
    tiny-events         one million tiny events, in large writes
    gzip                gzip body or stream, unasked        gzip-bomb           256 MiB of zeros, gzipped
    gzip-cut            a gzip body that ends too early     brotli              claims Content-Encoding: br
    close-reuse         answers; closes the connection when the next request on it has been read, without answering it
    close-reuse-unread  answers; resets the connection when the first byte of the next request arrives
    close-idle          answers as if keeping alive, then closes at once
    close-after         answers with Connection: close      close-delimited     no length, ended by closing
    early-hints         100 and 103 before the 200          extra-bytes         bytes behind the end of the answer
    bad-status          not HTTP at all                     bad-chunk           a chunk size that is not hex
    huge-header         a header of 1 MiB                   upgrade             101 Switching Protocols
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from ssl import SSLContext
from typing import Any

from tests.upstream_answers import Behaviours, prompt_tokens_of, text_of, word_of
from tests.upstream_wire import Connection, EndError, GoneError, Request

__all__ = ["FaultUpstream", "Request", "prompt_tokens_of", "text_of", "word_of"]


class FaultUpstream(Behaviours):
    """The server. `host`, `port` 0 = any free one; `unix_path` listens on a Unix socket instead.

    `tls` is a server-side `SSLContext` (the URL then begins with https and names `name`). With `api_key` set, requests
    without that bearer key get 401. `truth` is a file that gets one JSON line per answered request, in one write.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        unix_path: str = "",
        tls: SSLContext | None = None,
        name: str = "",
        api_key: str = "",
        truth: str | os.PathLike[str] = "",
    ) -> None:
        self.host, self.port, self.unix_path, self.tls, self.name = host, port, unix_path, tls, name or host
        self.api_key = api_key
        self.truth = truth
        self.models: list[str] = ["ok", "m1", "m2"]
        self.requests: list[Request] = []
        self.accepted = 0  # connections taken since the start
        self.unread_closes = 0  # how often "close-reuse-unread" met a second request
        self.always = ""  # a behaviour for every inference request, before the model name is looked at
        self._scripted: deque[str] = deque()
        self._connections: set[Connection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: asyncio.AbstractServer | None = None

    @property
    def url(self) -> str:
        """The base URL, without /v1."""
        if self.unix_path:
            return f"unix://{self.unix_path}"
        return f"{'https' if self.tls else 'http'}://{self.name}:{self.port}"

    @property
    def inference(self) -> list[Request]:
        """The recorded requests to inference endpoints only (no model lists or health probes)."""
        return [request for request in list(self.requests) if request.method == "POST"]

    @property
    def open_connections(self) -> int:
        """Connections open right now."""
        return len(self._connections)

    def script(self, *behaviours: str) -> None:
        """The next inference requests, in order of arrival, get these behaviours whatever model they name."""
        self._scripted.extend(behaviours)

    def wait_for(self, condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
        """Poll until `condition()` is true and return its value; AssertionError after `timeout_s`. Blocks."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < deadline, "the upstream did not see it in time"
            time.sleep(0.005)
        return value

    def stop_listening(self) -> None:
        """Refuse new connections and reset the open ones, as if the process died. `listen_again` undoes it."""
        self._call(self._down())

    def listen_again(self) -> None:
        """Listen on the same address again."""
        self._call(self._listen())

    def close_connections(self) -> None:
        """Close all open connections in an orderly way, whatever they are doing."""
        self._call(self._close_all())

    def start(self) -> None:
        """Listen; `url` is valid afterwards."""
        ready = threading.Event()
        failures: list[BaseException] = []

        def run() -> None:
            async def main() -> None:
                self._loop = asyncio.get_running_loop()
                self._stopping = asyncio.Event()
                try:
                    await self._listen()
                except BaseException as exc:
                    failures.append(exc)
                    return
                finally:
                    ready.set()
                await self._stopping.wait()
                await self._down()

            asyncio.run(main())

        self._thread = threading.Thread(target=run, name="fault-upstream", daemon=True)
        self._thread.start()
        ready.wait(10)
        if failures:
            raise failures[0]

    def stop(self) -> None:
        """Close everything and end the thread."""
        if self._loop is not None and self._thread is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(10)

    def __enter__(self) -> FaultUpstream:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _call(self, coroutine: Any) -> None:
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        if self.unix_path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.unix_path)
            self._server = await loop.create_unix_server(lambda: Connection(self), self.unix_path, ssl=self.tls)
            return
        self._server = await loop.create_server(
            lambda: Connection(self), self.host, self.port, ssl=self.tls, backlog=2048, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _down(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        connections = list(self._connections)
        for conn in connections:
            conn.reset()
        await asyncio.gather(*(conn.task for conn in connections), return_exceptions=True)

    async def _close_all(self) -> None:
        for conn in list(self._connections):
            conn.transport.close()

    def _opened(self, conn: Connection) -> int:
        self._connections.add(conn)
        self.accepted += 1
        return self.accepted

    def _closed(self, conn: Connection) -> None:
        self._connections.discard(conn)

    async def _serve(self, conn: Connection) -> None:
        try:
            while True:
                request = await self._read(conn)
                if conn.on_next == "close-read":
                    raise EndError
                await self._answer(conn, request)
                self._finish(request)
                conn.request = None
        except GoneError:
            await conn.gone.wait()
        except EndError:
            pass
        finally:
            if conn.request is not None:
                if not conn.gone.is_set():
                    self._finish(conn.request)
                else:
                    self._write_truth(conn.request)
            conn.transport.close()

    def _finish(self, request: Request) -> None:
        request.finished_at = time.monotonic()
        self._write_truth(request)

    def _write_truth(self, request: Request) -> None:
        if self.truth:
            descriptor = os.open(self.truth, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(descriptor, json.dumps(request.truth()).encode() + b"\n")
            os.close(descriptor)

    async def _read(self, conn: Connection) -> Request:
        head = (await conn.read_until(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head[:-4].split("\r\n")
        method, path, _version = first.split(" ", 2)
        raw = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        headers = {name.lower(): value for name, value in raw}
        if "chunked" in headers.get("transfer-encoding", "").lower():
            body = b""
            while size := int((await conn.read_until(b"\r\n")).split(b";")[0], 16):
                body += await conn.read_exactly(size)
                await conn.read_exactly(2)
            await conn.read_until(b"\r\n")
        else:
            body = await conn.read_exactly(int(headers.get("content-length") or 0))
        request = Request(
            number=len(self.requests),
            connection=conn.number,
            method=method,
            path=path,
            headers=headers,
            raw_headers=raw,
            body=body,
            behaviour="",
            at=time.monotonic(),
        )
        conn.request = request
        conn.requests.append(request)
        if conn.on_next != "close-read":
            request.behaviour = self._behaviour(request)
        else:
            request.behaviour = "close-reuse"
        self.requests.append(request)
        return request

    def _behaviour(self, request: Request) -> str:
        if request.method != "POST":
            return ""
        if self._scripted:
            return self._scripted.popleft()
        return self.always or request.model.partition("@")[0] or "ok"


def main() -> None:
    """Run alone until interrupted."""
    parser = argparse.ArgumentParser(description="Run the fault upstream alone.")
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--truth", default="", help="file that gets one JSON line per answered request")
    options = parser.parse_args()
    with FaultUpstream(host=options.host, port=options.port, truth=options.truth) as up:
        print(up.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
