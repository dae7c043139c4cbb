"""A desk together with the chains of the keys that draw on it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from budgets.desk import Desk
from budgets.records import Draw, PoolRecord


class Holder:
    """A desk and the chains of the keys that draw on it."""

    def __init__(self, owner: str, chains: Sequence[tuple[int, ...]]) -> None:
        self.desk = Desk(owner)
        self.ready = asyncio.Event()  # the pools are known
        self._chains = list(chains)

    def set_pools(self, pools: Sequence[PoolRecord]) -> None:
        """Learn the pools as control has them now."""
        self.desk.set_pools(pools)
        self.ready.set()

    async def hold(self, key: int, tokens: int, pico: int, wait_s: float) -> tuple[Draw, ...]:
        """Hold for a request of this key, waiting for tokens if need be. Raises `DeskError`."""
        desk = self.desk
        chain = desk.chain(self._chains[key])
        return desk.hold(chain, tokens, pico) or await desk.wait_hold(chain, tokens, pico, wait_s)
