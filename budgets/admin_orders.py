"""What an operator orders to be done to the ledger: corrections, transfers, decisions about quarantined leases.

Balances are never edited. A form here places an order (`budgets.orders`), which the ledger's writer carries out once;
the order's own page says what came of it.
"""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet, Sum
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.crypto import get_random_string
from django.utils.safestring import SafeString

from audit.admin_tools import KeysetAdmin, live_site, operator
from budgets import amounts, orders
from budgets.admin_cells import amount, change, moment, order_badge, pool_link
from budgets.balances import PoolBalance, balances
from budgets.forms import SUBMISSION, CorrectionForm, OrderForm, ResolveForm, TransferForm, claim_submission
from budgets.models import Lease, LedgerOrder, Pool, PoolWindow
from budgets.records import Unit

CORRECT_LEDGER = "budgets.change_poolwindow"  # nobody changes a window by hand: who has it may order corrections
_LEASES_SHOWN = 200
_OWNERS_SHOWN = 20
_WINDOWS_OFFERED = 24
_SENT_BEFORE = "its order was placed then. Find it among the orders."


def may_correct(request: HttpRequest) -> bool:
    """Whether this user may order corrections, transfers and the resolution of quarantined leases."""
    return request.user.has_perm(CORRECT_LEDGER)


def place(page: Any, request: HttpRequest, form: OrderForm, kind: str, payload: dict[str, Any]) -> HttpResponse | None:
    """Place an order as this user and lead to its page; None, with the form's errors filled, when it was refused."""
    try:
        claim_submission(request, _SENT_BEFORE)
        order = orders.place(kind, payload, actor=operator(request), note=form.cleaned_data["note"])
    except ValidationError as exc:
        form.add_error(None, exc.messages)
        return None
    live_site(page).wake()
    return HttpResponseRedirect(reverse("admin:budgets_ledgerorder_change", args=(order.pk,)))


def sent(request: HttpRequest) -> QueryDict | None:
    """What a form was sent with; None when the page is only looked at."""
    return request.POST if request.method == "POST" else None


def correct_view(page: Any, request: HttpRequest, pool_id: int) -> HttpResponse:
    """Order a correcting entry for one of a pool's windows."""
    pool, balance = _pool(request, pool_id)
    form = CorrectionForm(sent(request), spans=_windows(pool, balance))
    if request.method == "POST" and form.is_valid():
        data = form.cleaned_data
        payload = {
            "pool_id": pool.pk,
            "unit": data["unit"],
            "window_start": data["window"],
            "amount": data["amount"],
        }
        response = place(page, request, form, "correction", payload)
        if response is not None:
            return response
    words = {
        "title": f"Correct the balance of “{pool.name}”",
        "text": "Usage rows and balances are never edited. A correcting entry is added to what is spent; it stays in "
        "the ledger with your name and your reason.",
        "button": "Place the correction",
    }
    return _show(page, request, pool, balance, form, words)


def transfer_view(page: Any, request: HttpRequest, pool_id: int) -> HttpResponse:
    """Order that a free part of a pool's limit moves to another pool."""
    pool, balance = _pool(request, pool_id)
    form = TransferForm(sent(request), source=pool)
    if request.method == "POST" and form.is_valid():
        data = form.cleaned_data
        payload = {
            "from_pool": pool.pk,
            "to_pool": data["to_pool"].pk,
            "unit": data["unit"],
            "amount": data["amount"],
        }
        response = place(page, request, form, "transfer", payload)
        if response is not None:
            return response
    words = {
        "title": f"Transfer from “{pool.name}”",
        "text": "A part of the limit of the current window moves to the current window of another pool. It is moved, "
        "not copied: both limits together stay what they were. The next windows begin with the limits of the pools.",
        "button": "Place the transfer",
    }
    return _show(page, request, pool, balance, form, words)


def _pool(request: HttpRequest, pool_id: int) -> tuple[Pool, PoolBalance]:
    if not may_correct(request):
        raise PermissionDenied
    pool = Pool.objects.filter(pk=pool_id).first()
    if pool is None:
        raise Http404("No such pool.")
    return pool, balances([pool])[pool.pk]


def _windows(pool: Pool, balance: PoolBalance) -> list[tuple[int, str]]:
    """The current window and the last ones before it, as choices."""
    rows = PoolWindow.objects.filter(pool_id=pool.pk, unit=Unit.TOKENS, window_start__lt=balance.start)
    earlier = rows.order_by("-window_start").values_list("window_start", "window_end")[:_WINDOWS_OFFERED]
    current = amounts.span(balance.start, balance.end, pool.time_zone)
    return [
        (balance.start, f"the current one: {current}"),
        *((start, amounts.span(start, end, pool.time_zone)) for start, end in earlier),
    ]


def _show(
    page: Any, request: HttpRequest, pool: Pool, balance: PoolBalance, form: OrderForm, words: dict[str, str]
) -> HttpResponse:
    context = {
        **page.admin_site.each_context(request),
        "opts": page.opts,
        "title": words["title"],
        "words": words,
        "form": form,
        "pool": pool,
        "balance": balance,
        SUBMISSION: get_random_string(22),
    }
    return TemplateResponse(request, "admin/budgets/pool/order.html", context)


def resolve_view(page: Any, request: HttpRequest, owner: str, kind: str) -> HttpResponse:
    """Ask, then order that the quarantined leases of one dead worker are written off as spent or given back, or that
    its journal is read again."""
    if not may_correct(request):
        raise PermissionDenied
    leases = list(_quarantined().filter(owner=owner).select_related("window")[:_LEASES_SHOWN])
    if kind not in ResolveForm.KINDS or not leases:
        raise Http404("There is no quarantined lease of this owner.")
    form = ResolveForm(sent(request))
    if request.method == "POST" and form.is_valid():
        response = place(page, request, form, kind, {"owner": owner})
        if response is not None:
            return response
    pools = Pool.objects.in_bulk({lease.window.pool_id for lease in leases})
    words = ResolveForm.KINDS[kind]
    context = {
        **page.admin_site.each_context(request),
        "opts": page.opts,
        "title": words["title"],
        "form": form,
        "words": words,
        "owner": owner,
        "rows": [_lease_cells(lease, pools.get(lease.window.pool_id)) for lease in leases],
        SUBMISSION: get_random_string(22),
    }
    return TemplateResponse(request, "admin/budgets/lease/resolve.html", context)


def _lease_cells(lease: Lease, pool: Pool | None) -> tuple[SafeString, str, SafeString]:
    window = lease.window
    stretch = amounts.span(window.window_start, window.window_end, pool.time_zone if pool else "UTC")
    return pool_link(window.pool_id, pool), stretch, amount(window.unit, lease.remaining)


def _quarantined() -> QuerySet[Lease]:
    return Lease.objects.filter(state=Lease.State.QUARANTINED)


def quarantined_owners() -> list[tuple[str, list[str]]]:
    """Dead workers whose leases wait for a decision, with what the leases hold in words."""
    rows = _quarantined().values_list("owner", "window__unit").annotate(rest=Sum("remaining")).order_by("owner")
    found: dict[str, list[str]] = {}
    for owner, unit, rest in rows[: 2 * _OWNERS_SHOWN]:
        found.setdefault(owner, []).append(amounts.shown(unit, rest))
    return list(found.items())


@admin.register(LedgerOrder)
class LedgerOrderAdmin(KeysetAdmin[LedgerOrder]):
    """What operators ordered to be done to the ledger, and what came of it."""

    list_display = ("created", "kind", "actor", "note", "standing", "result")
    list_display_links = ("created",)
    list_filter = ("state",)
    fields = ("kind",)
    change_form_template = "admin/budgets/ledgerorder/change_form.html"

    def has_view_permission(self, request: HttpRequest, obj: LedgerOrder | None = None) -> bool:
        """Who may place orders sees what came of them."""
        return may_correct(request) or super().has_view_permission(request, obj)

    def has_module_permission(self, request: HttpRequest) -> bool:
        """The menu shows what one may see."""
        return self.has_view_permission(request)

    @admin.display(description="time (UTC)")
    def created(self, row: LedgerOrder) -> SafeString:
        """When it was placed."""
        return moment(row.created_at)

    @admin.display(description="state")
    def standing(self, row: LedgerOrder) -> SafeString:
        """Open, done or refused."""
        return order_badge(row)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The order and its outcome; looks again by itself while it is open."""
        order = self.get_object(request, object_id) if self.has_view_permission(request) else None
        context: dict[str, Any] = {}
        if order is not None:
            context = {"title": f"Order {order.pk}", "subtitle": None, "facts": _order_facts(order)}
            context["badge"] = order_badge(order)
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})


def _order_facts(order: LedgerOrder) -> list[tuple[str, Any]]:
    payload = order.payload
    facts: list[tuple[str, Any]] = []
    for name, label in (("pool_id", "Pool"), ("from_pool", "From pool"), ("to_pool", "To pool")):
        if name in payload:
            facts.append((label, pool_link(payload[name], Pool.objects.filter(pk=payload[name]).first())))
    if "amount" in payload:
        facts.append(("Amount", change(payload["unit"], payload["amount"])))
    if "owner" in payload:
        facts.append(("Owner of the leases", payload["owner"]))
    return facts
