"""Teams and agents of a configuration file, with the pools that are their budgets, and the rows as plain data.

Rows an import made are changed by it; an operator's are left as they are. None is deleted or disabled because a file
names it no longer: it may have keys, which are no configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import Model

from budgets import access
from budgets.file_tables import Outcome, at, each, refuse_unknown, whole
from budgets.models.access import Agent, Pool, Team

OWNER = "import"
LIMIT_FIELDS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")
_KEYS = {"team": frozenset({"name", "enabled", "note", "budget", *LIMIT_FIELDS})}
_KEYS["agent"] = _KEYS["team"] | {"team"}
_KEYS["team"] |= {"privacy_policy"}


@dataclass(frozen=True, slots=True)
class WantedMember:
    """A team, or an agent of one: the names of its budget and of its privacy policy ("" = none) and its other values.

    `where` is its place.
    """

    where: str
    name: str
    budget: str
    values: Mapping[str, Any]
    team: str | None = None  # of an agent; None = it is a team itself
    privacy_policy: str = ""  # of a team


def apply(wanted: Sequence[WantedMember], outcome: Outcome, *, actor: str, adopt: bool) -> None:
    """Write what is wanted, teams before their agents; the pools are there. `ValidationError` names the place."""
    for member in sorted(wanted, key=lambda member: member.team is not None):
        row: Team | Agent | None
        if member.team is None:
            what, row = f"team “{member.name}”", Team.objects.filter(name=member.name).first()
        else:
            what = f"agent “{member.name}” of the team “{member.team}”"
            row = Agent.objects.filter(team__name=member.team, name=member.name).first()
        values = {**member.values, "pool": _budget(member)}
        if member.team is None:
            values["privacy_policy"] = _privacy_policy(member)
        known = row is not None
        differs = row is None or any(getattr(row, name) != value for name, value in values.items())
        if row is not None and row.managed_by != OWNER and not adopt:
            if differs:
                outcome.warnings.append(f"The {what} was made by an operator; it is left as it is.")
            continue
        if row is None:
            row = _new(member, outcome, actor)
        for name, value in {**values, "managed_by": OWNER}.items():
            setattr(row, name, value)
        at(member.where, _save, row, actor)
        if differs:
            outcome.changes.append(f"{what} {'changed' if known else 'created'}")


def team_named(place: str, name: str, changes: list[str], *, actor: str) -> Team:
    """The team of that name, made where there is none."""
    team = Team.objects.filter(name=name).first()
    if team is None:
        team = at(place, access.save_team, Team(name=name, managed_by=OWNER), actor=actor)
        changes.append(f"team “{name}” created")
    return team


def _new(member: WantedMember, outcome: Outcome, actor: str) -> Team | Agent:
    if member.team is None:
        return Team(name=member.name)
    team = team_named(f"{member.where}.team", member.team, outcome.changes, actor=actor)
    return Agent(team=team, name=member.name)


def _budget(member: WantedMember) -> Pool | None:
    pool = Pool.objects.filter(name=member.budget).first() if member.budget else None
    if member.budget and pool is None:
        raise ValidationError(f"{member.where}.budget: there is no pool named “{member.budget}”.")
    return pool


def _privacy_policy(member: WantedMember) -> Model | None:
    """The policy of that name, another application's row."""
    policies: type[Model] = Team._meta.get_field("privacy_policy").related_model
    policy = policies._default_manager.filter(name=member.privacy_policy).first() if member.privacy_policy else None
    if member.privacy_policy and policy is None:
        place = f"{member.where}.privacy_policy"
        raise ValidationError(f"{place}: there is no privacy policy named “{member.privacy_policy}”.")
    return policy


def _save(row: Team | Agent, actor: str) -> None:
    if isinstance(row, Team):
        access.save_team(row, actor=actor)
    else:
        access.save_agent(row, actor=actor)


def tables() -> dict[str, Any]:
    """All of them: {"team": […], "agent": […]}."""
    teams = Team.objects.select_related("pool", "privacy_policy").order_by("name")
    agents = Agent.objects.select_related("team", "pool").order_by("team__name", "name")
    return {
        "team": [_table(row, {"name": row.name}) for row in teams],
        "agent": [_table(row, {"name": row.name, "team": row.team.name}) for row in agents],
    }


def _table(row: Team | Agent, table: dict[str, Any]) -> dict[str, Any]:
    table["enabled"] = row.enabled
    if row.note:
        table["note"] = row.note
    if row.pool is not None:
        table["budget"] = row.pool.name
    if isinstance(row, Team) and row.privacy_policy is not None:
        table["privacy_policy"] = row.privacy_policy.name
    return table | {name: limit for name in LIMIT_FIELDS if (limit := getattr(row, name)) is not None}


def from_tables(found: Mapping[str, Any], reasons: list[str]) -> list[WantedMember]:
    """The teams and agents of a file of our own; what is wrong is added to `reasons`."""
    return [_read(kind, *entry, reasons) for kind in ("team", "agent") for entry in each(found, kind, reasons)]


def _read(kind: str, where: str, table: Mapping[str, Any], reasons: list[str]) -> WantedMember:
    refuse_unknown(where, table, _KEYS[kind], reasons)
    texts = {"name": table.get("name"), "note": table.get("note", ""), "budget": table.get("budget", "")}
    if kind == "agent":
        texts["team"] = table.get("team")
    else:
        texts["privacy_policy"] = table.get("privacy_policy", "")
    for key, value in texts.items():
        if not isinstance(value, str) or (key in ("name", "team") and not value):
            reasons.append(f"{where}.{key} must be a text.")
    enabled = table.get("enabled", True)
    if not isinstance(enabled, bool):
        reasons.append(f"{where}.enabled must be true or false.")
    name, note, budget = (str(texts[key]) for key in ("name", "note", "budget"))
    team = str(texts["team"]) if kind == "agent" else None
    limits = {key: whole(f"{where}.{key}", table[key], reasons) if key in table else None for key in LIMIT_FIELDS}
    policy = str(texts.get("privacy_policy", ""))
    return WantedMember(where, name, budget, {"enabled": enabled, "note": note, **limits}, team, policy)
