"""A price list from outside, in our terms: which patterns it prices, from when on, and what it says that we cannot.

`budgets.price_package` fills one, `budgets.price_import` compares it with the rows and writes what differs.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple


class Amounts(NamedTuple):
    """What a price row says, under the names of its columns: USD per million tokens, `request_usd` per request."""

    input_usd_per_mtok: Decimal = Decimal(0)
    output_usd_per_mtok: Decimal = Decimal(0)
    cached_read_usd_per_mtok: Decimal | None = None
    cache_write_usd_per_mtok: Decimal | None = None
    reasoning_usd_per_mtok: Decimal | None = None
    input_audio_usd_per_mtok: Decimal | None = None
    output_audio_usd_per_mtok: Decimal | None = None
    input_image_usd_per_mtok: Decimal | None = None
    request_usd: Decimal = Decimal(0)

    def complete(self) -> tuple[Decimal, ...]:
        """One amount for each class: a class without its own costs what its parent does."""
        parents = (0, 1, 0, 0, 1, 0, 1, 0, 8)
        own: tuple[Decimal | None, ...] = self
        return tuple(_or(own[parent], amount) for parent, amount in zip(parents, own, strict=True))


def _or(parent: Decimal | None, own: Decimal | None) -> Decimal:
    amount = parent if own is None else own
    assert amount is not None
    return amount


Tiers = Mapping[int, Amounts]  # by the least number of input tokens; always one for 0


def at_step(tiers: Tiers, input_tokens: int) -> Amounts:
    """The amounts for a request of that size."""
    return tiers[max(step for step in tiers if step <= input_tokens)]


class Stage(NamedTuple):
    """What is charged from a moment on; `since` None = nobody says since when."""

    since: dt.datetime | None
    tiers: Tiers


@dataclass(frozen=True, slots=True)
class Wanted:
    """One pattern of one provider and what it costs: now, and at later dates that are known already."""

    provider: str  # what the price row will name
    pattern: str
    model: str  # the list's own name of the model
    stages: tuple[Stage, ...]  # the first is in force

    @property
    def tiers(self) -> Tiers:
        """What is charged now."""
        return self.stages[0].tiers


class Remark(NamedTuple):
    """What the list says of a model that price rows cannot."""

    provider: str
    model: str
    reason: str


class Expectation(NamedTuple):
    """A model name and what the list itself charges for it: None = nothing, or nothing that we can express."""

    provider: str
    name: str
    tiers: Tiers | None


@dataclass(slots=True)
class PriceList:
    """All that was read. `refused` has no rows at all, `remarks` are about models that have.

    `expected` are names to try the rows with; `resolvers` say for any name what the list charges, by provider.
    """

    source: str
    wanted: list[Wanted] = field(default_factory=list)
    refused: list[Remark] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    expected: list[Expectation] = field(default_factory=list)
    resolvers: dict[str, Callable[[str], Tiers | None]] = field(default_factory=dict)

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers it prices, by the names rows give them."""
        return tuple(self.resolvers)
