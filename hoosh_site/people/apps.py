"""The application that carries what is stored about people beside Django's own users and groups."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class PeopleConfig(AppConfig):
    """Registers `hoosh_site.people`. Stands last, so that the permissions of all others are made before the roles."""

    name = "hoosh_site.people"
    label = "people"
    verbose_name = "People"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Make the roles' groups whenever tables were made."""
        post_migrate.connect(_offer, sender=self, dispatch_uid="hoosh.people.roles")


def _offer(sender: AppConfig, using: str, **kwargs: Any) -> None:
    from hoosh_site.people import groups

    groups.offer(using)
