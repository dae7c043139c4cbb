"""Which window each pool is in: from the site's rows, control's clock and what the ledger has. Used by the feed alone.

A window exists in the ledger before any worker hears of it. While the ledger is away a pool keeps the window it has,
and everything else about it is still told.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future

import msgspec
from django.db import InterfaceError, OperationalError

from budgets.limits import LedgerWindows, PoolLimits, Starts, span_of, specs_of
from budgets.records import PoolRecord, Unit
from budgets.windows import Span, WindowSpec

log = logging.getLogger("hoosh.feed")

SYNC_WAIT_S = 1.0  # what revocations may have to wait for a ledger that does not answer
RETRY_S = 2.0
NEVER = float("inf")

Sync = Callable[[Sequence[WindowSpec]], "Future[None]"]


class PoolWindows:
    """The windows of all pools. Belongs to one thread; only its constructor's callables may fail."""

    def __init__(
        self,
        read: Callable[[Collection[int]], Mapping[int, LedgerWindows]],
        sync: Sync,
        *,
        clock: Callable[[], float] = time.time,
        failed: Callable[[], None] = lambda: None,
        wait_s: float = SYNC_WAIT_S,
        retry_s: float = RETRY_S,
    ) -> None:
        """`read(pool ids)` asks the ledger once per pool. `sync(specs)` has brought them into the ledger when its
        future is done. `failed` is told when either did not work. `clock` gives Unix seconds."""
        self._read, self._sync, self._clock, self._failed = read, sync, clock, failed
        self._wait_s, self._retry_s = wait_s, retry_s
        self._pools: Mapping[int, PoolLimits] = {}
        self._starts: dict[int, Starts] = {}  # of pools the ledger was read for
        self._ledger: dict[tuple[int, int], WindowSpec] = {}  # by pool and unit, as the ledger has them
        self._wanted: dict[tuple[int, int], WindowSpec] = {}
        self._spans: dict[int, Span] = {}  # what is wanted, or guessed while the ledger cannot be read
        self._stale = False  # the rows changed, or the ledger was not read for all of them
        self._next_end = NEVER
        self._pending: list[tuple[Future[None], list[WindowSpec]]] = []
        self._apart = False  # one pool at a time, because all together were refused
        self._retry_at = 0.0  # monotonic
        self._complaint = ""
        self._records: dict[int, PoolRecord] | None = {}

    def set_pools(self, pools: Iterable[PoolLimits]) -> None:
        """All pools there are, as the site has them now."""
        self._pools = {pool.record.id: pool for pool in pools}
        for pool_id in self._starts.keys() - self._pools.keys():
            del self._starts[pool_id]  # should the number come again, the ledger is read again
        self._ledger = {key: spec for key, spec in self._ledger.items() if key[0] in self._pools}
        self._stale, self._records = True, None

    def look(self) -> None:
        """Open the windows whose time has come and bring changed limits into the ledger, waiting a second at most."""
        self._collect()
        now = self._clock()
        due = time.monotonic() >= self._retry_at
        if self._pools.keys() - self._starts.keys() and due:
            self._read_ledger()
        if self._stale or now >= self._next_end:
            self._compute(now)
        if due and not self._pending:
            self._bring()

    def records(self) -> dict[int, PoolRecord]:
        """Every pool as workers are to know it now. The same object until something changed."""
        if self._records is None:
            self._records = {pool_id: self._record(pool) for pool_id, pool in self._pools.items()}
        return self._records

    def wait_s(self, longest_s: float) -> float:
        """How long nothing happens: until the next window begins, but at most so long."""
        left_s = self._next_end - self._clock()
        return left_s if 0 < left_s < longest_s else longest_s

    def _read_ledger(self) -> None:
        unknown = self._pools.keys() - self._starts.keys()
        try:
            found = self._read(unknown)
        except Exception as exc:
            self._complain(exc)
            return
        for pool_id in unknown:
            rows, previous = found.get(pool_id, LedgerWindows((), None))
            self._starts[pool_id] = Starts(rows[0].window_start if rows else None, previous)
            self._ledger.update({(pool_id, row.unit): row for row in rows})
        self._complaint = ""
        self._stale, self._records = True, None

    def _compute(self, now: float) -> None:
        self._wanted, spans, self._next_end = {}, {}, NEVER
        for pool_id, pool in self._pools.items():
            starts = self._starts.get(pool_id)
            try:
                spans[pool_id] = span = span_of(pool, now, starts or Starts())
            except ValueError as exc:
                # A time zone that is no more must not keep the other pools from their windows.
                log.error("pool_without_window", extra={"pool_id": pool_id, "reason": str(exc)})
                last = starts.newest if starts is not None else None
                spans[pool_id] = span = self._spans.get(pool_id, Span(last or 0, 0))
            if span.end > now:
                self._next_end = min(self._next_end, span.end)
            if starts is not None:
                self._wanted.update({(pool_id, spec.unit): spec for spec in specs_of(pool, span, starts)})
        self._spans, self._stale, self._records = spans, False, None

    def _bring(self) -> None:
        missing = [spec for key, spec in self._wanted.items() if self._ledger.get(key) != spec]
        if not missing:
            return
        groups = [missing]
        if self._apart:
            by_pool: dict[int, list[WindowSpec]] = {}
            for spec in missing:
                by_pool.setdefault(spec.pool_id, []).append(spec)
            groups = list(by_pool.values())
        try:
            self._pending = [(self._sync(group), group) for group in groups]
        except Exception as exc:
            self._complain(exc)
            return
        ends_at = time.monotonic() + self._wait_s
        for future, _ in self._pending:
            try:
                future.exception(max(0.0, ends_at - time.monotonic()))
            except TimeoutError:
                break
        self._collect()

    def _collect(self) -> None:
        """Take in what the ledger has done. What it has not answered yet is looked at next time."""
        waiting: list[tuple[Future[None], list[WindowSpec]]] = []
        failure: BaseException | None = None
        for future, specs in self._pending:
            if not future.done():
                waiting.append((future, specs))
                continue
            failed = future.exception()
            if failed is None:
                self._accept(specs)
            failure = failure or failed
        done = len(self._pending) > len(waiting)
        self._pending = waiting
        if failure is not None:
            self._apart = not isinstance(failure, OperationalError | InterfaceError)
            self._complain(failure)
        elif done and not waiting:
            self._apart, self._complaint = False, ""

    def _accept(self, specs: Iterable[WindowSpec]) -> None:
        for spec in specs:
            if spec.pool_id in self._starts:  # not deleted meanwhile
                self._ledger[spec.pool_id, spec.unit] = spec
                self._starts[spec.pool_id] = self._starts[spec.pool_id].opened(spec.window_start)
        self._records = None

    def _record(self, pool: PoolLimits) -> PoolRecord:
        pool_id = pool.record.id
        tokens, money = (self._ledger.get((pool_id, unit)) for unit in Unit)
        if tokens is not None and money is not None and tokens.window_start == money.window_start:
            span = Span(tokens.window_start, tokens.window_end)
        else:
            span = self._spans[pool_id]
        return msgspec.structs.replace(pool.record, window_start=span.start, window_end=span.end)

    def _complain(self, exc: BaseException) -> None:
        self._retry_at = time.monotonic() + self._retry_s
        complaint = f"{type(exc).__name__}: {exc}"
        if complaint != self._complaint:  # not every two seconds
            log.error("pools_not_in_ledger", extra={"reason": complaint}, exc_info=exc)
        self._complaint = complaint
        self._failed()
