"""Django application configuration of `providers`."""

from __future__ import annotations

from django.apps import AppConfig


class ProvidersConfig(AppConfig):
    """Names the application in the admin."""

    name = "providers"
    verbose_name = "Providers and routes"
    default_auto_field = "django.db.models.BigAutoField"
