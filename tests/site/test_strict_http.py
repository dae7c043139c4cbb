"""The HTTP a worker refuses before its application is asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

import pytest

from hoosh_site.strict_http import HttpLimits
from tests.site.raw_http import serving, statuses, talk

HOST = b"Host: a\r\n"
END = b"Connection: close\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"

REFUSED = {
    "bare LF everywhere": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare LF behind one header": b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "bare LF at the end": b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    "folded header": b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n",
    "folded with a tab": b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\tz\r\n\r\n",
    "space before the first header": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "length and chunked": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
    "chunked and length": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n",
    "two equal lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
    "length with a sign": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nabcde",
    "length list": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5,5\r\n\r\nabcde",
    "length with a gap": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 5\r\n\r\nabcde",
    "empty length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\nabcde",
    "length beyond 64 bits": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\nabcde",
    "space before the colon": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "gzip before chunked": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "identity": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "two codings": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    "NUL in a name": b"GET / HTTP/1.1\r\nHost: a\r\nX\0: ab\r\n\r\n",
    "NUL in the path": b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    "bare CR in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
    "empty host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "host with credentials": b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
    "absolute target": b"GET http://evil/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "connect": b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "no header name": b"GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n",
    "header name with a space": b"GET / HTTP/1.1\r\nHost: a\r\nX Y: x\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "lower-case method": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "raw UTF-8 in the path": "GET /é HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
}
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
BAD_BODIES = {
    "hex prefix": b"0x5\r\nabcde\r\n0\r\n\r\n",
    "negative size": b"-5\r\nabcde\r\n0\r\n\r\n",
    "space behind the size": b"5 \r\nabcde\r\n0\r\n\r\n",
    "LF behind the size": b"5\nabcde\r\n0\r\n\r\n",
    "size overflow": b"fffffffffffffffff\r\nabcde\r\n0\r\n\r\n",
    "LF in an extension": b"5;a\nb\r\nabcde\r\n0\r\n\r\n",
    "data longer than its size": b"5\r\nabcdeX\r\n0\r\n\r\n",
    "LF behind the data": b"5\r\nabcde\n0\r\n\r\n",
}


class Echo:
    """An application that reads the whole body and tells what it saw."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.gone = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        entry = {"path": scope["path"], "headers": list(scope["headers"]), "body": b""}
        self.seen.append(entry)
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone += 1
                return
            entry["body"] += message["body"]
            if not message["more_body"]:
                break
        body = b"%d" % len(entry["body"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


def ask(
    *pieces: bytes, limits: HttpLimits | None = None, wait_s: float = 2.0, pause_s: float = 0.0
) -> tuple[bytes, Echo]:
    """The raw answer to raw pieces, and the application that may have been asked."""
    echo = Echo()

    async def run() -> bytes:
        async with serving(echo, limits) as port:
            return await talk(port, *pieces, wait_s=wait_s, pause_s=pause_s)

    return asyncio.run(run()), echo


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
def test_an_ambiguous_head_is_refused_and_nothing_behind_it_is_served(raw: bytes) -> None:
    answer, echo = ask(raw + SMUGGLED)
    assert statuses(answer) == [400]
    assert b"connection: close" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    assert echo.seen == []


@pytest.mark.parametrize("raw", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_broken_chunked_body_is_refused_and_nothing_behind_it_is_served(raw: bytes) -> None:
    answer, echo = ask(CHUNKED + raw + SMUGGLED)
    assert statuses(answer) == [400]
    assert [entry["path"] for entry in echo.seen] in ([], ["/"])


def test_a_body_that_breaks_later_is_refused_and_the_application_hears_of_it() -> None:
    answer, echo = ask(CHUNKED + b"5\r\nabcde\r\n", b"zz\r\n" + SMUGGLED, pause_s=0.1)
    assert statuses(answer) == [400]
    assert echo.gone == 1


def test_a_good_request_is_served_and_the_connection_is_kept() -> None:
    one = b"POST / HTTP/1.1\r\nHost: a.b-c:80\r\nContent-Length: 3\r\n\r\nabc"
    answer, echo = ask(one, one, b"GET / HTTP/1.1\r\n" + HOST + END, pause_s=0.05)
    assert statuses(answer) == [200, 200, 200]
    assert len(echo.seen) == 3


def test_what_follows_a_good_request_on_the_wire_is_judged_by_itself() -> None:
    answer, echo = ask(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGARBAGE\r\n\r\n" + SMUGGLED)
    assert statuses(answer) == [200]  # the answer that was due, and a close instead of a second one
    assert len(echo.seen) == 1


def test_a_good_chunked_body_with_extensions_arrives_and_trailers_do_not() -> None:
    answer, echo = ask(CHUNKED + b"5;x=y\r\nabcde\r\n0\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n", wait_s=0.5)
    assert statuses(answer) == [200]
    assert echo.seen[0]["body"] == b"abcde"
    assert all(name != b"x-forwarded-for" for name, _ in echo.seen[0]["headers"])


def test_header_names_with_an_underscore_are_dropped() -> None:
    _, echo = ask(b"GET / HTTP/1.1\r\nX_Forwarded_For: 6.6.6.6\r\nContent_Length: 5\r\n" + HOST + END)
    assert [name for name, _ in echo.seen[0]["headers"]] == [b"host", b"connection"]


def test_http_1_0_may_leave_the_host_out() -> None:
    answer, _ = ask(b"GET / HTTP/1.0\r\n\r\n")
    assert statuses(answer) == [200]


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 150 + b"\r\n",
    ],
    ids=["one header", "the path", "many headers"],
)
def test_headers_over_the_limit_are_431(raw: bytes) -> None:
    answer, echo = ask(raw + SMUGGLED)
    assert statuses(answer) == [431]
    assert echo.seen == []


def test_a_header_without_an_end_is_cut_at_the_limit() -> None:
    piece = b"x" * 8192
    answer, _ = ask(b"GET / HTTP/1.1\r\nHost: a\r\nX: ", *[piece] * 12, pause_s=0.01)
    assert statuses(answer) == [431]


def test_headers_just_under_the_limit_pass_beside_a_large_body() -> None:
    head = (
        b"POST / HTTP/1.1\r\nHost: a\r\nX: "
        + b"x" * 16_000
        + b"\r\nContent-Length: 200000\r\nConnection: close\r\n\r\n"
    )
    answer, echo = ask(head + b"y" * 200_000)
    assert statuses(answer) == [200]
    assert len(echo.seen[0]["body"]) == 200_000


def test_unfinished_headers_are_cut_at_the_deadline_even_when_they_drip() -> None:
    begin = time.monotonic()
    answer, _ = ask(*[b"GET / HTTP/1.1\r\n", *[b"X"] * 4], limits=HttpLimits(header_s=0.3), pause_s=0.05, wait_s=3)
    assert statuses(answer) == [408]
    assert time.monotonic() - begin < 2.5


def test_the_deadline_also_holds_for_a_later_request_of_the_connection() -> None:
    first = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    answer, echo = ask(first + b"GET /2 HT", limits=HttpLimits(header_s=0.3), wait_s=3)
    assert statuses(answer) == [200, 408]
    assert len(echo.seen) == 1


def test_a_silent_connection_is_closed_without_an_answer() -> None:
    begin = time.monotonic()
    answer, _ = ask(limits=HttpLimits(header_s=0.2), wait_s=3)
    assert answer == b""
    assert time.monotonic() - begin < 1.5


def test_a_body_may_take_longer_than_the_header_deadline() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\n"
    answer, _ = ask(head, b"a", b"b", limits=HttpLimits(header_s=0.2), pause_s=0.3)
    assert statuses(answer) == [200]


def test_connections_over_the_cap_are_told_so() -> None:
    async def run() -> tuple[bytes, bytes]:
        async with serving(Echo(), HttpLimits(connections=1)) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.sleep(0.05)
            refused = await talk(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            writer.close()
            await asyncio.sleep(0.05)
            return refused, await talk(port, b"GET / HTTP/1.1\r\n" + HOST + END)

    refused, served = asyncio.run(run())
    assert statuses(refused) == [503]
    assert b"retry-after: 1" in refused
    assert statuses(served) == [200]


def test_an_offered_upgrade_is_declined_and_the_request_is_served() -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    answer, _ = ask(b"GET / HTTP/1.1\r\nHost: a\r\n" + upgrade + b"\r\n")
    assert statuses(answer) == [200]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(
    "body", [b"Content-Length: 5\r\n\r\nabcde", b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"]
)
def test_an_offered_upgrade_does_not_lose_the_body(body: bytes, split: bool) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    at = body.index(b"\r\n\r\n") + 6
    pieces = [head + body[:at], body[at:]] if split else [head + body]
    answer, echo = ask(*pieces, pause_s=0.05)
    assert statuses(answer) == [200]
    assert echo.seen[0]["body"] == b"abcde"
    assert len(echo.seen) == 1


def test_an_endless_pipeline_is_cut() -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(30)

    async def run() -> bytes:
        async with serving(never, HttpLimits(pipelined=4)) as port:
            return await talk(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 5000, wait_s=0.5)

    assert asyncio.run(run()) == b""


async def early(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers without reading the body, as a refusal does."""
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


@pytest.mark.parametrize("first", [b"", b"x" * 100])
def test_the_rest_of_a_body_that_trickles_in_behind_its_refusal_is_cut(first: bytes) -> None:
    async def run() -> float:
        async with serving(early, HttpLimits(header_s=0.3)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n" + first)
            begin = time.monotonic()
            with contextlib.suppress(ConnectionError):
                while time.monotonic() - begin < 3:
                    writer.write(b"x")
                    await writer.drain()
                    with contextlib.suppress(TimeoutError):
                        data = await asyncio.wait_for(reader.read(4096), 0.05)
                        if not data:
                            break
                        assert statuses(data) == [401]
            writer.close()
            return time.monotonic() - begin

    assert 0.2 < asyncio.run(run()) < 1.5


def test_a_body_whose_rest_comes_in_time_behind_its_answer_keeps_the_connection() -> None:
    async def run() -> bytes:
        async with serving(early, HttpLimits(header_s=0.3)) as port:
            head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab"
            return await talk(port, head, b"cd", b"GET / HTTP/1.1\r\n" + HOST + END, pause_s=0.15)

    assert statuses(asyncio.run(run())) == [401, 401]


def test_a_client_that_leaves_ends_the_one_being_served_and_the_ones_that_wait() -> None:
    started: list[str] = []
    ended: list[str] = []

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        started.append(scope["path"])
        gone = asyncio.Event()
        scope["hoosh.connection"].listen(gone.set)
        await asyncio.wait_for(gone.wait(), 3)
        ended.append(scope["path"])

    async def run() -> None:
        async with serving(waiting) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            for path in (b"/1", b"/2", b"/3"):
                writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
                await asyncio.sleep(0.05)
            writer.close()
            await asyncio.sleep(0.2)

    asyncio.run(run())
    assert (started, ended) == (["/1"], ["/1"])


def test_a_large_body_waiting_behind_a_request_is_not_read_without_bound() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        scope["hoosh.connection"].listen(lambda: None)
        await asyncio.sleep(30)

    async def run() -> int:
        async with serving(slow) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999\r\n\r\n")
            sent = 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    while sent < 256 << 20:
                        writer.write(b"x" * (1 << 20))
                        await writer.drain()
                        sent += 1 << 20
            writer.transport.abort()
            return sent

    assert asyncio.run(run()) < 64 << 20
