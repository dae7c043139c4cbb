"""Checkpoints get to a real file and a real syslog, and what is away keeps nobody waiting."""

from __future__ import annotations

import datetime as dt
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from audit.anchors import SYSLOG_HEAD, AnchorError, Anchors, append_line, parse_address
from audit.heads import Head


def head(size: int) -> Head:
    note = f"hoosh/0123456789abcdef/2026-11\n{size}\nroot\n\n\u2014 hoosh/0123456789abcdef c2ln\n"
    return Head("2026-11", size, bytes(32), dt.datetime(2026, 11, 5, tzinfo=dt.UTC), note)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def running(anchors: Anchors) -> Iterator[Anchors]:
    anchors.start()
    try:
        yield anchors
    finally:
        anchors.stop()


def notes_in(path: Path) -> list[str]:
    return [json.loads(line)["note"] for line in path.read_text().splitlines()]


def test_the_file_gets_each_checkpoint_that_is_newest_when_it_is_time(tmp_path: Path) -> None:
    path = tmp_path / "anchors.jsonl"
    states: list[str] = []
    with running(Anchors(file=str(path), period_s=0.05, on_state=states.append)) as anchors:
        anchors.take(head(1))
        eventually(lambda: path.exists() and len(notes_in(path)) == 1)
        time.sleep(0.2)
        anchors.take(head(2))
        anchors.take(head(3))
        eventually(lambda: notes_in(path)[-1] == head(3).note)
    assert head(1).note in notes_in(path)
    assert len(notes_in(path)) <= 3
    told = json.loads(states[-1])["file"]
    assert (told["state"], told["size"], told["log"], told["error"]) == ("ok", "3", "2026-11", "")


def test_the_newest_checkpoint_is_taken_along_at_the_end_and_only_once(tmp_path: Path) -> None:
    path = tmp_path / "anchors.jsonl"
    with running(Anchors(file=str(path), period_s=3600)) as anchors:
        anchors.take(head(1))
        anchors.take(head(2))
    assert notes_in(path) == [head(2).note]


def test_lines_are_only_appended_and_one_that_was_cut_short_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "anchors.jsonl"
    path.write_bytes(b'{"note": "old"}\n{"no')
    append_line(path, b'{"note": "new"}\n')
    assert path.read_bytes() == b'{"note": "old"}\n{"no\n{"note": "new"}\n'


@pytest.mark.parametrize("kind", ["datagram", "stream", "udp"])
def test_syslog_gets_one_message_with_the_note(short_dir: Path, kind: str) -> None:
    path = short_dir / "log"
    family = socket.AF_INET if kind == "udp" else socket.AF_UNIX
    with socket.socket(family, socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM) as server:
        server.settimeout(5)
        server.bind(("127.0.0.1", 0) if kind == "udp" else str(path))
        if kind == "stream":
            server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}" if kind == "udp" else str(path)
        with running(Anchors(syslog=address, period_s=0.02)) as anchors:
            anchors.take(head(7))
            message = server.accept()[0].recv(65_536) if kind == "stream" else server.recv(65_536)
    assert message.startswith(SYSLOG_HEAD)
    assert message.isascii()
    assert json.loads(message.removeprefix(SYSLOG_HEAD)) == {"note": head(7).note}


def test_an_anchor_that_is_away_is_told_tried_again_and_stops_no_other(tmp_path: Path) -> None:
    missing, path = tmp_path / "volume" / "anchors.jsonl", tmp_path / "syslog"
    states: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.settimeout(5)
        server.bind(str(path))
        options = {"file": str(missing), "syslog": str(path), "period_s": 0.05}
        with running(Anchors(**options, on_state=states.append)) as anchors:  # type: ignore[arg-type]
            anchors.take(head(1))
            server.recv(65_536)
            eventually(lambda: bool(states))
            told = json.loads(states[-1])
            assert (told["file"]["state"], told["syslog"]["state"]) == ("failed", "ok")
            assert "FileNotFoundError" in told["file"]["error"]
            missing.parent.mkdir()
            eventually(missing.exists)
            eventually(lambda: json.loads(states[-1])["file"]["state"] == "ok")
    assert notes_in(missing) == [head(1).note]


def test_taking_a_checkpoint_never_waits() -> None:
    def slow(_head: Head) -> None:
        time.sleep(0.5)

    with running(Anchors(event=slow, period_s=0.01)) as anchors:
        anchors.take(head(1))
        time.sleep(0.1)
        began = time.monotonic()
        anchors.take(head(2))
        assert time.monotonic() - began < 0.1


def test_addresses_are_paths_or_host_and_port() -> None:
    assert parse_address("/dev/log") == "/dev/log"
    assert parse_address("logs.example.org:514") == ("logs.example.org", 514)
    assert parse_address("[::1]:514") == ("::1", 514)
    for odd in ("logs", "logs:", ":514", "logs:70000", "logs:x", ""):
        with pytest.raises(AnchorError, match="host:port"):
            parse_address(odd)
