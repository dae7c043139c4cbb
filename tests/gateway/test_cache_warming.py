"""Questions asked ahead, in a real worker: what clients get then, who pays, and when nothing is asked."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from budgets.records import WarmRecord
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
    usage_rows,
    wait_for,
)
from tests.gateway.similar_world import say, vectors_upstream
from tests.gateway.test_caching import answer, result
from tests.upstream import FaultUpstream

ONE = WarmRecord(1, 1, "ok", "", "How tall is it?")
PROMPT = "Be brief.\nSay “please”. "


@pytest.fixture
def up() -> Iterator[FaultUpstream]:
    with FaultUpstream() as upstream:
        yield upstream


def serving(directory: Path, url: str, **more: Any) -> GatewayServer:
    more = {"routes": [route(1, cache_s=60)], **more}
    return GatewayServer(directory, providers=[provider(1, url)], **more)


def warm(server: GatewayServer, *records: WarmRecord) -> None:
    """Hand the list over, to a worker that looks at it all the time."""
    warmer = server.runtime.warmer
    warmer.pause_s, warmer.look_s = 0.01, 0.02
    server.call(server.runtime.on_warming, records)


def counts(server: GatewayServer) -> dict[str, int]:
    told: dict[str, int] = server.runtime.status()["cache"]
    return told


def warmed(server: GatewayServer, number: int = 1) -> None:
    """Wait until so many answers were kept."""
    wait_for(lambda: counts(server)["warmed"] == number and not server.runtime.jobs)


@pytest.mark.parametrize("system", ["", PROMPT], ids=["question", "with-system"])
def test_a_clients_first_request_gets_the_warmed_answer(up: FaultUpstream, tmp_path: Path, system: str) -> None:
    messages: list[Any] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": ONE.question})
    with serving(tmp_path, up.url) as server:
        warm(server, msgspec.structs.replace(ONE, system=system))
        warmed(server)
        assert up.inference[0].json["messages"] == messages
        client = openai.OpenAI(api_key=KEY, base_url=f"{server.url}/v1", max_retries=0)
        reply = client.chat.completions.with_raw_response.create(model="ok", messages=messages)
        assert reply.headers["x-hoosh-cache"] == "hit"
        streamed = client.chat.completions.with_raw_response.create(model="ok", messages=messages, stream=True)
        assert streamed.headers["x-hoosh-cache"] == "hit"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed.parse() if chunk.choices) == str(
            reply.parse().choices[0].message.content
        )
        assert len(up.inference) == 1
        assert held(server) == 0
    rows = usage_rows(tmp_path)
    asked, told = rows[0], rows[1]
    assert (asked.key_id, asked.agent_id, asked.team_id, asked.pool_id) == (1, 10, 100, 1)
    assert (asked.tokens > 0, asked.held >= asked.tokens, asked.client_request_id) == (True, True, "warming-1")
    assert (told.tokens, told.attempts) == (0, 0)


def test_an_answer_is_warmed_for_the_team_of_its_key_only(up: FaultUpstream, tmp_path: Path) -> None:
    keys = [key_record(1, KEY), key_record(2, OTHER_KEY, pool_id=2)]
    with serving(tmp_path, up.url, keys=keys) as server:
        warm(server, msgspec.structs.replace(ONE, key_id=2))
        warmed(server)
        more = {"max_tokens": None}
        assert result(say(server, ONE.question, **more)) == "miss"
        assert result(say(server, ONE.question, key=OTHER_KEY, **more)) == "hit"
    assert [row.key_id for row in usage_rows(tmp_path)] == [2, 1, 2]


def test_what_is_kept_already_is_not_asked(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url) as server:
        say(server, ONE.question, max_tokens=None)
        warm(server, ONE)
        time.sleep(0.15)
        assert (len(up.inference), counts(server)["warmed"], counts(server)["warming_failures"]) == (1, 0, 0)
    assert len(usage_rows(tmp_path)) == 1, "a look into the cache is no request"


def test_it_is_asked_again_when_its_time_is_over_and_after_a_purge(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url, routes=[route(1, cache_s=1)]) as server:
        warm(server, ONE)
        warmed(server)
        time.sleep(0.3)
        assert len(up.inference) == 1
        warmed(server, 2)
        assert len(up.inference) == 2
    with serving(tmp_path / "other", up.url) as server:
        warm(server, ONE)
        warmed(server)
        server.call(server.runtime.cache.purge)
        warmed(server, 2)


def test_an_answer_that_had_to_go_for_others_is_not_asked_for_at_once(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url) as server:
        warm(server, ONE)
        warmed(server)
        store = server.runtime.cache.store
        server.call(lambda: store.resize(0))
        server.call(lambda: store.resize(64 << 20))
        assert len(store) == 0
        time.sleep(0.2)
        assert counts(server)["warmed"] == 1


def test_the_list_is_followed(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url, routes=[route(1, cache_s=1)]) as server:
        warm(server, ONE, msgspec.structs.replace(ONE, id=2, question="Who built it?"))
        warmed(server, 2)
        warm(server, msgspec.structs.replace(ONE, question="Where is it?"))
        warmed(server, 3)
        time.sleep(1.2)
        warmed(server, 4)
        asked = [request.json["messages"][0]["content"] for request in up.inference]
    assert asked == ["How tall is it?", "Who built it?", "Where is it?", "Where is it?"]


def test_questions_are_asked_one_after_the_other_with_a_pause(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url) as server:
        server.runtime.warmer.pause_s = 0.2
        records = [msgspec.structs.replace(ONE, id=number, question=f"Question {number}?") for number in range(1, 4)]
        server.call(server.runtime.on_warming, records)
        warmed(server, 3)
    begun = [row.at_us for row in usage_rows(tmp_path)]
    assert all(later - earlier > 180_000 for earlier, later in itertools.pairwise(begun))
    assert len(begun) == 3


@pytest.mark.parametrize("behaviour", ["boom-500", "boom-400", "cut-first"])
def test_a_failure_is_not_repeated_at_once(up: FaultUpstream, tmp_path: Path, behaviour: str) -> None:
    with serving(tmp_path, up.url) as server:
        up.always = behaviour
        warm(server, ONE)
        wait_for(lambda: counts(server)["warming_failures"] == 1)
        time.sleep(0.2)
        assert (counts(server)["warming_failures"], len(up.inference)) == (1, 1)
        up.always = ""
        server.reconfigure(msgspec.structs.replace(server.document, settings=SettingsDoc(ping_interval_s=7.0)))
        warmed(server)


def test_an_answer_that_may_not_be_kept_is_not_asked_for_again(tmp_path: Path) -> None:
    with canned(200, answer("length")) as url, serving(tmp_path, url) as server:
        warm(server, ONE)
        wait_for(lambda: counts(server)["warming_failures"] == 1)
        time.sleep(0.2)
    assert len(usage_rows(tmp_path)) == 1


@pytest.mark.parametrize(
    ("record", "key"),
    [
        (msgspec.structs.replace(ONE, key_id=7), {}),
        (ONE, {"enabled": False}),
        (ONE, {"expires_at": 1.0}),
        (ONE, {"scopes": ("operator",)}),
        (ONE, {"models": ("other",)}),
        (msgspec.structs.replace(ONE, model="unheard-of"), {}),
        (ONE, {"pool_id": 3}),
        (ONE, {"key_limits": (0, 5, 0)}),
    ],
    ids=["unknown", "revoked", "expired", "scope", "model-of-key", "no-route", "pool-off", "limit"],
)
def test_what_the_key_may_not_do_is_not_done(
    up: FaultUpstream, tmp_path: Path, record: WarmRecord, key: dict[str, Any]
) -> None:
    keys = [key_record(1, KEY, **key), key_record(2, OTHER_KEY)]
    with serving(tmp_path, up.url, keys=keys, routes=[route(1, "ok", cache_s=60)]) as server:
        warm(server, record)
        wait_for(lambda: counts(server)["warming_failures"] == 1)
        assert not up.inference
        assert held(server) == 0


def test_a_route_that_keeps_nothing_is_not_asked(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url, routes=[route(1)]) as server:
        warm(server, ONE)
        wait_for(lambda: counts(server)["warming_failures"] == 1)
        assert not up.inference


def test_limits_of_the_route_hold_for_questions_asked_ahead(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url, routes=[route(1, cache_s=60, requests_per_minute=1)]) as server:
        warm(server, ONE, msgspec.structs.replace(ONE, id=2, question="Who built it?"))
        wait_for(lambda: counts(server)["warming_failures"] == 1)
        assert (counts(server)["warmed"], len(up.inference)) == (1, 1)


def test_a_worker_that_stops_asks_nothing_more(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url) as server:
        server.call(server.runtime.drain)
        warm(server, ONE)
        time.sleep(0.2)
        assert not up.inference


def test_a_worker_that_stops_ends_what_it_asks(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url) as server:
        up.always = "stall-first"
        warm(server, ONE)
        up.wait_for(lambda: up.inference)
        server.call(server.runtime.drain)
        server.call(server.runtime.abort_streams)
        wait_for(lambda: not server.runtime.jobs)
    (row,) = usage_rows(tmp_path)
    assert (row.status, row.error, row.tokens > 0) == (503, "shutting_down", True)


def test_a_worker_ends_in_the_middle_of_a_question(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url) as server:
        up.always = "stall-first"
        warm(server, ONE)
        up.wait_for(lambda: up.inference)
    (row,) = usage_rows(tmp_path)
    assert (row.status, row.tokens > 0) == (499, True), "it was sent, so it is charged"


def test_the_privacy_policy_of_the_team_is_kept_to(up: FaultUpstream, tmp_path: Path) -> None:
    redact = PrivacyDoc(id=1, name="redact", internal="redact", confidential="redact", restricted="redact")
    question = "Whose is 4111 1111 1111 1111?"
    settings = SettingsDoc(privacy_policy_id=1)
    with serving(tmp_path, up.url, privacy=[redact], settings=settings) as server:
        warm(server, msgspec.structs.replace(ONE, question=question))
        warmed(server)
        assert "4111" not in json.dumps(up.inference[0].json)
        assert result(say(server, question, max_tokens=None)) == "hit"


def test_warmed_answers_are_told_to_similar_questions_and_similar_ones_are_warmed_too(
    up: FaultUpstream, tmp_path: Path
) -> None:
    with vectors_upstream() as (vectors, url):
        vectors.degrees |= {"How tall is it?": 0, "Its height?": 10, "What is its height?": 11}
        with GatewayServer(
            tmp_path,
            providers=[provider(1, up.url), provider(2, url)],
            routes=[route(1, "ok", cache_s=60, semantic_threshold=0.9), route(2, "embed", 2)],
            settings=SettingsDoc(embedding_model="embed"),
        ) as server:
            warm(server, ONE, msgspec.structs.replace(ONE, id=2, question="Its height?"))
            warmed(server, 2)
            assert len(up.inference) == 2
            assert result(say(server, "What is its height?", max_tokens=None)) == "similar"
            assert result(say(server, "Its height?", max_tokens=None)) == "hit"
