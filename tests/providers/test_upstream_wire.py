"""What arrives on an upstream's connection: framing, compression, TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator

import pytest
import trustme

from providers.inflate import InflateError, Inflater
from providers.upstream import (
    ConnectFailedError,
    Limits,
    Origin,
    Pool,
    UpstreamProtocolError,
)
from tests.providers.pools import (
    CALM,
    QUICK,
    Runner,
    ask,
    ask_stream,
    failure_of,
    head,
    pool_for,
    raw_server,
    text_in,
    until,
)
from tests.upstream import FaultUpstream, text_of

OK_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\r\nX: ", *[b"y" * 65536] * 8],
        [b"HTTP/1.1 103 Early\r\nX: y\r\n\r\n" * 10_000],
        [OK_CHUNKED, b"1\r\nx\r\n0\r\nTrailer: ", *[b"y" * 65536] * 8],
        [OK_CHUNKED, b"1;", *[b"y" * 65536] * 8],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nhello"],
        [b"HTTP/1.1 200 OK\nBad\x00: 1\n\n"],
        [b"\x16\x03\x01\x02\x00\x01\x00"],
    ],
    ids=range(10),
)
@pytest.mark.parametrize("stream", [False, True])
def test_framing_that_is_endless_or_ambiguous_is_refused(run: Runner, pieces: list[bytes], stream: bool) -> None:
    async def main() -> None:
        async with raw_server(*pieces) as pool:

            async def call() -> None:
                if stream:
                    await (await pool.stream(head(pool), b"", Limits(total_s=2))).read_all(1 << 20)
                else:
                    await pool.request(head(pool), b"", Limits(total_s=2))

            failure = await failure_of(call())
            assert (type(failure), failure.kind) == (UpstreamProtocolError, "protocol")
            await until(lambda: pool.open_count == 0)

    run(main)


def test_a_reply_may_arrive_byte_by_byte_with_trailers(run: Runner) -> None:
    whole = OK_CHUNKED + b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n"

    async def main() -> None:
        async with raw_server(*(bytes([byte]) for byte in whole)) as pool:
            reply = await pool.request(head(pool), b"", Limits())
            assert (reply.status, reply.body) == (200, b"hello world")
            assert reply.headers == [(b"transfer-encoding", b"chunked")]
            assert pool.idle_count == 1
            pool.close()
            await until(lambda: pool.open_count == 0)

    run(main)


def test_the_gap_begins_anew_when_a_slow_reader_has_caught_up(run: Runner) -> None:
    first = b"%x\r\n%b\r\n" % (300_000, b"x" * 300_000)

    async def main() -> None:
        async with raw_server(OK_CHUNKED + first, b"1\r\ny\r\n0\r\n\r\n", gap_s=0.7) as pool:
            reply = await pool.stream(head(pool), b"", Limits(gap_s=0.3))
            await asyncio.sleep(0.5)
            assert await reply.read_all(1 << 20) == b"x" * 300_000 + b"y"
            pool.close()

    run(main)


def test_bytes_on_an_idle_connection_end_it(run: Runner) -> None:
    async def main() -> None:
        async with raw_server(b"HTTP/1.1 204 X\r\n\r\n", b"HTTP/1.1 200 OK\r\n", gap_s=0.05) as pool:
            assert (await pool.request(head(pool), b"", Limits())).status == 204
            assert pool.idle_count == 1
            await until(lambda: pool.open_count == 0)
            assert pool.idle_count == 0

    run(main)


def test_an_early_refusal_of_a_large_request_is_read_and_its_connection_not_kept(run: Runner) -> None:
    async def main() -> None:
        async with raw_server(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno", deaf=True) as pool:
            reply = await pool.request(head(pool), b"x" * 50_000_000, Limits())
            assert (reply.status, reply.body) == (413, b"no")
            await until(lambda: pool.open_count == 0)

    run(main)


def test_two_readers_of_one_reply_are_refused(run: Runner, up: FaultUpstream) -> None:
    async def main() -> None:
        pool = pool_for(up)
        reply = await ask_stream(pool, "stall-headers", Limits())
        first = asyncio.create_task(reply.read())
        await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="one task"):
            await reply.read()
        reply.close()
        await failure_of(first)
        await until(lambda: pool.open_count == 0)

    run(main)


def test_a_pool_refuses_another_event_loop(up: FaultUpstream) -> None:
    pool = pool_for(up, max_idle=0)
    asyncio.run(ask(pool, "ok"))
    with pytest.raises(RuntimeError, match="event loop"):
        asyncio.run(ask(pool, "ok"))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls_up(authority: trustme.CA) -> Iterator[FaultUpstream]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with FaultUpstream(tls=context, name="localhost") as server:
        yield server


def test_tls_is_verified_by_name_against_the_given_authority(
    run: Runner, tls_up: FaultUpstream, authority: trustme.CA
) -> None:
    pem = authority.cert_pem.bytes().decode()

    async def main() -> None:
        pool = Pool(Origin.parse(tls_up.url, "loopback", pem))
        for _ in range(2):
            assert (await ask(pool, "ok")).status == 200
        assert text_in(await (await ask_stream(pool, "gap-5")).read_all(1 << 20)) == text_of(8)
        assert pool.open_count == 1
        for model, kind in (("cut", "reset"), ("stall-mid", "gap_timeout"), ("gzip-bomb", "protocol")):
            reply = await ask_stream(pool, model, QUICK if "stall" in model else CALM)
            assert (await failure_of(reply.read_all(1 << 30))).kind == kind
        pool.close()
        await until(lambda: pool.open_count == 0)

    run(main)


@pytest.mark.parametrize("case", ["unknown authority", "wrong name", "not TLS", "bad PEM"])
def test_tls_that_cannot_be_trusted_is_not_sent_to(
    run: Runner, tls_up: FaultUpstream, up: FaultUpstream, authority: trustme.CA, case: str
) -> None:
    pem = authority.cert_pem.bytes().decode()
    url, ca_pem = {
        "unknown authority": (tls_up.url, trustme.CA().cert_pem.bytes().decode()),
        "wrong name": (f"https://127.0.0.1:{tls_up.port}", pem),
        "not TLS": (f"https://127.0.0.1:{up.port}", pem),
        "bad PEM": (tls_up.url, "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"),
    }[case]
    tls_up.requests.clear()

    async def main() -> None:
        pool = Pool(Origin.parse(url, "loopback", ca_pem))
        # A server that does not speak TLS waits for an end of headers that does not come.
        failure = await failure_of(ask(pool, "ok", Limits(connect_s=0.5)))
        assert type(failure) is ConnectFailedError
        assert (failure.kind, failure.sent) == ("connect" if case == "not TLS" else "tls", False)
        await until(lambda: pool.open_count == 0)

    run(main)
    assert tls_up.requests == []


def test_inflating_is_bounded_in_every_step_and_takes_both_forms_of_deflate() -> None:
    import gzip
    import zlib

    plain = b"".join(b"%d " % i for i in range(20_000))
    raw = zlib.compressobj(6, zlib.DEFLATED, -15)
    for encoding, packed in (
        (b"gzip", gzip.compress(plain)),
        (b"x-gzip", gzip.compress(plain[:99]) + gzip.compress(plain[99:])),
        (b"deflate", zlib.compress(plain)),
        (b"deflate", raw.compress(plain) + raw.flush()),
    ):
        inflater, out = Inflater(encoding), b""
        for i in range(0, len(packed), 777):
            data = packed[i : i + 777]
            while data or inflater.pending:
                piece = inflater.feed(data, 100)
                assert len(piece) <= 100
                out, data = out + piece, b""
        inflater.finish()
        assert out == plain
    with pytest.raises(InflateError, match="damaged"):
        Inflater(b"gzip").feed(b"not gzip at all", 100)
    with pytest.raises(InflateError, match="not asked for"):
        Inflater(b"gzip, gzip")
