"""Nobody makes themselves an administrator: what people with the role security, and what administrators, may change."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.http import HttpResponse

from audit.models import OutboxEntry
from tests.admin_case import AdminTestCase

pytestmark = pytest.mark.database

PASSWORD = {"usable_password": "true", "password1": "Xk29dk2kdkd!canary", "password2": "Xk29dk2kdkd!canary"}


class EscalationTest(AdminTestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        super().setUpTestData()
        cls.groups = {group.name: group for group in Group.objects.all()}
        cls.people = {}
        for role, group in cls.groups.items():
            cls.people[role] = User.objects.create_user(f"{role}-person", "", "pw", is_staff=True)
            cls.people[role].groups.add(group)

    def as_role(self, role: str) -> None:
        self.client.force_login(self.people[role])

    def change(self, user: User, **more: object) -> HttpResponse:
        form = {"username": user.username, "is_active": "on", "is_staff": "on"}
        form |= {"date_joined_0": "2026-01-01", "date_joined_1": "0:00"}
        return self.post("auth_user_change", form | more, user.pk)

    def test_security_makes_people_and_gives_the_lesser_roles(self):
        self.as_role("security")
        assert self.post("auth_user_add", {"username": "eve", **PASSWORD}).status_code == 302
        eve = User.objects.get(username="eve")
        assert self.change(eve, groups=[self.groups["operator"].pk]).status_code == 302
        assert eve.groups.get().name == "operator"

    def test_security_gives_neither_the_group_admin_nor_one_like_it(self):
        like = Group.objects.create(name="keepers")
        like.permissions.add(Permission.objects.get(codename="change_group"))
        self.as_role("security")
        for group in (self.groups["admin"], like):
            assert "Select a valid choice" in self.errors(self.change(self.bob, groups=[group.pk]))
        assert not self.bob.groups.exists()

    def test_security_gives_no_single_permission_and_makes_no_superuser(self):
        self.as_role("security")
        permission = Permission.objects.get(codename="manage_admins")
        me = self.people["security"]
        for user in (self.bob, me):
            groups = list(user.groups.values_list("pk", flat=True))
            answer = self.change(user, groups=groups, is_superuser="on", user_permissions=[permission.pk])
            assert answer.status_code == 302
            user.refresh_from_db()
            assert (user.is_superuser, user.user_permissions.count()) == (False, 0)

    def test_security_touches_no_administrator(self):
        single = User.objects.create_user("single", "", "pw", is_staff=True)
        single.user_permissions.add(Permission.objects.get(codename="manage_admins"))
        self.as_role("security")
        for user in (self.ada, self.people["admin"], single):
            assert self.change(user).status_code == 403
            assert self.post("auth_user_password_change", PASSWORD, user.pk).status_code == 403
            assert self.post("auth_user_delete", {"post": "yes"}, user.pk).status_code == 403
            assert self.client.get(self.url("auth_user_change", user.pk)).status_code == 200, "seen, not changed"
        self.act("auth_user_changelist", "delete_selected", [self.ada, self.people["admin"]], post="yes")
        assert User.objects.filter(pk__in=[self.ada.pk, self.people["admin"].pk]).count() == 2

    def test_administrators_change_administrators_and_groups_but_no_superuser(self):
        self.as_role("admin")
        assert self.change(self.bob, groups=[self.groups["admin"].pk]).status_code == 302
        assert self.bob.groups.get().name == "admin"
        assert self.change(self.bob, is_superuser="on").status_code == 302
        self.bob.refresh_from_db()
        assert not self.bob.is_superuser
        assert self.change(self.ada).status_code == 403
        assert self.post("auth_group_change", {"name": "watchers"}, self.groups["viewer"].pk).status_code == 302

    def test_superusers_make_superusers(self):
        self.client.force_login(self.ada)
        assert self.change(self.bob, is_superuser="on").status_code == 302
        self.bob.refresh_from_db()
        assert self.bob.is_superuser

    def test_nobody_deletes_or_disables_their_own_account(self):
        User.objects.create_superuser("eve", "", "pw")
        self.client.force_login(self.ada)
        for send in (
            lambda: self.post("auth_user_delete", {"post": "yes"}, self.ada.pk),
            lambda: self.act("auth_user_changelist", "delete_selected", [self.carl, self.ada], post="yes"),
        ):
            assert "You cannot delete your own account" in self.messages(send())
        page = self.change(self.ada, is_superuser="on", is_active="")
        assert "You cannot disable your own account" in self.messages(page)
        self.ada.refresh_from_db()
        assert self.ada.is_active
        assert User.objects.filter(pk=self.carl.pk).exists(), "nothing of a refused action is done"
        assert not OutboxEntry.objects.filter(action__in=("user.deleted", "user.changed")).exists()

    def test_somebody_stays_who_can_do_everything(self):
        self.client.force_login(self.ada)
        gone = User.objects.create_superuser("gone", "", "pw", is_active=False)
        for change in ({}, {"is_superuser": "on", "is_staff": ""}):
            page = self.change(self.ada, **change)
            assert "This would leave no active superuser" in self.messages(page), change
        self.ada.refresh_from_db()
        assert (self.ada.is_superuser, self.ada.is_staff) == (True, True)
        assert self.change(gone, is_superuser="on").status_code == 302, "whom there is more than one of goes"
        assert self.change(self.ada).status_code == 302
        self.ada.refresh_from_db()
        assert not self.ada.is_superuser

    def test_an_administrator_does_not_delete_the_group_they_are_in(self):
        self.as_role("admin")
        group = self.groups["admin"]
        for send in (
            lambda: self.post("auth_group_delete", {"post": "yes"}, group.pk),
            lambda: self.act("auth_group_changelist", "delete_selected", [group], post="yes"),
        ):
            assert "You cannot delete the group “admin”, which you are in" in self.messages(send())
        assert Group.objects.filter(pk=group.pk).exists()
        assert self.post("auth_group_delete", {"post": "yes"}, self.groups["viewer"].pk).status_code == 302
        assert not Group.objects.filter(name="viewer").exists()

    def test_without_superusers_somebody_stays_who_manages_administrators(self):
        User.objects.filter(is_superuser=True).delete()
        self.as_role("admin")
        page = self.post("auth_group_change", {"name": "admin"}, self.groups["admin"].pk)
        assert "This would leave no active administrator" in self.messages(page)
        assert "This would leave no active administrator" in self.messages(self.change(self.people["admin"]))
        assert self.people["admin"].groups.get().permissions.filter(codename="manage_admins").exists()

    def test_operators_and_viewers_see_people_but_no_hash(self):
        for role in ("operator", "viewer"):
            self.as_role(role)
            html = self.page("auth_user_change", self.bob.pk)
            assert self.bob.password not in html
            assert self.change(self.bob).status_code == 403
            assert self.client.get(self.url("auth_user_changelist") + "?password__gt=a").status_code in (302, 400)
