"""The usage ledger in admin: read only, newest first, one page of any age at the same cost.

Rows carry plain ids of keys, agents, pools and providers (on SQLite those live in another database), so names are
looked up for the page that is shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from audit.admin_tools import BEFORE, KeysetAdmin, KeysetChangeList, LiveSite, badge, cursor_of, live_site, number
from budgets import amounts, usage_pages, usage_search
from budgets.admin_cells import money, pool_link
from budgets.models import Agent, ApiKey, DecisionShape, Pool, Price, Usage
from budgets.records import PRICE_FREE, PRICE_NONE, PRICE_UNKNOWN, Basis

_STATUS_WORDS = {"ok": "ok", "left": "499", "client": "4xx", "server": "5xx"}
_LAST_SECOND = 253_402_300_799  # there is
_DAY = timedelta(days=1)
BASIS_WORDS: dict[int, str] = {
    Basis.REPORTED: "reported by the provider",
    Basis.ESTIMATED: "estimated from the bytes, because the provider reported nothing usable",
    Basis.BOUND: "the whole hold, because nobody knows how it ended",
    Basis.DELIVERED: "what was announced as delivered before it was cut off",
    Basis.NONE: "nothing was used",
    Basis.KEPT: "the part of a kept answer's first cost that its route asks for",
}
# Parts of the input and of the output; what is left of either is plain text.
_INPUT_PARTS = (
    ("cached_tokens", "read from the provider's cache"),
    ("cache_write_tokens", "written to the provider's cache"),
    ("input_audio_tokens", "audio"),
    ("input_image_tokens", "images"),
)
_OUTPUT_PARTS = (("reasoning_tokens", "reasoning"), ("output_audio_tokens", "audio"))


class StatusFilter(admin.SimpleListFilter):
    """What the client was told, by class. The list itself reads the choice: see `UsageChangeList`."""

    title = "status"
    parameter_name = "result"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The choices beside the list."""
        return [
            ("ok", "Answered"),
            ("left", "Client left (499)"),
            ("client", "Client's error (4xx)"),
            ("server", "Failed (5xx)"),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Usage]) -> QuerySet[Usage]:
        """All rows."""
        return queryset


class ProviderFilter(admin.SimpleListFilter):
    """Who answered. The list itself reads the choice."""

    title = "provider"
    parameter_name = "provider"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The choices beside the list: the providers there are now."""
        names = live_site(model_admin).provider_names()
        return [(str(number), name) for number, name in sorted(names.items(), key=lambda item: item[1])]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Usage]) -> QuerySet[Usage]:
        """All rows."""
        return queryset


class DayFilter(admin.SimpleListFilter):
    """A stretch of time. One is always chosen, because a rare status would else be looked for in the whole table."""

    title = "time"
    parameter_name = "day"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The choices beside the list; the first is the usual one."""
        return [("hour", "Last hour"), ("yesterday", "Yesterday"), ("week", "Last 7 days"), ("month", "Last 31 days")]

    def choices(self, changelist: Any) -> Any:
        """As usual, with the default named."""
        for choice in super().choices(changelist):
            yield {**choice, "display": "Last 24 hours"} if choice["display"] == "All" else choice

    def queryset(self, request: HttpRequest, queryset: QuerySet[Usage]) -> QuerySet[Usage]:
        """All rows."""
        return queryset


def span_of(chosen: str | None) -> usage_pages.Span:
    """The stretch of time that a choice of `DayFilter` means now."""
    now = timezone.now()
    today = datetime.combine(now.date(), datetime.min.time(), tzinfo=now.tzinfo)
    if chosen == "yesterday":
        return today - _DAY, today
    length = {"hour": _DAY / 24, "week": 7 * _DAY, "month": 31 * _DAY}.get(chosen or "", _DAY)
    return now - length, now + _DAY  # clocks of other hosts may be ahead


class NarrowFilter(admin.ListFilter):
    """Boxes beside the list for what is typed: key, agent, team, model, route, error. The list itself reads them."""

    title = "who and what"
    template = "admin/budgets/usage/narrow.html"

    def __init__(self, request: HttpRequest, params: dict[str, list[str]], model: Any, model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        for name in usage_search.SHOWN:
            if values := params.pop(name, []):
                self.used_parameters[name] = values[-1]

    def has_output(self) -> bool:
        """Always there."""
        return True

    def expected_parameters(self) -> list[str | None]:
        """One for each box."""
        return list(usage_search.SHOWN)

    def choices(self, changelist: Any) -> Any:
        """The boxes, and what else the address says, which the form must keep."""
        kept = [(name, value) for name, value in changelist.params.items() if name not in usage_search.SHOWN]
        boxes = [(name, self.used_parameters.get(name, "")) for name in usage_search.SHOWN]
        return [{"boxes": boxes, "kept": kept, "cleared": changelist.get_query_string(remove=usage_search.SHOWN)}]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Usage]) -> QuerySet[Usage]:
        """All rows."""
        return queryset


def search_of(params: Mapping[str, str], site: LiveSite) -> tuple[usage_search.Search, list[usage_search.Word]]:
    """What the parameters of a usage list look for: words in `q`, boxes, and choices beside the list."""
    words = usage_search.words_of(params.get("q", "")[:1000])
    words += [(name, params[name]) for name in usage_search.SHOWN if params.get(name, "").strip()]
    if result := _STATUS_WORDS.get(params.get("result", "")):
        words.append(("status", result))
    if (provider_id := number(params.get("provider", ""))) is not None:
        words.append(("provider", f"#{provider_id}"))
    return usage_search.compiled(words, providers=site.provider_names, routes=site.route_names), words


class UsageChangeList(KeysetChangeList):
    """The list of usage rows that match, with the names their ids stand for."""

    looked_to: datetime | None = None

    def get_results(self, request: HttpRequest) -> None:
        """Read the page, then the names: two small queries."""
        site = live_site(self.model_admin)
        self.search, words = search_of(request.GET.dict(), site)
        self.is_of_any_time = bool(usage_search.request_id(words))
        for problem in self.search.problems:
            messages.warning(request, problem)
        self.before = number(request.GET.get(BEFORE, "").split("-")[0])
        super().get_results(request)
        providers = site.provider_names()
        wanted = {usage.key_id for usage in self.result_list}
        names = dict(ApiKey.objects.filter(pk__in=wanted).values_list("pk", "name"))
        for usage in self.result_list:
            usage.provider_shown = providers.get(usage.provider_id) or _number_of(usage.provider_id)
            usage.key_shown = names.get(usage.key_id) or _number_of(usage.key_id)

    def read(self, rows: Any, limit: int) -> tuple[list[Any], str]:
        """A page of what matches; it may end early, and then says how far back it looked."""
        span = None if self.is_of_any_time else span_of(self.params.get("day"))
        if span is not None and self.before is not None:  # two upper bounds: SQLite might read from the other one
            second = min(self.before // 1_000_000 + 1, _LAST_SECOND)
            span = span[0], min(span[1], datetime.fromtimestamp(second, UTC))
        page = usage_pages.read(rows, self.search, span, limit)
        self.looked_to = page.looked_to
        return page.rows, cursor_of(page.behind) if page.behind else ""


def _number_of(number: int) -> str:
    return f"#{number}" if number else "-"


@admin.register(Usage)
class UsageAdmin(KeysetAdmin[Usage]):
    """What was charged, to whom, and how it was decided."""

    keyset = ("at", "id")
    list_display = ("time", "result", "model", "provider", "key", "endpoint", "charged", "cost", "latency")
    list_display_links = ("time",)
    list_filter = (DayFilter, NarrowFilter, StatusFilter, ProviderFilter)
    search_fields = ("rid",)  # shows the box; the words in it are read by `UsageChangeList`
    search_help_text = (
        "A request id of any time, or words that must all hold: key: agent: team: model:gpt-* route: provider: "
        "status:5xx error:upstream_timeout min:500ms"
    )
    change_list_template = "admin/budgets/usage/change_list.html"
    change_form_template = "admin/budgets/usage/change_form.html"
    fields = ("rid",)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list that knows names."""
        return UsageChangeList

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Usage], search_term: str
    ) -> tuple[QuerySet[Usage], bool]:
        """All rows: the list itself reads the words."""
        return queryset, False

    @admin.display(description="time (UTC)")
    def time(self, usage: Usage) -> SafeString:
        """Start of the request."""
        return format_html(
            '<span class="hoosh-number" title="{}">{}</span>', usage.at.isoformat(), f"{usage.at:%m-%d %H:%M:%S}"
        )

    @admin.display(description="status")
    def result(self, usage: Usage) -> SafeString:
        """The status with its colour, and the error's code."""
        return format_html("{} {}", badge(str(usage.status or "?"), tone(usage)), usage.error)

    @admin.display(description="provider")
    def provider(self, usage: Any) -> str:
        """Who answered."""
        return str(usage.provider_shown)

    @admin.display(description="key")
    def key(self, usage: Any) -> str:
        """Which key called."""
        return str(usage.key_shown)

    @admin.display(description="tokens")
    def charged(self, usage: Usage) -> SafeString:
        """Tokens charged to the pool."""
        return format_html('<span class="hoosh-number">{}</span>', f"{usage.tokens:,}")

    @admin.display(description="cost")
    def cost(self, usage: Usage) -> SafeString:
        """What it cost, in USD; in words where it cost nothing because of the price."""
        return cost_cell(usage)

    @admin.display(description="latency")
    def latency(self, usage: Usage) -> SafeString:
        """From the request's start to its end."""
        return format_html('<span class="hoosh-number">{}</span>', milliseconds(usage.latency_us))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """All numbers of one attempt, and the decision behind it."""
        usage = self.get_object(request, object_id) if self.has_view_permission(request) else None
        context = _detail(usage, live_site(self).provider_names()) if usage is not None else {}
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})


def tone(usage: Usage) -> str:
    """The colour of a row's status."""
    if usage.status >= 500 or usage.status == 0:
        return "bad"
    return "warn" if usage.status >= 400 or usage.error else "good"


def milliseconds(duration_us: int) -> str:
    """A duration for people: whole milliseconds, one decimal below ten."""
    return f"{duration_us / 1000:,.1f} ms" if duration_us < 10_000 else f"{duration_us // 1000:,} ms"


def cost_note(usage: Usage) -> SafeString | None:
    """Why the cost is by no price of the list; None where it is, or where nothing was used."""
    if usage.price_id == PRICE_FREE:
        return badge("free (local)")
    if usage.price_id == PRICE_NONE:
        return badge("not priced") if usage.attempts else badge("kept answer", "good")
    if usage.price_id == PRICE_UNKNOWN and usage.tokens:
        return badge("no price known", "bad")
    return None


def cost_cell(usage: Usage) -> SafeString:
    """The cost with six places, why it is by no price, or both."""
    note = cost_note(usage)
    if note is None:
        return money(usage.cost_usd)
    return format_html("{} {}", money(usage.cost_usd), note) if usage.cost_usd else note


def token_classes(usage: Usage) -> list[tuple[str, int, list[tuple[str, int]]]]:
    """Input and output with the parts of each that are not nothing."""
    found = []
    for name, total, parts in (
        ("Input", usage.input_tokens, _INPUT_PARTS),
        ("Output", usage.output_tokens, _OUTPUT_PARTS),
    ):
        found.append((name, total, [(words, getattr(usage, part)) for part, words in parts if getattr(usage, part)]))
    return found


def _price_of(usage: Usage, providers: dict[int, str]) -> dict[str, str]:
    """What a price for this row would begin with."""
    return {
        "provider": providers.get(usage.provider_id, "*"),
        "pattern": usage.upstream_model or usage.model,
    }


def pools_charged(usage: Usage) -> list[tuple[Any, str]]:
    """Every pool that was charged, as a link, with the window in the pool's zone."""
    places = [(usage.pool_id, usage.window_start)]
    if usage.pools:
        pairs = [text.split("@") for text in usage.pools.split()]
        whole = [(number(pair[0]), number(pair[1])) for pair in pairs if len(pair) == 2]  # the last may be cut off
        places = [(pool_id, start) for pool_id, start in whole if pool_id is not None and start is not None]
    pools = Pool.objects.in_bulk({pool_id for pool_id, _ in places})
    found = []
    for pool_id, start in places:
        pool = pools.get(pool_id)
        found.append((pool_link(pool_id, pool), amounts.span(start, 0, pool.time_zone if pool else "UTC")))
    return found


def _detail(usage: Usage, providers: dict[int, str]) -> dict[str, Any]:
    shape = DecisionShape.objects.filter(pk=usage.shape).first() if usage.shape else None
    try:
        decision = json.loads(shape.payload) if shape else None
    except ValueError:
        decision = None
    return {
        "title": f"Request {usage.rid}",
        "subtitle": None,
        "tone": tone(usage),
        "latency": milliseconds(usage.latency_us),
        "first_byte": milliseconds(usage.ttft_us) if usage.ttft_us else "",
        "provider": providers.get(usage.provider_id) or _number_of(usage.provider_id),
        "key": ApiKey.objects.filter(pk=usage.key_id).first(),
        "agent": Agent.objects.select_related("team").filter(pk=usage.agent_id).first(),
        "pools": pools_charged(usage),
        "price": Price.objects.filter(pk=usage.price_id).first() if usage.price_id > 0 else None,
        "cost_note": cost_note(usage),
        "is_unpriced": usage.price_id == PRICE_UNKNOWN and usage.tokens > 0,
        "add_price": f"{reverse('admin:budgets_price_add')}?{urlencode(_price_of(usage, providers))}",
        "basis": BASIS_WORDS.get(usage.basis, str(usage.basis)),
        "classes": token_classes(usage),
        "attempts": Usage.objects.filter(rid=usage.rid).order_by("attempt"),
        "decision": decision if isinstance(decision, dict) else None,
    }
