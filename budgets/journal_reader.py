"""Reading workers' journals: what control does with them, without touching the database. Pure of Django.

A `JournalReader` follows one owner's segments, remembers which holds are open and says where a restart must begin
(its `position`: the oldest open hold). It forgives what a kill leaves behind (the beginning of a record at the very
end) and notices what must not be forgiven: anything else that is no record, a missing segment. From then on its
position stays at the first fault, so that whoever reads on from there finds it, too.
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

_decode_hold = msgspec.msgpack.Decoder(HoldRecord).decode
_decode_usage = msgspec.msgpack.Decoder(UsageRecord).decode
_HEAD_SIZE, _CRC_SIZE, _KEY_SIZE = journal.HEAD.size, journal.CRC.size, journal.KEY.size
_HOLD, _COMPLETE = journal.HOLD, journal.COMPLETE
_RESIDUE = zlib.crc32(journal.CRC.pack(zlib.crc32(b"")))  # of anything with its own CRC-32 behind it
_KINDS = re.compile(rb"[RDCXS]")


class OpenHold(msgspec.Struct, gc=False):
    """A hold without an end so far."""

    segment: int
    offset: int
    payload: bytes
    events: int = 0
    events_before: int = 0  # of the mark before the last
    delivered_bytes: int = 0


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
        if crc32(view[start:end]) != _RESIDUE:
            return
        yield kind, data[start + _HEAD_SIZE : body_end], start, end
        start = end


def find_record(data: bytes) -> int | None:
    """Where the first whole record in `data` starts; None when there is none."""
    for match in _KINDS.finditer(data):
        for _kind, _payload, start, _end in scan(data, match.start()):
            return start
    return None


def is_torn(data: bytes) -> bool:
    """Whether `data`, the rest of a file, is what a write that was cut short leaves: the beginning of one record."""
    if not data or not _KINDS.match(data):
        return False
    if len(data) < _HEAD_SIZE:
        return True
    _kind, length = journal.HEAD.unpack_from(data)
    return bool(length <= journal.RECORD_BYTES and len(data) < _HEAD_SIZE + length + _CRC_SIZE)


def unfinished(hold: HoldRecord, *, events: int, delivered_bytes: int, events_before: int = 0) -> UsageRecord:
    """The usage row of a hold that never ended. Its numbers are of the last mark, `events_before` of the one before it.

    Charged at what was delivered (input bound + the larger of events and bytes / 3, within the hold), or at the whole
    hold when nothing is known to have been delivered: the provider may have worked for it. The cost is what that many
    tokens cost at most.

    A mark runs ahead of what is delivered. More events than were held for count only when the mark before had allowed
    all of those, so that they can only be real.
    """
    if events or delivered_bytes:
        bound = max(0, hold.tokens - hold.input_bound)
        if events_before < bound:
            events = min(events, bound)
        output = max(events, -(-delivered_bytes // journal.BYTES_PER_TOKEN))
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

    `suffix` is what the names of its files end in: ".bad" where they were set aside. Of requests that began before
    `known_from_s` (Unix seconds) nobody can say whether they were charged already: finding one is damage, too.
    """

    def __init__(
        self,
        directory: Path,
        owner: str,
        position: tuple[int, int] | None = None,
        *,
        suffix: str = "",
        known_from_s: int = 0,
    ) -> None:
        self.owner = owner
        self.damaged = ""  # why the journal cannot be trusted to be complete (the first reason); "" = it can
        self.torn = 0  # half-written last records that were dropped
        self._fault: tuple[int, int] | None = None  # where the first thing stands that cannot be read
        self._known_from_us = known_from_s * 1_000_000
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
        """Segment and offset of the oldest open hold, or of the end of what was read; at most of the first fault."""
        at = self._segment, self._offset
        for hold in self._open.values():
            at = hold.segment, hold.offset
            break
        return at if self._fault is None else min(at, self._fault)

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
            if data and final and self._skip_fault(last=self._segment >= segments[-1]):
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
                reason = f"unknown hold record in segment {hold.segment} at {hold.offset}: {exc}"
                self._note((hold.segment, hold.offset), reason)
                continue
            if record.at_us < self._known_from_us:
                self._note((hold.segment, hold.offset), self._too_old(hold.segment, hold.offset))
                continue
            known = {"delivered_bytes": hold.delivered_bytes, "events_before": hold.events_before}
            rows.append(unfinished(record, events=hold.events, **known))
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
            if kind == _HOLD:
                holds[payload[:_KEY_SIZE]] = OpenHold(segment, base + start, payload[_KEY_SIZE:])
            elif kind == _COMPLETE:
                record = self._usage(payload[_KEY_SIZE:], segment, base + start)
                if record is not None:
                    usage.append(record)
                    holds.pop(payload[:_KEY_SIZE], None)
            elif kind == journal.RELEASE:
                holds.pop(payload, None)
            elif kind == journal.DELIVERED:
                hold = holds.get(payload[:_KEY_SIZE])
                if hold is not None:
                    hold.events_before = hold.events
                    _rid, _attempt, hold.events, hold.delivered_bytes = journal.MARK.unpack(payload)
            elif kind == journal.SHAPE:
                batch.shapes[payload[:16]] = payload[16:]
            end = record_end
            if len(usage) >= limit:
                break
        return end

    def _usage(self, payload: bytes, segment: int, offset: int) -> UsageRecord | None:
        try:
            record = _decode_usage(payload)
        except msgspec.MsgspecError as exc:
            self._note((segment, offset), f"unknown usage record in segment {segment} at {offset}: {exc}")
            return None
        if record.at_us < self._known_from_us:
            self._note((segment, offset), self._too_old(segment, offset))
            return None
        return record

    def _too_old(self, segment: int, offset: int) -> str:
        return f"the usage rows of the time of a record in segment {segment} at {offset} may be deleted"

    def _note(self, at: tuple[int, int], reason: str) -> None:
        """A fault, and where reading must begin to find it again."""
        self.damaged = self.damaged or reason
        self._fault = at if self._fault is None else min(at, self._fault)

    def _open_segment(self, segments: list[int]) -> bool:
        """Open the segment the position names, or its first successor; False when there is none yet."""
        later = [number for number in segments if number >= self._segment]
        if not later:
            return False
        number = later[0]
        if number > self._segment:
            if self._segment:
                self._note((self._segment, self._offset), f"segment {self._segment} is missing")
            self._offset = 0
        self._segment = number
        path = f"{journal.segment_path(self._directory, self.owner, number)}{self._suffix}"
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if self._offset < journal.HEADER.size:
            self._offset = journal.HEADER.size
            if os.pread(self._fd, journal.HEADER.size, 0) != journal.segment_header(number):
                self._note((number, 0), f"segment {number} has no valid header")
        return True

    def _close_segment(self) -> None:
        os.close(self._fd)
        self._fd = -1
        self._segment, self._offset = self._segment + 1, 0

    def _skip_fault(self, *, last: bool) -> bool:
        """Deal with bytes that are no record in a file that grows no more; True when records may follow.

        Only the `last` file may end in the beginning of a record: that was written when its owner died.
        """
        rest = os.pread(self._fd, CHUNK_BYTES, self._offset)
        found = find_record(rest)
        if last and found is None and is_torn(rest):
            self.torn += 1
            self._offset += len(rest)
            return False
        self._note((self._segment, self._offset), f"damaged record in segment {self._segment} at {self._offset}")
        longest = journal.RECORD_BYTES + _HEAD_SIZE + _CRC_SIZE
        if found is not None:
            self._offset += found
        elif len(rest) > longest:
            self._offset += len(rest) - longest  # a record may begin in what is kept
        else:
            self._offset += len(rest)
        return found is not None or len(rest) > longest
