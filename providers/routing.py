"""Which routes may answer a model, in which order and why. Pure: values in, values out.

`RouteTable` is built once per configuration. `plan(model)` is the part of a decision that depends on the
configuration only and is remembered per model; `decide(plan, …)` adds what changes from request to request: open
circuits, the round-robin turn, scores. A `Decision` carries its `Shape`, the interned explanation that usage rows name
by digest.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import msgspec

from providers.config import PolicyDoc, ProviderDoc, RouteDoc, SettingsDoc
from providers.globs import matcher

PLANS_MAX = 4096
DECISIONS_MAX = 1024  # per plan
PRIORITY, ROUND_ROBIN, WEIGHTED, DIRECT = "priority", "round_robin", "weighted", "direct"
LOWEST_LATENCY, LEAST_BUSY, LEAST_COST = "lowest_latency", "least_busy", "least_cost"
FIXED = frozenset({PRIORITY, DIRECT, LEAST_COST})  # strategies that leave nothing to a conversation
LOCAL_CLASSES = frozenset({"loopback", "private", "unix"})

_encode = msgspec.json.Encoder(order="deterministic").encode


class Shape(msgspec.Struct, frozen=True, gc=False):
    """An explanation that repeats: `payload` is canonical JSON, `digest` the first 16 bytes of its SHA-256."""

    digest: bytes
    payload: bytes


class Step(msgspec.Struct, frozen=True):
    """One candidate: the route, the model name to ask for there, and why it stands where it does."""

    route: RouteDoc
    model: str  # upstream model
    reason: str
    fallback: bool = False  # it is asked for another model than the request names


Ranks = tuple[tuple[int, ...], ...]


class Plan(msgspec.Struct, frozen=True):
    """All that the configuration says about one requested model and what its requests need."""

    model: str
    strategy: str
    policy: str
    steps: tuple[Step, ...]  # in order of preference
    ranks: Ranks  # indices into steps that may take turns: those of one model name each
    shares: Ranks  # the weights of each rank, each added to those before it
    rejected: tuple[tuple[str, str], ...]  # (route name, reason)
    sticky: bool  # conversations stay where they are, on the routes that ask for it
    decisions: dict[tuple[Any, ...], Decision]  # by what moves in them; at most DECISIONS_MAX
    kept: dict[str, Any]  # what who decides keeps for the next request of this plan


class Decision(msgspec.Struct, frozen=True):
    """The candidates of one request, best first, and the explanation."""

    steps: tuple[Step, ...]
    shape: Shape
    plan: Plan


class RouteTable:
    """Routes, providers and policies of one published configuration, ready to be asked."""

    def __init__(
        self,
        routes: Sequence[RouteDoc],
        providers: Mapping[int, ProviderDoc],
        policies: Sequence[PolicyDoc],
        settings: SettingsDoc,
        version: int = 0,
    ) -> None:
        self.version = version
        self._settings = settings
        self._providers = providers
        self._exact: dict[str, list[RouteDoc]] = {}
        self._globs: list[tuple[Callable[[str], bool], RouteDoc]] = []
        for route in routes:
            if "*" in route.pattern:
                self._globs.append((matcher(route.pattern), route))
            else:
                self._exact.setdefault(route.pattern, []).append(route)
        active = sorted((policy for policy in policies if policy.enabled), key=lambda p: (p.position, p.id))
        self._policies = [(matcher(policy.pattern), policy) for policy in active]
        self._plans: dict[tuple[str, Hashable], Plan] = {}

    def plan(self, model: str, wants: Hashable = None, judge: Callable[[Step], str] | None = None) -> Plan:
        """The plan for a requested model, remembered for the next request (at most PLANS_MAX of them).

        `judge` says why a candidate cannot do what the request wants, "" = it can. `wants` stands for all that it goes
        by: where that is the same, its answers must be.
        """
        plan = self._plans.get((model, wants))
        if plan is None:
            plan = self._make_plan(model, judge)
            if len(self._plans) >= PLANS_MAX:
                self._plans.pop(next(iter(self._plans)))
            self._plans[(model, wants)] = plan
        return plan

    def routes_for(self, model: str) -> list[RouteDoc]:
        """Every route whose pattern matches, enabled or not."""
        return [*self._exact.get(model, ()), *(route for test, route in self._globs if test(model))]

    def policy_for(self, model: str) -> PolicyDoc | None:
        """The first enabled policy whose pattern matches."""
        return next((policy for test, policy in self._policies if test(model)), None)

    def _make_plan(self, model: str, judge: Callable[[Step], str] | None) -> Plan:
        policy = self.policy_for(model)
        steps: list[Step] = []
        ranks: list[tuple[int, ...]] = []
        rejected: list[tuple[str, str]] = []
        for wanted in (model, *(policy.fallbacks if policy else ())):
            found: list[Step] = []
            for route in self.routes_for(wanted):
                why = f"priority {route.priority}" if wanted == model else f"fallback {wanted}"
                step = Step(route, route.upstream_model or wanted, why, fallback=wanted != model)
                reason = self._static_reason(route, policy) or (judge(step) if judge is not None else "")
                if reason:
                    rejected.append((route.name, reason))
                else:
                    found.append(step)
            found.sort(key=self._rank)
            if found:
                ranks.append(tuple(range(len(steps), len(steps) + len(found))))
            steps.extend(found)
        strategy = policy.strategy if policy else self._settings.strategy
        return Plan(
            model=model,
            strategy=strategy,
            policy=policy.name if policy else "",
            steps=tuple(steps),
            ranks=tuple(ranks),
            shares=_shares(steps, ranks),
            rejected=tuple(rejected),
            sticky=strategy not in FIXED and any(step.route.sticky for step in steps),
            decisions={},
            kept={},
        )

    def _static_reason(self, route: RouteDoc, policy: PolicyDoc | None) -> str:
        if not route.enabled:
            return "route disabled"
        if policy is not None and (lacking := set(policy.tags).difference(route.tags)):
            return f"the policy wants the tag {min(lacking)}"
        provider = self._providers.get(route.provider_id)
        if provider is None:
            return "provider missing"
        return "" if provider.enabled else "provider disabled"

    def _rank(self, step: Step) -> tuple[int, int, int]:
        """Priority, then local before remote, then the order of creation."""
        provider = self._providers[step.route.provider_id]
        return step.route.priority, 0 if provider.address_class in LOCAL_CLASSES else 1, step.route.id

    def decide(
        self,
        plan: Plan,
        *,
        turn: int = 0,
        rand: Callable[[], float] | None = None,
        scores: Sequence[float] | None = None,
        shown: tuple[str, ...] = (),
        one_first: bool = False,
        unavailable: Mapping[int, str] | None = None,
        privacy: tuple[str, str, tuple[str, ...]] | None = None,
    ) -> Decision:
        """Order a plan's steps for one request.

        `turn` is the round-robin counter of the model. With `rand` one of each model name is drawn by its weight to go
        first. `scores` are by index into the steps: the lowest goes first among those of one model name; the others
        follow by score or, with `one_first`, as they stand. `shown` says the scores in words that repeat, for the
        explanation. What repeats is decided once: the same object is returned.

        `unavailable` maps route ids to the reason they should be left out (open circuit, failing probe). The last
        candidate is never left out: if all are unavailable they are all tried, because a wrong suspicion must not
        refuse what a call could answer.

        `privacy` is the verdict of a privacy policy, for the explanation: action, level and names of what was found.
        """
        ranks, shares = plan.ranks, plan.shares
        reasons: tuple[tuple[str, str], ...] = ()
        # Those left out go first and the rest take turns: else the one behind a gap would have two turns.
        if unavailable and plan.strategy != DIRECT:
            left_out = [i for i, step in enumerate(plan.steps) if step.route.id in unavailable]
            if left_out and len(left_out) < len(plan.steps):
                ranks = tuple(filter(None, (tuple([i for i in rank if i not in left_out]) for rank in ranks)))
                shares = _shares(plan.steps, ranks)
                reasons = tuple((plan.steps[i].route.name, unavailable[plan.steps[i].route.id]) for i in left_out)
        by_score = scores is not None and not one_first
        heads: tuple[int, ...] = ()  # the place in each rank of the one that goes first, or the whole order `by_score`
        if scores is None:
            if rand is not None:
                heads = tuple([draw(share, rand) for share in shares])
            elif plan.strategy == ROUND_ROBIN:
                heads = tuple([turn % len(rank) for rank in ranks])
        elif one_first:
            heads = tuple([rank.index(min(rank, key=scores.__getitem__)) for rank in ranks])
        else:
            heads = tuple(chain.from_iterable([sorted(rank, key=scores.__getitem__) for rank in ranks]))
        moving = (heads, shown, reasons, privacy)
        decision = plan.decisions.get(moving)
        if decision is None:
            if len(plan.decisions) >= DECISIONS_MAX:
                plan.decisions.clear()
            order = heads if by_score else _order(plan, ranks, heads)
            shape = self._shape(plan, order, shown, reasons, privacy)
            steps = tuple([plan.steps[i] for i in order])
            decision = plan.decisions[moving] = Decision(steps=steps, shape=shape, plan=plan)
        return decision

    def _shape(
        self,
        plan: Plan,
        order: Sequence[int],
        shown: Sequence[str],
        unavailable: Sequence[tuple[str, str]],
        privacy: tuple[str, str, tuple[str, ...]] | None,
    ) -> Shape:
        candidates = []
        for i in order:
            step = plan.steps[i]
            provider = self._providers[step.route.provider_id]
            said = {"route": step.route.name, "provider": provider.name, "model": step.model, "reason": step.reason}
            if shown and shown[i]:
                said["score"] = shown[i]
            candidates.append(said)
        rejected = [*plan.rejected, *unavailable]
        if plan.strategy == DIRECT:
            others = [step.route.name for i, step in enumerate(plan.steps) if i not in order]
            rejected += [(name, "direct: only the first is asked") for name in others]
        told: dict[str, Any] = {
            "config": self.version,
            "strategy": plan.strategy,
            "policy": plan.policy,
            "candidates": candidates,
            "rejected": [{"route": name, "reason": why} for name, why in rejected],
        }
        if privacy is not None:
            action, level, names = privacy
            told["privacy"] = {"action": action, "level": level, "found": names}
        payload = _encode(told)
        return Shape(digest=hashlib.sha256(payload).digest()[:16], payload=payload)


# --- scores -----------------------------------------------------------------------------------------------------------

STEPS = 6  # per power of ten


class Said(dict[int, str]):
    """Positive numbers in words, coarsely: explanations are kept once, so few may differ.

    Asked for is the number's step, six of which make a power of ten: `round(STEPS * math.log10(value))`.
    """

    def __init__(self, words: str = "{}") -> None:
        """`words`: with a place for the number, "{} ms"."""
        super().__init__()
        self._words = words

    def __missing__(self, step: int) -> str:
        said = self[step] = self._words.format(f"{10.0 ** (step / STEPS):.2g}")
        return said

    def of(self, value: float) -> str:
        """The words for a number, "0" for what has no step."""
        return self[round(STEPS * math.log10(value))] if 0 < value < math.inf else self._words.format("0")


def draw(shares: Sequence[int], rand: Callable[[], float]) -> int:
    """A place, each with the chance of its weight's share: `shares` are the weights, each added to those before it.

    Weight 0 is never drawn, unless there is nothing else.
    """
    return bisect(shares, rand() * shares[-1], 0, len(shares) - 1) if shares[-1] else 0


def _shares(steps: Sequence[Step], ranks: Iterable[tuple[int, ...]]) -> Ranks:
    return tuple(tuple(accumulate(steps[i].route.weight for i in rank)) for rank in ranks)


def _order(plan: Plan, ranks: Ranks, heads: tuple[int, ...]) -> tuple[int, ...]:
    """The steps in order: of each rank its head, then the rest; all as they stand without heads."""
    order: list[int] = []
    for rank, head in zip(ranks, heads or (0,) * len(ranks), strict=True):
        if plan.strategy == ROUND_ROBIN:
            order += rank[head:] + rank[:head]
        else:
            order += (rank[head], *rank[:head], *rank[head + 1 :])
    return tuple(order[:1] if plan.strategy == DIRECT else order)


_MASK = 2**64 - 1


def rendezvous(conversation: bytes, weights: Mapping[int, int]) -> dict[int, float]:
    """Scores by which a conversation keeps its route as long as that is there, and few move when one comes or goes.

    Weighted rendezvous hashing: -ln(h)/w with h the hash of (conversation, route id) as a number between 0 and 1. Mixed
    is with the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
    """
    seed = int.from_bytes(hashlib.blake2b(conversation, digest_size=8).digest(), "big")
    scores = {}
    for id, weight in weights.items():
        mixed = (seed + id * 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
        scores[id] = -math.log((mixed + 1) / 2**64) / weight if weight > 0 else math.inf
    return scores
