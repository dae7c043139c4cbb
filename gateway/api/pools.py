"""Which pools a key may use, and what is left of them. Reads only.

What is left is what nobody has spent, reserved or holds for a running request. What lies idle at workers counts as
left: it is called back when somebody needs it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from budgets import balances as ledger
from budgets.models import ApiKey, Pool
from budgets.models.fields import usd
from budgets.validation import split
from gateway import plane
from gateway.errors import ForbiddenError, NotFoundError
from providers.globs import any_matcher

LISTED_MAX = 1000

Purse = tuple[int, int, int]  # pool id, unit, start of the window


class UnknownPoolError(NotFoundError):
    """There is no enabled pool of this name."""

    code = "unknown_pool"

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no pool named '{name[:100]}'.", param="pool")


class KeyPools:
    """The pools of one key, as the site has them now."""

    def __init__(self, key: ApiKey) -> None:
        self.key = key
        named = (key.pool_id, key.own_pool_id, key.agent.pool_id, key.agent.team.pool_id)
        ids = {number for number in named if number is not None}
        self._own = {pool.pk: pool for pool in Pool.objects.filter(pk__in=ids)}
        self.default = self._own[key.pool_id]
        patterns = split(key.pools_allowed)
        self._matches = any_matcher(patterns) if patterns else None
        self._budgets = [pool for pool in self._own.values() if self.is_budget(pool)]

    def is_budget(self, pool: Pool) -> bool:
        """Whether every request of the key draws on it, whatever it names."""
        key = self.key
        return pool.pk in (key.own_pool_id, key.agent.pool_id, key.agent.team.pool_id)

    def may_name(self, pool: Pool) -> bool:
        """Whether a request of the key may name it."""
        if pool.pk in self._own or pool.team_id == self.key.agent.team_id:
            return True
        return self._matches is not None and self._matches(pool.name)

    def named(self, name: str | None) -> Pool:
        """The pool of that name, or the default. Raises `UnknownPoolError`, or `ForbiddenError` for somebody else's."""
        pool = self.default if name is None else named(name)
        if not self.may_name(pool):
            raise ForbiddenError(
                f"This API key may not draw on the pool '{pool.name}'.", code="pool_not_allowed", param="pool"
            )
        return pool

    def chain(self, pool: Pool) -> list[Pool]:
        """Every pool a reservation on this one draws on. Raises `ForbiddenError` when one of them is disabled."""
        chosen = self.default if self.is_budget(pool) else pool
        pools = {each.pk: each for each in (chosen, *self._budgets)}
        if any(not each.enabled for each in pools.values()):
            raise ForbiddenError("A pool this API key draws on is disabled.", code="pool_disabled", param="pool")
        return list(pools.values())

    def usable(self) -> list[Pool]:
        """All enabled pools the key draws on or may name, by name."""
        rows = Pool.objects.filter(enabled=True).order_by("name")
        return [pool for pool in rows.iterator() if self.may_name(pool)][:LISTED_MAX]


def named(name: str) -> Pool:
    """The enabled pool of that name. Raises `UnknownPoolError`."""
    pool = Pool.objects.filter(name=name, enabled=True).first()
    if pool is None:
        raise UnknownPoolError(name)
    return pool


@dataclass(frozen=True, slots=True)
class Balance:
    """One purse; amounts in its unit. `capacity` None = no limit."""

    capacity: int | None
    used: int
    reserved: int  # held for running requests and by reservations

    @property
    def available(self) -> int | None:
        """What is left; None where there is no limit."""
        return None if self.capacity is None else max(0, self.capacity - self.used - self.reserved)


@dataclass(frozen=True, slots=True)
class PoolBalance:
    """A pool's present window (Unix seconds; 0 = the beginning, never), in both units."""

    pool: Pool
    start: int
    end: int
    tokens: Balance
    money: Balance  # pico-USD


def balances(pools: Iterable[Pool]) -> list[PoolBalance]:
    """The present windows of these pools, in a few queries however many there are."""
    pools = list(pools)
    known = ledger.balances(pools)
    idle = idle_at_workers()
    return [_balance(pool, known[pool.pk], idle) for pool in pools]


def left(chain: Iterable[PoolBalance]) -> int | None:
    """The tokens a reservation through all these pools could have; None where nothing limits them."""
    limits = [each.tokens.available for each in chain if each.pool.mode != Pool.Mode.OBSERVE]
    return min((limit for limit in limits if limit is not None), default=None)


def allows(chain: Iterable[PoolBalance], tokens: int) -> bool:
    """Whether there is room for `tokens` in all these pools, as each counts it by its mode."""
    for each in chain:
        available = each.tokens.available
        if available is None or each.pool.mode == Pool.Mode.OBSERVE:
            continue
        if available < (min(1, tokens) if each.pool.mode == Pool.Mode.SOFT else tokens):
            return False
    return True


def idle_at_workers() -> dict[Purse, int]:
    """What the workers have of each purse without using it, as they told within the last second or so."""
    idle: dict[Purse, int] = {}
    for worker in plane.current.workers() if plane.current is not None else []:
        status = worker.get("status")
        for entry in (status.get("idle") or []) if isinstance(status, Mapping) else []:
            pool_id, unit, start, free = entry
            idle[pool_id, unit, start] = idle.get((pool_id, unit, start), 0) + free
    return idle


def _balance(pool: Pool, known: ledger.PoolBalance, idle: Mapping[Purse, int]) -> PoolBalance:
    tokens, money = (
        Balance(
            capacity=purse.capacity,
            used=purse.committed,
            reserved=max(0, purse.leased - idle.get((pool.pk, purse.unit, known.start), 0)),
        )
        for purse in known.purses
    )
    return PoolBalance(pool, known.start, known.end, tokens, money)


def shown(balance: PoolBalance) -> dict[str, Any]:
    """A pool as `/v1/tokens/pools` lists it."""
    tokens, money = balance.tokens, balance.money
    return {
        "name": balance.pool.name,
        "capacity": tokens.capacity,
        "used": tokens.used,
        "available": tokens.available,
        "reserved": tokens.reserved,
        "capacity_usd": _usd(money.capacity),
        "used_usd": _usd(money.used),
        "available_usd": _usd(money.available),
        "window": balance.pool.window,
        "window_start": _moment(balance.start),
        "window_end": _moment(balance.end),
        "mode": balance.pool.mode,
    }


def _usd(pico: int | None) -> str | None:
    return None if pico is None else format(usd(pico).normalize(), "f")


def _moment(at_s: int) -> dt.datetime | None:
    return dt.datetime.fromtimestamp(at_s, dt.UTC) if at_s else None
