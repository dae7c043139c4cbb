"""Requests and tokens per minute and requests at once, on the request path. The arithmetic is `gateway.limits`.

A key's own limits, its agent's and its team's are asked once a request is read; those of a route and its provider
before each call, and a candidate that is at its limit is passed over like one that failed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from budgets.records import KeyRecord, Limited
from gateway.errors import RateLimitedError
from gateway.limits.limiter import Limits, Refusal, Subjects, Ticket, group
from providers.canonical import Call
from providers.config import ProviderDoc, RouteDoc

if TYPE_CHECKING:
    from gateway.pipeline import Job

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
        limits = Limits(row.requests_per_minute, row.tokens_per_minute, row.concurrent_requests)
        if any(limits):
            limited.append((kind, row.id, limits))
    return group(*limited) if limited else None


def _limits(limited: Limited) -> Limits:
    return Limits(*(limit or None for limit in limited))


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


def leave(job: Job, tokens: int) -> None:
    """The request is over and came to so many tokens."""
    if job.ticket is not None:
        job.ticket.settle(tokens)
        job.ticket.leave()


def admit_call(job: Job, subjects: Subjects, name: str) -> Ticket:
    """Count a call for its route and provider. Raises the 429 where one of them is at a limit."""
    assert job.call is not None
    answer = job.runtime.limiter.admit(subjects, estimate(job.call))
    if isinstance(answer, Refusal):
        raise error_of(answer, f"the {answer.kind} that answers '{name[:100]}'")
    return answer


def estimate(call: Call) -> int:
    """Tokens of a request before it is made: its text, and the output it asks for."""
    given = call.prompt_tokens or (call.size - call.media_bytes) // _BYTES_PER_TOKEN
    return given + (call.limit or 0) * max(1, call.n)


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
