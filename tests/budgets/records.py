"""Records as the request path writes them, for tests of the ledger."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

from budgets.records import OBSERVED, Basis, Draw, HoldRecord, Unit, UsageRecord

POOL = 7
_numbers = itertools.count(1)
_seed = os.urandom(4)


def new_rid() -> bytes:
    """A time-ordered request id, unique over processes."""
    return time.time_ns().to_bytes(8, "big") + _seed + next(_numbers).to_bytes(4, "big")


def tokens_of(pool_id: int, held: int = OBSERVED, *, start: int = 0) -> Draw:
    """A draw on a pool's tokens; by default they are only counted."""
    return Draw(pool_id, Unit.TOKENS, start, held)


def money_of(pool_id: int, held: int = OBSERVED, *, start: int = 0) -> Draw:
    """A draw on a pool's money, in pico-USD; by default it is only counted."""
    return Draw(pool_id, Unit.PICO_USD, start, held)


def hold_record(
    rid: bytes, tokens: int, *, input_bound: int = 0, pool_id: int = POOL, attempt: int = 0, **changes: Any
) -> HoldRecord:
    """`R` of one attempt."""
    return HoldRecord(
        rid=rid,
        attempt=attempt,
        at_us=time.time_ns() // 1000,
        key_id=1,
        agent_id=2,
        team_id=3,
        pool_id=pool_id,
        window_start=0,
        tokens=tokens,
        input_bound=input_bound,
        route_id=4,
        provider_id=5,
        endpoint="chat",
        model="small",
        **changes,
    )


def usage_record(rid: bytes, tokens: int, *, held: int = 0, attempt: int = 0, **changes: Any) -> UsageRecord:
    """`C` of one attempt that consumed `tokens`."""
    fields: dict[str, Any] = {
        **{"rid": rid, "attempt": attempt, "at_us": time.time_ns() // 1000, "key_id": 1, "agent_id": 2, "team_id": 3},
        **{"pool_id": POOL, "window_start": 0, "route_id": 4, "provider_id": 5, "endpoint": "chat", "model": "small"},
        **{"upstream_model": "small-1", "status": 200, "error": "", "stream": False, "input_tokens": tokens // 2},
        **{"cached_tokens": 0, "cache_write_tokens": 0, "output_tokens": tokens - tokens // 2, "reasoning_tokens": 0},
        **{
            "tokens": tokens,
            "held": held or tokens,
            "cost_pico": 1_234_567,
            "price_id": 0,
            "basis": int(Basis.REPORTED),
        },
        **{"latency_us": 1500, "ttft_us": 900, "config_version": 1, "shape": b"", "attempts": 1},
    }
    return UsageRecord(**{**fields, **changes})
