"""Writer and workers killed at random with SIGKILL while they work: nothing is lost, doubled, stranded or overspent."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connections
from django.db.models import Sum
from django.test import TransactionTestCase

from budgets.models import JournalPosition, Lease, PoolWindow, Usage
from budgets.records import Basis
from budgets.settle import Writer
from tests import children
from tests.budgets.records import POOL
from tests.chaos.ledger_process import CLIENTS

pytestmark = [pytest.mark.database, pytest.mark.processes]

ROOT = Path(__file__).resolve().parents[2]
KILLING_S = 5.0


def child_settings() -> dict[str, Any]:
    """What a child needs to reach the test's database."""
    databases = {}
    for alias in connections:
        entry = connections[alias].settings_dict
        databases[alias] = {key: entry[key] for key in ("ENGINE", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")}
        databases[alias]["NAME"] = str(entry["NAME"])
    return {
        "DATABASES": databases,
        "DATABASE_ROUTERS": settings.DATABASE_ROUTERS,
        "HOOSH_LEDGER_DB": settings.HOOSH_LEDGER_DB,
        "INSTALLED_APPS": ["audit.apps.AuditConfig", "budgets.apps.BudgetsConfig"],
        "USE_TZ": True,
        "DEFAULT_AUTO_FIELD": settings.DEFAULT_AUTO_FIELD,
    }


class LedgerKillTests(TransactionTestCase):
    databases = "__all__"

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="hk-"))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.chance = random.Random(11)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.kills = {"control": 0, "worker": 0}
        self.addCleanup(lambda: [children.stop(process) for process in self.processes.values()])

    def start(self, name: str) -> None:
        role = name.partition("-")[0]
        self.processes[name] = children.spawn(
            [sys.executable, "-m", "tests.chaos.ledger_process", role, json.dumps(self.options)],
            log=self.directory / f"{role}.log",
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def kill(self, name: str) -> None:
        process = self.processes[name]
        assert process.poll() is None, (self.directory / f"{name.partition('-')[0]}.log").read_text()
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        self.kills[name.partition("-")[0]] += 1

    def sever_database(self) -> None:
        """On PostgreSQL also cut the writer's connection, wherever it is in a transaction."""
        connection = connections[settings.HOOSH_LEDGER_DB]
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )

    def rampage(self, *, capacity: int, overruns: bool) -> PoolWindow:
        """Kill for a while, then settle everything; returns the pool's window as it is then."""
        self.options = {
            "directory": str(self.directory),
            "capacity": capacity,
            "overruns": overruns,
            "settings": child_settings(),
        }
        for name in ("control", "worker-1", "worker-2"):
            self.start(name)
        self.wait_for_work()
        end = time.monotonic() + KILLING_S
        while time.monotonic() < end:
            time.sleep(self.chance.uniform(0.1, 0.4))
            window = PoolWindow.objects.get(pool_id=POOL)
            assert window.committed + window.leased <= capacity + window.overrun
            assert overruns or window.overrun == 0
            self.sever_database()
            name = self.chance.choice(list(self.processes))
            self.kill(name)
            self.start(name)
        time.sleep(1.5)  # a quiet moment: control comes up and works
        for name in self.processes:
            self.kill(name)
        writer = Writer(self.directory / "journal", period_s=0.05)
        writer.start()
        writer.settle_now().result(30)
        assert writer.stop()
        return PoolWindow.objects.get(pool_id=POOL)

    def wait_for_work(self) -> None:
        deadline = time.monotonic() + 20
        while not Usage.objects.exists():
            logs = "".join(path.read_text() for path in self.directory.glob("*.log"))
            assert time.monotonic() < deadline, logs
            time.sleep(0.05)

    def check_books(self, window: PoolWindow) -> None:
        delivered = {}
        for path in self.directory.glob("*.oracle"):
            for line in path.read_text().splitlines():
                rid, tokens = line.split()
                delivered[rid] = int(tokens)
        charged = dict(Usage.objects.values_list("rid", "tokens"))
        assert len(delivered) > 300, (self.directory / "worker.log").read_text()
        assert min(self.kills.values()) > 0
        assert [rid for rid in delivered if rid not in charged] == [], "lost"
        assert [rid for rid, tokens in delivered.items() if charged[rid] != tokens] == [], "wrong amounts"
        assert len(charged) == Usage.objects.count(), "doubled"
        assert len(charged) - len(delivered) <= self.kills["worker"] * CLIENTS, "charged without delivery"
        estimated = Usage.objects.filter(basis__in=(Basis.BOUND, Basis.DELIVERED)).count()
        assert estimated <= self.kills["worker"] * CLIENTS
        assert window.committed == Usage.objects.aggregate(sum=Sum("tokens"))["sum"]
        assert window.leased == 0, "stranded"
        assert not Lease.objects.exists()
        assert not JournalPosition.objects.exists()
        assert [path.name for path in (self.directory / "journal").iterdir()] == ["writer.lock"]

    def test_with_ample_tokens_and_overruns(self) -> None:
        self.check_books(self.rampage(capacity=100_000_000, overruns=True))

    def test_at_the_edge_of_the_pool(self) -> None:
        capacity = 150_000
        window = self.rampage(capacity=capacity, overruns=False)
        self.check_books(window)
        assert window.overrun == 0
        assert capacity * 0.98 < window.committed <= capacity
