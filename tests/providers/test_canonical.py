"""Usage objects as providers really send them, and as none should."""

from __future__ import annotations

import json
from typing import Any

import pytest

from providers.canonical import MAX_TOKENS, Usage, parse_usage

OPENAI = {
    "prompt_tokens": 100,
    "completion_tokens": 50,
    "total_tokens": 150,
    "prompt_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 20, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 40},
}


def read(usage: Any, **options: bool) -> Usage | None:
    from_bytes = parse_usage(json.dumps(usage).encode(), **options)
    if isinstance(usage, dict):
        assert parse_usage(usage, **options) == from_bytes
    return from_bytes


def test_all_classes_of_tokens_are_read() -> None:
    assert read(OPENAI) == Usage(input=100, cached=30, cache_write=20, output=50, reasoning=40, reported=True)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}, Usage(5, output=7)),
        ({"prompt_tokens": 5, "completion_tokens": 7, "queue_time": 0.1, "x": None}, Usage(5, output=7)),
        ({"prompt_tokens": 9, "completion_tokens": 1, "prompt_cache_hit_tokens": 4}, Usage(9, cached=4, output=1)),
        (
            {"input_tokens": 5, "output_tokens": 7, "output_tokens_details": {"reasoning_tokens": 2}},
            Usage(5, 0, 0, 7, 2),
        ),
        ({"prompt_tokens": 5.0, "completion_tokens": 7}, Usage(5, output=7)),
        ({"prompt_tokens": 5, "completion_tokens": 7, "prompt_tokens_details": None}, Usage(5, output=7)),
        ({"prompt_tokens": 5, "completion_tokens": 7, "prompt_tokens_details": "none"}, Usage(5, output=7)),
        ({"prompt_tokens": 5, "completion_tokens": 7, "cost": "1e400"}, Usage(5, output=7)),
        ({"completion_tokens": 7, "total_tokens": 12}, Usage(5, output=7)),
        ({"prompt_tokens": 5, "total_tokens": 12}, Usage(5, output=7)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, Usage(0)),
    ],
)
def test_known_spellings_are_read(usage: dict[str, Any], expected: Usage) -> None:
    assert read(usage) == expected


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        {},
        "12",
        12,
        {"total_tokens": 12},
        {"prompt_tokens": 12},
        {"prompt_tokens": None, "completion_tokens": None},
        {"prompt_tokens": -1, "completion_tokens": 7},
        {"prompt_tokens": 5, "completion_tokens": -7},
        {"prompt_tokens": 5, "completion_tokens": 10**18},
        {"prompt_tokens": 5, "completion_tokens": 10**30},
        {"prompt_tokens": MAX_TOKENS + 1, "completion_tokens": 1},
        {"prompt_tokens": 5, "completion_tokens": "7"},
        {"prompt_tokens": 5, "completion_tokens": True},
        {"prompt_tokens": 5, "completion_tokens": 7.5},
        {"prompt_tokens": 5, "completion_tokens": [7]},
        {"prompt_tokens": 50, "total_tokens": 12},
    ],
)
def test_missing_and_absurd_usage_is_no_usage(usage: Any) -> None:
    assert read(usage) is None


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff", b'{"prompt_tokens":' + b"9" * 5000 + b"}", b"[" * 100_000, b'{"prompt_tokens":1e400}']
)
def test_bytes_that_are_no_usage_never_raise(raw: bytes) -> None:
    assert parse_usage(raw) is None


def test_details_are_never_larger_than_what_they_are_part_of() -> None:
    usage = OPENAI | {
        "prompt_tokens_details": {"cached_tokens": 90, "cache_write_tokens": 90},
        "completion_tokens_details": {"reasoning_tokens": 10**18},
    }
    assert read(usage) == Usage(100, cached=90, cache_write=10, output=50, reasoning=50)
    negative = OPENAI | {
        "prompt_tokens_details": {"cached_tokens": -5},
        "completion_tokens_details": {"reasoning_tokens": -1},
    }
    assert read(negative) == Usage(100, output=50)


def test_reasoning_left_out_by_the_provider_is_added() -> None:
    usage = OPENAI | {"total_tokens": 190}
    assert read(usage, reasoning_excluded=True) == Usage(100, 30, 20, 90, 40)
    assert read(usage) == Usage(100, 30, 20, 50, 40)


def test_reasoning_that_the_total_shows_to_be_included_is_not_added_again() -> None:
    assert read(OPENAI, reasoning_excluded=True) == Usage(100, 30, 20, 50, 40)


def test_embeddings_need_no_output_count() -> None:
    assert read({"prompt_tokens": 8, "total_tokens": 8}, generates=False) == Usage(8)
    assert read({"prompt_tokens": 8}, generates=False) == Usage(8)


def test_audio_and_image_tokens_are_read_apart() -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "total_tokens": 150,
        "prompt_tokens_details": {"cached_tokens": 10, "audio_tokens": 40, "image_tokens": 30, "text_tokens": 30},
        "completion_tokens_details": {"reasoning_tokens": 5, "audio_tokens": 25, "text_tokens": 20},
    }
    assert read(usage) == Usage(100, 10, 0, 50, 5, input_audio=40, output_audio=25, input_image=30)


@pytest.mark.parametrize("huge", [10**18, 95, -3, None, "40", 40.5])
def test_classes_of_tokens_stay_disjoint_whatever_is_reported(huge: Any) -> None:
    inputs = dict.fromkeys(("cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens"), huge)
    outputs = dict.fromkeys(("reasoning_tokens", "audio_tokens"), huge)
    found = read(OPENAI | {"prompt_tokens_details": inputs, "completion_tokens_details": outputs})
    assert found is not None
    given = (found.cached, found.cache_write, found.input_audio, found.input_image)
    assert min(given) >= 0
    assert sum(given) <= found.input == 100
    assert min(found.reasoning, found.output_audio) >= 0
    assert found.reasoning + found.output_audio <= found.output == 50


def test_a_token_that_was_cached_is_no_audio_token_as_well() -> None:
    details = {"cached_tokens": 80, "audio_tokens": 60}
    assert read(OPENAI | {"prompt_tokens_details": details}) == Usage(100, 80, 0, 50, 40, input_audio=20)
