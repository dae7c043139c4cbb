"""What of a request may leave, on the request path: the policy of its team over what `gateway.privacy` finds in it.

A request may be refused, restricted to local providers, or redacted: then placeholders are sent, and put back in the
answer. What is kept of all that (in the decision, in events, in logs) are names of patterns and levels, never text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from gateway.errors import ForbiddenError, GatewayUnavailableError
from gateway.privacy.answers import AnswerGuard
from gateway.privacy.inspection import Inspection, inspect
from providers.canonical import Call
from providers.config import ConfigDocument, PatternDoc, PrivacyDoc
from providers.privacy.patterns import BUILT_IN, custom
from providers.privacy.scanner import Scanner
from providers.privacy.verdict import Policy, Verdict, policy_of

if TYPE_CHECKING:
    from gateway.pipeline import Job
    from gateway.snapshot import Snapshot

REFUSED = "privacy_refused"
_WARMING = 'The quick brown fox, x@example.org, +1 555 0100, https://example.org/?a=1 {"b": [1, 2.5]} sk-0'


@dataclass(frozen=True, slots=True)
class Screen:
    """One policy, ready: what is looked for in answers is None where they are not looked at."""

    policy: Policy
    scanner: Scanner
    guard: AnswerGuard | None


class Screens:
    """All privacy policies of a configuration."""

    def __init__(self, policies: Mapping[int, Screen], default: int) -> None:
        self._policies = policies
        self._default = default

    def of(self, policy_id: int) -> Screen | None:
        """The screen of a team's policy (0 = the gateway's); None where nothing is looked at."""
        return self._policies.get(policy_id or self._default)


def scanner_of(patterns: tuple[PatternDoc, ...]) -> Scanner:
    """A scanner of the built-in patterns and an operator's. It takes some 20 ms, its first scan included."""
    own = [custom(doc.name, doc.source, doc.level, ignore_case=doc.ignore_case) for doc in patterns if doc.enabled]
    scanner = Scanner((*BUILT_IN, *own))
    scanner.scan([_WARMING])
    return scanner


def screens_of(document: ConfigDocument, scanner: Scanner) -> Screens:
    """The policies of a document."""
    made = {doc.id: _screen(doc, scanner) for doc in document.privacy}
    return Screens(made, document.settings.privacy_policy_id)


def _screen(doc: PrivacyDoc, scanner: Scanner) -> Screen:
    policy = policy_of(doc)
    names = policy.answer_patterns(scanner.patterns)
    return Screen(policy, scanner, AnswerGuard(scanner, names, policy.answer_action) if names else None)


def has_policy(job: Job) -> bool:
    """Whether a privacy policy may have a say in this request."""
    assert job.key is not None
    assert job.snapshot is not None
    return job.snapshot.screens is not None or job.key.record.privacy_policy_id != 0


def verdict_at_once(snapshot: Snapshot, call: Call, policy_id: int) -> Verdict | None:
    """What a policy (0 = the gateway's) says of a request. It is looked at without a pause: for questions only."""
    found = snapshot.screens.of(policy_id) if snapshot.screens is not None else None
    if found is None:
        return None
    inspection = Inspection(call, found.scanner, results=found.policy.scan_tool_results)
    inspection.run_at_once(found.policy)
    return inspection.verdict


async def screen(job: Job) -> None:
    """Look at a request and do what the policy of its team says. Raises the 403 of one that must not leave, and the 503
    while the policy of its team is not known here."""
    assert job.call is not None
    found = screen_of(job)
    if found is None:
        return
    call = job.call
    inspection = await inspect(call, found.scanner, found.policy)
    verdict = job.verdict = inspection.verdict
    if verdict.action == "refuse":
        raise refusal(verdict)
    if not verdict.redact and found.guard is None:
        return
    if call.native_only:
        why = "must be redacted before it leaves" if verdict.redact else "gets an answer that must be looked at"
        raise ForbiddenError(
            f"This request {why}; that cannot be done with '{call.native_only}'. Leave it out.",
            code=REFUSED,
            param=call.native_only,
        )
    body, redactor = inspection.redacted() if verdict.redact else (call.body, None)
    if verdict.redact or call.native:
        job.spoken, job.call = call, canonical_only(call, body)
    json_content = b'"json' in call.body and "response_format" in call.fields
    job.through.look(found.guard, redactor, json_content=json_content)


def screen_of(job: Job) -> Screen | None:
    """The screen of a request's team; None where nothing is looked at."""
    assert job.key is not None
    assert job.snapshot is not None
    policy_id, screens = job.key.record.privacy_policy_id, job.snapshot.screens
    found = screens.of(policy_id) if screens is not None else None
    if found is None and policy_id:  # keys and configuration come by different ways: one may be here before the other
        raise GatewayUnavailableError(
            "The privacy policy of this team is not loaded yet.", code="privacy_policy_unavailable", retry_after_s=1
        )
    return found


def canonical_only(call: Call, body: bytes) -> Call:
    """The call with this body, and without what the client sent in its own API: that would leave as it is, and so would
    the answer come back."""
    return msgspec.structs.replace(call, body=body, native=b"", native_headers=b"")


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
