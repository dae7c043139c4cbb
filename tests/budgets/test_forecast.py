"""The run-out forecast: known rates, what is left out, and properties over random histories."""

from __future__ import annotations

import math
import random

import pytest

from budgets.forecast import LEAST_TAU_S, LIFETIME_TAU_S, Forecast, forecast, time_constant_s

DAY_S = 86_400
START = 1_760_000_000 // DAY_S * DAY_S
NOW = START + DAY_S // 2


def ask(samples: list[tuple[int, int]], **changes: object) -> Forecast | None:
    fields = {"now": NOW, "committed": 0, "capacity": 10**6, "window_start": 0, "window_end": 0, **changes}
    return forecast(samples, **fields)  # type: ignore[arg-type]


def steady(rate: int, *, minutes: int = 60) -> list[tuple[int, int]]:
    first = NOW - minutes * 60
    return [(first + minute * 60, minute * 60 * rate) for minute in range(minutes)]


def test_a_steady_rate_runs_out_when_it_must_and_nothing_is_uncertain():
    found = ask(steady(10), committed=36_000)
    assert found is not None
    assert found.rate == pytest.approx(10)
    assert found.sigma == pytest.approx(0, abs=1e-6)
    assert found.run_out == pytest.approx(NOW + (10**6 - 36_000) / 10)
    assert found.earliest == pytest.approx(found.run_out)
    assert found.latest == pytest.approx(found.run_out)


def test_two_stretches_follow_the_written_formula():
    samples = [(NOW - 7200, 0), (NOW - 3600, 3600)]
    found = ask(samples, committed=3600 + 3 * 3600)
    weight = 1 - math.exp(-3600 / LIFETIME_TAU_S)
    mean = 1 + weight * 2
    sigma = math.sqrt((1 - weight) * weight * 4)
    left = 10**6 - 14_400
    assert found is not None
    assert (found.rate, found.sigma) == (pytest.approx(mean), pytest.approx(sigma))
    assert found.run_out == pytest.approx(NOW + left / mean)
    assert found.earliest == pytest.approx(NOW + left / (mean + 2 * sigma))
    assert found.latest == pytest.approx(NOW + left / (mean - 2 * sigma))


def test_no_limit_and_nothing_known_give_no_forecast():
    assert ask(steady(10), capacity=None) is None
    assert ask([]) is None


def test_one_sample_is_enough_with_what_is_charged_now():
    found = ask([(NOW - 600, 100)], committed=700)
    assert found is not None
    assert found.rate == pytest.approx(1)


def test_a_window_began_with_nothing_charged():
    found = ask([], committed=DAY_S // 2, window_start=START, window_end=START + DAY_S)
    assert found is not None
    assert found.rate == pytest.approx(1)
    assert found.run_out is None  # not before the window ends


def test_what_lies_behind_the_windows_end_is_none():
    window = {"window_start": START, "window_end": START + DAY_S, "committed": DAY_S // 2}
    inside = ask([], capacity=DAY_S - 10, **window)
    behind = ask([], capacity=DAY_S + 10, **window)
    assert inside is not None
    assert behind is not None
    assert inside.run_out == pytest.approx(START + DAY_S - 10)
    assert behind.run_out is None


def test_an_idle_pool_never_runs_out():
    found = ask([(NOW - 3600, 500)], committed=500)
    assert found == Forecast(0.0, 0.0, None, None, None)


def test_a_spent_pool_has_run_out_now():
    found = ask(steady(10), committed=36_000, capacity=36_000)
    assert found is not None
    assert found.run_out == found.earliest == found.latest == NOW


def test_a_correction_downwards_tells_nothing_about_the_rate():
    samples = steady(10)
    samples += [(NOW - 30, 5)]
    found = ask([(at, amount) for at, amount in samples if at <= NOW - 30], committed=305)
    assert found is not None
    assert found.rate == pytest.approx(10)


def test_moments_just_past_the_last_sample_do_not_make_the_forecast_nervous():
    found = ask([*steady(10), (NOW - 1, 36_000)], committed=46_000)
    assert found is not None
    assert found.sigma < 20  # over one second it would be 10,000 a second


def test_samples_of_the_future_are_left_out():
    assert ask([*steady(10), (NOW + 60, 10**9)], committed=36_000) == ask(steady(10), committed=36_000)


def test_the_time_constant_follows_the_window_and_is_never_below_half_an_hour():
    assert time_constant_s(START, START + 3600) == LEAST_TAU_S
    assert time_constant_s(START, START + 30 * DAY_S) == 30 * 3600
    assert time_constant_s(0, 0) == LIFETIME_TAU_S


@pytest.mark.parametrize("seed", range(300))
def test_random_histories_keep_their_order_and_stay_finite(seed: int):
    draw = random.Random(seed)
    at_s, amount, samples = START, 0, []
    for _ in range(draw.randrange(0, 60)):
        at_s += draw.choice((0, 1, 60, 300, 4000))
        amount = max(0, amount + draw.choice((0, 0, 1, 10**3, 10**12, -(10**3), -(10**12))))
        samples.append((at_s, amount))
    now = at_s + draw.choice((0.0, 0.5, 45.0, 10_000.0))
    start, end = draw.choice(((0, 0), (START, START + DAY_S), (START, START + 30 * DAY_S)))
    capacity = draw.choice((0, 10**6, 10**13, 9 * 10**18))
    found = forecast(samples, now=now, committed=amount, capacity=capacity, window_start=start, window_end=end)
    if found is None:
        return
    assert found.rate >= 0
    assert found.sigma >= 0
    assert math.isfinite(found.rate)
    assert math.isfinite(found.sigma)
    moments = [math.inf if at is None else at for at in (found.earliest, found.run_out, found.latest)]
    assert moments == sorted(moments)
    assert moments[0] >= now
    if end:
        assert all(moment < end or moment in (now, math.inf) for moment in moments)
