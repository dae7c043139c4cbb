"""`manage.py changepassword NAME`: Django's own, with an audit entry."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.management.commands import changepassword

from hoosh_site.people.recorded import saves_recorded

_ACTOR = "manage.py changepassword"


class Command(changepassword.Command):
    """Sets somebody's password, asked for on the terminal."""

    def handle(self, *args: Any, **options: Any) -> Any:
        """As Django does it, recorded."""
        with saves_recorded(_ACTOR):
            return super().handle(*args, **options)
