"""The OpenAI-compatible adapter: bodies sent upstream, replies read, streams passed on, failures told."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from providers import adapters
from providers.canonical import Call, Target, Usage
from providers.catalog import CATALOG

ADAPTER = adapters.get("openai_compatible")
HELLO = [{"role": "user", "content": "hello"}]


def call(body: bytes | dict[str, Any], *, endpoint: str = "chat") -> Call:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    doc = json.loads(raw)
    field = "max_completion_tokens" if doc.get("max_completion_tokens") else "max_tokens"
    options = doc.get("stream_options") or {}
    stream = bool(doc.get("stream"))
    return Call(
        endpoint,
        doc["model"],
        raw,
        frozenset(doc),
        stream=stream,
        wants_usage=stream and options.get("include_usage") is True,
        limit=doc.get(field),
        limit_field=field if doc.get(field) else "",
        encoding=doc.get("encoding_format") or "float",
    )


def sent(body: bytes | dict[str, Any], *, kind: str = "custom", model: str = "", limit: int | None = None) -> bytes:
    return ADAPTER.build(call(body), Target(CATALOG[kind], model), limit).body


def chunk(content: str = "hi", **fields: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    return b"data: %b\n\n" % json.dumps({"id": "x", "choices": [choice], **fields}).encode()


def reader(*, wants_usage: bool = False, kind: str = "custom") -> adapters.StreamReader:
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    return ADAPTER.open_stream(call({"model": "m", "stream": True, **options}), Target(CATALOG[kind]))


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
USAGE_EVENT = b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


class TestBuild:
    def test_an_unchanged_request_is_sent_as_the_same_object(self) -> None:
        body = b'{ "model": "m",\n"messages":[], "temperature":0.10, "x":"\\u00e9", "max_tokens": 5}\n'
        request = call(body)
        assert ADAPTER.build(request, Target(CATALOG["custom"]), 5).body is body
        assert ADAPTER.build(request, Target(CATALOG["custom"], "m"), None).body is body

    @pytest.mark.parametrize(
        "body",
        [
            b'{"model":"m","messages":[{"content":"\\"model\\":\\"m\\"","model":"m"}],"x":{"model":"m"}}',
            b'{"model": "m", "messages":[{"model": "m"}]}',
            b'{"top":true,"model":"m","messages":[{"model":"m"}]}',
            b'{"messages":[{"model":"m"}],"x":{"model":"m"},"model":"m"}',
            b'{"messages":[{"model":"m"}],"model": "m", "top":true, "user":"a"}',
            b'{"messages":[{"model":"m"}],"a":"]}","model":"m","b":"{["}',
            b'{"a":{"model":"m"},"model":"m","b":[{"model":"m"}]}',
            b'{"user":"{[","model" : "m","b":[{"model":"m"}]}',
            b' {"model":"m" , "b":1.10} ',
            b'{"model":"m"}',
            b'{"a":"\\",\\"model\\":\\"m\\"","model":"m"}',
        ],
    )
    @pytest.mark.parametrize("name", ["other/model:1", 'quo"te', "größe"])
    def test_only_the_top_level_model_is_replaced(self, body: bytes, name: str) -> None:
        result = sent(body, model=name)
        assert json.loads(result) == json.loads(body) | {"model": name}
        assert list(json.loads(result)) == list(json.loads(body))

    @pytest.mark.parametrize("old", ['quo"te', "back\\slash", "größe", "a b"])
    def test_any_model_name_is_found(self, old: str) -> None:
        for ascii_only in (True, False):
            body = json.dumps({"model": old, "messages": HELLO}, ensure_ascii=ascii_only).encode()
            assert json.loads(sent(body, model="new")) == {"model": "new", "messages": HELLO}

    def test_values_keep_their_bytes_when_the_body_is_rebuilt(self) -> None:
        messages = b'[ {"role":"user","content":"\\u00e9\\/ 1.10", "big":123456789012345678901234567890} ]'
        body = b'{"pool":"p","messages":%b,"model":"m","seed":1.10}' % messages
        assert sent(body, model="o") == b'{"messages":%b,"model":"o","seed":1.10}' % messages

    def test_gateway_only_fields_are_not_sent(self) -> None:
        assert json.loads(sent({"model": "m", "pool": "team"})) == {"model": "m"}
        assert json.loads(sent({"model": "m", "pool": None}, model="o")) == {"model": "o"}

    @pytest.mark.parametrize(
        ("kind", "field"), [("custom", "max_tokens"), ("ollama", "max_tokens"), ("openai", "max_completion_tokens")]
    )
    @pytest.mark.parametrize(
        "given",
        [
            {},
            {"max_tokens": 7},
            {"max_completion_tokens": 7},
            {"max_tokens": 7, "max_completion_tokens": 7},
            {"max_tokens": None},
            {"max_completion_tokens": None, "max_tokens": None},
        ],
    )
    @pytest.mark.parametrize("limit", [7, 5])
    def test_the_limit_is_sent_once_under_the_name_the_provider_reads(
        self, kind: str, field: str, given: dict[str, Any], limit: int
    ) -> None:
        result = json.loads(sent({"model": "m", **given, "messages": HELLO}, kind=kind, limit=limit))
        assert result == {"model": "m", "messages": HELLO, field: limit}

    def test_a_null_under_the_providers_name_does_not_hide_the_limit(self) -> None:
        body = {"model": "m", "max_tokens": None, "max_completion_tokens": 7}
        assert json.loads(sent(body, kind="ollama")) == {"model": "m", "max_tokens": 7}

    @pytest.mark.parametrize("given", ["max_tokens", "max_completion_tokens"])
    def test_a_limit_is_renamed_even_when_no_other_is_asked_for(self, given: str) -> None:
        assert json.loads(sent({"model": "m", given: 7}, kind="ollama")) == {"model": "m", "max_tokens": 7}

    def test_legacy_completions_have_one_name_for_the_limit(self) -> None:
        request = call({"model": "m", "prompt": "x"}, endpoint="completions")
        assert json.loads(ADAPTER.build(request, Target(CATALOG["openai"]), 9).body)["max_tokens"] == 9

    def test_embeddings_get_no_limit(self) -> None:
        request = call({"model": "m", "input": "x", "pool": "p"}, endpoint="embeddings")
        built = ADAPTER.build(request, Target(CATALOG["openai"], "o"), 9).body
        assert json.loads(built) == {"model": "o", "input": "x"}

    @pytest.mark.parametrize(
        "options",
        [None, {}, {"include_usage": False}, {"include_usage": True}, {"include_obfuscation": False}, "absent"],
    )
    def test_usage_is_always_asked_of_streams(self, options: Any) -> None:
        given = {} if options == "absent" else {"stream_options": options}
        result = json.loads(sent({"model": "m", "stream": True, **given}, model="o"))
        expected = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        assert result == {"model": "o", "stream": True, "stream_options": expected}

    def test_providers_that_do_not_know_stream_options_are_not_sent_any(self) -> None:
        body = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
        assert json.loads(sent(body, kind="mistral")) == {"model": "m", "stream": True}
        assert json.loads(sent({"model": "m", "stream": True}, kind="mistral")) == {"model": "m", "stream": True}

    def test_a_request_that_does_not_stream_is_not_asked_for_stream_usage(self) -> None:
        assert json.loads(sent({"model": "m", "stream": False}, limit=3)) == {
            "model": "m",
            "stream": False,
            "max_tokens": 3,
        }

    def test_white_space_behind_the_body_does_no_harm(self) -> None:
        assert json.loads(sent(b'{"model":"m"} \r\n', limit=3)) == {"model": "m", "max_tokens": 3}


def unary(body: bytes | Any, *, kind: str = "custom", endpoint: str = "chat", **fields: Any) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = call({"model": "m", **fields}, endpoint=endpoint)
    return ADAPTER.read_unary(request, 200, [(b"content-type", b"application/json")], raw, Target(CATALOG[kind]))


class TestUnary:
    def test_an_answer_passes_as_the_same_object_with_its_usage(self) -> None:
        raw = json.dumps({"choices": [{"message": {"content": "hé"}}], "usage": USAGE, "x": 1.10}, indent=1).encode()
        answer = unary(raw)
        assert answer.body is raw
        assert (answer.usage, answer.problem, answer.output_bytes) == (Usage(3, output=2), None, 3)

    def test_generated_text_is_counted_wherever_it_stands(self) -> None:
        tool_calls = [{"id": "0", "function": {"name": "abc", "arguments": "{}"}}, {"id": "1", "function": None}]
        message = {"content": "12345", "reasoning_content": "123", "refusal": "1", "tool_calls": tool_calls}
        other = {"content": None, "reasoning": "12", "function_call": {"name": "f", "arguments": "1"}}
        answer = unary({"choices": [{"message": message}, {"message": other}, {"text": "1234"}]})
        assert (answer.usage, answer.output_bytes) == (None, 5 + 3 + 1 + 5 + 2 + 2 + 4)

    def test_content_in_a_list_is_counted(self) -> None:
        content = [{"type": "thinking", "thinking": [{"type": "text", "text": "abc"}]}, {"type": "text", "text": "de"}]
        answer = unary({"choices": [{"message": {"role": "assistant", "content": content}}], "usage": USAGE})
        assert (answer.usage, answer.output_bytes, answer.problem) == (Usage(3, output=2), 5, None)

    @pytest.mark.parametrize(
        "usage", [None, {}, "many", {"prompt_tokens": -1, "completion_tokens": 1}, {"prompt_tokens": "1"}, [1]]
    )
    def test_absurd_usage_is_none_and_the_answer_still_passes(self, usage: Any) -> None:
        answer = unary({"choices": [{"message": {"role": "assistant", "content": "hi"}}], "usage": usage})
        assert (answer.usage, answer.problem, answer.output_bytes) == (None, None, 2)

    def test_usage_in_a_place_of_its_own_is_found(self) -> None:
        assert unary({"choices": [], "x_groq": {"usage": USAGE}}).usage == Usage(3, output=2)

    def test_reasoning_is_added_for_the_kind_that_leaves_it_out(self) -> None:
        usage = {**USAGE, "total_tokens": 15, "completion_tokens_details": {"reasoning_tokens": 10}}
        assert unary({"choices": [], "usage": usage}, kind="grok").usage == Usage(3, output=12, reasoning=10)
        assert unary({"choices": [], "usage": usage}).usage == Usage(3, output=2, reasoning=2)

    def test_bytes_that_are_not_utf8_are_replaced(self) -> None:
        answer = unary(b'{"choices":[{"message":{"content":"a\xffb"}}],"note":"\xc3\xa9"}')
        assert answer.problem is None
        assert json.loads(answer.body)["choices"][0]["message"]["content"] == "a\ufffdb"
        assert "é".encode() in answer.body
        skipped = unary(b'{"choices":[],"note":"\xff"}')
        assert json.loads(skipped.body)["note"] == "\ufffd"

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"null",
            b"[]",
            b"hello",
            b"<html><h1>it works</h1></html>",
            b"{}",
            b'{"choices":null}',
            b'{"choices":{}}',
            b'{"choices":[',
            b'{"object":"chat.completion"}',
            b"[" * 100_000,
            b"data: {}\n\n",
            b"\xff\xfe",
        ],
    )
    @pytest.mark.parametrize("endpoint", ["chat", "completions", "embeddings"])
    def test_nonsense_under_a_good_status_is_a_problem(self, raw: bytes, endpoint: str) -> None:
        problem = unary(raw, endpoint=endpoint).problem
        assert (problem.reason, problem.status, problem.code) == ("protocol", 502, "upstream_invalid_reply")

    @pytest.mark.parametrize("endpoint", ["chat", "embeddings"])
    def test_an_error_under_a_good_status_is_that_error(self, endpoint: str) -> None:
        error = {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}
        problem = unary({"error": error}, endpoint=endpoint).problem
        assert (problem.reason, problem.status, problem.message) == ("client", 400, "too long")
        assert unary({"error": {"code": 429, "message": "slow"}}, endpoint=endpoint).problem.reason == "rate_limit"
        assert unary({"error": "boom"}, endpoint=endpoint).problem.reason == "server"


VECTOR = [0.5, -1.25, 3.0]
PACKED = base64.b64encode(struct.pack("<3f", *VECTOR)).decode()


def vectors(*items: Any) -> bytes:
    data = [{"object": "embedding", "index": index, "embedding": item} for index, item in enumerate(items)]
    return json.dumps(
        {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 4, "total_tokens": 4}}
    ).encode()


class TestEmbeddings:
    @pytest.mark.parametrize(("encoding", "item"), [("float", VECTOR), ("base64", PACKED), (None, VECTOR)])
    def test_a_reply_in_the_encoding_asked_for_passes_unchanged(self, encoding: str | None, item: Any) -> None:
        raw = vectors(item, item)
        answer = unary(raw, endpoint="embeddings", encoding_format=encoding)
        assert answer.body is raw
        assert answer.usage == Usage(4)

    @pytest.mark.parametrize(
        ("encoding", "given", "expected"),
        [("base64", VECTOR, PACKED), ("float", PACKED, VECTOR), (None, PACKED, VECTOR)],
    )
    def test_a_reply_in_the_other_encoding_is_converted(self, encoding: str | None, given: Any, expected: Any) -> None:
        answer = unary(vectors(given, given), endpoint="embeddings", encoding_format=encoding)
        assert json.loads(answer.body) == json.loads(vectors(expected, expected))
        assert answer.usage == Usage(4)

    @pytest.mark.parametrize(
        ("encoding", "item"),
        [("base64", [1e300]), ("base64", ["x"]), ("base64", [None]), ("float", "!!"), ("float", "AAA=")],
    )
    def test_vectors_that_cannot_be_converted_are_a_problem(self, encoding: str, item: Any) -> None:
        assert unary(vectors(item), endpoint="embeddings", encoding_format=encoding).problem.reason == "protocol"

    def test_absurd_usage_is_none(self) -> None:
        raw = vectors(VECTOR).replace(b'"prompt_tokens": 4', b'"prompt_tokens": "x"')
        answer = unary(raw, endpoint="embeddings")
        assert (answer.usage, answer.problem, answer.body) == (None, None, raw)


class TestStream:
    def test_ordinary_chunks_pass_as_the_same_objects(self) -> None:
        stream = reader()
        role = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"usage":null,"y":1.10}\n\n'
        pieces = [role, chunk("one"), chunk("two", usage=None) + chunk("é")]
        assert all(stream.feed(piece) is piece for piece in pieces)
        assert (stream.events, stream.delivered_bytes, stream.usage, stream.done) == (3, 8, None, False)
        assert stream.feed(DONE) == b""
        assert (stream.done, stream.error) == (True, None)
        assert stream.finish() == b""
        assert stream.error is None

    def test_a_stream_cut_anywhere_delivers_the_same_bytes(self) -> None:
        events = (
            chunk("a") + b": ping\n\n" + chunk("😀\u2028é").replace(b"\n\n", b"\r\n\r\n") + chunk("c") + USAGE_EVENT
        )
        expected = events.replace(b": ping\n\n", b"").replace(USAGE_EVENT, b"")
        whole = events + DONE + chunk("late")
        for cut in range(len(whole)):
            stream = reader()
            assert stream.feed(whole[:cut]) + stream.feed(whole[cut:]) == expected
            assert (stream.done, stream.error, stream.usage) == (True, None, Usage(3, output=2))
            assert (stream.events, stream.delivered_bytes) == (3, 1 + len("😀\u2028é".encode()) + 1)

    def test_the_usage_chunk_is_kept_only_for_those_who_asked(self) -> None:
        for wanted in (False, True):
            stream = reader(wants_usage=wanted)
            assert stream.feed(USAGE_EVENT) == (USAGE_EVENT if wanted else b"")
            assert stream.feed(chunk() + USAGE_EVENT + chunk("x")) == (
                chunk() + (USAGE_EVENT if wanted else b"") + chunk("x")
            )
            assert stream.usage == Usage(3, output=2)
            assert stream.feed(DONE) == b""

    @pytest.mark.parametrize(
        "event", [chunk("", usage=USAGE), chunk("x", usage=USAGE), chunk("", x_groq={"id": "r", "usage": USAGE})]
    )
    def test_usage_is_read_wherever_it_stands(self, event: bytes) -> None:
        stream = reader()
        assert stream.feed(event) is event
        assert stream.usage == Usage(3, output=2)

    def test_the_last_valid_usage_counts_once(self) -> None:
        stream = reader()
        for output in (1, 5, 9):
            stream.feed(chunk(usage={"prompt_tokens": 3, "completion_tokens": output}))
        assert stream.usage == Usage(3, output=9)
        for absurd in ({"prompt_tokens": -3, "completion_tokens": 1}, None, "x", {"prompt_tokens": "9"}, {}):
            assert stream.feed(chunk(usage=absurd))
        assert stream.usage == Usage(3, output=9)
        assert stream.error is None

    def test_who_asked_for_usage_gets_a_chunk_even_if_it_came_in_another_place(self) -> None:
        stream = reader(wants_usage=True)
        stream.feed(chunk("x", created=5, model="real", object="chat.completion.chunk", x_groq={"usage": USAGE}))
        late = stream.feed(DONE)
        assert late.startswith(b"data: {")
        told = json.loads(late[6:])
        assert (told["id"], told["model"], told["created"], told["choices"]) == ("x", "real", 5, [])
        assert {name: told["usage"][name] for name in USAGE} == USAGE
        shown = reader(wants_usage=True)
        shown.feed(chunk("x", usage=USAGE))
        assert shown.feed(DONE) == b""

    def test_each_choice_and_tool_call_piece_counts(self) -> None:
        def delta(index: int, **fields: Any) -> dict[str, Any]:
            return {"index": index, "delta": fields}

        def call_piece(index: int, **function: str) -> list[dict[str, Any]]:
            return [{"index": index, "id": "0", "type": "function", "function": function}]

        choices = [
            [delta(0, role="assistant", content="")],
            [delta(0, content="a"), delta(1, content="b"), delta(10**9, content="c")],
            [delta(0, tool_calls=call_piece(0, name="f", arguments=""))],
            [delta(0, tool_calls=call_piece(1, arguments='{"x"')), delta(1, reasoning_content="hmm")],
            [delta(0, reasoning="hm")],
            [{"index": 0, "text": "old"}],
            [delta(0, content=[{"type": "text", "text": "part"}])],
            [{"index": 0, "delta": {}, "finish_reason": "stop"}, {"index": 1, "delta": None}],
        ]
        stream = reader()
        for item in choices:
            event = b"data: %b\n\n" % json.dumps({"choices": item}).encode()
            assert stream.feed(event) is event
        assert stream.events == 3 + 1 + 2 + 1 + 1 + 1
        assert stream.delivered_bytes == 3 + 1 + 4 + 3 + 2 + 3 + 4

    @pytest.mark.parametrize(
        "event",
        [
            b": OPENROUTER PROCESSING\n\n",
            b"\n\n",
            b"event: ping\n\n",
            b"data:\n\n",
            b"data: \n\n",
            b"id: 5\n\n",
        ],
    )
    def test_events_without_data_are_dropped(self, event: bytes) -> None:
        stream = reader()
        assert stream.feed(event) == b""
        assert stream.feed(event + chunk() + event) == chunk()
        assert stream.error is None

    def test_comments_inside_events_are_dropped_and_other_fields_kept(self) -> None:
        stream = reader()
        assert stream.feed(b": hm\nid: 1\n" + chunk()) == b"id: 1\n" + chunk()
        assert stream.feed(b'data: {"choices":\ndata: []}\n\n') == b'data: {"choices":\ndata: []}\n\n'
        assert stream.feed(b"\xef\xbb\xbf" + chunk()) == chunk()

    @pytest.mark.parametrize(
        "end", [DONE, DONE * 2, DONE + chunk("late"), b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n", b"data: [DONE] \n\n"]
    )
    def test_the_terminal_is_not_passed_on_nor_anything_behind_it(self, end: bytes) -> None:
        stream = reader()
        assert stream.feed(chunk() + end) == chunk()
        assert stream.done
        assert stream.feed(chunk("late")) == b""
        assert (stream.events, stream.error) == (1, None)

    @pytest.mark.parametrize("end", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r", b"data: [DONE]\r\n"])
    def test_a_terminal_without_its_empty_line_counts(self, end: bytes) -> None:
        stream = reader()
        assert stream.feed(chunk() + end) == chunk()
        assert not stream.done
        assert stream.finish() == b""
        assert (stream.done, stream.error) == (True, None)

    @pytest.mark.parametrize(
        "rest", [b"", b"da", b"data: ", b'data: {"choices":[{"delta":{"content":"h', b"data: [DO", b": x"]
    )
    def test_an_early_end_is_a_cut_never_a_clean_end(self, rest: bytes) -> None:
        stream = reader()
        assert stream.feed(chunk() + rest) == chunk()
        assert stream.finish() == b""
        assert not stream.done
        assert stream.error is not None
        assert (stream.error.reason, stream.error.code) == ("cut", "upstream_cut")

    def test_a_last_chunk_without_its_empty_line_is_delivered_before_the_cut_is_told(self) -> None:
        stream = reader()
        assert stream.feed(chunk()[:-1]) == b""
        assert stream.finish() == chunk()
        assert (stream.events, stream.done) == (1, False)
        assert stream.error is not None

    @pytest.mark.parametrize(
        ("event", "reason", "status"),
        [
            (b'data: {"error":{"message":"boom","type":"server_error","code":null}}\n\n', "server", 502),
            (b'data: {"error":"boom"}\n\n', "server", 502),
            (b'data: {"error":{"code":429,"message":"x"},"choices":[],"usage":{}}\n\n', "rate_limit", 429),
            (b'data: {"id":"1","error":{"code":400,"message":"bad"},"choices":[{"delta":{}}]}\n\n', "client", 400),
            (b'data: {"object":"error","message":"bad","type":"BadRequestError","code":400}\n\n', "client", 400),
            (b'event: error\ndata: {"error":{"message":"bad","code":"tool_use_failed"}}\n\n', "client", 400),
            (b'event: error\r\ndata: {"message":"x"}\r\n\r\n', "server", 502),
            (b"event: error\ndata: everything broke\n\n", "server", 502),
            (b'data: {"error":{"type":"overloaded_error","message":"x"}}\n\n', "overloaded", 503),
            (b"data: not json\n\n", "protocol", 502),
            (b'data: {"choices":[{"delta":{"con\n\n', "protocol", 502),
            (b"data: [1]\n\n", "server", 502),
            (b"data: 17\n\n", "server", 502),
            (b"data: " + b"[" * 100_000 + b"\n\n", "protocol", 502),
        ],
    )
    def test_failures_inside_a_good_stream_are_failures(self, event: bytes, reason: str, status: int) -> None:
        stream = reader(wants_usage=True)
        assert stream.feed(chunk() + event + chunk("late") + DONE) == chunk()
        assert stream.error is not None
        assert (stream.error.reason, stream.error.status) == (reason, status)
        assert not stream.done
        assert stream.feed(DONE) == b""
        assert stream.finish() == b""
        assert (stream.events, stream.done) == (1, False)

    def test_usage_told_with_an_error_counts(self) -> None:
        stream = reader()
        stream.feed(b'data: {"error":{"code":400},"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n')
        assert stream.usage == Usage(3, output=2)

    def test_an_event_over_a_mebibyte_is_a_problem(self) -> None:
        stream = reader()
        assert stream.feed(chunk("x" * 1_000_000))
        delivered = [stream.feed(b"data: " + b"x" * 65_530) for _ in range(20)]
        assert b"".join(delivered) == b""
        assert stream.error is not None
        assert stream.error.reason == "protocol"

    def test_bytes_that_are_not_utf8_are_replaced_and_nothing_else(self) -> None:
        stream = reader()
        event = b'data: {"choices":[{"delta":{"content":"\xf0\x9f\x98\x80 \xff"}}],"x":"\xe2\x80\xa8"}\n\n'
        assert stream.feed(event) == event.replace(b"\xff", "\ufffd".encode())
        skipped = b'data: {"choices":[],"x":"\xc3("}\n\n'
        assert stream.feed(skipped) == skipped.replace(b"\xc3(", "\ufffd(".encode())
        assert stream.error is None

    def test_an_html_page_is_not_taken_for_a_stream(self) -> None:
        stream = reader()
        assert stream.feed(b"<html>\n\n<body>data: no</body>\n\n</html>") == b""
        assert stream.finish() == b""
        assert stream.error is not None


def test_each_kind_names_an_adapter_that_exists() -> None:
    for kind in CATALOG.values():
        adapter = adapters.get(kind.adapter)
        assert adapter.local is (kind.name == "demo")
    with pytest.raises(KeyError):
        adapters.get("unknown")


def test_every_path_in_the_catalogue_is_one_and_names_nothing_but_the_model() -> None:
    for kind in CATALOG.values():
        plain = [path.replace("{model}", "m") for path in kind.paths.values()]
        assert all(path.startswith("/") and "{" not in path and "//" not in path for path in plain)
