"""Moving one row of a list that is ordered by whole numbers: which numbers must change. Pure."""

from __future__ import annotations

from collections.abc import Sequence

ROOM = 10  # left before the first row and behind the last


def renumbered(rows: Sequence[tuple[int, int]], moved: int, place: int) -> dict[int, int]:
    """The new priorities, by id, that put the row `moved` in front of the row at `place` of the others.

    `rows` are (id, priority) in their order, lowest priority first; `place` counts the rows without the moved one, so
    their number means the end. Afterwards the moved row's priority is above that of the row before it and below that of
    the row behind it, never equal: a tie would leave the order to something else. Rows that had the same priority and
    are on the same side of the moved one keep having the same. Where there is no room between the two neighbours, the
    side is pushed away on which fewer rows change. Empty when nothing changes.
    """
    old = dict(rows)
    others = [row for row in rows if row[0] != moved]
    before, behind = others[:place], others[place:]
    low = before[-1][1] if before else None
    high = behind[0][1] if behind else None
    if (low is None or low < old[moved]) and (high is None or old[moved] < high):
        return {}
    if low is None or high is None:
        return {moved: _end(low, high)}
    if high - low >= 2:
        return {moved: (low + high) // 2}
    down = {moved: low + 1, **_pushed(behind, low + 1, 1)}
    up = {moved: high - 1, **_pushed(before[::-1], high - 1, -1)}
    return down if len(down) <= len(up) else up


def _end(low: int | None, high: int | None) -> int:
    if high is None:
        return (low or 0) + ROOM
    return max(0, high - ROOM) if high > 0 else high - ROOM


def _pushed(rows: Sequence[tuple[int, int]], last: int, step: int) -> dict[int, int]:
    """New priorities of the rows that follow `last` in the direction `step`, until one is far enough away."""
    changed: dict[int, int] = {}
    group = None
    for row, priority in rows:
        if priority != group:
            if (priority - last) * step > 0:
                break
            group, last = priority, last + step
        changed[row] = last
    return changed
