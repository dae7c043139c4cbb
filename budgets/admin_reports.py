"""The page of costs: what was used and what it cost, by whom, where and when, exact to the last pico-USD.

Figures are `budgets.reports`, so they are the sums of the usage rows. Nothing is deleted by a new reporting period: it
only says from where on the next figures count.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, QueryDict
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.crypto import get_random_string

from audit.admin_tools import live_site, number
from budgets import amounts, reports
from budgets.admin_orders import may_correct, place, sent
from budgets.forms import SUBMISSION, OrderForm
from budgets.models import Agent, ApiKey, LedgerOrder, LedgerState, Pool, Team

GROUPS = {
    "team": "Team",
    "agent": "Agent",
    "key": "Key",
    "provider": "Provider",
    "model": "Model",
    "route": "Route",
    "pool": "Pool",
    "day": "Day (UTC)",
}
_NARROWER = {"team": "agent", "agent": "key", "provider": "model", "route": "model", "pool": "key", "key": "model"}
_ROWS_SHOWN = 200
_BARS, _BARS_LEAST = 92, 14
_UNPRICED_SHOWN = 20
_QUOTED = 40
_RECENT_DAYS = 31  # shown when nothing else is asked for
_PERIODS_OFFERED = 24
_NAMES_AT_ONCE = 5_000  # a statement takes only so many values
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet would compute
_CSV_COLUMNS = (
    *("requests", "attempts", "errors", "unpriced"),
    *("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens", "tokens"),
)


@dataclass(frozen=True, slots=True)
class Question:
    """What the page is asked for, from its query string; what makes no sense there is left out, and told."""

    group: str
    filters: Mapping[str, int | str]
    since: dt.date | None
    until: dt.date | None  # the last day
    period: int | None  # a reporting period's number, `reports.CURRENT` or None for all; only without dates
    is_recent: bool  # nothing was asked for: the last days, as far as they are in the period in force
    problems: tuple[str, ...]  # what was left out, as sentences

    @classmethod
    def read(cls, query: QueryDict) -> Question:
        """The question in a query string."""
        problems: list[str] = []
        group = query.get("group", "")
        if group and group not in GROUPS:
            problems.append(f"There is no grouping “{_quoted(group)}”; it is one of {', '.join(GROUPS)}.")
        since, until = (_date(query, name, problems) for name in ("since", "until"))
        if since and until and since > until:
            problems.append(f"The first day, {since}, is after the last, {until}; both are left out.")
            since = until = None
        filters: dict[str, int | str] = {}
        for name in GROUPS:
            value = query.get(name, "")
            if name == "model" and value:
                filters[name] = value[:256]
            elif name != "day" and (found := number(value)) is not None:
                filters[name] = found
            elif name != "day" and value:
                problems.append(f"“{_quoted(value)}” is not the number of a {GROUPS[name].lower()}; it is left out.")
        asked = query.get("period", "")
        period = number(asked)
        if asked not in ("", "all", "current") and period is None:
            problems.append(f"There is no reporting period “{_quoted(asked)}”.")
        if since or until or asked == "all":
            period = None
        elif period is None:
            period = reports.CURRENT
        is_recent = period == reports.CURRENT and asked != "current"
        chosen = group if group in GROUPS else "team"
        return cls(chosen, filters, since, until, period, is_recent, tuple(problems))

    def totals(self, *group_by: str, unpriced_only: bool = False) -> list[reports.Total]:
        """The sums by these dimensions."""
        return reports.totals(group_by, unpriced_only=unpriced_only, **self._scope())

    def leading(self) -> reports.Leading:
        """The rows of the table, as many as are shown, and the sums by day."""
        if self.group != "day":
            return reports.leading(self.group, top=_ROWS_SHOWN, **self._scope())
        days = self.totals("day")
        newest = sorted(days, key=lambda total: str(total.keys["day"]), reverse=True)
        return reports.Leading(newest[:_ROWS_SHOWN], len(days), days)

    def _scope(self) -> dict[str, Any]:
        recent = timezone.now().astimezone(dt.UTC).date() - dt.timedelta(days=_RECENT_DAYS - 1)
        since = recent if self.is_recent else self.since
        return {
            "filters": {name: [value] for name, value in self.filters.items()},
            "since": _midnight(since) if since else None,
            "until": _midnight(self.until + dt.timedelta(days=1)) if self.until else None,
            "period": self.period,
        }

    @property
    def period_value(self) -> str:
        """The reporting period as the page's form writes it."""
        if self.period == reports.CURRENT:
            return "" if self.is_recent else "current"
        return "all" if self.period is None else str(self.period)

    def query(self, **changes: str | None) -> str:
        """The query string of this question with changes; None takes a part out."""
        parts: dict[str, str | None] = {"group": self.group}
        parts |= {name: str(value) for name, value in self.filters.items()}
        if self.since or self.until:
            parts["since"] = self.since.isoformat() if self.since else None
            parts["until"] = self.until.isoformat() if self.until else None
        else:
            parts["period"] = self.period_value or None
        return "?" + urlencode({name: value for name, value in (parts | changes).items() if value is not None})


def _date(query: QueryDict, name: str, problems: list[str]) -> dt.date | None:
    text = query.get(name, "")
    if not text:
        return None
    try:
        day = dt.date.fromisoformat(text)
    except ValueError:
        problems.append(f"“{_quoted(text)}” is no day such as 2027-01-31; it is left out.")
        return None
    if not 1970 <= day.year < 9999:
        problems.append(f"The day {day} is out of range, the years 1970 to 9998; it is left out.")
        return None
    return day


def _quoted(text: str) -> str:
    return text[:_QUOTED] + ("…" if len(text) > _QUOTED else "")


def _midnight(day: dt.date) -> int:
    return int(dt.datetime.combine(day, dt.time(), dt.UTC).timestamp())


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table."""

    name: str
    url: str  # the same figures for this row only, by something narrower; "" = none
    total: reports.Total
    share: str  # of the whole, in percent of the bar


@dataclass(frozen=True, slots=True)
class DayBar:
    """One bar of the chart, in its coordinates: ten wide, a hundred high."""

    x: int
    y: str
    height: str
    label: str


def costs_view(page: Any, request: HttpRequest) -> HttpResponse:
    """The report as a page, or as CSV with `?format=csv`, which is 400 where the page has a message. For who may see
    usage rows."""
    if not request.user.has_perm("budgets.view_usage"):
        raise PermissionDenied
    question = Question.read(request.GET)
    if request.GET.get("format") == "csv":
        if question.problems:  # a file would be another answer, with nothing to tell it by
            return HttpResponse("\n".join(question.problems), "text/plain; charset=utf-8", 400)
        return _csv(page, question)
    found = question.leading()
    name_of = _names(page, question.group, found.first)
    whole = _sum(found.days)
    bars, by_money = _bars(found.days)
    periods, since = _periods()
    context = {
        **page.admin_site.each_context(request),
        "title": "Costs",
        "question": question,
        "groups": GROUPS,
        "group_name": GROUPS[question.group],
        "periods": periods,
        "chosen_period": question.period_value,
        "recent_days": _RECENT_DAYS,
        "period_since": since,
        "chips": _chips(page, question),
        "lines": _lines(question, found.first, name_of, whole),
        "more": found.groups - len(found.first),
        "whole": whole,
        "bars": bars,
        "bars_width": 10 * len(bars),
        "bars_of": "cost" if by_money else "tokens",
        "unpriced": _unpriced(page, question) if whole.unpriced else [],
        "csv_query": question.query(format="csv"),
        "may_correct": may_correct(request),
    }
    return TemplateResponse(request, "admin/costs/report.html", context)


def period_view(page: Any, request: HttpRequest) -> HttpResponse:
    """Ask, then order that a new reporting period begins."""
    if not may_correct(request):
        raise PermissionDenied
    form = OrderForm(sent(request))
    if request.method == "POST" and form.is_valid():
        response = place(page, request, form, "period", {})
        if response is not None:
            return response
    words = {
        "title": "Start a new reporting period?",
        "text": "Costs are counted from zero again on the page of costs and in the API. Nothing is deleted: the "
        "periods before stay in the list, and budgets are not touched.",
        "button": "Start a new period",
    }
    context = {
        **page.admin_site.each_context(request),
        "title": words["title"],
        "words": words,
        "form": form,
        "opts": LedgerOrder._meta,
        SUBMISSION: get_random_string(22),
    }
    return TemplateResponse(request, "admin/costs/period.html", context)


def _names(page: Any, group: str, found: Sequence[reports.Total]) -> Callable[[Any], str]:
    """What the values of a dimension are called: one query for each `_NAMES_AT_ONCE` of them."""
    if group in ("model", "day"):
        return lambda value: str(value) or "(none)"
    values = sorted({total.keys[group] for total in found}, key=str)
    names: dict[Any, str] = {}
    for at in range(0, len(values), _NAMES_AT_ONCE):
        names |= _name_table(page, group, set(values[at : at + _NAMES_AT_ONCE]))
    return lambda value: names.get(value) or (f"#{value}" if value else "(none)")


def _name_table(page: Any, group: str, values: set[Any]) -> Mapping[Any, str]:
    match group:
        case "provider":
            return live_site(page).provider_names()
        case "route":
            return live_site(page).route_names(values)
        case "agent":
            return {agent.pk: str(agent) for agent in Agent.objects.select_related("team").filter(pk__in=values)}
        case "key":
            rows = ApiKey.objects.filter(pk__in=values).values_list("pk", "name", "prefix")
            return {pk: f"{name} ({prefix}…)" for pk, name, prefix in rows}
    model = {"team": Team, "pool": Pool}[group]
    return dict(model._default_manager.filter(pk__in=values).values_list("pk", "name"))


def _chips(page: Any, question: Question) -> list[tuple[str, str, str]]:
    """The filters in force: dimension, name, and the address without it."""
    chips = []
    for dimension, value in question.filters.items():
        name = str(value) if dimension == "model" else _name_table(page, dimension, {value}).get(value, f"#{value}")
        chips.append((GROUPS[dimension], name, question.query(**{dimension: None})))
    return chips


def _lines(
    question: Question, found: Sequence[reports.Total], name_of: Callable[[Any], str], whole: reports.Total
) -> list[Line]:
    lines = []
    for total in found:
        value = total.keys[question.group]
        if whole.cost_usd:
            share = total.cost_usd / whole.cost_usd
        else:
            share = Decimal(total.tokens) / max(1, whole.tokens)
        lines.append(Line(name_of(value), _narrow(question, value), total, f"{share * 100:.2f}"))
    return lines


def _narrow(question: Question, value: Any) -> str:
    if question.group == "day":
        return question.query(group="team", since=str(value), until=str(value), period=None)
    narrower = _NARROWER.get(question.group)
    if narrower is None or value == "" or narrower in question.filters:
        return ""
    return question.query(**{"group": narrower, question.group: str(value)})


def _sum(found: Sequence[reports.Total]) -> reports.Total:
    counts = {name: sum(getattr(total, name) for total in found) for name in (*_CSV_COLUMNS, "latency_us")}
    return reports.Total(keys={}, cost_usd=sum((total.cost_usd for total in found), Decimal(0)), **counts)


def _bars(found: Sequence[reports.Total]) -> tuple[list[DayBar], bool]:
    """A bar for each day from the first to the last with anything, but at least of two weeks and at most of three
    months; and whether the bars are money rather than tokens."""
    by_day = {total.keys["day"]: total for total in found}
    if not by_day:
        return [], False
    last = max(by_day)
    assert isinstance(last, dt.date)
    first = max(min(by_day), last - dt.timedelta(days=_BARS - 1))
    assert isinstance(first, dt.date)
    first = min(first, last - dt.timedelta(days=_BARS_LEAST - 1))
    days = [first + dt.timedelta(days=number) for number in range((last - first).days + 1)]
    by_money = any(by_day[day].cost_usd for day in days if day in by_day)
    amount_of = {
        day: (by_day[day].cost_usd if by_money else Decimal(by_day[day].tokens)) if day in by_day else Decimal(0)
        for day in days
    }
    greatest = max(amount_of.values()) or Decimal(1)
    bars = []
    for position, day in enumerate(days):
        height = amount_of[day] * 100 / greatest
        total = by_day.get(day)
        what = f"{amounts.short_usd(total.cost_usd)}, {amounts.count(total.tokens)} tokens" if total else "nothing"
        bars.append(DayBar(10 * position + 1, f"{100 - height:.2f}", f"{height:.2f}", f"{day.isoformat()}: {what}"))
    return bars, by_money


def _periods() -> tuple[list[tuple[str, str]], str]:
    """The reporting periods to choose from, and since when the current one is."""
    state = dict(LedgerState.objects.filter(name__in=("period", "period_since")).values_list("name", "value"))
    current, since_s = state.get("period", 0), state.get("period_since", 0)
    since = f"{dt.datetime.fromtimestamp(since_s, dt.UTC):%Y-%m-%d %H:%M} UTC" if since_s else ""
    earlier = range(current - 1, max(-1, current - 1 - _PERIODS_OFFERED), -1)
    recent = ("", f"this one, the last {_RECENT_DAYS} days")
    return [
        recent,
        ("current", "this one"),
        *((str(period), f"number {period}") for period in earlier),
        ("all", "all"),
    ], since


def _unpriced(page: Any, question: Question) -> list[tuple[str, str, int, str]]:
    """What no price is known for: provider, model, attempts, and where to add a price."""
    providers = live_site(page).provider_names()
    found = question.totals("provider", "upstream_model", "model", unpriced_only=True)
    attempts: dict[tuple[str, str], int] = {}
    for total in found:
        provider = providers.get(int(total.keys["provider"]), "*")  # type: ignore[arg-type]
        model = str(total.keys["upstream_model"] or total.keys["model"])
        attempts[provider, model] = attempts.get((provider, model), 0) + total.unpriced
    add = reverse("admin:budgets_price_add")
    ranked = sorted(attempts.items(), key=lambda item: (-item[1], item[0]))[:_UNPRICED_SHOWN]
    return [
        (provider, model, count, f"{add}?{urlencode({'provider': provider, 'pattern': model})}")
        for (provider, model), count in ranked
    ]


def _csv(page: Any, question: Question) -> HttpResponse:
    found = question.totals(question.group)
    if question.group == "day":
        found.sort(key=lambda total: str(total.keys["day"]), reverse=True)
    name_of = _names(page, question.group, found)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([f"{question.group}_value", question.group, *_CSV_COLUMNS, "cost_usd"])
    for total in found:
        value = total.keys[question.group]
        counts = [getattr(total, name) for name in _CSV_COLUMNS]
        writer.writerow([_cell(str(value)), _cell(name_of(value)), *counts, f"{total.cost_usd:.12f}"])
    response = HttpResponse(text.getvalue(), content_type="text/csv; charset=utf-8")
    response.headers["content-disposition"] = f'attachment; filename="costs-by-{question.group}.csv"'
    return response


def _cell(text: str) -> str:
    """A text no spreadsheet takes for a formula: callers choose model names."""
    return f"'{text}" if text.startswith(_FORMULA) else text
