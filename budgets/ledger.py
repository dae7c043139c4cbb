"""The ledger's transactions. Only the writer's thread (`budgets.settle`) calls them; each is one durable transaction.

How rows are locked and written is in `budgets.ledger_books`, the arithmetic itself in `budgets.transfers`. A purse is
named by (pool id, unit, start of the window).
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from django.db import DataError, IntegrityError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from audit import batches
from audit.record import record_ledger
from budgets import ledger_books, ledger_sql, transfers, usage_leaf
from budgets.leasing import Leasing, Wanted
from budgets.ledger_books import NO_SOURCE, Books, Key, PurseRow, opened
from budgets.ledger_sql import Row
from budgets.models.access import Pool
from budgets.models.ledger import JournalPosition, Lease, LedgerEntry
from budgets.records import Unit, UsageRecord
from budgets.stats import WriterStats
from budgets.windows import WindowSpec

log = logging.getLogger("hoosh.ledger")

_ATTEMPTS = 4  # a batch whose rows were in the ledger in part is reduced to the new ones and tried again
_LATE_WINDOWS = 64  # about so many windows back a rest that comes late is carried on after a restart

_UNITS = frozenset(Unit)


class LedgerError(Exception):
    """A batch cannot be brought into the ledger, whatever is tried."""


class Synced(NamedTuple):
    """What bringing windows into the ledger came to."""

    changes: dict[Key, int]  # of what is free
    sources: dict[Key, Key]  # the purses whose rest goes to them, for those that take one over


class _NotAllNew(Exception):
    """Rows of the batch are in the ledger already, or the database refuses one: nothing was changed."""


class _NotMeant(Exception):
    """Undoes a transaction that was only tried."""


class _NoSuchPurses(Exception):
    """Purses of the batch are missing: nothing was changed."""

    def __init__(self, capacities: Mapping[Key, int | None]) -> None:
        super().__init__()
        self.capacities = capacities


class Ledger:
    """The transactions over one open connection."""

    def __init__(self, connection: BaseDatabaseWrapper, stats: WriterStats | None = None) -> None:
        self._connection = connection
        self._using = connection.alias
        self._stats = stats or WriterStats()

    # --- settling ---------------------------------------------------------------------------------------------------

    def settle(
        self, owner: str, records: list[UsageRecord], shapes: Mapping[bytes, bytes], position: tuple[int, int] | None
    ) -> int:
        """Insert usage, charge each purse with exactly what was inserted, store the journal position; the new rows.

        What was held is charged to the owner's lease of the purse, what was only observed straight to the purse. Rows
        that are in the ledger already change nothing. A purse that the database refuses to charge is left out and the
        owner's lease of it quarantined. Raises `LedgerError` when rows are refused for good.
        """
        rows = ledger_sql.usage_rows(records)
        attempts = 0
        refused: frozenset[Key] = frozenset()
        while True:
            try:
                self._try_settle(owner, rows, shapes, position, refused)
                break
            except _NoSuchPurses as exc:
                ledger_books.make(self._connection, exc.capacities)  # the truth is written where nobody set a limit
            except _NotAllNew as exc:
                attempts += 1
                if attempts == _ATTEMPTS:
                    refused = self._refused_purses(owner, rows)
                if attempts > _ATTEMPTS:
                    raise LedgerError(f"{len(rows)} usage rows of {owner} are refused") from exc
                rows = self._new_rows(rows)
        if attempts:
            self._stats.replays += 1
            self._stats.duplicates += len(records) - len(rows)
        self._stats.rows += len(rows)
        self._stats.batches += 1
        if records:
            self._stats.lag(max(0.0, time.time() - (records[0].at_us + records[0].latency_us) / 1e6))
        return len(rows)

    def _try_settle(
        self,
        owner: str,
        rows: list[Row],
        shapes: Mapping[bytes, bytes],
        position: tuple[int, int] | None,
        refused: frozenset[Key],
    ) -> None:
        """The transaction of `settle`."""
        batch = batches.sealed(usage_leaf.records_of(rows))
        try:
            with opened(self._connection, self._stats) as books:
                if rows:
                    ledger_sql.keep_out_rollups(self._connection)
                    batch_id = batches.insert_batch(self._connection, owner, batch)
                    if ledger_sql.insert_usage(self._connection, rows, batch_id) != len(rows):
                        raise _NotAllNew
                    self._charge(books, owner, rows, without=refused)
                    self._quarantine_leases(owner, refused)
                if shapes:
                    ledger_sql.insert_shapes(self._connection, shapes.items())
                if position is not None:
                    ledger_sql.store_position(self._connection, owner, position)
        except (DataError, IntegrityError, OverflowError) as exc:
            log.error("usage_refused", extra={"owner": owner, "reason": str(exc)})
            raise _NotAllNew from exc

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

    def _refused_purses(self, owner: str, rows: list[Row]) -> frozenset[Key]:
        """Which of the batch's purses the database refuses to charge, found out one by one."""
        leased, observed = _sums(rows)
        keys = leased.keys() | observed.keys()
        refused: set[Key] = set()
        for key in keys:
            try:
                with opened(self._connection) as books:
                    self._charge(books, owner, rows, without=keys - {key})
                    books.save()
                    raise _NotMeant
            except (_NotMeant, _NoSuchPurses):
                pass
            except (DataError, IntegrityError, OverflowError) as exc:
                refused.add(key)
                amount = leased.get(key, 0) + observed.get(key, 0)
                fields = {"owner": owner, **_named(key), "amount": amount, "reason": str(exc)}
                log.critical("purse_not_charged", extra=fields)
        return frozenset(refused)

    def _quarantine_leases(self, owner: str, keys: Iterable[Key]) -> None:
        for pool_id, unit, start in keys:
            leases = Lease.objects.using(self._using).filter(
                owner=owner, window__pool_id=pool_id, window__unit=unit, window__window_start=start
            )
            leases.update(state=Lease.State.QUARANTINED)
            purse = {"object": f"{Pool._meta.label_lower}:{pool_id}", "unit": str(unit), "window_start": str(start)}
            record_ledger(self._connection, "lease.quarantined", target=owner, level="error", data=purse)

    def _charge(self, books: Books, owner: str, rows: list[Row], *, without: Collection[Key] = ()) -> None:
        leased, observed = _sums(rows)
        for key in without:
            leased.pop(key, None)
            observed.pop(key, None)
        wanted = leased.keys() | observed.keys()
        purses = books.purses(wanted)
        if missing := wanted - purses.keys():
            raise _NoSuchPurses({key: 0 if key in leased else None for key in missing})
        if leased:
            books.read_leases(owner)
        for key, amount in leased.items():
            purse = purses[key]
            overrun = purse.overrun
            lacking = transfers.charge(purse, books.lease(owner, purse), amount)
            if lacking:
                self._overran(books, owner, purse, lacking, passed=purse.overrun > overrun)
        for key, amount in observed.items():
            purse = purses[key]
            overrun = purse.overrun
            transfers.charge_observed(purse, amount)
            if purse.overrun > overrun and self._stats.first_in_a_while(("observed", key)):
                log.info("limit_passed", extra={**_named(key), "overrun": purse.overrun})
                books.note("budget.limit_passed", purse, {"overrun": str(purse.overrun)})

    def _overran(self, books: Books, owner: str, purse: PurseRow, lacking: int, *, passed: bool) -> None:
        """More was used than was leased; `passed`: more than the purse had."""
        if purse.unit == Unit.TOKENS:
            self._stats.overrun_tokens += lacking
        else:
            self._stats.overrun_pico += lacking
        if self._stats.first_in_a_while(("leased", purse.key, passed)):
            fields = {"owner": owner, **_named(purse.key), "amount": lacking, "overrun": purse.overrun}
            log.log(logging.ERROR if passed else logging.WARNING, "lease_overrun", extra=fields)
            data = {"owner": owner, "amount": str(lacking), "overrun": str(purse.overrun)}
            books.note("budget.overrun", purse, data, level="error" if passed else "warning")

    # --- leases -----------------------------------------------------------------------------------------------------

    @contextmanager
    def leasing(self, wanted: Wanted) -> Iterator[Leasing]:
        """A transaction in which the `wanted` owners may be leased to, or give back to, the `wanted` purses.

        However many they are, it is the same few statements.
        """
        with opened(self._connection, self._stats) as books:
            yield Leasing(books, wanted)

    def end_owner(self, owner: str) -> None:
        """Give back what is left in the leases of an owner that is dead and settled, and forget its journal.

        A lease that is quarantined stays: an operator decides about it.
        """
        with opened(self._connection, self._stats) as books:
            books.purses(books.keys_of(owner))
            for lease in books.read_leases(owner):
                if lease.state == Lease.State.ACTIVE:
                    books.end_lease(lease, spent=False)
            JournalPosition.objects.using(self._using).filter(owner=owner).delete()

    def quarantine_owner(self, owner: str, position: tuple[int, int]) -> None:
        """Keep what is left in a dead owner's leases counted, because its journal cannot be trusted.

        Its journal position stays until the owner is resolved: that is how its host knows.
        """
        with transaction.atomic(using=self._using, durable=True):
            Lease.objects.using(self._using).filter(owner=owner).update(state=Lease.State.QUARANTINED)
            ledger_sql.store_position(self._connection, owner, position)
            record_ledger(self._connection, "lease.quarantined", target=owner, level="error")

    def resolve(
        self, owner: str, *, spent: bool, order_id: int | None, order_token: str | None, actor: str, note: str
    ) -> dict[str, Any]:
        """End an owner's quarantined leases as an operator decided: their rest counts as `spent` or goes back.

        Returns owner, spent, leases (how many), tokens, pico_usd and `repeated`: an order that was carried out
        already changes nothing and has the same figures. The owner's files are renamed by its host's writer.
        """
        kind = LedgerEntry.Kind.WRITE_OFF if spent else LedgerEntry.Kind.RELEASE
        with opened(self._connection, self._stats) as books:
            books.purses(books.keys_of(owner, Lease.State.QUARANTINED.value))
            done = self._entries_of(order_token)
            amounts = [(entry.unit, entry.amount) for entry in done]
            if not done:
                for lease in books.read_leases(owner):
                    if lease.state == Lease.State.QUARANTINED:
                        purse = books.purse_of(lease)
                        amount = books.end_lease(lease, spent=spent)
                        amounts.append((purse.unit, amount))
                        books.enter(
                            kind,
                            purse,
                            amount,
                            order_id=order_id,
                            order_token=order_token,
                            actor=actor,
                            note=f"{owner}: {note}".rstrip(": "),
                        )
                JournalPosition.objects.using(self._using).filter(owner=owner).delete()
        result = {
            "owner": owner,
            "spent": spent,
            "leases": len(amounts),
            "tokens": sum(amount for unit, amount in amounts if unit == Unit.TOKENS),
            "pico_usd": sum(amount for unit, amount in amounts if unit == Unit.PICO_USD),
            "repeated": bool(done),
        }
        log.warning("lease_resolved", extra=result)
        return result

    def _entries_of(self, order_token: str | None) -> list[LedgerEntry]:
        if order_token is None:
            return []
        return list(LedgerEntry.objects.using(self._using).filter(order_token=order_token))

    # --- windows ----------------------------------------------------------------------------------------------------

    def sync_windows(self, specs: Sequence[WindowSpec]) -> Synced:
        """Make windows or change their limits, ends and alerts, and carry rests over; one transaction for all.

        From which window one takes over the rest is settled when it is opened; later it is what it was then.
        """
        wanted = {(spec.pool_id, spec.unit, spec.window_start): spec for spec in specs}
        with opened(self._connection, self._stats) as books:
            ledger_books.make(self._connection, {key: spec.capacity for key, spec in wanted.items()})
            links = {row.key: row.carry_from for row in ledger_books.read(self._connection, wanted)}
            for key, spec in wanted.items():
                if links[key] is None:
                    links[key] = NO_SOURCE if spec.carry_from is None else spec.carry_from
            sources = {
                (pool_id, unit, start): (pool_id, unit, link)
                for (pool_id, unit, start), link in links.items()
                if link is not None and NO_SOURCE < link < start
            }
            purses = books.purses([*wanted, *sources.values()])
            before = {key: transfers.free_amount(purses[key]) for key in wanted}
            for key, spec in wanted.items():
                purse = purses[key]
                old = purse.capacity
                transfers.set_limit(purse, spec.capacity)
                if purse.capacity != old:
                    books.note("window.limit_changed", purse, {"capacity": [_told(old), _told(purse.capacity)]})
                purse.window_end, purse.alerts = spec.window_end, spec.alerts
                if purse.carry_from is None:
                    purse.carry_from = links[key]
            for target, source in sources.items():
                if source in purses:
                    self._carry(books, purses[source], purses[target])
            changes = {key: transfers.free_amount(purses[key]) - before[key] for key in wanted}
            return Synced(changes, sources)

    def carry(self, pairs: Mapping[Key, Key]) -> dict[Key, int]:
        """Move what is free in old windows to those that follow them (`pairs`: target by source); by target."""
        moved: dict[Key, int] = {}
        with opened(self._connection, self._stats) as books:
            purses = books.purses([*pairs.keys(), *pairs.values()])
            for source, target in sorted(pairs.items()):
                if source in purses and target in purses:
                    amount = self._carry(books, purses[source], purses[target])
                    if amount:
                        moved[target] = amount
        return moved

    def rests(self, keys: Iterable[Key]) -> dict[Key, tuple[int, int]]:
        """What is free and what is leased in these purses, without a lock; those without a row are left out."""
        return {row.key: (transfers.free_amount(row), row.leased) for row in ledger_books.read(self._connection, keys)}

    def late_sources(self, sources: Mapping[Key, Key]) -> dict[Key, Key]:
        """Windows before the `sources` (by target) that pass their rests on to them, and the targets, by source.

        Those where leases are still out (their owner lives on, or control died before it was buried), or where what
        came back was not carried on yet.
        """
        targets: dict[tuple[int, int], Key] = {}
        spans: list[tuple[int, int, int, int]] = []
        for target, source in sources.items():
            pool_id, unit, start = source
            targets[pool_id, unit] = target
            spans.append((pool_id, unit, start - _LATE_WINDOWS * (target[2] - start), start))
        return {key: targets[key[:2]] for key in ledger_books.unfinished(self._connection, spans)} if spans else {}

    def _carry(self, books: Books, source: PurseRow, target: PurseRow) -> int:
        amount = transfers.move_free(source, target)
        if amount:
            books.enter(LedgerEntry.Kind.CARRY, source, -amount)
            books.enter(LedgerEntry.Kind.CARRY, target, amount)
            self._stats.carried += 1
        return amount


def _sums(rows: list[Row]) -> tuple[dict[Key, int], dict[Key, int]]:
    """What a batch charges to each purse: from leases, and without. Rows of the same purses are summed first."""
    groups: dict[ledger_sql.Charged, list[int]] = {}
    for values, charged in rows:
        sums = groups.get(charged)
        if sums is None:
            sums = groups[charged] = [0, 0]
        if (tokens := values[ledger_sql.TOKENS]) > 0:
            sums[0] += tokens
        if (cost := values[ledger_sql.COST]) > 0:
            sums[1] += cost
    leased: dict[Key, int] = defaultdict(int)
    observed: dict[Key, int] = defaultdict(int)
    for charged, sums in groups.items():
        for pool_id, unit, window_start, is_observed in charged.chain:
            amount = sums[unit] if unit in _UNITS else 0  # a unit of a later version has no purse here
            if amount:
                (observed if is_observed else leased)[pool_id, unit, window_start] += amount
    return leased, observed


def _told(capacity: int | None) -> str:
    return "none" if capacity is None else str(capacity)


def _named(key: Key) -> dict[str, int]:
    return {"pool_id": key[0], "unit": key[1], "window_start": key[2]}
