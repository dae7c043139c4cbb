"""Requests and tokens per minute and requests at once, on the request path. The arithmetic is `gateway.limits`.

A key's own limits, its agent's and its team's are asked once a request is read; those of a route and its provider
before each call, and a candidate that is at its limit is passed over like one that failed. Both leave as soon as the
books of an answer are closed, before its last byte: a client that sends one request after another is never refused for
the one before.

Where every candidate was passed over and one of them only lacked a place (requests at once), the request waits for one
(`gateway.queueing`). It holds nothing of any budget meanwhile.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from budgets.records import KeyRecord
from gateway.errors import (
    BusyError,
    GatewayError,
    PriceUnknownError,
    QueueFullError,
    QueueTimeoutError,
    RateLimitedError,
)
from gateway.limits.limiter import BUSY_RETRY_S, LIMIT_MAX, Limits, Refusal, Subjects, Ticket, group
from gateway.queueing.room import Changed, Choice, Displaced, Place, TooLate
from gateway.queueing.waiting import Queue
from providers.canonical import Call
from providers.config import ProviderDoc, RouteDoc
from providers.routing import Step

if TYPE_CHECKING:
    from gateway.attempt import Attempt
    from gateway.pipeline import Job
    from gateway.snapshot import Candidate

PASSED_OVER = "limit"  # the outcome, for metrics, of a call that was not made
PATIENCE = 0.5  # of a request's time may be spent waiting for a place, so that its call has the rest
RETRY_MAX_S = 60.0  # more than that is not told: clients would not come back
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

    Raises the 429 where one of them is at a limit, and where others wait for a place there already.
    """
    subjects, call = candidate.limited, job.call
    if subjects is None:
        return None
    assert call is not None
    runtime, place = job.runtime, job.place
    if place is not None:
        if place.what.route.id == candidate.route.id:  # it has waited for this one
            job.place = None
            return place.ticket
        unused(job)
    answer: Ticket | Refusal | None = None
    if (awaited := runtime.queue.room.awaited(subjects)) is not None:
        answer = Refusal(awaited.kind, awaited.id, "concurrent", awaited.concurrent, 0, 0.0, BUSY_RETRY_S)
    else:
        answer = runtime.limiter.admit(subjects, estimate(call, candidate.route.output_cap))
    if isinstance(answer, Refusal):
        runtime.metrics.attempt(candidate.provider.name, PASSED_OVER)
        raise refused_call(answer, call)
    return answer


def refused_call(refusal: Refusal, call: Call) -> RateLimitedError:
    """The 429 of a limit of a route or provider."""
    error = BusyError if refusal.reason == "concurrent" else RateLimitedError
    return error_of(refusal, f"the {refusal.kind} that answers '{call.model[:100]}'", error)


async def wait(job: Job, busy: Sequence[Step], refusal: GatewayError) -> list[Step]:
    """Wait until one of the candidates that only lacked a place has one: what to call, that one first; nothing where
    the request's key or the configuration has changed meanwhile, so that all is to be chosen anew.

    Its place is `job.place` until it is called. Raises `refusal` where nobody waits here, the 503 where no place came
    in time or too many wait, and the 429 of a limit per minute that was reached meanwhile.
    """
    snapshot, call, key = job.snapshot, job.call, job.key
    assert snapshot is not None
    assert call is not None
    assert key is not None
    settings, queue, now = snapshot.settings, job.runtime.queue, time.monotonic()
    if settings.queue_wait_s <= 0:
        raise refusal
    if not job.wait_until:
        job.wait_until = now + min(settings.queue_wait_s, PATIENCE * (job.deadline - now))
    rank = max(key.record.queue_class, (job.head.priority or 0) if job.head is not None else 0)
    choices = []
    for step in busy:
        candidate = snapshot.candidates[step.route.id]
        assert candidate.limited is not None
        choices.append(Choice(step, candidate.limited, estimate(call, candidate.route.output_cap)))
    expected_s = queue.room.expected_s(rank, key.record.id, choices)
    if now >= job.wait_until or (expected_s is not None and now + expected_s > job.wait_until):
        queue.room.counts["refused_early"] += 1
        job.runtime.metrics.queued("refused_early", 0)
        raise too_late(expected_s)
    if not queue.room.make_way(rank, key.record.id, settings.queue_size):
        job.runtime.metrics.queued("refused_full", 0)
        raise QueueFullError(retry_after_s=_retry_s(expected_s))
    outcome = None
    try:
        outcome = await queue.wait(
            choices,
            rank=rank,
            key=key.record.id,
            tokens=choices[0].tokens,
            now=now,
            until=job.wait_until,
            is_stale=lambda: is_stale(job),
        )
    finally:
        waited_us = int((time.monotonic() - now) * 1_000_000)
        job.queued_us += waited_us
        if not isinstance(outcome, Changed):  # then it waits on
            job.runtime.metrics.queued(_OUTCOMES[type(outcome)], waited_us)
    match outcome:
        case Changed():
            return []
        case Place():
            job.place = outcome
            return [outcome.what, *(step for step in busy if step is not outcome.what)]
        case Refusal():
            raise refused_call(outcome, call)
        case Displaced():
            raise QueueFullError(retry_after_s=_retry_s(expected_s))
        case TooLate():
            raise too_late(outcome.wait_s)


def is_stale(job: Job) -> bool:
    """Whether a request's key or the configuration is no longer what it began with."""
    runtime, began_with, key = job.runtime, job.snapshot, job.key
    assert began_with is not None
    assert key is not None
    in_use = runtime.snapshot
    return in_use is not None and (
        in_use.table is not began_with.table or in_use.keys.get(key.record.digest) is not key
    )


_OUTCOMES = {Place: "admitted", Refusal: "limited", Displaced: "refused_full", TooLate: "timed_out", type(None): "left"}


def too_late(expected_s: float | None) -> QueueTimeoutError:
    """The 503 of who waited in vain, or would; `expected_s` is what a newcomer would wait, None = unknown."""
    return QueueTimeoutError(retry_after_s=_retry_s(expected_s))


def _retry_s(expected_s: float | None) -> float:
    return min(RETRY_MAX_S, max(BUSY_RETRY_S, expected_s or 0.0))


def unused(job: Job) -> None:
    """Give back the place a request has waited for and will not use."""
    place, job.place = job.place, None
    if place is not None:
        job.runtime.queue.give_back(place)


def answered(attempt: Attempt) -> None:
    """The books of an answer are closed: neither the request nor its call is under way any more."""
    leave_call(attempt.job.runtime.queue, attempt.ticket, attempt.tokens)
    leave(attempt.job)


def leave_call(queue: Queue, ticket: Ticket | None, tokens: int) -> None:
    """A call is over and came to so many tokens; who waits for its place gets it. Again is harmless."""
    if ticket is not None:
        ticket.settle(tokens)
        if (subjects := ticket.leave()) is not None:
            queue.freed(subjects)


def leave(job: Job) -> None:
    """The request is over; its tokens are those of all its calls. Again is harmless."""
    if job.ticket is None:
        return
    job.ticket.settle(used(job) + job.beside)
    job.ticket.leave()


def used(job: Job) -> int:
    """The tokens of all calls of a request."""
    tokens = sum(attempt.tokens for attempt in job.failed)
    if job.last is not None and job.last not in job.failed:
        tokens += job.last.tokens
    return tokens


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


def error_of(refusal: Refusal, whose: str, error: type[RateLimitedError] = RateLimitedError) -> RateLimitedError:
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
    return error(
        f"The limit of {refusal.limit} {noun} of {whose} is reached.",
        retry_after_s=refusal.retry_after_s,
        extra_headers=tuple(refusal.headers()),
    )
