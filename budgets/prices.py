"""Prices: which row applies and what a usage costs. Pure; money is integer pico-USD throughout.

Classes are disjoint: cached and cache-written tokens are part of the input, reasoning tokens part of the output, each
token is paid once. A class without a price of its own costs what its parent does.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache

from budgets.records import PriceRecord

PICO_PER_USD = 10**12
_REMEMBERED = 4096


class PriceBook:
    """All dated prices, looked up by provider, upstream model and time. Immutable; `build` it."""

    def __init__(self, rows: dict[str, dict[str, list[PriceRecord]]]) -> None:
        self._rows = rows  # by provider and pattern, oldest first
        # One answer is remembered per question; globs are walked once.
        self._candidates = lru_cache(_REMEMBERED)(self._find_candidates)

    @classmethod
    def build(cls, prices: Iterable[PriceRecord]) -> PriceBook:
        """A book of all rows; of two rows for one thing the newer valid one wins, at equal times the higher id."""
        rows: dict[str, dict[str, list[PriceRecord]]] = {}
        for price in sorted(prices, key=lambda price: (price.valid_from, price.id)):
            rows.setdefault(price.provider, {}).setdefault(price.pattern, []).append(price)
        return cls(rows)

    def find(self, provider: str, kind: str, model: str, at: float) -> PriceRecord | None:
        """The price of `model` (the upstream's name) at time `at` (Unix seconds); None = no row matches.

        The provider's own rows win over its kind's, those over "*"; then the pattern with the most literal characters.
        """
        for dated in self._candidates(provider, kind, model):
            position = bisect_right(dated, at, key=lambda price: price.valid_from)
            if position:
                return dated[position - 1]
        return None

    def _find_candidates(self, provider: str, kind: str, model: str) -> tuple[list[PriceRecord], ...]:
        found: list[list[PriceRecord]] = []
        for owner in dict.fromkeys((provider, kind, "*")):
            patterns = self._rows.get(owner, {})
            matching = [pattern for pattern in patterns if matches(pattern, model)]
            matching.sort(key=lambda pattern: ("*" in pattern, -len(pattern.replace("*", "")), pattern))
            found.extend(patterns[pattern] for pattern in matching)
        return tuple(found)


def matches(pattern: str, name: str) -> bool:
    """Whether `name` fits `pattern`, in which "*" stands for anything. Case-sensitive, linear in time."""
    first, *rest = pattern.split("*")
    if not rest:
        return name == first
    *middle, last = rest
    if not name.startswith(first) or len(name) < len(first) + len(last) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def cost(
    price: PriceRecord,
    *,
    input: int,
    cached: int = 0,
    cache_write: int = 0,
    output: int = 0,
    reasoning: int = 0,
) -> int:
    """What a usage costs, in pico-USD. `cached` and `cache_write` are parts of `input`, `reasoning` of `output`.

    Parts that exceed the whole (a provider's odd report) are cut to it, so nothing is paid below zero.
    """
    cached = min(cached, input)
    cache_write = min(cache_write, input - cached)
    reasoning = min(reasoning, output)
    return (
        price.request
        + (input - cached - cache_write) * price.input
        + cached * (price.input if price.cached_read is None else price.cached_read)
        + cache_write * (price.input if price.cache_write is None else price.cache_write)
        + (output - reasoning) * price.output
        + reasoning * (price.output if price.reasoning is None else price.reasoning)
    )
