"""Amounts as people read them: cut, never rounded, with their last digit where it is asked for."""

from __future__ import annotations

from decimal import Decimal

import pytest

from budgets import amounts
from budgets.records import Unit

TOKENS, MONEY = Unit.TOKENS, Unit.PICO_USD
USD = 10**12


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1k"),
        (1_999, "1.9k"),
        (123_456, "123k"),
        (10**6, "1M"),
        (10**15, "1000T"),
        (-1_500, "-1.5k"),
    ],
)
def test_short_counts_are_cut(value, shown):
    assert amounts.short_count(value) == shown


@pytest.mark.parametrize(
    ("value", "column", "sentence", "exact"),
    [
        ("0", "$0.000000", "$0.00", "$0.000000000000"),
        ("12.349999999999", "$12.349999", "$12.34", "$12.349999999999"),
        ("0.5", "$0.500000", "$0.50", "$0.500000000000"),
        ("0.004217", "$0.004217", "$0.004217", "$0.004217000000"),
        ("0.000000000001", "<$0.000001", "<$0.000001", "$0.000000000001"),
        ("-0.25", "-$0.250000", "-$0.25", "-$0.250000000000"),
        ("-0.0000001", ">-$0.000001", ">-$0.000001", "-$0.000000100000"),
        ("1234567.891", "$1,234,567.891000", "$1,234,567.89", "$1,234,567.891000000000"),
    ],
)
def test_money(value, column, sentence, exact):
    amount = Decimal(value)
    assert (amounts.usd(amount), amounts.short_usd(amount), amounts.exact_usd(amount)) == (column, sentence, exact)


def test_amounts_by_unit():
    assert amounts.shown(TOKENS, 12_345) == "12,345 tokens"
    assert amounts.shown(MONEY, USD // 2) == "$0.50"
    assert amounts.signed(TOKENS, 5) == "+5 tokens"
    assert amounts.signed(MONEY, -USD) == "-$1.00"
    assert amounts.short(TOKENS, 12_345) == "12.3k"
    assert amounts.exact(MONEY, 1) == "$0.000000000001"


def test_what_is_typed_becomes_a_whole_number_or_is_refused():
    assert amounts.parse(TOKENS, Decimal("-5.0")) == -5
    assert amounts.parse(MONEY, Decimal("0.000000000001")) == 1
    for unit, value in ((TOKENS, "0.5"), (MONEY, "0.0000000000001"), (TOKENS, "NaN"), (MONEY, "Infinity")):
        with pytest.raises(ValueError):  # noqa: PT011 - the message is for people
            amounts.parse(unit, Decimal(value))


@pytest.mark.parametrize(
    ("start", "end", "zone", "long", "short"),
    [
        (0, 0, "UTC", "lifetime", "lifetime"),
        (1_793_491_200, 0, "UTC", "since 2026-11-01 00:00", "since 2026-11-01 00:00"),
        (1_793_487_600, 1_796_079_600, "Europe/Berlin", "2026-11-01 00:00 to 2026-12-01 00:00", "2026-11"),
        (1_793_491_200, 1_793_577_600, "UTC", "2026-11-01 00:00 to 2026-11-02 00:00", "2026-11-01"),
        (1_793_577_600, 1_794_182_400, "UTC", "2026-11-02 00:00 to 2026-11-09 00:00", "2026-11-02 to 2026-11-08"),
        (1_793_494_800, 1_793_498_400, "UTC", "2026-11-01 01:00 to 2026-11-01 02:00", "2026-11-01 01:00 to 02:00"),
        (1_793_494_800, 1_793_577_600, "No/Where", "2026-11-01 01:00 to 2026-11-02 00:00", None),
    ],
)
def test_windows_in_words(start, end, zone, long, short):
    assert amounts.span(start, end, zone) == long
    assert amounts.short_span(start, end, zone) == (short or long)
