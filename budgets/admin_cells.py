"""Small pieces of HTML that the pages of pools, the ledger and usage share."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from audit.admin_tools import badge
from budgets import amounts
from budgets.balances import Balance, PoolBalance
from budgets.models import Lease, LedgerOrder, Pool, PoolAlert
from budgets.records import Unit

_OWNER_LENGTH, _OWNER_HEAD, _OWNER_TAIL = 20, 12, 6  # characters


def figure(text: str, exact: str = "") -> SafeString:
    """A figure of a column, the exact one on hover."""
    return format_html('<span class="hoosh-number" title="{}">{}</span>', exact or text, text)


def quiet(text: str) -> SafeString:
    """A word that stands where there is nothing to show."""
    return format_html('<span class="quiet">{}</span>', text)


def moment(at: datetime) -> SafeString:
    """A time to the second, UTC."""
    return figure(f"{at:%Y-%m-%d %H:%M:%S}", at.isoformat())


def amount(unit: int, value: int | None, none: str = "no limit") -> SafeString:
    """An amount of a purse in a column of figures."""
    if value is None:
        return quiet(none)
    text = amounts.count(value) if unit == Unit.TOKENS else amounts.usd(amounts.to_usd(value))
    return figure(text, amounts.exact(unit, value))


def change(unit: int, value: int) -> SafeString:
    """A change of a purse, with its sign."""
    return figure(amounts.signed(unit, value), amounts.exact(unit, value))


def money(value: Decimal) -> SafeString:
    """A cost with six places, the exact one on hover."""
    return figure(amounts.usd(value), amounts.exact_usd(value))


def pool_link(pool_id: int, pool: Pool | None) -> SafeString:
    """A pool's name as a link to it; its number when it was deleted."""
    if pool is None:
        return format_html("#{}", pool_id)
    return format_html('<a href="{}">{}</a>', reverse("admin:budgets_pool_change", args=(pool.pk,)), pool.name)


def owner(name: str) -> SafeString:
    """The owner of a lease, cut in the middle where it is long, in full on hover."""
    if len(name) <= _OWNER_LENGTH:
        return format_html("{}", name)
    return format_html('<span title="{}">{}…{}</span>', name, name[:_OWNER_HEAD], name[-_OWNER_TAIL:])


def lease_badge(row: Lease) -> SafeString:
    """The state of a lease."""
    return badge("quarantined", "bad") if row.state == Lease.State.QUARANTINED else badge("active", "good")


def alert_badge(row: PoolAlert) -> SafeString:
    """The share of a limit that was reached, red from the whole limit on."""
    return badge(f"{row.percent} %", "bad" if row.percent >= 100 else "warn")


def order_badge(order: LedgerOrder) -> SafeString:
    """The state of an order."""
    tones = {LedgerOrder.State.OPEN: "warn", LedgerOrder.State.DONE: "good", LedgerOrder.State.REFUSED: "bad"}
    return badge(order.state, tones.get(LedgerOrder.State(order.state), ""))


def bar(purse: Balance) -> SafeString:
    """A purse as a bar: spent, above the limit, leased. Its rectangles carry their widths, because style attributes are
    not allowed here; built without a template, because lists have a hundred of them."""
    over = format_html(_RECT, "over", purse.committed_share, purse.over_share) if purse.over else ""
    limit = format_html(_LIMIT, purse.limit_at, purse.limit_at) if purse.limit_at else ""
    return format_html(
        _BAR,
        " full" if purse.is_full else "",
        purse.label,
        purse.label,
        format_html(_RECT, "committed", "0", purse.committed_share),
        over,
        format_html(_RECT, "leased", purse.leased_from, purse.leased_share),
        limit,
    )


def bars(balance: PoolBalance) -> SafeString:
    """The purses of a pool that have a limit, each as a bar with a few words."""
    cells = [
        format_html(_CAPTION, bar(purse) if purse.is_limited else "", purse.caption, _over(purse))
        for purse in balance.shown
    ]
    return format_html('<div class="hoosh-bars">{}</div>', mark_safe("".join(cells)))  # noqa: S308 - escaped above


def _over(purse: Balance) -> SafeString | str:
    return badge("over", "bad") if purse.over else ""


_BAR = (
    '<svg class="hoosh-bar{}" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{}">'
    "<title>{}</title>{}{}{}{}</svg>"
)
_RECT = '<rect class="{}" x="{}" y="0" width="{}" height="10"/>'
_LIMIT = '<line class="limit" x1="{}" x2="{}" y1="0" y2="10"/>'
_CAPTION = '{}<span class="mini quiet">{} {}</span>'
