"""The Gemini adapter: requests as Google's API takes them, those of its own callers, counting, the model list."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest

from gateway.dialects import openai
from providers.adapters import Adapter
from providers.adapters.google import Google
from providers.canonical import Call, Target, UnsupportedParamError, Usage
from providers.catalog import CATALOG
from tests.providers.google_calls import (
    ADAPTER,
    HELLO,
    KIND,
    PNG,
    WEATHER,
    asked,
    batch,
    call,
    embedding,
    native,
    refused,
    response,
    sent,
    target,
    turns,
)


def test_it_is_an_adapter() -> None:
    adapter: Adapter = ADAPTER
    assert not adapter.local
    assert adapter.stream_types == (b"text/event-stream",)


class TestConversation:
    def test_a_whole_request_is_translated(self) -> None:
        request = ADAPTER.build(
            call(
                messages=[
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": [{"type": "text", "text": "Weather in Bern?"}]},
                    {"role": "assistant", "content": "Looking.", "tool_calls": [asked()]},
                    {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
                ],
                tools=[WEATHER],
                tool_choice="required",
                temperature=0.5,
                max_tokens=50,
                pool="p",
                stream=True,
                stream_options={"include_usage": True},
                user="u",
            ),
            target(),
            None,
        )
        assert request.operation == "generate_stream"
        assert request.dropped == ("user",)
        assert json.loads(request.body) == {
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "Weather in Bern?"}]},
                {
                    "role": "model",
                    "parts": [
                        {"text": "Looking."},
                        {"functionCall": {"id": "c1", "name": "weather", "args": {"city": "Bern"}}},
                    ],
                },
                {
                    "role": "user",
                    "parts": [{"functionResponse": {"id": "c1", "name": "weather", "response": {"output": "sunny"}}}],
                },
            ],
            "tools": [
                {
                    "functionDeclarations": [
                        {
                            "name": "weather",
                            "description": "Tell it.",
                            "parametersJsonSchema": WEATHER["function"]["parameters"],  # type: ignore[index]
                        }
                    ]
                }
            ],
            "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
            "generationConfig": {"temperature": 0.5, "maxOutputTokens": 50},
        }

    def test_a_whole_answer_is_asked_for_by_another_operation(self) -> None:
        assert ADAPTER.build(call(), target(), None).operation == "generate"

    def test_neighbours_of_one_role_are_one_turn(self) -> None:
        assert turns(
            {"role": "user", "content": "a"},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "c"},
            {"role": "assistant", "content": None},
            {"role": "assistant", "content": "d"},
            {"role": "user", "content": ""},
        ) == [
            {"role": "user", "parts": [{"text": "a"}, {"text": "b"}]},
            {"role": "model", "parts": [{"text": "c"}, {"text": "d"}]},
            {"role": "user", "parts": [{"text": ""}]},
        ]

    def test_every_system_message_instructs(self) -> None:
        body = sent(
            messages=[
                {"role": "developer", "content": "a"},
                *HELLO,
                {"role": "system", "content": [{"type": "text", "text": "b"}]},
            ]
        )
        assert body["systemInstruction"] == {"parts": [{"text": "a"}, {"text": "b"}]}
        assert len(body["contents"]) == 1

    def test_a_system_prompt_alone_is_the_users_turn(self) -> None:
        assert sent(messages=[{"role": "system", "content": "a"}]) == {
            "contents": [{"role": "user", "parts": [{"text": "a"}]}]
        }

    @pytest.mark.parametrize(
        ("part", "expected"),
        [
            (
                {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}, "cache_control": {"type": "x"}},
                {"inlineData": {"mimeType": "image/png", "data": "iVBORw0="}},
            ),
            (
                {"type": "image_url", "image_url": "data:text/plain,a%20b"},
                {"inlineData": {"mimeType": "text/plain", "data": base64.b64encode(b"a b").decode()}},
            ),
            (
                {"type": "image_url", "image_url": {"url": "https://a.example/b.JPG?c=d.png#e"}},
                {"fileData": {"fileUri": "https://a.example/b.JPG?c=d.png#e", "mimeType": "image/jpeg"}},
            ),
            (
                {"type": "image_url", "image_url": {"url": "https://youtu.be/abc"}},
                {"fileData": {"fileUri": "https://youtu.be/abc"}},
            ),
            (
                {"type": "video_url", "video_url": {"url": "gs://b/c.mp4"}},
                {"fileData": {"fileUri": "gs://b/c.mp4", "mimeType": "video/mp4"}},
            ),
            (
                {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
                {"inlineData": {"mimeType": "audio/mp3", "data": "AAAA"}},
            ),
            (
                {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "flac"}},
                {"inlineData": {"mimeType": "audio/flac", "data": "AAAA"}},
            ),
            (
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBE"}},
                {"inlineData": {"mimeType": "application/pdf", "data": "JVBE"}},
            ),
            (
                {"type": "file", "file": {"filename": "a.csv", "file_data": "YSxi"}},
                {"inlineData": {"mimeType": "text/csv", "data": "YSxi"}},
            ),
            (
                {"type": "file", "file": {"file_id": "https://g.example/v1beta/files/x"}},
                {"fileData": {"fileUri": "https://g.example/v1beta/files/x"}},
            ),
        ],
    )
    def test_media_go_inline_or_by_address(self, part: dict[str, Any], expected: dict[str, Any]) -> None:
        assert turns({"role": "user", "content": [part]})[0]["parts"] == [expected]

    @pytest.mark.parametrize(
        ("part", "param"),
        [
            ({"type": "image_url", "image_url": {"url": "cat.png"}}, "messages[0].content[0].image_url"),
            ({"type": "image_url", "image_url": {"url": "data:;base64,AA"}}, "messages[0].content[0].image_url"),
            ({"type": "image_url", "image_url": {"url": "data:image/png"}}, "messages[0].content[0].image_url"),
            ({"type": "file", "file": {"file_id": "file-1"}}, "messages[0].content[0].file.file_id"),
            ({"type": "tool_reference"}, "messages[0].content[0]"),
        ],
    )
    def test_content_it_cannot_take_is_refused(self, part: dict[str, Any], param: str) -> None:
        assert refused(messages=[{"role": "user", "content": [part]}]) == param

    @pytest.mark.parametrize(
        ("message", "param"),
        [
            ({"role": "function", "name": "f", "content": "x"}, "messages[0].role"),
            ({"role": "tool", "tool_call_id": "c9", "content": "x"}, "messages[0].tool_call_id"),
            ({"role": "assistant", "audio": {"id": "a"}}, "messages[0].audio"),
            ({"role": "assistant", "function_call": {"name": "f"}}, "messages[0].function_call"),
            ({"role": "assistant", "tool_calls": [{"id": "c", "type": "custom"}]}, "messages[0].tool_calls[0]"),
            ({"role": "assistant", "tool_calls": [7]}, "messages[0].tool_calls[0]"),
            (
                {"role": "assistant", "tool_calls": [asked(arguments='{"city":')]},
                "messages[0].tool_calls[0].function.arguments",
            ),
            (
                {"role": "assistant", "tool_calls": [asked(arguments="[1]")]},
                "messages[0].tool_calls[0].function.arguments",
            ),
        ],
    )
    def test_messages_it_cannot_take_are_refused(self, message: dict[str, Any], param: str) -> None:
        assert refused(messages=[message]) == param

    def test_results_name_their_tool_and_share_a_turn(self) -> None:
        contents = turns(
            {"role": "assistant", "tool_calls": [asked("a", "f", ""), asked("b", "g", "null {}"[5:])]},
            {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "1"}], "is_error": True},
            {
                "role": "tool",
                "tool_call_id": "a",
                "content": [{"type": "text", "text": "2"}, {"type": "image_url", "image_url": {"url": PNG}}],
            },
            {"role": "user", "content": "go on"},
        )
        assert contents[0]["parts"][0] == {"functionCall": {"id": "a", "name": "f", "args": {}}}
        assert contents[1:] == [
            {
                "role": "user",
                "parts": [
                    {"functionResponse": {"id": "b", "name": "g", "response": {"error": "1"}}},
                    {"functionResponse": {"id": "a", "name": "f", "response": {"output": "2"}}},
                    {"inlineData": {"mimeType": "image/png", "data": "iVBORw0="}},
                    {"text": "go on"},
                ],
            }
        ]

    def test_a_result_may_name_its_tool_itself(self) -> None:
        parts = turns({"role": "tool", "tool_call_id": "x", "name": "f", "content": "1"})[0]["parts"]
        assert parts == [{"functionResponse": {"id": "x", "name": "f", "response": {"output": "1"}}}]

    def test_arguments_keep_their_numbers(self) -> None:
        message = {"role": "assistant", "tool_calls": [asked(arguments='{"a": 1.10, "b": 12345678901234567890}')]}
        body = ADAPTER.build(call(messages=[message]), target(), None).body
        assert b'"args":{"a": 1.10, "b": 12345678901234567890}' in body

    def test_signatures_go_back_where_they_came_from(self) -> None:
        def signed(text: str) -> dict[str, Any]:
            return {"extra_content": {"google": {"thought_signature": text}}}

        message = {
            "role": "assistant",
            "content": "On it.",
            **signed("T"),
            "tool_calls": [asked(**signed("C")), asked("c2")],
        }
        parts = turns(message, model="gemini-3-flash")[0]["parts"]
        assert parts[0] == {"text": "On it.", "thoughtSignature": "T"}
        assert [part.get("thoughtSignature") for part in parts[1:]] == ["C", None]
        empty = {"role": "assistant", "content": None, **signed("T")}
        assert turns(empty)[0]["parts"] == [{"text": "", "thoughtSignature": "T"}]

    @pytest.mark.parametrize(
        ("model", "stands_in"),
        [
            ("gemini-3-pro-preview", True),
            ("gemini-3.8-flash", True),
            ("gemini-flash-latest", True),
            ("models/gemini-3-pro", True),
            ("gemini-2.5-flash", False),
            ("gemini-2.5-flash-latest", False),
            ("gemma-3-27b-it", False),
        ],
    )
    def test_calls_of_other_models_get_the_documented_stand_in(self, model: str, stands_in: bool) -> None:
        message = {"role": "assistant", "tool_calls": [asked("a"), asked("b")]}
        first, second = turns(message, model=model)[0]["parts"]
        assert first.get("thoughtSignature") == ("skip_thought_signature_validator" if stands_in else None)
        assert "thoughtSignature" not in second

    def test_reasoning_goes_back_as_thoughts(self) -> None:
        message = {"role": "assistant", "reasoning_content": "hm", "content": "yes"}
        assert turns(message)[0]["parts"] == [{"text": "hm", "thought": True}, {"text": "yes"}]
        details = [
            {"type": "reasoning.text", "text": "own", "signature": "S", "format": "google-gemini-v1"},
            {"type": "reasoning.text", "text": "x", "signature": "S", "format": "anthropic-claude-v1"},
        ]
        parts = turns({**message, "reasoning_details": details})[0]["parts"]
        assert parts == [{"text": "own", "thought": True, "thoughtSignature": "S"}, {"text": "yes"}]
        listed = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "yes"}]
        assert turns({"role": "assistant", "content": listed})[0]["parts"] == [
            {"text": "hm", "thought": True},
            {"text": "yes"},
        ]

    def test_a_refusal_goes_back_as_text(self) -> None:
        assert turns({"role": "assistant", "refusal": "No."})[0]["parts"] == [{"text": "No."}]


class TestParameters:
    def test_settings_are_translated(self) -> None:
        body = sent(
            temperature=0,
            top_p=0.9,
            top_k=40,
            seed=7,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            n=2,
            stop="end",
            logprobs=True,
            top_logprobs=3,
        )
        assert body["generationConfig"] == {
            "temperature": 0,
            "topP": 0.9,
            "topK": 40,
            "seed": 7,
            "presencePenalty": 0.5,
            "frequencyPenalty": -0.5,
            "candidateCount": 2,
            "stopSequences": ["end"],
            "responseLogprobs": True,
            "logprobs": 3,
        }
        assert sent(stop=["a", "b"])["generationConfig"] == {"stopSequences": ["a", "b"]}
        assert sent(seed=2**40 + 5)["generationConfig"] == {"seed": 5}

    def test_defaults_are_left_out(self) -> None:
        assert sent(n=1, presence_penalty=0, frequency_penalty=0.0, logprobs=False, logit_bias={}, stop=[]) == {
            "contents": [{"role": "user", "parts": [{"text": "hello"}]}]
        }

    def test_the_limit_is_the_enforced_one_or_the_callers(self) -> None:
        assert sent(limit=9, max_completion_tokens=5)["generationConfig"] == {"maxOutputTokens": 9}
        assert sent(limit=9)["generationConfig"] == {"maxOutputTokens": 9}
        assert sent(max_completion_tokens=5)["generationConfig"] == {"maxOutputTokens": 5}
        assert "generationConfig" not in sent()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("logit_bias", {"1": 5}),
            ("modalities", ["text", "audio"]),
            ("audio", {"voice": "a"}),
            ("functions", [{"name": "f"}]),
            ("function_call", "auto"),
            ("web_search_options", {}),
        ],
    )
    def test_what_would_change_the_answer_is_refused_or_dropped_as_the_operator_says(
        self, name: str, value: Any
    ) -> None:
        assert refused(**{name: value}) == name
        lenient = ADAPTER.build(call(**{name: value}), target(strict=False), None)
        assert lenient.dropped == (name,)
        assert name.encode() not in lenient.body

    @pytest.mark.parametrize(
        ("name", "value"),
        [("user", "u"), ("metadata", {"a": "b"}), ("store", True), ("service_tier", "flex"), ("verbosity", "low")],
    )
    def test_hints_are_dropped_and_told(self, name: str, value: Any) -> None:
        assert ADAPTER.build(call(**{name: value}), target(), None).dropped == (name,)

    def test_unknown_fields_are_dropped_and_told(self) -> None:
        assert ADAPTER.build(call(min_p=0.1), target(), None).dropped == ("min_p",)

    @pytest.mark.parametrize(
        ("model", "effort", "config"),
        [
            ("gemini-2.5-flash", "none", {"includeThoughts": False, "thinkingBudget": 0}),
            ("gemini-2.5-pro", "minimal", {"includeThoughts": True, "thinkingBudget": 1024}),
            ("gemini-2.5-pro", "medium", {"includeThoughts": True, "thinkingBudget": 8192}),
            ("gemini-2.5-pro", "xhigh", {"includeThoughts": True, "thinkingBudget": 24576}),
            ("gemini-3-pro-preview", "minimal", {"includeThoughts": True, "thinkingLevel": "LOW"}),
            ("gemini-3-pro-preview", "high", {"includeThoughts": True, "thinkingLevel": "HIGH"}),
            ("gemini-3.8-flash", "max", {"includeThoughts": True, "thinkingLevel": "XHIGH"}),
        ],
    )
    def test_efforts_become_levels_or_budgets(self, model: str, effort: str, config: dict[str, Any]) -> None:
        assert sent(model, reasoning_effort=effort)["generationConfig"] == {"thinkingConfig": config}

    def test_reasoning_that_cannot_be_turned_off_is_refused(self) -> None:
        assert refused("gemini-3-pro", reasoning_effort="none") == "reasoning_effort"
        lenient = ADAPTER.build(call(reasoning_effort="none"), target("gemini-3-pro", strict=False), None)
        assert lenient.dropped == ("reasoning_effort",)
        assert refused(reasoning_effort="vast") == "reasoning_effort"

    def test_formats_are_translated(self) -> None:
        schema = {"type": "object", "$defs": {"a": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/a"}}}
        wanted = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
        assert sent(response_format=wanted)["generationConfig"] == {
            "responseMimeType": "application/json",
            "responseJsonSchema": schema,
        }
        json_object = {"responseMimeType": "application/json"}
        assert sent(response_format={"type": "json_object"})["generationConfig"] == json_object
        assert "generationConfig" not in sent(response_format={"type": "text"})
        assert refused(response_format={"type": "grammar"}) == "response_format"

    def test_completions_have_no_operation(self) -> None:
        legacy = openai.parse_completions(b'{"model":"m","prompt":"a"}')
        with pytest.raises(UnsupportedParamError):
            ADAPTER.build(legacy, target(), None)


class TestTools:
    @pytest.mark.parametrize(
        ("wanted", "config"),
        [
            ("auto", None),
            ("none", {"mode": "NONE"}),
            ("required", {"mode": "ANY"}),
            (
                {"type": "function", "function": {"name": "weather"}},
                {"mode": "ANY", "allowedFunctionNames": ["weather"]},
            ),
            (
                {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "required",
                        "tools": [{"type": "function", "function": {"name": "weather"}}],
                    },
                },
                {"mode": "ANY", "allowedFunctionNames": ["weather"]},
            ),
        ],
    )
    def test_choices_are_translated(self, wanted: Any, config: dict[str, Any] | None) -> None:
        told = sent(tools=[WEATHER], tool_choice=wanted).get("toolConfig")
        assert told == (None if config is None else {"functionCallingConfig": config})

    def test_tools_that_are_not_allowed_are_not_declared(self) -> None:
        other = {"type": "function", "function": {"name": "other"}}
        allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "other"}}]}
        body = sent(tools=[WEATHER, other], tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
        assert body["tools"] == [{"functionDeclarations": [{"name": "other"}]}]
        assert "toolConfig" not in body

    @pytest.mark.parametrize(
        "wanted", ["maybe", {"type": "custom"}, {"type": "function", "name": "f"}, {"type": "allowed_tools"}, 7]
    )
    def test_choices_it_does_not_know_are_refused(self, wanted: Any) -> None:
        assert refused(tools=[WEATHER], tool_choice=wanted) == "tool_choice"

    @pytest.mark.parametrize("tool", [{"type": "web_search"}, {"type": "function"}, {"type": "custom", "custom": {}}])
    def test_tools_that_are_no_functions_are_refused(self, tool: dict[str, Any]) -> None:
        assert refused(tools=[tool]) == "tools[0]"

    def test_a_tool_without_parameters_declares_none(self) -> None:
        tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
        assert sent(tools=[tool])["tools"] == [{"functionDeclarations": [{"name": "f"}]}]
        assert "tools" not in sent(tools=[])

    def test_many_allowed_tools_are_found_at_once(self) -> None:
        tools = [{"type": "function", "function": {"name": f"f{i}", "strict": True}} for i in range(10_000)]
        wanted = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": tools[::-1]}}
        begin = time.process_time()
        request = ADAPTER.build(
            call(tools=tools, tool_choice=wanted, **{f"x{i}": 1 for i in range(5000)}), target(strict=False), None
        )
        assert time.process_time() - begin < 2
        assert len(json.loads(request.body)["tools"][0]["functionDeclarations"]) == len(tools)
        assert list(request.dropped).count("tools.function.strict") == 1

    def test_strict_tools_are_told_not_to_be(self) -> None:
        tool = {"type": "function", "function": {"name": "f", "strict": True}}
        assert ADAPTER.build(call(tools=[tool, tool]), target(), None).dropped == ("tools.function.strict",)

    def test_deep_requests_are_refused_not_raised(self) -> None:
        for depth in range(900, 1030, 10):
            schema = b'{"a":' * depth + b"{}" + b"}" * depth
            body = (
                b'{"model":"m","messages":[{"role":"user","content":"a"}],"tools":'
                b'[{"type":"function","function":{"name":"f","parameters":%b}}]}' % schema
            )
            try:
                request = openai.parse_chat(body)
            except Exception:  # refused at the door
                continue
            try:
                ADAPTER.build(request, target(), None)
            except UnsupportedParamError:
                pass


class TestEmbeddings:
    def test_texts_become_a_batch(self) -> None:
        request = ADAPTER.build(embedding(dimensions=8, encoding_format="base64", user="u"), target("e"), None)
        assert (request.operation, request.dropped) == ("embeddings", ("user",))
        assert json.loads(request.body) == {
            "requests": [
                {"model": "models/e", "outputDimensionality": 8, "content": {"parts": [{"text": "a"}]}},
                {"model": "models/e", "outputDimensionality": 8, "content": {"parts": [{"text": "b"}]}},
            ]
        }
        one = json.loads(ADAPTER.build(embedding(input="a"), Target(KIND), None).body)
        assert one == {"requests": [{"model": "models/m", "content": {"parts": [{"text": "a"}]}}]}

    @pytest.mark.parametrize("tokens", [[1, 2], [[1], [2]]])
    def test_token_numbers_are_refused(self, tokens: list[Any]) -> None:
        with pytest.raises(UnsupportedParamError) as caught:
            ADAPTER.build(embedding(input=tokens), target("e"), None)
        assert caught.value.param == "input"

    def test_a_batch_of_the_callers_own_names_the_model_it_goes_to(self) -> None:
        request = ADAPTER.build(batch(pool="p"), target("e"), None)
        assert json.loads(request.body) == {
            "requests": [{"model": "models/e", "content": {"parts": [{"text": text}]}} for text in "ab"]
        }
        raw = b'{"embeddings": [{"values":[1]},{"values":[2]}]}'
        answer = ADAPTER.read_unary(batch(), 200, [], raw, target("e"))
        assert (answer.body, answer.native) == (raw, True)

    def test_a_single_text_of_the_callers_own_is_answered_in_the_canonical_form(self) -> None:
        asking = embedding(input="a")
        asking.dialect, asking.native = "gemini", b'{"content":{"parts":[{"text":"a"}]}}'
        assert b'"requests"' in ADAPTER.build(asking, target("e"), None).body
        answer = ADAPTER.read_unary(asking, 200, [], b'{"embeddings":[{"values":[1]}]}', target("e"))
        assert not answer.native
        assert json.loads(answer.body)["object"] == "list"


class TestNative:
    def test_a_request_goes_through_as_the_same_bytes(self) -> None:
        asking = native(b'{ "contents": [] , "x": 1.10}')
        request = ADAPTER.build(asking, target(), None)
        assert request.body is asking.native
        assert (request.operation, request.headers) == ("generate", b"x-a: b\r\n")
        assert ADAPTER.build(native(stream=True), target(), None).operation == "generate_stream"

    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            ("", {"maxOutputTokens": 9}),
            (',"generationConfig":null', {"maxOutputTokens": 9}),
            (',"generationConfig":{"maxOutputTokens":99,"topK":1}', {"maxOutputTokens": 9, "topK": 1}),
            (',"generation_config":{"max_output_tokens":99,"top_k":1}', {"maxOutputTokens": 9, "top_k": 1}),
            (',"generationConfig":{"max_output_tokens":99}', {"maxOutputTokens": 9}),
        ],
    )
    def test_the_limit_is_written_however_the_field_was_spelled(self, config: str, expected: dict[str, Any]) -> None:
        body = b'{"contents":[1.10],"pool":"p","model":"models/m"%b}' % config.encode()
        sent = ADAPTER.build(native(body), target(), 9).body
        assert json.loads(sent) == {"contents": [1.1], "generationConfig": expected}
        assert b"1.10" in sent

    def test_the_gateways_own_field_is_taken_out_without_a_limit_as_well(self) -> None:
        body = b'{"contents":[],"pool":"p","generationConfig":{"maxOutputTokens":99}}'
        sent = ADAPTER.build(native(body), target(), None).body
        assert json.loads(sent) == {"contents": [], "generationConfig": {"maxOutputTokens": 99}}

    def test_an_answer_goes_through_and_is_counted(self) -> None:
        told = response({"text": "aü"}, {"functionCall": {"name": "f", "args": {"x": 1}}}, {"functionCall": {}})
        raw = json.dumps(told, indent=1).encode()
        answer = ADAPTER.read_unary(native(), 200, [], raw, target())
        assert (answer.body, answer.native, answer.usage) == (raw, True, Usage(7, 0, 0, 3))
        assert answer.output_bytes == 3 + 1 + len('{"x":1}') + 2

    def test_a_refused_prompt_goes_through(self) -> None:
        raw = b'{"promptFeedback":{"blockReason":"SAFETY"}}'
        assert ADAPTER.read_unary(native(), 200, [], raw).body == raw

    def test_bytes_that_are_no_text_are_replaced(self) -> None:
        answer = ADAPTER.read_unary(native(), 200, [], b'{"candidates":[{"x":"\xff"}]}')
        assert answer.body.decode() == '{"candidates":[{"x":"�"}]}'

    @pytest.mark.parametrize("body", [b"{}", b"[]", b"no", b'{"candidates":7}'])
    def test_nonsense_is_a_failure_of_the_provider(self, body: bytes) -> None:
        answer = ADAPTER.read_unary(native(), 200, [], body)
        assert answer.problem is not None
        assert answer.problem.reason == "protocol"


class TestCounting:
    def test_the_whole_input_is_counted(self) -> None:
        asking = call(messages=[{"role": "system", "content": "s"}, *HELLO], tools=[WEATHER], logit_bias={"1": 1})
        request = ADAPTER.build_count(asking, target("e"))
        counted = json.loads(request.body)["generateContentRequest"]
        assert request.operation == "count"
        assert counted["model"] == "models/e"
        assert sorted(counted) == ["contents", "model", "systemInstruction", "tools"]

    @pytest.mark.parametrize(
        "body",
        [
            b'{"contents":[1],"pool":"p"}',
            b'{"generateContentRequest":{"model":"models/m","contents":[1]}}',
            b'{"generate_content_request":{"contents":[1]}}',
        ],
    )
    def test_a_request_of_the_callers_own_is_counted(self, body: bytes) -> None:
        sent = json.loads(ADAPTER.build_count(native(body), target("tunedModels/e")).body)
        assert sent == {"generateContentRequest": {"contents": [1], "model": "tunedModels/e"}}

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            (b'{"totalTokens": 10, "promptTokensDetails": []}', 10),
            (b"{}", None),
            (b"", None),
            (b"[]", None),
            (b'{"totalTokens":"10"}', None),
            (b'{"totalTokens":-1}', None),
            (b'{"totalTokens":true}', None),
        ],
    )
    def test_the_count_is_read(self, body: bytes, expected: int | None) -> None:
        assert ADAPTER.read_count(body) == expected


def test_models_are_listed_by_their_plain_names() -> None:
    models = [
        {"name": "models/gemini-2.5-pro", "supportedGenerationMethods": ["generateContent", "countTokens"]},
        {"name": "models/gemini-embedding-001", "supportedGenerationMethods": ["embedContent"]},
        {"name": "models/imagen-4", "supportedGenerationMethods": ["predict"]},
        {"name": "tunedModels/x"},
        {"name": 7},
        7,
    ]
    body = json.dumps({"models": models}).encode()
    assert ADAPTER.read_models(body) == ["gemini-2.5-pro", "gemini-embedding-001", "tunedModels/x"]
    assert ADAPTER.read_models(b"{}") == ADAPTER.read_models(b"no") == []


def test_a_single_native_embedding_keeps_what_else_is_told_of_its_text() -> None:
    body = b'{"model":"m","input":["hi"]}'
    native = b'{"content":{"parts":[{"text":"hi"}]},"taskType":"RETRIEVAL_QUERY","pool":"p"}'
    call = Call("embeddings", "m", body, frozenset({"model", "input"}), messages=1, dialect="gemini", native=native)
    sent = json.loads(Google().build(call, Target(CATALOG["google"], "m"), None).body)
    assert sent == {
        "requests": [{"content": {"parts": [{"text": "hi"}]}, "taskType": "RETRIEVAL_QUERY", "model": "models/m"}]
    }
