"""Trying a text: what is found in it, where, and what a policy would do. For people; nothing is kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import msgspec

from providers.config import PatternDoc
from providers.privacy.patterns import BUILT_IN, Pattern, custom
from providers.privacy.scanner import Match, Scanner, merged
from providers.privacy.verdict import Policy, Verdict, decide


class Found(msgspec.Struct, frozen=True):
    """A pattern that occurs, and how often."""

    name: str
    level: str
    count: int


class Trial(msgspec.Struct, frozen=True):
    """What came of it. `pieces` are the text, in order, each with the name of what it is ("" = nothing)."""

    pieces: tuple[tuple[str, str], ...]
    found: tuple[Found, ...]
    verdict: Verdict | None = None

    def __repr__(self) -> str:
        return f"<Trial that found {len(self.found)}>"


def of_policy(text: str, policy: Policy, patterns: Iterable[PatternDoc]) -> Trial:
    """Under a policy: the built-in patterns and these of an operator's that are switched on.

    Raises `ValueError` where one of them cannot be used.
    """
    findings = _scanner(tuple(pattern for pattern in patterns if pattern.enabled)).scan([text])
    matches = [match for match in findings.matches if policy.counts(match.pattern)]
    return _told(text, matches, decide(policy, findings))


def of_pattern(text: str, pattern: PatternDoc) -> Trial:
    """One pattern alone, switched on or not. Raises `ValueError` where it cannot be used."""
    return _told(text, Scanner([_own(pattern)]).scan([text]).matches)


@lru_cache(maxsize=1)
def _scanner(patterns: tuple[PatternDoc, ...]) -> Scanner:
    return Scanner((*BUILT_IN, *map(_own, patterns)))


def _own(doc: PatternDoc) -> Pattern:
    return custom(doc.name, doc.source, doc.level, ignore_case=doc.ignore_case)


def _told(text: str, matches: Sequence[Match], verdict: Verdict | None = None) -> Trial:
    data, at = text.encode("utf-8", "replace"), 0
    pieces: list[tuple[str, str]] = []
    for start, end, name in merged(matches):
        pieces += [(data[at:start].decode("utf-8", "replace"), ""), (data[start:end].decode("utf-8", "replace"), name)]
        at = end
    pieces.append((data[at:].decode("utf-8", "replace"), ""))
    counted: dict[tuple[str, str], int] = {}
    for match in matches:
        key = (match.pattern, match.level)
        counted[key] = counted.get(key, 0) + 1
    found = tuple(Found(name, level, count) for (name, level), count in sorted(counted.items()))
    return Trial(tuple(piece for piece in pieces if piece[0]), found, verdict)
