"""The events there are: names, topics, levels, and the shape older clients of hoosh know them by. Pure.

    {"id": 7, "at": "2026-01-01T00:00:00.000000Z", "topic": "providers/health", "name": "provider.health_changed",
     "level": "warning", "data": {…}, "event": "health_changed", "provider": "ollama", "base_url": "http://…",
     "healthy": false}

`event` and what follows it stand only in the four kinds that hoosh had.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """One name. `event` is what hoosh called it and `flat` the fields it told with it; both may be missing."""

    topic: str
    level: str = "info"
    event: str = ""
    flat: tuple[str, ...] = ()


HEALTH, CIRCUIT, RATE_LIMITED = "provider.health_changed", "provider.circuit_changed", "provider.rate_limited"
THRESHOLD, REFUSED, PUBLISHED = "budget.threshold", "request.refused", "config.published"
COMPLETED, FAILED = "inference.completed", "inference.failed"
ANOMALY = "agent.anomaly"
DISABLED, TEST = "webhook.disabled", "webhook.test"
CHECKPOINT, BROKEN = "audit.checkpoint", "audit.broken"

KINDS: Mapping[str, Kind] = {
    HEALTH: Kind("providers/health", "info", "health_changed", ("provider", "base_url", "healthy")),
    CIRCUIT: Kind("providers/circuit"),
    RATE_LIMITED: Kind("providers/rate_limit", "warning", "rate_limited", ("provider",)),
    COMPLETED: Kind(
        "providers/inference", "info", "inference_completed", ("provider", "model", "latency_ms", "tokens")
    ),
    FAILED: Kind("providers/errors", "warning", "inference_failed", ("provider", "model", "error")),
    THRESHOLD: Kind("budgets/threshold", "warning"),
    REFUSED: Kind("requests/refused"),
    PUBLISHED: Kind("config/published"),
    ANOMALY: Kind("agents/anomaly", "warning"),
    DISABLED: Kind("webhooks/disabled", "error"),
    TEST: Kind("webhooks/test"),
    CHECKPOINT: Kind("audit/checkpoint"),
    BROKEN: Kind("audit/broken", "error"),
}
TOPICS = tuple(dict.fromkeys(kind.topic for kind in KINDS.values()))

FILTERS_MAX = 16
_SEPARATOR = re.compile(r"[/.]")
_FILTER = re.compile(r"(?:[A-Za-z0-9_-]+|\*)(?:[/.](?:[A-Za-z0-9_-]+|\*))*(?:[/.]#)?|#")
_FILTER_LENGTH = 100


def told(
    number: int | str, at: dt.datetime, topic: str, name: str, level: str, data: Mapping[str, Any]
) -> dict[str, Any]:
    """An event as it is told to programs; see above."""
    shown: dict[str, Any] = {
        "id": number,
        "at": at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "topic": topic,
        "name": name,
        "level": level,
        "data": data,
    }
    kind = KINDS.get(name)
    if kind is not None and kind.event:
        shown["event"] = kind.event
        shown |= {field: data.get(field) for field in kind.flat}
    return shown


class Wanted:
    """A choice of events by topic or name. No filter at all: every event."""

    def __init__(self, filters: Sequence[str] = ()) -> None:
        """`*` stands for one part, `#` at the end for any number of them; parts stand between / or dots.

        Raises `ValueError` in words for whoever wrote the filter.
        """
        if len(filters) > FILTERS_MAX:
            raise ValueError(f"At most {FILTERS_MAX} topics can be chosen.")
        for text in filters:
            if len(text) > _FILTER_LENGTH or not _FILTER.fullmatch(text):
                raise ValueError(
                    f"“{text[:_FILTER_LENGTH]}” is no topic: write providers/health, providers/* or providers/#."
                )
        self._filters = tuple(tuple(_SEPARATOR.split(text)) for text in filters)
        self._known: dict[tuple[str, str], bool] = {}

    @classmethod
    def parse(cls, text: str) -> Wanted:
        """The choice written as a comma-separated list."""
        return cls([part for part in (each.strip() for each in text.split(",")) if part])

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return not self._filters

    def has(self, topic: str, name: str) -> bool:
        """Whether an event is chosen: by its topic, its name, or the name hoosh had for it."""
        if not self._filters:
            return True
        known = self._known.get((topic, name))
        if known is None:
            if len(self._known) >= 256:
                self._known.clear()
            known = self._known[topic, name] = self._matches(topic, name)
        return known

    def _matches(self, topic: str, name: str) -> bool:
        kind = KINDS.get(name)
        subjects = (_SEPARATOR.split(topic), _SEPARATOR.split(name))
        alias = (kind.event,) if kind else ()
        return any(each == alias or any(_fits(each, subject) for subject in subjects) for each in self._filters)


def _fits(parts: Sequence[str], subject: Sequence[str]) -> bool:
    if parts[-1] == "#":
        parts = parts[:-1]
        subject = subject[: len(parts)]
    return len(parts) == len(subject) and all(part in ("*", piece) for part, piece in zip(parts, subject, strict=True))
