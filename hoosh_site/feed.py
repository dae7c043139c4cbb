"""Control's eye on the database and the clock: what changed since the last look is pushed to every worker.

`Feed` is a thread that polls each 250 ms (a handful of small queries), at once when woken and when a pool's window
ends. It keeps what it has pushed, so that a worker that connects later is told the same without another query.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from budgets.limits import LedgerWindows, PoolLimits
from budgets.records import KeyRecord, PoolRecord, PriceRecord, WarmRecord
from hoosh_site.link import AccessPush, CardsPush, ConfigPush, FromControl, HealthPush, SecretsPush, WarmPush
from hoosh_site.pool_windows import PoolWindows, Sync
from providers.config import CardDoc

log = logging.getLogger("hoosh.feed")

PERIOD_S = 0.25
SLOW_PERIOD_S = 2.0  # for what only probes change


class Source(Protocol):
    """Where the feed reads. Every method may raise; the feed keeps what it had and tries again."""

    def counters(self) -> dict[str, int]:
        """Change counters by name: "secrets", "cards", "prices", "access" at least; "warming" once there was any."""

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

    def access_since(self, seq: int) -> tuple[int, list[KeyRecord], list[PoolLimits]]:
        """The number to ask with next time, keys changed after `seq` (0 = all), and every pool there is."""

    def warming(self) -> list[WarmRecord]:
        """The questions whose answers are kept before anybody asks them."""

    def windows(self, pool_ids: Collection[int]) -> Mapping[int, LedgerWindows]:
        """What the ledger has of these pools; those it has nothing of may be left out."""

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

    def access_since(self, seq: int) -> tuple[int, list[KeyRecord], list[PoolLimits]]:
        """See `Source`."""
        from budgets import access

        return access.changes_since(seq)

    def warming(self) -> list[WarmRecord]:
        """See `Source`."""
        from budgets import warming

        return warming.records()

    def windows(self, pool_ids: Collection[int]) -> Mapping[int, LedgerWindows]:
        """See `Source`."""
        from budgets import newest_windows

        return newest_windows.of_pools(pool_ids)

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
        sync_windows: Sync,
        clock: Callable[[], float] = time.time,
        period_s: float = PERIOD_S,
    ) -> None:
        """`push(messages)` is called in this thread. `sync_windows(specs)` gives a future that is done when the ledger
        has these windows: then workers hear of them. If it fails, or takes too long, they hear of everything else and
        it is tried again. `clock` gives the Unix seconds by which windows begin and end."""
        super().__init__(name="feed", daemon=True)
        self.polled = threading.Event()  # set after the first look that succeeded
        self._source, self._push, self._period_s = source, push, period_s
        self._windows = PoolWindows(source.windows, sync_windows, clock=clock, failed=source.failed)
        self._orders: queue.SimpleQueue[str] = queue.SimpleQueue()  # its put is safe in signal handlers
        self._lock = threading.Lock()
        self._counters: dict[str, int] = {}
        self._access_seq = -1
        self._keys: dict[int, KeyRecord] = {}
        self._pools: dict[int, PoolRecord] = {}
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
            order = (SecretsPush, CardsPush, AccessPush, ConfigPush, HealthPush, WarmPush)
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
        self._roll()
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
        if counters.get("warming", 0) != before.get("warming", 0):
            news.append(WarmPush(source.warming()))
        if slow:
            health = HealthPush(source.down())
            news += [health] if said.get(HealthPush) != health else []
        with self._lock:  # only now: a look that failed half-way is done again from where the last one ended
            accept()
            self._counters = counters
            self._said = {**said, **{type(message): message for message in news if message not in access}}
        if news:
            self._push(news)

    def _cards(self, counters: dict[str, int], *, slow: bool) -> list[FromControl]:
        known = self._said.get(CardsPush)
        moved = any(counters.get(name) != self._counters.get(name) for name in ("cards", "prices"))
        if isinstance(known, CardsPush) and not moved:
            if not slow:
                return []
            models = self._source.discovered()
            return [CardsPush(known.cards, known.prices, models)] if models != known.models else []
        return [CardsPush(self._source.cards(), self._source.prices(), self._source.discovered())]

    def _roll(self) -> None:
        """Tell of windows that have begun, whatever else cannot be read just now."""
        self._windows.look()
        old, pools = self._pools, self._windows.records()
        if pools is old or self._access_seq < 0 or old.keys() - pools.keys():  # the last: after a look that failed
            return
        changed = [pool for pool in pools.values() if old.get(pool.id) != pool]
        with self._lock:
            self._pools = pools
        if changed:
            self._push([AccessPush(self._access_seq, False, [], changed)])

    def _access(self, counter: int) -> tuple[list[FromControl], Callable[[], None]]:
        """What changed, and what makes it known here; call that under the lock once nothing can fail any more."""
        if counter == self._access_seq:
            return [], lambda: None
        full = self._access_seq < 0 or counter < self._access_seq  # a smaller number: the database was restored
        seq, keys, limits = self._source.access_since(0 if full else self._access_seq)
        self._windows.set_pools(limits)
        self._windows.look()
        old_keys, old_pools = ({}, {}) if full else (self._keys, self._pools)
        all_keys, pools = {**old_keys, **{key.id: key for key in keys}}, self._windows.records()

        def accept() -> None:
            self._keys, self._pools, self._access_seq = all_keys, pools, seq

        if old_pools.keys() - pools.keys():  # a change cannot say that a pool is no more, a full list can
            return [AccessPush(seq, True, list(all_keys.values()), list(pools.values()))], accept
        changed = [pool for pool in pools.values() if old_pools.get(pool.id) != pool]
        return [AccessPush(seq, full, keys, changed)], accept

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
            orders = {self._orders.get(timeout=self._windows.wait_s(self._period_s))}
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
