"""Calls and answers that the tests of the Gemini adapter share."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.dialects import openai
from providers.adapters.google import Google
from providers.canonical import Answer, Call, Target, UnsupportedParamError
from providers.catalog import Kind

ADAPTER = Google()
KIND = Kind("google", "Google Gemini", "https://generativelanguage.googleapis.com", adapter="google")
HELLO = [{"role": "user", "content": "hello"}]
PNG = "data:image/png;base64,iVBORw0="
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell it.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def target(model: str = "gemini-2.5-flash", *, strict: bool = True) -> Target:
    return Target(KIND, model, strict=strict)


def call(**body: Any) -> Call:
    return openai.parse_chat(json.dumps({"model": "m", "messages": HELLO, **body}).encode())


def sent(model: str = "gemini-2.5-flash", limit: int | None = None, **body: Any) -> dict[str, Any]:
    return dict(json.loads(ADAPTER.build(call(**body), target(model), limit).body))


def turns(*messages: dict[str, Any], model: str = "gemini-2.5-flash") -> list[dict[str, Any]]:
    return list(sent(model, messages=list(messages))["contents"])


def asked(id: str = "c1", name: str = "weather", arguments: str = '{"city":"Bern"}', **more: Any) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def refused(model: str = "gemini-2.5-flash", **body: Any) -> str:
    with pytest.raises(UnsupportedParamError) as caught:
        ADAPTER.build(call(**body), target(model), None)
    assert "Google Gemini" in caught.value.message
    return caught.value.param


def response(*parts: dict[str, Any], finish: str | None = "STOP", **more: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    usage = {"promptTokenCount": 7, "candidatesTokenCount": 3, "totalTokenCount": 10}
    told = {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-x", "responseId": "r1"}
    return {**told, **more}


def read(told: Any, **body: Any) -> Answer:
    raw = told if isinstance(told, bytes) else json.dumps(told).encode()
    return ADAPTER.read_unary(call(**body), 200, [], raw, target())


def choice(told: Any, **body: Any) -> dict[str, Any]:
    answer = read(told, **body)
    assert answer.problem is None
    return dict(json.loads(answer.body)["choices"][0])


def embedding(**body: Any) -> Call:
    return openai.parse_embeddings(json.dumps({"model": "m", "input": ["a", "b"], **body}).encode())


def batch(**body: Any) -> Call:
    asking = embedding()
    asking.dialect = "gemini"
    requests = [{"model": "models/m", "content": {"parts": [{"text": text}]}} for text in "ab"]
    asking.native = json.dumps({"requests": requests, **body}).encode()
    return asking


def native(body: bytes = b'{"contents":[{"parts":[{"text":"a"}]}]}', **fields: Any) -> Call:
    asking = call(**fields)
    asking.dialect, asking.native, asking.native_headers = "gemini", body, b"x-a: b\r\n"
    return asking
