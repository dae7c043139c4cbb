"""The Gemini adapter: whole answers, usage, embeddings and errors read back into the canonical form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.adapters import embeddings
from providers.canonical import Usage
from tests.providers.google_calls import (
    ADAPTER,
    WEATHER,
    asked,
    batch,
    call,
    choice,
    embedding,
    native,
    read,
    response,
    target,
    turns,
)

KEYS = [
    *("candidates", "content", "parts", "text", "functionCall", "args", "name", "thoughtSignature", "index"),
    *("finishReason", "usageMetadata", "promptTokenCount", "inlineData", "logprobsResult", "error", "responseId"),
    *("chosenCandidates", "topCandidates", "candidatesTokenCount", "embeddings", "values"),
]


class TestAnswers:
    def test_a_whole_answer_is_a_chat_completion(self) -> None:
        answer = read(response({"text": "Hel"}, {"text": "lo ü"}))
        told = json.loads(answer.body)
        created = told.pop("created")
        assert created > 0
        assert told == {
            "id": "r1",
            "object": "chat.completion",
            "model": "gemini-x",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Hello ü", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": 7,
                "completion_tokens": 3,
                "total_tokens": 10,
                "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0},
            },
        }
        assert answer.usage == Usage(7, 0, 0, 3)
        assert answer.output_bytes == 8
        assert not answer.native

    def test_stop_with_a_call_is_a_tool_call_with_an_id_of_its_own(self) -> None:
        part = {"functionCall": {"name": "f", "args": {"x": 5}}, "thoughtSignature": "S"}
        told = choice(response({"text": "Now."}, part, {"functionCall": {"name": "f", "args": {"x": 5}}}))
        assert told["finish_reason"] == "tool_calls"
        assert told["message"]["content"] == "Now."
        first, second = told["message"]["tool_calls"]
        assert first["function"] == {"name": "f", "arguments": '{"x":5}'}
        assert first["extra_content"] == {"google": {"thought_signature": "S"}}
        assert "extra_content" not in second
        assert "index" not in first
        assert first["id"].startswith("call_0_")
        assert second["id"].startswith("call_1_")

    def test_made_ids_are_stable_and_differ_between_answers(self) -> None:
        part = {"functionCall": {"name": "f", "args": {}}}

        def made(answer: str) -> str:
            return str(choice(response(part, responseId=answer))["message"]["tool_calls"][0]["id"])

        assert made("r1") == made("r1") != made("r2")

    def test_an_id_the_provider_gave_is_kept(self) -> None:
        told = choice(response({"functionCall": {"id": "abc", "name": "f"}}))
        assert told["message"]["tool_calls"] == [
            {"id": "abc", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ]
        assert told["message"]["content"] is None

    def test_thoughts_are_reasoning(self) -> None:
        told = choice(
            response(
                {"text": "a", "thought": True},
                {"text": "b", "thought": True, "thoughtSignature": "S"},
                {"text": "c", "thoughtSignature": "T"},
            )
        )
        assert told["message"] == {
            "role": "assistant",
            "content": "c",
            "refusal": None,
            "reasoning_content": "ab",
            "reasoning_details": [
                {"type": "reasoning.text", "text": "ab", "signature": "S", "format": "google-gemini-v1"}
            ],
            "extra_content": {"google": {"thought_signature": "T"}},
        }

    @pytest.mark.parametrize(
        ("finish", "expected"),
        [
            ("STOP", "stop"),
            (None, "stop"),
            ("FINISH_REASON_UNSPECIFIED", "stop"),
            ("MAX_TOKENS", "length"),
            ("CONTINUATION", "length"),
            ("OTHER", "stop"),
            ("SOMETHING_NEW", "stop"),
            *(
                (reason, "content_filter")
                for reason in (
                    "SAFETY",
                    "RECITATION",
                    "LANGUAGE",
                    "BLOCKLIST",
                    "PROHIBITED_CONTENT",
                    "SPII",
                    "IMAGE_SAFETY",
                    "IMAGE_PROHIBITED_CONTENT",
                    "IMAGE_RECITATION",
                    "IMAGE_OTHER",
                    "ESCALATION",
                    "PUP_LIMITED_DISABLED",
                    "MODEL_ARMOR",
                )
            ),
        ],
    )
    def test_finish_reasons_are_translated(self, finish: str | None, expected: str) -> None:
        assert choice(response({"text": "a"}, finish=finish))["finish_reason"] == expected

    def test_an_answer_withheld_for_an_unknown_reason_was_filtered(self) -> None:
        told = choice({"candidates": [{"finishReason": "OTHER"}]})
        assert told["finish_reason"] == "content_filter"
        assert told["message"]["content"] == ""
        assert choice({"candidates": [{"finishReason": "MAX_TOKENS"}]})["finish_reason"] == "length"

    @pytest.mark.parametrize(
        "finish", ["MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"]
    )
    def test_a_broken_answer_is_a_failure_and_its_tokens_are_known(self, finish: str) -> None:
        answer = read(response({"text": "a"}, finish=finish))
        assert answer.problem is not None
        assert (answer.problem.reason, answer.problem.code) == ("server", finish.lower())
        assert answer.usage == Usage(7, 0, 0, 3)
        assert answer.body == b""

    def test_a_missing_signature_is_the_callers_to_mend(self) -> None:
        problem = read(response(finish="MISSING_THOUGHT_SIGNATURE")).problem
        assert problem is not None
        assert (problem.status, problem.reason) == (400, "client")

    def test_a_refused_prompt_is_an_empty_answer_that_was_filtered(self) -> None:
        told = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 4}}
        answer = read(told)
        assert answer.usage == Usage(4)
        assert json.loads(answer.body)["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "", "refusal": None},
                "logprobs": None,
                "finish_reason": "content_filter",
            }
        ]
        assert json.loads(answer.body)["id"].startswith("gemini-")
        assert json.loads(answer.body)["model"] == "gemini-2.5-flash"

    def test_several_candidates_are_several_choices(self) -> None:
        candidates = [
            {"index": 1, "content": {"parts": [{"text": "b"}]}, "finishReason": "MALFORMED_RESPONSE"},
            {"content": {"parts": [{"functionCall": {"name": "f"}}]}, "finishReason": "STOP", "index": 0},
        ]
        told = json.loads(read(response(candidates=candidates), n=2).body)["choices"]
        assert [(one["index"], one["finish_reason"]) for one in told] == [(0, "tool_calls"), (1, "stop")]

    def test_log_probabilities_are_translated(self) -> None:
        result = {
            "chosenCandidates": [{"token": "ü", "tokenId": 5, "logProbability": -0.5}, {"token": "b"}, 7],
            "topCandidates": [{"candidates": [{"token": "ü", "logProbability": -0.5}, {"token": "c"}]}],
        }
        told = response({"text": "üb"})
        told["candidates"][0]["logprobsResult"] = result
        top = {"token": "ü", "logprob": -0.5, "bytes": [195, 188]}
        assert choice(told)["logprobs"] == {
            "content": [
                {**top, "top_logprobs": [top, {"token": "c", "logprob": 0, "bytes": [99]}]},
                {"token": "b", "logprob": 0, "bytes": [98], "top_logprobs": []},
            ],
            "refusal": None,
        }

    def test_one_call_at_most_is_kept_where_the_caller_asked_for_that(self) -> None:
        parts = [{"functionCall": {"name": "f"}}, {"functionCall": {"name": "g"}}]
        told = choice(response(*parts), tools=[WEATHER], parallel_tool_calls=False)
        assert [one["function"]["name"] for one in told["message"]["tool_calls"]] == ["f"]
        told = choice(response(*parts), tools=[WEATHER], parallel_tool_calls=True)
        assert len(told["message"]["tool_calls"]) == 2

    def test_pictures_are_handed_on(self) -> None:
        told = choice(response({"inlineData": {"mimeType": "image/png", "data": "AA=="}}, {"inlineData": {}}))
        assert told["message"]["images"] == [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"null",
            b"[]",
            b"{}",
            b"<html>",
            b"\xff\xfe",
            b'{"candidates":[]}',
            b'{"candidates":{}}',
            b'{"candidates":[7]}',
            b'{"promptFeedback":{}}',
            b'{"choices":[]}',
            b"[" * 2000,
        ],
    )
    def test_nonsense_is_a_failure_of_the_provider(self, body: bytes) -> None:
        answer = read(body)
        assert answer.problem is not None
        assert (answer.problem.reason, answer.body) == ("protocol", b"")

    def test_an_error_in_a_good_reply_is_read(self) -> None:
        error = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}
        for told in (error, [error]):
            problem = read(told).problem
            assert problem is not None
            assert (problem.status, problem.reason) == (503, "overloaded")

    JSON = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(KEYS),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    )

    @given(JSON)
    @settings(max_examples=150, deadline=None)
    def test_whatever_is_answered_nothing_is_raised(self, told: Any) -> None:
        for body in (told, {"candidates": [told]}, {"candidates": [{"content": {"parts": [told]}}]}):
            raw = json.dumps(body).encode()
            for asking in (call(), call(n=2, parallel_tool_calls=False), native(), embedding(), batch()):
                answer = ADAPTER.read_unary(asking, 200, [], raw, target())
                assert (answer.body == b"") == (answer.problem is not None)
        ADAPTER.read_error(400, [], json.dumps(told).encode())
        ADAPTER.read_error(400, [], json.dumps({"error": told}).encode())
        ADAPTER.read_count(json.dumps(told).encode())
        ADAPTER.read_models(json.dumps({"models": told}).encode())


class TestUsage:
    @pytest.mark.parametrize(
        ("metadata", "expected"),
        [
            ({"promptTokenCount": 34, "candidatesTokenCount": 469, "thoughtsTokenCount": 787}, (34, 0, 1256, 787)),
            ({"promptTokenCount": 9, "cachedContentTokenCount": 4, "toolUsePromptTokenCount": 2}, (11, 4, 0, 0)),
            ({"promptTokenCount": 9, "thoughtsTokenCount": 2, "totalTokenCount": 11}, (9, 0, 2, 2)),
            ({"candidatesTokenCount": 2, "totalTokenCount": 11}, (9, 0, 2, 0)),
            ({"promptTokenCount": 9.0, "cachedContentTokenCount": 99, "candidatesTokenCount": 1}, (9, 9, 1, 0)),
        ],
    )
    def test_counts_are_added_up(self, metadata: dict[str, Any], expected: tuple[int, ...]) -> None:
        usage = read(response({"text": "a"}, usageMetadata=metadata)).usage
        assert usage is not None
        assert (usage.input, usage.cached, usage.output, usage.reasoning) == expected

    def test_modalities_are_told_apart(self) -> None:
        metadata = {
            "promptTokenCount": 100,
            "candidatesTokenCount": 10,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 20},
                {"modality": "AUDIO", "tokenCount": 50},
                {"modality": "IMAGE", "tokenCount": 30},
            ],
            "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 10}, {"modality": 7}, 7],
        }
        usage = read(response({"text": "a"}, usageMetadata=metadata)).usage
        assert usage == Usage(100, output=10, input_audio=50, input_image=30, output_audio=10)

    @pytest.mark.parametrize(
        "metadata",
        [
            None,
            {},
            7,
            {"promptTokenCount": -1},
            {"promptTokenCount": "7"},
            {"promptTokenCount": True},
            {"promptTokenCount": 5, "candidatesTokenCount": -5, "thoughtsTokenCount": 9},
            {"promptTokenCount": 10**10},
            {"candidatesTokenCount": 5},
            {"promptTokenCount": 10**9, "toolUsePromptTokenCount": 10**9},
        ],
    )
    def test_absurd_usage_is_none(self, metadata: Any) -> None:
        answer = read(response({"text": "abc"}, usageMetadata=metadata))
        assert answer.usage is None
        assert answer.output_bytes == 3
        assert "usage" not in json.loads(answer.body)


class TestEmbeddings:
    def test_vectors_come_back_in_the_encoding_asked_for(self) -> None:
        told = {"embeddings": [{"values": [0.5, -1]}, {"values": [2, 0.25]}], "usageMetadata": {"promptTokenCount": 5}}
        raw = json.dumps(told).encode()
        answer = ADAPTER.read_unary(embedding(), 200, [], raw, target("e"))
        assert answer.usage == Usage(5)
        assert json.loads(answer.body) == {
            "object": "list",
            "data": [
                {"object": "embedding", "index": 0, "embedding": [0.5, -1]},
                {"object": "embedding", "index": 1, "embedding": [2, 0.25]},
            ],
            "model": "e",
            "usage": {"prompt_tokens": 5, "total_tokens": 5},
        }
        packed = ADAPTER.read_unary(embedding(encoding_format="base64"), 200, [], raw, target("e"))
        first = json.loads(packed.body)["data"][0]["embedding"]
        assert embeddings.unpacked(first) == [0.5, -1]

    def test_usage_that_was_not_told_is_none(self) -> None:
        raw = b'{"embeddings":[{"values":[1]},{"values":[2]}]}'
        answer = ADAPTER.read_unary(embedding(), 200, [], raw, target("e"))
        assert answer.usage is None
        assert json.loads(answer.body)["usage"] == {"prompt_tokens": 0, "total_tokens": 0}

    @pytest.mark.parametrize(
        "body",
        [
            b"{}",
            b'{"embeddings":[{"values":[1]}]}',
            b'{"embeddings":[{"values":[1]},{}]}',
            b'{"embeddings":[{"values":[1]},7]}',
            b'{"embeddings":[{"values":[1]},{"values":"a"}]}',
            b'{"embeddings":[{"values":[1]},{"values":["a"]}]}',
        ],
    )
    def test_nonsense_is_a_failure_of_the_provider(self, body: bytes) -> None:
        for asking in (embedding(), embedding(encoding_format="base64")):
            problem = ADAPTER.read_unary(asking, 200, [], body, target("e")).problem
            assert problem is not None
            assert problem.reason == "protocol"

    def test_numbers_no_float_holds_are_a_failure_of_the_provider(self) -> None:
        raw = b'{"embeddings":[{"values":[1e300]},{"values":[1]}]}'
        answer = ADAPTER.read_unary(embedding(encoding_format="base64"), 200, [], raw, target("e"))
        assert answer.problem is not None


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "name", "reason", "code"),
        [
            (400, "INVALID_ARGUMENT", "client", "invalid_argument"),
            (404, "NOT_FOUND", "client", "not_found"),
            (401, "UNAUTHENTICATED", "credential", "upstream_credential"),
            (403, "PERMISSION_DENIED", "credential", "upstream_credential"),
            (429, "RESOURCE_EXHAUSTED", "rate_limit", "upstream_rate_limited"),
            (500, "INTERNAL", "server", "upstream_error"),
            (503, "UNAVAILABLE", "overloaded", "upstream_overloaded"),
            (504, "DEADLINE_EXCEEDED", "server", "upstream_error"),
        ],
    )
    def test_statuses_say_who_must_act(self, status: int, name: str, reason: str, code: str) -> None:
        error = {"error": {"code": status, "message": "Words at https://a.example/x.", "status": name}}
        for told in (error, [error]):
            problem = ADAPTER.read_error(status, [], json.dumps(told).encode())
            assert (problem.status, problem.reason, problem.code) == (status, reason, code)
            assert "https" not in problem.message
            if reason == "client":
                assert problem.message.startswith("Words at")

    @pytest.mark.parametrize(
        "error",
        [
            {
                "message": "API key not valid. Please pass a valid API key.",
                "status": "INVALID_ARGUMENT",
                "details": [7, {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}],
            },
            {
                "message": "User location is not supported for the API use.",
                "status": "FAILED_PRECONDITION",
            },
        ],
    )
    def test_a_bad_key_is_the_operators_to_mend(self, error: dict[str, Any]) -> None:
        problem = ADAPTER.read_error(400, [], json.dumps({"error": {"code": 400, **error}}).encode())
        assert problem.reason == "credential"
        assert "key not valid" not in problem.message

    def test_another_failed_precondition_is_the_callers(self) -> None:
        error = {"code": 400, "message": "The File is not in an ACTIVE state.", "status": "FAILED_PRECONDITION"}
        assert ADAPTER.read_error(400, [], json.dumps({"error": error}).encode()).reason == "client"

    @pytest.mark.parametrize(
        ("delay", "expected"), [("34.07s", 34.07), ("7s", 7.0), ("999999s", 3600.0), ("soon", None), (7, None)]
    )
    def test_the_wish_to_wait_is_read_from_the_body(self, delay: Any, expected: float | None) -> None:
        details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}]
        body = json.dumps({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": details}}).encode()
        assert ADAPTER.read_error(429, [], body).retry_after_s == expected
        assert ADAPTER.read_error(429, [(b"retry-after", b"3")], body).retry_after_s == 3

    def test_a_prompt_that_is_too_long_is_told_by_the_word_clients_know(self) -> None:
        words = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."
        error = {"code": 400, "message": words, "status": "INVALID_ARGUMENT"}
        problem = ADAPTER.read_error(400, [], json.dumps({"error": error}).encode())
        assert (problem.code, problem.message) == ("context_length_exceeded", words)

    @pytest.mark.parametrize("body", [b"", b"<html>no</html>", b"\xff", b"[[[", b'{"error":"text"}', b'{"error":7}'])
    def test_any_body_is_read(self, body: bytes) -> None:
        assert ADAPTER.read_error(500, [], body).reason == "server"


# --- round trips ----------------------------------------------------------------------------------------------------

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
VALUES = st.dictionaries(st.text("abc", max_size=3), TEXT | st.integers(-9, 9) | st.booleans(), max_size=3)


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Any]:
    """An assistant message in the canonical form."""
    message: dict[str, Any] = {"role": "assistant", "content": draw(TEXT)}
    if draw(st.booleans()):
        message["reasoning_content"] = draw(TEXT)
    if draw(st.booleans()):
        message["extra_content"] = {"google": {"thought_signature": draw(TEXT)}}
    calls = []
    for place in range(draw(st.integers(0, 3))):
        made = asked(f"id{place}", draw(st.sampled_from(["f", "g"])), json.dumps(draw(VALUES), separators=(",", ":")))
        if draw(st.booleans()):
            made["extra_content"] = {"google": {"thought_signature": draw(TEXT)}}
        calls.append(made)
    if calls:
        message["tool_calls"] = calls
    return message


def canonical(content: dict[str, Any]) -> dict[str, Any]:
    """The assistant message a model's turn was made from: the inverse of what the adapter writes."""
    message: dict[str, Any] = {"role": "assistant"}
    for part in content["parts"]:
        signed = {"extra_content": {"google": {"thought_signature": part.get("thoughtSignature")}}}
        signed = signed if "thoughtSignature" in part else {}
        if "functionCall" in part:
            made = part["functionCall"]
            arguments = json.dumps(made["args"], separators=(",", ":"))
            message.setdefault("tool_calls", []).append(asked(made["id"], made["name"], arguments, **signed))
        elif part.get("thought"):
            message["reasoning_content"] = part["text"]
        else:
            message.update(content=part["text"], **signed)
    return message


class TestRoundTrips:
    @given(answers())
    @settings(max_examples=100, deadline=None)
    def test_an_earlier_answer_loses_nothing_on_its_way_to_the_provider(self, message: dict[str, Any]) -> None:
        contents = turns({"role": "user", "content": "a"}, message, {"role": "user", "content": "b"})
        assert [content["role"] for content in contents] == ["user", "model", "user"]
        assert canonical(contents[1]) == message

    @given(answers(), st.integers(1, 10**6), st.integers(0, 10**6), st.sampled_from(["STOP", "MAX_TOKENS", "SAFETY"]))
    @settings(max_examples=100, deadline=None)
    def test_an_answer_read_and_sent_back_is_the_same_turn(
        self, message: dict[str, Any], given: int, made: int, finish: str
    ) -> None:
        turn = turns(message)[0]
        usage = {"promptTokenCount": given, "candidatesTokenCount": made}
        answer = read(response(*turn["parts"], finish=finish, usageMetadata=usage))
        assert answer.usage == Usage(given, output=made)
        told = json.loads(answer.body)["choices"][0]
        assert turns(told["message"]) == [turn]
        expected = {"STOP": "tool_calls" if "tool_calls" in message else "stop", "MAX_TOKENS": "length"}
        assert told["finish_reason"] == expected.get(finish, "content_filter")
