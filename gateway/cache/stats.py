"""What the caches of the workers have done, added up and told: the body of `GET /v1/cache/stats`. Pure.

Workers report plain numbers by name (`counts` of `gateway.cache.answers`), control adds them up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Every name of a report, in the order in which it is told.
COUNTERS = (
    "entries",
    "bytes",
    "max_bytes",
    "hits",
    "joined",
    "misses",
    "stored",
    "refused",
    "evictions",
    "expired",
    "purged",
    "saved_tokens",
    "saved_pico",
    "similar",
    "similar_misses",
    "vectors",
    "vector_bytes",
    "embedding_failures",
    "warmed",
    "warming_failures",
)


def added(reports: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of what several workers report; what a report lacks counts as 0."""
    total = dict.fromkeys(COUNTERS, 0)
    for report in reports:
        for name in COUNTERS:
            total[name] += report.get(name, 0)
    return total


def told(counts: Mapping[str, int], *, enabled: bool, ttl_s: float) -> dict[str, Any]:
    """The answer of the endpoint.

    `hits` are all answers told without a call, those of `joined` from a call that was under way, those of `similar` to
    a question that was put in other words. `hit_rate` is their share of all look-ups, to three decimals. Tokens and US
    dollars `saved` are what these answers cost the first time.
    """
    numbers = {name: counts.get(name, 0) for name in COUNTERS if name != "saved_pico"}
    looked_up = numbers["hits"] + numbers["misses"]
    return {
        "enabled": enabled,
        **numbers,
        "saved_usd": counts.get("saved_pico", 0) / 1e12,
        "hit_rate": round(numbers["hits"] / looked_up, 3) if looked_up else 0.0,
        "ttl_secs": ttl_s,
    }
