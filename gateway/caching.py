"""Answers that were given before, on the request path. Keys, storage and replay are `gateway.cache`.

A request is looked up when its key, limits and privacy policy have been asked and its route is known, so that a hit
skips none of them. It costs nothing and is booked as an attempt that used nothing. What is kept is the canonical answer
as the provider gave it; privacy policies look at it again each time it is told.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from budgets.journal import JournalError
from budgets.records import PRICE_NONE, Basis, UsageRecord
from gateway.cache.collecting import Collector
from gateway.cache.control import Control, control_of, not_cached
from gateway.cache.flights import Seat
from gateway.cache.keeping import is_keepable
from gateway.cache.key import key_of
from gateway.cache.replaying import gathered, replay
from gateway.cache.store import Entry
from gateway.choosing import plan_for, wants_of
from gateway.errors import GatewayUnavailableError
from gateway.holding import chain_of
from providers.canonical import Answer, Usage

if TYPE_CHECKING:
    from gateway.attempt import Attempt
    from gateway.pipeline import Job
    from gateway.snapshot import Snapshot

HIT, MISS, BYPASS = b"hit", b"miss", b"bypass"


class Keeping:
    """What becomes of the answer of a request that was not found: kept, and handed to those that wait for the same."""

    __slots__ = ("_collector", "_key", "_seat")

    def __init__(self, key: bytes, seat: Seat | None, endpoint: str, *, stream: bool) -> None:
        """`seat` is None where the caller does not want the answer kept."""
        self._key, self._seat = key, seat
        self._collector = Collector(endpoint) if stream and seat is not None else None

    def hear(self, data: bytes) -> None:
        """Canonical events of the stream, as the provider said them."""
        if self._collector is not None:
            self._collector.feed(data)

    def keep_whole(self, attempt: Attempt, answer: Answer, usage: Usage) -> None:
        """A whole answer was told."""
        assert attempt.job.call is not None
        self._keep(attempt, answer.body, usage, native=attempt.job.call.dialect if answer.native else "")

    def keep_stream(self, attempt: Attempt, usage: Usage | None) -> None:
        """A stream was told to its end."""
        body = self._collector.answer(usage) if self._collector is not None else None
        self._keep(attempt, body or b"", usage, native="")

    def _keep(self, attempt: Attempt, body: bytes, usage: Usage | None, *, native: str) -> None:
        job, candidate, seat = attempt.job, attempt.candidate, self._seat
        call, ttl_s = job.call, candidate.route.cache_s
        assert call is not None
        if seat is None:
            return
        shortened = attempt.shortened or (call.limit is not None and (attempt.limit or 0) < call.limit)
        wanted = ttl_s > 0 and bool(body) and not attempt.step.reason.startswith("fallback")
        if not wanted or not is_keepable(body, call.endpoint, native=native, shortened=shortened):
            seat.land(None)
            return
        entry = Entry(
            body=body,
            usage=usage,
            model=attempt.step.model,
            route_id=candidate.route.id,
            provider_id=candidate.provider.id,
            created_s=time.time(),
            cost_pico=attempt.cost_pico,
            native=native,
            dropped=attempt.dropped,
        )
        job.runtime.cache.keep(self._key, entry, ttl_s, seat)


async def through(job: Job, call_on: Callable[[Job], Awaitable[None]]) -> None:
    """Answer a request from what is kept, or by `call_on`. Raises the 504 of one that wants a kept answer or none."""
    snapshot, call, head = job.snapshot, job.call, job.head
    assert snapshot is not None
    assert call is not None
    assert head is not None
    scope = scope_of(job, snapshot)
    if not scope:
        await call_on(job)
        return
    control = control_of(head.cache_control)
    assert job.key is not None
    key = key_of(call, b"%d" % job.key.record.team_id, scope) if control.read or control.write else None
    if key is None:
        job.cache = BYPASS
        if control.only_cached:
            raise not_cached()
        await call_on(job)
        return
    cache = job.runtime.cache
    entry = cache.find(key, control, stream=call.stream)
    if entry is None:
        if control.only_cached:
            raise not_cached()
        with await cache.join(key, control, max(0.0, job.deadline - time.monotonic())) as seat:
            entry = cache.joined(seat, stream=call.stream)
            if entry is None:
                await _call(job, call_on, key, seat, control)
                return
    await tell(job, entry)


async def _call(job: Job, call_on: Callable[[Job], Awaitable[None]], key: bytes, seat: Seat, control: Control) -> None:
    assert job.call is not None
    job.runtime.cache.missed()
    job.cache = MISS if control.read else BYPASS
    job.keeping = Keeping(key, seat if control.write else None, job.call.endpoint, stream=job.call.stream)
    job.through.listen(job.keeping.hear)
    await call_on(job)


def scope_of(job: Job, snapshot: Snapshot) -> bytes:
    """What beside the request decides what its answer may be: the routes that may give it. Empty: none keeps answers."""
    assert job.call is not None
    wants = wants_of(job.call, job.head)
    if job.verdict is not None and job.verdict.local:
        wants = wants._replace(local=True)
    plan = plan_for(snapshot, job.call.model, wants)
    scope = plan.kept.get("scope")
    if scope is None:
        scope = b""
        if any(step.route.cache_s for step in plan.steps):
            told = [
                f"{step.route.id} {step.model} {snapshot.candidates[step.route.id].provider.base_url}"
                for step in plan.steps
            ]
            scope = hashlib.sha256("\n".join(sorted(told)).encode()).digest()[:16]
        plan.kept["scope"] = scope
    return bytes(scope)


async def tell(job: Job, entry: Entry) -> None:
    """Answer with what is kept, in the caller's dialect, and book that nothing was used."""
    call, exchange, dialect = job.call, job.exchange, job.endpoint.dialect
    assert call is not None
    job.cache, job.told = HIT, entry
    book(job, entry)
    headers = job.headers()
    if not call.stream:
        body = entry.body if entry.native else dialect.answer(call, job.through.whole(entry.body))
        await exchange.respond(200, [(b"content-type", b"application/json"), *headers], body)
        return
    writer = job.through.stream(dialect.writer(call, job.rid_hex))
    pieces = [
        writer.feed(data) for data in gathered(replay(entry.body, wants_usage=call.wants_usage, usage=entry.usage))
    ]
    pieces.append(writer.finish())
    fixed = [(b"content-type", dialect.stream_type), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    await exchange.begin(200, [*fixed, *headers])
    for piece in pieces[:-1]:
        await exchange.write(piece)
    await exchange.finish(pieces[-1])


def book(job: Job, entry: Entry) -> None:
    """The usage row of a hit. Raises the 503 where it cannot be written, or the 403 of a disabled pool."""
    call, key, snapshot, decision = job.call, job.key, job.snapshot, job.decision
    assert call is not None
    assert key is not None
    assert snapshot is not None
    assert decision is not None
    chain = chain_of(job)
    draws = tuple(leg.counted for leg in chain.legs)
    record = UsageRecord(
        rid=job.rid,
        attempt=0,
        at_us=job.started_at_us,
        key_id=key.record.id,
        agent_id=key.record.agent_id,
        team_id=key.record.team_id,
        pool_id=job.pool_id,
        window_start=chain.starts.get(job.pool_id, 0),
        route_id=entry.route_id,
        provider_id=entry.provider_id,
        endpoint=job.endpoint.name,
        model=call.model,
        upstream_model=entry.model,
        status=200,
        error="",
        stream=call.stream,
        input_tokens=0,
        cached_tokens=0,
        cache_write_tokens=0,
        output_tokens=0,
        reasoning_tokens=0,
        tokens=0,
        held=0,
        cost_pico=0,
        price_id=PRICE_NONE,
        basis=int(Basis.NONE),
        latency_us=(time.monotonic_ns() - job.started_ns) // 1000,
        ttft_us=0,
        config_version=snapshot.version,
        shape=decision.shape.digest,
        attempts=0,
        client_request_id=job.client_id.decode("ascii"),
        draws=draws,
    )
    try:
        job.runtime.book(record, decision.shape, 0)
    except JournalError:
        raise GatewayUnavailableError(
            "The gateway cannot write its journal.", code="journal_unavailable", retry_after_s=5
        ) from None
