"""Two operators in one form: nobody's change is written over unseen, and whoever has seen it may."""

from __future__ import annotations

import datetime as dt
import html
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.core import signing
from django.db import connections
from django.http import HttpResponse
from django.test import Client, TransactionTestCase
from django.urls import reverse
from django.utils import timezone

from audit.shown_rows import SHOWN
from budgets import access, keys, warming
from budgets.models import Agent, Team, WarmQuestion
from hoosh_site.people.models import TeamLead
from providers import services
from providers.models import Credential, ModelCard, Provider, Route, RoutingPolicy
from tests.admin_case import AdminTestCase

pytestmark = pytest.mark.database

_INPUT = re.compile(r"<input\b[^>]*>")
_TEXTAREA = re.compile(r'(?s)<textarea[^>]*name="([^"]+)"[^>]*>\n?(.*?)</textarea>')
_SELECT = re.compile(r'(?s)<select[^>]*name="([^"]+)"[^>]*>(.*?)</select>')


def fields(page: str, form: str = "") -> dict[str, Any]:
    """What a browser would send of the form that carries the digests, unchanged."""
    page = page.partition(f'id="{form}"')[2].partition("</form>")[0] if form else page
    found: dict[str, Any] = {}
    for tag in _INPUT.findall(page):
        told = dict(re.findall(r'(\w[\w-]*)="([^"]*)"', tag))
        kind, name = told.get("type", "text"), told.get("name", "")
        if not name or kind in ("submit", "button") or name in ("action", "_selected_action", "select_across"):
            continue
        if kind in ("checkbox", "radio"):
            if " checked" in tag:
                found.setdefault(name, []).append(told.get("value", "on"))
        else:
            found[name] = html.unescape(told.get("value", ""))
    for name, text in _TEXTAREA.findall(page):
        found[name] = html.unescape(text)
    for name, inner in _SELECT.findall(page):
        found[name] = re.findall(r'<option value="([^"]*)" selected', inner)
    return found


class Case(AdminTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.provider = services.save_provider(Provider(name="local", kind="ollama"), actor="test")
        self.route = services.save_route(Route(name="all", pattern="*", provider=self.provider), actor="test")
        access.save_team(team := Team(name="red"), actor="test")
        access.save_agent(agent := Agent(team=team, name="bot"), actor="test")
        self.team, self.agent, self.pool = team, agent, access.default_pool("test")

    def opened(self, name: str, *args: object) -> dict[str, Any]:
        found = fields(self.page(name, *args))
        assert found[SHOWN]
        return found

    def text(self, response: HttpResponse) -> str:
        return html.unescape(self.errors(response))

    def again(self, response: HttpResponse) -> dict[str, Any]:
        return fields(self.clean_html(response))


class ChangeFormTest(Case):
    def test_a_change_made_meanwhile_is_named_with_its_author_and_both_values(self) -> None:
        mine = self.opened("providers_route_change", self.route.pk)
        self.route.priority = 7
        services.save_route(self.route, actor="ben")
        response = self.post("providers_route_change", {**mine, "priority": "33"}, self.route.pk)
        told = self.text(response)
        assert re.search(r"Changed by ben at \d\d:\d\d:\d\d UTC while you had it open", told), told
        assert "Priority is “7” now; yours is “33”." in told
        self.route.refresh_from_db()
        assert self.route.priority == 7

    def test_saved_again_it_is_saved(self) -> None:
        mine = self.opened("providers_route_change", self.route.pk)
        self.route.priority = 7
        services.save_route(self.route, actor="ben")
        response = self.post("providers_route_change", {**mine, "priority": "33"}, self.route.pk)
        again = self.again(response)
        assert again["priority"] == "33"
        assert self.post("providers_route_change", again, self.route.pk).status_code == 302
        self.route.refresh_from_db()
        assert self.route.priority == 33

    def test_what_changes_a_third_time_is_told_again(self) -> None:
        mine = self.opened("providers_route_change", self.route.pk)
        self.route.priority = 7
        services.save_route(self.route, actor="ben")
        again = self.again(self.post("providers_route_change", mine, self.route.pk))
        self.route.priority = 8
        services.save_route(self.route, actor="eve")
        told = self.text(self.post("providers_route_change", again, self.route.pk))
        assert "eve at" in told
        assert "Priority is “8” now; yours is “10”." in told

    def test_an_untouched_field_is_not_written_back_unseen(self) -> None:
        mine = self.opened("providers_route_change", self.route.pk)
        self.route.enabled = False
        services.save_route(self.route, actor="ben")
        response = self.post("providers_route_change", {**mine, "priority": "33"}, self.route.pk)
        assert "Enabled is “no” now; yours is “yes”." in self.text(response)

    def test_the_same_change_by_both_is_none(self) -> None:
        mine = self.opened("providers_route_change", self.route.pk)
        self.route.priority = 7
        services.save_route(self.route, actor="ben")
        response = self.post("providers_route_change", {**mine, "priority": "7"}, self.route.pk)
        assert response.status_code == 302

    def test_a_field_that_is_wrong_itself_is_compared_when_it_is_right(self) -> None:
        mine = self.opened("providers_route_change", self.route.pk)
        self.route.priority = 7
        services.save_route(self.route, actor="ben")
        response = self.post("providers_route_change", {**mine, "priority": "many"}, self.route.pk)
        assert "ben" not in self.text(response)
        again = self.again(response)
        told = self.text(self.post("providers_route_change", {**again, "priority": "33"}, self.route.pk))
        assert "Priority is “7” now; yours is “33”." in told

    def test_a_forged_page_is_refused_once_and_a_program_without_it_is_not_compared(self) -> None:
        mine = self.opened("providers_route_change", self.route.pk)
        other = services.save_route(Route(name="b", pattern="b", provider=self.provider), actor="test")
        elsewhere = self.opened("providers_route_change", other.pk)[SHOWN]
        for text in ("", "x", mine[SHOWN][:-2], elsewhere):
            response = self.post("providers_route_change", {**mine, SHOWN: text}, self.route.pk)
            assert "too old" in self.text(response)
            assert self.post("providers_route_change", self.again(response), self.route.pk).status_code == 302
        del mine[SHOWN]
        assert self.post("providers_route_change", mine, self.route.pk).status_code == 302

    def test_nothing_of_a_row_can_be_read_from_what_a_page_carries(self) -> None:
        mine = self.opened("providers_route_change", self.route.pk)
        content = signing.loads(mine[SHOWN], salt="hoosh.shown")
        assert set(content) == {"of", "at", "fields", "inlines"}
        assert all(re.fullmatch("[0-9a-f]{12}", value) for value in content["fields"].values())

    def test_a_credential_stored_meanwhile_is_told(self) -> None:
        services.set_credential(self.provider, "main", "sk-first-123456789", actor="test")
        mine = self.opened("providers_provider_change", self.provider.pk)
        assert self.post("providers_provider_change", mine, self.provider.pk).status_code == 302
        mine = self.opened("providers_provider_change", self.provider.pk)
        services.set_credential(self.provider, "main", "sk-second-98765432", actor="ben")
        services.set_credential(self.provider, "spare", "sk-third-000011112", actor="ben")
        response = self.post("providers_provider_change", {**mine, "note": "x"}, self.provider.pk)
        told = self.text(response)
        assert "“local / main (…6789)” was changed; it is “local / main (…5432)” now." in told
        assert "“local / spare (…1112)” was added." in told
        assert "sk-second" not in response.content.decode()
        Credential.objects.update(used_at="2026-01-01T00:00:00Z")
        again = self.again(response)
        assert self.post("providers_provider_change", again, self.provider.pk).status_code == 302

    def test_every_kind_of_configuration_row_is_compared(self) -> None:
        services.save_policy(policy := RoutingPolicy(name="p", pattern="x*"), actor="test")
        key, _ = keys.create_key(self.agent, self.pool, "laptop", actor="test")
        card = ModelCard(pattern="m", display_name="M")
        services.save_card(card, actor="test")
        question = warming.save_question(WarmQuestion(key=key, model="m", question="Who?"), actor="test")
        settings = services.gateway_settings()
        lead = TeamLead.objects.create(team=self.team, user=self.carl)
        for name, row, field, value in (
            ("providers_routingpolicy", policy, "name", "other"),
            ("providers_gatewaysettings", settings, "max_attempts", 9),
            ("providers_modelcard", card, "display_name", "Other"),
            ("budgets_team", self.team, "note", "other"),
            ("budgets_agent", self.agent, "note", "other"),
            ("budgets_apikey", key, "name", "other"),
            ("budgets_pool", self.pool, "note", "other"),
            ("budgets_warmquestion", question, "note", "other"),
            ("auth_user", self.carl, "first_name", "Carla"),
            ("auth_group", Group.objects.get_or_create(name="viewer")[0], "name", "lookers"),
            ("people_teamlead", lead, "user", self.bob),
        ):
            with self.subTest(name):
                mine = self.opened(f"{name}_change", row.pk)
                type(row)._base_manager.filter(pk=row.pk).update(**{field: value})
                response = self.post(f"{name}_change", mine, row.pk)
                shown = value if field != "user" else "bob"
                assert f"is “{shown}” now; yours is" in self.text(response)
                again = self.again(response)
                assert self.post(f"{name}_change", again, row.pk).status_code == 302, "saved knowingly"

    def test_two_changes_of_different_fields_of_a_user_are_both_kept(self) -> None:
        joined = User.objects.get(pk=self.carl.pk).date_joined.replace(microsecond=123456)
        User.objects.filter(pk=self.carl.pk).update(date_joined=joined)
        mine, theirs = (self.opened("auth_user_change", self.carl.pk) for _ in range(2))
        assert not [name for name in mine if name.startswith(("date_joined", "last_login"))]
        mine["date_joined_0"], mine["date_joined_1"] = "2001-01-01", "00:00:00"
        assert self.post("auth_user_change", {**mine, "is_staff": "on"}, self.carl.pk).status_code == 302
        theirs["is_staff"] = "on"
        assert self.post("auth_user_change", {**theirs, "first_name": "Carl"}, self.carl.pk).status_code == 302
        self.carl.refresh_from_db()
        assert (self.carl.date_joined, self.carl.first_name) == (joined, "Carl")

    def test_a_moment_between_two_seconds_is_no_change_and_stays_what_it_is(self) -> None:
        until = timezone.now().replace(microsecond=123456) + dt.timedelta(days=3)
        key, _ = keys.create_key(self.agent, self.pool, "laptop", actor="test", expires_at=until)
        mine, theirs = (self.opened("budgets_apikey_change", key.pk) for _ in range(2))
        assert self.post("budgets_apikey_change", {**mine, "name": "desk"}, key.pk).status_code == 302
        theirs["name"] = "desk"
        response = self.post("budgets_apikey_change", {**theirs, "models_allowed": "tiny"}, key.pk)
        assert response.status_code == 302, self.text(response)
        key.refresh_from_db()
        assert (key.expires_at, key.models_allowed) == (until, "tiny")
        day = f"{until + dt.timedelta(days=1):%Y-%m-%d}"
        mine = {**self.opened("budgets_apikey_change", key.pk), "expires_at_0": day}
        assert self.post("budgets_apikey_change", mine, key.pk).status_code == 302
        key.refresh_from_db()
        assert key.expires_at == until.replace(microsecond=0) + dt.timedelta(days=1)

    def test_lists_of_rows_are_compared_too(self) -> None:
        group, _ = Group.objects.get_or_create(name="own")
        carl = User.objects.get(pk=self.carl.pk)
        mine = self.opened("auth_user_change", carl.pk)
        carl.groups.add(group)
        told = self.text(self.post("auth_user_change", mine, carl.pk))
        assert "Groups is “own” now; yours is nothing." in told

    def test_who_may_only_look_carries_nothing(self) -> None:
        self.allow(self.bob, "view_route")
        assert SHOWN not in self.page("providers_route_change", self.route.pk)
        assert Permission.objects.exists()


class ListTest(Case):
    def setUp(self) -> None:
        super().setUp()
        self.other = services.save_route(Route(name="b", pattern="b", provider=self.provider, priority=200), actor="t")

    def rows(self) -> dict[str, Any]:
        found = fields(self.page("providers_route_changelist"), "changelist-form")
        assert found[SHOWN]
        return {**found, "_save": "Save"}

    def stored(self) -> list[tuple[int, bool]]:
        return list(Route.objects.order_by("pk").values_list("priority", "enabled"))

    def test_what_nobody_here_touched_keeps_what_somebody_else_made_of_it(self) -> None:
        mine = self.rows()
        self.route.priority = 7
        services.save_route(self.route, actor="ben")
        response = self.post("providers_route_changelist", {**mine, "form-1-priority": "150"})
        assert response.status_code == 302
        assert self.stored() == [(7, True), (150, True)]
        assert "1 route was changed" in self.messages(response)

    def test_other_fields_of_one_row_are_kept_as_well(self) -> None:
        mine = self.rows()
        del mine["form-0-enabled"]
        self.route.priority = 7
        services.save_route(self.route, actor="ben")
        assert self.post("providers_route_changelist", mine).status_code == 302
        assert self.stored() == [(7, False), (200, True)]

    def test_a_field_both_changed_is_told_with_both_values_and_saved_when_it_is_saved_again(self) -> None:
        mine = self.rows()
        self.route.priority = 7
        services.save_route(self.route, actor="ben")
        self.other.priority = 201
        services.save_route(self.other, actor="ben")
        response = self.post("providers_route_changelist", {**mine, "form-0-priority": "150"})
        told = self.text(response)
        assert re.search(r"Changed by ben at [\d:]+ UTC to “7”; yours is “150”", told), told
        assert self.stored() == [(7, True), (201, True)]
        again = {**fields(self.clean_html(response), "changelist-form"), "_save": "Save"}
        assert self.post("providers_route_changelist", again).status_code == 302
        assert self.stored() == [(150, True), (201, True)], "the other one was not touched here"

    def test_a_list_without_what_was_shown_is_saved_as_it_is(self) -> None:
        mine = self.rows()
        del mine[SHOWN]
        assert self.post("providers_route_changelist", {**mine, "form-0-priority": "150"}).status_code == 302
        assert self.stored() == [(150, True), (200, True)]


class AtOnceTest(TransactionTestCase):
    databases = "__all__"

    def test_of_saves_at_the_same_moment_one_is_saved_and_the_others_come_back(self) -> None:
        ada = User.objects.create_superuser("ada", "", "pw")
        provider = services.save_provider(Provider(name="local", kind="ollama"), actor="test")
        route = services.save_route(Route(name="all", pattern="*", provider=provider), actor="test")
        access.save_team(team := Team(name="red"), actor="test")
        for url, field in (
            (reverse("admin:providers_route_change", args=(route.pk,)), "priority"),
            (reverse("admin:budgets_team_change", args=(team.pk,)), "requests_per_minute"),
        ):
            clients = [Client() for _ in range(4)]
            for client in clients:
                client.force_login(ada)
            mine = fields(clients[0].get(url).content.decode())

            def save(number: int, url: str = url, data: Any = mine, field: str = field, by: Any = clients) -> int:
                try:
                    return int(by[number].post(url, {**data, field: str(50 + number)}).status_code)
                finally:
                    connections.close_all()

            with ThreadPoolExecutor(4) as pool:
                statuses = sorted(pool.map(save, range(4)))
            assert statuses == [200, 200, 200, 302]
