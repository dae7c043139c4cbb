"""Every kind of provider of the catalogue does what docs/compatibility.md says: each field of its table is a test here.

The providers are those of `tests.provider_fakes`, each with its paths, its credential header, what it refuses and what
it tells differently; llama.cpp is the real server besides. The last test is the page.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from budgets.records import Basis
from providers.config import RouteDoc, SettingsDoc
from tests import compatibility
from tests.compatibility import IN_PROCESS, KINDS, REAL, Record
from tests.gateway import openai_schema
from tests.gateway.harness import held
from tests.gateway.kinds_world import (
    DROPPED,
    EMBEDDING,
    NETWORKED,
    NOTHING,
    REFUSED,
    WANTED,
    AnyServer,
    check_books,
    kinds_world,
    names_of,
)
from tests.gateway.matrix_clients import CALLED, CLIENTS, LIMIT, Reply, events, openai_error
from tests.gateway.matrix_world import Got, World, check_schema
from tests.provider_fakes import VECTOR, ProviderFakes
from tests.provider_fakes_base import (
    CACHED,
    CITIES,
    HELLO,
    INPUT,
    LOOK,
    OUTPUT,
    REFUSAL,
    RETRY_AFTER_S,
    SUNNY,
    TOOL,
    WEATHER,
    Json,
)
from tests.servers import LlamaServer

RECORD = Record()
CLIENT, RESPONSES, LEGACY = AnyServer(), CLIENTS["responses"], CLIENTS["completions"]
TEXT, SUN = "".join(HELLO), "".join(SUNNY)
DEMO = "This is Hoosh's demo model. You said: hi"
STREAMS = (False, True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from kinds_world(tmp_path_factory.mktemp("compatibility"))


def ask(world: World, name: str, prompt: str, *, stream: bool, client: Any = CLIENT, **more: Any) -> tuple[Got, Reply]:
    """A good answer of a provider, as it came and as a client reads it."""
    model = f"m-{name}"
    got = world.ask(client, model, client.body(model, prompt, stream=stream, **more), stream=stream)
    return got, world.read(client, got, stream=stream)


# --- chat -------------------------------------------------------------------------------------------------------------


@RECORD.proves("chat", NETWORKED)
def test_a_chat_is_answered(world: World, kind: str) -> None:
    for name in names_of(kind):
        wanted = WANTED[name]
        got, reply = ask(world, name, "hi", stream=False)
        assert (reply.text, reply.finish, reply.model) == (TEXT, "stop", f"{name}-up-served")
        (seen,) = got.seen
        assert seen.path == wanted.path
        bearer = "Bearer " if wanted.header == "authorization" else ""
        assert seen.headers[wanted.header] == bearer + world.fakes.secret(name)
        for end, finish in (("LENGTH", "length"), ("FILTER", "stop" if name == "ollama" else "content_filter")):
            assert ask(world, name, end, stream=False)[1].finish == finish
        _, reply = ask(world, name, "THINK", stream=False, client=RESPONSES, think=True)
        assert (reply.text, reply.thinking, reply.finish) == (TEXT, wanted.thinking, "completed")


@RECORD.proves("chat", NETWORKED)
def test_what_a_chat_says_arrives_as_the_provider_knows_it(world: World, kind: str) -> None:
    for name in names_of(kind):
        for field in ("max_tokens", "max_completion_tokens"):
            body = CLIENT.body(f"m-{name}", "hi", temperature=0.5, top_p=0.9, stop=["x"], seed=7)
            body[field] = body.pop("max_tokens")
            got = world.ask(CLIENT, f"m-{name}", body, stream=False)
            assert world.read(CLIENT, got, stream=False).text == TEXT
            talk = got.seen[0].talk
            assert (talk.limit, talk.model) == (LIMIT, f"{name}-up")
            assert talk.sampling == {"temperature": 0.5, "top_p": 0.9, "stop": ["x"]}
            assert talk.more.get("seed", 7) == 7
        thought = {"type": "reasoning.encrypted", "data": "x", "id": "rs_1", "format": "openai-responses-v1"}
        said = {"role": "assistant", "content": "Yes?", "reasoning_content": "Hm.", "reasoning_details": [thought]}
        body = CLIENT.body(f"m-{name}", "hi")
        body["messages"] += [said, {"role": "user", "content": "well"}]
        got = world.ask(CLIENT, f"m-{name}", body, stream=False)
        assert world.read(CLIENT, got, stream=False).text == TEXT
        assert got.seen[0].talk.prompt == "hiwell"


# --- stream -----------------------------------------------------------------------------------------------------------


def pieces_of(data: bytes) -> list[str]:
    """The pieces of text in a stream of chunks, in order."""
    chunks = [json.loads(event) for _, event in events(data) if event != "[DONE]"]
    contents = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
    return [content for content in contents if content]


@RECORD.proves("stream", NETWORKED)
def test_a_stream_comes_whole_and_in_order(world: World, kind: str) -> None:
    for name in names_of(kind):
        got, reply = ask(world, name, "hi", stream=True)
        assert (reply.text, reply.finish, reply.model) == (TEXT, "stop", f"{name}-up-served")
        assert pieces_of(got.data) == list(HELLO)
        assert reply.ended
        assert got.data.endswith(b"data: [DONE]\n\n")
        assert got.data.count(b"[DONE]") == 1
        assert ask(world, name, "LENGTH", stream=True)[1].finish == "length"
        _, reply = ask(world, name, "THINK", stream=True, client=RESPONSES, think=True)
        assert (reply.text, reply.thinking, reply.finish) == (TEXT, WANTED[name].thinking, "completed")


# --- tools ------------------------------------------------------------------------------------------------------------


@RECORD.proves("tools", NETWORKED)
def test_tools_are_called_and_their_results_answered(world: World, kind: str) -> None:
    for name in names_of(kind):
        for stream in STREAMS:
            for prompt, cities in (("weather?", CITIES[:1]), ("BOTH weather?", CITIES)):
                body = CLIENT.body(f"m-{name}", prompt, stream=stream, tools=True)
                reply = world.read(CLIENT, world.ask(CLIENT, f"m-{name}", body, stream=stream), stream=stream)
                assert (reply.text, reply.finish) == ("".join(LOOK), "tool_calls")
                assert [called[1:] for called in reply.calls] == [(TOOL, {"city": city}) for city in cities]
                assert len({id for id, _, _ in reply.calls if id}) == len(cities)
                got = world.ask(CLIENT, f"m-{name}", CLIENT.answered(body, reply), stream=stream)
                reply = world.read(CLIENT, got, stream=stream)
                assert (reply.text, reply.calls, reply.finish) == (SUN, [], "stop")
                assert got.seen[0].talk.result


@RECORD.proves("tools", NETWORKED)
def test_a_tool_that_must_be_called_is_called_or_the_request_refused(world: World, kind: str) -> None:
    for name in names_of(kind):
        body = CLIENT.body(f"m-{name}", "weather?", tools=True, tool_choice="required")
        got = world.ask(CLIENT, f"m-{name}", body, stream=False)
        if WANTED[name].forced:
            assert tuple(world.read(CLIENT, got, stream=False).calls[0][1:]) == CALLED
            assert got.seen[0].talk.forced
        else:
            assert (got.status, got.seen) == (400, [])
            assert "tool" in CLIENT.error(got.data, 400)


@RECORD.proves("tools", NETWORKED)
def test_a_call_that_another_provider_made_is_answered(world: World, kind: str) -> None:
    called = {"name": TOOL, "arguments": '{"city":"Paris"}'}
    for name in names_of(kind):
        for id in ("toolu_01AbCdEfGhIjKlMnOpQrStUv", "call_o1", "0"):
            body = CLIENT.body(f"m-{name}", "weather?", tools=True)
            calls = [{"id": id, "type": "function", "function": called}]
            result = {"role": "tool", "tool_call_id": id, "content": WEATHER}
            body["messages"] += [{"role": "assistant", "content": None, "tool_calls": calls}, result]
            got = world.ask(CLIENT, f"m-{name}", body, stream=False)
            assert world.read(CLIENT, got, stream=False).text == SUN


# --- usage ------------------------------------------------------------------------------------------------------------


@RECORD.proves("usage", NETWORKED)
def test_usage_is_booked_exactly_as_the_provider_tells_it(world: World, kind: str) -> None:
    for name in names_of(kind):
        wanted = WANTED[name]
        for stream in STREAMS:
            for prompt, reasoning in (("hi", 0), ("THINK", wanted.reasoning)):
                got, reply = ask(world, name, prompt, stream=stream, think=prompt == "THINK")
                told = OUTPUT - reasoning if wanted.excluded else OUTPUT
                assert reply.usage == (INPUT, wanted.cached, told, reasoning)
                check_books(world, got, wanted, reasoning=reasoning)
        body = CLIENT.body(f"m-{name}", "hi", stream=True)
        del body["stream_options"]
        got = world.ask(CLIENT, f"m-{name}", body, stream=True)
        assert world.read(CLIENT, got, stream=True).text == TEXT
        assert b'"choices":[],"usage"' not in got.data.replace(b" ", b""), "nobody asked for it"
        check_books(world, got, wanted)


@RECORD.proves("usage", NETWORKED)
def test_usage_over_the_responses_api_is_what_is_booked(world: World, kind: str) -> None:
    for name in names_of(kind):
        wanted = WANTED[name]
        for stream in STREAMS:
            got, reply = ask(world, name, "THINK", stream=stream, client=RESPONSES, think=True)
            assert reply.usage == (INPUT, wanted.cached, OUTPUT, wanted.reasoning)
            check_books(world, got, wanted, reasoning=wanted.reasoning)


# --- errors -----------------------------------------------------------------------------------------------------------

FAULTS = (("FAIL429", 429), ("FAIL500", 502), ("FAILAUTH", 502), ("FAILBAD", 400))


@RECORD.proves("errors", NETWORKED)
def test_errors_are_told_in_the_shape_of_openai(world: World, kind: str) -> None:
    for name in names_of(kind):
        for fault, status in FAULTS:
            for stream in STREAMS:
                body = CLIENT.body(f"m-{name}", fault, stream=stream)
                got = world.ask(CLIENT, f"m-{name}", body, stream=stream)
                assert (got.status, got.clean, len(got.seen)) == (status, True, 1), (fault, got.data)
                assert got.headers["content-type"] == "application/json"
                told = json.loads(got.data)
                assert openai_schema.problems(told, openai_schema.ERROR) == []
                assert (REFUSAL in openai_error(told)) == (fault == "FAILBAD"), (fault, told)
                assert got.headers.get("retry-after") == (str(RETRY_AFTER_S) if fault == "FAIL429" else None)
                booked = world.row(got)
                assert (booked.status, booked.output_tokens, booked.basis) == (status, 0, Basis.NONE)
                assert held(world.server) == 0


@RECORD.proves("errors", NETWORKED)
def test_a_stream_that_fails_is_told_and_cut(world: World, kind: str) -> None:
    for name in names_of(kind):
        for fault in ("MIDERR", "CUT", "SHORT"):
            body = CLIENT.body(f"m-{name}", fault, stream=True)
            got = world.ask(CLIENT, f"m-{name}", body, stream=True)
            assert (got.status, got.clean) == (200, False), fault
            check_schema(CLIENT, got, stream=True)
            reply = CLIENT.streamed(got.data)
            assert not reply.ended
            assert CLIENT.in_band(reply)
            assert reply.text == HELLO[0]
            booked = world.row(got)
            assert booked.status >= 400
            assert booked.output_tokens >= 1
            assert held(world.server) == 0


@RECORD.proves("errors", NETWORKED)
def test_parameters_that_the_provider_refuses_do_not_reach_it(world: World, kind: str) -> None:
    for field, value in REFUSED.get(kind, {}).items():
        got = world.ask(CLIENT, f"m-{kind}", CLIENT.body(f"m-{kind}", "hi", **{field: value}), stream=False)
        assert (got.status, got.seen) == (400, []), field
        error = json.loads(got.data)["error"]
        assert (error["param"], error["code"]) == (field, "unsupported_parameter")
    if dropped := DROPPED.get(kind):
        got, reply = ask(world, kind, "hi", stream=False, **dropped)
        assert reply.text == TEXT
        assert set(got.headers["x-hoosh-dropped-params"].split(", ")) == set(dropped)


@RECORD.proves("errors", ["mistral"])
def test_the_list_of_what_is_wrong_with_a_request_is_told_in_words(world: World, kind: str) -> None:
    body = CLIENT.body(f"m-{kind}", "hi")
    body["messages"][0]["name"] = "me"
    got = world.ask(CLIENT, f"m-{kind}", body, stream=False)
    assert (got.status, len(got.seen)) == (422, 1)
    assert "Extra inputs are not permitted" in CLIENT.error(got.data, 422)
    assert json.loads(got.data)["error"]["param"] == "messages"


@RECORD.proves("errors", NETWORKED)
def test_what_says_nothing_does_not_reach_who_refuses_it_and_nobody_is_told(world: World, kind: str) -> None:
    for name in names_of(kind):
        for field, value in NOTHING.items():
            got, reply = ask(world, name, "hi", stream=False, **{field: value})
            assert reply.text == TEXT
            assert "x-hoosh-dropped-params" not in got.headers, field
        for client, more in (
            (CLIENT, {"service_tier": "default"}),
            (CLIENTS["anthropic"], {"service_tier": "standard_only"}),
            (LEGACY, {"stream_options": None, "logprobs": None, "echo": False}),
        ):
            got, reply = ask(world, name, "hi", stream=False, client=client, **more)
            assert (reply.text, got.headers.get("x-hoosh-dropped-params")) == (TEXT, None)


@RECORD.proves("errors", ["mistral", "groq"])
def test_what_is_left_out_is_told_in_the_callers_words(world: World, kind: str) -> None:
    for name, more, left in (
        ("ollama_chat", {"options": {"num_predict": 9, "min_p": 0.1}}, "options.min_p"),
        ("gemini", {"generationConfig": {"maxOutputTokens": 9, "topK": 5, "mediaResolution": "x"}}, ""),
        ("responses", {"safety_identifier": "s"}, "safety_identifier"),
    ):
        client = CLIENTS[name]
        body = client.body(f"m-{kind}", "hi") | more
        got = world.ask(client, f"m-{kind}", body, stream=False)
        assert world.read(client, got, stream=False).text == TEXT
        top_k = ["generationConfig.topK"] if kind == "groq" else []
        wanted = [left] if left else ["generationConfig.mediaResolution", *top_k]
        assert got.headers["x-hoosh-dropped-params"].split(", ") == wanted


# --- legacy completions -----------------------------------------------------------------------------------------------


@RECORD.proves("completions", NETWORKED)
def test_a_prompt_is_completed(world: World, kind: str) -> None:
    for name in names_of(kind):
        wanted = WANTED[name]
        cached = wanted.cached if kind != "ollama" else CACHED  # its OpenAI path is imitated as OpenAI's
        for stream in STREAMS:
            got, reply = ask(world, name, "hi", stream=stream, client=LEGACY, temperature=0.5, top_p=0.9, stop=["x"])
            assert (reply.text, reply.finish, reply.ended) == (TEXT, "stop", True)
            assert reply.usage == (INPUT, cached, OUTPUT, 0)
            (seen,) = got.seen
            assert seen.path == (wanted.completions or streamed_at(wanted.path, stream=stream))
            assert (seen.talk.limit, seen.talk.model) == (LIMIT, f"{name}-up")
            assert seen.talk.sampling == {"temperature": 0.5, "top_p": 0.9, "stop": ["x"]}
            booked = world.row(got)
            assert (booked.input_tokens, booked.cached_tokens, booked.output_tokens) == (INPUT, cached, OUTPUT)
            assert booked.basis == Basis.REPORTED
            assert ask(world, name, "LENGTH", stream=stream, client=LEGACY)[1].finish == "length"


@RECORD.proves("completions", NETWORKED)
def test_a_completions_stream_tells_usage_on_a_chunk_of_its_own_or_not_at_all(world: World, kind: str) -> None:
    for name in names_of(kind):
        body = LEGACY.body(f"m-{name}", "hi", stream=True)
        for asked in (True, False):
            if not asked:
                del body["stream_options"]
            got = world.ask(LEGACY, f"m-{name}", body, stream=True)
            chunks = [json.loads(event) for _, event in events(got.data) if event != "[DONE]"]
            telling = [(place, chunk["choices"]) for place, chunk in enumerate(chunks) if chunk.get("usage")]
            assert telling == ([(len(chunks) - 1, [])] if asked else [])
            assert got.data.endswith(b"data: [DONE]\n\n")
            assert world.row(got).output_tokens == OUTPUT


@RECORD.proves("completions", NETWORKED)
def test_a_completion_that_fails_is_told_in_the_shape_of_openai(world: World, kind: str) -> None:
    for name in names_of(kind):
        for fault, status in FAULTS:
            for stream in STREAMS:
                got = world.ask(LEGACY, f"m-{name}", LEGACY.body(f"m-{name}", fault, stream=stream), stream=stream)
                assert (got.status, got.clean, len(got.seen)) == (status, True, 1), (fault, got.data)
                assert openai_schema.problems(json.loads(got.data), openai_schema.ERROR) == []
        for fault in ("MIDERR", "CUT", "SHORT"):
            got = world.ask(LEGACY, f"m-{name}", LEGACY.body(f"m-{name}", fault, stream=True), stream=True)
            assert (got.status, got.clean) == (200, False), fault
            reply = LEGACY.streamed(got.data)
            assert (reply.text, reply.ended) == (HELLO[0], False)
            assert LEGACY.in_band(reply)
            assert held(world.server) == 0


def streamed_at(path: str, *, stream: bool) -> str:
    """Where a provider is asked for a stream, if not where it is asked for a whole answer."""
    return path.replace(":generateContent", ":streamGenerateContent") if stream else path


# --- embeddings -------------------------------------------------------------------------------------------------------


def embedded(world: World, name: str, encoding: str) -> tuple[Got, list[Any]]:
    """Two texts embedded: the vectors as they came."""
    body = {"model": f"m-{name}", "input": ["one", "two"], "encoding_format": encoding}
    got = world.send("POST", "/v1/embeddings", body)
    assert got.status == 200, (got.data, [seen.refusal for seen in got.seen])
    passed = any(seen.path.endswith("/v1/embeddings") for seen in got.seen)
    wrong = openai_schema.wrong_in("embeddings", got.data, stream=False, lenient=passed)
    assert not wrong, (wrong, got.data[-300:])
    return got, [item["embedding"] for item in json.loads(got.data)["data"]]


@RECORD.proves("embeddings", EMBEDDING)
def test_texts_are_embedded(world: World, kind: str) -> None:
    for name in names_of(kind):
        packed = base64.b64encode(struct.pack(f"<{len(VECTOR)}f", *VECTOR)).decode()
        for encoding, vector in (("float", VECTOR), ("base64", packed)):
            got, vectors = embedded(world, name, encoding)
            assert vectors == [vector, vector]
            (seen,) = got.seen
            assert seen.path == WANTED[name].embeddings
            assert world.fakes.secret(name) in seen.headers[WANTED[name].header]
            booked = world.row(got)
            assert (booked.input_tokens, booked.output_tokens, booked.basis) == (INPUT, 0, Basis.REPORTED)
            assert held(world.server) == 0


@pytest.mark.parametrize("kind", [kind for kind in NETWORKED if kind not in EMBEDDING])
def test_who_has_no_embeddings_is_not_found(world: World, kind: str) -> None:
    got = world.send("POST", "/v1/embeddings", {"model": f"m-{kind}", "input": "one"})
    assert (got.status, got.seen) == (404, [])
    told = json.loads(got.data)
    assert openai_schema.problems(told, openai_schema.ERROR) == []
    assert told["error"]["code"] == "model_not_found"
    assert told["error"]["message"] == f"No route for 'm-{kind}' serves embeddings."
    model = json.loads(world.send("GET", f"/v1/models/m-{kind}").data)
    assert model["providers"][0]["endpoints"] == ["chat", "completions"]
    assert model["capabilities"]["embeddings"] is False


# --- the gateway's own answers ----------------------------------------------------------------------------------------


def test_models_are_told_as_openai_tells_them(world: World) -> None:
    got = world.send("GET", "/v1/models")
    told = json.loads(got.data)
    assert openai_schema.problems(told, openai_schema.MODELS) == []
    assert {f"m-{name}" for name in WANTED} <= {model["id"] for model in told["data"]}
    one = json.loads(world.send("GET", "/v1/models/m-openai").data)
    assert openai_schema.problems(one, openai_schema.MODEL, lenient=True) == []  # with the model's card beside it


def test_refusals_are_told_as_openai_tells_them(world: World) -> None:
    body = CLIENT.body("m-openai", "hi")
    for status, got in (
        (400, world.send("POST", "/v1/chat/completions", b"{")),
        (400, world.send("POST", "/v1/chat/completions", {**body, "n": "two"})),
        (401, world.send("POST", "/v1/chat/completions", body, x_api_key="hk-wrong")),
        (404, world.send("POST", "/v1/chat/completions", {**body, "model": "nobody"})),
        (404, world.send("GET", "/v1/models/nobody")),
        (405, world.send("GET", "/v1/responses")),
        (400, world.send("POST", "/v1/responses", {"model": "m-openai", "input": []})),
    ):
        assert (got.status, got.seen) == (status, [])
        assert openai_schema.problems(json.loads(got.data), openai_schema.ERROR) == []


# --- the demo, in process ---------------------------------------------------------------------------------------------


def ask_demo(world: World, prompt: str, *, stream: bool, client: Any = CLIENT, **more: Any) -> tuple[Got, Reply]:
    """The same for the provider that is asked no other way. Its answers are the gateway's own to the last field."""
    got = world.ask(client, "m-demo", client.body("m-demo", prompt, stream=stream, **more), stream=stream)
    assert (got.status, got.clean) == (200, True), got.data
    assert openai_schema.wrong_in(client.name, got.data, stream=stream, lenient=False) == []
    return got, client.streamed(got.data) if stream else client.whole(got.data)


@RECORD.proves("chat", ["demo"], IN_PROCESS)
def test_the_demo_answers(world: World, kind: str) -> None:
    _, reply = ask_demo(world, "hi", stream=False)
    assert (reply.text, reply.finish, reply.model) == (DEMO, "stop", "m-demo")
    _, reply = ask_demo(world, "hi", stream=False, max_tokens=2)
    assert (reply.text, reply.finish) == ("This is", "length")
    _, reply = ask_demo(world, "hi", stream=False, client=RESPONSES)
    assert (reply.text, reply.finish) == (DEMO, "completed")


@RECORD.proves("stream", ["demo"], IN_PROCESS)
def test_the_demo_streams(world: World, kind: str) -> None:
    got, reply = ask_demo(world, "hi", stream=True)
    assert (reply.text, reply.finish, reply.ended) == (DEMO, "stop", True)
    assert "".join(pieces_of(got.data)) == DEMO
    assert len(pieces_of(got.data)) > 3
    assert got.data.endswith(b"data: [DONE]\n\n")
    _, reply = ask_demo(world, "hi", stream=True, client=RESPONSES)
    assert (reply.text, reply.finish) == (DEMO, "completed")
    ask_demo(world, "hi", stream=True, client=CLIENTS["completions"])


@RECORD.proves("completions", ["demo"], IN_PROCESS)
def test_the_demo_completes(world: World, kind: str) -> None:
    for stream in STREAMS:
        _, reply = ask_demo(world, "hi", stream=stream, client=LEGACY)
        said = " This is Hoosh's demo model. You wrote: hi"
        assert (reply.text, reply.finish, reply.ended) == (said, "stop", True)
        assert reply.usage is not None


@RECORD.proves("tools", ["demo"], IN_PROCESS)
def test_the_demo_calls_the_tool_it_must_call(world: World, kind: str) -> None:
    for stream in STREAMS:
        body = CLIENT.body("m-demo", "hi", stream=stream, tools=True)
        _, reply = ask_demo(world, "hi", stream=stream, tools=True, tool_choice="required")
        ((id, *called),) = reply.calls
        assert (id, called, reply.finish) == ("call_demo_0", [TOOL, {"city": "hi"}], "tool_calls")
        answered = CLIENT.answered(body, reply)
        got = world.ask(CLIENT, "m-demo", answered, stream=stream)
        assert got.status == 200
        reply = CLIENT.streamed(got.data) if stream else CLIENT.whole(got.data)
        assert (reply.text, reply.finish) == (DEMO, "stop")


@RECORD.proves("usage", ["demo"], IN_PROCESS)
def test_the_demos_usage_is_booked(world: World, kind: str) -> None:
    for stream in STREAMS:
        for client in (CLIENT, RESPONSES):
            got, reply = ask_demo(world, "hi", stream=stream, client=client)
            booked = world.row(got)
            assert reply.usage == (booked.input_tokens, 0, booked.output_tokens, 0)
            assert booked.output_tokens > 5
            assert booked.basis == Basis.REPORTED
            assert held(world.server) == 0


@RECORD.proves("errors", ["demo"], IN_PROCESS)
def test_what_the_demo_cannot_do_it_refuses(world: World, kind: str) -> None:
    got = world.send("POST", "/v1/embeddings", {"model": "m-demo", "input": "a", "dimensions": 5000})
    told = json.loads(got.data)
    assert (got.status, told["error"]["param"]) == (400, "dimensions")
    assert openai_schema.problems(told, openai_schema.ERROR) == []
    assert world.row(got).tokens == 0
    assert held(world.server) == 0


@RECORD.proves("embeddings", ["demo"], IN_PROCESS)
def test_the_demo_embeds(world: World, kind: str) -> None:
    _, floats = embedded(world, "demo", "float")
    got, packed = embedded(world, "demo", "base64")
    for vector, text in zip(floats, packed, strict=True):
        assert struct.unpack("<64f", base64.b64decode(text)) == pytest.approx(vector)
    booked = world.row(got)
    assert (booked.input_tokens, booked.output_tokens, booked.basis) == (2, 0, Basis.REPORTED)


# --- llama.cpp, the real server ---------------------------------------------------------------------------------------

ROOM, CHOICES = (
    2500,
    ("Oslo", "Rome"),
)  # how many calls the model makes is chance; with this many tokens it always comes to an end by itself
TINY, TOOLS, WRONG = "tiny", "tools", "wrong"  # a model that talks, one that calls tools, and the latter without a key
ENUM = {"type": "object", "properties": {"city": {"type": "string", "enum": list(CHOICES)}}, "required": ["city"]}
CALLING: Json = {
    **{"tool_choice": "required", "max_tokens": ROOM},
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": ENUM}}],
}


@pytest.fixture(scope="module")
def real(llama: LlamaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A worker before two real servers. The one that calls tools wants a key."""
    fakes = ProviderFakes()  # not started: only its keys
    tools = LlamaServer(
        tmp_path_factory.mktemp("llama"), alias="tools", key=fakes.secret(TOOLS), tool_happy=True, end_bias=7.0
    )
    try:
        tools.start()
        found = {TINY: ("llamacpp", llama.base_url), **dict.fromkeys((TOOLS, WRONG), ("llamacpp", tools.base_url))}
        directory = tmp_path_factory.mktemp("real")
        with World(directory, fakes, SettingsDoc(), providers=found, routes=_own_routes) as world:
            yield world
    finally:
        tools.stop()


def _own_routes(numbers: dict[str, int]) -> list[RouteDoc]:
    models = {TINY: TINY, TOOLS: TOOLS, WRONG: TOOLS}
    return [
        RouteDoc(id=number, name=name, pattern=name, provider_id=number, upstream_model=models[name])
        for name, number in numbers.items()
    ]


def ask_real(
    world: World, name: str, *, stream: bool, client: Any = CLIENT, body: Json | None = None, **more: Any
) -> tuple[Got, Reply]:
    """A good answer of the real server, whose usage is told and booked alike."""
    asked = client.body(name, "say a few words", stream=stream, **more) if body is None else body
    got = world.ask(client, name, asked, stream=stream)
    assert (got.status, got.clean) == (200, True), got.data
    wrong = openai_schema.wrong_in(client.name, got.data, stream=stream, lenient=client is not RESPONSES)
    assert not wrong, "\n".join(wrong)
    reply = client.streamed(got.data) if stream else client.whole(got.data)
    booked = world.row(got)
    assert reply.usage == (booked.input_tokens, booked.cached_tokens, booked.output_tokens, booked.reasoning_tokens)
    assert booked.basis == Basis.REPORTED
    assert held(world.server) == 0
    return got, reply


@RECORD.proves("chat", ["llamacpp"], REAL)
def test_the_real_server_answers(real: World, kind: str) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        body = CLIENT.body(TINY, "say a few words", temperature=0.5, seed=7) | {"max_tokens": 8}
        body[field] = body.pop("max_tokens")
        _, reply = ask_real(real, TINY, stream=False, body=body)
        assert reply.text
        assert (reply.finish, reply.model) == ("length", TINY)
        assert reply.usage is not None
        assert reply.usage[2] == 8
    _, reply = ask_real(real, TINY, stream=False, client=RESPONSES, max_output_tokens=16)
    assert reply.text
    assert reply.finish == "incomplete:max_output_tokens"


@RECORD.proves("stream", ["llamacpp"], REAL)
def test_the_real_server_streams(real: World, kind: str) -> None:
    got, reply = ask_real(real, TINY, stream=True, max_tokens=8)
    assert len(pieces_of(got.data)) > 3
    assert "".join(pieces_of(got.data)) == reply.text
    assert (reply.finish, reply.ended) == ("length", True)
    assert got.data.count(b"[DONE]") == 1
    _, reply = ask_real(real, TINY, stream=True, client=RESPONSES, max_output_tokens=16)
    assert reply.finish == "incomplete:max_output_tokens"


@RECORD.proves("completions", ["llamacpp"], REAL)
def test_the_real_server_completes(real: World, kind: str) -> None:
    for stream in STREAMS:
        _, reply = ask_real(real, TINY, stream=stream, client=LEGACY, max_tokens=8)
        assert (bool(reply.text), reply.finish, reply.usage is not None and reply.usage[2]) == (True, "length", 8)


@RECORD.proves("tools", ["llamacpp"], REAL)
def test_the_real_server_calls_a_tool_and_takes_the_result(real: World, kind: str) -> None:
    for stream in STREAMS:
        body = CLIENT.body(TOOLS, "say a few words", stream=stream) | CALLING
        _, reply = ask_real(real, TOOLS, stream=stream, body=body)
        assert reply.finish == "tool_calls"
        assert reply.calls
        assert {(name, told["city"] in CHOICES) for _, name, told in reply.calls} == {("weather", True)}
        answered = CLIENT.answered(body, reply) | {"tool_choice": "none", "max_tokens": 8}
        _, reply = ask_real(real, TOOLS, stream=stream, body=answered)
        assert reply.finish in ("stop", "length")
        assert reply.calls == []


@RECORD.proves("usage", ["llamacpp"], REAL)
def test_the_real_servers_usage_is_booked(real: World, kind: str) -> None:
    for stream in STREAMS:
        for client, limit in ((CLIENT, "max_tokens"), (RESPONSES, "max_output_tokens")):
            body = client.body(TINY, "say a few words", stream=stream) | {limit: 16}
            _, reply = ask_real(real, TINY, stream=stream, client=client, body=body)
            assert reply.usage is not None
            assert reply.usage[0] > 3
            assert reply.usage[2] == 16
    body = CLIENT.body(TINY, "say a few words", stream=True) | {"max_tokens": 16}
    del body["stream_options"]
    got = real.ask(CLIENT, TINY, body, stream=True)
    assert b'"usage":{' not in got.data
    booked = real.row(got)
    assert (booked.output_tokens, booked.basis) == (16, Basis.REPORTED)


@RECORD.proves("errors", ["llamacpp"], REAL)
def test_the_real_servers_errors_are_told_in_the_shape_of_openai(real: World, kind: str) -> None:
    for name, prompt, status, words in ((WRONG, "hi", 502, "credential"), (TINY, "water " * 9000, 400, "context")):
        for stream in STREAMS:
            body = CLIENT.body(name, prompt, stream=stream) | {"max_tokens": 8}
            got = real.ask(CLIENT, name, body, stream=stream)
            told = json.loads(got.data)
            assert (got.status, got.clean) == (status, True), told
            assert openai_schema.problems(told, openai_schema.ERROR) == []
            assert words in openai_error(told)
            booked = real.row(got)
            assert (booked.status, booked.tokens, booked.basis) == (status, 0, Basis.NONE)
            assert held(real.server) == 0


@RECORD.proves("embeddings", ["llamacpp"], REAL)
def test_the_real_server_embeds(real: World, kind: str) -> None:
    seen = {}
    for encoding in ("float", "base64"):
        body = {"model": TINY, "input": ["water", "more water"], "encoding_format": encoding}
        got = real.send("POST", "/v1/embeddings", body)
        assert openai_schema.wrong_in("embeddings", got.data, stream=False, lenient=True) == []
        told = json.loads(got.data)
        seen[encoding] = [item["embedding"] for item in told["data"]]
        booked = real.row(got)
        assert (booked.input_tokens, booked.output_tokens) == (told["usage"]["prompt_tokens"], 0)
    assert [len(vector) for vector in seen["float"]] == [64, 64]
    for vector, text in zip(seen["float"], seen["base64"], strict=True):
        assert struct.unpack("<64f", base64.b64decode(text)) == pytest.approx(vector, abs=1e-6)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_every_kind_of_the_catalogue_has_its_tests() -> None:
    columns = {kind: {proof.cell.column for proof in RECORD.planned if proof.cell.kind == kind} for kind in KINDS}
    for kind, found in columns.items():
        missing = set(compatibility.COLUMNS) - found - {"embeddings"}
        assert not missing, f"{kind}: imitate it in tests/provider_fakes_kinds.py"


def test_the_clients_tests_exist() -> None:
    assert compatibility.missing_tests() == []


def test_the_page_says_what_passed_and_nothing_else(request: pytest.FixtureRequest) -> None:
    if RECORD.selected(request.session.items) != RECORD.planned:
        pytest.skip("only a part of the tests was selected")
    told = compatibility.page(RECORD)
    if request.config.getoption(compatibility.OPTION):
        compatibility.PAGE.write_text(told, encoding="utf-8")
    written = compatibility.PAGE.read_text(encoding="utf-8") if compatibility.PAGE.exists() else ""
    assert sorted(f"{proof.test}[{proof.cell.kind}]" for proof in RECORD.failed) == []
    assert written == told, f"the page is not what passed: `{compatibility.COMMAND}` writes it anew"
