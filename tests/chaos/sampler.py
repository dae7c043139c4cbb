"""A thread that looks at all balances about every 50 ms and counts what must never be seen."""

from __future__ import annotations

import threading
import time

from tests.chaos.databases import AWAY, Database, fetch

PERIOD_S = 0.05

# One statement, so that it sees one moment.
_QUERY = """
SELECT w.pool_id, w.unit, w.window_start, w.capacity, w.committed, w.leased, w.overrun, COALESCE(l.remaining, 0)
FROM budgets_poolwindow w
LEFT JOIN (SELECT window_id, SUM(remaining) AS remaining FROM budgets_lease GROUP BY window_id) l ON l.window_id = w.id
WHERE w.committed + w.leased > w.capacity + w.overrun
   OR w.leased <> COALESCE(l.remaining, 0)
   OR w.committed < 0 OR w.leased < 0
   OR (w.overrun > 0 AND w.pool_id IN ({strict}))
"""


class Sampler(threading.Thread):
    """`violations` are the rows that broke a promise, the first few of them; `over` is how many there were."""

    def __init__(self, database: Database, strict_pools: list[int]) -> None:
        super().__init__(name="sampler", daemon=True)
        self.samples = 0
        self.away = 0
        self.over = 0
        self.violations: list[tuple] = []
        self._database = database
        self._query = _QUERY.format(strict=", ".join(map(str, strict_pools)) or "0")
        self._over = threading.Event()

    def run(self) -> None:
        """Look until `stop`; a database that is away is asked again."""
        while not self._over.is_set():
            try:
                connection = self._database.connect()
                try:
                    while not self._over.wait(PERIOD_S):
                        self._look(connection)
                finally:
                    connection.close()
            except AWAY:
                self.away += 1
                time.sleep(PERIOD_S)

    def stop(self) -> None:
        """End it, if it was started."""
        self._over.set()
        if self.ident is not None:
            self.join(10)

    def _look(self, connection: object) -> None:
        found = fetch(connection, self._query)
        self.samples += 1
        self.over += len(found)
        self.violations += found[: max(0, 10 - len(self.violations))]
