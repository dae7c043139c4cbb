"""The ledger's arithmetic: random histories over several purses against what must always hold."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from budgets import transfers
from budgets.records import Unit


def window(capacity: int | None = 1_000, **changes: int) -> SimpleNamespace:
    return SimpleNamespace(
        **{"capacity": capacity, "adjusted": 0, "committed": 0, "leased": 0, "overrun": 0, **changes}
    )


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
        (3_000, 900_000, 0, 1, (transfers.EDGE[Unit.TOKENS], False)),
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


def test_a_prefetch_is_bounded_so_that_a_lease_can_live_for_ever() -> None:
    free = transfers.CAPACITY_LIMIT
    most = transfers.BLOCK_LIMIT
    assert transfers.block_size(free=free, want=1, need=0, workers=1, unit=Unit.PICO_USD) == (most, True)
    assert transfers.block_size(free=free, want=free, need=0, workers=1, unit=Unit.PICO_USD) == (most, True)
    assert transfers.block_size(free=free, want=1, need=2 * most, workers=1, unit=Unit.PICO_USD) == (2 * most, True)
    assert transfers.block_size(free=2 * most, want=most, need=0, workers=1) == (most // 2, False)


def test_what_a_mistyped_price_charges_stays_within_the_columns() -> None:
    pool, worker = window(10**15), lease()
    transfers.grant(pool, worker, 100)
    for _ in range(12):
        assert transfers.charge(pool, worker, 10**18) >= 10**18 - 100
    assert transfers.room(worker) == worker.remaining == pool.leased == 0
    assert worker.granted == pool.committed == transfers.CAPACITY_LIMIT
    assert pool.overrun == pool.committed - pool.capacity


def test_what_is_adopted_stays_within_the_columns() -> None:
    pool = window(committed=transfers.CAPACITY_LIMIT // 2)
    for worker in (lease(), lease()):
        transfers.adopt(pool, worker, transfers.CAPACITY_LIMIT)
    assert pool.committed + pool.leased == transfers.CAPACITY_LIMIT


def test_a_purse_that_was_changed_by_hand_is_set_right() -> None:
    for take in (
        lambda pool, worker: transfers.give_back(pool, worker, 100),
        lambda pool, worker: transfers.charge(pool, worker, 100),
        lambda pool, worker: transfers.end_lease(pool, worker, spent=False),
    ):
        pool, worker = window(), lease()
        transfers.grant(pool, worker, 100)
        pool.leased = 30
        take(pool, worker)
        assert (pool.leased, worker.remaining) == (0, 0)


def test_an_overrun_shrinks_when_leases_come_back() -> None:
    pool, worker, other = window(), lease(), lease()
    transfers.grant(pool, other, 600)
    transfers.charge(pool, worker, 700)
    assert pool.overrun == 300
    transfers.give_back(pool, other, 400)
    assert (pool.leased, pool.overrun) == (200, 0)


def test_the_edge_is_a_cent_for_money() -> None:
    assert transfers.block_size(free=3 * 10**10, want=9**12, need=0, workers=1, unit=Unit.PICO_USD) == (10**10, False)
    assert transfers.block_size(free=10**9, want=9**12, need=0, workers=1, unit=Unit.PICO_USD) == (10**9, False)


def test_without_a_limit_everything_is_counted_and_nothing_is_leased() -> None:
    pool = window(None)
    transfers.charge_observed(pool, 10**15)
    assert (pool.committed, pool.overrun, transfers.free_amount(pool)) == (10**15, 0, 0)
    assert transfers.block_size(free=transfers.free_amount(pool), want=5, need=0, workers=1) == (0, False)
    transfers.set_limit(pool, 100)
    assert pool.overrun == 10**15 - 100
    transfers.set_limit(pool, None)
    assert pool.overrun == 0


def test_an_observed_charge_may_pass_the_capacity() -> None:
    pool, worker = window(100), lease()
    transfers.grant(pool, worker, 60)
    transfers.charge_observed(pool, 70)
    assert (pool.committed, pool.leased, pool.overrun) == (70, 60, 30)


def test_what_was_moved_stays_moved_when_the_limit_changes() -> None:
    giver, taker = window(1_000), window(500)
    transfers.charge_observed(giver, 300)
    assert transfers.move_free(giver, taker, 400) == 400
    assert (giver.capacity, taker.capacity) == (600, 900)
    transfers.set_limit(giver, 2_000)
    assert (giver.capacity, giver.adjusted) == (1_600, -400)
    transfers.set_limit(giver, 100)
    assert giver.capacity == 0, "never less than nothing"
    transfers.set_limit(giver, 1_000)
    assert giver.capacity == 600


def test_only_what_is_free_is_moved_and_only_between_limited_purses() -> None:
    giver, taker = window(1_000, committed=900, leased=80), window(0)
    assert transfers.move_free(giver, taker) == 20
    assert transfers.move_free(giver, taker) == 0
    assert transfers.move_free(giver, window(None)) == 0
    assert transfers.move_free(window(None), taker) == 0


def test_what_is_moved_never_makes_a_column_too_small() -> None:
    giver, taker = window(10**15), window(transfers.CAPACITY_LIMIT - 5)
    assert transfers.move_free(giver, taker) == 5
    full = window(None, committed=transfers.CAPACITY_LIMIT - 5)
    transfers.charge_observed(full, 10**18)
    assert full.committed == transfers.CAPACITY_LIMIT


def test_a_correction_gives_back_at_most_what_was_charged() -> None:
    pool = window(100, committed=150, overrun=50)
    assert transfers.correct(pool, -60) == -60
    assert (pool.committed, pool.overrun) == (90, 0)
    assert transfers.correct(pool, -100) == -90
    assert transfers.correct(pool, 120) == 120
    assert pool.overrun == 20


@pytest.mark.parametrize(
    ("committed", "capacity", "alerts", "expected"),
    [
        (79, 100, "80,100", set()),
        (80, 100, "80,100", {80}),
        (100, 100, "80,100", {80, 100}),
        (151, 100, "80, 100 ,,150", {80, 100, 150}),
        (10**15, 10**15 + 1, "100", set()),
        (0, 0, "50", set()),
        (1, 0, "50", {50}),
        (10**9, None, "50", set()),
        (50, 100, "", set()),
    ],
)
def test_the_alerts_that_were_reached(committed: int, capacity: int | None, alerts: str, expected: set[int]) -> None:
    assert transfers.reached(window(capacity, committed=committed), alerts) == expected


class World:
    """Several purses with workers' leases, and a model of what must be in them."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.pools = [window(chance.choice((None, chance.randrange(2_000), chance.randrange(2_000)))) for _ in range(4)]
        self.leases = [[lease() for _ in range(3)] for _ in self.pools]
        self.limits = [pool.capacity for pool in self.pools]
        self.charged = [0 for _ in self.pools]
        self.forced = [False for _ in self.pools]  # something was allowed to pass the limit

    def step(self) -> None:
        at = self.chance.randrange(len(self.pools))
        pool, worker = self.pools[at], self.chance.choice(self.leases[at])
        match self.chance.randrange(10):
            case 0 | 1:
                self.lease_some(pool, worker)
            case 2 | 3:
                amount = self.chance.randrange(200)
                self.forced[at] |= transfers.charge(pool, worker, amount) > 0
                self.charged[at] += amount
            case 4:
                transfers.give_back(pool, worker, worker.returned + self.chance.randrange(-50, 200))
            case 5:
                amount = self.chance.randrange(50)
                transfers.charge_observed(pool, amount)
                self.charged[at] += amount
                self.forced[at] = True
            case 6:
                self.move(at)
            case 7:
                spent = self.chance.random() < 0.5
                rest = transfers.end_lease(pool, worker, spent=spent)
                self.charged[at] += rest if spent else 0
            case 8:
                self.charged[at] += transfers.correct(pool, self.chance.randrange(-100, 20))
                self.forced[at] = True
            case _:
                self.rare(at)

    def lease_some(self, pool: SimpleNamespace, worker: SimpleNamespace) -> None:
        free = transfers.free_amount(pool)
        need = self.chance.choice((0, self.chance.randrange(300)))
        amount, _more = transfers.block_size(free=free, want=self.chance.randrange(500), need=need, workers=3)
        assert amount == 0 or amount >= need
        transfers.grant(pool, worker, amount)

    def move(self, at: int) -> None:
        to = self.chance.randrange(len(self.pools))
        if to == at:
            return
        source, target = self.pools[at], self.pools[to]
        before = (source.capacity or 0) + (target.capacity or 0)
        moved = transfers.move_free(source, target, self.chance.choice((None, self.chance.randrange(100))))
        assert (source.capacity or 0) + (target.capacity or 0) == before
        assert not moved or transfers.free_amount(source) >= 0

    def rare(self, at: int) -> None:
        pool = self.pools[at]
        if self.chance.random() < 0.5:
            limit = self.chance.choice((None, self.chance.randrange(2_000)))
            transfers.set_limit(pool, limit)
            self.limits[at], self.forced[at] = limit, True
        else:
            worker = self.chance.choice(self.leases[at])
            transfers.adopt(pool, worker, worker.granted + self.chance.randrange(100))
            self.forced[at] = True

    def check(self) -> None:
        for pool, leases, charged, forced in zip(self.pools, self.leases, self.charged, self.forced, strict=True):
            assert pool.leased == sum(each.remaining for each in leases)
            assert pool.committed == charged
            assert min(pool.leased, pool.committed, pool.overrun, *(each.remaining for each in leases)) >= 0
            if pool.capacity is None:
                assert pool.overrun == 0
            else:
                assert pool.capacity >= 0
                assert pool.overrun == max(0, pool.committed + pool.leased - pool.capacity)
                assert forced or pool.overrun == 0
        if all(limit is not None for limit in self.limits) and not any(self.forced):
            assert sum(pool.capacity for pool in self.pools) == sum(self.limits)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
def test_random_histories_of_several_purses(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(250):
        world = World(chance)
        for _ in range(100):
            world.step()
            world.check()
