"""Forwarding to control: every request that is not inference goes over the Unix socket, so users see one port.

`ProxyTrust` decides once, for both planes, who the client is. `Forwarder` is an ASGI application that asks control over
HTTP/1.1: bodies stream both ways with back-pressure, a request is sent again only when that is safe, and a reply that
was cut never looks complete. While control is away the answer is 503 with Retry-After. No Django, no database.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import ipaddress
import logging
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from gateway.control_http import (
    BodyTimeoutError,
    BodyTooLargeError,
    ClientGoneError,
    Connection,
    ControlAwayError,
    ForwardError,
    ReplyCutError,
    ReplyTimeoutError,
)
from gateway.errors import (
    BadRequestError,
    GatewayError,
    GatewayUnavailableError,
    PayloadTooLargeError,
    RequestTimeoutError,
    to_openai,
)

log = logging.getLogger("hoosh.forward")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

BODY_LIMIT_BYTES = 52 * 1024 * 1024
IDLE_S = 15.0  # an idle connection older than this is not used again; control closes them much later
LINGER_BYTES = 64 * 1024 * 1024  # of a refused body read and dropped, so that the client sees the refusal
LINGER_S = 5.0
CLOSE = (b"connection", b"close")

_REQUEST_DROPPED = frozenset(
    b"connection keep-alive proxy-connection proxy-authorization te trailer transfer-encoding upgrade http2-settings "
    b"expect forwarded x-real-ip x-client-ip true-client-ip daphne-root-path".split()
)
_REPLY_DROPPED = frozenset(b"connection keep-alive proxy-connection transfer-encoding upgrade date server".split())
_NEVER_NOMINATED = frozenset((b"host", b"content-length"))
_SAFE = frozenset(("GET", "HEAD"))


class ProxyTrust:
    """Whose `X-Forwarded-*` headers are believed: only those of the configured addresses and networks."""

    def __init__(self, networks: Sequence[str]) -> None:
        """`networks` are addresses or CIDR networks; anything else raises `ValueError`."""
        self._networks = tuple(ipaddress.ip_network(text, strict=False) for text in networks)
        self._known: dict[str, bool] = {}

    def client_of(self, scope: Scope) -> tuple[str, str]:
        """The client's address and the scheme ("http" or "https") the request was really made with.

        Behind a trusted proxy the address is the rightmost entry of X-Forwarded-For that is not itself trusted.
        """
        peer = scope["client"][0] if scope.get("client") else ""
        scheme = str(scope.get("scheme", "http"))
        if not self._networks or not self._trusts(peer):
            return peer, scheme
        hops: list[bytes] = []
        for name, value in scope["headers"]:
            if name == b"x-forwarded-for":
                hops += value.split(b",")
            elif name == b"x-forwarded-proto":
                named = value.rsplit(b",", 1)[-1].strip().lower()
                scheme = named.decode() if named in (b"http", b"https") else scheme
        address = peer
        for hop in reversed(hops):
            parsed = _address(hop)
            if parsed is None:
                break
            address = parsed
            if not self._trusts(parsed):
                break
        return address, scheme

    def _trusts(self, address: str) -> bool:
        known = self._known.get(address)
        if known is None:
            known = self._listed(address)
            if len(self._known) >= 4096:
                self._known.clear()
            self._known[address] = known
        return known

    def _listed(self, address: str) -> bool:
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(ip, "ipv4_mapped", None)
        return any((mapped or ip) in network for network in self._networks)


def _address(hop: bytes) -> str | None:
    """The address in one X-Forwarded-For entry (a port is dropped), or None when it is none."""
    text = hop.strip().decode("latin-1")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


class Forwarder:
    """An ASGI application that answers by asking control. One per worker, on one loop."""

    def __init__(
        self,
        socket_path: Path | str,
        trust: ProxyTrust,
        *,
        body_limit_bytes: int = BODY_LIMIT_BYTES,
        body_gap_s: float = 30.0,
        body_total_s: float = 300.0,
        reply_s: float = 120.0,
        max_active: int = 512,
        draining: Callable[[], bool] = lambda: False,
    ) -> None:
        """`body_gap_s` bounds the wait for each piece of a body, `body_total_s` for all of it, `reply_s` the wait for
        control's headers once the body is sent. Over `max_active` requests at once are refused with 503."""
        self._path, self._trust = os.fspath(socket_path), trust
        self._body_limit, self._body_gap_s, self._body_total_s = body_limit_bytes, body_gap_s, body_total_s
        self._reply_s, self._max_active, self._draining = reply_s, max_active, draining
        self._free: list[Connection] = []
        self._busy: set[Connection] = set()
        self.active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one HTTP request. A started reply that cannot be completed is left without its end: the server then
        cuts the connection."""
        if self._draining():
            send = _closing(send)
        if self.active >= self._max_active:
            await self._refuse(scope, send, _unavailable("Too many requests are waiting for the control process."))
            return
        self.active += 1
        try:
            await self._forward(scope, receive, send)
        except ClientGoneError:
            return
        except ReplyCutError:
            log.warning("forward_reply_cut", extra={"method": scope["method"]})
        except BodyTooLargeError:
            await self._refuse(scope, send, PayloadTooLargeError(self._body_limit), receive=receive)
        except ForwardError as exc:
            await self._refuse(scope, send, _refusal(exc))
        finally:
            self.active -= 1

    def abort(self) -> None:
        """Cut what is still running; the clients see an incomplete reply, or 502 where none has started."""
        for connection in tuple(self._busy):
            connection.fail(ReplyCutError("the worker is stopping"))
            connection.close()

    def close(self) -> None:
        """Drop the idle connections."""
        while self._free:
            self._free.pop().close()

    # One request

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        head, declared = self._head(scope)
        if declared is not None and declared > self._body_limit:
            raise BodyTooLargeError
        first = await self._receive_body(receive, self._body_gap_s)
        chunked = declared is None and (first.get("more_body", False) or bool(first.get("body")))
        if chunked:
            head += b"transfer-encoding: chunked\r\n"
        upload = _Upload(self, receive, head + b"\r\n", first, chunked=chunked)
        connection = await self._exchange(scope["method"], upload)
        try:
            if _is_bare(connection):
                await self._refuse(scope, send, _refusal_of_control(connection.status))
                return
            await self._relay(connection, send)
        except ClientGoneError:
            raise
        except ForwardError as exc:
            # Whatever it was, the client has the start of a reply that will not be completed.
            raise ReplyCutError(str(exc)) from exc
        finally:
            upload.stop()
            self._put_back(connection, reusable=upload.finished)

    async def _exchange(self, method: str, upload: _Upload) -> Connection:
        """Send the request and wait for the reply's headers; once more where that is safe."""
        safe = method in _SAFE and not upload.more
        for fresh in (not safe, True):
            connection = await self._connect(fresh=fresh)
            connection.begin(head_only=method == "HEAD")
            self._busy.add(connection)
            try:
                await upload.start(connection)
                await upload.reply_started(connection, self._reply_s)
                return connection
            except ReplyCutError as exc:
                upload.stop()
                self._busy.discard(connection)
                if safe and connection.reused and not connection.touched:
                    continue  # control closed an idle connection just as it was taken
                if safe:
                    raise ControlAwayError(str(exc)) from exc
                raise ForwardError(str(exc)) from exc
            except BaseException:
                upload.stop()
                self._put_back(connection, reusable=False)
                raise
        raise ControlAwayError("control closed two connections in a row")

    async def _relay(self, connection: Connection, send: Send) -> None:
        headers = [pair for pair in connection.headers if pair[0] not in _REPLY_DROPPED]
        if connection.status in (204, 304):
            headers = [pair for pair in headers if pair[0] != b"content-length"]
        await send({"type": "http.response.start", "status": connection.status, "headers": headers})
        while True:
            data = await connection.read()
            last = connection.drained
            await send({"type": "http.response.body", "body": data, "more_body": not last})
            if last:
                return

    def _head(self, scope: Scope) -> tuple[bytes, int | None]:
        """The request head up to the framing, and the declared body length (None: none or chunked)."""
        nominated: set[bytes] = set()
        for name, value in scope["headers"]:
            if name == b"connection":
                nominated |= {token.strip().lower() for token in value.split(b",")} - _NEVER_NOMINATED
        dropped = _REQUEST_DROPPED | nominated
        target = scope.get("raw_path") or scope["path"].encode("ascii")
        if scope.get("query_string"):
            target = b"%b?%b" % (target, scope["query_string"])
        parts = [b"%b %b HTTP/1.1\r\n" % (scope["method"].encode("ascii"), target)]
        declared: int | None = None
        for name, value in scope["headers"]:
            if name in dropped or name.startswith(b"x-forwarded-") or b"_" in name:
                continue
            if name == b"content-length":
                declared = int(value)
            parts.append(b"%b: %b\r\n" % (name, value))
        client, scheme = self._trust.client_of(scope)
        parts.append(
            b"x-forwarded-for: %b\r\nx-forwarded-proto: %b\r\n"
            % (client.encode("ascii") or b"unknown", scheme.encode())
        )
        return b"".join(parts), declared

    async def _receive_body(self, receive: Receive, timeout_s: float | None) -> Message:
        try:
            async with asyncio.timeout(timeout_s):
                message = await receive()
        except TimeoutError as exc:
            raise BodyTimeoutError from exc
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        return message

    # Connections

    async def _connect(self, *, fresh: bool) -> Connection:
        now = time.monotonic()
        while self._free and not fresh:
            connection = self._free.pop()
            alive = connection.transport is not None and not connection.transport.is_closing()
            if alive and now - connection.idle_since < IDLE_S:
                connection.reused = True
                return connection
            connection.close()
        try:
            async with asyncio.timeout(2.0):
                _, connection = await asyncio.get_running_loop().create_unix_connection(Connection, self._path)
        except (OSError, TimeoutError) as exc:
            raise ControlAwayError(str(exc)) from exc
        return connection

    def _put_back(self, connection: Connection, *, reusable: bool) -> None:
        self._busy.discard(connection)
        if (
            reusable
            and connection.drained
            and connection.keep
            and connection.transport is not None
            and len(self._free) < 32
        ):
            connection.idle_since = time.monotonic()
            self._free.append(connection)
        else:
            connection.close()

    # Refusals

    async def _refuse(self, scope: Scope, send: Send, error: GatewayError, *, receive: Receive | None = None) -> None:
        """Answer in the shape the caller reads: a page for a browser, else the API's error object."""
        headers: Headers = [pair for pair in error.headers if pair[0] != b"content-type"]
        headers.append((b"cache-control", b"no-store"))
        if error.status in (408, 413):
            headers.append(CLOSE)
        accept = next((value for name, value in scope["headers"] if name == b"accept"), b"")
        if b"text/html" in accept and not scope["path"].startswith("/v1/"):
            body = _page(error, reload=error.status == 503 and scope["method"] == "GET")
            headers.append((b"content-type", b"text/html; charset=utf-8"))
        else:
            body = to_openai(error)
            headers.append((b"content-type", b"application/json"))
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        if receive is not None:
            await send({"type": "http.response.body", "body": body, "more_body": True})
            # A close while the body is still arriving resets the connection before the client has read the answer.
            await _discard(receive)
            body = b""
        await send({"type": "http.response.body", "body": body, "more_body": False})


class _Upload:
    """The request's way to control: the first piece, then the rest in the background, then the watch for a client
    that leaves."""

    def __init__(self, owner: Forwarder, receive: Receive, head: bytes, first: Message, *, chunked: bool) -> None:
        self._owner, self._receive, self._chunked = owner, receive, chunked
        self._first = first.get("body", b"")
        self.more: bool = first.get("more_body", False)
        self._opening = head + self._frame(self._first, last=not self.more)
        self._task: asyncio.Task[None] | None = None
        self._sent = asyncio.Event()

    async def start(self, connection: Connection) -> None:
        """Send head and first piece, then go on in the background."""
        if len(self._first) > self._owner._body_limit:
            raise BodyTooLargeError
        await connection.write(self._opening)
        self._task = asyncio.get_running_loop().create_task(self._run(connection))

    async def reply_started(self, connection: Connection, reply_s: float) -> None:
        """Wait for the reply's headers: as long as the body takes, and `reply_s` from there."""
        waiting = asyncio.ensure_future(connection.wait_started())
        sent = asyncio.ensure_future(self._sent.wait())
        try:
            await asyncio.wait((waiting, sent), return_when=asyncio.FIRST_COMPLETED)
            async with asyncio.timeout(reply_s):
                await waiting
        except TimeoutError as exc:
            raise ReplyTimeoutError from exc
        finally:
            waiting.cancel()
            sent.cancel()

    @property
    def finished(self) -> bool:
        """Whether control has been given the whole request."""
        return self._sent.is_set()

    def stop(self) -> None:
        """End the background task."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self, connection: Connection) -> None:
        try:
            if self.more:
                await self._send_rest(connection)
            self._sent.set()
            while True:
                await self._owner._receive_body(self._receive, None)
        except ForwardError as exc:
            connection.fail(exc)
            connection.close()

    async def _send_rest(self, connection: Connection) -> None:
        owner, total = self._owner, len(self._first)
        ends_at = time.monotonic() + owner._body_total_s
        more = True
        while more:
            left_s = ends_at - time.monotonic()
            message = await owner._receive_body(self._receive, max(0.0, min(owner._body_gap_s, left_s)))
            body, more = message.get("body", b""), message.get("more_body", False)
            total += len(body)
            if total > owner._body_limit:
                raise BodyTooLargeError
            frame = self._frame(body, last=not more)
            if frame:
                await connection.write(frame)

    def _frame(self, body: bytes, *, last: bool) -> bytes:
        if not self._chunked:
            return body
        piece = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        return piece + b"0\r\n\r\n" if last else piece


def _closing(send: Send) -> Send:
    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [pair for pair in message["headers"] if pair[0] != b"connection"]
            message = {**message, "headers": [*headers, CLOSE]}
        await send(message)

    return closing


async def _discard(receive: Receive) -> None:
    """Read and drop what is left of a request body, within bounds."""
    read = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while read < LINGER_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                read += len(message.get("body", b""))


def _unavailable(message: str, *, status: int = 503) -> GatewayUnavailableError:
    retry_after_s = 1.0 if status == 503 else None
    return GatewayUnavailableError(message, code="control_unavailable", status=status, retry_after_s=retry_after_s)


def _refusal(failure: ForwardError) -> GatewayError:
    if isinstance(failure, ControlAwayError):
        return _unavailable("The control process is restarting. Try again in a moment.")
    if isinstance(failure, BodyTimeoutError):
        return RequestTimeoutError()
    if isinstance(failure, ReplyTimeoutError):
        return _unavailable("The control process did not answer in time.", status=504)
    message = "The control process went away while it handled the request; it may or may not have been done."
    return _unavailable(message, status=502)


def _is_bare(connection: Connection) -> bool:
    """Whether control refused without saying where its answer ends, as an HTTP server does with what it cannot read."""
    ends = any(name in (b"content-length", b"transfer-encoding") for name, _ in connection.headers)
    return connection.status >= 400 and not ends and not connection.head_only


def _refusal_of_control(status: int) -> GatewayError:
    if status < 500:
        return BadRequestError("The control process could not read the request.")
    return _unavailable("The control process failed.", status=502)


def _page(error: GatewayError, *, reload: bool) -> bytes:
    """A small page without scripts or styles from elsewhere; it reloads itself where that is harmless."""
    refresh = '<meta http-equiv="refresh" content="2">' if reload else ""
    hint = " This page reloads by itself." if reload else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{refresh}'
        f"<title>Hoosh: {error.status}</title></head>"
        f"<body><h1>Hoosh</h1><p>{html.escape(error.message)}{hint}</p></body></html>"
    ).encode()
