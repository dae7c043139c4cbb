"""The log verified as it grows and again and again, and whatever somebody changes found."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import connections
from django.test import TestCase

from audit import checking, merkle
from audit.checking import Checker
from audit.models import AuditEntry, AuditState, Checkpoint
from audit.walking import Fault, Walk, fault_of
from tests.audit.small_log import SmallLog
from tests.audit.test_proving import changed

pytestmark = pytest.mark.database


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class CheckingCase(TestCase):
    databases = "__all__"

    @classmethod
    def setUpTestData(cls):
        log = cls.log = SmallLog()
        log.open()
        for number in range(60):
            log.add("a.b", actor="ada", target=str(number), source="ledger" if number % 3 else "site")
            if number % 7 == 0:
                log.checkpoint()
        log.checkpoint()

    def setUp(self):
        self.clock = Clock()
        self.found: list[Fault] = []
        self.checker = self.new_checker()

    def new_checker(self, **options: Any) -> Checker:
        return Checker(on_fault=self.found.append, clock=self.clock, **options)

    def run_for(self, seconds: float, checker: Checker | None = None) -> None:
        for _ in range(int(seconds / checking.PERIOD_S)):
            (checker or self.checker).run(connections[AuditEntry.objects.db])
            self.clock.now += checking.PERIOD_S

    def sql(self, table: str, statement: str, *values: object) -> None:
        changed(table, statement, *values)


class GoodTest(CheckingCase):
    def test_a_log_nobody_touched_is_valid_and_all_of_it_was_looked_at(self):
        self.run_for(checking.STORE_S + 2)
        told = checking.look()
        assert (told.valid, told.verified, told.behind, told.round_entries) == (True, 61, 0, 61)
        assert told.round_at
        assert not self.found

    def test_before_there_is_a_log_nothing_is_wrong(self):
        AuditState.objects.all().delete()
        self.sql("audit_checkpoint", "DELETE FROM audit_checkpoint")
        self.run_for(1)
        assert (checking.look().valid, checking.look().verified) == (True, 0)

    def test_what_was_appended_is_verified_by_whoever_asks(self):
        self.run_for(1)
        self.log.add("c.d")
        self.log.checkpoint()
        assert checking.look().verified == 62

    def test_whoever_asks_verifies_only_so_much_and_says_so(self):
        told = checking.look(20)
        assert (told.verified, told.behind, told.valid) == (20, 41, True)

    def test_months_follow_each_other(self):
        for name in ("2026-12", "2027-01"):
            self.log.open(name)
            for _ in range(10):
                self.log.add("a.b")
            self.log.checkpoint()
        self.run_for(2)
        assert (checking.look().verified, checking.look().valid) == (61 + 22, True)

    def test_keys_may_change_with_both_signatures(self):
        self.log.rotate()
        self.log.checkpoint()
        self.log.add("a.b")
        self.log.checkpoint()
        self.run_for(2)
        assert checking.look().valid
        assert Walk().step(1000, key=self.log.vkey) is None

    def test_another_key_than_the_one_that_is_set_is_told(self):
        other = SmallLog().vkey
        fault = Walk().step(1000, key=other)
        assert fault is not None
        assert "another key" in fault.what

    def test_a_walk_continues_where_it_was_kept(self):
        walk = Walk()
        for _ in range(9):
            assert walk.step(7) is None
            walk = Walk.from_dict(json.loads(json.dumps(walk.as_dict())))
        assert walk.seq == 61

    def test_the_round_waits_while_there_is_much_to_do(self):
        self.run_for(5, self.new_checker(busy=lambda: True))
        assert (checking.look().round_at, checking.look().verified) == ("", 61)

    def test_an_idle_log_is_not_written_about(self):
        checker = self.new_checker(round_pause_s=(1e9, 1e9))
        self.run_for(3, checker)
        with self.assertNumQueries(2, using=AuditEntry.objects.db):  # where the newest checkpoint is
            checker.run(connections[AuditEntry.objects.db])

    def test_a_damaged_state_begins_anew(self):
        for text in ("", "[]", "{", '{"front": 3}', '{"front": {"seq": "x"}}'):
            AuditState.objects.update_or_create(name=checking.STATE, defaults={"value": text})
            self.run_for(2, self.new_checker())
            assert checking.look().verified == 61


class TamperedTest(CheckingCase):
    def broken(self, seq: int | None = None) -> Fault:
        """The fault that a new checker finds, which everybody is told then."""
        self.run_for(2)
        assert len(self.found) == 1
        told = checking.look()
        assert (told.valid, told.fault) == (False, self.found[0])
        if seq is not None:
            assert self.found[0].seq == seq
        return self.found[0]

    def test_a_changed_body(self):
        self.sql("audit_entry", "UPDATE audit_entry SET body = replace(body, '\"17\"', '\"18\"') WHERE seq = 18")
        self.broken(18)

    def test_a_changed_body_with_its_hash(self):
        row = AuditEntry.objects.get(seq=18)
        body = row.body.replace('"17"', '"99"')
        leaf = merkle.leaf_hash(body.encode())
        self.sql("audit_entry", "UPDATE audit_entry SET body = %s, leaf = %s, target = '99' WHERE seq = 18", body, leaf)
        fault = self.broken()
        assert fault.seq <= 18
        assert "18" in fault.what or "Entries" in fault.what

    def test_a_column_that_lists_are_filtered_by(self):
        for column, value in (
            ("actor", "s-0"),
            ("level", "error"),
            ("target", "x"),
            ("at", "2026-11-05 09:30:00+00:00"),
        ):
            with self.subTest(column):
                row = AuditEntry.objects.get(seq=20)
                self.sql("audit_entry", f"UPDATE audit_entry SET {column} = %s WHERE seq = 20", value)
                fault = Walk().step(1000)
                assert fault is not None
                assert fault.seq == 20
                assert fault_of(AuditEntry.objects.get(seq=20)) == fault
                old = getattr(row, column)
                self.sql("audit_entry", f"UPDATE audit_entry SET {column} = %s WHERE seq = 20", str(old))

    def test_a_deleted_entry(self):
        self.sql("audit_entry", "DELETE FROM audit_entry WHERE seq = 30")
        self.broken(30)

    def test_the_last_entries_cut_off(self):
        self.run_for(2)
        self.sql("audit_entry", "DELETE FROM audit_entry WHERE seq > 57")
        self.sql("audit_checkpoint", "DELETE FROM audit_checkpoint WHERE size > 58")
        self.broken(58)

    def test_everything_gone(self):
        self.run_for(2)
        self.sql("audit_entry", "DELETE FROM audit_entry")
        self.sql("audit_checkpoint", "DELETE FROM audit_checkpoint")
        self.broken(0)

    def test_a_checkpoint_of_another_root(self):
        row = Checkpoint.objects.get(size=9)
        self.sql("audit_checkpoint", "UPDATE audit_checkpoint SET root = %s WHERE id = %s", b"x" * 32, row.pk)
        assert "checkpoint 9" in self.broken().what

    def test_a_checkpoint_with_a_changed_note(self):
        note = Checkpoint.objects.get(size=9).note
        for changed_note in (note.replace("epoch 1", "epoch 2"), note[:-5] + "AAA=\n", ""):
            self.sql("audit_checkpoint", "UPDATE audit_checkpoint SET note = %s WHERE size = 9", changed_note)
            fault = Walk().step(1000)
            assert fault is not None
            assert "Checkpoint 9" in fault.what

    def test_a_checkpoint_taken_out_of_the_middle(self):
        self.sql("audit_checkpoint", "DELETE FROM audit_checkpoint WHERE size = 9")
        assert "does not follow" in self.broken().what

    def test_an_event_that_never_came_into_the_log(self):
        self.log._numbers["site"] += 1
        self.log.add("a.b")
        self.log.checkpoint()
        assert "of 'site' comes" in self.broken(61).what

    def test_what_was_verified_before_is_found_changed_by_the_next_round(self):
        self.run_for(2)
        self.sql("audit_entry", "UPDATE audit_entry SET body = replace(body, '\"17\"', '\"18\"') WHERE seq = 18")
        self.run_for(2)
        assert not self.found
        self.run_for(checking.ROUND_PAUSE_S[0])
        assert [fault.seq for fault in self.found] == [18]
        assert not checking.look().valid

    def test_a_fault_stays_until_a_whole_round_went_by_without_one(self):
        row = AuditEntry.objects.get(seq=18)
        self.run_for(2)
        self.sql("audit_entry", "UPDATE audit_entry SET level = 'error' WHERE seq = 18")
        self.run_for(70)
        assert not checking.look().valid
        self.sql("audit_entry", "UPDATE audit_entry SET level = %s WHERE seq = 18", row.level)
        assert not checking.look().valid
        self.run_for(checking.RETRY_S + 2)
        assert checking.look().valid  # the fault's end is stored at once
        assert len(self.found) == 1

    def test_a_fault_is_told_once_however_often_it_is_met(self):
        self.sql("audit_entry", "DELETE FROM audit_entry WHERE seq = 30")
        self.run_for(200)
        assert len(self.found) == 1
        self.run_for(2, self.new_checker())  # and after a restart
        assert len(self.found) == 1

    def test_a_listener_that_fails_does_not_keep_the_fault_secret(self):
        def fail(_fault: Fault) -> None:
            raise RuntimeError("no")

        checker = Checker(on_fault=fail, clock=self.clock)
        self.sql("audit_entry", "DELETE FROM audit_entry WHERE seq = 30")
        with self.assertLogs("hoosh.audit"):
            self.run_for(1, checker)
        assert not checking.look().valid
