"""The management API does what admin's buttons do: anomalies, questions asked ahead, moves, sign-ins, certificates."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.test import TestCase
from django.utils import timezone

from audit.models import OutboxEntry
from budgets.models import Anomaly, Team, WarmQuestion
from hoosh_site import home, importing
from hoosh_site.people.models import ExternalIdentity, SecondFactor, SignInFailure, TeamLead
from providers.models import ConfigVersion, Credential, Route
from tests.site.management_case import ManagementCase

pytestmark = pytest.mark.database


class Case(ManagementCase, TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        cls.make_world()

    def actions(self, prefix: str = "") -> list[tuple[str, str]]:
        rows = OutboxEntry.objects.filter(action__startswith=prefix).order_by("pk")
        return [(row.action, row.target) for row in rows]


class WatchingTest(Case):
    def anomaly(self, **more: Any) -> Anomaly:
        figures = {"kind": "spend", "stretch": 1, "unit": "usd", "observed": 2.0, "expected": 1.0, **more}
        return Anomaly.objects.create(agent=self.agent, **figures)

    def test_anomalies_are_listed_filtered_and_acknowledged(self) -> None:
        one = self.anomaly()
        self.anomaly(stretch=2, kind="loop", unit="requests")
        assert [row["kind"] for row in self.ok("GET", "anomalies")["data"]] == ["loop", "spend"]
        (row,) = self.ok("GET", "anomalies?kind=spend&state=open")["data"]
        assert (row["id"], row["agent_name"], row["team"], row["observed"]) == (one.pk, "agent", "team", 2.0)
        told = self.ok("POST", f"anomalies/{one.pk}/acknowledge")
        assert (told["state"], told["acknowledged_by"][:4]) == ("acknowledged", "key:")
        assert self.ok("POST", f"anomalies/{one.pk}/acknowledge") == told, "again is harmless"
        assert len(self.actions("anomaly.")) == 1
        self.refused(404, "POST", "anomalies/999999/acknowledge")
        assert self.call("DELETE", f"anomalies/{one.pk}").status_code == 405

    def test_questions_asked_ahead_are_made_changed_and_deleted(self) -> None:
        fields = {"key": self.admin_key.pk, "model": "gpt-4o", "question": "  Who are you? ", "system": "Be\nbrief."}
        made = self.make("questions-asked-ahead", **fields)
        assert {name: made[name] for name in fields} == fields, "exactly as clients send it"
        item = f"questions-asked-ahead/{made['id']}"
        seen = self.call("GET", item)["ETag"]
        assert self.ok("PATCH", item, {"enabled": False})["enabled"] is False
        assert self.refused(412, "PATCH", item, {"note": "x"}, **{"If-Match": seen})["code"] == "changed_meanwhile"
        assert self.ok("GET", "questions-asked-ahead?enabled=true")["data"] == []
        error = self.refused(400, "POST", "questions-asked-ahead", {"key": 999999, "model": "m", "question": "?"})
        assert error["param"] == "key"
        assert "question" in self.refused(400, "POST", "questions-asked-ahead", {"key": 1, "model": "m"})["fields"]
        assert self.call("DELETE", item).status_code == 204
        assert not WarmQuestion.objects.exists()
        assert [action for action, _ in self.actions("warm_question.")] == [
            f"warm_question.{what}" for what in ("created", "changed", "deleted")
        ]

    def test_what_needs_attention_is_told_as_far_as_one_may_see_it(self) -> None:
        home.forget()
        self.addCleanup(home.forget)
        importing.last_failure = ""  # of another test's file
        self.anomaly()
        SignInFailure.objects.create(
            name="mallory", since=timezone.now(), locked_until=timezone.now() + dt.timedelta(minutes=5)
        )
        lines = self.ok("GET", "attention")["data"]
        assert [(line["kind"], line["tone"]) for line in lines] == [("Anomaly", "warn")], "people are no key's business"
        lines = self.ok("GET", "attention", client=self.signed_in(self.ada))["data"]
        assert [line["kind"] for line in lines] == ["Anomaly", "Sign-in"]
        self.refused(403, "GET", "attention", client=self.signed_in(self.bob))
        self.refused(403, "GET", "attention", key=self.operator)

    def test_an_agent_says_what_becomes_of_it_when_it_behaves_unlike_itself(self) -> None:
        item = f"agents/{self.agent.pk}"
        told = self.ok("PATCH", item, {"anomaly_action": "throttle", "loop_limit": 30, "throttle_rpm": 2})
        assert (told["anomaly_action"], told["loop_limit"], told["throttle_rpm"]) == ("throttle", 30, 2)
        assert told["throttled_until"] is None
        assert self.refused(400, "PATCH", item, {"anomaly_action": "shout"})["param"] == "anomaly_action"

    def test_audit_entries_on_their_way_are_listed(self) -> None:
        OutboxEntry.objects.create(action="thing.happened", data={"a": 1})
        (row,) = self.ok("GET", "audit-entries-on-their-way?action=thing.happened")["data"]
        assert row["data"] == {"a": 1}


class RoutesTest(Case):
    def order(self) -> list[str]:
        return list(Route.objects.order_by("priority", "name").values_list("name", flat=True))

    def test_a_route_is_moved_before_and_behind_another_in_one_version(self) -> None:
        self.provider()
        ids = {name: self.route(name, priority=10)["id"] for name in ("a", "b", "c")}
        versions = ConfigVersion.objects.count()
        with self.captureOnCommitCallbacks(execute=True):
            told = self.ok("POST", f"routes/{ids['c']}/move", {"before": "a"})
        assert self.order() == ["c", "a", "b"]
        assert "c" in told["changed"]
        assert ConfigVersion.objects.count() == versions + 1
        self.ok("POST", f"routes/{ids['c']}/move", {"after": "b"})
        assert self.order() == ["a", "b", "c"]
        for body in ({}, {"before": "a", "after": "b"}, {"before": "c"}, {"before": "nobody"}, {"beside": "a"}):
            self.refused(400, "POST", f"routes/{ids['c']}/move", body)
        self.refused(403, "POST", f"routes/{ids['c']}/move", {"before": "a"}, client=self.signed_in(self.vera))

    def test_what_a_pattern_stands_for(self) -> None:
        self.provider()
        self.route("a", pattern="gpt-4o")
        told = self.ok("GET", "routes/matches?pattern=gpt-*")
        assert [each["name"] for each in told["matching"]] == ["gpt-4o"]
        assert (told["total"], told["problem"]) == (1, "")
        assert self.ok("GET", "routes/matches")["problem"]
        self.refused(400, "GET", "routes/matches?patern=x")


class MatchTest(Case):
    def test_a_secret_stored_meanwhile_is_not_written_over(self) -> None:
        up = self.provider()
        made = self.make(f"providers/{up['id']}/credentials", name="main", secret="sk-one-123456789")
        item = f"providers/{up['id']}/credentials/{made['id']}"
        seen = self.call("GET", item)["ETag"]
        self.ok("PATCH", item, {"secret": "sk-two-123456789"})
        self.refused(412, "PATCH", item, {"secret": "sk-three-1234567"}, **{"If-Match": seen})
        self.refused(412, "DELETE", item, **{"If-Match": seen})
        assert Credential.objects.get().revision == 2

    def test_if_match_on_a_certificate_that_is_not_there_is_412(self) -> None:
        up = self.provider()
        item, body = f"providers/{up['id']}/client-certificate", {"chain_pem": "x", "key_pem": "y"}
        assert self.refused(412, "PUT", item, body, **{"If-Match": "*"})["code"] == "changed_meanwhile"


class PrivacyTest(Case):
    def test_the_privacy_policy_of_a_team_is_set_by_who_may_change_privacy_policies(self) -> None:
        for name in ("strict", "loose"):
            self.make("privacy-policies", name=name)
        team = self.make("teams", name="lab", privacy_policy="strict")
        names = ["view_team", "add_team", "change_team", "view_privacypolicy"]
        self.bob.user_permissions.set(Permission.objects.filter(codename__in=names))
        bob = self.signed_in(User.objects.get(pk=self.bob.pk))
        for policy in (None, "loose"):
            told = self.refused(403, "PATCH", f"teams/{team['id']}", {"privacy_policy": policy}, client=bob)
            assert told["message"] == "This needs the permission providers.change_privacypolicy."
        self.refused(403, "POST", "teams", {"name": "new", "privacy_policy": "loose"}, client=bob)
        assert not Team.objects.filter(name="new").exists()
        assert self.ok("GET", f"teams/{team['id']}", client=bob)["privacy_policy"] == "strict"
        self.ok("PATCH", f"teams/{team['id']}", {"privacy_policy": "strict", "note": "x"}, client=bob)
        self.ok("POST", "teams", {"name": "new", "privacy_policy": None}, status=201, client=bob)
        self.bob.user_permissions.add(Permission.objects.get(codename="change_privacypolicy"))
        bob = self.signed_in(User.objects.get(pk=self.bob.pk))
        self.ok("PATCH", f"teams/{team['id']}", {"privacy_policy": None}, client=bob)


class SignInsTest(Case):
    def setUp(self) -> None:
        self.boss = self.signed_in(self.ada)
        self.carl = User.objects.create_user("carl", "", "pw")

    def test_team_leads_are_made_and_unmade_by_people(self) -> None:
        made = self.ok("POST", "team-leads", {"user": "carl", "team": "team"}, status=201, client=self.boss)
        assert (made["user"], made["team"]) == ("carl", "team")
        (row,) = self.ok("GET", "team-leads?user=carl", client=self.boss)["data"]
        assert self.call("DELETE", f"team-leads/{row['id']}", client=self.boss).status_code == 204
        assert not TeamLead.objects.exists()
        assert [action for action, _ in self.actions("teamlead.")] == ["teamlead.created", "teamlead.deleted"]
        self.refused(403, "POST", "team-leads", {"user": "carl", "team": "team"})

    def test_second_factors_are_reset_and_failed_sign_ins_forgotten(self) -> None:
        factor = SecondFactor.objects.create(user=self.carl, secret="sealed-text")
        told = self.call("GET", "second-factors", client=self.boss)
        assert b"sealed-text" not in told.content
        assert told.json()["data"][0]["user"] == "carl"
        assert self.call("DELETE", f"second-factors/{factor.pk}", client=self.boss).status_code == 204
        row = SignInFailure.objects.create(name="carl", address="192.0.2.1", since=timezone.now())
        assert self.call("DELETE", f"failed-sign-ins/{row.pk}", client=self.boss).status_code == 204
        identity = ExternalIdentity.objects.create(user=self.carl, issuer="https://i", subject="s")
        assert self.call("DELETE", f"external-identities/{identity.pk}", client=self.boss).status_code == 204
        wanted = [("user.second_factor_reset", "carl"), ("operator.unlocked", "carl")]
        assert [each for each in self.actions() if each in wanted] == wanted
        assert ("externalidentity.deleted", "carl") in self.actions()
        assert all(OutboxEntry.objects.filter(target="carl").values_list("about", flat=True)), "erasure reaches them"

    def test_administrators_are_changed_by_administrators_only(self) -> None:
        admins, _ = Group.objects.get_or_create(name="admins")
        admins.permissions.set(Permission.objects.filter(codename__in=("manage_admins", "view_route")))
        eve = User.objects.create_user("eve", "", "pw", is_staff=True)
        eve.groups.add(admins)
        SecondFactor.objects.create(user=eve, secret="x")
        names = ("view_user", "change_user", "add_user", "delete_user", "view_route", "delete_secondfactor")
        self.bob.user_permissions.set(Permission.objects.filter(codename__in=names))
        client = self.signed_in(User.objects.get(pk=self.bob.pk))
        item = f"users/{eve.pk}"
        self.refused(403, "PATCH", item, {"email": "e@example.org"}, client=client)
        self.refused(403, "POST", f"{item}/password", {"password": "Wibble-2291-quux"}, client=client)
        self.refused(403, "DELETE", item, client=client)
        self.refused(403, "DELETE", f"second-factors/{eve.second_factor.pk}", client=client)
        carl = f"users/{self.carl.pk}"
        assert self.ok("PATCH", carl, {"email": "c@example.org"}, client=client)["email"] == "c@example.org"
        error = self.refused(403, "PATCH", carl, {"permissions": ["providers.view_route"]}, client=client)
        assert (error["param"], "administrators" in error["message"]) == ("permissions", True)
        error = self.refused(403, "PATCH", carl, {"groups": ["admins"]}, client=client)
        assert error["param"] == "groups"
        assert eve.check_password("pw")
