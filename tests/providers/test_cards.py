"""Model cards: which one counts, what labels add up to, what the lists say, and how a list becomes rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.test import TestCase
from genai_prices import types as package

from audit.models import OutboxEntry
from providers import card_import, card_labels, card_list, card_package, feed, sequences, services, validation
from providers.card_import import CardsMovedError
from providers.card_list import CATALOGUE, Facts, Listed, merged
from providers.cards import CardBook
from providers.config import CardDoc
from providers.models import ModelCard


def imported(pattern: str, **more: Any) -> CardDoc:
    return CardDoc(pattern, imported=True, **more)


# Which card counts


def test_the_most_specific_pattern_wins() -> None:
    book = CardBook([CardDoc("*", 1), CardDoc("gpt-*", 2), CardDoc("gpt-4o", 3), CardDoc("gpt-4*", 4)])
    assert [book.find(name).context_tokens for name in ("x", "gpt-3", "gpt-4", "gpt-4o")] == [1, 2, 4, 3]
    assert CardBook([]).find("x") == CardDoc("")


def test_an_own_card_wins_over_a_more_specific_imported_one_which_fills_its_blanks() -> None:
    far = imported("gpt-4o", context_tokens=128, max_output_tokens=16, capabilities=("tools",), display_name="GPT-4o")
    own = CardDoc("gpt-*", max_output_tokens=5, min_bytes_per_token=3.0)
    found = CardBook([far, own]).find("gpt-4o")
    assert found == CardDoc("gpt-*", 128, 5, 3.0, ("tools",), "GPT-4o")
    assert CardBook([far, own]).find("gpt-x") == own
    assert CardBook([far]).find("gpt-4o") == far


def test_of_two_cards_with_one_pattern_the_own_one_wins_in_any_order() -> None:
    cards = [imported("m", context_tokens=1), CardDoc("m", 2)]
    assert CardBook(cards).find("m").context_tokens == CardBook(cards[::-1]).find("m").context_tokens == 2


def test_names_are_those_of_cards_for_one_model() -> None:
    assert CardBook([CardDoc("b"), imported("a"), imported("b"), CardDoc("c*")]).names == ("a", "b")


def test_what_is_remembered_is_bounded() -> None:
    book = CardBook([CardDoc("*", 1)])
    for number in range(5000):
        assert book.find(f"m{number}").context_tokens == 1
    assert len(book._known) == 4096


# Labels


def test_labels_say_yes_no_or_nothing() -> None:
    nothing = card_labels.capabilities(("premium", "no-system", "mine"))
    assert nothing == {
        "streaming": True,
        **dict.fromkeys(("vision", "tools", "json_schema", "embeddings", "audio", "reasoning")),
    }
    some = card_labels.capabilities(("tools", "vision"))
    assert (some["tools"], some["vision"], some["audio"], some["streaming"]) == (True, True, False, True)
    assert card_labels.capabilities(("reasoning",))["reasoning"] is True
    assert card_labels.capabilities(("thinking-budget",))["reasoning"] is True
    assert card_labels.capabilities(("no-streaming", "chat"))["streaming"] is False


def test_other_words_mean_the_known_ones() -> None:
    found = card_labels.capabilities(("function_calling", "images", "embedding", "json-schema", "speech"))
    assert [name for name, can in found.items() if can] == ["vision", "tools", "json_schema", "embeddings", "audio"]
    assert card_labels.canonical("mine") == "mine"


def test_a_model_that_only_makes_embeddings() -> None:
    assert card_labels.embeds_only(("embedding", "economy"))
    assert not card_labels.embeds_only(("embeddings", "chat"))
    assert not card_labels.embeds_only(("chat",))
    assert card_labels.capabilities(("embeddings",))["streaming"] is False


def test_the_highest_tier_counts() -> None:
    assert card_labels.tier(("economy", "premium", "tools")) == "premium"
    assert card_labels.tier(("tools",)) is None


@pytest.mark.parametrize("label", ["num_ctx", "num_ctx:", "num_ctx:x", "num_ctx:-1", "num_ctx:1:2", "num_ctxs:1"])
def test_a_context_size_that_would_be_ignored_is_a_problem(label: str) -> None:
    assert "num_ctx:8192" in card_labels.problem(label)


def test_no_other_label_is_a_problem() -> None:
    assert [card_labels.problem(label) for label in ("num_ctx:8192", "mine", *card_labels.KNOWN)] == [""] * (
        len(card_labels.KNOWN) + 2
    )


def test_every_label_acted_on_is_in_the_vocabulary() -> None:
    from gateway.api import cost_advice
    from gateway.snapshot import RESPONSES_ONLY
    from providers.adapters.anthropic_request import BUDGET_LABEL

    assert {*cost_advice.TIERS, cost_advice.NO_SYSTEM, RESPONSES_ONLY, BUDGET_LABEL} <= set(card_labels.KNOWN)


# Our list


def test_our_list_is_valid_and_uses_known_labels_only() -> None:
    rows = card_list.read_file()
    assert len({row.pattern for row in rows}) == len(rows) > 100
    for row in rows:
        validation.pattern(row.pattern)
        labels = row.facts.capabilities.split(",")
        assert set(labels) <= set(card_labels.KNOWN), row
        assert len(set(labels) & set(card_labels.TIERS)) == 1, row
        assert card_labels.embeds_only(labels) == (row.facts.max_output_tokens is None and "chat" not in labels), row
        assert row.facts.context_tokens is not None
        assert (row.facts.max_output_tokens or 0) < row.facts.context_tokens


def test_patterns_of_our_list_do_not_reach_other_models() -> None:
    book = CardBook([imported(row.pattern, display_name=row.facts.display_name) for row in card_list.read_file()])
    for name, title in (
        ("gpt-4o-2024-08-06", "GPT-4o"),
        ("gpt-4o-mini-2024-07-18", "GPT-4o mini"),
        ("gpt-4o-mini-tts", ""),
        ("gpt-4o-realtime-preview", ""),
        ("claude-opus-4-20250514", "Claude Opus 4"),
        ("claude-opus-4-1-20250805", "Claude Opus 4.1"),
        ("gemini-2.5-pro-preview-tts", ""),
        ("llama3.2:3b", "Llama 3.2"),
        ("llama3.2-vision:11b", "Llama 3.2 Vision"),
        ("mistral-embed", ""),
    ):
        assert book.find(name).display_name == title, name


def test_a_pattern_that_stands_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cards.toml"
    row = '{ name = "a", title = "A", also = ["b"], context = 1, output = 1, labels = "chat" }'
    file.write_text(f"cards = [{row}, {row}]")
    with pytest.raises(ValueError, match="a twice"):
        card_list.read_file(file)


def test_our_list_counts_for_what_it_covers_and_the_other_for_the_rest() -> None:
    ours = [
        Listed("a", Facts("A", None, 5, "chat"), CATALOGUE),
        Listed("a-20*", Facts("A", 10, 5, "chat"), CATALOGUE),
    ]
    others = [Listed(pattern, Facts("theirs", 99), "p") for pattern in ("a", "a-2025", "a-20-*", "a-*", "b")]
    found = merged(ours, others)
    assert sorted(found) == ["a", "a-*", "a-20*", "b"]
    assert found["a"] == Listed("a", Facts("A", 99, 5, "chat"), CATALOGUE)
    assert found["b"].facts == Facts("theirs", 99)


# The package


def package_model(id_: str, *clauses: Any, window: int | None = 1000, title: str | None = None) -> package.ModelInfo:
    match = package.ClauseOr(or_=list(clauses)) if clauses else package.ClauseEquals(equals=id_)
    return package.ModelInfo(id=id_, match=match, name=title, context_window=window, prices=package.ModelPrice())


def listed(*models: package.ModelInfo) -> dict[str, Facts]:
    provider = package.Provider(id="p", name="P", api_pattern="", models=list(models))
    return {each.pattern: each.facts for each in card_package.read(["p"], [provider])}


def test_names_and_beginnings_become_patterns() -> None:
    clauses = (
        package.ClauseEquals(equals="a-1"),
        package.ClauseStartsWith(starts_with="b-"),
        package.ClauseContains(contains="c"),
        package.ClauseRegex(regex="^d"),
        package.ClauseEquals(equals="two words "),
        package.ClauseEquals(equals="x*"),
    )
    assert sorted(listed(package_model("a", package.ClauseEquals(equals="a"), *clauses))) == ["a", "a-1", "b-*"]


def test_a_name_belongs_to_the_first_model_that_claims_it() -> None:
    first = package_model("a-x", package.ClauseStartsWith(starts_with="a-"), window=5, title="First")
    found = listed(
        first, package_model("a-b", window=7), package_model("c", package.ClauseStartsWith(starts_with="a-"))
    )
    assert found == {"a-x": Facts("First", 5), "a-*": Facts("First", 5), "a-b": Facts("First", 5)}


def test_a_name_without_a_window_has_a_card_only_where_a_wider_pattern_claims_one() -> None:
    wide = package_model("a", package.ClauseStartsWith(starts_with="a"), window=5)
    found = listed(package_model("a-tts", window=None), package_model("z", window=None), wide)
    assert found["a-tts"] == Facts()
    assert "z" not in found


def test_what_makes_embeddings_is_known_by_its_name() -> None:
    assert listed(package_model("gemini-embedding-2"))["gemini-embedding-2"].capabilities == "embeddings"


def test_where_two_providers_know_a_name_the_smaller_window_counts() -> None:
    providers = [
        package.Provider(id=name, name=name, api_pattern="", models=[package_model("m", window=window, title=name)])
        for name, window in (("p", 7), ("q", 5), ("r", None))
    ]
    (found,) = card_package.read(["p", "q", "r"], providers)
    assert found.facts == Facts("p", 5)


def test_the_real_package() -> None:
    found = {each.pattern: each for each in card_package.read(card_package.PROVIDERS.values())}
    assert len(found) > 800
    assert found["gpt-4o"].facts.context_tokens == 128_000
    assert re.fullmatch(r"genai-prices [\d.]+", found["gpt-4o"].source)
    both = merged(card_list.read_file(), found.values())
    assert both["gpt-4o"].source == CATALOGUE
    for each in both.values():
        row = ModelCard(pattern=each.pattern, source=each.source, **each.facts._asdict())
        row.clean_fields()


# Rows


def as_wanted(**facts: Facts) -> dict[str, Listed]:
    return {pattern: Listed(pattern, each, "list 1") for pattern, each in facts.items()}


@pytest.mark.database
class ImportTests(TestCase):
    databases = "__all__"

    def bring_in(self, wanted: dict[str, Listed]) -> int:
        return card_import.apply(wanted, card_import.plan(wanted), actor="test")

    def test_new_changed_and_removed(self) -> None:
        before = sequences.current(sequences.CARDS)
        assert self.bring_in(as_wanted(a=Facts("A", 1, 2, "chat"), b=Facts("B", 3), c=Facts())) == 3
        assert sequences.current(sequences.CARDS) > before
        row = ModelCard.every.get(pattern="a")
        assert (row.source, row.display_name, row.context_tokens, row.capabilities) == ("list 1", "A", 1, "chat")
        wanted = as_wanted(a=Facts("A", 1, 2, "chat"), b=Facts("B", 4))
        planned = card_import.plan(wanted)
        assert [(each.pattern, each.before, each.after) for each in planned.changes] == [
            ("b", Facts("B", 3), Facts("B", 4)),
            ("c", Facts(), None),
        ]
        assert planned.unchanged == 1
        assert card_import.apply(wanted, planned, actor="test") == 2
        assert list(ModelCard.every.order_by("pattern").values_list("pattern", "context_tokens")) == [
            ("a", 1),
            ("b", 4),
        ]
        assert card_import.plan(wanted).changes == []
        entry = OutboxEntry.objects.filter(action="card.imported").order_by("-id")[0]
        assert entry.data == {"created": 0, "changed": 1, "removed": 1}

    def test_own_cards_are_neither_read_nor_written(self) -> None:
        services.save_card(ModelCard(pattern="a", context_tokens=7, note="mine"), actor="ada")
        wanted = as_wanted(a=Facts("A", 1, 2, "chat"))
        assert card_import.plan(wanted).own == ["a"]
        self.bring_in(wanted)
        assert ModelCard.objects.get().context_tokens == 7
        assert ModelCard.every.count() == 2
        found = CardBook(feed.cards()[1]).find("a")
        assert (found.context_tokens, found.max_output_tokens, found.capabilities) == (7, 2, ("chat",))
        self.bring_in({})
        assert [row.note for row in ModelCard.every.all()] == ["mine"]

    def test_there_is_one_own_card_for_a_pattern(self) -> None:
        self.bring_in(as_wanted(a=Facts("A")))
        services.save_card(ModelCard(pattern="a"), actor="ada")
        with pytest.raises(ValidationError, match="already exists"):
            services.save_card(ModelCard(pattern="a"), actor="ada")

    def test_nothing_is_written_when_the_rows_moved_in_the_meantime(self) -> None:
        wanted = as_wanted(a=Facts("A"))
        planned = card_import.plan(wanted)
        self.bring_in(wanted)
        with pytest.raises(CardsMovedError):
            card_import.apply(wanted, planned, actor="test")
        assert ModelCard.every.count() == 1

    def test_workers_are_told_of_both_kinds_the_own_first(self) -> None:
        self.bring_in(as_wanted(a=Facts("A", 1)))
        services.save_card(ModelCard(pattern="z", display_name="Z"), actor="ada")
        told = feed.cards()[1]
        assert [(card.pattern, card.display_name, card.imported) for card in told] == [
            ("z", "Z", False),
            ("a", "A", True),
        ]
