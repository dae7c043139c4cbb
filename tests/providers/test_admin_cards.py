"""The pages of model cards: boxes for known labels, words for others, and imported cards that are only shown."""

from __future__ import annotations

import re
from typing import Any

import pytest

from providers import services
from providers.card_labels import KNOWN
from providers.models import ModelCard
from tests.admin_case import AdminTestCase

pytestmark = pytest.mark.database

LIST, ADD = "providers_modelcard_changelist", "providers_modelcard_add"
CHANGE, DELETE = "providers_modelcard_change", "providers_modelcard_delete"


def form(pattern: str = "llama*", **more: Any) -> dict[str, Any]:
    """The fields a browser sends."""
    return {"pattern": pattern, "min_bytes_per_token": "1.0", **more}


class CardPagesTest(AdminTestCase):
    def imported(self, pattern: str = "gpt-4o", **more: Any) -> ModelCard:
        values = {"context_tokens": 128_000, "capabilities": "chat,tools,mine", "source": "catalogue", **more}
        return ModelCard.every.create(pattern=pattern, **values)

    def patterns(self, query: str = "") -> list[str]:
        """The patterns the list shows."""
        return re.findall(r"field-pattern[^>]*><a [^>]*>([^<]*)</a>", self.page(LIST, query=query))

    def test_every_known_label_is_offered_with_what_it_means(self) -> None:
        html = self.page(ADD)
        for label, meaning in KNOWN.items():
            assert f'value="{label}"' in html
            assert f"{label}: {meaning}".replace("'", "&#x27;") in html

    def test_ticked_and_further_labels_make_one_column(self) -> None:
        data = form(labels=["tools", "vision"], further="num_ctx:8192, mine, function_calling", display_name="Llama")
        assert self.post(ADD, data).status_code == 302
        row = ModelCard.objects.get()
        assert (row.capabilities, row.display_name) == ("tools,vision,num_ctx:8192,mine", "Llama")
        assert row.source == ""
        html = self.page(CHANGE, row.pk)
        assert sorted(re.findall(r'name="labels" value="([^"]*)"[^>]* checked', html)) == ["tools", "vision"]
        assert 'name="further" value="num_ctx:8192, mine"' in html
        self.post(CHANGE, form(labels=["audio"]), row.pk)
        assert ModelCard.objects.get().capabilities == "audio"

    def test_what_is_no_label_is_refused(self) -> None:
        for data, words in (
            (form(labels=["flying"]), "valid choice"),
            (form(further="No"), "is not a label"),
            (form(further="num_ctx:many"), "num_ctx:8192"),
            (
                form(labels=["audio"], further=",".join(f"a-rather-long-label-{number:02}" for number in range(11))),
                "256 characters",
            ),
            (form(context_tokens="0"), "greater than or equal"),
            (form(min_bytes_per_token="0"), "greater than or equal"),
            (form(pattern="a**"), "single *"),
        ):
            with self.subTest(words):
                assert words in self.errors(self.post(ADD, data))
        assert not ModelCard.objects.exists()

    def test_a_pattern_has_one_own_card_beside_an_imported_one(self) -> None:
        self.imported("llama*")
        assert self.post(ADD, form()).status_code == 302
        assert "already exists" in self.errors(self.post(ADD, form()))
        row = ModelCard.objects.get()
        assert self.post(CHANGE, form(note="n"), row.pk).status_code == 302
        assert ModelCard.objects.get().note == "n"

    def test_an_imported_card_is_shown_and_can_be_copied_but_neither_changed_nor_deleted(self) -> None:
        row = self.imported()
        html = self.page(CHANGE, row.pk)
        assert "catalogue" in html
        assert 'name="pattern"' not in html
        assert f"?from={row.pk}" in html
        assert self.post(CHANGE, form("other"), row.pk).status_code == 403
        assert self.post(DELETE, {"post": "yes"}, row.pk).status_code == 403
        self.act(LIST, "delete_selected", [row], post="yes")
        assert ModelCard.every.get().pattern == "gpt-4o"
        html = self.page(ADD, query=f"?from={row.pk}")
        assert 'value="gpt-4o"' in html
        assert 'value="128000"' in html
        assert sorted(re.findall(r'name="labels" value="([^"]*)"[^>]* checked', html)) == ["chat", "tools"]
        assert 'name="further" value="mine"' in html

    def test_an_own_card_can_be_deleted(self) -> None:
        row = services.save_card(ModelCard(pattern="a"), actor="test")
        self.imported("a")
        assert self.post(DELETE, {"post": "yes"}, row.pk).status_code == 302
        assert [card.source for card in ModelCard.every.all()] == ["catalogue"]

    def test_the_list_tells_whose_card_it_is_and_filters(self) -> None:
        services.save_card(ModelCard(pattern="a", capabilities="no-system, vision"), actor="test")
        services.save_card(ModelCard(pattern="b", managed_by="import", max_output_tokens=1), actor="test")
        self.imported("a")
        self.imported("c", capabilities="")
        html = self.page(LIST)
        for words in ("your own", "configuration file", "catalogue, yours above", ">catalogue<"):
            assert words in html, words
        assert self.patterns() == ["a", "a", "b", "c"]
        for query, found in (
            ("origin=own", ["a", "b"]),
            ("origin=imported", ["a", "c"]),
            ("origin=beneath", ["a"]),
            ("label=vision", ["a"]),
            ("label=tools", ["a"]),
            ("label=nonsense", ["a", "a", "b", "c"]),
            ("label=economy", []),
            ("blank=context", ["a", "b"]),
            ("blank=labels", ["b", "c"]),
            ("blank=output", ["a", "a", "c"]),
            ("q=c", ["c"]),
        ):
            with self.subTest(query):
                assert self.patterns(f"?{query}") == found

    def test_who_may_only_look_sees_both_kinds(self) -> None:
        own = services.save_card(ModelCard(pattern="a", capabilities="vision"), actor="test")
        row = self.imported()
        self.allow(self.bob, "view_modelcard")
        for pk in (own.pk, row.pk):
            html = self.page(CHANGE, pk)
            assert 'name="pattern"' not in html
            assert "Make a card of my own" not in html
        assert self.post(ADD, form()).status_code == 403
