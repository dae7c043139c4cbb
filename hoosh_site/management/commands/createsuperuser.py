"""`manage.py createsuperuser`: Django's own, with an audit entry."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.management.commands import createsuperuser

from hoosh_site.people.recorded import saves_recorded

_ACTOR = "manage.py createsuperuser"


class Command(createsuperuser.Command):
    """Makes an operator who may do everything."""

    def handle(self, *args: Any, **options: Any) -> Any:
        """As Django does it, recorded."""
        with saves_recorded(_ACTOR):
            return super().handle(*args, **options)
