"""What was spent, a new reporting period, and what a request would cost."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import re
import shutil
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.http import QueryDict
from django.test import Client, RequestFactory, TestCase, TransactionTestCase
from django.utils import timezone

from audit.models import OutboxEntry
from budgets import access, keys
from budgets.models import LedgerOrder, LedgerState, Price, Usage, UsageRollup
from budgets.orders import Orders
from budgets.records import PRICE_NONE
from budgets.settle import Writer
from gateway import plane
from gateway.api import cost_report
from gateway.api.authentication import Caller
from gateway.api.costs import CostsResetView
from providers import services
from providers.models import ModelCard, Provider, Route
from providers.publish import publish

pytestmark = pytest.mark.database

DAY = dt.datetime(2026, 11, 20, tzinfo=dt.UTC)
MICRO = Decimal("0.000001")
_numbers = itertools.count(1)


class CostCase(TestCase):
    """Two teams with a key each, an operator's key, two providers with prices, a local one without."""

    databases = "__all__"

    @classmethod
    def setUpTestData(cls):
        cls.pool = access.default_pool("test")
        cls.agent = access.agent_named("red", "app", actor="test")
        cls.other_agent = access.agent_named("blue", "app", actor="test")
        cls.key, cls.text = keys.create_key(cls.agent, cls.pool, "red-1", actor="test")
        cls.other, cls.other_text = keys.create_key(cls.other_agent, cls.pool, "blue-1", actor="test")
        cls.operator, cls.operator_text = keys.create_key(
            cls.agent, cls.pool, "ops", ("inference", "operator"), actor="test"
        )
        cls.cloud = services.save_provider(
            Provider(name="cloud", kind="openai", base_url="https://api.example"),
            actor="test",
            address_class="public",
        )
        cls.local = services.save_provider(
            Provider(name="local", kind="ollama", base_url="http://127.0.0.1:11434"),
            actor="test",
            address_class="loopback",
        )

    def ask(self, path: str, key: str = "", *, client: Client | None = None):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return (client or self.client).get(path, headers=headers)

    def post(self, path: str, body: object, key: str = "", *, client: Client | None = None, raw: bool = False):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        data = body if raw else json.dumps(body)
        return (client or self.client).post(path, data, content_type="application/json", headers=headers)

    def error(self, response, status: int, param: str | None = None) -> dict[str, Any]:
        assert response.status_code == status, response.content
        told = response.json()["error"]
        assert set(told) == {"message", "type", "param", "code"}
        assert told["param"] == param, told
        return told

    def usage(self, key=None, provider=None, cost: str = "0", **changes: Any) -> Usage:
        key = key or self.key
        values = {"input_tokens": 100, "output_tokens": 20, "tokens": 120, "status": 200, "price_id": 1, "at": DAY}
        return Usage.objects.create(
            rid=f"{next(_numbers):032x}",
            key_id=key.pk,
            agent_id=key.agent_id,
            team_id=key.agent.team_id,
            pool_id=key.pool_id,
            provider_id=(provider or self.cloud).pk,
            endpoint="chat",
            model="gpt-small",
            cost_usd=Decimal(cost),
            **{**values, **changes},
        )


class CostsTests(CostCase):
    def test_the_shape_clients_of_hoosh_know(self):
        self.usage(cost="0.000450")
        reply = self.ask("/v1/costs", self.operator_text).json()
        record = reply.pop("records")
        assert reply == {
            "total_requests": 1,
            "total_prompt_tokens": 100,
            "total_completion_tokens": 20,
            "total_cost_micro_usd": 450,
            "total_cost_usd": "0.000450000000",
            "unpriced_count": 0,
            "team": None,
            "group_by": ["provider"],
            "period": {"number": 0, "since": None},
        }
        assert record == [
            {
                "provider": "cloud",
                "provider_id": self.cloud.pk,
                "base_url": "https://api.example",
                "is_local": False,
                "request_count": 1,
                "attempt_count": 1,
                "error_count": 0,
                "unpriced_count": 0,
                "total_input_tokens": 100,
                "total_cached_tokens": 0,
                "total_output_tokens": 20,
                "total_cost_micro_usd": 450,
                "total_cost_usd": "0.000450000000",
            }
        ]

    def test_nothing_was_spent(self):
        reply = self.ask("/v1/costs", self.text).json()
        assert reply["total_cost_usd"] == "0.000000000000"
        assert reply["records"] == []

    def test_costs_are_the_sum_of_the_rows_to_the_last_pico_dollar(self):
        costs = ["0.000000000001", "1234.567890123456", "0.1", "9223372.036854775807", "9223372.036854775807"]
        for cost in costs:
            self.usage(cost=cost)
        reply = self.ask("/v1/costs", self.operator_text).json()
        assert reply["total_cost_usd"] == str(sum(map(Decimal, costs)))
        assert reply["records"][0]["total_cost_usd"] == reply["total_cost_usd"]
        assert reply["total_cost_micro_usd"] == int(sum(map(Decimal, costs)) / MICRO)

    def test_rollups_count_too(self):
        self.usage(cost="1")
        LedgerState.objects.create(name="rolled_up", value=Usage.objects.get().pk)
        UsageRollup.objects.create(
            start=int(DAY.timestamp()),
            team_id=self.agent.team_id,
            agent_id=self.agent.pk,
            key_id=self.key.pk,
            pool_id=self.pool.pk,
            provider_id=self.local.pk,
            route_id=0,
            endpoint="chat",
            model="m",
            requests=7,
            attempts=7,
            cost_usd=Decimal(5),
        )
        reply = self.ask("/v1/costs", self.text).json()
        assert (reply["total_requests"], reply["total_cost_usd"]) == (7, "5.000000000000")
        assert reply["records"][0]["is_local"] is True

    def test_a_key_sees_its_own_team_only_and_no_addresses(self):
        self.usage(cost="1")
        self.usage(self.other, cost="2")
        reply = self.ask("/v1/costs", self.text).json()
        assert (reply["total_cost_usd"], reply["team"]) == ("1.000000000000", "red")
        assert "base_url" not in reply["records"][0]
        assert self.ask("/v1/costs?team=red", self.text).json() == reply
        for team in ("blue", str(self.other_agent.team_id), "nobody"):
            self.error(self.ask(f"/v1/costs?team={team}", self.text), 403, "team")

    def test_operators_see_all_or_one_team(self):
        self.usage(cost="1")
        self.usage(self.other, cost="2")
        assert self.ask("/v1/costs", self.operator_text).json()["total_cost_usd"] == "3.000000000000"
        for team in ("blue", self.other_agent.team_id):
            reply = self.ask(f"/v1/costs?team={team}", self.operator_text).json()
            assert (reply["total_cost_usd"], reply["team"]) == ("2.000000000000", "blue")
        self.error(self.ask("/v1/costs?team=nobody", self.operator_text), 400, "team")

    def test_staff_see_all_when_they_may_view_usage(self):
        self.usage(cost="1")
        self.usage(self.other, cost="2")
        user = get_user_model().objects.create_user("eve", password="x", is_staff=True)
        client = Client()
        client.force_login(user)
        self.error(self.ask("/v1/costs", client=client), 403)
        user.user_permissions.add(Permission.objects.get(codename="view_usage"))
        assert self.ask("/v1/costs", client=client).json()["total_requests"] == 2

    def test_nobody_without_a_key(self):
        self.error(self.ask("/v1/costs"), 401)
        for path in ("/v1/costs/reset", "/v1/cost/estimate", "/v1/cost/recommend"):
            self.error(self.post(path, {}), 401)

    def test_groups_are_named(self):
        route = services.save_route(Route(name="r", pattern="gpt-small", provider=self.cloud), actor="test")
        self.usage(cost="1", route_id=route.pk)
        self.usage(self.other, cost="2", at=DAY + dt.timedelta(days=1), provider=self.local, attempt=1, error="x")
        dear, cheap = {}, {}
        for group_by in ("team,agent,key", "model,day,pool", "route,provider"):
            reply = self.ask(f"/v1/costs?group_by={group_by}", self.operator_text).json()
            assert reply["group_by"] == group_by.split(",")
            dear |= reply["records"][0]
            cheap |= reply["records"][1]
        assert (dear["team"], dear["team_id"]) == ("blue", self.other_agent.team_id)
        assert (dear["agent"], dear["key"], dear["model"], dear["day"]) == ("app", "blue-1", "gpt-small", "2026-11-21")
        assert (dear["pool"], dear["route"], dear["provider"]) == (self.pool.name, "#0", "local")
        assert (cheap["route"], cheap["day"], cheap["request_count"]) == ("r", "2026-11-20", 1)
        assert (dear["request_count"], dear["attempt_count"], dear["error_count"]) == (0, 1, 1)

    def test_a_report_has_a_limited_number_of_records(self):
        Usage.objects.bulk_create(
            Usage(
                **{"rid": f"f{number:031x}", "at": DAY, "key_id": 1, "agent_id": 1, "team_id": self.agent.team_id},
                **{"pool_id": 1, "endpoint": "chat", "model": f"m{number}", "status": 200},
            )
            for number in range(cost_report.RECORDS_MAX)
        )
        reply = self.ask("/v1/costs?group_by=model", self.text)
        assert len(reply.json()["records"]) == cost_report.RECORDS_MAX
        self.usage()  # of one more model
        told = self.error(self.ask("/v1/costs?group_by=model", self.text), 400, "group_by")
        assert told["code"] == "too_many_records"
        assert self.ask("/v1/costs?group_by=team", self.text).json()["total_requests"] == cost_report.RECORDS_MAX + 1

    def test_one_report_at_a_time(self):
        asked = cost_report.question(QueryDict(), Caller(key=self.operator))
        before, cost_report.TURN_WAIT_S = cost_report.TURN_WAIT_S, 0.05
        self.addCleanup(setattr, cost_report, "TURN_WAIT_S", before)
        with cost_report.turn():
            reply = self.ask("/v1/costs", self.text)
            assert self.error(reply, 503)["code"] == "reports_busy"
            assert int(reply["Retry-After"]) >= 1
            assert cost_report.answer(asked, Caller(key=self.operator))["records"] == []
        assert self.ask("/v1/costs", self.text).status_code == 200

    def test_a_provider_that_was_deleted_keeps_its_costs(self):
        self.usage(cost="1", provider=Provider(pk=4711))
        record = self.ask("/v1/costs", self.operator_text).json()["records"][0]
        assert (record["provider"], record["base_url"], record["is_local"]) == ("#4711", "", False)

    def test_days_are_included_at_both_ends(self):
        for days in range(4):
            self.usage(cost="1", at=DAY + dt.timedelta(days=days))
            self.usage(cost="1", at=DAY + dt.timedelta(days=days, hours=23, minutes=59))
        reply = self.ask("/v1/costs?from=2026-11-21&to=2026-11-22", self.text).json()
        assert reply["total_requests"] == 4
        assert self.ask("/v1/costs?from=2026-11-23", self.text).json()["total_requests"] == 2
        assert self.ask("/v1/costs?to=2026-11-20", self.text).json()["total_requests"] == 2

    def test_tokens_without_a_known_price_are_told_apart(self):
        self.usage(price_id=0)
        self.usage(price_id=-1)
        self.usage(price_id=PRICE_NONE)
        assert self.ask("/v1/costs", self.text).json()["unpriced_count"] == 1

    def test_what_cannot_be_asked(self):
        for query, param in (
            ("group_by=price", "group_by"),
            ("group_by=", "group_by"),
            ("group_by=team,,key", "group_by"),
            ("group_by=team,agent,key,model", "group_by"),
            ("period=last", "period"),
            ("from=yesterday", "from"),
            ("from=2026-13-01", "from"),
            ("to=0001-01-01", "to"),
            ("to=9999-12-31", "to"),
            ("from=2026-11-22&to=2026-11-21", "to"),
            ("form=2026-11-22", "form"),
        ):
            with self.subTest(query):
                self.error(self.ask(f"/v1/costs?{query}", self.text), 400, param)
        for team in ("%00", "a%00b", "%ED%A0%80", "9" * 50, "%D9%A3"):
            with self.subTest(team):
                self.error(self.ask(f"/v1/costs?team={team}", self.operator_text), 400, "team")
                self.error(self.ask(f"/v1/costs?team={team}", self.text), 403, "team")
        self.error(self.post("/v1/costs", {}, self.text), 405)


class ResetTests(TransactionTestCase):
    """With a real writer: a period begins in its thread."""

    databases = "__all__"
    ask, post, error = CostCase.ask, CostCase.post, CostCase.error

    def setUp(self):
        agent = access.agent_named("red", "app", actor="test")
        pool = access.default_pool("test")
        self.key, self.text = keys.create_key(agent, pool, "app", actor="test")
        self.operator, self.operator_text = keys.create_key(agent, pool, "ops", ("operator",), actor="test")
        self.jobs = Orders()
        directory = Path(tempfile.mkdtemp(prefix="hj-"))
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        self.writer = Writer(directory, period_s=0.02, on_recall=lambda *purse: None, jobs=[self.jobs])
        self.addCleanup(setattr, plane, "current", plane.current)
        plane.current = self  # what the view uses of the control plane is its writer

    def start(self) -> None:
        self.writer.start()
        self.addCleanup(self.jobs.finish)
        self.addCleanup(self.writer.stop)

    def test_costs_begin_at_nothing_again_and_nothing_is_deleted(self):
        self.start()
        CostCase.usage(self, provider=Provider(pk=1), cost="1")
        assert self.ask("/v1/costs", self.operator_text).json()["total_cost_usd"] == "1.000000000000"
        reply = self.post("/v1/costs/reset", {}, self.operator_text)
        assert reply.status_code == 200, reply.content
        assert reply.json()["status"] == "reset"
        assert reply.json()["period"]["number"] == 1
        after = self.ask("/v1/costs", self.operator_text).json()
        assert (after["total_requests"], after["period"]["number"]) == (0, 1)
        assert dt.datetime.fromisoformat(after["period"]["since"]) <= timezone.now()
        everything = self.ask("/v1/costs?period=all", self.operator_text).json()
        assert (everything["total_cost_usd"], everything["period"]) == ("1.000000000000", None)
        CostCase.usage(self, provider=Provider(pk=1), cost="2")
        assert self.ask("/v1/costs", self.operator_text).json()["total_cost_usd"] == "2.000000000000"
        entry = OutboxEntry.objects.get(action="ledger.period")
        assert entry.actor == f"key:{self.operator.prefix}"

    def test_only_operators_reset(self):
        self.error(self.post("/v1/costs/reset", {}, self.text), 403)
        assert not LedgerOrder.objects.exists()
        self.error(self.ask("/v1/costs/reset", self.operator_text), 405)

    def test_without_a_writer_nothing_is_ordered(self):
        plane.current = None
        assert self.error(self.post("/v1/costs/reset", {}, self.operator_text), 503)["code"] == "no_control_plane"
        assert not LedgerOrder.objects.exists()

    def test_a_writer_that_does_not_get_to_it_is_a_503_and_the_order_stays(self):
        headers = {"Authorization": f"Bearer {self.operator_text}"}
        view = CostsResetView.as_view(wait_s=0.05)
        reply = view(RequestFactory().post("/v1/costs/reset", headers=headers)).render()
        assert reply.status_code == 503
        assert json.loads(reply.content)["error"]["code"] == "reset_pending"
        assert reply["x-should-retry"] == "false"
        assert LedgerOrder.objects.get().state == "open"


class AdviceCase(CostCase):
    @classmethod
    def setUpTestData(cls):
        super().setUpTestData()
        cls.prices = {
            pattern: cls.price(provider, pattern, *amounts)
            for provider, pattern, amounts in (
                ("openai", "gpt-small", ("0.15", "0.6")),
                ("openai", "gpt-large", ("2.5", "10")),
                ("cloud", "gpt-vision", ("2", "8")),
            )
        }
        for name, provider in (("gpt-small", cls.cloud), ("gpt-large", cls.cloud), ("gpt-vision", cls.cloud)):
            services.save_route(Route(name=name, pattern=name, provider=provider), actor="test")
        services.save_route(Route(name="llamas", pattern="llama*", provider=cls.local), actor="test")
        services.save_route(Route(name="odd", pattern="odd", provider=cls.cloud), actor="test")
        cls.card("gpt-small", 16_000, "tools")
        cls.card("gpt-large", 128_000, "tools,standard")
        cls.card("gpt-vision", 128_000, "tools,vision,standard,no-system")
        cls.card("odd", 1_000_000, "tools,vision,premium")
        publish("test", "test")

    @classmethod
    def price(cls, provider: str, pattern: str, given: str, made: str, **more: Any) -> Price:
        values = {"input_usd_per_mtok": Decimal(given), "output_usd_per_mtok": Decimal(made), "valid_from": DAY}
        row = Price(provider=provider, pattern=pattern, **{**values, "valid_from": timezone.now(), **more})
        return access.add_price(row, actor="test")

    @classmethod
    def card(cls, pattern: str, context: int | None, capabilities: str, **more: Any) -> None:
        row = ModelCard(pattern=pattern, context_tokens=context, capabilities=capabilities, **more)
        services.save_card(row, actor="test")


class EstimateTests(AdviceCase):
    path = "/v1/cost/estimate"

    def test_a_known_price(self):
        body = {"model": "gpt-small", "input_tokens": 1000, "output_tokens": 500}
        assert self.post(self.path, body, self.text).json() == {
            **body,
            "provider": "cloud",
            "route": "gpt-small",
            "upstream_model": "gpt-small",
            "price": "known",
            "price_id": self.prices["gpt-small"].pk,
            "estimated_cost_micro_usd": 450,
            "estimated_cost_usd": "0.000450000000",
        }

    def test_no_tokens_cost_nothing(self):
        reply = self.post(self.path, {"model": "gpt-small"}, self.text).json()
        assert (reply["input_tokens"], reply["estimated_cost_micro_usd"], reply["price"]) == (0, 0, "known")

    def test_an_unknown_price_is_not_told_as_nothing(self):
        reply = self.post(self.path, {"model": "odd", "input_tokens": 5}, self.text).json()
        assert (reply["price"], reply["price_id"]) == ("unknown", None)
        assert reply["estimated_cost_micro_usd"] is reply["estimated_cost_usd"] is None

    def test_a_local_model_is_free_until_a_row_prices_it(self):
        body = {"model": "llama-3.3-70b", "input_tokens": 10**6}
        reply = self.post(self.path, body, self.text).json()
        assert (reply["price"], reply["estimated_cost_usd"]) == ("free", "0.000000000000")
        self.price("ollama", "llama*", "0.5", "0")
        reply = self.post(self.path, body, self.text).json()
        assert (reply["price"], reply["estimated_cost_usd"]) == ("known", "0.500000000000")

    def test_the_price_of_the_route_and_of_long_requests(self):
        self.price("*", "*", "7", "7", route="gpt-small")
        long = self.price("openai", "gpt-large", "5", "20", from_tokens=200_001)
        reply = self.post(self.path, {"model": "gpt-small", "input_tokens": 1}, self.text).json()
        assert reply["estimated_cost_usd"] == "0.000007000000"
        reply = self.post(self.path, {"model": "gpt-large", "input_tokens": 200_001}, self.text).json()
        assert (reply["price_id"], reply["estimated_cost_usd"]) == (long.pk, "1.000005000000")

    def test_a_key_sees_the_models_it_may_use_only(self):
        _, text = keys.create_key(self.agent, self.pool, "large-only", models_allowed=("*-large",), actor="test")
        assert self.post(self.path, {"model": "gpt-large"}, text).status_code == 200
        told = self.error(self.post(self.path, {"model": "gpt-small"}, text), 404, "model")
        assert told["code"] == "model_not_found"

    def test_what_cannot_be_asked(self):
        for body, param in (
            ({}, "model"),
            ({"model": ""}, "model"),
            ({"model": "x" * 300}, "model"),
            ({"model": 3.5, "input_tokens": -1}, "model"),
            ({"model": "gpt-small", "input_tokens": -1}, "input_tokens"),
            *(({"model": "gpt-small", "input_tokens": bad}, "input_tokens") for bad in ("5", 5.0, True, None, [])),
            ({"model": "gpt\0small"}, "model"),
            ({"model": "gpt-small", "output_tokens": "many"}, "output_tokens"),
            ({"model": "gpt-small", "input_tokens": 10**12}, "input_tokens"),
            ([1], None),
        ):
            with self.subTest(body):
                self.error(self.post(self.path, body, self.text), 400, param)
        for raw in ("{", "[" * 100_000, '{"a":' * 50_000, '{"model": "\\ud800"}', "9" * 5_000, "\xff", "null", '"x"'):
            with self.subTest(raw[:20]):
                message = self.error(self.post(self.path, raw, self.text, raw=True), 400)["message"]
                assert not re.search(r"set_int|digits|dictionary|NoneType|char \d", message), message
        assert self.error(self.post(self.path, {"model": "none"}, self.text), 404, "model")["code"] == "model_not_found"


class RecommendTests(AdviceCase):
    path = "/v1/cost/recommend"

    def recommend(self, key: str = "", **needs: Any) -> dict[str, Any]:
        reply = self.post(self.path, needs, key or self.text)
        assert reply.status_code == 200, reply.content
        return reply.json()

    def test_the_cheapest_that_is_good_enough(self):
        assert self.recommend(input_tokens=1000, max_output_tokens=500) == {
            "model": "gpt-small",
            "provider": "cloud",
            "route": "gpt-small",
            "tier": "economy",
            "required_tier": "economy",
            "price_id": self.prices["gpt-small"].pk,
            "estimated_cost_micro_usd": 450,
            "estimated_cost_usd": "0.000450000000",
        }

    def test_the_least_tier_follows_from_the_request(self):
        for needs, tier, model in (
            ({"input_tokens": 10_000}, "economy", "gpt-small"),
            ({"input_tokens": 10_001}, "standard", "gpt-vision"),
            ({"input_tokens": 2_000, "uses_tools": True}, "economy", "gpt-small"),
            ({"input_tokens": 2_001, "uses_tools": True}, "standard", "gpt-vision"),
            ({"has_vision": True}, "standard", "gpt-vision"),
            ({"input_tokens": 10_001, "has_system_prompt": True}, "standard", "gpt-large"),
        ):
            with self.subTest(needs):
                found = self.recommend(**needs)
                assert (found["required_tier"], found["model"]) == (tier, model)

    def test_a_local_model_costs_nothing(self):
        services.save_route(Route(name="own", pattern="llama-own", provider=self.local), actor="test")
        self.card("llama-own", 8_000, "")
        publish("test", "test")
        found = self.recommend(input_tokens=1000)
        assert (found["model"], found["estimated_cost_usd"], found["price_id"]) == ("llama-own", "0.000000000000", -1)

    def test_a_model_that_only_makes_embeddings_is_no_answer(self):
        services.save_route(Route(name="embed", pattern="llama-embed", provider=self.local), actor="test")
        self.card("llama-embed", 8_000, "embeddings")
        publish("test", "test")
        assert self.recommend(input_tokens=1000)["model"] == "gpt-small"

    def test_an_imported_card_is_looked_at_too(self):
        services.save_route(Route(name="own", pattern="llama-own", provider=self.local), actor="test")
        ModelCard.every.create(pattern="llama-*", context_tokens=8_000, capabilities="chat", source="catalogue")
        publish("test", "test")
        assert self.recommend(input_tokens=1000)["model"] == "llama-own"

    def test_only_models_the_key_may_use(self):
        _, text = keys.create_key(self.agent, self.pool, "large-only", models_allowed=("*-large",), actor="test")
        assert self.recommend(text)["model"] == "gpt-large"

    def test_none_qualifies_and_the_answer_says_why(self):
        told = self.error(self.post(self.path, {"input_tokens": 10**9}, self.text), 404)
        assert told["code"] == "no_model_qualifies"
        assert "too small a context" in told["message"]
        Route.objects.exclude(name="odd").update(enabled=False)
        publish("test", "test")
        told = self.error(self.post(self.path, {}, self.text), 404)
        assert "1 without a known price" in told["message"]

    def test_what_cannot_be_asked(self):
        for body, param in (
            ({"input_tokens": -1}, "input_tokens"),
            ({"max_output_tokens": None}, "max_output_tokens"),
            ({"uses_tools": "perhaps"}, "uses_tools"),
            ({"has_vision": 1}, "has_vision"),
            ({"input_tokens": "1"}, "input_tokens"),
            ("text", None),
        ):
            with self.subTest(body):
                self.error(self.post(self.path, body, self.text), 400, param)


class BeforeAnythingIsPublishedTests(CostCase):
    def test_nothing_is_known(self):
        self.error(self.post("/v1/cost/estimate", {"model": "m"}, self.text), 404, "model")
        self.error(self.post("/v1/cost/recommend", {}, self.text), 404)
