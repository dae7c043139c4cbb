"""The request path, top to bottom: admit, read, parse, guard, route, hold, call, relay, settle.

`serve` is one request. Everything it needs is in memory: one `Snapshot` taken at admission, the wallets behind
`runtime.desk` and the append-only journal. No database, no lock, no thread. What a call costs is journaled before the
caller sees the end of the answer, so nothing answered goes unbooked; see `gateway.attempt` for the books of one
upstream call and `gateway.relay` for how its answer is delivered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from budgets.bound import input_bound, output_limit
from budgets.desk import NoLeaseError, PoolSpentError
from budgets.journal import JournalError
from gateway import relay
from gateway.admission import Head, client_request_id, find_key
from gateway.attempt import Attempt, AttemptFailedError
from gateway.endpoints import Endpoint
from gateway.errors import (
    BadRequestError,
    BudgetExceededError,
    ForbiddenError,
    GatewayError,
    GatewayUnavailableError,
    ModelNotFoundError,
    PayloadTooLargeError,
    UnsupportedMediaError,
    to_openai,
)
from gateway.exchange import Exchange
from gateway.logs import AccessEntry
from gateway.snapshot import Candidate, Key, Snapshot
from providers.canonical import Call
from providers.routing import Decision, Step

if TYPE_CHECKING:
    from gateway.runtime import Runtime

log = logging.getLogger("hoosh.pipeline")


class Job:
    """One request on its way through: what is known of it so far."""

    __slots__ = (
        "aborted",
        "attempts",
        "call",
        "client_id",
        "deadline",
        "decision",
        "endpoint",
        "exchange",
        "head",
        "key",
        "last",
        "rid",
        "rid_hex",
        "runtime",
        "snapshot",
        "started_at_us",
        "started_ns",
        "task",
        "ttft_us",
    )

    def __init__(self, runtime: Runtime, exchange: Exchange, endpoint: Endpoint) -> None:
        self.runtime, self.exchange, self.endpoint = runtime, exchange, endpoint
        self.started_ns = time.monotonic_ns()
        self.started_at_us = time.time_ns() // 1000
        self.rid = runtime.new_id(self.started_at_us)
        self.rid_hex = self.rid.hex()
        self.client_id = b""
        self.snapshot: Snapshot | None = None
        self.head: Head | None = None
        self.key: Key | None = None
        self.call: Call | None = None
        self.decision: Decision | None = None
        self.deadline = 0.0
        self.attempts = 0
        self.last: Attempt | None = None
        self.ttft_us = 0
        self.aborted = False
        self.task = exchange.task

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What every answer of this request carries."""
        own = self.rid_hex.encode()
        headers = [(b"x-request-id", self.client_id or own), (b"x-hoosh-request", own)]
        if self.snapshot is not None:
            headers.append((b"x-hoosh-config", self.snapshot.version_header))
        if self.last is not None:
            headers.append((b"x-hoosh-route", self.last.candidate.header))
        return headers


async def serve(runtime: Runtime, exchange: Exchange, endpoint: Endpoint) -> None:
    """One inference request, from its head to its settled end. Never raises but for the server's own cancellation."""
    job = Job(runtime, exchange, endpoint)
    runtime.jobs.add(job)
    status, code = 200, ""
    try:
        admit(job)
        settings = job_snapshot(job).settings
        body = await exchange.read_body(settings.body_limit_bytes, settings.body_timeout_s)
        job.call = endpoint.parse(body)
        guard(job)
        route(job)
        await call_candidates(job)
    except GatewayError as error:
        status, code = error.status, error.code or error.type
        await refuse(job, error)
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
        runtime.jobs.discard(job)
        finish(job, status, code)
        job.last = job.task = None  # they point back to the job: without this every request is left to the collector


def job_snapshot(job: Job) -> Snapshot:
    """The snapshot taken at admission."""
    assert job.snapshot is not None
    return job.snapshot


def admit(job: Job) -> None:
    """Path and method are settled; now the key, its scope, the declared size and whether we can book at all."""
    runtime = job.runtime
    snapshot = job.snapshot = runtime.snapshot
    job.client_id = client_request_id(job.exchange.headers)
    if snapshot is None:
        raise GatewayUnavailableError("The gateway has no configuration yet.", retry_after_s=1)
    head = job.head = Head(job.exchange.headers)
    key = job.key = find_key(snapshot.keys, head.secret)
    if "inference" not in key.record.scopes:
        raise ForbiddenError("This API key may not call models (it lacks the scope 'inference').")
    if head.length > snapshot.settings.body_limit_bytes:
        raise PayloadTooLargeError(snapshot.settings.body_limit_bytes)
    if head.coding and head.coding.strip().lower() != b"identity":
        raise UnsupportedMediaError()
    if not runtime.journal_writable:
        raise GatewayUnavailableError(
            "The gateway cannot write its journal.", code="journal_unavailable", retry_after_s=5
        )


def guard(job: Job) -> None:
    """May this key ask for this, out of this pool?"""
    call, key, snapshot = job.call, job.key, job_snapshot(job)
    assert call is not None
    assert key is not None
    if key.may_use is not None and not key.may_use(call.model):
        raise ModelNotFoundError(call.model)
    assert job.head is not None
    named = job.head.pool.decode("utf-8", "replace") or call.pool
    if named is None:
        return
    pool = snapshot.pools_by_name.get(named)
    if pool is None:
        raise BadRequestError(f"There is no token pool named '{named[:100]}'.", param="pool", code="unknown_pool")
    if pool.id != key.record.pool_id:
        raise ForbiddenError(
            f"This API key may not draw on the pool '{named[:100]}'.", code="pool_not_allowed", param="pool"
        )


def route(job: Job) -> None:
    """The ordered candidates and the explanation of their order."""
    snapshot, call = job_snapshot(job), job.call
    assert call is not None
    plan = snapshot.table.plan(call.model)
    if not plan.steps:
        raise ModelNotFoundError(call.model)
    turn = job.runtime.next_turn(call.model) if plan.strategy == "round_robin" else 0
    unavailable: dict[int, str] | None = None
    for step in plan.steps:
        reason = unavailable_reason(snapshot, step, call.endpoint)
        if reason:
            unavailable = unavailable or {}
            unavailable[step.route.id] = reason
    job.decision = snapshot.table.decide(plan, turn=turn, unavailable=unavailable)
    first = snapshot.candidates.get(job.decision.steps[0].route.id)
    total_s = first.limits.total_s if first is not None else snapshot.settings.total_timeout_s
    job.deadline = time.monotonic() + total_s


def unavailable_reason(snapshot: Snapshot, step: Step, endpoint: str) -> str:
    """Why a candidate should be left out of this request; empty = it may be called."""
    candidate = snapshot.candidates.get(step.route.id)
    if candidate is None:
        return "not usable"
    if endpoint not in candidate.heads:
        return f"does not serve {endpoint}"
    if not candidate.circuit.quiet:
        return candidate.circuit.reason(time.monotonic())
    if candidate.provider.id in snapshot.down:
        return "health probes fail"
    return ""


async def call_candidates(job: Job) -> None:
    """Call candidates in order until one answers. Nothing is tried again once a byte was delivered."""
    snapshot, call, decision = job_snapshot(job), job.call, job.decision
    assert call is not None
    assert decision is not None
    failure: GatewayError | None = None
    for step in decision.steps:
        candidate = snapshot.candidates.get(step.route.id)
        if candidate is None or call.endpoint not in candidate.heads:
            continue
        if job.attempts >= snapshot.settings.max_attempts or (failure and time.monotonic() >= job.deadline):
            break
        job.exchange.keep_running = False  # a route before this one may have set it
        if job.exchange.gone:
            raise asyncio.CancelledError
        attempt = await hold(job, candidate, step)
        job.attempts += 1
        job.last = attempt
        try:
            await (relay.stream(attempt) if call.stream else relay.unary(attempt))
            return
        except AttemptFailedError as failed:
            failure = failed.error
            if not failed.may_go_on:
                break
        finally:
            attempt.close()
    raise failure or ModelNotFoundError(call.model, f"No route for '{call.model[:256]}' serves {call.endpoint}.")


async def hold(job: Job, candidate: Candidate, step: Step) -> Attempt:
    """Reserve the upper bound of one upstream call and journal the hold. Raises the refusal when it does not fit."""
    runtime, snapshot, call, key = job.runtime, job_snapshot(job), job.call, job.key
    assert call is not None
    assert key is not None
    pool = snapshot.pools.get(key.record.pool_id)
    if pool is None or not pool.enabled:
        raise ForbiddenError("The token pool of this API key is disabled.", code="pool_disabled")
    card = snapshot.cards.find(step.model)
    bound = input_bound(
        body_bytes=len(call.body),
        media_bytes=call.media_bytes,
        messages=call.messages,
        prompt_tokens=call.prompt_tokens,
        images=call.images,
        audios=call.audios,
        files=call.files + call.others,
        min_bytes_per_token=card.min_bytes_per_token,
    )
    limit: int | None = None
    if job.endpoint.generates:
        limit = output_limit(
            asked=call.limit,
            card_max=card.max_output_tokens,
            default_cap=snapshot.settings.default_output_cap,
            route_cap=candidate.route.output_cap,
            available=runtime.desk.available(pool.id),
        )
    attempt = Attempt(job, candidate, step, pool, input_bound=bound, limit=limit)
    if not runtime.desk.hold(pool.id, attempt.held):
        try:
            await runtime.desk.wait_hold(pool.id, attempt.held, snapshot.settings.hold_wait_s)
        except PoolSpentError as spent:
            raise budget_error(pool.name, spent) from None
        except NoLeaseError as missing:
            raise GatewayUnavailableError(
                "The gateway cannot grant tokens right now.", code="no_lease", retry_after_s=1
            ) from missing
    try:
        attempt.journal_hold()
    except JournalError as exc:
        runtime.desk.release(pool.id, attempt.held)
        raise GatewayUnavailableError(
            "The gateway cannot write its journal.", code="journal_unavailable", retry_after_s=5
        ) from exc
    return attempt


def budget_error(pool: str, spent: PoolSpentError) -> BudgetExceededError:
    """The 429 that carries the numbers."""
    return BudgetExceededError(
        f"The token pool '{pool}' has {spent.available} tokens left, this request may need up to {spent.wanted}. "
        "Ask for a smaller output limit, shorten the prompt, or have an operator raise the pool.",
        retry_after_s=spent.retry_after_s,
        extra_headers=(
            (b"x-hoosh-tokens-available", b"%d" % spent.available),
            (b"x-hoosh-tokens-needed", b"%d" % spent.wanted),
        ),
    )


async def refuse(job: Job, error: GatewayError) -> None:
    """Tell the caller, unless an answer has begun (then the relay has told it in band) or the caller has left."""
    if job.exchange.begun or job.exchange.gone:
        return
    job.runtime.metrics.refused(error.code or error.type)
    await job.exchange.respond(error.status, [*error.headers, *job.headers()], to_openai(error))


async def refuse_simply(runtime: Runtime, exchange: Exchange, error: GatewayError) -> None:
    """An error answer outside of inference: no job, no books."""
    request_id = client_request_id(exchange.headers) or runtime.new_id(time.time_ns() // 1000).hex().encode()
    await exchange.respond(error.status, [*error.headers, (b"x-request-id", request_id)], to_openai(error))


def finish(job: Job, status: int, code: str) -> None:
    """Count and log the request once, at its very end."""
    runtime, attempt, call = job.runtime, job.last, job.call
    latency_us = (time.monotonic_ns() - job.started_ns) // 1000
    usage = attempt.usage if attempt is not None else None
    if attempt is not None and attempt.status and status == 200:
        status, code = attempt.status, attempt.error
    provider = attempt.candidate.provider.name if attempt is not None else ""
    route_name = attempt.candidate.route.name if attempt is not None else ""
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
        )
    )
