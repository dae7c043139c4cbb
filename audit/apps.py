"""Django application configuration of `audit`."""

from __future__ import annotations

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class AuditConfig(AppConfig):
    """Names the application in the admin."""

    name = "audit"
    verbose_name = "Audit"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Have the triggers looked after at the end of every migration."""
        from audit.triggers import after_migrate

        post_migrate.connect(after_migrate, sender=self, dispatch_uid="audit.triggers")
