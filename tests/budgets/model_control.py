"""A control made of the ledger's own arithmetic, for any number of desks and purses in one process.

Answers come through the loop, as over the line; while that is `cut`, they are lost. `check` says whether the books
still add up.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from budgets import transfers
from budgets.chain import PurseKey
from budgets.desk import Desk
from budgets.records import Draw, PoolRecord

POOL = 7
RECALL_PAUSE_S = 0.05


class Control:
    """Purses by (pool id, unit, window start) and the leases of desks on them."""

    def __init__(self, capacities: dict[PurseKey, int] | int, *, latency_s: float = 0.0) -> None:
        if isinstance(capacities, int):
            capacities = {(POOL, 0, 0): capacities}
        self.purses = {
            key: SimpleNamespace(capacity=capacity, adjusted=0, committed=0, leased=0, overrun=0)
            for key, capacity in capacities.items()
        }
        self.leases: dict[PurseKey, dict[str, SimpleNamespace]] = {}
        self.desks: dict[str, Desk] = {}
        self.asks = 0
        self.recalls = 0
        self.returns = 0
        self.silent = False
        self._cut: set[str] = set()  # owners
        self._latency_s = latency_s
        self._hungry: dict[PurseKey, dict[str, tuple[int, int, int]]] = {}
        self._recalled_at: dict[PurseKey, float] = {}

    @property
    def purse(self) -> SimpleNamespace:
        """The purse of a control that has one."""
        (purse,) = self.purses.values()
        return purse

    def desk(self, owner: str, pools: list[PoolRecord], **more: Any) -> Desk:
        """A further desk that knows these pools."""
        desk = self.desks[owner] = Desk(owner, send_ask=self.ask, send_return=self.give_back, **more)
        desk.set_pools(pools)
        return desk

    def cut(self, desk: Desk) -> None:
        """Break the line to a desk. What it asked for already is still granted."""
        self._cut.add(desk.owner)
        desk.disconnected()

    def mend(self, desk: Desk) -> None:
        """Make a new line to a desk."""
        self._cut.discard(desk.owner)
        desk.connected()

    def lease(self, owner: str, key: PurseKey) -> SimpleNamespace:
        """What a desk has been leased of a purse."""
        leases = self.leases.setdefault(key, {})
        return leases.setdefault(owner, SimpleNamespace(granted=0, returned=0, remaining=0))

    def ask(self, owner: str, pool: int, unit: int, start: int, seen: int, want: int, need: int) -> None:
        """An ask; its answer comes later."""
        self.asks += 1
        if not self.silent:
            loop = asyncio.get_running_loop()
            loop.call_later(self._latency_s, self.answer, owner, (pool, unit, start), seen, want, need)

    def answer(self, owner: str, key: PurseKey, seen: int, want: int, need: int) -> None:
        """Grant what there is; what others have idle is called back when that is too little."""
        if key not in self.purses:
            return
        hungry = self._hungry.setdefault(key, {})
        hungry.pop(owner, None)
        if not self._grant(owner, key, seen, want, need, offer=False) and need:
            hungry[owner] = (seen, want, need)
            self._recall(key)

    def _grant(self, owner: str, key: PurseKey, seen: int, want: int, need: int, *, offer: bool) -> bool:
        """Answer, unless it is an offer that brings nothing; whether there is no point in calling anything back."""
        purse, lease = self.purses[key], self.lease(owner, key)
        others = sum(other.remaining for name, other in self.leases[key].items() if name != owner)
        amount, more, repeated = 0, True, lease.granted > seen
        if not repeated and (want or need):
            free = transfers.free_amount(purse)
            amount, more = transfers.block_size(free=free, want=want, need=need, workers=len(self.desks), unit=key[1])
            transfers.grant(purse, lease, amount)
        left = max(0, transfers.free_amount(purse))
        spent_out = not amount and not repeated and left + others < max(1, need)
        if (amount or not offer) and owner not in self._cut:
            self.desks[owner].on_granted(*key, lease.granted, more, spent_out, left, others)
        return bool(amount or repeated or spent_out)

    def _recall(self, key: PurseKey) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() - self._recalled_at.get(key, -1.0) < RECALL_PAUSE_S:
            return
        self._recalled_at[key] = loop.time()
        self.recalls += 1
        for owner, desk in self.desks.items():
            if owner not in self._cut:
                loop.call_later(self._latency_s, desk.on_recall, *key)

    def give_back(self, owner: str, pool: int, unit: int, start: int, returned_total: int) -> None:
        """Take a return in, and offer it to those who lack some."""
        self.returns += 1
        key = (pool, unit, start)
        hungry = self._hungry.get(key, {})
        hungry.pop(owner, None)
        if transfers.give_back(self.purses[key], self.lease(owner, key), returned_total):
            for name, request in list(hungry.items()):
                if self._grant(name, key, *request, offer=True):
                    hungry.pop(name, None)

    def charge(self, owner: str, draws: tuple[Draw, ...], tokens: int, pico: int) -> None:
        """What the writer does with a usage record."""
        for draw in draws:
            key = (draw.pool_id, draw.unit, draw.window_start)
            if draw.held >= 0:
                transfers.charge(self.purses[key], self.lease(owner, key), pico if draw.unit else tokens)

    def check(self) -> None:
        """No purse is overspent, and every lease covers what its desk believes to have."""
        for key, purse in self.purses.items():
            assert purse.leased == sum(lease.remaining for lease in self.leases.get(key, {}).values()), key
            assert purse.committed + purse.leased <= purse.capacity + purse.overrun, key


def wallet(desk: Desk, key: PurseKey = (POOL, 0, 0)) -> dict[str, Any]:
    """A desk's figures of one purse."""
    return next(entry for entry in desk.status() if (entry["pool_id"], entry["unit"], entry["window_start"]) == key)


def run(story: Callable[[], Awaitable[None]], *, limit_s: float = 20) -> None:
    """Run a coroutine to its end on a loop of its own."""

    async def limited() -> None:
        async with asyncio.timeout(limit_s):
            await story()

    asyncio.run(limited())


async def take(
    desk: Desk, ids: tuple[int, ...], tokens: int, pico: int = 0, *, wait_s: float = 1.0
) -> tuple[Draw, ...]:
    """Hold at once or wait, as the request path does."""
    chain = desk.chain(ids)
    draws = desk.hold(chain, tokens, pico)
    return draws if draws is not None else await desk.wait_hold(chain, tokens, pico, wait_s)


class _Skipping(selectors.DefaultSelector):
    """Never sleeps: what would be slept is added to `skipped_s`."""

    skipped_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout > 0:
            self.skipped_s += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock only moves when nothing is left to do: waiting costs no time and happens in a fixed order."""

    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return 1000.0 + self._skipping.skipped_s


def run_virtually(story: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine on a loop of its own in which no real time passes."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(story())  # type: ignore[arg-type]
