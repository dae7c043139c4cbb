"""Purses and leases inside one transaction: locked in one order, changed in memory, written back in bulk.

Every transaction that moves amounts goes through `Books`, the settling of usage as well as an operator's correction:

    with opened(connection) as books:              # a durable transaction
        purse = books.purse((pool_id, unit, start))    # None when there is none
        transfers.correct(purse, amount)
        books.enter(LedgerEntry.Kind.CORRECTION, purse, amount, order_id=…, order_token=…, actor=…, note=…)

What was changed is written, and alerts that became due are raised, when the block ends without an exception.

Purses are locked first and in the order (pool, window, unit), so that the writers of several hosts never wait for each
other in a circle: ask for all that a transaction needs at once (`purses`). A lease is only touched under its purse's
lock. Purses are made in transactions of their own (`make`), or before any is locked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import msgspec
from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Count, Sum

from audit.models import LedgerOutboxEntry
from budgets import transfers
from budgets.models.access import Pool
from budgets.models.ledger import Lease, LedgerEntry, PoolAlert, PoolWindow
from budgets.records import Unit
from budgets.stats import WriterStats

log = logging.getLogger("hoosh.ledger")

NO_SOURCE = -1  # a window's `carry_from`, when it takes over nothing
NO_WORKER = ":"  # an owner with this in its name is no worker (a caller's reservation): it cannot be asked to give back

Key = tuple[int, int, int]  # pool id, unit, start of the window
_encode = msgspec.json.Encoder().encode


class PurseRow(msgspec.Struct, gc=False):
    """A row of `PoolWindow`, in the order in which the statements below read it."""

    id: int
    pool_id: int
    unit: int
    window_start: int
    window_end: int
    capacity: int | None
    adjusted: int
    carry_from: int | None  # see `PoolWindow`
    alerts: str
    committed: int
    leased: int
    overrun: int

    @property
    def key(self) -> Key:
        """What names it."""
        return self.pool_id, self.unit, self.window_start


class LeaseRow(msgspec.Struct, gc=False):
    """A row of `Lease`; one that is not stored yet has the id 0."""

    id: int
    owner: str
    window_id: int
    state: str
    granted: int
    returned: int
    remaining: int


class Others(msgspec.Struct):
    """What workers have of a purse."""

    owners: int
    remaining: int


@contextmanager
def opened(connection: BaseDatabaseWrapper, stats: WriterStats | None = None) -> Iterator[Books]:
    """Books in a durable transaction of their own, written when the block ends."""
    with transaction.atomic(using=connection.alias, durable=True):
        books = Books(connection, stats)
        yield books
        books.save()


def make(connection: BaseDatabaseWrapper, capacities: Mapping[Key, int | None]) -> None:
    """Make the purses that are missing. Inside a transaction only before any purse is locked there."""
    items = [(*key, capacities[key]) for key in sorted(capacities, key=lock_order)]
    with connection.cursor() as cursor:
        cursor.execute(_statements(connection).make, (_json(items),))


def read(connection: BaseDatabaseWrapper, keys: Iterable[Key]) -> list[PurseRow]:
    """The purses of these keys as they are now, without a lock."""
    with connection.cursor() as cursor:
        cursor.execute(_statements(connection).read, (_json(list(keys)),))
        return [PurseRow(*values) for values in cursor.fetchall()]


def unfinished(connection: BaseDatabaseWrapper, spans: list[tuple[int, int, int, int]]) -> list[Key]:
    """The purses from which something may still be carried over, of pools and units in spans of window starts.

    A span is pool id, unit, first and last start. Something is free or leased there, and each window after it up to
    the last takes over the rest of the one before.
    """
    with connection.cursor() as cursor:
        cursor.execute(_statements(connection).unfinished, (_json(spans),))
        return [(pool_id, unit, start) for pool_id, unit, start in cursor.fetchall()]


def lock_order(key: Key) -> Key:
    """The order in which purses are locked, as a sort key."""
    return key[0], key[2], key[1]


class Books:
    """The purses and leases of one transaction, on the connection it runs on."""

    def __init__(self, connection: BaseDatabaseWrapper, stats: WriterStats | None = None) -> None:
        self._connection = connection
        self._using = connection.alias
        self._sql = _statements(connection)
        self._stats = stats
        self._purses: dict[Key, PurseRow] = {}
        self._by_id: dict[int, PurseRow] = {}
        self._stored: dict[Key, PurseRow] = {}
        self._leases: dict[tuple[str, int], LeaseRow] = {}
        self._stored_leases: dict[tuple[str, int], LeaseRow] = {}
        self._ended: list[int] = []
        self._entries: list[LedgerEntry] = []
        self._notes: list[LedgerOutboxEntry] = []

    # --- reading ----------------------------------------------------------------------------------------------------

    def purses(self, keys: Iterable[Key]) -> dict[Key, PurseRow]:
        """Lock the purses of these keys; those that do not exist are left out. Ask once, for all."""
        wanted = set(keys)
        if missing := wanted - self._purses.keys():
            with self._connection.cursor() as cursor:
                cursor.execute(self._sql.lock, (_json(list(missing)),))
                for values in cursor.fetchall():
                    row = PurseRow(*values)
                    self._purses[row.key] = self._by_id[row.id] = row
                    self._stored[row.key] = PurseRow(*values)  # as it was
        return {key: self._purses[key] for key in wanted if key in self._purses}

    def purse(self, key: Key) -> PurseRow | None:
        """Lock one purse; None when there is none."""
        return self.purses([key]).get(key)

    def read_leases(self, *owners: str) -> list[LeaseRow]:
        """The leases these owners have of the purses that are locked."""
        if self._by_id:
            with self._connection.cursor() as cursor:
                cursor.execute(self._sql.leases, (_json(owners), _json(list(self._by_id))))
                for values in cursor.fetchall():
                    row = LeaseRow(*values)
                    self._leases[row.owner, row.window_id] = row
                    self._stored_leases[row.owner, row.window_id] = LeaseRow(*values)
        return [row for (name, _window), row in self._leases.items() if name in owners]

    def lease(self, owner: str, purse: PurseRow) -> LeaseRow:
        """The owner's lease of a locked purse, made when there is none; call `read_leases` before."""
        lease = self._leases.get((owner, purse.id))
        if lease is None:
            lease = self._leases[owner, purse.id] = LeaseRow(0, owner, purse.id, Lease.State.ACTIVE.value, 0, 0, 0)
        return lease

    def purse_of(self, lease: LeaseRow) -> PurseRow:
        """The locked purse a lease is of."""
        return self._by_id[lease.window_id]

    def keys_of(self, owner: str, state: str | None = None) -> list[Key]:
        """The purses an owner has leases of (of that state), without a lock."""
        leases = Lease.objects.using(self._using).filter(owner=owner, **({"state": state} if state else {}))
        return list(leases.values_list("window__pool_id", "window__unit", "window__window_start"))

    def workers(self) -> dict[int, Others]:
        """How many workers have leases of each purse that is locked (by its row's id), and what could be asked back."""
        if not self._by_id:
            return {}
        with self._connection.cursor() as cursor:
            cursor.execute(self._sql.workers, (_json(list(self._by_id)), Lease.State.ACTIVE.value, f"%{NO_WORKER}%"))
            return {window_id: Others(owners, remaining) for window_id, owners, remaining in cursor.fetchall()}

    def others(self, owner: str, purse: PurseRow) -> Others:
        """What other workers have of a purse and could be asked to give back."""
        rows = Lease.objects.using(self._using).filter(window_id=purse.id, state=Lease.State.ACTIVE)
        sums = (
            rows.exclude(owner=owner)
            .exclude(owner__contains=NO_WORKER)
            .aggregate(owners=Count("pk"), remaining=Sum("remaining"))
        )
        return Others(sums["owners"], sums["remaining"] or 0)

    # --- writing ----------------------------------------------------------------------------------------------------

    def end_lease(self, lease: LeaseRow, *, spent: bool) -> int:
        """Close a lease: its rest goes back or, when `spent`, counts as charged; the row goes. The rest."""
        amount = transfers.end_lease(self.purse_of(lease), lease, spent=spent)
        del self._leases[lease.owner, lease.window_id]
        if lease.id:
            self._ended.append(lease.id)
        return amount

    def enter(
        self,
        kind: LedgerEntry.Kind,
        purse: PurseRow,
        amount: int,
        *,
        order_id: int | None = None,
        order_token: str | None = None,
        actor: str = "",
        note: str = "",
    ) -> None:
        """Note a change of a purse that is no usage; the change itself is the caller's."""
        self._entries.append(
            LedgerEntry(
                kind=kind,
                order_id=order_id,
                order_token=order_token,
                pool_id=purse.pool_id,
                unit=purse.unit,
                window_start=purse.window_start,
                amount=amount,
                actor=actor[:150],
                note=note[:500],
            )
        )
        data = {"amount": str(amount), "order_id": order_id, "note": note[:500]}
        self.note(f"balance.{kind.value}", purse, data, actor=actor[:150])

    def note(
        self, action: str, purse: PurseRow, data: Mapping[str, object], *, actor: str = "", level: str = "info"
    ) -> None:
        """Have the audit log tell of a change of a purse, with the change. Amounts are texts, in the purse's unit."""
        unit = "tokens" if purse.unit == Unit.TOKENS else "pico_usd" if purse.unit == Unit.PICO_USD else str(purse.unit)
        place = {"object": f"{_POOL}:{purse.pool_id}", "unit": unit, "window_start": str(purse.window_start)}
        told = {**place, **{name: value for name, value in data.items() if value not in (None, "")}}
        self._notes.append(
            LedgerOutboxEntry(action=action, actor=actor, target=f"pool {purse.pool_id}", level=level, data=told)
        )

    def save(self) -> None:
        """Write what was changed and raise the alerts that are due. `opened` does it."""
        purses = [row for key, row in self._purses.items() if row != self._stored[key]]
        leases = [row for key, row in self._leases.items() if row != self._stored_leases.get(key)]
        with self._connection.cursor() as cursor:
            if purses:
                cursor.execute(self._sql.save, (_json([_values(row, _SAVED) for row in purses]),))
            if leases:
                cursor.execute(self._sql.lease, (_json([_values(row, _LEASED) for row in leases]),))
        if self._ended:
            Lease.objects.using(self._using).filter(pk__in=self._ended).delete()
        if self._entries:
            LedgerEntry.objects.using(self._using).bulk_create(self._entries)
        if self._notes:
            LedgerOutboxEntry.objects.using(self._using).bulk_create(self._notes)
        for row in purses:
            self._raise_alerts(row)

    def _raise_alerts(self, row: PurseRow) -> None:
        before = self._stored[row.key]
        for percent in sorted(transfers.reached(row, row.alerts) - transfers.reached(before, before.alerts)):
            key = {"pool_id": row.pool_id, "unit": row.unit, "window_start": row.window_start, "percent": percent}
            amounts = {"committed": row.committed, "capacity": row.capacity}
            _alert, new = PoolAlert.objects.using(self._using).get_or_create(**key, defaults=amounts)
            if new:
                transaction.on_commit(partial(self._tell, {**key, **amounts}), using=self._using)

    def _tell(self, fields: dict[str, Any]) -> None:
        if self._stats is not None:
            self._stats.alerts += 1
        log.warning("pool_alert", extra=fields)


_POOL = Pool._meta.label_lower
_PURSES, _LEASES = (model._meta.db_table for model in (PoolWindow, Lease))
_PURSE_COLUMNS = ", ".join(f"w.{name}" for name in PurseRow.__struct_fields__)
_LEASE_COLUMNS = ", ".join(f"l.{name}" for name in LeaseRow.__struct_fields__)
_CASTS = {"unit": "smallint", "owner": "text", "state": "text", "alerts": "text"}  # all others: bigint


def _parts(names: tuple[str, ...], *, postgres: bool) -> str:
    """The select list that takes each array of a JSON text (`r`) apart into columns of these names."""
    if postgres:
        return ", ".join(f"(r ->> {at})::{_CASTS.get(name, 'bigint')} AS {name}" for at, name in enumerate(names))
    return ", ".join(f"json_extract(r.value, '$[{at}]') AS {name}" for at, name in enumerate(names))


class _Statements:
    """The statements over a JSON text of rows, in one database's words."""

    def __init__(self, *, postgres: bool) -> None:
        source = "jsonb_array_elements(%s::jsonb) AS r" if postgres else "json_each(%s) AS r"
        key = _parts(("pool_id", "unit", "window_start"), postgres=postgres)
        # On SQLite the few keys come first, then the index: its planner does not know how few they are.
        self.read = (
            f"SELECT {_PURSE_COLUMNS} FROM (SELECT {key} FROM {source}) AS k "  # noqa: S608
            f"{'' if postgres else 'CROSS '}JOIN {_PURSES} AS w ON w.pool_id = k.pool_id AND w.unit = k.unit "
            "AND w.window_start = k.window_start ORDER BY w.pool_id, w.window_start, w.unit"
        )
        span = _parts(("pool_id", "unit", "first_start", "last_start"), postgres=postgres)
        self.unfinished = (
            f"SELECT w.pool_id, w.unit, w.window_start FROM (SELECT {span} FROM {source}) AS k "  # noqa: S608
            f"{'' if postgres else 'CROSS '}JOIN {_PURSES} AS w ON w.pool_id = k.pool_id AND w.unit = k.unit "
            "AND w.window_start BETWEEN k.first_start AND k.last_start "
            f"WHERE (w.leased > 0 OR w.committed < w.capacity) AND NOT EXISTS (SELECT 1 FROM {_PURSES} AS x "
            "WHERE x.pool_id = w.pool_id AND x.unit = w.unit AND x.window_start > w.window_start "
            f"AND x.window_start <= k.last_start AND (x.carry_from IS NULL OR x.carry_from = {NO_SOURCE}))"
        )
        self.lock = self.read + (" FOR UPDATE OF w" if postgres else "")
        # On PostgreSQL arrays: its planner knows what an index can do for them.
        windows = "= ANY(ARRAY(SELECT jsonb_array_elements_text(%s::jsonb)::bigint))"
        owners = "= ANY(ARRAY(SELECT jsonb_array_elements_text(%s::jsonb)))"
        if not postgres:
            windows = owners = "IN (SELECT value FROM json_each(%s))"
        self.leases = f"SELECT {_LEASE_COLUMNS} FROM {_LEASES} AS l WHERE l.owner {owners} AND l.window_id {windows}"  # noqa: S608
        self.workers = (
            f"SELECT window_id, COUNT(*), CAST(SUM(remaining) AS bigint) FROM {_LEASES} "  # noqa: S608
            f"WHERE window_id {windows} AND state = %s AND owner NOT LIKE %s GROUP BY window_id"
        )
        made = _parts(("pool_id", "unit", "window_start", "capacity"), postgres=postgres)
        self.make = (
            f"INSERT INTO {_PURSES} (pool_id, unit, window_start, capacity, "  # noqa: S608
            f"window_end, adjusted, alerts, committed, leased, overrun) SELECT {made}, 0, 0, '', 0, 0, 0 "
            f"FROM {source} WHERE true ON CONFLICT (pool_id, window_start, unit) DO NOTHING"
        )
        saved = ", ".join(f"{name} = b.{name}" for name in _SAVED[1:])
        self.save = (
            f"UPDATE {_PURSES} SET {saved} FROM (SELECT {_parts(_SAVED, postgres=postgres)} FROM {source}) AS b "  # noqa: S608
            f"WHERE {_PURSES}.id = b.id"
        )
        self.lease = (
            f"INSERT INTO {_LEASES} ({', '.join(_LEASED)}) "  # noqa: S608
            f"SELECT {_parts(_LEASED, postgres=postgres)} FROM {source} WHERE true "
            "ON CONFLICT (owner, window_id) DO UPDATE SET "
            + ", ".join(f"{name} = excluded.{name}" for name in _LEASED[2:])
        )


_SAVED = ("id", "window_end", "capacity", "adjusted", "carry_from", "alerts", "committed", "leased", "overrun")
_LEASED = ("owner", "window_id", "state", "granted", "returned", "remaining")
_POSTGRES, _SQLITE = _Statements(postgres=True), _Statements(postgres=False)


def _values(row: msgspec.Struct, names: tuple[str, ...]) -> list[Any]:
    return [getattr(row, name) for name in names]


def _json(values: object) -> str:
    return _encode(values).decode()


def _statements(connection: BaseDatabaseWrapper) -> _Statements:
    return _POSTGRES if connection.vendor == "postgresql" else _SQLITE
