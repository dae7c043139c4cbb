"""`manage.py reset_second_factor NAME`: takes somebody's second factor away, from the host itself."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError

from hoosh_site.people import factors
from hoosh_site.people.models import SecondFactor


class Command(BaseCommand):
    """For when nobody who could do it in admin can sign in."""

    help = "Take a user's second factor and recovery codes away."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Whose."""
        parser.add_argument("name", help="the user's name")

    def handle(self, *args: Any, **options: Any) -> None:
        """Remove it, with an audit entry."""
        user = User.objects.filter(username=options["name"]).first()
        if user is None:
            raise CommandError(f"There is no user {options['name']!r}.")
        factor = SecondFactor.objects.filter(user=user).first()
        if factor is None:
            raise CommandError(f"{user} has no second factor.")
        factors.remove(factor, actor="manage.py reset_second_factor")
        self.stdout.write(f"{user} signs in without a second factor until one is set up.")
