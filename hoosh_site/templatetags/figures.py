"""Template filters for the figures shown in admin. Integers in, text out."""

from __future__ import annotations

from django import template

register = template.Library()

_UNITS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


@register.filter
def tokens(value: int) -> str:
    """A count with thousands separators: 12,345."""
    return f"{int(value):,}"


@register.filter
def short(value: int) -> str:
    """A count in at most four characters and a unit: 12.3M. Cut, not rounded, so nothing looks larger than it is."""
    number = int(value)
    for unit, letter in _UNITS:
        if abs(number) >= unit:
            tenths = abs(number) * 10 // unit
            text = f"{tenths // 10}" if tenths >= 1000 or tenths % 10 == 0 else f"{tenths // 10}.{tenths % 10}"
            return f"{'-' if number < 0 else ''}{text}{letter}"
    return str(number)
