"""The ASGI binding of the pipeline: one plain callable for every path that needs no database.

It matches the path, answers what comes from memory, hands inference to `gateway.pipeline` and everything else to the
forwarder. It watches for clients that leave (a server only tells who asks) and sweeps bodies that never arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import urllib.parse
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol

from gateway import cors, counting, explain, health, models_list, pipeline, unserved
from gateway.counting import Counter
from gateway.dialects import gemini, openai
from gateway.endpoints import INFERENCE, Endpoint, find
from gateway.errors import (
    GatewayError,
    MethodNotAllowedError,
    PayloadTooLargeError,
    RequestTimeoutError,
)

if TYPE_CHECKING:
    from gateway.runtime import Runtime

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

# What Channels' router sends here. Everything else goes to control.
PATTERN = (
    r"^(?:(?:openai/)?v1/.*|v1(?:beta|alpha)/.*|(?:up|down)load/v1(?:beta|alpha)?/.*|(?:m|tunedM)odels(?:/.*)?"
    r"|api/(?!schema(?:/|$)).*|livez|readyz|)$"
)
_GEMINI_PATHS = ("/v1beta/", "/v1alpha/", "/upload/", "/download/", "/models", "/tunedModels")
API_PATHS = ("/v1/", *_GEMINI_PATHS, "/api/", "/openai/")
ALIAS = "/openai"  # some clients put it before every path


class Connection(Protocol):
    """What a server of ours offers in `scope["hoosh.connection"]`: a call when the client leaves."""

    on_gone: Callable[[], None] | None
    task: asyncio.Task[None] | None  # of the request it is asked about

    def body(self, receive: Receive) -> bytes | None:
        """The body of the request, where all of it is here already; None where it must be received."""

    def listen(self, gone: Callable[[], None]) -> None:
        """Call `gone` when the client leaves. The body is complete: reading goes on, or its end would not be seen."""

    def reply(self, send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """Send a complete reply in one go; False when it must be sent the ordinary way."""

    def piece(self, send: Send, data: bytes) -> bool:
        """Send a piece of a reply that has begun; False when it must be sent the ordinary way."""

    def cork(self, send: Send) -> None:
        """Let the head of the reply wait for the first piece of its body, so that both leave in one write."""


class AsgiExchange:
    """One request under an ASGI server (see `gateway.exchange.Exchange` for the promises)."""

    __slots__ = (
        "_closing",
        "_connection",
        "_cors",
        "_deadline",
        "_expired",
        "_finished",
        "_receive",
        "_send",
        "_watcher",
        "begun",
        "client",
        "gone",
        "headers",
        "keep_running",
        "method",
        "path",
        "query",
        "task",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, client: str) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope.get("query_string", b"")
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.client = client
        self.gone = self.begun = self.keep_running = False
        self._receive, self._send = receive, send
        self._connection: Connection | None = scope.get("hoosh.connection")
        self.task = self._connection.task if self._connection is not None else asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self._deadline = 0.0
        self._expired = self._finished = self._closing = False
        self._cors: list[tuple[bytes, bytes]] = []

    async def read_body(self, limit_bytes: int, timeout_s: float) -> bytes:
        """The whole body; starts watching for the client's leaving once it is complete."""
        body = self._connection.body(self._receive) if self._connection is not None else None
        if body is None:
            body = await self._receive_body(limit_bytes, timeout_s)
        if len(body) > limit_bytes:
            raise PayloadTooLargeError(limit_bytes)
        if self._connection is not None:
            self._connection.listen(self._left)
        else:
            self._watcher = asyncio.get_running_loop().create_task(self._watch())
        return body

    async def _receive_body(self, limit_bytes: int, timeout_s: float) -> bytes:
        self._deadline = time.monotonic() + timeout_s
        try:
            message = await self._receive()
            body: bytes = message.get("body", b"")
            if message.get("more_body"):
                body = await self._read_rest(body, limit_bytes)
        except asyncio.CancelledError:
            if self._expired and self.task is not None:
                self.task.uncancel()
                raise RequestTimeoutError("The request body did not arrive in time.") from None
            raise
        finally:
            self._deadline = 0.0
        if message["type"] == "http.disconnect":
            self.gone = True
            raise asyncio.CancelledError
        return body

    async def _read_rest(self, first: bytes, limit_bytes: int) -> bytes:
        pieces, size = [first], len(first)
        while True:
            if size > limit_bytes:
                raise PayloadTooLargeError(limit_bytes)
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                raise asyncio.CancelledError
            piece = message.get("body", b"")
            pieces.append(piece)
            size += len(piece)
            if not message.get("more_body"):
                return b"".join(pieces)

    async def _watch(self) -> None:
        """Under any ASGI server: only who asks is told that the client left."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left()

    def _left(self) -> None:
        if not self._finished:
            self.gone = True
            if not self.keep_running and self.task is not None:
                self.task.cancel()

    def expire(self, now: float) -> None:
        """Cancel the reading of a body whose time is over; called by the sweep."""
        if self._deadline and now > self._deadline and self.task is not None:
            self._deadline = 0.0
            self._expired = True
            self.task.cancel()

    def say_with(self, headers: list[tuple[bytes, bytes]], *, closing: bool) -> None:
        """Headers every answer of this exchange carries (CORS), and whether the connection closes behind it."""
        self._cors, self._closing = headers, closing

    def _complete(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.begun = True
        if self._cors:
            headers += self._cors
        if self._closing:
            headers.append((b"connection", b"close"))

    def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> Message:
        self._complete(headers)
        if self._connection is not None and self.method != "HEAD":
            self._connection.cork(self._send)
        return {"type": "http.response.start", "status": status, "headers": headers}

    async def respond(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """A complete answer."""
        headers.append((b"content-length", b"%d" % len(body)))
        connection = self._connection
        if connection is not None and self.method != "HEAD":
            self._complete(headers)
            self._finished = True
            if connection.reply(self._send, status, headers, body):
                return
            await self._send({"type": "http.response.start", "status": status, "headers": headers})
        else:
            await self._send(self._start(status, headers))
        self._finished = True
        await self._send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The head of an answer of unknown length."""
        await self._send(self._start(status, headers))

    async def write(self, data: bytes) -> None:
        """One piece; waits while the client reads too slowly. Goes nowhere once the client is gone."""
        if not self.gone and (self._connection is None or not self._connection.piece(self._send, data)):
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        """The last piece and the clean end."""
        self._finished = True
        if not self.gone:
            await self._send({"type": "http.response.body", "body": data})

    def close(self) -> None:
        """Stop watching. Call when the handling is over, however it ended."""
        if self._connection is not None:
            self._connection.on_gone = None
            if self._connection.task is self.task:  # not that of a pipelined request, which has begun by now
                self._connection.task = None
        elif self._watcher is not None:
            self._watcher.cancel()
        # A cancelled task's traceback leads back here: a cycle that would be left to the collector.
        self._connection = self._watcher = self.task = None


class GatewayApp:
    """The callable that Channels' router mounts. `forward` takes what belongs to control."""

    def __init__(self, runtime: Runtime, forward: Asgi) -> None:
        self._runtime = runtime
        self._forward = forward
        self._open: set[AsgiExchange] = set()

    def sweep(self, now: float) -> None:
        """Expire bodies that are overdue; the runtime calls this a few times a second."""
        for exchange in tuple(self._open):
            exchange.expire(now)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        # Channels' URLRouter leaves "path" as it was received and puts the rest into path_remaining.
        endpoint = INFERENCE.get(scope["path"])
        if endpoint is None or scope["method"] != "POST":
            await self._other(scope, receive, send)
        else:
            await self._serve(scope, receive, send, endpoint)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, endpoint: Endpoint | Counter) -> None:
        """Inference, or the counting of tokens."""
        runtime = self._runtime
        exchange = AsgiExchange(scope, receive, send, self._client(scope))
        exchange.say_with(self._cors_headers(exchange.headers), closing=runtime.draining)
        self._open.add(exchange)
        try:
            if isinstance(endpoint, Counter):
                await counting.serve(runtime, exchange, endpoint)
            else:
                await pipeline.serve(runtime, exchange, endpoint)
        finally:
            self._open.discard(exchange)
            exchange.close()

    def _client(self, scope: Scope) -> str:
        trust = self._runtime.trust
        if trust is not None:
            return trust(scope)
        client = scope.get("client")
        return client[0] if client else ""

    def _cors_headers(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        for name, value in headers:
            if name == b"origin":
                return cors.reply_headers(self._runtime.cors_origins, value)
        return []

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Everything but the commonest paths of inference: other spellings of them, preflights, memory answers, the
        model list, wrong verbs, paths that nobody serves, control's paths."""
        written = scope["path"]
        scope = spelled(scope)
        path, method = scope["path"], scope["method"]
        endpoint = find(path, scope.get("query_string", b"")) or counting.find(path)
        if endpoint is not None and method == "POST":
            await self._serve(scope, receive, send, endpoint)
            return
        exchange = AsgiExchange(scope, receive, send, self._client(scope))
        is_api = path.startswith(API_PATHS)
        headers = self._cors_headers(exchange.headers) if is_api else []
        exchange.say_with(headers, closing=self._runtime.draining)
        if is_api and method == "OPTIONS":
            status, allow, body = cors.preflight(self._runtime.cors_origins, exchange.headers)
            exchange.say_with([], closing=self._runtime.draining)
            with contextlib.suppress(asyncio.CancelledError):
                await send({"type": "http.response.start", "status": status, "headers": allow})
                await send({"type": "http.response.body", "body": body})
            return
        if endpoint is not None:
            dialect = endpoint.endpoint.dialect if isinstance(endpoint, Counter) else endpoint.dialect
            await pipeline.refuse_simply(self._runtime, exchange, MethodNotAllowedError(method, ("POST",)), dialect)
        elif path == explain.PATH:
            await self._explain(exchange, method)
        elif path in LOCAL_PATHS:
            await self._from_memory_or_refuse(exchange, path, method)
        elif path not in CONTROL_PATHS and models_list.serves(path):
            await self._models(exchange, written, path, method)
        elif (known := unserved.dialect_of(path, exchange.headers)) is not None:
            await pipeline.refuse_simply(self._runtime, exchange, unserved.error(written, known), known)
        else:
            await self._forward(scope, receive, with_headers(send, headers))

    async def _from_memory_or_refuse(self, exchange: AsgiExchange, path: str, method: str) -> None:
        if method not in ("GET", "HEAD"):
            await pipeline.refuse_simply(self._runtime, exchange, MethodNotAllowedError(method, ("GET", "HEAD")))
            return
        status, headers, body = self._from_memory(path, head=method == "HEAD")
        await self._answer(exchange, status, headers, body)

    async def _explain(self, exchange: AsgiExchange, method: str) -> None:
        if method != "POST":
            await pipeline.refuse_simply(self._runtime, exchange, MethodNotAllowedError(method, ("POST",)))
            return
        self._open.add(exchange)
        try:
            await explain.serve(self._runtime, exchange)
        finally:
            self._open.discard(exchange)
            exchange.close()

    async def _models(self, exchange: AsgiExchange, written: str, path: str, method: str) -> None:
        allowed = models_list.methods(path)
        if method not in allowed:
            dialect = models_list.dialect_of(exchange)
            error: GatewayError = MethodNotAllowedError(method, allowed)
            if ":" in path and (dialect is gemini.GEMINI_SSE or (method == "POST" and dialect is openai.DIALECT)):
                dialect = gemini.GEMINI_SSE  # an action that is not known
                error = unserved.error(written, dialect)
            await pipeline.refuse_simply(self._runtime, exchange, error, dialect)
            return
        self._open.add(exchange)
        try:
            await models_list.serve(self._runtime, exchange)
        finally:
            self._open.discard(exchange)
            exchange.close()

    def _from_memory(self, path: str, *, head: bool) -> health.Answer:
        runtime = self._runtime
        if path == "/livez":
            return health.livez(head=head)
        if path == "/readyz":
            return health.readyz(runtime, head=head)
        if path == "/v1/health":
            return health.health(runtime, runtime.version, head=head)
        return health.root(runtime.version, head=head)

    async def _answer(
        self, exchange: AsgiExchange, status: int, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> None:
        await exchange._send(exchange._start(status, headers))
        await exchange._send({"type": "http.response.body", "body": body})


LOCAL_PATHS = frozenset({"/", "/livez", "/readyz", "/v1/health"})
CONTROL_PATHS = frozenset({"/v1/models/pull", "/v1/models/delete"})  # below the model list, but not of it


def spelled(scope: Scope) -> Scope:
    """The request as if it had been spelled the usual way: without `/openai`, its key in a header."""
    path: str = scope["path"]
    if path.startswith(f"{ALIAS}/v1/"):
        path = path[len(ALIAS) :]
        scope = {**scope, "path": path, "raw_path": path.encode()}
    query: bytes = scope.get("query_string", b"")
    if query and (gemini.route(path) is not None or models_list.serves(path)):
        keys = urllib.parse.parse_qs(query.decode("latin-1")).get("key")
        if keys:
            scope = {**scope, "headers": [*scope["headers"], *((b"x-goog-api-key", key.encode()) for key in keys)]}
    return scope


def with_headers(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    """A `send` that adds headers to the start of the answer."""
    if not headers:
        return send

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return sending
