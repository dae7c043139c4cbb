"""What stock Daphne does not promise, held against a real process on a real Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.site.raw_http import statuses, talk

pytestmark = pytest.mark.processes
CLOSE = b"Connection: close\r\n\r\n"


@contextlib.contextmanager
def daphne(drain_s: float = 5.0) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The server's socket path and its process."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run" / "c.sock"
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.site.daphne_app", str(path), str(drain_s)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield str(path), process
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.fixture(scope="module")
def path() -> Iterator[str]:
    with daphne() as (socket_path, _):
        yield socket_path


def ask(path: str, *pieces: bytes, **options: float) -> bytes:
    return asyncio.run(talk(path, *pieces, **options))


def rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def test_only_the_owner_may_open_the_socket(path: str) -> None:
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700


def test_a_request_is_answered_with_the_address_and_scheme_the_worker_names(path: str) -> None:
    head = (
        b"POST / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\nContent-Length: 3\r\n"
    )
    answer = ask(path, head + CLOSE + b"abc")
    assert statuses(answer) == [200]
    assert b"3 9.9.9.9 https" in answer
    assert b"aphne" not in answer


def test_many_requests_share_a_connection(path: str) -> None:
    answer = ask(path, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 50 + b"GET / HTTP/1.1\r\nHost: a\r\n" + CLOSE)
    assert statuses(answer) == [200] * 51


@pytest.mark.parametrize(
    "kind",
    [
        b"multipart/form-data; boundary=x",
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b"application/x-www-form-urlencoded",
    ],
)
def test_a_form_is_the_applications_to_read_whatever_it_looks_like(path: str, kind: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: " + kind + b"\r\nContent-Length: 2\r\n\r\n{}"
    answer = ask(path, head + b"GET / HTTP/1.1\r\nHost: a\r\n" + CLOSE)
    assert statuses(answer) == [200, 200]
    assert b"\r\n2  http" in answer


def test_a_slow_reader_is_not_buffered_for() -> None:
    async def read_nothing(path: str) -> None:
        _, writer = await asyncio.open_unix_connection(path, limit=1024)
        writer.write(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(1.0)
        writer.transport.abort()

    with daphne() as (path, process):
        before = rss_mib(process.pid)
        asyncio.run(read_nothing(path))
        assert rss_mib(process.pid) - before < 8
        assert statuses(ask(path, b"GET / HTTP/1.1\r\nHost: a\r\n" + CLOSE)) == [200]


def test_a_fast_reader_gets_everything(path: str) -> None:
    async def read_all() -> int:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /endless HTTP/1.1\r\nHost: a\r\n" + CLOSE)
        total = 0
        while data := await reader.read(1 << 20):
            total += len(data)
        writer.close()
        return total

    assert asyncio.run(read_all()) > 400 * (1 << 20)


@pytest.mark.parametrize("framing", [b"Content-Length: 30000000", b"Transfer-Encoding: chunked"])
def test_a_body_over_the_cap_is_413_early_and_the_client_sees_it(framing: bytes) -> None:
    body = b"x" * 30_000_000
    if b"chunked" in framing:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    with daphne() as (path, process):
        before = rss_mib(process.pid)
        answer = ask(path, b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n", body, wait_s=4)
        assert statuses(answer) == [413]
        assert rss_mib(process.pid) - before < 8


@pytest.mark.parametrize(
    "pieces",
    [
        (b"GET",),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: ",),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc",),
    ],
    ids=["half a first line", "half a head", "half a body"],
)
def test_what_never_ends_is_cut_at_its_deadline(path: str, pieces: tuple[bytes, ...]) -> None:
    begin = time.monotonic()
    answer = ask(path, *pieces, wait_s=6)
    assert statuses(answer) in ([], [408])
    assert time.monotonic() - begin < 4


def test_the_header_deadline_holds_for_a_later_request_too(path: str) -> None:
    begin = time.monotonic()
    answer = ask(path, b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nX: ", wait_s=6)
    assert statuses(answer) == [200, 408]
    assert time.monotonic() - begin < 4


def test_an_application_that_fails_is_500_and_one_that_fails_late_is_cut(path: str) -> None:
    assert statuses(ask(path, b"GET /fails HTTP/1.1\r\nHost: a\r\n" + CLOSE, wait_s=3)) == [500]
    answer = ask(path, b"GET /fails-late HTTP/1.1\r\nHost: a\r\n\r\n", wait_s=3)
    assert b"part" in answer
    assert not answer.endswith(b"0\r\n\r\n")
    # Daphne's own housekeeping must have survived both.
    assert statuses(ask(path, b"GET /fails HTTP/1.1\r\nHost: a\r\n" + CLOSE, wait_s=3)) == [500]


def test_a_stop_lets_running_requests_finish_and_takes_no_new_ones() -> None:
    async def script(path: str, process: subprocess.Popen[bytes]) -> tuple[bytes, bool]:
        running = asyncio.create_task(talk(path, b"GET /slow HTTP/1.1\r\nHost: a\r\n" + CLOSE, wait_s=5))
        await asyncio.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        refused = False
        try:
            await asyncio.open_unix_connection(path)
        except OSError:
            refused = True
        return await running, refused

    with daphne() as (path, process):
        answer, refused = asyncio.run(script(path, process))
        assert refused
        assert b"7," in answer
        assert answer.endswith(b"0\r\n\r\n")
        assert process.wait(5) == 0


def test_a_stop_does_not_wait_longer_than_its_grace() -> None:
    async def script(path: str, process: subprocess.Popen[bytes]) -> bytes:
        running = asyncio.create_task(talk(path, b"GET /slow HTTP/1.1\r\nHost: a\r\n" + CLOSE, wait_s=5))
        await asyncio.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        return await running

    with daphne(drain_s=0.2) as (path, process):
        answer = asyncio.run(script(path, process))
        assert process.wait(5) == 0
        assert not answer.endswith(b"0\r\n\r\n")


def test_a_stale_socket_is_replaced() -> None:
    with daphne() as (path, process):
        process.kill()
        process.wait()
        assert Path(path).exists()
        again = subprocess.Popen(
            [sys.executable, "-m", "tests.site.daphne_app", path, "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert again.stdout is not None
            assert again.stdout.readline() == b"up\n"
            assert statuses(ask(path, b"GET / HTTP/1.1\r\nHost: a\r\n" + CLOSE)) == [200]
        finally:
            again.kill()
            again.wait()
            again.stdout.close()
