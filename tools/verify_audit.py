#!/usr/bin/env python3
"""Verifies an export of Hoosh's audit log, or proof files, with nothing but this file and Python 3.11 or newer.

    python verify_audit.py EXPORT --key VKEY [--anchors FILE ...] [--json]
    python verify_audit.py --proof FILE --key VKEY [--anchors FILE ...] [--json]

VKEY is the gateway's first public key, which you got when the gateway was set up, not together with the export.
--anchors are what the gateway wrote elsewhere as it ran: its anchor file, syslog lines or webhook bodies.
Exit status: 0 everything fits; 1 a fault, of which the first is named; 2 the input cannot be used.

What is checked
- Entries: canonical JSON with the hash given; neither `seq` nor the `number` each source gave before has a gap.
- Checkpoints: the root (RFC 6962) over the month so far is the signed one; each names the one before, as months do.
- Keys: every checkpoint is signed by the key of its time and no other. From the pinned first key on a new one comes in
  only by an entry that it signed itself, below a checkpoint that the old key signed too.
- Requests: each batch of usage records that entries name is there whole, no owner's have a gap, and there is no other.
- Anchors: each that is not behind the export's end is in it, unchanged. The whole: SHA-256 and signature.

What cannot be checked
- What never was recorded, what is behind the end (newer anchors are counted), and whether an entry is true.
- A log rewritten by somebody who has the signing key, from the newest anchor on (without --anchors: all of it).
- What was pruned: only hashes are left of it. To lack more than the log's own entries announce is a fault.
- Without --key the key is the export's own, and everything may have been made anew by anybody.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import sys
from collections import deque, namedtuple
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from hashlib import sha256, sha512
from typing import Any, BinaryIO

try:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ed25519
except ImportError:
    ed25519 = None  # type: ignore[assignment]  # then `ed25519_in_python` does it, some milliseconds each

LINE_BYTES_MAX = 1 << 28
NOTE_TEXT = re.compile(
    r"([!-~]+)\n(0|[1-9][0-9]{0,18})\n([A-Za-z0-9+/]{43}=)\n"
    r"time ([0-9-]{10}T[0-9:.]{15}Z)\nepoch ([1-9][0-9]{0,8})\nprevious (-|[0-9a-f]{64})\n"
)
HEADER, LOGS, USAGE, KEYS, END = range(5)  # the parts of an export, and which lines they have
PARTS = {"export": HEADER, "log": LOGS, "entry": LOGS, "leaf": LOGS, "checkpoint": LOGS}
PARTS |= {"batch": USAGE, "usage": USAGE, "rotation": KEYS, "end": END}

Key = namedtuple("Key", "name hash public vkey")  # `vkey` is its text, name+hash+base64; the others are in it
Note = namedtuple("Note", "origin size root at epoch previous hash")  # a checkpoint; `hash` is the whole note's
Batch = namedtuple("Batch", "title count root seq")  # of usage records, as the entry `seq` names it


class Fault(ValueError):
    """Something does not fit. `seq` is the entry it was seen at, `line` the line of the export (from 1)."""

    def __init__(self, what: str, seq: int | None = None, line: int = 0) -> None:
        super().__init__(what)
        self.what, self.seq, self.line = what, seq, line


# What reading a missing or malformed field raises. Only what is needed is looked at: every byte is below a signed hash.
MALFORMED = (KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError)


def demand(condition: object, what: str, seq: int | None = None) -> None:
    """Raise a Fault unless the condition holds."""
    if not condition:
        raise Fault(what, seq)


def leaf_hash(data: bytes) -> bytes:
    """The hash of one leaf (RFC 6962)."""
    return sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees together (RFC 6962)."""
    return sha256(b"\1" + left + right).digest()


class Tree:
    """A growing tree, of which the roots of its complete parts are kept (one for each bit set in `size`)."""

    def __init__(self) -> None:
        self.size = 0
        self.parts: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Add a leaf by its hash."""
        rest = self.size
        while rest & 1:
            leaf = node_hash(self.parts.pop(), leaf)
            rest >>= 1
        self.parts.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The root over all leaves so far."""
        root = self.parts[-1] if self.parts else sha256(b"").digest()
        for part in self.parts[-2::-1]:
            root = node_hash(part, root)
        return root


def climb(path: Sequence[bytes], node: int, last: int, *seeds: bytes) -> list[bytes] | None:
    """Walk `path` up from place `node` of `last` + 1; None where its length is wrong. The first seed takes the siblings
    of both sides, a second one only left ones: it belongs to the smaller tree of a consistency proof."""
    hashes = list(seeds)
    for sibling in path:
        if last == 0:
            return None
        if node & 1 or node == last:
            hashes = [node_hash(sibling, known) for known in hashes]
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            hashes[0] = node_hash(hashes[0], sibling)
        node, last = node >> 1, last >> 1
    return hashes if last == 0 else None


def consistent(first: int, second: int, first_root: bytes, second_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether `path` shows that the second tree continues the first (RFC 9162 2.1.4.2)."""
    if not 0 < first < second:
        return 0 < first == second and not path and first_root == second_root
    hashes = list(path) if first & (first - 1) else [first_root, *path]
    node, last = first - 1, second - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    return bool(hashes) and climb(hashes[1:], node, last, hashes[0], hashes[0]) == [second_root, first_root]


P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int, int, int]  # X, Y, Z, T with x = X/Z, y = Y/Z, x * y = T/Z


def point_add(a: Point, b: Point) -> Point:
    """The sum of two points."""
    e, f = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    g, h = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = f - e, h - g, h + g, f + e
    return e * f % P, g * h % P, f * g % P, e * h % P


def point_decode(data: bytes) -> Point | None:
    """The point of 32 bytes, or None for bytes that no point is written as."""
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & ((1 << 255) - 1)
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if y >= P or (x * x - square) % P or (x == 0 and sign):
        return None
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


BASE = point_decode((4 * pow(5, -1, P) % P).to_bytes(32, "little")) or (0, 1, 1, 0)


def ed25519_in_python(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the signature is the key's: S * B - h * A, written out, is R."""
    key = point_decode(public) if len(public) == 32 else None
    s = int.from_bytes(signature[32:], "little")
    if key is None or len(signature) != 64 or s >= ORDER:
        return False
    h = int.from_bytes(sha512(signature[:32] + public + message).digest(), "little") % ORDER
    minus_key = (P - key[0], key[1], 1, P - key[3])
    table = ((0, 1, 1, 0), BASE, minus_key, point_add(BASE, minus_key))
    total: Point = table[0]
    for bit in range(252, -1, -1):
        total = point_add(total, total)
        if which := (s >> bit & 1) | (h >> bit & 1) << 1:
            total = point_add(total, table[which])
    inverse = pow(total[2], -1, P)
    x, y = total[0] * inverse % P, total[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little") == signature[:32]


def signed_by(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the signature is the key's over the message."""
    if ed25519 is None:
        return ed25519_in_python(public, signature, message)
    with suppress(InvalidSignature, ValueError):
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
        return True
    return False


write_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False).encode


def read_canonical(data: bytes, what: str) -> dict[str, Any]:
    """The object of canonical JSON: writing what was read gives the same bytes."""
    try:
        content = data.decode()
        value = json.loads(content)
        canonical = type(value) is dict and only_text(value) and write_json(value) == content
    except MALFORMED:
        canonical = False
    demand(canonical, f"{what} is not canonical JSON of objects, arrays and strings")
    return value  # type: ignore[no-any-return]


def only_text(value: Any) -> bool:
    """Whether there are nothing but objects with ASCII keys, arrays and strings."""
    if type(value) is dict:
        return "".join(value).isascii() and only_text([*value.values()])
    return all(type(item) is str or (type(item) in (dict, list) and only_text(item)) for item in value)


def unbase64(value: str) -> bytes:
    """The bytes of base64, which must be the one text that they are written as."""
    data = base64.b64decode(value, validate=True)
    demand(base64.b64encode(data).decode() == value, "malformed base64")
    return data


def read_key(vkey: str) -> Key:
    """Read a public key's text; a Fault for anything that is not exactly a key."""
    name, _, rest = vkey.partition("+")
    blob = unbase64(rest[9:])
    digest = sha256(f"{name}\n".encode() + blob).digest()[:4]
    sound = len(blob) == 33 and blob[0] == 1 and rest[:9] == f"{digest.hex()}+" and point_decode(blob[1:])
    demand(sound, f"not a public key: {vkey!r}")
    return Key(name, digest, blob[1:], vkey)


def read_note(note: str, keys: Sequence[Key] = ()) -> Note:
    """Read a checkpoint; given keys, demand one valid signature by each of them in that order, and no other one."""
    body, separator, rest = note.partition("\n\n")
    found = NOTE_TEXT.fullmatch(body + "\n")
    demand(found and separator and rest.endswith("\n"), "not a checkpoint note")
    lines = rest[:-1].split("\n")
    demand(not keys or len(lines) == len(keys), f"the checkpoint has {len(lines)} signatures, due are {len(keys)}")
    for line, key in zip(lines, keys, strict=False):
        name, _, blob = line.rpartition(" ")
        key_hash, signature = unbase64(blob)[:4], unbase64(blob)[4:]
        what = f"the checkpoint is signed by {name[2:]}+{key_hash.hex()}, due is {key.vkey}"
        demand((name, key_hash) == (f"— {key.name}", key.hash), what)
        what = f"the checkpoint's signature by {key.vkey} is wrong"
        demand(signed_by(key.public, signature, f"{body}\n".encode()), what)
    origin, size, root, at, epoch, previous = found.groups()
    return Note(origin, int(size), unbase64(root), at, int(epoch), previous, sha256(note.encode()).hexdigest())


def read_rotation(data: dict[str, Any], old: Key) -> Key:
    """The new key of a `key.rotated` entry, which names `old` and is signed by the new key itself."""
    new = read_key(data["new"])
    demand(data["old"] == old.vkey, f"the key {data['old']} is rotated out, but {old.vkey} is in use")
    message = f"hoosh key rotation\n{old.vkey}\n{new.vkey}\n".encode()
    signed = new.name == old.name and signed_by(new.public, unbase64(data["proof"]), message)
    demand(signed and new != old, "the new key did not sign its rotation")
    return new


def follow_rotations(holder: dict[str, Any], pinned: Key | None) -> list[Key]:
    """All keys from the pinned one on, oldest first: a rotation proves its entry below a doubly signed checkpoint."""
    keys = [pinned] if pinned else []
    for proof in holder.get("rotations", ()):
        entry = read_canonical(proof["entry"].encode(), "the entry of a rotation")
        data = entry["data"]
        demand((entry["source"], entry["action"]) == ("log", "key.rotated"), "a rotation without its entry")
        keys = keys or [read_key(data["old"])]
        if len(keys) == 1 and data["old"] != keys[0].vkey:
            continue  # older than the pinned key
        new = read_rotation(data, keys[-1])
        note = read_note(proof["checkpoint"], [keys[-1], new])
        demand(note.epoch == int(data["epoch"]), "a rotation below another epoch's checkpoint")
        check_path(proof, proof["entry"], note.size, note.root, "a rotation's entry is not below its checkpoint")
        keys.append(new)
    return keys


def check_path(proof: dict[str, Any], leaf: str, size: int, root: bytes, what: str) -> None:
    """Demand that the `path` of a proof leads from the leaf to the root of `size` leaves (RFC 9162 2.1.3.2)."""
    index, path = int(proof["index"]), [bytes.fromhex(item) for item in proof["path"]]
    demand(0 <= index < size and climb(path, index, size - 1, leaf_hash(leaf.encode())) == [root], what)


def anchored_notes(path: str) -> Iterator[str]:
    """The checkpoint notes in a file: an object with "note", maybe in its "data", per line, behind any prefix."""
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in ((i, line) for i, line in enumerate(lines, start=1) if '"note"' in line):
            try:
                found = json.JSONDecoder().raw_decode(line, line.index("{"))[0]
                read_note(note := found.get("data", found)["note"])
            except MALFORMED:
                raise OSError(f"{path}: line {number} has no checkpoint note") from None
            yield note


class Anchors:
    """Checkpoints that were kept elsewhere: per origin the one of each size."""

    def __init__(self, anchored: Iterable[str]) -> None:
        self.anchored, self.until, self.matched = anchored, "", 0
        self.notes: dict[str, dict[int, Note]] = {}  # those that were not met yet

    def load(self, until: str) -> None:
        """Take all; only one newer than `until` may be behind the end. Two different ones of a size are a fault."""
        self.until = until
        for note in map(read_note, self.anchored):
            known = self.notes.setdefault(note.origin, {}).setdefault(note.size, note)
            demand(known == note, f"two different checkpoints of {note.origin} with size {note.size} are anchored")

    def match(self, note: Note) -> None:
        """Compare a checkpoint with the anchored one of its size, if there is one."""
        anchored = self.notes.get(note.origin, {}).pop(note.size, None)
        demand(anchored in (None, note), f"size {note.size} of {note.origin} was anchored otherwise: rewritten")
        self.matched += anchored is not None

    def close(self, last: Note, pruned: bool) -> None:
        """At the last checkpoint of a log: all anchored ones were met, but for those that went when it was pruned."""
        for size, note in sorted(self.notes.get(last.origin, {}).items()):
            inside = size < last.size  # no time in the header excuses these: whoever forges the log chooses it too
            where = "not in the export" if inside else "behind the end, which was cut off"
            excused = pruned if inside else note.at > self.until
            demand(excused, f"the anchored checkpoint {size} of {last.origin} is {where}")


class Requests:
    """Reconciles usage records with the batches that entries name; both come in the same order."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}  # the last batch of each owner that was named
        self.due: deque[Batch] = deque()  # named, and not met yet
        self.batch: Batch | None = None  # its usage records are being read into `tree`
        self.tree, self.pruned_batch = Tree(), False
        self.pruned_below = 0  # usage records of batches named before this seq may be gone
        self.batches = self.records = self.pruned = self.cost_pico = 0

    def name(self, data: dict[str, Any], seq: int, from_start: bool) -> None:
        """Note the batches of a `usage.settled` entry. Numbers have no gaps; they start with 1 if all is there."""
        total = 0
        for item in data["batches"]:
            owner, number, count = item["owner"], int(item["number"]), int(item["count"])
            due = self.numbers.get(owner, 0 if from_start else number - 1) + 1
            title = f"batch {number} of {owner!r}"
            demand(number == due, f"{title} follows where {due} is due: some are missing or doubled")
            self.numbers[owner] = due
            self.due.append(Batch(title, count, bytes.fromhex(item["root"]), seq))
            total += count
        demand(total == int(data["requests"]), f"the batches have {total} requests, not {data['requests']}")

    def take_batch(self, record: dict[str, Any]) -> None:
        """The next batch begins. Only one that an entry before `pruned_below` names may lack its usage records."""
        self.close_batch()
        title = f"batch {int(record['number'])} of {record['owner']!r}"
        demand(self.due, f"{title} is named by no entry: its requests were left out of the log")
        batch = self.due.popleft()
        what = f"{title} follows where {batch.title} is due: usage records are missing, doubled or not in the log"
        demand(title == batch.title, what, batch.seq)
        self.batch, self.pruned_batch, self.tree = batch, "leaves" in record, Tree()
        leaves = unbase64(record.get("leaves", ""))
        for start in range(0, len(leaves), 32):
            self.tree.append(leaves[start : start + 32])
        pruned = not self.pruned_batch or batch.seq < self.pruned_below
        demand(pruned, f"{title} lacks usage records that no entry says were pruned")

    def take_usage(self, record: dict[str, Any]) -> None:
        """One usage record of the batch."""
        demand(self.batch and not self.pruned_batch, "a usage record outside of a batch")
        data = record["body"].encode()
        usage = read_canonical(data, "the usage record")
        self.tree.append(leaf_hash(data))
        self.records += 1
        self.cost_pico += int(usage.get("cost_pico", 0))

    def close_batch(self) -> None:
        """The batch before this line is complete: compare it with what its entry says."""
        if batch := self.batch:
            has = f"{batch.title}, before this line, has"
            demand(self.tree.size == batch.count, f"{has} {self.tree.size} usage records and not {batch.count}")
            demand(self.tree.root() == batch.root, f"{has} usage records that are not those of its Merkle root")
            self.batches += 1
            self.pruned += batch.count if self.pruned_batch else 0
        self.batch = None


class Export:
    """Reads an export line by line; `take` raises the first Fault."""

    def __init__(self, pinned: Key | None = None, anchored: Iterable[str] = ()) -> None:
        self.pinned, self.anchors, self.requests = pinned, Anchors(anchored), Requests()
        self.digest, self.part, self.line = sha256(), HEADER, 0
        self.entries = self.pruned = self.checkpoints = 0
        self.header, self.since, self.name = {"at": ""}, "", ""  # `name`: of the keys, and how every origin begins
        self.keys: list[Key] = []  # all so far, the one in use last
        self.rotating: Key | None = None  # the new key, until the checkpoint that covers its entry
        self.last: Note | None = None  # the last checkpoint
        self.log, self.origin, self.tree, self.epoch = 0, "", Tree(), 1
        self.starts: dict[int, int] = {}  # the first seq of each log
        self.origins: list[str] = []  # their names in checkpoints
        self.next_seq = self.signed_seq = 0
        self.numbers: dict[str, int] = {}  # the last number of each source
        self.gaps: list[Fault] = []  # which the log itself tells of
        self.announced = {"entries_through": 0, "usage_through": 0}  # the last log of which `audit.pruned` tells
        self.pruned_log = 0  # entries up to this log are pruned
        self.kept = False  # whether an entry was met that pruning would have taken
        self.from_start = True  # whether everything since the very first entry is there

    def take(self, line: bytes) -> None:
        """Check the next line."""
        self.line += 1
        kind = ""
        try:
            demand(line.endswith(b"\n"), "the line is cut short")
            record = read_canonical(line[:-1], "the line")
            kind = record["kind"]
            if PARTS[kind] != self.part:
                demand(HEADER < self.part < PARTS[kind], f"a line of kind {kind!r} does not belong here")
                if self.part == LOGS:
                    self.close_logs()
                self.part = PARTS[kind]
            getattr(self.requests if self.part == USAGE else self, f"take_{kind}")(record)
        except MALFORMED as error:
            fault = error if isinstance(error, Fault) else Fault(f"malformed line: {error!r}")
            fault.line = self.line
            if fault.seq is None:
                batch = self.requests.batch
                fault.seq = batch.seq if batch else self.next_seq - (kind == "checkpoint")
            raise fault from None
        self.digest.update(line)

    def take_export(self, record: dict[str, Any]) -> None:
        """The first line: whose log, which months, and the way from the pinned key to the one that signs."""
        demand(record["format"] == "1" and self.line == 1, "not the beginning of an export that this program knows")
        key, first = read_key(record["key"]), int(record["from_log"])
        self.name = f"hoosh/{record['instance']}"
        self.keys = follow_rotations(record, self.pinned) or [key]
        demand(self.keys[-1] == key, f"the export is signed with {key.vkey}: {self.keys[0].vkey} does not lead there")
        before, rotations = record.get("previous_note"), record.get("rotations", [])
        demand(first > 1 if before else first == 1 and not rotations, "the export does not say what was before it")
        known = before or self.name == f"hoosh/{sha256(key.public).hexdigest()[:16]}"
        demand(known and key.name == self.name, "the key is not the instance's")
        if before:
            rotated = len(self.keys) > 1 and rotations[-1]["checkpoint"] == before
            self.last = read_note(before, self.keys[-2:] if rotated else self.keys[-1:])
            self.epoch = self.last.epoch
            demand(self.last.origin.startswith(f"{self.name}/"), "the checkpoint before is not the instance's")
            self.origin = self.last.origin
        self.anchors.load(record["at"])
        self.header, self.log, self.from_start, self.part = record, first - 1, first == 1, LOGS

    def take_log(self, record: dict[str, Any]) -> None:
        """A month begins; the one before must be signed to its end."""
        self.close_log()
        number, first_seq = int(record["number"]), int(record["first_seq"])
        if not self.starts and number > 1:
            self.next_seq = self.signed_seq = first_seq
        due = (self.log + 1, self.next_seq)
        demand((number, first_seq) == due, f"log {number} from seq {first_seq} follows where {due} is due")
        self.log, self.tree, self.starts[number] = number, Tree(), first_seq
        self.origins.append(f"{self.name}/{record['name']}")
        demand(self.origin < self.origins[-1], f"the log {self.origins[-1]} does not come after {self.origin!r}")
        self.origin = self.origins[-1]

    def take_entry(self, record: dict[str, Any]) -> None:
        """An entry, with the hash of its body beside it, so that a change is pinned to it."""
        body = record["body"].encode()
        leaf = leaf_hash(body)
        demand(leaf.hex() == record["leaf"], "the entry does not have the hash given with it: changed")
        entry = read_canonical(body, "the entry")
        source, action, data = entry["source"], entry["action"], entry["data"]
        if entry["seq"] != str(self.next_seq):
            raise Fault(f"entry {entry['seq']} follows where {self.next_seq} is due: missing, doubled or moved")
        if source != "log":
            self.kept = True
            demand(self.pruned_log < self.log, "an entry in a log whose entries were pruned")
        number = int(entry["number"])
        due = self.numbers[source] + 1 if source in self.numbers else 1 if self.from_start else number
        if number != due:
            raise Fault(f"number {number} of source {source!r} follows where {due} is due: some are missing or doubled")
        self.numbers[source] = number
        if not self.tree.size:
            demand((source, action) == ("log", "log.opened"), "a log does not begin with 'log.opened'")
            self.opened(data)
        elif source == "log":
            self.about_log(action, data)
        elif source == "usage":
            self.requests.name(data, self.next_seq, self.from_start)
        self.since = self.since or entry["at"]
        self.tree.append(leaf)
        self.entries += 1
        self.next_seq += 1

    def opened(self, data: dict[str, Any]) -> None:
        """The first entry of a log: its name, the key in use, the last checkpoint of the log before."""
        name, last = self.origin.removeprefix(f"{self.name}/"), self.last
        due: dict[str, Any] = {"key": self.keys[-1].vkey, "name": name, "number": str(self.log)}
        if last:
            before = {"name": last.origin.removeprefix(f"{self.name}/"), "size": str(last.size)}
            due["previous"] = before | {"root": last.root.hex(), "note_sha256": last.hash}
        demand(data == due, "the log is not opened with its name, its key and the last checkpoint before")

    def about_log(self, action: str, data: dict[str, Any]) -> None:
        """An entry of the log about itself."""
        demand(action != "log.opened", "'log.opened' within a log")
        if action == "key.rotated":
            demand(not self.rotating, "two rotations below one checkpoint")
            self.rotating = read_rotation(data, self.keys[-1])
            demand(int(data["epoch"]) == self.epoch + 1, f"epoch {data['epoch']} follows epoch {self.epoch}")
        if action == "outbox.gap":
            source, first, last = data["source"], int(data["from"]), int(data["to"])
            what = f"the log itself says that number {first} to {last} of source {source!r} were taken out before"
            demand(self.numbers.get(source, first - 1) == first - 1 <= last, f"{what}, which others contradict")
            self.numbers[source] = last
            self.gaps.append(Fault(what, self.next_seq, self.line))
        if action == "audit.pruned":
            for what, through in self.announced.items():
                self.announced[what] = max(through, int(data.get(what, 0)))

    def take_leaf(self, record: dict[str, Any]) -> None:
        """A pruned entry, of which the hash is left."""
        demand(record["seq"] == str(self.next_seq), f"entry {record['seq']} follows where {self.next_seq} is due")
        demand(self.tree.size and not self.kept, "a hash in place of an entry that pruning does not take")
        self.tree.append(bytes.fromhex(record["hash"]))
        self.pruned_log, self.from_start = self.log, False
        self.pruned, self.next_seq = self.pruned + 1, self.next_seq + 1

    def take_checkpoint(self, record: dict[str, Any]) -> None:
        """A signed checkpoint over all entries of the log so far."""
        signers = [self.keys[-1], self.rotating] if self.rotating else [self.keys[-1]]
        note = read_note(record["note"], signers)
        if note.previous != (self.last.hash if self.last else "-"):
            demand(not self.kept, "the checkpoint does not name the one before: one is missing or was replaced")
            self.pruned_log = self.log  # pruning leaves one checkpoint of an hour
        due = (self.origin, self.tree.size, self.epoch + len(signers) - 1)
        demand((note.origin, note.size, note.epoch) == due, f"not the checkpoint of (log, entries, epoch) {due}")
        demand(self.signed_seq < self.next_seq, "two checkpoints for the same entries")
        if note.root != self.tree.root():
            what = f"entries {self.signed_seq} to {self.next_seq - 1} are not those that were signed"
            raise Fault(f"{what}: changed, swapped, added or left out", self.signed_seq)
        self.anchors.match(note)
        self.keys += signers[1:]
        self.rotating, self.epoch, self.last = None, note.epoch, note
        self.signed_seq = self.next_seq
        self.checkpoints += 1

    def close_log(self) -> None:
        """Every entry of the log must be signed, and everything anchored of it must have been met."""
        demand(self.signed_seq == self.next_seq, "entries from here on have no checkpoint", self.signed_seq)
        if self.starts and self.last:
            demand(self.tree.size, "a log without entries")
            self.anchors.close(self.last, self.pruned_log == self.log)

    def close_logs(self) -> None:
        """Behind the last log: all of them were there, and nothing was pruned that no entry announces."""
        self.close_log()
        complete = self.starts and str(self.log) == self.header["to_log"]
        demand(complete, f"the logs end with {self.log}, not {self.header['to_log']}")
        first = f"{self.name}/" if 1 in self.starts else self.origins[0]
        for origin in filter(self.anchors.notes.get, {*self.anchors.notes} - {*self.origins}):
            demand(not first <= origin <= self.origin, f"the log {origin} was anchored and is not in the export")
        what = f"entries or checkpoints of log {self.pruned_log} are gone, and no entry says that they were pruned"
        demand(self.pruned_log <= self.announced["entries_through"], what)
        kept = [seq for log, seq in self.starts.items() if log > self.announced["usage_through"]]
        self.requests.pruned_below = min(kept, default=self.next_seq)

    def take_rotation(self, record: dict[str, Any]) -> None:
        """A change of keys behind the last log of the export: the key in force when it was made signs its end."""
        keys = follow_rotations({"rotations": [record]}, self.keys[-1])
        demand(len(keys) == 2, "a change of keys that does not follow the one before")
        self.keys += keys[1:]

    def take_end(self, record: dict[str, Any]) -> None:
        """The last line: nothing named is missing, and the export's bytes are those it was closed with."""
        self.requests.close_batch()
        for batch in self.requests.due:
            raise Fault(f"{batch.title} is missing: its usage records were left out", batch.seq)
        lines, digest = self.line - 1, self.digest.hexdigest()
        demand(record["lines"] == str(lines), f"{lines} lines, not {record['lines']}: cut off, or the end doubled")
        demand(record["sha256"] == digest, "the bytes before are not those that the export was closed with")
        message = f"hoosh export\n{lines}\n{digest}\n".encode()
        signed = signed_by(self.keys[-1].public, unbase64(record["signature"]), message)
        demand(signed and len(record) == 4, "the export's signature is wrong")

    def summary(self) -> dict[str, Any]:
        """What was read so far."""
        requests, anchors = self.requests, self.anchors
        newer = [note.at > anchors.until for unmet in anchors.notes.values() for note in unmet.values()]
        return {
            **{"instance": self.name, "keys": [key.vkey for key in self.keys], "exported": self.header["at"]},
            **{"from": self.since, "to": self.last.at if self.last else "", "checkpoints": self.checkpoints},
            **{"entries": self.entries, "pruned_entries": self.pruned, "omissions": len(self.gaps)},
            **{"batches": requests.batches, "requests": requests.records, "pruned_requests": requests.pruned},
            **{"cost_usd": format(Decimal(requests.cost_pico).scaleb(-12), "f"), "anchors_matched": anchors.matched},
            **{"anchors_newer": sum(newer), "anchors_elsewhere": newer.count(False)},
        }


def read_export(stream: BinaryIO, export: Export) -> None:
    """Verify a whole export; raises the first Fault."""
    while line := stream.readline(LINE_BYTES_MAX):
        export.take(line)
    if export.part != END:
        raise Fault("the export has no end: cut off", export.next_seq, export.line + 1)
    if export.gaps:  # and nothing else is wrong
        raise export.gaps[0]


def read_proofs(data: bytes, pinned: Key, anchors: Anchors) -> dict[str, Any]:
    """Verify a file of proofs, one to a line; of a request there is one for each attempt."""
    found = [read_proof(line, pinned, anchors) for line in data.removesuffix(b"\n").split(b"\n")]
    return found[0] if len(found) == 1 else {"proofs": found}


def read_proof(data: bytes, pinned: Key, anchors: Anchors) -> dict[str, Any]:
    """Verify a proof file: that an entry (and a request) is in the log, or that one checkpoint continues another."""
    record = read_canonical(data.removesuffix(b"\n"), "the proof")
    keys = follow_rotations(record, pinned)
    anchors.load(until="9")
    demand(record["format"] == "1" and record["kind"] in ("proof", "consistency"), "not a proof")
    if record["kind"] == "consistency":
        first, note = read_proof_note(record["first"], keys), read_proof_note(record["second"], keys)
        path = [bytes.fromhex(item) for item in record["path"]]
        sound = first.origin == note.origin and consistent(first.size, note.size, first.root, note.root, path)
        demand(sound, "the second checkpoint does not continue the first")
        anchors.match(first)
        found: dict[str, Any] = {"continues_size": first.size}
    else:
        note = read_proof_note(record["checkpoint"], keys)
        check_path(record, record["entry"], int(record["size"]), note.root, "the entry is not below the checkpoint")
        demand(record["size"] == str(note.size), "the proof is for another checkpoint than its own")
        found = {"entry": read_canonical(record["entry"].encode(), "the entry")}
        if "usage" in record:
            found["usage"] = read_canonical(record["usage"].encode(), "the usage record")
            batch, names = record["batch"], ("count", "number", "owner")
            named = found["entry"]["data"]["batches"]
            root = [item["root"] for item in named if all(item[name] == batch[name] for name in names)]
            demand(found["entry"]["source"] == "usage" and len(root) == 1, "the entry does not name the batch")
            what = "the usage record is not in its batch"
            check_path(batch, record["usage"], int(batch["count"]), bytes.fromhex(root[0]), what)
    anchors.match(note)
    return {**found, "log": note.origin, "size": note.size, "at": note.at, "anchors_matched": anchors.matched}


def read_proof_note(note: str, keys: Sequence[Key]) -> Note:
    """A checkpoint signed by one of the keys, or by two that followed each other."""
    signers = note.count("\n— ")
    for end in range(signers, len(keys)):
        with suppress(Fault):  # then it is signed with a later key
            return read_note(note, keys[end - signers : end])
    return read_note(note, keys[-signers:])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Verify an export of the audit log, or a proof.")
    parser.add_argument("export", nargs="?", help="the export")
    parser.add_argument("--proof", metavar="FILE", help="verify a proof file instead")
    parser.add_argument("--key", metavar="VKEY", type=read_key, help="the gateway's first public key")
    parser.add_argument("--anchors", metavar="FILE", action="append", default=[], help="anchored checkpoints")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    if bool(options.export) == bool(options.proof) or (options.proof and not options.key):
        parser.error("give an export, or a proof and a key")
    result: dict[str, Any] = {"ok": True, "fault": None, "warnings": [], "summary": {}}
    export = Export(options.key, (note for path in options.anchors for note in anchored_notes(path)))
    try:
        with open(options.proof or options.export, "rb") as stream:
            if options.proof:
                result["summary"] = read_proofs(stream.read(LINE_BYTES_MAX), options.key, export.anchors)
            else:
                read_export(stream, export)
    except OSError as error:
        parser.error(str(error))
    except MALFORMED as error:
        fault = error if isinstance(error, Fault) else Fault(f"malformed: {error!r}")
        result |= {"ok": False, "fault": {"line": fault.line, "seq": fault.seq, "what": fault.what}}
    summary = result["summary"] = export.summary() if options.export else result["summary"]
    if not options.key:
        result["warnings"] += ["no --key: the key is the export's own, and anybody can make it all anew"]
    if options.anchors and not any(value for name, value in summary.items() if name.startswith("anchors_")):
        result["warnings"] += ["the anchor files hold no checkpoint: nothing was compared with them"]
    if summary.get("anchors_newer") or summary.get("anchors_elsewhere"):
        result["warnings"] += ["some anchored checkpoints are newer than the export, or of logs it does not have"]
    lines = [f"WARNING: {warning}" for warning in result["warnings"]]
    lines += [f"{name.replace('_', ' '):18}{value}" for name, value in summary.items()]
    if found := result["fault"]:
        lines += [f"FAULT at line {found['line']}, entry {found['seq']}: {found['what']}"]
    lines += ["OK: everything fits."] if result["ok"] else ["The rest was not looked at.", "NOT OK."]
    lines = [json.dumps(result, indent=1)] if options.json else [json.dumps(line)[1:-1] for line in lines]
    print("\n".join(lines))  # ASCII: no control characters of the input, none that a terminal lacks
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
