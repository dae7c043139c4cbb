"""The request path, top to bottom: admit, read, parse, guard, route, hold, call, relay, settle.

`serve` is one request. Everything it needs is in memory: one `Snapshot` taken at admission, the wallets behind
`runtime.desk` and the append-only journal. No database, no lock, no thread. What a call costs is journaled before the
caller sees the end of the answer, so nothing answered goes unbooked; see `gateway.holding` for what is reserved before
a call, `gateway.attempt` for the books of one call and `gateway.relay` for how its answer is delivered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway import caching, idempotency, limiting, loops, relay
from gateway.admission import Head, client_request_id, find_key, usable
from gateway.attempt import Attempt, AttemptFailedError
from gateway.cache.store import Entry
from gateway.caching import Keeping
from gateway.choosing import as_header, choose
from gateway.context import shaping
from gateway.context.shaping import Shapings
from gateway.dialects import names, openai
from gateway.dialects.base import Dialect
from gateway.endpoints import Endpoint
from gateway.errors import (
    BadRequestError,
    BusyError,
    ForbiddenError,
    GatewayError,
    GatewayUnavailableError,
    ModelNotFoundError,
    PayloadTooLargeError,
    PriceUnknownError,
    RateLimitedError,
    UnsupportedMediaError,
    UpstreamRefusedError,
)
from gateway.exchange import Exchange
from gateway.holding import choose_pools, hold
from gateway.limits.limiter import Ticket
from gateway.logs import AccessEntry
from gateway.queueing.room import Place
from gateway.screening import has_policy, screen
from gateway.snapshot import Candidate, Key, Line, Snapshot
from gateway.through import Through
from providers.adapters import params
from providers.canonical import Call
from providers.privacy.verdict import Verdict
from providers.routing import Decision, Step

if TYPE_CHECKING:
    from gateway.runtime import Runtime

log = logging.getLogger("hoosh.pipeline")

NESTED = BadRequestError("The JSON body is nested too deeply. Flatten it.")


class Job:
    """One request on its way through: what is known of it so far."""

    __slots__ = (
        "aborted",
        "attempts",
        "beside",
        "cache",
        "call",
        "client_id",
        "deadline",
        "decision",
        "endpoint",
        "exchange",
        "failed",
        "head",
        "keeping",
        "key",
        "last",
        "place",
        "pool_id",
        "pool_ids",
        "queued_us",
        "recorder",
        "rid",
        "rid_hex",
        "runtime",
        "shapings",
        "snapshot",
        "spoken",
        "started_at_us",
        "started_ns",
        "task",
        "through",
        "ticket",
        "told",
        "ttft_us",
        "verdict",
        "wait_until",
    )

    def __init__(self, runtime: Runtime, exchange: Exchange, endpoint: Endpoint) -> None:
        self.runtime, self.endpoint = runtime, endpoint
        self.exchange: Exchange = exchange
        self.recorder: idempotency.RecordingExchange | None = None  # what stands before it where the answer is kept
        self.started_ns = time.monotonic_ns()
        self.started_at_us = time.time_ns() // 1000
        self.rid = runtime.new_id(self.started_at_us)
        self.rid_hex = self.rid.hex()
        self.client_id = b""
        self.snapshot: Snapshot | None = None
        self.head: Head | None = None
        self.key: Key | None = None
        self.call: Call | None = None
        self.pool_id = 0  # named, or the key's default
        self.pool_ids: tuple[int, ...] = ()  # all it draws on
        self.decision: Decision | None = None
        self.deadline = 0.0
        self.attempts = 0
        self.beside = 0  # tokens of calls that were made for it, and are no attempts of its own
        self.last: Attempt | None = None
        self.failed: list[Attempt] = []  # calls that failed before the last one
        self.ttft_us = 0
        self.verdict: Verdict | None = None  # of the privacy policy
        self.spoken: Call | None = None  # what the client said, where `call` is what may leave of it
        self.shapings: Shapings | None = None  # what routes made of `call`, where one that was asked wants that
        self.through = Through()
        self.cache = b""  # what the answer cache had to do with it, b"" = nothing
        self.told: Entry | None = None  # the kept answer it got
        self.keeping: Keeping | None = None  # what becomes of the answer it gets
        self.ticket: Ticket | None = None  # what its key, agent and team were counted by
        self.place: Place | None = None  # what it waited for and has not used yet
        self.wait_until = 0.0  # for a place; 0 = it never had to
        self.queued_us = 0  # how long it waited for one
        self.aborted = False
        self.task = exchange.task

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What every answer of this request carries."""
        own = self.rid_hex.encode()
        headers = [(b"x-request-id", self.client_id or own), (b"x-hoosh-request", own)]
        if self.snapshot is not None:
            headers.append((b"x-hoosh-config", self.snapshot.version_header))
            if self.snapshot.settings.audit_header and self.runtime.audit_head:
                headers.append((b"x-hoosh-audit", self.runtime.audit_head))
        if self.last is not None:
            headers.append((b"x-hoosh-route", self.last.candidate.header))
            if self.last.shortened:
                headers.append((b"x-hoosh-output-limit", b"%d" % (self.last.limit or 0)))
            if self.head is not None and self.head.explain and self.decision is not None:
                told = as_header(self.decision, self.failed, self.last.candidate.route.name, self.queued_us)
                headers.append((b"x-hoosh-decision", told))
            if self.last.dropped or (self.call is not None and self.call.dropped):
                headers.append((b"x-hoosh-dropped-params", self._dropped()))
        if self.shapings is not None and (told := shaping.announced(self)):
            headers.append((b"x-hoosh-context", told))
        if self.cache:
            headers.append((b"x-hoosh-cache", self.cache))
        if self.told is not None:
            headers.append((b"age", b"%d" % max(0, self.started_at_us // 1_000_000 - int(self.told.created_s))))
            if self.told.context:
                headers.append((b"x-hoosh-context", self.told.context))
            if self.told.similarity:
                headers.append((b"x-hoosh-similarity", b"%.3f" % self.told.similarity))
            if self.call is not None and (dropped := self._dropped_then(self.told, self.call)):
                headers.append((b"x-hoosh-dropped-params", params.header(dropped)))
        if self.ticket is not None:
            headers += self.ticket.headers()
        if self.queued_us:
            headers.append((b"x-hoosh-queue-ms", b"%d" % (self.queued_us // 1000)))
        if id_header := self.endpoint.dialect.id_header:
            headers.append((id_header, own))
        return headers

    @property
    def is_private(self) -> bool:
        """Whether something private was found in it."""
        return self.verdict is not None and bool(self.verdict.patterns)

    @property
    def asked(self) -> Call:
        """The request as its client put it: answers are written for that."""
        call = self.spoken or self.call
        assert call is not None
        return call

    def count_refusal(self, error: GatewayError) -> None:
        """Tell metrics and events that this request was refused, or its answer."""
        key = self.key.record if self.key is not None else None
        self.runtime.metrics.refused(error.code or error.type)
        self.runtime.happenings.refused(
            error,
            time.time(),
            key_id=key.id if key else 0,
            key=key.prefix if key else "",
            model=self.call.model if self.call else "",
            request_id=self.rid_hex,
        )

    def _dropped(self) -> bytes:
        """What of the request did not reach the provider."""
        assert self.last is not None
        assert self.call is not None
        passed_on = self.spoken is None and self.last.candidate.speaks(self.call.dialect)
        left = [names.told(self.call.names, name) for name in self.last.dropped]
        return params.header((*(() if passed_on else self.call.dropped), *left))

    @staticmethod
    def _dropped_then(told: Entry, call: Call) -> list[str]:
        """What did not reach the provider of a kept answer."""
        left = [names.told(call.names, place) for place in told.dropped]
        return left if told.native else [*call.dropped, *left]


async def serve(runtime: Runtime, exchange: Exchange, endpoint: Endpoint) -> None:
    """One inference request, from its head to its settled end. Never raises but for the server's own cancellation."""
    job = Job(runtime, exchange, endpoint)
    runtime.jobs.add(job)
    status, code = 200, ""
    try:
        admit(job)
        settings = job_snapshot(job).settings
        body = await exchange.read_body(settings.body_limit_bytes, settings.body_timeout_s)
        replayed = await replay(job, body)
        if replayed:
            status = replayed
        else:
            job.call = endpoint.parse(body, exchange)
            guard(job)
            limiting.admit(job)
            loops.look(job)
            if has_policy(job):
                await screen(job)
            route(job)
            await caching.through(job, call_candidates)
    except GatewayError as error:
        status, code = error.status, error.code or error.type
        await refuse(job, error)
    except RecursionError:  # wherever it was met: what is read to its full depth is not always read the same way
        status, code = 400, NESTED.code or ""
        await refuse(job, NESTED)
    except asyncio.CancelledError:
        status, code = 499, "client_left"
        if job.aborted:
            status, code = 503, "shutting_down"
            await refuse(job, GatewayUnavailableError("The gateway is restarting.", code=code, retry_after_s=1))
        elif not exchange.gone:
            raise
    except Exception:
        status, code = 500, "internal_error"
        log.exception("request failed inside the gateway", extra={"request_id": job.rid_hex})
        await refuse(job, GatewayError(code=code))
    finally:
        end(job, status, code)
        if job.recorder is not None:
            job.recorder.close()


def job_snapshot(job: Job) -> Snapshot:
    """The snapshot taken at admission."""
    assert job.snapshot is not None
    return job.snapshot


def snapshot_of(runtime: Runtime) -> Snapshot:
    """The configuration in use. Raises `GatewayUnavailableError` before there is one."""
    if runtime.snapshot is None:
        raise GatewayUnavailableError("The gateway has no configuration yet.", retry_after_s=1)
    return runtime.snapshot


def admit(job: Job) -> None:
    """Path and method are settled; now the key, its scope, the declared size and whether we can book at all."""
    runtime = job.runtime
    job.client_id = client_request_id(job.exchange.headers)
    snapshot = job.snapshot = snapshot_of(runtime)
    head = job.head = Head(job.exchange.headers)
    key = job.key = find_key(snapshot.keys, head.secret)
    check_scope(job, key)
    if head.length > snapshot.settings.body_limit_bytes:
        raise PayloadTooLargeError(snapshot.settings.body_limit_bytes)
    if head.coding and head.coding.strip().lower() != b"identity":
        raise UnsupportedMediaError()
    if not runtime.journal_writable:
        raise GatewayUnavailableError(
            "The gateway cannot write its journal.", code="journal_unavailable", retry_after_s=5
        )


def check_scope(job: Job, key: Key) -> None:
    """Raises the 403 of a key that may not call models, or not this way."""
    if "inference" not in key.record.scopes:
        raise ForbiddenError("This API key may not call models (it lacks the scope 'inference').")
    if key.reach is not None:
        key.reach.check(job.endpoint.name, job.exchange.client)


async def replay(job: Job, body: bytes) -> int:
    """The status of the answer this request got before, which was told again; 0 = it shall run."""
    assert job.head is not None
    header = job.head.idempotency
    return 0 if header is None else await idempotency.replay(job, header, body)


def guard(job: Job) -> None:
    """May this key ask for this, out of these pools?"""
    call, key = job.call, job.key
    assert call is not None
    assert key is not None
    if key.may_use is not None and not key.may_use(call.model):
        raise ModelNotFoundError(call.model)
    choose_pools(job, job_snapshot(job))


def route(job: Job) -> None:
    """The ordered candidates and the explanation of their order."""
    snapshot, call = job_snapshot(job), job.call
    assert call is not None
    job.decision = choose(job.runtime, snapshot, job.endpoint, call, head=job.head, key=job.key, verdict=job.verdict)
    job.deadline = time.monotonic() + snapshot.candidates[job.decision.steps[0].route.id].limits.total_s


async def call_candidates(job: Job, waited_for: Sequence[Step] | None = None) -> None:
    """Call candidates in order until one answers. Nothing is tried again once a byte was delivered.

    A candidate whose provider refuses one credential is called with the next of them before the next candidate is.
    Where none could be called and some only lack a place, one is waited for, and then only these are called.
    """
    runtime, snapshot, decision = job.runtime, job_snapshot(job), job.decision
    assert decision is not None
    if waited_for is None:
        runtime.retries.request(time.monotonic())
    failure: GatewayError | None = None
    busy: Sequence[Step] = ()
    for step in decision.steps if waited_for is None else waited_for:
        candidate = snapshot.candidates[step.route.id]
        tried: list[Line] = []
        while (line := candidate.line(time.monotonic(), tried)) is not None:
            if failure is not None and not may_go_on(job, snapshot, candidate):
                raise failure
            job.exchange.keep_running = False  # a route before this one may have set it
            if job.exchange.gone:
                raise asyncio.CancelledError
            is_further = job.attempts > 0
            try:
                failed = await call_one(job, snapshot, candidate, step, line)
            except (PriceUnknownError, RateLimitedError) as passed_over:
                if is_further:
                    runtime.retries.unused()
                failure = limiting.sooner(failure, passed_over)
                if isinstance(passed_over, BusyError):
                    busy = [*busy, step]
                break
            if is_further:
                runtime.retries.ended(helped=failed is None)
            if failed is None:
                return
            failure = failed.error
            if not failed.may_go_on:
                raise failure
            if not failed.of_credential:
                break
            tried.append(line)
    assert failure is not None
    if not busy or job.attempts:
        raise failure
    await call_candidates(job, await limiting.wait(job, busy, failure) or await choose_anew(job))


async def choose_anew(job: Job) -> Sequence[Step]:
    """Keys or configuration have changed while the request waited, and nothing of it was sent yet: from here on it goes
    by what is in use now. What to call; raises the refusal of what may not be asked any more."""
    assert job.head is not None
    assert job.key is not None
    job.snapshot, deadline = snapshot_of(job.runtime), job.deadline
    job.key = usable(job.snapshot.keys.get(job.key.record.digest))
    if not job.head.is_inner:
        check_scope(job, job.key)
    job.call, job.spoken, job.verdict, job.shapings = job.asked, None, None, None
    job.through = Through()
    if job.keeping is not None:
        job.keeping.give_up()  # other routes may give another answer than it was to be kept for
        job.keeping = None
    guard(job)
    if has_policy(job):
        await screen(job)
    route(job)
    assert job.decision is not None
    job.deadline = min(deadline, job.deadline)
    return job.decision.steps


def may_go_on(job: Job, snapshot: Snapshot, candidate: Candidate) -> bool:
    """Whether a request that has failed may call once more."""
    now, settings = time.monotonic(), snapshot.settings
    if not job.attempts:
        return True  # nothing was called yet
    if job.attempts >= settings.max_attempts or now >= job.deadline:
        return False
    if job.runtime.retries.allows(now, settings.retry_percent / 100):
        return True
    job.runtime.metrics.attempt(candidate.provider.name, "retry_budget")
    return False


async def call_one(
    job: Job, snapshot: Snapshot, candidate: Candidate, step: Step, line: Line
) -> AttemptFailedError | None:
    """One upstream call, from its hold to its settled end. None when its answer was delivered, else why not."""
    if job.shapings is not None or candidate.route.compress or candidate.route.compact_percent:
        await shaping.fit(job, snapshot, candidate, step)
    assert job.call is not None
    ticket = limiting.admit_call(job, candidate)
    try:
        attempt = await hold(job, snapshot, candidate, step, line)
    except BaseException:
        limiting.leave_call(job.runtime.queue, ticket, 0)
        raise
    attempt.ticket = ticket
    job.attempts += 1
    job.last = attempt
    load, pace = candidate.load, candidate.load.pace(step.model)
    unexplored = not pace.of(stream=job.call.stream).seen_at
    load.busy += 1
    pace.exploring += unexplored
    try:
        await (relay.stream(attempt) if job.call.stream else relay.unary(attempt))
    except AttemptFailedError as failed:
        job.failed.append(attempt)
        return failed
    finally:
        pace.exploring -= unexplored
        load.busy -= 1
        attempt.close()
        limiting.leave_call(job.runtime.queue, ticket, attempt.tokens)
    return None


async def refuse(job: Job, error: GatewayError) -> None:
    """Tell the caller, unless an answer has begun (then the relay has told it in band) or the caller has left."""
    if job.exchange.begun or job.exchange.gone:
        return
    job.count_refusal(error)
    if job.recorder is not None:
        job.recorder.refused_by_provider = isinstance(error, UpstreamRefusedError)
    limiting.leave(job)
    body = job.endpoint.dialect.error(error, job.rid_hex)
    headers = error.headers
    told = {name for name, _ in headers}  # the limit that refused, where the key's are told as well
    headers += [header for header in job.headers() if header[0] not in told]
    await job.exchange.respond(error.status, headers, body)


async def refuse_simply(
    runtime: Runtime, exchange: Exchange, error: GatewayError, dialect: Dialect = openai.DIALECT
) -> None:
    """An error answer outside of inference: no job, no books."""
    request_id = client_request_id(exchange.headers) or runtime.new_id(time.time_ns() // 1000).hex().encode()
    headers = [*error.headers, *((name, request_id) for name in (b"x-request-id", dialect.id_header) if name)]
    await exchange.respond(error.status, headers, dialect.error(error, request_id.decode("ascii")))


def end(job: Job, status: int, code: str) -> None:
    """The request is over, however it ended."""
    job.runtime.jobs.discard(job)
    if job.place is not None:
        limiting.unused(job)
    finish(job, status, code)
    job.failed.clear()
    job.through.listen(None)
    job.keeping = None
    job.last = job.task = None  # they point back to the job: without this every request is left to the collector


def finish(job: Job, status: int, code: str) -> None:
    """Count and log the request once, at its very end."""
    runtime, attempt, call = job.runtime, job.last, job.call
    limiting.leave(job)
    latency_us = (time.monotonic_ns() - job.started_ns) // 1000
    usage = attempt.usage if attempt is not None else None
    if attempt is not None and attempt.status and status == 200:
        status, code = attempt.status, attempt.error
    provider = attempt.candidate.provider.name if attempt is not None else ""
    route_name = attempt.candidate.route.name if attempt is not None else ""
    if job.cache:
        runtime.metrics.cached(job.cache.decode("ascii"))
    runtime.metrics.request_done(
        job.endpoint.name,
        provider,
        route_name,
        status,
        latency_us,
        job.ttft_us,
        usage.input if usage else 0,
        usage.output if usage else 0,
        attempt.cost_pico if attempt is not None else 0,
    )
    if runtime.access_log is None:
        return
    key = job.key.record if job.key is not None else None
    runtime.access_log.add(
        AccessEntry(
            time=job.started_at_us,
            request_id=job.rid_hex,
            endpoint=job.endpoint.name,
            status=status,
            client_request_id=job.client_id.decode("ascii"),
            key=key.prefix if key else "",
            agent=str(key.agent_id) if key else "",
            model=call.model if call else "",
            route=route_name,
            provider=provider,
            error=code,
            stream=call.stream if call else False,
            input_tokens=usage.input if usage else 0,
            output_tokens=usage.output if usage else 0,
            cost_usd=attempt.cost_pico / 1e12 if attempt is not None else 0.0,
            latency_ms=latency_us / 1000,
            ttft_ms=job.ttft_us / 1000,
            attempts=job.attempts,
            config=job.snapshot.version if job.snapshot is not None else 0,
            client=job.exchange.client,
            cache=job.cache.decode("ascii"),
        )
    )
