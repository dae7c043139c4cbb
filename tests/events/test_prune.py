"""`manage.py prune` takes old events along."""

from __future__ import annotations

import datetime as dt
import io
import json
from typing import Any

import pytest
from django.core.management import call_command
from django.test import TransactionTestCase
from django.utils import timezone

from events.emit import emit_all, made
from events.models import Event

pytestmark = pytest.mark.database


class PruneTests(TransactionTestCase):
    databases = "__all__"

    def prune(self, *options: str) -> str:
        out = io.StringIO()
        call_command("prune", *options, stdout=out)
        return out.getvalue()

    def test_events_older_than_they_are_kept_are_counted_and_deleted(self):
        rows: list[Any] = [made("a.b", {"n": n}) for n in range(1203)]
        for row in rows[:1200]:
            row.at = timezone.now() - dt.timedelta(days=31)
        emit_all(rows)
        assert json.loads(self.prune("--dry-run", "--json"))["events"] == 1200
        assert "1,200 events would be deleted." in self.prune("--dry-run")
        assert Event.objects.count() == 1203
        assert "1,200 events were deleted." in self.prune()
        assert Event.objects.count() == 3
        assert json.loads(self.prune("--json"))["events"] == 0
