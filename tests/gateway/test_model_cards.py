"""The extended model object and the catalogue, from a snapshot in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from budgets.prices import PriceBook
from budgets.records import PriceRecord
from gateway.errors import ModelNotFoundError
from gateway.model_cards import SLICE, catalog, catalog_in_slices, describe
from gateway.snapshot import Builder, Candidate, Connections, Key, Snapshot, list_models, make_key
from providers.cards import CardBook
from providers.config import CardDoc, ConfigDocument, PolicyDoc, ProviderDoc, RouteDoc
from providers.routing import RouteTable
from tests.gateway.harness import KEY, key_record

CLOUD = ProviderDoc(1, "cloud", "openai", "https://api.example", "public")
LOCAL = ProviderDoc(2, "mine", "ollama", "http://127.0.0.1:11434", "loopback")
CLAUDE = ProviderDoc(3, "claude", "anthropic", "https://claude.example", "public")


def route(id_: int, pattern: str, provider: ProviderDoc, **more: Any) -> RouteDoc:
    return RouteDoc(id=id_, name=f"r{id_}", pattern=pattern, provider_id=provider.id, **more)


def snapshot(
    *routes: RouteDoc,
    cards: Sequence[CardDoc] = (),
    prices: Sequence[PriceRecord] = (),
    policies: Sequence[PolicyDoc] = (),
    discovered: dict[int, list[str]] | None = None,
) -> Snapshot:
    document = ConfigDocument(providers=(CLOUD, LOCAL, CLAUDE), routes=routes, policies=tuple(policies))
    book: Any = CardBook(cards)
    candidates: dict[int, Candidate] = {}
    for made in Builder(Connections()).candidates(document, {}, book):
        candidates = made or candidates
    models: tuple[tuple[str, str], ...] = ()
    for listed in list_models(document, discovered or {}):
        models = listed or models
    providers = {provider.id: provider for provider in document.providers}
    return Snapshot(
        version=1,
        version_header=b"1",
        settings=document.settings,
        table=RouteTable(document.routes, providers, document.policies, document.settings),
        candidates=candidates,
        keys={},
        pools={},
        pools_by_name={},
        cards=book,
        prices=PriceBook.build(prices),
        models=models,
        down=frozenset(),
    )


def key(*models: str) -> Key:
    return make_key(key_record(1, KEY, models=models))


def test_a_model_with_card_and_price() -> None:
    card = CardDoc("gpt-4o", 128_000, 16_384, 1.0, ("standard", "tools", "vision"), "GPT-4o", True)
    price = PriceRecord(7, "openai", "gpt-4o", input=2_500_000, output=10_000_000, cached_read=1_250_000)
    told = describe(snapshot(route(1, "gpt-4o", CLOUD), cards=[card], prices=[price]), "gpt-4o")
    can = {
        "streaming": True,
        "vision": True,
        "tools": True,
        "json_schema": False,
        "embeddings": False,
        "audio": False,
        "reasoning": False,
    }
    pricing = {
        "state": "known",
        "input_usd_per_mtok": "2.5",
        "output_usd_per_mtok": "10",
        "cached_read_usd_per_mtok": "1.25",
    }
    common = {"context_length": 128_000, "max_output_tokens": 16_384, "capabilities": can, "pricing": pricing}
    assert told == {
        "id": "gpt-4o",
        "object": "model",
        "created": 0,
        "owned_by": "cloud",
        "name": "GPT-4o",
        "tier": "standard",
        **common,
        "providers": [
            {
                "name": "cloud",
                "kind": "openai",
                "local": False,
                "route": "r1",
                "model": "gpt-4o",
                "endpoints": ["chat", "completions", "embeddings"],
                **common,
            }
        ],
    }


def test_what_nobody_said_is_null() -> None:
    told = describe(snapshot(route(1, "x", CLOUD)), "x")
    assert (told["name"], told["tier"], told["context_length"], told["max_output_tokens"]) == ("x", None, None, None)
    assert told["pricing"] == {"state": "unknown"}
    assert told["capabilities"] == {
        "streaming": True,
        **dict.fromkeys(("vision", "tools", "json_schema", "embeddings", "audio", "reasoning")),
    }


def test_each_provider_is_told_by_its_own_upstream_model_route_and_kind() -> None:
    world = snapshot(
        route(1, "best", LOCAL, upstream_model="llama3.1", priority=1, capabilities=("audio",), output_cap=100),
        route(2, "best", CLAUDE, upstream_model="claude-x", priority=2),
        route(3, "*", CLAUDE, upstream_model="claude-x", priority=3),
        cards=[CardDoc("llama3.1", 8_192, 4_096), CardDoc("claude-x", 200_000, capabilities=("tools", "thinking"))],
        prices=[PriceRecord(1, "claude", "*", input=3_000_000, request=500_000_000)],
    )
    told = describe(world, "best")
    first, second = told["providers"]
    assert (first["name"], first["model"], first["local"], first["route"]) == ("mine", "llama3.1", True, "r1")
    assert (first["context_length"], first["max_output_tokens"], first["pricing"]) == (8_192, 100, {"state": "free"})
    assert first["capabilities"]["audio"] is True, "the label of the route"
    assert (second["name"], second["model"], second["context_length"]) == ("claude", "claude-x", 200_000)
    assert second["endpoints"] == ["chat", "completions"]
    assert (second["capabilities"]["reasoning"], second["capabilities"]["embeddings"]) == (True, False)
    assert second["pricing"] == {
        "state": "known",
        "input_usd_per_mtok": "3",
        "output_usd_per_mtok": "0",
        "request_usd": "0.0005",
    }
    assert (told["owned_by"], told["context_length"]) == ("mine", 8_192), "what is tried first"


def test_a_model_that_makes_embeddings_does_not_stream() -> None:
    told = describe(snapshot(route(1, "e", CLOUD), cards=[CardDoc("e", capabilities=("embeddings",))]), "e")
    assert (told["capabilities"]["embeddings"], told["capabilities"]["streaming"]) == (True, False)


def test_fallback_models_are_no_providers_of_a_model_unless_there_is_no_other() -> None:
    policy = PolicyDoc(1, "p", "a*", "priority", fallbacks=("b",))
    world = snapshot(route(1, "a", CLOUD), route(2, "b", LOCAL), policies=[policy])
    assert [each["name"] for each in describe(world, "a")["providers"]] == ["cloud"]
    assert [each["model"] for each in describe(world, "a2")["providers"]] == ["b"]


def test_a_model_nobody_answers_is_not_found() -> None:
    with pytest.raises(ModelNotFoundError):
        describe(snapshot(route(1, "a", CLOUD)), "b")


def test_the_price_is_that_of_the_moment() -> None:
    prices = [PriceRecord(1, "cloud", "m", input=1), PriceRecord(2, "cloud", "m", input=2_000_000, valid_from=1e9)]
    world = snapshot(route(1, "m", CLOUD), prices=prices)
    assert describe(world, "m", at=1.0)["pricing"]["input_usd_per_mtok"] == "0.000001"
    assert describe(world, "m")["pricing"]["input_usd_per_mtok"] == "2"


def test_the_catalogue_has_the_listed_models_the_key_may_use() -> None:
    world = snapshot(route(1, "b", CLOUD), route(2, "llama*", LOCAL), discovered={2: ["llama-1", "other"]})
    assert [each["id"] for each in catalog(world, key())] == ["b", "llama-1"]
    assert [each["id"] for each in catalog(world, key("ll*"))] == ["llama-1"]


def test_the_catalogue_has_known_names_behind_patterns_whose_provider_lists_nothing() -> None:
    names = ("claude-1", "gpt-4o", "llama-2", "unserved")
    world = snapshot(
        route(1, "gpt-*", CLOUD), route(2, "llama*", LOCAL), route(3, "*", CLAUDE), discovered={2: ["llama-1"]}
    )
    found = catalog(world, key(), names)
    assert [each["id"] for each in found] == ["gpt-4o", "llama-1"]
    assert found[0]["owned_by"] == "cloud"


def test_a_long_catalogue_is_made_in_slices() -> None:
    names = [f"m{number:04}" for number in range(SLICE * 3)]
    world = snapshot(route(1, "m*", CLOUD), discovered={1: names})
    made = list(catalog_in_slices(world, key()))
    assert made[:-1] == [None] * 3
    assert made[-1] is not None
    assert [each["id"] for each in made[-1]] == names
