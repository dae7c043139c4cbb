"""Amounts and stretches of time as people read and write them on pages.

What is shown short is cut, never rounded, so that nothing looks larger than it is; the exact figure stands beside it.
"""

from __future__ import annotations

import datetime as dt
from decimal import ROUND_DOWN, Decimal

from budgets import windows
from budgets.models import fields
from budgets.models.fields import PLACES
from budgets.records import Unit

_PICO_PER_USD = 10**PLACES
_CENT = Decimal("0.01")
_SHOWN = Decimal("0.000001")
_UNITS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def count(value: int) -> str:
    """A count with thousands separators: 12,345."""
    return f"{int(value):,}"


def short_count(value: int) -> str:
    """A count in at most four characters and a letter: 12.3M."""
    number = int(value)
    for unit, letter in _UNITS:
        if abs(number) >= unit:
            tenths = abs(number) * 10 // unit
            text = f"{tenths // 10}" if tenths >= 1000 or tenths % 10 == 0 else f"{tenths // 10}.{tenths % 10}"
            return f"{'-' if number < 0 else ''}{text}{letter}"
    return str(number)


def to_usd(pico: int) -> Decimal:
    """Whole pico-USD as USD, exact."""
    return fields.usd(pico)


def usd(value: Decimal) -> str:
    """USD with six places for columns of figures: $0.000042; what is above zero and below that says so."""
    if value and abs(value) < _SHOWN:
        return "<$0.000001" if value > 0 else ">-$0.000001"
    cut = value.quantize(_SHOWN, rounding=ROUND_DOWN)
    return f"{'-' if cut < 0 else ''}${abs(cut):,.6f}"


def short_usd(value: Decimal) -> str:
    """USD as in a sentence: $12.34, and six places only below a dollar: $0.004217."""
    if abs(value) >= 1 or value == value.quantize(_CENT, rounding=ROUND_DOWN):
        cut = value.quantize(_CENT, rounding=ROUND_DOWN)
        return f"{'-' if cut < 0 else ''}${abs(cut):,.2f}"
    return usd(value)


def exact_usd(value: Decimal) -> str:
    """USD to the last of its twelve places: $0.000042000001."""
    return f"{'-' if value < 0 else ''}${abs(value):,.{PLACES}f}"


def shown(unit: int, value: int) -> str:
    """An amount of a purse in a sentence: "12,345 tokens" or "$0.50"."""
    return f"{count(value)} tokens" if unit == Unit.TOKENS else short_usd(to_usd(value))


def short(unit: int, value: int) -> str:
    """An amount of a purse where there is little room: "12.3k" or "$0.50"."""
    return short_count(value) if unit == Unit.TOKENS else short_usd(to_usd(value))


def exact(unit: int, value: int) -> str:
    """An amount of a purse to its last digit."""
    return f"{count(value)} tokens" if unit == Unit.TOKENS else exact_usd(to_usd(value))


def signed(unit: int, value: int) -> str:
    """A change of a purse, with its sign: "+500 tokens", "-$0.50"."""
    return f"+{shown(unit, value)}" if value > 0 else shown(unit, value)


def parse(unit: int, value: Decimal) -> int:
    """What an operator typed as an amount of a purse, in tokens or USD. `ValueError` when it is no whole number of
    tokens or of pico-USD."""
    scaled = value if unit == Unit.TOKENS else value * _PICO_PER_USD
    if not scaled.is_finite() or scaled != scaled.to_integral_value():
        raise ValueError("Tokens are whole numbers." if unit == Unit.TOKENS else "USD has at most twelve places.")
    return int(scaled)


def local(at_s: int, zone_name: str) -> str:
    """Unix seconds as a time of that zone; in UTC when nobody knows the zone any more."""
    try:
        place: dt.tzinfo = windows.zone(zone_name)
    except ValueError:
        place = dt.UTC
    return f"{dt.datetime.fromtimestamp(at_s, place):%Y-%m-%d %H:%M}"


def span(start: int, end: int, zone_name: str) -> str:
    """A window in the pool's zone: "2026-11-01 00:00 to 2026-12-01 00:00". A lifetime has no end."""
    if not end:
        return f"since {local(start, zone_name)}" if start else "lifetime"
    return f"{local(start, zone_name)} to {local(end, zone_name)}"


def short_span(start: int, end: int, zone_name: str) -> str:
    """A window where there is little room: "2026-11", "2026-11-20", "2026-11-16 to 2026-11-22" (both belong to it),
    "2026-11-20 01:00 to 02:00"."""
    first, until = local(start, zone_name), local(end, zone_name)
    if not end or not first.endswith(" 00:00") or not until.endswith(" 00:00"):
        return f"{first} to {until[11:]}" if end and first[:10] == until[:10] else span(start, end, zone_name)
    day, last = first[:10], local(end - 1, zone_name)[:10]
    if day == last:
        return day
    return day[:7] if day.endswith("-01") and until[8:10] == "01" and day[:7] == last[:7] else f"{day} to {last}"
