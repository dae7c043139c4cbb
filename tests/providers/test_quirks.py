"""What the catalogue declares that providers of the OpenAI API do differently, and the rules for parameters."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from gateway.dialects.openai import parse_chat, parse_embeddings
from providers import adapters
from providers.adapters import params
from providers.canonical import Request, Target, UnsupportedParamError
from providers.catalog import CATALOG

ADAPTER = adapters.get("openai_compatible")
HELLO = [{"role": "user", "content": "hello"}]


def built(kind: str, *, strict: bool = True, **fields: Any) -> Request:
    body = json.dumps({"model": "m", "messages": HELLO, "max_tokens": 5, **fields}).encode()
    return ADAPTER.build(parse_chat(body), Target(CATALOG[kind], "m", strict=strict), None)


def sent(kind: str, **fields: Any) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(built(kind, **fields).body)
    return told


def test_a_field_goes_under_the_name_the_provider_has_for_it() -> None:
    told = sent("mistral", seed=7)
    assert told["random_seed"] == 7
    assert "seed" not in told


def test_a_tool_choice_goes_in_the_words_of_the_provider() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    assert sent("mistral", tools=tools, tool_choice="required")["tool_choice"] == "any"
    assert sent("mistral", tools=tools, tool_choice="auto")["tool_choice"] == "auto"
    named = {"type": "function", "function": {"name": "f"}}
    assert sent("mistral", tools=tools, tool_choice=named)["tool_choice"] == named


def test_a_hint_that_is_not_honoured_is_dropped_and_told() -> None:
    request = built("mistral", user="u", store=True, unheard_of={"a": 1}, prompt_cache_key="k", top_k=5)
    assert request.dropped == ("store", "unheard_of", "user")
    told = json.loads(request.body)
    assert set(told) == {"model", "messages", "max_tokens", "prompt_cache_key", "top_k"}


def test_what_means_something_is_refused_where_the_operator_is_strict() -> None:
    with pytest.raises(UnsupportedParamError) as caught:
        built("groq", n=3)
    assert caught.value.param == "n"
    assert "Groq" in caught.value.message
    lenient = built("groq", strict=False, n=3)
    assert lenient.dropped == ("n",)
    assert "n" not in json.loads(lenient.body)


@pytest.mark.parametrize("kind", ["groq", "mistral"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("logit_bias", {}), ("logit_bias", None), ("audio", None), ("service_tier", "auto")),
        *(("service_tier", "default"), ("service_tier", None), ("store", False), ("modalities", ["text"])),
        *(("echo", False), ("best_of", 1), ("min_p", 0), ("unheard_of", None), ("stream_options", None)),
    ],
)
def test_a_value_that_is_the_default_is_no_wish_and_does_not_reach_who_refuses_it(
    kind: str, name: str, value: Any
) -> None:
    request = built(kind, **{name: value})
    assert request.dropped == ()
    assert name not in json.loads(request.body) or (kind, name) == ("groq", "stream_options")


def test_what_only_some_endpoints_have_goes_through_on_others() -> None:
    """The fields a chat may have are no measure for embeddings."""
    body = b'{"model":"m","input":"x","encoding_format":"float","dimensions":8,"output_dtype":"int8","user":"u"}'
    request = ADAPTER.build(parse_embeddings(body), Target(CATALOG["mistral"], "m"), None)
    assert request.dropped == ("user",)
    told = json.loads(request.body)
    assert set(told) == {"model", "input", "encoding_format", "output_dimension", "output_dtype"}


def test_a_tier_in_the_providers_own_words_passes() -> None:
    request = built("groq", service_tier="flex", reasoning_format="hidden", search_settings={})
    assert request.dropped == ()
    assert json.loads(request.body)["service_tier"] == "flex"


def test_the_default_way_to_choose_a_tool_is_no_wish() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    request = built("ollama-v1", tools=tools, tool_choice="auto")
    assert request.dropped == ()
    assert "tool_choice" not in json.loads(request.body)
    with pytest.raises(UnsupportedParamError):
        built("ollama-v1", tools=tools, tool_choice="none")


@pytest.mark.parametrize("kind", ["openai", "azure"])
def test_the_neutral_value_of_another_servers_parameter_is_taken_out(kind: str) -> None:
    request = built(kind, repetition_penalty=1.0, min_p=0, top_k=None)
    assert request.dropped == ()
    assert set(json.loads(request.body)) == {"model", "messages", "max_completion_tokens"}


def test_other_requests_of_such_a_provider_keep_their_bytes() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"hello"}], "max_tokens":5, "temperature":0.10}'
    assert ADAPTER.build(parse_chat(body), Target(CATALOG["mistral"], "m"), None).body is body


def test_the_default_of_a_flag_is_not_the_number_of_the_same_value() -> None:
    assert params.is_default("logprobs", False)
    assert not params.is_default("logprobs", 0)
    assert params.is_default("frequency_penalty", 0.0)
    assert not params.is_default("frequency_penalty", False)


def test_the_header_names_each_plain_name_once() -> None:
    assert params.header(["n", "user", "n", "bad\r\nname", "é"]) == b"n, user"


def test_a_translated_request_has_nothing_in_its_messages_that_a_strict_server_refuses() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    calls = [
        {
            "id": "c1",
            "type": "function",
            "function": {"name": "f", "arguments": "{}"},
            "extra_content": {"google": {"thought_signature": "s"}},
        }
    ]
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "reasoning_details": [], "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "seen"}, image], "is_error": True},
        {"role": "user", "content": "and?"},
    ]
    body = json.dumps({"model": "m", "messages": messages, "max_tokens": 5}).encode()
    call = parse_chat(body)
    call.dialect = "anthropic"
    told = json.loads(ADAPTER.build(call, Target(CATALOG["openai"], "m"), None).body)["messages"]
    assert told == [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "seen"},
        {"role": "user", "content": [image]},
        {"role": "user", "content": "and?"},
    ]
    assert json.loads(ADAPTER.build(call, Target(CATALOG["vllm"], "m"), None).body)["messages"] == messages


def test_ids_of_calls_that_another_provider_made_fit_and_stay_together() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        *HELLO,
        {"role": "assistant", "tool_calls": [{"id": "call_A-1", **call}, {"id": "Fits12345", **call}]},
        {"role": "tool", "tool_call_id": "call_A-1", "content": "one"},
        {"role": "tool", "tool_call_id": "Fits12345", "content": "two"},
    ]
    told = sent("mistral", messages=messages)["messages"]
    first, second = told[1]["tool_calls"]
    assert re.fullmatch("[a-zA-Z0-9]{9}", first["id"])
    assert (second["id"], told[3]["tool_call_id"]) == ("Fits12345", "Fits12345")
    assert told[2]["tool_call_id"] == first["id"]
    assert sent("mistral", messages=messages)["messages"] == told
    assert sent("groq", messages=messages)["messages"][1]["tool_calls"][0]["id"] == "call_A-1"
