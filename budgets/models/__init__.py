"""Models of teams, keys and pools (site database) and of the ledger (its own database file on SQLite)."""

from __future__ import annotations

from budgets.models.access import Agent, ApiKey, Pool, Price, Sequence, Team
from budgets.models.ledger import DecisionShape, JournalPosition, Lease, PoolWindow, Usage

__all__ = [
    "Agent",
    "ApiKey",
    "DecisionShape",
    "JournalPosition",
    "Lease",
    "Pool",
    "PoolWindow",
    "Price",
    "Sequence",
    "Team",
    "Usage",
]
