"""Processes that share one table of limits, for the tests: `python -m tests.gateway.limit_processes WHAT PATH ...`.

requests PATH PROCESSES RATE SECONDS           asks without a pause; one JSON line of what was let through
tokens PATH PROCESSES RATE SECONDS             reserves, settles a part; one JSON line of what was used
concurrent PATH PROCESSES LIMIT SECONDS LOG    appends + after each admission and - before each end
turns PATH PROCESSES COUNT                     takes turns; one JSON line of all of them
hold PATH COUNT                                takes that many, says so, and sleeps
chaos PATH                                     takes and gives back at random until killed; a line per thousand

Those told a number of PROCESSES begin when that many have the table open.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

from gateway.limits.limiter import Limiter, Limits, Refusal, Ticket, group
from gateway.limits.slot_file import OWNER_WORDS
from gateway.limits.slots import Slots

KEYS = 5  # subjects of chaos
CHAOS_LIMITS = Limits(10**6, 10**9, 50)


def say(**what: object) -> None:
    """One line for the parent."""
    print(json.dumps(what), flush=True)


def together(path: Path, processes: int) -> Slots:
    """The table, once that many processes have it."""
    slots = Slots(path)
    while sum(map(bool, slots.words[OWNER_WORDS : OWNER_WORDS + processes])) < processes:
        time.sleep(0.001)
    return slots


def requests(path: Path, processes: int, rate: int, seconds: float) -> None:
    """Tells the number let through, and the times (ns) of the first and last of them and of the last refusal."""
    limiter, subjects = Limiter(together(path, processes)), group(("key", 1, Limits(requests_per_minute=rate)))
    times, refused, end = [], 0, time.monotonic() + seconds
    while time.monotonic() < end:
        before = time.monotonic_ns()
        answer = limiter.admit(subjects)
        if isinstance(answer, Refusal):
            refused = before
        else:
            times.append(answer.since)
    say(count=len(times), first=times[0] if times else None, last=times[-1] if times else None, refused=refused)


def tokens(path: Path, processes: int, rate: int, seconds: float) -> None:
    """Reserves 2,000 at a time and uses 0 to 2,000 of them, a few calls at once, none with a pause."""
    limiter, chance = Limiter(together(path, processes)), random.Random()
    subjects = group(("key", 1, Limits(tokens_per_minute=rate)))
    used = refused = 0
    times: list[int] = []
    under_way: list[Ticket] = []
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end or under_way:
        answer = limiter.admit(subjects, 2_000) if now < end else None
        if isinstance(answer, Ticket):
            times.append(answer.since)
            under_way.append(answer)
        else:
            refused += 1
        if under_way and (answer is None or isinstance(answer, Refusal) or len(under_way) > 2):
            ticket = under_way.pop(chance.randrange(len(under_way)))
            amount = chance.randint(0, 2_000)
            ticket.settle(amount)
            ticket.leave()
            used += amount
    say(used=used, first=min(times, default=None), last=max(times, default=None), refused=refused, calls=len(times))


def concurrent(path: Path, processes: int, limit: int, seconds: float, log: Path) -> None:
    """Enters and leaves without a pause, and writes down both in an order that cannot overstate."""
    limiter, subjects = Limiter(together(path, processes)), group(("key", 1, Limits(concurrent=limit)))
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    held: list[Ticket] = []
    refused, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        answer = limiter.admit(subjects)
        if isinstance(answer, Ticket):
            os.write(file, b"+")
            held.append(answer)
        else:
            refused += 1
        if isinstance(answer, Refusal) or len(held) > limit // 2:
            for ticket in held:
                os.write(file, b"-")
                ticket.leave()
            held.clear()
    say(refused=refused)


def turns(path: Path, processes: int, count: int) -> None:
    """Tells which turns it got."""
    slots = together(path, processes)
    say(turns=[slots.turn(b"turns") for _ in range(count)])


def hold(path: Path, count: int) -> None:
    """In flight until killed."""
    limiter = Limiter(Slots(path))
    subjects = group(("key", 1, Limits(tokens_per_minute=10**6, concurrent=100)))
    tickets = [limiter.admit(subjects, 1_000) for _ in range(count)]
    say(held=sum(isinstance(ticket, Ticket) for ticket in tickets))
    time.sleep(600)


def chaos(path: Path) -> None:
    """Any of the subjects, one to three at once, in any order; a turn and a look at the table now and then."""
    slots, chance = Slots(path), random.Random()
    limiter = Limiter(slots)
    groups = [
        group(*(("key", id, CHAOS_LIMITS) for id in chance.sample(range(KEYS), chance.randint(1, 3))))
        for _ in range(20)
    ]
    held: list[Ticket] = []
    for step in range(10**9):
        answer = limiter.admit(chance.choice(groups), chance.randint(0, 5_000))
        if isinstance(answer, Ticket):
            held.append(answer)
        if len(held) > 10 or (held and isinstance(answer, Refusal)):
            ticket = held.pop(chance.randrange(len(held)))
            ticket.settle(chance.randint(0, 5_000))
            ticket.leave()
        if step % 1_000 == 0:
            slots.tend()
            slots.turn(b"turns")
            say(step=step)


if __name__ == "__main__":
    _what, _path, *_rest = sys.argv[1:]
    if _what == "requests":
        requests(Path(_path), int(_rest[0]), int(_rest[1]), float(_rest[2]))
    elif _what == "tokens":
        tokens(Path(_path), int(_rest[0]), int(_rest[1]), float(_rest[2]))
    elif _what == "concurrent":
        concurrent(Path(_path), int(_rest[0]), int(_rest[1]), float(_rest[2]), Path(_rest[3]))
    elif _what == "turns":
        turns(Path(_path), int(_rest[0]), int(_rest[1]))
    elif _what == "hold":
        hold(Path(_path), int(_rest[0]))
    elif _what == "chaos":
        chaos(Path(_path))
    else:
        raise SystemExit(f"Nothing is called {_what}.")
