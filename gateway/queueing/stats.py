"""What the queues of the workers do, added up and told: the body of `GET /v1/queue/status`. Pure.

A worker's report has `waiting` (numbers by class), `oldest_ms`, the `OUTCOMES` since its start, `waited_ms` (the sum of
those admitted) and `at` (numbers by the name of what is waited for, as in the table of limits).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from budgets.records import QUEUE_CLASSES

# How a wait ends: a place; its time; a full queue; refused at once, as it would have taken too long; the client left or
# the worker ended it; a limit per minute was reached meanwhile.
OUTCOMES = ("admitted", "timed_out", "refused_full", "refused_early", "left", "limited")


def told(reports: Iterable[Mapping[str, Any]], *, requests: int) -> dict[str, Any]:
    """The answer of the endpoint. `requests`: all that are in the workers, those that wait among them.

    What a report lacks counts as 0.
    """
    reports = list(reports)
    waiting = [sum(numbers) for numbers in zip(*(_waiting(report) for report in reports), strict=True)]
    waiting = waiting or [0] * len(QUEUE_CLASSES)
    queued = sum(waiting)
    counts = {name: sum(report.get(name, 0) for report in reports) for name in OUTCOMES}
    waited_ms = sum(report.get("waited_ms", 0) for report in reports)
    return {
        "queued": queued,
        "pending": queued,
        "processing": max(0, requests - queued),
        "waiting": dict(zip(QUEUE_CLASSES, waiting, strict=True)),
        "oldest_wait_ms": max((report.get("oldest_ms", 0) for report in reports), default=0),
        "mean_wait_ms": round(waited_ms / counts["admitted"], 1) if counts["admitted"] else 0.0,
        **counts,
    }


def _waiting(report: Mapping[str, Any]) -> list[int]:
    numbers = list(report.get("waiting", ()))
    return numbers if len(numbers) == len(QUEUE_CLASSES) else [0] * len(QUEUE_CLASSES)


def waiting_at(reports: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many wait for what, by its name in the table of limits, over all workers."""
    total: dict[str, int] = {}
    for report in reports:
        for name, number in report.get("at", {}).items():
            total[name] = total.get(name, 0) + number
    return total
