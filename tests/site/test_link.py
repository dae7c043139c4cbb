"""The messages between control and workers over a real Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from budgets.records import KeyRecord, PoolRecord, PriceRecord, WarmRecord
from hoosh_site import link
from hoosh_site.link import (
    AccessPush,
    Ask,
    AuditPush,
    CardsPush,
    ConfigPush,
    Explain,
    Explained,
    Frames,
    Granted,
    HealthPush,
    IdemAnswer,
    IdemBegin,
    IdemEnd,
    LinkClient,
    LinkError,
    LinkServer,
    Recall,
    Register,
    Return,
    SecretsPush,
    Status,
    WarmPush,
)
from hoosh_site.worker import connect
from providers.config import CardDoc
from tests.site.stub_worker import StubRuntime

ME = Register("w-1", 0, 4242, "0.1.0")
KEY = KeyRecord(1, b"\x00" * 32, "hk-abcdefgh", "first", 1, 1, 1)


@contextlib.asynccontextmanager
async def line(
    hello: Callable[[], list[Any]] = list, on_ask: Callable[[Ask, Callable[[Granted], None]], None] | None = None
) -> AsyncIterator[tuple[LinkServer, LinkClient, list[Any]]]:
    """A server and a connected client; the list collects what the client was told."""
    told: list[Any] = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run" / "link.sock"
        server = LinkServer(path, hello=hello, on_ask=on_ask or (lambda ask, reply: None))
        await server.start()
        kinds = (
            ConfigPush,
            SecretsPush,
            AccessPush,
            CardsPush,
            HealthPush,
            WarmPush,
            Granted,
            Recall,
            IdemAnswer,
            AuditPush,
        )
        client = LinkClient(path, register=ME, callbacks=dict.fromkeys(kinds, told.append))
        client.start()
        await until(lambda: bool(server.workers()))
        try:
            yield server, client, told
        finally:
            await client.close()
            await server.stop()


async def until(condition: Callable[[], bool], limit_s: float = 3.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)


def test_frames_come_out_whole_however_they_arrive() -> None:
    data = b"".join(link.pack(message) for message in (ME, Ask("w", 1, 0, 2, 3), Status("w", 0, {"a": "x" * 500})))
    for size in (1, 3, 7, 100, len(data)):
        frames = Frames()
        bodies = [body for at in range(0, len(data), size) for body in frames.feed(data[at : at + size])]
        assert len(bodies) == 3
        assert b"x" * 500 in bodies[2]


def test_a_frame_over_the_limit_is_an_error() -> None:
    with pytest.raises(LinkError):
        Frames(limit_bytes=10).feed(b"\x00\x00\x00\x0b")


@pytest.mark.parametrize(
    "message",
    [
        ConfigPush(3, b"\x00\xff" * 10),
        SecretsPush({1: "gAAAA", 2: "x"}),
        AccessPush(9, True, [KEY], [PoolRecord(1, "default")]),
        CardsPush([CardDoc("gpt-*", context_tokens=5)], [PriceRecord(1, "*", "gpt-*", input=150_000)], {1: ["a"]}),
        HealthPush([3]),
        Granted(1, 0, 500, True, False, 7),
        Granted(1, 3600, 10**18, False, True, 0, unit=1),
        Recall(1, 0),
        Recall(1, 3600, 1),
        IdemAnswer(4, "done", 200, "text/event-stream", b"\x00\xff"),
        IdemAnswer(4, "new"),
        WarmPush([WarmRecord(1, 2, "m", "Be brief.", "How tall is it?")]),
        WarmPush([]),
        AuditPush("12:00ff"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_control_says_arrives_unchanged(message: Any) -> None:
    async def run() -> list[Any]:
        async with line(hello=lambda: [message]) as (_, _, told):
            await until(lambda: bool(told))
            return told

    assert asyncio.run(run()) == [message]


def test_a_new_worker_gets_the_hello_first_and_broadcasts_later() -> None:
    async def run() -> list[Any]:
        async with line(hello=lambda: [ConfigPush(1, b"a")]) as (server, _, told):
            server.broadcast([ConfigPush(2, b"b"), HealthPush([])])
            await until(lambda: len(told) == 3)
            return told

    assert asyncio.run(run()) == [ConfigPush(1, b"a"), ConfigPush(2, b"b"), HealthPush([])]


def test_an_ask_is_answered_to_the_one_who_asked_even_from_another_thread() -> None:
    async def run() -> list[Any]:
        def grant(ask: Ask, reply: Callable[[Granted], None]) -> None:
            answer = Granted(ask.pool_id, ask.window_start, ask.seen_total + ask.want, True, False, 0)
            asyncio.get_running_loop().run_in_executor(None, reply, answer)

        async with line(on_ask=grant) as (_, client, told):
            assert client.send(Ask("w-1", 7, 0, 100, 50, need=3))
            await until(lambda: bool(told))
            return told

    assert asyncio.run(run()) == [Granted(7, 0, 150, True, False, 0)]


def test_status_and_registration_are_listed() -> None:
    async def run() -> list[dict[str, Any]]:
        async with line() as (server, client, _):
            client.send(Status("w-1", 0, {"requests": 3}))
            await until(lambda: bool(server.workers()[0]["status"]))
            return server.workers()

    (entry,) = asyncio.run(run())
    assert (entry["owner"], entry["index"], entry["pid"], entry["version"]) == ("w-1", 0, 4242, "0.1.0")
    assert entry["status"] == {"requests": 3}
    assert 0 <= entry["status_age_s"] < 3


def test_a_return_reaches_the_ledgers_side() -> None:
    async def run() -> list[Return]:
        got: list[Return] = []
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "link.sock"
            server = LinkServer(path, hello=list, on_ask=lambda ask, reply: None, on_return=got.append)
            await server.start()
            client = LinkClient(path, register=ME, callbacks={})
            client.start()
            await until(lambda: client.connected)
            client.send(Return("w-1", 1, 0, 77))
            await until(lambda: bool(got))
            await client.close()
            await server.stop()
        return got

    assert asyncio.run(run()) == [Return("w-1", 1, 0, 77)]


def test_a_worker_and_control_speak_of_the_same_purse_and_the_same_request() -> None:
    async def run() -> tuple[StubRuntime, list[Any]]:
        got: list[Any] = []

        def grant(ask: Ask, reply: Callable[[Granted], None]) -> None:
            got.append(ask)
            reply(Granted(ask.pool_id, ask.window_start, 5, True, False, 9, ask.unit, 4))

        def begin(message: IdemBegin, reply: Callable[[IdemAnswer], None]) -> None:
            got.append(message)
            asyncio.get_running_loop().run_in_executor(None, reply, IdemAnswer(message.number, "running"))

        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "link.sock"
            server = LinkServer(
                path, hello=list, on_ask=grant, on_return=got.append, on_idem_begin=begin, on_idem_end=got.append
            )
            await server.start()
            runtime: Any = StubRuntime()
            client = connect(runtime, path, ME)
            assert runtime.idempotency.send_begin("w-1", 3, 7, "d", "r", "rid") is False  # nobody there yet
            client.start()
            await until(lambda: client.connected)
            runtime.desk.send_ask("w-1", 7, 1, 3600, 100, 50, 3)
            runtime.desk.send_return("w-1", 7, 1, 3600, 40)
            assert runtime.idempotency.send_begin("w-1", 3, 7, "d", "r", "rid")
            assert runtime.idempotency.send_end("w-1", 7, "d", "rid", True, 200, "text/plain", b"body")
            await until(lambda: len(got) == 4 and bool(runtime.idempotency.answers) and bool(runtime.desk.told))
            server.broadcast([Recall(7, 3600, 1)])
            await until(lambda: len(runtime.desk.told) == 2)
            await server.stop()
            await until(lambda: runtime.idempotency.line == "down")
            await client.close()
        return runtime, got

    runtime, got = asyncio.run(run())
    assert got == [
        Ask("w-1", 7, 3600, 100, 50, need=3, unit=1),
        Return("w-1", 7, 3600, 40, unit=1),
        IdemBegin("w-1", 3, 7, "d", "r", "rid"),
        IdemEnd("w-1", 7, "d", "rid", True, 200, "text/plain", b"body"),
    ]
    assert runtime.desk.told == [(7, 1, 3600, 5, True, False, 9, 4), (7, 1, 3600)]
    assert runtime.idempotency.answers == [(3, "running", 0, "", None)]
    assert runtime.desk.line == "down"


def test_without_a_store_nobody_is_told_that_a_request_is_new() -> None:
    async def run() -> list[Any]:
        async with line() as (_, client, told):
            client.send(IdemBegin("w-1", 3, 7, "d", "r", "rid"))
            client.send(IdemEnd("w-1", 7, "d", "rid", False, 0, "", None))
            await until(lambda: bool(told))
            return told

    assert asyncio.run(run()) == [IdemAnswer(3, "unavailable")]


def test_a_worker_of_before_units_asks_for_tokens() -> None:
    body = msgspec.msgpack.encode(
        {"type": "ask", "owner": "w", "pool_id": 1, "window_start": 0, "seen_total": 2, "want": 3}
    )
    assert msgspec.msgpack.decode(body, type=Ask) == Ask("w", 1, 0, 2, 3, need=0, unit=0)


def test_the_client_finds_a_control_that_comes_back_and_is_told_everything_again() -> None:
    async def run() -> tuple[list[Any], list[str], bool]:
        events: list[str] = []
        told: list[Any] = []
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "link.sock"
            client = LinkClient(
                path,
                register=ME,
                callbacks={ConfigPush: told.append},
                on_up=lambda: events.append("up"),
                on_down=lambda: events.append("down"),
            )
            client.start()
            await asyncio.sleep(0.1)
            lonely = client.send(Ask("w-1", 1, 0, 0, 1))
            for version in (1, 2):
                server = LinkServer(path, hello=lambda v=version: [ConfigPush(v, b"")], on_ask=lambda a, r: None)
                await server.start()
                await until(lambda v=version: len(told) == v)
                await server.stop()
                await until(lambda: not client.connected)
            await client.close()
        return told, events, lonely

    told, events, lonely = asyncio.run(run())
    assert [push.version for push in told] == [1, 2]
    assert events == ["up", "down", "up", "down"]
    assert lonely is False


def test_a_message_of_an_unknown_type_is_skipped() -> None:
    async def run() -> list[Any]:
        async with line() as (server, _, told):
            strange = msgspec.msgpack.encode({"type": "tomorrow", "x": 1})
            (peer,) = server._peers
            peer.write(len(strange).to_bytes(4, "big") + strange)
            server.broadcast([HealthPush([1])])
            await until(lambda: bool(told))
            return told

    assert asyncio.run(run()) == [HealthPush([1])]


def test_a_handler_that_fails_does_not_end_the_line() -> None:
    async def run() -> list[Any]:
        def fails(ask: Ask, reply: Callable[[Granted], None]) -> None:
            if ask.want == 0:
                raise RuntimeError("no")
            reply(Granted(1, 0, 1, False, True, 0))

        async with line(on_ask=fails) as (_, client, told):
            client.send(Ask("w-1", 1, 0, 0, 0))
            client.send(Ask("w-1", 1, 0, 0, 1))
            await until(lambda: bool(told))
            return told

    assert len(asyncio.run(run())) == 1


def test_only_the_owner_may_open_the_socket_and_a_stale_one_is_replaced() -> None:
    async def run() -> int:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "link.sock"
            for _ in range(2):  # the second start finds the first one's socket file
                server = LinkServer(path, hello=list, on_ask=lambda a, r: None)
                await server.start()
            mode = stat.S_IMODE(os.stat(path).st_mode)
            await server.stop()
            return mode

    assert asyncio.run(run()) == 0o600


def test_garbage_closes_the_connection_and_nothing_else() -> None:
    async def run() -> tuple[bytes, int]:
        async with line() as (server, _, _):
            reader, writer = await asyncio.open_unix_connection(os.fspath(server._path))
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            try:
                got = await asyncio.wait_for(reader.read(), 2)
            except ConnectionError:
                got = b""
            writer.close()
            return got, len(server.workers())

    assert asyncio.run(run()) == (b"", 1)


def test_a_worker_is_asked_where_a_request_would_go_and_silence_is_an_error() -> None:
    async def run() -> tuple[bytes, str, str]:
        async with line() as (server, client, _):
            ask = functools.partial(asyncio.to_thread, server.explain)
            client._callbacks[Explain] = lambda asked: client.send(Explained("w-1", asked.number, asked.body + b"!"))
            told = await ask(b"{}", 3.0)
            client._callbacks[Explain] = lambda asked: None
            with pytest.raises(LinkError) as silent:
                await ask(b"{}", 0.05)
            await client.close()
            await until(lambda: not server.workers())
            with pytest.raises(LinkError) as alone:
                await ask(b"{}", 3.0)
        return told, str(silent.value), str(alone.value)

    told, silent, alone = asyncio.run(run())
    assert told == b"{}!"
    assert "in time" in silent
    assert "no worker" in alone
