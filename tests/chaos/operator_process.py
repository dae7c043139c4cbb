"""An operator who never rests: `python -m tests.chaos.operator_process JSON`, until SIGTERM.

Runs in the surroundings of a gateway. Windows are begun anew (a pool's time zone is changed to and fro), limits are
moved up and down, amounts are moved between pools, all through the services the admin uses. What was done is counted in
`operator.json`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

ACTOR = "operator"
ZONES = ("Etc/GMT+1", "Etc/GMT+2", "Etc/GMT+3")


def main() -> None:
    """`directory`; `rolling`: pool names whose window begins anew; `limits`: [name, tokens...] to take in turn;
    `transfers`: [from, to, amount] to and fro; `period_s` between two rounds."""
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hoosh_site.settings")
    django.setup()
    options = json.loads(sys.argv[1])
    going = [True]
    signal.signal(signal.SIGTERM, lambda *_: going.clear())
    done = {"rolled": 0, "edited": 0, "moved": 0, "failed": 0}
    number = 0
    while going:
        number += 1
        for step in (roll, edit, move):
            try:
                step(options, number, done)
            except Exception as exc:  # the database may be away
                done["failed"] += 1
                print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
                from django.db import connections

                connections.close_all()
        told = Path(options["directory"], "operator.json")
        told.with_suffix(".new").write_text(json.dumps(done))
        told.with_suffix(".new").replace(told)
        time.sleep(options.get("period_s", 0.5))


def roll(options: dict[str, Any], number: int, done: dict[str, int]) -> None:
    """Begin a new window of each rolling pool, at most once a second."""
    from budgets import access
    from budgets.models import Pool

    for pool in Pool.objects.filter(name__in=options.get("rolling", ())):
        if time.time() < pool.window_since + 1:
            continue
        pool.time_zone = ZONES[(ZONES.index(pool.time_zone) + 1) % len(ZONES) if pool.time_zone in ZONES else 0]
        access.save_pool(pool, actor=ACTOR)
        done["rolled"] += 1


def edit(options: dict[str, Any], number: int, done: dict[str, int]) -> None:
    """Give each pool the next of its limits."""
    from budgets import access
    from budgets.models import Pool

    for name, *limits in options.get("limits", ()):
        pool = Pool.objects.get(name=name)
        pool.capacity_tokens = limits[number % len(limits)]
        access.save_pool(pool, actor=ACTOR)
        done["edited"] += 1


def move(options: dict[str, Any], number: int, done: dict[str, int]) -> None:
    """Move an amount from one pool to the other, and back the next time."""
    from budgets import orders
    from budgets.models import Pool

    for first, second, amount in options.get("transfers", ()):
        names = (first, second) if number % 2 else (second, first)
        ids = [Pool.objects.get(name=name).pk for name in names]
        payload = {"from_pool": ids[0], "to_pool": ids[1], "unit": 0, "amount": amount}
        orders.place("transfer", payload, actor=ACTOR, note="to and fro")
        done["moved"] += 1


if __name__ == "__main__":
    main()
