"""Order, reasons and explanations of candidates."""

from __future__ import annotations

import json
import random

import pytest

from providers.config import PolicyDoc, ProviderDoc, RouteDoc, SettingsDoc
from providers.routing import DECISIONS_MAX, PLANS_MAX, RouteTable, Said, draw, rendezvous

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


def test_direct_asks_the_first_and_nobody_else_even_when_it_is_suspected() -> None:
    t = table([route(1, "m"), route(2, "m", priority=11)], strategy="direct")
    for unavailable in (None, {1: "circuit open"}):
        decision = t.decide(t.plan("m"), unavailable=unavailable)
        assert names(decision) == ["r1"]
        assert json.loads(decision.shape.payload)["rejected"] == [
            {"route": "r2", "reason": "direct: only the first is asked"}
        ]


def test_scores_order_the_candidates_of_a_model_and_fallbacks_stay_behind() -> None:
    policies = [PolicyDoc(id=1, name="p", pattern="m", strategy="lowest_latency", fallbacks=("f",))]
    t = table([*(route(i, "m") for i in (1, 2, 3)), route(4, "f")], policies)
    plan = t.plan("m")
    decision = t.decide(plan, scores=[3.0, 1.0, 2.0, 0.5], shown=("3 s", "1 s", "2 s", ""))
    assert names(decision) == ["r2", "r3", "r1", "r4"]
    assert [each.get("score") for each in json.loads(decision.shape.payload)["candidates"]] == [
        "1 s",
        "2 s",
        "3 s",
        None,
    ]
    assert names(t.decide(plan, scores=[3.0, 1.0, 2.0, 0.5], one_first=True)) == ["r2", "r1", "r3", "r4"]
    assert names(t.decide(plan, scores=[3.0, 1.0, 2.0, 0.5], unavailable={2: "x"})) == ["r3", "r1", "r4"]


def test_a_policy_wants_tags() -> None:
    policies = [PolicyDoc(id=1, name="p", pattern="m", strategy="priority", tags=("eu", "fast"))]
    t = table([route(1, "m", tags=("eu",)), route(2, "m", tags=("fast", "eu", "x")), route(3, "m")], policies)
    plan = t.plan("m")
    assert [step.route.name for step in plan.steps] == ["r2"]
    assert plan.rejected == (("r1", "the policy wants the tag fast"), ("r3", "the policy wants the tag eu"))


def test_what_requests_want_makes_plans_of_their_own() -> None:
    t = table([route(1, "m"), route(2, "m")])
    assert len(t.plan("m").steps) == 2
    wanting = t.plan("m", "images", lambda step: "blind" if step.route.id == 1 else "")
    assert [step.route.name for step in wanting.steps] == ["r2"]
    assert wanting.rejected == (("r1", "blind"),)
    assert t.plan("m", "images", lambda step: "not asked again") is wanting
    assert len(t.plan("m").steps) == 2


def test_explanations_that_move_are_bounded() -> None:
    t = table([route(1, "m"), route(2, "m")], strategy="least_busy")
    plan = t.plan("m")
    for n in range(DECISIONS_MAX + 10):
        t.decide(plan, scores=[float(n), 0.0], shown=(f"{n} under way", ""), one_first=True)
    assert 0 < len(plan.decisions) <= DECISIONS_MAX


def test_weights_are_shares_and_zero_is_last() -> None:
    rand = random.Random(7).random
    first = [0, 0, 0]
    for _ in range(20_000):
        first[draw([1, 4, 4], rand)] += 1
    assert first[2] == 0
    assert abs(first[1] / 20_000 - 0.75) < 0.015
    assert draw([0, 3], lambda: 0.0) == 1
    assert draw([0, 0], rand) == 0


def test_one_of_each_model_name_is_drawn_among_those_that_are_there() -> None:
    policies = [PolicyDoc(id=1, name="p", pattern="m", strategy="weighted", fallbacks=("f",))]
    routes = [route(1, "m"), route(2, "m", weight=2), route(3, "m", weight=0), route(4, "f"), route(5, "f", weight=3)]
    t = table(routes, policies)
    plan = t.plan("m")
    assert names(t.decide(plan, rand=lambda: 0.2)) == ["r1", "r2", "r3", "r4", "r5"]
    assert names(t.decide(plan, rand=lambda: 0.9)) == ["r2", "r1", "r3", "r5", "r4"]
    assert t.decide(plan, rand=lambda: 0.9) is t.decide(plan, rand=lambda: 0.95)
    left = t.decide(plan, rand=lambda: 0.2, unavailable={1: "circuit open", 4: "x"})
    assert names(left) == ["r2", "r3", "r5"]
    rejected = {each["route"]: each["reason"] for each in json.loads(left.shape.payload)["rejected"]}
    assert rejected == {"r1": "circuit open", "r4": "x"}


def test_a_conversation_keeps_its_route_and_few_move_when_one_goes() -> None:
    weights = {1: 1, 2: 1, 3: 2}

    def chosen(conversation: int, among: dict[int, int]) -> int:
        scores = rendezvous(b"c%d" % conversation, among)
        return min(scores, key=scores.__getitem__)

    before = [chosen(n, weights) for n in range(4000)]
    assert before == [chosen(n, weights) for n in range(4000)]
    assert abs(before.count(3) / 4000 - 0.5) < 0.04
    after = [chosen(n, {1: 1, 3: 2}) for n in range(4000)]
    assert all(a == b for a, b in zip(before, after, strict=True) if a != 2)
    assert min(rendezvous(b"x", {1: 0, 2: 1}), key=rendezvous(b"x", {1: 0, 2: 1}).__getitem__) == 2


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0"), (float("inf"), "0"), (1.0, "1"), (118.0, "1e+02"), (0.00123, "0.0015"), (99.0, "1e+02")],
)
def test_scores_are_said_coarsely(value: float, said: str) -> None:
    assert float(Said().of(value)) == pytest.approx(float(said))
