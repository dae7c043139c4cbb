"""The Responses API as clients speak it: their requests as chats, what is refused, what codex and Cursor send."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import errors
from gateway.dialects import responses, responses_reasoning
from gateway.dialects.responses import RESPONSES, chat_from_responses, looks_like_responses, parse_responses
from tests.gateway.responses_case import (
    ENCRYPTED,
    FUNCTION,
    GOOGLE,
    SIGNED,
    canonical,
    chat_call,
    completion,
    events_of,
    function_call,
    messages,
    output,
    parse,
    refusal,
    request,
    stream,
    text,
)


class TestRequests:
    def test_a_plain_request_becomes_a_chat_and_is_kept_as_it_came(self) -> None:
        body = b'{"model": "m", "input": "hello"}'
        call = parse_responses(body)
        assert json.loads(call.body) == {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
        assert (call.endpoint, call.model, call.dialect, call.native) == ("chat", "m", "responses", body)
        assert (call.stream, call.wants_usage, call.native_only, call.dropped) == (False, True, "", ())

    def test_every_field_that_a_chat_has_is_carried(self) -> None:
        same = {
            "temperature": 0.5,
            "top_p": 0.9,
            "user": "u",
            "safety_identifier": "s",
            "prompt_cache_key": "k",
            "prompt_cache_retention": "24h",
            "service_tier": "default",
        }
        call = parse(
            **same,
            pool="team",
            stream=True,
            instructions="Be brief.",
            max_output_tokens=50,
            parallel_tool_calls=False,
            reasoning={"effort": "low", "summary": "auto"},
            text={"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True}, "verbosity": "low"},
            tools=[FUNCTION],
            tool_choice={"type": "function", "name": "weather"},
            top_logprobs=2,
            include=["reasoning.encrypted_content"],
            metadata={"a": "b"},
            store=False,
            stream_options={"include_obfuscation": False},
            truncation="disabled",
            background=False,
            previous_response_id=None,
        )
        function = {key: value for key, value in FUNCTION.items() if key != "type"}
        assert json.loads(call.body) == {
            "model": "m",
            **same,
            "pool": "team",
            "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
            "max_completion_tokens": 50,
            "reasoning_effort": "low",
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}},
            "verbosity": "low",
            "tools": [{"type": "function", "function": function}],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
            "parallel_tool_calls": False,
            "logprobs": True,
            "top_logprobs": 2,
        }
        assert (call.limit, call.limit_field, call.pool) == (50, "max_completion_tokens", "team")
        assert call.dropped == ()
        assert call.wants_usage
        assert call.stream

    def test_what_a_chat_does_not_have_is_left_out_and_told(self) -> None:
        call = parse(
            store=True,
            truncation="auto",
            max_tool_calls=3,
            client_metadata={"x": 1},
            reasoning={"effort": "high", "mode": "pro", "context": "auto"},
            include=["web_search_call.results"],
            context_management=[],
            tools=[{"type": "web_search"}, {"type": "mcp", "server_label": "x"}],
        )
        assert call.dropped == (
            "tools.web_search",
            "tools.mcp",
            "store",
            "truncation",
            "max_tool_calls",
            "client_metadata",
            "reasoning.mode",
            "reasoning.context",
            "include",
            "context_management",
        )
        assert call.native_only == ""
        assert "tools" not in call.fields

    def test_neighbouring_items_of_an_answer_become_one_message(self) -> None:
        told = messages(
            text("user", "weather?"),
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "think"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            function_call("a", arguments='{"city":"Oslo"}'),
            function_call("b"),
            output("a"),
            output("b", [{"type": "input_text", "text": "rain"}]),
            {"role": "assistant", "content": "Sunny."},
            {"role": "assistant", "content": "Rain."},
            {"role": "user", "content": "thanks"},
        )
        assert told == [
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "content": "I look.",
                "reasoning_content": "think",
                "tool_calls": [chat_call("a", arguments='{"city":"Oslo"}'), chat_call("b")],
            },
            {"role": "tool", "tool_call_id": "a", "content": "sunny"},
            {"role": "tool", "tool_call_id": "b", "content": "rain"},
            {"role": "assistant", "content": "Sunny."},
            {"role": "assistant", "content": "Rain."},
            {"role": "user", "content": "thanks"},
        ]

    def test_results_follow_their_calls_whatever_came_between(self) -> None:
        told = messages(
            function_call("a"), text("developer", "note"), {"role": "user", "content": "wait"}, output("a"), output("z")
        )
        assert [message["role"] for message in told] == ["assistant", "tool", "system", "user", "tool"]
        assert told[0]["content"] is None

    def test_text_between_calls_stays_in_their_message(self) -> None:
        told = messages(function_call("a"), {"role": "assistant", "content": "and"}, function_call("b"), output("a"))
        assert told[0]["content"] == "and"
        assert [call["id"] for call in told[0]["tool_calls"]] == ["a", "b"]

    def test_developer_messages_become_one_system_message_at_the_front(self) -> None:
        told = messages(text("developer", "one"), text("system", "two"), text("user", "hi"), text("developer", "late"))
        assert told == [
            {"role": "system", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            {"role": "user", "content": "hi"},
            {"role": "system", "content": "late"},
        ]

    def test_content_parts_are_carried(self) -> None:
        (told,) = messages(
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "see"},
                    {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"},
                    {"type": "input_image", "image_url": "https://x/y.png"},
                    {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"},
                    {"type": "input_file", "file_id": "file-1"},
                    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                ],
            }
        )
        assert told["content"] == [
            {"type": "text", "text": "see"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
            {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}},
            {"type": "file", "file": {"file_id": "file-1"}},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        ]

    def test_media_are_counted(self) -> None:
        image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
        call = parse(input=[{"role": "user", "content": [image]}, function_call("a"), output("a", [image])])
        assert (call.images, call.media_bytes, call.messages) == (2, 52, 3)

    def test_refusals_and_failed_results_are_carried(self) -> None:
        told = messages(
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "user", "content": "why"},
            function_call("a"),
            output("a", {"content": "broken", "success": False}),
        )
        assert told[0] == {"role": "assistant", "content": None, "refusal": "No."}
        assert told[3] == {"role": "tool", "tool_call_id": "a", "content": "broken", "is_error": True}

    def test_encrypted_reasoning_is_carried_with_its_id(self) -> None:
        summary = [{"type": "summary_text", "text": "a"}, {"type": "summary_text", "text": "b"}]
        item = {"type": "reasoning", "id": "rs_1", "summary": summary, "encrypted_content": "gAAA"}
        (told,) = messages(item, function_call("c"))
        assert told["reasoning_content"] == "a\n\nb"
        assert told["reasoning_details"] == [{**ENCRYPTED, "summary": "a\n\nb"}]

    def test_sealed_reasoning_is_what_another_provider_signed(self) -> None:
        sealed = responses_reasoning.seal(responses_reasoning.Sealed([SIGNED], {"c": GOOGLE}, GOOGLE))
        item = {"type": "reasoning", "id": "x", "summary": [], "encrypted_content": sealed}
        (told,) = messages(item, {"role": "assistant", "content": "hi"}, function_call("c"))
        assert told == {
            "role": "assistant",
            "content": "hi",
            "reasoning_content": "hmm",
            "reasoning_details": [SIGNED],
            "extra_content": GOOGLE,
            "tool_calls": [chat_call("c", extra_content=GOOGLE)],
        }

    @pytest.mark.parametrize(
        "data", ["hoosh1.", "hoosh1.!!", "hoosh1.bm8=", "hoosh1.e30=", "hoosh1.eyJkZXRhaWxzIjpbMV19"]
    )
    def test_a_damaged_seal_is_no_reasoning(self, data: str) -> None:
        item = {"type": "reasoning", "summary": [], "encrypted_content": data}
        (told,) = messages(item, {"role": "assistant", "content": "hi"})
        assert told == {"role": "assistant", "content": "hi"}

    def test_providers_of_this_api_do_not_get_reasoning_they_cannot_read(self) -> None:
        real = {"type": "reasoning", "id": "rs_9", "summary": [], "encrypted_content": "gAAA"}
        sealed = responses_reasoning.seal(responses_reasoning.Sealed([SIGNED]))
        ours = [
            {"type": "reasoning", "summary": [], "encrypted_content": sealed},
            {"type": "reasoning", "id": "rs_hoosh_1", "summary": [{"type": "summary_text", "text": "x"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}], "encrypted_content": None},
        ]
        user = {"role": "user", "content": "hi"}
        call = parse(input=[user, *ours, real])
        assert json.loads(call.native)["input"] == [user, real]
        assert parse(input=[user, real]).native == json.dumps({"model": "m", "input": [user, real]}).encode()

    def test_the_beta_header_goes_to_providers_of_this_api_only(self) -> None:
        body = b'{"model":"m","input":"x"}'
        headers = ((b"authorization", b"Bearer x"), (b"openai-beta", b"responses=v1"))
        assert parse_responses(body, request(*headers)).native_headers == b"openai-beta: responses=v1\r\n"
        odd = request((b"openai-beta", b"a\r\nx: y"), (b"openai-beta", b"x" * 300))
        assert parse_responses(body, odd).native_headers == b""

    def test_items_of_tools_that_ran_elsewhere_are_left_out(self) -> None:
        call = parse(input=[{"role": "user", "content": "x"}, {"type": "web_search_call", "id": "ws"}, {"type": "new"}])
        assert call.dropped == ("input.web_search_call", "input.new")
        assert call.messages == 1

    @pytest.mark.parametrize(
        ("item", "where"),
        [
            ({"type": "compaction", "encrypted_content": "x"}, "input[0]"),
            ({"type": "computer_call", "call_id": "x"}, "input[0]"),
            ({"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}, "input[0].content[0].file_id"),
            ({"role": "user", "content": [{"type": "input_file", "file_url": "f"}]}, "input[0].content[0].file_url"),
            ({"role": "user", "content": [{"type": "input_video"}]}, "input[0].content[0]"),
        ],
    )
    def test_what_only_this_api_has_asks_for_a_provider_of_it(self, item: Any, where: str) -> None:
        assert parse(input=[item, {"role": "user", "content": "x"}]).native_only == where

    def test_formats_a_chat_does_not_have_ask_for_a_provider_of_this_api(self) -> None:
        assert parse(text={"format": {"type": "grammar", "definition": "x"}}).native_only == "text.format"
        assert canonical(text={"format": {"type": "json_object"}})["response_format"] == {"type": "json_object"}
        assert "response_format" not in canonical(text={"format": {"type": "text"}})


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"previous_response_id": "resp_1"}, "previous_response_id"),
            ({"conversation": {"id": "c"}}, "conversation"),
            ({"prompt": {"id": "p"}}, "prompt"),
            ({"background": True}, "background"),
            ({"max_tokens": 5}, "max_tokens"),
            ({"max_completion_tokens": 5}, "max_completion_tokens"),
            ({"n": 2}, "n"),
            ({"n_predict": 2}, "n_predict"),
            ({"messages": []}, "messages"),
            ({"Max_Output_Tokens": 5}, "Max_Output_Tokens"),
            ({"Input": 5}, "Input"),
            ({"model": ""}, "model"),
            ({"input": None}, "input"),
            ({"input": []}, "input"),
            ({"input": 7}, "input"),
            ({"input": [7]}, "input[0]"),
            ({"input": [{"type": 7}]}, "input[0].type"),
            ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
            ({"input": [{"id": "msg_1"}]}, "input[0]"),
            ({"input": [{"type": "message", "content": "x"}]}, "input[0].role"),
            ({"input": [{"role": "critic", "content": "x"}]}, "input[0].role"),
            ({"input": [{"role": "user"}]}, "input[0].content"),
            ({"input": [{"role": "user", "content": [1]}]}, "input[0].content[0]"),
            ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
            ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].image_url"),
            ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]"),
            ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input[0].content[0].input_audio"),
            ({"input": [{"role": "user", "content": [{"type": "image_url", "image_url": 1}]}]}, "input"),
            ({"input": [{"role": "assistant", "content": [{"type": "refusal"}]}]}, "input[0].content[0].refusal"),
            ({"input": [{"type": "function_call", "name": "x", "arguments": "{}"}]}, "input[0].call_id"),
            ({"input": [{"type": "function_call", "call_id": "x", "arguments": "{}"}]}, "input[0].name"),
            (
                {"input": [{"type": "function_call", "call_id": "x", "name": "y", "arguments": {}}]},
                "input[0].arguments",
            ),
            ({"input": [{"type": "custom_tool_call", "call_id": "x", "name": "y"}]}, "input[0].input"),
            ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
            ({"input": [{"type": "function_call_output", "call_id": "x"}]}, "input[0].output"),
            ({"input": [{"role": "user", "content": "x"}] * 4097}, "input"),
            ({"instructions": 5}, "instructions"),
            ({"max_output_tokens": 0}, "max_output_tokens"),
            ({"max_output_tokens": "5"}, "max_output_tokens"),
            ({"temperature": 3}, "temperature"),
            ({"stream": "yes"}, "stream"),
            ({"text": []}, "text"),
            ({"text": {"format": "json"}}, "text.format"),
            ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
            ({"reasoning": "high"}, "reasoning"),
            ({"top_logprobs": 21}, "top_logprobs"),
            ({"include": "x"}, "include"),
            ({"tools": {}}, "tools"),
            ({"tools": ["x"]}, "tools[0]"),
            ({"tools": [{"name": "x"}]}, "tools[0]"),
            ({"tools": [{"type": "function"}]}, "tools[0].name"),
            ({"tools": [{"type": "namespace", "name": "n"}]}, "tools[0].tools"),
            (
                {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function"}]}]},
                "tools[0].tools[0].name",
            ),
            (
                {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "namespace", "name": "o"}]}]},
                "tools[0].tools[0].type",
            ),
            ({"tool_choice": "some"}, "tool_choice"),
            ({"tool_choice": {"name": "x"}}, "tool_choice"),
            ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
            ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
            ({"tool_choice": {"type": "allowed_tools", "mode": "none", "tools": []}}, "tool_choice"),
            ({"pool": ""}, "pool"),
        ],
    )
    def test_is_refused_with_the_field_named(self, fields: dict[str, Any], param: str) -> None:
        error = refusal(**fields)
        assert error.param == param
        assert param in error.message
        assert error.message.endswith(".")

    @settings(max_examples=200, deadline=None)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "function", "message", "user", "x"]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        [
                            "type",
                            "role",
                            "content",
                            "text",
                            "name",
                            "tools",
                            "call_id",
                            "output",
                            "arguments",
                            "summary",
                            "encrypted_content",
                            "id",
                            "function",
                            "allowed_tools",
                            "mode",
                            "format",
                            "schema",
                            "effort",
                            "image_url",
                        ]
                    ),
                    inner,
                    max_size=5,
                )
            ),
            max_leaves=15,
        ),
        st.sampled_from(["input", "tools", "tool_choice", "text", "reasoning", "instructions", "include", "metadata"]),
    )
    def test_nonsense_is_refused_or_understood_but_never_fails(self, value: Any, name: str) -> None:
        for fields in ({name: value}, {name: [value]}, {"input": [{"type": "message", "role": "user", name: value}]}):
            try:
                call = parse(**fields)
            except errors.BadRequestError:
                continue
            assert json.loads(call.body)["messages"]
            RESPONSES.answer(call, b"{}")


class TestTools:
    def test_tools_of_a_namespace_become_functions_and_calls_go_back(self) -> None:
        space = {"type": "namespace", "name": "crm", "description": "Customers.", "tools": [FUNCTION]}
        mcp = {"type": "namespace", "name": "mcp__docs__", "tools": [{"type": "custom", "name": "find"}]}
        call = parse(
            tools=[space, mcp],
            input=[
                {"role": "user", "content": "x"},
                function_call("a", namespace="crm"),
                {"type": "custom_tool_call", "call_id": "b", "name": "find", "namespace": "mcp__docs__", "input": "q"},
                output("a"),
                {"type": "custom_tool_call_output", "call_id": "b", "output": "found"},
            ],
        )
        doc = json.loads(call.body)
        first, second = (tool["function"] for tool in doc["tools"])
        assert (first["name"], first["description"], second["name"]) == (
            "crm__weather",
            "Customers.\n\nThe weather.",
            "mcp__docs__find",
        )
        assert doc["messages"][1]["tool_calls"] == [
            chat_call("a", "crm__weather"),
            chat_call("b", "mcp__docs__find", '{"input":"q"}'),
        ]
        message = {"tool_calls": [chat_call("c", "crm__weather"), chat_call("d", "mcp__docs__find", '{"input":"q"}')]}
        items = json.loads(RESPONSES.answer(call, completion(message)))["output"]
        told = [(item["type"], item["name"], item["namespace"]) for item in items]
        assert told == [("function_call", "weather", "crm"), ("custom_tool_call", "find", "mcp__docs__")]
        assert (items[0]["arguments"], items[1]["input"]) == ("{}", "q")

    def test_names_that_are_too_long_or_taken_are_told_apart(self) -> None:
        long = "n" * 60
        tools = [
            {"type": "function", "name": "a__b"},
            {"type": "namespace", "name": "a", "tools": [{"type": "function", "name": "b"}]},
            {"type": "namespace", "name": long, "tools": [{"type": "function", "name": f"t{i}"} for i in (1, 2)]},
            {"type": "namespace", "name": "p.q", "tools": [{"type": "function", "name": "x/y"}]},
        ]
        call = parse(tools=tools)
        names = [tool["function"]["name"] for tool in json.loads(call.body)["tools"]]
        assert len(set(names)) == 5
        assert names[0] == "a__b"
        assert all(len(name) <= 64 and name.replace("_", "").isalnum() for name in names)
        message = {"tool_calls": [chat_call(str(i), name) for i, name in enumerate(names)]}
        items = json.loads(RESPONSES.answer(call, completion(message)))["output"]
        told = [(item.get("namespace"), item["name"]) for item in items]
        assert told == [(None, "a__b"), ("a", "b"), (long, "t1"), (long, "t2"), ("p.q", "x/y")]

    def test_a_tool_that_takes_free_text_becomes_a_function_with_one_argument(self) -> None:
        shape = {"type": "grammar", "syntax": "lark", "definition": "start: x"}
        doc = canonical(tools=[{"type": "custom", "name": "apply_patch", "description": "Edit.", "format": shape}])
        function = doc["tools"][0]["function"]
        assert function["parameters"]["required"] == ["input"]
        assert function["description"] == "Edit.\n\nThe input must match this lark grammar:\nstart: x"

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ('{"input":"a\\nb"}', "a\nb"),
            ('{"input":', '{"input":'),
            ('{"other":1}', '{"other":1}'),
            ('"x"', "x"),
            ("", ""),
        ],
    )
    def test_free_text_is_read_from_the_arguments(self, arguments: str, expected: str) -> None:
        call = parse(tools=[{"type": "custom", "name": "p"}])
        message = {"tool_calls": [chat_call("a", "p", arguments)]}
        (item,) = json.loads(RESPONSES.answer(call, completion(message)))["output"]
        assert item["input"] == (expected or "{}")

    def test_tools_that_come_in_the_input_count_once(self) -> None:
        more = {"type": "additional_tools", "role": "developer", "tools": [FUNCTION, {**FUNCTION, "name": "b"}]}
        found = {"type": "tool_search_output", "call_id": "s", "tools": [{**FUNCTION, "name": "c"}]}
        call = parse(
            input=[more, {"type": "tool_search_call"}, found, {"role": "user", "content": "x"}], tools=[FUNCTION]
        )
        names = [tool["function"]["name"] for tool in json.loads(call.body)["tools"]]
        assert names == ["weather", "b", "c"]
        assert call.dropped == ()

    def test_tools_and_messages_in_the_shape_of_a_chat_are_understood(self) -> None:
        doc = canonical(
            tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            input=[
                {"role": "assistant", "content": None, "tool_calls": [chat_call("a", "f")]},
                {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "x"}]},
            ],
        )
        assert doc["tools"] == [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
        assert doc["messages"] == [
            {"role": "assistant", "content": None, "tool_calls": [chat_call("a", "f")]},
            {"role": "tool", "tool_call_id": "a", "content": "x"},
        ]

    def test_tools_that_the_provider_runs_are_needed_only_where_they_are_forced(self) -> None:
        tools = [FUNCTION, {"type": "web_search"}]
        free = parse(tools=tools, tool_choice="auto")
        assert (free.native_only, free.dropped, free.surcharge) == ("", ("tools.web_search",), "")
        forced = parse(tools=tools, tool_choice={"type": "web_search"})
        assert (forced.native_only, forced.surcharge) == ("tool_choice", "tools")
        assert parse(tools=[{"type": "web_search"}], tool_choice="required").native_only == "tool_choice"
        assert parse(tools=tools, tool_choice="required").native_only == ""

    def test_allowed_tools_shorten_the_list(self) -> None:
        tools = [FUNCTION, {**FUNCTION, "name": "b"}, {"type": "namespace", "name": "n", "tools": [FUNCTION]}]

        def allowed(mode: str, *listed: Any) -> dict[str, Any]:
            return canonical(tools=tools, tool_choice={"type": "allowed_tools", "mode": mode, "tools": list(listed)})

        doc = allowed("required", {"type": "function", "name": "b"}, {"type": "namespace", "name": "n"}, 5)
        assert [tool["function"]["name"] for tool in doc["tools"]] == ["b", "n__weather"]
        assert doc["tool_choice"] == "required"
        assert "tools" not in allowed("auto", {"type": "web_search"})
        choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}]}
        assert parse(tools=tools, tool_choice=choice).native_only == "tool_choice"

    def test_the_native_request_can_do_without_hosted_tools(self) -> None:
        call = parse(tools=[FUNCTION, {"type": "web_search"}], tool_choice="auto")
        assert json.loads(responses.without_hosted_tools(call).native) == {
            "model": "m",
            "input": "hello",
            "tools": [FUNCTION],
            "tool_choice": "auto",
        }
        alone = parse(tools=[{"type": "web_search"}], tool_choice="auto")
        assert json.loads(responses.without_hosted_tools(alone).native) == {"model": "m", "input": "hello"}
        plain = parse(tools=[FUNCTION])
        assert responses.without_hosted_tools(plain) is plain


class TestCodex:
    """The shape of what codex 0.169 sends: no instructions, developer messages, namespaces, web search."""

    BODY = {
        "model": "m",
        "input": [
            text("developer", "permissions"),
            text("user", "environment"),
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "mode"}]},
            text("user", "say hi"),
        ],
        "tools": [
            FUNCTION,
            {"type": "namespace", "name": "agents", "description": "Agents.", "tools": [{**FUNCTION, "name": "spawn"}]},
            {"type": "web_search", "external_web_access": False},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "client_metadata": {"x-codex-installation-id": "i"},
    }

    def test_its_request_can_be_asked_of_any_chat_provider(self) -> None:
        call = parse_responses(json.dumps(self.BODY).encode())
        doc = json.loads(call.body)
        assert [message["role"] for message in doc["messages"]] == ["system", "user", "system", "user"]
        assert [tool["function"]["name"] for tool in doc["tools"]] == ["weather", "agents__spawn"]
        assert (call.native_only, call.surcharge) == ("", "")
        assert call.dropped == ("tools.web_search", "client_metadata")

    def test_its_second_request_brings_back_what_the_provider_needs(self) -> None:
        call = parse_responses(json.dumps(self.BODY).encode())
        answer = [
            {"reasoning_content": "let me "},
            {"reasoning_content": "see"},
            {"reasoning_details": [{**SIGNED, "text": "let me see"}]},
            {"tool_calls": [{"index": 0, **chat_call("a", "agents__spawn", '{"n":1}')}]},
        ]
        items = [json.loads(event)["item"] for event in events_of(stream(call, answer), "response.output_item.done")]
        for item in items:
            item.pop("id")  # codex sends none
        again = parse_responses(json.dumps({**self.BODY, "input": [*self.BODY["input"], *items, output("a")]}).encode())
        assert json.loads(again.body)["messages"][4:] == [
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "let me see",
                "reasoning_details": [{**SIGNED, "text": "let me see"}],
                "tool_calls": [chat_call("a", "agents__spawn", '{"n":1}')],
            },
            {"role": "tool", "tool_call_id": "a", "content": "sunny"},
        ]


class TestCursor:
    def test_a_body_of_this_api_on_the_chat_path_is_known_for_one(self) -> None:
        assert looks_like_responses({"model": "m", "input": "x"})
        assert not looks_like_responses({"model": "m", "messages": [], "input": "x"})
        assert not looks_like_responses({"model": "m"})

    def test_it_becomes_a_chat_that_is_answered_as_one(self) -> None:
        call = chat_from_responses(
            {
                "model": "m",
                "input": [text("system", "s"), text("user", "u")],
                "tools": [FUNCTION, {"type": "custom", "name": "apply_patch"}],
                "stream": True,
                "stream_options": {"include_usage": True},
                "max_tokens": 7,
                "seed": 1,
                "store": False,
                "reasoning": {"effort": "low"},
                "truncation": "auto",
            }
        )
        doc = json.loads(call.body)
        assert [tool["function"]["name"] for tool in doc["tools"]] == ["weather", "apply_patch"]
        assert (doc["seed"], doc["max_tokens"], doc["reasoning_effort"]) == (1, 7, "low")
        assert (call.dialect, call.native, call.wants_usage, call.limit) == ("openai", b"", True, 7)
        assert call.dropped == ("truncation",)

    def test_usage_is_told_only_where_it_was_asked_for(self) -> None:
        call = chat_from_responses(
            {"model": "m", "input": "x", "stream": True, "max_output_tokens": 5, "max_tokens": 9}
        )
        assert (call.wants_usage, call.limit, "stream_options" in call.fields) == (False, 5, False)

    def test_state_is_refused(self) -> None:
        with pytest.raises(errors.BadRequestError) as caught:
            chat_from_responses({"model": "m", "input": "x", "previous_response_id": "r"})
        assert caught.value.param == "previous_response_id"
