"""Requests and tokens per minute and requests at once, on the request path. The arithmetic is `gateway.limits`.

A key's own limits, its agent's and its team's are asked once a request is read; those of a route and its provider
before each call, and a candidate that is at its limit is passed over like one that failed. Both leave as soon as the
books of an answer are closed, before its last byte: a client that sends one request after another is never refused for
the one before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from budgets.records import KeyRecord
from gateway.errors import GatewayError, PriceUnknownError, RateLimitedError
from gateway.limits.limiter import LIMIT_MAX, Limits, Refusal, Subjects, Ticket, group
from providers.canonical import Call
from providers.config import ProviderDoc, RouteDoc

if TYPE_CHECKING:
    from gateway.attempt import Attempt
    from gateway.pipeline import Job
    from gateway.snapshot import Candidate

PASSED_OVER = "limit"  # the outcome, for metrics, of a call that was not made
_BYTES_PER_TOKEN = 4  # a common estimate; what was really used is put right at the end
_NOUNS = {
    "requests": "requests per minute",
    "tokens": "tokens per minute",
    "concurrent": "requests at once",
    "larger_than_limit": "tokens per minute",
}
_WHOSE = {"key": "this API key", "agent": "this agent", "team": "this team"}


def of_key(record: KeyRecord) -> Subjects | None:
    """What is counted for each request of a key; None where nothing is limited."""
    rows = (
        ("key", record.id, record.key_limits),
        ("agent", record.agent_id, record.agent_limits),
        ("team", record.team_id, record.team_limits),
    )
    limited = [(kind, id, _limits(limits)) for kind, id, limits in rows if any(limits)]
    return group(*limited) if limited else None


def of_candidate(route: RouteDoc, provider: ProviderDoc) -> Subjects | None:
    """What is counted for each call of a route; None where nothing is limited."""
    limited = []
    for kind, row in (("route", route), ("provider", provider)):
        limits = _limits((row.requests_per_minute, row.tokens_per_minute, row.concurrent_requests))
        if any(limits):
            limited.append((kind, row.id, limits))
    return group(*limited) if limited else None


def _limits(limits: Iterable[int | None]) -> Limits:
    """As the arithmetic takes them: 0 is none, and what is above the largest limit there can be is that one."""
    return Limits(*(min(limit, LIMIT_MAX) if limit else None for limit in limits))


def admit(job: Job) -> None:
    """Count a request for its key, agent and team. Raises the 429 where one of them is at a limit."""
    assert job.key is not None
    assert job.call is not None
    subjects = job.key.limited
    if subjects is None:
        return
    answer = job.runtime.limiter.admit(subjects, estimate(job.call))
    if isinstance(answer, Refusal):
        raise error_of(answer, _WHOSE.get(answer.kind, "this API key"))
    job.ticket = answer


def admit_call(job: Job, candidate: Candidate) -> Ticket | None:
    """Count a call for its route and provider; None where nothing limits them.

    Raises the 429 where one of them is at a limit.
    """
    subjects, call = candidate.limited, job.call
    if subjects is None:
        return None
    assert call is not None
    answer = job.runtime.limiter.admit(subjects, estimate(call, candidate.route.output_cap))
    if isinstance(answer, Refusal):
        job.runtime.metrics.attempt(candidate.provider.name, PASSED_OVER)
        raise error_of(answer, f"the {answer.kind} that answers '{call.model[:100]}'")
    return answer


def answered(attempt: Attempt) -> None:
    """The books of an answer are closed: neither the request nor its call is under way any more."""
    leave_call(attempt.ticket, attempt.tokens)
    leave(attempt.job)


def leave_call(ticket: Ticket | None, tokens: int) -> None:
    """A call is over and came to so many tokens. Again is harmless."""
    if ticket is not None:
        ticket.settle(tokens)
        ticket.leave()


def leave(job: Job) -> None:
    """The request is over; its tokens are those of all its calls. Again is harmless."""
    if job.ticket is None:
        return
    tokens = sum(attempt.tokens for attempt in job.failed)
    if job.last is not None and job.last not in job.failed:
        tokens += job.last.tokens
    job.ticket.settle(tokens)
    job.ticket.leave()


def estimate(call: Call, cap: int | None = None) -> int:
    """Tokens of a request before it is made: its text, and the output it asks for, which may be capped."""
    given = call.prompt_tokens or (call.size - call.media_bytes) // _BYTES_PER_TOKEN
    output = call.limit or 0
    if cap is not None and output > cap:
        output = cap
    return given + output * max(1, call.n)


def sooner(first: GatewayError | None, then: GatewayError) -> GatewayError:
    """Which of two reasons to tell where candidates were passed over: the limit that allows a call first."""
    if first is None:
        return then
    if not isinstance(then, RateLimitedError) or then.retry_after_s is None:
        return first
    is_limit = isinstance(first, RateLimitedError)
    if isinstance(first, PriceUnknownError) or (is_limit and then.retry_after_s < (first.retry_after_s or math.inf)):
        return then
    return first


def error_of(refusal: Refusal, whose: str) -> RateLimitedError:
    """The 429 with the numbers. `whose`: in words."""
    noun = _NOUNS[refusal.reason]
    if refusal.reason == "larger_than_limit":
        return RateLimitedError(
            f"This request alone may come to more than the {refusal.limit} {noun} of {whose}. Make it smaller or ask "
            "for fewer output tokens.",
            code="request_too_large_for_limit",
            should_retry=False,
            extra_headers=tuple(refusal.headers()),
        )
    return RateLimitedError(
        f"The limit of {refusal.limit} {noun} of {whose} is reached.",
        retry_after_s=refusal.retry_after_s,
        extra_headers=tuple(refusal.headers()),
    )
