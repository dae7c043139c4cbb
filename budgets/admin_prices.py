"""The pages of prices: dated rows, never changed. A new price is a new row."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Case, Exists, OuterRef, Q, QuerySet, Value, When
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from audit.admin_tools import LiveAdmin, badge, number
from budgets import access
from budgets.admin_cells import figure
from budgets.forms import PriceForm, plain
from budgets.models import Price
from budgets.prices import IMPORT_SOURCE

_UNREADABLE_SHOWN = 10
_IMPORTED = Q(source__startswith=IMPORT_SOURCE)


class SourceFilter(admin.SimpleListFilter):
    """Where the price comes from."""

    title = "source"
    parameter_name = "from_source"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The choices beside the list: the sources there are."""
        names = Price.stored.order_by("source").values_list("source", flat=True).distinct()[:20]
        return [(name, name) for name in names]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Price]) -> QuerySet[Price]:
        """Rows of the chosen source."""
        return queryset.filter(source=self.value()) if self.value() else queryset


class StateFilter(admin.SimpleListFilter):
    """In force, past, later, or an imported row that an operator's own stands before."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The choices beside the list."""
        return [("now", "In force"), ("past", "Past"), ("overridden", "Overridden"), ("later", "Later")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Rows in the chosen state; `PriceAdmin.get_queryset` has found it out."""
        now = timezone.now()
        match self.value():
            case "now":
                return queryset.filter(valid_from__lte=now, is_superseded=False, is_overridden=False)
            case "past":
                return queryset.filter(valid_from__lte=now, is_superseded=True)
            case "overridden":
                return queryset.filter(valid_from__lte=now, is_superseded=False, is_overridden=True)
            case "later":
                return queryset.filter(valid_from__gt=now)
        return queryset


@admin.register(Price)
class PriceAdmin(LiveAdmin[Price]):
    """Dated prices. A row is never changed: a new price is a new row."""

    form = PriceForm
    list_display = ("pattern_shown", "provider", "per_input", "per_output", "since", "state")
    list_filter = (StateFilter, SourceFilter, "provider")
    search_fields = ("pattern", "provider", "route")
    ordering = ("provider", "pattern", "route", "from_tokens", "-valid_from")
    show_full_result_count = False
    change_form_template = "admin/budgets/price/change_form.html"
    fieldsets = (
        (None, {"fields": (("provider", "pattern"), ("route", "from_tokens"), ("valid_from", "source"))}),
        (
            "USD per million tokens",
            {
                "fields": (
                    ("input_usd_per_mtok", "output_usd_per_mtok"),
                    ("cached_read_usd_per_mtok", "cache_write_usd_per_mtok"),
                    "reasoning_usd_per_mtok",
                ),
                "description": "The classes are disjoint: a token is paid once, in its own class.",
            },
        ),
        (
            "USD per million tokens of sound and pictures",
            {
                "fields": (
                    ("input_audio_usd_per_mtok", "output_audio_usd_per_mtok"),
                    "input_image_usd_per_mtok",
                )
            },
        ),
        ("Per request", {"fields": ("request_usd",)}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Price]:
        """With whether a newer row has taken over, and whether an operator's own row stands before an imported one."""
        now = timezone.now()
        same = Price.stored.filter(
            **{name: OuterRef(name) for name in ("provider", "pattern", "route", "from_tokens")}, valid_from__lte=now
        )
        newer = same.filter(
            Q(valid_from__gt=OuterRef("valid_from")) | Q(valid_from=OuterRef("valid_from"), id__gt=OuterRef("id"))
        )
        queryset = super().get_queryset(request)
        return queryset.annotate(
            is_superseded=Case(
                When(_IMPORTED, then=Exists(newer.filter(_IMPORTED))),
                default=Exists(newer.exclude(_IMPORTED)),
            ),
            is_overridden=Case(When(_IMPORTED, then=Exists(same.exclude(_IMPORTED))), default=Value(False)),
        )

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The list, which says so when a row cannot be read."""
        unreadable = access.unreadable_prices()
        if unreadable and request.method == "GET":
            shown = ", ".join(map(str, unreadable[:_UNREADABLE_SHOWN]))
            self.message_user(
                request,
                f"{len(unreadable)} price row(s) have amounts too large to be read and price nothing (id {shown}). "
                "Add the right prices.",
                messages.WARNING,
            )
        return super().changelist_view(request, extra_context)

    @admin.display(description="pattern", ordering="pattern")
    def pattern_shown(self, price: Price) -> SafeString:
        """The pattern, with the route and the tier it is for, if not for everything."""
        tier = f"from {price.from_tokens:,} input tokens" if price.from_tokens else ""
        narrower = ", ".join(part for part in (f"route {price.route}" if price.route else "", tier) if part)
        return _over(price.pattern, narrower)

    @admin.display(description="valid from", ordering="valid_from")
    def since(self, price: Price) -> SafeString:
        """The day (UTC) it begins, the moment on hover."""
        return figure(f"{price.valid_from:%Y-%m-%d}", price.valid_from.isoformat())

    @admin.display(description="input", ordering="input_usd_per_mtok")
    def per_input(self, price: Price) -> SafeString:
        """USD per million input tokens."""
        return _per_million(price.input_usd_per_mtok)

    @admin.display(description="output", ordering="output_usd_per_mtok")
    def per_output(self, price: Price) -> SafeString:
        """USD per million output tokens."""
        return _per_million(price.output_usd_per_mtok)

    @admin.display(description="state")
    def state(self, price: Any) -> SafeString:
        """Whether this row is what is charged now, and where it comes from."""
        return _over(self._state(price), price.source)

    @staticmethod
    def _state(price: Any) -> SafeString:
        if price.valid_from > timezone.now():
            return badge("later", "warn")
        if price.is_superseded:
            return badge("past")
        return badge("overridden") if price.is_overridden else badge("in force", "good")

    def has_change_permission(self, request: HttpRequest, obj: Price | None = None) -> bool:
        """Usage rows name price rows: they stay as they were."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Price | None = None) -> bool:
        """Usage rows name price rows: they stay."""
        return False

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """Start from the row named by `?from=`, if any, else from the fields in the query string; and from now."""
        start: dict[str, Any] = {"valid_from": timezone.now().replace(microsecond=0), "source": "operator"}
        source = number(request.GET.get("from", ""))
        price = Price.objects.filter(pk=source).first() if source is not None else None
        if price is None:
            return {**super().get_changeform_initial_data(request), **start}
        values = forms.model_to_dict(price, fields=PriceForm.Meta.fields)
        return {**{name: plain(value) for name, value in values.items()}, **start}

    def write(self, row: Price, actor: str) -> None:
        """Add a price."""
        access.add_price(row, actor=actor)


def _over(first: str, second: str) -> SafeString:
    """Two lines of a cell, the second one small; "" = there is none."""
    return format_html('{}<br><span class="mini quiet">{}</span>' if second else "{}", first, second)


def _per_million(value: Decimal) -> SafeString:
    return format_html('<span class="hoosh-number">${}</span>', str(plain(value)))
