"""Django application configuration of `budgets`."""

from __future__ import annotations

from django.apps import AppConfig


class BudgetsConfig(AppConfig):
    """Names the application in the admin."""

    name = "budgets"
    verbose_name = "Teams, keys and budgets"
    default_auto_field = "django.db.models.BigAutoField"
