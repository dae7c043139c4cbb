"""Every admin page against values no row can have: in its list's filters, in its form's address, in its form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from django.contrib import admin
from django.contrib.auth.models import Group, User
from django.db import models
from django.http import HttpResponse
from django.urls import reverse

from budgets.models import Agent, Team
from tests.admin_case import AdminTestCase

NINES = "9" * 26
NO_NUMBERS = ("x", "NaN", "\0", NINES, "-1", "1e400", "1.5", "²")
ENCODED = (*(quote(value) for value in NO_NUMBERS), "%ED%A0%80", "")  # a lone surrogate, nothing
HARD = ("x", NINES, "1e400", "%ED%A0%80")
COMPARED = ("", "__in", "__gte")
OF_TIMES = ("__year", "__month", "__day", "__date")


def pages() -> Iterator[tuple[str, admin.ModelAdmin[Any]]]:
    """The name and the page of every model that is registered."""
    for model, page in admin.site._registry.items():
        yield f"{model._meta.app_label}_{model._meta.model_name}", page


def questions() -> Iterator[tuple[str, str]]:
    """Lists and what they are asked: everything they offer, and of each kind of field one that can be asked for."""
    kinds: set[object] = set()
    for name, page in pages():
        for value in (*HARD, "%00"):
            yield name, "&".join(f"{each}={value}" for each in ("q", "p", "o", "all", "before", "_facets", "_popup"))
        yield from ((name, f"{each}={NINES}") for each in ("_to_field", "nosuch", "nosuch__x", "id__in", "e=1&id__in"))
        for field in page.opts.fields:
            kind = (type(field), field.related_model if field.is_relation else None)
            if kind not in kinds:
                kinds.add(kind)
                suffixes = COMPARED + (OF_TIMES if isinstance(field, models.DateField) else ())
                yield from ((name, f"{field.name}{suffix}={value}") for suffix in suffixes for value in HARD)
        for offered in page.list_filter:
            if isinstance(offered, str):
                suffixes = ("", "__exact", "__id__exact", "__isnull")
                yield from ((name, f"{offered}{suffix}={value}") for suffix in suffixes for value in HARD)
            elif isinstance(offered, type) and issubclass(offered, admin.SimpleListFilter):
                yield from ((name, f"{offered.parameter_name}={value}") for value in ENCODED)


class UnusableValuesTest(AdminTestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        super().setUpTestData()
        cls.group = Group.objects.create(name="Readers")
        cls.team = Team.objects.create(name="Research")
        cls.agent = Agent.objects.create(name="app", team=cls.team)

    def setUp(self) -> None:
        super().setUp()
        self.client.raise_request_exception = False
        self.failed: list[str] = []

    def look(self, what: str, response: HttpResponse) -> None:
        if response.status_code >= 500:
            self.failed.append(what)

    def test_no_list_fails_whatever_it_is_asked(self) -> None:
        asked = list(questions())
        for name, question in asked:
            self.look(f"{name} {question}", self.client.get(f"{self.url(f'{name}_changelist')}?{question}"))
        assert not self.failed, self.failed
        assert len({name for name, _ in asked}) > 20

    def test_no_form_fails_whatever_its_address_says(self) -> None:
        for name, page in pages():
            for field in (*page.opts.fields, *page.opts.many_to_many):
                if field.is_relation:
                    for value in HARD:
                        query = f"?{field.name}={value}"
                        self.look(f"{name} {query}", self.client.get(self.url(f"{name}_add") + query))
        assert not self.failed, self.failed

    def test_no_form_fails_whatever_is_sent_for_a_related_row(self) -> None:
        changed = {User: self.ada, Group: self.group, Agent: self.agent, Team: self.team}
        for name, page in pages():
            row: models.Model | None = changed.get(page.model)
            addresses = [self.url(f"{name}_add"), *([self.url(f"{name}_change", row.pk)] if row else [])]
            for field in (*page.opts.fields, *page.opts.many_to_many):
                if not field.is_relation:
                    continue
                for value in ("x", NINES, "\0", "\ud7ff"):
                    for address in addresses:
                        response = self.client.post(address, {field.name: value, "name": "a"})
                        self.look(f"{address} {field.name}={value!r}", response)
        assert not self.failed, self.failed

    def test_a_value_that_is_no_row_is_an_error_of_its_field(self) -> None:
        for value in ("x", NINES):
            told = self.errors(self.post("budgets_agent_add", {"name": "b", "team": value}))
            assert "Select a valid choice" in told, value
            told = self.errors(self.post("auth_group_change", {"name": "Readers", "permissions": value}, self.group.pk))
            assert "is not a valid value" in told, value

    def test_a_list_that_cannot_be_narrowed_so_is_shown_with_a_message(self) -> None:
        for query in (f"?team={NINES}", "?id__in=x", "?nosuch=1"):
            response = self.client.get(self.url("budgets_agent_changelist") + query, follow=True)
            assert response.redirect_chain == [(self.url("budgets_agent_changelist") + "?e=1", 302)], query
            html = response.content.decode()
            assert "The list cannot be narrowed like that" in html
            assert "Research" in html

    def test_a_list_with_nothing_in_it_or_with_a_broken_form_is_shown(self) -> None:
        assert "0 agents" in self.page("budgets_agent_changelist", query="?q=nosuchagent")
        for total in ("x", "", NINES, "1001"):
            data = {"form-TOTAL_FORMS": total, "form-INITIAL_FORMS": "1", "_save": "Save"}
            assert self.post("budgets_agent_changelist", data).status_code == 200, total

    def test_a_row_is_not_found_by_what_is_no_number(self) -> None:
        for value in ("²", "x", NINES):
            address = reverse("admin:budgets_agent_change", args=(value,))
            assert self.client.post(address, {"name": "a"}).status_code == 302, value
