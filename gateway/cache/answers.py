"""The answer cache of a worker as the request path uses it: look up, wait for others, keep.

found = cache.find(key, control, stream=call.stream)
if found is None:
    with await cache.join(key, control, wait_s) as seat:
        found = cache.joined(seat, stream=call.stream)
        if found is None:
            cache.missed()
            ...  # call the provider
            cache.keep(key, entry, ttl_s, seat)  # or seat.land(None) where the answer cannot be kept
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.cache.control import Control
from gateway.cache.flights import Flights, Seat
from gateway.cache.store import ENTRY_MAX_BYTES, MAX_BYTES, Entry, Store


class AnswerCache:
    """`store` has the answers, `flights` the calls under way."""

    def __init__(
        self,
        max_bytes: int = MAX_BYTES,
        *,
        entry_max_bytes: int = ENTRY_MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = Store(max_bytes, entry_max_bytes=entry_max_bytes, clock=clock)
        self.flights = Flights()
        self.purges = 0  # how often all was dropped
        self._misses = 0

    def find(self, key: bytes, control: Control, *, stream: bool) -> Entry | None:
        """The kept answer to exactly this request, if there is one and the caller wants one that old."""
        if not control.read:
            return None
        return self.store.get(key, max_age_s=control.max_age_s, stream=stream)

    async def join(self, key: bytes, control: Control, wait_s: float) -> Seat:
        """A seat among equal requests (see `Flights.join`). Who wants a new answer, or none kept, waits for nobody."""
        if control.read and control.write and control.max_age_s != 0:
            return await self.flights.join(key, wait_s)
        return Seat(self.flights, key)

    def missed(self) -> None:
        """A request was looked up and must be called after all."""
        self._misses += 1

    def joined(self, seat: Seat, *, stream: bool) -> Entry | None:
        """The answer of another request that this one waited for; to be asked after `find` found none."""
        entry = seat.entry
        if entry is None or (stream and entry.native):
            return None
        self.store.hit(entry)
        return entry

    def keep(self, key: bytes, entry: Entry, ttl_s: float, seat: Seat | None = None) -> bool:
        """Keep an answer, and hand it to those that wait for it; False when it is not kept."""
        kept = self.store.put(key, entry, ttl_s)
        if seat is not None:
            seat.land(entry)
        return kept

    def purge(self, *, tenant: bytes | None = None, matching: Callable[[Entry], bool] | None = None) -> int:
        """Drop all answers, or a tenant's, or those that match; how many.

        What is under way is kept when it ends, unless who keeps it sees by `purges` that all was dropped meanwhile.
        """
        if tenant is None and matching is None:
            self.purges += 1
        return self.store.purge(tenant=tenant, matching=matching)

    def counts(self) -> dict[str, int]:
        """What this worker's cache has done, by the names of `gateway.cache.stats`."""
        store = self.store
        return {
            "entries": len(store),
            "bytes": store.bytes,
            "max_bytes": store.max_bytes,
            "hits": store.hits,
            "joined": self.flights.joined,
            "misses": self._misses,
            "stored": store.stored,
            "refused": store.refused,
            "evictions": store.evicted,
            "expired": store.expired,
            "purged": store.purged,
            "saved_tokens": store.saved_tokens,
            "saved_pico": store.saved_pico,
        }
