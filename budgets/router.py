"""Which database a model lives in: the ledger has its own file on SQLite and shares the database on PostgreSQL."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import models

LEDGER_MODELS = frozenset(
    {
        "decisionshape",
        "idempotentreply",
        "journalposition",
        "lease",
        "ledgerentry",
        "ledgerstate",
        "poolalert",
        "poolsample",
        "poolwindow",
        "reservation",
        "usage",
        "usageday",
        "usagerollup",
    }
)

SITE_AUDIT_MODELS = frozenset({"outboxentry", "outboxcounter"})  # all other models of `audit` live with the ledger


def in_ledger(app_label: str, model_name: str | None) -> bool:
    """Whether a model lives with the ledger. Operations of migrations that belong to no model do not."""
    if app_label == "audit":
        return model_name is not None and model_name not in SITE_AUDIT_MODELS
    return app_label == "budgets" and model_name in LEDGER_MODELS


class LedgerRouter:
    """Sends the ledger's tables to `settings.HOOSH_LEDGER_DB` and everything else to `default`."""

    def db_for_read(self, model: type[models.Model], **hints: Any) -> str | None:
        """The alias a query on `model` goes to."""
        if in_ledger(model._meta.app_label, model._meta.model_name):
            return str(settings.HOOSH_LEDGER_DB)
        return "default"

    db_for_write = db_for_read

    def allow_relation(self, obj1: models.Model, obj2: models.Model, **hints: Any) -> bool | None:
        """Relations stay inside one database; across them plain ids are kept."""
        return self.db_for_read(type(obj1)) == self.db_for_read(type(obj2))

    def allow_migrate(self, db: str, app_label: str, model_name: str | None = None, **hints: Any) -> bool | None:
        """Tables are created only where they live."""
        if settings.HOOSH_LEDGER_DB == "default":
            return db == "default"
        return in_ledger(app_label, model_name) == (db == "ledger")
