"""Requests and answers of the Responses API, as the tests of its dialect write and read them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from gateway import errors
from gateway.dialects.responses import RESPONSES, parse_responses
from providers.canonical import Call

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
FUNCTION = {
    "type": "function",
    "name": "weather",
    "description": "The weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
ENCRYPTED = {"type": "reasoning.encrypted", "data": "gAAA", "id": "rs_1", "format": "openai-responses-v1"}
SIGNED = {"type": "reasoning.text", "text": "hmm", "signature": "S", "format": "anthropic-claude-v1"}
GOOGLE = {"google": {"thought_signature": "T"}}


def request(*headers: tuple[bytes, bytes]) -> Any:
    """An exchange, as far as the parser looks at it."""
    return SimpleNamespace(headers=list(headers))


def parse(**fields: Any) -> Call:
    return parse_responses(json.dumps({"model": "m", "input": "hello", **fields}).encode())


def canonical(**fields: Any) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(parse(**fields).body)
    return told


def messages(*items: Any, **fields: Any) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = canonical(input=list(items), **fields)["messages"]
    return told


def refusal(**fields: Any) -> errors.BadRequestError:
    with pytest.raises(errors.BadRequestError) as caught:
        parse(**fields)
    return caught.value


def function_call(id: str, name: str = "weather", arguments: str = "{}", **more: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": id, "name": name, "arguments": arguments, **more}


def output(id: str, text: Any = "sunny") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": id, "output": text}


def chat_call(id: str, name: str = "weather", arguments: str = "{}", **more: Any) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def text(role: str, words: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": words}]}


USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
TOLD_USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 15,
}


def completion(message: dict[str, Any], finish: str = "stop", **fields: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": finish}
    told = {"id": "chatcmpl-abcdef", "object": "chat.completion", "created": 7, "model": "up", "choices": [choice]}
    return json.dumps({**told, "usage": USAGE, **fields}).encode()


def chunk(delta: dict[str, Any] | None, finish: str | None = None, **fields: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    told = {"id": "chatcmpl-abcdef", "object": "chat.completion.chunk", "created": 7, "model": "up", "choices": choices}
    return b"data: %b\n\n" % json.dumps({**told, **fields}).encode()


def chunks_of(deltas: list[dict[str, Any]], finish: str = "stop") -> list[bytes]:
    return [
        chunk({"role": "assistant", "content": ""}),
        *map(chunk, deltas),
        chunk({}, finish),
        chunk(None, usage=USAGE),
    ]


def stream(call: Call, deltas: list[dict[str, Any]], finish: str = "stop") -> bytes:
    writer = RESPONSES.writer(call, "r")
    return b"".join(map(writer.feed, chunks_of(deltas, finish))) + writer.finish()


def events_of(raw: bytes, kind: str = "") -> list[str]:
    """The data of all events, or those of one type; each is checked against the client library's own types."""
    told = []
    for number, event in enumerate(raw.decode().removesuffix("\n\n").split("\n\n")):
        name, data = event.split("\n")
        doc = json.loads(data.removeprefix("data: "))
        assert name == f"event: {doc['type']}"
        assert doc["sequence_number"] == number
        _check(doc)
        if kind in ("", doc["type"]):
            told.append(data.removeprefix("data: "))
    return told


def _check(event: dict[str, Any]) -> None:
    """Have the client library's type of this event read it, but for error codes that the type does not list."""
    response = event.get("response")
    if response and response["error"]:
        event = {**event, "response": {**response, "error": {**response["error"], "code": "server_error"}}}
    EVENTS.validate_python(event)


def short(raw: bytes) -> list[str]:
    """Events in one line each: type, places and what they bring."""
    told = []
    for event in map(json.loads, events_of(raw)):
        places = [str(event[key]) for key in ("output_index", "content_index", "summary_index") if key in event]
        brings = [str(event[key]) for key in ("delta", "text", "arguments", "input", "refusal") if key in event]
        told.append(" ".join([event["type"].removeprefix("response."), "/".join(places), *brings]).rstrip())
    return told
