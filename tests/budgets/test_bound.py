from __future__ import annotations

import pytest

from budgets.bound import (
    AMOUNT_MAX,
    TOKENS_PER_FILE,
    TOKENS_PER_IMAGE,
    affordable,
    fitting_limit,
    input_bound,
    money_bound,
    output_limit,
)


def test_every_byte_of_a_prompt_may_be_a_token() -> None:
    assert input_bound(body_bytes=1000, messages=3) == 1000 + 48


def test_an_operators_ratio_is_rounded_up() -> None:
    assert input_bound(body_bytes=1000, messages=1, min_bytes_per_token=3) == 334 + 16


def test_a_prompt_of_integers_is_counted() -> None:
    assert input_bound(body_bytes=9000, prompt_tokens=1500) == 1500 + 16


def test_media_count_by_the_table_and_not_by_their_bytes() -> None:
    bound = input_bound(body_bytes=100_500, media_bytes=100_000, messages=1, images=2, files=1)
    assert bound == 500 + 16 + 2 * TOKENS_PER_IMAGE + TOKENS_PER_FILE


def test_odd_sizes_never_make_it_negative() -> None:
    assert input_bound(body_bytes=10, media_bytes=50, messages=0, min_bytes_per_token=0) == 16


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"asked": 50}, 50),
        ({"asked": 50_000, "card_max": 4096}, 50_000),
        ({"asked": 50_000, "route_cap": 300}, 300),
        ({"asked": None}, 8192),
        ({"asked": None, "card_max": 4096}, 4096),
        ({"asked": None, "card_max": 100_000}, 8192),
        ({"asked": None, "default_cap": 512}, 512),
        ({"asked": None, "available": 20_000}, 5_000),
        ({"asked": None, "available": 100}, 1024),
        ({"asked": None, "available": 0, "card_max": 256}, 256),
        ({"asked": None, "available": None}, 8192),
        ({"asked": None, "available": 100, "route_cap": 200}, 200),
        ({"asked": None, "available": 40_000, "choices": 4}, 2_500),
        ({"asked": None, "available": 20_000, "choices": 0}, 5_000),
        ({"asked": 5_000, "available": 100, "choices": 4}, 5_000),
    ],
)
def test_the_output_limit(limits: dict[str, int | None], expected: int) -> None:
    assert output_limit(**limits) == expected  # type: ignore[arg-type]


def test_the_money_bound_is_the_dearest_of_everything() -> None:
    sizes = {"input_tokens": 100, "output_tokens": 40}
    assert money_bound(**sizes, input_pico=3, output_pico=7, request_pico=1_000) == 1_000 + 300 + 280
    assert money_bound(**sizes, input_pico=2**62, output_pico=2**62, request_pico=0) == AMOUNT_MAX


@pytest.mark.parametrize(
    ("tokens", "pico", "output_pico", "expected"),
    [
        (None, None, 5, None),
        (900, None, 5, 900),
        (900, 10**6, 0, 900),
        (None, 999, 10, 99),
        (900, 999, 10, 99),
        (50, 999, 10, 50),
        (None, -5, 10, 0),
    ],
)
def test_what_is_available_is_the_fewer_of_tokens_and_what_money_buys(
    tokens: int | None, pico: int | None, output_pico: int, expected: int | None
) -> None:
    assert affordable(tokens, pico, output_pico) == expected


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ({"tokens": 1_000, "pico": None, "choices": 1}, 900),
        ({"tokens": 1_000, "pico": None, "choices": 4}, 225),
        ({"tokens": 1_000, "pico": None, "choices": 0}, 900),
        ({"tokens": None, "pico": 10_000, "choices": 1}, (10_000 - 50 - 100 * 2) // 5),
        ({"tokens": None, "pico": 10_000, "choices": 3}, (10_000 - 50 - 100 * 2) // 15),
        ({"tokens": 400, "pico": 10_000, "choices": 1}, 300),
        ({"tokens": 10_000, "pico": 249, "choices": 1}, -1),
        ({"tokens": 50, "pico": None, "choices": 1}, -50),
        ({"tokens": None, "pico": None, "choices": 1}, AMOUNT_MAX),
    ],
)
def test_the_limit_that_fits(left: dict[str, int | None], expected: int) -> None:
    price = {"input_pico": 2, "output_pico": 5, "request_pico": 50}
    assert fitting_limit(input_bound=100, **price, **left) == expected  # type: ignore[arg-type]


def test_a_request_with_the_limit_that_fits_fits_and_with_one_more_does_not() -> None:
    price = {"input_pico": 3, "output_pico": 11, "request_pico": 7}
    for tokens, pico, choices in ((5_000, 90_000, 1), (700, 10**9, 3), (10**6, 31_337, 2)):
        limit = fitting_limit(tokens=tokens, pico=pico, input_bound=130, choices=choices, **price)

        def fits(limit: int, tokens: int = tokens, pico: int = pico, choices: int = choices) -> bool:
            bound = money_bound(input_tokens=130, output_tokens=limit * choices, **price)
            return 130 + limit * choices <= tokens and bound <= pico

        assert fits(limit)
        assert not fits(limit + 1)
