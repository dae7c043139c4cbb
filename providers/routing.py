"""Which routes may answer a model, in which order and why. Pure: values in, values out.

`RouteTable` is built once per configuration. `plan(model)` is the part of a decision that depends on the
configuration only and is remembered per model; `decide(plan, …)` adds what changes from request to request: open
circuits and the round-robin turn. A `Decision` carries its `Shape`, the interned explanation that usage rows name by
digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from providers.config import PolicyDoc, ProviderDoc, RouteDoc, SettingsDoc
from providers.globs import matcher

PLANS_MAX = 4096
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


class Plan(msgspec.Struct, frozen=True):
    """All that the configuration says about one requested model."""

    model: str
    strategy: str
    policy: str
    steps: tuple[Step, ...]  # in order of preference; equal ranks keep the order of `rank`
    ranks: tuple[tuple[int, ...], ...]  # indices into steps that may take turns, group by group
    rejected: tuple[tuple[str, str], ...]  # (route name, reason)
    shapes: dict[tuple[int, ...], Shape]  # interned decisions without a moving part, by order of indices


class Decision(msgspec.Struct, frozen=True):
    """The candidates of one request, best first, and the explanation."""

    steps: tuple[Step, ...]
    shape: Shape


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
        self._plans: dict[str, Plan] = {}

    def plan(self, model: str) -> Plan:
        """The plan for a requested model, remembered for the next request (at most PLANS_MAX models)."""
        plan = self._plans.get(model)
        if plan is None:
            plan = self._make_plan(model)
            if len(self._plans) >= PLANS_MAX:
                self._plans.pop(next(iter(self._plans)))
            self._plans[model] = plan
        return plan

    def routes_for(self, model: str) -> list[RouteDoc]:
        """Every route whose pattern matches, enabled or not."""
        return [*self._exact.get(model, ()), *(route for test, route in self._globs if test(model))]

    def _make_plan(self, model: str) -> Plan:
        policy = next((policy for test, policy in self._policies if test(model)), None)
        strategy = policy.strategy if policy else self._settings.strategy
        steps: list[Step] = []
        ranks: list[tuple[int, ...]] = []
        rejected: list[tuple[str, str]] = []
        for wanted in (model, *(policy.fallbacks if policy else ())):
            found: list[Step] = []
            for route in self.routes_for(wanted):
                reason = self._static_reason(route)
                if reason:
                    rejected.append((route.name, reason))
                else:
                    why = f"priority {route.priority}" if wanted == model else f"fallback {wanted}"
                    found.append(Step(route=route, model=route.upstream_model or wanted, reason=why))
            found.sort(key=self._rank)
            # Round robin turns among all of a model; priority keeps the order, a tie is broken by `_rank`.
            if found:
                ranks.append(tuple(range(len(steps), len(steps) + len(found))))
            steps.extend(found)
        return Plan(
            model=model,
            strategy=strategy,
            policy=policy.name if policy else "",
            steps=tuple(steps),
            ranks=tuple(ranks),
            rejected=tuple(rejected),
            shapes={},
        )

    def _static_reason(self, route: RouteDoc) -> str:
        if not route.enabled:
            return "route disabled"
        provider = self._providers.get(route.provider_id)
        if provider is None:
            return "provider missing"
        return "" if provider.enabled else "provider disabled"

    def _rank(self, step: Step) -> tuple[int, int, int]:
        """Priority, then local before remote, then the order of creation."""
        provider = self._providers[step.route.provider_id]
        return step.route.priority, 0 if provider.address_class in LOCAL_CLASSES else 1, step.route.id

    def decide(self, plan: Plan, *, turn: int = 0, unavailable: Mapping[int, str] | None = None) -> Decision:
        """Order a plan's steps for one request.

        `turn` is the round-robin counter of the model; `unavailable` maps route ids to the reason they should be left
        out (open circuit, failing probe). The last candidate is never left out: if all are unavailable they are all
        tried, because a wrong suspicion must not refuse what a call could answer.
        """
        left_out: tuple[int, ...] = ()
        if unavailable:
            left_out = tuple(i for i, step in enumerate(plan.steps) if step.route.id in unavailable)
            if len(left_out) == len(plan.steps):
                left_out = ()
        # Those left out go first and the rest take turns: else the one behind a gap would have two turns.
        order = self._order(plan, turn, left_out)
        if not left_out:
            shape = plan.shapes.get(order)
            if shape is None:
                shape = plan.shapes[order] = self._shape(plan, order, ())
            return Decision(steps=tuple([plan.steps[i] for i in order]), shape=shape)
        reasons = tuple((plan.steps[i].route.name, (unavailable or {})[plan.steps[i].route.id]) for i in left_out)
        return Decision(steps=tuple([plan.steps[i] for i in order]), shape=self._shape(plan, order, reasons))

    @staticmethod
    def _order(plan: Plan, turn: int, left_out: tuple[int, ...]) -> tuple[int, ...]:
        if plan.strategy != "round_robin":
            return tuple([i for i in range(len(plan.steps)) if i not in left_out])
        order: list[int] = []
        for rank in plan.ranks:
            rest = tuple([i for i in rank if i not in left_out]) if left_out else rank
            if rest:
                first = turn % len(rest)
                order += rest[first:] + rest[:first]
        return tuple(order)

    def _shape(self, plan: Plan, order: Collection[int], unavailable: Sequence[tuple[str, str]]) -> Shape:
        candidates = []
        for i in order:
            step = plan.steps[i]
            provider = self._providers[step.route.provider_id]
            candidates.append(
                {"route": step.route.name, "provider": provider.name, "model": step.model, "reason": step.reason}
            )
        payload = _encode(
            {
                "config": self.version,
                "strategy": plan.strategy,
                "policy": plan.policy,
                "candidates": candidates,
                "rejected": [{"route": name, "reason": why} for name, why in (*plan.rejected, *unavailable)],
            }
        )
        return Shape(digest=hashlib.sha256(payload).digest()[:16], payload=payload)
