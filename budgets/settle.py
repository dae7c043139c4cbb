"""The one writer of the ledger on a host: a thread of control that grants leases and settles workers' journals.

Every period it reads all journals in its directory and, per batch, one transaction inserts the usage rows, moves
exactly the inserted sums from leases to committed and stores the journal position. A replay of what is in the ledger
already changes nothing, so control may die at any moment. An owner whose lock can be taken is dead: its journal is
read to the end, holds without an end are charged, its leases go back (`budgets.burial`).

Grants, returns and other ledger writes come through a queue and are served between batches; what is to be done every
so often is a `Job`. Everybody else only reads the ledger. Database outages are ridden out: the thread reconnects, reads
the positions anew and replays.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from django.conf import settings
from django.db import DatabaseError, DataError, IntegrityError, InterfaceError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from budgets import burial, journal
from budgets.grants import GrantReply, GrantRequest, Grants, Move, OnRecall, Return
from budgets.journal_reader import JournalReader
from budgets.ledger import Ledger, LedgerError
from budgets.models.ledger import JournalPosition
from budgets.stats import WriterStats
from budgets.windows import WindowSpec

log = logging.getLogger("hoosh.ledger")

PERIOD_S = 0.1
BATCH_RECORDS = 2000
GROUP_MOVES = 512  # asks and returns served at once, at most
OUTAGE_PAUSE_S = 1.0  # longest pause between two attempts on a database that is away
LOCK_PAUSE_S = 0.05
STOP_WAIT_S = 30.0
TIDY_S = 1.0  # so soon, at the latest, rests of earlier windows are carried over, whatever set them free
JOB_PAUSE_S = 5.0  # before a job that failed is tried again, at least
JOB_PARTS = 50  # so often a job that says so is run again at once

_T = TypeVar("_T")
_FAILED = object()
_OUTAGES = (DatabaseError, InterfaceError)


class WriterStoppedError(RuntimeError):
    """The writer has ended and takes no more work."""


class Job(Protocol):
    """Something the writer does every `period_s` seconds, between batches: keep it short, grants wait for it.

    Each call makes transactions of its own. What it raises is logged and stops nothing.
    """

    period_s: float

    def run(self, connection: BaseDatabaseWrapper) -> bool | None:
        """Do what is due, or a part of it: True = at once again, when what waits in the queue is served."""

    def owner_ended(self, connection: BaseDatabaseWrapper, owner: str) -> None:
        """A worker (incarnation) is dead and its journal is settled; may be told more than once."""


class _DueJob:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.at = 0.0  # monotonic clock


class _Task(NamedTuple):
    run: Callable[[], object]
    refuse: Callable[[], None] | None = None  # instead, when the writer has ended


_Item = _Task | Move | None  # None: end


class Writer(threading.Thread):
    """Start it once per control process; `stop` settles everything there is to settle first."""

    def __init__(
        self,
        directory: Path,
        *,
        using: str | None = None,
        period_s: float = PERIOD_S,
        batch_records: int = BATCH_RECORDS,
        on_recall: OnRecall | None = None,
        jobs: Sequence[Job] = (),
        at_end: Sequence[Job] = (),
    ) -> None:
        """`on_recall(pool_id, unit, window_start)` is called, in this thread, when workers should return what is idle.

        `jobs` are run in this thread as well, first right after the start; those `at_end` once more at the end, when
        everything is settled.
        """
        super().__init__(name="ledger-writer", daemon=True)
        self.ready = threading.Event()  # positions are loaded and work is being done
        self._directory = directory
        self._using = using or str(settings.HOOSH_LEDGER_DB)
        self._period_s = period_s
        self._batch = batch_records
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._backlog: deque[_Item] = deque()  # taken from the queue and not begun yet
        self._readers: dict[str, JournalReader] = {}
        self._positions: dict[str, tuple[int, int]] | None = None  # None: must be read from the database
        self._stats = WriterStats()
        self._grants = Grants(on_recall, self._stats)
        self._jobs = [_DueJob(job) for job in jobs]
        self._at_end = at_end
        self._tidy_at = 0.0  # monotonic clock
        self._stopping = threading.Event()
        self._stopped = False
        self._lock_fd = -1

    # --- called from any thread ---------------------------------------------------------------------------------

    def grant(
        self,
        owner: str,
        pool_id: int,
        unit: int,
        window_start: int,
        seen_total: int,
        want: int,
        reply: GrantReply,
        need: int = 0,
    ) -> None:
        """Lease to a worker and call `reply(total, more, spent_out, available, others)` from the writer's thread.

        `seen_total` is the total the worker knows: with less than was granted the answer is only repeated. `need` is
        what a waiting request lacks, given whole or not at all; the answer to it comes (again) when something returns.
        There is no answer when the database is away or the purse unknown. Amounts are in the purse's unit.
        """
        self._put(
            GrantRequest(owner, pool_id, unit, window_start, seen_total, want, need, reply, asked_at=time.monotonic())
        )

    def give_back(self, owner: str, pool_id: int, unit: int, window_start: int, returned_total: int) -> None:
        """Take back what a worker returned; `returned_total` is absolute, so repeats do no harm."""
        self._put(Return(owner, (pool_id, unit, window_start), returned_total))

    def sync_windows(self, specs: Sequence[WindowSpec]) -> Future[None]:
        """Make windows or change their limits, ends and alerts; all of them or, when the database fails, none.

        A limit lowered below what is used only stops new grants. Where `carry_from` names an earlier window, its free
        rest is moved to the new one, and again whenever something becomes free there later.
        """
        specs = tuple(specs)
        return self.submit(lambda _connection: self._grants.sync_windows(self._ledger(), specs))

    def run_jobs(self) -> Future[None]:
        """Run all jobs now, whether due or not."""
        return self.submit(lambda _connection: self._run_jobs(at_once=True))

    def submit(self, work: Callable[[BaseDatabaseWrapper], _T]) -> Future[_T]:
        """Run `work(connection)` in the writer's thread; the future has its result or exception.

        After `stop` the exception is `WriterStoppedError`.
        """
        future: Future[_T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work(connections[self._using]))
            except Exception as exc:
                future.set_exception(exc)
                if isinstance(exc, _OUTAGES):
                    raise

        def refuse() -> None:
            if future.set_running_or_notify_cancel():
                future.set_exception(WriterStoppedError("the ledger's writer has ended"))

        self._put(_Task(run, refuse))
        return future

    def settle_now(self) -> Future[None]:
        """Read and settle all journals now; the future is done when that is in the ledger."""
        return self.submit(lambda _connection: self._settle_all())

    def stats(self) -> dict[str, Any]:
        """Figures since the start; `lag_*` is the age of a batch's first record when it was settled."""
        readers = list(self._readers.values())
        return {
            **self._stats.as_dict(),
            "alive": self.is_alive(),
            "owners": len(readers),
            "open_holds": sum(reader.open_holds() for reader in readers),
            "damaged": [reader.owner for reader in readers if reader.damaged],
        }

    def stop(self, timeout_s: float = STOP_WAIT_S) -> bool:
        """Do the queued work, settle to the end of every journal, bury the dead, end. False when it takes too long."""
        self._stopping.set()
        self._queue.put(None)
        self.join(timeout_s)
        return not self.is_alive()

    # --- the thread -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until `stop`."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._become_only_writer():
                return
            self._work()
            if self._attempt(self._settle_all):
                for job in self._at_end:
                    self._run_job(job)
        finally:
            self._stopped = True
            self._refuse_rest()
            self._forget_readers()
            connections[self._using].close()
            if self._lock_fd >= 0:
                os.close(self._lock_fd)

    def _work(self) -> None:
        next_settle = time.monotonic()
        pause_s = self._period_s
        while True:
            if not self._backlog:
                try:
                    self._backlog.append(self._queue.get(timeout=max(0.0, next_settle - time.monotonic())))
                except queue.Empty:
                    pass
            if self._backlog:
                self._attempt(self._serve_queue)
                if self._backlog and self._backlog[0] is None:
                    return
            if (now := time.monotonic()) >= next_settle:
                worked = self._attempt(self._settle_all)
                self._stats.settle_pass(time.monotonic() - now)
                if worked:
                    self._attempt(self._run_jobs)
                pause_s = self._period_s if worked else min(OUTAGE_PAUSE_S, pause_s * 2)
                next_settle = max(now + pause_s, time.monotonic())

    def _attempt(self, work: Callable[[], Any]) -> bool:
        """Do it; False when it failed. After a failure of the database everything in memory is read anew."""
        try:
            work()
        except _OUTAGES as exc:
            self._stats.outages += 1
            log.error("ledger_unavailable", extra={"reason": f"{type(exc).__name__}: {exc}"})
        except Exception:
            self._stats.errors += 1
            log.exception("ledger_writer_error")
        else:
            return True
        self._positions = None
        self._forget_readers()
        try:
            connections[self._using].close()
        except Exception:
            log.exception("ledger_connection_error")
        return False

    def _become_only_writer(self) -> bool:
        """Wait for another control process on this directory to end; False when `stop` came first."""
        self._lock_fd = os.open(self._directory / "writer.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        while True:
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if self._stopping.wait(LOCK_PAUSE_S):
                    return False

    def _put(self, item: _Item) -> None:
        self._queue.put(item)
        if self._stopped:
            self._refuse_rest()

    def _refuse_rest(self) -> None:
        while True:
            try:
                item = self._backlog.popleft() if self._backlog else self._queue.get_nowait()
            except (IndexError, queue.Empty):
                return
            if isinstance(item, _Task) and item.refuse is not None:
                item.refuse()

    def _serve_queue(self) -> None:
        """What waits in the queue now, also between two batches, so that a grant never waits for a whole pass.

        Asks and returns that stand together are one group. The order in which work was given stays, and what stands
        behind a failure (or the end) stays in the backlog.
        """
        for _ in range(self._queue.qsize()):
            self._backlog.append(self._queue.get())
        while self._backlog and self._backlog[0] is not None:
            if group := self._next_group():
                self._grants.serve(self._ledger(), group)
            elif isinstance(task := self._backlog.popleft(), _Task):
                task.run()

    def _next_group(self) -> list[Move]:
        group: list[Move] = []
        while (
            self._backlog and isinstance(move := self._backlog[0], GrantRequest | Return) and len(group) < GROUP_MOVES
        ):
            group.append(move)
            self._backlog.popleft()
        return group

    def _ledger(self) -> Ledger:
        return Ledger(connections[self._using], self._stats)

    # --- settling ---------------------------------------------------------------------------------------------------

    def _settle_all(self) -> None:
        if self._positions is None:
            rows = JournalPosition.objects.using(self._using).values_list("owner", "segment", "offset_bytes")
            self._positions = {owner: (segment, offset) for owner, segment, offset in rows}
            self.ready.set()
        self._find_owners()
        for owner, reader in list(self._readers.items()):
            try:
                if self._readers.get(owner) is reader:  # what was served meanwhile may have settled, too
                    self._settle_owner(reader)
            except (OSError, LedgerError, DataError, IntegrityError):
                # One owner's files and rows must not stop the others' money.
                self._stats.errors += 1
                log.exception("journal_unsettled", extra={"owner": owner})
                self._drop_reader(owner)
            self._serve_queue()

    def _find_owners(self) -> None:
        assert self._positions is not None
        for name in os.listdir(self._directory):
            owner, dot, suffix = name.rpartition(".")
            if dot and suffix == "lock" and owner not in self._readers and name != "writer.lock":
                try:
                    reader = burial.open_reader(
                        connections[self._using], self._directory, owner, self._positions.get(owner)
                    )
                except FileNotFoundError:
                    continue
                except OSError:
                    self._stats.errors += 1
                    log.exception("journal_unreadable", extra={"owner": owner})
                    continue
                self._readers[owner] = reader

    def _settle_owner(self, reader: JournalReader) -> None:
        assert self._positions is not None
        dead = reader.owner_is_dead()
        segments = journal.list_segments(self._directory, reader.owner)
        while True:
            batch = reader.read(segments, dead=dead, limit=self._batch)
            position = reader.position()
            stored = self._positions.get(reader.owner)
            if batch.usage or batch.shapes or position[0] > (stored[0] if stored else 0):
                self._ledger().settle(reader.owner, batch.usage, batch.shapes, position)
                self._positions[reader.owner] = position
                if segments and segments[0] < position[0]:
                    journal.remove_segments(self._directory, reader.owner, below=position[0])
            if batch.at_end:
                break
            self._serve_queue()
            if self._readers.get(reader.owner) is not reader:
                return
        if dead:
            burial.bury(self._ledger(), self._stats, self._directory, reader, self._tell_jobs)
            self._positions.pop(reader.owner, None)
            self._drop_reader(reader.owner)
            self._grants.owner_ended(self._ledger(), reader.owner)

    def _drop_reader(self, owner: str) -> None:
        reader = self._readers.pop(owner, None)
        if reader is not None:
            reader.close()

    def _forget_readers(self) -> None:
        for owner in list(self._readers):
            self._drop_reader(owner)

    # --- jobs -------------------------------------------------------------------------------------------------------

    def _run_jobs(self, *, at_once: bool = False) -> None:
        """What is due besides settling: the jobs, carrying rests over, files of resolved owners."""
        now = time.monotonic()
        ran = at_once
        for due in self._jobs:
            if (now < due.at and not at_once) or self._stopping.is_set():
                continue
            worked = self._run_job(due.job)
            due.at = time.monotonic() + (due.job.period_s if worked else max(JOB_PAUSE_S, due.job.period_s))
            ran = True
        if ran or now >= self._tidy_at:
            self._tidy_at = now + TIDY_S
            self._grants.carry_rests(self._ledger())
            self._grants.offer_all(self._ledger())  # a job may have given something back
            burial.mark_resolved(self._directory, self._using)

    def _run_job(self, job: Job) -> bool:
        """One job with its repetitions; False when it failed."""
        for _ in range(JOB_PARTS):
            begin = time.monotonic()
            done = self._do(job, job.run)
            self._stats.job(time.monotonic() - begin)
            self._serve_queue()
            if done is not True:
                return done is not _FAILED
        return True

    def _tell_jobs(self, owner: str) -> None:
        for due in self._jobs:
            self._do(due.job, due.job.owner_ended, owner)

    def _do(self, job: Job, work: Callable[..., object], *arguments: str) -> object:
        """What it gave; `_FAILED` when it raised."""
        try:
            return work(connections[self._using], *arguments)
        except Exception as exc:
            self._stats.jobs_failed += 1
            log.exception("ledger_job_failed", extra={"job": type(job).__name__})
            if isinstance(exc, _OUTAGES):
                connections[self._using].close()
            return _FAILED
