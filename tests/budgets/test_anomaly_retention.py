"""Old anomalies go: by themselves while control runs, and by `manage.py prune`."""

from __future__ import annotations

import datetime as dt
import io
import json

import pytest
from django.core.management import call_command
from django.test import TransactionTestCase
from django.utils import timezone

from audit.models import OutboxEntry
from budgets import access
from budgets.anomaly_retention import IDLE_S, AnomalyRetention
from budgets.models import Agent, Anomaly, Team
from events.retention import CHUNK_ROWS

pytestmark = pytest.mark.database


class RetentionTests(TransactionTestCase):
    databases = "__all__"

    def setUp(self):
        access.save_team(team := Team(name="red"), actor="test")
        access.save_agent(agent := Agent(team=team, name="bot"), actor="test")
        self.agent = agent

    def anomalies(self, count: int, *, days: int) -> None:
        figures = {"kind": Anomaly.Kind.SPEND, "unit": "usd", "observed": 5.0, "expected": 1.0}
        rows = [Anomaly(agent=self.agent, stretch=days * 10_000 + n, **figures) for n in range(count)]
        Anomaly.objects.bulk_create(rows)
        at = timezone.now() - dt.timedelta(days=days)
        Anomaly.objects.filter(stretch__gte=days * 10_000, stretch__lt=days * 10_000 + count).update(at=at)

    def test_control_deletes_a_chunk_at_a_time_and_then_looks_once_a_minute(self):
        self.anomalies(CHUNK_ROWS + 3, days=9)
        self.anomalies(2, days=1)
        now = [100.0]
        retention = AnomalyRetention(7, clock=lambda: now[0])
        left = []
        for _ in range(3):
            retention.look()
            left.append(Anomaly.objects.count())
        assert left == [5, 2, 2]
        self.anomalies(1, days=8)
        now[0] += IDLE_S - 1
        retention.look()
        assert Anomaly.objects.count() == 3
        now[0] += 2
        retention.look()
        assert Anomaly.objects.count() == 2

    def test_the_command_counts_and_deletes_them_and_says_so_in_the_log(self):
        self.anomalies(4, days=181)
        self.anomalies(1, days=179)
        out = io.StringIO()
        call_command("prune", "--dry-run", "--json", stdout=out)
        assert (json.loads(out.getvalue())["anomalies"], Anomaly.objects.count()) == (4, 5)
        out = io.StringIO()
        call_command("prune", stdout=out)
        assert "4 anomalies were deleted." in out.getvalue()
        assert Anomaly.objects.count() == 1
        entry = OutboxEntry.objects.get(action="records.pruned")
        assert (entry.actor, entry.data) == ("command line", {"events": 0, "anomalies": 4})
