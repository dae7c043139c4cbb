"""What the tests of the adapter for Anthropic's Messages API share: calls, a target, and words to try."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import strategies as st

from gateway.dialects import openai
from providers.adapters.anthropic import VERSION, Anthropic
from providers.canonical import Call, Target, UnsupportedParamError
from providers.catalog import Kind

KIND = Kind(
    "anthropic",
    "Anthropic",
    "https://api.anthropic.com",
    adapter="anthropic",
    paths=MappingProxyType({"messages": "/v1/messages", "count": "/v1/messages/count_tokens", "models": "/v1/models"}),
)
ADAPTER = Anthropic()
HELLO = [{"role": "user", "content": "hello"}]
FORMAT = "anthropic-claude-v1"
PNG = "data:image/png;base64,iVBORw0KGgo="
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def target(*, model: str = "claude", strict: bool = True, labels: tuple[str, ...] = ()) -> Target:
    return Target(KIND, model, strict, frozenset(labels))


def call(messages: list[dict[str, Any]] = HELLO, **fields: Any) -> Call:
    body = json.dumps({"model": "m", "messages": messages, **fields}).encode()
    return openai.parse_chat(body)


def sent(
    messages: list[dict[str, Any]] = HELLO,
    *,
    to: Target | None = None,
    limit: int | None = None,
    **fields: Any,
) -> dict[str, Any]:
    request = ADAPTER.build(call(messages, **fields), to or target(), limit)
    assert (request.operation, request.headers) == ("messages", VERSION)
    told: dict[str, Any] = json.loads(request.body)
    return told


def turns(*messages: dict[str, Any]) -> Any:
    return sent(list(messages))["messages"]


def left(to: Target | None = None, *, messages: list[dict[str, Any]] = HELLO, **fields: Any) -> tuple[str, ...]:
    return ADAPTER.build(call(messages, **fields), to or target(), None).dropped


def refusal(to: Target | None = None, *, messages: list[dict[str, Any]] = HELLO, **fields: Any) -> tuple[str, str]:
    with pytest.raises(UnsupportedParamError) as caught:
        ADAPTER.build(call(messages, **fields), to or target(), None)
    return caught.value.param, caught.value.message


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def tool_call(id: str = "toolu_1", name: str = "f", arguments: str = "{}") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def native(body: bytes, *, headers: bytes = b"", limit: int | None = 100, **fields: Any) -> Call:
    made = call(max_tokens=limit) if limit else call()
    made.dialect, made.native, made.native_headers = "anthropic", body, headers
    for name, value in fields.items():
        setattr(made, name, value)
    return made


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [{"type": "text", "text": "Hi!"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 10,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 30,
        "output_tokens": 25,
        "output_tokens_details": {"thinking_tokens": 20},
    },
}

WORDS = st.text(min_size=1, max_size=8).filter(lambda words: bool(words.strip()))
NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)
OBJECTS = st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3) | st.booleans(), max_size=3)
DETAILS = st.builds(
    lambda words, sign: {"type": "reasoning.text", "text": words, "signature": sign, "format": FORMAT}, st.text(), NAMES
) | st.builds(lambda data: {"type": "reasoning.encrypted", "data": data, "format": FORMAT}, NAMES)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3000) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "function", "name", "id", "image_url", "url", "file", "budget_tokens"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
