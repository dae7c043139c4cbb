"""What calls have shown: latencies that fade, and the budget of further calls."""

from __future__ import annotations

import pytest

from providers.pace import FADING_PER_S, HALF_LIFE_S, UNKNOWN, Average, Pace, RetryBudget


def test_the_average_moves_by_three_tenths() -> None:
    average = Average()
    assert average.at(1.0) is None
    average.add(0.100, 5.0)
    assert average.at(5.0) == pytest.approx(0.100)
    average.add(0.200, 5.0)
    assert average.at(5.0) == pytest.approx(0.130)
    average.add(0.050, 5.0)
    assert average.at(5.0) == pytest.approx(0.106)


def test_what_was_slow_once_is_half_as_slow_after_a_half_life_without_calls() -> None:
    average = Average()
    average.add(2.0, 10.0)
    assert average.at(10.0 + HALF_LIFE_S) == pytest.approx(1.0)
    assert average.at(10.0 + 2 * HALF_LIFE_S) == pytest.approx(0.5)


def test_levels_compare_averages_of_any_age_without_the_clock() -> None:
    old, fresh = Average(), Average()
    assert old.level == UNKNOWN
    old.add(2.0, 10.0)
    fresh.add(1.1, 10.0 + HALF_LIFE_S)
    now = 20.0 + HALF_LIFE_S
    assert old.level < fresh.level
    for average in (old, fresh):
        assert 10 ** (average.level - now * FADING_PER_S) == pytest.approx(average.at(now))
    fresh.add(0.0, now)
    assert fresh.level > UNKNOWN


def test_streams_and_whole_answers_are_kept_apart() -> None:
    pace = Pace()
    pace.of(stream=True).add(0.1, 1.0)
    assert pace.of(stream=False).at(1.0) is None


def spend(budget: RetryBudget, now: float, share: float = 0.2) -> int:
    return sum(1 for _ in iter(lambda: budget.allows(now, share), False))


def test_a_few_further_calls_are_always_allowed_and_then_a_share() -> None:
    budget = RetryBudget()
    assert spend(budget, 100.0) == 30
    for _ in range(1000):
        budget.request(100.0)
    assert spend(budget, 101.0) == 170
    assert not budget.allows(101.0, 0.2)


def test_the_floor_is_low_while_further_calls_are_in_vain() -> None:
    budget = RetryBudget()
    for _ in range(RetryBudget.VAIN):
        assert budget.allows(100.0, 0.2)
        budget.ended(helped=False)
    assert not budget.allows(100.0, 0.2)
    for _ in range(1000):
        budget.request(100.0)
    assert spend(budget, 100.0) == 195, "the share is as it was"
    budget = RetryBudget()
    for _ in range(RetryBudget.VAIN):
        assert budget.allows(100.0, 0.2)
        budget.ended(helped=False)
    budget.ended(helped=True)
    assert spend(budget, 100.0) == 25, "one that helped brings it back"


def test_the_budget_comes_back_as_time_passes() -> None:
    budget = RetryBudget()
    assert spend(budget, 100.0) == 30
    assert 10 <= spend(budget, 115.0) <= 16
    assert spend(budget, 200.0) == 30
