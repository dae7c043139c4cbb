"""What a pool's page shows beside its form: who spends and who draws, the forecast, alerts and ledger entries.

A fixed number of small queries. Each section is read only for users who may see the page it is taken from.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.urls import reverse

from budgets import amounts, reports
from budgets.balances import Balance, PoolBalance, balances
from budgets.forecast import Forecast
from budgets.models import Agent, ApiKey, Lease, LedgerEntry, Pool, PoolAlert, PoolWindow, Team
from budgets.records import Unit
from budgets.samples import forecast_of

_SPENDERS = 8
_DRAWERS = 8
_LATEST = 6
_HOUR_S = 3600
_SOON_S = 30 * 86_400


@dataclass(frozen=True, slots=True)
class Spender:
    """What one key spent in the window."""

    agent: str
    key: str
    key_url: str
    tokens: int
    cost_usd: Decimal
    requests: int
    share: str  # of what the greatest spender used, in percent


@dataclass(frozen=True, slots=True)
class Drawer:
    """Somebody whose requests draw on the pool."""

    kind: str
    name: str
    url: str


@dataclass(frozen=True, slots=True)
class Outlook:
    """When a purse runs out at the rate of late, in words."""

    unit: str
    text: str
    detail: str
    tone: str  # "bad" when it is spent, "warn" when it will be before the window ends (a lifetime: in 30 days), else ""


@dataclass(slots=True)
class PoolState:
    """A pool's page, read once."""

    balance: PoolBalance
    span: str  # the window, in the pool's zone
    ends_in: str  # how long it lasts yet, in words; "" = for ever
    forecasts: list[Outlook] = field(default_factory=list)
    drawers: list[Drawer] = field(default_factory=list)
    more_drawers: bool = False
    default_keys: int = 0
    default_keys_url: str = ""
    spenders_since: str = ""
    spenders: Sequence[Spender] = ()
    alerts: Sequence[PoolAlert] = ()
    entries: Sequence[LedgerEntry] = ()
    quarantined: Sequence[Lease] = ()
    sections: frozenset[str] = frozenset()


def read(pool: Pool, user: AbstractBaseUser | AnonymousUser) -> PoolState:
    """Look once at everything about the pool that this user may see."""
    now = time.time()
    balance = balances([pool], now)[pool.pk]
    state = PoolState(balance, amounts.span(balance.start, balance.end, pool.time_zone), _until(balance, now))
    state.sections = frozenset(
        name
        for name in ("usage", "poolalert", "ledgerentry", "lease")
        if user.has_perm(f"budgets.view_{name}")  # type: ignore[union-attr]
    )
    state.forecasts = [outlook(pool, balance, purse, now) for purse in balance.limited]
    _drawers(state, pool)
    if "usage" in state.sections:
        _spenders(state, pool)
    if "poolalert" in state.sections:
        state.alerts = list(PoolAlert.objects.filter(pool_id=pool.pk).order_by("-id")[:_LATEST])
    if "ledgerentry" in state.sections:
        state.entries = list(LedgerEntry.objects.filter(pool_id=pool.pk).order_by("-id")[:_LATEST])
    if "lease" in state.sections:
        found = Lease.objects.filter(window__pool_id=pool.pk, state=Lease.State.QUARANTINED)
        state.quarantined = list(found.select_related("window")[:_LATEST])
    return state


def _until(balance: PoolBalance, now: float) -> str:
    left_s = max(0, int(balance.end - now))
    for unit_s, name in ((86_400, "day"), (_HOUR_S, "hour"), (60, "minute")):
        if left_s >= 2 * unit_s:
            return f"{left_s // unit_s} {name}s"
    return f"{left_s} seconds" if balance.end else ""


def outlook(pool: Pool, balance: PoolBalance, purse: Balance, now: float) -> Outlook:
    """When a purse of a pool is spent, in words."""
    window = PoolWindow(
        pool_id=pool.pk,
        unit=purse.unit,
        window_start=balance.start,
        window_end=balance.end,
        capacity=purse.capacity,
        committed=purse.committed,
    )
    found = forecast_of(window, now)
    if purse.is_full:
        return Outlook(purse.unit_name, "spent", "", "bad")
    if found is None:
        return Outlook(purse.unit_name, "not known yet", "There are too few figures so far.", "")
    detail = f"At {_rate(purse.unit, found)} of late"
    if found.run_out is None and found.earliest is None:
        before = "before the window ends" if balance.end else "at this rate"
        return Outlook(purse.unit_name, f"does not run out {before}", f"{detail}.", "")
    earliest, latest = (
        amounts.local(int(moment), pool.time_zone) if moment is not None else "not before the window ends"
        for moment in (found.earliest, found.latest)
    )
    detail = f"{detail}. Give or take two standard deviations: earliest {earliest}, latest {latest}."
    if found.run_out is None:
        return Outlook(purse.unit_name, "probably lasts", detail, "")
    is_near = bool(balance.end) or found.run_out - now < _SOON_S  # a lifetime's budget ends some day, whatever it is
    text = f"runs out {amounts.local(int(found.run_out), pool.time_zone)}"
    return Outlook(purse.unit_name, text, detail, "warn" if is_near else "")


def _rate(unit: Unit, found: Forecast) -> str:
    per_hour = round(found.rate * _HOUR_S)
    return f"{amounts.shown(unit, max(0, per_hour))} an hour"


def _drawers(state: PoolState, pool: Pool) -> None:
    teams = list(Team.objects.filter(pool=pool)[: _DRAWERS + 1])
    agents = list(Agent.objects.filter(pool=pool).select_related("team")[: _DRAWERS + 1])
    keys = list(ApiKey.objects.filter(own_pool=pool, revoked_at__isnull=True)[: _DRAWERS + 1])
    rows: list[tuple[str, Team | Agent | ApiKey]] = [
        *(("every request of the team", team) for team in teams),
        *(("every request of the agent", agent) for agent in agents),
        *(("every request of the key", key) for key in keys),
    ]
    state.more_drawers = len(rows) > _DRAWERS
    state.drawers = [
        Drawer(kind, str(row), reverse(f"admin:budgets_{row._meta.model_name}_change", args=(row.pk,)))
        for kind, row in rows[:_DRAWERS]
    ]
    state.default_keys = ApiKey.objects.filter(pool=pool, revoked_at__isnull=True).count()
    state.default_keys_url = f"{reverse('admin:budgets_apikey_changelist')}?pool__id__exact={pool.pk}&state=active"


def _spenders(state: PoolState, pool: Pool) -> None:
    since = state.balance.start - state.balance.start % reports.DAY_S
    state.spenders_since = f"{datetime.fromtimestamp(since, UTC):%Y-%m-%d}" if since else ""
    found: dict[tuple[int, int], reports.Total] = {}
    for name, ids in _who(pool):
        for total in reports.totals(("agent", "key"), filters={name: ids}, since=since or None):
            found.setdefault((int(total.keys["agent"]), int(total.keys["key"])), total)  # type: ignore[arg-type]
    ranked = sorted(found.items(), key=lambda item: (-item[1].cost_usd, -item[1].tokens, item[0]))[:_SPENDERS]
    agents = Agent.objects.select_related("team").in_bulk({agent for (agent, _), _ in ranked})
    names = dict(ApiKey.objects.filter(pk__in=[key for (_, key), _ in ranked]).values_list("pk", "name"))
    state.spenders = _with_shares(ranked, agents, names)


def _who(pool: Pool) -> list[tuple[str, Collection[int]]]:
    """Filters of the requests that draw on a pool. All of a budget's requests do, of other keys those that named it
    or have it by default; so the first filter that knows a key is the right one."""
    found: list[tuple[str, Collection[int]]] = [
        ("team", list(Team.objects.filter(pool=pool).values_list("pk", flat=True))),
        ("agent", list(Agent.objects.filter(pool=pool).values_list("pk", flat=True))),
        ("key", list(ApiKey.objects.filter(own_pool=pool).values_list("pk", flat=True)[:500])),
        ("pool", [pool.pk]),
    ]
    return [(name, ids) for name, ids in found if ids]


def _with_shares(
    ranked: Sequence[tuple[tuple[int, int], reports.Total]], agents: Mapping[int, Agent], names: Mapping[int, str]
) -> list[Spender]:
    greatest_usd = max((total.cost_usd for _, total in ranked), default=Decimal(0))
    greatest = max((total.tokens for _, total in ranked), default=0)
    made = []
    for (agent_id, key_id), total in ranked:
        part = total.cost_usd / greatest_usd if greatest_usd else Decimal(total.tokens) / max(1, greatest)
        made.append(
            Spender(
                agent=str(agents.get(agent_id) or f"#{agent_id}"),
                key=names.get(key_id) or f"#{key_id}",
                key_url=reverse("admin:budgets_apikey_change", args=(key_id,)),
                tokens=total.tokens,
                cost_usd=total.cost_usd,
                requests=total.requests,
                share=f"{part * 100:.2f}",
            )
        )
    return made
