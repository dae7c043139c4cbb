"""Upstream failures of the OpenAI-compatible adapter: sanitised, classified, told in words a client may see."""

from __future__ import annotations

import json
import time
from email.utils import formatdate
from typing import Any

import pytest

from providers.adapters import problems
from providers.canonical import UpstreamProblem
from tests.providers.test_adapters import ADAPTER


def problem(status: int, body: bytes | Any = b"", *headers: tuple[bytes, bytes]) -> UpstreamProblem:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ADAPTER.read_error(status, list(headers), raw)


class TestProblems:
    @pytest.mark.parametrize(
        ("status", "reason"),
        [
            (400, "client"),
            (401, "credential"),
            (402, "credential"),
            (403, "credential"),
            (404, "client"),
            (408, "server"),
            (413, "client"),
            (422, "client"),
            (429, "rate_limit"),
            (500, "server"),
            (501, "server"),
            (502, "server"),
            (503, "overloaded"),
            (504, "server"),
            (529, "overloaded"),
            (307, "protocol"),
            (101, "protocol"),
        ],
    )
    def test_the_status_says_who_must_act(self, status: int, reason: str) -> None:
        found = problem(status, {"error": {"message": "provider words", "type": "t", "code": "c"}})
        assert (found.status, found.reason) == (status, reason)
        assert ("provider words" in found.message) == (reason == "client")
        assert found.message
        assert found.code

    def test_a_refusal_keeps_message_type_code_and_param(self) -> None:
        error = {
            "message": "No such model",
            "type": "invalid_request_error",
            "code": "model_not_found",
            "param": "model",
        }
        found = problem(404, {"error": error})
        assert found == UpstreamProblem(
            404, "model_not_found", "No such model", reason="client", type="invalid_request_error", param="model"
        )

    @pytest.mark.parametrize(
        "body",
        [
            {"error": "it is bad"},
            {"error": {"message": "it is bad", "code": 400, "type": None, "param": None}},
            {"object": "error", "message": "it is bad", "code": 400},
            {"message": "it is bad"},
            {"detail": "it is bad"},
            {"detail": [{"loc": ["body", "n"], "msg": "it is bad", "type": "x"}]},
            [{"error": {"code": 400, "message": "it is bad", "status": "INVALID_ARGUMENT"}}],
        ],
    )
    def test_all_shapes_of_error_bodies_are_read(self, body: Any) -> None:
        found = problem(400, body)
        assert (found.message, found.code, found.reason) == ("it is bad", "upstream_refused", "client")

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html><head><title>502 Bad Gateway</title></head></html>",
            b"plain words with 10.0.0.1",
            b"\xff\xfe\x00",
            b"[" * 100_000,
            b'{"error":' + b"9" * 5000 + b"}",
            {"error": {"message": "<!DOCTYPE html><p>nginx 10.1.2.3</p>"}},
            {"error": {"message": ["x"], "code": {"a": 1}, "type": 5, "param": []}},
            {"error": {"message": ""}},
            {"error": None},
            {"error": {"code": "<script>alert(1)</script>", "param": "a\r\nb"}},
            [],
            [[1]],
            5,
            b'{"x":"' + b"y" * 2_000_000 + b'"}',
        ],
    )
    @pytest.mark.parametrize("status", [400, 500])
    def test_other_bodies_get_words_of_our_own(self, status: int, body: Any) -> None:
        found = problem(status, body)
        refused = status == 400
        assert found.message == (
            "The provider refused this request." if refused else "The provider failed to answer this request."
        )
        assert found.code == ("upstream_refused" if refused else "upstream_error")
        assert found.param is None

    @pytest.mark.parametrize(
        "secret",
        [
            "sk-proj-abcdEFGH1234567890abcd",
            "sk-1234****************cdef",
            "hk-Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MA",
            "Bearer abc.def-ghi_123",
            "api_key=hunter22",
            '"password": "hunter22"',
            "AIzaSyA1234567890abcdefghijklmnop",
            "gsk_abcdefghijklmnop123456",
            "0123456789abcdef0123456789abcdef01234567",
            "http://user:pw@intern.example:8080/v1/x?key=1",
            "https://api.example.com/docs",
            "redis://cache",
            "10.1.2.3",
            "10.1.2.3:8000",
            "[fd00:1:2::3]:80",
            "[::1]:8000",
            "localhost:11434",
            "db.corp.internal",
            "gpu-7.example.com:8000",
        ],
    )
    def test_credentials_and_addresses_do_not_leak(self, secret: str) -> None:
        found = problem(400, {"error": {"message": f"cannot use {secret} for this"}})
        assert secret not in found.message
        assert found.message.startswith("cannot use ")
        assert found.message.endswith(" for this")
        for part in ("hunter22", "abc.def", "intern", "11434", "8080"):
            assert part not in found.message

    @pytest.mark.parametrize(
        "words",
        [
            "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens.",
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
            "'messages[0].content' : one of string or array (given: 5) at 12:30:45, ratio 1.5",
            "The model `meta-llama/Llama-3.3-70B-Instruct-Turbo` does not exist",
            "response_format.json_schema: additionalProperties must be false",
        ],
    )
    def test_useful_words_stay(self, words: str) -> None:
        assert problem(400, {"error": {"message": words}}).message == words

    def test_long_messages_are_cut_and_control_characters_taken_out(self) -> None:
        found = problem(400, {"error": {"message": "a\r\nb\x00\x1b[31mc " + "word " * 1000}})
        assert found.message.startswith("a b [31mc word")
        assert 990 < len(found.message) <= 1000

    @pytest.mark.parametrize("loc", [None, 5, "x", {"a": 1}, []])
    def test_a_web_frameworks_error_may_have_any_location(self, loc: Any) -> None:
        found = problem(422, {"detail": [{"loc": loc, "msg": "wrong"}]})
        assert (found.reason, found.message, found.param) == ("client", "wrong", None)
        assert problem(503, {"detail": [{"loc": loc}]}).reason == "overloaded"

    @pytest.mark.parametrize(
        "words", ["a-", "a.", "-", "a:", "key-", "token ", "a", "1.", "0:", "a.b:", "://a", "a.-", "[::", "< "]
    )
    def test_no_message_is_slow_to_clean(self, words: str) -> None:
        def took_s() -> float:
            begin = time.thread_time()
            problems.clean(words * 100_000)
            return time.thread_time() - begin

        assert min(took_s() for _ in range(5)) < 0.005

    def test_a_credential_at_the_cut_does_not_leak_in_part(self) -> None:
        for padding in range(960, 1010):
            text = "w " * (padding // 2) + "x" * (padding % 2)
            assert "sk-proj" not in problems.clean(f"{text} sk-proj-abcdEFGH1234")

    @pytest.mark.parametrize(
        ("headers", "expected"),
        [
            ([(b"retry-after", b"7")], 7.0),
            ([(b"retry-after", b"0.5")], 0.5),
            ([(b"retry-after", b"7"), (b"retry-after-ms", b"1500")], 1.5),
            ([(b"retry-after", b"-3")], 0.0),
            ([(b"retry-after", b"1e99")], 3600.0),
            ([(b"retry-after", b"nan")], None),
            ([(b"retry-after", b"soon")], None),
            ([(b"retry-after", b"\xff")], None),
            ([(b"retry-after", b"")], None),
            ([(b"x-other", b"7")], None),
        ],
    )
    def test_the_providers_wish_to_wait_is_read(
        self, headers: list[tuple[bytes, bytes]], expected: float | None
    ) -> None:
        assert problem(429, b"", *headers).retry_after_s == expected

    def test_a_date_to_wait_for_is_read(self) -> None:
        date = formatdate(time.time() + 60, usegmt=True).encode()
        found = problem(503, b"", (b"retry-after", date)).retry_after_s
        assert found is not None
        assert 50 < found <= 60

    def test_an_account_without_money_is_the_operators_affair(self) -> None:
        found = problem(429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})
        assert (found.reason, found.status) == ("credential", 429)
        assert "quota" not in found.message
