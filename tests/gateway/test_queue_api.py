"""What callers and operators see of the queue: all workers added up."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.queueing.stats import OUTCOMES, told, waiting_at
from tests.gateway.test_api import ApiCase, control

pytestmark = pytest.mark.database


def report(waiting: list[int], **more: Any) -> dict[str, Any]:
    return {"waiting": waiting, "oldest_ms": 0, **dict.fromkeys(OUTCOMES, 0), "waited_ms": 0, "at": {}, **more}


ONE = report([1, 2, 3], oldest_ms=400, admitted=3, waited_ms=100, timed_out=1, at={"provider:3": 5, "route:1": 1})
OTHER = report([0, 1, 0], oldest_ms=900, admitted=1, waited_ms=101, left=2, at={"provider:3": 1})


class Workers:
    """Stands where the running control plane stands."""

    writer = None

    def __init__(self, *statuses: dict[str, Any]) -> None:
        self.statuses = statuses

    def workers(self) -> list[dict[str, Any]]:
        return [{"index": index, "owner": f"w{index}", "status": each} for index, each in enumerate(self.statuses)]


class QueueStatusTest(ApiCase):
    path = "/v1/queue/status"

    def test_the_queues_of_all_workers_are_one(self):
        with control(Workers({"requests": 10, "queue": ONE}, {"requests": 4, "queue": OTHER}, {"requests": 1})):
            found = self.ask(self.path, self.operator_text).json()
        assert found == {
            **{"queued": 7, "pending": 7, "processing": 8, "oldest_wait_ms": 900, "mean_wait_ms": 50.2},
            **{"waiting": {"interactive": 1, "agent": 3, "batch": 3}, "workers": 2},
            **{"admitted": 4, "timed_out": 1, "refused_full": 0, "refused_early": 0, "left": 2, "limited": 0},
            **{"at": {"provider:3": 6, "route:1": 1}},
        }

    def test_a_key_without_the_operator_scope_sees_how_long_it_takes_and_nothing_more(self):
        with control(Workers({"requests": 10, "queue": ONE})):
            found = self.ask(self.path, self.text).json()
        assert set(found) == {"queued", "pending", "processing", "waiting", "oldest_wait_ms", "mean_wait_ms"}

    def test_where_nobody_waits_all_is_zero(self):
        for plane in (None, Workers(), Workers({"requests": 2, "queue": report([0, 0, 0])})):
            with control(plane):
                found = self.ask(self.path, self.text).json()
            assert (found["queued"], found["pending"], found["mean_wait_ms"]) == (0, 0, 0.0)
            assert found["waiting"] == {"interactive": 0, "agent": 0, "batch": 0}

    def test_without_a_key_nothing_is_told(self):
        self.error(self.ask(self.path), 401)


def test_what_a_report_lacks_counts_as_nothing():
    assert told([{}, {"waiting": [1]}, ONE], requests=0)["queued"] == 6
    assert waiting_at([{}, ONE]) == ONE["at"]
