"""Going over the log entry by entry, rebuilding its trees, holding them against what was signed.

A `Walk` can be stored and continued. It reads rows and says what is wrong with the first that is not as it should be;
it writes nothing. Where a month was pruned it goes over the hashes that were kept.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from audit import canonical, merkle, notes, tiles
from audit.models import AuditEntry, Checkpoint, Log, Tile

_COLUMNS = ("seq", "log", "at", "source", "number", "action", "actor", "target", "level", "object", "body", "leaf")
_SAID = {"source": 16, "action": 100, "actor": 40, "target": 200, "level": 10}  # and how much of it a column takes
_OBJECT = 100
_decode = msgspec.json.decode
OPENED, ROTATED, PRUNED, GAP = "log.opened", "key.rotated", "audit.pruned", "outbox.gap"


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, and the first entry that shows it."""

    seq: int
    what: str

    def as_dict(self) -> dict[str, Any]:
        """For the API and for keeping."""
        return {"seq": self.seq, "what": self.what}

    @classmethod
    def from_dict(cls, stored: Any) -> Fault | None:
        """What `as_dict` gave; None for None."""
        return cls(int(stored["seq"]), str(stored["what"])) if isinstance(stored, dict) else None


class Head(NamedTuple):
    """A checkpoint and where its log begins."""

    row: Checkpoint
    log_first_seq: int

    @property
    def end(self) -> int:
        """The first sequence number it does not sign."""
        return self.log_first_seq + self.row.size


def head() -> Head | None:
    """The newest checkpoint."""
    row = Checkpoint.objects.order_by("-id").first()
    if row is None:
        return None
    first = Log.objects.filter(pk=row.log).values_list("first_seq", flat=True).first()
    return Head(row, 0 if first is None else first)


def fault_of(row: AuditEntry) -> Fault | None:
    """What an entry alone shows to be wrong with it: its body is not what its hash, or its columns, say."""
    try:
        values = tuple(getattr(row, name) for name in _COLUMNS)
        _checked(values)
    except _Wrong as exc:
        return exc.fault
    return None


class _Wrong(Exception):
    def __init__(self, seq: int, what: str) -> None:
        super().__init__(what)
        self.fault = Fault(seq, what)


class Walk:
    """How far the log was gone over. Everything before `seq` is as it was signed."""

    def __init__(self) -> None:
        self.seq = 0
        self._log = 0
        self._tree = merkle.Frontier()
        self._signed = 0  # size at the last checkpoint of this log
        self._previous = notes.NO_PREVIOUS  # hash of the last checkpoint's note
        self._keys: list[str] = []  # the vkey in force; two from a rotation to the next checkpoint
        self._numbers: dict[str, int] = {}
        self._numbers_unknown = False  # behind a pruned month

    def as_dict(self) -> dict[str, Any]:
        """For keeping as JSON."""
        return {
            "seq": self.seq,
            "log": self._log,
            "size": self._tree.size,
            "hashes": [each.hex() for each in self._tree.hashes],
            "signed": self._signed,
            "previous": self._previous,
            "keys": self._keys,
            "numbers": self._numbers,
            "numbers_unknown": self._numbers_unknown,
        }

    @classmethod
    def from_dict(cls, stored: Any) -> Walk:
        """What `as_dict` gave; a new walk for None. Anything else: `KeyError`, `TypeError` or `ValueError`."""
        walk = cls()
        if stored is None:
            return walk
        walk.seq, walk._log, walk._signed = int(stored["seq"]), int(stored["log"]), int(stored["signed"])
        walk._tree = merkle.Frontier(int(stored["size"]), [bytes.fromhex(each) for each in stored["hashes"]])
        walk._previous, walk._keys = str(stored["previous"]), [str(each) for each in stored["keys"]]
        walk._numbers = {str(name): int(number) for name, number in stored["numbers"].items()}
        walk._numbers_unknown = bool(stored["numbers_unknown"])
        return walk

    def copy(self) -> Walk:
        """A walk that goes on alone."""
        return Walk.from_dict(self.as_dict())

    def reached(self, other: Walk) -> bool:
        """Whether this one is as far."""
        return self.seq >= other.seq

    def step(self, entries: int, key: str = "") -> Fault | None:
        """Go on over up to so many entries, to the newest checkpoint at most; the first thing that is wrong.

        `key` is the vkey that must have signed the newest checkpoint; "" = whichever the log itself leads to. After a
        fault the walk must not be continued.
        """
        try:
            last = head()
            if last is None or last.end < self.seq:
                end = 0 if last is None else last.end
                if self.seq:
                    raise _Wrong(end, f"The newest checkpoint signs {end} entries; there were {self.seq}.")
                return None
            while entries > 0 and self.seq < last.end:
                entries -= self._part(last, entries)
            if self.seq == last.end and key and self._keys[-1:] != [key]:
                raise _Wrong(self.seq - 1, "The log is signed by another key than the one that is set here.")
        except _Wrong as exc:
            return exc.fault
        return None

    # --- one part of one log ------------------------------------------------------------------------------------------

    def _part(self, last: Head, entries: int) -> int:
        """Some entries of the log at hand; how many."""
        log, following = self._log_at_hand()
        end = min(self.seq + entries, last.end, 2**62 if following is None else following)
        rows = AuditEntry.objects.filter(seq__gte=self.seq, seq__lt=end).order_by("seq").values_list(*_COLUMNS)
        found = list(rows)
        heads = self._checkpoints(log, end - log.first_seq)
        if len(found) < end - self.seq and _is_pruned(log):
            return self._pruned(log, {row[0]: row for row in found}, heads, end)
        for row in found:
            self._entry(log, row)
            if (due := heads.pop(self._tree.size, None)) is not None:
                self._checkpoint(log, due)
        if self.seq < end:
            raise _Wrong(self.seq, f"Entry {self.seq} is missing.")
        return len(found)

    def _log_at_hand(self) -> tuple[Log, int | None]:
        """The log the next entry is in, and where the one behind it begins."""
        near = list(Log.objects.filter(number__gte=max(1, self._log)).order_by("number")[:3])
        log = next((each for each in reversed(near) if each.first_seq <= self.seq), None)
        if log is None:
            raise _Wrong(self.seq, f"There is no log that entry {self.seq} could be in.")
        if log.number != self._log:
            if log.number != self._log + 1 or log.first_seq != self.seq:
                raise _Wrong(self.seq, f"The log {log.name} does not begin where the one before it ends.")
            if self._tree.size != self._signed:
                raise _Wrong(self.seq - 1, "The last entries of a month are under no checkpoint.")
            self._log, self._signed, self._tree = log.number, 0, merkle.Frontier()
        return log, next((each.first_seq for each in near if each.number == log.number + 1), None)

    def _checkpoints(self, log: Log, size: int) -> dict[int, Checkpoint]:
        rows = Checkpoint.objects.filter(log=log.number, size__gt=self._tree.size, size__lte=size)
        return {row.size: row for row in rows}

    def _entry(self, log: Log, row: tuple[Any, ...]) -> None:
        seq, number_of_log, _at, source, number, *_ = row
        if seq != self.seq:
            raise _Wrong(self.seq, f"Entry {self.seq} is missing.")
        body, digest = _checked(row)
        if number_of_log != log.number:
            raise _Wrong(seq, f"Entry {seq} says that it is in another log.")
        before = self._numbers.get(source, number - 1 if self._numbers_unknown else 0)
        if number != before + 1:
            raise _Wrong(seq, f"Behind number {before} of '{source}' comes {number}.")
        self._numbers[source] = number
        if source == "log":
            self._own(seq, body)
        self._tree.append(digest)
        self.seq += 1

    def _own(self, seq: int, body: Mapping[str, Any]) -> None:
        """What the log says about itself: its key, and the log before."""
        data = body.get("data", {})
        if body["action"] == OPENED:
            before = data.get("previous", {})
            if seq and before.get("note_sha256") != self._previous:
                raise _Wrong(seq, "The log does not begin with the last checkpoint of the one before it.")
            if not seq:
                self._keys = [str(data.get("key", ""))]
            elif data.get("key") != self._keys[-1]:
                raise _Wrong(seq, "The log begins with another key than the one before it ended with.")
        elif body["action"] == ROTATED:
            old, new = str(data.get("old", "")), str(data.get("new", ""))
            if self._keys != [old] or not _is_countersigned(old, new, str(data.get("proof", ""))):
                raise _Wrong(seq, "A key took over that the one before it did not hand over to.")
            self._keys = [old, new]
        elif body["action"] == GAP:  # told by the log itself, as an error: what is missing there was never logged
            source, first, last = data.get("source"), data.get("from"), data.get("to")
            if not self._numbers_unknown and str(self._numbers.get(source, 0) + 1) != first:
                raise _Wrong(seq, f"The gap that entry {seq} tells of is not where it says.")
            self._numbers[source] = int(last)

    def _checkpoint(self, log: Log, row: Checkpoint) -> None:
        seq = self.seq - 1
        if bytes(row.root) != self._tree.root():
            first = log.first_seq + self._signed
            raise _Wrong(first, f"Entries {first} to {seq} are not what checkpoint {row.size} of {log.name} signs.")
        try:
            note = notes.verify(row.note, [notes.parse_vkey(key) for key in self._keys])
        except notes.NoteError as exc:
            raise _Wrong(seq, f"Checkpoint {row.size} of {log.name}: {exc}.") from exc
        if note.size != row.size or note.root != bytes(row.root) or note.origin.rpartition("/")[2] != log.name:
            raise _Wrong(seq, f"Checkpoint {row.size} of {log.name} signs something else.")
        if note.previous != self._previous and not _is_pruned(log):  # which leaves one of an hour
            raise _Wrong(seq, f"Checkpoint {row.size} of {log.name} does not follow the one before it.")
        self._keys = self._keys[-1:]
        self._previous, self._signed = notes.note_hash(row.note), row.size

    def _pruned(self, log: Log, rows: Mapping[int, tuple[Any, ...]], heads: dict[int, Checkpoint], end: int) -> int:
        """Go over a month of which the log's own entries are left, and hashes of the others."""
        begin, first = self.seq, self._tree.size // tiles.TILE_WIDTH
        last = (end - 1 - log.first_seq) // tiles.TILE_WIDTH
        kept = Tile.objects.filter(log=log.number, level=0, index__gte=first, index__lte=last)
        hashes = {index: bytes(data) for index, data in kept.values_list("index", "hashes")}
        self._numbers_unknown = True
        while self.seq < end:
            if (row := rows.get(self.seq)) is not None:
                self._entry(log, row)
            else:
                tile, offset = divmod(self._tree.size, tiles.TILE_WIDTH)
                leaf = hashes.get(tile, b"")[offset * merkle.HASH_BYTES : (offset + 1) * merkle.HASH_BYTES]
                if len(leaf) != merkle.HASH_BYTES:
                    raise _Wrong(self.seq, f"Of entry {self.seq}, which was pruned, the hash is missing.")
                self._tree.append(leaf)
                self.seq += 1
            if (due := heads.pop(self._tree.size, None)) is not None:
                self._checkpoint(log, due)
        return self.seq - begin


def _is_pruned(log: Log) -> bool:
    """Whether the log itself says that this month was pruned."""
    for body in AuditEntry.objects.filter(action=PRUNED, source="log").values_list("body", flat=True):
        if int(_decode(body).get("data", {}).get("entries_through", 0)) >= log.number:
            return True
    return False


def _checked(row: tuple[Any, ...]) -> tuple[dict[str, Any], bytes]:
    """An entry's body and leaf hash. Raises `_Wrong` where columns, body and hash do not say the same."""
    said = dict(zip(_COLUMNS, row, strict=True))
    seq, data = said["seq"], said["body"].encode()
    digest = merkle.leaf_hash(data)
    if digest != bytes(said["leaf"]):
        raise _Wrong(seq, f"Entry {seq} is not what its hash says.")
    try:
        body = _decode(data)
    except (msgspec.DecodeError, UnicodeError):
        body = None
    if not isinstance(body, dict):
        raise _Wrong(seq, f"The body of entry {seq} is no JSON object.")
    data_of = body.get("data")
    about = data_of.get("object", "") if isinstance(data_of, dict) else ""
    if (
        any(_cut(body.get(name, ""), limit) != said[name] for name, limit in _SAID.items())
        or (body.get("seq"), body.get("number")) != (str(seq), str(said["number"]))
        or body.get("at") != canonical.moment_text(said["at"])
        or _cut(about, _OBJECT) != said["object"]
    ):
        raise _Wrong(seq, f"The columns of entry {seq} are not what its body says.")
    return body, digest


def _cut(text: object, limit: int) -> str:
    """A text as a column keeps it."""
    return str(text).replace("\0", "\N{REPLACEMENT CHARACTER}")[:limit]


def _is_countersigned(old: str, new: str, proof: str) -> bool:
    try:
        key = notes.parse_vkey(new)
        return notes.signed_by(key, base64.b64decode(proof, validate=True), notes.rotation_text(old, new))
    except ValueError:
        return False
