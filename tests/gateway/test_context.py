"""Long prompts through a worker, for clients and providers of several APIs: what is sent, held and told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from providers.config import CardDoc, ConfigDocument, PrivacyDoc, RouteDoc, SettingsDoc
from tests.gateway.harness import (
    KEY,
    OTHER_KEY,
    GatewayServer,
    held,
    hold_records,
    key_record,
    provider,
    route,
)
from tests.gateway.matrix_clients import CLIENTS, Client
from tests.gateway.matrix_world import ROWS, SAME, Got, World
from tests.provider_fakes import ProviderFakes
from tests.provider_fakes_base import TOOL, Json
from tests.upstream import FaultUpstream

FREE_KEY = "hk-free-0123456789abcdefghijklmnopqrstuvwxyzABCDEF"
CONTEXT = 4000  # tokens of every model
MAIL = "alice.liddell@example.com"
FILLER = "The quick brown fox jumps over the lazy dog and runs away." * 6  # some 90 tokens
CODE = "```\nx   =  1   \n\n\n\ny   = 2\n```"
MESSY = f"Please   look   at \n\n\n\n{CODE}\n\n\n\nthank   you   "
CLEAN = f"Please look at\n\n{CODE}\n\nthank you"
NAMES = ("openai", "anthropic", "gemini")
PLAIN, COMPACT, COMPRESS, BOTH = "m", "c", "z", "b"


def routes(numbers: dict[str, int]) -> list[RouteDoc]:
    """For every row: `m-ROW` as it is, `c-ROW` shortened, `z-ROW` compressed, `b-ROW` both, the row's own name
    shortened; `next-ROW` shortened by a route that fails, and then not."""
    made: list[RouteDoc] = []

    def add(kind: str, pattern: str, upstream: str = "", **more: Any) -> None:
        id = len(made) + 1
        made.append(
            RouteDoc(id=id, name=f"r{id}", pattern=pattern, provider_id=numbers[kind], upstream_model=upstream, **more)
        )

    for row, (kind, upstream) in ROWS.items():
        add(kind, f"m-{row}", upstream)
        add(kind, f"c-{row}", upstream, compact_percent=80)
        add(kind, f"z-{row}", upstream, compress=True)
        add(kind, f"b-{row}", upstream, compact_percent=80, compress=True)
        add(kind, f"{SAME[row]}", compact_percent=80, compress=True)
        add(kind, f"next-{row}", "FAIL500-up", priority=1, compact_percent=80, compress=True)
        add(kind, f"next-{row}", f"{upstream}-roomy", priority=2)
        add(kind, f"choice-{row}", upstream, priority=1)
        add(kind, f"choice-{row}", f"{upstream}-roomy", priority=2)
        add(kind, f"choice-{row}", upstream, priority=3, compact_percent=80)
        add(kind, f"kept-{row}", upstream, compact_percent=80, cache_s=60)
    return made


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("context")
    privacy = [PrivacyDoc(id=1, name="redact", internal="redact", confidential="redact", restricted="redact")]
    keys = [key_record(1, KEY), key_record(2, OTHER_KEY, privacy_policy_id=1), key_record(3, FREE_KEY, pool_id=2)]
    with (
        ProviderFakes() as fakes,
        World(
            directory,
            fakes,
            SettingsDoc(breaker_failures=10**6),
            routes=routes,
            cards=[CardDoc(pattern="*", context_tokens=CONTEXT), CardDoc(pattern="*-roomy", context_tokens=10**6)],
            privacy=privacy,
            keys=keys,
        ) as made,
    ):
        yield made
        assert held(made.server) == 0
        assert made.server.runtime.build_error == ""


def talk(client: Client, model: str, turns: int, *, stream: bool = False, say: str = FILLER, **more: Any) -> Json:
    """A conversation of so many turns, each numbered: its last is question `#turns`."""
    body = client.body(model, f"#{turns} {say}", stream=stream, **more)
    for key in ("max_tokens", "max_output_tokens"):
        if key in body:
            body[key] = 200
    if client.name == "gemini":
        body["generationConfig"]["maxOutputTokens"] = 200
        before = [
            {"role": role, "parts": [{"text": f"#{n} {say}"}]} for n in range(1, turns) for role in ("user", "model")
        ]
        return {**body, "systemInstruction": {"parts": [{"text": "Be kind."}]}, "contents": before + body["contents"]}
    before = [{"role": role, "content": f"#{n} {say}"} for n in range(1, turns) for role in ("user", "assistant")]
    if client.name == "anthropic":
        return {**body, "system": "Be kind.", "messages": before + body["messages"]}
    return {**body, "messages": [{"role": "system", "content": "Be kind."}, *before, *body["messages"]]}


def numbers(got: Got) -> list[tuple[str, int]]:
    """The turns that the provider was told: whose, and which."""
    doc = got.seen[-1].doc
    found = []
    for turn in doc.get("contents") or doc["messages"]:
        text = json.dumps(turn)
        for place in [at for at in range(len(text)) if text[at] == "#"]:
            found.append((turn["role"], int(text[place + 1 :].split()[0])))
    return found


def system_of(got: Got) -> str:
    """What the provider was told as instructions."""
    return got.seen[-1].talk.system


def ask_as(world: World, key: str, client: Client, model: str, body: Json, *, stream: bool = False) -> Got:
    """The same with another key."""
    world.http.headers["x-api-key"] = key
    try:
        return world.ask(client, model, body, stream=stream)
    finally:
        world.http.headers["x-api-key"] = KEY


def bound(world: World, got: Got) -> int:
    """The input that was held for the last call of a request."""
    return [record for record in hold_records(world.books._directory) if record.rid.hex() == got.request_id][
        -1
    ].input_bound


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("row", ["openai", "anthropic", "google", "ollama", "custom"])
@pytest.mark.parametrize("name", NAMES)
def test_a_long_conversation_is_shortened_where_the_route_says_so(
    world: World, name: str, row: str, stream: bool
) -> None:
    client, model = CLIENTS[name], f"c-{row}"
    got = world.ask(client, model, talk(client, model, 40, stream=stream), stream=stream)
    reply = world.read(client, got, stream=stream)
    assert reply.text == "Hello there."
    told = numbers(got)
    assert told[0] == ("user", 1)
    assert told[-1] == ("user", 40)
    assert 20 < len(told) < 50
    assert system_of(got) == "Be kind."
    assert [side == "user" for side, _ in told] == [n % 2 == 0 for n in range(len(told))]
    dropped = 79 - len(told)
    before, after = tokens_of(got.headers["x-hoosh-context"], dropped)
    assert after + 200 <= CONTEXT * 80 // 100 < after + 200 + 250
    assert before > 1.5 * after
    assert bound(world, got) < 18_000  # of 30,000


def tokens_of(header: str, dropped: int) -> tuple[int, int]:
    start = f"compacted; dropped={dropped}; tokens="
    assert header.startswith(start), header
    before, _, after = header.removeprefix(start).partition("->")
    return int(before), int(after)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_done_where_the_route_does_not_say_so(world: World, name: str) -> None:
    client = CLIENTS[name]
    for model in ("m-openai", "m-anthropic"):
        got = world.ask(client, model, talk(client, model, 40, say=MESSY), stream=False)
        world.read(client, got, stream=False)
        assert len(numbers(got)) == 79
        assert "x-hoosh-context" not in got.headers
        assert got.seen[-1].talk.prompt.count(MESSY) == 40


@pytest.mark.parametrize("name", NAMES)
def test_what_fits_passes_as_the_client_sent_it(world: World, name: str) -> None:
    client = CLIENTS[name]
    model = SAME[{"openai": "openai", "anthropic": "anthropic", "gemini": "google"}[name]]
    body = talk(client, model, 4)
    got = world.ask(client, model, body, stream=False)
    world.read(client, got, stream=False)
    sent = json.loads(got.seen[0].body)
    sent["max_tokens"] = sent.pop("max_completion_tokens", None) or sent.get("max_tokens")
    assert {key: value for key, value in sent.items() if value is not None} == body
    assert "x-hoosh-context" not in got.headers


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("name", "row"), [("anthropic", "anthropic"), ("gemini", "google")])
def test_what_would_pass_is_shortened_too(world: World, name: str, row: str, stream: bool) -> None:
    client, model = CLIENTS[name], SAME[row]
    got = world.ask(client, model, talk(client, model, 40, stream=stream), stream=stream)
    reply = world.read(client, got, stream=stream)
    assert reply.text == "Hello there."
    assert reply.ended
    assert numbers(got)[0] == ("user", 1)
    assert len(numbers(got)) < 50
    assert got.headers["x-hoosh-context"].startswith("compacted; dropped=")
    assert bound(world, got) < 18_000


@pytest.mark.parametrize("row", ["openai", "anthropic", "google", "ollama", "custom"])
@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_compressed_but_for_code(world: World, name: str, row: str) -> None:
    client, model = CLIENTS[name], f"z-{row}"
    got = world.ask(client, model, client.body(model, MESSY), stream=False)
    world.read(client, got, stream=False)
    assert got.seen[0].talk.prompt == CLEAN
    assert got.headers["x-hoosh-context"] == f"compressed; bytes={len(MESSY)}->{len(CLEAN)}"


def test_arguments_and_results_of_tools_are_never_compressed(world: World) -> None:
    arguments = '{"city":  "Paris   on  the   Seine"}'
    call = {"id": "c1", "type": "function", "function": {"name": TOOL, "arguments": arguments}}
    said: list[Json] = [
        {"role": "system", "content": "Be   kind."},
        {"role": "user", "content": [{"type": "text", "text": "so   it  "}, {"type": "text", "text": "is   so  "}]},
        {"role": "assistant", "content": "I   look", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sun   and\n\n\n\nrain   "},
    ]
    body = {"model": "z-custom", "messages": said, "max_tokens": 20, "metadata": {"a": "b   c"}, "stop": ["  x  "]}
    got = world.send("POST", "/v1/chat/completions", body)
    assert got.status == 200
    doc = got.seen[0].doc
    assert [message["content"] for message in doc["messages"]] == [
        "Be kind.",
        [{"type": "text", "text": "so it "}, {"type": "text", "text": "is so "}],
        "I look",
        "sun   and\n\n\n\nrain   ",
    ]
    assert doc["messages"][2]["tool_calls"] == [call]
    assert (doc["metadata"], doc["stop"]) == ({"a": "b   c"}, ["  x  "])
    assert "compressed" in got.headers["x-hoosh-context"]


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_tool_calls_are_shortened_with_their_results(world: World, name: str) -> None:
    """The faked providers refuse a result without its call, and the other way about."""
    client, model = CLIENTS[name], "c-anthropic"
    body = talk(client, model, 1, tools=True)
    for n in range(60):
        if name == "openai":
            call = {"id": f"t{n}", "type": "function", "function": {"name": TOOL, "arguments": '{"city":"Paris"}'}}
            body["messages"] += [
                {"role": "assistant", "content": f"#{n} {FILLER}", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": f"t{n}", "content": "Sunny, 21 degrees."},
            ]
        else:
            use = {"type": "tool_use", "id": f"t{n}", "name": TOOL, "input": {"city": "Paris"}}
            result = {"type": "tool_result", "tool_use_id": f"t{n}", "content": "Sunny, 21 degrees."}
            body["messages"] += [
                {"role": "assistant", "content": [{"type": "text", "text": f"#{n} {FILLER}"}, use]},
                {"role": "user", "content": [result]},
            ]
    got = world.ask(client, model, body, stream=False)
    assert world.read(client, got, stream=False).text == "It is sunny in Paris."
    turns = got.seen[0].doc["messages"]
    uses = [block["id"] for turn in turns for block in turn["content"] if block["type"] == "tool_use"]
    results = [block["tool_use_id"] for turn in turns for block in turn["content"] if block["type"] == "tool_result"]
    assert uses == results
    assert uses[-1] == "t59"
    assert 10 < len(uses) < 50
    assert numbers(got)[0] == ("user", 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_next_route_gets_the_request_as_it_came(world: World, name: str) -> None:
    client = CLIENTS[name]
    for row in ("anthropic", "custom"):
        got = world.ask(client, f"next-{row}", talk(client, f"next-{row}", 40, say=MESSY + FILLER), stream=False)
        assert got.status == 200, got.data
        first, second = got.seen
        assert MESSY not in first.talk.prompt
        assert "#1 " in first.talk.prompt
        assert "#5 " not in first.talk.prompt
        assert second.talk.prompt.count(MESSY) == 40
        assert "x-hoosh-context" not in got.headers
        bounds = [r.input_bound for r in hold_records(world.books._directory) if r.rid.hex() == got.request_id]
        assert bounds[0] < bounds[1] / 1.5


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_is_too_small_is_not_asked_while_another_has_room(world: World, name: str) -> None:
    client, model = CLIENTS[name], "choice-custom"
    explained = {"x_hoosh_explain": "1"}
    path = client.path(model, stream=False)
    got = world.send("POST", path, talk(client, model, 20), **explained)
    first, second, third = (found["route"] for found in json.loads(got.headers["x-hoosh-decision"])["candidates"])
    assert got.headers["x-hoosh-route"] == first
    got = world.send("POST", path, talk(client, model, 80), **explained)
    told = json.loads(got.headers["x-hoosh-decision"])
    assert [found["route"] for found in told["candidates"]] == [second, third]
    assert told["rejected"] == [{"route": first, "reason": "context too small"}]
    assert len(numbers(got)) == 159
    got = world.ask(client, "m-custom", talk(client, "m-custom", 80), stream=False)
    assert len(numbers(got)) == 159  # it is asked all the same where there is no other


def test_an_open_circuit_is_no_reason_to_ask_a_model_that_is_too_small(tmp_path: Path) -> None:
    cards = [CardDoc(pattern="small", context_tokens=1000), CardDoc(pattern="roomy", context_tokens=10**6)]
    with FaultUpstream() as up:
        server = GatewayServer(
            tmp_path,
            providers=[provider(1, up.url), provider(2, up.url)],
            routes=[
                route(1, "m", 1, priority=1, upstream_model="small"),
                route(2, "m", 2, priority=2, upstream_model="roomy"),
                route(3, "bad", 2, upstream_model="boom-500"),
            ],
            settings=SettingsDoc(breaker_failures=1),
            cards=cards,
        )
        with server, httpx.Client(base_url=server.url, headers={"x-api-key": KEY, "x-hoosh-explain": "1"}) as http:

            def ask(
                model: str, words: int, path: str = "/v1/chat/completions", word: str = "word ", escaped: bool = False
            ) -> tuple[list[str], list[Json]]:
                content = word * words
                said: Json = {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
                if path == "/v1/embeddings":
                    said = {"input": [content] * 10}
                data = json.dumps({"model": model, **said}, ensure_ascii=escaped).encode()
                told = json.loads(http.post(path, content=data).headers["x-hoosh-decision"])
                return [found["route"] for found in told["candidates"]], told["rejected"]

            assert ask("m", 2000) == (["r2"], [{"route": "r1", "reason": "context too small"}])
            assert ask("m", 500)[0] == ["r1", "r2"]
            for escaped in (False, True):  # more bytes for a token than English has
                assert ask("m", 700, word="слово ", escaped=escaped)[0] == ["r1", "r2"]
            assert ask("m", 9000, word="слово ")[0] == ["r2"]
            assert ask("m", 500, "/v1/embeddings")[0] == ["r1", "r2"]  # no text of them is too long
            ask("bad", 1)
            assert ask("m", 500)[0] == ["r1"]
            assert ask("m", 2000) == (["r2"], [{"route": "r1", "reason": "context too small"}])


def test_a_failure_tells_what_was_changed(world: World) -> None:
    client, model = CLIENTS["openai"], "b-custom"
    body = talk(client, model, 40, say=MESSY + FILLER)
    body["messages"][-1]["content"] = "FAIL500"
    got = world.send("POST", client.path(model, stream=False), body)
    assert got.status in (502, 503, 500)
    assert "compacted; " in got.headers["x-hoosh-context"]
    assert "compressed; " in got.headers["x-hoosh-context"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_redacted_conversation_is_shortened_and_gets_its_values_back(world: World, name: str, stream: bool) -> None:
    client, model = CLIENTS[name], "b-anthropic"
    body = talk(client, model, 40, stream=stream)
    text = (
        json.dumps(body)
        .replace("#40 ", f"{'' if stream else 'ECHO '}I   am {MAIL}: #40 ")
        .replace("#1 ", f"{MAIL}: #1 ")
    )
    got = ask_as(world, OTHER_KEY, client, model, json.loads(text), stream=stream)
    reply = world.read(client, got, stream=stream)
    assert MAIL.encode() not in got.seen[0].body
    assert b"I am [EMAIL_1]: #40" in got.seen[0].body
    assert len(numbers(got)) < 50
    assert reply.text == "Hello there." if stream else f"I am {MAIL}: #40 " in reply.text
    assert got.headers["x-hoosh-context"].startswith("compacted; dropped=")
    assert ", compressed; bytes=" in got.headers["x-hoosh-context"]


def test_what_cannot_be_translated_is_left_as_it_is(world: World) -> None:
    client, model = CLIENTS["anthropic"], SAME["anthropic"]
    body = talk(client, model, 40, container="c_1")
    got = ask_as(world, FREE_KEY, client, model, body)
    assert json.loads(got.seen[0].body)["messages"] == body["messages"]
    assert "x-hoosh-context" not in got.headers


def test_blanks_are_not_worth_what_only_the_clients_own_api_says(world: World) -> None:
    client, model = CLIENTS["anthropic"], SAME["anthropic"]
    body = client.body(model, MESSY, thinking={"type": "disabled"})
    got = world.ask(client, model, body, stream=False)
    assert json.loads(got.seen[0].body) == body
    assert "x-hoosh-context" not in got.headers
    body = talk(client, model, 40, say=MESSY + FILLER, thinking={"type": "disabled"})
    got = world.ask(client, model, body, stream=False)
    assert got.headers["x-hoosh-context"].startswith("compacted; ")
    assert "compressed" not in got.headers["x-hoosh-context"]
    assert got.headers["x-hoosh-dropped-params"] == "thinking"


def test_one_huge_message_is_left_to_the_provider(world: World) -> None:
    client, model = CLIENTS["openai"], "c-custom"
    got = world.ask(client, model, client.body(model, FILLER * 100), stream=False)
    world.read(client, got, stream=False)
    assert got.seen[0].talk.prompt == FILLER * 100
    assert "x-hoosh-context" not in got.headers


def test_spaces_in_the_json_change_nothing(world: World) -> None:
    client, model = CLIENTS["openai"], "b-custom"
    body = talk(client, model, 40, say=MESSY + FILLER)
    sent = []
    for text in (json.dumps(body, indent=8), json.dumps(body, separators=(",", ":"))):
        got = world.send("POST", client.path(model, stream=False), text.encode())
        world.read(client, got, stream=False)
        sent.append((got.seen[0].doc["messages"], got.headers["x-hoosh-context"]))
    assert sent[0] == sent[1]
    assert sent[0][0][0] == {"role": "system", "content": "Be kind."}


def test_images_of_dropped_turns_are_not_held(world: World) -> None:
    url = "data:image/png;base64," + "iVBORw0K" * 500
    seen: Json = {"type": "image_url", "image_url": {"url": url}}
    client, model = CLIENTS["openai"], "c-custom"
    body = talk(client, model, 40)
    for message in body["messages"][3:33:2]:
        message["content"] = [{"type": "text", "text": message["content"]}, seen]
    got = world.ask(client, model, body, stream=False)
    world.read(client, got, stream=False)
    images = got.seen[0].body.count(b"data:image")
    assert images < 15
    assert 4096 * images <= bound(world, got) < 4096 * images + 20_000


def test_other_endpoints_are_left_alone(world: World) -> None:
    told = {"model": "b-custom", "prompt": MESSY * 300, "max_tokens": 5}
    got = world.send("POST", "/v1/completions", told)
    assert got.seen[0].doc["prompt"] == MESSY * 300
    got = world.send("POST", "/v1/embeddings", {"model": "b-custom", "input": [MESSY] * 200})
    assert json.loads(got.seen[0].body)["input"] == [MESSY] * 200
    assert "x-hoosh-context" not in got.headers


def test_an_explanation_says_what_would_be_done(world: World) -> None:
    client = CLIENTS["openai"]
    body = talk(client, "b-custom", 40, say=MESSY + FILLER)
    told = json.loads(world.send("POST", "/v1/route/explain", body).data)
    (candidate,) = told["candidates"]
    assert "would be compacted: drops " in candidate["context"]
    assert "would be compressed: " in candidate["context"]
    other = json.loads(world.send("POST", "/v1/route/explain", {**body, "model": "m-custom"}).data)["candidates"][0]
    assert "context" not in other
    assert candidate["hold"]["input_tokens"] < other["hold"]["input_tokens"] / 2
    assert world.fakes.seen == []


def test_what_was_done_is_counted(world: World) -> None:
    def counted(change: str) -> float:
        world.server.call(world.server.runtime.metrics.flush)
        return REGISTRY.get_sample_value("hoosh_context_total", {"change": change}) or 0.0

    before = counted("compacted"), counted("compressed")
    client = CLIENTS["openai"]
    world.ask(client, "b-custom", talk(client, "b-custom", 40, say=MESSY + FILLER), stream=False)
    world.ask(client, "c-custom", talk(client, "c-custom", 40), stream=False)
    assert (counted("compacted"), counted("compressed")) == (before[0] + 2, before[1] + 1)


def test_a_large_prompt_does_not_keep_others_waiting(world: World) -> None:
    client, model = CLIENTS["openai"], "b-custom"
    body = talk(client, model, 1500, say=MESSY * 8 + FILLER)
    got = world.ask(client, model, body, stream=False)
    world.read(client, got, stream=False)
    assert numbers(got)[-1] == ("user", 1500)
    assert "compressed" in got.headers["x-hoosh-context"]


def test_answers_are_kept_by_what_the_client_asked(world: World) -> None:
    client, model = CLIENTS["openai"], "kept-custom"
    body = talk(client, model, 40)
    got = world.ask(client, model, body, stream=False)
    assert "compacted" in got.headers["x-hoosh-context"]
    again = world.ask(client, model, body, stream=False)
    assert again.headers["x-hoosh-cache"] == "hit"
    assert again.headers["x-hoosh-context"] == got.headers["x-hoosh-context"]
    assert again.seen == []
    body["messages"][9]["content"] += " and another thing"  # of a turn that is not even sent
    other = world.ask(client, model, body, stream=False)
    assert other.headers["x-hoosh-cache"] == "miss"


def test_an_answer_kept_under_other_settings_is_not_told(tmp_path: Path) -> None:
    with FaultUpstream() as up:
        plain = ConfigDocument(providers=(provider(1, up.url),), routes=(route(1, cache_s=60),))
        server = GatewayServer(tmp_path, providers=plain.providers, routes=plain.routes)
        with server, httpx.Client(base_url=server.url, headers={"x-api-key": KEY}) as http:

            def ask() -> str:
                said = {"model": "ok", "messages": [{"role": "user", "content": "a   b"}], "max_tokens": 2}
                return http.post("/v1/chat/completions", json=said).headers["x-hoosh-cache"]

            assert [ask(), ask()] == ["miss", "hit"]
            for changed in ({"compress": True}, {"compact_percent": 50}):
                server.reconfigure(ConfigDocument(providers=plain.providers, routes=(route(1, cache_s=60, **changed),)))
                assert [ask(), ask()] == ["miss", "hit"]
