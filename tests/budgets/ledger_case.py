"""A ledger writer on a real database, over real journals, for tests."""

from __future__ import annotations

import queue
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.test import TransactionTestCase

from budgets.journal import Journal
from budgets.ledger_books import Key
from budgets.models import Lease, PoolWindow
from budgets.records import Unit
from budgets.settle import Writer
from budgets.windows import WindowSpec
from tests.budgets.records import POOL

TOKENS: Key = (POOL, Unit.TOKENS.value, 0)
MONEY: Key = (POOL, Unit.PICO_USD.value, 0)
USD = 10**12


def spec(
    key: Key = TOKENS,
    *,
    capacity: int | None = 100_000,
    end: int = 0,
    alerts: str = "",
    carry_from: int | None = None,
) -> WindowSpec:
    """What a purse should be."""
    return WindowSpec(*key, end, capacity, alerts, carry_from)


class LedgerCase(TransactionTestCase):
    """A directory of journals and a writer over it, quick to look."""

    databases = "__all__"

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="hj-"))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.recalls: list[tuple[int, int, int]] = []
        self.journals: list[Journal] = []

    def start_writer(
        self, *, capacity: int | None = 100_000, period_s: float = 0.02, directory: Path | None = None, **options: Any
    ) -> Writer:
        """A running writer; with a `capacity` the tokens of `POOL` have that limit."""
        writer = Writer(
            directory or self.directory,
            period_s=period_s,
            on_recall=lambda *purse: self.recalls.append(purse),
            **options,
        )
        writer.start()
        self.addCleanup(writer.stop)
        if capacity is not None:
            self.sync(writer, spec(capacity=capacity))
        return writer

    def sync(self, writer: Writer, *specs: WindowSpec) -> None:
        writer.sync_windows(specs).result(10)

    def open_journal(self, owner: str = "w", **options: Any) -> Journal:
        opened = Journal.open(self.directory, owner, **options)
        self.addCleanup(opened.close)
        return opened

    def ask(
        self, writer: Writer, owner: str = "w", *, seen: int = 0, want: int = 1, need: int = 0, key: Key = TOKENS
    ) -> Answers:
        answers = Answers()
        writer.grant(owner, *key, seen, want, answers, need)
        return answers

    def window(self, key: Key = TOKENS) -> PoolWindow:
        pool_id, unit, start = key
        return PoolWindow.objects.get(pool_id=pool_id, unit=unit, window_start=start)

    def figures(self, key: Key = TOKENS) -> tuple[int, int, int]:
        """Committed, leased and overrun of a purse, whose leases must add up."""
        window = self.window(key)
        assert window.leased == sum(Lease.objects.filter(window=window).values_list("remaining", flat=True))
        return window.committed, window.leased, window.overrun

    def eventually(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.01)


class Answers:
    """A reply callback that keeps what it was told."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[int, bool, bool, int]] = queue.Queue()

    def __call__(self, total: int, more: bool, spent_out: bool, available: int, others: int) -> None:
        self._queue.put((total, more, spent_out, available))

    def next(self, timeout_s: float = 10) -> tuple[int, bool, bool, int]:
        return self._queue.get(timeout=timeout_s)

    def none_within(self, timeout_s: float) -> bool:
        try:
            self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return True
        return False
