"""The ledger in admin: windows, leases, entries, alerts, reservations and operators' orders, all read only.

Only the ledger's writer changes these tables. What an operator wants done is an order (`budgets.orders`), placed on the
pages of pools and of quarantined leases and carried out by the writer.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from audit.admin_tools import KeysetAdmin, KeysetChangeList, badge
from budgets import amounts
from budgets.admin_cells import alert_badge, amount, change, lease_badge, moment, owner, pool_link
from budgets.admin_orders import may_correct, resolve_view
from budgets.models import Agent, ApiKey, Lease, LedgerEntry, Pool, PoolAlert, PoolWindow, Reservation
from budgets.records import Unit

_LEASES_SHOWN = 200


class UnitFilter(admin.SimpleListFilter):
    """Tokens or money, without asking the table which ones occur."""

    title = "unit"
    parameter_name = "counts"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The choices beside the list."""
        return [("tokens", "Tokens"), ("usd", "USD")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Rows of the chosen unit."""
        chosen = {"tokens": Unit.TOKENS, "usd": Unit.PICO_USD}.get(self.value() or "")
        return queryset if chosen is None else queryset.filter(**{f"{model_path(queryset)}unit": chosen.value})


def model_path(queryset: QuerySet[Any]) -> str:
    """The way from a row to its window's fields."""
    return "window__" if queryset.model is Lease else ""


class PoolNameChangeList(KeysetChangeList):
    """A page of rows that carry a pool's id (or their window does), with the pools they stand for."""

    def get_results(self, request: HttpRequest) -> None:
        """Read the page, then the pools: one further query."""
        super().get_results(request)
        wanted = {_place(row).pool_id for row in self.result_list}
        pools = Pool.objects.in_bulk(wanted)
        for row in self.result_list:
            row.pool_shown = pools.get(_place(row).pool_id)


def _place(row: Any) -> Any:
    """What says pool, unit and window of a row."""
    return row.window if isinstance(row, Lease) else row


class PoolRowsAdmin(KeysetAdmin[Any]):
    """A read-only list of rows about pools, found by the pool's name."""

    search_fields = ("pool_id",)  # only switches the search box on
    search_help_text = "Name of a pool, or a part of it."
    list_filter: ClassVar[Any] = (UnitFilter,)
    change_form_template = "admin/budgets/ledger/change_form.html"
    fields = ("pool_id",)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list that knows names."""
        return PoolNameChangeList

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Rows of the pools whose name has the term in it."""
        if not search_term:
            return queryset, False
        ids = list(Pool.objects.filter(name__icontains=search_term[:100]).values_list("pk", flat=True)[:1000])
        return queryset.filter(**{f"{model_path(queryset)}pool_id__in": ids}), False

    @admin.display(description="pool")
    def pool(self, row: Any) -> SafeString | str:
        """The pool's name, as a link to it."""
        return pool_link(_place(row).pool_id, row.pool_shown)

    @admin.display(description="window")
    def span(self, row: Any) -> SafeString:
        """When the window begins and ends, in the pool's time zone."""
        place, pool = _place(row), row.pool_shown
        zone = pool.time_zone if pool else "UTC"
        text = amounts.short_span(place.window_start, getattr(place, "window_end", 0), zone)
        return format_html('<span class="hoosh-span">{}</span>', text)

    @admin.display(description="unit")
    def counts(self, row: Any) -> str:
        """What is counted."""
        return "tokens" if _place(row).unit == Unit.TOKENS else "USD"

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Every number of one row, in words."""
        row = self.get_object(request, object_id) if self.has_view_permission(request) else None
        context: dict[str, Any] = {}
        if row is not None:
            row.pool_shown = Pool.objects.filter(pk=_place(row).pool_id).first()
            context = {"title": f"{self.opts.verbose_name} {row.pk}".capitalize(), "subtitle": None}
            context |= {"facts": self.facts(row), **self.more(request, row)}
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def facts(self, row: Any) -> list[tuple[str, Any]]:
        """What the page of one row says, in order."""
        return [("Pool", self.pool(row)), ("Window", self.span(row)), ("Unit", self.counts(row))]

    def more(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """What the page of one row shows beside its facts."""
        return {}


@admin.register(PoolWindow)
class PoolWindowAdmin(PoolRowsAdmin):
    """Balances: one row per pool, window and unit. Nothing is ever reset; a new window is a new row."""

    list_display = ("pool", "counts", "span", "capacity_shown", "committed_shown", "leased_shown", "overrun_shown")
    list_display_links = ("counts",)

    @admin.display(description="limit")
    def capacity_shown(self, row: PoolWindow) -> SafeString:
        """The limit with what was carried over or transferred."""
        return amount(row.unit, row.capacity)

    @admin.display(description="spent")
    def committed_shown(self, row: PoolWindow) -> SafeString:
        """What was charged."""
        return amount(row.unit, row.committed)

    @admin.display(description="leased")
    def leased_shown(self, row: PoolWindow) -> SafeString:
        """What workers hold."""
        return amount(row.unit, row.leased)

    @admin.display(description="overrun")
    def overrun_shown(self, row: PoolWindow) -> SafeString:
        """By how much the limit was passed."""
        return amount(row.unit, row.overrun) if row.overrun else SafeString("")

    def facts(self, row: PoolWindow) -> list[tuple[str, Any]]:
        """Every column."""
        return [
            *super().facts(row),
            ("Limit", amount(row.unit, row.capacity)),
            ("of which carried over or transferred", amount(row.unit, row.adjusted)),
            ("Spent", amount(row.unit, row.committed)),
            ("Leased to workers", amount(row.unit, row.leased)),
            ("Overrun", amount(row.unit, row.overrun)),
            ("Alerts at", f"{row.alerts.replace(',', ', ')} %" if row.alerts else "-"),
        ]

    def more(self, request: HttpRequest, row: PoolWindow) -> dict[str, Any]:
        """The leases on it."""
        return {"leases": row.leases.order_by("owner")[:_LEASES_SHOWN], "unit": row.unit}


@admin.register(Lease)
class LeaseAdmin(PoolRowsAdmin):
    """What workers may still spend, each incarnation from each window; quarantined ones wait for a decision."""

    list_display = (
        "owner_shown",
        "pool",
        "counts",
        "span",
        "remaining_shown",
        "granted_shown",
        "returned_shown",
        "standing",
    )
    list_display_links = ("owner_shown",)
    list_select_related = ("window",)
    list_filter = ("state", UnitFilter)

    def get_urls(self) -> list[URLPattern]:
        """What can be done about a dead worker's leases."""
        view = self.admin_site.admin_view(partial(resolve_view, self))
        return [path("resolve/<str:owner>/<str:kind>/", view, name="budgets_lease_resolve"), *super().get_urls()]

    @admin.display(description="owner")
    def owner_shown(self, row: Lease) -> SafeString:
        """The worker's incarnation, or the reservation."""
        return owner(row.owner)

    @admin.display(description="may still spend")
    def remaining_shown(self, row: Lease) -> SafeString:
        """What is left of the lease."""
        return amount(row.window.unit, row.remaining)

    @admin.display(description="granted")
    def granted_shown(self, row: Lease) -> SafeString:
        """What was given out in all."""
        return amount(row.window.unit, row.granted)

    @admin.display(description="returned")
    def returned_shown(self, row: Lease) -> SafeString:
        """What came back unspent."""
        return amount(row.window.unit, row.returned)

    @admin.display(description="state")
    def standing(self, row: Lease) -> SafeString:
        """Active or quarantined."""
        return lease_badge(row)

    def facts(self, row: Lease) -> list[tuple[str, Any]]:
        """Every column."""
        return [
            ("Owner", row.owner),
            *super().facts(row),
            ("State", self.standing(row)),
            ("May still spend", self.remaining_shown(row)),
            ("Granted", self.granted_shown(row)),
            ("Returned unspent", self.returned_shown(row)),
        ]

    def more(self, request: HttpRequest, row: Lease) -> dict[str, Any]:
        """The buttons of a quarantined lease."""
        quarantined = row.state == Lease.State.QUARANTINED
        return {"quarantined": quarantined, "owner": row.owner, "may_correct": may_correct(request)}


@admin.register(LedgerEntry)
class LedgerEntryAdmin(PoolRowsAdmin):
    """Changes of balances that are no usage. Never changed: a mistake is corrected by a further entry."""

    list_display = ("at_shown", "kind_shown", "pool", "change", "span", "actor", "note")
    list_display_links = ("at_shown",)
    list_filter = ("kind", UnitFilter)

    @admin.display(description="time (UTC)")
    def at_shown(self, row: LedgerEntry) -> SafeString:
        """When it was carried out."""
        return moment(row.at)

    @admin.display(description="kind")
    def kind_shown(self, row: LedgerEntry) -> str:
        """What happened."""
        return str(row.get_kind_display())

    @admin.display(description="amount")
    def change(self, row: LedgerEntry) -> SafeString:
        """The signed amount."""
        return change(row.unit, row.amount)

    def facts(self, row: LedgerEntry) -> list[tuple[str, Any]]:
        """Every column."""
        moved = "limit" if row.kind in (LedgerEntry.Kind.TRANSFER, LedgerEntry.Kind.CARRY) else "spent amount"
        order = reverse("admin:budgets_ledgerorder_change", args=(row.order_id,)) if row.order_id else ""
        return [
            ("Time", f"{row.at:%Y-%m-%d %H:%M:%S} UTC"),
            ("Kind", self.kind_shown(row)),
            *super().facts(row),
            (f"Added to the {moved}", self.change(row)),
            ("Order", format_html('<a href="{}">order {}</a>', order, row.order_id) if order else "-"),
            ("By", row.actor or "the gateway"),
            ("Note", row.note or "-"),
        ]


@admin.register(PoolAlert)
class PoolAlertAdmin(PoolRowsAdmin):
    """Shares of limits that were reached."""

    list_display = ("at_shown", "pool", "reached", "spent", "limit", "span")
    list_display_links = ("at_shown",)

    @admin.display(description="time (UTC)")
    def at_shown(self, row: PoolAlert) -> SafeString:
        """When it was reached."""
        return moment(row.at)

    @admin.display(description="reached")
    def reached(self, row: PoolAlert) -> SafeString:
        """The share of the limit."""
        return alert_badge(row)

    @admin.display(description="spent")
    def spent(self, row: PoolAlert) -> SafeString:
        """What was charged then."""
        return amount(row.unit, row.committed)

    @admin.display(description="limit")
    def limit(self, row: PoolAlert) -> SafeString:
        """The limit then."""
        return amount(row.unit, row.capacity)

    def facts(self, row: PoolAlert) -> list[tuple[str, Any]]:
        """Every column."""
        return [
            ("Time", f"{row.at:%Y-%m-%d %H:%M:%S} UTC"),
            *super().facts(row),
            ("Reached", self.reached(row)),
            ("Spent then", self.spent(row)),
            ("Limit then", self.limit(row)),
        ]


@admin.register(Reservation)
class ReservationAdmin(PoolRowsAdmin):
    """Tokens callers set aside themselves; they are reported or expire."""

    list_display = ("created", "pool", "tokens_shown", "actual_shown", "standing", "expires_at", "key")
    list_display_links = ("created",)
    list_filter = ("state",)

    @admin.display(description="time (UTC)")
    def created(self, row: Reservation) -> SafeString:
        """When it was made."""
        return moment(row.created_at)

    @admin.display(description="reserved")
    def tokens_shown(self, row: Reservation) -> SafeString:
        """Tokens set aside."""
        return amount(Unit.TOKENS, row.tokens)

    @admin.display(description="reported")
    def actual_shown(self, row: Reservation) -> SafeString:
        """Tokens the caller said it used."""
        return amount(Unit.TOKENS, row.actual, "-")

    @admin.display(description="state")
    def standing(self, row: Reservation) -> SafeString:
        """Open, reported or expired."""
        tones = {Reservation.State.OPEN: "warn", Reservation.State.REPORTED: "good"}
        return badge(row.state, tones.get(Reservation.State(row.state), ""))

    @admin.display(description="key")
    def key(self, row: Any) -> SafeString:
        """Whose it is."""
        url = reverse("admin:budgets_apikey_change", args=(row.key_id,))
        return format_html('<a href="{}">#{}</a>', url, row.key_id)

    def facts(self, row: Reservation) -> list[tuple[str, Any]]:
        """Every column, with names."""
        key = ApiKey.objects.filter(pk=row.key_id).first()
        agent = Agent.objects.select_related("team").filter(pk=row.agent_id).first()
        return [
            ("Reservation", row.pk),
            ("Made", f"{row.created_at:%Y-%m-%d %H:%M:%S} UTC"),
            ("Expires", f"{row.expires_at:%Y-%m-%d %H:%M:%S} UTC"),
            ("State", self.standing(row)),
            ("Pool", self.pool(row)),
            ("Draws on", row.draws),
            ("Reserved", self.tokens_shown(row)),
            ("Reported", self.actual_shown(row)),
            ("Agent", str(agent or row.agent_id)),
            ("Key", key.name if key else f"#{row.key_id}"),
        ]
