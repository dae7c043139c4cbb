"""What budgets cost: the same unary load with a key that is only counted and with one that four budgets limit.

Beside it how soon usage is in the ledger while the worker is busy, and while an operator reloads a page and holds the
site's database in a transaction of three seconds. On SQLite, and on a PostgreSQL whose own CPU time is shown.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg

from bench import processes, scenarios
from bench.scenarios import Sample
from bench.targets import Setup, Target
from tests.postgres import PostgresServer
from tests.servers import descendants

CONNECTIONS = 32
OPERATOR_S = 3.0  # an operator's transaction
IDLE_S = 1.0  # until everything is settled
_LAG = re.compile(r"^hoosh_settle_lag_seconds(?:{[^}]*})? ([0-9.e+-]+)", re.MULTILINE)
_ROWS = """
import datetime, json
from decimal import Decimal
from budgets import access, keys
from budgets.models import Agent, Pool, Price, Team
def pool(name, **limits):
    return access.save_pool(Pool(name=name, **limits), actor="bench")
def limited(name):
    return pool(name, capacity_tokens=10**15, capacity_usd=Decimal(1_000_000))
access.add_price(Price(provider="*", pattern="bench-*", input_usd_per_mtok=Decimal("0.15"),
    output_usd_per_mtok=Decimal("0.6"), valid_from=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)), actor="bench")
free = access.save_team(Team(name="counted"), actor="bench")
agent = access.save_agent(Agent(team=free, name="counted"), actor="bench")
_row, counted = keys.create_key(agent, pool("counted", capacity_tokens=None), "counted", actor="bench")
team = access.save_team(Team(name="limited", pool=limited("team")), actor="bench")
agent = access.save_agent(Agent(team=team, name="limited", pool=limited("agent")), actor="bench")
_row, text = keys.create_key(agent, limited("project"), "limited", actor="bench", own_pool=limited("key"))
print(json.dumps({"counted": counted, "limited": text}))
"""


def measure(directory: Path, *, runs: int, seconds: float, page: str) -> dict[str, Any]:
    """Everything, by database."""
    figures: dict[str, Any] = {}
    with Setup(directory / "sqlite") as setup:
        hold = _sqlite_operator(setup.gateway.data_dir / "site.sqlite3")
        figures["SQLite"] = _on(setup, [], hold, runs=runs, seconds=seconds, page=page)
    server = PostgresServer(directory / "pg", host_safe=True)
    try:
        server.start()
        url = server.create_database("bench")
        with Setup(directory / "postgres", database_url=url) as setup:
            hold = _postgres_operator(url)
            figures["PostgreSQL"] = _on(setup, [server.pid], hold, runs=runs, seconds=seconds, page=page)
    finally:
        server.stop()
    return figures


def _on(
    setup: Setup,
    database: list[int],
    hold: Callable[[], AbstractContextManager[None]],
    *,
    runs: int,
    seconds: float,
    page: str,
) -> dict[str, Any]:
    setup.make_admin_rows(1000)
    texts = json.loads(setup.gateway.manage("shell", "-c", _ROWS).splitlines()[-1])
    time.sleep(IDLE_S)
    gateway = setup.targets()[-1]
    # Not pinned: on the core of the load generator it would wait for that, which no database server does.
    gateway.others["database"] = [pid for server in database for pid in (server, *descendants(server))]
    chosen = [dataclasses.replace(gateway, name=name, key=text) for name, text in texts.items()]
    samples: dict[str, Any] = dict(scenarios.unary(chosen, connections=CONNECTIONS, runs=runs, seconds=seconds))
    limited = chosen[-1]
    return {
        **samples,
        "added_us": round(samples["limited"]["cpu_us"] - samples["counted"]["cpu_us"], 2),
        "lag_busy_s": _lag(setup, lambda: _load(limited, seconds)),
        "lag_operator_s": _lag(setup, lambda: _load_beside(setup, limited, hold, page, max(seconds, OPERATOR_S + 1))),
    }


def _load(target: Target, seconds: float) -> Sample:
    return scenarios.unary([target], connections=CONNECTIONS, runs=1, seconds=seconds)[target.name]


def _load_beside(
    setup: Setup, target: Target, hold: Callable[[], AbstractContextManager[None]], page: str, seconds: float
) -> None:
    """The load while a page is reloaded without pause and a transaction of the operator's is open."""
    with scenarios.reloading(setup.gateway.base_url, page):
        operator = threading.Timer(0.5, _hold_for, (hold, OPERATOR_S))
        operator.start()
        _load(target, seconds)
        operator.join()


def _hold_for(hold: Callable[[], AbstractContextManager[None]], seconds: float) -> None:
    with hold():
        time.sleep(seconds)


def _lag(setup: Setup, load: Callable[[], object]) -> float:
    """The longest time a batch's first record waited for the ledger during `load`, by a fresh writer's own account."""
    time.sleep(IDLE_S)
    old = setup.gateway.kill_control()
    setup.gateway.wait_restarted("control", old)
    if setup.pinned:
        processes.pin(setup.gateway.role_pids("control")[0], processes.cores()[-1])
    load()
    time.sleep(IDLE_S)
    text = httpx.get(f"{setup.gateway.base_url}/metrics", headers=setup.gateway.auth, trust_env=False).text
    found = _LAG.search(text)
    if found is None:
        raise scenarios.LoadError(f"/metrics does not tell the settle lag:\n{text[:2000]}")
    return round(float(found[1]), 3)


def _sqlite_operator(path: Path) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def hold() -> Iterator[None]:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=20)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE budgets_team SET note = 'held' WHERE name = 'limited'")
            yield
            connection.execute("COMMIT")

    return hold


def _postgres_operator(url: str) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def hold() -> Iterator[None]:
        with psycopg.connect(url) as connection:
            connection.execute("UPDATE budgets_pool SET note = 'held'")
            yield

    return hold
