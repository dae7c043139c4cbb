"""Questions asked ahead: writing them, their page in admin, and what workers are told."""

from __future__ import annotations

import pytest
from django.core.exceptions import ValidationError
from django.test import TestCase

from audit.models import OutboxEntry
from budgets import access, keys, warming
from budgets.models import ApiKey, WarmQuestion
from budgets.records import WarmRecord
from tests.admin_case import AdminTestCase

pytestmark = pytest.mark.database


def key() -> ApiKey:
    agent = access.agent_named("team", "agent", actor="a")
    return keys.create_key(agent, access.default_pool("a"), "k", actor="a")[0]


class ServiceTests(TestCase):
    databases = "__all__"

    def test_workers_are_told_what_is_enabled_and_when_that_changes(self) -> None:
        self.assertNotIn("warming", access.sequences())
        made = key()
        row = warming.save_question(WarmQuestion(key=made, model="m", system=" S ", question="Q?\n"), actor="a")
        off = warming.save_question(WarmQuestion(key=made, model="m", question="Off?", enabled=False), actor="a")
        self.assertEqual(warming.records(), [WarmRecord(row.pk, made.pk, "m", " S ", "Q?\n")])
        self.assertEqual(access.sequences()["warming"], 2)
        warming.save_question(row, actor="a")
        self.assertEqual(access.sequences()["warming"], 2, "nothing changed")
        row.enabled = False
        warming.save_question(row, actor="a")
        warming.delete_question(off, actor="a")
        self.assertEqual((access.sequences()["warming"], warming.records()), (4, []))
        actions = OutboxEntry.objects.filter(action__startswith="warm_question").values_list("action", flat=True)
        told = ["created", "created", "changed", "deleted"]
        self.assertEqual(list(actions.order_by("id")), [f"warm_question.{what}" for what in told])

    def test_their_texts_are_in_no_entry_of_the_audit_log(self) -> None:
        row = warming.save_question(
            WarmQuestion(key=key(), model="m", system="Say nothing", question="Who?"), actor="a"
        )
        row.question = "Whom?"
        warming.save_question(row, actor="a")
        warming.delete_question(row, actor="a")
        told = list(OutboxEntry.objects.filter(action__startswith="warm_question").values_list("target", "data"))
        self.assertEqual(len(told), 3)
        self.assertNotRegex(str(told), "Who|Say")
        self.assertEqual(told[1][1]["fields"].keys(), {"question"})
        self.assertNotEqual(*told[1][1]["fields"]["question"])
        self.assertEqual({data["object"] for _, data in told}, {told[0][1]["object"]})

    def test_the_line_ends_of_forms_become_those_of_clients(self) -> None:
        row = WarmQuestion(key=key(), model="m", system="a\r\nb", question="c\r\nd\r\n")
        warming.save_question(row, actor="a")
        row.refresh_from_db()
        self.assertEqual((row.system, row.question), ("a\nb", "c\nd\n"))

    def test_what_no_request_can_carry_is_refused(self) -> None:
        made = key()
        for fields in (
            {"model": ""},
            {"model": "gpt-*"},
            {"question": ""},
            {"question": " \n"},
            {"question": "a\0"},
            {"question": "x" * 8001},
            {"system": "\n"},
            {"system": "x" * 32_001},
        ):
            with self.assertRaises(ValidationError, msg=str(fields)):
                warming.save_question(
                    WarmQuestion(**{"key": made, "model": "m", "question": "Q?", **fields}), actor="a"
                )
        self.assertEqual(WarmQuestion.objects.count(), 0)

    def test_there_is_an_end_to_the_list(self) -> None:
        made = key()
        WarmQuestion.objects.bulk_create(
            WarmQuestion(key=made, model="m", question=f"{number}?") for number in range(warming.QUESTIONS_MAX)
        )
        with self.assertRaisesMessage(ValidationError, "At most 1000"):
            warming.save_question(WarmQuestion(key=made, model="m", question="Q?"), actor="a")
        last = warming.save_question(WarmQuestion(key=made, model="m", question="Q?", enabled=False), actor="a")
        last.enabled = True
        with self.assertRaisesMessage(ValidationError, "At most 1000"):
            warming.save_question(last, actor="a")


class PageTests(AdminTestCase):
    def test_an_operator_makes_changes_and_deletes_a_question(self) -> None:
        made = key()
        form = {"key": made.pk, "model": "m", "system": "a\r\nb ", "question": " Q?", "enabled": "on", "note": ""}
        self.post("budgets_warmquestion_add", form)
        row = WarmQuestion.objects.get()
        self.assertEqual((row.system, row.question, row.key_id), ("a\nb ", " Q?", made.pk))
        assert "Q?" in self.page("budgets_warmquestion_changelist")
        assert "asks a question once" in self.page("budgets_warmquestion_change", row.pk)
        self.post("budgets_warmquestion_change", {**form, "question": "Other?"}, row.pk)
        row.refresh_from_db()
        self.assertEqual(row.question, "Other?")
        self.post("budgets_warmquestion_delete", {"post": "yes"}, row.pk)
        self.assertEqual(WarmQuestion.objects.count(), 0)

    def test_a_wrong_form_says_what_is_wrong(self) -> None:
        form = {"key": key().pk, "model": "gpt-*", "system": "", "question": "  ", "note": ""}
        response = self.post("budgets_warmquestion_add", form)
        html = self.clean_html(response)
        assert "Name one model" in html
        assert WarmQuestion.objects.count() == 0
