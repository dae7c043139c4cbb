"""What waits goes into the log: all of it, once, in its order, whatever dies in between."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from django.db import IntegrityError, connections, transaction

from audit import keys, notes, triggers
from audit.growing import BrokenLogError, Tail, state
from audit.models import (
    AuditEntry,
    Checkpoint,
    LedgerOutboxEntry,
    Log,
    LoggedBatch,
    OutboxCounter,
    OutboxEntry,
    PendingBatch,
    Subject,
    Tile,
    UsageBatch,
)
from audit.record import record, record_ledger
from audit.subjects import opened
from audit.walking import Walk
from tests.audit.log_case import LogCase, assert_whole
from tests.audit.test_batches import record as usage
from tests.audit.test_batches import settle

pytestmark = pytest.mark.database


class SequencerCase(LogCase):
    def test_the_first_run_opens_the_log_of_the_month(self) -> None:
        self.log()
        assert self.actions() == ["log.opened"]
        log = Log.objects.get()
        assert (log.number, log.name, log.first_seq) == (1, "2026-11", 0)
        (head,) = self.heads
        key = self.sequencer._signer.key
        vkey = notes.make_vkey(f"hoosh/{notes.instance_of(notes.public_bytes(key))}", notes.public_bytes(key))
        assert notes.verify(head.note, [vkey]).origin == f"{vkey.name}/2026-11"
        assert self.bodies(own=True)[0]["data"] == {"key": str(vkey), "name": "2026-11", "number": "1"}
        assert state(self.connection.alias, "instance") == vkey.name.removeprefix("hoosh/")
        assert_whole()

    def test_entries_stand_in_the_order_of_their_numbers_and_leave_the_outboxes(self) -> None:
        for number in range(5):
            record("a.done", actor="ann", target=f"thing {number}", data={"value": [None, number], "more": {"x": True}})
        record_ledger(self.connection, "balance.corrected", actor="ann", target="pool 7", data={"amount": "-5"})
        self.log()
        found = self.bodies()
        assert [body["target"] for body in found] == [*(f"thing {number}" for number in range(5)), "pool 7"]
        assert [body["number"] for body in found] == ["1", "2", "3", "4", "5", "1"]
        assert found[3]["data"] == {"value": ["null", "3"], "more": {"x": "true"}}
        assert not OutboxEntry.objects.exists()
        assert not LedgerOutboxEntry.objects.exists()
        assert_whole()

    def test_a_run_that_finds_nothing_writes_nothing(self) -> None:
        self.log()
        assert self.sequencer.run(self.connection) is False
        assert (AuditEntry.objects.count(), Checkpoint.objects.count(), len(self.heads)) == (1, 1, 1)

    def test_people_are_ids_and_only_their_key_opens_their_names(self) -> None:
        record("operator.signed_in", actor="ann", target="ann", about=True, personal={"address": "10.1.2.3"})
        record("operator.created", actor="ann", target="bob", about=True, personal={"mail": "b@example.org"})
        record("pool.changed", actor="bob", target="pool 1")
        self.log()
        for text in AuditEntry.objects.values_list("body", flat=True):
            assert not any(word in text for word in ("ann", "bob", "10.1.2.3", "example"))
        known = Subject.objects.in_bulk()
        assert sorted(subject.name for subject in known.values()) == ["ann", "bob"]
        first, second, third = self.bodies()
        assert opened(first, known) == ({"actor": "ann", "target": "ann", "address": "10.1.2.3"}, False)
        assert opened(second, known) == ({"actor": "ann", "target": "bob", "mail": "b@example.org"}, False)
        assert opened(third, known) == ({"actor": "bob"}, False)
        assert first["actor"] == first["target"] == second["actor"]
        assert opened({**first, "number": "9"}, known) == ({}, True)

    def test_batches_are_one_entry_with_their_roots_and_are_logged_once(self) -> None:
        self.log()
        for count in (3, 1):
            settle(*(usage() for _ in range(count)))
        self.log()
        (body,) = self.bodies()
        rows = list(UsageBatch.objects.order_by("id"))
        told = [
            {"count": str(row.count), "number": str(row.number), "owner": row.owner, "root": bytes(row.root).hex()}
            for row in rows
        ]
        assert (body["action"], body["data"]) == ("usage.settled", {"batches": told, "requests": "4"})
        assert list(LoggedBatch.objects.order_by("batch").values_list("batch", "seq")) == [(row.pk, 1) for row in rows]
        assert not PendingBatch.objects.exists()
        self.log()
        assert len(self.bodies()) == 1

    def test_a_thousand_entries_are_several_transactions_each_with_a_checkpoint_and_whole_tiles(self) -> None:
        with transaction.atomic():
            for number in range(1000):
                record("a.done", target=str(number))
        self.log()
        assert [head.size for head in self.heads] == [1, *range(101, 1002, 100)]
        assert list(Tile.objects.order_by("level", "index").values_list("level", "index")) == [(0, 0), (0, 1), (0, 2)]
        assert_whole()
        assert Walk().step(10_000) is None

    def test_a_process_that_begins_tells_the_last_checkpoint_again(self) -> None:
        record("a.done")
        self.log()
        before = list(self.heads)
        self.log(self.make_sequencer())
        assert self.heads == [*before, before[-1]]

    def test_another_process_goes_on_where_the_last_one_ended(self) -> None:
        for size in (3, 255, 1, 256, 300):
            with transaction.atomic():
                for _ in range(size):
                    record("a.done")
            self.log(self.make_sequencer())
        assert_whole()

    def test_what_was_logged_but_not_taken_out_is_not_logged_twice(self) -> None:
        record("a.done")
        kept = OutboxEntry.objects.values().get()
        self.log()
        OutboxEntry.objects.bulk_create([OutboxEntry(**kept)])
        OutboxEntry.objects.filter(pk=kept["id"]).update(number=kept["number"])
        OutboxCounter.objects.update(value=kept["number"])
        record("a.next")
        self.log(self.make_sequencer())
        assert [body["action"] for body in self.bodies()] == ["a.done", "a.next"]
        assert not OutboxEntry.objects.exists()
        assert_whole()

    def test_a_month_has_a_log_of_its_own_tied_to_the_one_before(self) -> None:
        record("a.november")
        self.log()
        last = self.heads[-1]
        self.clock.now = dt.datetime(2026, 12, 1, tzinfo=dt.UTC).timestamp()
        record("a.december")
        self.log()
        self.clock.now = dt.datetime(2026, 11, 30, tzinfo=dt.UTC).timestamp()
        record("a.clock_set_back")
        self.log()
        self.clock.now = dt.datetime(2027, 2, 1, tzinfo=dt.UTC).timestamp()
        self.log(self.make_sequencer())
        assert list(Log.objects.values_list("number", "name", "first_seq")) == [
            (1, "2026-11", 0), (2, "2026-12", 2), (3, "2027-02", 5),
        ]  # fmt: skip
        body = json.loads(AuditEntry.objects.get(seq=2).body)
        assert body["data"]["previous"] == {
            "name": "2026-11", "size": "2", "root": last.root.hex(), "note_sha256": notes.note_hash(last.note),
        }  # fmt: skip
        assert_whole()
        assert Walk().step(10_000) is None

    def test_a_missing_number_is_waited_for_and_then_told(self) -> None:
        for name in ("a.one", "a.two", "a.three", "a.four"):
            record(name)
        OutboxEntry.objects.filter(number__in=(2, 3)).delete()
        self.log()
        assert self.actions() == ["log.opened", "a.one"]
        self.sequencer._site._grace_s = 0
        self.log()
        assert self.actions() == ["log.opened", "a.one", "outbox.gap", "a.four"]
        assert self.bodies(own=True)[2]["data"] == {"source": "site", "from": "2", "to": "3"}
        assert_whole(gaps=(("site", 2, 3),))

    def test_rows_missing_at_the_end_are_told_too(self) -> None:
        record("a.one")
        record("a.two")
        OutboxEntry.objects.all().delete()
        self.log(self.make_sequencer(grace_s=0))
        assert self.actions() == ["log.opened", "outbox.gap"]
        record("a.three")
        self.log()
        assert_whole(gaps=(("site", 1, 2),))

    def test_an_outbox_that_was_restored_from_before_is_numbered_on_and_told(self) -> None:
        for _ in range(5):
            record("a.done")
        self.log()
        OutboxCounter.objects.update(value=2)
        record("a.after_restore")
        self.log(self.make_sequencer())
        assert self.actions()[-2:] == ["outbox.reset", "a.after_restore"]
        assert self.bodies(own=True)[-2]["data"] == {"source": "site", "counter": "3", "last": "5"}
        record("a.later")
        self.log()
        assert_whole()

    def test_without_a_key_nothing_is_appended_and_everything_waits(self) -> None:
        self.log()
        text = self.key_file.read_bytes()
        for odd in (None, b"", b"c2hvcnQ=", b"A" * 43 + b"=", b"-----BEGIN PRIVATE KEY-----\nx", keys.new_key_text()):
            with self.subTest(odd):
                self.key_file.unlink(missing_ok=True)
                if odd is not None:
                    self.key_file.write_bytes(odd)
                record("a.done")
                waiting = self.make_sequencer()
                assert waiting.run(self.connection) is False
                assert self.actions() == ["log.opened"]
                assert json.loads(state(self.connection.alias, "keeper"))["state"] == "key"
        self.key_file.write_bytes(text)
        self.log(waiting)
        assert len(self.bodies()) == 6
        assert json.loads(state(self.connection.alias, "keeper"))["state"] == "ok"
        assert_whole()

    def test_a_log_that_was_changed_is_not_appended_to(self) -> None:
        record("a.one")
        record("a.two")
        self.log()
        with triggers.unguarded(self.connection, ["audit_entry"]):
            AuditEntry.objects.filter(seq=1).update(leaf=b"\0" * 32)
        with pytest.raises(BrokenLogError):
            Tail.load(self.connection.alias)
        record("a.three")
        assert self.make_sequencer().run(self.connection) is False
        assert AuditEntry.objects.count() == 3
        assert json.loads(state(self.connection.alias, "keeper"))["state"] == "broken"

    def test_two_that_append_at_once_make_no_fork(self) -> None:
        first, second = self.sequencer, self.make_sequencer()
        self.log(first)
        self.log(second)
        for number in range(20):
            record("a.done", target=str(number))
            (first, second)[number % 2].run(self.connection)
        self.log(first)
        self.log(second)
        assert [body["target"] for body in self.bodies()] == [str(number) for number in range(20)]
        assert_whole()

    def test_an_entry_under_a_taken_number_dies_on_the_primary_key(self) -> None:
        record("a.done")
        self.log()
        stale = Tail.load(self.connection.alias)
        assert stale is not None
        stale.seq -= 1
        stale.say("a.fork", dt.datetime.now(dt.UTC), {})
        with pytest.raises(IntegrityError), transaction.atomic(using=self.connection.alias):
            stale.commit(self.connection.alias, dt.datetime.now(dt.UTC), self.sequencer._signer.key)
        assert_whole()

    def test_on_postgresql_one_host_keeps_the_log_until_it_is_gone(self) -> None:
        if self.connection.vendor != "postgresql":
            self.skipTest("on SQLite the journals' lock keeps a second process out")
        other: Any = connections["default"].copy("default")
        self.log()
        second = self.make_sequencer()
        try:
            with other.cursor() as cursor:
                cursor.execute("SELECT pg_try_advisory_lock(726002)")
                assert cursor.fetchone() == (False,)
            self.connection.close()
            with other.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_lock(726002)")
            record("a.done")
            assert second.run(self.connection) is False
            assert self.sequencer.run(self.connection) is False
            assert len(self.bodies()) == 0
            with other.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(726002)")
        finally:
            other.close()
        self.log(second)
        assert len(self.bodies()) == 1
