"""The adapter for Anthropic's Messages API: every parameter is translated, refused, or told as left out."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dialects import openai
from gateway.errors import BadRequestError
from providers.canonical import UnsupportedParamError
from tests.providers.anthropic_case import ADAPTER, JSON, TOOL, call, left, refusal, sent, target, text

FIELDS = (
    "tools",
    "tool_choice",
    "response_format",
    "reasoning_effort",
    "thinking",
    "top_k",
    "stop",
    "user",
    "service_tier",
    "cache_control",
    "parallel_tool_calls",
    "safety_identifier",
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"])},
    optional={
        "content": st.text(max_size=3) | st.lists(JSON, max_size=2),
        "tool_calls": JSON,
        "tool_call_id": JSON,
        "reasoning_details": JSON,
        "cache_control": JSON,
    },
)


class TestParameters:
    def test_tools_and_their_options(self) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "string"}}}
        tools = [
            {
                "type": "function",
                "function": {"name": "f", "description": "does", "parameters": schema, "strict": True},
                "cache_control": {"type": "ephemeral"},
            },
            {"type": "function", "function": {"name": "g", "strict": False, "defer_loading": True}},
            {"function": {"name": "h", "parameters": {"$defs": {}}}},
        ]
        assert sent(tools=tools)["tools"] == [
            {
                "name": "f",
                "description": "does",
                "input_schema": schema,
                "strict": True,
                "cache_control": {"type": "ephemeral"},
            },
            {"name": "g", "input_schema": {"type": "object", "properties": {}}, "defer_loading": True},
            {"name": "h", "input_schema": {"type": "object", "properties": {}, "$defs": {}}},
        ]

    @pytest.mark.parametrize(
        ("tool", "param"),
        [
            ("x", "tools[0]"),
            ({"type": "custom", "custom": {"name": "c"}}, "tools[0]"),
            ({"type": "web_search_20250305", "name": "web_search"}, "tools[0]"),
            ({"type": "function", "function": {}}, "tools[0].function.name"),
            ({"type": "function", "function": {"name": "f", "parameters": []}}, "tools[0].function.parameters"),
        ],
    )
    def test_other_tools_are_refused(self, tool: Any, param: str) -> None:
        assert refusal(tools=[tool])[0] == param

    @pytest.mark.parametrize(
        ("asked", "told"),
        [
            ({"tool_choice": "auto"}, {"type": "auto"}),
            ({"tool_choice": "none"}, {"type": "none"}),
            ({"tool_choice": "required"}, {"type": "any"}),
            ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, {"type": "tool", "name": "f"}),
            ({"parallel_tool_calls": True}, None),
            ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
            (
                {"parallel_tool_calls": False, "tool_choice": "required"},
                {"type": "any", "disable_parallel_tool_use": True},
            ),
            ({"parallel_tool_calls": False, "tool_choice": "none"}, {"type": "none"}),
        ],
    )
    def test_tool_choices(self, asked: dict[str, Any], told: dict[str, Any] | None) -> None:
        assert sent(tools=[TOOL], **asked).get("tool_choice") == told

    def test_a_choice_that_says_nothing_without_tools_is_not_sent(self) -> None:
        assert "tool_choice" not in sent(tool_choice="auto", parallel_tool_calls=False)
        assert refusal(tools=[TOOL], tool_choice={"type": "allowed_tools"})[0] == "tool_choice"
        assert refusal(tools=[TOOL], tool_choice="perhaps")[0] == "tool_choice"

    @pytest.mark.parametrize(
        ("fields", "limit", "told"),
        [
            ({}, None, 4096),
            ({}, 7, 7),
            ({"max_tokens": 9}, None, 9),
            ({"max_completion_tokens": 9}, None, 9),
            ({"max_tokens": 9, "max_completion_tokens": 9}, 8, 8),
        ],
    )
    def test_a_limit_is_always_sent(self, fields: dict[str, Any], limit: int | None, told: int) -> None:
        body = sent(limit=limit, **fields)
        assert body["max_tokens"] == told
        assert "max_completion_tokens" not in body

    def test_a_stream_is_asked_for_without_options_the_api_does_not_know(self) -> None:
        body = sent(stream=True, stream_options={"include_usage": True}, pool="p", store=False)
        assert sorted(body) == ["max_tokens", "messages", "model", "stream"]
        assert "stream" not in sent(stream=False)

    def test_a_schema_for_the_answer_is_the_output_format(self) -> None:
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
        asked = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
        assert sent(response_format=asked, reasoning_effort="low")["output_config"] == {
            "effort": "low",
            "format": {"type": "json_schema", "schema": schema},
        }
        assert "output_config" not in sent(response_format={"type": "text"})

    def test_json_without_a_schema_has_no_twin(self) -> None:
        assert refusal(response_format={"type": "json_object"})[0] == "response_format"
        assert left(target(strict=False), response_format={"type": "json_object"}) == ("response_format",)
        assert refusal(response_format={"type": "json_schema"})[0] == "response_format.json_schema.schema"
        assert refusal(target(strict=False), response_format={"type": "grammar"})[0] == "response_format"

    def test_sampling_is_brought_into_range_and_sent_only_where_it_says_something(self) -> None:
        assert sent(temperature=0, top_p=0.3, top_k=5, stop="END") == {
            "model": "claude",
            "max_tokens": 4096,
            "messages": [{"role": "user", "content": [text("hello")]}],
            "temperature": 0,
            "top_p": 0.3,
            "top_k": 5,
            "stop_sequences": ["END"],
        }
        assert {"temperature", "top_p"}.isdisjoint(sent(temperature=1.7, top_p=1))
        assert refusal(top_k="5")[0] == "top_k"

    def test_stops_of_white_space_alone_are_refused(self) -> None:
        assert refusal(stop=["END", "\n"])[0] == "stop"
        lenient = ADAPTER.build(call(stop=["END", "\n"]), target(strict=False), None)
        assert json.loads(lenient.body)["stop_sequences"] == ["END"]
        assert lenient.dropped == ("stop",)

    def test_the_end_user_is_named(self) -> None:
        assert sent(user="u")["metadata"] == {"user_id": "u"}
        assert sent(user="u", safety_identifier="s")["metadata"] == {"user_id": "s"}
        assert left(user="u", safety_identifier="s") == ("user",)
        assert refusal(user=["u"])[0] == "user"

    @pytest.mark.parametrize(
        ("tier", "told"),
        [("auto", None), ("default", "standard_only"), ("standard_only", "standard_only"), ("priority", "auto")],
    )
    def test_service_tiers(self, tier: str, told: str | None) -> None:
        assert sent(service_tier=tier).get("service_tier") == told

    def test_a_tier_the_provider_does_not_have_is_refused(self) -> None:
        assert refusal(service_tier="flex")[0] == "service_tier"
        assert left(target(strict=False), service_tier="flex") == ("service_tier",)

    def test_automatic_caching_is_passed_on(self) -> None:
        assert sent(cache_control={"type": "ephemeral"})["cache_control"] == {"type": "ephemeral"}

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("n", 2),
            ("logprobs", True),
            ("top_logprobs", 3),
            ("logit_bias", {"1": 5}),
            ("frequency_penalty", 0.5),
            ("presence_penalty", -1),
            ("repetition_penalty", 1.1),
            ("min_p", 0.1),
            ("modalities", ["text", "audio"]),
            ("audio", {"voice": "alloy"}),
            ("functions", [{"name": "f"}]),
            ("function_call", "auto"),
            ("web_search_options", {}),
            ("guided_json", {}),
        ],
    )
    def test_what_shapes_the_answer_and_has_no_twin_is_refused_or_told(self, name: str, value: Any) -> None:
        param, words = refusal(**{name: value})
        assert param == name
        assert name in words
        assert left(target(strict=False), **{name: value}) == (name,)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("seed", 1),
            ("prediction", {"type": "content", "content": "x"}),
            ("verbosity", "low"),
            ("store", True),
            ("metadata", {"a": "b"}),
            ("prompt_cache_key", "k"),
            ("something_new", 1),
        ],
    )
    def test_hints_are_left_out_and_told(self, name: str, value: Any) -> None:
        assert left(**{name: value}) == (name,)

    def test_values_that_say_nothing_are_neither_refused_nor_told(self) -> None:
        nothing = {"n": 1, "logprobs": False, "frequency_penalty": 0, "seed": None, "logit_bias": {}, "tools": []}
        assert left(**nothing, parallel_tool_calls=True, response_format={"type": "text"}) == ()

    @pytest.mark.parametrize("body", [{"prompt": "x"}, {"input": "x"}])
    def test_only_chat_is_answered(self, body: dict[str, str]) -> None:
        parse = openai.parse_embeddings if "input" in body else openai.parse_completions
        with pytest.raises(UnsupportedParamError) as caught:
            ADAPTER.build(parse(json.dumps({"model": "m", **body}).encode()), target(), None)
        assert caught.value.param in body

    @given(st.lists(MESSAGES, min_size=1, max_size=4), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
    @settings(max_examples=300, deadline=None)
    def test_whatever_is_asked_it_is_translated_or_refused(
        self, messages: list[dict[str, Any]], fields: dict[str, Any]
    ) -> None:
        try:
            request = ADAPTER.build(call(messages, **fields), target(), None)
        except (BadRequestError, UnsupportedParamError):
            return
        told = json.loads(request.body)
        roles = [turn["role"] for turn in told["messages"]]
        assert all(one != other for one, other in itertools.pairwise(roles))
        assert all(turn["content"] for turn in told["messages"])
