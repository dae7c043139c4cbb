"""Moving a row of a list that is ordered by priorities: the order asked for comes out, and little changes."""

from __future__ import annotations

import itertools
import random

from providers.ordering import renumbered


def sorted_rows(priorities):
    return [(number, priority) for number, priority in enumerate(sorted(priorities), start=1)]


def test_any_move_of_any_small_list_brings_the_row_to_its_place_and_leaves_the_others_in_order():
    for priorities in itertools.combinations_with_replacement((0, 1, 2, 10), 4):
        rows = sorted_rows(priorities)
        for moved, place in itertools.product(range(1, 5), range(4)):
            changed = renumbered(rows, moved, place)
            after = {row: changed.get(row, priority) for row, priority in rows}
            others = [row for row, _ in rows if row != moved]
            assert all(after[row] < after[moved] for row in others[:place]), (rows, moved, place, changed)
            assert all(after[row] > after[moved] for row in others[place:]), (rows, moved, place, changed)
            values = [after[row] for row in others]
            assert values == sorted(values), (rows, moved, place, changed)


def test_rows_with_the_same_priority_on_one_side_keep_having_the_same():
    rows = [(1, 10), (2, 10), (3, 10), (4, 10), (5, 10), (6, 11)]
    changed = renumbered(rows, 6, 3)
    assert changed == {6: 11, 4: 12, 5: 12}


def test_a_gap_is_used_and_nothing_else_changes():
    assert renumbered([(1, 10), (2, 20), (3, 30)], 3, 1) == {3: 15}
    assert renumbered([(1, 10), (2, 20), (3, 30)], 3, 0) == {3: 0}
    assert renumbered([(1, 10), (2, 20), (3, 30)], 1, 2) == {1: 40}


def test_a_row_that_is_at_its_place_changes_nothing():
    assert renumbered([(1, 10), (2, 20), (3, 30)], 2, 1) == {}
    assert renumbered([(1, 10)], 1, 0) == {}


def test_of_two_sides_the_one_with_fewer_rows_is_pushed_away():
    rows = [(number, 10) for number in range(1, 101)]
    assert len(renumbered(rows, 50, 3)) == 1 + 3
    assert len(renumbered(rows, 50, 95)) == 1 + 4


def test_pushing_stops_at_the_first_gap():
    rows = [(1, 1), (2, 2), (3, 3), (4, 9), (5, 10)]
    assert renumbered(rows, 5, 2) == {5: 3, 3: 4}


def test_priorities_stay_positive_where_there_is_room():
    rng = random.Random(4)
    for _ in range(200):
        rows = sorted_rows([rng.randrange(1, 50) for _ in range(6)])
        assert renumbered(rows, 6, 0).get(6, 0) >= 0 or rows[0][1] <= 0
