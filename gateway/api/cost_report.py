"""`GET /v1/costs`: what was asked for, who may see it, and the sums with names instead of ids."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.http import QueryDict

from budgets import reports
from budgets.models import Agent, ApiKey, LedgerState, Pool, Team
from budgets.models.fields import PLACES
from gateway.api.authentication import Caller
from gateway.api.fields import is_plain
from gateway.errors import BadRequestError, ForbiddenError, GatewayUnavailableError
from providers.catalog import is_local
from providers.models import Provider, Route

GROUPS = ("provider", "team", "agent", "key", "model", "day", "pool", "route")
GROUPS_MAX = 3
RECORDS_MAX = 10_000
TURN_WAIT_S = 3.0
_PARAMETERS = ("group_by", "from", "to", "period", "team")
_MICRO_PER_USD = 10**6
_turn = threading.Lock()


@dataclass(frozen=True, slots=True)
class Question:
    """A checked query. Days are whole days in UTC, both of them included."""

    group_by: tuple[str, ...]
    team: Team | None
    since: int | None
    until: int | None
    is_current: bool


def question(query: QueryDict, caller: Caller) -> Question:
    """The query of a request, checked. Raises `BadRequestError` naming the parameter, and `ForbiddenError`."""
    for name in query:
        if name not in _PARAMETERS:
            raise BadRequestError(f"There is no parameter '{name[:64]}'.", param=name[:64])
    group_by = tuple(dict.fromkeys(part.strip() for part in query.get("group_by", "provider").split(",")))
    unknown = [name for name in group_by if name not in GROUPS]
    if unknown:
        raise BadRequestError(f"group_by knows {', '.join(GROUPS)}; not '{unknown[0][:64]}'.", param="group_by")
    if len(group_by) > GROUPS_MAX:
        raise BadRequestError(f"group_by takes at most {GROUPS_MAX} dimensions at once.", param="group_by")
    period = query.get("period", "current")
    if period not in ("current", "all"):
        raise BadRequestError("period is 'current' or 'all'.", param="period")
    first, last = _day(query, "from"), _day(query, "to")
    if first is not None and last is not None and last < first:
        raise BadRequestError("'to' is a day before 'from'.", param="to")
    return Question(
        group_by=group_by,
        team=_team(query.get("team"), caller),
        since=None if first is None else _midnight(first),
        until=None if last is None else _midnight(last) + reports.DAY_S,
        is_current=period == "current",
    )


def _day(query: QueryDict, name: str) -> dt.date | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        day = dt.date.fromisoformat(text)
    except ValueError as exc:
        raise BadRequestError(f"'{name}' is a date such as 2026-11-30.", param=name) from exc
    if not 1970 <= day.year < 9999:
        raise BadRequestError(f"'{name}' is out of range: a year from 1970 to 9998.", param=name)
    return day


def _midnight(day: dt.date) -> int:
    return int(dt.datetime.combine(day, dt.time(), dt.UTC).timestamp())


def _team(asked: str | None, caller: Caller) -> Team | None:
    """The team whose costs are asked for: by name, or by id. None = all of them."""
    own = caller.key.agent.team if caller.key is not None and not caller.is_operator else None
    if own is None and not _sees_all(caller):
        raise ForbiddenError("This account may not see what was used.")
    if asked is None:
        return own
    team = Team.objects.filter(name=asked).first() if is_plain(asked) else None
    if team is None and asked.isascii() and asked.isdigit():
        team = Team.objects.filter(pk=int(asked[:18])).first()
    if own is not None:
        if team is None or team.pk != own.pk:
            raise ForbiddenError("This API key sees the costs of its own team only.", param="team")
        return own
    if team is None:
        shown = asked[:100] if asked.isprintable() else "…"
        raise BadRequestError(f"There is no team '{shown}'.", param="team")
    return team


def _sees_all(caller: Caller) -> bool:
    return caller.is_operator or (caller.user is not None and caller.user.has_perm("budgets.view_usage"))


@contextmanager
def turn() -> Iterator[None]:
    """The right to make a report: one at a time in this process, because each may read the whole ledger.

    Raises `GatewayUnavailableError` when it takes longer than `TURN_WAIT_S` to get it.
    """
    if not _turn.acquire(timeout=TURN_WAIT_S):
        raise GatewayUnavailableError(
            "Another report is being made. Try again shortly.", code="reports_busy", retry_after_s=TURN_WAIT_S
        )
    try:
        yield
    finally:
        _turn.release()


def answer(asked: Question, caller: Caller) -> dict[str, Any]:
    """The report. Raises `BadRequestError` when it would have more than `RECORDS_MAX` records."""
    try:
        found = reports.totals(
            asked.group_by,
            filters=None if asked.team is None else {"team": [asked.team.pk]},
            since=asked.since,
            until=asked.until,
            period=reports.CURRENT if asked.is_current else None,
            limit=RECORDS_MAX,
        )
    except reports.TooManyGroupsError as exc:
        raise BadRequestError(
            f"The report would have more than {RECORDS_MAX:,} records. Narrow it: fewer dimensions in group_by, "
            "fewer days (from, to), or one team.",
            param="group_by",
            code="too_many_records",
        ) from exc
    names = _Names(found, shows_addresses=caller.is_operator)
    cost = sum((total.cost_usd for total in found), Decimal(0))
    return {
        "total_requests": sum(total.requests for total in found),
        "total_prompt_tokens": sum(total.input_tokens for total in found),
        "total_completion_tokens": sum(total.output_tokens for total in found),
        **amounts(cost, "total_cost"),
        "unpriced_count": sum(total.unpriced for total in found),
        "team": asked.team.name if asked.team is not None else None,
        "group_by": list(asked.group_by),
        "period": period_in_force() if asked.is_current else None,
        "records": [{**names.of(total), **_figures(total)} for total in found],
    }


def period_in_force() -> dict[str, Any]:
    """Number and beginning of the reporting period."""
    state = dict(LedgerState.objects.filter(name__in=("period", "period_since")).values_list("name", "value"))
    since = state.get("period_since")
    began = dt.datetime.fromtimestamp(since, dt.UTC) if since else None
    return {"number": state.get("period", 0), "since": began}


def amounts(cost: Decimal, name: str) -> dict[str, Any]:
    """An amount as the API tells it: whole micro-USD, and exact."""
    return {f"{name}_micro_usd": int(cost * _MICRO_PER_USD), f"{name}_usd": f"{cost:.{PLACES}f}"}


def _figures(total: reports.Total) -> dict[str, Any]:
    return {
        "request_count": total.requests,
        "attempt_count": total.attempts,
        "error_count": total.errors,
        "unpriced_count": total.unpriced,
        "total_input_tokens": total.input_tokens,
        "total_cached_tokens": total.cached_tokens,
        "total_output_tokens": total.output_tokens,
        **amounts(total.cost_usd, "total_cost"),
    }


class _Names:
    """What the ids in the groups are called: one query for each dimension that is there."""

    def __init__(self, found: list[reports.Total], *, shows_addresses: bool) -> None:
        self._shows_addresses = shows_addresses
        self._names: dict[str, Mapping[int, Any]] = {}
        queries: Mapping[str, Callable[[set[int]], Mapping[int, Any]]] = {
            "provider": Provider.objects.in_bulk,
            "team": Team.objects.in_bulk,
            "agent": Agent.objects.in_bulk,
            "key": ApiKey.objects.in_bulk,
            "pool": Pool.objects.in_bulk,
            "route": Route.objects.in_bulk,
        }
        for name, query in queries.items():
            ids = {number for total in found if isinstance(number := total.keys.get(name), int)}
            if ids:
                self._names[name] = query(ids)

    def of(self, total: reports.Total) -> dict[str, Any]:
        """The fields that say which group it is. Rows that were deleted are told by their id."""
        told: dict[str, Any] = {}
        for name, value in total.keys.items():
            if not isinstance(value, int):
                told[name] = value
                continue
            row = self._names[name].get(value)
            told |= {name: row.name if row is not None else f"#{value}", f"{name}_id": value}
            if isinstance(row, Provider):
                told |= {"base_url": row.base_url} if self._shows_addresses else {}
                told["is_local"] = is_local(row.kind, row.address_class)
            elif name == "provider":
                told |= {"base_url": ""} if self._shows_addresses else {}
                told["is_local"] = False
        return told
