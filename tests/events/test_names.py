"""Which events a filter chooses, and the shape they are told in."""

from __future__ import annotations

import datetime as dt

import pytest

from events import names
from events.names import Wanted

AT = dt.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("filters", "chosen"),
    [
        ("", True),
        ("providers/health", True),
        ("providers.health", True),
        ("provider.health_changed", True),
        ("health_changed", True),
        ("providers/*", True),
        ("*/health", True),
        ("#", True),
        ("providers/#", True),
        ("providers/health/#", True),
        ("budgets/threshold, providers/health", True),
        ("providers", False),
        ("*", False),
        ("providers/health/*", False),
        ("providers/errors", False),
        ("budgets/#", False),
    ],
)
def test_a_filter_matches_topic_name_or_old_name_part_by_part(filters: str, chosen: bool) -> None:
    wanted = Wanted.parse(filters)
    assert wanted.has("providers/health", names.HEALTH) is chosen
    assert wanted.has("providers/health", names.HEALTH) is chosen  # also when it is remembered


@pytest.mark.parametrize("text", ["a//b", "#/a", "a/#/b", "a b", "ü", "a/", "/a", "a*", "x" * 101, ",".join("a" * 17)])
def test_a_filter_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="topic"):
        Wanted.parse(text)


def test_the_four_events_of_hoosh_are_told_in_its_shape_besides() -> None:
    data = {"provider": "openai", "model": "m", "latency_ms": 812, "tokens": 141, "status": 200}
    told = names.told(7, AT, "providers/inference", names.COMPLETED, "info", data)
    assert told == {
        "id": 7,
        "at": "2026-01-02T03:04:05.000678Z",
        "topic": "providers/inference",
        "name": "inference.completed",
        "level": "info",
        "data": data,
        "event": "inference_completed",
        "provider": "openai",
        "model": "m",
        "latency_ms": 812,
        "tokens": 141,
    }
    old = {kind.event: (kind.topic, kind.flat) for kind in names.KINDS.values() if kind.event}
    assert old == {
        "health_changed": ("providers/health", ("provider", "base_url", "healthy")),
        "inference_completed": ("providers/inference", ("provider", "model", "latency_ms", "tokens")),
        "inference_failed": ("providers/errors", ("provider", "model", "error")),
        "rate_limited": ("providers/rate_limit", ("provider",)),
    }


def test_an_event_hoosh_did_not_have_has_no_old_fields() -> None:
    assert "event" not in names.told(1, AT, "config/published", names.PUBLISHED, "info", {"provider": "x"})
    assert "event" not in names.told(1, AT, "of/others", "of.others", "info", {})
