"""Django application configuration of `events`."""

from __future__ import annotations

from django.apps import AppConfig


class EventsConfig(AppConfig):
    """Names the application in the admin."""

    name = "events"
    verbose_name = "Events"
    default_auto_field = "django.db.models.BigAutoField"
