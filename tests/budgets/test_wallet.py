from __future__ import annotations

import random

import pytest

from budgets.wallet import ASK_AGAIN_S, ASK_LOST_S, Wallet


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def balanced(wallet: Wallet) -> bool:
    return wallet.free + wallet.held + wallet.used == wallet.total - wallet.returned


def test_a_hold_that_does_not_fit_changes_nothing() -> None:
    wallet = Wallet()
    wallet.granted(100, more=True, spent_out=False)
    assert wallet.try_hold(60)
    assert not wallet.try_hold(41)
    assert (wallet.free, wallet.held) == (40, 60)


def test_settling_returns_what_was_not_used() -> None:
    wallet = Wallet()
    wallet.granted(100, more=True, spent_out=False)
    wallet.try_hold(60)
    wallet.settle(60, 25)
    assert (wallet.free, wallet.held, wallet.used) == (75, 0, 25)


def test_an_overrun_is_taken_from_free_and_may_leave_a_debt() -> None:
    wallet = Wallet()
    wallet.granted(100, more=True, spent_out=False)
    wallet.try_hold(100)
    wallet.settle(100, 150)
    assert wallet.free == -50
    assert not wallet.try_hold(1)
    assert balanced(wallet)
    wallet.granted(200, more=True, spent_out=False)
    assert wallet.free == 50


def test_more_cannot_be_settled_than_is_held() -> None:
    wallet = Wallet()
    wallet.granted(100, more=True, spent_out=False)
    wallet.try_hold(60)
    wallet.settle(60, 60)
    with pytest.raises(AssertionError):
        wallet.settle(60, 60)


def test_repeated_and_late_answers_change_nothing() -> None:
    wallet = Wallet()
    assert wallet.granted(100, more=True, spent_out=False) == 100
    assert wallet.granted(100, more=True, spent_out=False) == 0
    assert wallet.granted(60, more=True, spent_out=False) == 0
    assert (wallet.free, wallet.total) == (100, 100)


def test_returned_tokens_do_not_come_back_with_a_later_total() -> None:
    wallet = Wallet()
    wallet.granted(100, more=True, spent_out=False)
    wallet.try_hold(30)
    assert wallet.give_back(keep=20) == 50
    assert (wallet.free, wallet.returned, wallet.total) == (20, 50, 100)
    wallet.granted(130, more=True, spent_out=False)
    assert wallet.free == 50
    assert balanced(wallet)


def test_it_asks_again_at_half_and_not_while_an_answer_is_due() -> None:
    clock = Clock()
    wallet = Wallet(clock=clock)
    wallet.granted(100, more=True, spent_out=False)
    wallet.try_hold(50)
    assert wallet.wants() is None
    wallet.try_hold(1)
    assert wallet.wants() is not None
    wallet.asking()
    assert wallet.wants() is None
    clock.now += ASK_LOST_S
    assert wallet.wants() is not None


def test_near_the_edge_it_does_not_ask_ahead() -> None:
    wallet = Wallet()
    wallet.granted(100, more=False, spent_out=False)
    wallet.try_hold(99)
    assert wallet.wants() is None


def test_an_answer_that_brought_nothing_is_not_asked_for_again_at_once() -> None:
    clock = Clock()
    wallet = Wallet(clock=clock)
    wallet.granted(10, more=True, spent_out=False)
    wallet.try_hold(10)
    wallet.asking()
    wallet.granted(10, more=True, spent_out=False)
    assert wallet.in_vain()
    assert not wallet.may_ask()
    clock.now += ASK_AGAIN_S
    assert wallet.may_ask()


def test_a_block_lasts_ten_seconds_at_the_wallets_own_rate() -> None:
    clock = Clock()
    wallet = Wallet(clock=clock)
    wallet.granted(10_000, more=True, spent_out=False)
    for _ in range(10):
        clock.now += 0.1
        wallet.try_hold(100)
        wallet.settle(100, 50)
    assert wallet.block() == pytest.approx(5_000, abs=2)


@pytest.mark.parametrize("seed", range(10))
def test_no_history_of_steps_ever_creates_or_loses_anything(seed: int) -> None:
    """10,000 histories each. The ledger beside the wallet is the oracle: what was granted, returned and charged."""
    chance = random.Random(seed)
    pick, below = chance.random, chance.randrange
    for _ in range(10_000):
        wallet, holds, granted, charged = Wallet(clock=_zero), [], 0, 0
        for _ in range(12):
            step = pick()
            if step < 0.2:
                granted += below(200)
                total = granted if step < 0.15 else below(granted + 1)  # an answer that comes late, or twice
                wallet.granted(total, more=step < 0.1, spent_out=False)
                granted = wallet.total
            elif step < 0.6:
                amount = below(120)
                fits = amount <= wallet.free
                assert wallet.try_hold(amount) is fits
                if fits:
                    holds.append(amount)
            elif step < 0.9 and holds:
                held = holds.pop(below(len(holds)))
                used = below(held * 2 + 1)
                wallet.settle(held, used)
                charged += used
            elif holds:
                wallet.release(holds.pop())
            else:
                wallet.give_back(below(50))
            assert wallet.held == sum(holds)
            assert wallet.used == charged
            assert wallet.free + wallet.held + charged == granted - wallet.returned
        for held in holds:
            wallet.release(held)
        assert wallet.held == 0
        for held in holds:  # none of them ends twice
            if held:
                with pytest.raises(AssertionError):
                    wallet.release(held)


def _zero() -> float:
    return 0.0
