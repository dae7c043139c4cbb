"""Bringing a price list into price rows: what would change, and writing it.

Rows are never changed or deleted, since usage rows name them: what changed is a new row from now on. Only rows an
import made are compared and followed; an operator's rows are neither read nor written, and win over all of these in
the price book. A pattern the list does not know any more keeps its rows; where the list still prices its name under
another model, that price is followed.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from django.db import transaction

from audit.record import record
from budgets import access
from budgets.models.access import Price
from budgets.price_list import Amounts, Expectation, PriceList, Stage, Wanted, at_step
from budgets.prices import IMPORT_SOURCE, PriceBook
from budgets.records import PriceRecord

BEGINNING = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)  # since when a price holds that nobody dates
_BATCH_ROWS = 200

Thing = tuple[str, str]  # provider and pattern


class PricesMovedError(Exception):
    """The rows changed between the plan and its writing; nothing was written."""


class Change(NamedTuple):
    """A row to write. `before` None = there was no price."""

    provider: str
    pattern: str
    model: str
    from_tokens: int
    valid_from: dt.datetime
    before: Amounts | None
    after: Amounts


class Disagreement(NamedTuple):
    """A name for which the rows would charge something else than the list itself."""

    provider: str
    name: str
    listed: Amounts | None
    charged: Amounts | None


@dataclass(slots=True)
class Plan:
    """What an import would do. `unchanged` counts patterns; `gone` are those the list does not know any more."""

    source: str
    changes: list[Change] = field(default_factory=list)
    unchanged: Counter[str] = field(default_factory=Counter)
    gone: list[Thing] = field(default_factory=list)
    checked: int = 0
    disagreements: list[Disagreement] = field(default_factory=list)


def plan(prices: PriceList, now: dt.datetime) -> Plan:
    """Compare a list with the rows and check what the rows would charge then. Writes nothing."""
    made = _Planner(prices, now)
    found = made.run()
    rows = [*made.rows, *(_row(change, prices.source) for change in found.changes)]
    for number, row in enumerate(rows, 1):
        row.pk = number
    book = PriceBook.build(map(access.price_record, rows))
    found.checked = len(prices.expected)
    found.disagreements = list(_disagreements(book, prices.expected, now))
    return found


def apply(prices: PriceList, planned: Plan, *, now: dt.datetime, actor: str) -> int:
    """Write what was planned at `now`, with one audit entry; the number of rows. `PricesMovedError` when the rows are
    not those any more that were compared."""
    with transaction.atomic():
        seq = access.bump(access.PRICES)  # from here on nobody else writes prices
        if _Planner(prices, now).run().changes != planned.changes:
            raise PricesMovedError("The price rows have changed in the meantime. Nothing was written; look again.")
        rows = [_row(change, planned.source) for change in planned.changes]
        for row in rows:
            row.clean_fields()
            row.seq = seq
        Price.objects.bulk_create(rows, batch_size=_BATCH_ROWS)
        if rows:
            by_provider = Counter(row.provider for row in rows)
            data = {"rows": len(rows), "providers": dict(by_provider), "source": planned.source}
            record("price.imported", actor=actor, target=planned.source, data=data)
    return len(rows)


class _Planner:
    """One comparison."""

    def __init__(self, prices: PriceList, now: dt.datetime) -> None:
        self._prices, self._now = prices, now
        imported = Price.objects.filter(
            provider__in=prices.providers, source__startswith=IMPORT_SOURCE, route=""
        ).order_by("valid_from", "id")
        self.rows = list(imported)
        self._known: defaultdict[Thing, list[Price]] = defaultdict(list)
        for row in self.rows:
            self._known[row.provider, row.pattern].append(row)

    def run(self) -> Plan:
        """All of it."""
        found = Plan(self._prices.source)
        wanted = {(each.provider, each.pattern): each for each in self._prices.wanted}
        for thing in self._known.keys() - wanted.keys():
            provider, pattern = thing
            tiers = None if "*" in pattern else self._prices.resolvers[provider](pattern)
            if tiers is None:
                found.gone.append(thing)
            else:  # another model's pattern covers the name now
                wanted[thing] = Wanted(provider, pattern, pattern, (Stage(None, tiers),))
        for thing in sorted(wanted):
            changes = self._changes(wanted[thing], self._known[thing])
            found.changes += changes
            found.unchanged[thing[0]] += not changes
        found.gone.sort()
        return found

    def _changes(self, wanted: Wanted, known: Sequence[Price]) -> list[Change]:
        """Rows that make `wanted` hold, now and at every later moment at which something changes."""
        later = {row.valid_from for row in known if row.valid_from > self._now}
        later |= {stage.since for stage in wanted.stages[1:] if stage.since is not None}
        changes: list[Change] = []
        for moment in sorted({self._now} | later):
            desired = next(
                stage for stage in reversed(wanted.stages) if stage is wanted.stages[0] or _begun(stage, moment)
            ).tiers
            in_force = self._in_force(known, changes, moment)
            for step in sorted({*desired, *in_force}):
                before, after = in_force.get(step), at_step(desired, step)
                if before == after:
                    continue
                since = moment
                if not known and moment == self._now:
                    since = wanted.stages[0].since or BEGINNING
                thing = (wanted.provider, wanted.pattern, wanted.model)
                changes.append(Change(*thing, step, since, before, after))
        return changes

    @staticmethod
    def _in_force(known: Iterable[Price], changes: Iterable[Change], moment: dt.datetime) -> dict[int, Amounts]:
        dated = [(row.valid_from, row.from_tokens, _amounts(row)) for row in known]
        dated += [(change.valid_from, change.from_tokens, change.after) for change in changes]
        dated.sort(key=lambda each: each[0])  # stable: of rows of one moment the later one counts
        return {step: amounts for since, step, amounts in dated if since <= moment}


def _begun(stage: Stage, moment: dt.datetime) -> bool:
    return stage.since is not None and stage.since <= moment


def _amounts(row: Price) -> Amounts:
    return Amounts(**{name: getattr(row, name) for name in Amounts._fields})


def _of_record(price: PriceRecord) -> Amounts:
    return Amounts(
        input_usd_per_mtok=_usd(price.input),
        output_usd_per_mtok=_usd(price.output),
        cached_read_usd_per_mtok=_maybe_usd(price.cached_read),
        cache_write_usd_per_mtok=_maybe_usd(price.cache_write),
        reasoning_usd_per_mtok=_maybe_usd(price.reasoning),
        input_audio_usd_per_mtok=_maybe_usd(price.input_audio),
        output_audio_usd_per_mtok=_maybe_usd(price.output_audio),
        input_image_usd_per_mtok=_maybe_usd(price.input_image),
        request_usd=Decimal(price.request).scaleb(-12),
    )


def _usd(pico_per_token: int) -> Decimal:
    return Decimal(pico_per_token).scaleb(-6)


def _maybe_usd(pico_per_token: int | None) -> Decimal | None:
    return None if pico_per_token is None else _usd(pico_per_token)


def _row(change: Change, source: str) -> Price:
    return Price(
        provider=change.provider,
        pattern=change.pattern,
        from_tokens=change.from_tokens,
        valid_from=change.valid_from,
        source=source,
        **change.after._asdict(),
    )


def _disagreements(book: PriceBook, expected: Iterable[Expectation], now: dt.datetime) -> Iterable[Disagreement]:
    at = now.timestamp()
    for provider, name, tiers in expected:
        for step in tiers or (0,):
            found = book.find(provider, provider, name, at, input_tokens=step)
            listed = None if tiers is None else tiers[step]
            charged = None if found is None else _of_record(found)
            if charged != listed:
                yield Disagreement(provider, name, listed, charged)
                break
