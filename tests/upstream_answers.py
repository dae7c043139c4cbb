"""What the fault upstream answers, by behaviour; the names are listed in `tests.upstream`."""

from __future__ import annotations

import functools
import gzip
import json
import re
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.upstream_wire import Connection, EndError, Request

DEFAULT_WORDS = 8
CUT_AFTER = 3
HUGE_LINE_BYTES = 64 * 1024 * 1024
BOMB_CRC32 = 0x2A0E7DBB  # of 256 MiB of zeros
_NAMED_GAP = re.compile(r"^(?:(.*)-)?gap-(\d+)$")
_SLOW = re.compile(r"^slow-(\d+)ms$")
_WAIT = re.compile(r"^(first|think)-(\d+)ms$")
_STATUS = re.compile(r"^boom-(\d{3})$")
_RATE = re.compile(r"^rate-limit(?:-(\d+))?$")


def text_of(words: int, choice: int = 0) -> str:
    """The whole text that a proper answer of so many words carries."""
    return "".join(word_of(i, choice) for i in range(words))


def word_of(i: int, choice: int = 0) -> str:
    """The text of one streamed event."""
    return f"w{i} " if choice == 0 else f"c{choice}w{i} "


def prompt_tokens_of(body: dict[str, Any]) -> int:
    """The prompt tokens this upstream reports for a request body."""
    parts: list[str] = []
    for message in body.get("messages") or []:
        content = message.get("content")
        if isinstance(content, str):
            parts.append(content)
        elif isinstance(content, list):
            parts.extend(str(item.get("text", "")) for item in content if isinstance(item, dict))
    for name in ("prompt", "input"):
        value = body.get(name)
        parts.extend([value] if isinstance(value, str) else [v for v in value or [] if isinstance(v, str)])
    return max(1, sum(len(part.split()) for part in parts))


@dataclass
class _Answer:
    """What a behaviour needs to know of the request it answers."""

    conn: Connection
    request: Request
    body: dict[str, Any]
    behaviour: str
    gap_s: float
    words: int = 0
    choices: int = 1
    stream: bool = False
    usage: dict[str, Any] | None = None
    asked_usage: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


def _sse(value: Any, end: str = "\n") -> bytes:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}{end}{end}".encode()


def _head(status: int, headers: dict[str, str], length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} Status", *(f"{k}: {v}" for k, v in headers.items())]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _error(message: str, kind: str, code: str | int | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


class Behaviours:
    """Answers one request at a time; `FaultUpstream` adds connections and life."""

    api_key: str
    models: list[str]
    unix_path: str

    @property
    def url(self) -> str:
        """The base URL of the server."""
        raise NotImplementedError

    async def _answer(self, conn: Connection, request: Request) -> None:
        if self.api_key and request.headers.get("authorization") != f"Bearer {self.api_key}":
            await self._reply(
                conn, 401, _error("Incorrect API key provided.", "invalid_request_error", "invalid_api_key")
            )
            return
        path = request.path.split("?")[0]
        if request.method == "GET":
            if path.endswith("/models"):
                data = [{"id": m, "object": "model", "created": 0, "owned_by": "fault"} for m in self.models]
                await self._reply(conn, 200, {"object": "list", "data": data})
            elif path.endswith(("/health", "/canary")):
                await self._reply(conn, 200, {"status": "ok"})
            else:
                await self._reply(conn, 404, _error("no such path", "invalid_request_error"))
            return
        body = request.json
        answer = self._prepare(conn, request, body if isinstance(body, dict) else {})
        if await self._plain_fault(answer):
            return
        if path.endswith("/embeddings"):
            await self._unary(answer, self._embeddings(answer.body))
        elif path.endswith("/completions"):
            chat = path.endswith("/chat/completions")
            if answer.stream:
                await self._stream(answer, chat=chat)
            else:
                await self._unary(answer, self._completion(answer, chat=chat))
        else:
            await self._reply(conn, 404, _error("no such path", "invalid_request_error"))

    def _prepare(self, conn: Connection, request: Request, body: dict[str, Any]) -> _Answer:
        behaviour, gap_s = request.behaviour, 0.0
        if match := _NAMED_GAP.match(behaviour):
            behaviour, gap_s = match[1] or "ok", int(match[2]) / 1000
        elif match := _SLOW.match(behaviour):
            behaviour, gap_s = "ok", int(match[1]) / 1000
        words = body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_WORDS
        words = words if isinstance(words, int) else DEFAULT_WORDS
        prompt = prompt_tokens_of(body)
        usage: dict[str, Any] | None = {
            "prompt_tokens": prompt,
            "completion_tokens": words,
            "total_tokens": prompt + words,
        }
        if behaviour == "absurd-usage":
            usage = {"prompt_tokens": -5, "completion_tokens": 10**18, "total_tokens": "many"}
        elif behaviour == "big-usage":
            usage = {"prompt_tokens": prompt, "completion_tokens": words * 10, "total_tokens": prompt + words * 10}
        elif behaviour in ("no-usage", "null-usage"):
            usage = None
        options = body.get("stream_options")
        return _Answer(
            conn,
            request,
            body,
            behaviour,
            gap_s,
            words=words,
            choices=body.get("n") or 1,
            stream=body.get("stream") is True,
            usage=usage,
            asked_usage=isinstance(options, dict) and options.get("include_usage") is True,
        )

    async def _reply(
        self, conn: Connection, status: int, value: Any, headers: dict[str, str] | None = None, raw: bytes = b""
    ) -> None:
        data = raw or json.dumps(value).encode()
        await conn.send(_head(status, {"Content-Type": "application/json", **(headers or {})}, len(data)) + data)

    async def _plain_fault(self, answer: _Answer) -> bool:
        """Behaviours that are the same for every endpoint; True when the request has been dealt with."""
        conn, name = answer.conn, answer.behaviour
        if match := _STATUS.match(name):
            await self._reply(conn, int(match[1]), _error("The server had an error.", "server_error", "boom"))
        elif match := _RATE.match(name):
            error = _error("Rate limit reached.", "requests", "rate_limit_exceeded")
            await self._reply(conn, 429, error, {"Retry-After": match[1] or "7"})
        elif name == "unauthorized":
            error = _error("Incorrect API key provided.", "invalid_request_error", "invalid_api_key")
            await self._reply(conn, 401, error)
        elif name == "html-error":
            page = b"<html><head><title>502</title></head><body><h1>502 Bad Gateway</h1></body></html>"
            await self._reply(conn, 502, None, {"Content-Type": "text/html"}, raw=page)
        elif name == "redirect":
            where = f"{self.url}/canary" if not self.unix_path else "http://127.0.0.1:1/canary"
            await self._reply(conn, 307, {}, {"Location": where})
        elif name == "not-json":
            await self._reply(conn, 200, None, {"Content-Type": "text/plain"}, raw=b"hello")
        elif name == "json-error":
            await self._reply(conn, 200, _error("The model is overloaded.", "server_error", "overloaded"))
        elif name == "stall-first":
            await conn.silence()
        elif name in ("refuse", "refuse-rst"):
            conn.reset() if name == "refuse-rst" else conn.transport.close()
            raise EndError
        elif name in _RAW_REPLIES:
            await conn.send(_RAW_REPLIES[name])
            await conn.nap(0.05)
            raise EndError
        elif match := _WAIT.match(name):
            if match[1] == "first":
                await conn.nap(int(match[2]) / 1000)
            else:
                answer.extra["think_s"] = int(match[2]) / 1000
            return False
        else:
            return False
        return True

    def _completion(self, answer: _Answer, *, chat: bool) -> dict[str, Any]:
        choices = []
        for index in range(answer.choices):
            text = "".join(self._word(answer, i, index) for i in range(answer.words))
            choice: dict[str, Any] = {"index": index, "finish_reason": "stop", "logprobs": None}
            choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            choices.append(choice)
        value = self._envelope(answer, "chat.completion" if chat else "text_completion") | {"choices": choices}
        if answer.behaviour != "no-usage":
            value["usage"] = answer.usage
        return value

    def _embeddings(self, body: dict[str, Any]) -> dict[str, Any]:
        given = body.get("input")
        count = len(given) if isinstance(given, list) and given and not isinstance(given[0], int) else 1
        vector: Any = [0.25, -0.5, 1.0]
        if body.get("encoding_format") == "base64":
            vector = "AACAPgAAAL8AAIA/"
        tokens = prompt_tokens_of(body)
        return {
            "object": "list",
            "model": body.get("model", ""),
            "data": [{"object": "embedding", "index": i, "embedding": vector} for i in range(count)],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    def _envelope(self, answer: _Answer, kind: str) -> dict[str, Any]:
        number = answer.request.number
        return {"id": f"up-{number}", "object": kind, "created": 1700000000, "model": answer.body.get("model", "")}

    def _word(self, answer: _Answer, i: int, choice: int) -> str:
        word = word_of(i, choice)
        return word[:-1] + "\U0001f600 " if answer.behaviour == "utf8-split" else word

    async def _unary(self, answer: _Answer, value: dict[str, Any]) -> None:
        conn, name = answer.conn, answer.behaviour
        if answer.gap_s:
            await conn.nap(answer.gap_s * answer.words)
        if "think_s" in answer.extra:
            await conn.nap(answer.extra["think_s"])
        if name == "error-event":
            value = _error("The model is overloaded.", "server_error", "overloaded")
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        headers = {"Content-Type": "application/json", "X-Request-Id": f"upstream-{answer.request.number}"}
        half = len(body) // 2
        if name in ("stall-mid", "cut", "cut-rst", "cut-event"):
            await conn.send(_head(200, headers, len(body)) + body[:half])
            await self._break_off(conn, name)
        elif name in ("stall-headers", "cut-first"):
            await conn.send(_head(200, headers, len(body)))
            await self._break_off(conn, name)
        elif name in ("gzip", "gzip-cut", "gzip-bomb", "brotli"):
            packed = b"".join(_bomb()) if name == "gzip-bomb" else gzip.compress(body, mtime=0)
            packed = packed[:-12] if name == "gzip-cut" else packed
            headers["Content-Encoding"] = "br" if name == "brotli" else "gzip"
            await conn.send(_head(200, headers, len(packed)) + packed)
        elif name == "drip":
            for byte in _head(200, headers, len(body)) + body:
                await conn.send(bytes([byte]))
                await conn.nap(0.002)
        elif name in ("huge-line", "flood"):
            await self._huge_body(conn, headers, endless=name == "flood")
        elif name == "close-delimited":
            await conn.send(_head(200, {**headers, "Connection": "close"}) + body)
            raise EndError
        else:
            await self._proper(answer, headers, body)
        answer.request.words_sent = answer.words
        self._afterwards(conn, name)

    async def _proper(self, answer: _Answer, headers: dict[str, str], body: bytes) -> None:
        conn, name = answer.conn, answer.behaviour
        if name == "close-after":
            headers["Connection"] = "close"
        data = _head(200, headers, len(body)) + body
        if name == "early-hints":
            data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + data
        elif name == "extra-bytes":
            data += b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsmuggled!"
        await conn.send(data)
        if name == "close-after":
            raise EndError

    def _afterwards(self, conn: Connection, name: str) -> None:
        if name == "close-reuse":
            conn.on_next = "close-read"
        elif name == "close-reuse-unread":
            conn.on_next = "close-unread"
        elif name == "close-idle":
            raise EndError

    async def _huge_body(self, conn: Connection, headers: dict[str, str], *, endless: bool) -> None:
        await conn.send(_head(200, {**headers, "Transfer-Encoding": "chunked"}))
        sent, piece = 0, b"x" * 65536
        while endless or sent < HUGE_LINE_BYTES:
            await conn.send(_chunk(piece))
            sent += len(piece)
        await conn.send(b"0\r\n\r\n")

    async def _break_off(self, conn: Connection, name: str) -> None:
        if name.startswith("stall"):
            await conn.silence()
        await conn.nap(0.01)
        conn.reset() if name == "cut-rst" else conn.transport.close()
        raise EndError

    async def _stream(self, answer: _Answer, *, chat: bool) -> None:
        conn, name = answer.conn, answer.behaviour
        headers = {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked", "Cache-Control": "no-cache"}
        packer: Any = None
        if name in ("gzip", "gzip-cut", "gzip-bomb", "brotli"):
            headers["Content-Encoding"] = "br" if name == "brotli" else "gzip"
            packer = zlib.compressobj(6, zlib.DEFLATED, 31)
        if name in ("close-delimited", "close-after"):
            headers["Connection"] = "close"
        if name == "close-delimited":
            del headers["Transfer-Encoding"]
        framed = name != "close-delimited"
        start = _head(200, headers)
        if name == "early-hints":
            start = b"HTTP/1.1 100 Continue\r\n\r\n" + start
        if name == "joined":
            events = [event async for event in self._events(answer, chat=chat)]
            await conn.send(start + b"".join(map(_chunk, events)) + b"0\r\n\r\n")
            return
        await conn.send(start)
        if "think_s" in answer.extra:
            await conn.nap(answer.extra["think_s"])
        if name == "gzip-bomb":
            for piece in _bomb():
                await conn.send(_chunk(piece))
        else:
            async for event in self._events(answer, chat=chat):
                if packer is not None:
                    event = packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH)
                await self._send_event(answer, _chunk(event) if framed else event)
        if packer is not None and name == "gzip":
            await conn.send(_chunk(packer.flush()))
        if not framed:
            raise EndError
        end = b"0\r\n\r\n" + (b"HTTP/1.1 200 OK\r\n\r\n" if name == "extra-bytes" else b"")
        await conn.send(end)
        if name == "close-after":
            raise EndError
        self._afterwards(conn, name)

    async def _send_event(self, answer: _Answer, data: bytes) -> None:
        if answer.behaviour == "drip":
            for byte in data:
                await answer.conn.send(bytes([byte]))
                await answer.conn.nap(0.002)
        elif answer.behaviour == "utf8-split" and max(data) > 127:
            cut = next(i for i, byte in enumerate(data) if byte > 127)
            for piece in (data[: cut + 1], data[cut + 1 : cut + 3], data[cut + 3 :]):
                await answer.conn.send(piece)
                await answer.conn.nap(0.002)
        else:
            await answer.conn.send(data)

    async def _events(self, answer: _Answer, *, chat: bool) -> AsyncIterator[bytes]:
        """The events of a stream, each ended; counts words as they are handed out."""
        conn, name = answer.conn, answer.behaviour
        end = "\r\n" if name == "crlf" else "\n"
        base = self._envelope(answer, "chat.completion.chunk" if chat else "text_completion")
        if name == "null-usage":
            base["usage"] = None
        if name in ("stall-headers", "cut-first"):
            await self._break_off(conn, name)
        if name in ("huge-line", "flood", "tiny-events"):
            async for piece in _bulk(name):
                yield piece
            return
        if name == "error-first":
            yield _sse(_error("The model is overloaded.", "server_error", "overloaded"))
            return
        if chat:
            yield _sse(base | {"choices": self._deltas(answer, {"role": "assistant", "content": ""})}, end)
        for i in range(answer.words):
            if answer.gap_s:
                await conn.nap(answer.gap_s)
            if i == CUT_AFTER:
                async for piece in self._mid_fault(answer, base):
                    yield piece
                if name.startswith("error-event"):
                    return
            if name == "comments":
                yield b": PROCESSING\n\n"
            for index in range(answer.choices):
                word = self._word(answer, i, index)
                choice: dict[str, Any] = {"index": index, "finish_reason": None}
                choice |= {"delta": {"content": word}} if chat else {"text": word}
                yield _sse(base | {"choices": [choice]}, end)
            answer.request.words_sent = i + 1
        for piece in self._ending(answer, base, end, chat=chat):
            yield piece

    def _deltas(self, answer: _Answer, delta: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"index": index, "delta": delta, "finish_reason": None} for index in range(answer.choices)]

    async def _mid_fault(self, answer: _Answer, base: dict[str, Any]) -> AsyncIterator[bytes]:
        name = answer.behaviour
        if name in ("stall-mid", "cut", "cut-rst"):
            await self._break_off(answer.conn, name)
        elif name == "cut-event":
            yield _sse(base | {"choices": self._deltas(answer, {"content": "half"})})[:40]
            await self._break_off(answer.conn, name)
        elif name in ("error-event", "error-event-done"):
            yield _sse(_error("The model is overloaded.", "server_error", 503))
            if name == "error-event-done":
                yield _sse("[DONE]")
        elif name == "error-event-named":
            yield b"event: error\n" + _sse(_error("Tool use failed.", "invalid_request_error", "tool_use_failed"))

    def _ending(self, answer: _Answer, base: dict[str, Any], end: str, *, chat: bool) -> Iterator[bytes]:
        name = answer.behaviour
        finish: dict[str, Any] = {"choices": []}
        for index in range(answer.choices):
            choice: dict[str, Any] = {"index": index, "finish_reason": "stop"}
            finish["choices"].append(choice | ({"delta": {}} if chat else {"text": ""}))
        if name == "finish-usage":
            finish["usage"] = answer.usage
        yield _sse(base | finish, end)
        if answer.asked_usage and name not in ("no-usage", "finish-usage"):
            yield _sse(base | {"choices": [], "usage": answer.usage}, end)
        if name != "no-done":
            yield _sse("[DONE]", end)
        if name == "double-done":
            yield _sse(base | {"choices": self._deltas(answer, {"content": "late"})}, end)
            yield _sse("[DONE]", end)


_RAW_REPLIES = {
    "bad-status": b"SSH-2.0-OpenSSH_9.2\r\n",
    "bad-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "huge-header": b"HTTP/1.1 200 OK\r\nX-Big: " + b"a" * (1 << 20) + b"\r\nContent-Length: 0\r\n\r\n",
    "upgrade": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nraw",
}


@functools.cache
def _bomb() -> tuple[bytes, ...]:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)  # complete in itself: may be repeated
    end = packer.flush() + struct.pack("<II", BOMB_CRC32, 256 << 20)
    return (b"\x1f\x8b\x08\0\0\0\0\0\0\xff", *[piece] * 256, end)


async def _bulk(name: str) -> AsyncIterator[bytes]:
    if name == "tiny-events":
        for _ in range(1000):
            yield b"data: {}\n\n" * 1000
    elif name == "flood":
        while True:
            yield b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 65536 + b'"}}]}\n\n'
    else:
        yield b"data: "
        for _ in range(HUGE_LINE_BYTES // 65536):
            yield b"x" * 65536
        yield b"\n\n"
