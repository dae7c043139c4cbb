"""When each credential was last used: what workers tell, kept in the rows about once a minute.

Control writes it beside the services: it is no part of the configuration, so nothing is published and nothing is
recorded for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

from django.utils import timezone

from providers.models import Credential

EVERY_S = 30  # between two looks, in calls of `Uses.look`, which come once a second
_GRAIN = timedelta(minutes=1)


class Uses:
    """Control's piece of work: reads the workers' status, writes what is newer than the row by a minute or more."""

    def __init__(self, statuses: Callable[[], Iterable[Mapping[str, Any]]], *, every: int = EVERY_S) -> None:
        """`statuses` gives one mapping per worker; its "credentials" are seconds since the last use, by id as text."""
        self._statuses, self._every = statuses, every
        self._calls = 0

    def look(self) -> None:
        """Called once a second; works on each `every`th call, on the first too."""
        due = self._calls % self._every == 0
        self._calls += 1
        if due:
            self.write()

    def write(self) -> int:
        """Write what is new; how many rows that were."""
        ago: dict[int, float] = {}
        for status in self._statuses():
            for name, seconds in (status.get("credentials") or {}).items():
                ago[int(name)] = min(float(seconds), ago.get(int(name), math.inf))
        if not ago:
            return 0
        now, written = timezone.now(), 0
        for number, before in Credential.objects.filter(pk__in=ago).values_list("pk", "used_at"):
            at = now - timedelta(seconds=ago[number])
            if before is None or at - before >= _GRAIN:
                written += Credential.objects.filter(pk=number).update(used_at=at)
        return written
