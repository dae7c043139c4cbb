"""Streams of Anthropic's Messages API: into canonical chunks, and passed on to callers of that API."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers import sse
from providers.adapters import StreamReader
from providers.adapters.anthropic_stream import OPEN_BLOCKS_MAX, MessageReader
from providers.canonical import Usage
from tests.fuzz.test_streams import cut as cut_at
from tests.providers.anthropic_case import (
    ADAPTER,
    DETAILS,
    FORMAT,
    JSON,
    NAMES,
    OBJECTS,
    call,
    native,
    target,
    tool_call,
)


def event(kind: str, **fields: Any) -> bytes:
    # Real frames have blanks inside the JSON.
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), json.dumps({"type": kind, **fields}).encode() + b"   ")


def start(**usage: Any) -> bytes:
    usage = usage or {"input_tokens": 10, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": []}
    return event("message_start", message={**message, "stop_reason": None, "usage": usage})


def opened(index: int, kind: str, **fields: Any) -> bytes:
    return event("content_block_start", index=index, content_block={"type": kind, **fields})


def piece(index: int, kind: str, **fields: Any) -> bytes:
    return event("content_block_delta", index=index, delta={"type": kind, **fields})


def words(index: int, text: str) -> bytes:
    return piece(index, "text_delta", text=text)


def closed(index: int) -> bytes:
    return event("content_block_stop", index=index)


def ended(reason: str | None = "end_turn", *, usage: Any = None, **delta: Any) -> bytes:
    usage = {"output_tokens": 20} if usage is None else usage
    told = {"stop_reason": reason, "stop_sequence": None, **delta}
    return event("message_delta", delta=told, usage=usage) + event("message_stop")


PING = event("ping")
ERROR = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
HELLO = start() + opened(0, "text", text="") + PING + words(0, "Hel") + words(0, "lo é") + closed(0) + ended()
TOOLS = (
    start()
    + opened(0, "thinking", thinking="", signature="")
    + piece(0, "thinking_delta", thinking="h")
    + piece(0, "thinking_delta", thinking="m")
    + piece(0, "signature_delta", signature="c2ln")
    + closed(0)
    + opened(1, "redacted_thinking", data="ZA==")
    + closed(1)
    + opened(2, "text", text="")
    + words(2, "so")
    + closed(2)
    + opened(3, "tool_use", id="toolu_1", name="f", input={})
    + piece(3, "input_json_delta", partial_json="")
    + piece(3, "input_json_delta", partial_json='{"a"')
    + piece(3, "input_json_delta", partial_json=": 1}")
    + closed(3)
    + opened(4, "tool_use", id="toolu_2", name="g", input={})
    + closed(4)
    + ended("tool_use")
)


def reader(*, usage: bool = True) -> StreamReader:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    return ADAPTER.open_stream(call(stream=True, **options), target())


def passing() -> StreamReader:
    return ADAPTER.open_stream(native(b'{"model":"m"}', stream=True), target())


def fed(one: StreamReader, pieces: Iterable[bytes]) -> bytes:
    out = b"".join([one.feed(bit) for bit in pieces])
    return out + one.finish()


def chunks(out: bytes) -> list[dict[str, Any]]:
    assert out == b"" or out.endswith(b"\n\n")
    return [json.loads(part.removeprefix(b"data: ")) for part in out.split(b"\n\n")[:-1]]


def read(stream: bytes, *, usage: bool = True) -> tuple[StreamReader, list[dict[str, Any]]]:
    one = reader(usage=usage)
    return one, chunks(fed(one, [stream]))


def deltas(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [choice["delta"] for chunk in told for choice in chunk["choices"]]


def gathered(told: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client makes of the chunks: the message, its finish reason and its usage."""
    message: dict[str, Any] = {"content": "", "reasoning": "", "details": [], "annotations": [], "calls": {}}
    for delta in deltas(told):
        message["content"] += delta.get("content") or ""
        message["reasoning"] += delta.get("reasoning_content", "")
        message["details"] += delta.get("reasoning_details", [])
        message["annotations"] += delta.get("annotations", [])
        for piece in delta.get("tool_calls", []):
            held = message["calls"].setdefault(piece["index"], {"id": "", "name": "", "arguments": ""})
            held["id"] += piece.get("id", "")
            held["name"] += piece["function"].get("name", "")
            held["arguments"] += piece["function"]["arguments"]
    reasons = [choice["finish_reason"] for chunk in told for choice in chunk["choices"] if choice["finish_reason"]]
    usages = [chunk["usage"] for chunk in told if "usage" in chunk]
    return {**message, "finish": reasons, "usage": usages}


def state(one: StreamReader) -> tuple[Any, ...]:
    return one.done, one.error, one.usage, one.events, one.delivered_bytes


class TestTranslated:
    def test_a_plain_stream_chunk_by_chunk(self) -> None:
        one, told = read(HELLO)
        assert all((chunk["id"], chunk["model"]) == ("msg_1", "claude-x") for chunk in told)
        assert all(chunk["object"] == "chat.completion.chunk" for chunk in told)
        assert deltas(told) == [
            {"role": "assistant", "content": ""},
            {"content": "Hel"},
            {"content": "lo é"},
            {},
        ]
        assert [c["choices"][0]["finish_reason"] for c in told[:-1]] == [None, None, None, "stop"]
        assert told[-1]["choices"] == []
        assert told[-1]["usage"]["prompt_tokens"] == 10
        assert told[-1]["usage"]["completion_tokens"] == 20
        assert state(one) == (True, None, Usage(10, output=20), 2, 8)
        assert not one.native

    def test_the_usage_chunk_is_only_for_those_who_ask(self) -> None:
        one, told = read(HELLO, usage=False)
        assert not any("usage" in chunk for chunk in told)
        assert one.usage == Usage(10, output=20)

    def test_thinking_text_and_tools(self) -> None:
        one, told = read(TOOLS)
        assert deltas(told) == [
            {"role": "assistant", "content": ""},
            {"reasoning_content": "h"},
            {"reasoning_content": "m"},
            {"reasoning_details": [{"type": "reasoning.text", "text": "hm", "signature": "c2ln", "format": FORMAT}]},
            {"reasoning_details": [{"type": "reasoning.encrypted", "data": "ZA==", "format": FORMAT}]},
            {"content": "so"},
            {"tool_calls": [{"index": 0, **tool_call("toolu_1", "f", "")}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
            {"tool_calls": [{"index": 1, **tool_call("toolu_2", "g", "")}]},
            {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
            {},
        ]
        assert gathered(told)["finish"] == ["tool_calls"]
        assert one.events == 8
        assert one.delivered_bytes == len('hmsof{"a": 1}g{}')

    def test_blocks_that_are_open_at_once_are_told_apart(self) -> None:
        _, told = read(
            start()
            + opened(0, "text", text="")
            + opened(1, "tool_use", id="a", name="f", input={})
            + opened(2, "tool_use", id="b", name="g", input={})
            + piece(2, "input_json_delta", partial_json='{"n":')
            + piece(1, "input_json_delta", partial_json="{}")
            + words(0, "hi")
            + piece(2, "input_json_delta", partial_json="2}")
            + closed(0)
            + closed(1)
            + closed(2)
            + ended("tool_use")
        )
        found = gathered(told)
        assert found["content"] == "hi"
        assert found["calls"] == {
            0: {"id": "a", "name": "f", "arguments": "{}"},
            1: {"id": "b", "name": "g", "arguments": '{"n":2}'},
        }

    def test_blocks_nobody_closed_end_with_the_message(self) -> None:
        _, told = read(
            start()
            + opened(0, "thinking", thinking="x", signature="s")
            + opened(1, "tool_use", id="a", name="f", input={"n": 1})
            + ended("tool_use")
        )
        found = gathered(told)
        assert found["details"] == [{"type": "reasoning.text", "text": "x", "signature": "s", "format": FORMAT}]
        assert found["calls"][0]["arguments"] == '{"n":1}'
        assert deltas(told)[-1] == {}

    def test_thinking_that_is_not_shown_keeps_its_signature(self) -> None:
        _, told = read(
            start()
            + opened(0, "thinking", thinking="")
            + piece(0, "signature_delta", signature="s")
            + closed(0)
            + ended()
        )
        assert gathered(told)["details"] == [{"type": "reasoning.text", "text": "", "signature": "s", "format": FORMAT}]

    def test_thinking_nobody_signed_is_told_and_not_kept(self) -> None:
        _, told = read(start() + opened(0, "thinking", thinking="hm", signature="") + closed(0) + ended())
        found = gathered(told)
        assert (found["reasoning"], found["details"]) == ("hm", [])

    def test_the_providers_own_tools_are_no_calls_and_citations_become_annotations(self) -> None:
        _, told = read(
            start()
            + opened(0, "server_tool_use", id="srv", name="web_search", input={})
            + piece(0, "input_json_delta", partial_json='{"query": "q"}')
            + closed(0)
            + opened(1, "web_search_tool_result", tool_use_id="srv", content=[{"type": "web_search_result"}])
            + closed(1)
            + opened(2, "text", text="")
            + words(2, "So ")
            + closed(2)
            + opened(3, "text", text="", citations=[])
            + piece(3, "citations_delta", citation={"url": "https://a.example", "title": "A", "cited_text": "x"})
            + piece(3, "citations_delta", citation={"type": "char_location", "document_index": 0})
            + words(3, "it is")
            + closed(3)
            + opened(4, "tool_use", id="a", name="f", input={})
            + closed(4)
            + ended("tool_use")
        )
        found = gathered(told)
        assert found["content"] == "So it is"
        assert found["annotations"] == [
            {
                "type": "url_citation",
                "url_citation": {"url": "https://a.example", "title": "A", "start_index": 3, "end_index": 8},
            }
        ]
        assert list(found["calls"]) == [0]

    def test_events_and_deltas_from_the_future_are_passed_over(self) -> None:
        stream = (
            event("new_event", anything=1)
            + start()
            + opened(0, "new_block", secret=1)
            + piece(0, "new_delta", x=1)
            + closed(0)
            + closed(7)
            + opened(1, "text", text="a")
            + ended()
        )
        one, told = read(stream)
        assert (one.done, one.error, gathered(told)["content"]) == (True, None, "a")

    def test_a_type_may_be_told_in_the_events_name_only(self) -> None:
        stream = HELLO.replace(b'"type": "message_stop"', b'"x": 1')
        one, _ = read(stream)
        assert one.done

    @pytest.mark.parametrize(
        ("reason", "finish"),
        [
            ("end_turn", "stop"),
            ("stop_sequence", "stop"),
            ("pause_turn", "stop"),
            ("max_tokens", "length"),
            ("model_context_window_exceeded", "length"),
            ("refusal", "content_filter"),
            ("unheard_of", "stop"),
            (None, "stop"),
        ],
    )
    def test_stop_reasons(self, reason: str | None, finish: str) -> None:
        _, told = read(start() + ended(reason))
        assert gathered(told)["finish"] == [finish]

    def test_arguments_that_were_cut_finish_with_length(self) -> None:
        _, told = read(
            start()
            + opened(0, "tool_use", id="a", name="f", input={})
            + piece(0, "input_json_delta", partial_json="{")
            + closed(0)
            + ended("max_tokens")
        )
        assert gathered(told)["finish"] == ["length"]

    def test_the_explanation_of_a_refusal_is_told(self) -> None:
        _, told = read(start() + ended("refusal", stop_details={"type": "refusal", "explanation": "Not this."}))
        assert {"refusal": "Not this."} in deltas(told)

    @pytest.mark.parametrize(
        ("kind", "reason", "status"),
        [
            ("overloaded_error", "overloaded", 529),
            ("rate_limit_error", "rate_limit", 429),
            ("api_error", "server", 500),
            ("timeout_error", "server", 504),
            ("authentication_error", "credential", 401),
            ("invalid_request_error", "client", 400),
            ("new_error", "server", 502),
        ],
    )
    def test_an_error_event_ends_the_stream(self, kind: str, reason: str, status: int) -> None:
        error = event("error", error={"type": kind, "message": "Overloaded"})
        for one in (reader(), passing()):
            out = fed(one, [start() + words(0, "a") + error + words(0, "never") + ended()])
            assert one.error is not None
            assert (one.error.reason, one.error.status, one.done) == (reason, status, False)
            assert b"never" not in out
            assert b"Overloaded" not in out

    @pytest.mark.parametrize(
        "data", [b'{"error":{"message":"x"}}', b'{"type":"error"}', b'{"type":"error","error":"x"}']
    )
    def test_errors_in_other_shapes(self, data: bytes) -> None:
        for one in (reader(), passing()):
            fed(one, [start() + b"data: %b\n\n" % data])
            assert one.error is not None
            assert one.error.reason == "server"


class TestUsage:
    @pytest.mark.parametrize(
        ("begun", "final", "usage"),
        [
            ({"input_tokens": 10, "output_tokens": 1}, {"output_tokens": 20}, Usage(10, output=20)),
            (
                {
                    "input_tokens": 10,
                    "cache_read_input_tokens": 5,
                    "cache_creation_input_tokens": 3,
                    "output_tokens": 1,
                },
                {
                    "input_tokens": 10,
                    "cache_read_input_tokens": 5,
                    "cache_creation_input_tokens": 3,
                    "output_tokens": 20,
                    "output_tokens_details": {"thinking_tokens": 15},
                },
                Usage(18, 5, 3, 20, 15),
            ),
            ({"input_tokens": 0, "output_tokens": 0}, {"input_tokens": 7, "output_tokens": 2}, Usage(7, output=2)),
            ({"input_tokens": 7, "output_tokens": 1}, {"input_tokens": 0, "output_tokens": 2}, Usage(7, output=2)),
            ({"input_tokens": 7}, {"output_tokens": 2}, Usage(7, output=2)),
            ({"input_tokens": "7", "output_tokens": 1}, {"output_tokens": 2}, None),
            ({"input_tokens": 7, "output_tokens": 3}, {"output_tokens": -2}, Usage(7, output=3, reported=False)),
            ({"input_tokens": 7, "output_tokens": 3}, {"output_tokens": 10**12}, Usage(7, output=3, reported=False)),
            ({"input_tokens": 7, "output_tokens": 3}, "many", Usage(7, output=3, reported=False)),
            ({"x": 1}, {"output_tokens": 2}, None),
        ],
    )
    def test_it_is_cumulative_and_the_last_valid_one_counts(self, begun: Any, final: Any, usage: Usage | None) -> None:
        stream = start(**begun) + opened(0, "text", text="a") + ended(usage=final)
        for one in (reader(), passing()):
            fed(one, [stream])
            assert (one.usage, one.done) == (usage, True)

    def test_a_stream_that_is_cut_is_known_by_its_input_and_what_was_delivered(self) -> None:
        for one in (reader(), passing()):
            one.feed(start(input_tokens=10, cache_read_input_tokens=90, output_tokens=1))
            assert one.usage == Usage(100, 90, output=1, reported=False)
            one.feed(opened(0, "text", text="") + words(0, "x" * 400))
            assert one.usage == Usage(100, 90, output=100, reported=False)
            one.finish()
            assert one.error is not None
            assert one.error.reason == "cut"


class TestPassedOn:
    def test_a_stream_passes_unchanged_its_terminal_event_included(self) -> None:
        for stream in (HELLO, TOOLS):
            one, other = passing(), reader()
            assert one.feed(stream) is stream
            fed(other, [stream])
            assert one.finish() == b""
            assert one.native
            assert one.done
            assert one.usage == other.usage

    def test_what_was_generated_is_counted(self) -> None:
        one = passing()
        fed(one, [TOOLS])
        assert (one.events, one.delivered_bytes) == (7, len('hmsof{"a": 1}g'))

    def test_nothing_behind_the_end_is_passed_on(self) -> None:
        one = passing()
        assert one.feed(HELLO + PING) == HELLO
        assert one.feed(PING) == b""

    def test_an_error_event_is_not_passed_on(self) -> None:
        one = passing()
        assert one.feed(start() + ERROR + PING) == start()
        assert one.error is not None

    def test_events_without_a_name_get_theirs(self) -> None:
        stream = b"".join(part.split(b"\n", 1)[1] + b"\n\n" for part in HELLO.split(b"\n\n")[:-1])
        assert b"event:" not in stream
        one = passing()
        assert fed(one, [stream]) == HELLO
        assert one.done

    def test_comments_are_left_out_and_other_line_ends_kept(self) -> None:
        stream = HELLO.replace(b"\n", b"\r\n")
        one = passing()
        assert fed(one, [b": hello\n\n" + stream]) == stream
        assert one.done

    def test_events_with_fields_of_other_types_pass(self) -> None:
        odd = event("content_block_delta", delta=[1]) + event("message_start", message="x") + event("other", usage=3)
        one = passing()
        assert one.feed(odd) == odd
        assert state(one) == (False, None, None, 0, 0)


def every_cut(stream: bytes) -> Iterator[list[bytes]]:
    for place in range(1, len(stream)):
        yield [stream[:place], stream[place:]]
    yield [stream[place : place + 1] for place in range(len(stream))]


class TestBadStreams:
    @pytest.mark.parametrize("stream", [HELLO, HELLO.replace(b"\n", b"\r\n"), TOOLS, start() + words(0, "a") + ERROR])
    def test_a_stream_may_be_cut_anywhere(self, stream: bytes) -> None:
        for make in (reader, passing):
            whole = make()
            expected = without_time(fed(whole, [stream]))
            for pieces in every_cut(stream):
                one = make()
                assert without_time(fed(one, pieces)) == expected
                assert state(one) == state(whole)

    def test_a_stream_that_ends_early_is_an_error(self) -> None:
        whole = len(HELLO)
        for make in (reader, passing):
            for length in range(whole - 40):
                one = make()
                fed(one, [HELLO[:length]])
                assert one.error is not None
                assert (one.error.reason, one.done) == ("cut", False)

    def test_the_last_event_may_lack_its_empty_line(self) -> None:
        for one in (reader(), passing()):
            fed(one, [HELLO[:-2]])
            assert one.done

    @pytest.mark.parametrize(
        "garbage",
        [
            b"data: nonsense\n\n",
            b"data: [DONE]\n\n",
            b"data: []\n\n",
            b"event: error\ndata: nonsense\n\n",
            b"data: \xff\xfe\n\n",
            b"data: %b\n\n" % (b"[" * 100_000),
            b"x" * (1 << 21),
        ],
    )
    def test_garbage_is_a_protocol_error(self, garbage: bytes) -> None:
        for one in (reader(), passing()):
            fed(one, [start(), garbage, ended()])
            assert one.error is not None
            assert (one.error.reason, one.done) == ("protocol", False)

    @pytest.mark.parametrize(
        "bad",
        [
            event("message_start"),
            event("message_start", message={"id": 5}),
            event("content_block_start", index=0),
            event("content_block_start", index=[], content_block={}),
            opened(0, "text", text=5),
            event("content_block_delta", index=0, delta=None),
            words(0, 5),  # type: ignore[arg-type]
            piece(9, "input_json_delta", partial_json="{}"),
            b"".join(opened(index, "text") for index in range(OPEN_BLOCKS_MAX + 1)),
        ],
    )
    def test_what_cannot_be_translated_is_a_protocol_error(self, bad: bytes) -> None:
        one, _ = read(start() + bad + ended())
        assert one.error is not None
        assert one.error.reason == "protocol"

    @given(
        st.lists(
            st.binary(max_size=20)
            | st.sampled_from([HELLO, start(), words(0, "a"), closed(0), ERROR, PING, b"\n\n", b"data:", b"event: x\n"])
            | st.builds(
                lambda kind, value: event(
                    kind, index=value, delta=value, content_block=value, message=value, usage=value
                ),
                st.sampled_from(["message_start", "content_block_start", "content_block_delta", "message_delta"]),
                JSON,
            ),
            max_size=6,
        )
    )
    @settings(max_examples=200, deadline=None)
    def test_nothing_raises_and_everything_ends(self, pieces: list[bytes]) -> None:
        for one in (reader(), passing()):
            fed(one, pieces)
            assert one.done != (one.error is not None)


class Careful(MessageReader):
    """Looks for everything in every event."""

    def plain(self, name: bytes, data: bytes) -> bool:
        return False


FIELDS = ("type", "index", "delta", "text", "error", "citations", "message", "new")
VALUES = (
    *("left out", None, True, False, 0, 1, 7, 0.0, 1.5, "", "x", "error", [], {}, {"type": "text_delta", "text": "x"}),
    *("text_delta", "thinking_delta", "input_json_delta", "content_block_delta", "message_stop"),
)


def odd_words() -> Iterator[bytes]:
    """Pieces of text, each with one field of the event or of the delta in it set to something else or left out."""
    for inside, field, value in itertools.product((False, True), FIELDS, VALUES):
        delta: dict[str, Any] = {"type": "text_delta", "text": "é"}
        told: dict[str, Any] = {"type": "content_block_delta", "index": 0, "delta": delta}
        holder = delta if inside else told
        if value == "left out":
            holder.pop(field, None)
        else:
            holder[field] = value
        for name in (b"event: content_block_delta\n", b""):
            yield b"%bdata: %b\n\n" % (name, json.dumps(told, ensure_ascii=inside).encode())


def odd_frames(data: bytes) -> Iterator[bytes]:
    """Events with these data, as servers may write them."""
    for name in (
        b"event: content_block_delta\n",
        b"event: error\n",
        b"event: x\r\n",
        b": c\n",
        b"event: a\nevent: b\n",
    ):
        for before in (b"data: ", b"data:", b"data:  "):
            for end in (b"\n\n", b"\r\n\r\n", b"\r\r", b"  \n\n", b"\nevent: error\n\n", b"\ndata: 1\n\n", b"}\n\n"):
                yield name + before + data + end


class TestPlainText:
    def test_the_usual_event_is_read_the_short_way(self) -> None:
        one = MessageReader(wants_usage=True)
        one.feed(start() + opened(0, "text", text=""))
        assert one.plain(*fields(words(0, "é")))
        assert (one.events, one.delivered_bytes) == (1, 2)

    def test_id_and_model_are_those_told_last(self) -> None:
        other = event("message_start", message={"id": "msg_2", "model": "claude-y"})
        _, told = read(start() + words(0, "a") + words(0, "b") + other + words(0, "c") + words(0, "d") + ended())
        names = [(chunk["id"], chunk["model"]) for chunk in told]
        assert names == [("msg_1", "claude-x")] * 3 + [("msg_2", "claude-y")] * 4

    def test_the_short_way_comes_to_the_same(self) -> None:
        begun = start() + opened(0, "text", text="") + words(0, "a" * 50)
        data = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"b"}}'
        for odd in (*odd_words(), *odd_frames(data), words(0, ""), words(0, "x" * 5000)):
            for before in (begun, start(), opened(0, "thinking", thinking="b"), b""):
                compare([before, odd, words(0, "c"), ended()])

    @given(st.lists(st.sampled_from([*odd_words()]), max_size=4), st.lists(st.integers(0, 1 << 20)))
    @settings(max_examples=50, deadline=None)
    def test_however_the_reads_split(self, odd: list[bytes], places: list[int]) -> None:
        compare(cut_at(b"".join([start(), words(0, "a"), *odd, words(0, "b"), ended()]), places))


def compare(pieces: list[bytes]) -> None:
    """Read a stream in both ways and see that they agree at any time."""
    short, long = MessageReader(wants_usage=True), Careful(wants_usage=True)
    long._created = short._created
    for piece in pieces:
        assert short.feed(piece) == long.feed(piece), pieces
        assert state(short) == state(long), pieces
    assert short.finish() == long.finish()
    assert state(short) == state(long)


def fields(one: bytes) -> tuple[bytes, bytes]:
    name, data = sse.fields(one)
    assert data is not None
    return name, data


def without_time(out: bytes) -> bytes:
    if not out.startswith(b"data: "):
        return out
    return json.dumps([{**chunk, "created": 0} for chunk in chunks(out)]).encode()


def streamed(
    details: list[dict[str, Any]], texts: list[str], calls: list[tuple[str, str, dict[str, Any]]], size: int
) -> bytes:
    """The provider's side: an answer as a stream, each value in pieces of `size` characters."""
    parts, index = [start()], 0

    def cut(text: str) -> list[str]:
        return [text[place : place + size] for place in range(0, len(text), size)]

    for detail in details:
        if "data" in detail:
            parts.append(opened(index, "redacted_thinking", data=detail["data"]))
        else:
            parts.append(opened(index, "thinking", thinking="", signature=""))
            parts += [piece(index, "thinking_delta", thinking=bit) for bit in cut(detail["text"])]
            parts += [piece(index, "signature_delta", signature=bit) for bit in cut(detail["signature"])]
        parts.append(closed(index))
        index += 1
    for text in texts:
        parts += [opened(index, "text", text=""), *[words(index, bit) for bit in cut(text)], closed(index)]
        index += 1
    for id, name, value in calls:
        parts.append(opened(index, "tool_use", id=id, name=name, input={}))
        if value:
            parts += [piece(index, "input_json_delta", partial_json=bit) for bit in cut(json.dumps(value))]
        parts.append(closed(index))
        index += 1
    return b"".join([*parts, ended("tool_use" if calls else "end_turn")])


@given(
    st.lists(DETAILS, max_size=2),
    st.lists(st.text(max_size=9), max_size=2),
    st.lists(st.tuples(NAMES, NAMES, OBJECTS), max_size=2),
    st.integers(1, 9),
)
@settings(max_examples=100, deadline=None)
def test_what_the_provider_streams_arrives_whole(
    details: list[dict[str, Any]], texts: list[str], calls: list[tuple[str, str, dict[str, Any]]], size: int
) -> None:
    one, told = read(streamed(details, texts, calls, size))
    found = gathered(told)
    assert found["content"] == "".join(texts)
    assert found["reasoning"] == "".join(detail.get("text", "") for detail in details)
    assert found["details"] == details
    heard = [(c["id"], c["name"], json.loads(c["arguments"])) for c in found["calls"].values()]
    assert heard == calls
    assert found["finish"] == ["tool_calls" if calls else "stop"]
    assert [(usage["prompt_tokens"], usage["completion_tokens"]) for usage in found["usage"]] == [(10, 20)]
    assert one.done
