"""Samples of metrics over time, quantiles of histograms, and charts of both. Pure."""

from __future__ import annotations

import re

import pytest

from hoosh_site import charts
from hoosh_site.live_figures import Figures, Sample, between, quantile_ms

INF = float("inf")


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def taken(*samples: Sample) -> Figures:
    """Figures that hold these samples."""
    clock, waiting = Clock(), list(samples)
    figures = Figures(lambda: waiting.pop(0), clock=clock)
    for sample in samples:
        clock.now = sample.at
        figures.take()
    return figures


def sample(at: float, answered: float, failed: float = 0.0, **more: object) -> Sample:
    return Sample(at, requests={"2xx": answered, "5xx": failed}, **more)  # type: ignore[arg-type]


def test_what_happened_is_the_difference_of_two_samples() -> None:
    first = sample(0, 10, 1, tokens=100.0, refusals={"a": 1.0}, cache={"hit": 1.0, "miss": 1.0})
    last = sample(
        60, 40, 3, tokens=400.0, refusals={"a": 1.0, "b": 2.0}, cache={"hit": 4.0, "miss": 2.0, "bypass": 9.0}
    )
    span = between(first, last)
    assert (span.seconds, span.total, span.errors, span.tokens) == (60, 32, 2, 300)
    assert span.refusals == {"a": 0, "b": 2}
    assert span.hit_share == 0.75


def test_totals_that_fell_count_from_nothing() -> None:
    assert between(sample(0, 100), sample(10, 7)).total == 7


def test_before_two_samples_nothing_is_known() -> None:
    assert taken().over(60) is None
    assert taken(sample(0, 1)).over(60) is None
    assert taken(sample(0, 1)).spans(60, 3) == [None] * 3
    assert taken().latest() is None


def test_samples_are_ten_seconds_apart_and_an_hour_is_kept() -> None:
    clock = Clock()
    count = 0

    def read() -> Sample:
        nonlocal count
        count += 1
        return sample(clock.now, count)

    figures = Figures(read, clock=clock)
    for _ in range(30):
        figures.take()
        clock.now += 1
    assert count == 3
    for _ in range(800):
        clock.now += 10
        figures.take()
    hour = figures.over(86_400)
    assert hour is not None
    assert hour.seconds == 3600


def test_spans_are_the_newest_last_with_gaps_where_nothing_is_known() -> None:
    figures = taken(*(sample(at, at) for at in range(0, 121, 10)))
    spans = figures.spans(60, 4)
    assert [span and round(span.total) for span in spans] == [None, None, 60, 60]


@pytest.mark.parametrize(
    ("buckets", "quantile", "expected"),
    [
        ({}, 0.5, None),
        ({0.1: 0.0, INF: 0.0}, 0.5, None),
        ({0.1: 10.0, 0.2: 10.0, INF: 10.0}, 0.5, 50.0),
        ({0.1: 0.0, 0.2: 10.0, INF: 10.0}, 0.5, 150.0),
        ({0.1: 5.0, 0.2: 10.0, INF: 10.0}, 0.95, 190.0),
        ({0.1: 5.0, 0.2: 5.0, INF: 10.0}, 0.95, 200.0),
    ],
)
def test_quantiles_are_linear_inside_a_bucket(
    buckets: dict[float, float], quantile: float, expected: float | None
) -> None:
    found = quantile_ms(buckets, quantile)
    assert found == (None if expected is None else pytest.approx(expected))


def test_bars_fill_the_chart_and_stand_on_each_other() -> None:
    svg = charts.stacked([("good", "good", [1.0, 3.0]), ("bad", "bad", [1.0, 0.0])], label="x", ticks=["a", "b"])
    heights = [float(found) for found in re.findall(r'class="(?:good|bad)"[^>]* height="([\d.]+)"', svg)]
    assert heights[-1] == pytest.approx(charts.HEIGHT - 2)
    assert heights[0] == pytest.approx(heights[1])
    assert "<title>a: good 1, bad 1</title>" in svg
    assert "<title>b: good 3</title>" in svg
    assert 'aria-label="x, up to 3"' in svg
    assert "<span>a</span><span>b</span></div>" in svg


def test_charts_of_nothing_are_empty_and_names_are_escaped() -> None:
    assert "<rect" not in charts.stacked([], label="x")
    svg = charts.lines([("<b>", "plain", [None, 1.0, None, 2.0, 3.0])], label="<i>")
    assert svg.count("<polyline") == 2
    assert "<b>" not in svg
    assert "<i>" not in svg
    assert "style" not in svg


@pytest.mark.parametrize("place", [0, 30, 59])
def test_a_moment_without_neighbours_is_wide_enough_to_be_seen_and_inside_the_chart(place: int) -> None:
    values: list[float | None] = [None] * 60
    values[place] = 5.0
    found = re.search(r'points="([\d.]+),[\d.]+ ([\d.]+),', charts.lines([("x", "plain", values)], label="x"))
    assert found is not None
    left, right = float(found[1]), float(found[2])
    assert right - left >= 3
    assert 0 <= left < right <= charts.WIDTH


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.25, "0.25"), (12, "12"), (1234, "1.23k"), (2e6, "2M"), (5e9, "5G"), (123.4, "123")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert charts.number(value) == text
