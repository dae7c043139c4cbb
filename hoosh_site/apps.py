"""The application that carries the project's management commands."""

from __future__ import annotations

from django.apps import AppConfig


class HooshSiteConfig(AppConfig):
    """Registers `hoosh_site` so that Django finds its commands and checks."""

    name = "hoosh_site"
    verbose_name = "Hoosh"

    def ready(self) -> None:
        """Register the system checks."""
        from hoosh_site import checks  # noqa: F401 - importing it registers them
