"""Django application configuration of `gateway`."""

from __future__ import annotations

from django.apps import AppConfig


class GatewayConfig(AppConfig):
    """Names the application in the admin."""

    name = "gateway"
    verbose_name = "Gateway"
    default_auto_field = "django.db.models.BigAutoField"
