"""Totals over rollups and the usage rows behind them."""

from __future__ import annotations

import datetime as dt
import itertools
from decimal import Decimal
from typing import Any

import pytest
from django.conf import settings
from django.test import TestCase

from budgets import reports
from budgets.models import LedgerState, Usage, UsageRollup
from budgets.reports import CURRENT, DAY_S, TooManyGroupsError, Total, leading, totals

pytestmark = pytest.mark.database

_numbers = itertools.count(1)
DAY = int(dt.datetime(2026, 11, 20, tzinfo=dt.UTC).timestamp())
PICO = Decimal("0.000000000001")
WHO: dict[str, Any] = {
    **{"team_id": 1, "agent_id": 2, "key_id": 3, "pool_id": 4, "provider_id": 5, "route_id": 6},
    **{"endpoint": "chat", "model": "m", "upstream_model": "m-1"},
}


def usage(*, at: int = DAY, **changes: Any) -> Usage:
    values: dict[str, Any] = {"input_tokens": 3, "output_tokens": 4, "tokens": 7, "price_id": 1, "status": 200}
    moment = dt.datetime.fromtimestamp(at, dt.UTC)
    return Usage.objects.create(rid=f"{next(_numbers):032x}", at=moment, **{**WHO, **values, **changes})


def rollup(*, start: int = DAY, **changes: Any) -> UsageRollup:
    values: dict[str, Any] = {"requests": 10, "attempts": 12, "errors": 2, "tokens": 70}
    return UsageRollup.objects.create(start=start, **{**WHO, **values, **changes})


def rolled_up(usage_id: int) -> None:
    LedgerState.objects.update_or_create(name="rolled_up", defaults={"value": usage_id})


def only(found: list[Total]) -> Total:
    assert len(found) == 1
    return found[0]


class TotalsTests(TestCase):
    databases = "__all__"

    def test_nothing_was_used(self) -> None:
        self.assertEqual(totals(), [])
        self.assertEqual(totals(("provider",), period=CURRENT), [])

    def test_rollups_and_the_rows_after_them_are_counted_once(self) -> None:
        old = usage(cost_usd=Decimal(100))
        rolled_up(old.pk)
        rollup(cost_usd=Decimal("0.5"))
        usage(cost_usd=PICO, error="rate_limited")
        usage(cost_usd=PICO, attempt=1, price_id=0)
        usage(cost_usd=0, price_id=-1)
        usage(cost_usd=0, price_id=0, tokens=0)
        found = only(totals())
        self.assertEqual(found.cost_usd, Decimal("0.500000000002"))
        self.assertEqual((found.requests, found.attempts, found.errors, found.unpriced), (13, 16, 3, 1))
        self.assertEqual(found.tokens, 70 + 7 * 3)

    def test_sums_beyond_64_bits_are_exact(self) -> None:
        largest = Decimal("9223372.036854775807")
        for model in "abc":
            rollup(cost_usd=largest, model=model)
            usage(cost_usd=largest, model=model)
        self.assertEqual(only(totals()).cost_usd, largest * 6)
        self.assertEqual([total.cost_usd for total in totals(("model",))], [largest * 2] * 3)

    def test_more_groups_than_asked_for_are_refused(self) -> None:
        rollup(model="a")
        rollup(model="b")
        usage(model="c")
        self.assertEqual(len(totals(("model",), limit=3)), 3)
        with self.assertRaises(TooManyGroupsError):
            totals(("model",), limit=2)

    def test_the_first_groups_and_the_days_are_one_reading(self) -> None:
        for number in range(12):
            rollup(model=f"m{number % 3}", start=DAY + number % 4 * DAY_S, cost_usd=Decimal(number), team_id=number % 2)
            usage(model=f"m{number % 5}", at=DAY + number % 2 * DAY_S, cost_usd=PICO)
        for scope in ({}, {"filters": {"team": [1]}}, {"since": DAY + DAY_S}, {"period": CURRENT}, {"period": 9}):
            # The first statement tells what the daily sums hold.
            with self.subTest(scope), self.assertNumQueries(2, using=settings.HOOSH_LEDGER_DB):
                found = leading("model", top=3, **scope)
            every = totals(("model",), **scope)
            self.assertEqual((found.first, found.groups), (every[:3], len(every)))
            self.assertEqual(found.days, totals(("day",), **scope))
        with self.assertRaises(ValueError):
            leading("cost_pico", top=1)

    def test_only_what_has_no_price(self) -> None:
        rollup(model="a", unpriced=1)
        rollup(model="b")
        usage(model="c", price_id=0)
        usage(model="d", price_id=-2)
        self.assertEqual({total.keys["model"] for total in totals(("model",), unpriced_only=True)}, {"a", "c"})

    def test_grouping_and_order(self) -> None:
        rollup(provider_id=1, cost_usd=Decimal(1))
        rollup(provider_id=2, cost_usd=Decimal(3), model="other")
        usage(provider_id=2, cost_usd=Decimal(1))
        found = totals(("provider", "model"))
        self.assertEqual(
            [(dict(total.keys), total.cost_usd) for total in found],
            [
                ({"provider": 2, "model": "other"}, 3),
                ({"provider": 1, "model": "m"}, 1),
                ({"provider": 2, "model": "m"}, 1),
            ],
        )
        self.assertEqual([total.cost_usd for total in totals(("provider",))], [4, 1])

    def test_every_dimension_can_be_grouped_and_filtered_by(self) -> None:
        rollup(cost_usd=Decimal(1))
        usage(cost_usd=Decimal(2))
        for name in reports.DIMENSIONS:
            with self.subTest(name):
                found = only(totals((name,)))
                self.assertEqual(found.cost_usd, 3)
                self.assertEqual(only(totals((name,), filters={name: [found.keys[name]]})).cost_usd, 3)
        self.assertEqual(totals(filters={"team": [99]}), [])
        self.assertEqual(totals(filters={"team": []}), [])
        self.assertEqual(only(totals(filters={"team": [1, 99], "model": ["m"]})).cost_usd, 3)

    def test_days_in_utc(self) -> None:
        rollup(start=DAY - 3600)
        rollup(start=DAY)
        rollup(start=DAY + 23 * 3600, model="late")
        usage(at=DAY - 1)
        usage(at=DAY)
        usage(at=DAY + DAY_S)
        found = {total.keys["day"]: total.attempts for total in totals(("day",))}
        first = dt.date(2026, 11, 19)
        self.assertEqual(found, {first: 13, dt.date(2026, 11, 20): 25, dt.date(2026, 11, 21): 1})
        self.assertEqual(only(totals(since=DAY, until=DAY + DAY_S)).attempts, 25)
        self.assertEqual(only(totals(until=DAY)).attempts, 13)
        self.assertEqual(only(totals(since=DAY + DAY_S)).attempts, 1)

    def test_periods(self) -> None:
        rollup(period=0, cost_usd=Decimal(1))
        rollup(period=1, cost_usd=Decimal(2))
        LedgerState.objects.create(name="period", value=1)
        usage(cost_usd=Decimal(4))
        self.assertEqual(only(totals(period=CURRENT)).cost_usd, 6)
        self.assertEqual(only(totals(period=1)).cost_usd, 6)
        self.assertEqual(only(totals(period=0)).cost_usd, 1)
        self.assertEqual(only(totals()).cost_usd, 7)
        self.assertEqual({total.keys["period"]: total.cost_usd for total in totals(("period",))}, {0: 1, 1: 6})

    def test_what_cannot_be_asked(self) -> None:
        for bad in ({"group_by": ("cost_pico",)}, {"filters": {"id": [1]}}, {"since": 1}, {"until": 3600}):
            with self.subTest(bad), self.assertRaises(ValueError):
                totals(**bad)

    def test_one_statement_reads_both_tables(self) -> None:
        """Two would let a row move from one to the other between them."""
        rollup()
        usage()
        alias = settings.HOOSH_LEDGER_DB
        with self.assertNumQueries(2, using=alias):  # the first tells what the daily sums hold
            totals(("provider", "day"), period=CURRENT)
