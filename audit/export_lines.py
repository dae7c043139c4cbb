"""The lines of an export: JSON Lines that `tools/verify_audit.py` reads, each in canonical form (`docs/audit.md`).

Header, then each log with its entries and checkpoints, then batches with their usage records, then changes of keys
behind the logs, then the signed end. The lines are made one by one from iterators, so that an export of any length
needs little memory. Pure: the caller reads the rows and signs.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from audit.canonical import encode, encode_strings
from audit.notes import export_text

FORMAT = "1"

# One entry: seq, its body (None: pruned), its leaf hash.
EntryRow = tuple[int, str | None, bytes]
# One checkpoint: size, its note.
CheckpointRow = tuple[int, str]


@dataclass(frozen=True, slots=True)
class ExportHeader:
    """What the first line says."""

    instance: str
    at: str  # every checkpoint up to this moment is there; as `canonical.moment_text` writes it
    from_log: int
    to_log: int
    key: str  # the vkey that was in use when log `from_log` opened
    previous_note: str = ""  # the last checkpoint before log `from_log`; "" for the first log
    rotations: Sequence[Mapping[str, object]] = ()  # proofs of all `key.rotated` entries before log `from_log`


@dataclass(frozen=True, slots=True)
class ExportLog:
    """One log: its entries by seq and its checkpoints by size, both ascending.

    Entries that no checkpoint covers are left out: entries are read up to the size of the last checkpoint and no
    further, so that both may be read while the log grows.
    """

    name: str
    number: int
    first_seq: int
    entries: Iterable[EntryRow]
    checkpoints: Iterable[CheckpointRow]


@dataclass(frozen=True, slots=True)
class ExportBatch:
    """One batch: the bodies of its usage records in order; `leaves`, all leaf hashes, instead where they are pruned."""

    owner: str
    number: int
    bodies: Iterable[bytes] = ()
    leaves: bytes = b""


def export_lines(
    header: ExportHeader,
    logs: Iterable[ExportLog],
    batches: Iterable[ExportBatch],
    sign: Callable[[bytes], bytes],
    rotations: Iterable[Mapping[str, object]] = (),
) -> Iterator[bytes]:
    """All lines of an export, each with its newline.

    `logs` by number without gaps; `batches` those that exported entries name, in the order in which they are named;
    `sign` gives the 64-byte Ed25519 signature of the key in use, `rotations` prove that it follows from the one in use
    at the end of the logs. Raises ValueError where the rows of a log have gaps or end before its last checkpoint.
    """
    digest = sha256()
    count = 0
    for line in _content(header, logs, batches, rotations):
        digest.update(line)
        count += 1
        yield line
    signature = base64.b64encode(sign(export_text(count, digest.hexdigest()))).decode()
    yield _line({"kind": "end", "lines": str(count), "sha256": digest.hexdigest(), "signature": signature})


def _content(
    header: ExportHeader,
    logs: Iterable[ExportLog],
    batches: Iterable[ExportBatch],
    rotations: Iterable[Mapping[str, object]],
) -> Iterator[bytes]:
    yield _header_line(header)
    for log in logs:
        yield from _log_lines(log)
    for batch in batches:
        yield from _batch_lines(batch)
    for rotation in rotations:
        yield encode({"kind": "rotation", **rotation}) + b"\n"


def _header_line(header: ExportHeader) -> bytes:
    first = {
        "kind": "export",
        "format": FORMAT,
        "instance": header.instance,
        "at": header.at,
        "from_log": header.from_log,
        "to_log": header.to_log,
        "key": header.key,
        "previous_note": header.previous_note or None,
        "rotations": list(header.rotations) or None,
    }
    return encode(first) + b"\n"


class MissingEntryError(ValueError):
    """An entry that a checkpoint signs is not there: somebody took it out. `seq` names it."""

    def __init__(self, seq: int, found: int | None) -> None:
        instead = "the log ends before it" if found is None else f"the next one is {found}"
        super().__init__(f"Entry {seq} is not there: {instead}.")
        self.seq = seq


def _log_lines(log: ExportLog) -> Iterator[bytes]:
    yield _line({"kind": "log", "name": log.name, "number": str(log.number), "first_seq": str(log.first_seq)})
    entries = iter(log.entries)
    size = 0
    for covered, note in log.checkpoints:
        while size < covered:
            seq, body, leaf = next(entries, (None, None, b""))
            if seq != log.first_seq + size:
                raise MissingEntryError(log.first_seq + size, seq)
            if body is None:
                yield _line({"kind": "leaf", "seq": str(seq), "hash": leaf.hex()})
            else:
                yield _line({"kind": "entry", "body": body, "leaf": leaf.hex()})
            size += 1
        yield _line({"kind": "checkpoint", "note": note})


def _batch_lines(batch: ExportBatch) -> Iterator[bytes]:
    first = {"kind": "batch", "owner": batch.owner, "number": str(batch.number)}
    if batch.leaves:
        first["leaves"] = base64.b64encode(batch.leaves).decode()
    yield _line(first)
    for body in batch.bodies:
        yield _line({"kind": "usage", "body": body.decode()})


def _line(record: Mapping[str, str]) -> bytes:
    return encode_strings(record) + b"\n"
