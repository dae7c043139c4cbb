"""Pages of the log's entries, with filters, and entries as people read them."""

from __future__ import annotations

import datetime as dt

import pytest
from django.db import connections
from django.test import TestCase
from django.test.utils import CaptureQueriesContext

from audit import reading
from audit.models import AuditEntry, Subject
from audit.reading import Question
from tests.audit.small_log import START, SmallLog

pytestmark = pytest.mark.database


class ReadingTest(TestCase):
    databases = "__all__"

    @classmethod
    def setUpTestData(cls):
        log = cls.log = SmallLog()
        log.open()
        for number in range(40):
            log.add("route.changed", actor="ada", target=f"r{number % 4}", data={"fields": {"a": ["1", str(number)]}})
            log.add("key.created", actor="bob" if number % 2 else "ada", target="app", level="warning")
        log.add("key.revoked", actor="bob", target="carl", about=True, personal={"address": "192.0.2.7"})
        log.add("keys.counted", source="ledger")
        log.checkpoint()

    def seqs(self, limit: int = 1000, **asked: object) -> list[int]:
        return [row.seq for row in reading.page(Question(**asked), limit).entries]

    def all(self, **columns: object) -> list[int]:
        return list(AuditEntry.objects.filter(**columns).order_by("-seq").values_list("seq", flat=True))

    def test_pages_follow_each_other_without_gap_or_repetition(self):
        seen, before = [], None
        while True:
            page = reading.page(Question(before=before), 7)
            seen += [row.seq for row in page.entries]
            if page.next is None:
                break
            before = page.next
        assert seen == list(range(82, -1, -1))

    def test_a_page_that_ends_with_the_last_entry_has_no_next_one(self):
        assert reading.page(Question(), 83).next is None
        assert reading.page(Question(), 82).next == 1

    def test_entries_about_a_row_are_found_along_their_index(self):
        """SQLite uses an index of some rows only where the condition says in its words that the row is in it."""
        made = AuditEntry.objects.latest("seq")
        for seq in range(1000, 1003):
            made.pk, made.number, made.object = seq, seq, f"providers.route:{seq % 2}"
            made.save(force_insert=True)
        assert self.seqs(object="providers.route:0") == [1002, 1000]
        connection = connections[AuditEntry.objects.db]
        if connection.vendor == "sqlite":
            with CaptureQueriesContext(connection) as seen:
                reading.page(Question(object="providers.route:0"), 10)
            (sql,) = [each["sql"] for each in seen.captured_queries if '"audit_entry"."object" = ' in each["sql"]]
            with connection.cursor() as cursor:
                cursor.execute(f"EXPLAIN QUERY PLAN {sql}")
                assert "audit_entry_object" in str(cursor.fetchall())

    def test_an_action_is_exact_and_with_a_dot_the_beginning_of_several(self):
        assert self.seqs(action="key.created") == self.all(action="key.created")
        assert self.seqs(action="key.") == self.all(action__startswith="key.")
        assert self.seqs(action="key") == []
        assert self.seqs(action="zzz.") == []

    def test_actors_are_found_by_their_names(self):
        bob = self.log.people["bob"].pk
        assert self.seqs(actor="bob") == self.all(actor=bob) == self.seqs(actor=bob)
        assert self.seqs(actor="nobody") == []

    def test_targets_are_things_or_people(self):
        assert self.seqs(target="r3") == self.all(target="r3")
        assert len(self.seqs(target="carl")) == 1

    def test_filters_are_all_fulfilled(self):
        assert self.seqs(action="key.", actor="bob", level="warning") == self.all(
            action="key.created", actor=self.log.people["bob"].pk
        )
        assert self.seqs(action="route.changed", target="r1", level="warning") == []

    def test_levels_and_sources_are_filters(self):
        assert self.seqs(level="warning") == self.all(level="warning")
        assert self.seqs(level="info") == self.all(level="info")
        assert self.seqs(source="ledger") == self.all(source="ledger")

    def test_a_stretch_of_time_is_exact_at_both_ends(self):
        moments = dict(AuditEntry.objects.values_list("seq", "at"))
        assert self.seqs(since=moments[20], until=moments[30]) == list(range(29, 19, -1))
        assert self.seqs(since=START + dt.timedelta(days=3)) == []
        assert self.seqs(until=START) == []

    def test_what_was_logged_late_is_still_found_by_its_time(self):
        late = self.log.add("late.entry", at=START - dt.timedelta(hours=2))
        self.log.add("far.later", at=START + dt.timedelta(days=30))
        self.log.checkpoint()
        assert self.seqs(until=START) == [late]
        assert late in self.seqs(since=START - dt.timedelta(hours=3), until=START + dt.timedelta(seconds=1))

    def test_a_search_that_takes_too_long_says_where_it_stopped(self):
        before, reading.SEARCHED = reading.SEARCHED, 30
        try:
            first = reading.page(Question(source="ledger", level="info", before=82), 5)
            assert (list(first.entries), first.next) == ([], 52)
            found = reading.page(Question(level="info", target="", source="site"), 100)
            assert found.next == found.entries[-1].seq or found.next == 82 - 29
        finally:
            reading.SEARCHED = before

    def test_what_is_sealed_is_opened_with_the_names_of_people(self):
        (found,) = reading.readable(reading.page(Question(action="key.revoked"), 1).entries)
        assert (found.actor, found.target, found.is_erased) == ("bob", "carl", False)
        assert found.personal == {"address": "192.0.2.7"}
        assert found.message == "bob: key.revoked carl"
        assert found.index == found.entry.seq

    def test_who_was_erased_is_told_as_erased(self):
        Subject.objects.filter(name="carl").update(name="", key=None)
        Subject.objects.filter(name="bob").update(name="", key=None)
        (found,) = reading.readable(reading.page(Question(action="key.revoked"), 1).entries)
        assert (found.actor, found.target, found.personal, found.is_erased) == ("erased", "erased", {}, True)

    def test_a_page_of_people_takes_two_questions_however_long_it_is(self):
        entries = reading.page(Question(), 80).entries
        using = AuditEntry.objects.db
        with self.assertNumQueries(2, using=using):
            reading.readable(entries)

    def test_a_sealed_part_that_was_moved_to_another_entry_does_not_open(self):
        row = AuditEntry.objects.get(action="key.revoked")
        other = AuditEntry.objects.filter(action="key.created", actor=row.actor).first()
        row.body = row.body.replace(reading.body_of(row)["sealed"], reading.body_of(other)["sealed"])
        (found,) = reading.readable([row])
        assert found.actor == "erased"

    def test_a_name_is_found_as_actor_and_as_target_and_each_entry_once(self):
        both = self.log.add("user.changed", actor="ada", target="ada", about=True)
        about = self.log.add("user.changed", actor="bob", target="ada", about=True)
        self.log.checkpoint()
        found = self.seqs(name="ada")
        assert found[:2] == [about, both]
        assert len(found) == len(set(found))
        assert set(self.all(actor=self.log.people["ada"].pk)) <= set(found)
        assert self.seqs(name="r1") == self.seqs(target="r1")

    def test_the_entries_of_a_row_are_found_whatever_it_was_called(self):
        first = self.log.add("team.created", target="old", data={"object": "budgets.team:7"})
        self.log.add("team.created", target="old", data={"object": "budgets.team:8"})
        second = self.log.add("team.changed", target="new", data={"object": "budgets.team:7"})
        self.log.checkpoint()
        assert self.seqs(object="budgets.team:7") == [second, first]
