"""The end of the log as it grows: entries, tiles and checkpoints, appended inside one transaction at a time.

    tail = Tail.load(using, …)                     # what is stored, verified against its last checkpoint
    with transaction.atomic(using=using, durable=True):
        tail.append(Entry(…))
        note = tail.commit(using, at, signer.key)  # writes entries, tiles and one checkpoint over them

After a transaction that failed the tail must be loaded anew.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.db import connections
from django.db.models import Max

from audit import canonical, merkle, notes, tiles
from audit.heads import Head
from audit.models import AuditEntry, AuditState, Checkpoint, Log, Tile

LOG = "log"  # the source of what the log says about itself
SOURCES = ("site", "ledger", "usage", LOG)
OPENED, ROTATED, PRUNED, ERASED, GAP, RESET = (
    *("log.opened", "key.rotated", "audit.pruned", "subject.erased", "outbox.gap", "outbox.reset"),
)
NUMBERS = "numbers"  # in AuditState: the last number of each source, when entries were pruned
_COLUMNS = (*("seq", "log", "at", "source", "number", "action", "actor", "target", "object", "level", "body", "leaf"),)
_INSERT = (
    f"INSERT INTO {AuditEntry._meta.db_table} ({', '.join(_COLUMNS)}) "  # noqa: S608
    f"VALUES ({', '.join(['%s'] * len(_COLUMNS))})"
)
_AT = _COLUMNS.index("at")
_TARGET_MAX, _OBJECT_MAX, _ACTION_MAX, _LEVEL_MAX = 200, 100, 100, 10


class BrokenLogError(Exception):
    """What is stored is not what was signed: nothing is appended to it."""


@dataclass(slots=True)
class Entry:
    """One entry to be appended. `actor` (and `target`, where it is a person) are ids of subjects."""

    source: str
    number: int
    at: dt.datetime
    action: str
    actor: str = ""
    target: str = ""
    level: str = "info"
    data: Mapping[str, Any] = field(default_factory=dict)
    sealed: Mapping[str, str] = field(default_factory=dict)


class Tail:
    """The log that grows now."""

    def __init__(
        self,
        *,
        log: int,
        name: str,
        first_seq: int,
        previous: str,
        vkey: notes.Vkey,
        epoch: int,
        numbers: dict[str, int],
    ) -> None:
        """A log without entries; `previous` is the hash of the last checkpoint's note ever."""
        self.log, self.name, self.first_seq, self.seq = log, name, first_seq, first_seq
        self.previous, self.vkey, self.epoch, self.numbers = previous, vkey, epoch, numbers
        self.last: Head | None = None
        self._frontier, self._tiles = merkle.Frontier(), tiles.TileBuilder()
        self._entries: list[tuple[Any, ...]] = []  # in the order of `_COLUMNS`
        self._done_tiles: list[tiles.Tile] = []

    @classmethod
    def load(cls, using: str) -> Tail | None:
        """The newest log as stored; None where there is none. Raises `BrokenLogError`."""
        row = Log.objects.using(using).order_by("-number").first()
        if row is None:
            return None
        head = Checkpoint.objects.using(using).order_by("-id").first()
        last_seq = AuditEntry.objects.using(using).aggregate(last=Max("seq"))["last"]
        if head is None or last_seq is None or head.log != row.number:
            raise BrokenLogError(f"The log {row.name} has no checkpoint of its own.")
        try:
            signed = notes.parse(head.note)
            vkey = _key_in_force(using, row)
            notes.verify(head.note, _vkeys_of(signed, vkey, using))
        except (notes.NoteError, KeyError, msgspec.DecodeError) as exc:
            raise BrokenLogError(f"The last checkpoint, {head.size} of {row.name}, is not valid: {exc}.") from exc
        tail = cls(
            log=row.number,
            name=row.name,
            first_seq=row.first_seq,
            previous=notes.note_hash(head.note),
            vkey=vkey,
            epoch=signed.epoch,
            numbers=numbers(using),
        )
        tail._continue(using, last_seq, head, signed)
        return tail

    def _continue(self, using: str, last_seq: int, head: Checkpoint, signed: notes.Checkpoint) -> None:
        size = last_seq + 1 - self.first_seq
        reader = tiles.TileReader(lambda level, first, count: _read_tiles(using, self, level, first, count))
        try:
            self._frontier = merkle.frontier_at(reader.hash_at, size)
            self._tiles = tiles.TileBuilder(size, reader)
        except LookupError as exc:
            raise BrokenLogError(f"Hashes of {self.name} are missing: {exc}.") from exc
        if signed.size != size or signed.root != self._frontier.root():
            raise BrokenLogError(f"The {size} entries of {self.name} are not what its last checkpoint signs.")
        self.seq = last_seq + 1
        self.last = Head(self.name, size, signed.root, head.at, head.note)

    @property
    def size(self) -> int:
        """How many entries this log has."""
        return self.seq - self.first_seq

    @property
    def has_grown(self) -> bool:
        """Whether something was added that `commit` has not written."""
        return bool(self._entries)

    def following(self, name: str) -> Tail:
        """A log that begins behind this one."""
        return Tail(
            log=self.log + 1,
            name=name,
            first_seq=self.seq,
            previous=self.previous,
            vkey=self.vkey,
            epoch=self.epoch,
            numbers=self.numbers,
        )

    def append(self, entry: Entry) -> int:
        """Add an entry; its sequence number. Written by `commit`."""
        seq = self.seq
        target = entry.target[:_TARGET_MAX]
        body = canonical.encode(
            {
                "action": entry.action,
                "actor": entry.actor,
                "at": entry.at,
                "data": entry.data,
                "level": entry.level,
                "number": entry.number,
                "seq": seq,
                "source": entry.source,
                "target": target,
                **entry.sealed,
            }
        )
        leaf = merkle.leaf_hash(body)
        self._entries.append(
            (
                *(seq, self.log, entry.at, entry.source, entry.number, entry.action[:_ACTION_MAX], entry.actor),
                *(_storable(target), _storable(str(entry.data.get("object", "")))[:_OBJECT_MAX]),
                *(entry.level[:_LEVEL_MAX], body.decode(), leaf),
            )
        )
        self.numbers[entry.source] = entry.number
        self._frontier.append(leaf)
        self._done_tiles += self._tiles.append(leaf)
        self.seq += 1
        return seq

    def say(
        self, action: str, at: dt.datetime, data: Mapping[str, Any], *, target: str = "", level: str = "info"
    ) -> int:
        """Add an entry of the log's own; its sequence number."""
        number = self.numbers.get(LOG, 0) + 1
        return self.append(Entry(LOG, number, at, action, target=target, level=level, data=data))

    def commit(self, using: str, at: dt.datetime, *keys: Ed25519PrivateKey) -> Head:
        """Write what was added and a checkpoint over it, signed by `keys` (the old and the new one at a rotation)."""
        _insert(using, self._entries)
        if self._done_tiles:
            rows = [
                Tile(log=self.log, level=done.level, index=done.index, hashes=done.hashes) for done in self._done_tiles
            ]
            Tile.objects.using(using).bulk_create(rows)
        self._entries, self._done_tiles = [], []
        root = self._frontier.root()
        text = notes.checkpoint_text(
            f"{self.vkey.name}/{self.name}",
            self.size,
            root,
            at=canonical.moment_text(at),
            epoch=self.epoch,
            previous=self.previous,
        )
        note = notes.sign(text, self.vkey.name, *keys)
        Checkpoint.objects.using(using).create(log=self.log, size=self.size, root=root, at=at, note=note)
        self.previous = notes.note_hash(note)
        self.last = Head(self.name, self.size, root, at, note)
        return self.last


def set_state(using: str, name: str, value: str) -> None:
    """Remember a text beside the log."""
    AuditState.objects.using(using).update_or_create(name=name, defaults={"value": value})


def state(using: str, name: str) -> str:
    """What is remembered under a name; "" when nothing is."""
    return AuditState.objects.using(using).filter(name=name).values_list("value", flat=True).first() or ""


def _insert(using: str, entries: list[tuple[Any, ...]]) -> None:
    """Past the models, which take as long again as all the rest: the ledger waits meanwhile."""
    connection = connections[using]
    adapt = connection.ops.adapt_datetimefield_value
    with connection.cursor() as cursor:
        cursor.executemany(_INSERT, [(*row[:_AT], adapt(row[_AT]), *row[_AT + 1 :]) for row in entries])


def _storable(text: str) -> str:
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _data(body: str) -> dict[str, Any]:
    found = msgspec.json.decode(body)["data"]
    return found if isinstance(found, dict) else {}


def _key_in_force(using: str, log: Log) -> notes.Vkey:
    """The key that signs: the one the log began with, or the last one that took over since."""
    rows = AuditEntry.objects.using(using).filter(seq__gte=log.first_seq, source=LOG)
    rotated = rows.filter(action=ROTATED).order_by("-seq").values_list("body", flat=True).first()
    if rotated is not None:
        return notes.parse_vkey(_data(rotated)["new"])
    opened = rows.filter(seq=log.first_seq, action=OPENED).values_list("body", flat=True).first()
    if opened is None:
        raise KeyError(f"entry {log.first_seq}")
    return notes.parse_vkey(_data(opened)["key"])


def _vkeys_of(signed: notes.Checkpoint, vkey: notes.Vkey, using: str) -> list[notes.Vkey]:
    """Who must have signed the last checkpoint: the key in force, and at a rotation the one before it, first."""
    if len(signed.signatures) == 1:
        return [vkey]
    rows = AuditEntry.objects.using(using).filter(action=ROTATED, source=LOG)
    body = rows.order_by("-seq").values_list("body", flat=True).first()
    return [notes.parse_vkey(_data(body)["old"]), vkey] if body else [vkey]


def numbers(using: str) -> dict[str, int]:
    """The last number of each source, also of sources whose entries were all pruned."""
    kept = state(using, NUMBERS)
    found: dict[str, int] = {name: int(number) for name, number in msgspec.json.decode(kept).items()} if kept else {}
    for source in SOURCES:
        rows = AuditEntry.objects.using(using).filter(source=source).order_by("-number")
        last = rows.values_list("number", flat=True).first()
        found[source] = max(found.get(source, 0), last or 0)
    return found


def _read_tiles(using: str, tail: Tail, level: int, first: int, count: int) -> Mapping[int, bytes]:
    rows = Tile.objects.using(using).filter(log=tail.log, level=level, index__gte=first, index__lt=first + count)
    found = {index: bytes(hashes) for index, hashes in rows.values_list("index", "hashes")}
    if level == 0 and first + count - 1 not in found:
        index = max(found, default=first - 1) + 1
        begin = tail.first_seq + index * tiles.TILE_WIDTH
        entries = AuditEntry.objects.using(using).filter(seq__gte=begin, seq__lt=begin + tiles.TILE_WIDTH)
        found[index] = b"".join(bytes(leaf) for leaf in entries.order_by("seq").values_list("leaf", flat=True))
    return found
