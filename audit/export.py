"""Writing an export of the log: everything `tools/verify_audit.py` needs, in one file, row by row.

An export begins with a month and ends with a checkpoint that was signed before it was begun, so it may be made while
the log grows. Usage rows are the ledger's: whoever calls hands in how their records are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit import canonical, export_lines, merkle, notes, proving, reading, tiles
from audit.keys import Signer
from audit.models import AuditEntry, Checkpoint, Log, LoggedBatch, PendingBatch, Tile, UsageBatch
from audit.walking import Head, head

_CHUNK = 2000
_ENTRY_CHUNK = 200
# A checkpoint is stored some moments behind its own time: what was signed longer ago than this was there to be read.
_IN_FLIGHT = timedelta(seconds=5)


class ExportError(Exception):
    """There is nothing to export, or no key to sign it with; the message says why."""


class ReadRecords(Protocol):
    """How usage records are read."""

    def __call__(self, batches: Sequence[UsageBatch]) -> Iterable[Sequence[bytes]]:
        """For each of the batches, in their order, the canonical records that are stored of it, in any order."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    lines: int
    bytes: int
    log: str  # the last month
    size: int  # of its last checkpoint in the export


def export(out: BinaryIO, *, first: str = "", last: str = "", signer: Signer, records: ReadRecords) -> Exported:
    """Write the months from `first` to `last` ("2026-11"; "" = all there are) to a file. Raises `ExportError`."""
    newest = head()
    if newest is None:
        raise ExportError("There is no log yet: nothing was signed so far.")
    logs = _logs(first, last, newest)
    ends = {log.number: newest.row.size for log in logs if log.number == newest.row.log}
    until = newest.end if ends else logs[-1].first_seq + proving.checkpoint(logs[-1]).size
    sign, rotations = _signing(signer, until)
    number = size = 0
    for line in export_lines.export_lines(
        _header(logs, newest),
        (_log(log, ends) for log in logs),
        _batches(logs, bool(ends), until, records),
        sign,
        rotations,
    ):
        out.write(line)
        number, size = number + 1, size + len(line)
    end = ends.get(logs[-1].number) or proving.checkpoint(logs[-1]).size
    return Exported(number, size, logs[-1].name, end)


def _logs(first: str, last: str, newest: Head) -> list[Log]:
    rows = [log for log in Log.objects.order_by("number") if log.number <= newest.row.log]
    found = [log for log in rows if (not first or log.name >= first) and (not last or log.name <= last)]
    if not found:
        raise ExportError(f"There is no log of these months. There are {', '.join(log.name for log in rows)}.")
    return found


def _header(logs: Sequence[Log], newest: Head) -> export_lines.ExportHeader:
    opened = reading.entry(logs[0].first_seq)
    if opened is None:
        raise ExportError(f"The first entry of {logs[0].name} is missing.")
    before = proving.checkpoint(proving.log_of(logs[0].first_seq - 1)).note if logs[0].number > 1 else ""
    vkeys = proving.vkeys()
    complete = canonical.moment_text(datetime.now(UTC) - _IN_FLIGHT)
    return export_lines.ExportHeader(
        instance=notes.parse_vkey(vkeys[0]).name.partition("/")[2],
        at=max(complete, notes.parse(newest.row.note).at),
        from_log=logs[0].number,
        to_log=logs[-1].number,
        key=str(reading.body_of(opened)["data"]["key"]),
        previous_note=before,
        rotations=proving.rotations(logs[0].first_seq),
    )


def _signing(signer: Signer, until: int) -> tuple[Callable[[bytes], bytes], list[dict[str, Any]]]:
    """The key in force, loaded now, and the changes of keys behind the end of the export that lead to it."""
    vkeys = proving.vkeys()
    signer.load(notes.parse_vkey(vkeys[-1]).public if vkeys else None)
    key: Ed25519PrivateKey = signer.key
    behind = proving.rotations(since=until)
    return key.sign, [each for each in behind if int(json.loads(each["entry"])["data"]["epoch"]) <= len(vkeys)]


# --- logs -------------------------------------------------------------------------------------------------------------


def _log(log: Log, ends: dict[int, int]) -> export_lines.ExportLog:
    return export_lines.ExportLog(log.name, log.number, log.first_seq, _entries(log), _checkpoints(log, ends))


def _checkpoints(log: Log, ends: dict[int, int]) -> Iterator[tuple[int, str]]:
    rows = Checkpoint.objects.filter(log=log.number)
    size = 0
    while chunk := list(rows.filter(size__gt=size).order_by("size").values_list("size", "note")[:_CHUNK]):
        for size, note in chunk:
            if size > ends.get(log.number, size):
                return
            yield size, note


def _entries(log: Log) -> Iterator[export_lines.EntryRow]:
    """Entries, and where they were pruned the hashes that are left."""
    seq = log.first_seq
    while True:
        rows = AuditEntry.objects.filter(seq__gte=seq, seq__lt=seq + _CHUNK, log=log.number).order_by("seq")
        found = {number: (body, bytes(leaf)) for number, body, leaf in rows.values_list("seq", "body", "leaf")}
        kept = _kept(log, seq) if len(found) < _CHUNK else {}
        for at in range(seq, seq + _CHUNK):
            if at in found:
                yield (at, *found[at])
            elif at in kept:
                yield at, None, kept[at]
            else:
                return
        seq += _CHUNK


def _kept(log: Log, seq: int) -> dict[int, bytes]:
    """The leaf hashes in tiles for a chunk of entries from `seq` on."""
    first = (seq - log.first_seq) // tiles.TILE_WIDTH
    rows = Tile.objects.filter(
        log=log.number, level=0, index__gte=first, index__lte=first + _CHUNK // tiles.TILE_WIDTH + 1
    )
    found: dict[int, bytes] = {}
    for index, hashes in rows.values_list("index", "hashes"):
        begin = log.first_seq + index * tiles.TILE_WIDTH
        found |= dict(enumerate(tiles.hashes_of(bytes(hashes)), begin))
    return found


# --- usage ------------------------------------------------------------------------------------------------------------


def _batches(logs: Sequence[Log], whole: bool, end: int, records: ReadRecords) -> Iterator[export_lines.ExportBatch]:
    """The batches that the entries name, in that order; then those that should have been named and were not."""
    first = last = 0
    for stored in _named(logs[0].first_seq, end):
        first, last = first or stored[0].pk, max(last, *(each.pk for each in stored))
        yield from _told(stored, records)
    for stored in _unnamed(first, last) if whole else ():
        yield from _told(stored, records)


def _named(begin: int, end: int) -> Iterator[list[UsageBatch]]:
    number = 0
    rows = AuditEntry.objects.filter(source="usage", seq__gte=begin, seq__lt=end).order_by("number")
    while chunk := list(rows.filter(number__gt=number).values_list("number", "body")[:_ENTRY_CHUNK]):
        for _number, body in chunk:
            places = [(str(each["owner"]), int(each["number"])) for each in json.loads(body)["data"]["batches"]]
            found: dict[tuple[str, int], UsageBatch] = {}
            for owner in {owner for owner, _ in places}:
                numbers = [number for each, number in places if each == owner]
                for row in UsageBatch.objects.filter(owner=owner, number__in=numbers):
                    found[owner, row.number] = row
            if stored := [found[place] for place in places if place in found]:
                yield stored
        number = chunk[-1][0]


def _unnamed(first: int, last: int) -> Iterator[list[UsageBatch]]:
    """Batches between two that are logged which neither are nor wait to be: somebody kept them out."""
    at = first
    while at < last:
        ids = list(
            UsageBatch.objects.filter(pk__gt=at, pk__lt=last).order_by("pk").values_list("pk", flat=True)[:_CHUNK]
        )
        if not ids:
            return
        known = set(LoggedBatch.objects.filter(pk__gte=ids[0], pk__lte=ids[-1]).values_list("pk", flat=True))
        known |= set(PendingBatch.objects.filter(pk__gte=ids[0], pk__lte=ids[-1]).values_list("pk", flat=True))
        if lost := [number for number in ids if number not in known]:
            yield list(UsageBatch.objects.filter(pk__in=lost).order_by("pk"))
        at = ids[-1]


def _told(stored: Sequence[UsageBatch], records: ReadRecords) -> Iterator[export_lines.ExportBatch]:
    """With their records in the order they were hashed in; where all of those are gone with their hashes instead."""
    for batch, bodies in zip(stored, records(stored), strict=True):
        leaves = bytes(batch.leaves)
        known = {merkle.leaf_hash(body): body for body in bodies}
        ordered = [known.pop(leaf) for leaf in tiles.hashes_of(leaves) if leaf in known]
        ordered += known.values()  # changed, or added: the verifier names the batch
        yield export_lines.ExportBatch(batch.owner, batch.number, ordered, b"" if ordered else leaves)
