"""Reading workers' journals: what control does with them, without touching the database. Pure of Django.

A `JournalReader` follows one owner's segments, remembers which holds are open and says where a restart must begin
(its `position`: the oldest open hold). It forgives what a kill leaves behind (a torn last record) and notices what
must not be forgiven (damage with good records behind it, a missing segment).
"""

from __future__ import annotations

import fcntl
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from budgets import journal
from budgets.records import Basis, HoldRecord, UsageRecord

CHUNK_BYTES = 2 * journal.RECORD_BYTES  # one read; a record always fits
BYTES_PER_TOKEN = 3  # of delivered text, where the end of an answer is unknown; low, so that it over-counts

_decode_hold = msgspec.msgpack.Decoder(HoldRecord).decode
_decode_usage = msgspec.msgpack.Decoder(UsageRecord).decode
_HEAD_SIZE, _CRC_SIZE, _KEY_SIZE = journal.HEAD.size, journal.CRC.size, journal.KEY.size
_KINDS = re.compile(rb"[RDCXS]")


class OpenHold:
    """A hold without an end so far."""

    __slots__ = ("delivered_bytes", "events", "offset", "payload", "segment")

    def __init__(self, segment: int, offset: int, payload: bytes) -> None:
        self.segment = segment
        self.offset = offset
        self.payload = payload
        self.events = 0
        self.delivered_bytes = 0


class Batch(msgspec.Struct):
    """What one `read` brought."""

    usage: list[UsageRecord]
    shapes: dict[bytes, bytes]
    at_end: bool  # nothing more can be read now


def scan(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes, int, int]]:
    """Each record of `data` in order as (kind, payload, start, end); ends before the first that is not whole."""
    unpack, crc32 = journal.HEAD.unpack_from, zlib.crc32
    view, size = memoryview(data), len(data)
    while start + _HEAD_SIZE <= size:
        kind, length = unpack(data, start)
        body_end = start + _HEAD_SIZE + length
        end = body_end + _CRC_SIZE
        if length > journal.RECORD_BYTES or end > size:
            return
        if crc32(view[start:body_end]) != int.from_bytes(view[body_end:end], "little"):
            return
        yield kind, data[start + _HEAD_SIZE : body_end], start, end
        start = end


def find_record(data: bytes) -> int | None:
    """Where the first whole record in `data` starts; None when there is none."""
    for match in _KINDS.finditer(data):
        for _kind, _payload, start, _end in scan(data, match.start()):
            return start
    return None


def unfinished(hold: HoldRecord, *, events: int, delivered_bytes: int) -> UsageRecord:
    """The usage row of a hold that never ended.

    Charged at what was delivered (input bound + the larger of events and bytes / 3, within the hold), or at the whole
    hold when nothing is known to have been delivered: the provider may have worked for it. The cost is what that many
    tokens cost at most.
    """
    if events or delivered_bytes:
        output = max(events, -(-delivered_bytes // BYTES_PER_TOKEN))
        tokens, basis = min(max(hold.tokens, hold.input_bound + events), hold.input_bound + output), Basis.DELIVERED
    else:
        tokens, basis = hold.tokens, Basis.BOUND
    input_tokens = min(hold.input_bound, tokens)
    output_tokens = tokens - input_tokens
    return UsageRecord(
        rid=hold.rid,
        attempt=hold.attempt,
        at_us=hold.at_us,
        key_id=hold.key_id,
        agent_id=hold.agent_id,
        team_id=hold.team_id,
        pool_id=hold.pool_id,
        window_start=hold.window_start,
        route_id=hold.route_id,
        provider_id=hold.provider_id,
        endpoint=hold.endpoint,
        model=hold.model,
        upstream_model="",
        status=0,
        error="worker_died",
        stream=basis is Basis.DELIVERED,
        input_tokens=input_tokens,
        cached_tokens=0,
        cache_write_tokens=0,
        output_tokens=output_tokens,
        reasoning_tokens=0,
        tokens=tokens,
        held=hold.tokens,
        cost_pico=hold.request_pico + input_tokens * hold.input_pico + output_tokens * hold.output_pico,
        price_id=hold.price_id,
        basis=basis,
        latency_us=0,
        ttft_us=0,
        config_version=0,
        shape=b"",
        attempts=hold.attempt + 1,
        draws=hold.draws,
    )


class JournalReader:
    """Follows the journal of one owner from a stored position. Not thread-safe; `close` it.

    `suffix` is what the names of its files end in: ".bad" where they were set aside.
    """

    def __init__(
        self, directory: Path, owner: str, position: tuple[int, int] | None = None, *, suffix: str = ""
    ) -> None:
        self.owner = owner
        self.damaged = ""  # why the journal cannot be trusted to be complete; "" = it can
        self.torn = 0  # half-written last records that were dropped
        self._directory = directory
        self._suffix = suffix
        self._lock_fd = os.open(f"{journal.lock_path(directory, owner)}{suffix}", os.O_RDWR | os.O_CLOEXEC)
        self._segment, self._offset = position or (0, 0)
        self._fd = -1
        self._open: dict[bytes, OpenHold] = {}

    def owner_is_dead(self) -> bool:
        """Whether the owner's lock can be taken (and now is): then nothing is written to its journal any more."""
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def position(self) -> tuple[int, int]:
        """Segment and offset of the oldest open hold, or of the end of what was read."""
        for hold in self._open.values():
            return hold.segment, hold.offset
        return self._segment, self._offset

    def open_holds(self) -> int:
        """How many holds have no end yet."""
        return len(self._open)

    def read(self, segments: list[int], *, dead: bool, limit: int) -> Batch:
        """Read on, up to about `limit` usage records.

        `segments` are the numbers of the owner's segments as listed after `dead` was found out, ascending: a segment
        with a successor, or of a dead owner, grows no more.
        """
        batch = Batch(usage=[], shapes={}, at_end=False)
        while len(batch.usage) < limit:
            if self._fd < 0 and not self._open_segment(segments):
                batch.at_end = True
                break
            data = os.pread(self._fd, CHUNK_BYTES, self._offset)
            read_to = self._take(data, batch, limit)
            self._offset += read_to
            if read_to:
                continue
            final = dead or self._segment < segments[-1]
            if data and final and self._skip_fault():
                continue
            if self._segment >= segments[-1]:
                batch.at_end = True
                break
            self._close_segment()
        return batch

    def unfinished(self) -> list[UsageRecord]:
        """The usage rows of all open holds, to be charged when the owner is dead and everything was read.

        A hold that cannot be understood is left out: then the journal counts as damaged.
        """
        rows: list[UsageRecord] = []
        for hold in self._open.values():
            try:
                record = _decode_hold(hold.payload)
            except msgspec.MsgspecError as exc:
                self.damaged = f"unknown hold record in segment {hold.segment} at {hold.offset}: {exc}"
            else:
                rows.append(unfinished(record, events=hold.events, delivered_bytes=hold.delivered_bytes))
        return rows

    def close(self) -> None:
        """Let go of the files (and of a dead owner's lock)."""
        if self._fd >= 0:
            os.close(self._fd)
        os.close(self._lock_fd)
        self._fd = self._lock_fd = -1

    def _take(self, data: bytes, batch: Batch, limit: int) -> int:
        """Apply the whole records at the start of `data`; how many bytes they were."""
        holds, usage, segment, base, end = self._open, batch.usage, self._segment, self._offset, 0
        for kind, payload, start, record_end in scan(data):
            if kind == journal.HOLD:
                holds[payload[:_KEY_SIZE]] = OpenHold(segment, base + start, payload[_KEY_SIZE:])
            elif kind == journal.COMPLETE:
                try:
                    usage.append(_decode_usage(payload[_KEY_SIZE:]))
                except msgspec.MsgspecError as exc:
                    self.damaged = f"unknown usage record in segment {segment} at {base + start}: {exc}"
                else:
                    holds.pop(payload[:_KEY_SIZE], None)
            elif kind == journal.RELEASE:
                holds.pop(payload, None)
            elif kind == journal.DELIVERED:
                hold = holds.get(payload[:_KEY_SIZE])
                if hold is not None:
                    _rid, _attempt, hold.events, hold.delivered_bytes = journal.MARK.unpack(payload)
            elif kind == journal.SHAPE:
                batch.shapes[payload[:16]] = payload[16:]
            end = record_end
            if len(usage) >= limit:
                break
        return end

    def _open_segment(self, segments: list[int]) -> bool:
        """Open the segment the position names, or its first successor; False when there is none yet."""
        later = [number for number in segments if number >= self._segment]
        if not later:
            return False
        number = later[0]
        if number > self._segment:
            if self._segment:
                self.damaged = f"segment {self._segment} is missing"
            self._offset = 0
        self._segment = number
        path = f"{journal.segment_path(self._directory, self.owner, number)}{self._suffix}"
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if self._offset < journal.HEADER.size:
            self._offset = journal.HEADER.size
            if os.pread(self._fd, journal.HEADER.size, 0) != journal.segment_header(number):
                self.damaged = f"segment {number} has no valid header"
        return True

    def _close_segment(self) -> None:
        os.close(self._fd)
        self._fd = -1
        self._segment, self._offset = self._segment + 1, 0

    def _skip_fault(self) -> bool:
        """Deal with bytes that are no record in a file that grows no more; True when records may follow."""
        rest = os.pread(self._fd, CHUNK_BYTES, self._offset)
        found = find_record(rest)
        longest = journal.RECORD_BYTES + _HEAD_SIZE + _CRC_SIZE
        if found is None and len(rest) <= longest:
            self.torn += 1
            self._offset += len(rest)
            return False
        self.damaged = f"damaged record in segment {self._segment} at {self._offset}"
        self._offset += len(rest) - longest if found is None else found  # a record may begin in what is kept
        return True
