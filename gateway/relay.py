"""Calling one candidate and delivering what it answers, whole or as a stream.

The contract of a stream: headers are held back until the upstream's first event; exactly one terminal event; after a
failure an error object in band and a cut connection, never `[DONE]` and never a clean end. Nothing that was
delivered is ever repeated elsewhere. What one upstream read brought is written once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from budgets.journal import JournalError
from budgets.records import Basis
from gateway import limiting
from gateway.attempt import Attempt, AttemptFailedError
from gateway.dialects import names
from gateway.dialects.base import Dialect, StreamWriter
from gateway.errors import (
    GatewayError,
    GatewayUnavailableError,
    UpstreamBadReplyError,
    from_problem,
    from_transport,
)
from gateway.through import AnswerRefusedError
from providers.canonical import Request, Target, UnsupportedParamError, UpstreamProblem, Usage
from providers.upstream import Limits, StreamReply, UpstreamError

if TYPE_CHECKING:
    from gateway.exchange import Exchange
    from gateway.pipeline import Job
    from providers.adapters import Adapter, LocalAdapter, StreamReader

log = logging.getLogger("hoosh.relay")

ERROR_BODY_MAX = 64 * 1024
AT_ONCE_S = 0.05  # a call made so soon after the request was routed has its candidate's limits as they are
CLIENT_LEFT = 499
INTERNAL, REFUSED = "internal", "refused"
EVENT_STREAM = b"text/event-stream"
# Reasons after which another provider may do better; a request the provider found wrong is wrong everywhere.
ELSEWHERE = frozenset({"credential", "rate_limit", "overloaded", "server", "protocol", "cut"})
# Of these, the ones that another credential of the same provider may not meet.
OF_CREDENTIAL = frozenset({"credential", "rate_limit"})
# And the ones where the provider may have done (and charged for) work.
CONSUMED = frozenset({"protocol", "cut"})
# The same of what a connection brought: bytes that are no HTTP are an answer that makes no sense, not silence.
NONSENSE = "protocol"


async def unary(attempt: Attempt) -> None:
    """One whole answer. Returns when it was delivered; raises AttemptFailedError when it was not."""
    job, candidate, line = attempt.job, attempt.candidate, attempt.line
    call = job.call
    assert call is not None
    target = line.target(attempt.step.model)
    adapter = candidate.adapter_for(call, target)
    request = None if line.pool is None else build(attempt, adapter, target)
    line.circuit.started(time.monotonic())
    job.exchange.keep_running = candidate.route.on_disconnect == "drain"
    if request is None or line.pool is None:
        local: LocalAdapter = adapter  # type: ignore[assignment]
        status, headers, body = 200, [], await local.answer(call, attempt.limit)
    else:
        try:
            reply = await line.pool.request(
                head_of(request, target), request.body, limits_for(attempt), attempt.sending
            )
        except UpstreamError as exc:
            raise transport_failed(attempt, exc) from None
        status, headers, body = reply.status, reply.headers, reply.body
    if not 200 <= status < 300:
        raise refused(attempt, adapter.read_error(status, headers, body))
    answer = adapter.read_unary(call, status, headers, body, target)
    if answer.problem is not None:
        raise refused(attempt, answer.problem)
    line.circuit.succeeded()
    attempt.answered()
    job.runtime.metrics.attempt(candidate.provider.name, "ok")
    usage, basis = answer.usage, Basis.REPORTED
    if usage is None:
        usage, basis = attempt.estimated(events=0, text_bytes=answer.output_bytes), Basis.ESTIMATED
    elif answer.output_bytes:
        attempt.learn(usage, text_bytes=answer.output_bytes)
    job.ttft_us = (time.monotonic_ns() - job.started_ns) // 1000
    told, refusal = (answer.body, None) if answer.native else job.through.looked_at(answer.body)
    try:
        settle_read(attempt, usage, basis, refusal)
        if job.runtime.durable:
            await job.runtime.journal.durable()
    except JournalError as exc:
        raise AttemptFailedError(journal_error(), may_go_on=False) from exc
    if job.keeping is not None:
        job.keeping.keep_whole(attempt, answer, usage)
    if refusal is not None:
        raise refusal
    if not job.exchange.gone:
        if not answer.native:
            told = job.endpoint.dialect.answer(job.asked, told)
        await job.exchange.respond(200, [(b"content-type", b"application/json"), *job.headers()], told)


def build(attempt: Attempt, adapter: Adapter, target: Target) -> Request:
    """The upstream request of an attempt. Raises `AttemptFailedError` where the provider cannot do what is asked."""
    call = attempt.job.call
    assert call is not None
    try:
        request = adapter.build(call, target, attempt.limit)
    except UnsupportedParamError as exc:
        error = names.refusal(call.names, exc)
        attempt.settle_nothing(status=error.status, error=error.code or "")
        raise AttemptFailedError(error, may_go_on=True) from None
    attempt.dropped = request.dropped
    return request


def head_of(request: Request, target: Target) -> bytes:
    """The head that goes before a request's body."""
    head = target.heads[request.operation]
    return head + request.headers if request.headers else head


def limits_for(attempt: Attempt) -> Limits:
    """The candidate's limits, and never more than what is left of the request's deadline: less for a further attempt,
    a candidate after others that were passed over, a request that waited (for a place, tokens, an equal request)."""
    limits, left_s = attempt.candidate.limits, attempt.remaining_s()
    if left_s > limits.total_s - AT_ONCE_S:
        return limits
    return Limits(connect_s=limits.connect_s, first_byte_s=limits.first_byte_s, gap_s=limits.gap_s, total_s=left_s)


def journal_error() -> GatewayUnavailableError:
    """What a caller hears when the books cannot be kept."""
    return GatewayUnavailableError("The gateway cannot write its journal.", code="journal_unavailable", retry_after_s=5)


def transport_failed(attempt: Attempt, exc: UpstreamError) -> AttemptFailedError:
    """Book and classify a connection that failed before anything was delivered.

    Not sent: nothing was consumed, the next candidate may be asked. Sent: the provider may have worked, so it is
    charged by estimate. After nonsense the next may be asked, too; after silence or a reset, where the provider may
    still be at it, only a route that allows duplicates is left for another.
    """
    job, candidate = attempt.job, attempt.candidate
    error = from_transport(exc.kind)
    note_failure(attempt, exc.kind, str(exc))
    if exc.sent:
        book_estimate(attempt, error, events=0, text_bytes=0)
    else:
        attempt.settle_nothing(status=error.status, error=error.code or "")
    may_go_on = not exc.sent or exc.kind == NONSENSE or candidate.route.duplicates_allowed
    job.runtime.metrics.attempt(candidate.provider.name, exc.kind)
    return AttemptFailedError(error, may_go_on=may_go_on)


def refused(attempt: Attempt, problem: UpstreamProblem) -> AttemptFailedError:
    """Book and classify an answer that is a refusal or a failure, before anything was delivered."""
    candidate = attempt.candidate
    error = from_problem(problem)
    if problem.reason == "rate_limit":
        attempt.job.runtime.happenings.rate_limited(candidate.provider.id, time.time())
        attempt.line.circuit.cool_down(time.monotonic(), problem.retry_after_s or 1.0)
    elif problem.reason == "client":
        attempt.line.circuit.succeeded()  # it works: it read the request and answered
    else:
        note_failure(attempt, problem.reason, problem.message)
    if problem.reason in CONSUMED:
        book_estimate(attempt, error, events=0, text_bytes=0)
    else:
        attempt.settle_nothing(status=error.status, error=error.code or "")
    outcome = problem.reason if problem.reason != "client" else "refused"
    attempt.job.runtime.metrics.attempt(candidate.provider.name, outcome)
    return AttemptFailedError(
        error, may_go_on=problem.reason in ELSEWHERE, of_credential=problem.reason in OF_CREDENTIAL
    )


def note_failure(attempt: Attempt, kind: str, detail: str) -> None:
    """Tell the circuit, and the log when it opens."""
    job, candidate = attempt.job, attempt.candidate
    assert job.snapshot is not None
    settings = job.snapshot.settings
    opened = attempt.line.circuit.failed(
        time.monotonic(), threshold=settings.breaker_failures, open_s=settings.breaker_open_s, error=kind
    )
    log.warning(
        "upstream call failed",
        extra={
            "request_id": job.rid_hex,
            "provider": candidate.provider.name,
            "route": candidate.route.name,
            "kind": kind,
            "detail": "" if job.is_private else detail[:200],  # it may repeat the request
            "circuit_opened": opened,
        },
    )


def book_estimate(attempt: Attempt, error: GatewayError, *, events: int, text_bytes: int) -> None:
    """Charge what may have been consumed by an attempt that failed."""
    usage = attempt.estimated(events=events, text_bytes=text_bytes)
    try:
        attempt.settle(status=error.status, error=error.code or "", usage=usage, basis=Basis.ESTIMATED)
    except JournalError:
        log.warning("a failed attempt could not be journaled", extra={"request_id": attempt.job.rid_hex})


class LocalStream:
    """The stream of an adapter that answers in process, read like an upstream's."""

    status = 200
    headers: list[tuple[bytes, bytes]] = [(b"content-type", EVENT_STREAM)]

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces

    async def read(self) -> bytes:
        """The next piece, b"" at the end."""
        return await anext(self._pieces, b"")

    def close(self) -> None:
        """Nothing to close: the generator ends with its last reference."""


async def stream(attempt: Attempt) -> None:
    """One streamed answer. Returns when its terminal event was delivered; raises AttemptFailedError before the first
    byte; after it, failures are told in band and the exchange is left unfinished so that the server cuts it."""
    job, candidate, line = attempt.job, attempt.candidate, attempt.line
    call = job.call
    assert call is not None
    target = line.target(attempt.step.model)
    adapter = candidate.adapter_for(call, target)
    request = None if line.pool is None else build(attempt, adapter, target)
    line.circuit.started(time.monotonic())
    source: StreamReply | LocalStream
    if request is None or line.pool is None:
        local: LocalAdapter = adapter  # type: ignore[assignment]
        source = LocalStream(local.stream(call, attempt.limit))
    else:
        try:
            source = await line.pool.stream(
                head_of(request, target), request.body, limits_for(attempt), attempt.sending
            )
            if not 200 <= source.status < 300:
                try:
                    body = await source.read_all(ERROR_BODY_MAX)
                except UpstreamError:
                    body = b""  # the status says enough
                raise refused(attempt, adapter.read_error(source.status, source.headers, body))
        except UpstreamError as exc:
            raise transport_failed(attempt, exc) from None
        if not is_stream(source.headers, adapter.stream_types):
            source.close()
            problem = UpstreamProblem(
                status=502,
                code="upstream_error",
                message="The provider did not answer with a stream.",
                reason="protocol",
            )
            raise refused(attempt, problem)
    reader = adapter.open_stream(call, target)
    writer = writer_of(job, native=reader.native)
    job.exchange.keep_running = candidate.route.on_disconnect != "cancel"
    pinger = Pinger(job.exchange, job.endpoint.dialect.ping)
    job.runtime.pingers.add(pinger)
    try:
        await pump(attempt, source, reader, writer, pinger)
    except asyncio.CancelledError:
        await cancelled(attempt, reader, writer)
        raise
    except AttemptFailedError:
        raise
    except AnswerRefusedError as error:
        await broken(attempt, reader, writer, error, kind=REFUSED)
    except Exception:
        log.exception("a stream failed inside the gateway", extra={"request_id": job.rid_hex})
        await broken(attempt, reader, writer, GatewayError(code="internal_error"), kind=INTERNAL)
    finally:
        job.runtime.pingers.discard(pinger)
        source.close()


def writer_of(job: Job, *, native: bool) -> StreamWriter:
    """Who writes the stream to the caller. One in the caller's own API passes as it is, and cannot be kept."""
    dialect = job.endpoint.dialect
    if not native:
        return job.through.stream(dialect.writer(job.asked, job.rid_hex))
    if job.keeping is not None:
        job.keeping.give_up()
    return Passing(dialect)


def client_left() -> GatewayError:
    """What is booked where nobody is left to be told anything."""
    return GatewayError("The client left.", status=CLIENT_LEFT, code="client_left")


def is_stream(headers: list[tuple[bytes, bytes]], types: tuple[bytes, ...]) -> bool:
    """Whether a reply says it is a stream of one of these types. An HTML error page with status 200 does not."""
    return any(name == b"content-type" and any(wanted in value.lower() for wanted in types) for name, value in headers)


class Passing:
    """The writer of a stream that is in the caller's own dialect already, its end included."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    def feed(self, data: bytes) -> bytes:
        """The same bytes."""
        return data

    def finish(self) -> bytes:
        """Nothing: the provider's own end was among the bytes."""
        return b""

    def fail(self, error: GatewayError) -> bytes:
        """The dialect's event for an error."""
        return self._dialect.in_band(error)


async def pump(
    attempt: Attempt, source: StreamReply | LocalStream, reader: StreamReader, writer: StreamWriter, pinger: Pinger
) -> None:
    """Read, mark, write, until the end."""
    job = attempt.job
    exchange = job.exchange
    route = attempt.candidate.route
    last_event = 0  # of those read on after the client left
    while True:
        try:
            chunk = await source.read()
        except UpstreamError as exc:
            await broken(attempt, reader, writer, from_transport(exc.kind), kind=exc.kind)
            return
        if exchange.gone and not last_event and route.on_disconnect == "cap":
            last_event = reader.events + route.disconnect_cap
        out = reader.feed(chunk) if chunk else reader.finish()
        if out or reader.done:
            if not job.ttft_us:
                job.ttft_us = (time.monotonic_ns() - job.started_ns) // 1000
                attempt.answered()
            out = writer.feed(out)  # before the books: an answer that may not be told is no success
            if reader.done:
                out += writer.finish()
            try:
                attempt.mark(reader.events, reader.delivered_bytes)  # also of what nobody is left to hear
                if reader.done:
                    settle_stream(attempt, reader)
                    if job.runtime.durable:
                        await job.runtime.journal.durable()
            except JournalError:
                await broken(attempt, reader, writer, journal_error(), kind="journal")
                return
            if reader.done and job.keeping is not None:
                job.keeping.keep_stream(attempt, reader.usage)
            if not exchange.begun:
                await exchange.begin(200, stream_headers(job))
            pinger.busy = True
            if reader.done:
                await exchange.finish(out)
                return
            if out:
                await exchange.write(out)
            pinger.wrote()
        if (problem := reader.error) is not None:
            await broken(attempt, reader, writer, from_problem(problem), kind=problem.reason, problem=problem)
            return
        if last_event and reader.events >= last_event:
            attempt.line.circuit.abandoned()
            book_read(attempt, reader, client_left())
            return
        if attempt.output_bound and reader.events > attempt.output_bound:
            error = UpstreamBadReplyError(
                "The provider exceeded the output limit of this request.", code="limit_exceeded"
            )
            await broken(attempt, reader, writer, error, kind="overrun")
            return


def stream_headers(job: Job) -> list[tuple[bytes, bytes]]:
    """The head of a streamed answer."""
    return [
        (b"content-type", job.endpoint.dialect.stream_type),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
        *job.headers(),
    ]


def settle_stream(attempt: Attempt, reader: StreamReader) -> None:
    """Book a stream that ended well. Raises JournalError."""
    attempt.line.circuit.succeeded()
    attempt.job.runtime.metrics.attempt(attempt.candidate.provider.name, "ok")
    usage, basis = reader.usage, Basis.REPORTED
    if usage is None:
        usage = attempt.estimated(events=reader.events, text_bytes=reader.delivered_bytes)
        basis = Basis.ESTIMATED
    else:
        attempt.learn(usage, text_bytes=reader.delivered_bytes)
        usage, basis = attempt.believed(usage, events=reader.events)
    settle_read(attempt, usage, basis)


def settle_read(attempt: Attempt, usage: Usage, basis: Basis, refusal: GatewayError | None = None) -> None:
    """Book an answer that was read to its end, also if nobody was left to hear it, or may not. Raises JournalError."""
    if refusal is not None:
        attempt.settle(status=refusal.status, error=refusal.code or "", usage=usage, basis=basis)
    elif attempt.job.exchange.gone:
        attempt.settle(status=CLIENT_LEFT, error="client_left", usage=usage, basis=basis)
    else:
        attempt.settle(status=200, usage=usage, basis=basis)
    limiting.answered(attempt)


async def broken(
    attempt: Attempt,
    reader: StreamReader,
    writer: StreamWriter,
    error: GatewayError,
    *,
    kind: str,
    problem: UpstreamProblem | None = None,
) -> None:
    """A stream failed. Before the first byte it may go elsewhere; after it the caller is told in band and cut off."""
    job, candidate = attempt.job, attempt.candidate
    exchange = job.exchange
    if not exchange.begun and problem is not None:
        raise refused(attempt, problem)
    if kind == REFUSED:
        attempt.line.circuit.succeeded()  # it answered; that we may not tell it is no fault of its own
    elif kind in ("journal", "overrun", INTERNAL):
        attempt.line.circuit.abandoned()  # it says nothing of the upstream's health
    else:
        note_failure(attempt, kind, error.message)
    job.runtime.metrics.attempt(candidate.provider.name, kind)
    book_read(attempt, reader, error)
    if not exchange.begun:
        may_go_on = kind == NONSENSE or (kind not in ("journal", REFUSED) and candidate.route.duplicates_allowed)
        raise AttemptFailedError(error, may_go_on=may_go_on)
    if kind == REFUSED:
        job.count_refusal(error)
    await exchange.write(writer.fail(error))


def book_read(attempt: Attempt, reader: StreamReader, error: GatewayError) -> None:
    """Charge what was read of a stream that ended badly: as the provider reported it, or else by estimate."""
    if reader.usage is None:
        book_estimate(attempt, error, events=reader.events, text_bytes=reader.delivered_bytes)
        return
    usage, basis = attempt.believed(reader.usage, events=reader.events)
    try:
        attempt.settle(status=error.status, error=error.code or "", usage=usage, basis=basis)
    except JournalError:
        log.warning("a cut stream could not be journaled", extra={"request_id": attempt.job.rid_hex})


async def cancelled(attempt: Attempt, reader: StreamReader, writer: StreamWriter) -> None:
    """The client left, or the worker must end its streams: book what was delivered, and say so if anyone listens."""
    job = attempt.job
    error: GatewayError
    if job.aborted:
        error = GatewayUnavailableError("The gateway is restarting; the answer was cut.", code="shutting_down")
    else:
        error = client_left()
        attempt.line.circuit.abandoned()
    book_read(attempt, reader, error)
    if job.aborted and job.exchange.begun:
        await job.exchange.write(writer.fail(error))


class Pinger:
    """Keeps a quiet stream visibly alive: a ping when nothing was written for a while, between events only."""

    __slots__ = ("_exchange", "_last", "_ping", "_task", "busy")

    def __init__(self, exchange: Exchange, ping: bytes) -> None:
        self._exchange, self._ping = exchange, ping
        self._last = time.monotonic()
        self._task: asyncio.Task[None] | None = None
        self.busy = False

    def wrote(self) -> None:
        """Something was written just now."""
        self.busy = False
        self._last = time.monotonic()

    def tick(self, now: float, interval_s: float) -> None:
        """Send a ping if the stream has begun, is not writing and was quiet for the interval."""
        exchange = self._exchange
        if self.busy or not interval_s or not self._ping or now - self._last < interval_s or not exchange.begun:
            return
        self._last = now
        self._task = asyncio.get_running_loop().create_task(exchange.write(self._ping))
