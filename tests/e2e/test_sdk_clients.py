"""The Python clients people really use, each with its own API, through the gateway to real llama.cpp servers.

What a client's own objects say is what counts: text, usage (which must be what the ledger says), events, tool calls,
and the class or status of each error. `test_openai_sdk` has what else the OpenAI client does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal

import anthropic
import groq
import httpx
import ollama
import openai
import pydantic
import pytest
from google import genai
from google.genai import errors as gemini_errors
from google.genai import types as gemini
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from mistralai.client import Mistral
from mistralai.client.errors import SDKError

from tests.e2e.conftest import Site

pytestmark = pytest.mark.processes

PROMPT = "say a few words"
MESSAGES: list[Any] = [{"role": "user", "content": PROMPT}]
CITIES = ("Oslo", "Rome")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "enum": list(CITIES)}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather in a city", "parameters": SCHEMA}
TOOLS: list[Any] = [{"type": "function", "function": FUNCTION}]
# How many calls the model makes is chance; with this many tokens it always comes to an end by itself.
ROOM = 2500
_FOREIGN = ("OPENAI_", "ANTHROPIC_", "GOOGLE_", "GEMINI_", "OLLAMA_", "GROQ_", "MISTRAL_", "LANGCHAIN_", "LANGSMITH_")


class Place(pydantic.BaseModel):
    """A structured answer."""

    city: Literal["Oslo", "Rome"]


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No client reads what a developer has set for it."""
    for name in os.environ:
        if name.startswith(_FOREIGN):
            monkeypatch.delenv(name)


def is_call(name: str, arguments: Any) -> bool:
    """Whether a parsed tool call is one the model could have been asked for."""
    return name == "weather" and arguments.keys() == {"city"} and arguments["city"] in CITIES


def refusals(site: Site, ask: Callable[[str, str], Any], kind: type[Exception]) -> list[Exception]:
    """What a client (`ask` takes key and model) raises for a wrong key, an unknown model and an empty pool."""
    raised = []
    for key, model in (("hk-wrong", "tiny"), (site.key, "no-such-model"), (site.spent_key, "tiny")):
        with pytest.raises(kind) as caught:
            ask(key, model)
        raised.append(caught.value)
    return raised


# --- OpenAI ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def openai_client(site: Site) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=site.v1, api_key=site.key, max_retries=0, timeout=30) as client:
        yield client


def test_openai_chat_calls_tools(openai_client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": "tools", "messages": MESSAGES, "tools": TOOLS, "max_tokens": ROOM}
    choice = openai_client.chat.completions.create(**request, tool_choice="required").choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    assert all(is_call(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls)
    with openai_client.chat.completions.stream(**request, tool_choice="required") as stream:
        events = [event.type for event in stream]
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    assert events.count("tool_calls.function.arguments.done") == len(streamed.message.tool_calls or ()) > 0
    for call in streamed.message.tool_calls or ():
        assert is_call(call.function.name, json.loads(call.function.arguments))


def test_openai_chat_takes_the_result_of_a_tool(openai_client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    history: list[Any] = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    answer = openai_client.chat.completions.create(model="tiny", messages=history, tools=TOOLS, max_tokens=8)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8


def test_openai_chat_parses_a_structured_answer(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.parse(
        model="tiny", messages=MESSAGES, max_tokens=ROOM, response_format=Place
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.parsed is not None
    assert answer.choices[0].message.parsed.city in CITIES


def test_openai_responses_are_answered_and_booked(site: Site, openai_client: openai.OpenAI) -> None:
    raw = openai_client.responses.with_raw_response.create(model="tiny", input=PROMPT, max_output_tokens=16)
    answer = raw.parse()
    assert answer.output_text
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 16
    assert site.booked(raw.headers) == (answer.usage.input_tokens, 16)
    assert openai_client.responses.input_tokens.count(model="tiny", input=PROMPT).input_tokens > 0


def test_openai_responses_stream_ends_with_the_whole_answer(openai_client: openai.OpenAI) -> None:
    events = list(openai_client.responses.create(model="tiny", input=PROMPT, max_output_tokens=16, stream=True))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    last = events[-1]
    assert len(deltas) > 3
    assert last.type == "response.incomplete"
    assert last.response.output_text == "".join(deltas)
    assert last.response.usage is not None
    assert last.response.usage.output_tokens == 16


def test_openai_responses_call_tools(openai_client: openai.OpenAI) -> None:
    request: dict[str, Any] = {
        **{"model": "tools", "input": PROMPT, "max_output_tokens": ROOM, "tool_choice": "required"},
        "tools": [{"type": "function", **FUNCTION}],
    }
    answer = openai_client.responses.create(**request)
    with openai_client.responses.stream(**request) as stream:
        events = [event.type for event in stream]
        streamed = stream.get_final_response()
    for response in (answer, streamed):
        assert response.status == "completed"
        assert response.output
        for item in response.output:
            assert item.type == "function_call"
            assert is_call(item.name, json.loads(item.arguments))
    assert events.count("response.function_call_arguments.done") == len(streamed.output)


def test_openai_responses_parse_a_structured_answer(openai_client: openai.OpenAI) -> None:
    answer = openai_client.responses.parse(model="tiny", input=PROMPT, max_output_tokens=ROOM, text_format=Place)
    assert answer.status == "completed"
    assert answer.output_parsed is not None
    assert answer.output_parsed.city in CITIES


def test_openai_errors_have_the_classes_the_client_knows(site: Site, openai_client: openai.OpenAI) -> None:
    def chat(key: str, model: str) -> object:
        return openai_client.with_options(api_key=key).chat.completions.create(model=model, messages=MESSAGES)

    def respond(key: str, model: str) -> object:
        return openai_client.with_options(api_key=key).responses.create(model=model, input=PROMPT)

    for ask in (chat, respond):
        raised = refusals(site, ask, openai.APIStatusError)
        assert [type(error) for error in raised] == [
            *(openai.AuthenticationError, openai.NotFoundError, openai.RateLimitError)
        ]
        assert [getattr(error, "code", "") for error in raised] == [
            *("invalid_api_key", "model_not_found", "insufficient_quota")
        ]


# --- Anthropic ------------------------------------------------------------------------------------------------------

ANTHROPIC_TOOLS: list[Any] = [{"name": "weather", "description": "The weather in a city", "input_schema": SCHEMA}]


@pytest.fixture
def anthropic_client(site: Site) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=site.base_url, api_key=site.key, max_retries=0, timeout=30) as client:
        yield client


def test_anthropic_messages_are_answered_and_booked(site: Site, anthropic_client: anthropic.Anthropic) -> None:
    raw = anthropic_client.messages.with_raw_response.create(
        model="tiny", max_tokens=8, messages=MESSAGES, system="Be brief."
    )
    answer = raw.parse()
    (block,) = answer.content
    assert block.type == "text"
    assert block.text
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == 8
    read = answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
    assert read > 0
    assert site.booked(raw.headers) == (read, 8)


def test_anthropic_stream_builds_the_final_message(anthropic_client: anthropic.Anthropic) -> None:
    with anthropic_client.messages.stream(model="tiny", max_tokens=8, messages=MESSAGES) as stream:
        events = list(stream)
        message = stream.get_final_message()
    kinds = [event.type for event in events]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    texts = [event.text for event in events if event.type == "text"]
    assert len(texts) > 3
    (block,) = message.content
    assert block.type == "text"
    assert block.text == "".join(texts)
    assert message.usage.output_tokens == 8
    assert message.stop_reason == "max_tokens"


def test_anthropic_calls_tools_and_takes_their_results(anthropic_client: anthropic.Anthropic) -> None:
    request: dict[str, Any] = {
        **{"model": "tools", "max_tokens": ROOM, "messages": MESSAGES, "tools": ANTHROPIC_TOOLS},
        "tool_choice": {"type": "any"},
    }
    answer = anthropic_client.messages.create(**request)
    with anthropic_client.messages.stream(**request) as stream:
        streamed = stream.get_final_message()
    for message in (answer, streamed):
        assert message.stop_reason == "tool_use"
        assert message.content
        for block in message.content:
            assert block.type == "tool_use"
            assert is_call(block.name, block.input)
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "rain"}
        for block in answer.content
        if block.type == "tool_use"
    ]
    history: list[Any] = [
        *MESSAGES,
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": results},
    ]
    after = anthropic_client.messages.create(model="tiny", max_tokens=8, messages=history, tools=ANTHROPIC_TOOLS)
    assert after.usage.output_tokens == 8


def test_anthropic_parses_a_structured_answer(anthropic_client: anthropic.Anthropic) -> None:
    answer = anthropic_client.messages.parse(model="tiny", max_tokens=ROOM, messages=MESSAGES, output_format=Place)
    assert answer.stop_reason == "end_turn"
    assert answer.parsed_output is not None
    assert answer.parsed_output.city in CITIES


def test_anthropic_counts_tokens_and_lists_models(anthropic_client: anthropic.Anthropic) -> None:
    assert anthropic_client.messages.count_tokens(model="tiny", messages=MESSAGES).input_tokens > 0
    assert [model.id for model in anthropic_client.models.list()] == ["tiny", "tools"]
    assert anthropic_client.models.retrieve("tiny").type == "model"


def test_anthropic_errors_have_the_classes_the_client_knows(site: Site, anthropic_client: anthropic.Anthropic) -> None:
    def ask(key: str, model: str) -> object:
        return anthropic_client.with_options(api_key=key).messages.create(model=model, max_tokens=8, messages=MESSAGES)

    raised = refusals(site, ask, anthropic.APIStatusError)
    assert [type(error) for error in raised] == [
        *(anthropic.AuthenticationError, anthropic.NotFoundError, anthropic.RateLimitError)
    ]
    assert all(isinstance(error, anthropic.APIStatusError) and error.request_id for error in raised)


# --- Google ---------------------------------------------------------------------------------------------------------


def gemini_client(site: Site, key: str = "") -> genai.Client:
    return genai.Client(api_key=key or site.key, http_options=gemini.HttpOptions(base_url=site.base_url))


def test_gemini_contents_are_answered_and_booked(site: Site) -> None:
    with gemini_client(site) as client:
        answer = client.models.generate_content(
            model="tiny", contents=PROMPT, config=gemini.GenerateContentConfig(max_output_tokens=8)
        )
        counted = client.models.count_tokens(model="tiny", contents=PROMPT).total_tokens
        models = [model.name for model in client.models.list()]
        vectors = client.models.embed_content(model="tiny", contents=["water", "more water"]).embeddings
    assert answer.text
    assert answer.candidates is not None
    assert answer.candidates[0].finish_reason == gemini.FinishReason.MAX_TOKENS
    usage = answer.usage_metadata
    assert usage is not None
    assert usage.candidates_token_count == 8
    assert usage.prompt_token_count
    assert answer.sdk_http_response is not None
    assert answer.sdk_http_response.headers is not None
    assert site.booked(answer.sdk_http_response.headers) == (usage.prompt_token_count, 8)
    assert counted
    assert models == ["models/tiny", "models/tools"]
    assert [len(vector.values or ()) for vector in vectors or ()] == [64, 64]


def test_gemini_stream_ends_with_a_reason_and_usage(site: Site) -> None:
    config = gemini.GenerateContentConfig(max_output_tokens=8)
    with gemini_client(site) as client:
        chunks = list(client.models.generate_content_stream(model="tiny", contents=PROMPT, config=config))
    assert len([chunk for chunk in chunks if chunk.text]) > 3
    last = chunks[-1]
    assert last.candidates is not None
    assert last.candidates[0].finish_reason == gemini.FinishReason.MAX_TOKENS
    assert last.usage_metadata is not None
    assert last.usage_metadata.candidates_token_count == 8


def test_gemini_calls_functions_and_takes_their_results(site: Site) -> None:
    declared = gemini.FunctionDeclaration(name="weather", description="The weather", parameters_json_schema=SCHEMA)
    wanted = gemini.FunctionCallingConfig(mode=gemini.FunctionCallingConfigMode.ANY)
    config = gemini.GenerateContentConfig(
        max_output_tokens=ROOM,
        tools=[gemini.Tool(function_declarations=[declared])],
        tool_config=gemini.ToolConfig(function_calling_config=wanted),
    )
    with gemini_client(site) as client:
        answer = client.models.generate_content(model="tools", contents=PROMPT, config=config)
        calls = answer.function_calls or []
        assert calls
        assert all(is_call(call.name or "", call.args or {}) for call in calls)
        assert answer.candidates is not None
        told = answer.candidates[0].content
        assert told is not None
        results = [
            gemini.Part(
                function_response=gemini.FunctionResponse(id=call.id, name=call.name, response={"result": "rain"})
            )
            for call in calls
        ]
        history: list[Any] = [
            gemini.Content(role="user", parts=[gemini.Part(text=PROMPT)]),
            told,
            gemini.Content(role="user", parts=results),
        ]
        after = client.models.generate_content(
            model="tiny", contents=history, config=gemini.GenerateContentConfig(max_output_tokens=8)
        )
    assert after.usage_metadata is not None
    assert after.usage_metadata.candidates_token_count == 8


def test_gemini_parses_a_structured_answer(site: Site) -> None:
    config = gemini.GenerateContentConfig(
        max_output_tokens=ROOM, response_mime_type="application/json", response_schema=Place
    )
    with gemini_client(site) as client:
        answer = client.models.generate_content(model="tiny", contents=PROMPT, config=config)
    assert isinstance(answer.parsed, Place)
    assert answer.parsed.city in CITIES


def test_gemini_errors_have_the_status_the_client_knows(site: Site) -> None:
    def ask(key: str, model: str) -> object:
        with gemini_client(site, key) as client:
            return client.models.generate_content(model=model, contents=PROMPT)

    raised = refusals(site, ask, gemini_errors.ClientError)
    assert [(getattr(error, "code", 0), getattr(error, "status", "")) for error in raised] == [
        *((401, "UNAUTHENTICATED"), (404, "NOT_FOUND"), (429, "RESOURCE_EXHAUSTED"))
    ]


# --- Ollama ---------------------------------------------------------------------------------------------------------


def ollama_client(site: Site, key: str = "", seen: list[httpx.Response] | None = None) -> ollama.Client:
    """`seen` gets the HTTP replies: the client keeps no headers."""
    hooks = {"response": [seen.append]} if seen is not None else {}
    return ollama.Client(
        host=site.base_url, headers={"Authorization": f"Bearer {key or site.key}"}, event_hooks=hooks, timeout=30
    )


def test_ollama_chats_and_is_booked(site: Site) -> None:
    seen: list[httpx.Response] = []
    answer = ollama_client(site, seen=seen).chat(model="tiny", messages=MESSAGES, options={"num_predict": 8})
    assert answer.message.content
    assert answer.done
    assert answer.done_reason == "length"
    assert answer.eval_count == 8
    assert answer.prompt_eval_count
    assert site.booked(seen[-1].headers) == (answer.prompt_eval_count, 8)


def test_ollama_streams_by_lines(site: Site) -> None:
    client = ollama_client(site)
    parts = list(client.chat(model="tiny", messages=MESSAGES, options={"num_predict": 8}, stream=True))
    assert len([part for part in parts if part.message.content]) > 3
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == 8
    pieces = list(client.generate(model="tiny", prompt=PROMPT, options={"num_predict": 8}, stream=True))
    assert "".join(piece.response for piece in pieces)
    assert pieces[-1].eval_count == 8


def test_ollama_calls_tools_and_takes_their_results(site: Site) -> None:
    client = ollama_client(site)
    answer = client.chat(model="tools", messages=MESSAGES, tools=TOOLS, options={"num_predict": ROOM})
    calls = answer.message.tool_calls or []
    assert calls
    assert all(is_call(call.function.name, call.function.arguments) for call in calls)
    history = [*MESSAGES, answer.message, *({"role": "tool", "tool_name": "weather", "content": "rain"} for _ in calls)]
    after = client.chat(model="tiny", messages=history, tools=TOOLS, options={"num_predict": 8})
    assert after.eval_count == 8


def test_ollama_takes_a_schema_and_embeds_and_lists(site: Site) -> None:
    client = ollama_client(site)
    answer = client.chat(model="tiny", messages=MESSAGES, format=SCHEMA, options={"num_predict": ROOM})
    assert Place.model_validate_json(answer.message.content or "").city in CITIES
    assert [len(vector) for vector in client.embed(model="tiny", input=["water", "more water"]).embeddings] == [64, 64]
    assert [model.model for model in client.list().models] == ["tiny", "tools"]
    assert client.show("tiny").details is not None


def test_ollama_errors_have_the_status_the_client_knows(site: Site) -> None:
    def ask(key: str, model: str) -> object:
        return ollama_client(site, key).chat(model=model, messages=MESSAGES)

    raised = refusals(site, ask, ollama.ResponseError)
    assert [getattr(error, "status_code", 0) for error in raised] == [401, 404, 429]
    assert all(str(error) for error in raised)


# --- Groq -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def groq_client(site: Site) -> Iterator[groq.Groq]:
    """It puts /openai/v1 before its paths by itself."""
    with groq.Groq(base_url=site.base_url, api_key=site.key, max_retries=0, timeout=30) as client:
        yield client


def test_groq_chats_streams_and_is_booked(site: Site, groq_client: groq.Groq) -> None:
    raw = groq_client.chat.completions.with_raw_response.create(model="tiny", messages=MESSAGES, max_tokens=8)
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert site.booked(raw.headers) == (answer.usage.prompt_tokens, 8)
    chunks = list(groq_client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=8, stream=True))
    assert len([chunk for chunk in chunks if chunk.choices[0].delta.content]) > 3
    assert chunks[-1].choices[0].finish_reason == "length"
    assert "tiny" in [model.id for model in groq_client.models.list().data]


def test_groq_calls_tools(groq_client: groq.Groq) -> None:
    choice = groq_client.chat.completions.create(
        model="tools", messages=MESSAGES, max_tokens=ROOM, tools=TOOLS, tool_choice="required"
    ).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    assert all(is_call(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls)


def test_groq_errors_have_the_classes_the_client_knows(site: Site, groq_client: groq.Groq) -> None:
    def ask(key: str, model: str) -> object:
        return groq_client.with_options(api_key=key).chat.completions.create(model=model, messages=MESSAGES)

    raised = refusals(site, ask, groq.APIStatusError)
    assert [type(error) for error in raised] == [groq.AuthenticationError, groq.NotFoundError, groq.RateLimitError]


# --- Mistral --------------------------------------------------------------------------------------------------------


def test_mistral_chats_and_is_booked(site: Site) -> None:
    seen: list[httpx.Response] = []
    with (
        httpx.Client(event_hooks={"response": [seen.append]}, timeout=30) as http,
        Mistral(api_key=site.key, server_url=site.base_url, client=http) as client,
    ):
        answer = client.chat.complete(model="tiny", messages=MESSAGES, max_tokens=8)
    assert answer.choices[0].message is not None
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 8
    assert answer.usage.prompt_tokens
    assert site.booked(seen[-1].headers) == (answer.usage.prompt_tokens, 8)


def test_mistral_lists_models(site: Site) -> None:
    with Mistral(api_key=site.key, server_url=site.base_url) as client:
        listed = client.models.list().data or []
        one = client.models.retrieve(model_id="tiny")
    assert {"tiny", "tools"} <= {model.id for model in listed if model.type == "base"}
    assert all(model.capabilities.completion_chat for model in listed if model.type == "base")
    assert (one.id, one.type) == ("tiny", "base")


def test_mistral_embeds(site: Site) -> None:
    with Mistral(api_key=site.key, server_url=site.base_url) as client:
        answer = client.embeddings.create(model="tiny", inputs=["water", "more water"])
    assert answer.id
    assert [len(item.embedding or ()) for item in answer.data] == [64, 64]
    assert answer.usage.prompt_tokens


def test_mistral_streams_and_calls_tools(site: Site) -> None:
    with Mistral(api_key=site.key, server_url=site.base_url) as client:
        with client.chat.stream(model="tiny", messages=MESSAGES, max_tokens=8) as stream:
            chunks = [event.data.choices[0] for event in stream]
        choice = client.chat.complete(
            model="tools", messages=MESSAGES, max_tokens=ROOM, tools=TOOLS, tool_choice="required"
        ).choices[0]
    assert len([chunk for chunk in chunks if chunk.delta.content]) > 3
    assert chunks[-1].finish_reason == "length"
    assert choice.finish_reason == "tool_calls"
    assert choice.message is not None
    assert choice.message.tool_calls
    for call in choice.message.tool_calls:
        assert isinstance(call.function.arguments, str)
        assert is_call(call.function.name, json.loads(call.function.arguments))


def test_mistral_errors_have_the_status_the_client_knows(site: Site) -> None:
    def ask(key: str, model: str) -> object:
        with Mistral(api_key=key, server_url=site.base_url) as client:
            return client.chat.complete(model=model, messages=MESSAGES, max_tokens=8)

    assert [getattr(error, "status_code", 0) for error in refusals(site, ask, SDKError)] == [401, 404, 429]


# --- LangChain ------------------------------------------------------------------------------------------------------


def langchain(site: Site, key: str = "", **options: Any) -> ChatOpenAI:
    values: dict[str, Any] = {"model": "tiny", "max_tokens": 16, "max_retries": 0, "timeout": 30, **options}
    return ChatOpenAI(base_url=site.v1, api_key=key or site.key, **values)


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
def test_langchain_is_answered_streams_and_calls_tools(site: Site, responses: bool) -> None:
    model = langchain(site, use_responses_api=responses)
    answer = model.invoke(PROMPT)
    assert answer.text
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 16
    chunks = list(langchain(site, use_responses_api=responses, stream_usage=True).stream(PROMPT))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert len([chunk for chunk in chunks if chunk.text]) > 3
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 16
    caller = langchain(site, model="tools", max_tokens=ROOM, use_responses_api=responses)
    told = caller.bind_tools(TOOLS, tool_choice="required").invoke(PROMPT)
    assert told.tool_calls
    assert all(is_call(call["name"], call["args"]) for call in told.tool_calls)


def test_langchain_is_booked_and_embeds(site: Site) -> None:
    answer = langchain(site, include_response_headers=True).invoke(PROMPT)
    assert answer.usage_metadata is not None
    assert site.booked(answer.response_metadata["headers"]) == (answer.usage_metadata["input_tokens"], 16)
    # Otherwise the client counts tokens by a table that it would fetch from elsewhere.
    embeddings = OpenAIEmbeddings(
        base_url=site.v1, api_key=pydantic.SecretStr(site.key), model="tiny", check_embedding_ctx_length=False
    )
    assert [len(vector) for vector in embeddings.embed_documents(["water", "more water"])] == [64, 64]


def test_langchain_errors_are_those_of_the_openai_client(site: Site) -> None:
    def ask(key: str, model: str) -> object:
        return langchain(site, key, model=model).invoke(PROMPT)

    wrong_key, unknown, spent = refusals(site, ask, openai.APIStatusError)
    assert isinstance(wrong_key, openai.AuthenticationError)
    assert isinstance(unknown, openai.NotFoundError)
    assert isinstance(spent, openai.RateLimitError)
