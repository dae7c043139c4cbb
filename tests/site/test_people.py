"""Users and groups in admin: every change is recorded with its author, and no password or hash ever is."""

from __future__ import annotations

import json

import pytest
from django.contrib.auth.models import Group, Permission, User

from audit.models import OutboxEntry
from budgets import access
from budgets.models import Team
from hoosh_site.people.models import TeamLead
from tests.admin_case import AdminTestCase

pytestmark = pytest.mark.database

PASSWORD = "Xk29dk2kdkd!canary"


def password_form(password: str = PASSWORD) -> dict[str, str]:
    return {"usable_password": "true", "password1": password, "password2": password}


class PeopleTest(AdminTestCase):
    def entries(self, start: str) -> list[OutboxEntry]:
        found = list(OutboxEntry.objects.filter(action__startswith=start).order_by("id"))
        for entry in found:
            for user in User.objects.all():
                assert user.password not in json.dumps(entry.data)
            assert PASSWORD not in json.dumps(entry.data)
            assert "password" not in entry.data.get("fields", {})
        return found

    def change(self, user: User, **more: object) -> None:
        form = {"username": user.username, "is_active": "on", "date_joined_0": "2026-01-01", "date_joined_1": "0:00"}
        response = self.post("auth_user_change", form | more, user.pk)
        assert response.status_code == 302, self.errors(response)

    def test_a_user_is_created_changed_and_deleted_with_an_entry_for_each(self):
        form = {"username": "eve", **password_form()}
        assert self.post("auth_user_add", form).status_code == 302
        eve = User.objects.get(username="eve")
        assert eve.check_password(PASSWORD)
        group = Group.objects.create(name="readers")
        permission = Permission.objects.get(codename="view_provider")
        more = {"is_superuser": "on", "groups": [group.pk], "user_permissions": [permission.pk]}
        self.change(eve, **more)
        self.change(eve, **more)  # nothing new: no entry
        self.change(eve)
        assert self.post("auth_user_delete", {"post": "yes"}, eve.pk).status_code == 302
        created, first, second, deleted = self.entries("user.")
        assert {entry.actor for entry in (created, first, second, deleted)} == {"ada"}
        assert {entry.target for entry in (created, first, second, deleted)} == {"eve"}
        assert [entry.action for entry in (created, first, deleted)] == ["user.created", "user.changed", "user.deleted"]
        assert all(entry.about for entry in (created, first, second, deleted))
        assert created.personal == {"username": [None, "eve"]}
        assert "username" not in created.data["fields"]
        assert first.data["fields"]["is_superuser"] == ["false", "true"]
        assert first.data["groups"] == {"added": ["readers"], "removed": []}
        assert first.data["user_permissions"] == {"added": ["providers.view_provider"], "removed": []}
        assert second.data["groups"] == {"added": [], "removed": ["readers"]}

    def test_passwords_are_set_with_an_entry_each_and_a_refused_one_with_none(self):
        assert self.post("auth_user_password_change", password_form("short"), self.bob.pk).status_code == 200
        assert not self.entries("user.")
        assert self.post("auth_user_password_change", password_form(), self.bob.pk).status_code == 302
        self.post("auth_user_password_change", {"usable_password": "false", "unset-password": "1"}, self.bob.pk)
        own = {"old_password": "pw", "new_password1": PASSWORD, "new_password2": PASSWORD}
        assert self.post("password_change", own | {"old_password": "wrong"}).status_code == 200
        assert self.post("password_change", own).status_code == 302
        assert User.objects.get(username="ada").check_password(PASSWORD)
        told = [(entry.action, entry.actor, entry.target, entry.data) for entry in self.entries("user.")]
        assert told == [
            ("user.password_set", "ada", "bob", {"object": f"auth.user:{self.bob.pk}", "usable": True}),
            ("user.password_set", "ada", "bob", {"object": f"auth.user:{self.bob.pk}", "usable": False}),
            ("user.password_set", "ada", "ada", {"object": f"auth.user:{self.ada.pk}"}),
        ]

    def test_groups_are_recorded_with_their_permissions(self):
        permissions = Permission.objects.filter(codename__in=("view_pool", "view_usage"))
        form = {"name": "readers", "permissions": [each.pk for each in permissions]}
        assert self.post("auth_group_add", form).status_code == 302
        group = Group.objects.get(name="readers")
        assert self.post("auth_group_change", {"name": "lookers"}, group.pk).status_code == 302
        self.act("auth_group_changelist", "delete_selected", [group], post="yes")
        created, changed, deleted = self.entries("group.")
        assert created.data["permissions"]["added"] == ["budgets.view_pool", "budgets.view_usage"]
        assert changed.data["fields"] == {"name": ["readers", "lookers"]}
        assert changed.data["permissions"]["removed"] == ["budgets.view_pool", "budgets.view_usage"]
        assert (deleted.action, deleted.target) == ("group.deleted", "lookers")

    def test_who_leads_a_team_is_a_person_sealed_like_every_other(self):
        team = access.save_team(Team(name="red"), actor="test")
        assert self.post("people_teamlead_add", {"user": self.carl.pk, "team": team.pk}).status_code == 302
        lead = TeamLead.objects.get()
        assert self.post("people_teamlead_delete", {"post": "yes"}, lead.pk).status_code == 302
        for entry in self.entries("teamlead."):
            assert (entry.target, entry.about, entry.data["team"]) == ("carl", True, "red")
            assert entry.data["object"] == f"people.teamlead:{lead.pk}"
            assert "carl" not in json.dumps(entry.data)

    def test_without_permission_nothing_is_changed_and_nothing_recorded(self):
        self.allow(self.bob, "view_user")
        assert self.post("auth_user_password_change", password_form(), self.carl.pk).status_code == 403
        assert self.post("auth_user_delete", {"post": "yes"}, self.carl.pk).status_code == 403
        assert self.post("auth_user_add", {"username": "eve", **password_form()}).status_code == 403
        assert not self.entries("user.")
