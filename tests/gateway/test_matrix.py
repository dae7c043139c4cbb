"""Any dialect with any provider: every client of `matrix_clients` with every provider of `tests.provider_fakes`, which
refuse what their API does not allow. One row of the matrix is one test. See `test_matrix_edges` for what is refused.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from budgets.records import Basis
from providers.config import SettingsDoc
from tests.gateway.harness import KEY, held, wait_for
from tests.gateway.matrix_clients import CALLED, CLIENTS, LIMIT, Client, Reply, openai_usage
from tests.gateway.matrix_world import NATIVE, ROWS, SAME, Got, World, check_schema, pairs, worlds
from tests.provider_fakes_base import CACHED, CITIES, HELLO, INPUT, LOOK, OUTPUT, REASONING, SUNNY, THOUGHT, TOOL, Json

TEXT, SUN, THINKING = "".join(HELLO), "".join(SUNNY), "".join(THOUGHT)
SIGNED = ("anthropic", "google", "codex")  # who signs or encrypts reasoning and wants it back
KEEPS = ("openai", "responses", "anthropic", "gemini", "gemini_array")  # clients that can send back what was signed


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from worlds(tmp_path_factory.mktemp("matrix"), SettingsDoc(breaker_failures=10**6))


def cached_by(row: str) -> int:
    """Cached tokens of an answer: Ollama's API tells none, but on its legacy path."""
    return 0 if row == "ollama" else CACHED


def check_usage(client: Client, row: str, reply: Reply, *, reasoning: int = 0) -> None:
    """The usage is exactly the provider's, in the caller's words."""
    assert reply.usage is not None
    given, cached, made, thought = reply.usage
    assert (given, made) == (INPUT, OUTPUT)
    wanted = CACHED if client.name == "completions" else cached_by(row)
    assert cached in (None, wanted)
    assert thought in (None, 0 if row == "ollama" else reasoning)


def check_books(world: World, client: Client, row: str, got: Got, *, stream: bool) -> None:
    """The books have the same."""
    booked = world.row(got)
    cached = CACHED if client.name == "completions" else cached_by(row)
    assert (booked.input_tokens, booked.cached_tokens, booked.output_tokens) == (INPUT, cached, OUTPUT)
    assert (booked.basis, booked.status, booked.stream) == (Basis.REPORTED, 200, stream)
    assert (booked.model, booked.upstream_model) == (f"m-{row}", ROWS[row][1])
    assert held(world.server) == 0


@pytest.mark.parametrize(("name", "row", "stream"), pairs())
def test_a_plain_prompt_is_answered_and_booked(world: World, name: str, row: str, stream: bool) -> None:
    client, (kind, upstream) = CLIENTS[name], ROWS[row]
    got = world.ask(client, f"m-{row}", client.body(f"m-{row}", "hi", stream=stream), stream=stream)
    reply = world.read(client, got, stream=stream)
    assert (reply.text, reply.thinking, reply.calls) == (TEXT, "", [])
    assert reply.ended
    assert reply.finish == client.finishes["stop"]
    assert reply.model == f"{upstream}-served"
    check_usage(client, row, reply)
    check_books(world, client, row, got, stream=stream)
    (seen,) = got.seen
    assert (seen.kind, seen.talk.model, seen.talk.stream, seen.talk.limit) == (kind, upstream, stream, LIMIT)
    assert KEY not in str(seen.headers)
    if stream and name not in ("gemini_array", "completions"):
        assert len(seen.sent) > 0
        assert got.data.count(b"lo the") >= 1, "the pieces of a stream are passed on one by one"


@pytest.mark.parametrize(("name", "row", "stream"), pairs(tools=True))
def test_a_tool_is_called_and_its_result_is_answered(world: World, name: str, row: str, stream: bool) -> None:
    client = CLIENTS[name]
    body = client.body(f"m-{row}", "weather?", stream=stream, tools=True)
    got = world.ask(client, f"m-{row}", body, stream=stream)
    reply = world.read(client, got, stream=stream)
    assert (reply.text, reply.finish) == ("".join(LOOK), client.finishes["tool"])
    ((id, *called),) = reply.calls
    assert tuple(called) == CALLED
    if name in ("openai", "responses", "anthropic"):
        assert id
    check_usage(client, row, reply)
    check_books(world, client, row, got, stream=stream)
    got = world.ask(client, f"m-{row}", client.answered(body, reply), stream=stream)
    reply = world.read(client, got, stream=stream)
    assert (reply.text, reply.calls, reply.finish) == (SUN, [], client.finishes["stop"])
    assert got.seen[0].talk.result
    check_usage(client, row, reply)
    check_books(world, client, row, got, stream=stream)


@pytest.mark.parametrize(("name", "row", "stream"), pairs(tools=True))
def test_two_calls_at_once_keep_their_order_and_their_results(world: World, name: str, row: str, stream: bool) -> None:
    client = CLIENTS[name]
    body = client.body(f"m-{row}", "BOTH weather?", stream=stream, tools=True)
    reply = world.read(client, world.ask(client, f"m-{row}", body, stream=stream), stream=stream)
    assert [(called, told["city"]) for _, called, told in reply.calls] == [(TOOL, city) for city in CITIES]
    ids = [id for id, _, _ in reply.calls]
    assert len(set(ids)) == 2 or ids == ["", ""]
    got = world.ask(client, f"m-{row}", client.answered(body, reply), stream=stream)
    assert world.read(client, got, stream=stream).text == SUN


PNG = base64.b64encode(b"\x89PNG\r\n\x1a\nrest").decode()
SHAPE = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
SYSTEM = "Be brief."
SAMPLING = {"temperature": 0.5, "top_p": 0.9, "stop": ["x"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SHAPE, "strict": True}}
FLAT = {"type": "json_schema", "name": "a", "schema": SHAPE, "strict": True}
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
SOURCE = {"type": "base64", "media_type": "image/png", "data": PNG}
TURNS = {  # how clients say system prompts and images
    "openai": [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": [IMAGE, {"type": "text", "text": "hi"}]},
    ],
    "responses": [
        {"role": "user", "content": [
            {"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{PNG}"},
            {"type": "input_text", "text": "hi"},
        ]},
    ],
    "anthropic": [
        {"role": "user", "content": [{"type": "image", "source": SOURCE}, {"type": "text", "text": "hi"}]},
    ],
    "gemini": [{"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": PNG}}, {"text": "hi"}]}],
    "ollama_chat": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "hi", "images": [PNG]}],
}  # fmt: skip
SAYS: dict[str, Json] = {
    "openai": {**SAMPLING, "messages": TURNS["openai"], "response_format": FORMAT},
    "responses": {
        **{name: value for name, value in SAMPLING.items() if name != "stop"},
        "instructions": SYSTEM,
        "input": TURNS["responses"],
        "text": {"format": FLAT},
    },
    "anthropic": {
        **{name: value for name, value in SAMPLING.items() if name != "stop"},
        "stop_sequences": ["x"],
        "system": SYSTEM,
        "messages": TURNS["anthropic"],
        "output_config": {"format": {"type": "json_schema", "schema": SHAPE}},
    },
    "gemini": {
        "systemInstruction": {"parts": [{"text": SYSTEM}]},
        "contents": TURNS["gemini"],
        "generationConfig": {
            **{"temperature": 0.5, "topP": 0.9, "stopSequences": ["x"], "maxOutputTokens": LIMIT},
            **{"responseMimeType": "application/json", "responseJsonSchema": SHAPE},
        },
    },
    "ollama_chat": {"messages": TURNS["ollama_chat"], "format": SHAPE, "options": {**SAMPLING, "num_predict": LIMIT}},
    "ollama_generate": {
        "system": SYSTEM,
        "images": [PNG],
        "format": SHAPE,
        "options": {**SAMPLING, "num_predict": LIMIT},
    },
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", SAYS)
def test_all_that_a_request_says_reaches_the_provider_in_its_own_words(world: World, name: str, row: str) -> None:
    client = CLIENTS[name]
    says = json.loads(json.dumps(SAYS[name]))
    if row == "codex":  # the API has no stop sequences
        for holder, field in ((says, "stop"), (says, "stop_sequences"), (says.get("options", {}), "stop")):
            holder.pop(field, None)
        says.get("generationConfig", {}).pop("stopSequences", None)
    got = world.ask(client, f"m-{row}", client.body(f"m-{row}", "hi", **says), stream=False)
    assert world.read(client, got, stream=False).text == TEXT
    talk = got.seen[0].talk
    assert (talk.prompt, talk.system, talk.images, talk.schema) == ("hi", SYSTEM, 1, SHAPE)
    stops = row != "codex" and name != "responses"
    assert talk.sampling == {field: value for field, value in SAMPLING.items() if field != "stop" or stops}
    assert talk.limit == LIMIT
    assert "x-hoosh-dropped-params" not in got.headers


FORCED: dict[str, Json] = {
    "openai": {"tool_choice": "required"},
    "responses": {"tool_choice": "required"},
    "anthropic": {"tool_choice": {"type": "any"}},
    "gemini": {"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}},
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", FORCED)
def test_a_tool_that_must_be_called_is_called_or_the_request_refused(world: World, name: str, row: str) -> None:
    client = CLIENTS[name]
    body = client.body(f"m-{row}", "weather?", tools=True, **FORCED[name])
    got = world.ask(client, f"m-{row}", body, stream=False)
    if row == "ollama":
        assert (got.status, got.seen) == (400, [])
        assert "cannot be made to call a tool" in client.error(got.data, 400)
    else:
        assert world.read(client, got, stream=False).calls
        assert got.seen[0].talk.forced


def shown_by(client: Client, row: str) -> str:
    """The reasoning a client sees: OpenAI tells its own only in the Responses API, and when that is asked for."""
    if row == "openai":
        return THINKING if client.name == "responses" else ""
    return THINKING if row != "codex" or client.name == "responses" else ""


@pytest.mark.parametrize(("name", "row", "stream"), pairs(thinks=True))
def test_reasoning_is_told_where_both_can_carry_it(world: World, name: str, row: str, stream: bool) -> None:
    client = CLIENTS[name]
    body = client.body(f"m-{row}", "THINK", stream=stream, think=True)
    got = world.ask(client, f"m-{row}", body, stream=stream)
    reply = world.read(client, got, stream=stream)
    assert (reply.text, reply.thinking) == (TEXT, shown_by(client, row))
    assert reply.finish == client.finishes["stop"]
    check_usage(client, row, reply, reasoning=REASONING)
    check_books(world, client, row, got, stream=stream)
    assert world.row(got).reasoning_tokens == (0 if row == "ollama" else REASONING)


@pytest.mark.parametrize(("name", "row", "stream"), pairs(thinks=True))
def test_reasoning_that_was_not_asked_for_is_not_told(world: World, name: str, row: str, stream: bool) -> None:
    client = CLIENTS[name]
    body = client.body(f"m-{row}", "THINK", stream=stream)
    reply = world.read(client, world.ask(client, f"m-{row}", body, stream=stream), stream=stream)
    always = row == "custom" and name in ("openai", "responses", "ollama_chat", "ollama_generate")
    assert (reply.text, reply.thinking) == (TEXT, THINKING if always else "")
    check_usage(client, row, reply, reasoning=REASONING)


@pytest.mark.parametrize(("name", "row", "stream"), pairs(tools=True, thinks=True))
def test_reasoning_comes_back_with_the_result_of_a_tool(world: World, name: str, row: str, stream: bool) -> None:
    client = CLIENTS[name]
    body = client.body(f"m-{row}", "THINK weather?", stream=stream, tools=True, think=True)
    reply = world.read(client, world.ask(client, f"m-{row}", body, stream=stream), stream=stream)
    assert reply.thinking == shown_by(client, row)
    assert tuple(reply.calls[0][1:]) == CALLED
    got = world.ask(client, f"m-{row}", client.answered(body, reply), stream=stream)
    assert world.read(client, got, stream=stream).text == SUN
    if row in SIGNED:
        assert got.seen[0].talk.signed == (name in KEEPS)
    elif row in ("custom", "ollama"):
        assert got.seen[0].talk.signed


def moves() -> Iterator[Any]:
    """Every client whose conversation moves from one provider to another."""
    clients = ("openai", "responses", "anthropic", "gemini", "ollama_chat")
    for name, before, after in itertools.product(clients, ROWS, ROWS):
        yield pytest.param(name, before, after, id=f"{name}-{before}-{after}")


@pytest.mark.parametrize(("name", "before", "after"), list(moves()))
def test_a_conversation_goes_on_with_another_provider(world: World, name: str, before: str, after: str) -> None:
    client = CLIENTS[name]
    body = client.body(f"m-{before}", "THINK weather?", tools=True, think=True)
    reply = world.read(client, world.ask(client, f"m-{before}", body, stream=False), stream=False)
    body = client.answered(body, reply) | ({"model": f"m-{after}"} if "model" in body else {})
    got = world.ask(client, f"m-{after}", body, stream=False)
    reply = world.read(client, got, stream=False)
    assert (reply.text, reply.model) == (SUN, f"{ROWS[after][1]}-served")


@pytest.mark.parametrize(("name", "row", "stream"), pairs())
def test_where_one_provider_fails_the_next_answers_whatever_it_speaks(
    world: World, name: str, row: str, stream: bool
) -> None:
    client, model = CLIENTS[name], f"next-{row}"
    got = world.ask(client, model, client.body(model, "hi", stream=stream), stream=stream)
    assert [(seen.talk.fault, seen.refusal) for seen in got.seen] == [("FAIL500", ""), ("", "")]
    reply = client.streamed(got.data) if stream else client.whole(got.data)
    assert (got.status, got.clean, reply.text, reply.model) == (200, True, TEXT, f"{ROWS[row][1]}-served")
    check_usage(client, row, reply)
    failed, answered = world.rows(got)
    assert (failed.status, failed.input_tokens, failed.output_tokens) == (502, 0, 0)
    assert (answered.status, answered.input_tokens, answered.output_tokens) == (200, INPUT, OUTPUT)
    assert held(world.server) == 0


@pytest.mark.parametrize("end", ["length", "filter"])
@pytest.mark.parametrize(("name", "row", "stream"), pairs())
def test_every_end_is_told_in_the_callers_words(world: World, name: str, row: str, stream: bool, end: str) -> None:
    client = CLIENTS[name]
    body = client.body(f"m-{row}", end.upper(), stream=stream)
    got = world.ask(client, f"m-{row}", body, stream=stream)
    reply = world.read(client, got, stream=stream)
    unknown = end == "filter" and row == "ollama" and name != "completions"  # its API has no such end
    assert (reply.text, reply.finish) == (TEXT, client.finishes["stop" if unknown else end])
    check_books(world, client, row, got, stream=stream)


# --- streams that fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["CUT", "SHORT", "MIDERR"])
@pytest.mark.parametrize(("name", "row", "stream"), pairs(streams=(True,)))
def test_a_stream_that_fails_midway_is_told_and_cut(
    world: World, name: str, row: str, stream: bool, fault: str
) -> None:
    client = CLIENTS[name]
    got = world.ask(client, f"m-{row}", client.body(f"m-{row}", fault, stream=True), stream=True)
    assert got.status == 200
    assert not got.clean
    check_schema(client, got, stream=True)
    reply = client.streamed(got.data)
    assert not reply.ended
    assert client.in_band(reply)
    assert reply.text == HELLO[0]
    booked = world.row(got)
    assert booked.status >= 400
    assert booked.error
    assert booked.output_tokens >= 1
    assert held(world.server) == 0


@pytest.mark.parametrize(("name", "row", "stream"), pairs(streams=(False,)))
def test_a_whole_answer_that_is_cut_is_an_error(world: World, name: str, row: str, stream: bool) -> None:
    client = CLIENTS[name]
    got = world.ask(client, f"m-{row}", client.body(f"m-{row}", "CUT"), stream=False)
    assert (got.status, got.clean) == (502, True)
    assert client.error(got.data, 502)
    assert world.row(got).status == 502
    assert held(world.server) == 0


@pytest.mark.parametrize(("name", "row", "stream"), pairs(streams=(True,)))
def test_a_client_that_leaves_ends_the_stream_and_pays_what_it_got(
    world: World, name: str, row: str, stream: bool
) -> None:
    client = CLIENTS[name]
    world.books.read()
    known = set(world.books.rows)
    world.fakes.seen.clear()
    body = client.body(f"m-{row}", "SLOW", stream=True)
    with httpx.stream(
        "POST", world.server.url + client.path(f"m-{row}", stream=True), json=body, headers={"x-api-key": KEY}
    ) as reply:
        data = b""
        with contextlib.suppress(httpx.RemoteProtocolError):
            for piece in reply.iter_raw():
                data += piece
                if HELLO[0].encode() in data:
                    break
    (seen,) = world.fakes.seen
    booked = world.row_later(known)
    assert (booked.status, booked.error) == (499, "client_left")
    assert 1 <= booked.output_tokens < OUTPUT
    wait_for(lambda: seen.gone)
    assert held(world.server) == 0


# --- the provider's own API -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("prompt", ["hi", "THINK weather?"])
@pytest.mark.parametrize(
    ("name", "row"), [pytest.param(name, row, id=f"{name}-{row}") for name, rows in NATIVE.items() for row in rows]
)
def test_who_speaks_the_providers_api_gets_its_bytes(
    world: World, name: str, row: str, prompt: str, stream: bool
) -> None:
    client, model = CLIENTS[name], SAME[row]
    weather = prompt != "hi" and client.tools
    more: Json = {"max_completion_tokens": LIMIT} if name == "openai" and row == "openai" else {}
    body = client.body(model, prompt, stream=stream, tools=weather, think=weather, **more)
    if more:
        del body["max_tokens"]
    if stream and name.startswith("ollama"):
        body["stream"] = True
    sent = json.dumps(body, indent=1).encode()
    got = world.send("POST", client.path(model, stream=stream), sent)
    (seen,) = got.seen
    assert (got.status, seen.refusal) == (200, "")
    assert got.data == seen.sent
    assert seen.doc == body
    if not name.startswith("ollama") and name != "gemini":  # their fields are written anew, each with its bytes
        assert seen.body == sent


@pytest.mark.parametrize(
    ("name", "row"), [pytest.param(name, row, id=f"{name}-{row}") for name, rows in NATIVE.items() for row in rows]
)
def test_of_a_request_in_the_providers_api_only_model_and_limit_change(world: World, name: str, row: str) -> None:
    client = CLIENTS[name]
    body = client.body(f"m-{row}", "hi")
    got = world.ask(client, f"m-{row}", body, stream=False)
    wanted = body | ({"model": ROWS[row][1]} if "model" in body else {})
    if name == "openai" and row == "openai":
        wanted["max_completion_tokens"] = wanted.pop("max_tokens")
    assert got.seen[0].doc == wanted


def test_usage_that_an_openai_client_did_not_ask_for_is_not_told(world: World) -> None:
    for row in ROWS:
        body = {name: value for name, value in openai_body(row).items() if name != "stream_options"}
        got = world.send("POST", "/v1/chat/completions", body)
        assert b'"usage":{' not in got.data.replace(b" ", b""), row
        assert world.row(got).output_tokens == OUTPUT
    body = openai_body("anthropic")
    last = json.loads(world.send("POST", "/v1/chat/completions", body).data.split(b"data: ")[-2])
    assert openai_usage(last["usage"]) == (INPUT, CACHED, OUTPUT, 0)


def openai_body(row: str) -> dict[str, Any]:
    """A streamed request of an OpenAI client."""
    return CLIENTS["openai"].body(f"m-{row}", "hi", stream=True)
