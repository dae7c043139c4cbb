"""The worker's journal: an append-only file that survives `kill -9`, written before anything is promised.

One incarnation of a worker (the *owner*) has one directory entry of each kind:

    OWNER.lock          locked with flock for the owner's life; whoever gets that lock knows that the owner is dead
    OWNER.00000001.j    segments of about 64 MiB, removed by control once settled

Both are made as `….new` and renamed when complete (the lock: when held), so nobody sees a half-made one.

A segment starts with `HEADER` (magic, format, segment number, CRC). Behind it stand records:

    kind (1 byte), length of the payload (u32), payload, CRC-32 of all before (u32)        little endian

    R  key + HoldRecord (msgpack)      a hold, before the upstream call
    D  key + events, bytes (u64 each)  delivered (or read) so far, before that much is delivered
    C  key + UsageRecord (msgpack)     the end of an attempt, before its last byte is delivered
    X  key                             the hold was released, nothing was consumed
    S  digest (16 bytes) + payload     a decision shape, in each segment before the first C that names it

where key = request id (16 bytes) + attempt (u16). One `write()` per call. Numbers in D are cumulative.

When a write fails (disk full, I/O error) the torn record is cut off, `JournalError` is raised and `writable` turns
False. The disk is tried again, after a short pause, by the next append or by asking `writable`. A caller keeps the end
record that was refused and appends it again later: a record that stands in the journal twice is charged once.

Pure of Django; used from one thread (the worker's event loop).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import secrets
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import msgspec

from budgets.records import HoldRecord, UsageRecord

SEGMENT_BYTES = 64 * 1024 * 1024
RECORD_BYTES = 1024 * 1024  # no record is longer; a length above is damage
RETRY_S = 0.25  # pause between two attempts on a disk that refused
TRIAL_BYTES = 16 * 1024  # room there must be before a journal that was refused is trusted again
SHAPE_BYTES = 256 * 1024  # a longer decision shape is not kept
SHAPES = 4096  # shapes remembered for later segments
SYNC_S = 0.005  # group of one fdatasync in "host" mode
BYTES_PER_TOKEN = 3  # of delivered text in `D`, where the end of an answer is unknown; low, so that it over-counts

HEAD = struct.Struct("<BI")
CRC = struct.Struct("<I")
KEY = struct.Struct("<16sH")
MARK = struct.Struct("<16sHQQ")
HEADER = struct.Struct("<6sHII")  # magic, format, segment, CRC of the rest
MAGIC, FORMAT = b"HOOSHJ", 1
HOLD, DELIVERED, COMPLETE, RELEASE, SHAPE = (ord(kind) for kind in "RDCXS")

_OWNER = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_SEGMENT = re.compile(r"([A-Za-z0-9_-]{1,64})\.([0-9]{8})\.j\Z")

_encode = msgspec.msgpack.Encoder().encode
_crc32 = zlib.crc32
_head = HEAD.pack
_crc = CRC.pack
_key = KEY.pack


class JournalError(Exception):
    """The journal could not be written; nothing may be promised until it can be."""


def new_owner(index: int) -> str:
    """A name for one incarnation of worker `index`, unique over hosts and restarts."""
    return f"w{index}-{os.getpid()}-{secrets.token_hex(8)}"


def lock_path(directory: Path, owner: str) -> Path:
    """The file whose lock proves that `owner` lives."""
    return directory / f"{owner}.lock"


def segment_path(directory: Path, owner: str, segment: int) -> Path:
    """The file of one segment; numbers start at 1."""
    return directory / f"{owner}.{segment:08d}.j"


def parse_segment_name(name: str) -> tuple[str, int] | None:
    """Owner and number of a segment's file name; None for any other file."""
    match = _SEGMENT.match(name)
    return (match[1], int(match[2])) if match else None


def segment_header(segment: int) -> bytes:
    """The first bytes of a segment's file."""
    body = HEADER.pack(MAGIC, FORMAT, segment, 0)[: -CRC.size]
    return body + _crc(_crc32(body))


def list_segments(directory: Path, owner: str) -> list[int]:
    """The numbers of an owner's segments, ascending."""
    parsed = map(parse_segment_name, os.listdir(directory))
    return sorted(entry[1] for entry in parsed if entry is not None and entry[0] == owner)


def remove_segments(directory: Path, owner: str, *, below: int | None = None) -> None:
    """Delete an owner's segments (those before number `below`), oldest first."""
    for segment in list_segments(directory, owner):
        if below is None or segment < below:
            segment_path(directory, owner, segment).unlink(missing_ok=True)


def remove(directory: Path, owner: str) -> None:
    """Delete everything of an owner, the lock last: while that is there, the rest is looked after."""
    remove_segments(directory, owner)
    for leftover in directory.glob(f"{owner}.*.new"):
        leftover.unlink(missing_ok=True)
    lock_path(directory, owner).unlink(missing_ok=True)


def set_aside(directory: Path, owner: str) -> None:
    """Rename everything of an owner to `.bad`, the lock last, so that nobody reads or deletes it."""
    paths = [segment_path(directory, owner, segment) for segment in list_segments(directory, owner)]
    for path in [*paths, lock_path(directory, owner)]:
        if path.exists():
            path.rename(path.with_name(path.name + ".bad"))


class Journal:
    """The journal of this process. `open` it once; every method is one append."""

    def __init__(
        self, directory: Path, owner: str, *, sync: str, segment_bytes: int, clock: Callable[[], float]
    ) -> None:
        self.owner = owner
        self.bytes_written = 0  # over all segments, headers included
        self._directory = directory
        self._sync = sync == "host"
        self._segment_bytes = segment_bytes
        self._clock = clock
        self._segment = 0
        self._fd = -1
        self._size = 0
        self._lock_fd = -1
        self._works = True
        self._retry_at = 0.0
        self._shapes: dict[bytes, bytes] = {}
        self._shapes_here: set[bytes] = set()
        self._group: asyncio.Future[None] | None = None
        self._sync_begun = 0  # of `bytes_written`, when the last sync began
        # Not the loop's own executor: name lookups that hang would keep every sync waiting there.
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="journal-sync") if self._sync else None

    @classmethod
    def open(
        cls,
        directory: Path,
        owner: str,
        sync: str = "process",
        *,
        segment_bytes: int = SEGMENT_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> Journal:
        """Lock `owner`'s name and start its first segment. `sync`: "process" survives the process, "host" the host.

        Raises `JournalError` when the directory cannot be written, `ValueError` for a bad name or mode.
        """
        if not _OWNER.match(owner) or sync not in ("process", "host"):
            raise ValueError(f"bad journal owner or sync mode: {owner!r}, {sync!r}")
        journal = cls(directory, owner, sync=sync, segment_bytes=segment_bytes, clock=clock)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            journal._take_lock()
            journal._start_segment()
        except OSError as exc:
            journal.close()
            raise JournalError(f"cannot start a journal in {directory}: {exc}") from exc
        return journal

    def hold(self, record: HoldRecord) -> None:
        """Append `R`. Call it before the upstream call; `JournalError` means: do not make the call."""
        if self._size >= self._segment_bytes:
            self._rotate()
        payload = _key(record.rid, record.attempt) + _encode(record)
        body = _head(HOLD, len(payload)) + payload
        self._append(body + _crc(_crc32(body)))

    def delivered(self, rid: bytes, attempt: int, events: int, delivered_bytes: int) -> None:
        """Append `D`: this many events and bytes in all are about to have been delivered."""
        body = _head(DELIVERED, MARK.size) + MARK.pack(rid, attempt, events, delivered_bytes)
        self._append(body + _crc(_crc32(body)))

    def shape(self, digest: bytes, payload: bytes) -> None:
        """Make a decision shape known (16-byte digest, JSON). Call it before each `complete` that names it; cheap."""
        if digest not in self._shapes:
            assert len(digest) == 16
            if len(payload) > SHAPE_BYTES:  # a record longer than RECORD_BYTES would stop every reader for good
                payload = b'{"too_large":%d}' % len(payload)
            if len(self._shapes) >= SHAPES:
                self._shapes.clear()
            self._shapes[digest] = payload

    def complete(self, record: UsageRecord) -> None:
        """Append `C`, before the last byte is delivered. On `JournalError` keep the record and append it later."""
        payload = _key(record.rid, record.attempt) + _encode(record)
        body = _head(COMPLETE, len(payload)) + payload
        data = body + _crc(_crc32(body))
        digest = record.shape
        if digest in self._shapes_here or digest not in self._shapes:
            self._append(data)
            return
        shape = self._shapes[digest]
        body = _head(SHAPE, len(digest) + len(shape)) + digest + shape
        self._append(body + _crc(_crc32(body)) + data)
        self._shapes_here.add(digest)

    def release(self, rid: bytes, attempt: int) -> None:
        """Append `X`: the hold is over and nothing was consumed. Kept like `complete` when it cannot be written."""
        body = _head(RELEASE, KEY.size) + _key(rid, attempt)
        self._append(body + _crc(_crc32(body)))

    @property
    def writable(self) -> bool:
        """Whether appends work. While they do not, asking tries the disk again, at most once in `RETRY_S`."""
        if not self._works:
            try:
                self._append(_nothing())
            except JournalError:
                return False
        return True

    async def durable(self) -> None:
        """Return once everything appended so far survives the host ("host" mode; at once in "process" mode).

        Raises `JournalError` when the disk refused.
        """
        if not self._sync:
            return
        if self._group is None:
            self._begin_group()
        assert self._group is not None
        await asyncio.shield(self._group)

    def sync_soon(self) -> None:
        """In "host" mode, see to it that what was appended last is synced as well if nobody waits for that.

        Call it every so often: holds and marks of a long stream must not depend on others that end meanwhile.
        """
        if self._sync and self._group is None and self._works and self._sync_begun < self.bytes_written:
            self._begin_group()

    def _begin_group(self) -> None:
        self._group = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(SYNC_S, self._sync_group, self._group)

    def close(self) -> None:
        """Let go of the files and of the lock: control settles the rest. Appends raise `JournalError` from now on."""
        for fd in (self._fd, self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock_fd = -1
        self._works, self._retry_at = False, float("inf")
        if self._syncer is not None:
            self._syncer.shutdown(wait=False)  # a sync under way has its own descriptor

    def _append(self, data: bytes) -> None:
        if not self._works:
            self._try_again()
        try:
            written = os.write(self._fd, data)
        except OSError as exc:
            self._refused(exc)
        if written != len(data):
            self._refused(None)
        self._size += written
        self.bytes_written += written

    def _refused(self, cause: OSError | None) -> NoReturn:
        """Cut the torn record off, remember that the disk refused, and raise."""
        self._works = False
        self._retry_at = self._clock() + RETRY_S
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            self._size = self._segment_bytes  # this file is lost for writing: the next attempt starts another
        raise JournalError(f"the journal cannot be written: {cause or 'short write'}") from cause

    def _try_again(self) -> None:
        if self._clock() < self._retry_at:
            raise JournalError("the journal cannot be written")
        if self._size >= self._segment_bytes:
            self._rotate()
        self._works = True

    def _rotate(self) -> None:
        old_fd = self._fd
        try:
            if self._sync and old_fd >= 0:
                os.fdatasync(old_fd)
            self._start_segment()
        except OSError as exc:
            self._works = False
            self._retry_at = self._clock() + RETRY_S
            raise JournalError(f"cannot start a journal segment: {exc}") from exc
        if old_fd >= 0:
            os.close(old_fd)

    def _take_lock(self) -> None:
        path = lock_path(self._directory, self.owner)
        if path.exists():
            raise FileExistsError(f"{path} exists: an owner's name is used once")
        new = path.with_name(path.name + ".new")
        self._lock_fd = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(new, path)

    def _start_segment(self) -> None:
        path = segment_path(self._directory, self.owner, self._segment + 1)
        new = path.with_name(path.name + ".new")
        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(new, flags, 0o600)
        header = segment_header(self._segment + 1)
        try:
            if os.write(fd, header) != len(header):
                raise OSError("short write")
            os.rename(new, path)
            if self._sync:
                self._sync_names()
        except OSError:
            os.close(fd)
            raise
        self._fd, self._size = fd, len(header)
        self.bytes_written += len(header)
        self._segment += 1
        self._shapes_here.clear()

    def _sync_names(self) -> None:
        """Have the directory survive the host too: a segment nobody finds was never written."""
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _sync_group(self, group: asyncio.Future[None]) -> None:
        self._group = None  # later callers need a later sync: their records may come behind this one
        self._sync_begun = self.bytes_written
        group.add_done_callback(lambda ended: ended.exception())  # a waiter may have left
        try:
            fd = os.dup(self._fd)
        except OSError as exc:
            group.set_exception(JournalError(f"the journal cannot be synced: {exc}"))
            return
        task = asyncio.get_running_loop().run_in_executor(self._syncer, os.fdatasync, fd)

        def done(result: asyncio.Future[None]) -> None:
            os.close(fd)
            exc = result.exception()
            if exc is None:
                if not group.done():
                    group.set_result(None)
                return
            # A failed sync may have dropped pages of this file: it is not written to again.
            self._works, self._size = False, self._segment_bytes
            if not group.done():
                group.set_exception(JournalError(f"the journal cannot be synced: {exc}"))

        task.add_done_callback(done)


def _nothing() -> bytes:
    """A record that says nothing, to try the disk with; long enough that the next records will fit, too."""
    payload = bytes(TRIAL_BYTES)  # the release of a hold that never was
    body = _head(RELEASE, len(payload)) + payload
    return body + _crc(_crc32(body))
