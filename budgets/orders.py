"""What operators order to be done to the ledger: placing orders, and the job that carries each out exactly once.

An order is a row of the site's database, placed together with its audit entry. The writer's thread carries it out in a
transaction of the ledger that also leaves the order's token there (`LedgerEntry.order_token`, or `LedgerState` for a
reporting period), and then has the row marked. Control may die anywhere in between: an order that is found open again
changes nothing a second time. Whether somebody may place an order is for the caller to check.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import DatabaseError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from audit.record import record
from budgets import order_work, retention, rollups
from budgets.models.access import LedgerOrder
from budgets.models.ledger import LedgerState
from budgets.order_work import DONE, LATER, REFUSED, Outcome
from budgets.outages import is_outage
from budgets.pace import Chunk
from budgets.records import Unit
from budgets.transfers import CAPACITY_LIMIT

log = logging.getLogger("hoosh.ledger")

PERIOD_S = 0.5
AT_ONCE = 20  # orders taken in one run
POLL_S = 0.05
WAIT_S = 10.0
NOTE_LENGTH, ACTOR_LENGTH, RESULT_LENGTH = 500, 150, 500
DAYS_LIMIT = 3650
_OWNER = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_MARK = "order:"  # begins the names of LedgerState rows that say an order was carried out


# Placing


def place(kind: str, payload: dict[str, Any], *, actor: str, note: str = "") -> LedgerOrder:
    """Record an order and its audit entry. `ValidationError` when it makes no sense, whatever the ledger holds.

    Kinds and payloads: correction {pool_id, unit, window_start, amount}, transfer {from_pool, to_pool, unit, amount},
    write_off, release and replay {owner}, period {}, prune {days}. Amounts are tokens or pico-USD.
    """
    check = _CHECKS.get(kind)
    if check is None:
        raise ValidationError(f"There is no order of the kind “{kind}”.", code="kind")
    if len(note) > NOTE_LENGTH:
        raise ValidationError(f"A note has at most {NOTE_LENGTH} characters.", code="note")
    values = check(payload)
    with transaction.atomic():
        order = LedgerOrder.objects.create(kind=kind, payload=values, actor=actor[:ACTOR_LENGTH], note=note)
        target = f"order {order.pk}"
        record(f"ledger.{kind}", actor=actor, target=target, data={"order": order.pk, **values, "note": note})
    return order


def wait(order: LedgerOrder, timeout_s: float = WAIT_S) -> LedgerOrder:
    """The order once it is done or refused, or as it is when the time is over. Not inside a transaction."""
    ends_at = time.monotonic() + timeout_s
    while True:
        order.refresh_from_db()
        if order.state != LedgerOrder.State.OPEN or time.monotonic() >= ends_at:
            return order
        time.sleep(POLL_S)


def _numbers(payload: dict[str, Any], *names: str) -> dict[str, int]:
    for name in names:
        value = payload.get(name)
        if type(value) is not int or abs(value) > CAPACITY_LIMIT:
            raise ValidationError(f"{name} must be a whole number of at most {CAPACITY_LIMIT:,}.", code=name)
    if "unit" in names and payload["unit"] not in set(Unit):
        raise ValidationError("unit must be 0 (tokens) or 1 (pico-USD).", code="unit")
    unknown = sorted(set(payload) - set(names))
    if unknown:
        raise ValidationError(f"Nobody knows {', '.join(unknown)}.", code="unknown")
    return {name: int(payload[name]) for name in names}


def _correction(payload: dict[str, Any]) -> dict[str, Any]:
    values = _numbers(payload, "pool_id", "unit", "window_start", "amount")
    if not values["amount"]:
        raise ValidationError("A correction of zero changes nothing.", code="amount")
    return values


def _transfer(payload: dict[str, Any]) -> dict[str, Any]:
    values = _numbers(payload, "from_pool", "to_pool", "unit", "amount")
    if values["amount"] <= 0:
        raise ValidationError("What is transferred must be more than zero.", code="amount")
    if values["from_pool"] == values["to_pool"]:
        raise ValidationError("A transfer needs two pools.", code="to_pool")
    return values


def _owner(payload: dict[str, Any]) -> dict[str, Any]:
    owner = payload.get("owner")
    if set(payload) != {"owner"} or not isinstance(owner, str) or not _OWNER.match(owner):
        raise ValidationError("owner must be the name of a worker's incarnation.", code="owner")
    return {"owner": owner}


def _nothing(payload: dict[str, Any]) -> dict[str, Any]:
    return _numbers(payload)


def _prune(payload: dict[str, Any]) -> dict[str, Any]:
    values = _numbers(payload, "days")
    if not 1 <= values["days"] <= DAYS_LIMIT:
        raise ValidationError(f"days must be between 1 and {DAYS_LIMIT}.", code="days")
    return values


_CHECKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "correction": _correction,
    "transfer": _transfer,
    "write_off": _owner,
    "release": _owner,
    "replay": _owner,
    "period": _nothing,
    "prune": _prune,
}


# Carrying out


class Orders:
    """The writer's job that carries out open orders, oldest first.

    Rows of the site's database are marked by a thread of their own: an operator's long transaction there must not hold
    up the writer.
    """

    def __init__(self, journals: Path | None = None) -> None:
        """`journals` is where workers' journals lie, by default as the settings say."""
        self.period_s = PERIOD_S
        self._journals = journals or settings.HOOSH_JOURNAL_DIR
        self._marking: dict[int, threading.Thread] = {}  # carried out, the row not marked yet
        self._prunes: dict[int, _Prune] = {}
        self._tidied = False

    def run(self, connection: BaseDatabaseWrapper) -> None:
        """Carry out what is open."""
        being_marked = set(self._marking)  # before the rows are read, or one marked meanwhile would be taken once more
        self.period_s = PERIOD_S
        try:
            found = list(LedgerOrder.objects.filter(state=LedgerOrder.State.OPEN).order_by("pk")[:AT_ONCE])
        except DatabaseError as exc:
            if connection.alias == "default":
                raise
            log.error("orders_unreadable", extra={"reason": f"{type(exc).__name__}: {exc}"})
            connections["default"].close()
            return
        for order in found:
            if order.pk not in being_marked:
                self._take(connection, order)
        if not self._tidied and not being_marked:
            self._tidy(connection)

    def owner_ended(self, connection: BaseDatabaseWrapper, owner: str) -> None:
        """Nothing here belongs to a worker."""

    def finish(self, timeout_s: float = WAIT_S) -> None:
        """Wait until the rows of all orders that were carried out are marked."""
        for thread in list(self._marking.values()):
            thread.join(timeout_s)

    def _take(self, connection: BaseDatabaseWrapper, order: LedgerOrder) -> None:
        try:
            outcome = self._carry_out(connection, order)
        except Exception as exc:
            if is_outage(exc):
                raise  # the order stays open
            log.exception("order_failed", extra={"order": order.pk, "kind": order.kind})
            self._prunes.pop(order.pk, None)
            outcome = Outcome(REFUSED, f"It failed: {type(exc).__name__}. The log says more.")
        if outcome.state != LATER:
            log.info("order_" + outcome.state, extra={"order": order.pk, "kind": order.kind, "result": outcome.text})
            thread = threading.Thread(target=self._mark, args=(order.pk, outcome), name="order-mark", daemon=True)
            self._marking[order.pk] = thread
            thread.start()

    def _carry_out(self, connection: BaseDatabaseWrapper, order: LedgerOrder) -> Outcome:
        match order.kind:
            case "correction":
                return order_work.correct(connection, order)
            case "transfer":
                return order_work.transfer(connection, order)
            case "write_off" | "release":
                return order_work.resolve(connection, order, self._journals)
            case "replay":
                return order_work.replay(connection, order, self._journals)
            case "period":
                period = rollups.start_period(connection, order=f"{_MARK}{order.token}")
                if period is None:
                    self.period_s = rollups.AGAIN_S
                    return Outcome(LATER)
                return Outcome(DONE, f"Reporting period {period} began.")
            case "prune":
                return self._prune_on(connection, order)
        return Outcome(REFUSED, f"There is no order of the kind “{order.kind}”.")

    def _prune_on(self, connection: BaseDatabaseWrapper, order: LedgerOrder) -> Outcome:
        """One chunk; the order stays open until nothing is left to delete."""
        days = order.payload["days"]
        going = self._prunes.setdefault(order.pk, _Prune(retention.cutoff_s(days, time.time()), retention.chunk()))
        with going.chunk as rows:
            deleted = retention.delete_usage(connection, before_s=going.before_s, limit=rows)
        if deleted or retention.give_back_pages(connection):
            self._prunes[order.pk] = going._replace(deleted=going.deleted + deleted)
            self.period_s = retention.PAUSE_S
            return Outcome(LATER)
        del self._prunes[order.pk]
        return Outcome(DONE, f"{going.deleted:,} usage rows deleted.")

    def _mark(self, order_id: int, outcome: Outcome) -> None:
        try:
            LedgerOrder.objects.filter(pk=order_id, state=LedgerOrder.State.OPEN).update(
                state=outcome.state, result=outcome.text[:RESULT_LENGTH], done_at=timezone.now()
            )
        except DatabaseError as exc:  # it is taken, and marked, once more
            log.error("order_unmarked", extra={"order": order_id, "reason": f"{type(exc).__name__}: {exc}"})
        finally:
            connections["default"].close()
            self._marking.pop(order_id, None)

    def _tidy(self, connection: BaseDatabaseWrapper) -> None:
        """Once per process: forget that orders were carried out whose rows say so by now."""
        names = LedgerState.objects.using(connection.alias).filter(name__startswith=_MARK)
        tokens = {name.removeprefix(_MARK) for name in names.values_list("name", flat=True)}
        still_open = set(LedgerOrder.objects.filter(token__in=tokens, state="open").values_list("token", flat=True))
        done = [f"{_MARK}{token}" for token in tokens - still_open]
        LedgerState.objects.using(connection.alias).filter(name__in=done).delete()
        self._tidied = True


class _Prune(NamedTuple):
    before_s: float
    chunk: Chunk
    deleted: int = 0
