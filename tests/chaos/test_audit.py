"""The short version of what `make chaos` does to the audit log: control dies again and again while it is written."""

from __future__ import annotations

import pytest

from tests import environment
from tests.chaos.databases import Postgres, Sqlite
from tests.chaos.ledger_run import LedgerOptions, ledger_run
from tests.chaos.test_kills import assert_passed

pytestmark = [pytest.mark.processes, pytest.mark.database]

SEED = 31


def test_the_log_has_no_fork_and_no_gap_and_every_batch_once_however_often_control_dies() -> None:
    on_postgres = environment.on_postgres()
    size = LedgerOptions(
        SEED,
        6_000,
        worker_kills=4,
        control_kills=4,
        database_stops=1 if on_postgres else 0,
        rate=2000,
        entries=500,
    )
    assert_passed(*ledger_run(Postgres if on_postgres else Sqlite, size))
