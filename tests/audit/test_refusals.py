"""Refused requests that workers tell of are on their way into the log, with the event or not at all."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import TransactionTestCase

from audit.models import OutboxEntry
from events.models import Event
from gateway import event_sources
from gateway.happenings import OTHERS

pytestmark = pytest.mark.database

AT = 1_760_000_400.5


def refused(kind: str, *, key_id: int = 7, more: int = 0, request_id: str = "ab12") -> tuple[int, tuple[Any, ...]]:
    return 0, ("refused", AT, kind, f"{kind}_code", 401, key_id, "hk-abc", "gpt", request_id, more)


class RefusalsCase(TransactionTestCase):
    databases = "__all__"

    def told(self) -> list[tuple[str, str, str]]:
        return list(OutboxEntry.objects.order_by("id").values_list("action", "level", "target"))

    def test_the_first_of_a_minute_is_told_in_full(self) -> None:
        event_sources.from_workers([refused("budget")])
        entry = OutboxEntry.objects.get()
        assert (entry.action, entry.level, entry.target) == ("request.refused", "info", "hk-abc")
        assert entry.data == {
            **{"kind": "budget", "code": "budget_code", "status": 401, "worker": 0, "key_id": 7, "key": "hk-abc"},
            **{"model": "gpt", "request_id": "ab12", "object": "budgets.apikey:7"},
        }
        assert Event.objects.get().data["request_id"] == "ab12"

    def test_further_ones_are_a_count(self) -> None:
        event_sources.from_workers([refused("limit", more=41)])
        data = OutboxEntry.objects.get().data
        assert (data["more"], data["minute"]) == (41, "2025-10-09T09:00:00Z")
        assert "request_id" not in data

    def test_trespasses_are_warnings(self) -> None:
        event_sources.from_workers([refused(kind) for kind in ("auth", "privacy", "limit", "budget")])
        assert [level for _, level, _ in self.told()] == ["warning", "warning", "info", "info"]

    def test_unknown_keys_and_those_counted_together_name_no_key(self) -> None:
        event_sources.from_workers([refused("auth", key_id=0), refused("auth", key_id=OTHERS, more=3)])
        assert [row.data.get("object") for row in OutboxEntry.objects.order_by("id")] == [None, None]

    def test_what_cannot_be_read_and_what_is_no_refusal_leave_no_entry(self) -> None:
        event_sources.from_workers([(0, ("refused", AT)), (0, ("circuit", AT, 1, "open", "x")), refused("auth")])
        assert len(self.told()) == 1

    def test_event_and_entry_are_written_together_or_not_at_all(self) -> None:
        odd = (0, ("refused", AT, "auth", "c" * 9000, 401, 7, "k", "m", "r", 0))
        event_sources.from_workers([odd])
        assert (Event.objects.count(), OutboxEntry.objects.count()) == (0, 0)
