"""Accepting connections: all that wait, in one turn of the loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
import uvloop

from hoosh_site.acceptor import ACCEPT_MAX, Acceptor


class Counting(asyncio.Protocol):
    """Counts what is connected and echoes."""

    made: list[Counting] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        Counting.made.append(self)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    def runner(work: Callable[[socket.socket], object]) -> None:
        Counting.made = []
        with (
            socket.create_server(("127.0.0.1", 0), backlog=1024) as listener,
            asyncio.Runner(loop_factory=request.param) as loops,
        ):
            loops.run(work(listener))  # type: ignore[arg-type]

    return runner


def test_all_that_wait_are_accepted_within_a_few_turns(run: Callable[..., None]) -> None:
    async def work(listener: socket.socket) -> None:
        clients = [socket.create_connection(listener.getsockname()) for _ in range(ACCEPT_MAX)]
        acceptor = Acceptor(asyncio.get_running_loop(), listener, Counting, backlog=1024)
        for _ in range(10):  # libuv by itself would have made ten connections by now
            await asyncio.sleep(0)
        await acceptor.wait_closed()
        assert len(Counting.made) == len(clients)
        clients[-1].sendall(b"x")
        await asyncio.sleep(0.1)
        assert clients[-1].recv(1) == b"x"
        acceptor.close()
        for client in clients:
            client.close()
        await asyncio.sleep(0.05)

    run(work)


def test_after_closing_nothing_is_accepted_and_what_is_connected_stays(run: Callable[..., None]) -> None:
    async def work(listener: socket.socket) -> None:
        acceptor = Acceptor(asyncio.get_running_loop(), listener, Counting, backlog=16)
        first = socket.create_connection(listener.getsockname())
        await asyncio.sleep(0.05)
        acceptor.close()
        acceptor.close()
        second = socket.create_connection(listener.getsockname())
        await asyncio.sleep(0.05)
        assert len(Counting.made) == 1
        first.sendall(b"y")
        await asyncio.sleep(0.05)
        assert first.recv(1) == b"y"
        first.close()
        second.close()
        await asyncio.sleep(0.05)

    run(work)


def test_a_client_that_left_before_it_was_accepted_does_no_harm(run: Callable[..., None]) -> None:
    async def work(listener: socket.socket) -> None:
        for _ in range(5):
            socket.create_connection(listener.getsockname()).close()
        acceptor = Acceptor(asyncio.get_running_loop(), listener, Counting, backlog=16)
        client = socket.create_connection(listener.getsockname())
        await asyncio.sleep(0.1)
        client.sendall(b"z")
        await asyncio.sleep(0.05)
        assert client.recv(1) == b"z"
        acceptor.close()
        client.close()
        await asyncio.sleep(0.05)

    run(work)
