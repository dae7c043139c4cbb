"""What is done with a request in which something private was found. Pure; what comes out holds no text.

Levels are public < internal < confidential < restricted. For each but public a policy names an action, from the
mildest: `allow`, `redact` (placeholders instead of the values), `local` (only local providers may be asked), `refuse`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Literal

import msgspec

from providers.config import PrivacyDoc
from providers.privacy.patterns import LEVELS, RANK, Level, Pattern, chosen
from providers.privacy.scanner import NOTHING, Findings, Match

Action = Literal["allow", "redact", "local", "refuse"]
AnswerAction = Literal["redact", "refuse"]
ACTIONS: tuple[Action, ...] = ("allow", "redact", "local", "refuse")
_STRICTNESS = {action: rank for rank, action in enumerate(ACTIONS)}


class Policy(msgspec.Struct, frozen=True):
    """What may leave, and how.

    `default_level` is the level of a request in which nothing graver is found. `enabled` are the names of the patterns
    that count (None = all) less the `disabled` ones; `levels` gives patterns another level. `redact_local`: what sends
    a request to local providers is redacted there as well. `scan_tool_results` looks at what tools returned, too.
    `scan_answers` does `answer_action` to what answers hold from `answer_level` up.
    """

    name: str = ""
    default_level: Level = "public"
    internal: Action = "allow"
    confidential: Action = "local"
    restricted: Action = "refuse"
    enabled: tuple[str, ...] | None = None
    disabled: tuple[str, ...] = ()
    levels: dict[str, Level] = {}
    redact_local: bool = False
    scan_tool_results: bool = True
    scan_answers: bool = False
    answer_action: AnswerAction = "redact"
    answer_level: Level = "restricted"

    def action(self, level: Level) -> Action:
        """What is done at a level."""
        if level == "internal":
            return self.internal
        if level == "confidential":
            return self.confidential
        return self.restricted if level == "restricted" else "allow"

    def counts(self, pattern: str) -> bool:
        """Whether a pattern is switched on."""
        return (self.enabled is None or pattern in self.enabled) and pattern not in self.disabled

    def level_of(self, match: Match) -> Level:
        """The level of a match under this policy."""
        return self.levels.get(match.pattern, match.level)

    def patterns(self, known: Iterable[Pattern]) -> tuple[Pattern, ...]:
        """The patterns to compile a scanner of for this policy alone."""
        return chosen(known, enabled=self.enabled, disabled=self.disabled, levels=self.levels)

    def answer_patterns(self, known: Iterable[Pattern]) -> frozenset[str]:
        """The names of the patterns that matter in answers; none where these are not looked at."""
        if not self.scan_answers:
            return frozenset()
        least = RANK[self.answer_level]
        return frozenset(pattern.name for pattern in self.patterns(known) if RANK[pattern.level] >= least)


def policy_of(doc: PrivacyDoc) -> Policy:
    """The policy of a document. Raises `msgspec.ValidationError` for values there are not."""
    return msgspec.convert({name: getattr(doc, name) for name in doc.__struct_fields__ if name != "id"}, Policy)


class Verdict(msgspec.Struct, frozen=True):
    """What was decided: it is what decisions and the audit keep.

    `action` is the strictest of all levels found; `local` and `redact` tell what has to be done besides, `redact` being
    the names of the patterns to take out. `patterns` are the names found, with how often. `overflow`: there was more
    than could be counted.
    """

    action: Action = "allow"
    level: Level = "public"
    patterns: tuple[tuple[str, int], ...] = ()
    redact: tuple[str, ...] = ()
    local: bool = False
    overflow: bool = False


@cache
def _of_nothing(action: Action, level: Level) -> Verdict:
    return Verdict(action, level, local=action == "local")


def decide(policy: Policy, findings: Findings) -> Verdict:
    """The verdict on what a scan found: the strictest action wins, refuse over local over redact over allow.

    A request of which not everything could be counted is refused where it would have to be redacted: something would
    stay in it.
    """
    if findings is NOTHING:
        return _of_nothing(policy.action(policy.default_level), policy.default_level)
    counts: dict[str, int] = {}
    levels: dict[str, Level] = {}
    for match in findings.matches:
        if policy.counts(match.pattern):
            counts[match.pattern] = counts.get(match.pattern, 0) + 1
            levels[match.pattern] = policy.level_of(match)
    level = LEVELS[max([RANK[policy.default_level], *(RANK[one] for one in levels.values())])]
    actions = {policy.action(policy.default_level), *(policy.action(one) for one in levels.values())}
    action = max(actions, key=_STRICTNESS.__getitem__)
    local = action == "local"
    redact: tuple[str, ...] = ()
    if action in ("redact", "local"):
        wanted = ("redact", "local") if policy.redact_local else ("redact",)
        redact = tuple(sorted(name for name, own in levels.items() if policy.action(own) in wanted))
    if findings.overflow and (redact or action == "redact"):
        action, local, redact = "refuse", False, ()
    return Verdict(action, level, tuple(sorted(counts.items())), redact, local, findings.overflow)
