"""Model patterns: globs in which only `*` is special. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

CHARACTERS = 256  # of a model's name


def matcher(pattern: str) -> Callable[[str], bool]:
    """A test for one pattern: exact and case-sensitive, with `*` standing for any text, also none.

    Built once when a configuration is loaded. The general case is an anchored chain of literal searches, so a hostile
    name costs linear time, never back-tracking.
    """
    if pattern == "*":
        return lambda name: True
    if "*" not in pattern:
        return pattern.__eq__
    head, *middle, tail = pattern.split("*")
    if not tail and not any(middle):
        return lambda name: name.startswith(head)
    least = len(head) + len(tail) + sum(map(len, middle))

    def match(name: str) -> bool:
        if len(name) < least or not name.startswith(head) or not name.endswith(tail):
            return False
        at, end = len(head), len(name) - len(tail)
        for part in middle:
            found = name.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True

    return match


def any_matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """A test that passes when one of the patterns does."""
    tests = tuple(matcher(pattern) for pattern in patterns)
    return lambda name: any(test(name) for test in tests)


def specificity(pattern: str) -> tuple[int, int]:
    """A sort key: the more literal characters and the fewer stars, the more specific (greater)."""
    stars = pattern.count("*")
    return len(pattern) - stars, -stars


def is_valid(name: str) -> bool:
    """Whether a request may name a model, or a pattern may stand for one: 1 to 256 printable characters."""
    return 1 <= len(name) <= CHARACTERS and name.isprintable()
