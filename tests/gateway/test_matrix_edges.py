"""Any dialect with any provider, where it is not a plain answer: refusals and failures, parameters that a provider
cannot honour, token counts, model lists, paths and credentials. The answers themselves: `test_matrix`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from budgets.records import Basis
from providers.config import SettingsDoc
from tests.gateway.harness import KEY, held
from tests.gateway.matrix_clients import CLIENTS, Client
from tests.gateway.matrix_world import NATIVE, ROWS, SAME, Got, World, pairs, worlds
from tests.provider_fakes import VECTOR
from tests.provider_fakes_base import COUNTED, HELLO, INPUT, REFUSAL, RETRY_AFTER_S, Json

TEXT = "".join(HELLO)
OWNS = {"responses": ("openai", "codex"), "anthropic": ("anthropic",), "gemini": ("google",)}
OWNS |= {"ollama_chat": ("ollama",), "ollama_generate": ("ollama",)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from worlds(tmp_path_factory.mktemp("strict"), SettingsDoc(breaker_failures=10**6))


@pytest.fixture(scope="module")
def lenient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from worlds(tmp_path_factory.mktemp("lenient"), SettingsDoc(unsupported_params="lenient"))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "status"), [("FAIL429", 429), ("FAIL500", 502), ("FAILAUTH", 502), ("FAILBAD", 400)])
@pytest.mark.parametrize(("name", "row", "stream"), pairs())
def test_a_providers_error_is_told_in_the_callers_shape(
    world: World, name: str, row: str, stream: bool, fault: str, status: int
) -> None:
    client = CLIENTS[name]
    got = world.ask(client, f"m-{row}", client.body(f"m-{row}", fault, stream=stream), stream=stream)
    assert (got.status, got.clean, len(got.seen)) == (status, True, 1)
    assert got.headers["content-type"] == "application/json"
    message = client.error(got.data, status)
    assert (REFUSAL in message) == (fault == "FAILBAD"), "only what the caller can use is passed on"
    assert got.headers.get("retry-after") == (str(RETRY_AFTER_S) if fault == "FAIL429" else None)
    assert got.headers.get("x-should-retry") == ("false" if fault == "FAILAUTH" else None)
    booked = world.row(got)
    assert (booked.status, booked.input_tokens, booked.output_tokens, booked.basis) == (status, 0, 0, Basis.NONE)
    assert held(world.server) == 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", CLIENTS)
def test_what_the_gateway_refuses_is_told_in_the_callers_shape(world: World, name: str, stream: bool) -> None:
    client = CLIENTS[name]
    path, body = client.path("m-custom", stream=stream), client.body("m-custom", "hi", stream=stream)
    nobody = client.path("nobody", stream=stream), client.body("nobody", "hi", stream=stream)
    for status, got in (
        (400, world.send("POST", path, b"{")),
        (400, world.send("POST", path, {name: value for name, value in body.items() if name in ("model", "stream")})),
        (401, world.send("POST", path, body, x_api_key="hk-wrong")),
        (404, world.send("POST", *nobody)),
        (405, world.send("GET", path)),
        (405, world.send("DELETE", path)),
    ):
        assert (got.status, got.seen) == (status, [])
        assert client.error(got.data, status)
        assert got.headers["x-request-id"]


@pytest.mark.parametrize("row", [row for row in ROWS if row not in NATIVE["completions"]])
@pytest.mark.parametrize(
    "more",
    [{"suffix": "end"}, {"echo": True}, {"logprobs": 2}, {"best_of": 2}, {"prompt": ["a", "b"]}, {"prompt": [1]}],
)
def test_a_legacy_completion_that_no_chat_can_be_is_refused(world: World, row: str, more: Json) -> None:
    client = CLIENTS["completions"]
    got = world.ask(client, f"m-{row}", {**client.body(f"m-{row}", "hi"), **more}, stream=False)
    assert (got.status, got.seen) == (400, [])
    told = json.loads(got.data)["error"]
    assert (told["code"], told["param"]) == ("unsupported_parameter", next(iter(more)))
    assert client.error(got.data, 400)


# --- parameters -------------------------------------------------------------------------------------------------------

_BIAS: Json = {"logit_bias": {"1": 1}}
_TEXT_ONLY = ("anthropic", "google", "ollama", "codex")  # whose APIs are not the chat API
Case = tuple[str, Json, str, str]
# A client's parameter, who cannot honour it though it matters, and what the client calls it.
REFUSED: list[Case] = [
    *(("openai", _BIAS, row, "logit_bias") for row in _TEXT_ONLY),
    *(("openai", {"n": 2}, row, "n") for row in ("anthropic", "ollama", "codex")),
    ("openai", {"stop": "x"}, "codex", "stop"),
    ("openai", {"presence_penalty": 1}, "anthropic", "presence_penalty"),
    ("anthropic", {"top_k": 5}, "codex", "top_k"),
    ("anthropic", {"stop_sequences": ["x"]}, "codex", "stop_sequences"),
    ("ollama_chat", {"options": {"repeat_penalty": 1.5, "num_predict": 99}}, "anthropic", "options.repeat_penalty"),
    ("ollama_generate", {"options": {"min_p": 0.5, "num_predict": 99}}, "anthropic", "options.min_p"),
    ("ollama_chat", {"logprobs": True}, "anthropic", "logprobs"),
]
# One that changes little, who drops it, and under which name that is told ("" = it is honoured).
DROPPED: list[Case] = [
    *(("openai", {"seed": 1}, row, "seed" if row in ("anthropic", "codex") else "") for row in ROWS),
    *(("openai", {"user": "u"}, row, "user" if row in ("google", "ollama") else "") for row in ROWS),
    *(("openai", {"top_k": 5}, row, "top_k" if row == "openai" else "") for row in ROWS if row != "codex"),
    *(("anthropic", {"top_k": 5}, row, "top_k" if row == "openai" else "") for row in ROWS if row != "codex"),
    *(("anthropic", {"metadata": {"user_id": "u"}}, row, "metadata.user_id" if row in ("google", "ollama") else "")
      for row in ROWS),
    *(("anthropic", {"context_management": {"edits": []}}, row, "" if row == "anthropic" else "context_management")
      for row in ROWS),
    *(("gemini", {"safetySettings": [{"category": "X"}]}, row, "" if row == "google" else "safetySettings")
      for row in ROWS),
    *(("responses", {"truncation": "auto"}, row, "" if row in OWNS["responses"] else "truncation") for row in ROWS),
    *(("responses", {"user": "u"}, row, "user" if row in ("google", "ollama") else "") for row in ROWS),
    *(("ollama_chat", {"options": {"num_gpu": 1, "num_predict": 99}}, row, "" if row == "ollama" else "options.num_gpu")
      for row in ROWS),
    *(("ollama_generate", {"keep_alive": 5}, row, "" if row == "ollama" else "keep_alive") for row in ROWS),
]  # fmt: skip


def _ids(cases: list[Case]) -> list[str]:
    return [f"{name}-{next(iter(more))}-{row}" for name, more, row, _ in cases]


@pytest.mark.parametrize(("name", "more", "row", "field"), REFUSED, ids=_ids(REFUSED))
def test_a_parameter_that_matters_is_refused_where_it_cannot_be_honoured(
    world: World, lenient: World, name: str, more: Json, row: str, field: str
) -> None:
    client = CLIENTS[name]
    for stream in (False, True):
        body = client.body(f"m-{row}", "hi", stream=stream, **more)
        got = world.ask(client, f"m-{row}", body, stream=stream)
        assert (got.status, got.seen) == (400, [])
        message = client.error(got.data, 400)
        assert f"'{field}'" in message
        if name == "openai":
            error = json.loads(got.data)["error"]
            assert (error["param"], error["code"]) == (field, "unsupported_parameter")
        booked = world.row(got)
        assert (booked.status, booked.output_tokens) == (400, 0)
        got = lenient.ask(client, f"m-{row}", body, stream=stream)
        assert lenient.read(client, got, stream=stream).text == TEXT
        assert got.headers["x-hoosh-dropped-params"] == field


@pytest.mark.parametrize(("name", "more", "row", "field"), DROPPED, ids=_ids(DROPPED))
def test_a_parameter_that_is_dropped_is_told_in_a_header(
    world: World, name: str, more: Json, row: str, field: str
) -> None:
    client = CLIENTS[name]
    for stream in (False, True):
        got = world.ask(client, f"m-{row}", client.body(f"m-{row}", "hi", stream=stream, **more), stream=stream)
        assert world.read(client, got, stream=stream).text == TEXT
        assert got.headers.get("x-hoosh-dropped-params", "") == field


_SHELL = [
    {"type": "message", "role": "user", "content": "hi"},
    {"type": "local_shell_call", "call_id": "c1", "action": {"type": "exec", "command": ["ls"]}, "status": "completed"},
    {"type": "local_shell_call_output", "id": "c1", "output": "a"},
]
ONLY_NATIVE: list[tuple[str, Json, str]] = [
    ("anthropic", {"mcp_servers": [{"type": "url", "url": "https://x.example", "name": "x"}]}, "mcp_servers"),
    ("anthropic", {"container": "c1"}, "container"),
    ("gemini", {"cachedContent": "cachedContents/x"}, "cachedContent"),
    ("responses", {"input": _SHELL}, "input[1]"),
    ("ollama_generate", {"raw": True}, "raw"),
    ("ollama_generate", {"suffix": "x"}, "suffix"),
]


UNBOUNDED = {"mcp_servers", "container", "cachedContent"}  # what these bring in no hold covers


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(
    ("name", "more", "field"), ONLY_NATIVE, ids=[f"{name}-{field}" for name, _, field in ONLY_NATIVE]
)
def test_what_only_one_api_has_needs_a_provider_of_it(
    world: World, name: str, more: Json, field: str, row: str
) -> None:
    client = CLIENTS[name]
    for stream in (False, True):
        body = client.body(f"m-{row}", "hi", stream=stream, **more)
        with world.unlimited():
            got = world.ask(client, f"m-{row}", body, stream=stream)
        if field in UNBOUNDED and row in OWNS[name]:
            limited = world.ask(client, f"m-{row}", body, stream=stream)
            assert (limited.status, limited.seen) == (400, [])
            assert f"'{field}'" in client.error(limited.data, 400)
        if row in OWNS[name]:
            assert world.read(client, got, stream=stream).text == TEXT
            assert "x-hoosh-dropped-params" not in got.headers
        else:
            assert (got.status, got.seen) == (400, [])
            assert f"'{field}'" in client.error(got.data, 400)


# --- embeddings -------------------------------------------------------------------------------------------------------

_TEXTS = ["one", "two"]
_CONTENTS = [{"parts": [{"text": text}]} for text in _TEXTS]
EMBEDDINGS: dict[str, tuple[str, Json, Callable[[Any], Any]]] = {
    "openai": (
        "/v1/embeddings",
        {"model": "{}", "input": _TEXTS},
        lambda told: [item["embedding"] for item in told["data"]],
    ),
    "gemini": (
        "/v1beta/models/{}:embedContent",
        {"content": _CONTENTS[0]},
        lambda told: [told["embedding"]["values"]],
    ),
    "gemini-batch": (
        "/v1beta/models/{}:batchEmbedContents",
        {"requests": [{"model": "models/{}", "content": content} for content in _CONTENTS]},
        lambda told: [item["values"] for item in told["embeddings"]],
    ),
    "ollama": ("/api/embed", {"model": "{}", "input": _TEXTS}, lambda told: told["embeddings"]),
    "ollama-old": ("/api/embeddings", {"model": "{}", "prompt": "one"}, lambda told: [told["embedding"]]),
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", EMBEDDINGS)
def test_texts_are_embedded_by_every_provider_that_can(world: World, name: str, row: str) -> None:
    path, body, read = EMBEDDINGS[name]
    told = json.loads(json.dumps(body).replace("{}", f"m-{row}"))
    got = world.send("POST", path.format(f"m-{row}"), told)
    if row == "anthropic":
        assert (got.status, got.seen) == (404, [])
        client = CLIENTS["gemini" if "gemini" in name else "ollama_chat" if "ollama" in name else "openai"]
        assert client.error(got.data, 404)
        return
    assert got.status == 200, (got.data, [seen.refusal for seen in got.seen])
    single = name in ("gemini", "ollama-old")
    assert read(json.loads(got.data)) == [VECTOR] * (1 if single else 2)
    booked = world.row(got)
    assert (booked.input_tokens, booked.output_tokens, booked.basis) == (INPUT, 0, Basis.REPORTED)


# --- counting ---------------------------------------------------------------------------------------------------------

COUNTERS = {
    "anthropic": ("/v1/messages/count_tokens", "input_tokens"),
    "gemini": ("/v1beta/models/{}:countTokens", "totalTokens"),
    "responses": ("/v1/responses/input_tokens", "input_tokens"),
}


def _counted(world: World, name: str, row: str, **more: Any) -> Got:
    path, _ = COUNTERS[name]
    body = CLIENTS[name].body(f"m-{row}", "one two three", tools=True, **more)
    if name == "gemini":
        body = {"generateContentRequest": body | {"model": f"models/m-{row}"}}
    elif name == "anthropic":
        del body["max_tokens"]
    return world.send("POST", path.format(f"m-{row}"), body)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", COUNTERS)
def test_tokens_are_counted_by_the_provider_or_estimated(world: World, name: str, row: str) -> None:
    got = _counted(world, name, row)
    assert got.status == 200, (got.data, [seen.refusal for seen in got.seen])
    told = json.loads(got.data)
    number = told[COUNTERS[name][1]]
    if row in ("anthropic", "google", "codex") or (name, row) == ("responses", "openai"):
        assert number == COUNTED
        assert "x-hoosh-estimated" not in got.headers
        assert [seen.refusal for seen in got.seen] == [""]
    else:
        assert 3 <= number <= 500
        assert got.headers["x-hoosh-estimated"] == "true"
        assert got.seen == []
    world.books.read()
    assert got.request_id not in world.books.rows, "counting costs nothing"
    assert held(world.server) == 0


def test_plain_contents_are_counted_as_well(world: World) -> None:
    for row in ROWS:
        contents = CLIENTS["gemini"].body(f"m-{row}", "hi")["contents"]
        got = world.send("POST", f"/v1beta/models/m-{row}:countTokens", {"contents": contents})
        assert json.loads(got.data)["totalTokens"] >= 1, got.data


@pytest.mark.parametrize("name", COUNTERS)
def test_a_counter_that_fails_is_replaced_by_an_estimate(world: World, name: str) -> None:
    for row in ("anthropic", "google"):
        client, (path, field) = CLIENTS[name], COUNTERS[name]
        body = client.body(f"m-{row}", "FAIL500")
        body.pop("max_tokens", None)
        if name == "gemini":
            del body["generationConfig"]
        got = world.send("POST", path.format(f"m-{row}"), body)
        assert (got.status, got.headers["x-hoosh-estimated"], len(got.seen)) == (200, "true", 1)
        assert json.loads(got.data)[field] >= 1


@pytest.mark.parametrize("name", COUNTERS)
def test_a_counter_refuses_in_the_callers_shape(world: World, name: str) -> None:
    client, path = CLIENTS[name], COUNTERS[name][0].format("m-custom")
    for status, got in (
        (400, world.send("POST", path, b"{")),
        (401, world.send("POST", path, {}, x_api_key="hk-wrong")),
        (404, world.send("POST", COUNTERS[name][0].format("nobody"), client.body("nobody", "hi"))),
        (405, world.send("GET", path)),
    ):
        assert got.status == status, got.data
        assert client.error(got.data, status)


# --- model lists ------------------------------------------------------------------------------------------------------

MODELS = sorted([*SAME.values(), *(f"{start}-{row}" for row in ROWS for start in ("m", "next"))])


def _get(world: World, path: str, **headers: str) -> Any:
    got = world.send("GET", path, None, **headers)
    assert (got.status, got.headers["content-type"]) == (200, "application/json"), got.data
    return json.loads(got.data)


@pytest.mark.parametrize("path", ["/v1/models", "/openai/v1/models"])
def test_models_as_openais_clients_list_them(world: World, path: str) -> None:
    told = _get(world, path)
    assert (told["object"], [model["id"] for model in told["data"]]) == ("list", MODELS)
    one = _get(world, f"{path}/m-google")
    assert (one["object"], one["id"], one["owned_by"]) == ("model", "m-google", "up-google")


def test_models_as_anthropics_clients_list_them(world: World) -> None:
    told = _get(world, "/v1/models", anthropic_version="2023-06-01")
    assert [model["id"] for model in told["data"]] == MODELS
    assert (told["first_id"], told["last_id"], told["has_more"]) == (MODELS[0], MODELS[-1], False)
    assert {model["type"] for model in told["data"]} == {"model"}
    one = _get(world, "/v1/models/m-google", anthropic_version="2023-06-01")
    assert (one["type"], one["id"], one["display_name"]) == ("model", "m-google", "m-google")
    got = world.send("GET", "/v1/models/nobody", anthropic_version="2023-06-01")
    assert CLIENTS["anthropic"].error(got.data, 404)


@pytest.mark.parametrize("path", ["/v1beta/models", "/v1/models", "/models"])
def test_models_as_geminis_clients_list_them(world: World, path: str) -> None:
    told = _get(world, path, x_goog_api_key=KEY)
    assert [model["name"] for model in told["models"]] == [f"models/{name}" for name in MODELS]
    assert all("generateContent" in model["supportedGenerationMethods"] for model in told["models"])
    assert _get(world, f"{path}/m-openai", x_goog_api_key=KEY)["name"] == "models/m-openai"
    got = world.send("GET", f"{path}/nobody", x_goog_api_key=KEY)
    assert CLIENTS["gemini"].error(got.data, 404)


def test_models_as_ollamas_clients_list_them(world: World) -> None:
    told = _get(world, "/api/tags")
    assert [(model["name"], model["model"]) for model in told["models"]] == [(name, name) for name in MODELS]
    assert [model["name"] for model in _get(world, "/api/ps")["models"]] == MODELS
    assert _get(world, "/api/version")["version"]
    got = world.send("POST", "/api/show", {"model": "m-anthropic"})
    assert (got.status, "capabilities" in json.loads(got.data)) == (200, True)
    for status, got in (
        (404, world.send("POST", "/api/show", {"model": "nobody"})),
        (400, world.send("POST", "/api/show", b"[]")),
        (405, world.send("GET", "/api/show")),
        (405, world.send("POST", "/api/tags", {})),
        (401, world.send("GET", "/api/tags", x_api_key="hk-wrong")),
    ):
        assert got.status == status
        assert CLIENTS["ollama_chat"].error(got.data, status)


# --- paths and credentials --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("openai", "/openai/v1/chat/completions"),
        ("completions", "/openai/v1/completions"),
        ("responses", "/openai/v1/responses"),
        ("gemini", "/v1/models/m-custom:generateContent"),
        ("gemini", "/v1alpha/models/m-custom:generateContent"),
        ("gemini", "/models/m-custom:generateContent"),
        ("gemini", "/v1beta/models/models%2Fm-custom:generateContent"),
        ("anthropic", "/v1/messages?beta=true"),
    ],
)
def test_every_spelling_of_a_path_is_served(world: World, name: str, path: str) -> None:
    client = CLIENTS[name]
    got = world.send("POST", path, client.body("m-custom", "hi"))
    assert world.read(client, got, stream=False).text == TEXT


def _with(world: World, path: str, body: Json, headers: dict[str, str]) -> Got:
    """A request with these headers instead of the usual credential."""
    usual = world.http.headers.pop("x-api-key")
    try:
        return world.send("POST", path, body, **headers)
    finally:
        world.http.headers["x-api-key"] = usual


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("carrier", ["authorization", "x_api_key", "api_key", "x_goog_api_key"])
def test_every_header_that_carries_a_key_is_taken(world: World, name: str, carrier: str) -> None:
    client = CLIENTS[name]
    headers = {carrier: f"Bearer {KEY}" if carrier == "authorization" else KEY}
    got = _with(world, client.path("m-custom", stream=False), client.body("m-custom", "hi"), headers)
    assert world.read(client, got, stream=False).text == TEXT
    got = _with(world, client.path("m-custom", stream=False), client.body("m-custom", "hi"), {})
    assert got.status == 401
    assert ("x-goog-api-key: hk-" in client.error(got.data, 401)) == name.startswith("gemini")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", ["gemini", "gemini_array"])
def test_a_key_in_the_query_of_a_gemini_path_is_taken_and_goes_no_further(
    world: World, name: str, stream: bool
) -> None:
    client = CLIENTS[name]
    path = client.path("m-google", stream=stream)
    path += f"{'&' if '?' in path else '?'}key={KEY}"
    got = _with(world, path, client.body("m-google", "hi", stream=stream), {})
    assert world.read(client, got, stream=stream).text == TEXT
    (seen,) = got.seen
    assert KEY not in f"{seen.path}?{seen.query}{seen.headers}"
    assert KEY not in (world.server.directory / "access.jsonl").read_text()
    assert _with(world, path.replace(KEY, "hk-wrong"), client.body("m-google", "hi"), {}).status == 401


def test_a_key_in_the_query_of_another_path_is_not_looked_at(world: World) -> None:
    for name in ("openai", "anthropic", "responses", "ollama_chat"):
        client = CLIENTS[name]
        path = f"{client.path('m-custom', stream=False)}?key={KEY}"
        got = _with(world, path, client.body("m-custom", "hi"), {})
        assert (got.status, got.seen) == (401, [])
        assert client.error(got.data, 401)


UNKNOWN: list[tuple[str, str, int, Client]] = [
    ("POST", "/v1/nothing", 404, CLIENTS["openai"]),
    ("POST", "/v1/messages/nothing", 404, CLIENTS["anthropic"]),
    ("POST", "/v1/responses/resp_1/cancel", 404, CLIENTS["responses"]),
    ("GET", "/v1/responses/resp_1", 404, CLIENTS["responses"]),
    ("POST", "/v1beta/models/m-custom:nothing", 404, CLIENTS["gemini"]),
    ("POST", "/v1beta/models", 405, CLIENTS["gemini"]),
    ("POST", "/v1/models", 405, CLIENTS["openai"]),
]


@pytest.mark.parametrize(("method", "path", "status", "client"), UNKNOWN, ids=[f"{one[0]}{one[1]}" for one in UNKNOWN])
def test_what_is_not_there_is_not_found(world: World, method: str, path: str, status: int, client: Client) -> None:
    got = world.send(method, path, {})
    assert (got.status, got.seen) == (status, [])
    assert client.error(got.data, status)


def test_the_root_answers_clients_that_look_whether_anybody_is_there(world: World) -> None:
    got = world.send("HEAD", "/")
    assert (got.status, got.data) == (200, b"")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1beta/models/m-custom:generateContent?alt=%ff"),
        ("POST", "/v1beta/models/m-custom:generateContent?key=%ff"),
        ("GET", "/v1beta/models?key=%ff"),
    ],
)
def test_a_query_that_is_no_text_is_no_fault_of_ours(world: World, method: str, path: str) -> None:
    got = world.send(method, path, {"contents": [{"parts": [{"text": "hi"}]}]} if method == "POST" else None)
    assert got.status in (200, 400, 401)


@pytest.mark.parametrize("name", CLIENTS)
def test_a_body_nested_too_deeply_is_refused_as_one(world: World, name: str) -> None:
    client = CLIENTS[name]
    deep: Any = {"type": "string"}
    for _ in range(470):
        deep = {"type": "array", "items": deep}
    for row in ROWS:
        body = client.body(f"m-{row}", "hi", stream=False) | {
            "metadata": deep,
            "response_format": deep,
            "tools": [deep],
        }
        assert world.ask(client, f"m-{row}", body, stream=False).status in (200, 400, 404)
