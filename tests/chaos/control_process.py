"""Control without HTTP: `python -m tests.chaos.control_process JSON`. The real writer, jobs and line to the workers.

What is made up is the calendar: windows of a second or so, from a clock that may run faster, stand or step, as the
options say, and limits that grow while the run goes on. As in the product the ledger has a window before the workers
hear of it, and the newest start in the ledger is never gone behind.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

from budgets.windows import WindowSpec
from tests.chaos.population import MadePool

LOOK_S = 0.03  # between two looks at the clock


@dataclass
class ControlOptions:
    """What a control process is told. Times in seconds."""

    directory: str
    pools: list[MadePool]
    began: float  # when the run began, Unix seconds
    period_s: float = 0.25  # the writer's
    speed: float = 1.0  # of the clock the windows are made by
    steps: list[tuple[float, float]] = field(default_factory=list)  # from this second of the run the clock is off by
    edits: list[tuple[float, int, int]] = field(default_factory=list)  # from this second the pool's limit is so many
    jobs: bool = True
    entries: float = 0.0  # operators' changes a second, each with its entry for the audit log

    @classmethod
    def parse(cls, text: str) -> ControlOptions:
        """The options as the process gets them."""
        values = json.loads(text)
        return cls(**{**values, "pools": [MadePool(*pool) for pool in values["pools"]]})

    def text(self) -> str:
        """The argument of the process."""
        return json.dumps(vars(self))

    def clock(self, now: float) -> float:
        """What the made-up clock shows at `now`, Unix seconds."""
        off = [shift for since, shift in self.steps if now - self.began >= since]
        return self.began + (now - self.began) * self.speed + (off[-1] if off else 0.0)

    def limits(self, pool: MadePool, now: float) -> MadePool:
        """The pool as the operator has it now."""
        edits = [tokens for since, pool_id, tokens in self.edits if pool_id == pool.id and now - self.began >= since]
        return pool._replace(tokens=edits[-1]) if edits else pool


class Calendar:
    """Puts windows into the ledger and then tells the workers."""

    def __init__(self, options: ControlOptions, writer: Any, link: Any) -> None:
        self._options, self._writer, self._link = options, writer, link
        self._starts: dict[int, list[int]] = {}  # the newest starts in the ledger, ascending
        self._synced: dict[tuple[int, int], WindowSpec] = {}
        self._records: dict[int, Any] = {}
        self._seq = 0

    def hello(self) -> list[Any]:
        """What a worker is told first: nothing before the ledger has all windows."""
        from hoosh_site.link import AccessPush

        return [AccessPush(self._seq, True, [], list(self._records.values()))] if self._records else []

    async def run(self) -> None:
        """Look at the clock for ever. A ledger that is away is asked again."""
        while True:
            try:
                await self._look()
            except Exception as exc:
                print(f"calendar: {type(exc).__name__}: {exc}", file=sys.stderr)
                await asyncio.sleep(0.1)
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        from hoosh_site.link import AccessPush

        options = self._options
        if not self._starts:
            self._starts = await asyncio.wrap_future(self._writer.submit(known_starts))
        now = time.time()
        shown = options.clock(now)
        specs: list[WindowSpec] = []
        starts: dict[int, int] = {}
        for made in options.pools:
            pool = options.limits(made, now)
            known = self._starts.get(pool.id, [])
            start = starts[pool.id] = max([pool.start(shown), *known[-1:]])
            earlier = [number for number in known if number < start]
            specs += pool.specs(start, earlier[-1] if earlier else None, now - options.began)
        changed = [spec for spec in specs if self._synced.get((spec.pool_id, spec.unit)) != spec]
        if not changed:
            return
        await asyncio.wrap_future(self._writer.sync_windows(changed))
        for spec in changed:
            self._synced[spec.pool_id, spec.unit] = spec
        for pool_id, start in starts.items():
            self._starts[pool_id] = sorted({*self._starts.get(pool_id, []), start})[-2:]
        records = {pool.id: pool.record(starts[pool.id]) for pool in options.pools}
        if records != self._records:
            self._records = records
            self._seq += 1
            self._link.broadcast([AccessPush(self._seq, True, [], list(records.values()))])


def known_starts(connection: Any) -> dict[int, list[int]]:
    """The newest starts of each pool in the ledger."""
    found: dict[int, set[int]] = {}
    with connection.cursor() as cursor:
        cursor.execute("SELECT DISTINCT pool_id, window_start FROM budgets_poolwindow")
        for pool_id, start in cursor.fetchall():
            found.setdefault(pool_id, set()).add(start)
    return {pool_id: sorted(starts)[-2:] for pool_id, starts in found.items()} or {0: []}


async def serve(options: ControlOptions) -> None:
    """Run until killed."""
    from audit.keys import Signer
    from audit.sequencer import Sequencer
    from budgets.settle import Writer
    from hoosh_site.link import Ask, AuditPush, Granted, LinkServer, Recall, Return

    def tell(head: Any) -> None:
        link.broadcast_threadsafe([AuditPush(f"{head.size}:{head.root.hex()}")])

    directory = Path(options.directory)
    keeper = Sequencer(Signer(directory), on_checkpoint=tell)
    writer = Writer(
        directory / "journal",
        period_s=options.period_s,
        on_recall=lambda pool, unit, start: link.broadcast_threadsafe([Recall(pool, start, unit)]),
        jobs=[*made_jobs(), keeper] if options.jobs else (),
        at_end=[keeper] if options.jobs else (),
    )

    def ask(message: Ask, reply: Any) -> None:
        def answered(total: int, more: bool, spent_out: bool, available: int, others: int) -> None:
            pool_id, start = message.pool_id, message.window_start
            reply(Granted(pool_id, start, total, more, spent_out, available, message.unit, others))

        wanted = (message.owner, message.pool_id, message.unit, message.window_start, message.seen_total, message.want)
        writer.grant(*wanted, answered, message.need)

    def give_back(message: Return) -> None:
        writer.give_back(message.owner, message.pool_id, message.unit, message.window_start, message.returned_total)

    link = LinkServer(directory / "link", hello=lambda: calendar.hello(), on_ask=ask, on_return=give_back)
    calendar = Calendar(options, writer, link)
    writer.start()
    ending = Event()
    entries = Thread(target=write_entries, args=(directory, options.entries, ending), daemon=True)
    if options.entries:
        entries.start()
    await link.start()
    looking = asyncio.create_task(calendar.run())
    asyncio.get_running_loop().add_signal_handler(15, looking.cancel)
    await asyncio.to_thread(writer.ready.wait)
    (directory / "control.ready").write_text(str(os.getpid()))
    try:
        await looking
    except asyncio.CancelledError:
        await link.stop()
        ending.set()
        if options.entries:
            await asyncio.to_thread(entries.join)
        (directory / "control.stats").write_text(json.dumps(writer.stats(), default=str))
        await asyncio.to_thread(writer.stop)


def write_entries(directory: Path, rate: float, ending: Event) -> None:
    """Change something in the site's database until the end, half of it undone; what was committed is noted."""
    from django.db import DatabaseError, connection, transaction

    from audit.record import record
    from tests.chaos.audit_books import TRUTH

    with open(directory / TRUTH, "a", encoding="ascii") as truth:
        for number in count():
            if ending.is_set():
                return
            targets = [f"{os.getpid()}/{number}/{part}" for part in range(1 + number % 5)]
            try:
                with transaction.atomic():
                    for target in targets:
                        record("chaos.done", actor=f"operator {number % 7}", target=target, data={"number": number})
                    if number % 2:
                        raise _Undone
            except _Undone:
                continue
            except DatabaseError:  # whether it was committed nobody knows
                connection.close()
                time.sleep(0.1)
                continue
            truth.write("".join(f"{target}\n" for target in targets))
            truth.flush()
            time.sleep(len(targets) / rate)


class _Undone(Exception):
    """Undoes a change."""


def made_jobs() -> Sequence[Any]:
    """The jobs a control process gives its writer."""
    from budgets.jobs import default_jobs

    return default_jobs()


def main() -> None:
    """The process a run starts."""
    import django

    django.setup()
    asyncio.run(serve(ControlOptions.parse(sys.argv[1])))


if __name__ == "__main__":
    main()
