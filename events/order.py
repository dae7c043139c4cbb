"""In which order events may be read while others are being written.

Ids are given at the insert, but a transaction with a smaller id may commit after one with a greater id. On SQLite that
cannot happen: one transaction writes at a time. On PostgreSQL every writer holds a shared lock until its end, which
keeps nobody waiting; a reader that misses an id knows that nobody will fill the gap any more when it gets the lock for
itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from django.db import connections, router, transaction
from django.db.models import QuerySet

from events.models import Event

_LOCK = 0x686F_6F73_6865_76  # any number no one else uses


def writing(using: str) -> None:
    """Called in a writer's transaction before its first insert."""
    if connections[using].vendor == "postgresql":
        with connections[using].cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", (_LOCK,))


def after(cursor: int, limit: int) -> tuple[list[Event], bool]:
    """Up to `limit` events behind the one with the id `cursor`, oldest first, and whether later ones must wait.

    Nothing with an id below those returned will ever appear any more.
    """
    using = router.db_for_read(Event)
    rows = list(_behind(using, cursor, limit))
    if connections[using].vendor != "postgresql" or _whole(cursor, rows):
        return rows, False
    with transaction.atomic(using=using):
        if _alone(using):
            return list(_behind(using, cursor, limit)), False
    return _beginning(cursor, rows), True


def between(cursor: int, end: int, limit: int) -> list[Event]:
    """Up to `limit` events with ids above `cursor` and below `end`, oldest first. `after` must have come to `end`."""
    rows = Event.objects.using(router.db_for_read(Event)).filter(id__gt=cursor, id__lt=end)
    return list(rows.order_by("id")[:limit])


def newest() -> int:
    """The id behind which everything still to come will stand; 0 = nothing has happened yet.

    On PostgreSQL, while somebody is writing, one that is still to be committed may stand before it.
    """
    using = router.db_for_read(Event)
    found = Event.objects.using(using).order_by("-id").values_list("id", flat=True).first()
    return found or 0


def _behind(using: str, cursor: int, limit: int) -> QuerySet[Event]:
    return Event.objects.using(using).filter(id__gt=cursor).order_by("id")[:limit]


def _whole(cursor: int, rows: Sequence[Event]) -> bool:
    return not rows or rows[-1].pk - cursor == len(rows)


def _beginning(cursor: int, rows: Sequence[Event]) -> list[Event]:
    """Those before the first gap."""
    return [row for number, row in enumerate(rows, cursor + 1) if row.pk == number]


def _alone(using: str) -> bool:
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,))
        return bool(cursor.fetchone()[0])
