"""The built-in demo provider: deterministic, within limits, exact in its usage, read by the ordinary readers."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from typing import Any

import pytest

from gateway.dialects import openai
from providers import adapters
from providers.adapters.demo import DIMENSIONS, MODELS, DemoAdapter
from providers.canonical import Answer, Call
from providers.catalog import CATALOG

DEMO = DemoAdapter()
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string"},
                "days": {"type": "integer"},
                "unit": {"enum": ["C", "F"]},
                "tags": {"type": "array", "items": {"type": ["string", "null"]}},
                "more": {"type": "object", "properties": {"deep": {"type": "boolean"}}},
            },
            "required": ["place", "days", "unit", "tags", "more"],
        },
    },
}


def chat(text: Any = "Hello there, how are you?", **fields: Any) -> Call:
    body = {"model": "demo", "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]}
    return openai.parse_chat(json.dumps(body | fields).encode())


def completion(prompt: Any, **fields: Any) -> Call:
    return openai.parse_completions(json.dumps({"model": "demo", "prompt": prompt, **fields}).encode())


def embedding(value: Any, **fields: Any) -> Call:
    return openai.parse_embeddings(json.dumps({"model": "demo-embedding", "input": value, **fields}).encode())


def answered(call: Call, limit: int | None = None) -> tuple[Any, Answer]:
    body = asyncio.run(DEMO.answer(call, limit))
    assert asyncio.run(DEMO.answer(call, limit)) == body
    answer = DEMO.read_unary(call, 200, [], body)
    return json.loads(answer.body or b"null"), answer


def streamed(call: Call, limit: int | None = None) -> tuple[list[Any], adapters.StreamReader]:
    async def collect() -> list[bytes]:
        return [piece async for piece in DEMO.stream(call, limit)]

    pieces = asyncio.run(collect())
    assert asyncio.run(collect()) == pieces
    reader = DEMO.open_stream(call)
    out = b"".join([*map(reader.feed, pieces), reader.finish()])
    assert reader.done
    assert reader.error is None
    return [json.loads(event[6:]) for event in out.split(b"\n\n") if event], reader


def test_it_is_the_local_adapter_of_the_demo_kind() -> None:
    assert adapters.get(CATALOG["demo"].adapter).local
    assert MODELS == ("demo", "demo-embedding")


def test_chat_repeats_what_the_user_said() -> None:
    told, answer = answered(chat())
    assert told["object"] == "chat.completion"
    assert told["id"].startswith("chatcmpl-")
    assert told["model"] == "demo"
    choice = told["choices"][0]
    assert choice["message"]["content"].endswith("You said: Hello there, how are you?")
    assert choice["finish_reason"] == "stop"
    assert answer.usage is not None
    assert answer.usage.reported
    assert told["usage"]["total_tokens"] == answer.usage.input + answer.usage.output > 10


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_the_limit_is_obeyed_and_told(limit: int) -> None:
    for call in (chat(), completion("Once upon a time there was a limit")):
        told, answer = answered(call, limit)
        assert answer.usage is not None
        assert answer.usage.output <= limit
        assert told["choices"][0]["finish_reason"] == ("length" if limit < 1000 else "stop")
    own, _ = answered(chat(max_tokens=2))
    assert own["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"tools": [TOOL], "tool_choice": "required"}])
def test_a_stream_tells_the_same_as_the_whole_answer(limit: int | None, fields: dict[str, Any]) -> None:
    whole, answer = answered(chat(**fields), limit)
    call = chat(**fields, stream=True, stream_options={"include_usage": True})
    events, reader = streamed(call, limit)
    assert reader.usage == answer.usage
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        parts = [item for event in events for item in event["choices"] if item["index"] == choice["index"]]
        assert parts[0]["delta"]["role"] == "assistant"
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        if fields.get("tools"):
            pieces = [call for part in parts for call in part["delta"].get("tool_calls", [])]
            expected = choice["message"]["tool_calls"][0]["function"]
            assert pieces[0]["function"]["name"] == expected["name"]
            assert "".join(piece["function"]["arguments"] for piece in pieces) == expected["arguments"]
        else:
            text = "".join(part["delta"].get("content", "") for part in parts)
            assert text == choice["message"]["content"]


def test_usage_is_not_told_to_a_stream_that_did_not_ask() -> None:
    events, reader = streamed(chat(stream=True))
    assert all(event["choices"] for event in events)
    assert reader.usage is not None
    assert reader.events == reader.usage.output


@pytest.mark.parametrize("text", ["", " ", "a" * 5000, "é😀\u2028" * 300, "many words " * 500])
def test_reported_usage_is_never_above_the_bound(text: str) -> None:
    for call in (chat(text), completion(text or "x"), embedding(text or "x")):
        _, answer = answered(call)
        assert answer.usage is not None
        assert answer.usage.input <= len(call.body) + 16 * call.messages


def test_parts_without_text_are_passed_over() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:x"}}, {"type": "text", "text": "a cat"}]
    told, _ = answered(chat(parts))
    assert told["choices"][0]["message"]["content"].endswith("You said: a cat")
    none, _ = answered(chat(None))
    assert "Say something" in none["choices"][0]["message"]["content"]


def test_a_tool_is_called_when_the_request_insists() -> None:
    for choice in ("required", {"type": "function", "function": {"name": "look_up"}}):
        told, _ = answered(chat("Oslo", tools=[TOOL], tool_choice=choice))
        message = told["choices"][0]["message"]
        function = message["tool_calls"][0]["function"]
        assert told["choices"][0]["finish_reason"] == "tool_calls"
        assert function["name"] == "look_up"
        expected = {"place": "Oslo", "days": 0, "unit": "C", "tags": ["Oslo"], "more": {"deep": True}}
        assert json.loads(function["arguments"]) == expected
    free, _ = answered(chat("Oslo", tools=[TOOL]))
    assert free["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "tools", [[], [1], [{"type": "web_search"}], [{"function": {"name": 5}}], [{"function": None}]]
)
def test_odd_tools_do_no_harm(tools: list[Any]) -> None:
    told, _ = answered(chat(tools=tools, tool_choice="required"))
    assert told["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "schema",
    [{"type": "object", "properties": {"a": {"type": "number"}}}, {"const": 5}, {}, None, 5, {"required": "x"}],
)
def test_json_is_answered_when_asked_for(schema: Any) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    told, _ = answered(chat(response_format=wanted))
    value = json.loads(told["choices"][0]["message"]["content"])
    if isinstance(schema, dict) and "properties" in schema:
        assert value == {"a": 0}
    echoed, _ = answered(chat("hi", response_format={"type": "json_object"}))
    assert json.loads(echoed["choices"][0]["message"]["content"]) == {"echo": "hi"}


def test_completions_answer_every_prompt() -> None:
    told, _ = answered(completion(["one", "two"], n=2, best_of=3, echo=True))
    texts = [choice["text"] for choice in told["choices"]]
    assert [text.split()[0] for text in texts] == ["one", "one", "two", "two"]
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2, 3]
    assert told["object"] == "text_completion"
    numbers, answer = answered(completion([1, 2, 3]))
    assert "3 tokens" in numbers["choices"][0]["text"]
    assert answer.usage is not None
    assert answer.usage.input == 3
    events, reader = streamed(completion("go", stream=True))
    assert "".join(event["choices"][0]["text"] for event in events).endswith("You wrote: go")
    assert reader.usage is not None
    assert reader.usage.output == reader.events


def test_vectors_are_unit_length_and_similar_for_similar_texts() -> None:
    told, answer = answered(embedding(["the cat sat down", "the cat sat up", "quantum field theory", ""][:3]))
    vectors = [item["embedding"] for item in told["data"]]
    assert [len(vector) for vector in vectors] == [DIMENSIONS] * 3
    assert all(abs(sum(value * value for value in vector) - 1) < 1e-9 for vector in vectors)

    def alike(left: list[float], right: list[float]) -> float:
        return sum(a * b for a, b in zip(left, right, strict=True))

    assert alike(vectors[0], vectors[1]) > 0.5 > alike(vectors[0], vectors[2])
    assert answer.usage is not None
    assert answer.usage.output == 0


def test_vectors_come_in_both_encodings_and_any_size() -> None:
    floats, _ = answered(embedding("hello", dimensions=8))
    packed, _ = answered(embedding("hello", dimensions=8, encoding_format="base64"))
    raw = base64.b64decode(packed["data"][0]["embedding"])
    assert list(struct.unpack("<8f", raw)) == pytest.approx(floats["data"][0]["embedding"])
    tokens, _ = answered(embedding([[1, 2], [3]]))
    assert len(tokens["data"]) == 2
    assert len(answered(embedding([1, 2]))[0]["data"]) == 1


def test_more_dimensions_than_it_has_are_refused_not_cut() -> None:
    _, answer = answered(embedding("hello", dimensions=5000))
    assert answer.problem is not None
    assert (answer.problem.reason, answer.problem.status, answer.problem.param) == ("client", 400, "dimensions")


def test_vectors_with_more_than_a_million_numbers_in_all_are_refused() -> None:
    _, answer = answered(embedding(["a"] * 245, dimensions=4096))
    assert answer.problem is not None
    assert (answer.problem.reason, answer.problem.status, answer.problem.param) == ("client", 400, "input")
    _, answer = answered(embedding(["a"] * 200, dimensions=100))
    assert answer.problem is None


@pytest.mark.parametrize(
    "call",
    [
        embedding(["some words"] * 2000, dimensions=400),
        completion(["a"] * 50, n=128, max_tokens=1),
        chat(n=128, max_tokens=20),
    ],
    ids=["embeddings", "completions", "chat"],
)
def test_a_large_answer_lets_others_run_meanwhile(call: Call) -> None:
    async def others() -> int:
        answer = asyncio.create_task(DEMO.answer(call, call.limit))
        turns = 0
        while not answer.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(others()) >= call.messages
