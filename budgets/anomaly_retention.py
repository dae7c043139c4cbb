"""Deleting old anomalies, in chunks of some milliseconds. Open ones go as well: nobody will look at them any more."""

from __future__ import annotations

import time
from collections.abc import Callable

from django.conf import settings
from django.db import router, transaction

from budgets.models import Anomaly
from events.retention import CHUNK_ROWS, cutoff, in_chunks

IDLE_S = 60.0  # between two looks when there was nothing to do


def count(days: int) -> int:
    """How many anomalies are older than that."""
    return Anomaly.objects.filter(at__lt=cutoff(days)).count()


def delete_chunk(days: int, rows: int = CHUNK_ROWS) -> int:
    """Delete up to `rows` of the anomalies that are older than so many days; how many there were."""
    old = Anomaly.objects.filter(at__lt=cutoff(days)).order_by("at")
    with transaction.atomic(using=router.db_for_write(Anomaly)):
        found = list(old.values_list("id", flat=True)[:rows])
        if found:
            Anomaly.objects.filter(id__in=found).delete()
    return len(found)


def delete_all(days: int, *, pause: Callable[[float], object] = time.sleep) -> int:
    """Delete every anomaly older than so many days; how many there were."""
    return in_chunks(delete_chunk, days, pause)


class AnomalyRetention:
    """Control's part of it: a chunk at each look while there is something to delete."""

    def __init__(self, days: int | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`days` are kept; None = as the settings say. `clock` gives seconds."""
        self._days, self._clock = settings.HOOSH_ANOMALY_DAYS if days is None else days, clock
        self._next = 0.0

    def look(self) -> None:
        """Delete what is due. Cheap to call once a second."""
        now = self._clock()
        if now >= self._next and not delete_chunk(self._days):
            self._next = now + IDLE_S
