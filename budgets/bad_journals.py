"""Looking into the files of dead workers whose journals are damaged, without changing anything.

The writer renames such a worker's files to `.bad` (`budgets.burial`); the worker's leases are quarantined.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from budgets import journal
from budgets.burial import BAD, set_aside_owners, set_aside_segments
from budgets.journal_reader import JournalReader, find_record, scan
from budgets.records import HoldRecord, UsageRecord

_HEAD_BYTES = 1024 * 1024  # of the first file, for the age of what it holds
_BATCH = 2_000
_KEY_SIZE = journal.KEY.size

_decode_hold = msgspec.msgpack.Decoder(HoldRecord).decode
_decode_usage = msgspec.msgpack.Decoder(UsageRecord).decode


class Contents(msgspec.Struct):
    """What can be read of one worker's files."""

    files: list[str]
    reason: str  # why the journal is not trusted
    usage: list[tuple[str, int]]  # complete usage records: request id (hexadecimal) and attempt
    open_holds: list[UsageRecord]  # holds without an end, as they would be charged


def owners(directory: Path) -> list[str]:
    """The workers whose files are set aside and nobody decided about, by name."""
    return set_aside_owners(directory) if directory.is_dir() else []


def contents(directory: Path, owner: str, *, known_from_s: int = 0) -> Contents:
    """Everything readable in a worker's files. Raises `OSError` when they cannot be opened.

    Of what began before `known_from_s` (Unix seconds) the usage rows may be deleted: that is left out.
    """
    segments = set_aside_segments(directory, owner)
    reader = JournalReader(
        directory, owner, (segments[0], 0) if segments else None, suffix=BAD, known_from_s=known_from_s
    )
    usage: list[tuple[str, int]] = []
    try:
        while True:
            batch = reader.read(segments, dead=True, limit=_BATCH)
            usage += [(record.rid.hex(), record.attempt) for record in batch.usage]
            if batch.at_end:
                break
        names = sorted(name for name in os.listdir(directory) if name.startswith(f"{owner}.") and name.endswith(BAD))
        open_holds = reader.unfinished()  # first: it may find a fault, too
        return Contents(names, reader.damaged, usage, open_holds)
    finally:
        reader.close()


def oldest_s(directory: Path, owner: str) -> float | None:
    """About when the oldest readable record began (Unix seconds); None when the first file begins with none."""
    segments = set_aside_segments(directory, owner)
    if not segments:
        return None
    with open(f"{journal.segment_path(directory, owner, segments[0])}{BAD}", "rb") as file:
        data = file.read(_HEAD_BYTES)
    first = find_record(data)
    times = [] if first is None else [_began_us(kind, payload) for kind, payload, _start, _end in scan(data, first)]
    known = [at_us for at_us in times if at_us]
    return min(known) / 1e6 if known else None


def _began_us(kind: int, payload: bytes) -> int:
    try:
        if kind == journal.HOLD:
            return _decode_hold(payload[_KEY_SIZE:]).at_us
        if kind == journal.COMPLETE:
            return _decode_usage(payload[_KEY_SIZE:]).at_us
    except msgspec.MsgspecError:
        pass
    return 0
