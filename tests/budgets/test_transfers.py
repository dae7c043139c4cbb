"""The ledger's arithmetic: random histories against the two invariants."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from budgets import transfers


def window(capacity: int = 1_000, **changes: int) -> SimpleNamespace:
    return SimpleNamespace(**{"capacity": capacity, "committed": 0, "leased": 0, "overrun": 0, **changes})


def lease() -> SimpleNamespace:
    return SimpleNamespace(granted=0, returned=0, remaining=0)


@pytest.mark.parametrize(
    ("free", "want", "need", "workers", "expected"),
    [
        (0, 100, 0, 1, (0, False)),
        (-5, 100, 1, 1, (0, False)),
        (99, 100, 100, 1, (0, False)),
        (100, 100, 100, 1, (100, False)),
        (1_000_000, 1, 0, 1, (62_500, True)),
        (1_000_000, 1, 0, 4, (15_625, True)),
        (1_000_000, 200_000, 0, 4, (200_000, True)),
        (1_000_000, 900_000, 0, 1, (250_000, False)),
        (1_000_000, 900_000, 600_000, 1, (600_000, False)),
        (3_000, 900_000, 0, 1, (transfers.EDGE_TOKENS, False)),
        (500, 900_000, 0, 1, (500, False)),
    ],
)
def test_the_size_of_a_block(free: int, want: int, need: int, workers: int, expected: tuple[int, bool]) -> None:
    assert transfers.block_size(free=free, want=want, need=need, workers=workers) == expected


def test_more_than_is_free_cannot_be_granted() -> None:
    with pytest.raises(AssertionError):
        transfers.grant(window(committed=900), lease(), 101)


def test_a_charge_beyond_the_lease_is_granted_on_the_spot() -> None:
    pool, worker = window(), lease()
    transfers.grant(pool, worker, 100)
    assert transfers.charge(pool, worker, 150) == 50
    assert (pool.committed, pool.leased, pool.overrun) == (150, 0, 0)
    assert (worker.granted, worker.remaining) == (150, 0)


def test_an_overrun_shrinks_when_leases_come_back() -> None:
    pool, worker, other = window(), lease(), lease()
    transfers.grant(pool, other, 600)
    transfers.charge(pool, worker, 700)
    assert pool.overrun == 300
    transfers.give_back(pool, other, 400)
    assert (pool.leased, pool.overrun) == (200, 0)


def test_random_histories_keep_both_invariants() -> None:
    chance = random.Random(3)
    for _ in range(500):
        pool, leases = window(chance.randrange(2_000)), [lease() for _ in range(3)]
        overran = False
        for _ in range(50):
            worker, step = chance.choice(leases), chance.randrange(6)
            if step == 0:
                free = transfers.free_tokens(pool)
                need = chance.choice((0, chance.randrange(300)))
                tokens, _more = transfers.block_size(free=free, want=chance.randrange(500), need=need, workers=3)
                assert tokens == 0 or tokens >= need
                transfers.grant(pool, worker, tokens)
            elif step == 1:
                lacking = transfers.charge(pool, worker, chance.randrange(200))
                overran |= lacking > 0
            elif step == 2:
                transfers.give_back(pool, worker, chance.randrange(400))
            elif step == 3 and chance.random() < 0.2:
                transfers.set_capacity(pool, chance.randrange(2_000))
                overran = True
            elif step == 4 and chance.random() < 0.2:
                transfers.end_lease(pool, worker, spent=chance.random() < 0.5)
            elif step == 5 and chance.random() < 0.1:
                transfers.adopt(pool, worker, worker.granted + chance.randrange(100))
                overran = True
            assert pool.leased == sum(each.remaining for each in leases)
            assert min(pool.leased, pool.committed, pool.overrun, *(each.remaining for each in leases)) >= 0
            assert pool.committed + pool.leased <= pool.capacity + pool.overrun
            assert overran or pool.overrun == 0
