"""Streams of the Gemini API: translated into canonical chunks, or passed on to callers that speak it themselves."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dialects import openai
from providers.adapters import StreamReader
from providers.adapters.google import Google
from providers.adapters.google_stream import UNREAD_MAX, GoogleReader
from providers.canonical import Target, Usage
from providers.catalog import Kind
from tests.fuzz.test_streams import cut

ADAPTER = Google()
TARGET = Target(Kind("google", "Google Gemini", "https://x.example", adapter="google"), "gemini-2.5-flash")
CRLF = b"\r\n\r\n"


def reader(*, native: bool = False, usage: bool = True, **body: Any) -> StreamReader:
    asked = {"model": "m", "messages": [{"role": "user", "content": "a"}], "stream": True, **body}
    if usage:
        asked["stream_options"] = {"include_usage": True}
    call = openai.parse_chat(json.dumps(asked).encode())
    if native:
        call.dialect, call.native = "gemini", b'{"contents":[]}'
    return ADAPTER.open_stream(call, TARGET)


def event(*parts: dict[str, Any], finish: str = "", usage: dict[str, int] | None = None, **more: Any) -> bytes:
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    told: dict[str, Any] = {"candidates": [candidate], "modelVersion": "gemini-x", "responseId": "r1"}
    if usage is not None:
        told["usageMetadata"] = usage
    return b"data: %b%b" % (json.dumps({**told, **more}).encode(), CRLF)


def counts(prompt: int, answer: int = 0, thoughts: int = 0) -> dict[str, int]:
    told = {"promptTokenCount": prompt, "candidatesTokenCount": answer, "thoughtsTokenCount": thoughts}
    return {**{name: value for name, value in told.items() if value}, "totalTokenCount": prompt + answer + thoughts}


THOUGHT = event({"text": "hm", "thought": True}, usage=counts(5, 0, 9))
HELLO = event({"text": "Hel"}, usage=counts(5, 1, 9))
CALL = event({"functionCall": {"name": "f", "args": {"x": 5}}, "thoughtSignature": "S"}, usage=counts(5, 4, 9))
END = event({"text": ""}, finish="STOP", usage=counts(5, 4, 9))
STREAM = THOUGHT + HELLO + event({"text": "lo ü"}, usage=counts(5, 2, 9)) + CALL + END


def chunks(out: bytes) -> list[dict[str, Any]]:
    events = out.split(b"\n\n")
    assert events.pop() == b""
    return [json.loads(one.removeprefix(b"data: ")) for one in events]


def run(stream: bytes, **options: Any) -> tuple[StreamReader, bytes]:
    one = reader(**options)
    return one, one.feed(stream) + one.finish()


def deltas(out: bytes, index: int = 0) -> list[dict[str, Any]]:
    told = [choice for chunk in chunks(out) for choice in chunk["choices"] if choice["index"] == index]
    return [choice["delta"] for choice in told if choice["delta"]]


def reasons(out: bytes) -> list[tuple[int, str]]:
    told = [choice for chunk in chunks(out) for choice in chunk["choices"]]
    return [(choice["index"], choice["finish_reason"]) for choice in told if choice["finish_reason"]]


class TestTranslated:
    def test_a_whole_stream_becomes_canonical_chunks(self) -> None:
        one, out = run(STREAM)
        told = chunks(out)
        made = told[3]["choices"][0]["delta"]["tool_calls"][0].pop("id")
        assert made.startswith("call_0_")
        assert [chunk["choices"] for chunk in told] == [
            [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
            for delta, reason in [
                ({"role": "assistant", "reasoning_content": "hm"}, None),
                ({"content": "Hel"}, None),
                ({"content": "lo ü"}, None),
                (
                    {
                        "tool_calls": [
                            {
                                "index": 0,
                                "type": "function",
                                "function": {"name": "f", "arguments": '{"x":5}'},
                                "extra_content": {"google": {"thought_signature": "S"}},
                            }
                        ]
                    },
                    None,
                ),
                ({}, "tool_calls"),
            ]
        ] + [[]]
        assert {(chunk["id"], chunk["model"], chunk["object"]) for chunk in told} == {
            ("r1", "gemini-x", "chat.completion.chunk")
        }
        assert told[-1]["usage"]["completion_tokens"] == 13
        assert one.done
        assert one.error is None
        assert one.usage == Usage(5, output=13, reasoning=9)
        assert one.events == 4
        assert one.delivered_bytes == len("hmHello ") + 2 + len('f{"x":5}')

    def test_a_caller_that_asked_for_no_usage_gets_none(self) -> None:
        one, out = run(STREAM, usage=False)
        assert all("usage" not in chunk for chunk in chunks(out))
        assert one.usage == Usage(5, output=13, reasoning=9)

    def test_the_stream_is_not_done_before_the_upstream_closes(self) -> None:
        one = reader()
        done = [(one.feed(STREAM), one.done)[1], (one.finish(), one.done)[1]]
        assert done == [False, True]
        assert one.feed(HELLO) == one.finish() == b""

    def test_line_feeds_alone_end_events_as_well(self) -> None:
        assert run(STREAM.replace(b"\r\n", b"\n"))[1] == run(STREAM)[1]

    def test_a_last_event_without_its_empty_line_counts(self) -> None:
        one, out = run(STREAM[: -len(CRLF)])
        assert one.done
        assert reasons(out) == [(0, "tool_calls")]

    def test_comments_and_empty_data_are_passed_over(self) -> None:
        one, out = run(b": ping\r\n\r\ndata:\r\n\r\n" + STREAM)
        assert one.done
        assert out == run(STREAM)[1]

    def test_a_reason_told_with_every_event_is_told_once(self) -> None:
        one, out = run(event({"text": "a"}, finish="STOP") + event({"text": "b"}, finish="STOP"))
        assert [delta.get("content") for delta in deltas(out)] == ["a", "b"]
        assert reasons(out) == [(0, "stop")]
        assert one.done

    def test_usage_is_the_last_one_told_never_a_sum(self) -> None:
        one, _ = run(event({"text": "a"}, usage=counts(5, 1)) + event({"text": "b"}, finish="STOP", usage=counts(8, 2)))
        assert one.usage == Usage(8, output=2)

    def test_absurd_usage_leaves_the_last_good_one(self) -> None:
        absurd = {"promptTokenCount": -1}
        one, _ = run(event({"text": "a"}, usage=counts(5, 1)) + event({"text": "b"}, finish="STOP", usage=absurd))
        assert one.usage == Usage(5, output=1)

    def test_usage_can_be_asked_for_at_any_time(self) -> None:
        asked, unasked = reader(), reader()
        for number in range(1, 3 * UNREAD_MAX):
            piece = event({"text": "a"}, usage=counts(5, number))
            for one in (asked, unasked):
                one.feed(piece)
            assert asked.usage == Usage(5, output=number)
        assert unasked.usage == asked.usage

    @pytest.mark.parametrize("absurd", [1, UNREAD_MAX - 1, UNREAD_MAX, 3 * UNREAD_MAX])
    def test_absurd_usages_never_hide_the_last_good_one(self, absurd: int) -> None:
        one = reader()
        for number in range(1, 5):
            one.feed(event({"text": "a"}, usage=counts(5, number)))
        for _ in range(absurd):
            one.feed(event({"text": "a"}, usage={"promptTokenCount": -1}))
        assert one.usage == Usage(5, output=4)

    def test_signatures_close_what_they_sign(self) -> None:
        stream = (
            event({"text": "a", "thought": True})
            + event({"text": "b", "thought": True, "thoughtSignature": "S"})
            + event({"text": "c"})
            + event({"text": "", "thoughtSignature": "T"}, finish="STOP")
        )
        assert deltas(run(stream)[1]) == [
            {"role": "assistant", "reasoning_content": "a"},
            {"reasoning_content": "b"},
            {
                "reasoning_details": [
                    {"type": "reasoning.text", "text": "ab", "signature": "S", "format": "google-gemini-v1"}
                ]
            },
            {"content": "c"},
            {"content": "", "extra_content": {"google": {"thought_signature": "T"}}},
        ]

    def test_ids_are_those_of_the_whole_answer(self) -> None:
        told = json.loads(CALL[len(b"data: ") :])
        whole = ADAPTER.read_unary(
            openai.parse_chat(b'{"model":"m","messages":[{"role":"user","content":"a"}]}'),
            200,
            [],
            json.dumps(told).encode(),
        )
        call = json.loads(whole.body)["choices"][0]["message"]["tool_calls"][0]
        assert deltas(run(CALL + END)[1])[0]["tool_calls"][0]["id"] == call["id"]

    def test_calls_are_counted_across_events(self) -> None:
        two = event({"functionCall": {"name": "g"}}, {"functionCall": {"id": "own", "name": "h"}})
        made = [delta["tool_calls"][0] for delta in deltas(run(CALL + two + END)[1])]
        assert [(call["index"], call["function"]["name"]) for call in made] == [(0, "f"), (1, "g"), (2, "h")]
        assert made[2]["id"] == "own"

    def test_one_call_at_most_is_handed_out_where_the_caller_asked_for_that(self) -> None:
        two = event({"functionCall": {"name": "g"}})
        out = run(CALL + two + END, tools=[], parallel_tool_calls=False)[1]
        assert [delta["tool_calls"][0]["function"]["name"] for delta in deltas(out)] == ["f"]

    def test_several_candidates_are_told_apart(self) -> None:
        def both(*texts: str, finish: str = "") -> bytes:
            candidates = [
                {"index": index, "content": {"parts": [{"text": text}]}, **({"finishReason": finish} if finish else {})}
                for index, text in enumerate(texts)
            ]
            return b"data: %b%b" % (json.dumps({"candidates": candidates}).encode(), CRLF)

        one, out = run(both("a", "b") + both("c", "d", finish="STOP"), n=2)
        assert one.done
        assert deltas(out, 0) == [{"role": "assistant", "content": "a"}, {"content": "c"}]
        assert deltas(out, 1) == [{"role": "assistant", "content": "b"}, {"content": "d"}]
        assert reasons(out) == [(0, "stop"), (1, "stop")]
        one, _ = run(both("a", "b") + event({"text": "c"}, finish="STOP"), n=2)
        assert one.error is not None
        assert one.error.reason == "cut"

    def test_log_probabilities_come_with_their_text(self) -> None:
        result = {"chosenCandidates": [{"token": "a", "logProbability": -1}]}
        candidate = {"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP", "logprobsResult": result}
        late = {"finishReason": "STOP", "logprobsResult": result}
        for told in (candidate, late):
            out = run(b"data: %b%b" % (json.dumps({"candidates": [told]}).encode(), CRLF), logprobs=True)[1]
            token = {"token": "a", "logprob": -1, "bytes": [97], "top_logprobs": []}
            assert chunks(out)[0]["choices"][0]["logprobs"] == {"content": [token], "refusal": None}

    def test_pictures_are_handed_out_however_large(self) -> None:
        data = "A" * (3 << 20)
        one, out = run(event({"inlineData": {"mimeType": "image/png", "data": data}}, finish="STOP"))
        assert one.done
        assert one.events == 1
        assert deltas(out)[0]["images"][0]["image_url"]["url"] == f"data:image/png;base64,{data}"

    @pytest.mark.parametrize(
        ("finish", "expected"), [("MAX_TOKENS", "length"), ("SAFETY", "content_filter"), ("OTHER", "content_filter")]
    )
    def test_an_answer_without_text_still_begins_and_ends(self, finish: str, expected: str) -> None:
        one, out = run(b'data: {"candidates":[{"finishReason":"%b"}]}%b' % (finish.encode(), CRLF))
        assert one.done
        assert deltas(out) == [{"role": "assistant", "content": ""}]
        assert reasons(out) == [(0, expected)]

    def test_a_refused_prompt_is_an_empty_answer_that_was_filtered(self) -> None:
        told = b'data: {"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":4}}'
        one, out = run(told + CRLF)
        assert one.done
        assert one.usage == Usage(4)
        assert deltas(out) == [{"role": "assistant", "content": ""}]
        assert reasons(out) == [(0, "content_filter")]
        first = chunks(out)[0]
        assert first["id"].startswith("gemini-")
        assert first["model"] == "gemini-2.5-flash"


class TestFailures:
    def test_a_stream_without_a_finish_reason_was_cut(self) -> None:
        for stream in (b"", HELLO, b'data: {"usageMetadata":{"promptTokenCount":4}}' + CRLF, HELLO + END[:40]):
            one, out = run(stream)
            assert one.error is not None
            assert (one.error.reason, one.done) == ("cut", False)
            assert reasons(out) == []

    @pytest.mark.parametrize(
        ("error", "status", "reason"),
        [
            ({"code": 503, "message": "High demand.", "status": "UNAVAILABLE"}, 503, "overloaded"),
            ({"message": "Slow down.", "status": "RESOURCE_EXHAUSTED"}, 429, "rate_limit"),
            ({"code": 400, "message": "Bad.", "status": "INVALID_ARGUMENT"}, 400, "client"),
            ({"code": 13, "message": "Oops."}, 502, "server"),
            ("text", 502, "server"),
        ],
    )
    @pytest.mark.parametrize("native", [False, True])
    def test_an_error_between_the_events_ends_the_answer(
        self, error: Any, status: int, reason: str, native: bool
    ) -> None:
        told = json.dumps({"error": error}, indent=1).replace("\n", " ").encode()
        for broken in (b"data: " + told + CRLF + END, b"event: error\r\ndata: " + told + CRLF, told, told + CRLF):
            one, out = run(HELLO + broken, native=native)
            assert one.error is not None
            assert (one.error.status, one.error.reason, one.done) == (status, reason, False)
            assert out == run(HELLO, native=native)[1]
            assert one.usage == Usage(5, output=10, reasoning=9)

    def test_an_error_behind_the_finish_reason_still_counts(self) -> None:
        one, _ = run(STREAM + b'data: {"error":{"code":500}}' + CRLF)
        assert one.error is not None
        assert not one.done

    def test_a_broken_answer_is_a_failure(self) -> None:
        one, out = run(HELLO + event(finish="MALFORMED_FUNCTION_CALL", usage=counts(5, 3)))
        assert one.error is not None
        assert (one.error.reason, one.error.code) == ("server", "malformed_function_call")
        assert one.usage == Usage(5, output=3)
        assert reasons(out) == []

    @pytest.mark.parametrize("garbage", [b"data: {\r\n\r\n", b"data: 7\r\n\r\n", b"data: []\r\n\r\n", b"{]\r\n\r\n"])
    @pytest.mark.parametrize("native", [False, True])
    def test_garbage_is_a_failure_of_the_provider(self, garbage: bytes, native: bool) -> None:
        one, _ = run(HELLO + garbage + END, native=native)
        assert one.error is not None
        assert one.error.reason == "protocol"

    @pytest.mark.parametrize("native", [False, True])
    def test_an_event_without_end_is_a_failure_of_the_provider(self, native: bool) -> None:
        one = reader(native=native)
        for _ in range(18):
            one.feed(b"a" * (1 << 20))
        assert one.error is not None
        assert one.error.reason == "protocol"


class TestNative:
    def test_the_bytes_pass_as_they_are(self) -> None:
        one, out = run(STREAM, native=True)
        assert one.native
        assert out == STREAM
        assert one.done
        assert one.usage == Usage(5, output=13, reasoning=9)
        assert one.events == 4
        assert one.delivered_bytes == len("hmHello ") + 2 + len('f{"x":5}')

    @pytest.mark.parametrize(
        "quiet", [b": ping", b"event: ping", b"id: 7\r\nretry: 5", b"data:", b"\xef\xbb\xbf: ping"]
    )
    def test_events_that_say_nothing_are_kept_back(self, quiet: bytes) -> None:
        one, out = run(quiet + CRLF + STREAM, native=True)
        assert (out, one.done) == (STREAM, True)

    @pytest.mark.parametrize("garbage", [b"\x00garbage", b"<html>", b": ping\n\x00", b"data\x00: {}", b"\xff"])
    @pytest.mark.parametrize("end", [b"\n\n", CRLF])
    def test_what_is_no_event_ends_the_answer_before_it_began(self, garbage: bytes, end: bytes) -> None:
        one, out = run(garbage + end + STREAM, native=True)
        assert out == b""
        assert one.error is not None
        assert (one.error.reason, one.done) == ("protocol", False)

    def test_they_pass_as_they_come(self) -> None:
        one = reader(native=True)
        assert one.feed(HELLO + END[:10]) == HELLO
        assert one.feed(END[10:]) == END
        assert one.finish() == b""
        assert one.done

    def test_a_last_event_without_its_empty_line_gets_one(self) -> None:
        one, out = run(STREAM[: -len(CRLF)], native=True)
        assert one.done
        assert out == STREAM[: -len(CRLF)] + b"\n\n"

    def test_half_an_event_is_kept_back(self) -> None:
        one, out = run(HELLO + END[:-20], native=True)
        assert out == HELLO
        assert one.error is not None
        assert one.error.reason == "cut"

    def test_broken_answers_are_the_callers_to_judge(self) -> None:
        stream = event(finish="MALFORMED_FUNCTION_CALL")
        one, out = run(stream, native=True)
        assert out == stream
        assert one.done

    def test_a_refused_prompt_is_a_whole_answer(self) -> None:
        stream = b'data: {"promptFeedback":{"blockReason":"SAFETY"}}' + CRLF
        one, out = run(stream, native=True)
        assert out == stream
        assert one.done


class TestEveryCut:
    @pytest.mark.parametrize("native", [False, True])
    def test_where_the_reads_split_does_not_matter(self, native: bool) -> None:
        expected, whole = run(STREAM, native=native)
        whole = masked(whole)
        for at in range(len(STREAM)):
            one = reader(native=native)
            assert masked(one.feed(STREAM[:at]) + one.feed(STREAM[at:]) + one.finish()) == whole
            assert (one.done, one.usage, one.events) == (True, expected.usage, expected.events)
        one = reader(native=native)
        assert masked(b"".join(one.feed(bytes([byte])) for byte in STREAM) + one.finish()) == whole

    @pytest.mark.parametrize("native", [False, True])
    def test_a_stream_cut_anywhere_tells_so(self, native: bool) -> None:
        end = len(STREAM) - len(CRLF)
        for at in range(end):
            one, out = run(STREAM[:at], native=native)
            assert not one.done
            assert one.error is not None
            assert one.error.reason == "cut"
            if not native:
                assert reasons(out) == []

    @given(st.binary(max_size=60), st.integers(0, len(STREAM)), st.booleans())
    @settings(max_examples=150, deadline=None)
    def test_garbage_anywhere_is_never_raised(self, garbage: bytes, at: int, native: bool) -> None:
        one, out = run(STREAM[:at] + garbage + STREAM[at:], native=native)
        assert one.done != (one.error is not None)
        out.decode()

    PARTS = st.lists(
        st.fixed_dictionaries({"text": st.text("aü", max_size=3)}, optional={"thought": st.booleans()})
        | st.fixed_dictionaries({"functionCall": st.just({"name": "f", "args": {"x": 1}})})
        | st.dictionaries(st.sampled_from(["text", "functionCall", "inlineData"]), st.integers() | st.none()),
        max_size=4,
    )

    @given(st.lists(PARTS, min_size=1, max_size=4))
    @settings(max_examples=100, deadline=None)
    def test_a_stream_says_what_the_whole_answer_says(self, events: list[list[dict[str, Any]]]) -> None:
        one, out = run(b"".join(event(*parts) for parts in events) + END)
        assert one.done
        parts = [part for listed in events for part in listed]
        told = {
            "candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}],
            "responseId": "r1",
        }
        plain = openai.parse_chat(b'{"model":"m","messages":[{"role":"user","content":"a"}]}')
        whole = ADAPTER.read_unary(plain, 200, [], json.dumps(told).encode())
        choice = json.loads(whole.body)["choices"][0]
        message = choice["message"]
        streamed = deltas(out)
        assert "".join(delta.get("content", "") for delta in streamed) == (message["content"] or "")
        thoughts = "".join(delta.get("reasoning_content", "") for delta in streamed)
        assert thoughts == message.get("reasoning_content", "")
        calls = [call for delta in streamed for call in delta.get("tool_calls", [])]
        assert [call.pop("index") for call in calls] == list(range(len(calls)))
        assert calls == message.get("tool_calls", [])
        assert reasons(out) == [(0, choice["finish_reason"])]
        assert one.delivered_bytes == whole.output_bytes


class Careful(GoogleReader):
    """Looks for everything in every event."""

    def plain(self, name: bytes, data: bytes) -> bool:
        return False


FIELDS = (
    *("text", "thought", "thoughtSignature", "functionCall", "parts", "role", "content", "index", "finishReason"),
    *("safetyRatings", "logprobsResult", "candidates", "usageMetadata", "modelVersion", "responseId"),
    *("promptFeedback", "error", "new"),
)
TOKENS = {"chosenCandidates": [{"token": "a", "logProbability": -1}]}
VALUES = (None, True, False, 0, 1, 0.0, 1.5, -1, "", "x", "STOP", "MAX_TOKENS", [], [{}], {}, {"text": "x"}, TOKENS)


def odd_events(usage: Any) -> Iterator[bytes]:
    """Pieces of text, each with one field of one object in them set to something else."""
    for place, field, value in itertools.product(range(4), FIELDS, VALUES):
        part = {"text": "ü"}
        content = {"parts": [part], "role": "model"}
        candidate = {"content": content, "index": 0}
        told = {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m", "responseId": "r1"}
        holder: Any = (part, content, candidate, told)[place]
        holder[field] = value
        yield json.dumps(told, ensure_ascii=place > 1).encode()


def odd_frames(data: bytes) -> Iterator[bytes]:
    """Events with these data, as servers may write them."""
    for before in (b"data: ", b"data:", b"data:  ", b"event: x\ndata: ", b"event: error\ndata: ", b": c\ndata: "):
        for end in (b"\n\n", CRLF, b"\r\r", b"\n\r\n", b" \n\n", b"\nevent: error\n\n", b"\ndata: 1\n\n", b"}\n\n"):
            yield before + data + end


class TestPlainText:
    @pytest.mark.parametrize("safe", [{}, {"safetyRatings": [{"category": "X", "probability": "LOW"}]}])
    def test_the_usual_event_is_read_the_short_way(self, safe: dict[str, Any]) -> None:
        one = GoogleReader(wants_usage=True, model="m")
        one.feed(HELLO)
        candidate = {"content": {"parts": [{"text": "b"}], "role": "model"}, "index": 0, **safe}
        told = {"candidates": [candidate], "usageMetadata": counts(5, 2), "modelVersion": "m", "responseId": "r1"}
        assert one.plain(b"", json.dumps(told).encode())
        assert (one.events, one.usage) == (2, Usage(5, output=2))

    @pytest.mark.parametrize("usage", [counts(5, 7), {"promptTokenCount": -1}, None])
    def test_the_short_way_comes_to_the_same(self, usage: Any) -> None:
        plain = event({"text": " b"}, usage=counts(5, 4))
        data = plain.removeprefix(b"data: ").removesuffix(CRLF)
        larger = event({"text": "b" * 5000}, usage=counts(5, 4))
        end = event({"text": ""}, finish="OTHER", usage=counts(5, 9))  # what that is depends on what came before
        for odd in [*(b"data: %b\n\n" % odd for odd in odd_events(usage)), *odd_frames(data), larger]:
            for begun in (HELLO, THOUGHT, b""):
                compare([begun, odd, plain, end])
                compare([begun, odd, end])

    @given(st.lists(st.sampled_from([*odd_events(counts(5, 7))]), max_size=4), st.lists(st.integers(0, 1 << 20)))
    @settings(max_examples=50, deadline=None)
    def test_however_the_reads_split(self, odd: list[bytes], places: list[int]) -> None:
        stream = b"".join([HELLO, *(b"data: %b\n\n" % data for data in odd), END])
        compare(cut(stream, places))


def compare(pieces: list[bytes]) -> None:
    """Read a stream in both ways and see that they agree at any time."""
    short, long = GoogleReader(wants_usage=True, model="m"), Careful(wants_usage=True, model="m")
    long._created = short._created
    for number, piece in enumerate(pieces):
        assert short.feed(piece) == long.feed(piece), pieces
        if number != 1:  # who asks for the usage makes it be read
            assert state(short) == state(long), pieces
    assert short.finish() == long.finish()
    assert state(short) == state(long)


def state(one: StreamReader) -> tuple[Any, ...]:
    return one.done, one.error, one.usage, one.events, one.delivered_bytes


def masked(out: bytes) -> bytes:
    """Output without what the clock put in."""
    parts = out.split(b'"created":')
    return b'"created":'.join([parts[0], *(part.lstrip(b"0123456789") for part in parts[1:])])
