"""Prices: which row applies, what a usage costs and what it can cost at most. Pure; money is integer pico-USD.

Classes are disjoint: cached, cache-written, audio and image tokens are part of the input, reasoning and audio tokens
part of the output, each token is paid once. A class without a price of its own costs what its parent does.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from budgets.records import PriceRecord

PICO_PER_USD = 10**12
IMPORT_SOURCE = "genai-prices"  # how the source of a row begins that was imported and not an operator's own
_REMEMBERED = 4096


class PriceBound(NamedTuple):
    """The dearest a request can be, in pico-USD: per input token, per output token, for the request itself.

    `price_id` is the row in force at the greatest number of input tokens that was asked about.
    """

    price_id: int
    input_pico: int
    output_pico: int
    request_pico: int


class _Epoch(NamedTuple):
    """What is in force between two changes: one row and one bound for each step of the input tokens."""

    steps: tuple[int, ...]  # ascending, from 0
    rows: tuple[PriceRecord | None, ...]
    bounds: tuple[PriceBound | None, ...]  # None from the first step without a price
    known: tuple[PriceBound | None, ...]  # of the steps that have a price


class _Answer:
    """All that the rows say about one question. What time changes is worked out once per change."""

    __slots__ = ("_changes", "_epochs", "_things")

    def __init__(self, things: Sequence[Sequence[PriceRecord]]) -> None:
        self._things = things  # by preference; each the rows for one thing, oldest first
        self._changes = sorted({row.valid_from for rows in things for row in rows})
        self._epochs: list[_Epoch | None] = [None] * (len(self._changes) + 1)

    def epoch(self, at: float) -> _Epoch:
        """What is in force at `at` (Unix seconds)."""
        position = bisect_right(self._changes, at)
        epoch = self._epochs[position]
        if epoch is None:
            epoch = self._epochs[position] = _in_force(self._things, at)
        return epoch


class PriceBook:
    """All dated prices, looked up by provider, upstream model, route, time and size. Immutable; `build` it.

    The rows that fit are asked in this order: those of the route; an operator's own before imported ones; the
    provider's own before its kind's and those before "*"; the pattern with the most literal characters. Rows for
    everything (provider "*", pattern "*") come last of all. Of the rows for one thing the newest valid one counts, for
    each `from_tokens` by itself, and then the highest `from_tokens` the request's input reaches.
    """

    def __init__(self, shelves: dict[tuple[str, bool, str], _Shelf]) -> None:
        self._shelves = shelves  # by route, whether imported, and provider
        # One answer is remembered per question; globs are walked once.
        self._answer = lru_cache(_REMEMBERED)(self._find_answer)

    @classmethod
    def build(cls, prices: Iterable[PriceRecord]) -> PriceBook:
        """A book of all rows; at equal times the row with the higher id wins."""
        shelves: dict[tuple[str, bool, str], _Shelf] = {}
        for price in sorted(prices, key=lambda price: (price.valid_from, price.id)):
            shelf = shelves.setdefault((price.route, price.imported, price.provider), _Shelf({}, {}))
            rows = shelf.globs if "*" in price.pattern else shelf.exact
            rows.setdefault(price.pattern, []).append(price)
        return cls(shelves)

    def find(
        self, provider: str, kind: str, model: str, at: float, *, route: str = "", input_tokens: int = 0
    ) -> PriceRecord | None:
        """The price of `model` (the upstream's name) at time `at` (Unix seconds); None = no row fits.

        `route` is the route's name, `input_tokens` what the request's input really was.
        """
        steps, rows, _, _ = self._answer(provider, kind, model, route).epoch(at)
        return rows[0] if len(steps) == 1 else rows[bisect_right(steps, input_tokens) - 1]

    def bound(
        self,
        provider: str,
        kind: str,
        model: str,
        at: float,
        *,
        route: str = "",
        input_tokens: int,
        partly: bool = False,
    ) -> PriceBound | None:
        """The dearest token over all classes, and all steps up to `input_tokens`.

        None when not every request up to that size has a price: no cost can be promised then. With `partly` a size
        without a price costs nothing, and None means that none has one.
        """
        epoch = self._answer(provider, kind, model, route).epoch(at)
        steps, bounds = epoch.steps, epoch.known if partly else epoch.bounds
        return bounds[0] if len(steps) == 1 else bounds[bisect_right(steps, input_tokens) - 1]

    def _find_answer(self, provider: str, kind: str, model: str, route: str) -> _Answer:
        things: list[Sequence[PriceRecord]] = []
        last: list[Sequence[PriceRecord]] = []
        for at_route in (route, "") if route else ("",):
            for imported in (False, True):
                for owner in dict.fromkeys((provider, kind, "*")):
                    shelf = self._shelves.get((at_route, imported, owner))
                    for pattern, rows in shelf.matching(model) if shelf is not None else ():
                        (last if owner == pattern == "*" and not at_route else things).append(rows)
        return _Answer([*things, *last])


class _Shelf(NamedTuple):
    """The rows of one route and provider by pattern, oldest first."""

    exact: dict[str, list[PriceRecord]]
    globs: dict[str, list[PriceRecord]]

    def matching(self, model: str) -> list[tuple[str, list[PriceRecord]]]:
        """The rows whose pattern fits, the most specific pattern first."""
        found = [pattern for pattern in self.globs if matches(pattern, model)]
        found.sort(key=lambda pattern: (-len(pattern.replace("*", "")), pattern))
        exact = [(model, self.exact[model])] if model in self.exact else []
        return exact + [(pattern, self.globs[pattern]) for pattern in found]


def _in_force(things: Sequence[Sequence[PriceRecord]], at: float) -> _Epoch:
    tiers = [{row.from_tokens: row for row in rows if row.valid_from <= at} for rows in things]
    steps = tuple(sorted({0}.union(*tiers)))
    rows = tuple(_at_step(tiers, step) for step in steps)
    known: list[PriceBound | None] = []
    before: PriceBound | None = None
    for row in rows:
        if row is not None:
            dearest = zip(before[1:] if before else (0, 0, 0), (*_dearest(row), row.request), strict=True)
            before = PriceBound(row.id, *(max(pair) for pair in dearest))
        known.append(before)
    whole = rows.index(None) if None in rows else len(rows)
    bounds = (*known[:whole], *(None for _ in rows[whole:]))
    return _Epoch(steps, rows, bounds, tuple(known))


def _at_step(tiers: Sequence[dict[int, PriceRecord]], input_tokens: int) -> PriceRecord | None:
    for tier in tiers:
        reached = [start for start in tier if start <= input_tokens]
        if reached:
            return tier[max(reached)]
    return None


def _dearest(price: PriceRecord) -> tuple[int, int]:
    """The dearest input and the dearest output token of a row."""
    inputs = (price.input, price.cached_read, price.cache_write, price.input_audio, price.input_image)
    outputs = (price.output, price.reasoning, price.output_audio)
    # A class without a price costs what its parent does: never more than what is there already.
    return max(each or 0 for each in inputs), max(each or 0 for each in outputs)


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
    input_audio: int = 0,
    output_audio: int = 0,
    input_image: int = 0,
) -> int:
    """What a usage costs, in pico-USD: exactly the sum over its disjoint classes.

    `cached`, `cache_write`, `input_audio` and `input_image` are parts of `input`; `reasoning` and `output_audio` of
    `output`. Parts that exceed the whole (a provider's odd report) are cut to it in this order, so that nothing is paid
    twice or below zero.
    """
    total = price.request + input * price.input + output * price.output
    if cached or cache_write or input_audio or input_image:
        parts = (
            (cached, price.cached_read),
            (cache_write, price.cache_write),
            (input_audio, price.input_audio),
            (input_image, price.input_image),
        )
        total += _difference(input, price.input, parts)
    if reasoning or output_audio:
        total += _difference(output, price.output, ((reasoning, price.reasoning), (output_audio, price.output_audio)))
    return total


def _difference(whole: int, price: int, parts: Iterable[tuple[int, int | None]]) -> int:
    """What parts with prices of their own cost more (or less) than at the price of the whole."""
    total = 0
    for tokens, own in parts:
        if tokens > 0:
            tokens = min(tokens, whole)
            whole -= tokens
            if own is not None:
                total += tokens * (own - price)
    return total
