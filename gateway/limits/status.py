"""What stands in the host's table, for pages. Reads the file without a lock and without becoming an owner."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gateway.limits import gcra
from gateway.limits.slot_file import HEADER, HIGH, OWNER_WORDS, ROW_WORDS, ROWS, WORD, boot_id, read_header
from gateway.limits.slots import (
    COUNT_BITS,
    COUNT_MASK,
    HELD,
    NAME,
    NAME_BYTES,
    PER_MINUTE,
    REQUESTS,
    SEEN,
    TOKENS,
    TURN,
    VACATED,
)


class SlotStatus(NamedTuple):
    """One name. Limits and what remains of them: None = no limit when it was last used."""

    name: str  # its first 40 bytes
    requests_per_minute: int | None
    requests_remaining: int | None
    tokens_per_minute: int | None
    tokens_remaining: int | None
    concurrent: int | None
    in_flight: int
    tokens_reserved: int  # of the requests in flight
    turns: int
    idle_s: float  # since it was last used


class Status(NamedTuple):
    """The whole table: the names, those used last first, and the process ids of the owners."""

    capacity: int
    owners: tuple[int, ...]
    slots: tuple[SlotStatus, ...]


def read_status(
    path: Path, *, clock: Callable[[], int] = time.monotonic_ns, boot: bytes | None = None
) -> Status | None:
    """The table at `path`; None where there is none, or none of this boot. Each figure as of a moment during the call.

    A dead owner and what it holds are shown until a worker buries it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        head = os.pread(fd, HEADER.size, 0)
        capacity = read_header(head, os.fstat(fd).st_size, boot_id() if boot is None else boot)
        if capacity is None:
            return None
        size = (ROWS + capacity * ROW_WORDS) * WORD
        with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as mapped, memoryview(mapped).cast("q") as words:
            return _read(words, mapped, capacity, clock())
    finally:
        os.close(fd)


def _read(words: memoryview[int], data: mmap.mmap, capacity: int, now: int) -> Status:
    with words[ROWS : ROWS + capacity * ROW_WORDS : ROW_WORDS] as column:
        keys = column.tolist()
    slots = [
        _slot(words, data, ROWS + index * ROW_WORDS, now) for index, key in enumerate(keys) if key not in (0, VACATED)
    ]
    slots.sort(key=lambda slot: (slot.idle_s, slot.name))
    owners = tuple(pid for pid in words[OWNER_WORDS : OWNER_WORDS + words[HIGH]].tolist() if pid)
    return Status(capacity, owners, tuple(slots))


def _slot(words: memoryview[int], data: mmap.mmap, row: int, now: int) -> SlotStatus:
    per_requests, per_tokens, concurrent = words[row + PER_MINUTE : row + PER_MINUTE + 3].tolist()
    held, offset = words[row + HELD], (row + NAME) * WORD
    return SlotStatus(
        data[offset : offset + NAME_BYTES].rstrip(b"\0").decode(errors="replace"),
        per_requests or None,
        gcra.room_for_single(words[row + REQUESTS], now, per_requests) if per_requests else None,
        per_tokens or None,
        gcra.room(words[row + TOKENS], now, per_tokens) if per_tokens else None,
        concurrent or None,
        held & COUNT_MASK,
        held >> COUNT_BITS,
        words[row + TURN],
        max(0, now - words[row + SEEN]) / 10**9,
    )
