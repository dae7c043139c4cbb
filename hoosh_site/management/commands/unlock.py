"""`manage.py unlock [NAME or ADDRESS]`: lets somebody try to sign in again before the lock ends by itself."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from hoosh_site.people import lockout
from hoosh_site.people.models import SignInFailure

_ACTOR = "manage.py unlock"


class Command(BaseCommand):
    """Without a subject it lists the locks there are."""

    help = "Forget the failed sign-ins of a name or an address, or list who is locked out."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Whom."""
        parser.add_argument("subject", nargs="?", default="", help="a user's name or an address")
        parser.add_argument("--all", action="store_true", help="everybody")

    def handle(self, *args: Any, **options: Any) -> None:
        """Unlock, or list."""
        if options["subject"] and options["all"]:
            raise CommandError("Name somebody or say --all, not both.")
        if options["subject"] or options["all"]:
            self.stdout.write(f"{lockout.unlock(options['subject'], actor=_ACTOR)} counts forgotten.")
            return
        locked = SignInFailure.objects.filter(locked_until__gt=timezone.now()).order_by("locked_until")
        for row in locked:
            self.stdout.write(f"{row} until {row.locked_until:%Y-%m-%d %H:%M:%S} UTC")
        if not locked:
            self.stdout.write("Nobody is locked out.")
