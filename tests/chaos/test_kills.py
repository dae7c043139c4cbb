"""The short version of `make chaos`: 20,000 answers of the ledger on each database, 1,000 over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import environment
from tests.chaos.books import Verdict
from tests.chaos.databases import Postgres, Sqlite
from tests.chaos.http_run import HttpOptions, http_run
from tests.chaos.ledger_run import LedgerOptions, ledger_run

pytestmark = [pytest.mark.processes, pytest.mark.database]

SEED = 20


def assert_passed(verdict: Verdict, told: str) -> None:
    assert verdict.passed, "\n  ".join([told, verdict.line(), *verdict.problems])


def test_the_ledger_loses_doubles_overspends_and_strands_nothing() -> None:
    on_postgres = environment.on_postgres()
    size = LedgerOptions(
        SEED, 20_000, worker_kills=9, control_kills=2, database_stops=2 if on_postgres else 0, rate=4000
    )
    assert_passed(*ledger_run(Postgres if on_postgres else Sqlite, size))


def test_the_gateway_loses_doubles_overspends_and_strands_nothing(short_dir: Path) -> None:
    if environment.on_postgres():
        pytest.skip("over HTTP once is enough for every run of the tests; `make chaos` does it on both databases")
    assert_passed(*http_run(short_dir, HttpOptions(SEED, 1000, worker_kills=2, control_kills=1)))
