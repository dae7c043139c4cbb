"""The pages of pools: limits to edit, and what became of them in the current window."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.safestring import SafeString

from audit.admin_tools import LiveAdmin, badge, number
from budgets import access, amounts, pool_state
from budgets.admin_cells import bars, quiet
from budgets.admin_orders import correct_view, may_correct, transfer_view
from budgets.balances import PoolBalance, balances
from budgets.forms import PoolForm
from budgets.models import Pool

_MODE_TONES = {Pool.Mode.HARD: "", Pool.Mode.SOFT: "warn", Pool.Mode.OBSERVE: "quiet"}


class PoolChangeList(ChangeList):
    """The list of pools, each with its balance from the ledger."""

    def get_results(self, request: HttpRequest) -> None:
        """Read the page, then its balances: one further query."""
        super().get_results(request)
        self.result_list = list(self.result_list)
        known = balances(self.result_list)
        for pool in self.result_list:
            pool.balance = known[pool.pk]


@admin.register(Pool)
class PoolAdmin(LiveAdmin[Pool]):
    """Budgets: what they may spend, what is spent, what workers hold."""

    form = PoolForm
    list_display = ("name", "bars", "left", "begins_anew", "mode_shown", "enabled")
    list_filter = ("enabled", "window", "mode")
    search_fields = ("name",)
    list_per_page = 50
    autocomplete_fields = ("team",)
    change_form_template = "admin/budgets/pool/change_form.html"
    fieldsets = (
        (None, {"fields": ("name", "enabled")}),
        (
            "Limit",
            {
                "fields": ("capacity_tokens", "capacity_usd"),
                "description": "A change is live within a second, in the current window as well. A limit below what is "
                "already spent or leased breaks nothing: what is under way ends and is charged, nothing new is "
                "admitted.",
            },
        ),
        (
            "Window",
            {
                "fields": ("window", "time_zone"),
                "description": "How often the limit is there anew. A change of either begins a new window at once; "
                "what was spent before stays with the old one.",
            },
        ),
        ("Near the limit", {"fields": ("mode", "shorten", "carry_over", "alert_percents")}),
        ("Project", {"fields": ("team", "note")}),
    )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list that knows balances."""
        return PoolChangeList

    def get_urls(self) -> list[URLPattern]:
        """The orders one can place from a pool's page."""
        wrap = self.admin_site.admin_view
        return [
            path("<int:pool_id>/correct/", wrap(partial(correct_view, self)), name="budgets_pool_correct"),
            path("<int:pool_id>/transfer/", wrap(partial(transfer_view, self)), name="budgets_pool_transfer"),
            *super().get_urls(),
        ]

    @admin.display(description="this window")
    def bars(self, pool: Any) -> SafeString:
        """Spent and leased parts of each limit as bars."""
        return bars(pool.balance)

    @admin.display(description="left")
    def left(self, pool: Any) -> SafeString:
        """What is not charged yet, of each limit."""
        balance: PoolBalance = pool.balance
        lines = [purse.short_left for purse in balance.shown]
        return format_html('<span class="hoosh-lines">{}</span>', "\n".join(lines))

    @admin.display(description="window", ordering="window")
    def begins_anew(self, pool: Any) -> SafeString:
        """How often it begins anew, and when next."""
        balance: PoolBalance = pool.balance
        if not balance.end:
            return quiet("lifetime")
        until = amounts.local(balance.end, pool.time_zone)
        return format_html('{} <span class="mini quiet">until {} {}</span>', pool.window, until, pool.time_zone)

    @admin.display(description="mode", ordering="mode")
    def mode_shown(self, pool: Pool) -> SafeString:
        """What happens at the limit."""
        return badge(pool.mode, _MODE_TONES.get(Pool.Mode(pool.mode), ""))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The form, with the state of the current window around it."""
        pool_id = number(object_id)
        pool = Pool.objects.filter(pk=pool_id).first() if pool_id is not None else None
        context: dict[str, Any] = {}
        if pool is not None and request.method == "GET" and self.has_view_permission(request, pool):
            context = {"state": pool_state.read(pool, request.user), "may_correct": may_correct(request)}
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def save_model(self, request: HttpRequest, obj: Pool, form: Any, change: bool) -> None:
        """Save, and say what a lower limit means when it is already used up."""
        super().save_model(request, obj, form, change)
        if change and {"capacity_tokens", "capacity_usd"} & set(form.changed_data):
            self._say_what_happens(request, obj)

    def _say_what_happens(self, request: HttpRequest, pool: Pool) -> None:
        balance = balances([pool])[pool.pk]
        for purse, limit in zip(balance.purses, pool.limits, strict=True):
            used = purse.committed + purse.leased
            if limit is not None and used > limit + purse.adjusted:
                self.message_user(
                    request,
                    f"The new limit ({amounts.shown(purse.unit, limit)}) is below what is spent and leased "
                    f"({amounts.shown(purse.unit, used)}): nothing new is admitted, what is under way ends normally.",
                    messages.WARNING,
                )

    def gate(self, request: HttpRequest, object_id: str | None) -> None:
        """Hold what writers of these rows take first."""
        access.hold()

    def write(self, row: Pool, actor: str) -> None:
        """Create or change a pool."""
        access.save_pool(row, actor=actor)

    def erase(self, row: Pool, actor: str) -> None:
        """Delete a pool nothing draws on."""
        access.delete_pool(row, actor=actor)
