from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgets.prices import PriceBook, PriceBound, cost, matches
from budgets.records import PriceRecord


def price(number: int, pattern: str, *, provider: str = "*", since: float = 0.0) -> PriceRecord:
    return PriceRecord(id=number, provider=provider, pattern=pattern, input=number, valid_from=since)


def found(book: PriceBook, model: str, *, at: float = 50.0) -> int | None:
    record = book.find("east", "openai", model, at)
    return record.id if record else None


def test_the_newest_row_that_is_valid_wins() -> None:
    book = PriceBook.build([price(1, "m", since=0), price(3, "m", since=100), price(2, "m", since=40)])
    assert found(book, "m", at=39.9) == 1
    assert found(book, "m", at=40) == 2
    assert found(book, "m", at=1000) == 3


def test_a_price_of_the_future_is_not_used() -> None:
    assert found(PriceBook.build([price(1, "m", since=100)]), "m") is None
    assert found(PriceBook.build([price(1, "m", since=100), price(2, "*")]), "m") == 2


def test_own_prices_come_before_the_kinds_and_those_before_everybodys() -> None:
    rows = [price(1, "m-1", provider="*"), price(2, "m*", provider="openai"), price(3, "*", provider="east")]
    assert found(PriceBook.build(rows), "m-1") == 3
    assert found(PriceBook.build(rows[:2]), "m-1") == 2
    assert found(PriceBook.build(rows[:1]), "m-1") == 1


def test_the_pattern_that_says_most_wins() -> None:
    book = PriceBook.build([price(1, "*"), price(2, "gpt-*"), price(3, "gpt-4*"), price(4, "gpt-4o")])
    assert [found(book, name) for name in ("x", "gpt-3", "gpt-4-turbo", "gpt-4o")] == [1, 2, 3, 4]


def test_an_unknown_model_has_no_price() -> None:
    assert found(PriceBook.build([price(1, "gpt-*")]), "llama") is None


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("a*b", "ab", True),
        ("a*a", "a", False),
        ("a*b*c", "axbxc", True),
        ("a*b*c", "axcxb", False),
        ("*mini*", "gpt-mini-4", True),
        ("", "", True),
        ("[x]", "x", False),
        ("*" * 40 + "z", "y" * 5000, False),
    ],
)
def test_globs(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


def test_each_token_is_paid_once() -> None:
    record = PriceRecord(
        1, "*", "*", input=10, cached_read=1, cache_write=12, output=100, reasoning=200, request=1_000_000
    )
    assert cost(record, input=100, cached=30, cache_write=20, output=50, reasoning=10) == (
        1_000_000 + 50 * 10 + 30 * 1 + 20 * 12 + 40 * 100 + 10 * 200
    )


def test_classes_without_a_price_cost_what_their_parents_do() -> None:
    record = PriceRecord(1, "*", "*", input=10, output=100)
    assert cost(record, input=100, cached=30, cache_write=20, output=50, reasoning=50) == 1000 + 5000


def test_absurd_parts_never_make_a_cost_negative() -> None:
    record = PriceRecord(1, "*", "*", input=10, output=100)
    assert cost(record, input=5, cached=50, cache_write=50, output=1, reasoning=9) == 5 * 10 + 100


def test_audio_and_images_are_classes_of_their_own() -> None:
    record = PriceRecord(1, "*", "*", input=10, output=100, input_audio=50, output_audio=500, input_image=20)
    assert cost(record, input=100, input_audio=10, input_image=5, output=40, output_audio=30) == (
        85 * 10 + 10 * 50 + 5 * 20 + 10 * 100 + 30 * 500
    )
    assert cost(record, input=8, cached=6, input_audio=6, input_image=6, output=2, reasoning=1, output_audio=9) == (
        6 * 10 + 2 * 50 + 100 + 500
    )


def row(number: int, pattern: str = "m", **changes: object) -> PriceRecord:
    values = {"provider": "openai", "input": number, "output": number, **changes}
    return PriceRecord(id=number, pattern=pattern, **values)  # type: ignore[arg-type]


def test_rows_of_the_route_win_over_all_others() -> None:
    book = PriceBook.build([row(1, route="fast", provider="*", pattern="*"), row(2), row(3, provider="east")])
    assert book.find("east", "openai", "m", 1, route="fast") == row(1, route="fast", provider="*", pattern="*")
    assert book.find("east", "openai", "m", 1, route="slow") == row(3, provider="east")
    assert book.find("east", "openai", "m", 1) == row(3, provider="east")


def test_a_row_of_a_route_still_names_models() -> None:
    book = PriceBook.build([row(1, route="fast", pattern="other"), row(2)])
    assert book.find("east", "openai", "m", 1, route="fast") == row(2)


def test_an_operators_rows_win_over_imported_ones() -> None:
    rows = [row(5, imported=True, valid_from=40), row(1, pattern="m*"), row(6, pattern="n", imported=True)]
    book = PriceBook.build(rows)
    assert book.find("east", "openai", "m", 50) == rows[1]
    assert book.find("east", "openai", "n", 50) == rows[2]


def test_a_row_for_everything_is_the_last_resort() -> None:
    rows = [row(1, pattern="*", provider="*"), row(2, imported=True), row(3, pattern="x", provider="*")]
    book = PriceBook.build(rows)
    assert [book.find("east", "openai", name, 1) for name in "mxz"] == [rows[1], rows[2], rows[0]]


def test_long_requests_have_their_own_price() -> None:
    rows = [row(1), row(2, from_tokens=1000), row(9, from_tokens=5000), row(4, from_tokens=1000, valid_from=100)]
    book = PriceBook.build(rows)

    def at(tokens: int, now: float = 50) -> int:
        found = book.find("east", "openai", "m", now, input_tokens=tokens)
        assert found is not None
        return found.id

    assert [at(tokens) for tokens in (0, 999, 1000, 4999, 5000, 10**9)] == [1, 1, 2, 2, 9, 9]
    assert [at(tokens, 100) for tokens in (999, 1000, 5000)] == [1, 4, 9]


def test_a_row_for_long_requests_only_leaves_the_short_ones_to_the_next() -> None:
    rows = [row(1, pattern="m*"), row(2, from_tokens=1000)]
    book = PriceBook.build(rows)
    assert book.find("east", "openai", "m", 1, input_tokens=10) == rows[0]
    assert book.find("east", "openai", "m", 1, input_tokens=1000) == rows[1]
    assert book.bound("east", "openai", "m", 1, input_tokens=1000) == PriceBound(2, 2, 2, 0)


def test_the_bound_is_the_dearest_token_of_all_that_may_apply() -> None:
    dear_cache = row(1, input=10, cached_read=2, cache_write=12, output=50, reasoning=60, request=7)
    book = PriceBook.build([dear_cache, row(2, from_tokens=100, input=20, output=40, output_audio=90, request=3)])
    assert book.bound("east", "openai", "m", 1, input_tokens=99) == PriceBound(1, 12, 60, 7)
    assert book.bound("east", "openai", "m", 1, input_tokens=100) == PriceBound(2, 20, 90, 7)


def test_no_bound_where_some_sizes_have_no_price() -> None:
    book = PriceBook.build([row(2, from_tokens=1000)])
    assert book.find("east", "openai", "m", 1, input_tokens=5000) is not None
    assert book.bound("east", "openai", "m", 1, input_tokens=5000) is None
    assert PriceBook.build([]).bound("east", "openai", "m", 1, input_tokens=5) is None


def test_where_a_size_without_a_price_costs_nothing_the_others_still_bind() -> None:
    rows = [row(1, from_tokens=1000, input=3, output=9), row(2, from_tokens=5000, input=2, output=10, request=7)]
    book = PriceBook.build(rows)
    assert book.bound("east", "openai", "m", 1, input_tokens=9000) is None
    assert book.bound("east", "openai", "m", 1, input_tokens=999, partly=True) is None
    assert book.bound("east", "openai", "m", 1, input_tokens=1000, partly=True) == PriceBound(1, 3, 9, 0)
    assert book.bound("east", "openai", "m", 1, input_tokens=9000, partly=True) == PriceBound(2, 3, 10, 7)


def test_a_price_of_the_future_binds_from_its_time_on() -> None:
    book = PriceBook.build([row(1), row(2, valid_from=100)])
    assert book.bound("east", "openai", "m", 99.9, input_tokens=5) == PriceBound(1, 1, 1, 0)
    assert book.bound("east", "openai", "m", 100, input_tokens=5) == PriceBound(2, 2, 2, 0)


_amount = st.integers(0, 10**9)
_own = st.none() | _amount
_prices = st.builds(
    PriceRecord,
    id=st.integers(1, 99),
    provider=st.sampled_from(("east", "openai", "*")),
    pattern=st.sampled_from(("m", "m*", "*")),
    input=_amount,
    output=_amount,
    request=_amount,
    valid_from=st.sampled_from((0.0, 10.0, 20.0)),
    route=st.sampled_from(("", "fast")),
    from_tokens=st.sampled_from((0, 0, 50, 100)),
    imported=st.booleans(),
    **dict.fromkeys(("cached_read", "cache_write", "reasoning", "input_audio", "output_audio", "input_image"), _own),
)
_tokens = st.integers(0, 300)


@given(
    st.lists(_prices, max_size=6),
    st.sampled_from((5.0, 10.0, 25.0)),
    st.tuples(_tokens, _tokens),
    st.tuples(*[_tokens] * 8),
)
def test_no_usage_within_its_bounds_costs_more_than_its_bound(
    prices: list[PriceRecord], at: float, bounds: tuple[int, int], used: tuple[int, ...]
) -> None:
    book = PriceBook.build(prices)
    bound = book.bound("east", "openai", "m", at, route="fast", input_tokens=bounds[0])
    given, made = min(used[0], bounds[0]), min(used[1], bounds[1])
    price = book.find("east", "openai", "m", at, route="fast", input_tokens=given)
    if bound is None:
        return
    assert price is not None, "a bound promises a price for every size"
    names = ("cached", "cache_write", "reasoning", "input_audio", "output_audio", "input_image")
    paid = cost(price, input=given, output=made, **dict(zip(names, used[2:], strict=True)))
    assert 0 <= paid <= bounds[0] * bound.input_pico + bounds[1] * bound.output_pico + bound.request_pico


def test_a_question_asked_before_is_answered_at_once() -> None:
    """A price list is thousands of rows: only the first request for a model may pay for walking them."""
    book = PriceBook.build([row(number, pattern=f"model-{number}-*") for number in range(1, 5000)])
    book.find("east", "openai", "model-77-x", 1, route="fast", input_tokens=5)
    began = time.process_time()
    for _ in range(1000):
        book.find("east", "openai", "model-77-x", 1, route="fast", input_tokens=5)
        book.bound("east", "openai", "model-77-x", 1, route="fast", input_tokens=5)
    assert time.process_time() - began < 0.5  # walking takes milliseconds each time
