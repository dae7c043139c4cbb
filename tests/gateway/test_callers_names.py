"""Refusals and the header of dropped fields name what the caller has written, whatever API it speaks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.dialects import anthropic, gemini, names, ollama, responses
from gateway.endpoints import parse_chat
from gateway.errors import BadRequestError
from providers.canonical import Call, UnsupportedParamError
from providers.config import SettingsDoc
from tests.gateway.matrix_clients import ABOUT, CLIENTS, SCHEMA
from tests.gateway.matrix_world import World, worlds
from tests.provider_fakes_base import TOOL, Json

PICTURE = "https://pictures.example/cat.png"


# --- names ------------------------------------------------------------------------------------------------------------

TABLE = {"stop": "config.stops", "messages": "turns", "rows": "lines[]", "tools.function.strict": "tools.strict"}


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("stop", "config.stops"),
        ("stopping", "stopping"),
        ("messages", "turns"),
        ("messages[2].content[0].image_url", "turns"),
        ("rows[2].cells[0]", "lines[2]"),
        ("rows", "lines"),
        ("tools.function.strict", "tools.strict"),
        ("tools[1].function.strict", "tools.strict"),
        ("tools[1].function.name", "tools[1].function.name"),
        ("", ""),
    ],
)
def test_a_place_is_told_as_the_field_of_the_caller_that_holds_it(place: str, name: str) -> None:
    assert names.told(TABLE, place) == name
    assert names.told({}, place) == place


def test_a_refusal_quotes_the_callers_field_and_leaves_everything_else_in_it() -> None:
    error = names.refusal(TABLE, UnsupportedParamError("stop", "It cannot honour 'stop' for the model 'stop'."))
    assert isinstance(error, BadRequestError)
    assert (error.param, error.code) == ("config.stops", "unsupported_parameter")
    assert error.message == "It cannot honour 'config.stops' for the model 'stop'."
    other = names.refusal(TABLE, UnsupportedParamError("messages[1].content", "'messages[1].content' must be text."))
    assert (other.message, other.param) == ("'turns' must be text.", "turns")


# --- what the parsers say of their own fields -------------------------------------------------------------------------

_FUNCTION: Json = {"name": TOOL, "description": ABOUT, "parameters": SCHEMA}
_CONFIG: Json = {
    **{"maxOutputTokens": 9, "temperature": 1, "topP": 0.5, "topK": 3, "seed": 1, "candidateCount": 2},
    **{"presencePenalty": 1, "frequencyPenalty": 1, "stopSequences": ["x"], "responseLogprobs": True, "logprobs": 2},
}
_GEMINI: Json = {
    "contents": [{"parts": [{"text": "hi"}]}],
    "tools": [{"functionDeclarations": [{"name": TOOL}]}],
    "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
    "serviceTier": "flex",
}
_ANTHROPIC: Json = {
    **{"model": "m", "max_tokens": 2000, "messages": [{"role": "user", "content": "hi"}], "stop_sequences": ["x"]},
    **{"temperature": 1, "top_p": 0.5, "top_k": 3, "metadata": {"user_id": "u"}, "service_tier": "standard_only"},
    "tools": [{"name": TOOL, "input_schema": SCHEMA, "strict": True}],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
}
_OPTIONS: Json = {
    **{"num_predict": 9, "temperature": 1, "top_p": 0.5, "top_k": 3, "min_p": 0.5, "seed": 1, "stop": ["x"]},
    **{"presence_penalty": 1, "frequency_penalty": 1, "repeat_penalty": 1.5},
}
_OLLAMA: Json = {
    **{"model": "m", "stream": False, "options": _OPTIONS, "format": "json", "think": "low"},
    **{"logprobs": True, "top_logprobs": 2},
}
_RESPONSES: Json = {
    **{"model": "m", "input": "hi", "max_output_tokens": 9, "temperature": 1, "top_p": 0.5, "user": "u"},
    **{"safety_identifier": "s", "prompt_cache_key": "k", "service_tier": "flex", "parallel_tool_calls": False},
    "text": {"verbosity": "low", "format": {"type": "json_object"}},
    "reasoning": {"effort": "low"},
    "tools": [{"type": "function", "name": TOOL, "parameters": SCHEMA, "strict": True}],
    "tool_choice": "required",
}
_FORMAT: Json = {"type": "json_schema", "schema": SCHEMA}


def generated(**config: Any) -> tuple[Call, Json]:
    doc = {**_GEMINI, "generationConfig": {**_CONFIG, **config}}
    return gemini.parse_generate(json.dumps({"model": "m", **doc}).encode()), doc


def said(**more: Any) -> tuple[Call, Json]:
    doc = {**_ANTHROPIC, **more}
    return anthropic.parse_messages(json.dumps(doc).encode()), doc


def chatted() -> tuple[Call, Json]:
    tools = [{"type": "function", "function": _FUNCTION}]
    doc = {**_OLLAMA, "messages": [{"role": "user", "content": "hi"}], "tools": tools}
    return ollama.parse_chat(json.dumps(doc).encode()), doc


def completed() -> tuple[Call, Json]:
    doc = {**_OLLAMA, "prompt": "hi"}
    return ollama.parse_generate(json.dumps(doc).encode()), doc


def responded(**more: Any) -> tuple[Call, Json]:
    doc = {**_RESPONSES, **more}
    return responses.parse_responses(json.dumps(doc).encode()), doc


def responded_to_a_chat() -> tuple[Call, Json]:
    doc = {**_RESPONSES, "stop": "x", "reasoning_effort": "low", "n": 2}
    return parse_chat(json.dumps(doc).encode(), None), doc  # type: ignore[arg-type]


def embedded(kind: str) -> tuple[Call, Json]:
    content = {"parts": [{"text": "hi"}]}
    doc: Json
    if kind == "ollama":
        doc = {"model": "m", "input": "hi", "dimensions": 9}
        return ollama.parse_embed(json.dumps(doc).encode()), doc
    if kind == "ollama-old":
        doc = {"model": "m", "prompt": "hi"}
        return ollama.parse_embeddings(json.dumps(doc).encode()), doc
    doc = {"content": content, "outputDimensionality": 9} if kind == "gemini" else {"requests": [{"content": content}]}
    return gemini.parse_embed(json.dumps({"model": "m", **doc}).encode()), doc


# Set by the gateway itself, or without a field of the caller's: nothing is refused or dropped because of them.
_OWN = {"model", "stream", "stream_options", "encoding_format"}


@pytest.mark.parametrize(
    ("call", "doc"),
    [
        generated(),
        generated(responseMimeType="application/json", thinkingConfig={"thinkingLevel": "LOW"}),
        generated(responseJsonSchema=SCHEMA, thinkingConfig={"thinkingBudget": 5000}),
        generated(_responseJsonSchema=SCHEMA),
        generated(responseSchema={"type": "OBJECT"}),
        said(output_config={"effort": "low", "format": _FORMAT}),
        said(output_format=_FORMAT, thinking={"type": "enabled", "budget_tokens": 1024}),
        said(output_config={"effort": "low"}, thinking={"type": "enabled", "budget_tokens": 1024}),
        chatted(),
        completed(),
        responded(include=["message.output_text.logprobs"]),
        responded(top_logprobs=2),
        responded_to_a_chat(),
        *(embedded(kind) for kind in ("gemini", "gemini-batch", "ollama", "ollama-old")),
    ],
)
def test_every_field_of_the_canonical_form_is_told_as_one_that_the_caller_has_written(call: Call, doc: Json) -> None:
    translated = json.loads(call.body)
    assert len(translated) > len(_OWN & set(translated))
    for name in translated:
        if name in _OWN:
            continue
        held: Any = doc
        for step in names.told(call.names, name).split("."):
            held = held[step]
        assert held is not None


def test_a_request_of_the_chat_api_has_the_canonical_names() -> None:
    call = parse_chat(json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode(), None)  # type: ignore[arg-type]
    assert call.names == {}


def test_what_the_canonical_form_refuses_is_told_in_the_callers_names() -> None:
    for given, param in (
        (lambda: generated(candidateCount=1000), "generationConfig.candidateCount"),
        (lambda: generated(maxOutputTokens=0), "generationConfig.maxOutputTokens"),
        (lambda: responded(text={"verbosity": "low"}, service_tier="flex", temperature=7), "temperature"),
        (lambda: ollama.parse_chat(b'{"model":"m","messages":[{"role":"x","content":"x"}],"options":{"top_p":2}}'),
         "options.top_p"),
    ):  # fmt: skip
        with pytest.raises(BadRequestError) as caught:
            given()
        assert caught.value.param == param
        assert f"'{param}'" in caught.value.message


# --- over the wire ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from worlds(tmp_path_factory.mktemp("strict"), SettingsDoc(breaker_failures=10**6))


@pytest.fixture(scope="module")
def lenient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from worlds(tmp_path_factory.mktemp("lenient"), SettingsDoc(unsupported_params="lenient"))


def config(**more: Any) -> Json:
    return {"generationConfig": {"maxOutputTokens": 99, **more}}


def options(**more: Any) -> Json:
    return {"options": {"num_predict": 99, **more}}


_FORCED: Json = {
    "tools": [{"functionDeclarations": [{"name": TOOL, "parametersJsonSchema": SCHEMA}]}],
    "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
}
_JSON: Json = {"text": {"format": {"type": "json_object"}}}
Case = tuple[str, Json, str, str]
REFUSED: list[Case] = [
    *(("gemini", config(candidateCount=2), row, "generationConfig.candidateCount")
      for row in ("anthropic", "ollama", "codex")),
    ("gemini_array", config(candidateCount=2), "anthropic", "generationConfig.candidateCount"),
    ("gemini", config(stopSequences=["x"]), "codex", "generationConfig.stopSequences"),
    ("gemini", config(topK=3), "codex", "generationConfig.topK"),
    ("gemini", config(responseLogprobs=True), "anthropic", "generationConfig.responseLogprobs"),
    ("gemini", config(responseMimeType="application/json"), "anthropic", "generationConfig.responseMimeType"),
    ("gemini", {"serviceTier": "flex"}, "anthropic", "serviceTier"),
    ("gemini", _FORCED, "ollama", "toolConfig.functionCallingConfig"),
    ("anthropic", {"stop_sequences": ["x"]}, "codex", "stop_sequences"),
    ("ollama_chat", options(repeat_penalty=1.5), "anthropic", "options.repeat_penalty"),
    ("ollama_chat", {"format": "json"}, "anthropic", "format"),
    ("ollama_generate", options(repeat_penalty=1.5), "codex", "options.repeat_penalty"),
    ("ollama_generate", {"format": "json"}, "anthropic", "format"),
    ("responses", _JSON, "anthropic", "text.format"),
    ("responses", {"top_logprobs": 2}, "anthropic", "top_logprobs"),
    ("responses", {"include": ["message.output_text.logprobs"]}, "anthropic", "include"),
    ("responses", {"service_tier": "flex"}, "anthropic", "service_tier"),
    ("openai", {"n": 2}, "anthropic", "n"),
]  # fmt: skip
_STRICT: Json = {"type": "function", "name": TOOL, "parameters": SCHEMA, "strict": True}
DROPPED: list[Case] = [
    ("anthropic", {"metadata": {"user_id": "u"}}, "google", "metadata.user_id"),
    ("anthropic", {"metadata": {"user_id": "u"}, "context_management": {"edits": []}}, "ollama",
     "context_management, metadata.user_id"),
    ("anthropic", {"tools": [{"name": TOOL, "input_schema": SCHEMA, "strict": True}]}, "google", "tools.strict"),
    ("gemini", config(seed=7), "anthropic", "generationConfig.seed"),
    ("gemini", {"contents": [
        {"role": "user", "parts": [{"text": "hi"}]},
        {"role": "model", "parts": [{"text": "hm", "thought": True}, {"text": "yes"}]},
        {"role": "user", "parts": [{"text": "hi"}]},
    ]}, "anthropic", "contents.parts.thought"),
    ("ollama_chat", options(seed=7, num_gpu=1), "anthropic", "options.num_gpu, options.seed"),
    ("ollama_chat", {"messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes", "thinking": "hm"},
        {"role": "user", "content": "hi"},
    ]}, "anthropic", "messages.thinking"),
    ("responses", {"text": {"verbosity": "low"}}, "anthropic", "text.verbosity"),
    ("responses", {"safety_identifier": "s"}, "google", "safety_identifier"),
    ("responses", {"tools": [_STRICT]}, "google", "tools.strict"),
    ("openai", {"user": "u"}, "google", "user"),
]  # fmt: skip
# A part of the conversation that the provider cannot take: the place in the canonical form is not the caller's.
_PICTURED = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": PICTURE}}]
PLACES: list[Case] = [
    ("openai", {"messages": [{"role": "user", "content": _PICTURED}]}, "ollama", "messages[0].content[1].image_url"),
    ("anthropic", {"system": "be kind", "messages": [
        {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": PICTURE}}]},
    ]}, "ollama", "messages"),
    ("gemini", {"contents": [
        {"parts": [{"fileData": {"fileUri": PICTURE, "mimeType": "image/png"}}]},
    ]}, "ollama", "contents"),
    ("responses", {"input": [
        {"role": "user", "content": [{"type": "input_image", "image_url": PICTURE}]},
    ]}, "ollama", "input"),
    ("ollama_chat", {"messages": [{"role": "user", "content": "hi"}, {"role": "critic", "content": "no"}]},
     "google", "messages[1]"),
    ("ollama_chat", {"tools": [{"type": "other", "function": _FUNCTION}]}, "anthropic", "tools[0]"),
]  # fmt: skip


def _ids(cases: list[Case]) -> list[str]:
    return [f"{name}-{field}-{row}" for name, _, row, field in cases]


def _refused(world: World, name: str, more: Json, row: str, field: str) -> None:
    client = CLIENTS[name]
    for stream in (False, True):
        got = world.ask(client, f"m-{row}", {**client.body(f"m-{row}", "hi", stream=stream), **more}, stream=stream)
        assert (got.status, got.seen) == (400, [])
        told = json.loads(got.data)
        message = client.error(got.data, 400)
        if name in ("openai", "responses"):
            assert (told["error"]["param"], told["error"]["code"]) == (field, "unsupported_parameter")
        assert f"'{field}'" in message


@pytest.mark.parametrize(("name", "more", "row", "field"), REFUSED, ids=_ids(REFUSED))
def test_a_parameter_that_cannot_be_honoured_is_told_by_the_callers_name(
    world: World, lenient: World, name: str, more: Json, row: str, field: str
) -> None:
    _refused(world, name, more, row, field)
    client = CLIENTS[name]
    for stream in (False, True):
        body = {**client.body(f"m-{row}", "hi", stream=stream), **more}
        got = lenient.ask(client, f"m-{row}", body, stream=stream)
        assert (got.status, [seen.refusal for seen in got.seen]) == (200, [""])
        assert field in got.headers["x-hoosh-dropped-params"].split(", ")


@pytest.mark.parametrize(("name", "more", "row", "field"), DROPPED, ids=_ids(DROPPED))
def test_a_parameter_that_is_dropped_is_told_by_the_callers_name(
    world: World, name: str, more: Json, row: str, field: str
) -> None:
    client = CLIENTS[name]
    for stream in (False, True):
        got = world.ask(client, f"m-{row}", {**client.body(f"m-{row}", "hi", stream=stream), **more}, stream=stream)
        assert (got.status, [seen.refusal for seen in got.seen]) == (200, [""])
        assert got.headers["x-hoosh-dropped-params"] == field


@pytest.mark.parametrize(("name", "more", "row", "field"), PLACES, ids=_ids(PLACES))
def test_a_part_of_the_conversation_is_told_by_what_the_caller_has_it_in(
    world: World, name: str, more: Json, row: str, field: str
) -> None:
    _refused(world, name, more, row, field)


@pytest.mark.parametrize(
    ("more", "row", "field"),
    [
        (_JSON, "anthropic", "text.format"),
        ({"response_format": {"type": "json_object"}}, "anthropic", "response_format"),
        ({"stop": "x"}, "codex", "stop"),
        ({"reasoning": {"effort": "none"}}, "google", "reasoning.effort"),
        ({"reasoning_effort": "none"}, "google", "reasoning_effort"),
        ({"input": [{"role": "user", "content": _PICTURED}]}, "ollama", "input"),
    ],
)
def test_a_body_of_the_responses_api_that_came_for_a_chat_is_refused_in_the_names_it_uses(
    world: World, more: Json, row: str, field: str
) -> None:
    got = world.send("POST", "/v1/chat/completions", {"model": f"m-{row}", "input": "hi", **more})
    error = json.loads(got.data)["error"]
    assert (got.status, error["param"], error["code"]) == (400, field, "unsupported_parameter")
