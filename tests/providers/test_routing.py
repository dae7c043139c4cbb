"""Order, reasons and explanations of candidates."""

from __future__ import annotations

import json

from providers.config import PolicyDoc, ProviderDoc, RouteDoc, SettingsDoc
from providers.routing import PLANS_MAX, RouteTable

CLOUD = ProviderDoc(id=1, name="cloud", kind="openai", base_url="https://api.example.com", address_class="public")
LOCAL = ProviderDoc(id=2, name="local", kind="ollama", base_url="http://127.0.0.1:1", address_class="loopback")
OFF = ProviderDoc(
    id=3, name="off", kind="ollama", base_url="http://127.0.0.1:2", address_class="loopback", enabled=False
)
PROVIDERS = {p.id: p for p in (CLOUD, LOCAL, OFF)}


def table(routes: list[RouteDoc], policies: list[PolicyDoc] | None = None, strategy: str = "priority") -> RouteTable:
    return RouteTable(routes, PROVIDERS, policies or [], SettingsDoc(strategy=strategy), version=7)


def route(id_: int, pattern: str, provider: int = 1, **more: object) -> RouteDoc:
    return RouteDoc(id=id_, name=f"r{id_}", pattern=pattern, provider_id=provider, **more)  # type: ignore[arg-type]


def names(decision: object) -> list[str]:
    return [step.route.name for step in decision.steps]  # type: ignore[attr-defined]


def test_lower_priority_comes_first_and_local_wins_a_tie() -> None:
    t = table([route(1, "*", priority=20), route(2, "gpt-*", priority=10), route(3, "gpt-4", provider=2, priority=10)])
    assert names(t.decide(t.plan("gpt-4"))) == ["r3", "r2", "r1"]


def test_an_unknown_model_has_no_candidates() -> None:
    t = table([route(1, "gpt-*")])
    assert t.decide(t.plan("claude")).steps == ()


def test_disabled_routes_and_providers_are_rejected_with_a_reason() -> None:
    t = table([route(1, "m", enabled=False), route(2, "m", provider=3), route(3, "m"), route(4, "m", provider=99)])
    decision = t.decide(t.plan("m"))
    assert names(decision) == ["r3"]
    said = json.loads(decision.shape.payload)
    assert said["config"] == 7
    assert {r["route"]: r["reason"] for r in said["rejected"]} == {
        "r1": "route disabled",
        "r2": "provider disabled",
        "r4": "provider missing",
    }


def test_round_robin_takes_turns_and_keeps_the_others_as_fallback() -> None:
    t = table([route(i, "m") for i in (1, 2, 3)], strategy="round_robin")
    plan = t.plan("m")
    assert [names(t.decide(plan, turn=n)) for n in range(4)] == [
        ["r1", "r2", "r3"],
        ["r2", "r3", "r1"],
        ["r3", "r1", "r2"],
        ["r1", "r2", "r3"],
    ]


def test_the_first_matching_policy_sets_strategy_and_fallback_models() -> None:
    policies = [
        PolicyDoc(id=1, name="late", pattern="*", strategy="priority", position=9),
        PolicyDoc(id=2, name="off", pattern="*", strategy="priority", position=0, enabled=False),
        PolicyDoc(id=3, name="mine", pattern="big*", strategy="round_robin", fallbacks=("small",), position=1),
    ]
    t = table([route(1, "big"), route(2, "small", upstream_model="tiny")], policies)
    plan = t.plan("big")
    assert (plan.policy, plan.strategy) == ("mine", "round_robin")
    decision = t.decide(plan)
    assert [(s.route.name, s.model) for s in decision.steps] == [("r1", "big"), ("r2", "tiny")]
    assert t.plan("other").policy == "late"


def test_unavailable_candidates_are_left_out_but_never_the_last_one() -> None:
    t = table([route(1, "m"), route(2, "m", priority=11)])
    plan = t.plan("m")
    decision = t.decide(plan, unavailable={1: "circuit open"})
    assert names(decision) == ["r2"]
    assert {"route": "r1", "reason": "circuit open"} in json.loads(decision.shape.payload)["rejected"]
    assert names(t.decide(plan, unavailable={1: "x", 2: "y"})) == ["r1", "r2"]


def test_equal_decisions_share_one_shape() -> None:
    t = table([route(1, "m"), route(2, "m")])
    plan = t.plan("m")
    assert t.decide(plan).shape is t.decide(t.plan("m")).shape
    assert len(t.decide(plan).shape.digest) == 16


def test_remembered_plans_are_bounded() -> None:
    t = table([route(1, "*")])
    for n in range(PLANS_MAX + 10):
        t.plan(f"m{n}")
    assert len(t._plans) == PLANS_MAX


def test_round_robin_stays_even_while_some_are_left_out() -> None:
    policies = [PolicyDoc(id=1, name="p", pattern="m", strategy="round_robin", fallbacks=("f",), position=1)]
    t = table([*(route(i, "m") for i in (1, 2, 3, 4)), route(5, "f"), route(6, "f")], policies)
    plan = t.plan("m")
    out = {1: "circuit open", 3: "circuit open", 5: "circuit open"}
    assert [names(t.decide(plan, turn=n, unavailable=out)) for n in range(4)] == [
        ["r2", "r4", "r6"],
        ["r4", "r2", "r6"],
        ["r2", "r4", "r6"],
        ["r4", "r2", "r6"],
    ]
    assert names(t.decide(plan, unavailable=dict.fromkeys((1, 2, 3, 4), "x"))) == ["r5", "r6"]
    everything = dict.fromkeys(range(1, 7), "x")
    assert t.decide(plan, turn=1, unavailable=everything).shape is t.decide(plan, turn=1).shape
