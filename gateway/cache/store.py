"""Where a worker keeps whole answers: in memory, bounded by bytes, the one unused for longest goes first. Pure but for
the clock.

Every operation takes constant time, `purge` and `resize` aside. An answer lives for the seconds it was kept for,
counted from when it was kept, not from when it was last told; 0 seconds or less keeps nothing. Nothing is written to
disk, so a worker that ends forgets all of it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from gateway.cache.key import tag_of
from providers.canonical import Usage

MAX_BYTES = 64 * 1024 * 1024
ENTRY_MAX_BYTES = 1024 * 1024
OVERHEAD_BYTES = 768  # an entry's objects besides its answer: 630 as measured, and what the allocator adds


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One kept answer.

    `body` is the whole canonical answer (a chat completion, a text completion, embeddings) before any dialect shaped
    it, or where `native` names a dialect, the provider's own answer in that: then it can only be told whole, to callers
    of that dialect. `usage`, `output_bytes` and `cost_pico` (pico-USD) are what the first caller was charged by,
    `dropped` the parameters its provider did not get, `model` the upstream's name of the model, `created_s` Unix time.
    """

    body: bytes
    usage: Usage | None = None
    model: str = ""
    route_id: int = 0
    provider_id: int = 0
    created_s: float = 0.0
    output_bytes: int = 0
    cost_pico: int = 0
    native: str = ""
    dropped: tuple[str, ...] = ()
    context: bytes = b""  # what `x-hoosh-context` said of the request that was sent for it
    similarity: float = 0.0  # of the question it was given to and the one it is told to; 0 = they are the same

    @property
    def size(self) -> int:
        """The bytes this entry counts as."""
        return len(self.body) + OVERHEAD_BYTES


_Held = tuple[Entry, float, float]  # the entry, when it was kept and when it expires, by the store's clock


class Store:
    """Entries by key, at most `max_bytes` of them and none above `entry_max_bytes`.

    `on_drop` hears the key of every entry that is gone: evicted, expired or purged, but not replaced. The counters only
    rise: `hits`, `stored`, `evicted`, `expired`, `purged`, `refused` (too large), `saved_tokens` and `saved_pico` (what
    the hits cost the first time).
    """

    __slots__ = (
        "_clock",
        "_held",
        "bytes",
        "entry_max_bytes",
        "evicted",
        "expired",
        "hits",
        "max_bytes",
        "on_drop",
        "purged",
        "refused",
        "saved_pico",
        "saved_tokens",
        "stored",
    )

    def __init__(
        self,
        max_bytes: int = MAX_BYTES,
        *,
        entry_max_bytes: int = ENTRY_MAX_BYTES,
        on_drop: Callable[[bytes], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_bytes, self.entry_max_bytes, self.on_drop = max_bytes, entry_max_bytes, on_drop
        self.bytes = 0
        self.hits = self.stored = self.evicted = self.expired = self.purged = self.refused = 0
        self.saved_tokens = self.saved_pico = 0
        self._clock = clock
        self._held: OrderedDict[bytes, _Held] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: bytes) -> bool:
        """Whether there is an entry that has not expired; counts as nothing."""
        held = self._held.get(key)
        return held is not None and held[2] > self._clock()

    def left_s(self, key: bytes) -> float:
        """For how many more seconds there is an entry; 0 = there is none. Counts as nothing."""
        held = self._held.get(key)
        return max(0.0, held[2] - self._clock()) if held is not None else 0.0

    def get(self, key: bytes, *, max_age_s: float | None = None, stream: bool = False) -> Entry | None:
        """The answer of a key, if there is one that is at most `max_age_s` old.

        `stream`: it is to be told as a stream, which native answers cannot be.
        """
        held = self._held.get(key)
        if held is None:
            return None
        entry, kept_at, expires_at = held
        now = self._clock()
        if now >= expires_at:
            self.expired += 1
            self._drop(key)
            return None
        if (max_age_s is not None and now - kept_at > max_age_s) or (stream and entry.native):
            return None
        self._held.move_to_end(key)
        self.hit(entry)
        return entry

    def hit(self, entry: Entry) -> None:
        """Count an answer that was told without a call."""
        self.hits += 1
        self.saved_pico += entry.cost_pico
        if entry.usage is not None:
            self.saved_tokens += entry.usage.input + entry.usage.output

    def put(self, key: bytes, entry: Entry, ttl_s: float) -> bool:
        """Keep an answer for `ttl_s` seconds in place of an older one; False when it is too large or not to be kept."""
        if ttl_s <= 0:
            return False
        size = entry.size
        if len(entry.body) > self.entry_max_bytes or size > self.max_bytes:
            self.refused += 1
            return False
        old = self._held.pop(key, None)
        if old is not None:
            self.bytes -= old[0].size
        self.bytes += size
        self._make_room()
        now = self._clock()
        self._held[key] = (entry, now, now + ttl_s)
        self.stored += 1
        return True

    def sweep(self, most: int = 256) -> int:
        """Drop the expired among the `most` entries that were unused for longest; how many these were.

        Nobody has to call this: what has expired is never told, and is the first to go. It only gives memory back.
        """
        now = self._clock()
        looked_at = zip(range(most), self._held.items(), strict=False)
        gone = [key for _, (key, held) in looked_at if now >= held[2]]
        for key in gone:
            self._drop(key)
        self.expired += len(gone)
        return len(gone)

    def purge(
        self, *, tenant: bytes | None = None, prefix: bytes = b"", matching: Callable[[Entry], bool] | None = None
    ) -> int:
        """Drop all entries, or those of a tenant (or whose keys begin with `prefix`) that are `matching`; how many.

        Looks at every entry: a millisecond for ten thousand.
        """
        if tenant is not None:
            prefix = tag_of(tenant)
        gone = [
            key
            for key, held in self._held.items()
            if key.startswith(prefix) and (matching is None or matching(held[0]))
        ]
        for key in gone:
            self._drop(key)
        self.purged += len(gone)
        return len(gone)

    def resize(self, max_bytes: int, entry_max_bytes: int | None = None) -> None:
        """Set other bounds; what does not fit any more is evicted."""
        self.max_bytes = max_bytes
        self.entry_max_bytes = self.entry_max_bytes if entry_max_bytes is None else entry_max_bytes
        self._make_room()

    def _make_room(self) -> None:
        while self.bytes > self.max_bytes and self._held:
            key, held = self._held.popitem(last=False)
            self.bytes -= held[0].size
            self.evicted += 1
            if self.on_drop is not None:
                self.on_drop(key)

    def _drop(self, key: bytes) -> None:
        self.bytes -= self._held.pop(key)[0].size
        if self.on_drop is not None:
            self.on_drop(key)
