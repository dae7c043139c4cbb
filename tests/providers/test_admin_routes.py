"""The route list: arrows that change the order, traffic and health in it, and what a pattern means."""

from __future__ import annotations

import re
import time
from decimal import Decimal

import pytest
from django.utils import timezone

from audit.models import OutboxEntry
from budgets.models import UsageRollup
from providers import known_models, publish, services
from providers.models import DraftChange, GatewaySettings, Provider, ProviderProbe, Route
from tests.admin_case import AdminTestCase

pytestmark = pytest.mark.database


class RouteOrderTest(AdminTestCase):
    def setUp(self):
        super().setUp()
        self.provider = services.save_provider(Provider(name="local", kind="ollama"), actor="test")
        self.routes = {name: self.add(name) for name in "abcd"}

    def add(self, name, **more):
        return services.save_route(Route(name=name, pattern="m", provider=self.provider, **more), actor="test")

    def order(self):
        return "".join(Route.objects.order_by("priority", "name").values_list("name", flat=True))

    def move(self, name, side, neighbour, **more):
        first, second = self.routes[name].pk, self.routes[neighbour].pk
        return self.post("providers_route_move", {"move": f"{first}:{side}:{second}", **more})

    def test_an_arrow_moves_a_row_by_one_version_however_many_rows_change(self):
        before = self.versions()
        response = self.move("d", "before", "b")
        assert self.order() == "adbc"
        assert self.versions() == before + 1
        assert response["location"] == self.url("providers_route_changelist") + f"#up-{self.routes['d'].pk}"
        priorities = dict(Route.objects.values_list("name", "priority"))
        assert priorities["a"] < priorities["d"] < priorities["b"] == priorities["c"]
        assert OutboxEntry.objects.filter(action="route.changed").count() == 2
        self.move("a", "after", "c")
        assert self.order() == "dbca"
        assert self.versions() == before + 2

    def test_enter_in_a_field_of_the_list_saves_it(self):
        html = self.page("providers_route_changelist")
        assert "<title>Routes | Hoosh</title>" in html
        form = html[html.index('id="changelist-form"') :]
        first = re.search(r'<(?:button|input)[^>]* type="submit"[^>]*>|<button type="submit"[^>]*>', form)
        assert first is not None
        assert 'name="_save"' in first[0]
        assert " hidden" in first[0]
        data = {
            "form-TOTAL_FORMS": 1,
            "form-INITIAL_FORMS": 1,
            "form-0-id": self.routes["a"].pk,
            "form-0-enabled": "on",
        }
        self.post("providers_route_changelist", {**data, "form-0-priority": 77, "action": "", "_save": "1"})
        assert Route.objects.get(name="a").priority == 77

    def test_the_arrows_of_the_page_do_what_they_say(self):
        html = self.page("providers_route_changelist")
        found = re.findall(r'value="([\d:a-z]+)" class="hoosh-arrow \w+" aria-label="(Move \w \w+)"', html)
        by_words = {words: value for value, words in found}
        assert len(by_words) == 8
        assert re.search(r'aria-label="Move a up"[^>]* disabled', html)
        assert re.search(r'aria-label="Move d down"[^>]* disabled', html)
        self.post("providers_route_move", {"move": by_words["Move a down"]})
        assert self.order() == "bacd"

    def test_a_move_keeps_the_filters_of_the_page_and_nothing_else(self):
        response = self.move("b", "before", "a", back="enabled__exact=1&p=0")
        assert response["location"].startswith(self.url("providers_route_changelist") + "?enabled__exact=1&p=0#")
        response = self.move("b", "before", "a", back="//evil.example/")
        assert response["location"].startswith(self.url("providers_route_changelist") + "?")

    def test_no_arrows_where_the_list_is_sorted_otherwise_or_for_a_reader(self):
        assert "hoosh-arrow" not in self.page("providers_route_changelist", query="?o=2")
        self.allow(self.bob, "view_route")
        assert "hoosh-arrow" not in self.page("providers_route_changelist")
        assert self.move("b", "before", "a").status_code == 403
        assert self.order() == "abcd"

    def test_a_move_that_makes_no_sense_changes_nothing(self):
        before = self.versions()
        one = self.routes["a"].pk
        for value in (
            "",
            "x",
            "1:2:3",
            f"{one}:before:{one}",
            f"{one}:before:999",
            f"{one}:beside:{one + 1}",
            "9" * 40,
        ):
            response = self.post("providers_route_move", {"move": value})
            assert response.status_code == 302
            assert "cannot go there" in self.messages(response), value
        assert (self.order(), self.versions()) == ("abcd", before)
        assert self.client.get(self.url("providers_route_move")).status_code == 405

    def test_a_move_waits_for_its_review_like_any_other_change(self):
        publish.publish("test")
        GatewaySettings.objects.update(review=True)
        publish.publish("test")
        before = self.versions()
        self.move("d", "before", "a")
        assert self.order() == "dabc"
        assert self.versions() == before
        assert DraftChange.objects.count() == 1


class RouteTrafficTest(AdminTestCase):
    def setUp(self):
        super().setUp()
        self.provider = services.save_provider(Provider(name="local", kind="ollama"), actor="test")
        self.route = services.save_route(Route(name="r", pattern="m*", provider=self.provider), actor="test")

    def spend(self, start, **sums):
        row = {"team_id": 1, "agent_id": 1, "key_id": 1, "pool_id": 1, "provider_id": self.provider.pk}
        return UsageRollup.objects.create(
            start=start, route_id=self.route.pk, endpoint="chat", model=f"m{start}", **row, **sums
        )

    def test_requests_failures_and_cost_of_this_hour_and_the_last_are_shown(self):
        hour = int(time.time()) // 3600 * 3600
        for start in (hour, hour - 3600):
            self.spend(start, requests=1000, attempts=1000, errors=1, cost_usd=Decimal("1.25"))
        self.spend(hour - 7200, requests=5_000_000, attempts=5_000_000)
        html = self.page("providers_route_changelist")
        assert "2,000 requests" in html
        assert "$2.5000" in html
        assert "0.1 % failed" in html
        ProviderProbe.objects.create(provider=self.provider, ok=False, detail="x", checked_at=timezone.now())
        assert "down" in self.page("providers_route_changelist")
        self.allow(self.bob, "view_route", "change_route")
        assert "2,000" not in self.page("providers_route_changelist"), "costs are for those who may see usage"

    def test_many_failures_are_red(self):
        self.spend(int(time.time()) // 3600 * 3600, requests=10, attempts=10, errors=5)
        assert re.search(r'hoosh-badge bad">50.0 % failed', self.page("providers_route_changelist"))


class PatternTest(AdminTestCase):
    def setUp(self):
        super().setUp()
        self.provider = services.save_provider(Provider(name="local", kind="ollama"), actor="test")
        services.save_route(Route(name="r", pattern="exact", provider=self.provider), actor="test")
        services.save_route(Route(name="g", pattern="glob-*", provider=self.provider), actor="test")
        ProviderProbe.objects.create(provider=self.provider, ok=True, models=["glob-1", "glob-2", "<b>"])

    def told(self, pattern):
        response = self.client.get(self.url("providers_route_matches"), {"pattern": pattern})
        assert response["content-type"] == "application/json"
        return response.json()

    def test_a_pattern_means_models_that_providers_listed_and_routes_name(self):
        assert self.told("glob-*")["matching"] == [
            {"name": "glob-1", "providers": ["local"]},
            {"name": "glob-2", "providers": ["local"]},
        ]
        assert self.told(" exact ")["matching"] == [{"name": "exact", "providers": []}]
        assert (self.told("*")["total"], self.told("*")["known"]) == (4, 4)
        assert self.told("nothing")["total"] == 0

    def test_what_is_no_pattern_is_told_in_words(self):
        for pattern, words in (("", "Enter"), ("a**", "single *"), ("a\x07", "control"), ("x" * 300, "256")):
            told = self.told(pattern)
            assert words in told["problem"] or told["problem"], pattern
            assert told["matching"] == []

    def test_long_lists_are_cut(self):
        ProviderProbe.objects.update(models=[f"m{number}" for number in range(500)])
        told = self.told("m*")
        assert (told["total"], len(told["matching"])) == (500, known_models.SHOWN)

    def test_the_button_of_the_form_shows_a_page_and_saves_nothing(self):
        html = self.clean_html(self.post("providers_route_matches", {"pattern": "*", "name": "never"}))
        assert "4 of 4" in re.sub(r"<[^>]+>", "", html)
        assert "&lt;b&gt;" in html
        assert "noscript" in self.page("providers_route_add")
        assert Route.objects.count() == 2

    def test_models_are_for_those_who_may_see_routes(self):
        self.allow(self.bob, "view_provider")
        assert self.client.get(self.url("providers_route_matches"), {"pattern": "*"}).status_code == 403
