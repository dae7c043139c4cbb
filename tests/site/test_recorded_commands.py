"""Whoever changes people or configuration from a command line is in the audit log."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import TransactionTestCase

from audit.models import OutboxEntry
from budgets import access
from hoosh_site.management.commands import changepassword
from hoosh_site.people import groups, lockout
from hoosh_site.people.models import RoleOffer, SecondFactor

pytestmark = pytest.mark.database


def entries(prefix: str = "") -> list[tuple[str, str, str]]:
    rows = OutboxEntry.objects.filter(action__startswith=prefix).order_by("pk")
    return [(row.action, row.actor, row.target) for row in rows]


def run(*arguments: str, **options: Any) -> str:
    out = io.StringIO()
    call_command(*arguments, stdout=out, stderr=io.StringIO(), **options)
    return out.getvalue()


class RecordedCommandsTest(TransactionTestCase):
    databases = "__all__"

    def test_a_superuser_made_on_the_command_line_is_recorded(self):
        os.environ["DJANGO_SUPERUSER_PASSWORD"] = "a-long-enough-one"
        try:
            run("createsuperuser", "--noinput", "--username", "root", "--email", "r@example.org")
            with pytest.raises(CommandError, match="already taken"):
                run("createsuperuser", "--noinput", "--username", "root", "--email", "r@example.org")
        finally:
            del os.environ["DJANGO_SUPERUSER_PASSWORD"]
        assert entries() == [("user.created", "manage.py createsuperuser", "root")]
        row = OutboxEntry.objects.get()
        root = f"auth.user:{User.objects.get().pk}"
        assert (row.about, row.level, row.data) == (True, "warning", {"object": root, "is_superuser": True})
        User.objects.create_user("later")
        assert len(entries()) == 1, "only what the command itself does"

    def test_a_superuser_that_cannot_be_recorded_is_not_made(self):
        with connection.schema_editor() as editor:
            editor.execute("ALTER TABLE audit_outboxentry RENAME TO audit_outboxentry_away")
        try:
            with pytest.raises(Exception, match="audit_outboxentry"):
                run("createsuperuser", "--noinput", "--username", "root", "--email", "r@example.org")
        finally:
            with connection.schema_editor() as editor:
                editor.execute("ALTER TABLE audit_outboxentry_away RENAME TO audit_outboxentry")
        assert not User.objects.filter(username="root").exists()

    def test_a_password_set_on_the_command_line_is_recorded_and_is_not_in_the_entry(self):
        ada = User.objects.create_user("ada", password="old")
        typed = "Wibble-2291-quux"

        class Typed(changepassword.Command):
            def _get_pass(self, prompt: str = "") -> str:  # there is no terminal here
                return typed

        call_command(Typed(stdout=io.StringIO()), "ada")
        assert User.objects.get(username="ada").check_password(typed)
        assert entries() == [("user.password_set", "manage.py changepassword", "ada")]
        assert OutboxEntry.objects.get().data["object"] == f"auth.user:{ada.pk}", "the person's history has it"
        assert typed not in str(list(OutboxEntry.objects.values()))

    def test_our_own_commands_are_recorded(self):
        ada = User.objects.create_user("ada")
        SecondFactor.objects.create(user=ada, secret="x")
        lockout.begin("ada", "192.0.2.1")
        OutboxEntry.objects.all().delete()
        run("unlock", "ada")
        run("reset_second_factor", "ada")
        run("setup_roles", "--restore", "viewer")
        found = entries()
        assert ("operator.unlocked", "manage.py unlock", "ada") in found
        assert ("group.restored", "manage.py setup_roles", "viewer") in found
        assert [(each[1], each[2]) for each in found if each[0].startswith("user.second_factor")] == [
            ("manage.py reset_second_factor", "ada")
        ]
        access.default_pool("test")
        run("create_key", "laptop")
        assert ("key.created", "command line") in [each[:2] for each in entries("key.")]
        run("prune")
        assert ("ledger.prune", "command line") in [each[:2] for each in entries("ledger.")]

    def test_an_imported_configuration_is_recorded(self):
        path = Path(os.environ.get("TMPDIR", "/tmp")) / f"hoosh-{os.getpid()}.toml"
        path.write_text(
            'hoosh_configuration = 1\n[[provider]]\nname = "p"\nkind = "vllm"\nbase_url = "http://127.0.0.1:1"\n'
        )
        try:
            run("import_config", str(path))
        finally:
            path.unlink()
        assert ("config.imported", "import_config") in [each[:2] for each in entries("config.")]

    def test_permissions_that_an_upgrade_brings_to_a_role_are_recorded(self):
        groups.offer("default")
        role = Group.objects.get(name="viewer")
        permission = role.permissions.select_related("content_type").first()
        assert permission is not None
        name = f"{permission.content_type.app_label}.{permission.codename}"
        role.permissions.remove(permission)
        RoleOffer.objects.filter(role="viewer", permission=name).delete()  # as if it were new
        OutboxEntry.objects.all().delete()
        groups.offer("default")
        assert entries() == [("group.changed", "upgrade", "viewer")]
        told = OutboxEntry.objects.get().data
        assert told == {"object": f"auth.group:{role.pk}", "permissions": {"added": [name], "removed": []}}
        groups.offer("default")
        assert len(entries()) == 1
