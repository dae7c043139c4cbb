"""The schema of OpenAI's answers is no looser than OpenAI's own SDK, and sees what is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pydantic
import pytest
from openai import types
from openai.types import chat, completion_usage, create_embedding_response, responses
from openai.types.chat import chat_completion, chat_completion_chunk
from openai.types.responses import response_usage

from tests.gateway import openai_schema as schema

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGE = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL]}
CHOICE = {"index": 0, "message": MESSAGE, "logprobs": None, "finish_reason": "tool_calls"}
HEAD = {"id": "x", "created": 1, "model": "m"}
ANSWER: dict[str, Any] = {**HEAD, "object": "chat.completion", "choices": [CHOICE], "usage": USAGE}

SAME: list[tuple[schema.Schema, type[pydantic.BaseModel]]] = [
    (schema.CHAT, chat.ChatCompletion),
    (schema.CHAT["choices"][0], chat_completion.Choice),
    (schema.MESSAGE, chat.ChatCompletionMessage),
    (schema.TOOL_CALL, chat.ChatCompletionMessageFunctionToolCall),
    (schema.CHUNK, chat.ChatCompletionChunk),
    (schema.CHUNK["choices"][0], chat_completion_chunk.Choice),
    (schema.DELTA, chat_completion_chunk.ChoiceDelta),
    (schema.DELTA["tool_calls?"][0], chat_completion_chunk.ChoiceDeltaToolCall),
    (schema.USAGE, types.CompletionUsage),
    (schema.USAGE["prompt_tokens_details?"], completion_usage.PromptTokensDetails),
    (schema.USAGE["completion_tokens_details?"], completion_usage.CompletionTokensDetails),
    (schema.COMPLETION, types.Completion),
    (schema.COMPLETION["choices"][0], types.CompletionChoice),
    (schema.EMBEDDINGS, types.CreateEmbeddingResponse),
    (schema.EMBEDDINGS["data"][0], types.Embedding),
    (schema.EMBEDDINGS["usage"], create_embedding_response.Usage),
    (schema.MODEL, types.Model),
    (schema.RESPONSE, responses.Response),
    (schema.RESPONSE_USAGE, responses.ResponseUsage),
    (schema.RESPONSE_USAGE["input_tokens_details"], response_usage.InputTokensDetails),
    (schema.RESPONSE_USAGE["output_tokens_details"], response_usage.OutputTokensDetails),
    (schema.MESSAGE_ITEM, responses.ResponseOutputMessage),
    (schema.OUTPUT_TEXT, responses.ResponseOutputText),
    (schema.REFUSAL, responses.ResponseOutputRefusal),
    (schema.REASONING_ITEM, responses.ResponseReasoningItem),
    (schema.CALL_ITEM, responses.ResponseFunctionToolCall),
    (schema.RESPONSE_ERROR, responses.ResponseError),
]
# The gateway's own, what its clients send and look for in answers, and what the API tells though the SDK has no type.
OWN = {"reasoning_content", "reasoning_details", "extra_content", "store", "annotations"}
MORE: dict[type[pydantic.BaseModel], set[str]] = {
    responses.ResponseErrorEvent: {"error"},
    types.CreateEmbeddingResponse: {"id"},
}


def event_types() -> Iterator[tuple[schema.Schema, type[pydantic.BaseModel]]]:
    """The schema of each event with the SDK's type of it."""
    known: dict[str, type[pydantic.BaseModel]] = {}
    for name in dir(responses):
        found = getattr(responses, name)
        if isinstance(found, type) and issubclass(found, pydantic.BaseModel) and name.endswith("Event"):
            (kind, *_) = getattr(found.model_fields["type"].annotation, "__args__", ("",))
            known[kind] = found
    for kind, one in schema.RESPONSE_EVENTS.items():
        yield one, known[kind]


@pytest.mark.parametrize(
    ("ours", "theirs"), [pytest.param(*pair, id=pair[1].__name__) for pair in [*SAME, *event_types()]]
)
def test_what_the_sdk_demands_is_demanded_and_what_it_does_not_know_is_not_allowed(
    ours: schema.Schema, theirs: type[pydantic.BaseModel]
) -> None:
    demanded = {name.rstrip("~") for name in ours if not name.endswith("?")}
    fields = theirs.model_fields
    assert {name for name, field in fields.items() if field.is_required()} <= demanded
    unknown = {name.rstrip("?~") for name in ours} - set(fields) - OWN
    assert unknown <= MORE.get(theirs, set())


def test_a_whole_answer_is_good() -> None:
    assert schema.problems(ANSWER, schema.CHAT) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda told: told.pop("id"), "$.id: is missing"),
        (lambda told: told.update(id=None), "$.id: None is no str"),
        (lambda told: told.update(created=True), "$.created: True is no int"),
        (lambda told: told.update(object="list"), "$.object: 'list' is none of ['chat.completion']"),
        (lambda told: told.update(choices={}), "$.choices: {} is no array"),
        (lambda told: told.update(timings={}), "$.timings: OpenAI has no such field"),
        (lambda told: told["choices"][0].pop("logprobs"), "$.choices[0].logprobs: is missing"),
        (lambda told: told["choices"][0]["message"].pop("refusal"), "$.choices[0].message.refusal: is missing"),
        (lambda told: told["choices"][0].update(finish_reason=None), "$.choices[0].finish_reason: None is none of"),
        (lambda told: told["usage"].update(total_tokens="3"), "$.usage.total_tokens: '3' is no int"),
        (lambda told: told.update(usage=[]), "$.usage: [] is no object"),
    ],
)
def test_what_is_wrong_is_named(change: Any, problem: str) -> None:
    told = copy.deepcopy(ANSWER)
    change(told)
    (found,) = schema.problems(told, schema.CHAT)
    assert found.startswith(problem)


def test_what_providers_leave_out_or_add_is_theirs() -> None:
    told = copy.deepcopy(ANSWER)
    del told["choices"][0]["logprobs"], told["choices"][0]["message"]["refusal"]
    told["timings"] = {}
    assert len(schema.problems(told, schema.CHAT)) == 3
    assert schema.problems(told, schema.CHAT, lenient=True) == []
    del told["model"]
    assert schema.problems(told, schema.CHAT, lenient=True) == ["$.model: is missing"]


def test_every_event_of_a_stream_is_looked_at() -> None:
    chunk: dict[str, Any] = {**HEAD, "object": "chat.completion.chunk", "choices": []}
    error = {"error": {"message": "no", "type": "server_error", "param": None, "code": None}}
    good = b"data: %b\n\ndata: %b\n\ndata: [DONE]\n\n" % (json.dumps(chunk).encode(), json.dumps(error).encode())
    assert schema.wrong_in("openai", good, stream=True, lenient=False) == []
    bad = b"data: %b\n\ndata: %b\n\n" % (json.dumps({**chunk, "id": 1}).encode(), json.dumps({"error": {}}).encode())
    found = schema.wrong_in("openai", bad, stream=True, lenient=True)
    assert [line.partition(":")[0] for line in found] == [
        *("event 0.id", "event 1.error.message", "event 1.error.type", "event 1.error.param", "event 1.error.code")
    ]
    (found_event,) = schema.wrong_in("responses", b'data: {"type":"response.new"}\n\n', stream=True, lenient=False)
    assert "there is no event 'response.new'" in found_event
