"""Upgrading a database of the first release that is in use."""

from __future__ import annotations

import datetime as dt
import itertools
from decimal import Decimal
from typing import Any

import pytest
from django.conf import settings
from django.db import connections
from django.db.migrations.executor import MigrationExecutor
from django.test import TransactionTestCase

from budgets.models import Agent, ApiKey, Lease, Pool, PoolWindow, Price, Usage
from budgets.records import PRICE_NONE
from budgets.reports import totals
from tests import environment

pytestmark = pytest.mark.database

FIRST = [("budgets", "0001_initial")]
COSTS = ("0.000000000001", "0.1", "1.000000000001", "1234.567890123456", "99999.123456789", "0", "7")
AT = dt.datetime(2026, 10, 1, 12, tzinfo=dt.UTC)
_numbers = itertools.count(1)


class UpgradeTests(TransactionTestCase):
    """On databases of its own, which stand where the tests' are."""

    databases = "__all__"

    def setUp(self) -> None:
        self.aliases = sorted({"default", settings.HOOSH_LEDGER_DB})
        for alias in self.aliases:
            usual = connections[alias]
            own = usual.copy()
            own.settings_dict["NAME"] = self.new_database(usual.vendor)
            connections[alias] = own
            self.addCleanup(self.put_back, alias, usual)

    def new_database(self, vendor: str) -> str:
        number = next(_numbers)
        if vendor == "sqlite":
            path = environment.session_dir() / f"upgrade-{number}.sqlite3"
            self.addCleanup(path.unlink, missing_ok=True)
            return str(path)
        name, server = f"upgrade_{number}", environment.session_postgres
        assert server is not None
        server.create_database(name)
        self.addCleanup(server.drop_database, name)
        return name

    def put_back(self, alias: str, usual: Any) -> None:
        connections[alias].close()
        connections[alias] = usual

    def migrate(self, targets: Any = None) -> Any:
        """Each database to these targets (all there are); the models as they are then."""
        for alias in self.aliases:
            executor = MigrationExecutor(connections[alias])
            executor.migrate(targets or executor.loader.graph.leaf_nodes("budgets"))
        return executor.loader.project_state(targets or executor.loader.graph.leaf_nodes("budgets")).apps

    def fill(self, apps: Any) -> None:
        """What the first release left."""
        model = {name: apps.get_model("budgets", name) for name in ("Team", "Agent", "Pool", "ApiKey", "Price")}
        team = model["Team"].objects.create(name="red")
        agent = model["Agent"].objects.create(name="app", team=team)
        pool = model["Pool"].objects.create(name="default", capacity_tokens=10_000)
        model["ApiKey"].objects.create(name="k", prefix="hk-abc", digest="d" * 64, agent=agent, pool=pool)
        model["Price"].objects.create(provider="*", pattern="m", input_usd_per_mtok=Decimal("2.5"), valid_from=AT)
        ledger = {name: apps.get_model("budgets", name).objects for name in ("PoolWindow", "Lease", "Usage")}
        window = ledger["PoolWindow"].create(pool_id=pool.pk, capacity=10_000, committed=700, leased=300, overrun=0)
        ledger["Lease"].create(owner="w1", window=window, granted=1_000, remaining=300)
        for number, cost in enumerate(COSTS):
            ledger["Usage"].create(
                **{"rid": f"{number:032x}", "at": AT, "key_id": 1, "agent_id": 1, "team_id": 1, "pool_id": pool.pk},
                **{"endpoint": "chat", "model": "m", "status": 200, "tokens": 100, "cost_usd": Decimal(cost)},
                price_id=number % 2,
            )

    def test_rows_of_the_first_release_are_kept(self) -> None:
        self.fill(self.migrate(FIRST))
        self.migrate()
        rows = list(Usage.objects.order_by("rid"))
        assert [row.cost_usd for row in rows] == [Decimal(cost) for cost in COSTS]
        assert [row.price_id for row in rows] == [1 if number % 2 else PRICE_NONE for number in range(len(COSTS))]
        assert {(row.tokens, row.pools, row.input_audio_tokens) for row in rows} == {(100, "", 0)}
        window = PoolWindow.objects.get()
        assert (window.unit, window.window_start, window.window_end, window.adjusted) == (0, 0, 0, 0)
        assert (window.capacity, window.committed, window.leased, window.overrun) == (10_000, 700, 300, 0)
        assert Lease.objects.get().window == window
        key = ApiKey.objects.select_related("agent__team", "pool").get()
        assert (key.pool.name, key.own_pool, key.agent.pool, key.agent.team.pool) == ("default", None, None, None)
        assert (key.pool.limits, key.pool.window, key.pool.time_zone) == ((10_000, None), "lifetime", "UTC")
        assert Price.objects.get().input_usd_per_mtok == Decimal("2.5")
        (whole,) = totals()
        assert (whole.cost_usd, whole.unpriced) == (sum(map(Decimal, COSTS)), 0)

    def test_a_window_may_have_a_second_unit_and_no_limit_afterwards(self) -> None:
        self.fill(self.migrate(FIRST))
        self.migrate()
        pool = Pool.objects.get()
        PoolWindow.objects.create(pool_id=pool.pk, unit=1, capacity=None)
        assert PoolWindow.objects.count() == 2
        Agent.objects.update(pool=pool)

    def test_an_absurd_cost_does_not_stop_the_upgrade(self) -> None:
        apps = self.migrate(FIRST)
        self.fill(apps)
        apps.get_model("budgets", "Usage").objects.filter(rid=f"{6:032x}").update(cost_usd=Decimal(10**11))
        self.migrate()
        assert Usage.objects.get(rid=f"{6:032x}").cost_usd == 1_000_000
