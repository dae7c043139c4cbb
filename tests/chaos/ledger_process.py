"""The two kinds of process that `test_ledger_kill` starts and kills: `python -m tests.chaos.ledger_process ROLE JSON`.

control  the ledger's writer and the line to the workers, on the database of the test
worker   desk and journal, a few made-up requests at a time; what was delivered is written to an oracle file
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from tests.budgets.records import POOL, hold_record, new_rid, usage_record

CLIENTS = 8


async def serve_control(options: dict[str, Any]) -> None:
    from budgets.settle import Writer
    from hoosh_site.link import Ask, Granted, LinkServer, Recall

    directory = Path(options["directory"])
    writer = Writer(
        directory / "journal",
        period_s=0.05,
        on_recall=lambda pool_id, start: link.broadcast_threadsafe([Recall(pool_id, start)]),
    )

    def ask(message: Ask, reply: Any) -> None:
        writer.grant(
            *(message.owner, message.pool_id, message.window_start, message.seen_total, message.want),
            lambda *answer: reply(Granted(message.pool_id, message.window_start, *answer)),
            message.need,
        )

    link = LinkServer(
        directory / "link",
        hello=list,
        on_ask=ask,
        on_return=lambda message: writer.give_back(
            message.owner, message.pool_id, message.window_start, message.returned_total
        ),
    )
    writer.start()
    writer.sync_pool(POOL, 0, options["capacity"])
    await link.start()
    await asyncio.Event().wait()


async def serve_worker(options: dict[str, Any]) -> None:
    from budgets.desk import Desk, NoLeaseError, PoolSpentError
    from budgets.journal import Journal, new_owner
    from hoosh_site.link import Ask, Granted, LinkClient, Recall, Register, Return

    directory, owner = Path(options["directory"]), new_owner(0)
    journal = Journal.open(directory / "journal", owner, segment_bytes=50_000)
    oracle = os.open(directory / f"{owner}.oracle", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    desk = Desk(owner)
    client = LinkClient(
        directory / "link",
        register=Register(owner, 0, os.getpid(), "test"),
        callbacks={
            Granted: lambda push: desk.on_granted(
                push.pool_id, push.window_start, push.total, push.more, push.spent_out, push.available
            ),
            Recall: lambda push: desk.on_recall(push.pool_id, push.window_start),
        },
        on_up=desk.connected,
        on_down=desk.disconnected,
    )
    desk.send_ask = lambda *fields: client.send(Ask(*fields))
    desk.send_return = lambda *fields: client.send(Return(*fields))
    client.start()
    chance = random.Random()

    async def request() -> None:
        rid, bound = new_rid(), chance.randint(50, 400)
        if not desk.hold(POOL, bound):
            await desk.wait_hold(POOL, bound, 2)
        journal.hold(hold_record(rid, bound, input_bound=20))
        await asyncio.sleep(chance.random() * 0.01)
        streamed = chance.random() < 0.3
        if streamed:
            journal.delivered(rid, 0, 1, 4)
            await asyncio.sleep(chance.random() * 0.01)
        overrun = 100 if options["overruns"] and chance.random() < 0.02 else 0
        used = chance.randint(21, bound) + overrun
        journal.complete(usage_record(rid, used, held=bound))
        os.write(oracle, f"{rid.hex()} {used}\n".encode())  # delivered
        desk.settle(POOL, bound, used)

    async def ask_on() -> None:
        while True:
            try:
                await request()
            except (PoolSpentError, NoLeaseError):
                await asyncio.sleep(0.02)

    await asyncio.gather(*(ask_on() for _ in range(CLIENTS)))


def main() -> None:
    role, options = sys.argv[1], json.loads(sys.argv[2])
    if role == "control":
        import django
        from django.conf import settings

        settings.configure(**options["settings"])
        django.setup()
    asyncio.run({"control": serve_control, "worker": serve_worker}[role](options))


if __name__ == "__main__":
    main()
