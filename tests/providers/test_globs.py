"""Model patterns."""

from __future__ import annotations

import fnmatch
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.globs import any_matcher, is_valid, matcher, specificity


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("*", "anything", True),
        ("gpt-4o", "gpt-4o", True),
        ("gpt-4o", "gpt-4O", False),
        ("gpt-*", "gpt-", True),
        ("gpt-*", "xgpt-1", False),
        ("*-mini", "gpt-4o-mini", True),
        ("*-mini", "gpt-4o-minis", False),
        ("gpt-*-mini", "gpt-4o-mini", True),
        ("gpt-*-mini", "gpt-mini", False),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a*b*c", "a-b-b-c", True),
        ("a**b", "ab", True),
        ("[x]?", "[x]?", True),
        ("[x]?", "xy", False),
    ],
)
def test_a_pattern_matches_literally_except_for_stars(pattern: str, name: str, expected: bool) -> None:
    assert matcher(pattern)(name) is expected


@given(st.text("ab*", min_size=1, max_size=8), st.text("ab", max_size=10))
@settings(max_examples=2000, deadline=None)
def test_matching_agrees_with_a_regular_expression(pattern: str, name: str) -> None:
    expected = re.fullmatch(fnmatch.translate(pattern), name) is not None
    assert matcher(pattern)(name) == expected


def test_any_of_several_patterns_is_enough() -> None:
    test = any_matcher(["gpt-*", "claude"])
    assert test("gpt-5")
    assert test("claude")
    assert not test("claude-2")
    assert not any_matcher([])("x")


def test_more_literal_patterns_are_more_specific() -> None:
    assert sorted(["*", "gpt-4o-mini", "gpt-*", "gpt-4*"], key=specificity) == ["*", "gpt-*", "gpt-4*", "gpt-4o-mini"]


def test_control_characters_and_lengths_are_refused() -> None:
    assert is_valid("a" * 256)
    assert not is_valid("a" * 257)
    assert not is_valid("")
    assert not is_valid("a\nb")
