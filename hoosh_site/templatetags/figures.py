"""Template filters for the figures shown in admin. Integers and exact decimals in, text out."""

from __future__ import annotations

from decimal import Decimal

from django import template

from budgets import admin_cells, amounts
from budgets.balances import Balance, PoolBalance

register = template.Library()


@register.filter
def tokens(value: int) -> str:
    """A count with thousands separators: 12,345."""
    return amounts.count(value)


@register.filter
def short(value: int) -> str:
    """A count in at most four characters and a unit: 12.3M. Cut, not rounded, so nothing looks larger than it is."""
    return amounts.short_count(value)


@register.filter
def usd(value: Decimal) -> str:
    """An amount of money with six places."""
    return amounts.usd(value)


@register.filter
def short_usd(value: Decimal) -> str:
    """An amount of money as in a sentence."""
    return amounts.short_usd(value)


@register.filter
def exact_usd(value: Decimal) -> str:
    """An amount of money with all its twelve places."""
    return amounts.exact_usd(value)


@register.filter
def amount(value: int, unit: int) -> str:
    """An amount of a purse of this unit, in words."""
    return amounts.shown(unit, value)


@register.filter
def change(value: int, unit: int) -> str:
    """A change of a purse of this unit, with its sign."""
    return amounts.signed(unit, value)


@register.filter
def bar(purse: Balance) -> str:
    """A purse as a bar."""
    return admin_cells.bar(purse)


@register.filter
def bars(balance: PoolBalance) -> str:
    """The limited purses of a pool as bars."""
    return admin_cells.bars(balance)
