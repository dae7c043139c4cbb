"""The pools, the keys and the requests of a ledger run. Pure; everything follows from a seed and a size.

Every request draws on a team, an agent and one more pool, in tokens and in money. A request of several parts is marked
every 64 events, as the relay does; nothing is longer than `OUTPUT_MAX` tokens.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from budgets.records import PoolRecord, Unit
from budgets.windows import WindowSpec

INPUT_PICO, OUTPUT_PICO, REQUEST_PICO = 1_500_007, 6_000_011, 123_457  # odd, so that no sum is right by rounding
INPUT_BOUND = 40
OUTPUT_MAX = 900
MARK_EVENTS = 64  # between two delivered marks
STEP_TOKENS = 342  # 1 KiB at three bytes per token: what may be delivered and not marked, or the other way round
OVERRUN_MAX = 60
LONGEST_PAUSE_S = 0.008
MEAN_TOKENS = 135.0  # of a request, for the sizes of pools


class MadePool(NamedTuple):
    """A pool of the run. `window_s` 0 = lifetime; `growth` tokens are added to the limit every second."""

    id: int
    name: str
    tokens: int | None
    usd: int | None = None
    mode: str = "hard"
    window_s: int = 0
    carry: bool = False
    growth: int = 0

    @property
    def strict(self) -> bool:
        """Whether nothing may ever be above its limit."""
        return self.mode == "hard" and self.name != "overruns"

    def units(self) -> tuple[int, ...]:
        """The units that have a limit."""
        limits = ((Unit.TOKENS, self.tokens), (Unit.PICO_USD, self.usd))
        return tuple(int(unit) for unit, limit in limits if limit is not None)

    def limit(self, unit: int, running_s: float = 0.0) -> int | None:
        """Tokens or pico-USD per window, after so many seconds of the run."""
        if unit == Unit.PICO_USD:
            return None if self.usd is None else self.usd * 10**12
        return None if self.tokens is None else self.tokens + self.growth * int(running_s)

    def start(self, now: float) -> int:
        """The start of the window around `now`."""
        return int(now // self.window_s) * self.window_s if self.window_s else 0

    def specs(self, start: int, previous: int | None, running_s: float = 0.0) -> list[WindowSpec]:
        """What the ledger should have for the window that begins at `start`."""
        end = start + self.window_s if self.window_s else 0
        carry_from = previous if self.carry else None
        return [
            WindowSpec(self.id, unit, start, end, self.limit(unit, running_s), "80,100", carry_from)
            for unit in (int(Unit.TOKENS), int(Unit.PICO_USD))
        ]

    def record(self, start: int) -> PoolRecord:
        """The pool as workers know it."""
        return PoolRecord(
            id=self.id,
            name=self.name,
            mode=self.mode,
            window_start=start,
            window_end=start + self.window_s if self.window_s else 0,
            units=self.units(),
        )


TEAM, AGENT_A, AGENT_B, SOFT, HOT, FAST, CARRY, OVERRUNS = range(1, 9)


def pools(answers: int, rate: float) -> list[MadePool]:
    """The pools of a run of so many answers, expected at `rate` per second.

    The hot pool is always near its edge, because its limit grows a little more slowly than what is asked of it.
    """
    ample = int(answers * MEAN_TOKENS * 50) + 10**9
    share = rate * MEAN_TOKENS / len(KEYS)  # tokens per second of one key
    return [
        MadePool(TEAM, "team", ample, usd=1_000_000),
        MadePool(AGENT_A, "agent a", ample),
        MadePool(AGENT_B, "agent b", int(answers * MEAN_TOKENS / 20), mode="observe"),
        MadePool(SOFT, "key", int(answers * MEAN_TOKENS / len(KEYS) / 2), usd=100_000, mode="soft"),
        MadePool(HOT, "hot", int(share), usd=1_000_000, growth=int(share * 0.6)),
        MadePool(FAST, "fast", int(share * 0.6), window_s=1),
        MadePool(CARRY, "carry", int(share * 2), window_s=2, carry=True),
        MadePool(OVERRUNS, "overruns", ample),
    ]


KEYS: tuple[tuple[int, ...], ...] = (  # the chain of each key
    (TEAM, AGENT_A, HOT),
    (TEAM, AGENT_A, FAST),
    (TEAM, AGENT_B, CARRY),
    (TEAM, AGENT_A, OVERRUNS),
    (TEAM, AGENT_B, SOFT),
    (TEAM, AGENT_B, AGENT_A),
)


class MadeRequest(NamedTuple):
    """One request and what will become of it. Amounts are tokens; `refused`: the upstream does nothing for it."""

    input_used: int
    output_bound: int
    output_used: int
    streamed: bool
    refused: bool
    pause_s: float = 0.0  # of the upstream, before each part

    @property
    def bound(self) -> int:
        """What is held."""
        return INPUT_BOUND + self.output_bound

    @property
    def bound_pico(self) -> int:
        """What is held in money."""
        return cost(INPUT_BOUND, self.output_bound)

    @property
    def used(self) -> int:
        """What it uses in all."""
        return self.input_used + self.output_used


def cost(input_tokens: int, output_tokens: int) -> int:
    """pico-USD of one request."""
    return REQUEST_PICO + input_tokens * INPUT_PICO + output_tokens * OUTPUT_PICO


def requests(seed: str, count: int, *, overruns: bool) -> list[MadeRequest]:
    """So many requests to take in turn. With `overruns` some use more than they could be held for."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        streamed = chance.random() < 0.25
        output_bound = chance.randint(20, OUTPUT_MAX if streamed else STEP_TOKENS - INPUT_BOUND)
        output_used = chance.randint(0, min(output_bound, 250)) if chance.random() < 0.8 else output_bound
        if overruns and chance.random() < 0.05:
            output_used = output_bound + chance.randint(1, OVERRUN_MAX)
        refused, pause_s = chance.random() < 0.08, chance.random() * LONGEST_PAUSE_S
        made.append(MadeRequest(chance.randint(1, INPUT_BOUND), output_bound, output_used, streamed, refused, pause_s))
    return made
