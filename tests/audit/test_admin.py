"""The log in admin: lists, single entries, histories of rows, and the page about verification."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from django.db import connections
from django.test.utils import CaptureQueriesContext

from audit import admin as pages
from audit import checking
from audit.models import AuditEntry, AuditState, OutboxEntry, Subject
from audit.record import record
from budgets import access
from budgets.models import Usage
from budgets.usage_leaf import record_of
from tests.admin_case import AdminTestCase
from tests.audit.small_log import START, SmallLog
from tests.audit.test_proving import changed

pytestmark = pytest.mark.database

LIST, ENTRY, VERIFICATION = "audit_auditentry_changelist", "audit_auditentry_change", "audit_verification"
RID = "0198c0ffee00" + "0" * 20


class LogPages(AdminTestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        super().setUpTestData()
        log = cls.log = SmallLog()
        log.open()
        for number in range(60):
            log.add(
                "route.changed", actor="ada", target=f"r{number}", data={"fields": {"priority": ["1", str(number)]}}
            )
        cls.key_entry = log.add("key.created", actor="bob", target="<i>app</i>", level="warning", data={"note": "<b>"})
        cls.personal = log.add("operator.signed_in", actor="eve", target="eve", about=True, personal={"address": "::1"})
        AuditState.objects.create(name="keys", value=json.dumps([{"epoch": 1, "vkey": log.vkey}]))
        log.checkpoint()

    def rows(self, query: str = "") -> list[int]:
        html = self.page(LIST, query=query)
        return [int(seq) for seq in re.findall(r'<span class="hoosh-number quiet">(\d+)</span>', html)]

    def usage(self) -> Usage:
        ids = dict.fromkeys(("key_id", "agent_id", "team_id", "pool_id"), 1)
        row = Usage.objects.create(rid=RID, at=START, endpoint="chat", model="m", status=200, **ids)
        row.refresh_from_db()
        return row


class ListTest(LogPages):
    def test_pages_follow_each_other_newest_first(self) -> None:
        assert self.rows() == list(range(62, 12, -1))
        older = re.search(r'href="(\?before=[^"]+)" rel="next"', self.page(LIST))
        assert older is not None
        assert self.rows(older[1]) == list(range(12, -1, -1))
        assert 'rel="next"' not in self.page(LIST, query=older[1])

    def test_filters_choose(self) -> None:
        assert self.rows("?kind=key") == [self.key_entry]
        assert self.rows("?level=warning") == [self.key_entry]
        assert self.rows("?source=log") == [0]
        assert self.rows("?kind=route&level=error") == []
        assert self.rows("?time=day") == []
        html = self.page(LIST)
        for kind in ("key", "route", "operator", "log"):
            assert f'href="?kind={kind}"' in html

    def test_a_search_finds_names_actions_numbers_and_requests(self) -> None:
        assert self.rows("?q=eve") == [self.personal]
        assert self.rows("?q=r7") == [8]
        assert self.rows("?q=key.created") == self.rows("?q=key.") == [self.key_entry]
        assert self.rows("?q=17") == [17]
        assert self.rows("?q=9999") == self.rows("?q=nobody") == []
        row = self.usage()
        batch, seq = self.log.batch([record_of(row)])
        Usage.objects.update(batch=batch)
        self.log.checkpoint()
        assert self.rows(f"?q={RID}") == [seq]

    def test_names_are_shown_and_what_is_hostile_is_text(self) -> None:
        html = self.page(LIST)
        assert "eve" in html
        assert "&lt;i&gt;app" in html
        assert self.log.people["eve"].pk not in html

    def test_any_page_takes_few_questions_and_counts_nothing(self) -> None:
        for query in ("", "?kind=route", "?q=ada", "?level=warning", "?before=20"):
            with CaptureQueriesContext(connections[AuditEntry.objects.db]) as seen:
                self.page(LIST, query=query)
            told = [each["sql"] for each in seen if "audit_" in each["sql"]]
            assert len(told) <= 10, told
            assert not [sql for sql in told if "COUNT(" in sql.upper() or "OFFSET" in sql.upper()]

    def test_nothing_can_be_written(self) -> None:
        for path in ("add/", f"{self.key_entry}/delete/"):
            assert self.client.get(f"/admin/audit/auditentry/{path}").status_code == 403
        body = AuditEntry.objects.get(seq=self.key_entry).body
        assert self.client.post(self.url(ENTRY, self.key_entry), {"body": "x"}).status_code == 403
        assert AuditEntry.objects.get(seq=self.key_entry).body == body

    def test_only_who_may_see_the_log_sees_it(self) -> None:
        self.allow(self.bob, "view_pool")
        for name, *arguments in ((LIST,), (ENTRY, 3), (VERIFICATION,), ("audit_proof",), ("audit_verifier",)):
            assert self.client.get(self.url(name, *arguments)).status_code == 403
        self.allow(self.bob, "view_auditentry")
        for name, *arguments in ((LIST,), (ENTRY, 3), (VERIFICATION,)):
            self.page(name, *arguments)


class EntryTest(LogPages):
    def test_a_change_is_a_table_of_before_and_after(self) -> None:
        html = self.page(ENTRY, 8)
        assert re.search(r"priority</th><td><del>1</del></td><td><ins>7</ins>", html)
        assert "leaf 8 of the log 2026-11" in html
        assert bytes(AuditEntry.objects.get(seq=8).leaf).hex() in html

    def test_what_is_sealed_is_shown_until_the_person_is_erased(self) -> None:
        html = self.page(ENTRY, self.personal)
        assert re.search(r"address</dt><dd>::1 <span[^>]*>sealed", html)
        Subject.objects.filter(name="eve").update(name="", key=None)
        html = self.page(ENTRY, self.personal)
        assert "::1" not in html
        assert "erased" in html

    def test_hostile_text_is_text(self) -> None:
        html = self.page(ENTRY, self.key_entry)
        assert "&lt;b&gt;" in html
        assert "<i>app" not in html

    def test_a_changed_entry_says_so(self) -> None:
        assert "was changed" not in self.page(ENTRY, 8)
        changed("audit_entry", "UPDATE audit_entry SET level = 'error' WHERE seq = 8")
        assert "This entry was changed" in self.page(ENTRY, 8)

    def test_its_proof_is_a_file(self) -> None:
        response = self.client.get(self.url("audit_proof") + "?of=8")
        assert response["Content-Disposition"] == 'attachment; filename="proof-8.json"'
        assert json.loads(response.content)["index"] == "8"


class VerificationTest(LogPages):
    def test_it_shows_checkpoint_keys_and_state(self) -> None:
        html = self.page(VERIFICATION)
        assert self.log.vkey in html.replace("&#x27;", "'")
        assert self.log.notes[-1].split("\n")[2] in html
        assert ">valid</span>" in html
        assert "every entry was verified" in html

    def test_before_there_is_a_log_it_is_empty(self) -> None:
        for table in ("audit_entry", "audit_checkpoint", "audit_log"):
            changed(table, f"DELETE FROM {table}")
        AuditState.objects.all().delete()
        assert ">empty</span>" in self.page(VERIFICATION)
        assert self.rows() == []

    def test_a_fault_stands_on_top_and_on_the_first_page(self) -> None:
        changed("audit_entry", "DELETE FROM audit_entry WHERE seq = 30")
        checking.Checker().run(connections[AuditEntry.objects.db])
        html = self.page(VERIFICATION)
        assert ">broken</span>" in html
        assert "Entry 30 is missing" in html
        assert "Entry 30 is missing" in self.page("index")

    def test_a_keeper_that_stands_still_is_told(self) -> None:
        detail = "The signing key cannot be read."
        AuditState.objects.create(name="keeper", value=json.dumps({"state": "key", "detail": detail}))
        for name in (VERIFICATION, "index"):
            html = self.page(name)
            assert "Nothing is being logged" in html
            assert detail in html

    def test_a_request_is_proven_or_it_says_why_not(self) -> None:
        self.usage()
        address = self.url("audit_proof") + "?of="
        for text, words in (
            ("", "Give the number"),
            ("hello", "Give the number"),
            ("0" * 32, "No request has this id"),
            (RID, "before the log began"),
            ("99", "There is no entry 99"),
        ):
            html = self.clean_html(self.client.get(address + text, follow=True))
            assert words in html
        batch, _seq = self.log.batch([record_of(Usage.objects.get())])
        Usage.objects.update(batch=batch)
        self.log.checkpoint()
        response = self.client.get(address + RID.upper())
        assert json.loads(json.loads(response.content)["usage"])["id"] == RID

    def test_the_verifier_can_be_taken_away(self) -> None:
        assert self.client.get(self.url("audit_verifier")).content == pages.VERIFIER.read_bytes()


class HistoryTest(LogPages):
    def log_all(self) -> None:
        """What is recorded comes into the log."""
        for row in OutboxEntry.objects.order_by("pk"):
            self.log.add(row.action, actor=row.actor, target=row.target, data=row.data)
            row.delete()
        self.log.checkpoint()

    def history(self, name: str, row: Any) -> str:
        return self.page(f"{name}_history", row.pk)

    def test_a_row_has_its_history_under_all_its_names(self) -> None:
        team = access.save_team(access.Team(name="red"), actor="ada")
        other = access.save_team(access.Team(name="blue"), actor="ada")
        team.name = "crimson"
        access.save_team(team, actor="bob")
        assert "2 more are on their way" in self.history("budgets_team", team)
        self.log_all()
        html = self.history("budgets_team", team)
        assert [each in html for each in ("team.created", "team.changed", "bob", "<del>red</del>", "blue")] == [
            *(True, True, True, True, False)
        ]
        assert "then called “red”" in html
        assert "blue" in self.history("budgets_team", other)

    def test_every_kind_of_page_has_one(self) -> None:
        record("x.y")
        self.post(
            "auth_user_change",
            {"username": "bobby", "date_joined_0": "2026-01-01", "date_joined_1": "0:00"},
            self.bob.pk,
        )
        self.log_all()
        html = self.history("auth_user", self.bob)
        assert "user.changed" in html
        assert "bobby" in html
        pool = access.default_pool("test")
        assert "no entry about this" not in self.history("budgets_pool", pool) or OutboxEntry.objects.exists()

    def test_a_row_that_is_not_there_leads_home_and_a_stranger_is_refused(self) -> None:
        response = self.client.get(self.url("budgets_team_history", 999))
        assert response.status_code == 302
        team = access.save_team(access.Team(name="red"), actor="ada")
        self.allow(self.bob, "view_pool")
        assert self.client.get(self.url("budgets_team_history", team.pk)).status_code == 403
