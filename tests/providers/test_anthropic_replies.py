"""The adapter for Anthropic's Messages API: whole answers, their usage, and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.canonical import Usage
from tests.providers.anthropic_case import (
    ADAPTER,
    DETAILS,
    FORMAT,
    JSON,
    MESSAGE,
    NAMES,
    OBJECTS,
    call,
    native,
    target,
    tool_call,
)


def answered(**fields: Any) -> dict[str, Any]:
    answer = ADAPTER.read_unary(call(), 200, [], json.dumps({**MESSAGE, **fields}).encode())
    assert answer.problem is None
    assert not answer.native
    told: dict[str, Any] = json.loads(answer.body)
    return told


class TestAnswers:
    def test_a_plain_answer(self) -> None:
        answer = ADAPTER.read_unary(call(), 200, [], json.dumps(MESSAGE).encode(), target())
        told = json.loads(answer.body)
        assert told.pop("created") > 1_700_000_000
        assert told == {
            "id": "msg_1",
            "object": "chat.completion",
            "model": "claude-x",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Hi!", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": 140,
                "completion_tokens": 25,
                "total_tokens": 165,
                "prompt_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 30},
                "completion_tokens_details": {"reasoning_tokens": 20},
            },
        }
        assert answer.usage == Usage(140, 100, 30, 25, 20)
        assert answer.output_bytes == 3

    def test_thinking_tools_and_blocks_the_canonical_form_does_not_know(self) -> None:
        content = [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "redacted_thinking", "data": "d"},
            {"type": "thinking", "thinking": "", "signature": "t"},
            {"type": "thinking", "thinking": "!", "signature": ""},
            {"type": "server_tool_use", "id": "srv", "name": "web_search", "input": {"query": "q"}},
            {"type": "web_search_tool_result", "tool_use_id": "srv", "content": []},
            {"type": "text", "text": "So "},
            {
                "type": "text",
                "text": "é.",
                "citations": [
                    {"type": "web_search_result_location", "url": "https://a.example", "title": "A", "cited_text": "x"},
                    {"type": "char_location", "document_index": 0},
                ],
            },
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}},
            {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}},
            {"type": "from_the_future"},
            "nonsense",
        ]
        message = answered(content=content, stop_reason="tool_use")["choices"][0]["message"]
        assert message == {
            "role": "assistant",
            "content": "So é.",
            "refusal": None,
            "reasoning_content": "hm!",
            "reasoning_details": [
                {"type": "reasoning.text", "text": "hm", "signature": "s", "format": FORMAT},
                {"type": "reasoning.encrypted", "data": "d", "format": FORMAT},
                {"type": "reasoning.text", "text": "", "signature": "t", "format": FORMAT},
            ],
            "tool_calls": [tool_call("toolu_1", "f", '{"a":1}'), tool_call("toolu_2", "g", "{}")],
            "annotations": [
                {
                    "type": "url_citation",
                    "url_citation": {"url": "https://a.example", "title": "A", "start_index": 3, "end_index": 5},
                }
            ],
        }
        size = ADAPTER.read_unary(call(), 200, [], json.dumps({**MESSAGE, "content": content}).encode()).output_bytes
        assert size == len("hm!") + len("So é.".encode()) + len('f{"a":1}g{}')

    @pytest.mark.parametrize(
        ("reason", "finish"),
        [
            ("end_turn", "stop"),
            ("stop_sequence", "stop"),
            ("pause_turn", "stop"),
            ("max_tokens", "length"),
            ("model_context_window_exceeded", "length"),
            ("refusal", "content_filter"),
            ("tool_use", "stop"),
            ("unheard_of", "stop"),
            (None, "stop"),
            (7, "stop"),
        ],
    )
    def test_stop_reasons(self, reason: Any, finish: str) -> None:
        assert answered(stop_reason=reason)["choices"][0]["finish_reason"] == finish

    def test_calls_of_tools_finish_with_tool_calls_unless_they_were_cut(self) -> None:
        content = [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]
        told = answered(content=content, stop_reason="tool_use")["choices"][0]
        assert (told["finish_reason"], told["message"]["content"]) == ("tool_calls", None)
        assert answered(content=content, stop_reason="max_tokens")["choices"][0]["finish_reason"] == "length"

    def test_the_explanation_of_a_refusal_is_told(self) -> None:
        details = {"type": "refusal", "category": "bio", "explanation": "Not this."}
        message = answered(content=[], stop_reason="refusal", stop_details=details)["choices"][0]["message"]
        assert (message["content"], message["refusal"]) == ("", "Not this.")

    @pytest.mark.parametrize(
        ("usage", "found"),
        [
            (None, None),
            ({}, None),
            ({"input_tokens": 1}, None),
            ({"input_tokens": 1, "output_tokens": 2}, Usage(1, output=2)),
            ({"input_tokens": 1.0, "output_tokens": 2.0, "cache_read_input_tokens": None}, Usage(1, output=2)),
            ({"input_tokens": -1, "output_tokens": 2}, None),
            ({"input_tokens": "1", "output_tokens": 2}, None),
            ({"input_tokens": True, "output_tokens": 2}, None),
            ({"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": -5}, None),
            ({"input_tokens": 1, "output_tokens": 10**12}, None),
            ({"input_tokens": 10**9, "output_tokens": 1, "cache_creation_input_tokens": 1}, None),
            (
                {"input_tokens": 1, "output_tokens": 2, "output_tokens_details": {"thinking_tokens": 9}},
                Usage(1, output=2, reasoning=2),
            ),
            (
                {"input_tokens": 1, "output_tokens": 2, "output_tokens_details": {"thinking_tokens": "x"}},
                Usage(1, output=2),
            ),
            ("many", None),
        ],
    )
    def test_absurd_usage_counts_as_missing(self, usage: Any, found: Usage | None) -> None:
        answer = ADAPTER.read_unary(call(), 200, [], json.dumps({**MESSAGE, "usage": usage}).encode())
        assert answer.usage == found
        assert answer.problem is None
        assert ("usage" in json.loads(answer.body)) == (found is not None)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>",
            b"[]",
            b"null",
            b"{}",
            b'{"type":"message"}',
            b'{"type":"message","content":"text"}',
            b'{"content":[{"type":"text","text":5}]}',
            b'{"content":[{"type":"text","text":"a","citations":7}]}',
            b'{"content":[],"id":5}',
            b"[" * 100_000,
            b"\xff\xfe",
        ],
    )
    def test_nonsense_is_a_protocol_error(self, body: bytes) -> None:
        answer = ADAPTER.read_unary(call(), 200, [], body)
        assert answer.problem is not None
        assert answer.problem.reason == "protocol"
        assert answer.body == b""

    def test_an_error_under_a_good_status_is_read(self) -> None:
        body = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'
        problem = ADAPTER.read_unary(call(), 200, [], body).problem
        assert problem is not None
        assert (problem.reason, problem.status) == ("overloaded", 529)

    def test_bytes_that_are_no_text_do_not_break_an_answer(self) -> None:
        body = json.dumps({**MESSAGE, "content": [{"type": "text", "text": "a"}]}).encode().replace(b'"a"', b'"\xff"')
        assert (
            json.loads(ADAPTER.read_unary(call(), 200, [], body).body)["choices"][0]["message"]["content"] == "\ufffd"
        )

    @given(st.binary(max_size=60) | st.builds(lambda value: json.dumps(value).encode(), JSON))
    @settings(max_examples=100, deadline=None)
    def test_no_body_raises(self, body: bytes) -> None:
        for one in (call(), native(b'{"model":"m"}')):
            assert ADAPTER.read_unary(one, 200, [], body).problem is not None
        ADAPTER.read_error(400, [], body)
        assert ADAPTER.read_count(body) is None or ADAPTER.read_count(body)

    @given(
        st.text(max_size=9),
        st.lists(st.tuples(NAMES, NAMES, OBJECTS), max_size=3),
        st.lists(DETAILS, max_size=3),
        st.integers(0, 9999),
        st.integers(0, 9999),
    )
    @settings(max_examples=100, deadline=None)
    def test_what_the_provider_says_arrives_whole(
        self,
        words: str,
        calls: list[tuple[str, str, dict[str, Any]]],
        details: list[dict[str, Any]],
        given_tokens: int,
        made: int,
    ) -> None:
        content: list[dict[str, Any]] = [
            {"type": "thinking", "thinking": detail["text"], "signature": detail["signature"]}
            if "signature" in detail
            else {"type": "redacted_thinking", "data": detail["data"]}
            for detail in details
        ]
        content.append({"type": "text", "text": words})
        content += [{"type": "tool_use", "id": id, "name": name, "input": value} for id, name, value in calls]
        usage = {"input_tokens": given_tokens, "output_tokens": made, "cache_read_input_tokens": 5}
        told = answered(content=content, usage=usage, stop_reason="tool_use" if calls else "end_turn")
        (choice,) = told["choices"]
        message = choice["message"]
        assert message["content"] == (words if words or not calls else None)
        assert message.get("reasoning_details", []) == details
        assert message.get("reasoning_content", "") == "".join(detail.get("text", "") for detail in details)
        heard = [
            (c["id"], c["function"]["name"], json.loads(c["function"]["arguments"]))
            for c in message.get("tool_calls", [])
        ]
        assert heard == calls
        assert choice["finish_reason"] == ("tool_calls" if calls else "stop")
        assert (told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]) == (given_tokens + 5, made)


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "kind", "reason"),
        [
            (400, "invalid_request_error", "client"),
            (401, "authentication_error", "credential"),
            (402, "billing_error", "credential"),
            (403, "permission_error", "credential"),
            (404, "not_found_error", "client"),
            (413, "request_too_large", "client"),
            (429, "rate_limit_error", "rate_limit"),
            (500, "api_error", "server"),
            (504, "timeout_error", "server"),
            (529, "overloaded_error", "overloaded"),
        ],
    )
    def test_each_type_of_error(self, status: int, kind: str, reason: str) -> None:
        error = {"type": kind, "message": "max_tokens: too large"}
        body = json.dumps({"type": "error", "error": error, "request_id": "req_1"}).encode()
        for problem in (ADAPTER.read_error(status, [], body), ADAPTER.read_unary(call(), 200, [], body).problem):
            assert problem is not None
            assert (problem.status, problem.reason) == (status, reason)
            if reason == "client":
                assert (problem.type, problem.message) == (kind, "max_tokens: too large")

    def test_the_wish_to_wait_is_read(self) -> None:
        body = b'{"type":"error","error":{"type":"rate_limit_error","message":"slow down"}}'
        assert ADAPTER.read_error(429, [(b"retry-after", b"12")], body).retry_after_s == 12

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (400, {"type": "invalid_request_error", "message": "Your credit balance is too low to access the API."}),
            (
                429,
                {"type": "rate_limit_error", "message": "x", "details": {"error_code": "enforced_spend_limit_reached"}},
            ),
        ],
    )
    def test_an_account_without_money_is_the_operators_matter(self, status: int, error: dict[str, Any]) -> None:
        problem = ADAPTER.read_error(status, [(b"retry-after", b"60")], json.dumps({"error": error}).encode())
        assert (problem.reason, problem.status, problem.retry_after_s) == ("credential", status, None)

    def test_a_finer_code_is_kept(self) -> None:
        error = {"type": "invalid_request_error", "message": "x", "details": {"error_code": "file_expired"}}
        assert ADAPTER.read_error(400, [], json.dumps({"error": error}).encode()).code == "file_expired"

    @pytest.mark.parametrize("body", [b"", b"<html>Bad gateway</html>", b"null", b'{"error":"x"}', b"\xff"])
    def test_other_bodies_are_read_by_their_status(self, body: bytes) -> None:
        assert ADAPTER.read_error(502, [], body).reason == "server"
