"""Two people before one form or one list: nobody overwrites what they have not seen."""

from __future__ import annotations

import html
import re

import pytest

from budgets import access
from budgets.models import Team
from providers import services
from providers.models import Provider, Route
from tests.admin_case import AdminTestCase

pytestmark = pytest.mark.database


def fields_of(page: str, form: str) -> dict[str, str]:
    """What a browser would send of a form: inputs, ticked boxes, chosen options, texts."""
    found = re.search(rf'(?s)<form[^>]*id="{form}".*?</form>', page)
    assert found is not None
    data = {}
    for tag in re.findall(r"<input[^>]*>", found[0]):
        pairs = dict(re.findall(r'([\w-]+)="([^"]*)"', tag))
        kind, name = pairs.get("type", "text"), pairs.get("name")
        if name and kind != "submit" and (kind != "checkbox" or " checked" in tag) and name != "_selected_action":
            data[name] = html.unescape(pairs.get("value", "on" if kind == "checkbox" else ""))
    for name, text in re.findall(r'(?s)<textarea[^>]*name="([^"]+)"[^>]*>(.*?)</textarea>', found[0]):
        data[name] = html.unescape(text.removeprefix("\n"))
    for name, options in re.findall(r'(?s)<select[^>]*name="([^"]+)"[^>]*>(.*?)</select>', found[0]):
        chosen = re.findall(r'<option value="([^"]*)" selected', options)
        data[name] = chosen[0] if chosen else ""
    return data


class StaleFormsTest(AdminTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.provider = services.save_provider(Provider(name="local", kind="ollama"), actor="test")
        self.route = services.save_route(Route(name="one", pattern="m", provider=self.provider), actor="test")
        services.save_route(Route(name="two", pattern="n", provider=self.provider), actor="test")

    def meanwhile(self, **fields: object) -> None:
        row = Route.objects.get(name="one")
        for name, value in fields.items():
            setattr(row, name, value)
        services.save_route(row, actor="bea")

    def test_a_form_of_an_older_row_is_refused_once_and_says_who_and_what(self) -> None:
        data = fields_of(self.page("providers_route_change", self.route.pk), "route_form")
        self.meanwhile(priority=21, enabled=False)
        refused = self.post("providers_route_change", {**data, "weight": "5"}, self.route.pk)
        said = self.errors(refused)
        for words in ("bea saved this row", "priority is 21", "weight is 1", "enabled is no"):
            self.assertIn(words, said)
        self.assertEqual(Route.objects.get(name="one").weight, 1)
        again = fields_of(refused.content.decode(), "route_form")
        self.assertEqual((again["weight"], again["priority"]), ("5", "10"))
        self.assertEqual(self.post("providers_route_change", again, self.route.pk).status_code, 302)
        row = Route.objects.get(name="one")
        self.assertEqual((row.weight, row.priority, row.enabled), (5, 10, True))

    def test_a_form_of_the_row_as_it_is_is_saved(self) -> None:
        data = fields_of(self.page("providers_route_change", self.route.pk), "route_form")
        self.assertEqual(self.post("providers_route_change", {**data, "weight": "5"}, self.route.pk).status_code, 302)
        self.assertEqual(Route.objects.get(name="one").weight, 5)

    def test_a_list_writes_the_cells_that_were_touched_and_no_other(self) -> None:
        data = fields_of(self.page("providers_route_changelist"), "changelist-form")
        by_id = {data[name]: name.removesuffix("-id") for name in data if re.fullmatch(r"form-\d+-id", name)}
        two = by_id[str(Route.objects.get(name="two").pk)]
        self.meanwhile(priority=21)
        self.post("providers_route_changelist", {**data, f"{two}-priority": "44", "_save": "Save"})
        self.assertEqual(dict(Route.objects.values_list("name", "priority")), {"one": 21, "two": 44})

    def test_rows_that_are_no_configuration_are_guarded_too(self) -> None:
        team = access.save_team(Team(name="payments"), actor="test")
        data = fields_of(self.page("budgets_team_change", team.pk), "team_form")
        other = Team.objects.get()
        other.note = "theirs"
        access.save_team(other, actor="bea")
        self.assertIn("note is theirs", self.errors(self.post("budgets_team_change", {**data, "note": ""}, team.pk)))
        self.assertEqual(Team.objects.get().note, "theirs")
