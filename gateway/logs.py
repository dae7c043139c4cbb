"""Logs as one JSON object per line: `JsonFormatter` for what the program reports, `AccessLog` for each request.

Neither ever holds prompt text or keys. The formatter masks whatever looks like a key, wherever in the line it stands;
the access log has a fixed set of fields. Importing this module touches no database and no models.
"""

from __future__ import annotations

import datetime
import fcntl
import functools
import json
import logging
import os
import re
import select
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

MAX_TEXT = 16_384  # characters of a message or traceback that are kept
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SECRET_FIELDS = frozenset(
    {
        "api-key",
        "api_key",
        "authorization",
        "ciphertext",
        "cookie",
        "csrfmiddlewaretoken",
        "password",
        "proxy-authorization",
        "secret",
        "set-cookie",
        "token",
        "x-api-key",
        "x-goog-api-key",
    }
)
# Group 1 is what may be shown of the secret. Every part is linear: no nested repeats.
_SECRET = re.compile(
    r"\b(hk-[A-Za-z0-9_-]{8})[A-Za-z0-9_-]{8,}"
    r"|\b((?:sk|pk|rk|xai|gsk|AIza|ghp|hf|nvapi)[-_]?)(?=[A-Za-z0-9_-]*[0-9])[A-Za-z0-9_-]{16,}"
    r"|\b((?:[Bb]earer|[Bb]asic)\s+)[A-Za-z0-9._~+/=-]{8,}"
    r"|(://[^/\s:@\"\\]{0,64}:)[^@\s/\"\\]{1,256}(?=@)"
    r"|([?&](?:key|api_key|token|access_token)=)[^&\s\"\\]{1,512}"
)
MASK = "[redacted]"


def redact(text: str) -> str:
    """`text` with everything that looks like a key, a bearer token or a URL's password masked."""
    return _SECRET.sub(lambda match: next((part for part in match.groups() if part), "") + MASK, text)


_redact_name = functools.lru_cache(maxsize=4096)(redact)  # model names repeat; looking for secrets costs 5 µs


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, logger, message, the `extra` fields, exception. Never raises."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one ASCII line without a line break."""
        entry: dict[str, Any] = {
            "time": _iso(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record)[:MAX_TEXT],
        }
        for name, value in vars(record).items():
            if name not in _STANDARD and name not in entry and not name.startswith("_"):
                shown = _plain(name, value)
                if shown is not _LEFT_OUT:
                    entry[name] = shown
        # What is refused as suspicious says everything in its message; anybody can provoke it, so it stays one line.
        if record.exc_info and not record.name.startswith("django.security."):
            entry["exception"] = _tail(self.formatException(record.exc_info))
        elif record.exc_text:
            entry["exception"] = _tail(record.exc_text)
        if record.stack_info:
            entry["stack"] = _tail(record.stack_info)
        return redact(json.dumps(entry, ensure_ascii=True, default=str))


_LEFT_OUT = object()


def _iso(unix_s: float) -> str:
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).isoformat(timespec="milliseconds")[:23] + "Z"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # a wrong format string must not lose the event or raise into the caller
        return f"{record.msg} {record.args!r}"


def _tail(text: str) -> str:
    # The end of a traceback names the error, so that is the part to keep.
    return text if len(text) <= MAX_TEXT else "…" + text[-MAX_TEXT:]


def _plain(name: str, value: Any, depth: int = 0) -> Any:
    """Ids and figures as they are; objects (requests, sockets) are left out: their repr may quote a URL or a body."""
    if name.lower() in _SECRET_FIELDS:
        return MASK
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str | os.PathLike):
        return str(value)[:MAX_TEXT]
    if depth < 3 and isinstance(value, dict):
        return {str(key): _plain(str(key), item, depth + 1) for key, item in list(value.items())[:64]}
    if depth < 3 and isinstance(value, list | tuple | set | frozenset):
        return [_plain("", item, depth + 1) for item in list(value)[:64]]
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"[:MAX_TEXT]
    return _LEFT_OUT if depth == 0 else type(value).__name__


class AccessEntry(msgspec.Struct, omit_defaults=True):
    """One request, as the access log shows it. Fields at their default are left out of the line."""

    time: int | datetime.datetime  # Unix microseconds when added; a UTC date in the file
    request_id: str
    endpoint: str
    status: int
    client_request_id: str = ""
    key: str = ""  # the key's visible prefix
    agent: str = ""
    model: str = ""
    route: str = ""
    provider: str = ""
    error: str = ""  # code of the error told to the client
    stream: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    latency_ms: float = 0.0
    ttft_ms: float = 0.0
    attempts: int = 0
    client: str = ""  # address
    config: int = 0
    cache: str = ""  # "hit", "miss" or "bypass" where the answer cache was asked


class AccessLog:
    """A buffered access log: `add` appends to a list, `flush` encodes all and writes once.

    The target is a path, "-" (standard output) or "off". Several processes may share one path: each line is appended
    whole, and the one that rotates holds a lock. Neither a full disk nor a stalled pipe raises or blocks; what could
    not be written is dropped and counted in `dropped`.
    """

    def __init__(
        self, target: str | Path, *, rotate_bytes: int = 64 * 1024 * 1024, keep: int = 3, buffer_entries: int = 65_536
    ) -> None:
        """Open the target; raises `OSError` when a path cannot be opened for appending."""
        self.dropped = 0
        self._path: Path | None = None
        self._fd = -1
        self._rotate_bytes, self._keep, self._limit = rotate_bytes, keep, buffer_entries
        self._entries: list[AccessEntry] = []
        self._backlog = b""  # lines a stalled pipe has not taken yet
        self._torn = False
        self._encoder = msgspec.json.Encoder()
        self._write: Callable[[bytes], None] = self._write_file
        if str(target) == "off":
            self._limit = 0
        elif str(target) == "-":
            self._fd = 1
            if not stat.S_ISREG(os.fstat(1).st_mode):
                self._write = self._write_pipe
        else:
            self._path = Path(target)
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._open()

    def add(self, entry: AccessEntry) -> None:
        """Remember one request. Cheap: no formatting, no I/O."""
        if len(self._entries) < self._limit:
            self._entries.append(entry)
        elif self._limit:
            self.dropped += 1

    def flush(self) -> None:
        """Write everything added so far. Call once a second or oftener."""
        entries, self._entries = self._entries, []
        if self._fd < 0 or (not entries and not self._backlog):
            return
        data = self._encode(entries)
        if self._path is not None:
            self._follow_rotation()
        self._write(data)

    def close(self) -> None:
        """Flush and close; later entries are ignored."""
        self.flush()
        if self._path is not None and self._fd >= 0:
            os.close(self._fd)
        self._fd, self._limit = -1, 0

    def _encode(self, entries: list[AccessEntry]) -> bytes:
        for entry in entries:
            if isinstance(entry.time, int):
                entry.time = datetime.datetime.fromtimestamp(entry.time / 1e6, datetime.UTC)
            # The only texts a client chooses: someone who mixes up the fields must not find a key in here.
            if entry.model:
                entry.model = _redact_name(entry.model)
            if entry.client_request_id:
                entry.client_request_id = redact(entry.client_request_id)
        try:
            return self._encoder.encode_lines(entries)
        except (msgspec.MsgspecError, UnicodeError, ValueError, TypeError):
            return b"".join(self._encode_one(entry) for entry in entries)

    def _encode_one(self, entry: AccessEntry) -> bytes:
        try:
            return self._encoder.encode(entry) + b"\n"
        except (msgspec.MsgspecError, UnicodeError, ValueError, TypeError):
            self.dropped += 1
            return b""

    def _open(self) -> None:
        assert self._path is not None
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _follow_rotation(self) -> None:
        """Rotate when the file is full, or move to the new file when another process has rotated."""
        assert self._path is not None
        try:
            mine = os.fstat(self._fd)
            if mine.st_size >= self._rotate_bytes:
                self._rotate()
            try:
                moved = os.stat(self._path).st_ino != os.fstat(self._fd).st_ino
            except FileNotFoundError:
                moved = True
            if moved:
                old = self._fd
                self._open()
                os.close(old)
                self._torn = False
        except OSError:
            pass  # keep the file at hand; the next flush tries again

    def _rotate(self) -> None:
        assert self._path is not None
        lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.stat(self._path).st_size < self._rotate_bytes:
                return  # another process was first
            for number in range(self._keep - 1, 0, -1):
                older = Path(f"{self._path}.{number}")
                if older.exists():
                    older.replace(f"{self._path}.{number + 1}")
            if self._keep:
                self._path.replace(f"{self._path}.1")
            else:
                self._path.unlink()
        finally:
            os.close(lock)

    def _write_file(self, data: bytes) -> None:
        if not data:
            return
        if self._torn:
            data = b"\n" + data
        try:
            written = os.write(self._fd, data)
        except OSError:
            self.dropped += data.count(b"\n")
            return
        self._torn = written < len(data) and not data[:written].endswith(b"\n")
        self.dropped += data[written:].count(b"\n")

    def _write_pipe(self, data: bytes) -> None:
        """Write in pieces of at most PIPE_BUF, each only when it fits: the reader's pace never stops the loop."""
        waiting = self._backlog + data
        try:
            while waiting and select.select((), (self._fd,), (), 0)[1]:
                cut = len(waiting) if len(waiting) <= select.PIPE_BUF else waiting.rfind(b"\n", 0, select.PIPE_BUF) + 1
                waiting = waiting[os.write(self._fd, waiting[: cut or select.PIPE_BUF]) :]
        except OSError:
            self.dropped += waiting.count(b"\n")
            waiting = b""
        if len(waiting) > 4 * 1024 * 1024:
            self.dropped += waiting.count(b"\n")
            waiting = b""
        self._backlog = waiting
