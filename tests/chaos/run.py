"""The long runs: `make chaos`, or `python -m tests.chaos.run [--holds N] [--requests N] [--seed S] [--only NAME ...]`.

Prints a line per run and fails unless each says 0, 0, 0, 0 and no more than its bound. The seed names the kills and the
requests; without one it is chosen and printed.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.chaos.books import Verdict
from tests.chaos.databases import Database, Postgres, Sqlite
from tests.chaos.http_run import HttpOptions, http_run
from tests.chaos.ledger_run import LedgerOptions, ledger_run

Runner = Callable[[argparse.Namespace], tuple[Verdict, str]]


def ledger(options: argparse.Namespace, make: Callable[..., Database], holds: int) -> tuple[Verdict, str]:
    """Without HTTP: workers and control are killed, on PostgreSQL the database is stopped at once as well."""
    share = min(1.0, holds / 100_000)
    size = LedgerOptions(
        options.seed,
        holds,
        worker_kills=max(8, round(44 * share)),
        control_kills=max(2, round(12 * share)),
        database_stops=max(2, round(9 * share)) if make is Postgres else 0,
        rate=options.rate,
    )
    return ledger_run(partial(make, host_safe=options.host_safe), size)


def over_http(options: argparse.Namespace, *, on_postgres: bool) -> tuple[Verdict, str]:
    """The real processes, with single answers and streams."""
    share = min(1.0, options.requests / 20_000)
    size = HttpOptions(
        options.seed,
        options.requests,
        worker_kills=max(2, round(20 * share)),
        control_kills=max(1, round(8 * share)),
        database_stops=max(1, round(5 * share)) if on_postgres else 0,
        postgres=on_postgres,
    )
    directory = Path(tempfile.mkdtemp(prefix="hk-"))
    try:
        return http_run(directory, size)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


RUNS: dict[str, Runner] = {
    "ledger-postgres": lambda options: ledger(options, Postgres, options.holds),
    "ledger-sqlite": lambda options: ledger(options, Sqlite, max(1, options.holds // 5)),
    "http-sqlite": lambda options: over_http(options, on_postgres=False),
    "http-postgres": lambda options: over_http(options, on_postgres=True),
}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Kill processes at random under load and account for every request.")
    parser.add_argument("--holds", type=int, default=1_000_000, help="answers without HTTP (a fifth of it on SQLite)")
    parser.add_argument("--requests", type=int, default=20_000, help="answers over HTTP")
    parser.add_argument("--seed", type=int, default=0, help="of the kills and the requests; 0 = choose one")
    parser.add_argument("--rate", type=float, default=5000.0, help="holds per second, without HTTP")
    parser.add_argument("--host-safe", action="store_true", help="wait for the disk at every commit")
    parser.add_argument("--only", nargs="+", choices=sorted(RUNS), default=list(RUNS))
    options = parser.parse_args()
    options.seed = options.seed or secrets.randbelow(10**9) + 1
    return options


def main() -> int:
    """Run, print the table, say whether all is well."""
    options = parse_arguments()
    print(f"seed {options.seed}", flush=True)
    lines, passed = [], True
    for name in options.only:
        began = time.monotonic()
        verdict, told = RUNS[name](options)
        print(told, *verdict.problems, sep="\n  ", flush=True)
        lines.append(f"{name:<16} {'ok  ' if verdict.passed else 'FAIL'} {verdict.line()}")
        print(f"{lines[-1]}   {time.monotonic() - began:.0f} s\n", flush=True)
        passed = passed and verdict.passed
    print("\n".join(lines))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
