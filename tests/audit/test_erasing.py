"""Somebody who is erased is nobody: not in the entries, not in any file, and every proof stays."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connections
from django.test import override_settings

from audit import subjects
from audit.growing import set_state
from audit.models import AuditEntry, OutboxEntry, Subject
from audit.record import record
from audit.sequencer import ERASE
from audit.walking import Walk
from hoosh_site.people import lockout
from hoosh_site.people.models import SignInFailure
from tests.audit.log_case import LogCase, assert_whole

pytestmark = pytest.mark.database

SECRET, ADDRESS = "Quetzalcoatlus-9172", "203.0.113.77"


def files_with(text: str) -> list[str]:
    """The SQLite files, write-ahead logs too, in which a text still is."""
    found = []
    for connection in connections.all():
        for suffix in ("", "-wal", "-journal"):
            path = Path(str(connection.settings_dict["NAME"]) + suffix)
            if path.exists() and text.encode() in path.read_bytes():
                found.append(path.name)
    return found


class ErasingCase(LogCase):
    def sign_ins(self, *, others: int = 0) -> None:
        for number in range(others):
            record("operator.sign_in_refused", target=f"somebody {number * 7919 % 1000}", about=True)
        for _ in range(3):
            personal = {"address": ADDRESS}
            record("operator.sign_in_refused", target=SECRET, about=True, personal=personal, level="warning")
        record("pool.changed", actor=SECRET, target="pool 1")

    def erase(self) -> None:
        (subject,) = subjects.ids_of(SECRET)
        set_state(self.connection.alias, f"{ERASE}{subject}", "")
        self.log()

    def test_entries_about_an_erased_person_stay_and_name_nobody(self) -> None:
        self.sign_ins()
        self.log()
        before = list(AuditEntry.objects.order_by("seq").values_list("body", flat=True))
        self.erase()
        row = Subject.objects.get()
        assert (row.name, row.key) == ("", None)
        assert row.erased_at is not None
        after = list(AuditEntry.objects.order_by("seq").values_list("body", flat=True))
        assert after[: len(before)] == before
        told = json.loads(after[-1])
        assert (told["action"], told["target"], told["data"]) == ("subject.erased", row.pk, {"subject": row.pk})
        for body in before[1:]:
            assert subjects.opened(json.loads(body), Subject.objects.in_bulk()) == ({}, True)
        assert_whole()
        assert Walk().step(1000) is None

    def test_who_comes_back_is_somebody_else(self) -> None:
        self.sign_ins()
        self.log()
        (old,) = subjects.ids_of(SECRET)
        self.erase()
        self.sign_ins()
        self.log()
        (new,) = subjects.ids_of(SECRET)
        assert new != old
        assert_whole()

    def test_nothing_of_an_erased_person_is_in_any_file(self) -> None:
        if self.connection.vendor != "sqlite":
            self.skipTest("PostgreSQL overwrites when it vacuums")
        self.sign_ins(others=300)
        assert files_with(SECRET)
        self.log()
        self.sign_ins(others=300)
        self.log()
        self.erase()
        assert files_with(SECRET) == []
        assert files_with(ADDRESS) == []
        assert not OutboxEntry.objects.exists()
        assert_whole()

    def test_erasing_nobody_or_twice_writes_nothing(self) -> None:
        self.log()
        set_state(self.connection.alias, f"{ERASE}s-{'0' * 32}", "")
        self.log()
        assert self.actions() == ["log.opened"]

    def test_the_command_logs_what_waits_and_then_erases(self) -> None:
        self.sign_ins()
        out = io.StringIO()
        with override_settings(HOOSH_KEYS_DIR=self.directory, HOOSH_JOURNAL_DIR=self.directory / "journal"):
            (self.directory / "journal").mkdir()
            call_command("audit_erase", SECRET, "--json", stdout=out)
            with pytest.raises(CommandError, match="knows nobody"):
                call_command("audit_erase", SECRET)
        row = Subject.objects.get()
        assert json.loads(out.getvalue()) == {"subjects": [row.pk], "failed_sign_ins": 0}
        assert (row.name, row.key, self.actions()[-1]) == ("", None, "subject.erased")
        assert_whole()

    def test_the_command_deletes_what_was_counted_of_failed_sign_ins_and_names_nobody_doing_it(self) -> None:
        for _ in range(50):  # enough for every lock there is
            lockout.begin(SECRET, ADDRESS).failed()
            lockout.begin(SECRET, "198.51.100.9").failed()
        lockout.begin("somebody else", ADDRESS)
        assert OutboxEntry.objects.filter(action="operator.locked_out").exists()
        out = io.StringIO()
        with override_settings(HOOSH_KEYS_DIR=self.directory, HOOSH_JOURNAL_DIR=self.directory / "journal"):
            (self.directory / "journal").mkdir()
            call_command("audit_erase", SECRET, "--json", stdout=out)
            assert json.loads(out.getvalue())["failed_sign_ins"] == 3, "the name from two addresses, and the name"
            self.log()
        left = set(SignInFailure.objects.values_list("name", "address"))
        assert left == {("", ADDRESS), ("", "198.51.100.9"), ("somebody else", ADDRESS), ("somebody else", "")}
        assert not Subject.objects.filter(name__icontains=SECRET).exists()
        assert "operator.unlocked" not in self.actions()
        if self.connection.vendor == "sqlite":
            assert [files_with(each) for each in (SECRET, SECRET.casefold())] == [[], []]
        assert_whole()
