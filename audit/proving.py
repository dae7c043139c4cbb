"""Proofs out of the stored trees: that an entry, or a request, is under a checkpoint, and that logs only grew.

A proof reads about as many rows as a tree is high, whatever its size. Every proof is verified before it is handed out:
rows that somebody changed make no proof (`BrokenError`), they are no reason to hand out a wrong one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from audit import canonical, merkle, reading, tiles
from audit.models import AuditEntry, AuditState, Checkpoint, Log, LoggedBatch, Tile, UsageBatch
from audit.retention import PRUNED_THROUGH
from audit.walking import ROTATED

Found = TypeVar("Found")


class ProofError(Exception):
    """There is no such proof; the text says why, for whoever asked."""


class UnknownError(ProofError):
    """Nothing of that number or name is in the log, and nothing will be."""


class NotYetError(ProofError):
    """It is on its way: ask again in a second."""


class PrunedError(ProofError):
    """It was there; its text was deleted by retention. Its hash is still proven."""


class BrokenError(ProofError):
    """The stored rows contradict each other: somebody changed them."""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One attempt of a request, as the layers above store it: its canonical record and the batch it was settled in."""

    body: bytes
    batch: int | None


def tree_of(log: Log) -> merkle.HashAt:
    """A reader of the log's complete subtrees: whole tiles from their rows, what is behind the last one from entries.

    Near the right edge up to 255 tiles are read in one statement, because their roots are in no tile yet.
    """

    kept: dict[tuple[int, int], bytes] = {}  # one proof comes back to the same tile for each of its levels

    def read(level: int, first: int, count: int) -> Mapping[int, bytes]:
        if (known := kept.get((level, first))) is not None and count == 1:
            return {first: known}
        rows = Tile.objects.filter(log=log.number, level=level, index__gte=first, index__lt=first + count)
        found = {index: bytes(hashes) for index, hashes in rows.values_list("index", "hashes")}
        if level == 0 and first + count - 1 not in found:
            leaves = _leaves_behind(log, max(found, default=first - 1) + 1)
            found |= {index: leaves[index] for index in range(first, first + count) if index in leaves}
        if count == 1:
            kept[level, first] = found.get(first, b"")
        return found

    return tiles.TileReader(read).hash_at


def _leaves_behind(log: Log, tile: int) -> dict[int, bytes]:
    """The leaves from one tile of level 0 on, as far as that tile goes."""
    begin = log.first_seq + tile * tiles.TILE_WIDTH
    rows = AuditEntry.objects.filter(seq__gte=begin, seq__lt=begin + tiles.TILE_WIDTH, log=log.number).order_by("seq")
    leaves: list[bytes] = []
    for seq, leaf in rows.values_list("seq", "leaf"):
        if seq != begin + len(leaves):
            break
        leaves.append(bytes(leaf))
    return {tile: b"".join(leaves)}


# --- checkpoints ------------------------------------------------------------------------------------------------------


def last_checkpoint() -> Checkpoint | None:
    """The newest signed tree head."""
    return Checkpoint.objects.order_by("-id").first()


def vkeys() -> list[str]:
    """The public keys that signed, the first one (to be kept elsewhere) first. Empty before the log began."""
    text = AuditState.objects.filter(name="keys").values_list("value", flat=True).first()
    return [str(each["vkey"]) for each in json.loads(text)] if text else []


def log_named(name: str) -> Log:
    """A log by its name ("2026-11"); "" is the newest. Raises `UnknownError`."""
    rows = Log.objects.order_by("-number")
    found = rows.filter(name=name).first() if name else rows.first()
    if found is None:
        raise UnknownError(f"There is no log '{name[:40]}'." if name else "Nothing is logged yet.")
    return found


def log_of_checkpoint(row: Checkpoint) -> Log | None:
    """The log a checkpoint is of."""
    return Log.objects.filter(pk=row.log).first()


def log_of(seq: int) -> Log:
    """The log an entry is in. Raises `UnknownError`."""
    found = Log.objects.filter(first_seq__lte=seq).order_by("-number").first()
    if found is None:
        raise UnknownError(f"There is no entry {seq}.")
    return found


def checkpoint(log: Log, size: int | None = None) -> Checkpoint:
    """The checkpoint of a log at exactly this size, or its last one. Raises `UnknownError`, `NotYetError`."""
    rows = Checkpoint.objects.filter(log=log.number)
    found = rows.order_by("-size").first() if size is None else rows.filter(size=size).first()
    if found is None and size is None:
        raise NotYetError(f"The log {log.name} has no checkpoint yet.")
    if found is None:
        raise UnknownError(f"The log {log.name} has no checkpoint of {size} entries.")
    return found


# --- proofs -----------------------------------------------------------------------------------------------------------


def awaited(prove: Callable[[], Found], wait_s: float) -> Found:
    """What `prove` finds, as soon as it is signed: raises its `NotYetError` when that takes longer than this."""
    end = time.monotonic() + wait_s
    while True:
        try:
            return prove()
        except NotYetError:
            if time.monotonic() >= end:
                raise
        time.sleep(0.1)


def inclusion(seq: int, size: int | None = None) -> dict[str, Any]:
    """The proof file of one entry (docs/audit.md), at the checkpoint of `size` entries or its log's last one.

    Raises `ProofError`.
    """
    log = log_of(seq)
    row = reading.entry(seq)
    if row is None:
        if seq > reading.last_seq():
            raise UnknownError(f"There is no entry {seq}.")
        told = AuditState.objects.filter(name=PRUNED_THROUGH).values_list("value", flat=True).first()
        if log.number > int(told or 0):
            raise BrokenError(f"Entry {seq} is not there, and its month, {log.name}, was not pruned.")
        raise PrunedError(f"The text of entry {seq} was deleted with its month, {log.name}.")
    return _proof(row, log, size)


def _proof(row: AuditEntry, log: Log, size: int | None, *, with_rotations: bool = True) -> dict[str, Any]:
    head = checkpoint(log, size)
    index = row.seq - log.first_seq
    if index >= head.size:
        if size is not None:
            raise UnknownError(f"Entry {row.seq} is not among the first {size} of its log.")
        raise NotYetError(f"Entry {row.seq} is not under a checkpoint yet.")
    path = _built(lambda: merkle.inclusion_proof(tree_of(log), index, head.size))
    leaf = merkle.leaf_hash(row.body.encode())
    if not merkle.verify_inclusion(leaf, index, head.size, path, bytes(head.root)):
        raise BrokenError(f"What is stored as entry {row.seq} is not what checkpoint {head.size} of {log.name} signs.")
    found = {
        "kind": "proof",
        "format": "1",
        "entry": row.body,
        "index": index,
        "size": head.size,
        "path": [each.hex() for each in path],
        "checkpoint": head.note,
    }
    rotated = rotations(log.first_seq + head.size) if with_rotations else []
    return {**found, "rotations": rotated} if rotated else found


def rotations(end: int | None = None, *, since: int = 0) -> list[dict[str, Any]]:
    """How the key that signed up to the entry `end` (exclusively; None: all there are) follows from the one in force at
    the entry `since`: for each change of keys the proof of its entry, at the checkpoint that both keys signed."""
    found = []
    rows = AuditEntry.objects.filter(action=ROTATED, source="log", seq__gte=since)
    for row in (rows if end is None else rows.filter(seq__lt=end)).order_by("seq"):
        log = log_of(row.seq)
        size = row.seq - log.first_seq
        head = Checkpoint.objects.filter(log=log.number, size__gt=size).order_by("size").first()
        if head is not None:
            proof = _proof(row, log, head.size, with_rotations=False)
            found.append({name: proof[name] for name in ("checkpoint", "entry", "index", "path", "size")})
    return found


def seq_of_batch(batch: int) -> int | None:
    """The entry a batch of usage rows is in; None while it is not logged yet."""
    return LoggedBatch.objects.filter(pk=batch).values_list("seq", flat=True).first()


def of_usage(row: UsageRow, size: int | None = None) -> dict[str, Any]:
    """The proof file of one attempt of a request: its record, its place in its batch, the batch's entry in the log.

    Raises `ProofError`.
    """
    if row.batch is None:
        raise UnknownError("This request was booked before the log began.")
    batch = UsageBatch.objects.filter(pk=row.batch).first()
    if batch is None:
        raise BrokenError(f"The batch {row.batch} of this request is not there.")
    seq = seq_of_batch(row.batch)
    if seq is None:
        raise NotYetError("This request is booked, but not logged yet.")
    leaves, leaf = tiles.hashes_of(bytes(batch.leaves)), merkle.leaf_hash(row.body)
    if leaf not in leaves:
        raise BrokenError("The record of this request is not the one that was logged.")
    index = leaves.index(leaf)
    path = merkle.inclusion_proof(merkle.reader_of(leaves), index, len(leaves))
    if not merkle.verify_inclusion(leaf, index, len(leaves), path, bytes(batch.root)):
        raise BrokenError(f"The hashes of batch {batch} are not those that were logged.")
    place = {
        "owner": batch.owner,
        "number": batch.number,
        "count": len(leaves),
        "index": index,
        "path": [each.hex() for each in path],
    }
    return {**inclusion(seq, size), "usage": row.body.decode(), "batch": place}


def _built(make: Callable[[], list[bytes]]) -> list[bytes]:
    try:
        return make()
    except LookupError as exc:
        raise BrokenError(f"Hashes of the log are missing: {exc}.") from exc


def consistency(log: Log, first: int, second: int) -> dict[str, Any]:
    """Proof that the log with `second` entries continues the one with `first`, with both checkpoints.

    Raises `ProofError`.
    """
    if not 0 < first <= second:
        raise UnknownError(f"{first} entries are none, or more than {second}: a log only grows.")
    old, new = checkpoint(log, first), checkpoint(log, second)
    path = _built(lambda: merkle.consistency_proof(tree_of(log), first, second))
    if not merkle.verify_consistency(first, second, bytes(old.root), bytes(new.root), path):
        raise BrokenError(f"The log {log.name} of {second} entries does not continue its {first}.")
    found = {
        "kind": "consistency",
        "format": "1",
        "log": log.name,
        "first": old.note,
        "second": new.note,
        "path": [each.hex() for each in path],
    }
    rotated = rotations(log.first_seq + second)
    return {**found, "rotations": rotated} if rotated else found


def proof_bytes(proof: Mapping[str, Any]) -> bytes:
    """A proof as the file that is handed out: its canonical form and a line's end."""
    return canonical.encode(proof) + b"\n"
