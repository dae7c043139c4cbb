"""A log on a real database with a key of its own, for tests of what writes it, and a check of all of it."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import TransactionTestCase

from audit import canonical, keys, merkle, notes
from audit.heads import Head
from audit.models import AuditEntry, Checkpoint, Log
from audit.sequencer import Sequencer

NOON = dt.datetime(2026, 11, 5, 12, tzinfo=dt.UTC).timestamp()


class Clock:
    """Unix time that stands until it is moved."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class LogCase(TransactionTestCase):
    """`self.sequencer` writes the log; `self.log()` lets it write all that waits."""

    databases = "__all__"

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="hl-"))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.key_file.write_bytes(keys.new_key_text())
        self.clock = Clock()
        self.heads: list[Head] = []
        self.sequencer = self.make_sequencer()

    @property
    def key_file(self) -> Path:
        return self.directory / keys.KEY_FILE

    @property
    def connection(self) -> BaseDatabaseWrapper:
        return connections[settings.HOOSH_LEDGER_DB]

    def make_sequencer(self, **options: Any) -> Sequencer:
        options = {
            "signer": keys.Signer(self.directory),
            "clock": self.clock,
            "on_checkpoint": self.heads.append,
            **options,
        }
        return Sequencer(**options)

    def log(self, sequencer: Sequencer | None = None) -> None:
        """Write all that waits."""
        while (sequencer or self.sequencer).run(self.connection):
            pass

    def bodies(self, *, own: bool = False) -> list[dict[str, Any]]:
        """The entries' bodies, without those the log makes about itself."""
        found = (json.loads(body) for body in AuditEntry.objects.order_by("seq").values_list("body", flat=True))
        return [body for body in found if own or body["source"] != "log"]

    def actions(self) -> list[str]:
        return list(AuditEntry.objects.order_by("seq").values_list("action", flat=True))


def assert_whole(gaps: tuple[tuple[str, int, int], ...] = ()) -> None:
    """The log is one chain: sequence, numbers per source, bodies, trees, signatures, links between months."""
    numbers: dict[str, int] = {}
    known = {(source, first - 1): last for source, first, last in gaps}
    entries = list(AuditEntry.objects.order_by("seq"))
    assert [entry.seq for entry in entries] == list(range(len(entries)))
    for entry in entries:
        body = json.loads(entry.body)
        assert canonical.is_canonical(entry.body.encode())
        assert merkle.leaf_hash(entry.body.encode()) == bytes(entry.leaf)
        said = (body["seq"], body["source"], body["number"], body["action"], body["level"])
        assert said == (str(entry.seq), entry.source, str(entry.number), entry.action, entry.level)
        before = numbers.get(entry.source, 0)
        assert entry.number == known.get((entry.source, before), before) + 1
        numbers[entry.source] = entry.number
    previous, signers = notes.NO_PREVIOUS, []
    for log in Log.objects.order_by("number"):
        mine = [entry for entry in entries if entry.log == log.number]
        heads = list(Checkpoint.objects.filter(log=log.number).order_by("id"))
        assert (mine[0].seq, mine[0].action, heads[-1].size) == (log.first_seq, "log.opened", len(mine))
        tree = merkle.Frontier()
        for head in heads:
            for entry in mine[tree.size : head.size]:
                tree.append(bytes(entry.leaf))
                data = json.loads(entry.body)["data"]
                if entry.action == "log.opened":
                    assert data.get("previous", {}).get("note_sha256", notes.NO_PREVIOUS) == previous
                    signers = [notes.parse_vkey(data["key"])]
                elif entry.action == "key.rotated":
                    assert signers == [notes.parse_vkey(data["old"])]
                    signers.append(notes.parse_vkey(data["new"]))
            signed = notes.verify(head.note, signers)
            assert (signed.size, signed.root, signed.previous) == (head.size, tree.root(), previous)
            assert bytes(head.root) == tree.root()
            previous, signers = notes.note_hash(head.note), signers[-1:]
