from __future__ import annotations

import pytest

from budgets.bound import TOKENS_PER_FILE, TOKENS_PER_IMAGE, input_bound, output_limit


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
    ],
)
def test_the_output_limit(limits: dict[str, int | None], expected: int) -> None:
    assert output_limit(**limits) == expected  # type: ignore[arg-type]
