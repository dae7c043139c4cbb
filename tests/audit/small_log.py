"""A log written quickly and by the formats alone, for tests of what reads logs and for measuring a million entries.

    log = SmallLog()
    log.open("2026-11")
    log.add("key.created", actor="ada", target="app")
    log.checkpoint()

Everything is in the database once `checkpoint` returns.
"""

from __future__ import annotations

import base64
import datetime as dt
import os
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from audit import canonical, merkle, notes, tiles
from audit.models import (
    AuditEntry,
    AuditState,
    Checkpoint,
    Log,
    LoggedBatch,
    Subject,
    Tile,
    UsageBatch,
)

START = dt.datetime(2026, 11, 5, 9, 30, tzinfo=dt.UTC)
_ROWS = 2000


class SmallLog:
    """Writes entries, tiles and checkpoints; signs with a key of its own."""

    def __init__(self) -> None:
        self.keys = [Ed25519PrivateKey.generate()]
        self.name = f"hoosh/{notes.instance_of(notes.public_bytes(self.keys[0]))}"
        self.at = START
        self.seq, self.epoch = 0, 1
        self.previous = notes.NO_PREVIOUS
        self.log: Log | None = None
        self.people: dict[str, Subject] = {}
        self.notes: list[str] = []
        self._numbers: dict[str, int] = {}
        self._rows: list[AuditEntry] = []
        self._tiles: list[Tile] = []
        self._signers = [self.keys[0]]
        AuditState.objects.update_or_create(name="instance", defaults={"value": self.name.partition("/")[2]})

    @property
    def vkey(self) -> str:
        """The key in force, as notes write it."""
        return str(notes.make_vkey(self.name, notes.public_bytes(self.keys[-1])))

    def private_pem(self) -> bytes:
        """The signing key in force, as a key file has it."""
        kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return self.keys[-1].private_bytes(*kinds)

    @property
    def size(self) -> int:
        """Leaves of the log at hand."""
        return self._builder.size

    def open(self, name: str = "2026-11") -> None:
        """Begin a month; the one before must be under a checkpoint."""
        before, old = self.log, self._tree if self.log else None
        self._tree, self._builder = merkle.Frontier(), tiles.TileBuilder()
        number = before.number + 1 if before else 1
        self.log = Log.objects.create(number=number, name=name, first_seq=self.seq)
        data: dict[str, Any] = {"name": name, "number": number, "key": self.vkey}
        if before is not None and old is not None:
            previous = {"name": before.name, "size": old.size, "root": old.root().hex(), "note_sha256": self.previous}
            data["previous"] = previous
        self.add("log.opened", source="log", data=data)

    def person(self, name: str) -> Subject:
        """The subject of this name."""
        if name not in self.people:
            self.people[name] = Subject.objects.create(id=f"s-{os.urandom(16).hex()}", name=name, key=os.urandom(32))
        return self.people[name]

    def add(
        self,
        action: str,
        *,
        actor: str = "",
        target: str = "",
        about: bool = False,
        level: str = "info",
        source: str = "site",
        data: dict[str, Any] | None = None,
        personal: dict[str, Any] | None = None,
        at: dt.datetime | None = None,
    ) -> int:
        """Append an entry a tenth of a second later than the one before; its sequence number."""
        self.at = at or self.at + dt.timedelta(milliseconds=100)
        number = self._numbers[source] = self._numbers.get(source, 0) + 1
        body: dict[str, Any] = {"action": action, "at": self.at, "data": data or {}, "level": level}
        body |= {"number": number, "seq": self.seq, "source": source, "actor": "", "target": target}
        associated = f"{source}/{number}".encode()
        if actor:
            who = self.person(actor)
            body["actor"] = who.pk
            body["sealed"] = _sealed(who, {"actor": actor, **(personal or {})}, associated)
        if about:
            whom = self.person(target)
            body["target"] = whom.pk
            body["sealed_target"] = _sealed(whom, {"target": target}, associated)
        return self._append(body)

    def _append(self, body: dict[str, Any]) -> int:
        text = canonical.encode(body)
        leaf = merkle.leaf_hash(text)
        assert self.log is not None
        columns = {name: body[name] for name in ("at", "source", "number", "action", "actor", "target", "level")}
        columns["object"] = str(body["data"].get("object", ""))
        row = AuditEntry(seq=self.seq, log=self.log.number, body=text.decode(), leaf=leaf, **columns)
        self._rows.append(row)
        self._tree.append(leaf)
        for tile in self._builder.append(leaf):
            self._tiles.append(Tile(log=self.log.number, level=tile.level, index=tile.index, hashes=tile.hashes))
        self.seq += 1
        if len(self._rows) >= _ROWS:
            self.flush()
        return self.seq - 1

    def batch(self, records: Sequence[bytes], owner: str = "w0") -> tuple[int, int]:
        """Log a batch of usage records: the batch's id and its entry's sequence number."""
        leaves = [merkle.leaf_hash(record) for record in records]
        root, number = merkle.root_of(leaves), UsageBatch.objects.filter(owner=owner).count() + 1
        row = UsageBatch.objects.create(
            owner=owner, number=number, count=len(leaves), root=root, leaves=b"".join(leaves)
        )
        told = {"owner": owner, "number": number, "count": len(leaves), "root": root.hex()}
        data = {"batches": [told], "requests": len(leaves)}
        seq = self.add("usage.settled", source="usage", data=data)
        LoggedBatch.objects.create(batch=row.pk, seq=seq)
        return row.pk, seq

    def rotate(self) -> None:
        """Hand over to a new key; the next checkpoint has both signatures."""
        old, new = self.vkey, Ed25519PrivateKey.generate()
        vkey = str(notes.make_vkey(self.name, notes.public_bytes(new)))
        proof = base64.b64encode(new.sign(notes.rotation_text(old, vkey))).decode()
        self.epoch += 1
        self.add("key.rotated", source="log", data={"epoch": self.epoch, "old": old, "new": vkey, "proof": proof})
        self._signers = [self.keys[-1], new]
        self.keys.append(new)

    def flush(self) -> None:
        """Write what is waiting."""
        AuditEntry.objects.bulk_create(self._rows)
        Tile.objects.bulk_create(self._tiles)
        self._rows, self._tiles = [], []

    def checkpoint(self) -> str:
        """Sign what there is; the note."""
        self.flush()
        assert self.log is not None
        root, moment = self._tree.root(), canonical.moment_text(self.at)
        text = notes.checkpoint_text(
            f"{self.name}/{self.log.name}", self.size, root, at=moment, epoch=self.epoch, previous=self.previous
        )
        note = notes.sign(text, self.name, *self._signers)
        Checkpoint.objects.create(log=self.log.number, size=self.size, root=root, at=self.at, note=note)
        self.previous, self._signers = notes.note_hash(note), self._signers[-1:]
        self.notes.append(note)
        return note


def _sealed(subject: Subject, value: dict[str, Any], associated: bytes) -> str:
    assert subject.key is not None
    nonce = os.urandom(12)
    return base64.b64encode(nonce + AESGCM(subject.key).encrypt(nonce, canonical.encode(value), associated)).decode()
