"""A run of the ledger without HTTP: real writer, desk, journal and link in processes that are killed at random."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from audit.keys import KEY_FILE, new_key_text
from tests import children
from tests.chaos import audit_books, books, population, schedule, truth
from tests.chaos.books import Verdict
from tests.chaos.control_process import ControlOptions
from tests.chaos.databases import Database, fetch
from tests.chaos.population import STEP_TOKENS, MadePool
from tests.chaos.sampler import Sampler
from tests.chaos.schedule import CONTROL, DATABASE, WORKER
from tests.chaos.worker_process import WorkerOptions
from tests.servers import PROJECT_DIR

WORKERS, CLIENTS = 4, 18
START_S = 120.0
SETTLE_S = 60.0  # without any progress for so long settling is over
CARRIED_S = 1.5  # within which a rest that became free is carried over
STALLED_S = 60.0  # without a single answer for so long a run is over


@dataclass
class LedgerOptions:
    """The size of a run. `rate` is answers per second over all workers, no more than the writer can settle."""

    seed: int
    answers: int
    worker_kills: int
    control_kills: int
    database_stops: int = 0
    rate: float = 5000.0
    workers: int = WORKERS
    clients: int = CLIENTS
    entries: float = 100.0  # operators' changes a second


@dataclass
class Run:
    """One set of processes in one directory; `start` them, strike them, `finish`, and let the books be checked."""

    database: Database
    control: ControlOptions
    workers: list[WorkerOptions]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    kills: dict[str, int] = field(default_factory=lambda: {WORKER: 0, CONTROL: 0, DATABASE: 0})

    @property
    def directory(self) -> Path:
        """Where journals, truth files and logs are."""
        return self.database.directory

    def start(self) -> None:
        """Start control and all workers, and wait until they work."""
        self._spawn(CONTROL)
        for index in range(len(self.workers)):
            self._spawn(f"{WORKER}-{index}")
        children.wait_for(
            lambda: truth.count_whole(self.directory), "a first answer", timeout_s=START_S, log=self.log(CONTROL)
        )

    def strike(self, blow: schedule.Blow) -> None:
        """Kill what the plan says, and start it again at once."""
        self.kills[blow.what] += 1
        if blow.what == DATABASE:
            self.database.stop_at_once()
            return
        name = CONTROL if blow.what == CONTROL else f"{WORKER}-{blow.index}"
        children.wait_for(lambda: self._works(name), f"{name} to work", timeout_s=START_S, log=self.log(name))
        self.kill(name)
        self._spawn(name)

    def kill(self, name: str) -> None:
        """SIGKILL, and the proof that it was alive until now."""
        process = self.processes[name]
        if process.poll() is not None:
            raise children.ChildError(
                f"{name} ended with {process.returncode} by itself.{children.tail(self.log(name))}"
            )
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    def stop_workers(self) -> None:
        """Kill all workers at once, holds and all."""
        for name in self.processes:
            if name != CONTROL:
                self.kill(name)
                self.kills[WORKER] += 1

    def wait_settled(self) -> float:
        """Wait until control has settled and buried every worker; seconds. What it leaves undone the books show."""
        began = moved_at = time.monotonic()
        before: object = None
        while (now := self._unsettled()) is not None and time.monotonic() - moved_at < SETTLE_S:
            if now != before:
                before, moved_at = now, time.monotonic()
            time.sleep(0.1)
        return time.monotonic() - began

    def finish(self) -> dict[str, Any]:
        """End control in good order; its writer's figures."""
        control = self.processes.pop(CONTROL)
        control.send_signal(signal.SIGTERM)
        if control.wait(60) != 0:
            raise children.ChildError(f"control ended with {control.returncode}.{children.tail(self.log(CONTROL))}")
        figures: dict[str, Any] = json.loads((self.directory / "control.stats").read_text())
        return figures

    def close(self) -> None:
        """Leave no process behind."""
        for process in self.processes.values():
            children.stop(process, how=signal.SIGKILL)

    def log(self, name: str) -> Path:
        """Standard output and error of a process and its predecessors."""
        return self.directory / f"{name}.log"

    def journal_files(self) -> list[str]:
        """What is left in the journal directory and should not be."""
        return sorted(set(os.listdir(self.directory / "journal")) - {"writer.lock"})

    def _spawn(self, name: str) -> None:
        module, argument = "control_process", self.control.text()
        if name != CONTROL:
            options = self.workers[int(name.removeprefix(f"{WORKER}-"))]
            module, argument = "worker_process", json.dumps(asdict(options))
        self.processes[name] = children.spawn(
            [sys.executable, "-m", f"tests.chaos.{module}", argument],
            log=self.log(name),
            env=self.database.environment(),
            cwd=PROJECT_DIR,
        )

    def _works(self, name: str) -> bool:
        pid = self.processes[name].pid
        if name == CONTROL:
            marker = self.directory / "control.ready"
            return marker.exists() and marker.read_text() == str(pid)
        index = name.removeprefix(f"{WORKER}-")
        mine = self.directory.glob(f"w{index}-{pid}-*.client")
        return any(path.stat().st_size for path in mine)

    def _unsettled(self) -> tuple[object, ...] | None:
        """How far control has come; None when it is done."""
        if self.processes[CONTROL].poll() is not None:
            raise children.ChildError(f"control ended by itself.{children.tail(self.log(CONTROL))}")
        connection = self.database.connect()
        try:
            (left,) = fetch(connection, "SELECT COUNT(*) FROM budgets_lease")[0]
            (last,) = fetch(connection, "SELECT COALESCE(MAX(id), 0) FROM budgets_usage")[0]
            state = fetch(connection, "SELECT value FROM budgets_ledgerstate WHERE name = 'rolled_up'")
        finally:
            connection.close()
        summed = not self.control.jobs or (bool(state) and state[0][0] == last)
        files = self.journal_files()
        return None if summed and not left and not files else (left, last, *state, *files)


@contextmanager
def opened(make: Callable[[Path], Database]) -> Iterator[Database]:
    """A database in a temporary directory with a short path (Unix sockets); gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="hk-"))
    try:
        database = make(directory)
        try:
            yield database
        finally:
            database.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def made_run(database: Database, pools: list[MadePool], options: LedgerOptions) -> Run:
    """The processes of a run of this size."""
    (database.directory / KEY_FILE).write_bytes(new_key_text())
    control = ControlOptions(str(database.directory), pools, time.time(), entries=options.entries)
    workers = [
        WorkerOptions(
            str(database.directory), index, f"{options.seed}", options.clients, rate=options.rate / options.workers
        )
        for index in range(options.workers)
    ]
    return Run(database, control, workers)


def strike_on(run: Run, options: LedgerOptions) -> None:
    """Go through the plan of blows, then on to the last answer."""
    blows = schedule.plan(
        options.seed,
        answers=options.answers,
        workers=options.workers,
        worker_kills=options.worker_kills - options.workers,  # the last kill hits all of them at once
        control_kills=options.control_kills,
        database_stops=options.database_stops,
    )
    done, moved_at = 0, time.monotonic()
    while done < options.answers:
        time.sleep(0.02)
        now = truth.count_whole(run.directory)
        if now != done:
            done, moved_at = now, time.monotonic()
        elif time.monotonic() - moved_at > STALLED_S:
            raise children.ChildError(f"No answer for {STALLED_S} s.{children.tail(run.log(CONTROL))}")
        while blows and blows[0].at <= done:
            run.strike(blows.pop(0))


def ledger_run(make: Callable[[Path], Database], options: LedgerOptions) -> tuple[Verdict, str]:
    """The whole run: its verdict, and a sentence on what happened."""
    pools = population.pools(options.answers, options.rate)
    with opened(make) as database:
        run = made_run(database, pools, options)
        sampler = Sampler(database, [pool.id for pool in pools if pool.strict])
        try:
            run.start()
            sampler.start()
            began = time.monotonic()
            strike_on(run, options)
            took_s = time.monotonic() - began
            run.stop_workers()
            settled_s = run.wait_settled()
            time.sleep(CARRIED_S)
            figures = run.finish()
        finally:
            sampler.stop()
            run.close()
        verdict = Verdict(options.seed, over=sampler.over)
        verdict.bound = run.kills[WORKER] * options.clients * STEP_TOKENS
        verdict.problems += [f"over: {row}" for row in sampler.violations]
        seen = check(run, verdict)
        told = (
            f"{database.name}: {len(seen.whole)} answers in {took_s:.0f} s ({len(seen.whole) / took_s:.0f}/s), settled "
            f"{settled_s:.1f} s after the last kill; kills: {run.kills[WORKER]} workers, {run.kills[CONTROL]} control, "
            f"{run.kills[DATABASE]} database; {sampler.samples} samples; replays {figures['replays']}, "
            f"lag p50 {figures['lag_p50_s']} s, max {figures['lag_max_s']} s; {logged(run)}"
        )
    return verdict, told


def check(run: Run, verdict: Verdict) -> truth.Truth:
    """All books of a run that has ended."""
    seen = truth.read(run.directory)
    connection = run.database.connect()
    try:
        sums = books.check_requests(connection, seen, verdict)
        purses = books.check_purses(connection, sums, verdict)
        books.check_leftovers(connection, run.journal_files(), verdict)
        if run.control.jobs:
            books.check_rollups(connection, sums, verdict)
            audit_books.check_log(connection, verdict)
            audit_books.check_batches(connection, verdict)
            audit_books.check_entries(connection, run.directory, verdict)
    finally:
        connection.close()
    for pool in run.control.pools:
        check_pool(pool, purses, verdict)
    return seen


def logged(run: Run) -> str:
    """How much the audit log has."""
    connection = run.database.connect()
    try:
        counts = [
            fetch(connection, f"SELECT COUNT(*) FROM {table}")[0][0] for table in ("audit_entry", "audit_usagebatch")
        ]
    finally:
        connection.close()
    return f"audit log: {counts[0]} entries, {counts[1]} batches"


def check_pool(pool: MadePool, purses: dict[books.Purse, books.Found], verdict: Verdict) -> None:
    """Limits are what the operator set plus what was carried; carrying makes nothing and leaves nothing behind."""
    for unit in (books.TOKENS, books.PICO_USD):
        windows = {start: found for (at, of, start), found in purses.items() if (at, of) == (pool.id, unit)}
        if not windows:
            verdict.note("lost", f"pool {pool.id} has no window in unit {unit}")
            continue
        for start, found in windows.items():
            limit = pool.limit(unit)
            wanted = None if limit is None else limit + found.adjusted
            if not pool.growth and found.capacity != wanted:
                verdict.note(
                    "doubled", f"pool {pool.id}, unit {unit} from {start}: limit {found.capacity}, not {wanted}"
                )
            if pool.carry and start != max(windows) and found.rest:
                verdict.note("stranded", f"pool {pool.id}, unit {unit} from {start}: {found.rest} left", found.rest)
        if carried := sum(found.adjusted for found in windows.values()):
            verdict.note("doubled", f"pool {pool.id}: carrying over made {carried} of unit {unit}")
