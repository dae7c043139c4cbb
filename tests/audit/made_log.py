"""Makes audit logs in memory: entries, batches of usage records, checkpoints, key rotations, months; and exports."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit import canonical, merkle, notes
from audit.export_lines import ExportBatch, ExportHeader, ExportLog, export_lines

START = datetime(2026, 11, 1, tzinfo=UTC)
LATER = "2027-06-01T00:00:00.000000Z"


def key_of(seed: str) -> Ed25519PrivateKey:
    """A signing key that is always the same for a seed."""
    return Ed25519PrivateKey.from_private_bytes(sha256(seed.encode()).digest())


@dataclass
class MadeMonth:
    """One log."""

    name: str
    number: int
    first_seq: int
    bodies: list[bytes] = field(default_factory=list)
    checkpoints: list[tuple[int, str]] = field(default_factory=list)

    @property
    def leaves(self) -> list[bytes]:
        """The leaf hashes."""
        return [merkle.leaf_hash(body) for body in self.bodies]


class MadeLog:
    """A log as the gateway would write it. Numbers count as there; the clock goes on 10 ms with each entry."""

    def __init__(self, seed: str = "first") -> None:
        self.key = key_of(seed)
        self.instance = notes.instance_of(notes.public_bytes(self.key))
        self.name = f"hoosh/{self.instance}"
        self.first_vkey = str(self.vkey)
        self.epoch = 1
        self.months: list[MadeMonth] = []
        self.batches: list[tuple[int, str, int, list[bytes]]] = []  # seq, owner, number, usage records
        self.rotations: list[dict[str, object]] = []
        self.previous = "-"
        self.seq = 0
        self._ticks = 0
        self._numbers: dict[str, int] = {}
        self._batch_numbers: dict[str, int] = {}
        self._tree = merkle.Frontier()
        self._rotated_from: Ed25519PrivateKey | None = None

    @property
    def vkey(self) -> notes.Vkey:
        """The key in use."""
        return notes.make_vkey(self.name, notes.public_bytes(self.key))

    def now(self) -> str:
        """The next moment."""
        self._ticks += 1
        return canonical.moment_text(START + timedelta(milliseconds=10 * self._ticks))

    def entry(self, source: str, action: str, data: dict[str, object], **fields: str) -> None:
        """Append one entry."""
        self._numbers[source] = self._numbers.get(source, 0) + 1
        body = canonical.encode(
            {
                "action": action,
                "actor": "",
                "at": self.now(),
                "data": data,
                "level": "info",
                "number": self._numbers[source],
                "seq": self.seq,
                "source": source,
                "target": "",
                **fields,
            }
        )
        self.months[-1].bodies.append(body)
        self._tree.append(merkle.leaf_hash(body))
        self.seq += 1

    def open(self, name: str) -> None:
        """Begin a month."""
        data: dict[str, object] = {"key": str(self.vkey), "name": name, "number": len(self.months) + 1}
        if self.months:
            size, note = self.months[-1].checkpoints[-1]
            root = notes.parse(note).root.hex()
            data["previous"] = {
                "name": self.months[-1].name, "size": size, "root": root, "note_sha256": notes.note_hash(note)
            }  # fmt: skip
        self.months.append(MadeMonth(name, len(self.months) + 1, self.seq))
        self._tree = merkle.Frontier()
        self.entry("log", "log.opened", data)

    def checkpoint(self) -> str:
        """Sign what there is."""
        month = self.months[-1]
        text = notes.checkpoint_text(
            f"{self.name}/{month.name}", self._tree.size, self._tree.root(), at=self.now(), epoch=self.epoch,
            previous=self.previous,
        )  # fmt: skip
        keys = [self._rotated_from, self.key] if self._rotated_from else [self.key]
        note = notes.sign(text, self.name, *keys)
        if self._rotated_from:
            index = next(
                i for i, body in enumerate(month.bodies) if b'"action":"key.rotated"' in body and i >= self._at
            )
            reader = merkle.reader_of(month.leaves)
            self.rotations.append(
                {
                    "entry": month.bodies[index].decode(), "index": index, "size": self._tree.size, "checkpoint": note,
                    "path": [item.hex() for item in merkle.inclusion_proof(reader, index, self._tree.size)],
                }
            )  # fmt: skip
        self._rotated_from = None
        month.checkpoints.append((self._tree.size, note))
        self.previous = notes.note_hash(note)
        return note

    def rotate(self, seed: str) -> None:
        """Go over to another key; the next checkpoint has both signatures."""
        old, self._rotated_from, self._at = self.vkey, self.key, self._tree.size
        self.key = key_of(seed)
        self.epoch += 1
        proof = base64.b64encode(self.key.sign(notes.rotation_text(old, self.vkey))).decode()
        self.entry("log", "key.rotated", {"epoch": self.epoch, "old": str(old), "new": str(self.vkey), "proof": proof})

    def usage(self, *batches: tuple[str, int]) -> None:
        """Settle batches: (owner, how many requests) each."""
        named = []
        for owner, count in batches:
            number = self._batch_numbers[owner] = self._batch_numbers.get(owner, 0) + 1
            records = [self._usage_record(owner, number, i) for i in range(count)]
            root = merkle.root_of(map(merkle.leaf_hash, records)).hex()
            named.append({"count": count, "number": number, "owner": owner, "root": root})
            self.batches.append((self.seq, owner, number, records))
        self.entry("usage", "usage.settled", {"batches": named, "requests": sum(count for _, count in batches)})

    def _usage_record(self, owner: str, number: int, index: int) -> bytes:
        request = sha256(f"{owner}/{number}/{index}".encode()).hexdigest()[:32]
        return canonical.encode(
            {"at": self.now(), "cost_pico": 1234567890 + index, "id": request, "input": 812, "output": 64 + index,
             "model": "small", "status": "ok", "stream": index % 2 == 0}
        )  # fmt: skip

    def fill(self, entries: int, every: int = 50) -> None:
        """Entries of all sources, a checkpoint after `every` of them and at the end."""
        for i in range(entries):
            if i % 7 == 3:
                self.usage((f"w{i % 3}", i % 5 + 1), *([(f"w{i % 2 + 4}", 2)] if i % 2 else []))
            elif i % 7 == 5:
                self.entry("ledger", "money.granted", {"usd": "12.50", "pool": f"team-{i % 9}"}, actor=f"s-{i:032x}")
            else:
                data = {"before": {"name": f"k{i}"}, "after": {"name": f"k{i}ü", "limits": [i, True, None]}}
                self.entry("site", "key.updated", data, target=f"key:{i}", sealed="AAAA" * 12)
            if i % every == every - 1 or i == entries - 1:
                self.checkpoint()

    def export(
        self, first: int = 1, last: int | None = None, *, pruned: Sequence[int] = (), usage_pruned: Sequence[int] = ()
    ) -> list[bytes]:
        """The lines of an export of the logs first..last; the entries of `pruned` logs, or only their usage records,
        are gone."""
        months = [month for month in self.months if first <= month.number <= (last or len(self.months))]
        before = self.months[first - 2] if first > 1 else None
        rotations = [proof for proof in self.rotations if self._month_of(proof) < first]
        header = ExportHeader(
            instance=self.instance, at=LATER, from_log=first, to_log=months[-1].number, key=self._key_at(months[0]),
            previous_note=before.checkpoints[-1][1] if before else "", rotations=rotations,
        )  # fmt: skip
        logs = [self._log(month, month.number in pruned) for month in months]
        behind = [proof for proof in self.rotations if self._month_of(proof) > months[-1].number]
        return list(export_lines(header, logs, self._batches(months, pruned, usage_pruned), self.key.sign, behind))

    def _log(self, month: MadeMonth, pruned: bool) -> ExportLog:
        rows = (
            (month.first_seq + i, None if pruned and b'"source":"log"' not in body else body.decode(), leaf)
            for i, (body, leaf) in enumerate(zip(month.bodies, month.leaves, strict=True))
        )
        return ExportLog(month.name, month.number, month.first_seq, rows, month.checkpoints)

    def _batches(
        self, months: Sequence[MadeMonth], pruned: Sequence[int], usage_pruned: Sequence[int]
    ) -> Iterable[ExportBatch]:
        for seq, owner, number, records in self.batches:
            month = max((m for m in self.months if m.first_seq <= seq), key=lambda m: m.first_seq)
            if month in months and month.number not in pruned:
                if month.number in usage_pruned:
                    yield ExportBatch(owner, number, leaves=b"".join(map(merkle.leaf_hash, records)))
                else:
                    yield ExportBatch(owner, number, records)

    def _month_of(self, proof: dict[str, object]) -> int:
        return next(month.number for month in self.months if str(proof["entry"]).encode() in month.bodies)

    def _key_at(self, month: MadeMonth) -> str:
        return str(json.loads(month.bodies[0])["data"]["key"])


def closed(lines: Iterable[bytes], key: Ed25519PrivateKey) -> list[bytes]:
    """Lines without their end, with a new end that the key signs: what somebody with the key could hand out."""
    content = list(lines)
    digest = sha256(b"".join(content)).hexdigest()
    signature = base64.b64encode(key.sign(notes.export_text(len(content), digest))).decode()
    end = {"kind": "end", "lines": str(len(content)), "sha256": digest, "signature": signature}
    return [*content, canonical.encode(end) + b"\n"]
