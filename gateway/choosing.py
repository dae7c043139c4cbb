"""Which candidates may answer a request, in which order, and why. See `providers.routing` for plans and decisions.

What a request cannot do without is decided once per kind of request and remembered in the plan: the endpoint, images
and sound, tools and schemas, the tags it asks for. What changes from call to call (open circuits, failing probes, the
scores of the strategy) is added for each. Nothing here waits or calls anyone.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Sequence
from math import inf, log10
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from budgets.bound import output_limit
from budgets.prices import PriceBound
from gateway import screening
from gateway.context import room
from gateway.errors import BadRequestError, ForbiddenError, GatewayError, ModelNotFoundError
from gateway.snapshot import Candidate, Key, Snapshot
from providers import routing
from providers.canonical import MAX_TOKENS, Call
from providers.card_labels import capabilities
from providers.config import CardDoc
from providers.health import Circuit
from providers.pace import FADING_PER_S, UNKNOWN, Pace
from providers.privacy.verdict import Verdict
from providers.routing import STEPS, Decision, Plan, Said, Step

if TYPE_CHECKING:
    from gateway.attempt import Attempt
    from gateway.endpoints import Endpoint
    from gateway.runtime import Runtime

NOTHING: frozenset[str] = frozenset()
# Without these a model would answer something else than what was asked; without the others it may still do well.
HARD = frozenset({"vision", "audio", "embeddings"})
_WORDS = {
    "vision": "does not take images",
    "audio": "does not take sound",
    "embeddings": "does not make embeddings",
    "tools": "does not call tools",
    "json_schema": "does not keep to a JSON schema",
    "streaming": "does not stream",
}
TAGS_MAX = 8
HEADER_MAX = 6000  # bytes: clients commonly take headers of 8 KiB
_PICO = 12  # powers of ten
_LAST = inf  # as a score
_MS, _USD = Said("{} ms"), Said("at most {} USD")


class Wants(NamedTuple):
    """What the candidates of a request must be able to do: the part of a plan that the configuration alone decides."""

    endpoint: str
    needs: frozenset[str] = NOTHING
    tags: tuple[str, ...] = ()
    dialect: str = ""  # the API a provider must speak, where the request cannot be translated
    local: bool = False  # only providers at addresses of one's own
    route: str = ""  # the name of the one route that may answer; "" = any


class Hints(Protocol):
    """What of the request's head has a say in where it goes: `x-hoosh-tags`, `x-hoosh-session`, `x-hoosh-route`."""

    route: bytes
    tags: bytes
    session: bytes


_NULL = msgspec.Raw(b"null")


class _Message(msgspec.Struct, gc=False):
    role: str = ""


class _Conversation(msgspec.Struct, gc=False):
    """What tells one conversation from another in a canonical body."""

    messages: list[msgspec.Raw] = []
    prompt_cache_key: msgspec.Raw = _NULL


_decode_role = msgspec.json.Decoder(_Message).decode
_decode_conversation = msgspec.json.Decoder(_Conversation).decode


def wants_of(call: Call, head: Hints | None) -> Wants:
    """What a request needs, by what is in it."""
    needs = NOTHING
    fields = call.fields
    if call.images or call.audios or call.stream or call.endpoint == "embeddings" or not _ASK.isdisjoint(fields):
        needs = _needs(call)
    return Wants(call.endpoint, needs, tags_of(head), call.dialect if call.native_only else "")


_ASK = frozenset({"tools", "functions", "response_format"})


def _needs(call: Call) -> frozenset[str]:
    fields, body = call.fields, call.body
    return frozenset(
        name
        for name, wanted in (
            ("vision", call.images),
            ("audio", call.audios),
            ("embeddings", call.endpoint == "embeddings"),
            ("streaming", call.stream),
            ("tools", ("tools" in fields or "functions" in fields) and b'"tools":[]' not in body),
            ("json_schema", "response_format" in fields and b'"json_schema"' in body),
        )
        if wanted
    )


def tags_of(head: Hints | None) -> tuple[str, ...]:
    """The tags a request asks its route to have, sorted. Raises `BadRequestError` for too many or odd ones."""
    if head is None or not head.tags:
        return ()
    tags = sorted({tag.strip() for tag in head.tags.decode("utf-8", "replace").split(",")} - {""})
    if len(tags) > TAGS_MAX or any(len(tag) > 64 or not tag.isprintable() for tag in tags):
        raise BadRequestError(
            f"The header 'x-hoosh-tags' must be at most {TAGS_MAX} plain tags, comma-separated.", param="x-hoosh-tags"
        )
    return tuple(tags)


def choose(
    runtime: Runtime,
    snapshot: Snapshot,
    endpoint: Endpoint,
    call: Call,
    *,
    head: Hints | None,
    key: Key | None,
    verdict: Verdict | None = None,
    only_asked: bool = False,
) -> Decision:
    """The ordered candidates of a request and their explanation. Raises where no route can answer it at all.

    `only_asked`: nothing is going to be called, so nobody's turn is taken.
    """
    wants = wants_of(call, head)
    if head is not None and head.route:
        wants = wants._replace(route=asked_route(head.route, key))
    if verdict is not None and verdict.local:
        wants = wants._replace(local=True)
    plan = plan_for(snapshot, call.model, wants)
    if not plan.steps:
        if wants.local and plan_for(snapshot, call.model, wants._replace(local=False)).steps:
            assert verdict is not None
            raise screening.refusal(verdict)
        raise refusal(plan, call, wants)
    privacy = screening.said(verdict)
    now = time.monotonic()
    unavailable = _unavailable(snapshot, plan, now)
    if len(call.body) > room.SMALL_BYTES:
        unavailable = room.left_out(snapshot, plan, call, unavailable)
    strategy, table = plan.strategy, snapshot.table
    if plan.sticky and (conversation := conversation_of(call, head, key)):
        scores, shown = _sticky(plan, conversation)
        return table.decide(plan, scores=scores, shown=shown, one_first=True, unavailable=unavailable, privacy=privacy)
    if strategy == routing.PRIORITY or strategy == routing.DIRECT or len(plan.steps) == 1:
        return table.decide(plan, unavailable=unavailable, privacy=privacy)
    if strategy == routing.ROUND_ROBIN:
        turn = runtime.turn_ahead(call.model) if only_asked else runtime.next_turn(call.model)
        return table.decide(plan, turn=turn, unavailable=unavailable, privacy=privacy)
    if strategy == routing.WEIGHTED:
        return table.decide(plan, rand=random.random, unavailable=unavailable, privacy=privacy)
    if strategy == routing.LEAST_BUSY:
        scores, shown = _busy(snapshot, plan, unavailable)
        return table.decide(plan, scores=scores, shown=shown, one_first=True, unavailable=unavailable, privacy=privacy)
    if strategy == routing.LOWEST_LATENCY:
        scores, shown = _latency(snapshot, plan, call, now)
    else:
        scores, shown = _cost(snapshot, plan, endpoint, call)
    return table.decide(plan, scores=scores, shown=shown, unavailable=unavailable, privacy=privacy)


def asked_route(name: bytes, key: Key | None) -> str:
    """The one route a request may go to, by its `x-hoosh-route`. Raises `ForbiddenError` for a key that may not choose
    (None: an operator asks)."""
    if key is not None and "routes" not in key.record.scopes:
        text = "This API key may not choose a route (it lacks the scope 'routes')."
        raise ForbiddenError(text, param="x-hoosh-route")
    return name.decode("utf-8", "replace")


def plan_for(snapshot: Snapshot, model: str, wants: Wants) -> Plan:
    """The plan for a model. What a candidate lacks of the softer needs counts only while another has it."""

    def judge(step: Step) -> str:
        return _lacking(snapshot, step, wants)

    plan = snapshot.table.plan(model, wants, judge)
    if not plan.steps and not wants.needs <= HARD:
        wants = wants._replace(needs=wants.needs & HARD)
        plan = snapshot.table.plan(model, wants, judge)
    return plan


def _lacking(snapshot: Snapshot, step: Step, wants: Wants) -> str:
    """Why a candidate cannot answer such requests; empty = it can, or nobody has said what it can do."""
    candidate = snapshot.candidates.get(step.route.id)
    if candidate is None:
        return "not usable"
    if wants.route and step.route.name != wants.route:
        return "is not the route that was asked for"
    if wants.endpoint not in candidate.serves:
        return f"does not serve {wants.endpoint}"
    if missing := set(wants.tags).difference(step.route.tags):
        return f"lacks the tag {min(missing)}"
    if wants.local and not candidate.local:
        return "is not local"
    if wants.dialect and not candidate.speaks(wants.dialect):
        return f"does not speak the API ({wants.dialect}) that the request needs"
    if wants.needs:
        can = capabilities((*snapshot.cards.find(step.model).capabilities, *step.route.capabilities))
        for need in sorted(wants.needs):
            if can[need] is False:
                return _WORDS[need]
    return ""


def refusal(plan: Plan, call: Call, wants: Wants) -> GatewayError:
    """What the caller of a model is told that none of its routes can answer."""
    reasons = [reason for _, reason in plan.rejected if not reason.endswith("disabled")]
    if not reasons or all(reason.startswith("does not serve") for reason in reasons):
        message = f"No route for '{call.model[:256]}' serves {call.endpoint}." if reasons else ""
        return ModelNotFoundError(call.model, message)
    if call.native_only and wants.dialect:
        return BadRequestError(
            f"The provider of '{call.model[:256]}' cannot honour '{call.native_only}'. "
            "Leave it out or use another model.",
            param=call.native_only,
            code="unsupported_parameter",
        )
    told = "; ".join(dict.fromkeys(reasons[:8]))
    return BadRequestError(
        f"No route for '{call.model[:256]}' can answer this request: {told}.", param="model", code="no_suitable_route"
    )


class _Crew(NamedTuple):
    """The candidates of a plan in the order of its steps, and what is asked of them for each request."""

    candidates: tuple[Candidate, ...]
    circuits: tuple[Circuit, ...]  # of their first lines, each once
    providers: frozenset[int]


def _crew(snapshot: Snapshot, plan: Plan) -> _Crew:
    """Plans and candidates are built together, so a plan can keep its own."""
    crew: _Crew | None = plan.kept.get("crew")
    if crew is None:
        candidates = tuple(snapshot.candidates[step.route.id] for step in plan.steps)
        circuits = {id(circuit): circuit for circuit in (candidate.lines[0].circuit for candidate in candidates)}
        providers = frozenset(candidate.provider.id for candidate in candidates)
        crew = plan.kept["crew"] = _Crew(candidates, tuple(circuits.values()), providers)
    return crew


def _unavailable(snapshot: Snapshot, plan: Plan, now: float) -> dict[int, str] | None:
    """The candidates that should be left out of this request for now, with the reason."""
    crew, down = _crew(snapshot, plan), snapshot.down
    for circuit in crew.circuits:
        if circuit.open_until or circuit.cooldown_until:
            break
    else:
        if not down or down.isdisjoint(crew.providers):
            return None
    found: dict[int, str] | None = None
    for step, candidate in zip(plan.steps, crew.candidates, strict=True):
        reason = candidate.unavailable(now)
        if not reason and candidate.provider.id in down:
            reason = "health probes fail"
        if reason:
            found = found or {}
            found[step.route.id] = reason
    return found


def as_header(decision: Decision, failed: Sequence[Attempt], answered: str, queued_us: int = 0) -> bytes:
    """The value of `x-hoosh-decision`: the decision, the calls that failed and the wait for a place, as ASCII JSON;
    shortened where it is too long."""
    told = msgspec.json.decode(decision.shape.payload)
    told["attempts"] = [
        {"route": attempt.candidate.route.name, "status": attempt.status, "error": attempt.error} for attempt in failed
    ]
    told["answered"] = answered
    if queued_us:
        told["queued_ms"] = queued_us // 1000
    made = json.dumps(told, separators=(",", ":")).encode("ascii")
    while len(made) > HEADER_MAX and (told["rejected"] or told["candidates"]):
        (told["rejected"] or told["candidates"]).pop()
        told["shortened"] = True
        made = json.dumps(told, separators=(",", ":")).encode("ascii")
    return made


# --- scores: the lowest goes first ------------------------------------------------------------------------------------


def conversation_of(call: Call, head: Hints | None, key: Key | None) -> bytes:
    """What tells this conversation from others: the caller's word for it, else how it begins. Empty where it cannot be
    told (no chat).

    The agent is part of it: two agents with the same prompt are two conversations, as prompt caches see them.
    """
    owner = str(key.record.agent_id).encode() if key is not None else b""
    if head is not None and head.session:
        return b"%b session %b" % (owner, head.session)
    if call.endpoint != "chat":
        return b""
    try:
        told = _decode_conversation(call.body)
        if told.prompt_cache_key != _NULL:
            return b"%b key %b" % (owner, bytes(told.prompt_cache_key))
        start = []
        for message in told.messages:
            start.append(bytes(message))
            if _decode_role(message).role == "user":
                break
    except (msgspec.MsgspecError, RecursionError):
        return b""
    return b"%b begins %b" % (owner, hashlib.blake2b(b"\0".join(start), digest_size=16).digest())


def _sticky(plan: Plan, conversation: bytes) -> tuple[list[float], tuple[str, ...]]:
    chosen = routing.rendezvous(conversation, {s.route.id: s.route.weight for s in plan.steps if s.route.sticky})
    scores = [chosen.get(step.route.id, _LAST) for step in plan.steps]
    return scores, tuple("sticky" if step.route.sticky else "" for step in plan.steps)


def _busy(snapshot: Snapshot, plan: Plan, unavailable: dict[int, str] | None) -> tuple[list[float], tuple[str, ...]]:
    """Calls under way per weight; only the first one's are told, as the others' differ from request to request."""
    scores = []
    for step, candidate in zip(plan.steps, _crew(snapshot, plan).candidates, strict=True):
        weight = step.route.weight
        scores.append(candidate.load.busy / weight if weight else _LAST)
    left = [i for i, step in enumerate(plan.steps) if not unavailable or step.route.id not in unavailable]
    first = min(left or range(len(scores)), key=scores.__getitem__)
    shown = [""] * len(scores)
    shown[first] = f"{_crew(snapshot, plan).candidates[first].load.busy} under way"
    return scores, tuple(shown)


def _paces(snapshot: Snapshot, plan: Plan, now: float) -> list[Pace]:
    """The paces of a plan's candidates. Looked up again each second: who has many models forgets some."""
    second = int(now)
    known = plan.kept.get("paces")
    if known is None or known[0] != second:
        crew = zip(plan.steps, _crew(snapshot, plan).candidates, strict=True)
        known = plan.kept["paces"] = second, [candidate.load.pace(step.model) for step, candidate in crew]
    paces: list[Pace] = known[1]
    return paces


def _latency(snapshot: Snapshot, plan: Plan, call: Call, now: float) -> tuple[list[float], tuple[str, ...]]:
    """Seconds of late, as powers of ten. Whoever nothing is known of goes first, but not with a second call before the
    first has told."""
    paces = _paces(snapshot, plan, now)
    levels = [pace.streams.level for pace in paces] if call.stream else [pace.whole.level for pace in paces]
    ms = 3 - now * FADING_PER_S
    if UNKNOWN not in levels:
        return levels, tuple([_MS[round(STEPS * (level + ms))] for level in levels])
    shown = ["unexplored" if level == UNKNOWN else _MS[round(STEPS * (level + ms))] for level in levels]
    scores = [
        _LAST if level == UNKNOWN and pace.exploring else level for level, pace in zip(levels, paces, strict=True)
    ]
    return scores, tuple(shown)


class _Tariff(NamedTuple):
    """What price and card say of candidates that cost the same, for a second: prices are dated."""

    price: PriceBound | None  # None: nobody knows, or it depends on the size of the request
    free: bool  # without a price it costs nothing
    output_limit: int  # for a request that asks for none
    output_cap: int | None
    card: CardDoc
    by_size: int | None  # the step for which the price has to be asked again, by size


def _tariffs(snapshot: Snapshot, plan: Plan) -> tuple[list[_Tariff], list[int]]:
    """The tariffs of a plan, and by step which of them it is."""
    now = int(time.time())
    known = plan.kept.get("tariffs")
    if known is None or known[0] != now:
        places: dict[_Tariff, int] = {}
        which = []
        for number, (step, candidate) in enumerate(zip(plan.steps, _crew(snapshot, plan).candidates, strict=True)):
            card = snapshot.cards.find(step.model)
            small, large = (_price(snapshot, candidate, step, now, size) for size in (0, MAX_TOKENS))
            cap = step.route.output_cap
            limit = output_limit(
                asked=None,
                card_max=card.max_output_tokens,
                default_cap=snapshot.settings.default_output_cap,
                route_cap=cap,
            )
            by_size = number if small != large else None
            price = small._replace(price_id=0) if small is not None and by_size is None else None
            tariff = _Tariff(price, candidate.free, limit, cap, card, by_size)
            which.append(places.setdefault(tariff, len(places)))
        known = plan.kept["tariffs"] = now, (list(places), which)
    tariffs: tuple[list[_Tariff], list[int]] = known[1]
    return tariffs


def _price(snapshot: Snapshot, candidate: Candidate, step: Step, at: float, size: int) -> PriceBound | None:
    provider = candidate.provider
    return snapshot.prices.bound(provider.name, provider.kind, step.model, at, route=step.route.name, input_tokens=size)


def _cost(snapshot: Snapshot, plan: Plan, endpoint: Endpoint, call: Call) -> tuple[list[float], tuple[str, ...]]:
    """The most the request can cost, in pico-USD, by the bound that would be held for it. Unknown prices come last."""
    scores: list[float] = []
    shown = []
    bounds: dict[float, int] = {}
    outputs, asked = max(1, call.n) if endpoint.generates else 0, call.limit
    tariffs, which = _tariffs(snapshot, plan)
    for price, free, limit, cap, card, by_size in tariffs:
        given = bounds.get(card.min_bytes_per_token)
        if given is None:
            given = bounds[card.min_bytes_per_token] = endpoint.bound(call, card)
        if by_size is not None:
            candidate, step = _crew(snapshot, plan).candidates[by_size], plan.steps[by_size]
            price = _price(snapshot, candidate, step, time.time(), given)
        if price is None:
            scores.append(0.0 if free else _LAST)
            shown.append("free" if free else "no price known")
            continue
        if asked is not None:
            limit = asked if cap is None else min(asked, cap)
        _, per_input, per_output, per_request = price
        pico = per_request + given * per_input + limit * outputs * per_output
        scores.append(pico)
        shown.append(_USD[round(STEPS * (log10(pico) - _PICO))] if pico > 0 else _USD.of(0))
    return [scores[place] for place in which], tuple([shown[place] for place in which])
