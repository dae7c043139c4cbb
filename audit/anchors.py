"""Taking the last checkpoint elsewhere: to a file on another volume, to syslog, to webhooks.

Whoever holds an older checkpoint can prove that the log was rewritten, even by somebody who has the signing key. Every
so often, and at the end, each anchor gets the newest checkpoint if it has not got it yet, as one line of JSON:
{"note": "…"}. A thread of its own: what is slow or away keeps nobody waiting, and is tried again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from audit.heads import Head

log = logging.getLogger("hoosh.audit")

STATE = "anchors"  # in AuditState
FILE, SYSLOG, EVENT = "file", "syslog", "event"
SYSLOG_HEAD = b"<109>hoosh-audit: "  # facility 13 (log audit), severity 5 (notice)
SEND_S = 5.0
STOP_S = 10.0

Send = Callable[[Head], None]


class AnchorError(ValueError):
    """An anchor's address is not one; the message says what to write."""


class Anchors:
    """`take` may be called from any thread and never waits."""

    def __init__(
        self,
        *,
        file: str = "",
        syslog: str = "",
        event: Send | None = None,
        period_s: float = 60.0,
        on_state: Callable[[str], object] = lambda text: None,
    ) -> None:
        """`event` tells webhooks; `on_state` is given what became of each anchor, JSON by name.

        Raises `AnchorError`.
        """
        self._senders: dict[str, Send] = {}
        if file:
            path = Path(file)
            self._senders[FILE] = lambda head: append_line(path, line_of(head))
        if syslog:
            address = parse_address(syslog)
            self._senders[SYSLOG] = lambda head: send_syslog(address, line_of(head))
        if event is not None:
            self._senders[EVENT] = event
        self._period_s, self._on_state = period_s, on_state
        self._head: Head | None = None
        self._sent: dict[str, str] = {}  # the last note each anchor got
        self._states: dict[str, dict[str, str]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="audit-anchors", daemon=True)

    def start(self) -> None:
        """Begin."""
        if self._senders:
            self._thread.start()

    def take(self, head: Head) -> None:
        """The newest checkpoint."""
        self._head = head

    def stop(self) -> None:
        """Take the newest checkpoint to the file and to syslog, then end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _work(self) -> None:
        while not self._stop.wait(self._period_s):
            self._send_all()
        self._senders.pop(EVENT, None)  # nobody delivers it any more; the next process tells a newer one
        self._send_all()

    def _send_all(self) -> None:
        head = self._head
        if head is None:
            return
        before = dict(self._states)
        for name, send in self._senders.items():
            if self._sent.get(name) == head.note:
                continue
            told = {"at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "log": head.log, "size": str(head.size)}
            try:
                send(head)
            except Exception as exc:
                error = f"{type(exc).__name__}: {exc}"
                if self._states.get(name, {}).get("error") != error:  # not once a minute
                    log.error("audit_anchor_failed", extra={"anchor": name, "reason": error})
                last = self._states.get(name, {})
                kept = {key: last.get(key, "") for key in ("at", "log", "size")}
                self._states[name] = {**kept, "state": "failed", "error": error, "failed_at": told["at"]}
            else:
                self._sent[name] = head.note
                self._states[name] = {**told, "state": "ok", "error": ""}
        if self._states != before:
            with contextlib.suppress(Exception):  # the ledger is away: the next one is kept again
                self._on_state(json.dumps(self._states))


def line_of(head: Head) -> bytes:
    """A checkpoint as anchors have it: one line of ASCII."""
    return json.dumps({"note": head.note}).encode("ascii") + b"\n"


def append_line(path: Path, line: bytes) -> None:
    """Append a whole line and wait for the disk. A line that was cut short before is ended first."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        while line:
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse_address(text: str) -> str | tuple[str, int]:
    """The path of a Unix socket, or host and port: "/dev/log", "logs.example.org:514", "[::1]:514"."""
    if text.startswith("/"):
        return text
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise AnchorError(f"{text!r} is no address of a syslog: write /dev/log or host:port.")
    return host, int(port)


def send_syslog(address: str | tuple[str, int], line: bytes) -> None:
    """Send one message. Over UDP nobody says whether it came."""
    message = SYSLOG_HEAD + line.rstrip()
    if isinstance(address, str):
        for kind, ending in ((socket.SOCK_DGRAM, b""), (socket.SOCK_STREAM, b"\n")):
            with socket.socket(socket.AF_UNIX, kind) as unix:
                unix.settimeout(SEND_S)
                try:
                    unix.connect(address)
                except OSError as exc:
                    if kind == socket.SOCK_DGRAM and exc.errno == _WRONG_KIND:
                        continue
                    raise
                unix.sendall(message + ending)
                return
    else:
        found = socket.getaddrinfo(*address, type=socket.SOCK_DGRAM)[0]
        with socket.socket(found[0], found[1], found[2]) as udp:
            udp.settimeout(SEND_S)
            udp.sendto(message, found[4])


_WRONG_KIND = errno.EPROTOTYPE  # it listens on a stream
