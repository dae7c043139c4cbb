"""Answers that were given before, on the request path. Keys, storage and replay are `gateway.cache`.

A request is looked up when its key, limits and privacy policy have been asked and its route is known, so that a hit
skips none of them. It is booked as an attempt that used no tokens and costs nothing, or the part of the answer's first
cost that its route asks for. What is kept is the canonical answer as the provider gave it; privacy policies look at it
again each time it is told.

Where the route asked first says so, what was not found is looked for once more, by the meaning of its question.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from budgets.journal import JournalError
from budgets.records import PRICE_NONE, Basis, Draw, UsageRecord
from gateway import limiting
from gateway.cache.answers import Place
from gateway.cache.collecting import Collector
from gateway.cache.control import Control, control_of, not_cached
from gateway.cache.flights import Seat
from gateway.cache.keeping import is_keepable
from gateway.cache.key import key_of
from gateway.cache.replaying import gathered, replay
from gateway.cache.semantic import Question, question_of
from gateway.cache.store import Entry
from gateway.context import shaping
from gateway.holding import chain_of, hold_exactly
from gateway.relay import journal_error
from gateway.through import AnswerRefusedError
from providers.canonical import Answer, Call, Usage
from providers.routing import Step

if TYPE_CHECKING:
    from gateway.attempt import Attempt
    from gateway.pipeline import Job
    from gateway.snapshot import Snapshot

HIT, MISS, BYPASS, SIMILAR = b"hit", b"miss", b"bypass", b"similar"


class Keeping:
    """What becomes of the answer of a request that was not found: kept, and handed to those that wait for the same."""

    __slots__ = ("_collector", "_key", "_place", "_purges", "_seat")

    def __init__(
        self, key: bytes, seat: Seat | None, endpoint: str, *, stream: bool, purges: int, place: Place | None = None
    ) -> None:
        """`seat` is None where the caller does not want the answer kept. `purges` is the cache's count of them. `place`
        is where similar questions look for the answer."""
        self._key, self._seat, self._purges, self._place = key, seat, purges, place
        self._collector = Collector(endpoint) if stream and seat is not None else None

    def hear(self, data: bytes) -> None:
        """Canonical events of the stream, as the provider said them."""
        if self._collector is not None:
            self._collector.feed(data)
            if self._collector.failed:
                self.give_up()

    def give_up(self) -> None:
        """What is under way cannot be kept: nobody shall wait for it any longer."""
        self._collector = None
        if self._seat is not None:
            self._seat.land(None)

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
        # Whose limit an answer ended at: with more in the pool, or under other settings, ours would be another.
        shortened = attempt.shortened or call.limit is None or (attempt.limit or 0) < call.limit
        wanted = ttl_s > 0 and bool(body) and not attempt.step.fallback
        wanted = wanted and self._purges == job.runtime.cache.purges
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
            context=shaping.announced(job),
        )
        place = self._place if candidate.route.semantic_threshold else None
        job.runtime.cache.keep(self._key, entry, ttl_s, seat, place)


async def through(job: Job, call_on: Callable[[Job], Awaitable[None]]) -> None:
    """Answer a request from what is kept, or by `call_on`. Raises the 504 of one that wants a kept answer or none."""
    snapshot, call, head = job.snapshot, job.call, job.head
    assert snapshot is not None
    assert call is not None
    assert head is not None
    assert job.key is not None
    control = control_of(head.cache_control)
    scope = scope_of(job, snapshot)
    if not scope:
        if control.only_cached:
            raise not_cached()
        await call_on(job)
        return
    tenant = b"%d" % job.key.record.team_id
    key = key_of(call, tenant, scope) if control.read or control.write else None
    job.cache = MISS if control.read and key is not None else BYPASS
    if key is None:
        if control.only_cached:
            raise not_cached()
        await call_on(job)
        return
    cache = job.runtime.cache
    stream = call.stream or job.through.changes  # what is not canonical can neither be streamed nor looked at
    entry = cache.find(key, control, stream=stream)
    if entry is not None:
        await tell(job, entry)
        return
    question = _question(job, tenant, scope)
    if control.only_cached and (question is None or not control.read):
        raise not_cached()
    with await cache.join(key, control, _patience_s(job)) as seat:
        entry, place = cache.joined(seat, control, stream=stream), None
        if entry is None and question is not None:
            entry, place = await _similar(job, question, key, control, stream=stream)
            if entry is not None:
                seat.land(entry)
        if entry is None:
            if control.only_cached:
                raise not_cached()
            await _call(job, call_on, key, seat, control, place)
            return
    await tell(job, entry, SIMILAR if entry.similarity else HIT)


def _question(job: Job, tenant: bytes, scope: bytes) -> Question | None:
    """What a request asks, where the answer to a similar question will do."""
    assert job.decision is not None
    assert job.call is not None
    if not job.decision.steps[0].route.semantic_threshold or job.is_private:
        return None  # what is private is not even embedded
    return question_of(job.call, tenant, scope) if job.decision.steps[0].route.cache_s else None


async def _similar(
    job: Job, question: Question, key: bytes, control: Control, *, stream: bool
) -> tuple[Entry | None, Place | None]:
    """The kept answer to a similar question, and where to keep a new one for such."""
    assert job.decision is not None
    cache = job.runtime.cache
    if not control.read and key in cache.similar:
        return None, None  # only its answer is to be another
    embedded = await job.runtime.embedder.embed(job, question.text)
    if embedded is None:
        return None, None
    place = Place(question.bucket + embedded.source, embedded.vector)
    if not control.read:
        return None, place
    threshold = job.decision.steps[0].route.semantic_threshold
    return cache.find_similar(place, threshold, control, stream=stream), place


def _patience_s(job: Job) -> float:
    """How long a request may wait for an equal one: half of its time, so that its own call has the other half; and not
    at all where the route that is asked first keeps nothing."""
    assert job.decision is not None
    return max(0.0, job.deadline - time.monotonic()) / 2 if job.decision.steps[0].route.cache_s else 0.0


async def _call(
    job: Job,
    call_on: Callable[[Job], Awaitable[None]],
    key: bytes,
    seat: Seat,
    control: Control,
    place: Place | None,
) -> None:
    assert job.call is not None
    cache = job.runtime.cache
    if control.read:
        cache.missed()
    job.keeping = Keeping(
        key,
        seat if control.write else None,
        job.call.endpoint,
        stream=job.call.stream,
        purges=cache.purges,
        place=place,
    )
    job.through.listen(job.keeping.hear)
    await call_on(job)


def key_for(job: Job) -> bytes | None:
    """The key an answer to a request whose route is known would be kept by; None where none is kept."""
    assert job.snapshot is not None
    assert job.call is not None
    assert job.key is not None
    scope = scope_of(job, job.snapshot)
    return key_of(job.call, b"%d" % job.key.record.team_id, scope) if scope else None


def scope_of(job: Job, snapshot: Snapshot) -> bytes:
    """What beside the request decides what its answer may be: the routes that may give it, and what they would make of
    the request. Empty: none of them keeps answers."""
    assert job.decision is not None
    plan = job.decision.plan
    scope = plan.kept.get("scope")
    if scope is None:
        scope = b""
        if any(step.route.cache_s for step in plan.steps):
            told = sorted(_told_of(step, snapshot) for step in plan.steps)
            told.append(snapshot.settings.unsupported_params)
            scope = hashlib.sha256("\n".join(told).encode()).digest()[:16]
        plan.kept["scope"] = scope
    return bytes(scope)


def _told_of(step: Step, snapshot: Snapshot) -> str:
    route, provider = step.route, snapshot.candidates[step.route.id].provider
    shapes = route.compact_percent, route.compress
    return repr(
        (route.id, step.model, route.output_cap, route.cache_s, provider.id, provider.kind, provider.base_url, shapes)
    )


async def tell(job: Job, entry: Entry, how: bytes = HIT) -> None:
    """Answer with what is kept, in the caller's dialect, and book that no tokens were used. `how` it was found.

    Raises the 503 where that cannot be booked, the 403 of a disabled pool, the 429 of one that has not got what the
    answer costs, and the 403 of an answer which holds what the privacy policy does not let through.
    """
    call, runtime, snapshot = job.call, job.runtime, job.snapshot
    assert call is not None
    assert snapshot is not None
    chain, pico = chain_of(job), price_of(entry, snapshot)
    draws = await hold_exactly(job, snapshot, chain, pico) if pico else tuple(leg.counted for leg in chain.legs)
    job.cache, job.told = how, entry
    try:
        pieces = _streamed(job, call, entry) if call.stream else [_whole(job, call, entry)]
    except AnswerRefusedError as error:
        book(job, draws, entry, error.status, error.code or "")
        raise
    except BaseException:
        runtime.desk.release(draws)
        raise
    book(job, draws, entry, 200, pico=pico)
    if runtime.durable:
        try:
            await runtime.journal.durable()
        except JournalError:
            raise journal_error() from None
    limiting.leave(job)
    if not call.stream:
        await job.exchange.respond(200, [(b"content-type", b"application/json"), *job.headers()], pieces[0])
        return
    fixed = [
        (b"content-type", job.endpoint.dialect.stream_type),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ]
    await job.exchange.begin(200, [*fixed, *job.headers()])
    for piece in pieces[:-1]:
        await job.exchange.write(piece)
    await job.exchange.finish(pieces[-1])


def price_of(entry: Entry, snapshot: Snapshot) -> int:
    """What telling a kept answer costs, in pico-USD: the part its route asks for of what it cost at first."""
    candidate = snapshot.candidates.get(entry.route_id)
    return entry.cost_pico * candidate.route.cache_price_percent // 100 if candidate is not None else 0


def _whole(job: Job, call: Call, entry: Entry) -> bytes:
    return entry.body if entry.native else job.endpoint.dialect.answer(job.asked, job.through.whole(entry.body))


def _streamed(job: Job, call: Call, entry: Entry) -> list[bytes]:
    writer = job.through.stream(job.endpoint.dialect.writer(job.asked, job.rid_hex))
    events = gathered(replay(entry.body, wants_usage=call.wants_usage, usage=entry.usage))
    pieces = [writer.feed(data) for data in events]
    return [*filter(None, pieces), writer.finish()]


def book(job: Job, draws: tuple[Draw, ...], entry: Entry, status: int, error: str = "", *, pico: int = 0) -> None:
    """The usage row of an answer that was kept and costs this. Raises the 503 where it cannot be written."""
    call, key, snapshot, decision = job.call, job.key, job.snapshot, job.decision
    assert call is not None
    assert key is not None
    assert snapshot is not None
    assert decision is not None
    latency_us = job.ttft_us = (time.monotonic_ns() - job.started_ns) // 1000
    record = UsageRecord(
        rid=job.rid,
        attempt=0,
        at_us=job.started_at_us,
        key_id=key.record.id,
        agent_id=key.record.agent_id,
        team_id=key.record.team_id,
        pool_id=job.pool_id,
        window_start=next((draw.window_start for draw in draws if draw.pool_id == job.pool_id), 0),
        route_id=entry.route_id,
        provider_id=entry.provider_id,
        endpoint=job.endpoint.name,
        model=call.model,
        upstream_model=entry.model,
        status=status,
        error=error,
        stream=call.stream,
        input_tokens=0,
        cached_tokens=0,
        cache_write_tokens=0,
        output_tokens=0,
        reasoning_tokens=0,
        tokens=0,
        held=0,
        cost_pico=pico,
        price_id=PRICE_NONE,
        basis=int(Basis.KEPT if pico else Basis.NONE),
        latency_us=latency_us,
        ttft_us=job.ttft_us,
        config_version=snapshot.version,
        shape=decision.shape.digest,
        attempts=0,
        client_request_id=job.client_id.decode("ascii"),
        draws=draws,
    )
    try:
        job.runtime.book(record, decision.shape, pico)
    except JournalError:
        raise journal_error() from None
