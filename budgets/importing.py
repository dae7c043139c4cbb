"""What a configuration file says about budgets: bringing the rows in line, and the rows as plain data.

Pools, imported tokens and prices; teams and agents are `budgets.members`. Owns only what an import made. Tokens are
matched by digest: an operator's changes to an imported key stay, and a key an operator revoked stays revoked.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import ValidationError
from django.utils import timezone

from budgets import access, keys, members, validation
from budgets.file_tables import Outcome, amount, at, each, moment, refuse_unknown, whole
from budgets.members import OWNER, WantedMember
from budgets.models.access import ApiKey, Pool, Price

OWNER_GONE = "import-gone"  # revoked because the file no longer names the token; comes back with it
AGENT = "imported"
_KEY_NAME = "imported token"
_SHORT_TOKEN = 20  # characters; below that a token can be guessed or was meant for a test
_AMOUNTS = (
    "input_usd_per_mtok",
    "cached_read_usd_per_mtok",
    "cache_write_usd_per_mtok",
    "output_usd_per_mtok",
    "reasoning_usd_per_mtok",
    "request_usd",
    "input_audio_usd_per_mtok",
    "output_audio_usd_per_mtok",
    "input_image_usd_per_mtok",
)
_PRICE_IDENTITY = ("provider", "pattern", "route", "from_tokens", "valid_from", *_AMOUNTS)
_PRICE_KEYS = frozenset({"source", *_PRICE_IDENTITY})
_POOL_TEXTS = ("window", "time_zone", "mode", "note")
_POOL_SWITCHES = ("carry_over", "shorten", "enabled")
_POOL_KEYS = frozenset(
    {"name", "capacity_tokens", "capacity_usd", "unlimited", "alert_percents", "team", *_POOL_TEXTS, *_POOL_SWITCHES}
)


@dataclass(frozen=True, slots=True)
class WantedPool:
    """A pool the file asks for: the values of its row that the file speaks of, and its team's name ("" = nobody's).

    What the file cannot say is left as it is. `team` None: the file knows no teams.
    """

    name: str
    values: Mapping[str, Any]
    team: str | None = None


def plain_pool(name: str, capacity_tokens: int) -> WantedPool:
    """A pool of a file that knows a limit of tokens and nothing else."""
    return WantedPool(name, {"capacity_tokens": capacity_tokens, "enabled": True, "note": ""})


@dataclass(frozen=True, slots=True)
class WantedToken:
    """A token the file lets in, and where it stands there."""

    text: str = field(repr=False)
    origin: str


def apply(
    pools: Sequence[WantedPool],
    tokens: Sequence[WantedToken],
    prices: Sequence[Price],
    *,
    teams: Sequence[WantedMember] = (),
    actor: str,
    adopt: bool = False,
    tokens_known: bool = True,
) -> Outcome:
    """Write what is wanted. Call inside a transaction. Raises `ValidationError` naming the place.

    `teams` are agents as well. Without `tokens_known` the file lets in more tokens than `tokens`; as nobody knows
    which, none is revoked.
    """
    outcome = Outcome()
    _pools(pools, actor, outcome, adopt=adopt)
    members.apply(teams, outcome, actor=actor, adopt=adopt)  # after the pools that are their budgets
    _retire_pools(pools, actor, outcome)
    if not tokens_known:
        outcome.warnings.append("Not all tokens are known; none was revoked.")
    _tokens(tokens, actor, outcome, may_revoke=tokens_known)
    _prices(prices, actor, outcome)
    return outcome


def _pools(wanted: Sequence[WantedPool], actor: str, outcome: Outcome, *, adopt: bool) -> None:
    for pool in wanted:
        known = Pool.objects.filter(name=pool.name).first()
        if known is not None and known.managed_by not in (OWNER, access.FIRST_RUN) and not adopt:
            outcome.warnings.append(f"The pool “{pool.name}” was made by an operator; it is left as it is.")
            continue
        row = Pool(name=pool.name) if known is None else known
        place = f"pool “{pool.name}”"
        wanted_values = dict(pool.values)
        if pool.team is not None:
            team = f"{place}: team"
            wanted_values["team"] = (
                members.team_named(team, pool.team, outcome.changes, actor=actor) if pool.team else None
            )
        before = {name: getattr(row, name) for name in wanted_values}
        for name, value in wanted_values.items():
            setattr(row, name, value)
        at(place, access.save_pool, row, actor=actor, managed_by=OWNER)
        if known is None or before != {name: getattr(row, name) for name in before}:
            verb = "created" if known is None else "changed"
            outcome.changes.append(f"{place} {verb}: {_limits(row)}")


def _default(name: str) -> Any:
    """What a field of a new pool is."""
    return getattr(Pool(), name)


def _limits(row: Pool) -> str:
    """A pool's limits in words."""
    limits = [f"{row.capacity_tokens:,} tokens"] if row.capacity_tokens is not None else []
    limits += [f"{row.capacity_usd.normalize():,f} USD"] if row.capacity_usd is not None else []
    each = "" if row.window == Pool.Window.LIFETIME else f" every {row.window}"
    return (" and ".join(limits) or "no limit") + each


def _retire_pools(wanted: Sequence[WantedPool], actor: str, outcome: Outcome) -> None:
    names = {pool.name for pool in wanted}
    for gone in Pool.objects.filter(managed_by=OWNER).exclude(name__in=names):
        _retire_pool(gone, actor, outcome)


def _retire_pool(row: Pool, actor: str, outcome: Outcome) -> None:
    if row.name == access.DEFAULT_POOL:
        for name in (*_POOL_TEXTS, *_POOL_SWITCHES, "capacity_usd", "alert_percents", "team"):
            setattr(row, name, _default(name))
        row.capacity_tokens = access.DEFAULT_CAPACITY_TOKENS
        access.save_pool(row, actor=actor, managed_by=access.FIRST_RUN)
        outcome.changes.append(f"pool “{row.name}” back at {row.capacity_tokens:,} tokens")
    elif not access.pool_users(row):
        outcome.changes.append(f"pool “{row.name}” removed")
        access.delete_pool(row, actor=actor)
    elif row.enabled:
        row.enabled = False
        access.save_pool(row, actor=actor, managed_by=OWNER)
        outcome.changes.append(f"pool “{row.name}” disabled, since it is drawn on")


def _tokens(wanted: Sequence[WantedToken], actor: str, outcome: Outcome, *, may_revoke: bool) -> None:
    rows = {row.digest: row for row in ApiKey.objects.filter(managed_by__in=(OWNER, OWNER_GONE))}
    digests = {keys.digest_of(token.text) for token in wanted}
    for digest, row in rows.items():
        if may_revoke and digest not in digests and row.managed_by == OWNER and row.revoked_at is None:
            _set_state(row, OWNER_GONE, timezone.now(), actor=actor, action="revoked")
            outcome.changes.append(f"key “{row}” revoked")
    for token in wanted:
        known = rows.get(keys.digest_of(token.text))
        if known is None:
            _new_token(token, actor, outcome)
        elif known.managed_by == OWNER_GONE:
            _set_state(known, OWNER, None, actor=actor, action="restored")
            outcome.changes.append(f"key “{known}” restored")
        elif known.revoked_at is not None:
            outcome.warnings.append(f"{token.origin} is the key “{known}”, which an operator revoked; it stays so.")


def _new_token(token: WantedToken, actor: str, outcome: Outcome) -> None:
    known = ApiKey.objects.filter(digest=keys.digest_of(token.text)).first()
    if known is not None:
        outcome.warnings.append(f"{token.origin} is already the key “{known}”, which an operator made.")
        return
    if len(token.text) < _SHORT_TOKEN:
        outcome.warnings.append(f"{token.origin} has only {len(token.text)} characters; make a new key soon.")
    agent = access.agent_named("default", AGENT, actor=actor)
    pool = access.default_pool(actor)
    row = at(token.origin, keys.import_key, token.text, agent, pool, _KEY_NAME, actor=actor, managed_by=OWNER)
    outcome.changes.append(f"key “{row}” imported")


def _set_state(row: ApiKey, managed_by: str, revoked_at: dt.datetime | None, *, actor: str, action: str) -> None:
    row.managed_by, row.revoked_at = managed_by, revoked_at
    access.write(row, what="key", actor=actor, action=action)


def _prices(wanted: Sequence[Price], actor: str, outcome: Outcome) -> None:
    for price in wanted:
        origin = f"price of {price.provider} {price.pattern}"
        at(origin, price.full_clean)  # before it is looked for: the database cannot be asked for every number
        same = {name: getattr(price, name) for name in _PRICE_IDENTITY}
        if not Price.objects.filter(**same).exists():
            at(origin, access.add_price, price, actor=actor)
            outcome.changes.append(f"price “{price}” added")


# As plain data, for our own file


def tables() -> dict[str, Any]:
    """Pools, teams, agents and prices by the names of their tables. Keys are no configuration and never leave."""
    pools = Pool.objects.select_related("team").order_by("name")
    prices = Price.objects.order_by("provider", "pattern", "route", "valid_from", "from_tokens", "id")
    return {
        "pool": [_pool_table(row) for row in pools],
        **members.tables(),
        "price": [_price_table(row) for row in prices],
    }


def _pool_table(row: Pool) -> dict[str, Any]:
    """What is needed to make the row again; what is as it is by default is left out, but for the mode."""
    table: dict[str, Any] = {"name": row.name}
    if row.capacity_tokens is None and row.capacity_usd is None:
        table["unlimited"] = True
    if row.capacity_tokens is not None:
        table["capacity_tokens"] = row.capacity_tokens
    if row.capacity_usd is not None:
        table["capacity_usd"] = str(row.capacity_usd)
    table |= {"mode": row.mode, "enabled": row.enabled}
    for name in ("window", "time_zone", "carry_over", "shorten", "note"):
        if getattr(row, name) != _default(name):
            table[name] = getattr(row, name)
    if row.alert_percents != _default("alert_percents"):
        table["alert_percents"] = [int(percent) for percent in validation.split(row.alert_percents)]
    if row.team is not None:
        table["team"] = row.team.name
    return table


def _price_table(row: Price) -> dict[str, Any]:
    narrower = {name: getattr(row, name) for name in ("route", "from_tokens") if getattr(row, name)}
    amounts = {name: str(getattr(row, name)) for name in _AMOUNTS if getattr(row, name) is not None}
    return {
        "provider": row.provider,
        "pattern": row.pattern,
        **narrower,
        "valid_from": row.valid_from,
        "source": row.source,
        **amounts,
    }


def from_tables(found: Mapping[str, Any]) -> tuple[list[WantedPool], list[WantedMember], list[Price]]:
    """Pools, teams with agents, and prices of a file of our own. Raises `ValidationError` with every wrong place."""
    reasons: list[str] = []
    pools = [_read_pool(where, table, reasons) for where, table in each(found, "pool", reasons)]
    teams = members.from_tables(found, reasons)
    prices = [_read_price(where, table, reasons) for where, table in each(found, "price", reasons)]
    if reasons:
        raise ValidationError(reasons)
    return pools, teams, prices


def _read_pool(where: str, table: Mapping[str, Any], reasons: list[str]) -> WantedPool:
    refuse_unknown(where, table, _POOL_KEYS, reasons)
    name, team = table.get("name"), table.get("team", "")
    if not isinstance(name, str) or not isinstance(team, str):
        reasons.append(f"{where} needs a name, and the name of its team must be a text.")
        return WantedPool("", {})
    values: dict[str, Any] = {"capacity_tokens": None, "capacity_usd": None}
    if "capacity_tokens" in table:
        values["capacity_tokens"] = whole(f"{where}.capacity_tokens", table["capacity_tokens"], reasons)
    if "capacity_usd" in table:
        values["capacity_usd"] = amount(f"{where}.capacity_usd", table["capacity_usd"], reasons)
    if table.get("unlimited", False) is not (values["capacity_tokens"] is None and values["capacity_usd"] is None):
        reasons.append(f"{where} needs capacity_tokens, capacity_usd or, with neither, unlimited = true.")
    for key, kind, what in (
        *((key, str, "a text") for key in _POOL_TEXTS),
        *((key, bool, "true or false") for key in _POOL_SWITCHES),
    ):
        value = table.get(key, _default(key))
        if not isinstance(value, kind):
            reasons.append(f"{where}.{key} must be {what}.")
        values[key] = value
    percents = table.get("alert_percents")
    if percents is None:
        values["alert_percents"] = _default("alert_percents")
    elif isinstance(percents, list) and all(type(percent) is int for percent in percents):
        values["alert_percents"] = ",".join(map(str, percents))
    else:
        reasons.append(f"{where}.alert_percents must be a list of whole numbers.")
    return WantedPool(name, values, team)


def _read_price(where: str, table: Mapping[str, Any], reasons: list[str]) -> Price:
    refuse_unknown(where, table, _PRICE_KEYS, reasons)
    price = Price(valid_from=moment(f"{where}.valid_from", table.get("valid_from"), reasons))
    for name in ("provider", "pattern", "route", "source"):
        value = table.get(name, getattr(price, name))
        if not isinstance(value, str):
            reasons.append(f"{where}.{name} must be a text.")
        else:
            setattr(price, name, value)
    price.from_tokens = whole(f"{where}.from_tokens", table.get("from_tokens", 0), reasons)
    for name in _AMOUNTS:
        if name in table:
            setattr(price, name, amount(f"{where}.{name}", table[name], reasons))
    return price
