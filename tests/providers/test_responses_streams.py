"""Streams of the Responses API read by its adapter, and round trips of whole conversations over it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers import responses_items
from tests.providers.responses_case import (
    ADAPTER,
    ENCRYPTED,
    READ_USAGE,
    answered,
    call,
    function_call,
    items,
    joined,
    message,
    native,
    read,
    reasoning,
    sse,
    stream_of,
    streamed,
    target,
    timeless,
)


class TestStreams:
    def test_a_stream_of_words_becomes_chunks(self) -> None:
        out, reader = streamed(sse(*stream_of(message("hello"))))
        head = {"id": "resp_1", "object": "chat.completion.chunk", "model": "gpt-5-2026"}

        def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}

        *chunks, last = timeless(out)
        assert chunks == [
            chunk({"role": "assistant", "content": "he"}),
            chunk({"content": "ll"}),
            chunk({"content": "o"}),
            chunk({}, "stop"),
        ]
        assert (last["choices"], last["usage"]["prompt_tokens"]) == ([], 10)
        assert (reader.done, reader.error, reader.usage, reader.native) == (True, None, READ_USAGE, False)
        assert (reader.events, reader.delivered_bytes) == (3, 5)

    def test_usage_is_told_only_where_it_was_asked_for(self) -> None:
        out, reader = streamed(sse(*stream_of(message("x"))), given=call(stream=True))
        assert "usage" not in joined(out)
        assert reader.usage == READ_USAGE

    def test_reasoning_calls_and_refusals_become_deltas(self) -> None:
        item = message("")
        item["content"] = [{"type": "refusal", "refusal": "nope"}]
        custom = {"type": "custom_tool_call", "id": "ctc", "call_id": "b", "name": "patch", "input": "text"}
        out, _ = streamed(sse(*stream_of(reasoning("one\n\ntwo"), item, function_call("a", '{"x":1}'), custom)))
        told = joined(out)
        told.pop("usage")
        assert told == {
            "content": None,
            "reasoning_content": "one\n\ntwo",
            "reasoning_details": [{**ENCRYPTED, "summary": "one\n\ntwo"}],
            "refusal": "nope",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"x":1}'}},
                {"id": "b", "type": "custom", "custom": {"name": "patch", "input": "text"}},
            ],
            "finish": "tool_calls",
        }

    def test_a_streamed_call_is_opened_with_its_name_and_id(self) -> None:
        out, _ = streamed(sse(*stream_of(function_call("a", "{}", "f"), function_call("b", "{}", "g"))))
        deltas = [event["choices"][0]["delta"] for event in timeless(out) if event["choices"]]
        assert deltas[:4] == [
            {
                "role": "assistant",
                "tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}],
            },
            {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
            {"tool_calls": [{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}}]},
            {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        ]

    def test_log_probabilities_and_citations_come_with_the_text(self) -> None:
        logprob = {"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "b", "logprob": -2.0}]}
        citation = {"start_index": 0, "end_index": 1, "url": "https://x", "title": "X"}
        reader = ADAPTER.open_stream(call(stream=True))
        out = reader.feed(sse({"type": "response.output_text.delta", "delta": "a", "logprobs": [logprob]}))
        kind = "response.output_text.annotation.added"
        out += reader.feed(sse({"type": kind, "annotation": {"type": "url_citation", **citation}}))
        first, second = timeless(out)
        token = {**logprob, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -2.0, "bytes": [98]}]}
        assert first["choices"][0]["logprobs"] == {"content": [token], "refusal": None}
        assert second["choices"][0]["logprobs"] is None
        assert second["choices"][0]["delta"]["annotations"] == [{"type": "url_citation", "url_citation": citation}]

    @pytest.mark.parametrize(
        ("reason", "finish"), [("max_output_tokens", "length"), ("content_filter", "content_filter")]
    )
    def test_an_incomplete_stream_says_why(self, reason: str, finish: str) -> None:
        events = stream_of(message("x"), status="incomplete", incomplete_details={"reason": reason})
        out, reader = streamed(sse(*events))
        assert joined(out)["finish"] == finish
        assert reader.done

    @pytest.mark.parametrize(
        "missing",
        [
            (".delta",),
            (".added",),
            (".done",),
            (".delta", ".added"),
            (".delta", ".done"),
            (".delta", ".done", ".added", ".created", ".in_progress"),
        ],
    )
    @pytest.mark.parametrize("bare", [False, True])
    def test_servers_that_leave_events_or_places_out_lose_nothing(self, missing: tuple[str, ...], bare: bool) -> None:
        output = (reasoning("one\n\ntwo"), message("hello"), function_call("a", '{"x":1}'))
        events = [event for event in stream_of(*output) if not event["type"].endswith(missing)]
        if bare:
            drop = ("output_index", "content_index", "sequence_number", "summary_index")
            events = [{key: value for key, value in event.items() if key not in drop} for event in events]
        told = joined(streamed(sse(*events))[0])
        whole = joined(streamed(sse(*stream_of(*output)))[0])
        if bare and ".delta" not in missing:  # where one summary ends cannot be seen then
            told["reasoning_content"] = whole["reasoning_content"]
        assert told == whole

    def test_a_text_that_lacks_its_end_is_completed_from_the_item(self) -> None:
        output = (reasoning("some"), message("hello"), message("world", id="msg_2"), function_call("a", '{"long":1}'))
        events = stream_of(*output)
        kept = [event for event in events if event.get("delta") not in ("me", "o", "d", "1}")]
        assert len(kept) == len(events) - 4
        assert joined(streamed(sse(*kept))[0]) == joined(streamed(sse(*events))[0])

    def test_a_model_the_provider_does_not_name_is_named_as_in_the_request(self) -> None:
        event = {"type": "response.output_text.delta", "delta": "a"}
        reader = ADAPTER.open_stream(call(stream=True), target(model="up"))
        assert timeless(reader.feed(sse(event)))[0]["model"] == "up"

    def test_raw_reasoning_is_told_once_beside_its_summary(self) -> None:
        reader = ADAPTER.open_stream(call(stream=True))
        out = reader.feed(
            sse(
                {"type": "response.reasoning_text.delta", "item_id": "r", "content_index": 0, "delta": "raw"},
                {"type": "response.reasoning_summary_text.delta", "item_id": "r", "summary_index": 0, "delta": "short"},
            )
        )
        assert joined(out)["reasoning_content"] == "raw"

    def test_events_that_mean_nothing_here_are_passed_over(self) -> None:
        events = stream_of(message("x"))
        more = [{"type": "response.web_search_call.searching"}, {"type": "keepalive"}, {"type": "new.event", "x": 1}]
        out, reader = streamed(b": ping\n\n" + sse(events[0], *more, *events[1:]))
        assert joined(out)["content"] == "x"
        assert reader.done

    def test_line_ends_and_names_may_differ(self) -> None:
        raw = sse(*stream_of(message("héllo")))
        whole = joined(streamed(raw)[0])
        assert joined(streamed(raw.replace(b"\n", b"\r\n"))[0]) == whole
        unnamed = b"\n".join(line for line in raw.split(b"\n") if not line.startswith(b"event:"))
        assert joined(streamed(unnamed)[0]) == whole

    def test_a_stream_that_ends_early_is_cut(self) -> None:
        for asked in (call(stream=True), native(stream=True)):
            events = stream_of(message("x"))
            for count in range(len(events)):
                _, reader = streamed(sse(*events[:count]), given=asked)
                assert not reader.done
                assert reader.error is not None
                assert reader.error.reason == "cut"

    def test_the_bytes_may_be_cut_anywhere(self) -> None:
        raw = sse(*stream_of(reasoning("one"), message("héllo ☃"), function_call("a")))
        whole, _ = streamed(raw)
        for at in range(len(raw)):
            out, reader = streamed(raw, at=at)
            assert timeless(out) == timeless(whole)
            assert reader.done
        reader = ADAPTER.open_stream(call(stream=True, stream_options={"include_usage": True}))
        out = b"".join(reader.feed(raw[i : i + 1]) for i in range(len(raw))) + reader.finish()
        assert timeless(out) == timeless(whole)

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_garbage_is_an_error_and_never_an_exception(self, data: st.DataObject) -> None:
        raw = sse(*stream_of(reasoning("a"), message("b"), function_call("c")))
        at = data.draw(st.integers(0, len(raw)))
        junk = data.draw(st.binary(max_size=20) | st.sampled_from([b"\n\ndata: {}\n\n", b"\n\ndata: [DONE]\n\n"]))
        broken = raw[:at] + junk + raw[at + data.draw(st.integers(0, 30)) :]
        for asked in (call(stream=True), native(stream=True)):
            _, reader = streamed(broken, given=asked)
            assert reader.done or reader.error is not None

    @settings(max_examples=150, deadline=None)
    @given(
        st.dictionaries(
            st.sampled_from(
                ["item", "delta", "response", "annotation", "logprobs", "item_id", "error", "output_index"]
            ),
            st.recursive(
                st.sampled_from([None, 5, "x", "message", "reasoning", "function_call", "incomplete"]),
                lambda inner: (
                    st.lists(inner, max_size=2)
                    | st.dictionaries(
                        st.sampled_from(
                            [
                                "type",
                                "content",
                                "text",
                                "summary",
                                "output",
                                "call_id",
                                "arguments",
                                "usage",
                                "id",
                                "error",
                            ]
                        ),
                        inner,
                        max_size=4,
                    )
                ),
                max_leaves=8,
            ),
            max_size=4,
        ),
        st.sampled_from(
            [
                "response.created",
                "response.output_item.added",
                "response.output_item.done",
                "response.output_text.delta",
                "response.function_call_arguments.delta",
                "response.reasoning_summary_text.delta",
                "response.output_text.annotation.added",
                "response.completed",
                "response.failed",
                "error",
            ]
        ),
    )
    def test_nonsense_in_events_never_fails(self, fields: dict[str, Any], kind: str) -> None:
        for asked in (call(stream=True), native(stream=True)):
            _, reader = streamed(sse({**fields, "type": kind}), given=asked)
            assert reader.done or reader.error is not None
        answer = read({"output": [fields.get("item")], **{key: fields[key] for key in ("error",) if key in fields}})
        assert answer.body or answer.problem


class TestNativeStreams:
    def test_all_events_pass_and_the_last_one_ends_it(self) -> None:
        raw = sse(*stream_of(reasoning("hm"), message("héllo"), function_call("a")))
        out, reader = streamed(raw + b"data: [DONE]\n\n", given=native(stream=True))
        assert out == raw
        assert (reader.native, reader.done, reader.error, reader.usage) == (True, True, None, READ_USAGE)
        assert (reader.events, reader.delivered_bytes) == (5, 10)

    def test_the_bytes_may_be_cut_anywhere(self) -> None:
        raw = sse(*stream_of(message("héllo")))
        for at in range(len(raw)):
            out, reader = streamed(raw, at=at, given=native(stream=True))
            assert out == raw
            assert reader.delivered_bytes == 6

    def test_an_incomplete_answer_ends_well(self) -> None:
        raw = sse(*stream_of(message("x"), status="incomplete", incomplete_details={"reason": "max_output_tokens"}))
        out, reader = streamed(raw, given=native(stream=True))
        assert (out, reader.done) == (raw, True)

    def test_comments_do_not_pass_and_broken_text_is_mended(self) -> None:
        raw = b': keep\n\ndata: {"type":"response.output_text.delta","delta":"\xff"}\n\n'
        out, reader = streamed(raw, given=native(stream=True))
        assert out == 'data: {"type":"response.output_text.delta","delta":"\ufffd"}\n\n'.encode()
        assert reader.events == 1

    def test_what_is_no_event_is_an_error(self) -> None:
        for junk in (b"data: <html>\n\n", b"data: []\n\n", b'data: {"type":5}\n\n'):
            out, reader = streamed(junk, given=native(stream=True))
            assert out == b""
            assert reader.error is not None
            assert reader.error.reason == "protocol"


# --- round trip: a chat over this API and back ------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda text: "\n" not in text)
arguments = st.dictionaries(words, st.integers() | words, max_size=2).map(json.dumps)


@st.composite
def assistants(draw: st.DrawFn, *, last: bool = False) -> dict[str, Any]:
    told: dict[str, Any] = {"role": "assistant", "content": None}
    if draw(st.booleans()):
        text = draw(words)
        told["reasoning_content"] = text
        told["reasoning_details"] = [{**ENCRYPTED, "data": draw(words), "summary": text}]
    ids = draw(st.lists(words, max_size=3, unique=True))
    if not ids or draw(st.booleans()):
        told["content"] = draw(words)
    if ids:
        told["tool_calls"] = [
            {"id": id, "type": "function", "function": {"name": draw(words), "arguments": draw(arguments)}}
            for id in ids
        ]
    return told


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    told = [{"role": "user", "content": draw(words)}]
    for answer in draw(st.lists(assistants(), max_size=3)):
        told.append(answer)
        told += [
            {"role": "tool", "tool_call_id": call["id"], "content": draw(words)}
            for call in answer.get("tool_calls", ())
        ]
        told.append({"role": "user", "content": draw(words)})
    return told


def provider_reads(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The other side: the conversation a provider finds in the input items."""
    told: list[dict[str, Any]] = []
    for item in given:
        last = told[-1] if told else {}
        if item["type"] == "function_call_output":
            told.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
        elif item["type"] == "message" and item["role"] == "user":
            told.append({"role": "user", "content": item["content"][0]["text"]})
        else:
            if last.get("role") != "assistant":
                last = {"role": "assistant", "content": None}
                told.append(last)
            if item["type"] == "message":
                last["content"] = item["content"][0]["text"]
            elif item["type"] == "reasoning":
                detail = responses_items.detail_of(item)
                assert detail is not None
                last |= {"reasoning_content": detail["summary"], "reasoning_details": [detail]}
            else:
                function = {"name": item["name"], "arguments": item["arguments"]}
                made = {"id": item["call_id"], "type": "function", "function": function}
                last.setdefault("tool_calls", []).append(made)
    return told


def provider_answers(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The other side: the output items of an answer."""
    output: list[dict[str, Any]] = []
    for detail in message.get("reasoning_details", ()):
        output.append(reasoning(detail["summary"], detail["data"]))
    if message["content"] is not None:
        part = {"type": "output_text", "text": message["content"], "annotations": [], "logprobs": []}
        output.append({"type": "message", "id": "msg", "role": "assistant", "content": [part]})
    for index, made in enumerate(message.get("tool_calls", ())):
        output.append({"type": "function_call", "id": f"fc_{index}", "call_id": made["id"], **made["function"]})
    return output


@settings(max_examples=100, deadline=None)
@given(conversations())
def test_a_conversation_reaches_the_provider_unchanged(conversation: list[dict[str, Any]]) -> None:
    assert provider_reads(items(*conversation)) == conversation


@settings(max_examples=100, deadline=None)
@given(assistants(), st.booleans(), st.integers(1, 5))
def test_an_answer_comes_back_unchanged_whole_and_streamed(message: dict[str, Any], full: bool, cut: int) -> None:
    ends: dict[str, Any] = (
        {} if full else {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    )
    output = provider_answers(message)
    finish = ("tool_calls" if "tool_calls" in message else "stop") if full else "length"
    choice = answered(*output, **ends)["choices"][0]
    assert {"refusal": None, **message} == choice["message"]
    assert choice["finish_reason"] == finish
    out, reader = streamed(sse(*stream_of(*output, cut=cut, **ends)))
    told = joined(out)
    assert told.pop("finish") == finish
    assert told.pop("usage")["completion_tokens"] == 5
    assert {"role": "assistant", **told} == message
    assert reader.usage == READ_USAGE
