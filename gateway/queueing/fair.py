"""Who is next of those that wait: three classes, and within a class every key its share. Pure.

**Classes** have weights: of 21 places given while all three wait, 16 go to the first, 4 to the second and 1 to the last
(stride scheduling, Waldspurger and Weihl 1995). So none of them starves, and whoever comes to a class in which nobody
waited is not made to wait for what a lower one has saved up.

**Keys** of one class share it by tokens, not by requests (start-time fair queuing, Goyal, Vin and Cheng 1996). Each key
has a start tag: the virtual time at which its first request begins. The lowest tag is next; being served moves it on by
the request's cost, and virtual time is the tag of whoever was served last. A key that did not wait starts at virtual
time, so it cannot save up a claim, and one that sends a thousand requests waits behind itself. The cost is the estimate
of tokens and `REQUEST_TOKENS`, because the smallest request takes a place for a while too.

Everything costs O(log keys) at most; a waiter that leaves O(1).
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

WEIGHTS: Final = (16, 4, 1)  # by class, the first goes first
REQUEST_TOKENS: Final = 256
_STRIDES = tuple(max(WEIGHTS) // weight for weight in WEIGHTS)
_DEBTS_MIN = 1024
_STALE_MIN = 64

T = TypeVar("T", bound=Hashable)


class _Flow(Generic[T]):
    """What waits of one key in one class: the costs by waiter, in their order."""

    __slots__ = ("items", "key", "start")

    def __init__(self, key: int, start: int) -> None:
        self.key, self.start = key, start
        self.items: OrderedDict[T, int] = OrderedDict()


class _Class(Generic[T]):
    """The keys of one class."""

    def __init__(self) -> None:
        self.count = 0
        self.flows: dict[int, _Flow[T]] = {}  # those that wait
        self._order: list[tuple[int, int, _Flow[T]]] = []  # a heap of (start, number, flow), some of them out of date
        self._number = 0
        self._now = 0  # virtual time
        self._debts: dict[int, int] = {}  # where keys that do not wait any more would start
        self._debts_max = _DEBTS_MIN

    def add(self, item: T, key: int, cost: int) -> None:
        flow = self.flows.get(key)
        if flow is None:
            flow = self.flows[key] = _Flow(key, max(self._now, self._debts.pop(key, 0)))
            self._push(flow)
        flow.items[item] = cost
        self.count += 1

    def first(self) -> T:
        """Asked only where somebody waits."""
        while True:
            start, _, flow = self._order[0]
            if flow.items and flow.start == start:
                return next(iter(flow.items))
            heapq.heappop(self._order)

    def take(self, item: T, key: int) -> None:
        flow = self.flows[key]
        self._now = max(self._now, flow.start)
        flow.start += flow.items[item]
        self.remove(item, key)
        if flow.items:
            self._push(flow)

    def remove(self, item: T, key: int) -> None:
        flow = self.flows[key]
        del flow.items[item]
        self.count -= 1
        if flow.items:
            return
        del self.flows[key]
        if not self.flows:  # nobody competes any more: nothing is owed
            self._order.clear()
            self._debts.clear()
            self._now = 0
        elif flow.start > self._now:
            self._owe(key, flow.start)

    def _owe(self, key: int, start: int) -> None:
        self._debts[key] = start
        if len(self._debts) > self._debts_max:
            self._debts = {key: start for key, start in self._debts.items() if start > self._now}
            self._debts_max = max(_DEBTS_MIN, 2 * len(self._debts))

    def _push(self, flow: _Flow[T]) -> None:
        self._number += 1  # of equal tags the one that was there first
        heapq.heappush(self._order, (flow.start, self._number, flow))
        if len(self._order) > 2 * len(self.flows) + _STALE_MIN:
            self._order = [entry for entry in self._order if entry[2].items and entry[2].start == entry[0]]
            heapq.heapify(self._order)


class FairQueue(Generic[T]):
    """Waiters of all classes. An item stands in it once."""

    def __init__(self) -> None:
        self._classes: tuple[_Class[T], ...] = tuple(_Class() for _ in WEIGHTS)
        self._passes = [0] * len(WEIGHTS)
        self._now = 0  # the pass of the class that was served last
        self._where: dict[T, tuple[int, int]] = {}  # class and key

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, item: T) -> bool:
        return item in self._where

    def waiting(self, rank: int) -> int:
        """How many of a class."""
        return self._classes[rank].count

    def keys(self, rank: int) -> int:
        """Of how many keys in a class."""
        return len(self._classes[rank].flows)

    def add(self, item: T, *, rank: int, key: int, tokens: int) -> None:
        """Let an item wait; `rank` is its class (0 goes first), `tokens` the estimate of what it will use."""
        if item in self._where:
            raise ValueError("It waits already.")
        members = self._classes[rank]
        if not members.count:
            self._passes[rank] = max(self._passes[rank], self._now + _STRIDES[rank])
        self._where[item] = rank, key
        members.add(item, key, REQUEST_TOKENS + max(0, tokens))

    def first(self) -> T | None:
        """Who is next; None where nobody waits."""
        if not self._where:
            return None
        ranks = [rank for rank, members in enumerate(self._classes) if members.count]
        return self._classes[min(ranks, key=self._passes.__getitem__)].first()

    def take(self, item: T) -> None:
        """It got what it waited for: its class and its key go behind the others by that."""
        rank, key = self._where.pop(item)
        self._now = max(self._now, self._passes[rank])
        self._passes[rank] += _STRIDES[rank]
        self._classes[rank].take(item, key)
        self._rest()

    def remove(self, item: T) -> None:
        """It does not wait any longer, and nobody owes anything for that."""
        rank, key = self._where.pop(item)
        self._classes[rank].remove(item, key)
        self._rest()

    def _rest(self) -> None:
        if not self._where:
            self._passes, self._now = [0] * len(WEIGHTS), 0

    def ahead(self, *, rank: int, key: int) -> int:
        """About how many would be served before one more of that class and key.

        Of its own class as many as wait of its key, times the keys that take turns with it; of each other class what
        its weight allows meanwhile. Never more than wait.
        """
        members = self._classes[rank]
        flow = members.flows.get(key)
        own = min(members.count, len(flow.items) * len(members.flows)) if flow is not None else 0
        others = (
            min(each.count, (own + 1) * WEIGHTS[other] // WEIGHTS[rank])
            for other, each in enumerate(self._classes)
            if other != rank
        )
        return own + sum(others)
