"""What comes back from Ollama: whole answers, streams cut anywhere, errors in every place, its own API passed on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.adapters import ollama_replies
from providers.canonical import Answer, Usage
from tests.providers.ollama_talk import (
    ADAPTER,
    CALLS,
    HELLO,
    TEXT,
    chat,
    deltas,
    embedding,
    end,
    function,
    line,
    native,
    ndjson,
    read,
    streamed,
)


class TestUnary:
    def test_a_whole_answer_becomes_a_completion(self) -> None:
        answer = read(line("Hi é", done=True, done_reason="stop", prompt_eval_count=26, eval_count=3))
        told = json.loads(answer.body)
        assert told["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi é", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ]
        assert (told["object"], told["model"]) == ("chat.completion", "llama3.2:3b")
        assert told["id"].startswith("chatcmpl-")
        assert told["usage"]["total_tokens"] == 29
        assert (answer.usage, answer.output_bytes, answer.problem, answer.native) == (
            Usage(26, output=3),
            5,
            None,
            False,
        )

    def test_tool_calls_get_ids_and_argument_text(self) -> None:
        calls = [
            {"function": {"name": "look", "arguments": {"at": 1}}},
            {"id": "call_x", "function": {"index": 7, "name": "now", "arguments": {}}},
        ]
        answer = read(
            line(message={"tool_calls": calls, "thinking": "hm"}, done=True, done_reason="stop", eval_count=9)
        )
        choice = json.loads(answer.body)["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        assert choice["message"]["reasoning_content"] == "hm"
        first, second = choice["message"]["tool_calls"]
        assert first["id"].startswith("call_")
        assert len(first["id"]) == 29
        assert (first["type"], first["function"]) == ("function", {"name": "look", "arguments": '{"at":1}'})
        assert second == {"id": "call_x", "type": "function", "function": {"name": "now", "arguments": "{}"}}

    @pytest.mark.parametrize(
        ("reason", "called", "expected"),
        [
            ("stop", False, "stop"),
            ("length", False, "length"),
            ("length", True, "length"),
            ("load", False, "stop"),
            ("unload", False, "stop"),
            ("novel", True, "tool_calls"),
            (None, False, "stop"),
            (7, False, "stop"),
        ],
    )
    def test_done_reasons(self, reason: object, called: bool, expected: str) -> None:
        calls = {"message": {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}} if called else {}
        answer = read(line("x", done=True, done_reason=reason, eval_count=1, **calls))
        assert json.loads(answer.body)["choices"][0]["finish_reason"] == expected

    @pytest.mark.parametrize(
        ("counts", "expected"),
        [
            ({"eval_count": 3}, Usage(0, output=3)),
            ({"prompt_eval_count": 4, "eval_count": 3}, Usage(4, output=3)),
            ({}, None),
            ({"prompt_eval_count": 4}, None),
            ({"prompt_eval_count": -1, "eval_count": 3}, None),
            ({"prompt_eval_count": 1, "eval_count": "3"}, None),
            ({"prompt_eval_count": 10**10, "eval_count": 3}, None),
        ],
    )
    def test_counts_that_are_missing_are_none_and_absurd_ones_are_not_believed(
        self, counts: dict[str, Any], expected: Usage | None
    ) -> None:
        assert read(line("x", done=True, **counts)).usage == expected

    def test_an_answer_without_text_may_lack_all_counts(self) -> None:
        assert read(line(done=True, done_reason="load")).usage == Usage(0)

    def test_log_probabilities_are_passed(self) -> None:
        token = {"token": "x", "logprob": -0.5, "bytes": [120], "top_logprobs": [{"token": "x", "logprob": -0.5}]}
        answer = read(line("x", done=True, eval_count=1, logprobs=[token]))
        assert json.loads(answer.body)["choices"][0]["logprobs"] == {"content": [token], "refusal": None}

    def test_a_native_answer_passes_as_it_is(self) -> None:
        call = native({"model": "m", "messages": HELLO, "stream": False})
        body = json.dumps(line("Hi", done=True, prompt_eval_count=2, eval_count=1), indent=1).encode()
        assert read(body, call) == Answer(body, Usage(2, output=1), 2, native=True)
        generated = json.dumps(
            {"model": "m", "response": "Hi", "thinking": "h", "done": True, "eval_count": 1}
        ).encode()
        assert read(generated, call) == Answer(generated, Usage(0, output=1), 3, native=True)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>",
            b"[]",
            b"null",
            b"{}",
            b'{"done":true}',
            b'{"message":7,"done":true}',
            b'{"message":{"content":7},"done":true}',
            b'{"message":{"content":[]},"done":true}',
            b'{"message":{"tool_calls":{}},"done":true}',
            b'{"message":{"tool_calls":["x"]},"done":true}',
            b'{"message":{"tool_calls":[{"function":{}}]},"done":true}',
            b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":[]}}]},"done":true}',
            b'{"message":{"content":"x"}',
            b"\xff\xfe",
        ],
    )
    def test_nonsense_is_a_problem_and_no_exception(self, body: bytes) -> None:
        for call in (chat(), native({"model": "m", "messages": HELLO})):
            answer = read(body, call)
            assert answer.problem is not None
            assert (answer.problem.reason, answer.body) == ("protocol", b"")

    def test_an_unfinished_answer_is_cut(self) -> None:
        answer = read(line("x"))
        assert answer.problem is not None
        assert answer.problem.reason == "cut"

    def test_an_error_under_a_good_status_is_one(self) -> None:
        for call in (chat(), embedding()):
            answer = read({"error": "model 'x' not found, try pulling it first"}, call)
            assert answer.problem is not None
            assert (answer.problem.status, answer.problem.code) == (404, "model_not_found")


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "body", "expected"),
        [
            (404, b'{"error":"model \'x\' not found"}', (404, "model_not_found", "client", "model 'x' not found")),
            (
                400,
                b'{"error":"\\"m\\" does not support tools"}',
                (400, "upstream_refused", "client", '"m" does not support tools'),
            ),
            (
                500,
                b'{"error":"the input length exceeds the context length"}',
                (400, "context_length_exceeded", "client", "the input length exceeds the context length"),
            ),
            (503, b'{"error":"server busy, please try again."}', (503, "upstream_overloaded", "overloaded", None)),
            (401, b'{"error":"unauthorized"}', (401, "upstream_credential", "credential", None)),
            (429, b'{"error":"weekly usage limit"}', (429, "upstream_rate_limited", "rate_limit", None)),
            (500, b'{"error":"model requires more system memory"}', (500, "upstream_error", "server", None)),
            (502, b"<html>bad gateway</html>", (502, "upstream_error", "server", None)),
            (400, b"", (400, "upstream_refused", "client", None)),
            (404, b"404 page not found", (404, "upstream_refused", "client", None)),
            (400, b'{"error":{"message":"m","code":"c"}}', (400, "c", "client", "m")),
        ],
    )
    def test_replies_that_are_not_2xx(
        self, status: int, body: bytes, expected: tuple[int, str, str, str | None]
    ) -> None:
        found = ADAPTER.read_error(status, [], body)
        assert (found.status, found.code, found.reason) == expected[:3]
        assert expected[3] in (None, found.message)

    def test_the_json_of_the_server_behind_is_unwrapped(self) -> None:
        inner = {
            "error": {
                "code": 400,
                "message": "request (8889 tokens) exceeds the available context size (4096 tokens)",
                "type": "exceed_context_size_error",
                "n_ctx": 4096,
            }
        }
        found = ADAPTER.read_error(400, [(b"retry-after", b"2")], json.dumps({"error": json.dumps(inner)}).encode())
        assert (found.code, found.type, found.retry_after_s) == (
            "context_length_exceeded",
            "exceed_context_size_error",
            2.0,
        )
        assert found.message == inner["error"]["message"]

    @pytest.mark.parametrize(
        ("told", "status", "reason"),
        [
            ({"error": "an unexpected error"}, 500, "server"),
            ({"error": "try again", "status": 503}, 503, "overloaded"),
            ({"error": "odd", "status": 7}, 500, "server"),
            ({"error": "server busy, please try again"}, 503, "overloaded"),
            ({"error": {"message": "m", "type": "invalid_request_error"}}, 400, "client"),
            ({"error": 5}, 502, "server"),
        ],
    )
    def test_an_error_line_ends_the_stream_and_is_not_delivered(
        self, told: dict[str, Any], status: int, reason: str
    ) -> None:
        data = ndjson(line("He"), told, line("never"), end())
        reader, chunks = streamed(data)
        assert deltas(chunks) == [{"role": "assistant", "content": "He"}]
        assert (reader.done, reader.events, reader.error.status, reader.error.reason) == (False, 1, status, reason)
        passing = ADAPTER.open_stream(native({"model": "m", "messages": HELLO}))
        assert passing.feed(data) + passing.finish() == ndjson(line("He"))
        assert passing.error == reader.error


class TestStream:
    DATA = ndjson(
        line(message={"thinking": "h"}),
        line(message={"thinking": "m"}),
        line("He"),
        line("llo é"),
        line(message={"tool_calls": [{"id": "a", "function": {"name": "look", "arguments": {"x": 1}}}]}),
        line(
            message={
                "tool_calls": [
                    {"function": {"index": 0, "name": "now", "arguments": {}}},
                    {"id": "b", "function": {"index": 1, "name": "then", "arguments": {"y": [None]}}},
                ]
            }
        ),
        end(),
    )

    def test_every_kind_of_line(self) -> None:
        reader, chunks = streamed(self.DATA)
        assert (reader.done, reader.error, reader.usage, reader.native) == (True, None, Usage(26, output=3), False)
        assert reader.events == 6
        assert reader.delivered_bytes == len('hmHello élook{"x":1}now{}then{"y":[null]}'.encode())
        made = deltas(chunks)
        generated_id = made[5]["tool_calls"][0]["id"]
        assert generated_id.startswith("call_")
        assert made == [
            {"role": "assistant", "reasoning_content": "h"},
            {"reasoning_content": "m"},
            {"content": "He"},
            {"content": "llo é"},
            {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": function("look", '{"x":1}')}]},
            {
                "tool_calls": [
                    {"index": 1, "id": generated_id, "type": "function", "function": function("now", "{}")},
                    {"index": 2, "id": "b", "type": "function", "function": function("then", '{"y":[null]}')},
                ]
            },
            {},
        ]
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * 6 + ["tool_calls"]
        assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 29)
        assert {(chunk["id"], chunk["model"], chunk["object"]) for chunk in chunks} == {
            (chunks[0]["id"], "llama3.2:3b", "chat.completion.chunk")
        }

    def test_the_usage_chunk_is_only_for_those_who_asked(self) -> None:
        reader, chunks = streamed(self.DATA, wants_usage=False)
        assert all(chunk["choices"] for chunk in chunks)
        assert reader.usage == Usage(26, output=3)

    def test_text_in_the_last_line_is_delivered(self) -> None:
        reader, chunks = streamed(ndjson(line("all", done=True, eval_count=1)))
        assert deltas(chunks) == [{"role": "assistant", "content": "all"}, {}]
        assert (reader.done, reader.usage) == (True, Usage(0, output=1))

    def test_an_empty_answer_still_has_a_beginning_and_an_end(self) -> None:
        _, chunks = streamed(ndjson(line(), end(eval_count=0)))
        assert deltas(chunks) == [{"role": "assistant", "content": ""}, {}]

    def test_text_that_nobody_counted_has_no_usage(self) -> None:
        reader, _ = streamed(ndjson(line("x"), line(done=True)))
        assert (reader.done, reader.usage) == (True, None)

    def test_log_probabilities_stay_with_their_text(self) -> None:
        token = {"token": "x", "logprob": -1.0, "bytes": None, "top_logprobs": []}
        _, chunks = streamed(ndjson(line("x", logprobs=[{"token": "x", "logprob": -1.0}]), line("y"), end()))
        told = [chunk["choices"][0]["logprobs"] for chunk in chunks[:-1]]
        assert told == [{"content": [token], "refusal": None}, None, None]

    def test_windows_line_ends_blank_lines_and_a_missing_last_one_are_read(self) -> None:
        data = b"\n\r\n" + self.DATA.replace(b"\n", b"\r\n").rstrip()
        assert streamed(data)[1] == streamed(self.DATA)[1]
        reader = ADAPTER.open_stream(native({"model": "m", "messages": HELLO}))
        assert reader.feed(self.DATA.rstrip()) + reader.finish() == self.DATA
        assert (reader.done, reader.error) == (True, None)

    @pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
    def test_the_cut_of_the_bytes_does_not_matter(self, size: int) -> None:
        whole, chunks = streamed(self.DATA)
        reader, pieces = streamed(self.DATA, pieces=size)
        assert [{**chunk, "created": 0} for chunk in pieces] == [{**chunk, "created": 0} for chunk in chunks]
        assert (reader.done, reader.error, reader.usage) == (True, None, whole.usage)
        assert (reader.events, reader.delivered_bytes) == (whole.events, whole.delivered_bytes)

    def test_a_stream_that_ends_anywhere_before_its_last_line_is_cut(self) -> None:
        last = self.DATA.rstrip().rfind(b"\n") + 1
        for at in range(0, len(self.DATA) - 2, 5):
            reader, _ = streamed(self.DATA[:at]) if at else (ADAPTER.open_stream(chat(stream=True)), None)
            reader.finish()
            assert not reader.done
            assert reader.error is not None
            assert reader.error.reason == "cut", at
            passing = ADAPTER.open_stream(native({"model": "m", "messages": HELLO}))
            out = passing.feed(self.DATA[:at]) + passing.finish()
            assert passing.error is not None
            assert passing.error.reason == "cut"
            assert self.DATA[:last].startswith(out)

    @pytest.mark.parametrize(
        "garbage",
        [b"<html>\n", b"[]\n", b"7\n", b'{"message":7}\n', b'{"message":{"content":{}}}\n', b"\xff\xfe\n", b"{}{}\n"],
    )
    def test_garbage_is_an_error_and_nothing_behind_it_is_delivered(self, garbage: bytes) -> None:
        for reader in (
            ADAPTER.open_stream(chat(stream=True)),
            ADAPTER.open_stream(native({"model": "m", "messages": HELLO})),
        ):
            assert reader.feed(ndjson(line("a")) + garbage + self.DATA)
            assert reader.feed(self.DATA) + reader.finish() == b""
            assert reader.error is not None
            assert (reader.error.reason, reader.events) == ("protocol", 1)

    def test_a_line_without_end_is_not_held(self) -> None:
        reader = ADAPTER.open_stream(chat(stream=True))
        for _ in range(ollama_replies.LINE_LIMIT_BYTES // (1 << 20) + 1):
            assert reader.feed(b"x" * (1 << 20)) == b""
        assert reader.error is not None
        assert reader.error.reason == "protocol"

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.binary(max_size=40), max_size=8), st.integers(0, 200))
    def test_no_bytes_raise(self, pieces: list[bytes], at: int) -> None:
        for opened in (chat(stream=True), native({"model": "m", "messages": HELLO})):
            reader = ADAPTER.open_stream(opened)
            reader.feed(self.DATA[:at])
            for piece in pieces:
                reader.feed(piece)
            reader.finish()
            assert reader.done or reader.error is not None


class TestNativeStream:
    def test_bytes_pass_terminal_line_included_and_the_books_are_kept(self) -> None:
        reader = ADAPTER.open_stream(native({"model": "m", "messages": HELLO}))
        data = TestStream.DATA
        out = b"".join(reader.feed(data[at : at + 9]) for at in range(0, len(data), 9)) + reader.finish()
        assert out == data
        assert (reader.native, reader.done, reader.usage, reader.events) == (True, True, Usage(26, output=3), 6)

    def test_generate_is_read_as_well(self) -> None:
        reader = ADAPTER.open_stream(native({"model": "m", "prompt": "p"}))
        data = ndjson(
            {"model": "m", "response": "", "thinking": "h", "done": False},
            {"model": "m", "response": "é", "done": False},
            {"model": "m", "response": "", "done": True, "context": [1, 2], "prompt_eval_count": 1, "eval_count": 2},
        )
        assert reader.feed(data) == data
        assert (reader.done, reader.usage, reader.events, reader.delivered_bytes) == (True, Usage(1, output=2), 2, 3)
        assert reader.feed(data) == b""

    def test_bytes_that_are_no_text_are_replaced(self) -> None:
        reader = ADAPTER.open_stream(native({"model": "m", "messages": HELLO}))
        assert reader.feed(b'{"message":{"content":"\xff"}}\n').decode() == '{"message":{"content":"\ufffd"}}\n'


def test_streams_are_ndjson() -> None:
    assert ADAPTER.stream_types == (b"application/x-ndjson",)
    assert not ADAPTER.local


@settings(max_examples=80, deadline=None)
@given(
    st.lists(TEXT, max_size=4),
    st.lists(TEXT, max_size=3),
    CALLS,
    st.sampled_from(["stop", "length"]),
    st.integers(0, 10**6),
    st.integers(1, 10**6),
    st.integers(1, 300),
)
def test_what_a_server_answers_arrives_whole_and_streamed(
    texts: list[str], thoughts: list[str], calls: Any, reason: str, given: int, made: int, size: int
) -> None:
    """The server's side is written here: the same answer as one object and as lines."""
    told = [{"id": f"id-{i}", "function": {"name": name, "arguments": value}} for i, (name, value) in enumerate(calls)]
    counts: dict[str, Any] = {"done_reason": reason, "prompt_eval_count": given, "eval_count": made}
    whole = line("".join(texts), message={"thinking": "".join(thoughts), "tool_calls": told}, done=True, **counts)
    lines = [line(message={"thinking": thought}) for thought in thoughts] + [line(text) for text in texts]
    lines += [line(message={"tool_calls": [one]}) for one in told] + [line(done=True, **counts)]

    answer = read(whole)
    choice = json.loads(answer.body)["choices"][0]
    message = choice["message"]
    assert (message["content"] or "") == "".join(texts)
    assert message.get("reasoning_content", "") == "".join(thoughts)
    assert choice["finish_reason"] == ("tool_calls" if calls and reason == "stop" else reason)
    found = message.get("tool_calls", [])
    assert [(one["id"], one["function"]["name"]) for one in found] == [
        (f"id-{index}", name) for index, (name, _) in enumerate(calls)
    ]
    assert [json.loads(one["function"]["arguments"]) for one in found] == [value for _, value in calls]
    assert answer.usage == Usage(given, output=made)

    reader, chunks = streamed(ndjson(*lines), pieces=size)
    pieces = deltas(chunks)
    assert "".join(piece.get("content", "") for piece in pieces) == "".join(texts)
    assert "".join(piece.get("reasoning_content", "") for piece in pieces) == "".join(thoughts)
    streamed_calls = [one for piece in pieces for one in piece.get("tool_calls", ())]
    assert [{key: one[key] for key in one if key != "index"} for one in streamed_calls] == found
    assert [one["index"] for one in streamed_calls] == list(range(len(calls)))
    assert chunks[-2]["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert (reader.usage, reader.delivered_bytes) == (answer.usage, answer.output_bytes)
