"""Tokens that callers set aside themselves: reserved, reported, expired. Each step is one transaction of the writer's.

A reservation is a row and, in every purse that refuses (the pool it names and the budgets above it), a lease of its
own, so that what is reserved is out of everybody else's reach whatever process dies. It counts tokens; money is not
held for it. The leases end when the caller reports what it used, or when the time is over. What is reported is charged
in any case: more than was reserved, or reported too late, is what happened all the same.
"""

from __future__ import annotations

import datetime as dt
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import NamedTuple, Protocol, TypeVar

from django.db import Error as DatabaseFailure
from django.db import IntegrityError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import QuerySet
from django.utils import timezone

from audit import batches
from budgets import ledger_sql, transfers, usage_leaf
from budgets.grants import RECALL_PAUSE_S
from budgets.ledger_books import NO_WORKER, Books, Key, PurseRow, make, opened
from budgets.models.ledger import PoolWindow, Reservation
from budgets.records import OBSERVED, PRICE_NONE, Basis, Draw, Unit, UsageRecord
from budgets.settle import WriterStoppedError

TOKENS_MAX = 10**12
TTL_S, TTL_MAX_S = 600, 86_400
OPEN_MAX = 100  # reservations of one key
RECALL_WAIT_S = 2.0  # for what lies idle at workers
RECALL_STEP_S = 0.05
LEDGER_WAIT_S = 5.0
EXPIRED_PER_RUN = 100
ENDPOINT = "tokens"  # of the usage rows
_REMEMBERED = 1024  # purses that were called back

_T = TypeVar("_T")
_State = Reservation.State


class ReservationError(Exception):
    """A reservation cannot be made or reported; the subclass says why."""


class LedgerAwayError(ReservationError):
    """The ledger does not answer, or does not know a pool yet. Nothing is known to have happened."""


class ReservationNotFoundError(ReservationError):
    """There is no such reservation, or no open one."""


class NotYourReservationError(ReservationError):
    """The reservation is another team's."""


class AlreadyReportedError(ReservationError):
    """The reservation was reported with another number."""


class TooManyReservationsError(ReservationError):
    """The key has `OPEN_MAX` open reservations."""


class OtherReservationError(ReservationError):
    """The idempotency key made a reservation of another kind."""


class Submits(Protocol):
    """What is needed of `budgets.settle.Writer`."""

    def submit(self, work: Callable[[BaseDatabaseWrapper], _T]) -> Future[_T]:
        """Run `work(connection)` in the writer's thread."""


class Share(NamedTuple):
    """A pool of the chain, and what it does at its limit ("hard", "soft", "observe")."""

    pool_id: int
    mode: str


class Wanted(NamedTuple):
    """A reservation to be made. `idempotency_key` is a digest."""

    id: str
    pool_id: int
    shares: tuple[Share, ...]
    team_id: int
    agent_id: int
    key_id: int
    tokens: int
    ttl_s: int = TTL_S
    idempotency_key: str | None = None


class Used(NamedTuple):
    """A report. Without an `id` it is about the key's oldest open reservation on the pool, which is then needed."""

    id: str
    pool_id: int | None  # None: whatever the id says
    team_id: int
    key_id: int
    actual: int


class Outcome(NamedTuple):
    """What came of a wish for a reservation."""

    made: Reservation | None
    available: int = 0  # when none was made: what the least of the pools had free, beside what workers have
    lacking: tuple[Key, ...] = ()
    elsewhere: bool = False  # workers have so much of every lacking purse that it would do


def new_id() -> str:
    """A fresh, time-ordered id of 16 bytes in hexadecimal; the usage row of the report has it as well."""
    return (time.time_ns() // 1000).to_bytes(8, "big").hex() + os.urandom(8).hex()


def owner_of(reservation_id: str) -> str:
    """The owner of a reservation's leases. There is no journal and no lock file of that name, so it never dies."""
    return f"reservation{NO_WORKER}{reservation_id}"


class Reservations:
    """What callers may do. Its methods wait for the writer's thread and must not be called in it."""

    def __init__(self, writer: Submits, *, recall: Callable[[int, int, int], object] = lambda *purse: None) -> None:
        """`recall(pool_id, unit, window_start)` asks the workers to return what they do not use."""
        self._writer, self._recall = writer, recall
        self._lock = threading.Lock()
        self._recalled_at: dict[Key, float] = {}  # monotonic clock

    def reserve(self, wanted: Wanted, *, wait_s: float = RECALL_WAIT_S) -> Outcome:
        """The reservation, or none when there is no room for it.

        What lies idle at workers is called back and waited for. With an idempotency key the reservation it made before
        is returned, in whatever state it is now. Raises `OtherReservationError` when that was a different one,
        `TooManyReservationsError` and `LedgerAwayError`.
        """
        ends_at = time.monotonic() + wait_s
        while True:
            outcome = self._do(lambda connection: _reserve(connection, wanted))
            if outcome.made is not None or not outcome.elsewhere or time.monotonic() >= ends_at:
                return outcome
            for purse in outcome.lacking:
                self._call_back(purse)
            time.sleep(RECALL_STEP_S)

    def report(self, used: Used) -> Reservation:
        """Charge what was used and end the reservation; the same report again changes nothing.

        Raises `ReservationNotFoundError`, `NotYourReservationError`, `AlreadyReportedError`, `LedgerAwayError`.
        """
        return self._do(lambda connection: _report(connection, used))

    def _call_back(self, purse: Key) -> None:
        """However many callers wait: each call-back is heard by all workers."""
        now = time.monotonic()
        with self._lock:
            if now - self._recalled_at.get(purse, -RECALL_PAUSE_S) < RECALL_PAUSE_S:
                return
            if len(self._recalled_at) >= _REMEMBERED:
                self._recalled_at.clear()
            self._recalled_at[purse] = now
        self._recall(*purse)

    def _do(self, work: Callable[[BaseDatabaseWrapper], _T]) -> _T:
        future = self._writer.submit(work)
        try:
            return future.result(LEDGER_WAIT_S)
        except (DatabaseFailure, WriterStoppedError) as exc:
            raise LedgerAwayError("the ledger is away") from exc
        except FutureTimeoutError as exc:
            future.cancel()
            raise LedgerAwayError("the ledger does not answer") from exc


class ReservationExpiry:
    """A job of the writer's: ends reservations whose time is over."""

    period_s = 1.0

    def run(self, connection: BaseDatabaseWrapper) -> None:
        """End some of them, the oldest first."""
        with opened(connection) as books:
            due = _rows(connection).select_for_update().filter(state=_State.OPEN, expires_at__lte=timezone.now())
            ended = list(due.order_by("expires_at", "id").values_list("pk", flat=True)[:EXPIRED_PER_RUN])
            owners = [owner_of(number) for number in ended]
            books.purses(key for owner in owners for key in books.keys_of(owner))
            for owner in owners:
                for lease in books.read_leases(owner):
                    books.end_lease(lease, spent=False)
            _rows(connection).filter(pk__in=ended).update(state=_State.EXPIRED)

    def owner_ended(self, connection: BaseDatabaseWrapper, owner: str) -> None:
        """Nothing: reservations belong to callers, not to workers."""


def current_windows(connection: BaseDatabaseWrapper, pool_ids: Iterable[int]) -> dict[int, int]:
    """The start of each pool's present window: its newest in the ledger."""
    starts: dict[int, int] = {}
    for pool_id in pool_ids:
        rows = PoolWindow.objects.using(connection.alias).filter(pool_id=pool_id, unit=Unit.TOKENS.value)
        start = rows.order_by("-window_start").values_list("window_start", flat=True).first()
        if start is not None:
            starts[pool_id] = start
    return starts


def _rows(connection: BaseDatabaseWrapper) -> QuerySet[Reservation]:
    return Reservation.objects.using(connection.alias)


def _reserve(connection: BaseDatabaseWrapper, wanted: Wanted) -> Outcome:
    try:
        return _reserve_once(connection, wanted)
    except IntegrityError:  # the control of another host has just made it
        return _reserve_once(connection, wanted)


def _reserve_once(connection: BaseDatabaseWrapper, wanted: Wanted) -> Outcome:
    with opened(connection) as books:
        if (made := _made_before(connection, wanted)) is not None:
            return Outcome(made)
        if _rows(connection).filter(key_id=wanted.key_id, state=_State.OPEN).count() >= OPEN_MAX:
            raise TooManyReservationsError(f"the key has {OPEN_MAX} open reservations")
        starts = current_windows(connection, (share.pool_id for share in wanted.shares))
        keys = {share: (share.pool_id, Unit.TOKENS.value, starts.get(share.pool_id, -1)) for share in wanted.shares}
        purses = books.purses(keys.values())
        if len(purses) < len(keys):
            raise LedgerAwayError("the ledger does not know a pool yet")
        held = {key: _hold(share, purses[key], wanted.tokens) for share, key in keys.items()}
        lacking = [key for key, amount in held.items() if amount > max(0, transfers.free_amount(purses[key]))]
        owner = owner_of(wanted.id)
        if lacking:
            elsewhere = all(_could_come_back(books, owner, purses[key], held[key]) for key in lacking)
            available = min(max(0, transfers.free_amount(purses[key])) for key in lacking)
            return Outcome(None, available, tuple(lacking), elsewhere)
        for key, amount in held.items():
            if amount:
                transfers.grant(purses[key], books.lease(owner, purses[key]), amount)
        return Outcome(_insert(connection, wanted, keys.values()))


def _made_before(connection: BaseDatabaseWrapper, wanted: Wanted) -> Reservation | None:
    """What the same call made already: its answer was lost, or its caller repeats it under an idempotency key."""
    made = _rows(connection).filter(pk=wanted.id).first()
    if made is None and wanted.idempotency_key is not None:
        made = _rows(connection).filter(key_id=wanted.key_id, idempotency_key=wanted.idempotency_key).first()
    if made is None:
        return None
    ttl_s = round((made.expires_at - made.created_at).total_seconds())
    if (made.pool_id, made.tokens, ttl_s) != (wanted.pool_id, wanted.tokens, wanted.ttl_s):
        raise OtherReservationError("the idempotency key made a different reservation")
    return made


def _hold(share: Share, purse: PurseRow, tokens: int) -> int:
    """What a reservation must have of a purse: all of it, a little where the pool only stops at its end, nothing."""
    if purse.capacity is None or share.mode == "observe":
        return 0
    return 1 if share.mode == "soft" else tokens


def _could_come_back(books: Books, owner: str, purse: PurseRow, amount: int) -> bool:
    return max(0, transfers.free_amount(purse)) + books.others(owner, purse).remaining >= amount


def _insert(connection: BaseDatabaseWrapper, wanted: Wanted, keys: Iterable[Key]) -> Reservation:
    now = timezone.now()
    return _rows(connection).create(
        id=wanted.id,
        pool_id=wanted.pool_id,
        draws=" ".join(f"{pool_id}@{start}" for pool_id, _unit, start in sorted(keys)),
        team_id=wanted.team_id,
        agent_id=wanted.agent_id,
        key_id=wanted.key_id,
        tokens=wanted.tokens,
        idempotency_key=wanted.idempotency_key,
        created_at=now,
        expires_at=now + dt.timedelta(seconds=wanted.ttl_s),
    )


def _report(connection: BaseDatabaseWrapper, used: Used) -> Reservation:
    with opened(connection) as books:
        ledger_sql.keep_out_rollups(connection)
        row = _find(connection, used)
        if row.state == _State.REPORTED:
            if row.actual != used.actual:
                raise AlreadyReportedError(f"it was reported with {row.actual}")
            return row
        keys = _draws(row)
        make(
            connection, dict.fromkeys(keys)
        )  # missing only if somebody deleted them: the truth is written all the same
        purses = books.purses(keys)
        leases = {lease.window_id: lease for lease in books.read_leases(owner_of(row.id))}
        held = {key: leases[purse.id].granted if purse.id in leases else OBSERVED for key, purse in purses.items()}
        record = _usage(row, used.actual, tuple(Draw(*key, held[key]) for key in keys))
        rows = ledger_sql.usage_rows([record])
        batch = batches.sealed(usage_leaf.records_of(rows))
        ledger_sql.insert_usage(connection, rows, batches.insert_batch(connection, owner_of(row.id), batch))
        for purse in purses.values():
            lease = leases.get(purse.id)
            if lease is None:
                transfers.charge_observed(purse, used.actual)
            else:
                transfers.charge(purse, lease, used.actual)
                books.end_lease(lease, spent=False)
        row.state, row.actual = _State.REPORTED, used.actual
        row.save(using=connection.alias, update_fields=["state", "actual"])
        return row


def _find(connection: BaseDatabaseWrapper, used: Used) -> Reservation:
    rows = _rows(connection).select_for_update()
    if used.id:
        row = rows.filter(pk=used.id).first()
        if row is not None and row.team_id != used.team_id:
            raise NotYourReservationError("it is another team's")
        if row is not None and used.pool_id not in (None, row.pool_id):
            row = None
    else:
        assert used.pool_id is not None
        mine = rows.filter(key_id=used.key_id, pool_id=used.pool_id, state=_State.OPEN)
        row = mine.order_by("created_at", "id").first()
    if row is None:
        raise ReservationNotFoundError("there is no such reservation")
    return row


def _draws(row: Reservation) -> list[Key]:
    """The purses a reservation was made on."""
    pairs = (draw.partition("@") for draw in row.draws.split())
    return [(int(pool_id), Unit.TOKENS.value, int(start)) for pool_id, _at, start in pairs]


def _usage(row: Reservation, actual: int, draws: tuple[Draw, ...]) -> UsageRecord:
    """The usage row of a report. Its id is the reservation's, so that no report can be charged twice."""
    start = next((draw.window_start for draw in draws if draw.pool_id == row.pool_id), 0)
    return UsageRecord(
        rid=bytes.fromhex(row.id),
        attempt=0,
        at_us=time.time_ns() // 1000,
        key_id=row.key_id,
        agent_id=row.agent_id,
        team_id=row.team_id,
        pool_id=row.pool_id,
        window_start=start,
        route_id=0,
        provider_id=0,
        endpoint=ENDPOINT,
        model="",
        upstream_model="",
        status=200,
        error="",
        stream=False,
        input_tokens=0,
        cached_tokens=0,
        cache_write_tokens=0,
        output_tokens=0,
        reasoning_tokens=0,
        tokens=actual,
        held=row.tokens,
        cost_pico=0,
        price_id=PRICE_NONE,
        basis=Basis.REPORTED,
        latency_us=0,
        ttft_us=0,
        config_version=0,
        shape=b"",
        attempts=1,
        draws=draws,
    )
