"""Who may call: the only writer of teams, agents, pools and prices, and the feed of what changed.

Each write validates, moves the "access" (or "prices") sequence, stamps the row with it and records an audit entry, in
one transaction. The sequence's row stays locked until that ends, so numbers become visible in their order and a
reader that asks for everything above a number misses nothing. `budgets.keys` writes API keys by the same means.
"""

from __future__ import annotations

import datetime as dt
import logging
from decimal import Decimal
from typing import TypeVar

from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models import F, ProtectedError, Q
from django.utils import timezone

from audit.changes import changed_fields, object_of, recordable
from audit.record import record
from budgets import validation
from budgets.limits import PoolLimits
from budgets.models.access import Agent, AnomalyAction, ApiKey, Pool, Price, Sequence, Team
from budgets.prices import IMPORT_SOURCE, PICO_PER_USD
from budgets.records import QUEUE_CLASSES, KeyRecord, Limited, PoolRecord, PriceRecord, Unit

log = logging.getLogger("hoosh.prices")

ACCESS, PRICES = "access", "prices"
DEFAULT_POOL = "default"
DEFAULT_CAPACITY_TOKENS = 10_000_000
THROTTLE_RPM = 6  # of an agent that is held back, where its row does not say
FIRST_RUN = "init"  # `managed_by` of rows the first run made and no operator has touched
_TOKENS_PER_MTOK = 10**6

Row = TypeVar("Row", bound=Team | Agent | Pool | ApiKey)


# Writing


def save_team(team: Team, *, actor: str) -> Team:
    """Create or change a team. Disabling one stops the keys of all its agents, and all of them draw on its budget."""
    return write(team, what="team", actor=actor)


def save_agent(agent: Agent, *, actor: str) -> Agent:
    """Create or change an agent. Disabling one stops its keys, and all of them draw on its budget."""
    return write(agent, what="agent", actor=actor)


def throttle_agent(agent: Agent, until: dt.datetime | None, *, actor: str) -> Agent:
    """Hold an agent back until a time, or (None) no more. Who lets it go at that time is `budgets.anomaly_watch`."""
    agent = Agent.objects.get(pk=agent.pk)
    agent.throttled_until = until
    return write(agent, what="agent", actor=actor, action="throttled" if until else "released")


def save_pool(pool: Pool, *, actor: str, managed_by: str | None = None) -> Pool:
    """Create or change a pool. The ledger learns of it from `pool_limits`.

    Another kind of window, or other days by another time zone, begin a window now: none that was is opened again.
    `managed_by` is for the importer and the first run; a pool changed by anybody else is the operator's from then on.
    """
    if managed_by is not None:
        pool.managed_by = managed_by
    elif pool.managed_by == FIRST_RUN:
        pool.managed_by = ""
    before = Pool.objects.filter(pk=pool.pk).first() if pool.pk else None
    if before is not None:
        pool.window_since = before.window_since
        if _calendar(before) != _calendar(pool):
            pool.window_since = int(timezone.now().timestamp())
    return write(pool, what="pool", actor=actor)


def _calendar(pool: Pool) -> tuple[str, str]:
    lifetime = pool.window == Pool.Window.LIFETIME  # has no days: its time zone says nothing
    return pool.window, "" if lifetime else pool.time_zone


def pool_users(pool: Pool) -> list[str]:
    """What draws on a pool, in words: keys (revoked ones count), teams and agents. Empty: it may be deleted."""
    counts = (
        ("API keys (revoked ones count)", ApiKey.objects.filter(Q(pool=pool) | Q(own_pool=pool)).count()),
        ("teams", Team.objects.filter(pool=pool).count()),
        ("agents", Agent.objects.filter(pool=pool).count()),
    )
    return [f"{count} {what}" for what, count in counts if count]


def delete_pool(pool: Pool, *, actor: str) -> None:
    """Delete a pool nothing draws on; its balances stay in the ledger. `ValidationError` while something does."""
    users = pool_users(pool)
    if users:
        raise ValidationError(f"This pool is drawn on: {', '.join(users)}. Disable it instead.")
    _delete(pool, "pool", actor, ACCESS)


def delete_agent(agent: Agent, *, actor: str) -> None:
    """Delete an agent that never had a key. `ValidationError` otherwise."""
    if agent.keys.exists():
        raise ValidationError("This agent has API keys (revoked ones count). Disable it instead.")
    _delete(agent, "agent", actor, ACCESS)


def delete_team(team: Team, *, actor: str) -> None:
    """Delete a team without agents and projects. `ValidationError` otherwise."""
    if team.agents.exists():
        raise ValidationError("This team has agents. Disable it instead.")
    if team.pools.exists():
        raise ValidationError("Pools are projects of this team. Make them nobody's first.")
    _delete(team, "team", actor, ACCESS)


def add_price(price: Price, *, actor: str) -> Price:
    """Add a dated price row. Prices are never changed, since usage rows name them: a new price is a new row."""
    if not price._state.adding:
        raise ValidationError("A price is not changed. Add one with a later date.")
    price.full_clean()
    with transaction.atomic():
        price.seq = bump(PRICES)
        price.save(force_insert=True)
        data = {"object": object_of(price), "fields": recordable(changed_fields(None, price))}
        record("price.added", actor=actor, target=str(price)[:200], data=data)
    return price


def write(row: Row, *, what: str, actor: str, action: str = "") -> Row:
    """Validate and store a row of this application, move the sequence and record it. Nothing changed = nothing done."""
    before = type(row)._default_manager.filter(pk=row.pk).first() if row.pk else None
    row.full_clean()
    changes = changed_fields(before, row)
    if before is not None and not changes:
        return row
    with transaction.atomic():
        row.seq = bump(ACCESS)
        if before is None:
            row.save(force_insert=True)
        else:
            row.save(update_fields=[*changes, "seq"])
        action = action or ("created" if before is None else "changed")
        data = {"object": object_of(row), "fields": recordable(changes)}
        record(f"{what}.{action}", actor=actor, target=str(row)[:200], data=data)
    return row


def hold(name: str = ACCESS) -> None:
    """Hold a sequence until the transaction ends: for who must read a row as it is when it is written."""
    Sequence.objects.get_or_create(name=name)
    Sequence.objects.select_for_update().get(name=name)


def bump(name: str) -> int:
    """Move a sequence by one and return it. Call inside the transaction of the change."""
    if not Sequence.objects.filter(name=name).update(value=F("value") + 1):
        Sequence.objects.get_or_create(name=name)
        Sequence.objects.filter(name=name).update(value=F("value") + 1)
    return Sequence.objects.values_list("value", flat=True).get(name=name)


def _delete(row: models.Model, what: str, actor: str, sequence: str) -> None:
    try:
        with transaction.atomic():
            bump(sequence)
            record(f"{what}.deleted", actor=actor, target=str(row)[:200], data={"object": object_of(row)})
            row.delete()
    except ProtectedError as exc:  # something took it into use just now
        raise ValidationError(f"The {what} is in use. Disable it instead.") from exc


def default_pool(actor: str) -> Pool:
    """The pool that imported and first-run keys draw on; made on first use."""
    pool = Pool.objects.filter(name=DEFAULT_POOL).first()
    if pool is None:
        pool = Pool(name=DEFAULT_POOL, capacity_tokens=DEFAULT_CAPACITY_TOKENS)
        save_pool(pool, actor=actor, managed_by=FIRST_RUN)
    return pool


def agent_named(team_name: str, agent_name: str, *, actor: str) -> Agent:
    """The agent of that name in the team of that name; both are made when missing."""
    team = Team.objects.filter(name=team_name).first() or save_team(Team(name=team_name), actor=actor)
    agent = Agent.objects.filter(team=team, name=agent_name).first()
    return agent or save_agent(Agent(team=team, name=agent_name), actor=actor)


# Feeding


def sequences() -> dict[str, int]:
    """The "access" and "prices" sequences; 0 before the first change."""
    return {ACCESS: 0, PRICES: 0} | dict(Sequence.objects.values_list("name", "value"))


def changes_since(seq: int) -> tuple[int, list[KeyRecord], list[PoolLimits]]:
    """The number to ask with next time, the keys changed after `seq` (0 = all of them), and all pools.

    A key also counts as changed when its agent or team did; revoked keys are told as disabled. Where nothing at all
    changed, both lists are empty.
    """
    now = sequences()[ACCESS]  # first: what changes while rows are read is told again next time, never lost
    if now <= seq:
        return now, [], []
    keys = ApiKey.objects.select_related("agent__team").order_by("id")
    if seq > 0:
        keys = keys.filter(Q(seq__gt=seq) | Q(agent__seq__gt=seq) | Q(agent__team__seq__gt=seq))
    return now, [key_record(key) for key in keys], pool_limits()  # after the keys: no key names a pool not told of


def key_record(key: ApiKey) -> KeyRecord:
    """An API key as workers know it."""
    agent, team = key.agent, key.agent.team
    return KeyRecord(
        id=key.pk,
        digest=bytes.fromhex(key.digest),
        prefix=key.prefix,
        name=key.name,
        agent_id=key.agent_id,
        team_id=agent.team_id,
        pool_id=key.pool_id,
        scopes=validation.split(key.scopes),
        models=validation.split(key.models_allowed),
        expires_at=key.expires_at.timestamp() if key.expires_at else None,
        enabled=key.revoked_at is None and agent.enabled and team.enabled,
        budget_ids=tuple(sorted({budget for budget in (team.pool_id, agent.pool_id, key.own_pool_id) if budget})),
        pools_allowed=validation.split(key.pools_allowed),
        key_limits=_limits(key),
        agent_limits=_throttled(agent, _limits(agent)),
        team_limits=_limits(team),
        privacy_policy_id=team.privacy_policy_id or 0,
        queue_class=QUEUE_CLASSES.index(key.queue_class),
        endpoints=validation.split(key.endpoints_allowed),
        addresses=validation.split(key.addresses_allowed),
        loop_limit=0 if agent.anomaly_action == AnomalyAction.OFF else agent.loop_limit or 0,
    )


def _limits(row: ApiKey | Agent | Team) -> Limited:
    return row.requests_per_minute or 0, row.tokens_per_minute or 0, row.concurrent_requests or 0


def _throttled(agent: Agent, limits: Limited) -> Limited:
    """An agent that is held back has its own limit of requests, or the lower one it has anyway."""
    if agent.throttled_until is None:
        return limits
    most = agent.throttle_rpm or THROTTLE_RPM
    return min(limits[0] or most, most), *limits[1:]


def pool_record(pool: Pool) -> PoolRecord:
    """A pool as workers know it, but for its window: that is the feed's to say."""
    limited = zip(Unit, pool.limits, strict=True)
    return PoolRecord(
        id=pool.pk,
        name=pool.name,
        mode=pool.mode,
        enabled=pool.enabled,
        units=tuple(int(unit) for unit, capacity in limited if capacity is not None),
        shorten=pool.shorten,
        team_id=pool.team_id or 0,
    )


def pool_limits() -> list[PoolLimits]:
    """Every pool with what its windows in the ledger come from."""
    return [
        PoolLimits(
            record=pool_record(pool),
            window=pool.window,
            time_zone=pool.time_zone,
            since=pool.window_since,
            capacities=pool.limits,
            alerts=",".join(map(str, sorted({int(percent) for percent in validation.split(pool.alert_percents)}))),
            carry_over=pool.carry_over,
        )
        for pool in Pool.objects.order_by("id")
    ]


def prices() -> list[PriceRecord]:
    """Every dated price, in pico-USD per token (per request for `request`). Rows that cannot be read are logged."""
    found = [price_record(row) for row in Price.objects.order_by("id")]
    for number in unreadable_prices():
        log.error("price_unreadable", extra={"price_id": number})
    return found


def unreadable_prices() -> list[int]:
    """Ids of price rows whose amounts the database cannot give back: they price nothing."""
    return list(Price.stored.exclude(pk__in=Price.objects.values("pk")).order_by("pk").values_list("pk", flat=True))


def price_record(row: Price) -> PriceRecord:
    """A price as workers know it."""
    return PriceRecord(
        id=row.pk,
        provider=row.provider,
        pattern=row.pattern,
        input=_per_token(row.input_usd_per_mtok),
        cached_read=_maybe_per_token(row.cached_read_usd_per_mtok),
        cache_write=_maybe_per_token(row.cache_write_usd_per_mtok),
        output=_per_token(row.output_usd_per_mtok),
        reasoning=_maybe_per_token(row.reasoning_usd_per_mtok),
        request=int(row.request_usd * PICO_PER_USD),
        valid_from=row.valid_from.timestamp(),
        input_audio=_maybe_per_token(row.input_audio_usd_per_mtok),
        output_audio=_maybe_per_token(row.output_audio_usd_per_mtok),
        input_image=_maybe_per_token(row.input_image_usd_per_mtok),
        route=row.route,
        from_tokens=row.from_tokens,
        imported=row.source.startswith(IMPORT_SOURCE),
    )


def _per_token(usd_per_mtok: Decimal) -> int:
    return int(usd_per_mtok * PICO_PER_USD / _TOKENS_PER_MTOK)


def _maybe_per_token(usd_per_mtok: Decimal | None) -> int | None:
    return None if usd_per_mtok is None else _per_token(usd_per_mtok)
