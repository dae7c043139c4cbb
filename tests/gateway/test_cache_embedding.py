"""The embedding of questions as a call of its own: what it costs and whom, how it ends, and what happens without it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from budgets.records import Basis, KeyRecord, PoolRecord, PriceRecord
from providers.config import PrivacyDoc, SettingsDoc
from tests.gateway.harness import (
    KEY,
    OTHER_KEY,
    GatewayServer,
    canned,
    held,
    key_record,
    provider,
    route,
    wait_for,
)
from tests.gateway.similar_world import SETTINGS, World, routes, rows_of, running, say, serving
from tests.gateway.test_caching import answer, result, words

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


# --- when the vector cannot be had ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"{}"),
        (200, b"{}"),
        (200, b"nonsense"),
        (200, json.dumps({"object": "list", "data": [{"index": 0, "embedding": [0.0, 0.0]}]}).encode()),
        (200, json.dumps({"object": "list", "data": [{"index": 0, "embedding": []}]}).encode()),
    ],
    ids=["500", "empty", "nonsense", "no-direction", "no-numbers"],
)
def test_without_a_vector_a_request_is_an_ordinary_one(world: World, status: int, body: bytes) -> None:
    failures = world.counts()["embedding_failures"]
    world.vectors.status, world.vectors.body = status, body
    first = say(world.server, "How tall is it?")
    assert (first.status_code, result(first)) == (200, "miss")
    assert world.counts()["embedding_failures"] == failures + 1
    assert world.counts()["vectors"] == 0
    asked = len(world.vectors.asked)
    assert result(say(world.server, "What is its height?")) == "miss"
    assert len(world.vectors.asked) == asked, "what has failed just now is not asked at once"
    assert result(say(world.server, "How tall is it?")) == "hit"
    world.vectors.status, world.vectors.body = 200, None
    world.server.runtime.embedder._paused_until = 0.0
    assert result(say(world.server, "Who built it?")) == "miss"
    assert world.counts()["vectors"] == 1


def test_a_provider_that_cannot_be_reached_costs_nothing_but_the_vector(tmp_path: Path, world: World) -> None:
    with serving(tmp_path, world.up, "http://127.0.0.1:9") as server:
        assert result(say(server, "How tall is it?")) == "miss"
        assert server.runtime.status()["cache"]["embedding_failures"] == 1
    embedded, (called,) = rows_of(tmp_path)
    assert [(row.tokens, row.basis) for row in embedded] == [(0, Basis.NONE)]
    assert called.status == 200


def test_a_vector_is_waited_for_for_a_quarter_of_the_time_only(tmp_path: Path, world: World) -> None:
    world.vectors.wait_s = 1.5
    slow = routes(total_timeout_s=2.0, first_byte_timeout_s=2.0)
    with serving(tmp_path, world.up, world.url, routes=slow) as server:
        began = time.monotonic()
        first = say(server, "How tall is it?")
        assert 0.4 < time.monotonic() - began < 1.2
        assert (first.status_code, result(first)) == (200, "miss")
        assert held(server) == 0
    (embedded,), (called,) = rows_of(tmp_path)
    assert (embedded.status, embedded.error, embedded.basis) == (499, "client_left", Basis.ESTIMATED)
    assert embedded.tokens > 0, "it was sent, so it is charged"
    assert (called.status, called.latency_us > 400_000) == (200, True)


def test_an_embedding_that_may_not_be_paid_for_refuses_nobody(tmp_path: Path, world: World) -> None:
    price = PriceRecord(id=1, provider="*", pattern="ok", input=1_000_000, output=1_000_000)
    pools = [PoolRecord(id=1, name="default", units=(0, 1))]
    with serving(tmp_path, world.up, world.url, pools=pools, prices=[price], keys=[key_record(1, KEY)]) as server:
        first = say(server, "How tall is it?")
        assert (first.status_code, result(first)) == (200, "miss")
        assert server.runtime.status()["cache"]["embedding_failures"] == 1
        assert result(say(server, "What is its height?")) == "miss"
        assert server.runtime.status()["cache"]["embedding_failures"] == 2, "others may be able to pay"
    assert not world.vectors.asked


def test_an_embedding_is_priced_and_drawn_like_any_call(tmp_path: Path, world: World) -> None:
    prices = [PriceRecord(id=1, provider="*", pattern="*", input=1_000_000, output=2_000_000)]
    pools = [PoolRecord(id=1, name="default", units=(0, 1)), PoolRecord(id=2, name="named", team_id=100)]
    with serving(tmp_path, world.up, world.url, pools=pools, prices=prices, keys=[key_record(1, KEY)]) as server:
        assert result(say(server, "How tall is it?", pool="named")) == "miss"
    (embedded,), _ = rows_of(tmp_path)
    assert (embedded.cost_pico, embedded.price_id, embedded.pool_id) == (4_000_000, 1, 2)
    assert {draw.pool_id for draw in embedded.draws} == {2}, "out of the pool that the request names"


def test_without_anything_that_embeds_there_are_equal_requests_only(tmp_path: Path, world: World) -> None:
    with serving(tmp_path, world.up, world.url, settings=SettingsDoc()) as server:
        say(server, "How tall is it?")
        assert result(say(server, "What is its height?")) == "miss"
        assert result(say(server, "How tall is it?")) == "hit"
        assert server.runtime.status()["cache"]["embedding_failures"] == 0  # nothing failed: nobody was asked


@pytest.mark.usefixtures("worker_binding")
def test_an_embedding_ends_when_the_client_leaves(tmp_path: Path, world: World) -> None:
    world.vectors.wait_s = 1.0
    with serving(tmp_path, world.up, world.url) as server:
        with pytest.raises(httpx.ReadTimeout):
            say(server, "How tall is it?", timeout=0.3)
        wait_for(lambda: not server.runtime.jobs)
        assert held(server) == 0
        assert not world.up.inference
        assert len(server.runtime.cache.flights) == 0
        assert server.runtime.status()["cache"]["embedding_failures"] == 0, "nothing is wrong with the provider"
    (embedded,), others = rows_of(tmp_path)
    assert (embedded.status, embedded.error, embedded.basis) == (499, "client_left", Basis.ESTIMATED)
    assert not others


@pytest.mark.usefixtures("worker_binding")
def test_a_worker_that_stops_ends_embeddings_too(tmp_path: Path, world: World) -> None:
    world.vectors.wait_s = 1.0
    with serving(tmp_path, world.up, world.url) as server, ThreadPoolExecutor() as threads:
        reply = threads.submit(say, server, "How tall is it?")
        wait_for(lambda: len(server.runtime.jobs) == 2)
        time.sleep(0.1)
        server.call(server.runtime.abort_streams)
        assert reply.result().status_code == 503
        wait_for(lambda: not server.runtime.jobs)
    (embedded,), _ = rows_of(tmp_path)
    assert (embedded.status, embedded.error) == (503, "shutting_down")


# --- several at once, limits, privacy ---------------------------------------------------------------------------------


def test_equal_questions_at_once_are_embedded_and_called_once(world: World) -> None:
    world.vectors.wait_s = 0.2
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda _: say(world.server, "How tall is it?"), range(8)))
        assert sorted(map(result, replies)) == ["hit"] * 7 + ["miss"]
        assert (len(world.vectors.asked), len(world.up.inference)) == (1, 1)
        replies = list(threads.map(lambda _: say(world.server, "What is its height?"), range(8)))
    assert {result(reply) for reply in replies} == {"similar"}
    assert {reply.headers["x-hoosh-similarity"] for reply in replies} == {"0.940"}
    assert (len(world.vectors.asked), len(world.up.inference)) == (2, 1)


def test_who_waits_for_a_similar_answer_still_wants_a_young_one(world: World) -> None:
    say(world.server, "How tall is it?")
    time.sleep(1.1)
    world.vectors.wait_s = 0.4
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(say, world.server, "What is its height?")
        time.sleep(0.15)
        second = threads.submit(say, world.server, "What is its height?", control="max-age=1")
        assert (result(first.result()), result(second.result())) == ("similar", "miss")


def test_a_key_that_may_do_one_thing_at_once_does_not_wait_for_itself(tmp_path: Path, world: World) -> None:
    keys = [key_record(1, KEY, key_limits=(3, 1000, 1))]
    with serving(tmp_path, world.up, world.url, keys=keys) as server:
        assert result(say(server, "How tall is it?")) == "miss"
        second = say(server, "What is its height?")
        assert result(second) == "similar"
        third = say(server, "Who built it?")
        assert (third.status_code, len(world.vectors.asked)) == (200, 3), "embeddings are no requests of the key"
        assert int(third.headers["x-ratelimit-remaining-tokens"]) <= 1000 - 9 - 4, "but their tokens count"


def test_limits_of_the_embedding_route_hold(tmp_path: Path, world: World) -> None:
    limited = [route(1, "ok", cache_s=60, semantic_threshold=0.9), route(2, "embed", 2, requests_per_minute=1)]
    with serving(tmp_path, world.up, world.url, routes=limited) as server:
        say(server, "How tall is it?")
        assert result(say(server, "What is its height?")) == "miss"
        assert len(world.vectors.asked) == 1


def test_a_key_needs_no_right_to_name_the_embedding_model(tmp_path: Path, world: World) -> None:
    with serving(tmp_path, world.up, world.url, keys=[key_record(1, KEY, models=("ok",))]) as server:
        say(server, "How tall is it?")
        assert result(say(server, "What is its height?")) == "similar"


def test_vectors_can_be_kept_answers_themselves(tmp_path: Path, world: World) -> None:
    kept = [route(1, "ok", cache_s=60, semantic_threshold=0.9), route(2, "embed", 2, cache_s=60)]
    with serving(tmp_path, world.up, world.url, routes=kept) as server:
        assert [result(say(server, "How tall is it?", system=text)) for text in ("a", "b")] == ["miss", "miss"]
        assert len(world.vectors.asked) == 1
        assert result(say(server, "What is its height?", system="b")) == "similar"
        assert server.runtime.status()["cache"]["vectors"] == 2


def screened(directory: Path, world: World, policy: PrivacyDoc, **more: Any) -> GatewayServer:
    settings = SettingsDoc(embedding_model="embed", privacy_policy_id=policy.id)
    return serving(directory, world.up, world.url, privacy=[policy], settings=settings, **more)


def test_what_is_private_is_not_embedded(tmp_path: Path, world: World) -> None:
    redact = PrivacyDoc(id=1, name="redact", internal="redact", confidential="redact", restricted="redact")
    with screened(tmp_path, world, redact) as server:
        for _ in range(2):
            assert say(server, f"Whose is {CARD}?").status_code == 200
        assert not world.vectors.asked
        say(server, "How tall is it?")
        assert result(say(server, "What is its height?")) == "similar"


def test_what_may_go_to_local_providers_only_is_embedded_by_such(tmp_path: Path, world: World) -> None:
    local = PrivacyDoc(id=1, name="local", default_level="confidential", confidential="local")
    with screened(tmp_path, world, local) as server:
        say(server, "How tall is it?")
        assert result(say(server, "What is its height?")) == "similar"
        assert len(world.vectors.asked) == 2
        far = msgspec.structs.replace(provider(2, "https://example.org"), address_class="public")
        document = msgspec.structs.replace(server.document, providers=(provider(1, world.up.url), far))
        server.reconfigure(document)
        failures = server.runtime.status()["cache"]["embedding_failures"]
        assert result(say(server, "Who built it?")) == "miss"
        assert server.runtime.status()["cache"]["embedding_failures"] == failures + 1
    assert [row.provider_id for row in rows_of(tmp_path)[0]] == [2, 2], "nothing was sent out of the house"


def test_a_similar_answer_is_looked_at_each_time_it_is_told(tmp_path: Path, world: World) -> None:
    silence = PrivacyDoc(
        id=2, name="silence", confidential="allow", restricted="allow", scan_answers=True, answer_action="refuse"
    )
    secret = key_record(2, OTHER_KEY, privacy_policy_id=2)
    keys: list[KeyRecord] = [key_record(1, KEY), msgspec.structs.replace(secret, team_id=100)]
    with (
        canned(200, answer("stop", content=f"It is {CARD}.")) as url,
        GatewayServer(
            tmp_path,
            providers=[provider(1, url), provider(2, world.url)],
            routes=routes(),
            settings=SETTINGS,
            keys=keys,
            privacy=[silence],
        ) as server,
    ):
        assert words(say(server, "How tall is it?")) == f"It is {CARD}."
        assert result(say(server, "What is its height?")) == "similar"
        told = say(server, "What is its height?", key=OTHER_KEY)
        assert (told.status_code, told.json()["error"]["code"]) == (403, "privacy_answer_refused")
        assert result(told) == "similar"
