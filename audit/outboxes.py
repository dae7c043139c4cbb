"""What waits in the outboxes, in the order of its numbers, and what is missing there."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError, connections, router, transaction

from audit.models import Counter, LedgerOutboxCounter, LedgerOutboxEntry, Noted, OutboxCounter, OutboxEntry

GRACE_S = 60.0  # a missing number may still come for so long
_DELETE_WAIT_MS = 10  # for the lock of another database file: ledger work waits for this thread


@dataclass(slots=True)
class Waiting:
    """The next rows, without gaps; `gap` is the range of numbers that are gone for good, in front of them."""

    rows: list[Any]  # rows of `Noted`
    gap: tuple[int, int] | None = None
    more: bool = False


class Outbox:
    """One outbox. All methods belong to the thread of the ledger's writer."""

    def __init__(
        self,
        source: str,
        entries: type[Noted],
        counter: type[Counter],
        *,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` is monotonic."""
        self.source = source
        self._entries, self._counter = entries, counter
        self._grace_s, self._clock = grace_s, clock
        self._missing: tuple[int, float] | None = None  # a number that is missing, and since when
        self._kept_to = 0  # rows up to this number could not be deleted yet

    @property
    def using(self) -> str:
        """The database it is in."""
        return router.db_for_write(self._entries)

    def look(self, last: int, limit: int) -> Waiting:
        """What waits behind the number `last` that was logged."""
        # The counter first: every number it shows was committed, so its row is there unless somebody took it out.
        highest = self._highest()
        rows = list(self._entries._default_manager.filter(number__gt=last).order_by("number")[:limit])
        whole = [row for at, row in enumerate(rows) if row.number == last + 1 + at]
        if len(whole) == len(rows) and (whole or highest <= last):
            self._missing = None
            return Waiting(whole, more=len(rows) == limit)
        if whole:  # up to the gap
            return Waiting(whole, more=True)
        if self._missing is None or self._missing[0] != last + 1:
            self._missing = (last + 1, self._clock())
        if self._clock() - self._missing[1] < self._grace_s:
            return Waiting([])
        self._missing = None
        return Waiting([], gap=(last + 1, (rows[0].number or 0) - 1 if rows else highest), more=True)

    def repaired(self, last: int) -> int | None:
        """To be called once, before the first `look`: the counter it had, when it was behind what was logged.

        Then the database is an older one than the log: numbers continue behind `last`, and rows that wait get new ones
        in their order. So do rows that no trigger numbered.
        """
        if self._highest() >= last and not self._entries._default_manager.filter(number=None).exists():
            return None
        with transaction.atomic(using=self.using):
            highest = self._highest()
            waiting = self._entries._default_manager.order_by("number", "pk")
            behind = highest < last
            strays = list((waiting if behind else waiting.filter(number=None)).values_list("pk", flat=True))
            number = max(highest, last)
            if not behind and not strays:
                return None
            waiting.filter(pk__in=strays).update(number=None)
            for key in strays:
                number += 1
                waiting.filter(pk=key).update(number=number)
            if not self._counter._default_manager.filter(pk=1).update(value=number):
                self._counter._default_manager.create(**{"pk": 1, "value": number})
        return highest if behind else None

    def delete(self, to: int, *, inside: str = "") -> None:
        """Delete the rows up to this number, which are logged; later when another process has the lock just now.

        `inside` is the database a transaction is open on: an outbox there goes with it.
        """
        using = self.using
        if inside:
            if inside == using:
                self._gone(to)
            return
        self._kept_to = max(self._kept_to, to)
        if not self._kept_to:
            return
        connection = connections[using]
        try:
            if connection.vendor == "sqlite":
                with connection.cursor() as cursor:
                    cursor.execute(f"PRAGMA busy_timeout = {_DELETE_WAIT_MS}")
            self._gone(self._kept_to)
            self._kept_to = 0
        except DatabaseError as exc:
            if not _is_locked(exc):
                raise
        finally:
            if connection.vendor == "sqlite":
                wait_ms = int(connection.settings_dict["OPTIONS"].get("timeout", 5) * 1000)
                with connection.cursor() as cursor:
                    cursor.execute(f"PRAGMA busy_timeout = {wait_ms}")

    def _gone(self, to: int) -> None:
        self._entries._default_manager.filter(number__lte=to).order_by().delete()

    def _highest(self) -> int:
        return self._counter._default_manager.filter(pk=1).values_list("value", flat=True).first() or 0


def both(**options: Any) -> tuple[Outbox, Outbox]:
    """The site's and the ledger's."""
    return (
        Outbox("site", OutboxEntry, OutboxCounter, **options),
        Outbox("ledger", LedgerOutboxEntry, LedgerOutboxCounter, **options),
    )


def _is_locked(exc: DatabaseError) -> bool:
    cause = exc.__cause__
    code = getattr(cause, "sqlite_errorcode", 0) if isinstance(cause, sqlite3.OperationalError) else 0
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
