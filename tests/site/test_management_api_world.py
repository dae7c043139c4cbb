"""Beside its rows, the management API: versions and drafts, people, webhooks, records, whole documents, two at once."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.db import connections, transaction
from django.test import Client, TestCase, TransactionTestCase
from django.utils import timezone

from audit.models import OutboxEntry
from budgets.models import Pool, PoolAlert, Team, Usage
from events.models import Event, Webhook
from hoosh_site.people.models import ExternalIdentity
from providers import sequences
from providers.models import ConfigVersion, Credential, GatewaySettings, Provider, Route
from tests.audit.small_log import SmallLog
from tests.site.management_case import SECRET, ManagementCase

pytestmark = pytest.mark.database

DOCUMENT = """
hoosh_configuration = 1
[settings]
max_attempts = 4
[[provider]]
name = "up"
kind = "openai"
base_url = "http://127.0.0.1:9"
[[provider.credential]]
name = "main"
secret = "$UP_SECRET"
[[route]]
name = "r"
pattern = "gpt-*"
provider = "up"
[[pool]]
name = "big"
capacity_tokens = 5
[[team]]
name = "red"
budget = "big"
"""


class VersionsTest(ManagementCase, TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        cls.make_world()

    def saved(self, method: str, path: str, data: Any = None, **more: Any) -> Any:
        """A change that is published, or waits, as behind a commit."""
        with self.captureOnCommitCallbacks(execute=True):
            return self.ok(method, path, data, **more)

    def test_each_change_is_a_version_with_its_difference_and_a_way_back(self) -> None:
        self.saved("POST", "providers", {"name": "up", "kind": "openai", "base_url": "http://127.0.0.1:9"}, status=201)
        route = self.saved("POST", "routes", {"name": "r", "pattern": "m", "provider": "up"}, status=201)
        first, second = (row["number"] for row in reversed(self.ok("GET", "versions")["data"]))
        told = self.ok("GET", f"versions/{second}")
        assert (told["author"], told["document"]["routes"][0]["name"]) == (f"key:{self.admin_key.prefix}", "r")
        diff = self.ok("GET", f"versions/{second}/diff")
        assert (diff["before"], diff["after"]) == (first, second)
        assert [(each["section"], each["name"], each["what"]) for each in diff["changes"]] == [("Route", "r", "added")]
        assert self.ok("GET", f"versions/{first}/diff?against={second}")["changes"][0]["what"] == "removed"
        self.refused(404, "GET", f"versions/{first}/diff?against=99999")
        back = self.ok("POST", f"versions/{first}/revert", {"note": "was wrong"})
        assert (back["version"] > second, back["warnings"]) == (True, [])
        self.refused(404, "GET", f"routes/{route['id']}")

    def test_a_draft_is_reviewed_by_another_person_and_by_no_key(self) -> None:
        ada, eve = self.signed_in(self.ada), self.signed_in(User.objects.create_superuser("eve", "", "pw"))
        self.saved("PATCH", "settings", {"review": True}, client=ada)
        self.saved("PATCH", "settings", {"max_attempts": 7}, client=ada)
        draft = self.ok("GET", "draft", client=ada)
        assert (draft["differs"], draft["is_reviewed"], draft["may_publish"]) == (True, True, False)
        assert [each["author"] for each in draft["waiting"]] == ["ada"]
        seen = {"seen": draft["digest"]}
        assert self.refused(409, "POST", "draft/publish", seen, client=ada)["code"] == "refused"
        self.refused(403, "POST", "draft/publish", seen)
        assert self.refused(400, "POST", "draft/publish", {}, client=eve)["param"] == "seen"
        at = (timezone.now() + dt.timedelta(hours=1)).isoformat()
        assert self.refused(400, "POST", "draft/schedule", {"at": at}, client=eve)["param"] == "seen"
        self.refused(403, "POST", f"versions/{draft['version']}/revert", {})
        assert self.refused(409, "POST", "draft/publish", {"seen": "0" * 64}, client=eve)["code"] == "refused"
        made = self.ok("POST", "draft/publish", {"seen": draft["digest"], "note": "looked at"}, client=eve)
        assert "looked at" in made["note"]
        assert self.ok("GET", "draft")["differs"] is False

    def test_a_draft_is_discarded(self) -> None:
        ada = self.signed_in(self.ada)
        self.saved("PATCH", "settings", {"review": True}, client=ada)
        self.saved("PATCH", "settings", {"max_attempts": 7}, client=ada)
        assert self.refused(409, "POST", "draft/discard", {"seen": "0" * 64}, client=ada)["code"] == "refused"
        assert self.refused(400, "POST", "draft/discard", {"sen": ""}, client=ada)["param"] == "sen"
        assert GatewaySettings.objects.get().max_attempts == 7
        assert self.ok("POST", "draft/discard", client=ada)["warnings"] == []
        assert GatewaySettings.objects.get().max_attempts == 3

    def test_what_takes_no_fields_refuses_them(self) -> None:
        self.provider()
        route = self.route()
        told = self.refused(400, "POST", f"routes/{route['id']}/clone", {"name": "mine"})
        assert (told["param"], "takes no body" in told["message"]) == ("name", True)
        assert len(self.ok("GET", "routes")["data"]) == 1
        self.ok("POST", f"routes/{route['id']}/clone", {}, status=201)

    def test_a_draft_is_scheduled_and_cancelled(self) -> None:
        self.saved("PATCH", "settings", {"max_attempts": 7})
        at = (timezone.now() + dt.timedelta(hours=1)).isoformat()
        made = self.ok("POST", "draft/schedule", {"at": at, "note": "later"}, status=201)
        assert self.ok("GET", f"scheduled-publications/{made['id']}")["state"] == "waiting"
        assert self.call("DELETE", f"scheduled-publications/{made['id']}").status_code == 204
        assert self.ok("GET", "scheduled-publications?state=cancelled")["data"][0]["id"] == made["id"]
        self.refused(409, "DELETE", f"scheduled-publications/{made['id']}")
        assert self.refused(400, "POST", "draft/schedule", {"at": "2001-01-01T00:00:00Z"})["param"] == "at"

    def test_a_dry_run_weighs_recorded_requests(self) -> None:
        Usage.objects.create(
            **{"rid": "1" * 32, "at": timezone.now(), "key_id": 1, "agent_id": 1, "team_id": 1, "pool_id": 1},
            **{"endpoint": "chat", "model": "gpt-4", "status": 200, "input_tokens": 5},
        )
        self.provider()
        self.route()
        told = self.ok("GET", "draft/dry-run?requests=10")
        assert (told["requests"], told["before"]["refused"], told["newly_answered"]) == (1, 1, {"gpt-4": 1})
        self.refused(400, "GET", "draft/dry-run?requests=100000")

    def test_what_cannot_run_is_saved_and_told(self) -> None:
        Provider.objects.create(name="broken", kind="nothing", base_url="http://127.0.0.1:9")
        assert self.call("PATCH", "settings", {"max_attempts": 5})["x-hoosh-publication"] == "refused"
        assert self.refused(409, "POST", "draft/publish", {})["code"] == "not_publishable"
        draft = self.ok("GET", "draft")
        assert (draft["may_publish"], "broken" in draft["problems"][0]["row"]) == (False, True)


class PeopleTest(ManagementCase, TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        cls.make_world()

    def setUp(self) -> None:
        self.client = self.signed_in(self.ada)

    def test_people_and_groups_are_made_changed_and_deleted(self) -> None:
        who = {"client": self.client}
        group = self.ok("POST", "groups", {"name": "ops", "permissions": ["providers.view_route"]}, status=201, **who)
        fields = {"username": "zoe", "password": "correct horse battery", "is_staff": True, "groups": ["ops"]}
        made = self.ok("POST", "users", fields, status=201, **who)
        assert (made["groups"], made["is_staff"], "password" in made) == (["ops"], True, False)
        zoe = User.objects.get(username="zoe")
        assert zoe.check_password("correct horse battery")
        assert zoe.has_perm("providers.view_route")
        changed = self.ok("PATCH", f"users/{zoe.pk}", {"permissions": ["budgets.view_pool"], "email": "z@x.org"}, **who)
        assert changed["permissions"] == ["budgets.view_pool"]
        assert (
            self.call("POST", f"users/{zoe.pk}/password", {"password": "another long phrase"}, **who).status_code == 204
        )
        assert User.objects.get(pk=zoe.pk).check_password("another long phrase")
        assert self.ok("PATCH", f"groups/{group['id']}", {"permissions": []}, **who)["permissions"] == []
        entries = OutboxEntry.objects.filter(action__startswith="user.").order_by("id")
        assert [each.action for each in entries] == ["user.created", "user.changed", "user.password_set"]
        assert "phrase" not in str([each.data for each in entries])
        assert [row["username"] for row in self.ok("GET", "users?group=ops", **who)["data"]] == ["zoe"]
        for path in (f"users/{zoe.pk}", f"groups/{group['id']}"):
            assert self.call("DELETE", path, **who).status_code == 204
        assert not User.objects.filter(username="zoe").exists()

    def test_entries_about_people_are_sealed_and_found_by_their_history(self) -> None:
        who = {"client": self.client}
        fields = {"username": "zoe", "email": "z@example.org", "first_name": "Zoe", "last_name": "Zimt"}
        zoe = f"auth.user:{self.ok('POST', 'users', fields, status=201, **who)['id']}"
        pk = zoe.partition(":")[2]
        self.ok("PATCH", f"users/{pk}", {"email": "y@example.org", "is_staff": True}, **who)
        self.call("POST", f"users/{pk}/password", {"password": "another long phrase"}, **who)
        lead = self.ok("POST", "team-leads", {"user": "zoe", "team": "team"}, status=201, **who)["id"]
        identity = ExternalIdentity.objects.create(user_id=pk, issuer="https://i", subject="s")
        for path in (f"team-leads/{lead}", f"external-identities/{identity.pk}", f"users/{pk}"):
            assert self.call("DELETE", path, **who).status_code == 204
        entries = OutboxEntry.objects.filter(target="zoe").order_by("pk")
        assert [(each.action, each.data["object"]) for each in entries] == [
            ("user.created", zoe),
            ("user.changed", zoe),
            ("user.password_set", zoe),
            ("teamlead.created", f"people.teamlead:{lead}"),
            ("teamlead.deleted", f"people.teamlead:{lead}"),
            ("externalidentity.deleted", f"people.externalidentity:{identity.pk}"),
            ("user.deleted", zoe),
        ]
        assert all(each.about for each in entries)
        assert [entries[0].personal[name][1] for name in fields] == list(fields.values())
        assert entries[1].personal == {"email": ["z@example.org", "y@example.org"]}
        assert entries[1].data["fields"] == {"is_staff": ["false", "true"]}
        assert entries[3].data["team"] == "team"
        told = str(list(OutboxEntry.objects.values_list("data", flat=True))).lower()
        assert not any(text in told for text in ("zoe", "zimt", "example.org"))
        assert not OutboxEntry.objects.filter(target__contains="zoe").exclude(target="zoe").exists()
        group = self.ok("POST", "groups", {"name": "ops"}, status=201, **who)["id"]
        (entry,) = OutboxEntry.objects.filter(action="group.created")
        assert (entry.data["object"], entry.about) == (f"auth.group:{group}", False)

    def test_nobody_takes_their_own_account_away_and_a_superuser_stays(self) -> None:
        who, ada = {"client": self.client}, f"users/{self.ada.pk}"
        for change, param in (({"is_active": False}, "is_active"), ({"is_superuser": False}, None)):
            assert self.refused(400, "PATCH", ada, change, **who)["param"] == param
        assert "superuser" in self.refused(400, "PATCH", ada, {"is_staff": False}, **who)["message"]
        assert "your own account" in self.refused(400, "DELETE", ada, **who)["message"]
        eve = self.ok("POST", "users", {"username": "eve", "is_staff": True, "is_superuser": True}, status=201, **who)
        assert "your own account" in self.refused(400, "DELETE", ada, **who)["message"]
        assert "your own account" in self.refused(400, "PATCH", ada, {"is_active": False}, **who)["message"]
        self.ok("PATCH", ada, {"is_superuser": False}, **who)
        eve_in = {"client": self.signed_in(User.objects.get(pk=eve["id"]))}
        assert self.call("DELETE", ada, **eve_in).status_code == 204
        self.refused(400, "PATCH", f"users/{eve['id']}", {"is_superuser": False}, **eve_in)
        assert User.objects.get(pk=eve["id"]).is_superuser

    def test_an_administrator_does_not_delete_the_group_they_are_in(self) -> None:
        admin = Group.objects.get(name="admin")
        self.bob.groups.add(admin)
        bob = self.signed_in(User.objects.get(pk=self.bob.pk))
        assert "which you are in" in self.refused(400, "DELETE", f"groups/{admin.pk}", client=bob)["message"]
        assert Group.objects.filter(pk=admin.pk).exists()
        assert not OutboxEntry.objects.filter(action="group.deleted").exists()

    def test_accounts_that_make_no_sense_are_refused(self) -> None:
        for change, field in (
            ({"username": "a b"}, "username"),
            ({"username": "bob"}, "username"),
            ({"password": "12345678"}, "password"),
            ({"groups": ["nobody"]}, "groups"),
            ({"permissions": ["providers.fly"]}, "permissions"),
            ({"permissions": ["x"]}, "permissions"),
            ({"email": "no"}, "email"),
            ({"last_login": None}, "last_login"),
        ):
            with self.subTest(change):
                body = {"username": "zoe", **change}
                told = self.refused(400, "POST", "users", body, client=self.client)["fields"]
                assert {name.partition(".")[0] for name in told} == {field}
        told = self.refused(
            400, "PATCH", f"users/{self.bob.pk}", {"password": "another long phrase"}, client=self.client
        )
        assert told["param"] == "password"

    def test_whoever_is_no_superuser_gives_only_what_they_have(self) -> None:
        self.bob.user_permissions.set(Permission.objects.filter(codename__in=("change_user", "add_user", "view_user")))
        bob = self.signed_in(User.objects.get(pk=self.bob.pk))
        group = Group.objects.create(name="ops")
        group.permissions.set(Permission.objects.filter(codename="add_route"))
        for path, body in (
            (f"users/{self.ada.pk}", {"email": "a@x.org"}),
            (f"users/{self.bob.pk}", {"is_superuser": True}),
            (f"users/{self.bob.pk}", {"permissions": ["providers.add_route"]}),
            (f"users/{self.bob.pk}", {"groups": ["ops"]}),
        ):
            self.refused(403, "PATCH", path, body, client=bob)
        self.refused(403, "POST", f"users/{self.ada.pk}/password", {"password": "another long phrase"}, client=bob)
        fewer = {"permissions": ["auth.view_user", "auth.change_user", "people.manage_admins"]}
        self.refused(403, "PATCH", f"users/{self.bob.pk}", fewer, client=bob)
        self.bob.user_permissions.add(Permission.objects.get(codename="manage_admins"))
        self.refused(
            403,
            "PATCH",
            f"users/{self.bob.pk}",
            {"permissions": ["providers.add_route"]},
            client=self.signed_in(self.bob),
        )
        self.ok("PATCH", f"users/{self.bob.pk}", fewer, client=self.signed_in(User.objects.get(pk=self.bob.pk)))
        assert not User.objects.get(pk=self.bob.pk).is_superuser


class WebhooksTest(ManagementCase, TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        cls.make_world()

    def test_a_secret_is_told_once_and_renewed(self) -> None:
        made = self.make("webhooks", name="w", url="http://127.0.0.1:9/x?token=1", internal=True)
        assert made["secret"].startswith("whsec_")
        assert "secret" not in self.ok("GET", f"webhooks/{made['id']}")
        new = self.ok("POST", f"webhooks/{made['id']}/secret")["secret"]
        assert new.startswith("whsec_")
        assert new != made["secret"]
        assert "ciphertext" not in self.call("GET", "webhooks").content.decode()

    def test_addresses_are_looked_up(self) -> None:
        assert self.refused(400, "POST", "webhooks", {"name": "w", "url": "http://127.0.0.1:9/"})["param"] == "url"
        made = self.make("webhooks", name="w", url="http://127.0.0.1:9/", internal=True)
        assert made["address_class"] == "loopback"
        self.refused(400, "PATCH", f"webhooks/{made['id']}", {"internal": False})
        self.refused(400, "PATCH", f"webhooks/{made['id']}", {"url": "http://8.8.8.8/"})
        assert self.ok("PATCH", f"webhooks/{made['id']}", {"url": "http://10.0.0.1/"})["address_class"] == "private"
        assert self.refused(400, "PATCH", f"webhooks/{made['id']}", {"topics": ["a b"]})["param"] == "topics"

    def test_a_test_event_tells_what_came_of_it(self) -> None:
        made = self.make("webhooks", name="w", url="http://127.0.0.1:9/", internal=True)
        told = self.ok("POST", f"webhooks/{made['id']}/test")
        assert (told["taken"], told["status"], "No connection" in told["error"]) == (False, 0, True)
        assert Webhook.objects.get().last_error


class RecordsTest(ManagementCase, TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        cls.make_world()
        now = timezone.now()
        for number in range(5):
            Usage.objects.create(
                **{"rid": f"{number:032x}", "at": now - dt.timedelta(hours=number * 12), "key_id": 1, "agent_id": 1},
                **{"team_id": number % 2, "pool_id": 1, "endpoint": "chat", "model": f"m{number}", "status": 200},
                **{"tokens": 10, "cost_usd": "0.000000000001"},
            )

    def test_usage_is_of_the_last_day_unless_asked_for_more(self) -> None:
        assert [row["model"] for row in self.ok("GET", "usage")["data"]] == ["m0", "m1"]
        found, cursor = [], ""
        while True:
            page = self.ok("GET", f"usage?since=2020-01-01&limit=2{cursor}")
            found += [row["model"] for row in page["data"]]
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        assert found == ["m0", "m1", "m2", "m3", "m4"]
        row = self.ok("GET", f"usage?since=2020-01-01&request={3:032x}")["data"][0]
        assert (row["model"], row["cost_usd"]) == ("m3", "0.000000000001")
        until = quote((timezone.now() - dt.timedelta(hours=30)).isoformat())
        assert len(self.ok("GET", f"usage?since=2020-01-01&until={until}&team=1")["data"]) == 1

    def test_reports_are_sums(self) -> None:
        told = self.ok("GET", "reports/usage?group_by=team")["data"]
        assert {each["keys"]["team"]: each["requests"] for each in told} == {0: 3, 1: 2}
        assert self.ok("GET", "reports/usage?team=0")["data"][0]["cost_usd"].startswith("0.000000000003")
        assert self.ok("GET", "reports/usage?model=m1&group_by=day,model")["data"][0]["keys"]["model"] == "m1"
        assert self.ok("GET", "reports/usage?since=2020-01-01&until=2020-01-02")["data"] == []
        assert self.ok("GET", "reports/usage?since=2020-01-02&until=2020-01-02")["data"] == []
        turned = "since=2020-01-03&until=2020-01-02"
        for query in (
            turned,
            "group_by=color",
            "since=2020",
            "team=x",
            "period=x",
            "until=9999-12-31",
            "since=0000-01-01",
        ):
            with self.subTest(query):
                self.refused(400, "GET", f"reports/usage?{query}")

    def test_limits_are_told_with_what_is_used_of_them(self) -> None:
        self.make("teams", name="red", requests_per_minute=5)
        told = self.ok("GET", "limits")
        line = {"kind": "team", "name": "red", "requests_per_minute": {"limit": 5, "used": 0}, "in_flight": 0}
        assert told["data"] == [{**line, "tokens_per_minute": None, "concurrent_requests": None}]
        self.bob.user_permissions.set(Permission.objects.filter(codename="view_route"))
        bob = self.signed_in(User.objects.get(pk=self.bob.pk))
        assert self.ok("GET", "limits", client=bob)["data"] == []

    def test_what_happened_is_told_newest_first(self) -> None:
        for number in range(3):
            Event.objects.create(topic="t", name=f"n{number}")
            PoolAlert.objects.create(pool_id=self.pool.pk, percent=number + 1, committed=1, capacity=1)
        assert [row["name"] for row in self.ok("GET", "events?topic=t&limit=2")["data"]] == ["n2", "n1"]
        assert [row["percent"] for row in self.ok("GET", f"alerts?pool={self.pool.pk}")["data"]] == [3, 2, 1]
        log = SmallLog()
        log.open("2026-11")
        for name in ("red", "blue"):
            log.add("team.created", actor="ada", target=name)
        log.checkpoint()
        told = self.ok("GET", "audit-entries?action=team.created")["data"]
        assert [(row["actor"], row["target"]) for row in told] == [("ada", "blue"), ("ada", "red")]
        assert self.ok("GET", f"audit-entries/{told[0]['seq']}")["action"] == "team.created"


class DocumentsTest(ManagementCase, TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        cls.make_world()

    def take(self, toml: str, query: str = "", **more: Any) -> Any:
        return self.ok("POST", f"import-config{query}", {"toml": toml, **more})

    def test_a_document_is_checked_then_imported_once(self) -> None:
        variables = {"UP_SECRET": SECRET}
        told = self.take(DOCUMENT, "?check=1", variables=variables)
        assert (told["version"], Route.objects.count()) == (0, 0)
        assert any("r" in change for change in told["changes"])
        made = self.take(DOCUMENT, variables=variables)
        assert (made["version"], Route.objects.get().name, Team.objects.filter(name="red").exists()) == (
            ConfigVersion.objects.get().number,
            "r",
            True,
        )
        assert Credential.objects.get().last4 == SECRET[-4:]
        again = self.take(DOCUMENT, variables=variables)
        assert (again["changes"], again["version"]) == ([], made["version"])
        assert SECRET not in str((told, made, again))
        assert OutboxEntry.objects.filter(action="config.imported")[0].actor == f"key:{self.admin_key.prefix}"

    def test_a_document_reads_nothing_of_this_host(self) -> None:
        told = self.take(DOCUMENT.replace("UP_SECRET", "PATH"))
        assert not Credential.objects.exists()
        assert "is not set" in told["warnings"][0]
        theirs = (
            '[[providers]]\ntype = "openai"\nbase_url = "https://127.0.0.1:9"\ntls_pinned_certs = ["/etc/passwd"]\n'
        )
        assert "Files are not read" in self.refused(400, "POST", "import-config", {"toml": theirs})["message"]

    def test_documents_that_cannot_be_read_are_refused_with_every_place(self) -> None:
        for toml in (
            "",
            "a = ",
            "\x00",
            "hoosh_configuration = 2",
            DOCUMENT + "[[nothing]]\n",
            "a=1\n" * 10,
            DOCUMENT + 'x = "\\ud800"',
        ):
            response = self.call("POST", "import-config?check=1", {"toml": toml})
            assert response.status_code in (200, 400), response.content
        bad = DOCUMENT.replace('provider = "up"', 'provider = "nobody"')
        told = self.refused(400, "POST", "import-config", {"toml": bad})
        assert (told["code"], "route[1].provider" in told["message"]) == ("import_refused", True)
        assert not Provider.objects.exists()
        for body in ({}, {"toml": 5}, {"toml": "", "x": 1}, {"toml": DOCUMENT, "variables": {"A": 1}}):
            self.refused(400, "POST", "import-config", body)
        self.refused(400, "POST", "import-config?check=perhaps", {"toml": DOCUMENT})

    def test_what_is_exported_is_imported_without_a_change(self) -> None:
        self.take(DOCUMENT, variables={"UP_SECRET": SECRET})
        response = self.call("GET", "export-config")
        assert response["Content-Type"].startswith("application/toml")
        text = response.content.decode()
        assert SECRET not in text
        headers = {"Authorization": f"Bearer {self.admin}"}
        raw = Client().generic("POST", "/api/v1/import-config?check=1", text, "application/toml", headers=headers)
        assert (raw.status_code, raw.json()["changes"]) == (200, [])
        broken = Client().generic("POST", "/api/v1/import-config", b"\xff\xfe", "application/toml", headers=headers)
        assert broken.status_code == 400

    def test_where_changes_are_reviewed_a_document_becomes_a_draft(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            self.ok("PATCH", "settings", {"review": True})
        before = ConfigVersion.objects.count()
        toml = DOCUMENT.replace("max_attempts = 4", "review = true")
        made = self.take(toml, variables={"UP_SECRET": SECRET})
        assert "wait" in made["warnings"][-1]
        draft = self.ok("GET", "draft")
        assert (ConfigVersion.objects.count(), draft["differs"]) == (before, True)
        assert [each["what"] for each in draft["waiting"]] == ["import of the document"]


class InfrastructureTest(ManagementCase, TestCase):
    """What a script does that brings a gateway into a wanted state, again and again."""

    WANTED = (
        ("providers", {"name": "up", "kind": "openai", "base_url": "http://127.0.0.1:9", "enabled": True}),
        ("routes", {"name": "chat", "pattern": "gpt-*", "provider": "up", "tags": ["eu"], "priority": 5}),
        ("routing-policies", {"name": "spread", "pattern": "gpt-*", "strategy": "weighted"}),
        ("pools", {"name": "team-red", "capacity_tokens": 1_000_000, "capacity_usd": "12.5", "window": "month"}),
        ("teams", {"name": "red", "pool": "team-red", "tokens_per_minute": 5000}),
        ("agents", {"team": "red", "name": "bot"}),
    )

    @classmethod
    def setUpTestData(cls) -> None:
        cls.make_world()

    def ensure(self, path: str, wanted: dict[str, Any]) -> str:
        """Create a row, change what of it differs, or leave it."""
        query = f"name={wanted['name']}" + (f"&team={wanted['team']}" if "team" in wanted else "")
        found = self.ok("GET", f"{path}?{query}")["data"]
        if not found:
            self.make(path, **wanted)
            return "created"
        differs = {name: value for name, value in wanted.items() if found[0][name] != value}
        if differs:
            self.ok("PATCH", f"{path}/{found[0]['id']}", differs)
            return "changed"
        return "kept"

    def test_a_script_that_wants_a_state_reaches_it_and_then_changes_nothing(self) -> None:
        assert [self.ensure(*each) for each in self.WANTED] == ["created"] * 6
        entries = OutboxEntry.objects.count()
        assert [self.ensure(*each) for each in self.WANTED] == ["kept"] * 6
        assert OutboxEntry.objects.count() == entries
        Route.objects.filter(name="chat").update(priority=9)
        Pool.objects.filter(name="team-red").update(capacity_usd=None)
        done = [self.ensure(*each) for each in self.WANTED]
        assert done == ["kept", "changed", "kept", "changed", "kept", "kept"]


class TwoAtOnceTest(ManagementCase, TransactionTestCase):
    def setUp(self) -> None:
        self.make_world()

    def at_once(self, *calls: tuple[str, str, Any], clients: Sequence[Client] = ()) -> list[int]:
        """The statuses of requests sent at the same moment, from threads with connections of their own."""
        gate, statuses = threading.Barrier(len(calls)), [0] * len(calls)

        def run(place: int) -> None:
            try:
                gate.wait(10)
                client = clients[place] if clients else None
                statuses[place] = self.call(*calls[place], client=client).status_code
            finally:
                connections.close_all()

        threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return sorted(statuses)

    def test_of_two_rows_of_one_name_one_is_made(self) -> None:
        self.provider()
        for path, fields in (
            ("teams", {"name": "same"}),
            ("providers", {"name": "same", "kind": "demo"}),
            ("routes", {"name": "same", "pattern": "m", "provider": "up"}),
            ("webhooks", {"name": "same", "url": "http://127.0.0.1:9/", "internal": True}),
            ("pools", {"name": "same"}),
        ):
            with self.subTest(path):
                statuses = self.at_once(*[("POST", path, fields)] * 4)
                assert statuses[0] == 201
                assert set(statuses[1:]) <= {400, 409}, statuses

    def test_changes_of_different_fields_at_once_are_all_kept(self) -> None:
        self.provider()
        route = self.route()
        changes = ({"priority": 77}, {"tags": ["a"]}, {"sticky": True}, {"output_cap": 5})
        assert self.at_once(*(("PATCH", f"routes/{route['id']}", each) for each in changes)) == [200] * 4
        told = self.ok("GET", f"routes/{route['id']}")
        assert (told["priority"], told["tags"], told["sticky"], told["output_cap"]) == (77, ["a"], True, 5)

    def test_superusers_who_demote_each_other_at_once_leave_one(self) -> None:
        people = [self.ada, *(User.objects.create_superuser(f"eve{number}", "", "pw") for number in range(2))]
        calls = [("PATCH", f"users/{people[number - 1].pk}", {"is_superuser": False}) for number in range(3)]
        statuses = self.at_once(*calls, clients=[self.signed_in(each) for each in people])
        assert User.objects.filter(is_superuser=True).count() == 3 - statuses.count(200) >= 1, statuses
        assert set(statuses) <= {200, 400, 403}

    def test_what_a_change_is_compared_with_is_the_row_as_it_is_when_it_is_changed(self) -> None:
        self.provider()
        route = self.route()
        item, statuses = f"routes/{route['id']}", []
        seen = self.call("GET", item)["ETag"]

        def change() -> None:
            try:
                statuses.append(self.call("PATCH", item, {"sticky": True}, **{"If-Match": seen}).status_code)
            finally:
                connections.close_all()

        with transaction.atomic():
            sequences.locked(sequences.CONFIG)
            thread = threading.Thread(target=change)
            thread.start()
            thread.join(0.7)  # it waits for us now
            Route.objects.filter(pk=route["id"]).update(priority=77)
        thread.join(30)
        assert statuses == [412]
        assert not Route.objects.get().sticky
