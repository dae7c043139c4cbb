"""Rate limits in admin: the fields of every form that has them, and the page that shows what is used."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache
from django.test import override_settings

from budgets import access, keys
from budgets.models import Agent, ApiKey, Pool, Team
from gateway.limits.limiter import Limiter, Limits, Ticket, group
from gateway.limits.slots import Slots
from hoosh_site.limits_page import Measure, _measure
from providers import config, publish, services
from providers.models import Provider, Route
from tests.admin_case import AdminTestCase
from tests.gateway.test_api import control
from tests.gateway.test_queue_api import Workers

pytestmark = pytest.mark.database

LIMITS = {"requests_per_minute": "60", "tokens_per_minute": "90000", "concurrent_requests": "4"}
NUMBERS = (60, 90_000, 4)


def limits_of(row: Any) -> tuple[int | None, ...]:
    return row.requests_per_minute, row.tokens_per_minute, row.concurrent_requests


class Case(AdminTestCase):
    def setUp(self) -> None:
        super().setUp()
        cache.clear()  # it remembers the forms other tests sent
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.run_dir = Path(directory.name)
        self.agent = access.agent_named("Research", "notebook", actor="test")
        self.pool = access.save_pool(Pool(name="research"), actor="test")
        self.provider = services.save_provider(Provider(name="local", kind="ollama"), actor="test")
        self.route = services.save_route(Route(name="all", pattern="*", provider=self.provider), actor="test")

    def forms(self) -> list[tuple[str, dict[str, Any], Any]]:
        """The page of each row that can have limits, what a browser sends for it, and the row."""
        key, _ = keys.create_key(self.agent, self.pool, "laptop", actor="test")
        of_key = {"name": "laptop", "agent": self.agent.pk, "pool": self.pool.pk, "scopes": ["inference"]}
        of_provider = {"name": "local", "kind": "ollama", "base_url": self.provider.base_url, "enabled": "on"}
        of_route = {"name": "all", "pattern": "*", "provider": self.provider.pk, "priority": 10, "weight": 1}
        return [
            ("budgets_team", {"name": "Research", "enabled": "on"}, self.agent.team),
            ("budgets_agent", {"team": self.agent.team_id, "name": "notebook", "enabled": "on"}, self.agent),
            ("budgets_apikey", of_key, key),
            (
                "providers_provider",
                of_provider | {"credentials-TOTAL_FORMS": 0, "credentials-INITIAL_FORMS": 0},
                self.provider,
            ),
            (
                "providers_route",
                of_route
                | {
                    "enabled": "on",
                    "on_disconnect": "cancel",
                    "disconnect_cap": 1024,
                    "cache_s": 0,
                    "cache_price_percent": 0,
                    "semantic_threshold": 0,
                    "compact_percent": 0,
                },
                self.route,
            ),
        ]


class LimitFieldsTest(Case):
    def test_each_form_stores_limits_shows_them_again_and_takes_them_back(self) -> None:
        for name, form, row in self.forms():
            for sent, stored in ((LIMITS, NUMBERS), (dict.fromkeys(LIMITS, ""), (None, None, None))):
                response = self.post(f"{name}_change", form | sent, row.pk)
                assert response.status_code == 302, (name, self.errors(response))
                row.refresh_from_db()
                assert limits_of(row) == stored, name
                html = self.page(f"{name}_change", row.pk)
                assert ('value="90000"' in html) is (sent is LIMITS), name

    def test_no_form_takes_what_is_no_limit(self) -> None:
        for name, form, row in self.forms():
            for value, words in (("0", "greater than or equal to 1"), ("1000000001", "less than"), ("many", "whole")):
                shown = self.errors(self.post(f"{name}_change", form | {"tokens_per_minute": value}, row.pk))
                assert words in shown, (name, shown)

    def test_a_new_key_is_made_with_its_limits_and_workers_hear_of_every_change(self) -> None:
        form = {"name": "laptop", "agent": self.agent.pk, "pool": self.pool.pk, "scopes": ["inference"]}
        self.post("budgets_apikey_add", form | LIMITS | {"submission": "s1"})
        key = ApiKey.objects.get()
        assert limits_of(key) == NUMBERS
        seq, (record,), _ = access.changes_since(0)
        assert (record.key_limits, record.agent_limits, record.team_limits) == (NUMBERS, (0, 0, 0), (0, 0, 0))
        agent = {"team": self.agent.team_id, "name": "notebook", "enabled": "on", "tokens_per_minute": "7"}
        self.post("budgets_agent_change", agent, self.agent.pk)
        seq, (record,), _ = access.changes_since(seq)
        assert record.agent_limits == (0, 7, 0)
        team = {"name": "Research", "enabled": "on", "concurrent_requests": "3"}
        self.post("budgets_team_change", team, self.agent.team_id)
        _, (record,), _ = access.changes_since(seq)
        assert record.team_limits == (0, 0, 3)

    def test_limits_of_providers_and_routes_are_published(self) -> None:
        for name, form, row in self.forms()[3:]:
            self.post(f"{name}_change", form | LIMITS, row.pk)
        found = publish.latest()
        assert found is not None
        document = config.unpack(found[1])
        assert limits_of(document.providers[0]) == limits_of(document.routes[0]) == NUMBERS

    def test_rows_with_a_limit_that_is_none_are_not_published(self) -> None:
        Route.objects.update(requests_per_minute=0)
        with pytest.raises(publish.PublishError, match="requests per minute: enter a number from 1 to 1,000,000,000"):
            publish.publish("test")


class LimitsPageTest(Case):
    def show(self) -> str:
        with override_settings(HOOSH_RUN_DIR=self.run_dir):
            return self.page("limits")

    def test_it_shows_who_has_limits_and_what_is_used_the_tightest_first(self) -> None:
        key, _ = keys.create_key(self.agent, self.pool, "laptop", actor="test", limits=(10, 1000, 4))
        self.provider.requests_per_minute = 100
        services.save_provider(self.provider, actor="test")
        slots = Slots(self.run_dir / "limits")
        self.addCleanup(slots.close)
        used = group(
            ("key", key.pk, Limits(10, 1000, 4)), ("provider", self.provider.pk, Limits(requests_per_minute=100))
        )
        assert isinstance(Limiter(slots).admit(used, 700), Ticket)
        html = self.show()
        for words in ("1 of 10<", "700 of 1,000<", "1 of 4<", "1 of 100<", "the 1 worker of this host"):
            assert words in html, words
        assert html.index("laptop") < html.index(">local<")
        assert "notebook" not in html.split("Used now")[1]

    def test_it_shows_who_waits_for_a_place(self) -> None:
        Route.objects.update(concurrent_requests=4)
        assert "for a place now" not in self.show()
        name = f"route:{Route.objects.get().pk}"
        queue = {"waiting": [2, 0, 1], "admitted": 4, "waited_ms": 1000, "timed_out": 6, "at": {name: 3}}
        with control(Workers({"queue": queue}, {"queue": queue})):
            html = self.show()
        assert "6 requests wait for a place now: 4 interactive, 0 agent, 2 batch." in html
        assert "8 got one after 250 ms on average, 12 waited in vain" in html
        assert "<td>6</td>" in html.split("Used now")[1]

    def test_without_limits_or_workers_it_says_so(self) -> None:
        assert "Nothing is limited" in self.show()
        access.save_team(Team(name="blue", concurrent_requests=5), actor="test")
        assert "0 of 5" in self.show()
        (self.run_dir / "limits").write_bytes(b"not the table")
        assert "0 of 5" in self.show()

    def test_each_kind_is_shown_to_who_may_see_its_rows(self) -> None:
        Agent.objects.update(requests_per_minute=5)
        Route.objects.update(requests_per_minute=5)
        self.client.force_login(self.bob)
        assert self.client.get(self.url("limits")).status_code == 403
        self.allow(self.bob, "view_route")
        html = self.show()
        assert ">all<" in html
        assert "notebook" not in html
        self.allow(self.bob, "view_agent")
        assert ">all<" not in self.show()
        assert self.url("limits") in self.page("index")
        self.client.logout()
        assert self.client.get(self.url("limits")).status_code == 302

    def test_the_used_share_is_kept_where_a_limit_was_changed(self) -> None:
        assert _measure(None, 10, 5) is None
        assert _measure(100, 10, 5) == Measure(100, 50)
        assert _measure(100, None, None) == Measure(100, 0)
        assert Measure(4, 9).share == 100
