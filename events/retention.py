"""Deleting old events, in chunks of some milliseconds."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable

from django.db import router, transaction
from django.utils import timezone

from events.models import Event

CHUNK_ROWS = 500
PAUSE_S = 0.02  # between two chunks: others write, too


def cutoff(days: int) -> dt.datetime:
    """Events from before it are not kept for `days` days."""
    return timezone.now() - dt.timedelta(days=days)


def count(days: int) -> int:
    """How many events are older than that."""
    return Event.objects.filter(at__lt=cutoff(days)).count()


def delete_chunk(days: int, rows: int = CHUNK_ROWS) -> int:
    """Delete up to `rows` of the oldest events that are older than so many days; how many there were."""
    before = cutoff(days)
    using = router.db_for_write(Event)
    with transaction.atomic(using=using):
        oldest = Event.objects.using(using).order_by("id").values_list("id", "at")[:rows]
        found = [number for number, at in oldest if at < before]
        if found:
            Event.objects.using(using).filter(id__in=found).delete()
    return len(found)


def delete_all(days: int, *, pause: Callable[[float], object] = time.sleep) -> int:
    """Delete every event older than so many days; how many there were."""
    return in_chunks(delete_chunk, days, pause)


def in_chunks(delete: Callable[[int], int], days: int, pause: Callable[[float], object]) -> int:
    """Call `delete`, which says how many it deleted, until nothing is left that is older; how many there were."""
    total = 0
    while deleted := delete(days):
        total += deleted
        pause(PAUSE_S)
    return total
