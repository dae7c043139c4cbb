"""The table of the limits: a row per name, found by hash, shared by all workers of the host through a `SlotFile`.

A row is `ROW_WORDS` words:

    KEY         64-bit hash of the name; 0 = never used, `VACATED` = being given to another name
    REQUESTS    when the bucket of requests is full again (ns, `gcra`)
    TOKENS      the same of tokens, everything counted when it was reserved
    USED        the same of tokens, everything counted when it was known
    HELD        in flight: reserved tokens << `COUNT_BITS` | number of requests, over all owners
    TURN        how often a turn was taken
    SEEN        when it was last used (ns)
    PER_MINUTE  the limits in use: requests, tokens, concurrent (0 = none), for pages and for burials
    NAME        the first `NAME_BYTES` bytes of the name
    MARK        tells whether the limits in the row are the ones in use

The table has `STRIPES` parts, each with a lock of its own; a name belongs to one part and is looked for from one place
on, to the first row that was never used or `PROBES` rows far. Rows are never emptied again, so a search never stops
too early: a name without a row gets an unused one, else the idle one that was not used for longest. Idle = nothing
held and all buckets full, so nothing is lost but the turn. Where every row in reach is busy there is no row: the
caller goes on without a limit, because a full table must not be an outage, and it is counted (`overflows`) and logged.

What an owner holds stands in its own cell too, in the same packing. Stores are ordered: cell before HELD when it grows,
HELD before cell when it shrinks. So whatever moment an owner is killed in, HELD never has more than the cells say,
and never less than living owners hold; a burial makes HELD the sum of the other cells. Reserved tokens of a dead owner
are taken for used at that moment, and so refill with time.

Rows may be read without a lock, each word as it was a moment ago. Used from one thread.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import time
from collections.abc import Callable
from fcntl import F_OFD_SETLKW, fcntl
from pathlib import Path

from gateway.limits import gcra
from gateway.limits.slot_file import (
    CAPACITY,
    HIGH,
    OWNER_WORDS,
    PAGE,
    ROW_WORDS,
    ROWS,
    STRIPE_LOCKS,
    STRIPES,
    STRIPES_UNLOCK,
    WORD,
    SlotFile,
    SlotsError,
    boot_id,
)

KEY, REQUESTS, TOKENS, USED, HELD, TURN, SEEN, PER_MINUTE = range(8)
TOKENS_PER_MINUTE, CONCURRENT, NAME, MARK = PER_MINUTE + 1, PER_MINUTE + 2, PER_MINUTE + 3, ROW_WORDS - 1
NAME_BYTES = (MARK - NAME) * WORD
VACATED = -1
COUNT_BITS = 20
COUNT_MASK = (1 << COUNT_BITS) - 1
PROBES = 64
NO_ROW = -1

_LOG_AGAIN_NS = 60 * 10**9
_EMPTY_PAGE = bytes(PAGE)

log = logging.getLogger("hoosh.limits")


@functools.lru_cache(maxsize=CAPACITY)
def key_of(name: bytes) -> int:
    """The hash a name is found by: 64 bits, signed, none of the values with a meaning."""
    key = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)
    return key if key not in (0, VACATED) else 1


def stripe_of(key: int) -> int:
    """The part of the table a key belongs to."""
    return key % STRIPES


class Slots:
    """This process's view of the host's table.

    `words` and `column` are for `gateway.limits.limiter`, which reads and stores under the locks of the stripes
    concerned, taken in ascending order. They change when the file was replaced and end with `close`: `generation`
    counts both.
    """

    def __init__(
        self,
        path: Path,
        *,
        capacity: int = CAPACITY,
        clock: Callable[[], int] = time.monotonic_ns,
        boot: bytes | None = None,
    ) -> None:
        """Open the table at `path` and become an owner. `clock` in ns, the same origin in all processes of a `boot`.

        Raises OSError where the file cannot be written or the disk is full, SlotsError where there are too many owners.
        """
        self.clock = clock
        self.generation = 0
        self.overflows = 0  # how often there was no row
        self._path = path
        self._capacity = capacity
        self._boot = boot_id() if boot is None else boot
        self._logged_ns = -_LOG_AGAIN_NS
        self._turns_without_row = 0
        self._open()

    def _open(self) -> None:
        file = SlotFile(self._path, capacity=self._capacity, boot=self._boot, clock=self.clock)
        self._file = file
        self.fd, self.words, self.column = file.fd, file.words, file.column
        self.rows: dict[int, int] = {}  # key -> first word of its row; right only while that word is the key
        self._part_rows = file.capacity // STRIPES
        self._clear(file.owner)
        self.words[OWNER_WORDS + file.owner] = os.getpid()

    @property
    def owner(self) -> int:
        """The number of this process's cells."""
        return self._file.owner

    def close(self) -> None:
        """End everything this process has in flight and give its cells back. Tickets may still be left afterwards."""
        self.generation += 1
        self._clear(self._file.owner)
        self._file.close()

    def find(self, key: int, name: bytes, now: int) -> int:
        """The first word of a name's row, made where there is none; NO_ROW where none can be had. Under its lock."""
        row = self._search(key, name, now)
        if row != NO_ROW:
            if len(self.rows) >= self._file.capacity:
                self.rows.clear()
            self.rows[key] = row
            return row
        self.overflows += 1
        if self._may_log(now):
            log.error("limits_table_full", extra={"name_without_limit": name.decode(errors="replace")})
        return NO_ROW

    def _may_log(self, now: int) -> bool:
        if now - self._logged_ns < _LOG_AGAIN_NS:
            return False
        self._logged_ns = now
        return True

    def _search(self, key: int, name: bytes, now: int) -> int:
        words, part = self.words, self._part_rows
        first, start = (key % STRIPES) * part, key // STRIPES % part
        oldest, oldest_seen = NO_ROW, now  # a row in use by the same request was seen now
        for probe in range(min(part, PROBES)):
            row = ROWS + (first + (start + probe) % part) * ROW_WORDS
            there = words[row]
            if there == key:
                return row
            if there == 0:
                oldest = row
                break
            seen = words[row + SEEN] if there != VACATED else -1
            if seen < oldest_seen and self._idle(row, now):
                oldest, oldest_seen = row, seen
        if oldest != NO_ROW:
            self._give(oldest, key, name, now)
        return oldest

    def _idle(self, row: int, now: int) -> bool:
        words = self.words
        return not words[row + HELD] and all(
            gcra.started(words[row + state], now) == now for state in (REQUESTS, TOKENS, USED)
        )

    def _give(self, row: int, key: int, name: bytes, now: int) -> None:
        words = self.words
        words[row] = VACATED  # nobody's until the last store
        for word in range(row + 1, row + ROW_WORDS):
            words[word] = 0
        shown = name[:NAME_BYTES].ljust(NAME_BYTES, b"\0")
        self._file.bytes[(row + NAME) * WORD : (row + MARK) * WORD] = shown
        words[row + SEEN] = now
        words[row] = key

    def turn(self, name: bytes) -> int:
        """How many turns were taken under that name before this one, by any process of the host."""
        key, now = key_of(name), self.clock()
        try:
            fcntl(self.fd, F_OFD_SETLKW, STRIPE_LOCKS[key % STRIPES])
            words, row = self.words, self.rows.get(key, ROWS)
            if words[row] != key:
                row = self.find(key, name, now)
            if row == NO_ROW:
                self._turns_without_row += 1
                return self._turns_without_row
            turn = words[row + TURN]
            words[row + TURN] = turn + 1
            words[row + SEEN] = now
            return turn
        finally:
            fcntl(self.fd, F_OFD_SETLKW, STRIPES_UNLOCK)

    def in_flight(self, name: bytes) -> int:
        """How many requests are in flight under that name on this host. No lock, no system call once it was found."""
        key, words = key_of(name), self.words
        row = self.rows.get(key, ROWS)
        if words[row] != key:
            try:
                fcntl(self.fd, F_OFD_SETLKW, STRIPE_LOCKS[key % STRIPES])
                row = self.find(key, name, self.clock())
            finally:
                fcntl(self.fd, F_OFD_SETLKW, STRIPES_UNLOCK)
            if row == NO_ROW:
                return 0
        return words[row + HELD] & COUNT_MASK

    def own_in_flight(self, name: bytes) -> int:
        """How many of them are this process's. No lock."""
        key, words = key_of(name), self.words
        row = self.rows.get(key, ROWS)
        return words[self.column + (row - ROWS) // ROW_WORDS] & COUNT_MASK if words[row] == key else 0

    def tend(self) -> int:
        """To be called about once a second: frees what dead owners held, and follows a file that was replaced.

        Returns how many owners were buried. A file that cannot be used is logged, and the old one stays in use.
        """
        try:
            if self._file.replaced():
                before = self._file
                self._open()
                self.generation += 1
                before.close()
        except (OSError, SlotsError) as exc:
            if self._may_log(self.clock()):
                log.error("limits_file_unusable", extra={"error": str(exc)})
        return self.bury_dead()

    def bury_dead(self) -> int:
        """Free what owners held whose process is gone; returns how many there were."""
        words, file, buried = self.words, self._file, 0
        for owner in range(words[HIGH]):
            if words[OWNER_WORDS + owner] and owner != file.owner and file.lock_owner(owner):
                try:
                    buried += bool(words[OWNER_WORDS + owner])  # else another process was quicker
                    self._clear(owner)
                finally:
                    file.unlock_owner(owner)
        return buried

    def _clear(self, owner: int) -> None:
        """Free everything an owner holds, then the owner's place. Under the owner's lock."""
        file, column = self._file, self._file.cells + owner * self._file.capacity
        for page in range(column, column + file.capacity, PAGE // WORD):
            if file.map[page * WORD : page * WORD + PAGE] == _EMPTY_PAGE:
                continue
            for cell in range(page, page + PAGE // WORD):
                if self.words[cell]:
                    self._free(cell, cell - column)
        self.words[OWNER_WORDS + owner] = 0

    def _free(self, cell: int, index: int) -> None:
        words, file, now = self.words, self._file, self.clock()
        row = ROWS + index * ROW_WORDS
        try:
            fcntl(self.fd, F_OFD_SETLKW, STRIPE_LOCKS[index // self._part_rows])
            held = words[cell]
            others = sum(words[file.cells + index : file.cells + words[HIGH] * file.capacity : file.capacity]) - held
            reserved, per_minute = held >> COUNT_BITS, words[row + TOKENS_PER_MINUTE]
            # Where they are equal the owner died between two stores: the reservation was ended, or hardly begun.
            if words[row + HELD] != others and reserved and per_minute:
                used = gcra.started(words[row + USED], now) + gcra.cost_ns(reserved, per_minute)
                words[row + USED] = min(used, now + gcra.AHEAD_NS)
            words[row + HELD] = others
            words[cell] = 0
        finally:
            fcntl(self.fd, F_OFD_SETLKW, STRIPES_UNLOCK)
