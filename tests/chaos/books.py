"""Lays the truth files beside the ledger and says in one line what does not fit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.chaos import truth
from tests.chaos.databases import rows

Purse = tuple[int, int, int]  # pool, unit, window start
TOKENS, PICO_USD = 0, 1
PICO_PER_MILLI_USD = 10**9
COMMITTING_ENTRIES = ("correction", "write_off")  # those that changed `committed`; the others changed `capacity`


class Found(NamedTuple):
    """A purse as the ledger has it; `capacity` None = no limit."""

    capacity: int | None
    adjusted: int
    committed: int

    @property
    def rest(self) -> int:
        """What nobody has used."""
        return 0 if self.capacity is None else self.capacity - self.committed


@dataclass
class Verdict:
    """What came out. The five figures of the line, and a few words on whatever is wrong."""

    seed: int
    lost: int = 0
    doubled: int = 0
    over: int = 0
    stranded: int = 0
    charged_not_delivered: int = 0
    bound: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the books are right."""
        clean = not (self.lost or self.doubled or self.over or self.stranded or self.problems)
        return clean and self.charged_not_delivered <= self.bound

    def line(self) -> str:
        """The line of a run."""
        return (
            f"seed={self.seed} lost={self.lost} doubled={self.doubled} over={self.over} stranded={self.stranded} "
            f"charged_not_delivered={self.charged_not_delivered} (at most {self.bound})"
        )

    def note(self, kind: str, what: str, count: int = 1) -> None:
        """Count something that is wrong and keep the first words about it."""
        setattr(self, kind, getattr(self, kind) + count)
        if len(self.problems) < 20:
            self.problems.append(f"{kind}: {what}")


@dataclass
class Sums:
    """What the usage rows come to."""

    count: int = 0
    tokens: int = 0
    pico: int = 0
    by_pools: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))


def check_requests(connection: Any, seen: truth.Truth, verdict: Verdict) -> Sums:
    """Every usage row against what clients and upstream saw of it; fills `verdict` and returns the rows' sums."""
    sums, charged = Sums(), set()
    whole = seen.whole
    for rid_hex, tokens, pico, pools in rows(connection, "SELECT rid, tokens, cost_pico, pools FROM budgets_usage"):
        rid, pico = bytes.fromhex(rid_hex), int(pico)
        sums.count += 1
        sums.tokens += tokens
        sums.pico += pico
        entry = sums.by_pools[pools]
        entry[0] += tokens
        entry[1] += pico
        if rid in charged:
            verdict.note("doubled", f"{rid_hex} has two usage rows")
            continue
        charged.add(rid)
        told = whole.get(rid)
        if told is not None:
            if told != (tokens, pico):
                kind = "lost" if (tokens, pico) < told else "doubled"
                verdict.note(kind, f"{rid_hex} was told {told}, charged {(tokens, pico)}")
            continue
        delivered = seen.parts.get(rid, 0)
        if tokens < delivered:
            verdict.note("lost", f"{rid_hex} has {delivered} tokens, charged {tokens}")
        verdict.charged_not_delivered += max(0, tokens - delivered)
    for rid in whole.keys() - charged:
        verdict.note("lost", f"{rid.hex()} was delivered and is not in the ledger")
    for rid in seen.called - seen.refused - charged - whole.keys():
        verdict.note("lost", f"{rid.hex()} reached the upstream and is not in the ledger")
    return sums


def check_purses(connection: Any, sums: Sums, verdict: Verdict) -> dict[Purse, Found]:
    """Every purse's `committed` against its usage rows and entries; returns all purses."""
    expected: dict[Purse, int] = defaultdict(int)
    for pools, (tokens, pico) in sums.by_pools.items():
        for pool in pools.split():
            pool_id, _, start = pool.partition("@")
            expected[int(pool_id), TOKENS, int(start)] += tokens
            expected[int(pool_id), PICO_USD, int(start)] += pico
    adjusted_by: dict[Purse, int] = defaultdict(int)
    query = "SELECT kind, pool_id, unit, window_start, amount FROM budgets_ledgerentry"
    for kind, pool_id, unit, start, amount in rows(connection, query):
        (expected if kind in COMMITTING_ENTRIES else adjusted_by)[pool_id, unit, start] += amount
    purses: dict[Purse, Found] = {}
    query = "SELECT pool_id, unit, window_start, capacity, adjusted, committed, leased FROM budgets_poolwindow"
    for pool_id, unit, start, capacity, adjusted, committed, leased in rows(connection, query):
        purse = (pool_id, unit, start)
        purses[purse] = Found(capacity, adjusted, committed)
        wanted = expected.pop(purse, 0)
        if committed != wanted:
            kind = "doubled" if committed > wanted else "lost"
            verdict.note(kind, f"purse {purse} has {committed} committed, its rows come to {wanted}")
        if leased:
            verdict.note("stranded", f"purse {purse} has {leased} leased out", leased)
        if adjusted != adjusted_by[purse]:
            verdict.note("doubled", f"purse {purse} is adjusted by {adjusted}, its entries say {adjusted_by[purse]}")
    for purse, amount in expected.items():
        if amount:
            verdict.note("lost", f"purse {purse} does not exist, {amount} belong into it")
    return purses


def check_leftovers(connection: Any, files: Sequence[str], verdict: Verdict) -> None:
    """Leases, positions and journals of the dead must be gone."""
    for owner, remaining in rows(connection, "SELECT owner, remaining FROM budgets_lease"):
        verdict.note("stranded", f"a lease of {owner} with {remaining} left", max(1, remaining))
    for (owner,) in rows(connection, "SELECT owner FROM budgets_journalposition"):
        verdict.note("stranded", f"a journal position of {owner}")
    for name in files:
        verdict.note("stranded", f"the file {name} in the journal directory")


def check_rollups(connection: Any, sums: Sums, verdict: Verdict) -> None:
    """The rollups must come to the same as the rows."""
    names = ("attempts", "tokens", "cost_milli_usd", "cost_rest_pico")
    columns = ", ".join(f"COALESCE(SUM({name}), 0)" for name in names)
    *counts, milli, rest = map(int, next(rows(connection, f"SELECT {columns} FROM budgets_usagerollup")))
    found = (*counts, milli * PICO_PER_MILLI_USD + rest)
    wanted = (sums.count, sums.tokens, sums.pico)
    if found != wanted:
        kind = "doubled" if found > wanted else "lost"
        verdict.note(kind, f"the rollups come to {found} (rows, tokens, pico-USD), the usage rows to {wanted}")
    for cut, *counts, milli, rest in rows(connection, f"SELECT cut, {columns} FROM budgets_usageday GROUP BY cut"):
        found = (*map(int, counts), int(milli) * PICO_PER_MILLI_USD + int(rest))
        if found != wanted:
            kind = "doubled" if found > wanted else "lost"
            verdict.note(kind, f"the sums by day {cut} come to {found}, the usage rows to {wanted}")
