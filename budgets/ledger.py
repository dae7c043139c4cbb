"""The ledger's transactions. Only the writer's thread (`budgets.settle`) calls them; each is one durable transaction.

Rows are locked in one order: the window, then its leases, windows by (pool, start). The arithmetic itself is in
`budgets.transfers`.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from typing import NamedTuple

from django.db import DataError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Count, QuerySet, Sum

from budgets import ledger_sql, transfers
from budgets.ledger_sql import Row
from budgets.models.ledger import JournalPosition, Lease, PoolWindow
from budgets.records import UsageRecord
from budgets.stats import WriterStats

log = logging.getLogger("hoosh.ledger")

_POOL, _WINDOW, _TOKENS = (UsageRecord.__struct_fields__.index(name) for name in ("pool_id", "window_start", "tokens"))
_ATTEMPTS = 4  # a batch whose rows were in the ledger in part is reduced to the new ones and tried again


class LedgerError(Exception):
    """A batch cannot be brought into the ledger, whatever is tried."""


class Answer(NamedTuple):
    """What an ask for tokens came to."""

    total: int  # granted to the owner so far, absolute
    granted: int  # of it, just now
    more: bool  # asking ahead is welcome
    spent_out: bool  # not even all that other workers have left would do
    available: int  # in the pool, leased to nobody
    others: int  # left in other owners' leases
    repeated: bool  # the owner had not seen an earlier answer: nothing was granted


class Ledger:
    """The transactions over one open connection."""

    def __init__(self, connection: BaseDatabaseWrapper, stats: WriterStats) -> None:
        self._connection = connection
        self._using = connection.alias
        self._stats = stats

    # --- settling ---------------------------------------------------------------------------------------------------

    def settle(
        self, owner: str, records: list[UsageRecord], shapes: dict[bytes, bytes], position: tuple[int, int]
    ) -> None:
        """Insert usage, charge the owner's leases with exactly what was inserted, store the journal position.

        Rows that are in the ledger already change nothing. Raises `LedgerError` when rows are refused for good.
        """
        rows = [ledger_sql.usage_row(record) for record in records]
        if not self._try_settle(owner, rows, shapes, position):
            self._stats.replays += 1
            for _ in range(_ATTEMPTS):
                rows = self._new_rows(rows)
                if self._try_settle(owner, rows, shapes, position):
                    break
            else:
                raise LedgerError(f"{len(rows)} usage rows of {owner} are refused")
            self._stats.duplicates += len(records) - len(rows)
        self._stats.rows += len(rows)
        self._stats.batches += 1
        if records:
            self._stats.lag(max(0.0, time.time() - (records[0].at_us + records[0].latency_us) / 1e6))

    def _try_settle(self, owner: str, rows: list[Row], shapes: dict[bytes, bytes], position: tuple[int, int]) -> bool:
        """The transaction of `settle`; False, with nothing changed, when not every row was inserted."""
        try:
            with transaction.atomic(using=self._using, durable=True):
                if rows:
                    if ledger_sql.insert_usage(self._connection, rows) != len(rows):
                        transaction.set_rollback(True, using=self._using)
                        return False
                    self._charge(owner, rows)
                if shapes:
                    ledger_sql.insert_shapes(self._connection, shapes.items())
                ledger_sql.store_position(self._connection, owner, position)
        except DataError as exc:
            log.error("usage_refused", extra={"owner": owner, "reason": str(exc)})
            return False
        return True

    def _new_rows(self, rows: list[Row]) -> list[Row]:
        """The rows that are not in the ledger, each once, in a form that no database refuses."""
        known = ledger_sql.existing_usage(self._connection, rows)
        new: list[Row] = []
        for row in rows:
            key = ledger_sql.row_key(row)
            if key not in known:
                known.add(key)
                new.append(ledger_sql.storable_row(row))
        return new

    def _charge(self, owner: str, rows: list[Row]) -> None:
        sums: dict[tuple[int, int], int] = defaultdict(int)
        for row in rows:
            sums[row[_POOL], row[_WINDOW]] += max(0, row[_TOKENS])
        for (pool_id, window_start), tokens in sorted(sums.items()):
            if not tokens:
                continue
            window = self._window(pool_id, window_start)
            if window is None:  # the truth is written even where nobody ever set a limit
                window = PoolWindow(pool_id=pool_id, window_start=window_start, capacity=0)
                window.save(using=self._using, force_insert=True)
            lease = self._lease(owner, window)
            overrun = window.overrun
            lacking = transfers.charge(window, lease, tokens)
            self._save(window, lease)
            if lacking:
                self._stats.overrun_tokens += lacking
                level = logging.ERROR if window.overrun > overrun else logging.WARNING
                log.log(level, "lease_overrun", extra={"owner": owner, "pool_id": pool_id, "tokens": lacking})

    # --- leases -----------------------------------------------------------------------------------------------------

    def grant(
        self, owner: str, pool_id: int, window_start: int, *, seen_total: int, want: int, need: int
    ) -> Answer | None:
        """Lease tokens to an owner, or repeat an answer it has not seen. None = there is no such window."""
        with transaction.atomic(using=self._using, durable=True):
            window = self._window(pool_id, window_start)
            if window is None:
                return None
            lease = self._lease(owner, window)
            others = self._others(owner, window)
            tokens, more, repeated = 0, True, lease.granted > seen_total
            if lease.granted < seen_total:
                log.error("lease_adopted", extra={"owner": owner, "pool_id": pool_id, "total": seen_total})
                transfers.adopt(window, lease, seen_total)
                self._save(window, lease)
            if not repeated:
                tokens, more = transfers.block_size(
                    free=transfers.free_tokens(window), want=want, need=need, workers=others.owners + 1
                )
            if tokens:
                transfers.grant(window, lease, tokens)
                self._save(window, lease)
            available = max(0, transfers.free_tokens(window))
            spent_out = not (tokens or repeated) and available + others.remaining < max(1, need)
            return Answer(lease.granted, tokens, more, spent_out, available, others.remaining, repeated)

    def give_back(self, owner: str, pool_id: int, window_start: int, returned_total: int) -> int:
        """Take back what an owner returned; `returned_total` is absolute. The tokens that came back just now."""
        with transaction.atomic(using=self._using, durable=True):
            window = self._window(pool_id, window_start)
            if window is None:
                return 0
            lease = self._lease(owner, window)
            tokens = transfers.give_back(window, lease, returned_total)
            if tokens:
                self._save(window, lease)
            return tokens

    def set_capacity(self, pool_id: int, window_start: int, capacity: int) -> int:
        """Make the window or change its capacity; the change of what is free, in tokens."""
        with transaction.atomic(using=self._using, durable=True):
            window = self._window(pool_id, window_start)
            if window is None:
                window = PoolWindow(pool_id=pool_id, window_start=window_start, capacity=capacity)
                window.save(using=self._using, force_insert=True)
                return capacity
            change = capacity - window.capacity
            if change:
                transfers.set_capacity(window, capacity)
                window.save(using=self._using, update_fields=["capacity", "overrun"])
            return change

    def end_owner(self, owner: str) -> None:
        """Give back what is left in the leases of an owner that is dead and settled, and forget its journal."""
        with transaction.atomic(using=self._using, durable=True):
            self._end_leases(self._leases(owner), spent=False)
            JournalPosition.objects.using(self._using).filter(owner=owner).delete()

    def quarantine_owner(self, owner: str) -> None:
        """Keep what is left in a dead owner's leases counted, because its journal cannot be trusted."""
        with transaction.atomic(using=self._using, durable=True):
            self._leases(owner).update(state=Lease.State.QUARANTINED)

    def write_off(self, owner: str) -> int:
        """Charge what is left in an owner's quarantined leases to their pools; the tokens charged."""
        with transaction.atomic(using=self._using, durable=True):
            tokens = self._end_leases(self._leases(owner).filter(state=Lease.State.QUARANTINED), spent=True)
            JournalPosition.objects.using(self._using).filter(owner=owner).delete()
        log.warning("lease_written_off", extra={"owner": owner, "tokens": tokens})
        return tokens

    # --- rows -------------------------------------------------------------------------------------------------------

    def _end_leases(self, leases: QuerySet[Lease], *, spent: bool) -> int:
        tokens = 0
        keys = leases.order_by("window__pool_id", "window__window_start").values_list(
            "owner", "window__pool_id", "window__window_start"
        )
        for owner, pool_id, window_start in list(keys):
            window = self._window(pool_id, window_start)
            assert window is not None
            lease = self._lease(owner, window)
            tokens += lease.remaining
            transfers.end_lease(window, lease, spent=spent)
            window.save(using=self._using, update_fields=["committed", "leased", "overrun"])
            lease.delete(using=self._using)
        return tokens

    def _leases(self, owner: str) -> QuerySet[Lease]:
        return Lease.objects.using(self._using).filter(owner=owner)

    def _window(self, pool_id: int, window_start: int) -> PoolWindow | None:
        rows = PoolWindow.objects.using(self._using).select_for_update()
        return rows.filter(pool_id=pool_id, window_start=window_start).first()

    def _lease(self, owner: str, window: PoolWindow) -> Lease:
        lease = self._leases(owner).select_for_update().filter(window=window).first()
        return lease or Lease(owner=owner, window=window)

    def _others(self, owner: str, window: PoolWindow) -> _Others:
        rows = Lease.objects.using(self._using).filter(window=window, state=Lease.State.ACTIVE).exclude(owner=owner)
        sums = rows.aggregate(owners=Count("pk"), remaining=Sum("remaining"))
        return _Others(sums["owners"], sums["remaining"] or 0)

    def _save(self, window: PoolWindow, lease: Lease) -> None:
        window.save(using=self._using, update_fields=["committed", "leased", "overrun"])
        if lease._state.adding:
            lease.save(using=self._using, force_insert=True)
        else:
            lease.save(using=self._using, update_fields=["granted", "returned", "remaining"])


class _Others(NamedTuple):
    owners: int
    remaining: int
