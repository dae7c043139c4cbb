"""Rows of the ledger as tests of jobs and orders need them."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from budgets.models import PoolWindow, Usage
from budgets.models.fields import usd
from tests.budgets.records import new_rid

HOUR_S, DAY_S = 3_600, 86_400
NOON = 1_760_000_400 // DAY_S * DAY_S + 12 * HOUR_S


def ledger_connection() -> BaseDatabaseWrapper:
    """The connection jobs work on."""
    return connections[settings.HOOSH_LEDGER_DB]


def add_usage(count: int = 1, *, at_s: float = NOON, cost_pico: int = 7, **changes: Any) -> list[Usage]:
    """Usage rows as the writer inserts them, `count` of one kind."""
    fields: dict[str, Any] = {
        **{"at": dt.datetime.fromtimestamp(at_s, dt.UTC), "key_id": 1, "agent_id": 2, "team_id": 3, "pool_id": 4},
        **{"route_id": 5, "provider_id": 6, "endpoint": "chat", "model": "m", "upstream_model": "u", "status": 200},
        **{"input_tokens": 10, "cached_tokens": 2, "cache_write_tokens": 1, "output_tokens": 5, "reasoning_tokens": 3},
        **{"tokens": 15, "cost_usd": usd(cost_pico), "price_id": 1, "latency_us": 1_000},
    }
    rows = [Usage(rid=new_rid().hex(), **{**fields, **changes}) for _ in range(count)]
    return Usage.objects.bulk_create(rows)


def add_window(pool_id: int, *, capacity: int | None = 1_000, unit: int = 0, **changes: Any) -> PoolWindow:
    """One purse."""
    return PoolWindow.objects.create(pool_id=pool_id, unit=unit, capacity=capacity, **changes)
