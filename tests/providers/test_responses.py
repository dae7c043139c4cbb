"""The adapter for the Responses API: requests built, whole answers read, errors told, bytes passed through."""

from __future__ import annotations

import json
from typing import Any

import pytest

from providers.adapters import responses_request
from providers.canonical import Call, UnsupportedParamError
from tests.providers.responses_case import (
    ADAPTER,
    ENCRYPTED,
    READ_USAGE,
    WEATHER,
    answered,
    call,
    function_call,
    items,
    message,
    native,
    read,
    reasoning,
    refused,
    response,
    sent,
    sse,
    stream_of,
    target,
)


class TestRequests:
    def test_a_plain_chat_is_asked_without_being_stored(self) -> None:
        assert sent() == {
            "model": "gpt-5",
            "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
            "store": False,
            "include": ["reasoning.encrypted_content"],
        }

    def test_every_parameter_with_a_twin_is_carried(self) -> None:
        same = {
            "temperature": 0.5,
            "top_p": 0.9,
            "metadata": {"a": "b"},
            "user": "u",
            "safety_identifier": "s",
            "prompt_cache_key": "k",
            "prompt_cache_retention": "24h",
            "service_tier": "flex",
            "parallel_tool_calls": False,
            "top_logprobs": 3,
        }
        schema = {"name": "n", "schema": {"type": "object"}, "strict": True}
        told = sent(
            **same,
            stream=True,
            stream_options={"include_usage": True},
            pool="team",
            logprobs=True,
            max_completion_tokens=50,
            reasoning_effort="low",
            verbosity="high",
            response_format={"type": "json_schema", "json_schema": schema},
            tools=[{"type": "function", "function": WEATHER}],
            tool_choice={"type": "function", "function": {"name": "weather"}},
        )
        told.pop("input")
        assert told == {
            "model": "gpt-5",
            "store": False,
            "stream": True,
            "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
            "max_output_tokens": 50,
            **same,
            "reasoning": {"effort": "low"},
            "text": {"format": {"type": "json_schema", **schema}, "verbosity": "high"},
            "tools": [{"type": "function", **WEATHER, "strict": False}],
            "tool_choice": {"type": "function", "name": "weather"},
        }

    def test_the_limit_to_enforce_comes_before_the_client_s(self) -> None:
        assert sent(limit=20, max_completion_tokens=50)["max_output_tokens"] == 20
        assert sent(limit=20)["max_output_tokens"] == 20
        assert "max_output_tokens" not in sent()

    def test_the_client_s_name_of_the_model_is_used_where_there_is_no_other(self) -> None:
        assert sent(to=target(model=""))["model"] == "alias"

    @pytest.mark.parametrize(
        ("model", "asked"),
        [
            ("gpt-5", True),
            ("o3", True),
            ("gpt-oss-120b", True),
            ("my-model", True),
            ("gpt-4o-mini", False),
            ("gpt-4.1", False),
            ("ft:gpt-4o:org", False),
            ("gpt-5-chat-latest", False),
            ("gpt-5.1-chat-latest", False),
        ],
    )
    def test_encrypted_reasoning_is_not_asked_of_models_that_do_not_reason(self, model: str, asked: bool) -> None:
        assert ("include" in sent(to=target(model=model))) is asked

    def test_a_label_or_an_asked_effort_says_that_a_model_reasons(self) -> None:
        assert "include" in sent(to=target(model="gpt-4o", labels=frozenset({"thinking"})))
        assert "include" in sent(to=target(model="gpt-4o"), reasoning_effort="low")
        assert "include" not in sent(to=target(model="gpt-4o"), reasoning_effort="none")

    def test_a_conversation_becomes_items(self) -> None:
        assert items(
            {"role": "system", "content": "s"},
            {"role": "developer", "content": [{"type": "text", "text": "d", "cache_control": {"type": "ephemeral"}}]},
            {
                "role": "assistant",
                "content": "look",
                "reasoning_content": "hm",
                "reasoning_details": [
                    {**ENCRYPTED, "summary": "hm"},
                    {"type": "reasoning.text", "text": "x", "signature": "S", "format": "anthropic-claude-v1"},
                ],
                "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"x":1}'}},
                    {"id": "b", "type": "custom", "custom": {"name": "patch", "input": "p"}},
                    {"id": "c", "function": {"name": "weather", "arguments": {"x": 2}}},
                ],
            },
            {"role": "tool", "tool_call_id": "a", "content": "sunny"},
            {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "done"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "t"}, {"type": "refusal", "refusal": "no"}]},
        ) == [
            {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "s"}]},
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "d"}]},
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [{"type": "summary_text", "text": "hm"}],
                "encrypted_content": "gAAA",
            },
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "look", "annotations": []}],
            },
            {"type": "function_call", "call_id": "a", "name": "weather", "arguments": '{"x":1}'},
            {"type": "custom_tool_call", "call_id": "b", "name": "patch", "input": "p"},
            {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"x":2}'},
            {"type": "function_call_output", "call_id": "a", "output": "sunny"},
            {"type": "custom_tool_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "done"}]},
            {
                "type": "message",
                "role": "assistant",
                "content": [
                    {"type": "output_text", "text": "t", "annotations": []},
                    {"type": "refusal", "refusal": "no"},
                ],
            },
        ]

    def test_images_files_and_audio_become_input_parts(self) -> None:
        (told,) = items(
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
                    {"type": "image_url", "image_url": "https://x/y.png"},
                    {"type": "file", "file": {"filename": "a", "file_data": "data:application/pdf;base64,AA"}},
                    {"type": "file", "file": {"file_id": "file-1"}},
                    {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
                ],
            }
        )
        assert told["content"] == [
            {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"},
            {"type": "input_image", "image_url": "https://x/y.png", "detail": "auto"},
            {"type": "input_file", "filename": "a", "file_data": "data:application/pdf;base64,AA"},
            {"type": "input_file", "file_id": "file-1"},
            {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
        ]

    def test_an_answer_of_calls_alone_has_no_empty_text(self) -> None:
        calls = [{"id": "a", "type": "function", "function": {"name": "weather", "arguments": ""}}]
        for content in (None, "", [{"type": "text", "text": ""}, {"type": "thinking", "thinking": "x"}]):
            told = items({"role": "assistant", "content": content, "tool_calls": calls})
            assert told == [{"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"}]

    def test_tools_and_choices_become_flat(self) -> None:
        grammar = {"type": "grammar", "grammar": {"syntax": "lark", "definition": "x"}}
        custom = {"type": "custom", "custom": {"name": "patch", "description": "d", "format": grammar}}
        bare = {"type": "function", "function": {"name": "f", "strict": True}}
        told = sent(tools=[custom, bare], tool_choice={"type": "custom", "custom": {"name": "patch"}})
        assert told["tools"] == [
            {
                "type": "custom",
                "name": "patch",
                "description": "d",
                "format": {"type": "grammar", "syntax": "lark", "definition": "x"},
            },
            {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}, "strict": True},
        ]
        assert told["tool_choice"] == {"type": "custom", "name": "patch"}
        named = [{"type": "function", "function": {"name": "f"}}]
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": named}}
        told = sent(tools=[bare], tool_choice=choice)
        assert told["tool_choice"] == {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "f"}],
        }
        assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(
            sent(tools=[], tool_choice="auto", parallel_tool_calls=True)
        )

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            *(({name: 2}, name) for name, rule in responses_request.RULES.items() if rule == "refuse"),
            ({"tools": [{"type": "web_search"}]}, "tools[0]"),
            ({"tools": ["x"]}, "tools[0]"),
            ({"tools": [{"type": "function", "function": WEATHER}], "tool_choice": "any"}, "tool_choice"),
            ({"tools": [{"type": "function", "function": WEATHER}], "tool_choice": {"type": "x"}}, "tool_choice"),
            ({"response_format": {"type": "regex"}}, "response_format.type"),
            ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
            ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "messages[0].content[0].type"),
            ({"messages": [{"role": "assistant", "audio": {"id": "x"}}]}, "messages[0].audio"),
            ({"messages": [{"role": "assistant", "function_call": {}}]}, "messages[0].function_call"),
            ({"messages": [{"role": "assistant", "tool_calls": [{"type": "x"}]}]}, "messages[0].tool_calls[0]"),
            ({"messages": [{"role": "assistant", "tool_calls": ["x"]}]}, "messages[0].tool_calls[0]"),
        ],
    )
    def test_what_cannot_be_honoured_is_refused(self, fields: dict[str, Any], param: str) -> None:
        error = refused(**fields)
        assert error.param == param
        assert param in error.message

    def test_what_changes_nothing_is_dropped_and_told(self) -> None:
        request = ADAPTER.build(call(seed=1, store=True, prediction={}, n=1, unknown=1, stop=None), target(), None)
        assert request.dropped == ("seed", "store", "prediction", "unknown")
        assert not {"seed", "prediction", "unknown", "n"} & set(json.loads(request.body))

    def test_a_lenient_provider_gets_the_request_without_them(self) -> None:
        request = ADAPTER.build(call(stop=["x"], n=2), target(strict=False), None)
        assert request.dropped == ("stop", "n")

    @pytest.mark.parametrize("endpoint", ["completions", "embeddings"])
    def test_only_chats_are_answered(self, endpoint: str) -> None:
        given = call()
        given.endpoint = endpoint
        with pytest.raises(UnsupportedParamError):
            ADAPTER.build(given, target(), None)


class TestNativeRequests:
    def test_an_unchanged_request_is_sent_as_the_same_bytes(self) -> None:
        given = native(max_output_tokens=5)
        for limit in (None, 5):
            request = ADAPTER.build(given, target(model=""), limit)
            assert request.body is given.native
        assert ADAPTER.build(given, target(model="alias"), None).body is given.native

    def test_model_limit_and_the_gateway_s_own_fields_are_written(self) -> None:
        given = native(pool="team", tools=[{"type": "web_search"}], temperature=1.50)
        given.native_headers = b"openai-beta: x\r\n"
        request = ADAPTER.build(given, target(), 9)
        assert json.loads(request.body) == {
            "model": "gpt-5",
            "input": "hello",
            "tools": [{"type": "web_search"}],
            "temperature": 1.5,
            "max_output_tokens": 9,
        }
        assert (request.operation, request.headers, request.dropped) == ("responses", b"openai-beta: x\r\n", ())

    def test_without_the_client_s_bytes_it_is_a_chat(self) -> None:
        given = call()
        given.dialect = "responses"
        assert json.loads(ADAPTER.build(given, target(), None).body)["store"] is False


class TestAnswers:
    def test_an_answer_in_words_is_a_chat_completion(self) -> None:
        answer = read(response(message("héllo")))
        assert json.loads(answer.body) == {
            "id": "resp_1",
            "object": "chat.completion",
            "created": 7,
            "model": "gpt-5-2026",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "héllo", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "total_tokens": 15,
                "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
        }
        assert (answer.usage, answer.output_bytes, answer.native) == (READ_USAGE, 6, False)

    def test_reasoning_and_calls_are_read(self) -> None:
        custom = {"type": "custom_tool_call", "call_id": "b", "name": "patch", "input": "p"}
        told = answered(reasoning("one\n\ntwo"), reasoning(data=""), function_call("a", '{"x":1}'), custom)
        assert told["choices"][0]["finish_reason"] == "tool_calls"
        assert told["choices"][0]["message"] == {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "reasoning_content": "one\n\ntwo",
            "reasoning_details": [{**ENCRYPTED, "summary": "one\n\ntwo"}],
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"x":1}'}},
                {"id": "b", "type": "custom", "custom": {"name": "patch", "input": "p"}},
            ],
        }

    def test_refusals_citations_and_log_probabilities_are_read(self) -> None:
        citation = {"start_index": 0, "end_index": 1, "url": "https://x", "title": "X"}
        logprob = {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []}
        item = message("a")
        item["content"][0] |= {"annotations": [{"type": "url_citation", **citation}], "logprobs": [logprob]}
        item["content"].append({"type": "refusal", "refusal": "no"})
        choice = answered({"type": "web_search_call"}, item)["choices"][0]
        assert choice["message"]["annotations"] == [{"type": "url_citation", "url_citation": citation}]
        assert choice["message"]["refusal"] == "no"
        assert choice["logprobs"] == {"content": [logprob], "refusal": None}

    @pytest.mark.parametrize(
        ("reason", "finish"),
        [("max_output_tokens", "length"), ("content_filter", "content_filter"), ("steered", "stop"), (None, "length")],
    )
    def test_an_incomplete_answer_says_why(self, reason: str | None, finish: str) -> None:
        details = {"reason": reason} if reason else None
        told = answered(message("x"), status="incomplete", incomplete_details=details)
        assert told["choices"][0]["finish_reason"] == finish

    def test_an_answer_without_items_is_an_empty_one(self) -> None:
        assert answered(status="incomplete")["choices"][0]["message"]["content"] == ""

    def test_servers_that_leave_fields_out_are_understood(self) -> None:
        answer = read({"output": [{"type": "message", "content": "x"}, {"type": "function_call", "id": "a"}]})
        told = json.loads(answer.body)["choices"][0]
        assert (answer.usage, told["message"]["content"], told["message"]["tool_calls"][0]["id"]) == (None, "x", "a")
        assert json.loads(answer.body)["model"] == "alias"

    @pytest.mark.parametrize(
        ("body", "reason", "status"),
        [
            (b"", "protocol", 502),
            (b"<html>", "protocol", 502),
            (b"[]", "protocol", 502),
            (b'{"object":"response"}', "protocol", 502),
            (b'{"error":{"message":"no","code":"invalid_api_key"}}', "credential", 401),
            (b'{"error":"busy"}', "server", 502),
            (
                json.dumps(response(status="failed", error={"code": "server_error", "message": "x"})).encode(),
                "server",
                502,
            ),
            (
                json.dumps(response(status="failed", error={"code": "rate_limit_exceeded", "message": "x"})).encode(),
                "rate_limit",
                429,
            ),
            (json.dumps(response(status="cancelled")).encode(), "server", 502),
            (json.dumps(response(status="in_progress")).encode(), "server", 502),
            (json.dumps(response({"type": "function_call", "name": "x"}, {"type": "message"}, 5)).encode(), "", 0),
        ],
    )
    def test_failures_and_nonsense_are_told(self, body: bytes, reason: str, status: int) -> None:
        for asked in (call(), native()):
            problem = read(body, asked).problem
            assert (problem.reason if problem else "", problem.status if problem else 0) == (reason, status)

    def test_a_caller_of_this_api_gets_the_provider_s_bytes(self) -> None:
        body = json.dumps(response(message("x"), function_call("a")), indent=1).encode()
        answer = read(body, native())
        assert (answer.body, answer.native, answer.usage) == (body, True, READ_USAGE)
        assert answer.output_bytes == 10

    @pytest.mark.parametrize("usage", [None, 5, {"input_tokens": -1, "output_tokens": 2}, {"input_tokens": 10**12}])
    def test_absurd_usage_counts_as_missing(self, usage: Any) -> None:
        answer = read(response(message("x"), usage=usage))
        assert answer.usage is None
        assert answer.problem is None

    def test_the_provider_can_be_asked_what_an_input_costs(self) -> None:
        tools = [{"type": "function", "function": WEATHER}]
        request = ADAPTER.build_count(call(tools=tools, stop=["x"], stream=True, max_completion_tokens=5), target())
        assert (request.operation, set(json.loads(request.body))) == ("count", {"model", "input", "tools"})
        request = ADAPTER.build_count(native(instructions="i", stream=True, store=False), target())
        assert json.loads(request.body) == {"model": "gpt-5", "input": "hello", "instructions": "i"}
        assert ADAPTER.read_count(b'{"object":"response.input_tokens","input_tokens":11}') == 11
        for body in (b"", b"[]", b"{}", b'{"input_tokens":-1}', b'{"input_tokens":true}'):
            assert ADAPTER.read_count(body) is None


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "error", "reason", "code"),
        [
            (400, {"message": "Bad model.", "code": "model_not_found", "param": "model"}, "client", "model_not_found"),
            (401, {"message": "x"}, "credential", "upstream_credential"),
            (429, {"message": "x", "code": "insufficient_quota"}, "credential", "upstream_credential"),
            (429, {"message": "x"}, "rate_limit", "upstream_rate_limited"),
            (500, {"message": "x"}, "server", "upstream_error"),
        ],
    )
    def test_http_errors_are_read(self, status: int, error: Any, reason: str, code: str) -> None:
        problem = ADAPTER.read_error(status, ((b"retry-after", b"3"),), json.dumps({"error": error}).encode())
        assert (problem.status, problem.reason, problem.code, problem.retry_after_s) == (status, reason, code, 3.0)

    @pytest.mark.parametrize("given", [call(stream=True), native(stream=True)])
    @pytest.mark.parametrize(
        ("event", "reason", "status"),
        [
            ({"type": "error", "code": "rate_limit_exceeded", "message": "x"}, "rate_limit", 429),
            ({"type": "error", "error": {"code": "context_length_exceeded", "message": "Too long."}}, "client", 400),
            ({"type": "error", "error": {"type": "invalid_request_error", "message": "Bad."}}, "client", 400),
            ({"type": "error", "code": None, "message": "x"}, "server", 502),
            ({"type": "error"}, "server", 502),
            ({"type": "error", "code": "server_is_overloaded", "message": "x"}, "overloaded", 503),
            ({"error": {"code": 429, "message": "x"}}, "rate_limit", 429),
            (
                {"type": "response.failed", "response": {"error": {"code": "invalid_prompt", "message": "Flagged."}}},
                "client",
                400,
            ),
            (
                {"type": "response.failed", "response": {"error": {"code": "server_error", "message": "x"}}},
                "server",
                502,
            ),
            ({"type": "response.failed", "response": {"error": None}}, "server", 502),
            ({"type": "response.failed"}, "server", 502),
            ({"type": "response.cancelled", "response": {}}, "server", 502),
        ],
    )
    def test_errors_in_a_stream_are_read_and_not_passed_on(
        self, given: Call, event: dict[str, Any], reason: str, status: int
    ) -> None:
        reader = ADAPTER.open_stream(given)
        start = reader.feed(sse(*stream_of(message("a"))[:5]))
        assert reader.feed(sse(event) + sse({"type": "response.completed", "response": response()})) == b""
        assert start
        assert not reader.done
        assert reader.error is not None
        assert (reader.error.reason, reader.error.status) == (reason, status)
        assert reader.finish() == b""

    def test_the_usage_of_a_failed_response_is_kept(self) -> None:
        for asked in (call(stream=True), native(stream=True)):
            reader = ADAPTER.open_stream(asked)
            reader.feed(sse({"type": "response.failed", "response": response(status="failed")}))
            assert reader.usage == READ_USAGE
