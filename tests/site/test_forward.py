"""Forwarding between a real client connection and a control whose every byte the test chooses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.forward import Forwarder, ProxyTrust
from tests.site.raw_http import serving, statuses, talk

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /page HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"


class Control:
    """A control on a Unix socket. `handler(reader, writer, head)` answers one request, given its head."""

    def __init__(self, path: Path, handler: Callable[..., Awaitable[None]]) -> None:
        self.path, self.handler = path, handler
        self.heads: list[bytes] = []
        self.connections = 0
        self.lost = asyncio.Event()

    async def start(self) -> None:
        self.server = await asyncio.start_unix_server(self._serve, path=str(self.path))

    async def stop(self) -> None:
        self.server.close()
        self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                await self.handler(reader, writer, head)
                await writer.drain()
        self.lost.set()
        writer.close()


async def answer_ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    await reader.readexactly(length)
    writer.write(OK)


@contextlib.asynccontextmanager
async def forwarding(
    handler: Callable[..., Awaitable[None]] = answer_ok,
    *,
    started: bool = True,
    trusted: tuple[str, ...] = (),
    **options: Any,
) -> AsyncIterator[tuple[int, Control, Forwarder]]:
    """A port whose requests are forwarded to a scripted control."""
    with tempfile.TemporaryDirectory() as directory:
        control = Control(Path(directory) / "c.sock", handler)
        if started:
            await control.start()
        forwarder = Forwarder(control.path, ProxyTrust(trusted), **options)
        async with serving(forwarder) as port:
            try:
                yield port, control, forwarder
            finally:
                forwarder.close()
                if started:
                    await control.stop()


def run(script: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
    async def go() -> Any:
        async with forwarding(*args, **options) as parts:
            return await script(*parts)

    return asyncio.run(go())


def exchange(*raw: bytes, handler: Callable[..., Awaitable[None]] = answer_ok, **options: Any) -> tuple[bytes, Control]:
    """The client's bytes in, its answer and the control out."""

    wait_s = options.pop("wait_s", 2.0)

    async def go() -> tuple[bytes, Control]:
        async with forwarding(handler, **options) as (port, control, _):
            return await talk(port, *raw, wait_s=wait_s, quiet_s=0.15), control

    return asyncio.run(go())


# --- heads ------------------------------------------------------------------------------------------------------------


def test_what_sign_in_and_csrf_need_arrives_as_the_client_sent_it() -> None:
    head = (
        b"GET /admin/?a=%20b&c HTTP/1.1\r\nHost: gate.example:8443\r\nCookie: a=1\r\nCookie: b=2\r\n"
        b"Origin: https://x\r\nReferer: https://x/y\r\n\r\n"
    )
    _, control = exchange(head)
    (seen,) = control.heads
    assert seen.startswith(b"GET /admin/?a=%20b&c HTTP/1.1\r\n")
    for line in (
        b"host: gate.example:8443",
        b"cookie: a=1",
        b"cookie: b=2",
        b"origin: https://x",
        b"referer: https://x/y",
    ):
        assert line in seen


def test_what_a_client_claims_about_its_way_is_replaced() -> None:
    head = (
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n"
        b"X-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\nForwarded: for=6.6.6.6\r\n"
        b"X-Real-IP: 6.6.6.6\r\nDaphne-Root-Path: /x\r\n"
        b"Connection: keep-alive, X-Secret\r\nX-Secret: 1\r\nTE: trailers\r\nUpgrade-Insecure-Requests: 1\r\n"
        b"Expect: 100-continue\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\n\r\n"
    )
    _, control = exchange(head)
    (seen,) = control.heads
    lines = seen.lower().split(b"\r\n")
    assert b"x-forwarded-for: 127.0.0.1" in lines
    assert b"x-forwarded-proto: http" in lines
    assert b"upgrade-insecure-requests: 1" in lines
    for word in (b"6.6.6.6", b"evil", b"daphne", b"x-secret", b"te:", b"expect", b"keep-alive", b"proxy-connection"):
        assert word not in seen.lower()


def test_a_trusted_proxy_is_believed() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6, 9.9.9.9\r\nX-Forwarded-Proto: https\r\n\r\n"
    _, control = exchange(head, trusted=("127.0.0.0/8",))
    assert b"x-forwarded-for: 9.9.9.9\r\nx-forwarded-proto: https\r\n" in control.heads[0]


@pytest.mark.parametrize(
    ("networks", "peer", "chain", "expected"),
    [
        ((), "10.0.0.1", b"6.6.6.6", "10.0.0.1"),
        (("10.0.0.0/8",), "10.0.0.1", b"6.6.6.6", "6.6.6.6"),
        (("10.0.0.0/8",), "11.0.0.1", b"6.6.6.6", "11.0.0.1"),
        (("10.0.0.0/8",), "::ffff:10.0.0.1", b"6.6.6.6", "6.6.6.6"),
        (("10.0.0.0/8",), "10.0.0.1", b"6.6.6.6, 7.7.7.7, 10.0.0.9", "7.7.7.7"),
        (("10.0.0.0/8",), "10.0.0.1", b"10.0.0.3, 10.0.0.2", "10.0.0.3"),
        (("10.0.0.0/8",), "10.0.0.1", b"garbage", "10.0.0.1"),
        (("10.0.0.0/8",), "10.0.0.1", b"6.6.6.6, <script>, 10.0.0.2", "10.0.0.2"),
        (("10.0.0.0/8",), "10.0.0.1", b"6.6.6.6:1234", "6.6.6.6"),
        (("10.0.0.0/8",), "10.0.0.1", b"[2001:db8::1]:80", "2001:db8::1"),
        (("10.0.0.0/8",), "10.0.0.1", b"2001:db8::1", "2001:db8::1"),
    ],
)
def test_the_client_is_the_last_address_no_trusted_proxy_vouches_for(
    networks: tuple[str, ...], peer: str, chain: bytes, expected: str
) -> None:
    scope = {"client": (peer, 1), "scheme": "http", "headers": [(b"x-forwarded-for", chain)]}
    assert ProxyTrust(networks).client_of(scope) == (expected, "http")


def test_a_wrong_network_is_refused_when_it_is_configured() -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 network"):
        ProxyTrust(["10.0.0.0/99"])


# --- replies ----------------------------------------------------------------------------------------------------------


def test_a_reply_passes_without_the_headers_of_the_inner_hop() -> None:
    async def handler(reader: Any, writer: Any, head: bytes) -> None:
        writer.write(
            b"HTTP/1.1 302 Found\r\nServer: inner\r\nDate: never\r\nConnection: keep-alive\r\nSet-Cookie: a=1\r\n"
            b"Set-Cookie: b=2\r\nLocation: /x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        )

    answer, _ = exchange(GET, handler=handler)
    assert statuses(answer) == [302]
    assert answer.count(b"set-cookie:") == 2
    assert b"inner" not in answer
    assert b"never" not in answer
    assert b"3\r\nabc\r\n0\r\n\r\n" in answer


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_a_reply_without_a_body_ends_at_its_headers(status: bytes) -> None:
    async def handler(reader: Any, writer: Any, head: bytes) -> None:
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 77\r\nETag: x\r\n\r\n")

    answer, _ = exchange(GET, GET, handler=handler)
    assert statuses(answer) == [int(status[:3])] * 2


def test_head_ends_at_the_headers_and_keeps_the_length() -> None:
    async def handler(reader: Any, writer: Any, head: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")

    head = b"HEAD /page HTTP/1.1\r\nHost: a\r\n\r\n"
    answer, control = exchange(head, head, handler=handler)
    assert statuses(answer) == [200, 200]
    assert answer.count(b"content-length: 500") == 2
    assert control.connections == 2


@pytest.mark.parametrize(
    "part",
    [
        b"Content-Length: 100\r\n\r\nonly this",
        b"Transfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\nzz\r\n",
        b"\r\nonly this",
    ],
    ids=["short", "no last chunk", "garbage", "no length at all"],
)
def test_a_cut_reply_never_ends_cleanly(part: bytes) -> None:
    async def handler(reader: Any, writer: Any, head: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + part)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()

    answer, _ = exchange(GET, handler=handler, wait_s=2)
    assert b"only this" in answer
    assert not answer.endswith(b"0\r\n\r\n")
    assert statuses(answer) == [200]


def test_events_pass_at_once() -> None:
    async def handler(reader: Any, writer: Any, head: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            event = b"data: %.6f\n\n" % time.monotonic()
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await asyncio.sleep(0.1)
        writer.write(b"0\r\n\r\n")

    async def script(port: int, control: Control, _: Forwarder) -> list[float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        late = []
        while (line := await reader.readline()) != b"0\r\n":
            if line.startswith(b"data: "):
                late.append(time.monotonic() - float(line[6:]))
        writer.close()
        return late

    late = run(script, handler)
    assert len(late) == 3
    assert max(late) < 0.08


def test_a_slow_reader_holds_control_back() -> None:
    sent = 0

    async def handler(reader: Any, writer: Any, head: bytes) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n")
        for _ in range(1600):
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async def script(port: int, control: Control, _: Forwarder) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(GET)
        await asyncio.sleep(0.7)
        held_back = sent
        total = 0
        while data := await reader.read(1 << 20):
            total += len(data)
            if total > 104857600:
                break
        writer.close()
        return held_back

    assert run(script, handler) < 32 * 1024 * 1024
    assert sent == 104857600


def test_a_client_that_leaves_ends_the_call_to_control() -> None:
    async def handler(reader: Any, writer: Any, head: bytes) -> None:
        if b"/started" in head:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await reader.read()  # until the forwarder closes
        raise ConnectionError

    async def script(port: int, control: Control, forwarder: Forwarder) -> None:
        for path in (b"/silent", b"/started"):
            control.lost.clear()
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
            await asyncio.sleep(0.1)
            assert forwarder.active == 1
            writer.close()
            await asyncio.wait_for(control.lost.wait(), 1)
            await asyncio.sleep(0.05)
            assert forwarder.active == 0

    run(script, handler)


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_upload_arrives_whole(chunked: bool) -> None:
    body = bytes(range(256)) * 20_000  # 5 MB
    got = b""

    async def handler(reader: asyncio.StreamReader, writer: Any, head: bytes) -> None:
        nonlocal got
        if chunked:
            assert b"transfer-encoding: chunked" in head
            while size := int(await reader.readline(), 16):
                got += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readexactly(2)
        else:
            assert b"content-length: 5120000" in head
            got = await reader.readexactly(len(body))
        writer.write(OK)

    if chunked:
        pieces = [
            b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:100], body[100:4_000_000], body[4_000_000:])
        ]
        raw = [b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", *pieces, b"0\r\n\r\n"]
    else:
        raw = [b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body), body]
    answer, _ = exchange(*raw, handler=handler, wait_s=1)
    assert statuses(answer) == [200]
    assert got == body


def test_a_declared_body_over_the_cap_is_refused_before_it_is_sent() -> None:
    answer, control = exchange(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\n", body_limit_bytes=1000)
    assert statuses(answer) == [413]
    assert control.heads == []


@pytest.mark.parametrize("framing", [b"Content-Length: 3000000", b"Transfer-Encoding: chunked"])
def test_a_client_that_sends_on_still_sees_the_413(framing: bytes) -> None:
    async def swallow(reader: Any, writer: Any, head: bytes) -> None:
        await reader.read()
        raise ConnectionError

    body = b"x" * 3_000_000
    if b"chunked" in framing:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    raw = b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n"
    answer, _ = exchange(raw, body, handler=swallow, body_limit_bytes=100_000, wait_s=3)
    assert statuses(answer) == [413]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "payload_too_large"


def test_a_body_that_stops_arriving_is_408() -> None:
    async def swallow(reader: Any, writer: Any, head: bytes) -> None:
        await reader.read()
        raise ConnectionError

    raw = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc"
    answer, _ = exchange(raw, handler=swallow, body_gap_s=0.2, wait_s=2)
    assert statuses(answer) == [408]


def test_an_upload_waits_for_a_control_that_reads_slowly() -> None:
    async def handler(reader: asyncio.StreamReader, writer: Any, head: bytes) -> None:
        await asyncio.sleep(0.5)
        await reader.readexactly(30_000_000)
        writer.write(OK)

    async def script(port: int, control: Control, _: Forwarder) -> tuple[float, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        begin = time.monotonic()
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30000000\r\n\r\n")
        writer.transport.set_write_buffer_limits(high=0)
        for _ in range(30):
            writer.write(b"x" * 1_000_000)
            await writer.drain()
        took = time.monotonic() - begin
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return took, head

    took, head = run(script, handler)
    assert took > 0.4
    assert statuses(head) == [200]


# --- control that is away ---------------------------------------------------------------------------------------------


def test_while_control_is_away_the_answer_is_503_with_retry_after() -> None:
    answer, _ = exchange(b"GET /v1/costs HTTP/1.1\r\nHost: a\r\n\r\n", started=False)
    assert statuses(answer) == [503]
    assert b"retry-after: 1\r\n" in answer
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "control_unavailable"


def test_a_browser_gets_a_readable_page_that_reloads() -> None:
    raw = b"GET /admin/ HTTP/1.1\r\nHost: a\r\nAccept: text/html,*/*\r\n\r\n"
    answer, _ = exchange(raw, started=False)
    assert statuses(answer) == [503]
    assert b"content-type: text/html" in answer
    assert b"restarting" in answer
    assert b'http-equiv="refresh"' in answer


def test_control_that_comes_back_is_used_again() -> None:
    async def script(port: int, control: Control, _: Forwarder) -> list[int]:
        codes = statuses(await talk(port, GET, wait_s=2, quiet_s=0.15))
        await control.stop()
        codes += statuses(await talk(port, GET, wait_s=2, quiet_s=0.15))
        await control.start()
        return codes + statuses(await talk(port, GET, wait_s=2, quiet_s=0.15))

    # The first connection may still be idle in the pool when control goes: then it is closed by control's stop.
    async def close_after(reader: Any, writer: Any, head: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    assert run(script, close_after) == [200, 503, 200]


def test_an_idle_connection_that_control_closed_is_replaced_without_the_client_noticing() -> None:
    async def once(reader: Any, writer: Any, head: bytes) -> None:
        if control_box[0].connections == 1 and len(control_box[0].heads) == 2:
            writer.transport.abort()  # the keep-alive race: closed as the second request arrives
            raise ConnectionError
        writer.write(OK)

    control_box: list[Control] = []

    async def script(port: int, control: Control, _: Forwarder) -> tuple[list[int], int]:
        control_box.append(control)
        codes = statuses(await talk(port, GET, wait_s=2, quiet_s=0.15)) + statuses(
            await talk(port, GET, wait_s=2, quiet_s=0.15)
        )
        return codes, control.connections

    assert run(script, once) == ([200, 200], 2)


def test_a_request_that_may_have_been_done_is_never_sent_twice() -> None:
    async def die(reader: Any, writer: Any, head: bytes) -> None:
        writer.transport.abort()
        raise ConnectionError

    answer, control = exchange(POST, handler=die)
    assert statuses(answer) == [502]
    assert b"retry-after" not in answer
    assert len(control.heads) == 1


def test_posts_always_use_a_connection_of_their_own() -> None:
    _, control = exchange(GET, POST, POST)
    assert len(control.heads) == 3
    assert control.connections >= 2


def test_gets_share_a_connection() -> None:
    _, control = exchange(GET, GET, GET)
    assert len(control.heads) == 3
    assert control.connections == 1


def test_a_control_that_never_answers_is_504() -> None:
    async def silent(reader: Any, writer: Any, head: bytes) -> None:
        await asyncio.sleep(5)

    answer, _ = exchange(GET, handler=silent, reply_s=0.2, wait_s=1)
    assert statuses(answer) == [504]


def test_a_reply_that_is_not_http_is_502_or_503() -> None:
    async def nonsense(reader: Any, writer: Any, head: bytes) -> None:
        writer.write(b"\x00\x01\x02 nonsense\r\n\r\n")

    answer, _ = exchange(POST, handler=nonsense)
    assert statuses(answer) == [502]


def test_too_many_at_once_are_refused() -> None:
    async def slow(reader: Any, writer: Any, head: bytes) -> None:
        await asyncio.sleep(0.4)
        writer.write(OK)

    async def script(port: int, control: Control, _: Forwarder) -> list[int]:
        answers = await asyncio.gather(*(talk(port, GET, wait_s=0.7) for _ in range(4)))
        return sorted(code for answer in answers for code in statuses(answer))

    assert run(script, slow, max_active=2) == [200, 200, 503, 503]


def test_a_draining_worker_tells_the_client_to_close() -> None:
    answer, _ = exchange(GET, draining=lambda: True, wait_s=2)
    assert b"connection: close\r\n" in answer
    assert statuses(answer) == [200]


def test_abort_cuts_what_is_running() -> None:
    async def endless(reader: Any, writer: Any, head: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await asyncio.sleep(5)

    async def script(port: int, control: Control, forwarder: Forwarder) -> bytes:
        asyncio.get_running_loop().call_later(0.2, forwarder.abort)
        return await talk(port, GET, wait_s=2)

    answer = run(script, endless)
    assert b"1\r\na\r\n" in answer
    assert not answer.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(("told", "status"), [(b"400 Bad Request", 400), (b"500 Oh", 502)])
def test_a_bare_refusal_of_control_reaches_the_client_as_a_whole_answer(told: bytes, status: int) -> None:
    async def refuse(reader: Any, writer: Any, head: bytes) -> None:
        await reader.readexactly(3)
        writer.write(b"HTTP/1.1 " + told + b"\r\n\r\n")
        await writer.drain()
        writer.close()

    answer, _ = exchange(POST, handler=refuse)
    assert statuses(answer) == [status]
    assert "control process" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


def test_a_cut_reply_is_no_error_of_the_application(caplog: pytest.LogCaptureFixture) -> None:
    async def cut(reader: Any, writer: Any, head: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart")
        await writer.drain()
        writer.close()

    exchange(GET, handler=cut)
    assert "forward_reply_cut" in caplog.text
    assert "Traceback" not in caplog.text
