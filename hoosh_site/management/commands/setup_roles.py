"""`manage.py setup_roles`: shows the groups of the four roles, or gives them their permissions again."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import Group
from django.core.management.base import BaseCommand, CommandError

from hoosh_site.people import groups, roles


class Command(BaseCommand):
    """Groups are made by `init`; this puts right what was changed since."""

    help = "Show the groups of the roles viewer, operator, security and admin, or restore their permissions."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What may be asked."""
        parser.add_argument("--restore", nargs="*", metavar="ROLE", help="give these roles (all) their permissions")

    def handle(self, *args: Any, **options: Any) -> None:
        """Restore what was named, then say what each role's group has."""
        chosen = options["restore"]
        for role in [] if chosen is None else chosen or roles.ROLES:
            if role not in roles.ROLES:
                raise CommandError(f"There is no role {role!r}. Roles are {', '.join(roles.ROLES)}.")
            groups.restore(role, actor="manage.py setup_roles")
        for role in roles.ROLES:
            group = Group.objects.filter(name=role).first()
            told = f"{group.permissions.count()} permissions, {group.user_set.count()} people" if group else "no group"
            self.stdout.write(f"{role}: {told}")
