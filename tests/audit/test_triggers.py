"""The database keeps the log's rows as they are and numbers what is on its way into it."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf import settings
from django.db import DatabaseError, connections, transaction
from django.test import TransactionTestCase

from audit import triggers
from audit.models import AuditEntry, Checkpoint, LedgerOutboxEntry, Log, LoggedBatch, OutboxEntry, Tile, UsageBatch
from audit.record import record

pytestmark = pytest.mark.database


def rows() -> list[Any]:
    """One row of each table of the log."""
    fields = {"log": 1, "at": "2026-11-01T00:00:00Z", "source": "site", "number": 1, "action": "a", "level": "info"}
    return [
        AuditEntry.objects.create(seq=0, body="{}", leaf=b"x", **fields),
        Tile.objects.create(log=1, level=0, index=0, hashes=b"x"),
        Checkpoint.objects.create(log=1, size=1, root=b"x", at=fields["at"], note="n"),
        Log.objects.create(number=1, name="2026-11", first_seq=0),
        UsageBatch.objects.create(owner="w", number=1, count=1, root=b"x", leaves=b"x"),
        LoggedBatch.objects.create(batch=1, seq=0),
    ]


class TriggersCase(TransactionTestCase):
    databases = "__all__"

    def refused(self, statement: str) -> None:
        with (
            self.assertRaisesMessage(DatabaseError, "never changed"),
            transaction.atomic(using=settings.HOOSH_LEDGER_DB),
            connections[settings.HOOSH_LEDGER_DB].cursor() as cursor,
        ):
            cursor.execute(statement)

    def test_no_row_of_the_log_can_be_changed_deleted_or_replaced(self) -> None:
        for row in rows():
            table, key = row._meta.db_table, row._meta.pk.column
            with self.subTest(table):
                self.refused(f"UPDATE {table} SET {key} = {key}")
                self.refused(f"DELETE FROM {table}")
                if connections[settings.HOOSH_LEDGER_DB].vendor == "postgresql":
                    self.refused(f"TRUNCATE {table}")
                else:
                    self.refused(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}")

    def test_a_replacement_that_collides_in_something_else_than_the_key_is_refused_too(self) -> None:
        if connections[settings.HOOSH_LEDGER_DB].vendor == "postgresql":
            self.skipTest("PostgreSQL has no INSERT OR REPLACE")
        rows()
        self.refused("INSERT OR REPLACE INTO audit_log (number, name, first_seq) VALUES (2, '2026-11', 7)")
        self.refused("INSERT OR REPLACE INTO audit_usagebatch SELECT 9, owner, number, 2, root, leaves, at FROM "
                     "audit_usagebatch")  # fmt: skip

    def test_rows_go_where_the_guards_are_taken_away_and_only_there(self) -> None:
        rows()
        connection = connections[settings.HOOSH_LEDGER_DB]
        with triggers.unguarded(connection, ["audit_checkpoint"]):
            Checkpoint.objects.all().delete()
            with pytest.raises(DatabaseError, match="never changed"), transaction.atomic(using=connection.alias):
                AuditEntry.objects.all().delete()
        assert not triggers.missing(connection)
        assert not Checkpoint.objects.exists()
        self.refused("DELETE FROM audit_entry")

    def test_guards_that_were_dropped_are_made_anew(self) -> None:
        connection = connections[settings.HOOSH_LEDGER_DB]
        triggers.remove_guards(connection)
        assert triggers.missing(connection) == list(triggers.GUARDED)
        triggers.after_migrate(self, using=connection.alias)
        assert not triggers.missing(connection)

    def test_numbers_are_contiguous_whatever_is_rolled_back(self) -> None:
        for attempt in range(6):
            try:
                with transaction.atomic():
                    record("a.kept" if attempt % 2 else "a.undone")
                    record("a.kept" if attempt % 2 else "a.undone")
                    try:
                        with transaction.atomic():
                            record("a.inner")
                            raise ZeroDivisionError
                    except ZeroDivisionError:
                        pass
                    if not attempt % 2:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                pass
        found = OutboxEntry.objects.order_by("number").values_list("number", "action")
        assert list(found) == [(number, "a.kept") for number in range(1, 7)]

    def test_numbers_go_on_when_all_rows_are_gone(self) -> None:
        record("a.one")
        OutboxEntry.objects.all().delete()
        record("a.two")
        assert OutboxEntry.objects.get().number == 2

    def test_each_outbox_has_numbers_of_its_own(self) -> None:
        record("a.one")
        LedgerOutboxEntry.objects.create(action="b.one")
        LedgerOutboxEntry.objects.bulk_create([LedgerOutboxEntry(action="b.two"), LedgerOutboxEntry(action="b.three")])
        assert OutboxEntry.objects.get().number == 1
        assert list(LedgerOutboxEntry.objects.order_by("id").values_list("number", flat=True)) == [1, 2, 3]

    def test_on_postgresql_numbers_follow_commits_not_inserts(self) -> None:
        connection = connections["default"]
        if connection.vendor != "postgresql":
            self.skipTest("SQLite has one writer at a time")
        other = connection.copy("other")
        insert = (
            "INSERT INTO audit_outboxentry (at, action, actor, target, about, data, personal, level) "
            "VALUES (now(), %s, '', '', false, '{}', '{}', 'info')"
        )
        try:
            with other.cursor() as cursor:
                other.set_autocommit(False)
                cursor.execute(insert, ["a.first_begun"])
                record("a.first_committed")
                other.commit()
        finally:
            other.close()
        found = OutboxEntry.objects.order_by("number").values_list("number", "action")
        assert list(found) == [(1, "a.first_committed"), (2, "a.first_begun")]
