"""Control's eye on the database: what changed since the last look is pushed to every worker.

`Feed` is a thread that polls each 250 ms (a handful of small queries) and at once when woken. It keeps what it has
pushed, so that a worker that connects later is told the same without another query.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from budgets.records import KeyRecord, PoolRecord, PriceRecord
from hoosh_site.link import AccessPush, CardsPush, ConfigPush, FromControl, HealthPush, SecretsPush
from providers.config import CardDoc

log = logging.getLogger("hoosh.feed")

PERIOD_S = 0.25
SLOW_PERIOD_S = 2.0  # for what only probes change


class Source(Protocol):
    """Where the feed reads. Every method may raise; the feed keeps what it had and tries again."""

    def counters(self) -> dict[str, int]:
        """Change counters by name: "secrets", "cards", "prices", "access" at least."""

    def config(self) -> tuple[int, bytes] | None:
        """Number and packed document of the configuration in force."""

    def secrets(self) -> dict[int, str]:
        """Ciphertexts by credential id."""

    def cards(self) -> list[CardDoc]:
        """All model cards."""

    def prices(self) -> list[PriceRecord]:
        """All dated prices."""

    def discovered(self) -> dict[int, list[str]]:
        """Model names by provider id."""

    def down(self) -> list[int]:
        """Ids of providers whose probes fail."""

    def access_since(self, seq: int) -> tuple[int, list[KeyRecord], list[PoolRecord]]:
        """Keys and pools changed after `seq` (0 = all), and the number to ask with next time."""

    def capacities(self) -> list[tuple[int, int]]:
        """(pool id, capacity in tokens) of every pool."""

    def windows(self) -> dict[int, int]:
        """Capacities by pool id as the ledger has them already."""

    def reimport(self) -> None:
        """Import the configuration file again if it changed."""

    def failed(self) -> None:
        """A look ended in an exception: drop what may be broken, such as database connections."""


class DatabaseSource:
    """The real source: the site database, on one connection that is kept until something fails."""

    def counters(self) -> dict[str, int]:
        """See `Source`."""
        from budgets import access
        from providers import feed

        return {**feed.sequences_now(), **access.sequences()}

    def config(self) -> tuple[int, bytes] | None:
        """See `Source`."""
        from providers import publish

        return publish.latest()

    def secrets(self) -> dict[int, str]:
        """See `Source`."""
        from providers import feed

        return feed.secrets()

    def cards(self) -> list[CardDoc]:
        """See `Source`."""
        from providers import feed

        return feed.cards()[1]

    def prices(self) -> list[PriceRecord]:
        """See `Source`."""
        from budgets import access

        return access.prices()

    def discovered(self) -> dict[int, list[str]]:
        """See `Source`."""
        from providers import feed

        return feed.discovered()

    def down(self) -> list[int]:
        """See `Source`."""
        from gateway import probes

        return probes.down_providers()

    def access_since(self, seq: int) -> tuple[int, list[KeyRecord], list[PoolRecord]]:
        """See `Source`."""
        from budgets import access

        return access.changes_since(seq)

    def capacities(self) -> list[tuple[int, int]]:
        """See `Source`."""
        from budgets import access

        return access.pool_capacities()

    def windows(self) -> dict[int, int]:
        """See `Source`."""
        from budgets.models import PoolWindow

        return dict(PoolWindow.objects.filter(window_start=0).values_list("pool_id", "capacity"))

    def reimport(self) -> None:
        """See `Source`."""
        from django.conf import settings

        if settings.HOOSH_CONFIG:
            from hoosh_site.importing import import_if_changed

            import_if_changed(settings.HOOSH_CONFIG)

    def failed(self) -> None:
        """See `Source`."""
        from django.db import connections

        connections.close_all()


class Feed(threading.Thread):
    """Polls a source and pushes what changed. `hello` may be called from any thread, and so may `wake`."""

    def __init__(
        self,
        source: Source,
        push: Callable[[Sequence[FromControl]], None],
        *,
        sync_pools: Callable[[Mapping[int, int]], None] = lambda capacities: None,
        period_s: float = PERIOD_S,
    ) -> None:
        """`push(messages)` is called in this thread. `sync_pools` is given capacities by pool id that are new or
        changed and must have put them into the ledger when it returns: then workers hear of the pools. It may raise:
        then everything is pushed all the same, and the capacities are tried again every two seconds."""
        super().__init__(name="feed", daemon=True)
        self.polled = threading.Event()  # set after the first look that succeeded
        self._source, self._push, self._sync_pools, self._period_s = source, push, sync_pools, period_s
        self._orders: queue.SimpleQueue[str] = queue.SimpleQueue()  # its put is safe in signal handlers
        self._lock = threading.Lock()
        self._counters: dict[str, int] = {}
        self._access_seq = -1
        self._keys: dict[int, KeyRecord] = {}
        self._pools: dict[int, PoolRecord] = {}
        self._capacities: dict[int, int] | None = None  # as the ledger has them; None: not known
        self._wanted: dict[int, int] = {}  # as the site has them
        self._sync_at = 0.0  # when to try again to put them into the ledger; 0: nothing to do
        self._said: dict[type, FromControl] = {}
        self._slow_at = 0.0
        self._complaint = ""

    def wake(self, *, reimport: bool = False) -> None:
        """Look now; with `reimport` also at the configuration file."""
        self._orders.put("reimport" if reimport else "look")

    def stop(self) -> None:
        """End the thread after the look in progress."""
        self._orders.put("stop")

    def hello(self) -> list[FromControl]:
        """What a worker that has just connected must know, credentials before the configuration that needs them.

        Empty before the first look: the worker then gets it as the ordinary push.
        """
        with self._lock:
            if self._access_seq < 0:
                return []
            access = AccessPush(self._access_seq, True, list(self._keys.values()), list(self._pools.values()))
            order = (SecretsPush, CardsPush, AccessPush, ConfigPush, HealthPush)
            said = {**self._said, AccessPush: access}
        return [said[kind] for kind in order if kind in said]

    def run(self) -> None:
        """Poll until stopped. No exception ends the thread."""
        order = "reimport"
        while order != "stop":
            try:
                if order == "reimport":
                    self._reimport()
                self.look(everything=order != "")
                self._complaint = ""
                self.polled.set()
            except Exception as exc:
                self._complain(exc)
            order = self._next_order()

    def look(self, *, everything: bool = True) -> None:
        """One poll. Without `everything` the parts that only probes change are looked at every two seconds only."""
        source = self._source
        slow = everything or time.monotonic() >= self._slow_at
        if slow:
            self._slow_at = time.monotonic() + SLOW_PERIOD_S
        counters = source.counters()
        before, said = self._counters, self._said
        news: list[FromControl] = []
        if SecretsPush not in said or counters.get("secrets") != before.get("secrets"):
            news.append(SecretsPush(source.secrets()))
        news += self._cards(counters, slow=slow)
        access, accept = self._access(counters.get("access", 0))
        news += access
        published = source.config()
        known = said.get(ConfigPush)
        if published is not None and (not isinstance(known, ConfigPush) or known.version != published[0]):
            news.append(ConfigPush(*published))
        if slow:
            health = HealthPush(source.down())
            news += [health] if said.get(HealthPush) != health else []
        with self._lock:  # only now: a look that failed half-way is done again from where the last one ended
            accept()
            self._counters = counters
            self._said = {**said, **{type(message): message for message in news if message not in access}}
        if news:
            self._push(news)
        if self._sync_at and time.monotonic() >= self._sync_at:
            self._sync_ledger()

    def _cards(self, counters: dict[str, int], *, slow: bool) -> list[FromControl]:
        known = self._said.get(CardsPush)
        moved = any(counters.get(name) != self._counters.get(name) for name in ("cards", "prices"))
        if isinstance(known, CardsPush) and not moved:
            if not slow:
                return []
            models = self._source.discovered()
            return [CardsPush(known.cards, known.prices, models)] if models != known.models else []
        return [CardsPush(self._source.cards(), self._source.prices(), self._source.discovered())]

    def _access(self, counter: int) -> tuple[list[FromControl], Callable[[], None]]:
        """What changed, and what makes it known here; call that under the lock once nothing can fail any more."""
        if counter == self._access_seq:
            return [], lambda: None
        full = self._access_seq < 0 or counter < self._access_seq  # a smaller number: the database was restored
        seq, keys, pools = self._source.access_since(0 if full else self._access_seq)
        self._wanted = capacities = dict(self._source.capacities())
        self._sync_ledger()
        pools = [pool for pool in pools if pool.id in capacities]
        old_keys, old_pools = ({}, {}) if full else (self._keys, self._pools)
        all_keys = {**old_keys, **{key.id: key for key in keys}}
        all_pools = {**old_pools, **{pool.id: pool for pool in pools}}
        gone = all_pools.keys() - capacities.keys()
        for pool_id in gone:
            del all_pools[pool_id]

        def accept() -> None:
            self._keys, self._pools, self._access_seq = all_keys, all_pools, seq

        if gone:  # a change cannot say that a pool is no more, a full list can
            return [AccessPush(seq, True, list(all_keys.values()), list(all_pools.values()))], accept
        return [AccessPush(seq, full, keys, pools)], accept

    def _sync_ledger(self) -> None:
        """Put new capacities into the ledger. While that is away, workers still hear of revocations and the rest."""
        wanted = self._wanted
        try:
            known = self._source.windows() if self._capacities is None else self._capacities
            changed = {pool_id: capacity for pool_id, capacity in wanted.items() if known.get(pool_id) != capacity}
            if changed:
                self._sync_pools(changed)
        except Exception as exc:
            if not self._sync_at:
                log.error("pools_not_in_ledger", extra={"reason": f"{type(exc).__name__}: {exc}"}, exc_info=exc)
            self._sync_at = time.monotonic() + SLOW_PERIOD_S
            self._source.failed()
        else:
            self._capacities, self._sync_at = wanted, 0.0

    def _reimport(self) -> None:
        # A broken file must not keep the workers from what is in the database.
        try:
            self._source.reimport()
        except Exception as exc:
            log.error("config_import_failed", extra={"reason": str(exc)})
            self._source.failed()

    def _next_order(self) -> str:
        """What to do after at most one period: "" (nothing was asked), "look", "reimport" or "stop"."""
        try:
            orders = {self._orders.get(timeout=self._period_s)}
        except queue.Empty:
            return ""
        while not self._orders.empty():
            orders.add(self._orders.get())
        return next(order for order in ("stop", "reimport", "look") if order in orders)

    def _complain(self, exc: Exception) -> None:
        complaint = f"{type(exc).__name__}: {exc}"
        if complaint != self._complaint:  # not four times a second
            log.error("feed_failed", extra={"reason": complaint}, exc_info=exc)
        self._complaint = complaint
        self._source.failed()
