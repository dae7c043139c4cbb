"""When an agent spends unlike itself: the statistics alone."""

from __future__ import annotations

import math
import random

import pytest

from budgets.anomalies import ALPHA, FLOOR_SHARE, LEAST, SIGMAS, History, bound, learn


def history_of(values, unit="usd"):
    history = History()
    for value in values:
        learn(history, value, unit)
    return history


def test_nothing_is_judged_before_enough_is_known():
    history = history_of([1.0] * (LEAST - 1))
    assert not bound(history, "usd").is_broken_by(1e9)
    learn(history, 1.0, "usd")
    assert bound(history, "usd").is_broken_by(1e9)


def test_the_bound_is_four_sigma_above_the_mean():
    rng = random.Random(1)
    history = history_of([rng.gauss(10.0, 4.0) for _ in range(2000)])
    found = bound(history, "usd")
    assert found.expected == pytest.approx(10.0, abs=3.0)
    assert found.sigma == pytest.approx(4.0, rel=0.5)
    assert found.limit == found.expected + SIGMAS * found.sigma
    assert not found.is_broken_by(found.limit)
    assert found.is_broken_by(math.nextafter(found.limit, math.inf))


def test_an_agent_that_always_spends_the_same_has_room():
    found = bound(history_of([2.0] * 200), "usd")
    assert found.sigma == pytest.approx(FLOOR_SHARE * 2.0)
    assert not found.is_broken_by(3.9)
    assert found.is_broken_by(4.1)


def test_cents_and_some_thousand_tokens_alarm_nobody():
    assert not bound(history_of([0.0001] * 100), "usd").is_broken_by(0.04)
    assert bound(history_of([0.0001] * 100), "usd").is_broken_by(0.05)
    assert not bound(history_of([10.0] * 100, "tokens"), "tokens").is_broken_by(4_000)


def test_mean_and_variance_follow_the_formula():
    history = history_of([1.0] * 100)
    mean, variance = history.mean, history.variance
    learn(history, 1.5, "usd")
    difference = 1.5 - mean
    assert history.mean == pytest.approx(mean + ALPHA * difference)
    assert history.variance == pytest.approx((1 - ALPHA) * (variance + ALPHA * difference**2))


def test_an_outlier_teaches_no_more_than_the_bound_and_a_new_level_is_accepted_in_the_end():
    history = history_of([1.0] * 100)
    limit = bound(history, "usd").limit
    learn(history, 1e6, "usd")
    assert history.mean <= limit
    assert bound(history, "usd").is_broken_by(1e6)
    level, steps = 20.0, 0
    while bound(history, "usd").is_broken_by(level):
        learn(history, level, "usd")
        steps += 1
        assert steps < 200
    assert steps > 2


def test_ordinary_noise_raises_few_alarms():
    rng = random.Random(7)
    history, alarms = History(), 0
    for _ in range(5000):
        value = max(0.0, rng.gauss(5.0, 1.0))
        alarms += bound(history, "usd").is_broken_by(value)
        learn(history, value, "usd")
    assert alarms <= 5
