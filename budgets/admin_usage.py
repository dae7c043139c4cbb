"""The usage ledger in admin: read only, newest first, one page of any age at the same cost.

Rows carry plain ids of keys, agents, pools and providers (on SQLite those live in another database), so names are
looked up for the page that is shown.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from audit.admin_tools import KeysetAdmin, KeysetChangeList, badge, live_site, number
from budgets import amounts
from budgets.admin_cells import money, pool_link
from budgets.models import Agent, ApiKey, DecisionShape, Pool, Price, Usage
from budgets.records import PRICE_FREE, PRICE_NONE, PRICE_UNKNOWN, Basis

_DAY = timedelta(days=1)
BASIS_WORDS: dict[int, str] = {
    Basis.REPORTED: "reported by the provider",
    Basis.ESTIMATED: "estimated from the bytes, because the provider reported nothing usable",
    Basis.BOUND: "the whole hold, because nobody knows how it ended",
    Basis.DELIVERED: "what was announced as delivered before it was cut off",
    Basis.NONE: "nothing was used",
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
    """What the client was told, by class."""

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
        """Rows of the chosen class."""
        match self.value():
            case "ok":
                return queryset.filter(status__gte=200, status__lt=400, error="")
            case "left":
                return queryset.filter(status=499)
            case "client":
                return queryset.filter(status__gte=400, status__lt=499)
            case "server":
                return queryset.filter(status__gte=500)
        return queryset


class ProviderFilter(admin.SimpleListFilter):
    """Who answered."""

    title = "provider"
    parameter_name = "provider"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The choices beside the list: the providers there are now."""
        names = live_site(model_admin).provider_names()
        return [(str(number), name) for number, name in sorted(names.items(), key=lambda item: item[1])]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Usage]) -> QuerySet[Usage]:
        """Rows of the chosen provider."""
        provider_id = number(self.value() or "")
        return queryset if provider_id is None else queryset.filter(provider_id=provider_id)


class DayFilter(admin.SimpleListFilter):
    """A stretch of time. One is always chosen, because a rare status would else be looked for in the whole table."""

    title = "time"
    parameter_name = "day"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The choices beside the list; the first is the usual one."""
        return [("yesterday", "Yesterday"), ("week", "Last 7 days"), ("month", "Last 31 days")]

    def choices(self, changelist: Any) -> Any:
        """As usual, with the default named."""
        for choice in super().choices(changelist):
            yield {**choice, "display": "Last 24 hours"} if choice["display"] == "All" else choice

    def queryset(self, request: HttpRequest, queryset: QuerySet[Usage]) -> QuerySet[Usage]:
        """Rows of the chosen stretch."""
        now = timezone.now()
        today = datetime.combine(now.date(), datetime.min.time(), tzinfo=now.tzinfo)
        match self.value():
            case "yesterday":
                return queryset.filter(at__gte=today - _DAY, at__lt=today)
            case "week":
                return queryset.filter(at__gte=now - 7 * _DAY)
            case "month":
                return queryset.filter(at__gte=now - 31 * _DAY)
        return queryset.filter(at__gte=now - _DAY)


class UsageChangeList(KeysetChangeList):
    """The list of usage rows, with the names their ids stand for."""

    def get_results(self, request: HttpRequest) -> None:
        """Read the page, then the names: two small queries."""
        super().get_results(request)
        providers = live_site(self.model_admin).provider_names()
        wanted = {usage.key_id for usage in self.result_list}
        names = dict(ApiKey.objects.filter(pk__in=wanted).values_list("pk", "name"))
        for usage in self.result_list:
            usage.provider_shown = providers.get(usage.provider_id) or _number_of(usage.provider_id)
            usage.key_shown = names.get(usage.key_id) or _number_of(usage.key_id)


def _number_of(number: int) -> str:
    return f"#{number}" if number else "-"


@admin.register(Usage)
class UsageAdmin(KeysetAdmin[Usage]):
    """What was charged, to whom, and how it was decided."""

    keyset = ("at", "id")
    list_display = ("time", "result", "model", "provider", "key", "endpoint", "charged", "cost", "latency")
    list_display_links = ("time",)
    list_filter = (DayFilter, StatusFilter, ProviderFilter)
    search_fields = ("=rid", "=client_request_id")
    search_help_text = "Exact request id (x-hoosh-request), inside the chosen time."
    change_form_template = "admin/budgets/usage/change_form.html"
    fields = ("rid",)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list that knows names."""
        return UsageChangeList

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


def cost_cell(usage: Usage) -> SafeString:
    """The cost with six places, or why there is none."""
    if usage.price_id == PRICE_FREE:
        return badge("free (local)")
    if usage.price_id == PRICE_NONE:
        return badge("not priced")
    if usage.price_id == PRICE_UNKNOWN and usage.tokens:
        return badge("no price known", "bad")
    return money(usage.cost_usd)


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
        "is_free": usage.price_id == PRICE_FREE,
        "is_not_priced": usage.price_id == PRICE_NONE,
        "is_unpriced": usage.price_id == PRICE_UNKNOWN and usage.tokens > 0,
        "add_price": f"{reverse('admin:budgets_price_add')}?{urlencode(_price_of(usage, providers))}",
        "basis": BASIS_WORDS.get(usage.basis, str(usage.basis)),
        "classes": token_classes(usage),
        "attempts": Usage.objects.filter(rid=usage.rid).order_by("attempt"),
        "decision": decision if isinstance(decision, dict) else None,
    }
