from __future__ import annotations

import pytest

from budgets.prices import PriceBook, cost, matches
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
