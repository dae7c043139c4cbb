"""When what is killed. The whole plan follows from the seed; moments are counted in answers, not in seconds."""

from __future__ import annotations

import random
from typing import NamedTuple

WORKER, CONTROL, DATABASE = "worker", "control", "database"


class Blow(NamedTuple):
    """After `at` whole answers, `what` is killed; `index` names the worker."""

    at: int
    what: str
    index: int = 0


def plan(
    seed: int, *, answers: int, workers: int, worker_kills: int, control_kills: int, database_stops: int
) -> list[Blow]:
    """The blows of one run in their order, each kind spread over the run with a random distance."""
    chance = random.Random(seed)
    blows: list[Blow] = []
    for what, count in ((WORKER, worker_kills), (CONTROL, control_kills), (DATABASE, database_stops)):
        for number in range(count):
            share = 0.02 + 0.95 * (number + chance.random()) / count
            index = chance.randrange(workers) if what == WORKER else 0
            blows.append(Blow(int(answers * share), what, index))
    return sorted(blows)
