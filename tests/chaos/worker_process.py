"""A worker without HTTP: `python -m tests.chaos.worker_process JSON`. The real desk, journal and line to control.

What is made up are the clients, which ask without pause, and the upstream. Both write what they saw (`truth`).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from budgets.desk import DeskError
from budgets.journal import Journal, JournalError, new_owner
from budgets.records import Basis, HoldRecord, UsageRecord
from hoosh_site.link import AccessPush, Ask, Granted, LinkClient, Recall, Register, Return
from tests.chaos import population
from tests.chaos.desks import Holder
from tests.chaos.population import INPUT_BOUND, INPUT_PICO, KEYS, MARK_EVENTS, OUTPUT_PICO, OVERRUNS, REQUEST_PICO
from tests.chaos.truth import Witness

MADE = 4096  # different requests per key, taken in turn
SEGMENT_BYTES = 4 * 1024 * 1024


@dataclass
class WorkerOptions:
    """What a worker process is told."""

    directory: str
    index: int
    seed: str
    clients: int = 18
    rate: float = 0.0  # requests per second all in all; 0 = as fast as it goes
    keys: list[list[int]] | None = None  # chains of pools; None = those of the population
    wait_s: float = 0.5  # how long a request waits for tokens
    tokens: int = 0  # every request is held for and uses so many; 0 = the population's
    idle: bool = False  # asks once for everything there is, and no more


class Worker:
    """All clients of one process."""

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        directory = Path(options.directory)
        self.owner = new_owner(options.index)
        self.journal = Journal.open(directory / "journal", self.owner, segment_bytes=SEGMENT_BYTES)
        self.witness = Witness(directory, self.owner)
        self.chains = [tuple(chain) for chain in options.keys or KEYS]
        self.holder = Holder(self.owner, self.chains)
        self.link = self._connect(directory / "link")
        self.served = self.refused = 0
        self._began = time.monotonic()
        self._rids = itertools.count(1)
        self._salt = os.urandom(4)
        self._stopping = False

    def _connect(self, path: Path) -> LinkClient:
        desk = self.holder.desk
        client = LinkClient(
            path,
            register=Register(self.owner, self.options.index, os.getpid(), "test"),
            callbacks={
                AccessPush: lambda push: self.holder.set_pools(push.pools),
                Granted: lambda push: desk.on_granted(
                    *(push.pool_id, push.unit, push.window_start, push.total, push.more, push.spent_out),
                    push.available,
                ),
                Recall: lambda push: desk.on_recall(push.pool_id, push.unit, push.window_start),
            },
            on_up=desk.connected,
            on_down=desk.disconnected,
        )
        desk.send_ask = lambda owner, pool, unit, start, seen, want, need: client.send(
            Ask(owner, pool, start, seen, want, need, unit)
        )
        desk.send_return = lambda owner, pool, unit, start, total: client.send(Return(owner, pool, start, total, unit))
        return client

    async def run(self) -> None:
        """Ask until told to stop, then give back what is free."""
        self.link.start()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        await self.holder.ready.wait()
        await asyncio.gather(*(self._client(number) for number in range(self.options.clients)))
        self.holder.desk.return_all()
        await asyncio.sleep(0.05)

    def _stop(self) -> None:
        self._stopping = True

    async def _client(self, number: int) -> None:
        options = self.options
        key = number % len(self.chains)
        made = self._requests(key)
        for request in itertools.cycle(made):
            if self._stopping:
                return
            if options.rate:
                await self._keep_pace()
            try:
                await self._ask(key, request)
            except DeskError:
                self.refused += 1
                await asyncio.sleep(0.02)
            except JournalError as exc:
                print(f"journal: {exc}", file=sys.stderr)
                await asyncio.sleep(0.1)

    def _requests(self, key: int) -> list[population.MadeRequest]:
        seed = f"{self.options.seed}-{self.options.index}-{key}"
        if fixed := self.options.tokens:
            return [population.MadeRequest(0, fixed - INPUT_BOUND, fixed, streamed=False, refused=False)]
        return population.requests(seed, MADE, overruns=OVERRUNS in self.chains[key])

    async def _keep_pace(self) -> None:
        ahead_s = self.served / self.options.rate - (time.monotonic() - self._began)
        if ahead_s > 0.005:
            await asyncio.sleep(ahead_s)

    async def _ask(self, key: int, request: population.MadeRequest) -> None:
        draws = await self.holder.hold(key, request.bound, request.bound_pico, self.options.wait_s)
        rid = time.time_ns().to_bytes(8, "big") + self._salt + next(self._rids).to_bytes(4, "big")
        at_us = time.time_ns() // 1000
        self.journal.hold(hold_record(rid, at_us, draws, request))
        if request.refused:
            self.witness.refused(rid)
            await asyncio.sleep(request.pause_s)
            self.journal.release(rid, 0)
            self.holder.desk.release(draws)
            return
        self.witness.called(rid)
        await asyncio.sleep(request.pause_s)
        if request.streamed:
            await self._deliver(rid, request)
        pico = population.cost(request.input_used, request.output_used)
        self.journal.complete(usage_record(rid, at_us, draws, request, pico))
        self.witness.whole(rid, request.used, pico)
        self.holder.desk.settle(draws, request.used, pico)
        self.served += 1

    async def _deliver(self, rid: bytes, request: population.MadeRequest) -> None:
        """The parts of a streamed answer but the last, each marked before the client gets it."""
        for events in range(MARK_EVENTS, min(request.output_used, request.output_bound), MARK_EVENTS):
            self.journal.delivered(rid, 0, events, events * 3)
            self.witness.part(rid, request.input_used + events)
            await asyncio.sleep(request.pause_s)


def hold_record(rid: bytes, at_us: int, draws: Any, request: population.MadeRequest) -> HoldRecord:
    """`R` of a made-up request."""
    last = draws[-1]
    return HoldRecord(
        *(rid, 0, at_us, 1, 2, 3, last.pool_id, last.window_start, request.bound, INPUT_BOUND, 4, 5, "chat", "made"),
        *(draws, 6, INPUT_PICO, OUTPUT_PICO, REQUEST_PICO),
    )


def usage_record(rid: bytes, at_us: int, draws: Any, request: population.MadeRequest, pico: int) -> UsageRecord:
    """`C` of a made-up request."""
    last = draws[-1]
    latency_us = time.time_ns() // 1000 - at_us
    return UsageRecord(
        *(rid, 0, at_us, 1, 2, 3, last.pool_id, last.window_start, 4, 5, "chat", "made", "made-1", 200, ""),
        *(request.streamed, request.input_used, 0, 0, request.output_used, 0, request.used, request.bound, pico, 6),
        *(int(Basis.REPORTED), latency_us, latency_us, 1, b"", 1),
        draws=draws,
    )


def main() -> None:
    """The process a run starts."""
    options = WorkerOptions(**json.loads(sys.argv[1]))
    worker: list[Worker] = []

    async def run() -> None:
        worker.append(Worker(options))
        await worker[0].run()

    uvloop.run(run())
    Path(options.directory, f"{worker[0].owner}.stats").write_text(
        json.dumps({"served": worker[0].served, "refused": worker[0].refused})
    )


if __name__ == "__main__":
    main()
