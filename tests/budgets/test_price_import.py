"""Price lists into rows: what is written, when, and what never is."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest
from django.test import TestCase

from audit.models import OutboxEntry
from budgets import access, price_import
from budgets.models import Price
from budgets.price_import import BEGINNING, PricesMovedError
from budgets.price_list import Amounts, Expectation, PriceList, Stage, Tiers, Wanted
from budgets.prices import PriceBook

pytestmark = pytest.mark.database

NOW = dt.datetime(2026, 11, 20, 12, tzinfo=dt.UTC)
SOURCE = "genai-prices 0"
HOUR = dt.timedelta(hours=1)


def usd(given: str, made: str = "0", **more: str) -> Amounts:
    return Amounts(Decimal(given), Decimal(made), **{name: Decimal(value) for name, value in more.items()})


def listed(*wanted: Wanted, source: str = SOURCE, others: dict[str, Tiers] | None = None) -> PriceList:
    """A price list of one provider. `others` are names it prices without a pattern of their own."""
    prices = {each.pattern: each.tiers for each in wanted if "*" not in each.pattern} | (others or {})
    return PriceList(
        source,
        list(wanted),
        expected=[Expectation("openai", name, tiers) for name, tiers in prices.items()],
        resolvers={"openai": prices.get},
    )


def one(pattern: str, *stages: Amounts | tuple[dt.datetime | None, Amounts | Tiers]) -> Wanted:
    made: list[Stage] = []
    for stage in stages:
        since, what = stage if not isinstance(stage, Amounts) else (None, stage)
        made.append(Stage(since, {0: what} if isinstance(what, Amounts) else what))
    return Wanted("openai", pattern, pattern, tuple(made))


class ImportCase(TestCase):
    databases = "__all__"

    def bring_in(self, prices: PriceList, now: dt.datetime = NOW) -> int:
        return price_import.apply(prices, price_import.plan(prices, now), now=now, actor="test")

    def charged(self, model: str, at: dt.datetime = NOW, tokens: int = 0) -> Any:
        """USD per million input tokens, as workers see it."""
        found = PriceBook.build(access.prices()).find("east", "openai", model, at.timestamp(), input_tokens=tokens)
        return None if found is None else Decimal(found.input) / 10**6

    def operators(self, pattern: str, given: str, **changes: Any) -> Price:
        values = {"provider": "openai", "valid_from": NOW - HOUR, **changes}
        return access.add_price(Price(pattern=pattern, input_usd_per_mtok=Decimal(given), **values), actor="test")


class WritingTests(ImportCase):
    def test_new_rows(self) -> None:
        prices = listed(one("a", usd("1", "2", cached_read_usd_per_mtok="0.1")), one("b*", usd("3")))
        assert self.bring_in(prices) == 2
        row = Price.objects.get(pattern="a")
        assert (row.provider, row.valid_from, row.source, row.route) == ("openai", BEGINNING, SOURCE, "")
        assert row.input_usd_per_mtok == 1
        assert row.output_usd_per_mtok == 2
        assert row.cached_read_usd_per_mtok == Decimal("0.1")
        assert row.reasoning_usd_per_mtok is None
        assert row.seq == access.sequences()["prices"] > 0
        assert (self.charged("a"), self.charged("b-1"), self.charged("c")) == (1, 3, None)

    def test_one_audit_entry_says_what_was_done(self) -> None:
        self.bring_in(listed(one("a", usd("1")), one("b", usd("1"))))
        entry = OutboxEntry.objects.get(action="price.imported")
        assert (entry.actor, entry.target) == ("test", SOURCE)
        assert entry.data == {"rows": 2, "providers": {"openai": 2}, "source": SOURCE}

    def test_a_second_time_there_is_nothing_to_do(self) -> None:
        prices = listed(
            one("a", (None, {0: usd("1"), 1000: usd("2")})),
            one("b", usd("1"), (NOW + HOUR, usd("2"))),
            one("c", (NOW - HOUR, usd("5"))),
        )
        assert self.bring_in(prices) == 5
        for later in (NOW, NOW + HOUR / 2):
            assert price_import.plan(prices, later).changes == []
        assert price_import.plan(prices, NOW).unchanged["openai"] == 3

    def test_what_changed_is_a_new_row_from_now_on(self) -> None:
        self.bring_in(listed(one("a", usd("1")), one("b", usd("1"))))
        later = NOW + HOUR
        prices = listed(one("a", usd("2")), one("b", usd("1")), source="genai-prices 1")
        planned = price_import.plan(prices, later)
        assert [(change.pattern, change.before, change.after) for change in planned.changes] == [
            ("a", usd("1"), usd("2"))
        ]
        assert price_import.apply(prices, planned, now=later, actor="test") == 1
        old, new = Price.objects.filter(pattern="a").order_by("id")
        assert (old.input_usd_per_mtok, new.valid_from, new.source) == (1, later, "genai-prices 1")
        assert [self.charged("a", at) for at in (NOW, later - HOUR / 2, later)] == [1, 1, 2]

    def test_a_date_the_list_names_late_does_not_lose_to_an_older_import(self) -> None:
        """The list learns today that the price changed yesterday: rows since then must not win over it."""
        self.bring_in(listed(one("a", usd("1"))), NOW - 3 * HOUR)
        self.bring_in(listed(one("a", usd("5"))), NOW - HOUR)
        self.bring_in(listed(one("a", (NOW - 2 * HOUR, usd("2")))))
        assert self.charged("a") == 2

    def test_a_price_of_the_future_waits_for_its_day(self) -> None:
        prices = listed(one("a", usd("1"), (NOW + HOUR, usd("2")), (NOW + 2 * HOUR, usd("3"))))
        assert self.bring_in(prices) == 3
        assert [self.charged("a", NOW + hours * HOUR) for hours in range(3)] == [1, 2, 3]

    def test_a_price_of_the_future_that_is_taken_back(self) -> None:
        self.bring_in(listed(one("a", usd("1"), (NOW + HOUR, usd("2")))))
        assert self.bring_in(listed(one("a", usd("1"))), NOW + HOUR / 2) == 1
        assert self.charged("a", NOW + 2 * HOUR) == 1

    def test_long_requests(self) -> None:
        self.bring_in(listed(one("a", (None, {0: usd("1"), 1000: usd("2"), 5000: usd("3")}))))
        assert [self.charged("a", tokens=tokens) for tokens in (999, 1000, 5000)] == [1, 2, 3]

    def test_a_step_that_is_dropped_costs_what_the_one_below_does(self) -> None:
        self.bring_in(listed(one("a", (None, {0: usd("1"), 1000: usd("2"), 5000: usd("3")}))))
        self.bring_in(listed(one("a", (None, {0: usd("1"), 1000: usd("4")}))), NOW + HOUR)
        later = NOW + HOUR
        assert [self.charged("a", later, tokens) for tokens in (999, 1000, 5000)] == [1, 4, 4]
        assert price_import.plan(listed(one("a", (None, {0: usd("1"), 1000: usd("4")}))), later).changes == []

    def test_a_pattern_the_list_does_not_know_any_more(self) -> None:
        self.bring_in(listed(one("a", usd("1")), one("b-*", usd("2")), one("c", usd("3"))))
        prices = listed(one("c*", usd("4")), others={"c": {0: usd("4")}})
        planned = price_import.plan(prices, NOW + HOUR)
        assert planned.gone == [("openai", "a"), ("openai", "b-*")]
        price_import.apply(prices, planned, now=NOW + HOUR, actor="test")
        later = NOW + HOUR
        assert (self.charged("a", later), self.charged("b-1", later)) == (1, 2), "they keep their rows"
        assert self.charged("c", later) == 4, "another pattern covers this name, so its old row must not win"


class OperatorTests(ImportCase):
    def test_an_operators_price_wins_whatever_its_pattern_and_date(self) -> None:
        self.operators("gpt-*", "7")
        self.bring_in(listed(one("gpt-5", (NOW, usd("1")))))
        assert self.charged("gpt-5", NOW + HOUR) == 7
        self.bring_in(listed(one("gpt-5", usd("2"))), NOW + HOUR)
        assert self.charged("gpt-5", NOW + 2 * HOUR) == 7
        assert Price.objects.filter(source="operator").count() == 1

    def test_an_operators_rows_are_no_part_of_the_difference(self) -> None:
        self.operators("a", "1")
        planned = price_import.plan(listed(one("a", usd("1"))), NOW)
        assert [change.before for change in planned.changes] == [None]
        assert planned.disagreements == []

    def test_rows_of_other_providers_are_left_alone(self) -> None:
        self.operators("a", "1", provider="mistral", source="genai-prices 0")
        planned = price_import.plan(listed(one("b", usd("1"))), NOW)
        assert planned.gone == []


class ConcurrencyTests(ImportCase):
    def test_a_plan_that_was_overtaken_is_not_written(self) -> None:
        prices = listed(one("a", usd("1")))
        planned = price_import.plan(prices, NOW)
        self.bring_in(prices)
        with pytest.raises(PricesMovedError):
            price_import.apply(prices, planned, now=NOW, actor="test")
        assert Price.objects.count() == 1
        assert OutboxEntry.objects.filter(action="price.imported").count() == 1

    def test_what_cannot_be_stored_leaves_nothing_behind(self) -> None:
        prices = listed(one("a", usd("1")), one("b", usd("1e12")))
        planned = price_import.plan(prices, NOW)
        before = access.sequences()
        with pytest.raises(Exception, match="10 digits"):
            price_import.apply(prices, planned, now=NOW, actor="test")
        assert not Price.objects.exists()
        assert access.sequences() == before


class CheckingTests(ImportCase):
    def test_names_that_would_cost_something_else_are_told(self) -> None:
        self.bring_in(listed(one("a*", usd("9"))))
        prices = listed(one("b", usd("1")), others={"a-1": {0: usd("5")}, "c": {0: usd("2")}})
        planned = price_import.plan(prices, NOW)
        assert planned.checked == 3
        assert [(each.name, each.listed, each.charged) for each in planned.disagreements] == [
            ("a-1", usd("5"), usd("9")),
            ("c", usd("2"), None),
        ]
