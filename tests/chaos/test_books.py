"""The judge itself: right books pass, and each kind of wrong ones is found."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest

from tests.chaos import books, schedule
from tests.chaos.books import Verdict
from tests.chaos.truth import Truth

TABLES = """
CREATE TABLE budgets_usage (rid, tokens, cost_pico, pools);
CREATE TABLE budgets_poolwindow (pool_id, unit, window_start, capacity, adjusted, committed, leased);
CREATE TABLE budgets_ledgerentry (kind, pool_id, unit, window_start, amount);
CREATE TABLE budgets_lease (owner, remaining);
CREATE TABLE budgets_journalposition (owner);
INSERT INTO budgets_usage VALUES ('aa', 10, 500, '1@0 2@60'), ('bb', 7, 90, '1@0'), ('cc', 5, 0, '1@0');
INSERT INTO budgets_poolwindow VALUES (1, 0, 0, 100, 0, 22, 0), (1, 1, 0, NULL, 0, 590, 0),
    (2, 0, 60, 50, -5, 12, 0), (2, 1, 60, NULL, 0, 500, 0), (2, 0, 120, 60, 5, 0, 0);
INSERT INTO budgets_ledgerentry VALUES ('correction', 2, 0, 60, 2), ('carry', 2, 0, 60, -5), ('carry', 2, 0, 120, 5);
"""


def truth() -> Truth:
    whole = {b"\xaa": (10, 500), b"\xbb": (7, 90)}
    return Truth(whole=whole, parts={b"\xcc": 3}, called={b"\xaa", b"\xbb", b"\xcc", b"\xdd"}, refused={b"\xdd"})


def judge(seen: Truth, change: str = "", files: tuple[str, ...] = ()) -> Verdict:
    connection = sqlite3.connect(":memory:")
    connection.executescript(TABLES + change)
    verdict = Verdict(1, bound=10)
    sums = books.check_requests(connection, seen, verdict)
    books.check_purses(connection, sums, verdict)
    books.check_leftovers(connection, files, verdict)
    return verdict


def test_right_books_pass_and_say_what_was_charged_and_not_delivered() -> None:
    verdict = judge(truth())
    assert verdict.passed, verdict.problems
    assert verdict.line() == "seed=1 lost=0 doubled=0 over=0 stranded=0 charged_not_delivered=2 (at most 10)"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ("DELETE FROM budgets_usage WHERE rid = 'bb'", "lost"),
        ("UPDATE budgets_usage SET tokens = 9 WHERE rid = 'aa'", "lost"),
        ("UPDATE budgets_usage SET cost_pico = 501 WHERE rid = 'aa'", "doubled"),
        ("UPDATE budgets_usage SET tokens = 2 WHERE rid = 'cc'", "lost"),
        ("INSERT INTO budgets_usage VALUES ('aa', 10, 500, '1@0')", "doubled"),
        ("UPDATE budgets_poolwindow SET committed = 23 WHERE pool_id = 1 AND unit = 0", "doubled"),
        ("UPDATE budgets_poolwindow SET committed = 589 WHERE pool_id = 1 AND unit = 1", "lost"),
        ("DELETE FROM budgets_poolwindow WHERE pool_id = 2 AND unit = 1", "lost"),
        ("UPDATE budgets_poolwindow SET leased = 1 WHERE pool_id = 1 AND unit = 0", "stranded"),
        ("UPDATE budgets_poolwindow SET adjusted = 6 WHERE window_start = 120", "doubled"),
        ("INSERT INTO budgets_lease VALUES ('w', 0)", "stranded"),
        ("INSERT INTO budgets_journalposition VALUES ('w')", "stranded"),
    ],
)
def test_wrong_books_are_found(change: str, kind: str) -> None:
    verdict = judge(truth(), change)
    assert getattr(verdict, kind), verdict.problems
    assert not verdict.passed


def _served_without_a_hold(seen: Truth) -> None:
    seen.called.add(b"\xee")


def _delivered_and_forgotten(seen: Truth) -> None:
    seen.whole[b"\xee"] = (1, 1)


@pytest.mark.parametrize("change", [_served_without_a_hold, _delivered_and_forgotten])
def test_what_only_client_or_upstream_know_of_is_found(change: Callable[[Truth], None]) -> None:
    seen = truth()
    change(seen)
    assert judge(seen).lost == 1


def test_a_file_left_behind_and_too_much_charged_are_found() -> None:
    assert judge(truth(), files=("w.lock",)).stranded == 1
    seen = truth()
    del seen.whole[b"\xaa"]
    verdict = judge(seen)
    assert verdict.charged_not_delivered == 12
    assert not verdict.passed


def test_the_seed_alone_makes_the_plan() -> None:
    def plan(seed: int) -> list[schedule.Blow]:
        return schedule.plan(seed, answers=1000, workers=4, worker_kills=40, control_kills=10, database_stops=8)

    assert plan(7) == plan(7) != plan(8)
    assert len(plan(7)) == 58
    assert plan(7) == sorted(plan(7))
    assert max(blow.at for blow in plan(7)) < 1000
