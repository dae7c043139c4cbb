"""The product's settings with little but the ledger, so that a killed control process is soon there again."""

from __future__ import annotations

import os

from hoosh_site.settings import *  # noqa: F403
from hoosh_site.settings import DATABASES

INSTALLED_APPS = ["audit.apps.AuditConfig", "providers.apps.ProvidersConfig", "budgets.apps.BudgetsConfig"]
if not os.environ.get("HOST_SAFE"):
    for database in DATABASES.values():
        if "sqlite3" in str(database["ENGINE"]):
            database["OPTIONS"] = {
                **database["OPTIONS"],  # type: ignore[dict-item]
                "init_command": "PRAGMA journal_mode=WAL;PRAGMA synchronous=OFF;",
            }
