"""Models of teams, keys and pools (site database) and of the ledger (its own database file on SQLite)."""

from __future__ import annotations

from budgets.models.access import Agent, ApiKey, LedgerOrder, Pool, Price, Sequence, Team, WarmQuestion
from budgets.models.anomaly import Anomaly, SpendHistory
from budgets.models.ledger import (
    DecisionShape,
    IdempotentReply,
    JournalPosition,
    Lease,
    LedgerEntry,
    LedgerState,
    PoolAlert,
    PoolSample,
    PoolWindow,
    Reservation,
    Usage,
    UsageDay,
    UsageRollup,
)

__all__ = [
    "Agent",
    "Anomaly",
    "ApiKey",
    "DecisionShape",
    "IdempotentReply",
    "JournalPosition",
    "Lease",
    "LedgerEntry",
    "LedgerOrder",
    "LedgerState",
    "Pool",
    "PoolAlert",
    "PoolSample",
    "PoolWindow",
    "Price",
    "Reservation",
    "Sequence",
    "SpendHistory",
    "Team",
    "Usage",
    "UsageDay",
    "UsageRollup",
    "WarmQuestion",
]
