"""What of a request may leave, on the request path: the policy of its team over what `gateway.privacy` finds in it.

A request may be refused, restricted to local providers, or redacted: then placeholders are sent, and put back in the
answer. What is kept of all that (in the decision, in events, in logs) are names of patterns and levels, never text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from gateway.errors import ForbiddenError
from gateway.privacy.answers import AnswerGuard
from gateway.privacy.inspection import inspect
from gateway.privacy.patterns import BUILT_IN, custom
from gateway.privacy.redaction import Redactor
from gateway.privacy.scanner import Scanner
from gateway.privacy.verdict import Policy, Verdict
from providers.canonical import OPENAI, Call
from providers.config import ConfigDocument, PatternDoc, PrivacyDoc

if TYPE_CHECKING:
    from gateway.pipeline import Job

REFUSED = "privacy_refused"
_WARMING = 'The quick brown fox, x@example.org, +1 555 0100, https://example.org/?a=1 {"b": [1, 2.5]} sk-0'


@dataclass(frozen=True, slots=True)
class Screen:
    """One policy, ready: what is looked for in answers is None where they are not looked at."""

    policy: Policy
    guard: AnswerGuard | None


class Screens:
    """All privacy policies of a configuration over one scanner."""

    def __init__(self, scanner: Scanner, policies: Mapping[int, Screen], default: int) -> None:
        self.scanner = scanner
        self._policies = policies
        self._default = default

    def of(self, policy_id: int) -> Screen | None:
        """The screen of a team's policy (0 = the gateway's); None where nothing is looked at."""
        return self._policies.get(policy_id or self._default)


def scanner_of(patterns: tuple[PatternDoc, ...]) -> Scanner:
    """A scanner of the built-in patterns and an operator's. It takes some 20 ms, its first scan included."""
    own = [custom(doc.name, doc.source, doc.level, ignore_case=doc.ignore_case) for doc in patterns if doc.enabled]  # type: ignore[arg-type]
    scanner = Scanner((*BUILT_IN, *own))
    scanner.scan([_WARMING])
    return scanner


def screens_of(document: ConfigDocument, scanner: Scanner) -> Screens:
    """The policies of a document."""
    made = {doc.id: _screen(doc, scanner) for doc in document.privacy}
    return Screens(scanner, made, document.settings.privacy_policy_id)


def _screen(doc: PrivacyDoc, scanner: Scanner) -> Screen:
    values = {name: getattr(doc, name) for name in doc.__struct_fields__ if name != "id"}
    policy = msgspec.convert(values, Policy)
    names = policy.answer_patterns(scanner.patterns)
    return Screen(policy, AnswerGuard(scanner, names, policy.answer_action) if names else None)


async def screen(job: Job) -> None:
    """Look at a request and do what the policy of its team says. Raises the 403 of one that must not leave."""
    assert job.key is not None
    assert job.call is not None
    assert job.snapshot is not None
    screens = job.snapshot.screens
    found = screens.of(job.key.record.privacy_policy_id) if screens is not None else None
    if screens is None or found is None:
        return
    call = job.call
    inspection = await inspect(call, screens.scanner, found.policy)
    verdict = job.verdict = inspection.verdict
    if verdict.action == "refuse":
        raise refusal(verdict)
    redactor: Redactor | None = None
    if verdict.redact:
        if call.native_only:
            raise ForbiddenError(
                f"This request must be redacted before it leaves, and cannot be because of '{call.native_only}'. "
                "Leave it out.",
                code=REFUSED,
                param=call.native_only,
            )
        body, _, redactor = await inspection.redacted()
        job.call = call = translated(call, body)
    if found.guard is not None:
        if call.native and not call.native_only:
            job.call = call = translated(call, call.body)
        elif call.native_only:
            raise ForbiddenError(
                f"Answers are looked at for private data; that cannot be done with '{call.native_only}'. Leave it out.",
                code=REFUSED,
                param=call.native_only,
            )
    if redactor is not None or found.guard is not None:
        job.through.look(found.guard, redactor, json_content=b'"json' in call.body and "response_format" in call.fields)


def translated(call: Call, body: bytes) -> Call:
    """The call with this body and no other: its answer then comes in the canonical form, where it can be looked at."""
    return msgspec.structs.replace(call, body=body, dialect=OPENAI, native=b"", native_headers=b"")


def refusal(verdict: Verdict) -> ForbiddenError:
    """The 403 that says what kind of data it is about, and never the data."""
    names = ", ".join(name for name, _ in verdict.patterns[:8]) or "its level"
    if verdict.action == "local":
        return ForbiddenError(
            f"This request is {verdict.level} ({names}) and may only go to local providers; none answers this model.",
            code=REFUSED,
        )
    return ForbiddenError(f"This request is {verdict.level} ({names}) and may not leave.", code=REFUSED)


def said(verdict: Verdict | None) -> tuple[str, str, tuple[str, ...]] | None:
    """What the decision keeps: action, level and names of the patterns."""
    if verdict is None:
        return None
    return verdict.action, verdict.level, tuple(name for name, _ in verdict.patterns)
