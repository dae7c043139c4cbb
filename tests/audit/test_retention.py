"""Whole months lose their bodies and keep their hashes: proofs and checkpoints hold, and the log says what went."""

from __future__ import annotations

import datetime as dt
import json

import pytest
from django.db import transaction

from audit import growing, merkle, notes, proving, triggers
from audit.growing import state
from audit.models import AuditEntry, Checkpoint, Log, LoggedBatch, Tile, UsageBatch
from audit.record import record
from audit.retention import AuditRetention
from audit.walking import Walk
from budgets import retention as usage_retention
from budgets import rollups
from budgets.models import Usage
from tests.audit.log_case import LogCase
from tests.audit.test_batches import record as usage
from tests.audit.test_batches import settle

pytestmark = pytest.mark.database


def moment(year: int, month: int, day: int = 5, hour: int = 12) -> float:
    return dt.datetime(year, month, day, hour, tzinfo=dt.UTC).timestamp()


class RetentionCase(LogCase):
    def month(self, year: int, month: int, entries: int = 3) -> None:
        """Some entries of a month, two checkpoints an hour, a batch of usage rows."""
        for hour in (1, 2):
            self.clock.now = moment(year, month, hour=hour)
            with transaction.atomic():
                for _ in range(entries):
                    record("a.done", actor="ann", target=f"{year}-{month}")
            self.log()
            self.clock.now += 60
            settle(usage(), usage(), owner="w1" if month % 2 else "w2")
            self.log()

    def prune(self, months: int) -> None:
        job = AuditRetention(months, clock=self.clock)
        for _ in range(200):
            job.run(self.connection)
            self.log()
            if job.period_s == 60.0:
                return
        raise AssertionError("it does not end")

    def test_all_is_kept_unless_asked(self) -> None:
        self.month(2025, 1)
        self.month(2026, 11)
        self.prune(0)
        assert AuditEntry.objects.count() == 2 * 9

    def test_older_months_lose_bodies_and_checkpoints_but_no_hash(self) -> None:
        for month in (8, 9, 10, 11):
            self.month(2026, month, entries=130)
        _first, second = Log.objects.order_by("number")[:2]
        end = Log.objects.get(number=3).first_seq
        leaves = [bytes(leaf) for leaf in AuditEntry.objects.order_by("seq").values_list("leaf", flat=True)]
        old = list(Checkpoint.objects.filter(log=second.number).order_by("size"))
        proofs = [merkle.inclusion_proof(proving.tree_of(second), index, old[-1].size) for index in (0, 5, 200)]
        self.prune(1)
        rows = AuditEntry.objects.filter(seq__lt=end)
        assert {row.source for row in rows} == {"log"}
        assert rows.count() == 2
        assert AuditEntry.objects.filter(seq__gte=end, source="site").count() == 4 * 130
        left = list(Checkpoint.objects.filter(log=second.number).order_by("size"))
        assert [row.size for row in left] == [132, 263]  # the last of each hour
        tree = proving.tree_of(second)
        for index, proof in zip((0, 5, 200), proofs, strict=True):
            assert merkle.inclusion_proof(tree, index, old[-1].size) == proof
            leaf = leaves[second.first_seq + index]
            assert merkle.verify_inclusion(leaf, index, old[-1].size, proof, bytes(left[-1].root))
        consistent = merkle.consistency_proof(tree, left[0].size, left[1].size)
        roots = [bytes(row.root) for row in left]
        assert merkle.verify_consistency(left[0].size, left[1].size, *roots, consistent)
        assert merkle.root_at(tree, old[-1].size) == bytes(old[-1].root)
        assert Walk().step(100_000) is None, "what is left still holds"
        assert not triggers.missing(self.connection)

    def test_the_log_says_that_it_was_pruned_before_anything_goes(self) -> None:
        self.month(2026, 9)
        self.month(2026, 11)
        AuditRetention(1, clock=self.clock).run(self.connection)
        before = AuditEntry.objects.count()
        assert before == 18
        self.prune(1)
        body = json.loads(AuditEntry.objects.order_by("-seq")[0].body)
        assert (body["action"], body["data"]) == ("audit.pruned", {"entries_through": "1"})
        assert AuditEntry.objects.filter(log=1).count() == 1
        self.prune(1)
        assert [action for action in self.actions() if action == "audit.pruned"] == ["audit.pruned"]

    def test_the_log_goes_on_behind_what_was_pruned_also_in_a_new_process(self) -> None:
        self.month(2026, 9)
        self.clock.now = moment(2026, 12)
        self.log()
        self.prune(1)
        record("a.later")
        self.log(self.make_sequencer())
        assert AuditEntry.objects.get(action="a.later").number == 7
        last = Checkpoint.objects.order_by("-id")[0]
        key = self.sequencer._signer.key
        name = notes.parse(last.note).origin.rpartition("/")[0]
        notes.verify(last.note, [notes.make_vkey(name, notes.public_bytes(key))])

    def test_numbers_go_on_where_all_entries_of_a_source_were_pruned(self) -> None:
        self.month(2026, 9)
        self.clock.now = moment(2026, 12)
        self.log()
        self.prune(1)
        assert not AuditEntry.objects.filter(source="usage").exists()
        settle(usage())
        self.log(self.make_sequencer())
        assert AuditEntry.objects.get(source="usage").number == 3

    def test_batches_of_pruned_months_go_but_the_newest_of_each_owner(self) -> None:
        self.month(2026, 8)
        self.month(2026, 9)
        self.month(2026, 11)
        self.prune(1)
        found = UsageBatch.objects.order_by("id").values_list("owner", "number")
        assert list(found) == [("w2", 2), ("w1", 3), ("w1", 4)]
        assert LoggedBatch.objects.count() == 2

    def test_the_month_that_grows_is_never_pruned(self) -> None:
        self.month(2026, 9)
        self.clock.now = moment(2027, 9)
        self.prune(1)
        assert AuditEntry.objects.filter(log=1).count() == 9

    def test_a_shorter_last_tile_is_kept(self) -> None:
        self.month(2026, 9, entries=150)
        self.clock.now = moment(2026, 12)
        self.log()
        self.prune(1)
        sizes = [len(bytes(tile.hashes)) // 32 for tile in Tile.objects.filter(log=1, level=0).order_by("index")]
        assert sizes == [256, 303 - 256]

    def test_usage_rows_that_go_are_told_with_the_month_their_batch_was_logged_in(self) -> None:
        self.month(2026, 9)
        self.month(2026, 11)
        rollups.set_state(self.connection, rollups.ROLLED_UP, 10**9)
        oldest = Usage.objects.order_by("id")[0].at.timestamp()
        assert usage_retention.delete_usage(self.connection, before_s=oldest + 3600, limit=1) == 1
        self.log()
        told = [
            json.loads(row.body)["data"] for row in AuditEntry.objects.filter(action="audit.pruned").order_by("seq")
        ]
        assert told == [{"usage_through": "1"}]
        assert usage_retention.delete_usage(self.connection, before_s=oldest + 3600, limit=3) == 3
        self.log()
        assert usage_retention.delete_usage(self.connection, before_s=oldest + 3600, limit=9) == 4
        self.log(self.make_sequencer())
        told = [
            json.loads(row.body)["data"] for row in AuditEntry.objects.filter(action="audit.pruned").order_by("seq")
        ]
        assert told == [{"usage_through": "1"}, {"usage_through": "2"}]
        assert state(self.connection.alias, "usage_through") == "2"
        assert growing.state(self.connection.alias, "usage_pruned") == str(UsageBatch.objects.order_by("-id")[0].pk)
