"""What the workers' metrics say over time: the last hour, in control's memory.

A sample is taken every ten seconds of the values all workers share (`gateway.metrics`); the difference of two is what
happened between them. What is older stands in the rollups of the ledger. When control starts it knows nothing yet.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

EVERY_S = 10.0
KEPT = 361  # an hour


@dataclass(frozen=True)
class Sample:
    """Totals since the gateway's start. Histograms: cumulative counts by upper bound in seconds."""

    at: float  # monotonic clock
    requests: Mapping[str, float] = field(default_factory=dict)  # by class of status: "2xx"
    refusals: Mapping[str, float] = field(default_factory=dict)  # by error code
    tokens: float = 0.0
    cache: Mapping[str, float] = field(default_factory=dict)  # by result
    duration: Mapping[float, float] = field(default_factory=dict)
    first_byte: Mapping[float, float] = field(default_factory=dict)
    inflight: float = 0.0


@dataclass(frozen=True)
class Span:
    """What happened between two samples, `seconds` apart."""

    seconds: float
    requests: Mapping[str, float]
    refusals: Mapping[str, float]
    tokens: float
    cache: Mapping[str, float]
    duration: Mapping[float, float]
    first_byte: Mapping[float, float]

    @property
    def total(self) -> float:
        """Finished requests."""
        return sum(self.requests.values())

    @property
    def errors(self) -> float:
        """Those that were not answered."""
        return sum(count for name, count in self.requests.items() if not name.startswith(("2", "3")))

    @property
    def hit_share(self) -> float | None:
        """Which part of the requests that could have been answered from what is kept were; None where none could."""
        hits = self.cache.get("hit", 0.0) + self.cache.get("similar", 0.0)
        asked = hits + self.cache.get("miss", 0.0)
        return hits / asked if asked else None

    def duration_ms(self, quantile: float) -> float | None:
        """Milliseconds within which this part of the requests was over."""
        return quantile_ms(self.duration, quantile)

    def first_byte_ms(self, quantile: float) -> float | None:
        """The same, to the first byte of the answer."""
        return quantile_ms(self.first_byte, quantile)


class Figures:
    """The samples of the last hour. `take` belongs to one thread, everything else to any."""

    def __init__(
        self, read: Callable[[], Sample] | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`read` makes a sample; left out, it is of the shared metrics."""
        self._read, self._clock = read or read_metrics, clock
        self._samples: deque[Sample] = deque(maxlen=KEPT)
        self._lock = threading.Lock()

    def take(self) -> None:
        """Take a sample if one is due."""
        with self._lock:
            last = self._samples[-1].at if self._samples else None
        if last is not None and self._clock() - last < EVERY_S:
            return
        sample = self._read()
        with self._lock:
            self._samples.append(sample)

    def latest(self) -> Sample | None:
        """The newest sample."""
        with self._lock:
            return self._samples[-1] if self._samples else None

    def over(self, seconds: float) -> Span | None:
        """What happened in the last so many seconds, or since the first sample; None before there are two."""
        with self._lock:
            samples = list(self._samples)
        if len(samples) < 2:
            return None
        since = samples[-1].at - seconds
        first = next((sample for sample in samples if sample.at >= since - EVERY_S / 2), samples[-2])
        return between(first if first is not samples[-1] else samples[-2], samples[-1])

    def spans(self, seconds: float, count: int) -> list[Span | None]:
        """`count` spans of so many seconds each, the newest last; None where nothing is known."""
        with self._lock:
            samples = list(self._samples)
        if not samples:
            return [None] * count
        end = samples[-1].at
        found: list[Span | None] = []
        for i in range(count, 0, -1):
            inside = [
                s for s in samples if end - i * seconds - EVERY_S / 2 <= s.at <= end - (i - 1) * seconds + EVERY_S / 2
            ]
            found.append(between(inside[0], inside[-1]) if len(inside) > 1 else None)
        return found


def between(first: Sample, last: Sample) -> Span:
    """The difference. A total that fell (the gateway was started anew) counts from nothing."""
    return Span(
        seconds=max(last.at - first.at, 1e-3),
        requests=_less(last.requests, first.requests),
        refusals=_less(last.refusals, first.refusals),
        tokens=_down(last.tokens, first.tokens),
        cache=_less(last.cache, first.cache),
        duration=_less(last.duration, first.duration),
        first_byte=_less(last.first_byte, first.first_byte),
    )


def _less(last: Mapping[Any, float], first: Mapping[Any, float]) -> dict[Any, float]:
    return {name: _down(value, first.get(name, 0.0)) for name, value in last.items()}


def _down(last: float, first: float) -> float:
    return last - first if last >= first else last


def quantile_ms(buckets: Mapping[float, float], quantile: float) -> float | None:
    """The value below which this part of a histogram lies, in milliseconds, linear inside a bucket; None of nothing.

    Of what lies above the last bound that bound is told, as Prometheus' histogram_quantile does.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    wanted, low, below = quantile * total, 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= wanted:
            if bound == float("inf"):
                return low * 1000
            share = (wanted - below) / (count - below) if count > below else 1.0
            return (low + (bound - low) * share) * 1000
        low, below = bound, count
    return low * 1000


def read_metrics() -> Sample:
    """A sample of what all processes share; of this one where they share nothing."""
    import prometheus_client
    from prometheus_client import multiprocess

    registry: Any = prometheus_client.REGISTRY
    if directory := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = prometheus_client.CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=directory)  # type: ignore[no-untyped-call]
    families = {family.name: family.samples for family in registry.collect() if family.name.startswith("hoosh_")}
    return Sample(
        at=time.monotonic(),
        requests=_by(families.get("hoosh_requests", ()), "hoosh_requests_total", "status_class"),
        refusals=_by(families.get("hoosh_refusals", ()), "hoosh_refusals_total", "code"),
        tokens=sum(_by(families.get("hoosh_tokens", ()), "hoosh_tokens_total", "kind").values()),
        cache=_by(families.get("hoosh_cache", ()), "hoosh_cache_total", "result"),
        duration=_buckets(families.get("hoosh_request_duration_seconds", ())),
        first_byte=_buckets(families.get("hoosh_time_to_first_byte_seconds", ())),
        inflight=sum(sample.value for sample in families.get("hoosh_inflight", ())),
    )


def _by(samples: Sequence[Any], name: str, label: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for sample in samples:
        if sample.name == name:
            key = sample.labels.get(label, "")
            found[key] = found.get(key, 0.0) + sample.value
    return found


def _buckets(samples: Sequence[Any]) -> dict[float, float]:
    found: dict[float, float] = {}
    for sample in samples:
        if sample.name.endswith("_bucket"):
            bound = float(sample.labels["le"])
            found[bound] = found.get(bound, 0.0) + sample.value
    return found


figures = Figures()
