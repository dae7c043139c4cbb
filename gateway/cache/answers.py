"""The answer cache of a worker as the request path uses it: look up, wait for others, keep.

found = cache.find(key, control, stream=call.stream)
if found is None:
    with await cache.join(key, control, wait_s) as seat:
        found = cache.joined(seat, control, stream=call.stream) or cache.find_similar(bucket, vector, ...)
        if found is None:
            cache.missed()
            ...  # call the provider
            cache.keep(key, entry, ttl_s, seat)  # or seat.land(None) where the answer cannot be kept
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from gateway.cache.control import PLAIN, Control
from gateway.cache.flights import Flights, Seat
from gateway.cache.semantic import SemanticIndex
from gateway.cache.store import ENTRY_MAX_BYTES, MAX_BYTES, Entry, Store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = Sequence[float] | NDArray[np.float32]

_TRIES = 3  # similar questions whose answers turn out to be gone or too old, before it counts as none


class Place(NamedTuple):
    """Where similar questions find an answer: their bucket (see `gateway.cache.semantic`) and the question's vector."""

    bucket: bytes
    vector: Vector


class AnswerCache:
    """`store` has the answers, `similar` the vectors of their questions, `flights` the calls under way."""

    def __init__(
        self,
        max_bytes: int = MAX_BYTES,
        *,
        entry_max_bytes: int = ENTRY_MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.similar = SemanticIndex()
        self.store = Store(max_bytes, entry_max_bytes=entry_max_bytes, on_drop=self.similar.forget, clock=clock)
        self.flights = Flights()
        self.purges = 0  # how often all was dropped
        self._misses = self._similar_hits = self._similar_misses = 0

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

    def joined(self, seat: Seat, control: Control = PLAIN, *, stream: bool) -> Entry | None:
        """The answer of another request that this one waited for; to be asked after `find` found none."""
        entry = seat.entry
        if entry is None or (stream and entry.native):
            return None
        if entry.similarity:  # it was kept before that request came, maybe long before
            if control.max_age_s is not None and time.time() - entry.created_s > control.max_age_s:
                return None
            self._similar_hits += 1
        self.store.hit(entry)
        return entry

    def find_similar(self, place: Place, threshold: float, control: Control, *, stream: bool) -> Entry | None:
        """The kept answer to the most similar question, with the cosine as its `similarity`, if that is at least
        `threshold`; to be asked after `find` found none."""
        for _ in range(_TRIES if control.read else 0):
            found = self.similar.find(place.bucket, place.vector, threshold)
            if found is None:
                break
            key, cosine = found
            entry = self.store.get(key, max_age_s=control.max_age_s, stream=stream)
            if entry is not None:
                self._similar_hits += 1
                return msgspec.structs.replace(entry, similarity=cosine)
            if key in self.similar:  # it is there, and too old for this caller, or not to be streamed
                break
        self._similar_misses += 1
        return None

    def keep(
        self, key: bytes, entry: Entry, ttl_s: float, seat: Seat | None = None, place: Place | None = None
    ) -> bool:
        """Keep an answer, and hand it to those that wait for it; False when it is not kept.

        With a `place` it answers similar questions, too.
        """
        kept = self.store.put(key, entry, ttl_s)
        if kept and place is not None:
            self.similar.add(place.bucket, key, place.vector)
        if seat is not None:
            seat.land(entry)
        return kept

    def resize(self, max_bytes: int, *, similar: bool) -> None:
        """Set another bound for the answers. Vectors may take a quarter as much beside them, where there are any."""
        self.store.resize(max_bytes)
        self.similar.resize(max_bytes // 4 if similar else 0)

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
            "similar": self._similar_hits,
            "similar_misses": self._similar_misses,
            "vectors": len(self.similar),
            "vector_bytes": self.similar.bytes,
        }
