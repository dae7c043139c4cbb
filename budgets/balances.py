"""Reading pool balances from the ledger for pages. Never writes, never locks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db.models import Q

from budgets import amounts, windows
from budgets.models import Pool, PoolWindow
from budgets.records import Unit

_COLUMNS = (
    *("pool_id", "window_start", "window_end", "unit"),
    *("capacity", "committed", "leased", "overrun", "adjusted"),
)
_STARTS_AT_ONCE = 200  # windows' starts asked for in one query
_UNIT_NAMES = {Unit.TOKENS: "tokens", Unit.PICO_USD: "USD"}


@dataclass(frozen=True, slots=True)
class Balance:
    """One purse as the ledger has it, in tokens or pico-USD. A `capacity` of None = no limit."""

    capacity: int | None
    committed: int = 0
    leased: int = 0
    overrun: int = 0
    adjusted: int = 0
    unit: Unit = Unit.TOKENS

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit in this unit."""
        return self.capacity is not None

    @property
    def available(self) -> int:
        """What a grant could still give; never negative, 0 without a limit."""
        return max(0, (self.capacity or 0) - self.committed - self.leased)

    @property
    def left(self) -> int:
        """What is not charged yet; leased amounts count, because workers give back what they do not spend."""
        return max(0, (self.capacity or 0) - self.committed)

    @property
    def is_full(self) -> bool:
        """Whether everything is charged."""
        return self.capacity is not None and self.committed >= self.capacity

    @property
    def over(self) -> int:
        """What was charged above the limit."""
        return 0 if self.capacity is None else max(0, self.committed - self.capacity)

    @property
    def used_permille(self) -> int:
        """Charged and leased amounts in thousandths of the limit, for ordering; -1 without a limit."""
        return -1 if self.capacity is None else (self.committed + self.leased) * 1000 // max(1, self.capacity)

    @property
    def committed_share(self) -> str:
        """The part of the bar charged inside the limit, in percent of its length; likewise below."""
        return self._share(self.committed - self.over)

    @property
    def over_share(self) -> str:
        """The part of the bar charged above the limit."""
        return self._share(self.over)

    @property
    def leased_from(self) -> str:
        """Where the leased part of the bar begins."""
        return self._share(self.committed)

    @property
    def leased_share(self) -> str:
        """The leased part of the bar."""
        return self._share(self.leased)

    @property
    def limit_at(self) -> str:
        """Where the limit is marked on the bar, when something passed it; "" else."""
        passed = self.capacity is not None and self.committed + self.leased > self.capacity
        return self._share(self.capacity or 0) if passed else ""

    @property
    def unit_name(self) -> str:
        """What is counted."""
        return _UNIT_NAMES[self.unit]

    @property
    def caption(self) -> str:
        """The bar in a few words: "1.2k of 10M tokens"."""
        if self.capacity is None:
            return f"{self.short_committed}, no limit"
        return f"{amounts.short(self.unit, self.committed)} of {self.short_capacity}"

    @property
    def label(self) -> str:
        """The bar in words, exact."""
        spent, leased = amounts.exact(self.unit, self.committed), amounts.exact(self.unit, self.leased)
        if self.capacity is None:
            return f"{spent} spent, no limit"
        above = f", {amounts.exact(self.unit, self.over)} above the limit" if self.over else ""
        return (
            f"{spent} spent{above}, {leased} leased, {amounts.exact(self.unit, self.available)} available "
            f"of {amounts.exact(self.unit, self.capacity)}"
        )

    @property
    def short_committed(self) -> str:
        """What is charged, with its unit."""
        return f"{amounts.short(self.unit, self.committed)}{self._suffix}"

    @property
    def short_capacity(self) -> str:
        """The limit, with its unit; "no limit"."""
        return "no limit" if self.capacity is None else f"{amounts.short(self.unit, self.capacity)}{self._suffix}"

    @property
    def short_left(self) -> str:
        """What is not charged yet, with its unit; "no limit"."""
        return "no limit" if self.capacity is None else f"{amounts.short(self.unit, self.left)}{self._suffix}"

    @property
    def _suffix(self) -> str:
        return " tokens" if self.unit == Unit.TOKENS else ""

    def _share(self, part: int) -> str:
        whole = max(1, self.capacity or 0, self.committed + self.leased)
        return f"{part * 10_000 // whole / 100:.2f}"


@dataclass(frozen=True, slots=True)
class PoolBalance:
    """A pool's current window: its span (Unix seconds; an end of 0 never comes) and its purses."""

    start: int
    end: int
    tokens: Balance
    money: Balance
    is_known: bool = True  # whether the ledger has this window already

    @property
    def purses(self) -> tuple[Balance, Balance]:
        """Both purses, tokens first."""
        return (self.tokens, self.money)

    @property
    def limited(self) -> tuple[Balance, ...]:
        """The purses that have a limit."""
        return tuple(purse for purse in self.purses if purse.is_limited)

    @property
    def shown(self) -> tuple[Balance, ...]:
        """The purses worth a bar in a list: those with a limit, or the tokens when there is none."""
        return self.limited or (self.tokens,)

    @property
    def used_permille(self) -> int:
        """How near the nearest limit is, in thousandths; -1 without a limit."""
        return max(purse.used_permille for purse in self.purses)


def balances(pools: Iterable[Pool], now: float | None = None) -> dict[int, PoolBalance]:
    """The current window of each pool, by pool id, in a few queries however many there are.

    A window the ledger does not have yet (nothing was drawn, control has not looked) is the pool's limits, unspent.
    Where nobody knows the pool's time zone any more, it is the newest window of the ledger, as control does it.
    """
    at = time.time() if now is None else now
    pools = list(pools)
    starts: dict[int, list[int]] = {}
    spans: dict[int, windows.Span] = {}
    found: dict[int, PoolBalance] = {}
    for pool in pools:
        try:
            span = windows.current_span(pool.window, pool.time_zone, at, since=pool.window_since)
        except ValueError:
            span = windows.Span(pool.window_since, 0)
            rows = PoolWindow.objects.filter(pool_id=pool.pk).order_by("-window_start")
            _take_in(found, rows.values_list(*_COLUMNS)[: len(Unit)])
        else:
            starts.setdefault(span.start, []).append(pool.pk)
        spans[pool.pk] = span
    by_start = list(starts.items())
    for first in range(0, len(by_start), _STARTS_AT_ONCE):  # SQLite takes no expression of a thousand parts
        wanted = Q(pk__in=())
        # The ledger's newest window is later than the calendar's only when the clock was set back: so "from", not "at".
        for start, ids in by_start[first : first + _STARTS_AT_ONCE]:
            wanted |= Q(pool_id__in=ids, window_start__gte=start)
        _take_in(found, PoolWindow.objects.filter(wanted).values_list(*_COLUMNS))
    return {pool.pk: found.get(pool.pk) or _untouched(pool, spans[pool.pk]) for pool in pools}


def _take_in(found: dict[int, PoolBalance], rows: Iterable[tuple[Any, ...]]) -> None:
    """Of each pool keep the newest window. Plain rows, because this is read for a thousand pools at once."""
    for pool_id, start, end, unit, capacity, committed, leased, overrun, adjusted in rows:
        known = found.get(pool_id)
        if known is not None and known.start > start:
            continue
        if known is None or known.start < start:
            known = PoolBalance(start, end, Balance(None), Balance(None, unit=Unit.PICO_USD))
        balance = Balance(capacity, committed, leased, overrun, adjusted, Unit(unit))
        tokens, money = (balance, known.money) if unit == Unit.TOKENS else (known.tokens, balance)
        found[pool_id] = PoolBalance(start, end, tokens, money)


def _untouched(pool: Pool, span: windows.Span) -> PoolBalance:
    tokens, usd = pool.limits
    return PoolBalance(span.start, span.end, Balance(tokens), Balance(usd, unit=Unit.PICO_USD), is_known=False)
