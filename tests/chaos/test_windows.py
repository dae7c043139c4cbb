"""Hundreds of short windows over four worker processes: each keeps its own limit, and carrying over keeps the total."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests import environment
from tests.chaos import truth
from tests.chaos.books import TOKENS, Verdict
from tests.chaos.databases import Database, Postgres, Sqlite, fetch
from tests.chaos.ledger_run import LedgerOptions, Run, check, made_run, opened
from tests.chaos.population import MadePool
from tests.chaos.sampler import Sampler

pytestmark = [pytest.mark.processes, pytest.mark.database]

LIMIT, TOKENS_EACH = 1_000, 100  # per window and per request: less than what is asked of it
# Every grant is a transaction, and those of PostgreSQL take several times as long.
POOLS, WINDOWS = (12, 200) if environment.on_postgres() else (40, 600)
WINDOWED = range(101, 101 + POOLS)


@pytest.fixture
def database() -> Iterator[Database]:
    with opened(Postgres if environment.on_postgres() else Sqlite) as made:
        yield made


def run_windows(database: Database, count: int, **control: object) -> tuple[Run, Verdict]:
    """Pools, half of them carrying over, drawn on in chains of two, until there were enough windows."""
    pools = [
        MadePool(number, f"p{number}", LIMIT, window_s=1 + number % 2, carry=number % 4 < 2) for number in WINDOWED
    ]
    options = LedgerOptions(7, 0, 0, 0, rate=1200, clients=20)
    run = made_run(database, pools, options)
    for name, value in control.items():
        setattr(run.control, name, value)
    for worker in run.workers:
        mine = [number for number in WINDOWED if number % 4 in (worker.index, (worker.index + 1) % 4)]
        worker.keys = [[number, 101 + (number - 100) % POOLS] for number in mine]
        worker.wait_s, worker.tokens = 0.2, TOKENS_EACH
    sampler = Sampler(database, list(WINDOWED))
    try:
        run.start()
        sampler.start()
        end = time.monotonic() + 60
        while len(windows(database)) < count and time.monotonic() < end:
            time.sleep(0.2)
        run.stop_workers()
        run.wait_settled()
        time.sleep(1.5)
        run.finish()
    finally:
        sampler.stop()
        run.close()
    verdict = Verdict(7, over=sampler.over, bound=10**9)
    verdict.problems += [f"over: {row}" for row in sampler.violations]
    check(run, verdict)
    return run, verdict


def windows(database: Database) -> list[tuple[int, ...]]:
    connection = database.connect()
    try:
        query = f"SELECT pool_id, window_start, committed FROM budgets_poolwindow WHERE unit = {TOKENS}"
        return fetch(connection, query)
    finally:
        connection.close()


def test_hundreds_of_windows_keep_their_limits(database: Database) -> None:
    run, verdict = run_windows(database, WINDOWS, speed=1.5)
    assert verdict.passed, verdict.problems
    found = windows(database)
    assert len(found) >= WINDOWS
    spent = sum(committed >= LIMIT - TOKENS_EACH for _pool, _start, committed in found)
    assert spent > len(found) / 40, f"only {spent} windows of {len(found)} came to their limit"
    assert truth.count_whole(run.directory) > WINDOWS


def test_a_clock_that_is_set_back_and_forth_opens_no_window_twice(database: Database) -> None:
    _run, verdict = run_windows(database, WINDOWS // 3, steps=[(2, -30.0), (4, 0.0), (5, 5.0), (6, 2.0)])
    assert verdict.passed, verdict.problems
    starts = Counter((pool, start) for pool, start, _committed in windows(database))
    assert set(starts.values()) == {1}
