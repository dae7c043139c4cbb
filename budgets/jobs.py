"""The jobs of the ledger's writer, and a writer for commands where no control process runs."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings

from budgets.idempotency import IdempotencyExpiry
from budgets.models.access import LedgerOrder
from budgets.orders import Orders, place, wait
from budgets.reservations import ReservationExpiry
from budgets.retention import Retention
from budgets.rollups import Rollups
from budgets.samples import Samples
from budgets.settle import Writer

if TYPE_CHECKING:
    from budgets.settle import Job

READY_S = 20.0


class WriterNotReadyError(RuntimeError):
    """No writer could begin to work: the database is away, or another process is just taking over."""


def default_jobs() -> list[Job]:
    """Everything the writer of a control process does beside leases and usage. A list for one writer."""
    return [Orders(), Rollups(), Samples(), ReservationExpiry(), IdempotencyExpiry(), Retention()]


def writer_runs(journals: Path | None = None) -> bool:
    """Whether a process on this host works as the ledger's writer just now."""
    try:
        lock_fd = os.open((journals or settings.HOOSH_JOURNAL_DIR) / "writer.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock_fd)
    return False


@contextmanager
def attended(journals: Path | None = None, *, jobs: Sequence[Job] | None = None) -> Iterator[bool]:
    """Orders placed inside are carried out: by the control process, or by a writer of our own where none runs.

    Yields whether it is our own, which also settles what dead workers left. `WriterNotReadyError` when that cannot
    begin to work.
    """
    directory = journals or settings.HOOSH_JOURNAL_DIR
    if writer_runs(directory):
        yield False
        return
    writer = Writer(directory, jobs=[Orders(directory)] if jobs is None else jobs)
    writer.start()
    try:
        if not writer.ready.wait(READY_S):
            raise WriterNotReadyError("The ledger's database does not answer, or another process has just begun.")
        yield True
    finally:
        writer.stop()


def carry_out(kind: str, payload: dict[str, Any], *, actor: str, note: str, timeout_s: float) -> LedgerOrder:
    """Place an order and see it through, with control running or without; open still when it took longer.

    `ValidationError` and `WriterNotReadyError` as above.
    """
    with attended():
        return wait(place(kind, payload, actor=actor, note=note), timeout_s)
