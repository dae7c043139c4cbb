"""The package genai-prices in our terms: the real list, and small lists that try each thing it can say."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest
from genai_prices import types as package
from genai_prices.data import providers as package_data

from budgets.price_list import Amounts, PriceList, Tiers, Wanted
from budgets.price_package import package_ids, read
from budgets.prices import PriceBook, cost
from budgets.records import PriceRecord

NOW = dt.datetime(2026, 11, 20, 12, tzinfo=dt.UTC)
Price = package.ModelPrice
Equals, Starts, Ends = package.ClauseEquals, package.ClauseStartsWith, package.ClauseEndsWith
Contains, Regex = package.ClauseContains, package.ClauseRegex


def D(text: str) -> Decimal:
    return Decimal(text)


def model(name: str, prices: Any = None, match: Any = None, **more: Any) -> package.ModelInfo:
    prices = Price(input_mtok=D("1"), output_mtok=D("2")) if prices is None else prices
    return package.ModelInfo(id=name, match=match or Equals(name), prices=prices, **more)


def listed(*models: package.ModelInfo, now: dt.datetime = NOW) -> PriceList:
    provider = package.Provider(id="p", name="P", api_pattern="", models=list(models))
    return read({"p": "ours"}, now, [provider])


def patterns(*models: package.ModelInfo) -> dict[str, str]:
    return {each.pattern: each.model for each in listed(*models).wanted}


def tiers(*models: package.ModelInfo) -> Tiers:
    (wanted,) = listed(*models).wanted
    return wanted.tiers


def refused(*models: package.ModelInfo) -> list[str]:
    return [remark.reason for remark in listed(*models).refused]


def remarks(*models: package.ModelInfo) -> list[str]:
    return [remark.reason for remark in listed(*models).remarks]


# Patterns


def test_each_clause_is_the_glob_that_says_the_same() -> None:
    found = patterns(
        model("a"),
        model("b-1", match=Starts("b-")),
        model("1-c", match=Ends("-c")),
        model("1-d-2", match=Contains("-d-")),
        model("e", match=package.ClauseOr([Equals("e"), Starts("f-")])),
        model("g-x-h", match=package.ClauseAnd([Starts("g-"), Ends("h")])),
    )
    assert found == {
        **{"a": "a", "b-*": "b-1", "b-1": "b-1", "*-c": "1-c", "1-c": "1-c", "*-d-*": "1-d-2", "1-d-2": "1-d-2"},
        **{"e": "e", "f-*": "e", "g-*h": "g-x-h", "g-x-h": "g-x-h"},
    }


@pytest.mark.parametrize(
    ("regex", "glob"),
    [
        (r"^gpt-5\.1$", "gpt-5.1"),
        (r"^gpt-5\.1", "gpt-5.1*"),
        (r"mini$", "*mini"),
        (r"mini", "*mini*"),
        (r"^gpt-.*-mini$", "gpt-*-mini"),
        (r"^a/b:c@d$", "a/b:c@d"),
        (r"^gpt-\d$", None),
        (r"^gpt-[ab]$", None),
        (r"^(?!x)", None),
        (r"^gpt-5.1$", None),
        (r"^gpt-5?$", None),
        (r"^a\*b$", None),
    ],
)
def test_a_regular_expression_that_is_a_glob_becomes_one(regex: str, glob: str | None) -> None:
    found = patterns(model("x-1", match=Regex(regex)))
    assert list(found) == ([] if glob is None else [glob])


def test_names_only_a_regular_expression_tells_are_left_out_and_said() -> None:
    dated = model("sol", match=package.ClauseOr([Equals("sol"), Regex(r"^sol-\d{8}$")]))
    assert patterns(dated) == {"sol": "sol"}
    assert remarks(dated) == [r"its names that match ^sol-\d{8}$ have no row"]
    assert patterns(model("sol-20261120", match=Regex(r"^sol-\d{8}$"))) == {"sol-20261120": "sol-20261120"}


def test_a_beginning_and_an_end_that_may_overlap_are_no_glob() -> None:
    both = model("x", match=package.ClauseAnd([Starts("ab"), Ends("bc")]))
    assert patterns(both) == {}
    assert remarks(both) == ["its names that match ab and bc have no row"]


def test_the_first_model_that_claims_a_name_has_it() -> None:
    """The package stops at the first one, our price book takes the most specific pattern."""
    found = patterns(model("early-1", match=Starts("early")), model("early-mini"), model("x", match=Starts("early-m")))
    assert found == {"early*": "early-1", "early-1": "early-1", "early-mini": "early-1"}


def test_upper_and_lower_case() -> None:
    assert set(patterns(model("Org/Model-7B", match=Equals("org/model-7b")))) == {"Org/Model-7B", "org/model-7b"}


# Prices


def test_every_class() -> None:
    price = Price(
        **{"input_mtok": D("1"), "output_mtok": D("2"), "cache_read_mtok": D("0.1"), "cache_write_mtok": D("1.25")},
        **{"output_reasoning_mtok": D("3"), "input_audio_mtok": D("40"), "output_audio_mtok": D("80")},
        **{"input_image_mtok": D("5"), "requests_kcount": D("5")},
    )
    assert tiers(model("m", price)) == {
        0: Amounts(D("1"), D("2"), D("0.1"), D("1.25"), D("3"), D("40"), D("80"), D("5"), D("0.005"))
    }


def test_steps_begin_one_token_later_here() -> None:
    long = package.TieredPrices(base=D("1"), tiers=[package.Tier(start=200_000, price=D("2"))])
    found = tiers(model("m", Price(input_mtok=long, output_mtok=D("5"))))
    assert found == {0: Amounts(D("1"), D("5")), 200_001: Amounts(D("2"), D("5"))}


def test_what_has_no_price_is_not_free() -> None:
    assert refused(model("m", Price())) == ["the list names no price"]
    assert refused(model("m", Price(input_mtok=D("1")))) == ["the list names no price for output"]
    assert tiers(model("m:free", Price())) == {0: Amounts()}
    assert tiers(model("m-embed", Price(input_mtok=D("1")))) == {0: Amounts(D("1"))}


def test_a_price_that_no_row_can_hold_is_refused() -> None:
    assert refused(model("m", Price(input_mtok=D("1000000.1"), output_mtok=D("1")))) == ["a price above 1,000,000 USD"]


def test_what_is_not_billed_by_tokens_is_refused() -> None:
    assert refused(model("m", Price(audio_hours=D("0.36"), input_audio_hours=D("0.36")))) == [
        "billed by hours of audio"
    ]
    assert refused(model("m", Price(input_mchars=D("15")))) == ["billed by characters"]


def test_a_class_we_do_not_count_must_not_be_dearer_than_where_it_is_counted() -> None:
    image = {"input_mtok": D("1"), "output_mtok": D("10")}
    assert refused(model("m", Price(**image, output_image_mtok=D("30")))) == [
        "a higher price for output image tokens, which are not counted apart"
    ]
    assert tiers(model("m", Price(**image, output_image_mtok=D("10")))) == {0: Amounts(D("1"), D("10"))}
    cheap_cache = Price(**image, cache_read_mtok=D("0.1"), cache_audio_read_mtok=D("0.5"))
    assert refused(model("m", cheap_cache)) == [
        "a higher price for cache audio read tokens, which are not counted apart"
    ]


def test_what_is_charged_only_when_asked_for_is_told() -> None:
    price = Price(input_mtok=D("1"), output_mtok=D("2"), web_searches_kcount=D("10"), cache_write_1h_mtok=D("2"))
    found = model("m", price, price_variants=[package.PriceVariant(when={"service_tier": "x"}, prices=price)])
    assert remarks(found) == [
        "what it charges for web searches is not counted",
        "what it charges for an hour in the cache is not counted",
        "other prices for batches, service tiers or routes are not used",
    ]


def test_amounts_with_too_many_places_are_rounded_up() -> None:
    price = Price(input_mtok=D("0.08333333333"), output_mtok=D("1"))
    assert tiers(model("m", price)) == {0: Amounts(D("0.083334"), D("1"))}
    assert remarks(model("m", price)) == ["rounded up to six places"]


def dated(*stages: tuple[str | None, str]) -> list[package.ConditionalPrice]:
    return [
        package.ConditionalPrice(
            package.StartDateConstraint(dt.date.fromisoformat(day)) if day else None,
            prices=Price(input_mtok=D(given), output_mtok=D("1")),
        )
        for day, given in stages
    ]


def stages(wanted: Wanted) -> list[tuple[Any, Any]]:
    return [
        (stage.since.date().isoformat() if stage.since else None, stage.tiers[0].input_usd_per_mtok)
        for stage in wanted.stages
    ]


def test_dated_prices() -> None:
    prices = dated((None, "4"), ("2026-01-01", "3"), ("2026-11-20", "2"), ("2027-01-01", "1"), ("2027-02-01", "1"))
    (wanted,) = listed(model("m", prices)).wanted
    assert stages(wanted) == [("2026-11-20", 2), ("2027-01-01", 1)]
    (wanted,) = listed(model("m", prices), now=NOW - dt.timedelta(days=365)).wanted
    assert stages(wanted) == [(None, 4), ("2026-01-01", 3), ("2026-11-20", 2), ("2027-01-01", 1)]
    (wanted,) = listed(model("m", dated(("2027-01-01", "2")))).wanted
    assert stages(wanted) == [(None, 2)], "as the package: where none is in force, the first one"


def at_night(given: str, made: str) -> package.ConditionalPrice:
    night = package.TimeOfDateConstraint(dt.time(22, tzinfo=dt.UTC), dt.time(6, tzinfo=dt.UTC))
    return package.ConditionalPrice(night, prices=Price(input_mtok=D(given), output_mtok=D(made)))


def test_of_prices_that_change_over_the_day_the_dearest_is_used() -> None:
    reason = "its price depends on the time of day; the dearest hours' is used all day"
    for night, expected in (
        (at_night("0.5", "1"), Amounts(D("1"), D("1"))),
        (at_night("2", "3"), Amounts(D("2"), D("3"))),
    ):
        found = model("m", [*dated((None, "1")), night])
        assert tiers(found) == {0: expected}
        assert remarks(found) == [reason]
    neither = model("m", [*dated((None, "1")), at_night("0.5", "9")])
    assert refused(neither) == ["its price depends on the time of day"]


def test_models_of_another_provider_that_are_served_too() -> None:
    first = package.Provider(
        id="a", name="A", api_pattern="", models=[model("own")], fallback_model_providers=["b", "x"]
    )
    second = package.Provider(id="b", name="B", api_pattern="", models=[model("theirs"), model("own", Price())])
    found = read({"a": "ours"}, NOW, [first, second])
    assert {each.pattern for each in found.wanted} == {"own", "theirs"}
    assert found.resolvers["ours"]("theirs") == {0: Amounts(D("1"), D("2"))}


def test_an_unknown_provider() -> None:
    with pytest.raises(KeyError):
        read({"nobody": "x"}, NOW)
    assert "openai" in package_ids()


# The real list


def records(prices: PriceList) -> list[PriceRecord]:
    def pico(amount: Decimal | None) -> int | None:
        return None if amount is None else int(amount * 10**6)

    return [
        PriceRecord(
            id=number,
            provider=each.provider,
            pattern=each.pattern,
            input=pico(amounts.input_usd_per_mtok) or 0,
            cached_read=pico(amounts.cached_read_usd_per_mtok),
            cache_write=pico(amounts.cache_write_usd_per_mtok),
            output=pico(amounts.output_usd_per_mtok) or 0,
            reasoning=pico(amounts.reasoning_usd_per_mtok),
            request=int(amounts.request_usd * 10**12),
            from_tokens=step,
            imported=True,
        )
        for number, each in enumerate(prices.wanted, 1)
        for step, amounts in each.tiers.items()
    ]


def test_every_name_of_the_real_list_costs_what_the_package_says() -> None:
    """The package's own calculation is the oracle, at sizes on both sides of every step."""
    prices = read(
        {each: each for each in ("openai", "mistral", "groq", "x-ai", "openrouter", "google", "anthropic")}, NOW
    )
    book = PriceBook.build(records(prices))
    by_id = {provider.id: provider for provider in package_data}
    approximate = {
        (remark.provider, remark.model)
        for remark in prices.remarks
        if remark.reason.startswith(("its price depends", "rounded"))
    }
    compared = 0
    for provider_id, name, expected in prices.expected:
        owner = by_id[provider_id].find_model(name, all_providers=package_data)
        for tokens in sorted({1000, *(step for at in expected or () if at for step in (at - 1, at))}):
            price = book.find(provider_id, provider_id, name, NOW.timestamp(), input_tokens=tokens)
            assert (price is None) == (expected is None), (provider_id, name)
            if price is None or owner is None or (provider_id, owner.id) in approximate:
                continue
            usage = package.Usage(input_tokens=tokens, cache_read_tokens=200, cache_write_tokens=100, output_tokens=100)
            theirs = owner.get_prices(NOW).calc_price(usage)["total_price"]
            ours = cost(price, input=tokens, cached=200, cache_write=100, output=100)
            assert Decimal(ours).scaleb(-12) == theirs, (provider_id, name, tokens)
            compared += 1
    assert compared > 2000
