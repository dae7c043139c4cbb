"""The upstream pool against a real upstream that misbehaves, on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import time
from pathlib import Path

import pytest

from providers.upstream import (
    BUFFER_BYTES,
    ConnectFailedError,
    EgressRefusedError,
    Limits,
    Origin,
    Pool,
    ReplyTooLargeError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamResetError,
    UpstreamTimeoutError,
)
from tests.providers.pools import (
    CALM,
    QUICK,
    Runner,
    ask,
    ask_stream,
    body,
    failure_of,
    head,
    pool_for,
    text_in,
    until,
)
from tests.upstream import FaultUpstream, text_of


def test_a_reply_is_read_whole_and_the_connection_kept(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up)
        for _ in range(3):
            reply = await ask(pool, "ok", max_tokens=4)
            assert reply.status == 200
            assert json.loads(reply.body)["choices"][0]["message"]["content"] == text_of(4)
            assert (b"content-type", b"application/json") in reply.headers
            assert (pool.idle_count, pool.open_count) == (1, 1)
        pool.close()
        await until(lambda: pool.open_count == 0)

    run(main)
    assert len(up.requests) == 3
    assert len({request.connection for request in up.requests}) == 1
    sent = up.requests[0]
    assert (sent.method, sent.path, sent.body) == ("POST", "/v1/chat/completions", body("ok", max_tokens=4))
    assert sent.headers["content-length"] == str(len(sent.body))
    up.wait_for(lambda: up.open_connections == 0)


def test_a_stream_is_read_to_its_end_and_the_connection_kept(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up)
        for model in ("ok", "slow-2ms", "joined", "crlf", "early-hints"):
            reply = await ask_stream(pool, model, max_tokens=5)
            assert reply.status == 200
            assert (b"content-type", b"text/event-stream") in reply.headers
            parts = []
            while data := await reply.read():
                parts.append(data)
            assert await reply.read() == b""
            assert text_in(b"".join(parts)) == text_of(5)
            assert pool.idle_count == 1
            reply.close()
            assert pool.idle_count == 1, "closing a finished reply must not touch its connection"
        pool.close()

    run(main)
    assert len({request.connection for request in up.requests}) == 1


def test_what_one_read_brought_comes_at_once(run: Runner, up: FaultUpstream) -> None:
    async def main() -> int:
        pool = pool_for(up)
        reply = await ask_stream(pool, "joined", max_tokens=200)
        await asyncio.sleep(0.05)
        assert text_in(await reply.read()) == text_of(200)
        assert await reply.read() == b""
        pool.close()
        return 0

    run(main)


def test_several_requests_at_once_use_connections_of_their_own(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up, max_idle=3)
        replies = await asyncio.gather(*(ask(pool, "gap-5", max_tokens=8 + i) for i in range(12)))
        for i, reply in enumerate(replies):
            assert json.loads(reply.body)["choices"][0]["message"]["content"] == text_of(8 + i)
        assert pool.idle_count == 3
        await until(lambda: pool.open_count == 3)
        pool.close()

    run(main)


@pytest.mark.parametrize(
    ("model", "status"),
    [("boom-500", 500), ("rate-limit", 429), ("unauthorized", 401), ("html-error", 502), ("redirect", 307)],
)
def test_any_status_is_a_reply(run: Runner, up: FaultUpstream, model: str, status: int) -> None:
    async def main() -> None:
        pool = pool_for(up)
        unary = await ask(pool, model)
        stream = await ask_stream(pool, model)
        assert unary.status == stream.status == status
        assert await stream.read_all(10_000) == unary.body
        assert pool.idle_count == 1
        pool.close()

    run(main)
    assert all(request.path != "/canary" for request in up.requests), "a redirect was followed"


def test_a_rest_larger_than_wanted_is_refused_and_closed(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up)
        reply = await ask_stream(pool, "flood")
        assert isinstance(await failure_of(reply.read_all(100_000)), ReplyTooLargeError)
        await until(lambda: pool.open_count == 0)

    run(main)
    up.wait_for(lambda: up.requests[0].closed_by_peer)


CUT = [
    ("refuse", UpstreamResetError, "reset"),
    ("refuse-rst", UpstreamResetError, "reset"),
    ("cut", UpstreamResetError, "reset"),
    ("cut-rst", UpstreamResetError, "reset"),
    ("cut-first", UpstreamResetError, "reset"),
    ("bad-status", UpstreamProtocolError, "protocol"),
    ("bad-chunk", UpstreamProtocolError, "protocol"),
    ("huge-header", UpstreamProtocolError, "protocol"),
    ("upgrade", UpstreamProtocolError, "protocol"),
    ("brotli", UpstreamProtocolError, "protocol"),
    ("gzip-cut", UpstreamProtocolError, "protocol"),
    ("gzip-bomb", UpstreamProtocolError, "protocol"),
    ("stall-first", UpstreamTimeoutError, "first_byte_timeout"),
    ("stall-headers", UpstreamTimeoutError, "first_byte_timeout"),
    ("stall-mid", UpstreamTimeoutError, "gap_timeout"),
]


@pytest.mark.parametrize(("model", "error", "kind"), CUT)
def test_a_reply_that_does_not_come_whole_is_an_error(
    run: Runner, up: FaultUpstream, model: str, error: type[UpstreamError], kind: str
) -> None:
    async def main() -> None:
        pool = pool_for(up)
        failure = await failure_of(ask(pool, model, QUICK if "stall" in model else CALM))
        assert type(failure) is error
        assert (failure.kind, failure.sent) == (kind, True)
        await until(lambda: pool.open_count == 0)

    run(main)
    assert len(up.requests) == 1, "a request was sent twice"
    up.wait_for(lambda: up.requests[0].connection_closed_at)


@pytest.mark.parametrize(("model", "error", "kind"), CUT)
def test_a_stream_that_does_not_come_whole_never_ends_cleanly(
    run: Runner, up: FaultUpstream, model: str, error: type[UpstreamError], kind: str
) -> None:
    async def main() -> bytes:
        pool = pool_for(up)
        got: list[bytes] = []

        async def read() -> None:
            reply = await ask_stream(pool, model, QUICK if "stall" in model else CALM)
            while data := await reply.read():
                got.append(data)

        failure = await failure_of(read())
        assert type(failure) is error
        assert (failure.kind, failure.sent) == (kind, True)
        await until(lambda: pool.open_count == pool.idle_count)
        assert pool.idle_count == (1 if model == "gzip-cut" else 0), "only the body was bad there, not the connection"
        pool.close()
        return b"".join(got)

    got = run(main)
    if model in ("cut", "cut-rst", "stall-mid"):
        assert text_in(got) == text_of(3), "what arrived before the failure is delivered"
    assert len(up.requests) == 1


def test_deadlines_are_kept_in_time(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up)
        start = time.monotonic()
        failure = await failure_of(ask(pool, "drip", Limits(total_s=0.3)))
        assert failure.kind == "total_timeout"
        assert 0.28 < time.monotonic() - start < 0.6
        reply = await ask_stream(pool, "slow-20ms", Limits(gap_s=5, total_s=0.3), max_tokens=1000)
        failure = await failure_of(reply.read_all(1 << 20))
        assert failure.kind == "total_timeout"
        start = time.monotonic()
        assert (await failure_of(ask(pool, "stall-first", QUICK))).kind == "first_byte_timeout"
        assert 0.13 < time.monotonic() - start < 0.4
        start = time.monotonic()
        reply = await ask_stream(pool, "stall-mid", Limits(first_byte_s=5, gap_s=0.15))
        assert (await failure_of(reply.read_all(1 << 20))).kind == "gap_timeout"
        assert 0.13 < time.monotonic() - start < 0.4, "a gap shorter than the wait for the first byte counts too"

    run(main)


def test_a_slow_but_steady_stream_passes_the_gap_deadline_many_times(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up)
        limits = Limits(first_byte_s=0.3, gap_s=0.08, total_s=5)
        reply = await ask_stream(pool, "gap-30", limits, max_tokens=12)
        assert text_in(await reply.read_all(1 << 20)) == text_of(12)
        reply = await ask_stream(pool, "think-200ms", limits, max_tokens=2)
        assert text_in(await reply.read_all(1 << 20)) == text_of(2), "thinking time is not a gap"
        pool.close()

    run(main)


def test_a_deadline_belongs_to_its_own_exchange_only(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up)
        await ask(pool, "ok", Limits(first_byte_s=0.1, total_s=0.1))
        reply = await ask(pool, "first-300ms", Limits())
        assert reply.status == 200
        await ask(pool, "ok", Limits())
        assert (await failure_of(ask(pool, "stall-first", QUICK))).kind == "first_byte_timeout"
        assert len({request.connection for request in up.requests}) == 1

    run(main)


def test_a_reader_that_is_slow_itself_is_not_a_gap_of_the_upstream(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up)
        reply = await ask_stream(pool, "tiny-events", QUICK)
        size = len(await reply.read())
        await asyncio.sleep(0.4)
        size += len(await reply.read_all(1 << 26))
        assert size == 10_000_000
        pool.close()

    run(main)


def test_an_unread_stream_stops_the_upstream_and_keeps_memory_flat(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reply = await ask_stream(pool, "flood", Limits())
        await asyncio.sleep(0.3)
        sent = up.requests[0].bytes_sent
        await asyncio.sleep(0.3)
        assert up.requests[0].bytes_sent == sent, "the upstream was not held back"
        for _ in range(200):
            assert len(await reply.read()) <= 3 * BUFFER_BYTES
        assert up.requests[0].bytes_sent > sent
        reply.close()
        await until(lambda: pool.open_count == 0)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 1024

    run(main)
    up.wait_for(lambda: up.requests[0].closed_by_peer)


@pytest.mark.parametrize("model", ["stall-first", "stall-mid", "gap-50"])
@pytest.mark.parametrize("stream", [False, True])
def test_cancelling_closes_the_connection(run: Runner, up: FaultUpstream, model: str, stream: bool) -> None:
    async def main() -> None:
        pool = pool_for(up)

        async def call() -> None:
            if stream:
                await (await ask_stream(pool, model, Limits(), max_tokens=100)).read_all(1 << 20)
            else:
                await ask(pool, model, Limits(), max_tokens=100)

        task = asyncio.create_task(call())
        await until(lambda: up.requests)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: pool.open_count == 0)
        assert pool.idle_count == 0

    run(main)
    up.wait_for(lambda: up.requests[0].closed_by_peer, 1.0)


def test_cancelling_at_any_moment_leaks_no_connection(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up)

        async def stream() -> None:
            reply = await ask_stream(pool, "ok", max_tokens=20)
            try:
                while await reply.read():
                    pass
            finally:
                reply.close()

        for step in range(120):
            call = stream() if step % 2 else ask(pool, "ok")
            task = asyncio.ensure_future(call)
            for _ in range(step % 15):
                await asyncio.sleep(0)
            if step % 3 == 0:
                await asyncio.sleep(step % 7 / 4000)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert (await ask(pool, "ok", max_tokens=3)).status == 200
        await until(lambda: pool.open_count == pool.idle_count)
        pool.close()
        await until(lambda: pool.open_count == 0)

    run(main)
    up.wait_for(lambda: up.open_connections == 0)


def test_cancelling_in_the_turn_in_which_the_headers_come_closes_the_connection(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up)
        await ask(pool, "ok")
        task = asyncio.create_task(ask_stream(pool, "first-20ms-gap-50", max_tokens=100))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.01, task.cancel)
        time.sleep(0.1)  # the loop stands still until both the headers and the cancellation are due
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: pool.open_count == 0)

    run(main)
    up.wait_for(lambda: up.requests[1].closed_by_peer, 1.0)


def test_closing_a_reply_early_closes_its_connection_and_wakes_its_reader(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up)
        reply = await ask_stream(pool, "stall-mid", Limits())
        await reply.read()
        reader = asyncio.create_task(reply.read_all(1 << 20))
        await asyncio.sleep(0.02)
        reply.close()
        reply.close()
        assert (await failure_of(reader)).sent is True
        await until(lambda: pool.open_count == 0)

    run(main)
    up.wait_for(lambda: up.requests[0].closed_by_peer, 1.0)


def test_waiting_for_a_quiet_stream_does_not_disturb_it(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up)
        reply = await ask_stream(pool, "think-200ms", Limits(), max_tokens=2)
        waits = 0
        while not await reply.wait(0.05):
            waits += 1
        assert 2 <= waits <= 5
        assert text_in(await reply.read_all(1 << 20)) == text_of(2)
        assert await reply.wait(0.05)
        pool.close()

    run(main)


def test_an_idle_connection_that_the_upstream_closed_is_not_used(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up)
        for _ in range(20):
            assert (await ask(pool, "close-idle")).status == 200
            time.sleep(0.01)  # the loop stands still: only looking at the socket itself can tell
        await until(lambda: pool.open_count == 0)
        assert pool.idle_count == 0

    run(main)
    assert len(up.requests) == 20


@pytest.mark.parametrize("model", ["close-reuse", "close-reuse-unread"])
def test_a_reused_connection_that_dies_is_reported_and_nothing_is_sent_again(
    run: Runner, up: FaultUpstream, model: str
) -> None:
    async def main() -> None:
        pool = pool_for(up)
        for call in (ask, ask_stream):
            await ask(pool, model)
            failure = await failure_of(call(pool, "ok"))
            assert type(failure) is UpstreamResetError
            assert (failure.kind, failure.sent) == ("reset", True)
            await until(lambda: pool.open_count == 0)

    unread = up.unread_closes
    run(main)
    assert len(up.requests) + up.unread_closes - unread == 4


@pytest.mark.parametrize("model", ["close-after", "close-delimited", "extra-bytes"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_connection_that_cannot_be_kept_is_closed(run: Runner, up: FaultUpstream, model: str, stream: bool) -> None:
    async def main() -> None:
        pool = pool_for(up)
        for _ in range(3):
            if stream:
                assert text_in(await (await ask_stream(pool, model)).read_all(1 << 20)) == text_of(8)
            else:
                content = json.loads((await ask(pool, model)).body)["choices"][0]["message"]["content"]
                assert content == text_of(8)
            await until(lambda: pool.open_count == 0)

    run(main)
    assert len({request.connection for request in up.requests}) == 3


def test_gzip_that_nobody_asked_for_is_taken_apart(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up)
        reply = await ask(pool, "gzip", max_tokens=500)
        assert json.loads(reply.body)["choices"][0]["message"]["content"] == text_of(500)
        assert all(name not in (b"content-encoding", b"content-length") for name, _ in reply.headers)
        stream = await ask_stream(pool, "gzip", max_tokens=500)
        assert text_in(await stream.read_all(1 << 20)) == text_of(500)
        assert pool.idle_count == 1
        pool.close()

    run(main)


def test_a_bomb_costs_little_memory(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up)
        await failure_of(ask(pool, "brotli"))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await failure_of(ask(pool, "gzip-bomb"))
        reply = await ask_stream(pool, "gzip-bomb")
        assert "expands" in str(await failure_of(reply.read_all(1 << 28)))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 24 * 1024

    run(main)


def test_a_reply_over_the_limit_is_refused_before_it_is_taken(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up)
        for model in ("ok", "huge-line", "flood"):
            failure = await failure_of(ask(pool, model, Limits(body_bytes=200)))
            assert type(failure) is ReplyTooLargeError
            assert (failure.kind, failure.sent) == ("too_large", True)
        await until(lambda: pool.open_count == 0)

    run(main)


def test_no_connection_means_not_sent(run: Runner) -> None:
    async def main() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            failure = await failure_of(ask(Pool(Origin.parse(url, "loopback")), "ok"))
            assert type(failure) is ConnectFailedError
            assert (failure.kind, failure.sent) == ("connect", False)
            failure = await failure_of(ask(Pool(Origin.parse(url, "private")), "ok"))
            assert type(failure) is EgressRefusedError
            assert (failure.kind, failure.sent) == ("egress", False)
        failure = await failure_of(ask(Pool(Origin.parse("http://nowhere.invalid", "public")), "ok"))
        assert (failure.kind, failure.sent) == ("connect", False)

    run(main)


def test_a_host_that_does_not_answer_is_given_up_in_time(run: Runner) -> None:
    async def main() -> None:
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(0)
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
            fillers = [socket.socket() for _ in range(3)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(deaf.getsockname())
            pool = Pool(Origin.parse(url, "loopback"))
            failure = await failure_of(ask(pool, "ok", Limits(connect_s=0.2)))
            assert (type(failure), failure.kind, failure.sent) == (ConnectFailedError, "connect", False)
            failure = await failure_of(ask(pool, "ok", Limits(connect_s=5, total_s=0.2)))
            assert (type(failure), failure.kind, failure.sent) == (UpstreamTimeoutError, "total_timeout", False)
            for filler in fillers:
                filler.close()

    run(main)


def test_a_name_with_a_dead_address_falls_back_to_the_next(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        # "localhost" usually has ::1 first, where this upstream does not listen.
        pool = Pool(Origin.parse(f"http://localhost:{up.port}", "loopback"))
        assert (await ask(pool, "ok")).status == 200
        pool.close()

    run(main)
    assert up.requests[0].headers["host"] == f"localhost:{up.port}"


def test_a_large_request_goes_out_whole(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up)
        reply = await ask(pool, "ok", Limits(), padding="x" * 8_000_000)
        assert reply.status == 200
        assert pool.idle_count == 1
        pool.close()

    run(main)
    assert len(up.requests[0].body) > 8_000_000


def test_an_idle_connection_ages_and_obeys_keep_alive(run: Runner) -> None:
    async def main() -> None:
        seen = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal seen
            seen += 1
            try:
                while await reader.readuntil(b"\r\n\r\n"):
                    writer.write(b"HTTP/1.1 204 No Content\r\nKeep-Alive: timeout=1, max=5\r\n\r\n")
            except asyncio.IncompleteReadError:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        pool = Pool(Origin.parse(f"http://127.0.0.1:{port}", "loopback"))
        for _ in range(2):
            reply = await pool.request(head(pool), b"", Limits())
            assert (reply.status, reply.body) == (204, b"")
        assert seen == 1
        await asyncio.sleep(0.6)
        await pool.request(head(pool), b"", Limits())
        assert seen == 2, "a connection was used after the time its peer keeps it"
        pool.close()
        server.close()

    run(main)


def test_a_closed_pool_finishes_what_it_began(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up)
        reply = await ask_stream(pool, "gap-10", max_tokens=5)
        pool.close()
        assert text_in(await reply.read_all(1 << 20)) == text_of(5)
        await until(lambda: pool.open_count == 0)
        assert (await ask(pool, "ok")).status == 200
        await until(lambda: pool.open_count == 0)

    run(main)


def test_an_upstream_that_dies_and_comes_back_is_used_again(run: Runner) -> None:
    with FaultUpstream() as own:

        async def main() -> None:
            pool = pool_for(own)
            await ask(pool, "ok")
            reply = await ask_stream(pool, "gap-20", Limits(), max_tokens=100)
            await reply.read()
            await asyncio.to_thread(own.stop_listening)
            assert (await failure_of(reply.read_all(1 << 20))).kind == "reset"
            assert (await failure_of(ask(pool, "ok"))).kind == "connect"
            await asyncio.to_thread(own.listen_again)
            assert (await ask(pool, "ok")).status == 200
            pool.close()

        run(main)


def test_a_unix_socket_is_an_upstream_too(run: Runner, tmp_path: Path) -> None:
    with FaultUpstream(unix_path=str(tmp_path / "model.sock")) as own:

        async def main() -> None:
            pool = pool_for(own)
            assert (await ask(pool, "ok")).status == 200
            assert text_in(await (await ask_stream(pool, "ok")).read_all(1 << 20)) == text_of(8)
            assert own.requests[0].headers["host"] == "localhost"
            assert pool.open_count == 1
            pool.close()
            await until(lambda: pool.open_count == 0)
            missing = Pool(Origin.parse(f"unix://{tmp_path}/missing.sock", "unix"))
            failure = await failure_of(ask(missing, "ok"))
            assert (failure.kind, failure.sent) == ("connect", False)

        run(main)


def test_an_origin_knows_its_host_header_and_prefix() -> None:
    assert Origin.parse("https://api.groq.com/openai/", "public").prefix == "/openai"
    assert Origin.parse("https://api.groq.com:443", "public").authority == "api.groq.com"
    assert Origin.parse("http://[::1]:8080", "loopback").authority == "[::1]:8080"
    assert Origin.parse("unix:///run/x.sock", "unix").authority == "localhost"
    with pytest.raises(ValueError, match="address class"):
        Origin.parse("unix:///run/x.sock", "loopback")
    with pytest.raises(ValueError, match="Not a base URL"):
        Origin.parse("demo://local", "loopback")
