"""The file behind the limits: one per host, mapped into every worker, made of 64-bit words.

    page 0          header: magic, format, capacity, owners, boot id; then two words that change (`HIGH`, `OPENED`)
    page 1          one word per owner: the process id that has it, 0 = free
    rows            capacity x `ROW_WORDS` words, what all processes share (`slots`)
    cells           owners x capacity words, what each owner has in flight; a column per owner

**Whole or not at all.** A word is stored by one machine instruction, so a process that is killed leaves each word old
or new. What belongs together is ordered so that every prefix of the stores is safe; there is nothing to repair by
checksums. The memory outlives the process because it is the kernel's.

**Locks** are open-file-description locks on byte ranges: the kernel drops them with the process that held them, and,
unlike plain POSIX locks, not because some other part of the process closed the same file. One range per stripe of the
table, one per owner (held for life: whoever gets it knows that the owner is dead), one for opening. They are inherited
by `fork` without `exec`, so a process with limits must not do that. A process that is stopped (not killed) inside the
microseconds in which it holds a stripe stops the others there.

**Time** is `CLOCK_MONOTONIC`: one clock for all processes of a host, never set, in nanoseconds since the boot. A file
from before a reboot would be read with another origin, so the header has the kernel's boot id; another one, or a last
opening in the future, and the file starts anew. The wall clock would survive a reboot, but a
minute of limits is not worth the trouble of one that is set back.

**Damage.** A file with a wrong header or size is unlinked and made again; processes that still have the old one move to
the new when they look (`SlotFile.replaced`). Space is allocated before it is mapped, because a store into a page that
the disk has no room for would kill the process.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path

MAGIC, FORMAT = b"HOOSHLIM", 1
WORD, PAGE = 8, 4096
STRIPES = 64
OWNERS = PAGE // WORD  # 512: twice as many as there may be workers, because a roll has old and new ones
ROW_WORDS = 16
CAPACITY = 65536
CAPACITY_MIN = PAGE // WORD  # so that every owner's cells start at a page

HEADER = struct.Struct("<8sIII16s")
HIGH, OPENED = 8, 9  # words of page 0: owners ever used, ns of the last opening
OWNER_WORDS = PAGE // WORD  # first word of page 1
ROWS = 2 * PAGE // WORD  # first word of the rows

_ATTEMPTS = 100
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FLOCK = struct.Struct("@hhqqi4x")  # struct flock of 64-bit Linux


def _range(kind: int, start: int, length: int = 1) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)


# Bytes of the file that are locked; what stands there does not matter.
_OPENING, _OPENED = _range(fcntl.F_WRLCK, 0), _range(fcntl.F_UNLCK, 0)
STRIPE_LOCKS = tuple(_range(fcntl.F_WRLCK, 1 + stripe) for stripe in range(STRIPES))
STRIPES_UNLOCK = _range(fcntl.F_UNLCK, 1, STRIPES)
_OWNER_LOCKS = tuple(_range(fcntl.F_WRLCK, PAGE + owner) for owner in range(OWNERS))
_OWNER_UNLOCKS = tuple(_range(fcntl.F_UNLCK, PAGE + owner) for owner in range(OWNERS))


class SlotsError(Exception):
    """The file of the limits cannot be used; the message says why."""


def boot_id() -> bytes:
    """16 bytes that differ from boot to boot; zeros where the kernel does not tell."""
    try:
        return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))[:16].ljust(16, b"\0")
    except (OSError, ValueError):
        return bytes(16)


def file_bytes(capacity: int) -> int:
    """The size of a whole file. It is sparse: only the cells of owners that live or lived take space."""
    return (ROWS + capacity * (ROW_WORDS + OWNERS)) * WORD


def read_header(data: bytes, size: int, boot: bytes | None = None) -> int | None:
    """The capacity a header tells; None for anything but a whole file of this format (and of that boot)."""
    if len(data) < HEADER.size:
        return None
    magic, version, capacity, owners, of_boot = HEADER.unpack(data[: HEADER.size])
    if (magic, version, owners, size) != (MAGIC, FORMAT, OWNERS, file_bytes(capacity)):
        return None
    if boot is not None and boot != of_boot:
        return None
    return int(capacity)


class SlotFile:
    """One process's mapping of the file, with an owner's cells of its own."""

    def __init__(self, path: Path, *, capacity: int, boot: bytes, clock: Callable[[], int]) -> None:
        """Open or make the file; a file that is there keeps its capacity. `clock` tells ns since the boot.

        Raises OSError where it cannot be written or the disk is full, SlotsError where all owners' cells are taken.
        """
        if capacity < CAPACITY_MIN or capacity & (capacity - 1):
            raise ValueError(f"The capacity must be a power of two, at least {CAPACITY_MIN}.")
        self.path = path
        self.fd, self.capacity = _open_locked(path, capacity, boot, clock)
        try:
            self.map = mmap.mmap(self.fd, file_bytes(self.capacity))
            self.bytes = memoryview(self.map)
            self.words = self.bytes.cast("q")
            self.cells = ROWS + self.capacity * ROW_WORDS  # first word of owner 0's column
            self.owner = self._claim()
            self.column = self.cells + self.owner * self.capacity
            self.words[OPENED] = clock()
            self.unlock(_OPENED)
        except BaseException:
            os.close(self.fd)
            raise

    def _claim(self) -> int:
        for owner in range(OWNERS):
            if self.lock_owner(owner):
                offset = (self.cells + owner * self.capacity) * WORD
                os.posix_fallocate(self.fd, offset, self.capacity * WORD)
                self.words[HIGH] = max(self.words[HIGH], owner + 1)
                return owner
        raise SlotsError(f"{OWNERS} processes use {self.path} already.")

    def lock_owner(self, owner: int) -> bool:
        """Take an owner's lock, if nobody else has it: then that owner is dead or its place is free."""
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _OWNER_LOCKS[owner])
        except (BlockingIOError, PermissionError):
            return False
        return True

    def unlock_owner(self, owner: int) -> None:
        """Give an owner's lock back."""
        self.unlock(_OWNER_UNLOCKS[owner])

    def unlock(self, what: bytes) -> None:
        """Give back a range, such as `STRIPES_UNLOCK`; nothing happens where none of it is held."""
        fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, what)

    def replaced(self) -> bool:
        """Whether the path leads elsewhere by now: to nothing, or to a file that this code can use."""
        try:
            if _same_file(self.path, self.fd):
                return False
            with open(self.path, "rb") as file:
                return read_header(file.read(HEADER.size), os.fstat(file.fileno()).st_size) is not None
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Unmap and close, which gives all locks back."""
        self.words.release()
        self.bytes.release()
        self.map.close()
        os.close(self.fd)


def _same_file(path: Path, fd: int) -> bool:
    there, here = os.stat(path), os.fstat(fd)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _open_locked(path: Path, capacity: int, boot: bytes, clock: Callable[[], int]) -> tuple[int, int]:
    """The descriptor of a sound file, locked for opening, and its capacity."""
    for _ in range(_ATTEMPTS):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _OPENING)
            if _same_file(path, fd):  # else somebody replaced it while we waited
                if not os.fstat(fd).st_size:
                    _create(fd, capacity, boot)
                found = _sound_capacity(fd, boot, clock)
                if found is not None:
                    return fd, found
                os.unlink(path)
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    raise SlotsError(f"{path} is replaced again and again.")


def _create(fd: int, capacity: int, boot: bytes) -> None:
    os.ftruncate(fd, file_bytes(capacity))
    os.posix_fallocate(fd, 0, (ROWS + capacity * ROW_WORDS) * WORD)
    # Last: a file without it, because the disk is full or we were killed, is not sound and made again.
    os.pwrite(fd, HEADER.pack(MAGIC, FORMAT, capacity, OWNERS, boot), 0)


def _sound_capacity(fd: int, boot: bytes, clock: Callable[[], int]) -> int | None:
    page = os.pread(fd, PAGE, 0)
    capacity = read_header(page, os.fstat(fd).st_size, boot)
    if capacity is None or struct.unpack_from("@q", page, OPENED * WORD)[0] > clock():  # read under the lock
        return None
    return capacity
