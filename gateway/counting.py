"""How many tokens a prompt has, before it is sent: the counting endpoints of the APIs that have one.

The provider's own counter is asked where it has one. Where it has none, or does not answer, the number is an estimate
(`providers.estimates`), and the answer says so in `x-hoosh-estimated`. Counting costs nothing and is not held in any
pool.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

from gateway import pipeline
from gateway.dialects import anthropic, gemini, responses
from gateway.endpoints import Endpoint, text_bound
from gateway.errors import GatewayError
from gateway.exchange import Exchange
from gateway.screening import has_policy, screen
from providers import estimates
from providers.canonical import Call, Request, Target, UnsupportedParamError
from providers.upstream import UpstreamError

if TYPE_CHECKING:
    from gateway.runtime import Runtime
    from gateway.snapshot import Candidate

log = logging.getLogger("hoosh.counting")

COUNT = "count"  # the operation of a kind's paths
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


@runtime_checkable
class Counting(Protocol):
    """What an adapter offers whose provider counts tokens."""

    def build_count(self, call: Call, target: Target) -> Request:
        """The upstream request."""
        ...

    def read_count(self, body: bytes) -> int | None:
        """The number in a 2xx reply; None when there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Counter:
    """One counting endpoint: how it is read, and how its answer is told."""

    endpoint: Endpoint
    tell: Callable[[int], bytes]


def of_responses(tokens: int) -> bytes:
    """The answer of the Responses API."""
    return _encode({"object": "response.input_tokens", "input_tokens": tokens})


_ANTHROPIC = "/v1/messages/count_tokens"
_RESPONSES = "/v1/responses/input_tokens"
COUNTERS: Mapping[str, Counter] = MappingProxyType(
    {
        _ANTHROPIC: Counter(
            Endpoint("count_tokens", _ANTHROPIC, anthropic.parse_count, text_bound, anthropic.ANTHROPIC),
            anthropic.count_answer,
        ),
        _RESPONSES: Counter(
            Endpoint("count_tokens", _RESPONSES, responses.parse_responses, text_bound, responses.RESPONSES),
            of_responses,
        ),
        gemini.COUNT: Counter(
            Endpoint("count_tokens", gemini.COUNT, gemini.parse_count, text_bound, gemini.GEMINI_SSE),
            gemini.count_answer,
        ),
    }
)


def find(path: str) -> Counter | None:
    """The counting endpoint at a path."""
    counter = COUNTERS.get(path)
    if counter is None and ":" in path and (found := gemini.route(path)) is not None:
        counter = COUNTERS.get(found[1])
    return counter


async def serve(runtime: Runtime, exchange: Exchange, counter: Counter) -> None:
    """Answer one counting request. Never raises but for cancellation."""
    job = pipeline.Job(runtime, exchange, counter.endpoint)
    status, code = 200, ""
    try:
        pipeline.admit(job)
        settings = pipeline.job_snapshot(job).settings
        body = await exchange.read_body(settings.body_limit_bytes, settings.body_timeout_s)
        job.call = counter.endpoint.parse(body, exchange)
        pipeline.guard(job)
        if has_policy(job):
            await screen(job)
        pipeline.route(job)
        tokens, estimated = await count(job)
        headers = [(b"content-type", b"application/json"), *job.headers()]
        if estimated:
            headers.append((b"x-hoosh-estimated", b"true"))
        await exchange.respond(200, headers, counter.tell(tokens))
    except GatewayError as error:
        status, code = error.status, error.code or error.type
        await pipeline.refuse(job, error)
    except RecursionError:
        status, code = 400, pipeline.NESTED.code or ""
        await pipeline.refuse(job, pipeline.NESTED)
    except asyncio.CancelledError:
        status, code = 499, "client_left"
        if not exchange.gone:
            raise
    except Exception:
        status, code = 500, "internal_error"
        log.exception("counting failed inside the gateway", extra={"request_id": job.rid_hex})
        await pipeline.refuse(job, GatewayError(code=code))
    finally:
        pipeline.finish(job, status, code)
        job.task = None


async def count(job: pipeline.Job) -> tuple[int, bool]:
    """The tokens of the job's prompt, and whether that is an estimate."""
    snapshot, call, decision = pipeline.job_snapshot(job), job.call, job.decision
    assert call is not None
    assert decision is not None
    step = decision.steps[0]
    candidate = snapshot.candidates[step.route.id]
    told = await ask(call, candidate, step.model)
    if told is not None:
        return told, False
    weights = estimates.weights_of(candidate.kind, job.runtime.ratios.learned(step.model, output=False))
    return estimates.prompt_tokens(_decode(call.body), weights), True


async def ask(call: Call, candidate: Candidate, model: str) -> int | None:
    """What the provider itself counts; None where it cannot or does not say."""
    line = candidate.line(time.monotonic())
    if line is None or line.pool is None:
        return None
    target = line.target(model)
    adapter = candidate.adapter_for(call, target)
    if COUNT not in target.heads or not isinstance(adapter, Counting):
        return None
    try:
        request = adapter.build_count(call, target)
        head = target.heads[request.operation] + request.headers
        reply = await line.pool.request(head, request.body, candidate.limits)
    except (UpstreamError, UnsupportedParamError) as exc:
        log.info("the provider's counter was not reached", extra={"provider": candidate.provider.name, "why": str(exc)})
        return None
    return adapter.read_count(reply.body) if 200 <= reply.status < 300 else None
