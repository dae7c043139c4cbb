"""What a configuration would have done with the last requests: which would go elsewhere, what that costs, what is
refused. Nobody is called.

Recorded requests are weighed by what a configuration alone says: a strategy that chooses among several candidates
counts each with its share, one that goes by latency with the means of the last day. Prices are those of today.
What a record does not keep (images, tools, tags a request asked for, circuits) is left out of account.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from django.conf import settings
from django.db.models import Sum

from budgets import access
from budgets.models import Usage, UsageRollup
from budgets.prices import PriceBook, cost
from providers.catalog import CATALOG
from providers.config import ConfigDocument, ProviderDoc
from providers.routing import (
    DIRECT,
    LEAST_BUSY,
    LEAST_COST,
    LOCAL_CLASSES,
    LOWEST_LATENCY,
    ROUND_ROBIN,
    WEIGHTED,
    RouteTable,
    Step,
)

MOST = 10_000  # recorded requests
MOVES_SHOWN = 50
ANY_ROUTE = 0
_DAY_S = 86_400
Latencies = Mapping[tuple[int, int, str], float]  # milliseconds by route (or `ANY_ROUTE`), provider, model asked for


class Recorded(NamedTuple):
    """What is known of a request that was answered, or not."""

    model: str
    endpoint: str  # by its name in `gateway.endpoints`
    input: int
    cached: int
    cache_write: int
    output: int
    reasoning: int


@dataclass
class Outcome:
    """What one configuration does with all requests. Costs in USD; `ms` is the mean over `timed` of them."""

    answered: float = 0.0
    refused: int = 0
    usd: float = 0.0
    unpriced: int = 0
    ms: float = 0.0
    timed: float = 0.0

    @property
    def mean_ms(self) -> float | None:
        """Milliseconds of a request; None where nothing is known of any route."""
        return self.ms / self.timed if self.timed else None


@dataclass
class Move:
    """Requests for one model that go elsewhere, to another route or by the same one to another provider or model.

    `before` and `after` are routes, "" = refused; `before_at` and `after_at` what they ask there, "provider / model".
    """

    model: str
    before: str
    after: str
    before_at: str = ""
    after_at: str = ""
    requests: float = 0.0
    usd: float = 0.0  # more (or less) than before


@dataclass
class DryRun:
    """The two configurations side by side."""

    requests: int
    before: Outcome
    after: Outcome
    moved: float = 0.0
    moves: list[Move] = field(default_factory=list)
    newly_refused: dict[str, int] = field(default_factory=dict)  # by model
    newly_answered: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def usd_more(self) -> float:
        """What the second costs more than the first, in USD."""
        return self.after.usd - self.before.usd


def dry_run(before: ConfigDocument, after: ConfigDocument, *, requests: int = 1000) -> DryRun:
    """Weigh two configurations by the last `requests` recorded ones, at most `MOST`."""
    began = time.monotonic()
    rows = list(recorded(max(1, min(MOST, requests))))
    prices, latencies = PriceBook.build(access.prices()), mean_latencies()
    one, two = _Weigher(before, prices, latencies), _Weigher(after, prices, latencies)
    found = DryRun(len(rows), one.outcome, two.outcome)
    moves: dict[tuple[str, _Place, _Place], Move] = {}
    refused: dict[str, int] = defaultdict(int)
    answered: dict[str, int] = defaultdict(int)
    for row in rows:
        was, now = one.weigh(row), two.weigh(row)
        if was and not now:
            refused[row.model] += 1
        elif now and not was:
            answered[row.model] += 1
        _add_moves(found, moves, row, was, now)
    found.moves = sorted(moves.values(), key=lambda move: -move.requests)[:MOVES_SHOWN]
    found.newly_refused, found.newly_answered = dict(refused), dict(answered)
    found.seconds = time.monotonic() - began
    return found


class _Place(NamedTuple):
    """Where a request is answered."""

    route: str = ""
    at: str = ""  # "provider / model"


class _Share(NamedTuple):
    """How much of a request goes to a place, and what it would cost there (USD)."""

    place: _Place
    part: float
    usd: float


def _add_moves(
    found: DryRun, moves: dict[tuple[str, _Place, _Place], Move], row: Recorded, was: list[_Share], now: list[_Share]
) -> None:
    """What leaves each place goes to those that get more, in proportion."""
    if was == now:
        return
    parts: dict[_Place, float] = defaultdict(float)
    usd: dict[_Place, float] = {}
    for share in was or [_Share(_Place(), 1.0, 0.0)]:
        parts[share.place] -= share.part
        usd.setdefault(share.place, share.usd)
    for share in now or [_Share(_Place(), 1.0, 0.0)]:
        parts[share.place] += share.part
        usd[share.place] = share.usd
    losers = {name: -part for name, part in parts.items() if part < -1e-9}
    winners = {name: part for name, part in parts.items() if part > 1e-9}
    total = sum(winners.values())
    for loser, lost in losers.items():
        for winner, won in winners.items():
            part = lost * won / total
            move = moves.setdefault(
                (row.model, loser, winner), Move(row.model, loser.route, winner.route, loser.at, winner.at)
            )
            move.requests += part
            move.usd += part * (usd[winner] - usd[loser])
            found.moved += part


class _Weigher:
    """One configuration and what it made of the requests so far."""

    def __init__(self, document: ConfigDocument, prices: PriceBook, latencies: Latencies) -> None:
        self.outcome = Outcome()
        self._providers = {provider.id: provider for provider in document.providers}
        self._table = RouteTable(document.routes, self._providers, document.policies, document.settings)
        self._prices, self._latencies, self._now = prices, latencies, time.time()
        self._plans: dict[tuple[str, str], tuple[str, list[Step]]] = {}  # by model and endpoint

    def weigh(self, row: Recorded) -> list[_Share]:
        """Where the request goes; empty = it is refused."""
        strategy, first = self._first(row.model, row.endpoint)
        if not first:
            self.outcome.refused += 1
            return []
        if len(first) == 1:
            usd = self._usd(first[0], row)
            self._count(first[0], usd, 1.0)
            self.outcome.unpriced += usd is None
            return [_Share(self._place(first[0]), 1.0, usd or 0.0)]
        costs = [self._usd(step, row) for step in first]
        parts = self._parts(strategy, first, costs)
        shares = []
        for step, usd, part in zip(first, costs, parts, strict=True):
            if part:
                self._count(step, usd, part)
                shares.append(_Share(self._place(step), part, usd or 0.0))
        self.outcome.unpriced += any(part and usd is None for usd, part in zip(costs, parts, strict=True))
        return shares

    def _first(self, model: str, endpoint: str) -> tuple[str, list[Step]]:
        """The strategy and the candidates of the first rank, found out once for all requests that are alike in this."""
        known = self._plans.get((model, endpoint))
        if known is None:

            def judge(step: Step) -> str:
                return "" if self._serves(self._providers[step.route.provider_id], endpoint) else "does not serve it"

            plan = self._table.plan(model, endpoint, judge)
            known = plan.strategy, [plan.steps[i] for i in plan.ranks[0]] if plan.steps else []
            self._plans[model, endpoint] = known
        return known

    def _place(self, step: Step) -> _Place:
        return _Place(step.route.name, f"{self._providers[step.route.provider_id].name} / {step.model}")

    def _count(self, step: Step, usd: float | None, part: float) -> None:
        outcome, ms = self.outcome, self._ms(step)
        outcome.answered += part
        outcome.usd += part * (usd or 0.0)
        if ms is not None:
            outcome.ms += part * ms
            outcome.timed += part

    def _ms(self, step: Step) -> float | None:
        """By this route, else by any other to the same model of the same provider."""
        provider = step.route.provider_id
        mine = self._latencies.get((step.route.id, provider, step.model))
        return mine if mine is not None else self._latencies.get((ANY_ROUTE, provider, step.model))

    def _parts(self, strategy: str, steps: Sequence[Step], costs: Sequence[float | None]) -> list[float]:
        """The share of each candidate of the first rank; together 1."""
        if strategy in (WEIGHTED, LEAST_BUSY) and (total := sum(step.route.weight for step in steps)):
            return [step.route.weight / total for step in steps]
        if strategy == ROUND_ROBIN:
            return [1 / len(steps)] * len(steps)
        best = 0
        if strategy == LOWEST_LATENCY:
            best = _lowest([self._ms(step) for step in steps])
        elif strategy == LEAST_COST:
            best = _lowest(costs)
        assert strategy != DIRECT or best == 0
        return [1.0 if i == best else 0.0 for i in range(len(steps))]

    def _usd(self, step: Step, row: Recorded) -> float | None:
        provider = self._providers[step.route.provider_id]
        price = self._prices.find(
            provider.name, provider.kind, step.model, self._now, route=step.route.name, input_tokens=row.input
        )
        if price is None:
            kind = CATALOG.get(provider.kind)
            free = kind is not None and kind.local and provider.address_class in LOCAL_CLASSES
            return 0.0 if free else None
        pico = cost(
            price,
            input=row.input,
            cached=row.cached,
            cache_write=row.cache_write,
            output=row.output,
            reasoning=row.reasoning,
        )
        return pico / 1e12

    @staticmethod
    def _serves(provider: ProviderDoc, endpoint: str) -> bool:
        kind = CATALOG.get(provider.kind)
        if kind is None:
            return False
        wanted = "embeddings" if "embed" in endpoint else "completions" if endpoint == "completions" else "chat"
        return wanted in kind.serves or (wanted == "completions" and "chat" in kind.serves)


def _lowest(values: Sequence[float | None]) -> int:
    """The index of the lowest known value; the first where none is known."""
    known = [(value, index) for index, value in enumerate(values) if value is not None]
    return min(known)[1] if known else 0


def recorded(count: int) -> Iterable[Recorded]:
    """The last requests, newest first: the call that answered each, or the last that failed."""
    names = ("model", "endpoint", "input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens")
    rows = Usage.objects.using(settings.HOOSH_LEDGER_DB).order_by("-id")
    seen: set[str] = set()
    for rid, *values in rows.values_list("rid", *names, "reasoning_tokens")[: 3 * count].iterator(chunk_size=2000):
        if rid not in seen:
            seen.add(rid)
            yield Recorded(*values)
            if len(seen) == count:
                return


def mean_latencies() -> Latencies:
    """Mean milliseconds of a call over the last day."""
    since = int(time.time()) - _DAY_S
    rollups = UsageRollup.objects.using(settings.HOOSH_LEDGER_DB).filter(start__gte=since, route_id__gt=0)
    names = ("route_id", "provider_id", "model", "upstream_model")
    sums: dict[tuple[int, int, str], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for route, provider, model, upstream, us, calls in (
        rollups.order_by().values_list(*names).annotate(us=Sum("latency_us"), calls=Sum("attempts"))
    ):
        for key in ((route, provider, upstream or model), (ANY_ROUTE, provider, upstream or model)):
            sums[key] = sums[key][0] + us, sums[key][1] + calls
    return {key: us / calls / 1000 for key, (us, calls) in sums.items() if calls}
