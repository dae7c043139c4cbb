"""Usage rows as the records the audit log commits to, read batch by batch in one pass over the table.

Rows of a batch lie beside each other, because one transaction wrote them. No index finds them by their batch (it would
cost every request a little): the first one is looked for by bisection, then the table is read forwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from audit.models import UsageBatch
from budgets.models import Usage
from budgets.usage_leaf import record_of

_CHUNK = 2000
AHEAD = 50_000  # rows read beyond a batch that is not complete before it is given up: rows are missing
MARGIN = 5_000  # rows by which writers on several hosts may get mixed


class UsageRecords:
    """Give it batches in the order of the log; it gives what is stored of each."""

    def __init__(self) -> None:
        self._after = -1  # the last row read; -1: not begun
        self._kept: dict[int, list[bytes]] = {}  # records by batch
        self._ended = False

    def __call__(self, batches: Sequence[UsageBatch]) -> Iterator[list[bytes]]:
        """The records of each batch, in the order of their rows."""
        for batch in batches:
            if self._after < 0:
                self._after = max(0, _first_of(batch.pk) - MARGIN)
            self._read_until(batch)
            yield self._kept.pop(batch.pk, [])
            for old in [number for number in self._kept if number < batch.pk - MARGIN]:
                del self._kept[old]

    def _read_until(self, batch: UsageBatch) -> None:
        """Read on until the batch is complete, or surely will not be."""
        beyond = 0
        while len(self._kept.get(batch.pk, ())) < batch.count and not self._ended and beyond < AHEAD:
            rows = list(Usage.objects.filter(pk__gt=self._after).order_by("pk")[:_CHUNK])
            for row in rows:
                if row.batch is not None:
                    self._kept.setdefault(row.batch, []).append(record_of(row))
                    beyond += row.batch > batch.pk
            self._ended = len(rows) < _CHUNK
            self._after = rows[-1].pk if rows else self._after


def _first_of(batch: int) -> int:
    """A row of this batch or one shortly before."""
    low, high = 0, Usage.objects.order_by("-pk").values_list("pk", flat=True).first() or 0
    while low < high:
        middle = (low + high) // 2
        rows = Usage.objects.filter(pk__gte=middle).exclude(batch=None).order_by("pk")
        found = rows.values_list("batch", flat=True).first()
        if found is not None and found < batch:
            low = middle + 1
        else:
            high = middle
    return low
