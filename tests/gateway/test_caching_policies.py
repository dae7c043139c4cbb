"""What a kept answer does not get past: revoked keys, models a key may not use, limits, pools, privacy, the journal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client import REGISTRY

from budgets.records import KeyRecord, PoolRecord
from providers.config import PrivacyDoc
from tests.gateway.harness import (
    KEY,
    OTHER_KEY,
    Bank,
    GatewayServer,
    canned,
    key_record,
    provider,
    route,
    usage_rows,
    wait_for,
)
from tests.gateway.test_caching import answer, ask, result
from tests.upstream import FaultUpstream, text_of

REDACT = PrivacyDoc(id=1, name="redact", internal="redact", confidential="redact", restricted="redact")
SILENCE = PrivacyDoc(
    id=2, name="silence", confidential="allow", restricted="allow", scan_answers=True, answer_action="refuse"
)
CARD = "4111 1111 1111 1111"


@pytest.fixture
def up() -> Iterator[FaultUpstream]:
    with FaultUpstream() as server:
        yield server


def mates(**more: Any) -> list[KeyRecord]:
    """Two keys of one team; the second one as told."""
    first = key_record(1, KEY)
    return [first, msgspec.structs.replace(key_record(2, OTHER_KEY), team_id=first.team_id, **more)]


def serving(directory: Path, url: str, **more: Any) -> GatewayServer:
    return GatewayServer(directory, providers=[provider(1, url)], routes=[route(1, cache_s=60)], **more)


def refused(reply: httpx.Response, status: int, code: str) -> httpx.Response:
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    return reply


def test_a_revoked_key_gets_no_kept_answer(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url) as server:
        assert [result(ask(server)), result(ask(server))] == ["miss", "hit"]
        gone = msgspec.structs.replace(server.keys[0], enabled=False)
        server.call(server.runtime.on_access, 2, False, [gone], [])
        assert wait_for(lambda: ask(server).status_code == 401)


def test_a_model_that_a_key_may_not_use_is_not_told_from_what_its_team_got(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url, keys=mates(models=("m1",))) as server:
        ask(server)
        refused(ask(server, key=OTHER_KEY), 404, "model_not_found")


def test_kept_answers_count_against_the_limit_of_requests_and_not_of_tokens(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url, keys=mates(key_limits=(3, 40, 1))) as server:
        ask(server)
        left = []
        for _ in range(3):
            hit = ask(server, key=OTHER_KEY)
            assert result(hit) == "hit"
            left.append((hit.headers["x-ratelimit-remaining-requests"], hit.headers["x-ratelimit-remaining-tokens"]))
        assert [requests for requests, _ in left] == ["2", "1", "0"]
        assert len({tokens for _, tokens in left}) == 1, "what each was estimated at came back"
        assert ask(server, key=OTHER_KEY).status_code == 429


def test_a_disabled_pool_pays_for_nothing_and_is_told_nothing(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url) as server:
        ask(server)
        server.call(server.runtime.on_access, 2, False, [], [PoolRecord(id=1, name="default", enabled=False)])
        wait_for(lambda: not server.runtime.snapshot or not server.runtime.snapshot.pools[1].enabled)
        reply = refused(ask(server), 403, "pool_disabled")
        assert "age" not in reply.headers
        assert len(usage_rows(tmp_path)) == 1


def test_a_spent_pool_still_gets_what_costs_nothing(up: FaultUpstream, tmp_path: Path) -> None:
    bank = Bank({(1, 0): 10**6, (1, 1): 10**12, (2, 0): 0, (2, 1): 10**12})
    with serving(tmp_path, up.url, keys=mates(pool_id=2), bank=bank) as server:
        ask(server)
        assert ask(server, key=OTHER_KEY, seed=1).status_code == 429
        assert result(ask(server, key=OTHER_KEY)) == "hit"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_each_caller_gets_its_own_values_back_into_one_kept_answer(tmp_path: Path, stream: bool) -> None:
    keys = [msgspec.structs.replace(key_record(1, KEY), privacy_policy_id=1)]
    told = answer("stop", content="Write to [EMAIL_1].")
    with canned(200, told) as url, serving(tmp_path, url, keys=keys) as server:
        server.reconfigure(msgspec.structs.replace(server.document, privacy=(REDACT,)))
        replies = []
        for who in ("ada@example.com", "bob@example.com"):
            messages = [{"role": "user", "content": f"I am {who}."}]
            replies.append(ask(server, messages=messages, stream=stream and bool(replies)))
            assert f"Write to {who}." in "".join(_content(replies[-1]))
    assert [result(reply) for reply in replies] == ["miss", "hit"]
    assert "ada@" not in replies[1].text


def _content(reply: httpx.Response) -> Iterator[str]:
    if "event-stream" not in reply.headers["content-type"]:
        yield reply.json()["choices"][0]["message"]["content"]
        return
    for line in reply.text.split("\n"):
        if line.startswith("data: {"):
            yield from (choice["delta"].get("content") or "" for choice in json.loads(line[6:])["choices"])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_answer_kept_before_its_policy_is_looked_at_when_it_is_told(tmp_path: Path, stream: bool) -> None:
    keys = mates(privacy_policy_id=2)
    with canned(200, answer("stop", content=f"Pay with {CARD}.")) as url, serving(tmp_path, url, keys=keys) as server:
        server.reconfigure(msgspec.structs.replace(server.document, privacy=(SILENCE,)))
        assert CARD in ask(server).text
        reply = refused(ask(server, key=OTHER_KEY, stream=stream), 403, "privacy_answer_refused")
        assert CARD not in reply.text
        row = usage_rows(tmp_path)[-1]
    assert (row.status, row.error, row.tokens, row.attempts) == (403, "privacy_answer_refused", 0, 0)


def test_a_kept_answer_that_cannot_be_booked_is_not_told(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url) as server:
        ask(server)
        journal = server.runtime.journal
        file, full = os.dup(journal._fd), os.open("/dev/full", os.O_WRONLY)
        server.call(os.dup2, full, journal._fd)
        reply = refused(ask(server), 503, "journal_unavailable")
        assert text_of(5) not in reply.text
        server.call(os.dup2, file, journal._fd)
        assert wait_for(lambda: result(ask(server)) == "hit")
        os.close(file)
        os.close(full)


def test_a_kept_answer_has_no_decision_in_its_head_since_nobody_was_called(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url) as server:
        called, told = (ask(server, headers={"x-hoosh-explain": "1"}) for _ in range(2))
    assert "x-hoosh-decision" in called.headers
    assert result(told) == "hit"
    assert "x-hoosh-decision" not in told.headers


def test_the_access_log_and_the_counter_tell_what_came_of_it(up: FaultUpstream, tmp_path: Path) -> None:
    before = {name: counted(name) for name in ("hit", "miss", "bypass")}
    with serving(tmp_path, up.url) as server:
        for control in ("", "", "no-store"):
            ask(server, control=control)
        log = tmp_path / "access.jsonl"
        lines = wait_for(lambda: found if len(found := log.read_text().splitlines()) == 3 else None)
        entries = [json.loads(line) for line in lines]
    assert [entry["cache"] for entry in entries] == ["miss", "hit", "bypass"]
    assert [entry.get("attempts", 0) for entry in entries] == [1, 0, 1]
    assert "provider" not in entries[1]
    assert {name: counted(name) - before[name] for name in before} == {"hit": 1, "miss": 1, "bypass": 1}


def counted(name: str) -> float:
    """The counter of a result in this process."""
    return REGISTRY.get_sample_value("hoosh_cache_total", {"result": name}) or 0.0
