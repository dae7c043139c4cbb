"""Kept answers told to similar questions, through a real worker whose questions a real upstream embeds.

The answer of the upstream says which call it was of (its `id`), so an answer that was kept can be told from a new one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from budgets.records import Basis
from providers.config import SettingsDoc
from tests.gateway.harness import (
    OTHER_KEY,
    held,
    route,
    usage_rows,
    wait_for,
)
from tests.gateway.similar_world import MATE_KEY, World, routes, rows_of, running, say, serving, write_model
from tests.gateway.test_caching import result, words
from tests.upstream import text_of

CARD = "4111 1111 1111 1111"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world that many tests use one after the other."""
    with running(tmp_path_factory.mktemp("similar")) as made:
        yield made


@pytest.fixture
def world(shared: World) -> World:
    """The same, with nothing kept and nothing asked."""
    return shared.fresh()


@pytest.mark.usefixtures("binding")
def test_a_similar_question_gets_the_kept_answer(tmp_path: Path, world: World) -> None:
    with serving(tmp_path, world.up, world.url) as server:
        first, second = say(server, "How tall is it?"), say(server, "What is its height?")
        assert (result(first), result(second)) == ("miss", "similar")
        assert second.content == first.content
        assert len(world.up.inference) == 1
        assert second.headers["x-hoosh-similarity"] == "0.940"
        assert "x-hoosh-similarity" not in first.headers
        assert second.headers["age"] in ("0", "1")
        assert "x-hoosh-route" not in second.headers, "no route was called"
        assert held(server) == 0
        lines = [json.loads(line) for line in _log(tmp_path)]
    assert [line["cache"] for line in lines if line["endpoint"] == "chat"] == ["miss", "similar"]
    embedded, (called, told) = rows_of(tmp_path)
    assert (called.tokens, told.tokens, told.cost_pico, told.attempts, told.basis) == (9, 0, 0, 0, Basis.NONE)
    assert (told.route_id, told.provider_id, told.upstream_model) == (1, 1, "ok")
    assert [(row.tokens, row.basis, row.status, row.attempts) for row in embedded] == [(4, Basis.REPORTED, 200, 1)] * 2
    assert {(row.key_id, row.agent_id, row.team_id, row.pool_id) for row in embedded} == {(1, 10, 100, 1)}
    assert [row.client_request_id for row in embedded] == [called.rid.hex(), told.rid.hex()]
    assert {row.rid for row in embedded}.isdisjoint({called.rid, told.rid})
    assert all(row.held >= row.tokens for row in embedded), "held before it was called"


def _log(directory: Path) -> list[str]:
    path = directory / "access.jsonl"
    return wait_for(lambda: [lines for lines in [path.read_text().splitlines()] if len(lines) >= 4])[0]  # type: ignore[no-any-return]


def test_another_question_is_called_and_kept_for_itself(world: World) -> None:
    first, other = say(world.server, "How tall is it?"), say(world.server, "Who built it?")
    assert (result(first), result(other)) == ("miss", "miss")
    assert say(world.server, "What is its height?").json()["id"] == first.json()["id"]
    again = say(world.server, "Who built it?")
    assert (result(again), again.json()["id"]) == ("hit", other.json()["id"])
    assert len(world.vectors.asked) == 3, "an exact hit needs no vector"
    counts = world.counts()
    assert (counts["vectors"], counts["embedding_failures"]) == (2, 0)


def test_the_closest_of_several_counts(world: World) -> None:
    world.vectors.degrees |= {"a": 0, "b": 30, "c": 16}
    first, second = say(world.server, "a"), say(world.server, "b")
    assert (result(second), say(world.server, "c").json()["id"]) == ("miss", second.json()["id"])
    assert first.json()["id"] != second.json()["id"]


@pytest.mark.parametrize(("cosine", "found"), [(0.9001, "similar"), (0.8999, "miss")])
def test_the_threshold_is_where_similar_begins(world: World, cosine: float, found: str) -> None:
    world.vectors.degrees["What is its height?"] = math.degrees(math.acos(cosine))
    say(world.server, "How tall is it?")
    assert result(say(world.server, "What is its height?")) == found


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [TOOL]},
        {"n": 2},
        {"response_format": {"type": "json_object"}},
        {"text": [{"type": "text", "text": "What is its height?"}, IMAGE]},
        {"logprobs": True},
        {"store": True},
    ],
    ids=["tools", "n", "schema", "image", "logprobs", "store"],
)
def test_what_is_no_plain_question_is_not_even_embedded(world: World, more: dict[str, Any]) -> None:
    say(world.server, "How tall is it?")
    changed = {"text": "What is its height?", **more}
    assert result(say(world.server, changed.pop("text"), **changed)) in ("miss", "bypass")
    assert len(world.vectors.asked) == 1
    assert len(world.up.inference) == 2


@pytest.mark.parametrize(
    "more",
    [
        {"system": "Be brief."},
        {"temperature": 0.5},
        {"max_tokens": 6},
        {"seed": 1},
        {"model": "m1"},
        {"key": OTHER_KEY},
        {"text": "What is its height in 2 years?"},
    ],
    ids=["system", "temperature", "limit", "seed", "model", "team", "numbers"],
)
def test_everything_but_the_words_must_be_the_same(world: World, more: dict[str, Any]) -> None:
    world.vectors.degrees["What is its height in 2 years?"] = 1
    say(world.server, "How tall is it?")
    changed = {"text": "What is its height?", **more}
    assert result(say(world.server, changed.pop("text"), **changed)) == "miss"
    assert len(world.up.inference) == 2
    assert result(say(world.server, "What is its height?")) == "similar", "it was not the words"


def test_the_keys_of_one_team_share_similar_answers(world: World) -> None:
    say(world.server, "How tall is it?")
    mate = say(world.server, "What is its height?", key=MATE_KEY)
    assert result(mate) == "similar"


@pytest.mark.parametrize("first", [False, True], ids=["whole-first", "stream-first"])
def test_similar_answers_are_streamed_as_well(world: World, first: bool) -> None:
    kept = say(world.server, "How tall is it?", stream=first)
    told = say(world.server, "What is its height?", stream=not first)
    assert (result(kept), result(told)) == ("miss", "similar")
    assert words(kept) == words(told) == text_of(5)
    assert told.headers["x-hoosh-similarity"] == "0.940"
    assert len(world.up.inference) == 1


def test_metrics_tell_similar_hits_apart(world: World) -> None:
    def number() -> float:
        world.server.call(world.server.runtime.metrics.flush)
        return REGISTRY.get_sample_value("hoosh_cache_total", {"result": "similar"}) or 0.0

    before = number()
    say(world.server, "How tall is it?")
    say(world.server, "What is its height?")
    wait_for(lambda: number() == before + 1)


# --- what the caller wants --------------------------------------------------------------------------------------------


def test_the_callers_wishes_count_as_for_equal_requests(world: World) -> None:
    first = say(world.server, "How tall is it?")
    assert result(say(world.server, "What is its height?", control="no-store")) == "bypass"
    assert len(world.vectors.asked) == 1, "what is neither looked for nor kept needs no vector"
    only = say(world.server, "What is its height?", control="only-if-cached")
    assert (result(only), only.json()["id"]) == ("similar", first.json()["id"])
    none = say(world.server, "Who built it?", control="only-if-cached")
    assert (none.status_code, none.json()["error"]["code"]) == (504, "not_cached")
    assert result(say(world.server, "What is its height?", control="max-age=60")) == "similar"
    time.sleep(0.01)
    assert result(say(world.server, "What is its height?", control="max-age=0")) == "miss"


def test_no_cache_keeps_a_new_answer_for_similar_questions_too(world: World) -> None:
    say(world.server, "How tall is it?")
    new = say(world.server, "How tall is it?", control="no-cache")
    assert (result(new), len(world.vectors.asked)) == ("bypass", 1)
    assert say(world.server, "What is its height?").json()["id"] == new.json()["id"]
    newest = say(world.server, "What is its height?", control="no-cache")
    world.vectors.degrees["And its height?"] = 21
    assert say(world.server, "And its height?").json()["id"] == newest.json()["id"]


# --- vectors go with answers ------------------------------------------------------------------------------------------


def test_an_answer_whose_time_is_over_is_told_to_nobody(tmp_path: Path, world: World) -> None:
    with serving(tmp_path, world.up, world.url, routes=routes(cache_s=1)) as server:
        say(server, "How tall is it?")
        assert result(say(server, "What is its height?")) == "similar"
        time.sleep(1.05)
        assert result(say(server, "What is its height?")) == "miss"
        assert server.runtime.status()["cache"]["vectors"] == 1
        wait_for(lambda: not server.runtime.status()["cache"]["vectors"], 4)  # swept, nobody asks


def test_a_purge_and_a_cache_of_no_size_forget_the_vectors(world: World) -> None:
    say(world.server, "How tall is it?")
    assert world.counts()["vectors"] == 1
    assert world.counts()["vector_bytes"] > 0
    world.server.call(world.server.runtime.cache.purge)
    assert (world.counts()["vectors"], world.counts()["vector_bytes"]) == (0, 0)
    assert result(say(world.server, "What is its height?")) == "miss"
    cache = world.server.runtime.cache
    world.server.call(lambda: cache.resize(0, similar=True))
    assert world.counts()["vectors"] == 0
    world.server.call(lambda: cache.resize(64 << 20, similar=True))


def test_a_route_without_a_threshold_neither_looks_nor_embeds(tmp_path: Path, world: World) -> None:
    with serving(tmp_path, world.up, world.url, routes=routes(semantic_threshold=0.0)) as server:
        assert [result(say(server, text)) for text in ("How tall is it?", "What is its height?")] == ["miss", "miss"]
    with serving(tmp_path / "other", world.up, world.url, routes=routes(cache_s=0)) as server:
        assert result(say(server, "How tall is it?")) == ""
    assert not world.vectors.asked


def test_the_answer_of_a_route_without_a_threshold_is_for_equal_requests_only(tmp_path: Path, world: World) -> None:
    both = [route(1, "ok", cache_s=60, semantic_threshold=0.9, priority=1), route(3, "ok", cache_s=60, priority=2)]
    with serving(tmp_path, world.up, world.url, routes=[*both, route(2, "embed", 2)]) as server:
        world.up.script("boom-503")
        first = say(server, "How tall is it?")
        assert (first.headers["x-hoosh-route"], result(say(server, "How tall is it?"))) == ("r3", "hit")
        assert result(say(server, "What is its height?")) == "miss"


def test_vectors_of_two_models_are_never_compared(tmp_path: Path, world: World) -> None:
    with serving(tmp_path, world.up, world.url) as server:
        say(server, "How tall is it?")
        other = [route(1, "ok", cache_s=60, semantic_threshold=0.9), route(2, "embed", 2, upstream_model="other")]
        document = server.document
        server.reconfigure(msgspec.structs.replace(document, routes=tuple(other)))
        assert result(say(server, "What is its height?")) == "miss"
        server.reconfigure(document)
        assert result(say(server, "What is its height?")) == "hit"
        assert server.runtime.status()["cache"]["vectors"] == 2


# --- the model on this host -------------------------------------------------------------------------------------------


def test_the_model_on_this_host_embeds_for_nothing(tmp_path: Path, world: World) -> None:
    folder = write_model(tmp_path / "model", {"tall": [1, 0], "height": [0.98, 0.2], "built": [0, 1]})
    with serving(tmp_path, world.up, world.url, settings=SettingsDoc(), embedder=folder) as server:
        assert result(say(server, "How tall is it?")) == "miss"
        assert result(say(server, "What is its height?")) == "similar"
        assert result(say(server, "Who built it?")) == "miss"
        assert result(say(server, "Nothing known")) == "miss"
        assert server.runtime.status()["cache"]["embedding_failures"] == 0
    assert not world.vectors.asked
    assert len(usage_rows(tmp_path)) == 4, "no row of an embedding"


def test_a_model_that_cannot_be_read_stops_nobody(tmp_path: Path, world: World) -> None:
    with serving(tmp_path, world.up, world.url, settings=SettingsDoc(), embedder=tmp_path / "none") as server:
        assert result(say(server, "How tall is it?")) == "miss"
        assert server.runtime.status()["cache"]["embedding_failures"] == 1


def test_where_nothing_is_configured_to_embed_nothing_has_failed(tmp_path: Path, world: World) -> None:
    with serving(tmp_path, world.up, world.url, settings=SettingsDoc()) as server:
        assert result(say(server, "How tall is it?")) == "miss"
        assert server.runtime.status()["cache"]["embedding_failures"] == 0
