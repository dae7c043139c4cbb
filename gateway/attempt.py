"""The books of one upstream call: its hold, its marks, its end. Every attempt has its own hold and its own record.

The order is the promise: the hold is journaled before anything is sent, delivered marks before what they count is
delivered, the complete record before the last byte. `close` runs on every exit and books what is known by then.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import msgspec

from budgets.bound import AMOUNT_MAX, media_tokens, money_bound
from budgets.journal import BYTES_PER_TOKEN, JournalError
from budgets.prices import PriceBound, cost
from budgets.records import PRICE_FREE, PRICE_UNKNOWN, Basis, Draw, HoldRecord, UsageRecord
from gateway.errors import GatewayError
from gateway.limits.limiter import Ticket
from gateway.snapshot import Candidate, Line, Snapshot
from providers.canonical import Usage
from providers.routing import Step

if TYPE_CHECKING:
    from gateway.pipeline import Job

log = logging.getLogger("hoosh.books")

# A delivered mark announces what may be delivered next, so that a worker that dies is never charged less than it
# delivered, and at most this step more: 64 events, or as much text as 64 tokens commonly are.
MARK_EVENTS = 64
MARK_BYTES = 256


class AttemptFailedError(Exception):
    """An upstream call failed before anything was delivered. `may_go_on`: another candidate may be tried;
    `of_credential`: so may the same one with another credential."""

    def __init__(self, error: GatewayError, *, may_go_on: bool, of_credential: bool = False) -> None:
        super().__init__(error.message)
        self.error = error
        self.may_go_on = may_go_on
        self.of_credential = of_credential


class Attempt:
    """One upstream call of a job. Its bound is reserved in every pool from before it is sent until `settle`."""

    __slots__ = (
        "_held_at_ns",
        "_marked_bytes",
        "_marked_events",
        "_settled",
        "candidate",
        "cost_pico",
        "draws",
        "dropped",
        "error",
        "held",
        "held_pico",
        "input_bound",
        "job",
        "limit",
        "line",
        "number",
        "output_bound",
        "price",
        "sent",
        "shortened",
        "status",
        "step",
        "ticket",
        "tokens",
        "usage",
        "window_start",
    )

    def __init__(
        self,
        job: Job,
        candidate: Candidate,
        step: Step,
        line: Line,
        *,
        input_bound: int,
        limit: int | None,
        price: PriceBound,
    ) -> None:
        self.job, self.candidate, self.step, self.line, self.price = job, candidate, step, line, price
        self.number = job.attempts
        self.input_bound = input_bound
        self.ticket: Ticket | None = None  # what its route and provider were counted by
        self.sent = False  # something of this call reached the upstream, as far as we know
        self.shortened = False
        self.dropped: tuple[str, ...] = ()  # parameters that the provider cannot honour
        self.status = 0
        self.error = ""
        self.usage: Usage | None = None
        self.tokens = 0
        self.cost_pico = 0
        self.draws: tuple[Draw, ...] = ()
        self.window_start = 0
        self._settled = False
        self._held_at_ns = 0
        self._marked_events = self._marked_bytes = 0
        self._bound(limit)

    def _bound(self, limit: int | None) -> None:
        call, price = self.job.call, self.price
        assert call is not None
        self.limit = limit
        self.output_bound = (limit or 0) * max(1, call.n)
        self.held = self.input_bound + self.output_bound
        self.held_pico = money_bound(
            input_tokens=self.input_bound,
            output_tokens=self.output_bound,
            input_pico=price.input_pico,
            output_pico=price.output_pico,
            request_pico=price.request_pico,
        )

    def shorten(self, limit: int) -> None:
        """Lower the output limit; before anything is held, and told in a header."""
        self._bound(limit)
        self.shortened = True

    def begin(self, draws: tuple[Draw, ...]) -> None:
        """Take over what was held for this call."""
        self.draws = draws
        self._held_at_ns = time.monotonic_ns()
        pool_id = self.job.pool_id
        for draw in draws:
            if draw.pool_id == pool_id:
                self.window_start = draw.window_start
                break

    def sending(self) -> None:
        """There is a connection and the request is about to be written to it."""
        self.sent = True

    def answered(self) -> None:
        """The answer has come, or the first piece of it: how long that took is remembered for routing."""
        job, now = self.job, time.monotonic()
        assert job.call is not None
        pace = self.candidate.load.pace(self.step.model)
        pace.of(stream=job.call.stream).add(now - self._held_at_ns / 1e9, now)

    def remaining_s(self) -> float:
        """What is left of the one deadline over all attempts."""
        return max(0.05, self.job.deadline - time.monotonic())

    def journal_hold(self) -> None:
        """Write `R`. Raises JournalError, then nothing may be sent."""
        job, price = self.job, self.price
        assert job.key is not None
        assert job.call is not None
        key = job.key.record
        job.runtime.journal.hold(
            HoldRecord(
                rid=job.rid,
                attempt=self.number,
                at_us=job.started_at_us,
                key_id=key.id,
                agent_id=key.agent_id,
                team_id=key.team_id,
                pool_id=job.pool_id,
                window_start=self.window_start,
                tokens=self.held,
                input_bound=self.input_bound,
                route_id=self.candidate.route.id,
                provider_id=self.candidate.provider.id,
                endpoint=job.endpoint.name,
                model=job.call.model,
                draws=self.draws,
                price_id=price.price_id,
                input_pico=min(price.input_pico, AMOUNT_MAX),
                output_pico=min(price.output_pico, AMOUNT_MAX),
                request_pico=min(price.request_pico, AMOUNT_MAX),
            )
        )

    def mark(self, events: int, text_bytes: int) -> None:
        """Write `D` before more is delivered, or read on, than the last one allowed. Raises JournalError.

        What is announced ahead is never above the hold; only what really came may be.
        """
        bound = self.output_bound
        most_bytes = bound * BYTES_PER_TOKEN
        if events > self._marked_events or text_bytes > self._marked_bytes < most_bytes:
            self._marked_events = min(events + MARK_EVENTS, max(bound, events))
            self._marked_bytes = min(text_bytes + MARK_BYTES, most_bytes)
            self.job.runtime.journal.delivered(self.job.rid, self.number, self._marked_events, self._marked_bytes)

    def settle(self, *, status: int, error: str = "", usage: Usage | None, basis: Basis) -> None:
        """Book the end: the complete record to the journal, then the rest of the hold back to the wallet. Once only.

        Without a writable journal the hold stays held and the record is kept for later: nothing is forgotten, and
        nothing is given back that may have been spent. Raises JournalError then.
        """
        if self._settled:
            return
        self._settled = True
        runtime, decision = self.job.runtime, self.job.decision
        assert decision is not None
        try:
            record = self._record(status, error, usage, basis)
        except Exception:
            # A fault of our own: this hold must not be missing from the pool for ever. The ledger charges all of it.
            runtime.desk.settle(self.draws, self.held, self.held_pico)
            raise
        runtime.book(record, decision.shape, self.held_pico)
        runtime.desk.took((time.monotonic_ns() - self._held_at_ns) / 1e9)

    def _record(self, status: int, error: str, usage: Usage | None, basis: Basis) -> UsageRecord:
        job, snapshot, decision, call = self.job, self.job.snapshot, self.job.decision, self.job.call
        assert snapshot is not None
        assert decision is not None
        assert call is not None
        assert job.key is not None
        key, route, provider = job.key.record, self.candidate.route, self.candidate.provider
        self.status, self.error, self.usage = status, error, usage
        price_id = self._price(snapshot, usage)
        return UsageRecord(
            rid=job.rid,
            attempt=self.number,
            at_us=job.started_at_us,
            key_id=key.id,
            agent_id=key.agent_id,
            team_id=key.team_id,
            pool_id=job.pool_id,
            window_start=self.window_start,
            route_id=route.id,
            provider_id=provider.id,
            endpoint=job.endpoint.name,
            model=call.model,
            upstream_model=self.step.model,
            status=status,
            error=error,
            stream=call.stream,
            input_tokens=usage.input if usage else 0,
            cached_tokens=usage.cached if usage else 0,
            cache_write_tokens=usage.cache_write if usage else 0,
            output_tokens=usage.output if usage else 0,
            reasoning_tokens=usage.reasoning if usage else 0,
            tokens=self.tokens,
            held=self.held,
            cost_pico=self.cost_pico,
            price_id=price_id,
            basis=int(basis),
            latency_us=(time.monotonic_ns() - job.started_ns) // 1000,
            ttft_us=job.ttft_us,
            config_version=snapshot.version,
            shape=decision.shape.digest,
            attempts=self.number + 1,
            client_request_id=job.client_id.decode("ascii"),
            input_audio_tokens=usage.input_audio if usage else 0,
            output_audio_tokens=usage.output_audio if usage else 0,
            input_image_tokens=usage.input_image if usage else 0,
            draws=self.draws,
        )

    def _price(self, snapshot: Snapshot, usage: Usage | None) -> int:
        """Set what is charged, in tokens and in money; the id of the price row used."""
        free = PRICE_FREE if self.candidate.free else PRICE_UNKNOWN
        if usage is None:
            return free
        self.tokens = usage.input + usage.output
        provider, route, at = self.candidate.provider, self.candidate.route, self.job.started_at_us / 1e6
        price = snapshot.prices.find(
            provider.name, provider.kind, self.step.model, at, route=route.name, input_tokens=usage.input
        )
        if price is None:
            return free
        cost_pico = cost(
            price,
            input=usage.input,
            cached=usage.cached,
            cache_write=usage.cache_write,
            output=usage.output,
            reasoning=usage.reasoning,
            input_audio=usage.input_audio,
            output_audio=usage.output_audio,
            input_image=usage.input_image,
        )
        self.cost_pico = min(cost_pico, AMOUNT_MAX)  # a mistyped price
        return price.id

    def settle_nothing(self, *, status: int, error: str) -> None:
        """Book that the provider consumed nothing (refused, unreachable): the whole hold returns."""
        try:
            self.settle(status=status, error=error, usage=None, basis=Basis.NONE)
        except JournalError:
            log.warning("a failed attempt could not be journaled", extra={"request_id": self.job.rid_hex})

    def estimated(self, *, events: int, text_bytes: int) -> Usage:
        """Usage where the provider told none: learned ratios over the bytes, and media by the table they were held by.

        Never above what was held for it, and never below what was delivered.
        """
        ratios, model, call = self.job.runtime.ratios, self.step.model, self.job.call
        assert call is not None
        text_in = call.prompt_tokens or ratios.tokens(model, output=False, text_bytes=len(call.body) - call.media_bytes)
        media = media_tokens(images=call.images, audios=call.audios, files=call.files + call.others)
        output = max(events, min(self.output_bound, ratios.tokens(model, output=True, text_bytes=text_bytes)))
        return Usage(input=min(text_in + media, self.input_bound), output=output, reported=False)

    def believed(self, usage: Usage, *, events: int) -> tuple[Usage, Basis]:
        """A reported usage, raised to what was delivered where it says less than that, which nobody can believe."""
        if usage.output >= events:
            return usage, Basis.REPORTED if usage.reported else Basis.ESTIMATED
        return msgspec.structs.replace(usage, output=events, reported=False), Basis.ESTIMATED

    def learn(self, usage: Usage, *, text_bytes: int) -> None:
        """Let a reported usage improve the estimates for this model: each one at first, later every eighth."""
        call, ratios = self.job.call, self.job.runtime.ratios
        if self.job.rid[-1] & 7 and ratios.knows(self.step.model):
            return
        assert call is not None
        if not call.media_bytes and not call.prompt_tokens:
            ratios.learn(self.step.model, output=False, text_bytes=len(call.body), tokens=usage.input)
        ratios.learn(self.step.model, output=True, text_bytes=text_bytes, tokens=usage.output - usage.reasoning)

    def close(self) -> None:
        """The last resort, on every exit: an attempt nobody settled is booked as unknown by what may have happened."""
        if self._settled:
            return
        self.line.circuit.abandoned()
        status, error = (500, "internal_error")
        if self.job.exchange.gone:
            status, error = 499, "client_left"
        elif self.job.aborted:
            status, error = 503, "shutting_down"
        try:
            if self.sent:
                self.settle(
                    status=status,
                    error=error,
                    usage=self.estimated(events=0, text_bytes=0),
                    basis=Basis.ESTIMATED,
                )
            else:
                self.settle(status=status, error=error, usage=None, basis=Basis.NONE)
        except JournalError:
            log.warning("an abandoned attempt could not be journaled", extra={"request_id": self.job.rid_hex})
