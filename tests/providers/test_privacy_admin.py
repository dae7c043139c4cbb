"""The pages of privacy policies and patterns: forms, refusals in words, and the box to try a text."""

from __future__ import annotations

import logging

import pytest
from django.contrib.admin.models import LogEntry
from django.http import HttpResponse
from django.test import Client

from audit.models import OutboxEntry
from budgets import access
from budgets.models import Team
from providers import services
from providers.models import ConfigVersion, DataPattern, PrivacyPolicy
from providers.privacy.about import ABOUT
from providers.privacy_form import TRIED_MAX
from tests.admin_case import AdminTestCase

pytestmark = pytest.mark.database

MAIL, CARD = "alice.liddell@example.com", "4111 1111 1111 1111"


def policy_form(name="staff", **more):
    """The fields a browser sends for the policy form."""
    return {
        "name": name,
        "default_level": "public",
        "internal": "allow",
        "confidential": "local",
        "restricted": "refuse",
        "scan_tool_results": "on",
        "answer_level": "restricted",
        "answer_action": "redact",
        "disabled": [],
        "note": "",
        **more,
    }


def pattern_form(name="project", source=r"bluebird-\d+", **more):
    """The fields a browser sends for the pattern form."""
    return {"name": name, "source": source, "level": "confidential", "enabled": "on", "note": "", **more}


class PolicyPagesTest(AdminTestCase):
    def add(self, **form) -> HttpResponse:
        return self.post("providers_privacypolicy_add", policy_form(**form))

    def tried(self, text: str, row: PrivacyPolicy | DataPattern) -> HttpResponse:
        return self.post(f"providers_{row._meta.model_name}_try", {"text": text}, row.pk)

    def test_a_policy_is_added_and_published_once(self):
        response = self.add(internal="redact", disabled=["email", "jwt"], scan_answers="on")
        assert response.status_code == 302, self.errors(response)
        row = PrivacyPolicy.objects.get()
        assert (row.internal, row.disabled, row.scan_answers, row.redact_local) == ("redact", "email,jwt", True, False)
        assert self.versions() == 1
        assert OutboxEntry.objects.get(action="privacy_policy.created").actor == "ada"
        page = self.page("providers_privacypolicy_change", row.pk)
        assert page.count(" checked") == 4  # scan_tool_results, scan_answers and the two
        assert "staff" in self.page("providers_privacypolicy_changelist")

    def test_the_form_tells_every_pattern_with_its_level_and_what_it_is(self):
        services.save_data_pattern(DataPattern(name="project", source="x", enabled=False), actor="a")
        page = self.page("providers_privacypolicy_add")
        for name in ABOUT:
            assert f'value="{name}"' in page
        assert "email: an e-mail address" in page
        assert "project: of your own, disabled" in page
        assert page.index("Restricted") < page.index("ssn: ") < page.index("phone_us: ") < page.index("email: ")

    def test_what_cannot_be_is_refused_in_words(self):
        assert "emial is not one of the available choices" in self.errors(self.add(disabled=["emial"]))
        self.add()
        assert "already exists" in self.errors(self.add())
        assert self.versions() == 1

    def test_a_text_is_tried_and_nothing_of_it_is_kept(self):
        self.add(internal="redact")
        self.post("providers_datapattern_add", pattern_form())
        before = (OutboxEntry.objects.count(), LogEntry.objects.count(), ConfigVersion.objects.count())
        row = PrivacyPolicy.objects.get()
        with self.assertNoLogs("", logging.DEBUG):
            response = self.tried(f"<i>{MAIL}</i>\nand bluebird-7, {MAIL}", row)
        page = self.clean_html(response)
        assert f'<mark title="email">{MAIL}</mark>' in page
        assert '<mark title="project">bluebird-7</mark>' in page
        assert "&lt;i&gt;" in page
        assert "<i>" not in page
        assert "Level confidential. It would go to local providers only, with placeholders for email." in page
        assert page.count('<td class="hoosh-mono">email</td><td>internal</td><td>2</td>') == 1
        assert f'action="{self.url("providers_privacypolicy_change", row.pk)}"' in page  # the form saves where it did
        assert "no-store" in response.headers["cache-control"]
        assert before == (OutboxEntry.objects.count(), LogEntry.objects.count(), ConfigVersion.objects.count())
        assert MAIL not in str(list(self.client.session.items()))
        assert MAIL not in self.page("providers_privacypolicy_change", row.pk)
        row.refresh_from_db()
        assert row.internal == "redact"

    def test_each_outcome_is_told(self):
        self.add(internal="redact")
        row = PrivacyPolicy.objects.get()
        for text, said in (
            ("nothing", "Level public. It would pass as it is."),
            (MAIL, "Level internal. It would leave with placeholders instead"),
            ("415-555-0132", "Level confidential. It would go to local providers only."),
            (CARD, "Level restricted. It would be refused."),
        ):
            page = self.clean_html(self.tried(text, row))
            assert said in page
            assert ("Nothing was found." in page) == (text == "nothing")

    def test_what_cannot_be_tried_is_told(self):
        self.add()
        row = PrivacyPolicy.objects.get()
        assert "This field is required." in self.clean_html(self.tried("", row))
        assert f"at most {TRIED_MAX} characters" in self.clean_html(self.tried("x" * (TRIED_MAX + 1), row))
        services.save_data_pattern(DataPattern(name="project", source="x"), actor="a")
        DataPattern.objects.update(source="a(b")
        assert "RE2 does not accept the pattern: missing )" in self.clean_html(self.tried("x", row))
        assert self.client.get(self.url("providers_privacypolicy_try", row.pk)).status_code == 302
        assert self.tried("x", PrivacyPolicy(pk=row.pk + 1)).status_code == 404

    def test_who_may_not_see_a_policy_may_not_try_it(self):
        self.add()
        row = PrivacyPolicy.objects.get()
        self.allow(self.bob)
        assert self.tried(MAIL, row).status_code == 403
        self.allow(self.bob, "view_privacypolicy")
        page = self.clean_html(self.tried(MAIL, row))
        assert f'<mark title="email">{MAIL}</mark>' in page
        assert 'name="_save"' not in page
        strict = Client(enforce_csrf_checks=True)
        strict.force_login(self.ada)
        assert strict.post(self.url("providers_privacypolicy_try", row.pk), {"text": MAIL}).status_code == 403

    def test_a_policy_is_chosen_for_teams_and_for_the_gateway_and_then_not_deleted(self):
        self.add()
        row = PrivacyPolicy.objects.get()
        response = self.post(
            "budgets_team_add", {"name": "blue", "enabled": "on", "privacy_policy": row.pk, "note": ""}
        )
        assert response.status_code == 302, self.errors(response)
        team = Team.objects.get()
        assert team.privacy_policy == row
        page = self.client.post(self.url("providers_privacypolicy_delete", row.pk), {"post": "yes"})
        assert page.status_code == 200
        assert "blue" in page.content.decode()
        assert PrivacyPolicy.objects.exists()
        team.privacy_policy = None
        access.save_team(team, actor="a")
        settings = services.gateway_settings()
        page = self.page("providers_gatewaysettings_change", settings.pk)
        assert 'name="privacy_policy"' in page
        assert self.post("providers_privacypolicy_delete", {"post": "yes"}, row.pk).status_code == 302
        assert not PrivacyPolicy.objects.exists()


class PatternPagesTest(AdminTestCase):
    def add(self, **form) -> HttpResponse:
        return self.post("providers_datapattern_add", pattern_form(**form))

    def test_a_pattern_is_added_and_published_once(self):
        response = self.add(ignore_case="on")
        assert response.status_code == 302, self.errors(response)
        row = DataPattern.objects.get()
        assert (row.name, row.source, row.level, row.ignore_case) == ("project", r"bluebird-\d+", "confidential", True)
        assert self.versions() == 1
        assert r"bluebird-\d+" in self.page("providers_datapattern_changelist")

    def test_an_expression_that_cannot_be_used_is_refused_in_re2s_words(self):
        for source, said in (
            ("blue(bird", "RE2 does not accept the pattern: missing ): blue(bird"),
            (r"(?&lt;!a)b", "invalid"),
            (r"a\1", "RE2 does not accept the pattern: invalid escape sequence"),
            ("x*", "The pattern matches the empty text."),
            ("(x{1000}){1000}", "RE2 does not accept the pattern"),
        ):
            assert said in self.errors(self.add(source=source.replace("&lt;", "<"))), source
        assert "A built-in pattern has this name." in self.errors(self.add(name="email"))
        assert not DataPattern.objects.exists()

    def test_a_text_is_tried_by_one_pattern(self):
        self.add(ignore_case="on", enabled="")
        row = DataPattern.objects.get()
        response = self.post("providers_datapattern_try", {"text": f"Bluebird-1 {MAIL}"}, row.pk)
        page = self.clean_html(response)
        assert '<mark title="project">Bluebird-1</mark>' in page
        assert 'title="email"' not in page
        assert "It would" not in page

    def test_a_pattern_that_a_policy_switches_off_is_neither_renamed_nor_deleted(self):
        self.add()
        self.post("providers_privacypolicy_add", policy_form(disabled=["project"]))
        row = DataPattern.objects.get()
        response = self.post("providers_datapattern_change", pattern_form(name="bird"), row.pk)
        assert "Privacy policies switch “project” off: staff." in self.messages(response)
        response = self.post("providers_datapattern_delete", {"post": "yes"}, row.pk)
        assert "Privacy policies switch “project” off: staff." in self.messages(response)
        assert DataPattern.objects.get().name == "project"
