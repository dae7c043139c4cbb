"""Where a request would go and why, without calling anyone: `POST /v1/route/explain`, and the admin's page.

The answer goes by what one worker knows at this moment: its configuration, circuits, latencies and calls under way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from budgets.bound import money_bound, output_limit
from gateway import pipeline, screening, strict
from gateway.admission import OURS, Head, credential, find_key
from gateway.choosing import choose, plan_for, wants_of
from gateway.context import shaping
from gateway.endpoints import INFERENCE, Endpoint
from gateway.errors import BadRequestError, GatewayError, ModelNotFoundError
from gateway.exchange import Exchange, Headers
from gateway.holding import usd as usd_of
from gateway.snapshot import Candidate, Key, Snapshot
from providers.canonical import Call
from providers.routing import Decision, Step

if TYPE_CHECKING:
    from gateway.runtime import Runtime

log = logging.getLogger("hoosh.explain")

PATH = "/v1/route/explain"
BODY_MAX = 256 * 1024  # it is looked at in one go
_FILLED: Mapping[str, tuple[str, Any]] = {  # what a question that names only a model is about
    "/v1/chat/completions": ("messages", [{"role": "user", "content": "…"}]),
    "/v1/completions": ("prompt", "…"),
    "/v1/embeddings": ("input", "…"),
}
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


async def serve(runtime: Runtime, exchange: Exchange) -> None:
    """Answer one question. Never raises but for the server's own cancellation."""
    try:
        snapshot = pipeline.snapshot_of(runtime)
        key = find_key(snapshot.keys, credential(exchange.headers))
        if key.reach is not None:
            key.reach.check("", exchange.client)
        body = await exchange.read_body(BODY_MAX, snapshot.settings.body_timeout_s)
        answer = told(runtime, snapshot, question(body), exchange.headers, key)
    except GatewayError as error:
        await pipeline.refuse_simply(runtime, exchange, error)
        return
    except RecursionError:
        await pipeline.refuse_simply(runtime, exchange, pipeline.NESTED)
        return
    except asyncio.CancelledError:
        if not exchange.gone:
            raise
        return
    headers = [(b"content-type", b"application/json"), (b"x-hoosh-config", snapshot.version_header)]
    await exchange.respond(200, headers, _encode(answer))


def answer(runtime: Runtime, body: bytes) -> bytes:
    """The answer to an operator's question, JSON; where the question is wrong an object with only `error`."""
    try:
        asked = question(body)
        headers = [(b"x-hoosh-tags", str(tags).encode())] if (tags := asked.pop("tags", "")) else []
        return _encode(told(runtime, pipeline.snapshot_of(runtime), asked, headers, None))
    except GatewayError as error:
        return _encode({"error": error.message})
    except Exception:
        log.exception("a question could not be answered")
        return _encode({"error": "The question could not be answered; the worker's log says why."})


def question(body: bytes) -> dict[str, Any]:
    """A question: an inference request, and beside it maybe `path`, its endpoint's. Raises `BadRequestError`."""
    return strict.load(body)[0]


def told(
    runtime: Runtime, snapshot: Snapshot, asked: dict[str, Any], headers: Headers, key: Key | None
) -> dict[str, Any]:
    """Where a request would go, and why, by what this worker knows now. `key` None = any key's.

    What the request itself would be refused for is told as `refusal`. Raises `BadRequestError` for a wrong question.
    """
    path = asked.pop("path", "/v1/chat/completions")
    endpoint = INFERENCE.get(path) if isinstance(path, str) else None
    if endpoint is None:
        raise BadRequestError(f"'path' must be one of {', '.join(INFERENCE)}.", param="path")
    if path in _FILLED:
        asked.setdefault(*_FILLED[path])
    call: Call | None = None
    may_know = True
    said = _Asked(headers)
    answer: dict[str, Any] = {"object": "route.explanation", "path": path, "config": snapshot.version}
    try:
        call = endpoint.parse(_encode(asked), None)
        answer["model"] = call.model
        may_know = key is None or key.may_use is None or key.may_use(call.model)
        if not may_know:
            raise ModelNotFoundError(call.model)
        verdict = screening.verdict_at_once(snapshot, call, key.record.privacy_policy_id if key is not None else 0)
        if verdict is not None and verdict.action == "refuse":
            raise screening.refusal(verdict)
        decision = choose(runtime, snapshot, endpoint, call, head=said, key=key, verdict=verdict, only_asked=True)
    except GatewayError as error:
        refusal = {"status": error.status, "code": error.code, "message": error.message, "param": error.param}
        rejected = _rejected(snapshot, call, said) if may_know else []
        return {**answer, "candidates": [], "rejected": rejected, "refusal": refusal}
    shape = _decode(decision.shape.payload)
    return {
        **answer,
        "strategy": shape["strategy"],
        "policy": shape["policy"],
        "privacy": shape.get("privacy"),
        "candidates": _candidates(runtime, snapshot, endpoint, call, decision, shape),
        "rejected": shape["rejected"],
        "refusal": None,
    }


class _Asked:
    """The headers of a question that say something about the request it is about. Raises `BadRequestError`."""

    def __init__(self, headers: Headers) -> None:
        asked = Head.inner(*(each for each in headers if each[0].startswith(OURS)))
        self.route, self.tags, self.session = asked.route, asked.tags, asked.session


def _rejected(snapshot: Snapshot, call: Call | None, said: _Asked) -> list[dict[str, str]]:
    """What is said against each route of the model of a request that none of them can answer."""
    if call is None:
        return []
    plan = plan_for(snapshot, call.model, wants_of(call, said))
    return [{"route": name, "reason": reason} for name, reason in plan.rejected]


def _candidates(
    runtime: Runtime, snapshot: Snapshot, endpoint: Endpoint, call: Call, decision: Decision, shape: dict[str, Any]
) -> list[dict[str, Any]]:
    told = []
    for step, said in zip(decision.steps, shape["candidates"], strict=True):
        candidate = snapshot.candidates[step.route.id]
        shaped = shaping.would_be(snapshot, candidate, step, call, runtime.ratios)
        told.append({**said, "hold": _hold(snapshot, candidate, step, endpoint, shaped.call)})
        if shaped.changes:
            told[-1]["context"] = shaped.words()
    return told


def _hold(snapshot: Snapshot, candidate: Candidate, step: Step, endpoint: Endpoint, call: Call) -> dict[str, Any]:
    """What would be held for the call: tokens, and USD where the price is known."""
    card, provider = snapshot.cards.find(step.model), candidate.provider
    given, limit = endpoint.bound(call, card), 0
    if endpoint.generates:
        limit = output_limit(
            asked=call.limit,
            card_max=card.max_output_tokens,
            default_cap=snapshot.settings.default_output_cap,
            route_cap=step.route.output_cap,
        )
    made = limit * max(1, call.n)
    price = snapshot.prices.bound(
        provider.name, provider.kind, step.model, time.time(), route=step.route.name, input_tokens=given
    )
    usd: str | None = "0" if candidate.free else None
    if price is not None:
        pico = money_bound(
            input_tokens=given,
            output_tokens=made,
            input_pico=price.input_pico,
            output_pico=price.output_pico,
            request_pico=price.request_pico,
        )
        usd = usd_of(pico)
    return {"input_tokens": given, "output_tokens": made, "usd": usd}
