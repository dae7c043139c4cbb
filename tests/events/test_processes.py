"""Events through the real processes: worker, control, other processes that write, and a receiver of webhooks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests import children, environment
from tests.events.receiver import Received, Receiver, is_genuine
from tests.servers import PROJECT_DIR, Gateway

pytestmark = [pytest.mark.processes, pytest.mark.database]

_WEBHOOK = """
from events.models import Webhook
from hoosh_site import webhooks
url = {url!r}
found = webhooks.observe(url, internal=True)
print(webhooks.create(Webhook(name={name!r}, url=url), actor="test", address_class=found))
"""


@pytest.fixture(scope="module")
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    options: dict[str, Any] = {}
    if environment.on_postgres():
        options["database_url"] = request.getfixturevalue("postgres").create_database("gateway_events")
    with Gateway(environment.session_dir() / "events", **options) as running:
        yield running


class Reader:
    """A client of the stream, in a thread of its own."""

    def __init__(self, gateway: Gateway, query: str = "", last: str = "") -> None:
        headers = {**gateway.auth, **({"last-event-id": last} if last else {})}
        self._client = httpx.Client(timeout=30, trust_env=False)
        self._request = self._client.build_request("GET", f"{gateway.base_url}/v1/events{query}", headers=headers)
        self.reply = self._client.send(self._request, stream=True)
        self.text, self.ended, self.failure, self.at = "", False, "", []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for piece in self.reply.iter_text():
                self.text += piece
                self.at.append(time.monotonic())
        except (httpx.HTTPError, httpx.StreamError, OSError) as exc:
            self.failure = f"{type(exc).__name__}: {exc}"
        self.ended = True

    def events(self) -> list[dict[str, Any]]:
        whole = self.text.rpartition("\n\n")[0]
        return [json.loads(line[6:]) for line in whole.split("\n") if line.startswith("data: ")]

    def numbers(self) -> list[int]:
        return [event["data"]["n"] for event in self.events()]

    def wait(self, count: int) -> None:
        children.wait_for(lambda: len(self.events()) >= count, f"{count} events, not {self.text!r}")

    def wait_open(self) -> Reader:
        children.wait_for(lambda: ": open" in self.text, "the stream to be open")
        return self

    def close(self) -> None:
        """Leave. Closing alone would not: the thread is reading."""
        connection = self.reply.extensions["network_stream"].get_extra_info("socket")
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._client.close()


class Writer:
    """Another process on the gateway's database."""

    def __init__(self, gateway: Gateway) -> None:
        values = {**gateway.environment(), "DJANGO_SETTINGS_MODULE": "hoosh_site.settings"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.events.writer"],
            cwd=PROJECT_DIR,
            env=values,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer("ready")

    def emit(self, first: int, last: int) -> None:
        """Events with these numbers, committed when this returns."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([first, last, "a.b"]) + "\n")
        self.process.stdin.flush()
        self._answer("done")

    def _answer(self, wanted: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == wanted


@pytest.fixture(scope="module")
def writer(gateway: Gateway) -> Iterator[Writer]:
    made = Writer(gateway)
    yield made
    made.process.communicate(timeout=10)


def test_a_stream_is_told_what_other_processes_write_and_can_be_resumed_without_loss_or_repetition(
    gateway: Gateway, writer: Writer
) -> None:
    reader = Reader(gateway, "?topic=a/%23").wait_open()
    assert reader.reply.status_code == 200
    assert reader.reply.headers["content-type"] == "text/event-stream"
    begin = time.monotonic()
    writer.emit(0, 3)
    reader.wait(3)
    assert reader.at[-1] - begin < 4  # control looks once a second
    last = str(reader.events()[1]["id"])
    reader.close()
    writer.emit(3, 6)
    again = Reader(gateway, "?topic=a.*&after=0", last=last)  # the header counts
    again.wait(4)
    assert reader.numbers()[:2] + again.numbers() == [0, 1, 2, 3, 4, 5]
    again.close()
    recent = httpx.get(f"{gateway.base_url}/v1/events/recent?topic=a/*", headers=gateway.auth, trust_env=False).json()
    assert [event["data"]["n"] for event in recent["events"]] == [0, 1, 2, 3, 4, 5]


def test_streams_of_clients_that_left_are_closed(gateway: Gateway) -> None:
    (control,) = gateway.role_pids("control")
    before = len(os.listdir(f"/proc/{control}/fd"))
    readers = [Reader(gateway) for _ in range(64)]
    assert {reader.reply.status_code for reader in readers} == {200}
    extra = Reader(gateway)
    assert (extra.reply.status_code, extra.reply.headers["retry-after"]) == (503, "5")
    children.wait_for(lambda: "streams_busy" in extra.text, "the refusal")
    for reader in [*readers, extra]:
        reader.close()
    children.wait_for(lambda: len(os.listdir(f"/proc/{control}/fd")) < before + 16, "control to close its side")
    again = Reader(gateway).wait_open()
    again.close()


def test_what_was_being_delivered_when_control_was_killed_is_delivered_by_its_successor(
    gateway: Gateway, writer: Writer
) -> None:
    held = threading.Event()
    answers: list[int | None] = [None]

    def answer(received: Received) -> int | None:
        held.set()
        return answers[0]

    with Receiver(answer=answer) as receiver:
        secret = gateway.manage("shell", "-c", _WEBHOOK.format(url=receiver.url, name="killed")).split()[-1]
        writer.emit(100, 103)
        assert held.wait(20)
        reader = Reader(gateway, "?topic=a/b").wait_open()
        pid = gateway.kill_control()
        answers[0] = 204
        gateway.wait_restarted("control", pid)
        children.wait_for(lambda: len(receiver.taken) >= 3, "the events", log=gateway.log)
    assert [call.event["data"]["n"] for call in receiver.taken] == [100, 101, 102]
    assert receiver.calls[0].id == receiver.taken[0].id
    assert all(is_genuine(call, secret) for call in receiver.calls)
    children.wait_for(lambda: reader.ended, "the stream of the dead process to be cut")
    assert reader.failure  # a cut, which no client takes for an end
    reader.close()


def test_a_roll_of_the_workers_ends_streams_in_a_clean_way_and_soon(gateway: Gateway, writer: Writer) -> None:
    reader = Reader(gateway).wait_open()
    (old,) = gateway.role_pids("worker")
    begin = time.monotonic()
    os.kill(gateway.pid, signal.SIGUSR2)
    children.wait_for(lambda: reader.ended, "the stream to end", log=gateway.log)
    assert (reader.failure, reader.text.endswith("retry: 1000\n")) == ("", True), reader.text
    children.wait_for(lambda: old not in gateway.role_pids("worker"), "the old worker to be gone", log=gateway.log)
    assert time.monotonic() - begin < 9, "the old worker waited for the stream as long as it may"
    again = Reader(gateway).wait_open()
    writer.emit(200, 201)
    again.wait(1)
    again.close()


def test_a_stop_ends_streams_in_a_clean_way_and_soon(gateway: Gateway) -> None:
    reader = Reader(gateway).wait_open()
    begin = time.monotonic()
    os.kill(gateway.pid, signal.SIGTERM)
    children.wait_for(lambda: reader.ended, "the stream to end", log=gateway.log)
    assert (reader.failure, reader.text.endswith("retry: 1000\n")) == ("", True), (reader.failure, reader.text)
    process = gateway._process
    assert process is not None
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    assert process.returncode == 0
    assert time.monotonic() - begin < 9
    reader.close()
