"""Proofs out of the stored rows, for logs of any size, and none out of rows that somebody changed."""

from __future__ import annotations

import json
import time

import pytest
from django.db import connections
from django.test import TestCase
from django.test.utils import CaptureQueriesContext

from audit import canonical, merkle, notes, proving, triggers
from audit.models import AuditEntry, Checkpoint, Log, Tile, UsageBatch
from tests.audit.small_log import SmallLog

pytestmark = pytest.mark.database


def holds(proof: dict, vkey: str) -> bool:
    """Whether a proof file verifies with nothing but the formats."""
    head = notes.verify(proof["checkpoint"], [notes.parse_vkey(vkey)])
    leaf = merkle.leaf_hash(proof["entry"].encode())
    path = [bytes.fromhex(each) for each in proof["path"]]
    if head.size != proof["size"] or not merkle.verify_inclusion(leaf, proof["index"], head.size, path, head.root):
        return False
    if "usage" not in proof:
        return True
    batch = proof["batch"]
    told = json.loads(proof["entry"])["data"]["batches"]
    (named,) = [each for each in told if each["owner"] == batch["owner"] and each["number"] == str(batch["number"])]
    return merkle.verify_inclusion(
        merkle.leaf_hash(proof["usage"].encode()),
        batch["index"],
        batch["count"],
        [bytes.fromhex(each) for each in batch["path"]],
        bytes.fromhex(named["root"]),
    )


def changed(table: str, statement: str, *values: object) -> None:
    """Change rows as somebody with the database's password would."""
    connection = connections[AuditEntry.objects.db]
    triggers.remove_guards(connection, [table])
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


class ProvingTest(TestCase):
    databases = "__all__"

    @classmethod
    def setUpTestData(cls):
        log = cls.log = SmallLog()
        log.open()
        for number in range(70):
            log.add("a.b", target=str(number))
            if number % 9 == 0:
                log.checkpoint()
        log.checkpoint()

    def test_every_entry_is_proven_under_the_last_checkpoint(self):
        for seq in range(71):
            proof = proving.inclusion(seq)
            assert (proof["size"], proof["index"]) == (71, seq)
            assert holds(proof, self.log.vkey)
            assert canonical.is_canonical(proving.proof_bytes(proof)[:-1])

    def test_an_entry_is_proven_under_an_earlier_checkpoint(self):
        assert holds(proving.inclusion(3, 11), self.log.vkey)
        with pytest.raises(proving.UnknownError, match="no checkpoint of 12"):
            proving.inclusion(3, 12)
        with pytest.raises(proving.UnknownError, match="not among the first 11"):
            proving.inclusion(30, 11)

    def test_what_is_not_under_a_checkpoint_is_not_proven_yet(self):
        seq = self.log.add("c.d")
        self.log.flush()
        with pytest.raises(proving.NotYetError):
            proving.inclusion(seq)
        with pytest.raises(proving.UnknownError):
            proving.inclusion(seq + 1)
        self.log.checkpoint()
        assert holds(proving.inclusion(seq), self.log.vkey)

    def test_what_is_about_to_be_signed_is_waited_for(self):
        seq = self.log.add("c.d")
        self.log.flush()
        asked = []

        def prove():
            asked.append(seq)
            if len(asked) == 3:
                self.log.checkpoint()
            return proving.inclusion(seq)

        assert holds(proving.awaited(prove, 60), self.log.vkey)
        assert len(asked) == 3

    def test_it_is_not_waited_for_longer_than_asked(self):
        seq = self.log.add("c.d")
        self.log.flush()
        begun = time.monotonic()
        with pytest.raises(proving.NotYetError):
            proving.awaited(lambda: proving.inclusion(seq), 0.25)
        assert time.monotonic() - begun >= 0.25
        with pytest.raises(proving.UnknownError):
            proving.awaited(lambda: proving.inclusion(seq + 1), 600)

    def test_a_log_of_many_tiles_takes_few_questions(self):
        for number in range(1500):
            self.log.add("a.b", target=str(number))
        self.log.checkpoint()
        assert Tile.objects.count() == 6
        for seq in (0, 255, 256, 1023, 1024, 1535, 1536, 1570):
            with CaptureQueriesContext(connections[AuditEntry.objects.db]) as seen:
                assert holds(proving.inclusion(seq), self.log.vkey)
            assert len(seen) <= 12

    def test_months_have_trees_of_their_own(self):
        self.log.open("2026-12")
        seq = self.log.add("a.b")
        self.log.checkpoint()
        proof = proving.inclusion(seq)
        assert (proof["size"], proof["index"]) == (2, 1)
        assert holds(proof, self.log.vkey)
        assert holds(proving.inclusion(5), self.log.vkey)
        assert proving.log_named("").name == "2026-12"

    def test_logs_only_grow(self):
        log = Log.objects.get()
        sizes = list(Checkpoint.objects.order_by("size").values_list("size", flat=True))
        for first in sizes:
            for second in sizes:
                if first > second:
                    with pytest.raises(proving.UnknownError):
                        proving.consistency(log, first, second)
                    continue
                found = proving.consistency(log, first, second)
                old, new = (notes.parse(found[name]) for name in ("first", "second"))
                path = [bytes.fromhex(each) for each in found["path"]]
                assert merkle.verify_consistency(first, second, old.root, new.root, path)

    def test_a_request_is_proven_through_its_batch(self):
        records = [canonical.encode({"id": f"{number:032x}", "tokens": number}) for number in range(5)]
        batch, _seq = self.log.batch(records)
        self.log.checkpoint()
        for record in records:
            proof = proving.of_usage(proving.UsageRow(record, batch))
            assert holds(proof, self.log.vkey)
        with pytest.raises(proving.BrokenError, match="not the one that was logged"):
            proving.of_usage(proving.UsageRow(records[0].replace(b'"0"', b'"9"'), batch))
        with pytest.raises(proving.UnknownError):
            proving.of_usage(proving.UsageRow(records[0], None))

    def test_a_batch_on_its_way_is_not_proven_yet(self):
        row = UsageBatch.objects.create(owner="w", number=1, count=1, root=b"r" * 32, leaves=b"l" * 32)
        with pytest.raises(proving.NotYetError):
            proving.of_usage(proving.UsageRow(b"{}", row.pk))

    def test_a_changed_entry_is_not_proven(self):
        changed("audit_entry", "UPDATE audit_entry SET body = replace(body, 'a.b', 'a.c') WHERE seq = %s", 7)
        with pytest.raises(proving.BrokenError, match="entry 7"):
            proving.inclusion(7)

    def test_nothing_is_proven_beside_a_leaf_that_is_gone(self):
        changed("audit_entry", "DELETE FROM audit_entry WHERE seq = %s", 7)
        with pytest.raises(proving.BrokenError, match="missing"):
            proving.inclusion(6)
        with pytest.raises(proving.BrokenError, match="Entry 7 is not there"):
            proving.inclusion(7)

    def test_behind_a_change_of_keys_a_proof_leads_there_from_the_first_key(self):
        first = self.log.vkey
        assert "rotations" not in proving.inclusion(3)
        self.log.rotate()
        self.log.checkpoint()
        self.log.add("a.b")
        self.log.checkpoint()
        proof = proving.inclusion(3)
        assert holds(proof, self.log.vkey)
        (turn,) = proof["rotations"]
        notes.verify(turn["checkpoint"], [notes.parse_vkey(first), notes.parse_vkey(self.log.vkey)])
        assert json.loads(turn["entry"])["data"]["new"] == self.log.vkey
