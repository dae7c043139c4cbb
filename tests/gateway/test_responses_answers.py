"""Canonical answers as responses of the Responses API: whole ones, streams, errors, and the way back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response

from gateway import errors
from gateway.dialects import responses_reasoning
from gateway.dialects.responses import RESPONSES
from tests.gateway.responses_case import (
    ENCRYPTED,
    FUNCTION,
    GOOGLE,
    SIGNED,
    TOLD_USAGE,
    chat_call,
    chunk,
    chunks_of,
    completion,
    events_of,
    messages,
    parse,
    short,
    stream,
)


class TestAnswers:
    def test_an_answer_in_words_is_a_whole_response(self) -> None:
        call = parse(
            instructions="i", metadata={"a": "b"}, max_output_tokens=9, temperature=0.5, tools=[FUNCTION], store=True
        )
        told = json.loads(RESPONSES.answer(call, completion({"content": "hello"})))
        Response.model_validate(told)
        (item,) = told["output"]
        assert item.pop("id").startswith("msg_")
        assert item == {
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}],
        }
        expected = {
            "id": "resp_abcdef",
            "object": "response",
            "created_at": 7,
            "status": "completed",
            "error": None,
            "incomplete_details": None,
            "instructions": "i",
            "metadata": {"a": "b"},
            "max_output_tokens": 9,
            "model": "up",
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": 0.5,
            "tool_choice": "auto",
            "tools": [FUNCTION],
            "usage": TOLD_USAGE,
        }
        assert {key: told[key] for key in expected} == expected

    def test_reasoning_text_and_calls_are_items_in_that_order(self) -> None:
        message = {
            "reasoning_content": "think",
            "reasoning_details": [ENCRYPTED],
            "content": "look",
            "tool_calls": [chat_call("a", arguments='{"x":1}'), chat_call("", arguments="")],
        }
        told = json.loads(RESPONSES.answer(parse(), completion(message, "tool_calls")))
        Response.model_validate(told)
        reason, words, first, second = told["output"]
        assert reason == {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "think"}],
            "encrypted_content": "gAAA",
        }
        assert words["content"][0]["text"] == "look"
        assert (first["call_id"], first["arguments"], first["status"]) == ("a", '{"x":1}', "completed")
        assert second["call_id"].startswith("call_")
        assert second["arguments"] == "{}"

    @pytest.mark.parametrize(
        ("finish", "status", "details"),
        [
            ("length", "incomplete", {"reason": "max_output_tokens"}),
            ("content_filter", "incomplete", {"reason": "content_filter"}),
            ("stop", "completed", None),
            ("tool_calls", "completed", None),
            ("odd", "completed", None),
        ],
    )
    def test_the_finish_reason_is_the_status(self, finish: str, status: str, details: Any) -> None:
        told = json.loads(RESPONSES.answer(parse(), completion({"content": "x"}, finish)))
        assert (told["status"], told["incomplete_details"], told["output"][0]["status"]) == (status, details, status)
        ends = json.loads(events_of(stream(parse(stream=True), [{"content": "x"}], finish))[-1])
        assert (ends["type"], ends["response"]["incomplete_details"]) == (f"response.{status}", details)
        assert ends["response"]["output"][0]["status"] == status

    def test_refusals_citations_and_log_probabilities_are_told(self) -> None:
        citation = {"start_index": 0, "end_index": 1, "url": "https://x", "title": "X"}
        logprobs = {"content": [{"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
        message = {"content": "a", "annotations": [{"type": "url_citation", "url_citation": citation}], "refusal": "no"}
        doc = json.loads(completion(message))
        doc["choices"][0]["logprobs"] = logprobs
        (item,) = json.loads(RESPONSES.answer(parse(), json.dumps(doc).encode()))["output"]
        expected = {
            "type": "output_text",
            "text": "a",
            "annotations": [{"type": "url_citation", **citation}],
            "logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}],
        }
        assert item["content"] == [expected, {"type": "refusal", "refusal": "no"}]
        writer = RESPONSES.writer(parse(stream=True), "r")
        first = json.loads(chunk({"content": "a"})[6:])
        first["choices"][0]["logprobs"] = logprobs
        raw = writer.feed(b"data: %b\n\n" % json.dumps(first).encode())
        raw += writer.feed(chunk({"annotations": message["annotations"]}) + chunk({"refusal": "no"})) + writer.finish()
        assert json.loads(events_of(raw)[-1])["response"]["output"][0]["content"] == item["content"]

    def test_content_in_parts_is_understood(self) -> None:
        thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
        content = [thinking, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        for told in (
            json.loads(RESPONSES.answer(parse(), completion({"content": content})))["output"],
            json.loads(events_of(stream(parse(stream=True), [{"content": content}]))[-1])["response"]["output"],
        ):
            assert (told[0]["summary"][0]["text"], told[1]["content"][0]["text"]) == ("hm", "ab")

    @pytest.mark.parametrize(
        "body", [b"", b"null", b"{}", b'{"choices":[]}', b'{"choices":[{}]}', b"\xff", b'{"choices":7}']
    )
    def test_nonsense_is_an_empty_response(self, body: bytes) -> None:
        told = json.loads(RESPONSES.answer(parse(), body))
        assert told["status"] == "completed"
        assert told["output"][0]["content"][0]["text"] == ""
        assert told["usage"] is None

    def test_what_was_answered_comes_back_as_it_was(self) -> None:
        message = {
            "content": "words",
            "reasoning_content": "hmm",
            "reasoning_details": [
                SIGNED,
                {"type": "reasoning.encrypted", "data": "R", "format": "anthropic-claude-v1"},
            ],
            "extra_content": GOOGLE,
            "tool_calls": [chat_call("a", extra_content=GOOGLE), chat_call("b", arguments='{"x":[1]}')],
        }
        items = json.loads(RESPONSES.answer(parse(), completion(message)))["output"]
        (told,) = messages(*items)
        assert told == {"role": "assistant", **message}


class TestStreams:
    def test_words_are_told_in_the_documented_order(self) -> None:
        raw = stream(parse(stream=True), [{"content": "hel"}, {"content": "lo"}])
        assert short(raw) == [
            "created",
            "in_progress",
            "output_item.added 0",
            "content_part.added 0/0",
            "output_text.delta 0/0 hel",
            "output_text.delta 0/0 lo",
            "output_text.done 0/0 hello",
            "content_part.done 0/0",
            "output_item.done 0",
            "completed",
        ]
        events = [json.loads(event) for event in events_of(raw)]
        begun, ended = events[0]["response"], events[-1]["response"]
        assert (begun["status"], begun["output"], begun["usage"]) == ("in_progress", [], None)
        assert (begun["id"], begun["created_at"], begun["model"]) == ("resp_abcdef", 7, "up")
        assert (ended["id"], ended["status"], ended["usage"]) == ("resp_abcdef", "completed", TOLD_USAGE)
        assert ended["output"] == [events[-2]["item"]]
        ids = {event.get("item_id") or event.get("item", {}).get("id") for event in events[2:-1]}
        assert ids == {ended["output"][0]["id"]}

    def test_reasoning_words_and_calls_are_told_one_after_the_other(self) -> None:
        deltas: list[dict[str, Any]] = [
            {"reasoning_content": "th"},
            {"reasoning": "ink"},
            {"reasoning_details": [{**SIGNED, "text": "think"}]},
            {"content": "look"},
            {"tool_calls": [{"index": 0, **chat_call("a", arguments="")}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"x"'}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]},
            {"tool_calls": [{"index": 1, **chat_call("b", "patch", '{"input":"p"}')}]},
        ]
        raw = stream(parse(stream=True, tools=[FUNCTION, {"type": "custom", "name": "patch"}]), deltas, "tool_calls")
        assert short(raw) == [
            "created",
            "in_progress",
            "output_item.added 0",
            "reasoning_summary_part.added 0/0",
            "reasoning_summary_text.delta 0/0 th",
            "reasoning_summary_text.delta 0/0 ink",
            "reasoning_summary_text.done 0/0 think",
            "reasoning_summary_part.done 0/0",
            "output_item.done 0",
            "output_item.added 1",
            "content_part.added 1/0",
            "output_text.delta 1/0 look",
            "output_text.done 1/0 look",
            "content_part.done 1/0",
            "output_item.done 1",
            "output_item.added 2",
            'function_call_arguments.delta 2 {"x"',
            "function_call_arguments.delta 2 :1}",
            'function_call_arguments.done 2 {"x":1}',
            "output_item.done 2",
            "output_item.added 3",
            "custom_tool_call_input.delta 3 p",
            "custom_tool_call_input.done 3 p",
            "output_item.done 3",
            "completed",
        ]
        output = json.loads(events_of(raw)[-1])["response"]["output"]
        assert responses_reasoning.unseal(output[0]["encrypted_content"]) is not None
        assert [item["type"] for item in output[1:]] == ["message", "function_call", "custom_tool_call"]

    def test_refusals_are_parts_of_their_own(self) -> None:
        raw = stream(parse(stream=True), [{"content": "a"}, {"refusal": "n"}, {"refusal": "o"}])
        assert short(raw)[4:12] == [
            "output_text.delta 0/0 a",
            "output_text.done 0/0 a",
            "content_part.done 0/0",
            "content_part.added 0/1",
            "refusal.delta 0/1 n",
            "refusal.delta 0/1 o",
            "refusal.done 0/1 no",
            "content_part.done 0/1",
        ]

    def test_interleaved_calls_wait_for_each_other(self) -> None:
        def piece(index: int, arguments: str, **head: Any) -> dict[str, Any]:
            function = {"arguments": arguments, **({"name": "weather"} if head else {})}
            return {"tool_calls": [{"index": index, **head, "function": function}]}

        deltas = [
            piece(0, "", id="a"),
            piece(1, "", id="b"),
            piece(1, '{"b"'),
            piece(0, '{"a"'),
            {"content": "late"},
            piece(0, ":{}"),
            piece(1, ":1}"),
            piece(0, "}"),
            piece(2, "", id="c"),
        ]
        raw = stream(parse(stream=True), deltas, "tool_calls")
        assert short(raw)[2:] == [
            "output_item.added 0",
            'function_call_arguments.delta 0 {"a"',
            "function_call_arguments.delta 0 :{}",
            "function_call_arguments.delta 0 }",
            'function_call_arguments.done 0 {"a":{}}',
            "output_item.done 0",
            "output_item.added 1",
            'function_call_arguments.delta 1 {"b"',
            "function_call_arguments.delta 1 :1}",
            'function_call_arguments.done 1 {"b":1}',
            "output_item.done 1",
            "output_item.added 2",
            "content_part.added 2/0",
            "output_text.delta 2/0 late",
            "output_text.done 2/0 late",
            "content_part.done 2/0",
            "output_item.done 2",
            "output_item.added 3",
            "function_call_arguments.delta 3 {}",
            "function_call_arguments.done 3 {}",
            "output_item.done 3",
            "completed",
        ]

    def test_calls_that_share_an_index_are_told_apart_by_their_ids(self) -> None:
        deltas = [
            {"tool_calls": [{"index": 0, **chat_call("a", arguments='{"x":1}')}]},
            {"tool_calls": [{"index": 0, **chat_call("b", arguments='{"x":2}')}]},
            {"tool_calls": [{"id": "c"}]},
            {"tool_calls": [{"function": {"name": "weather", "arguments": "{}"}}]},
        ]
        output = json.loads(events_of(stream(parse(stream=True), deltas))[-1])["response"]["output"]
        assert [(item["call_id"], item["arguments"]) for item in output] == [
            ("a", '{"x":1}'),
            ("b", '{"x":2}'),
            ("c", "{}"),
        ]

    def test_reasoning_in_pieces_with_an_index_is_put_together(self) -> None:
        def piece(**fields: Any) -> dict[str, Any]:
            return {"reasoning_details": [{"type": "reasoning.text", "index": 0, "format": "x", **fields}]}

        deltas = [
            {"reasoning": "th", **piece(text="th")},
            {"reasoning": "ink", **piece(text="ink")},
            piece(signature="S"),
            {"content": "a"},
        ]
        first = json.loads(events_of(stream(parse(stream=True), deltas))[-1])["response"]["output"][0]
        sealed = responses_reasoning.unseal(first["encrypted_content"])
        assert sealed is not None
        assert first["summary"][0]["text"] == "think"
        assert sealed.details == [
            {"type": "reasoning.text", "index": 0, "format": "x", "text": "think", "signature": "S"}
        ]

    def test_encrypted_reasoning_keeps_its_own_id(self) -> None:
        raw = stream(parse(stream=True), [{"reasoning_details": [ENCRYPTED]}, {"content": "a"}])
        item = json.loads(events_of(raw)[3])["item"]
        assert item == {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}

    def test_an_empty_answer_is_an_empty_message(self) -> None:
        assert short(stream(parse(stream=True), []))[2:] == [
            "output_item.added 0",
            "content_part.added 0/0",
            "output_text.done 0/0",
            "content_part.done 0/0",
            "output_item.done 0",
            "completed",
        ]
        assert short(RESPONSES.writer(parse(stream=True), "r").finish())[0] == "created"

    def test_a_call_that_was_cut_is_incomplete(self) -> None:
        deltas = [{"tool_calls": [{"index": 0, **chat_call("a", arguments='{"x')}]}]
        ends = json.loads(events_of(stream(parse(stream=True), deltas, "length"))[-1])
        (item,) = ends["response"]["output"]
        assert (ends["type"], item["status"], item["arguments"]) == ("response.incomplete", "incomplete", '{"x')

    def test_the_chunks_may_be_cut_anywhere(self) -> None:
        call = parse(stream=True)
        raw = b"".join(chunks_of([{"content": "hé"}, {"tool_calls": [{"index": 0, **chat_call("a")}]}]))
        whole = short(RESPONSES.writer(call, "r").feed(raw))
        writer = RESPONSES.writer(call, "r")
        assert short(b"".join(writer.feed(raw[i : i + 1]) for i in range(len(raw)))) == whole

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(
            st.dictionaries(
                st.sampled_from(
                    [
                        "content",
                        "reasoning_content",
                        "reasoning_details",
                        "tool_calls",
                        "refusal",
                        "annotations",
                        "extra_content",
                    ]
                ),
                st.sampled_from(
                    [
                        None,
                        5,
                        "x",
                        [],
                        [5],
                        [{}],
                        {},
                        [{"index": 0, "id": 5}],
                        [{"function": {"name": 5}}],
                        [{"text": 5}],
                    ]
                ),
                max_size=3,
            ),
            max_size=6,
        )
    )
    def test_nonsense_in_chunks_never_fails_and_the_stream_stays_whole(self, deltas: list[dict[str, Any]]) -> None:
        raw = stream(parse(stream=True), [*deltas, {"content": "end"}])
        assert json.loads(raw.decode().split("data: ")[-1])["type"] == "response.completed"
        RESPONSES.answer(parse(), completion({name: value for delta in deltas for name, value in delta.items()}))


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
pieces = st.lists(words, min_size=1, max_size=3)
arguments = st.dictionaries(words, st.integers() | words | st.lists(words, max_size=2), max_size=3).map(json.dumps)


@st.composite
def answers(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A message and the deltas it is streamed in."""
    message: dict[str, Any] = {"content": None}
    deltas: list[dict[str, Any]] = []
    if draw(st.booleans()):
        told = draw(pieces)
        whole = "".join(told)
        detail = {"type": "reasoning.text", "text": whole, "signature": "S", "format": "anthropic-claude-v1"}
        message |= {"reasoning_content": whole, "reasoning_details": [detail]}
        deltas += [{"reasoning_content": piece} for piece in told] + [{"reasoning_details": [detail]}]
    calls = draw(st.lists(arguments, max_size=3))
    if not calls or draw(st.booleans()):
        told = draw(pieces)
        message["content"] = "".join(told)
        deltas += [{"content": piece} for piece in told]
    if calls:
        message["tool_calls"] = [chat_call(f"c{i}", arguments=text) for i, text in enumerate(calls)]
        parts = []
        for index, text in enumerate(calls):
            cut = draw(st.integers(0, len(text)))
            parts.append(
                [
                    {"index": index, **chat_call(f"c{index}", arguments=text[:cut])},
                    {"index": index, "function": {"arguments": text[cut:]}},
                ]
            )
        flat = [piece for part in parts for piece in part]
        if draw(st.booleans()):
            flat = [part[0] for part in parts] + [part[1] for part in reversed(parts)]
        deltas += [{"tool_calls": [piece]} for piece in flat]
    return message, deltas


def nameless(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key != "id"}


@settings(max_examples=100, deadline=None)
@given(answers(), st.sampled_from(["stop", "length"]))
def test_streams_tell_what_whole_answers_tell_and_both_come_back_unchanged(
    answer: tuple[dict[str, Any], list[dict[str, Any]]], finish: str
) -> None:
    message, deltas = answer
    raw = stream(parse(stream=True), deltas, finish)
    events = [json.loads(event) for event in events_of(raw)]
    streamed = events[-1]["response"]
    whole = json.loads(RESPONSES.answer(parse(), completion(message, finish)))
    assert list(map(nameless, streamed["output"])) == list(map(nameless, whole["output"]))
    assert (streamed["status"], streamed["usage"]) == (whole["status"], whole["usage"])
    assert messages(*streamed["output"]) == [{"role": "assistant", **message}]
    opened: list[int] = []
    for event in events:
        if event["type"] == "response.output_item.added":
            opened.append(event["output_index"])
        elif event["type"] == "response.output_item.done":
            assert event["output_index"] == opened[-1]
            assert event["item"] == streamed["output"][event["output_index"]]
    assert opened == list(range(len(streamed["output"])))


class TestErrors:
    def test_an_error_is_told_as_everywhere_in_the_openai_api(self) -> None:
        told = json.loads(RESPONSES.error(errors.BadRequestError("Bad.", param="input"), "r"))
        assert told == {
            "error": {"message": "Bad.", "type": "invalid_request_error", "param": "input", "code": "invalid_request"}
        }

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (errors.BudgetExceededError(), "insufficient_quota"),
            (errors.RateLimitedError(), "rate_limit_exceeded"),
            (errors.UpstreamRefusedError("x", code="context_length_exceeded"), "context_length_exceeded"),
            (errors.UpstreamRefusedError("x", code="other"), "invalid_prompt"),
            (errors.UpstreamBadReplyError("x", code="upstream_cut"), "server_error"),
            (errors.GatewayUnavailableError(), "server_error"),
        ],
    )
    def test_a_stream_that_fails_tells_the_error_and_the_failed_response(
        self, error: errors.GatewayError, code: str
    ) -> None:
        writer = RESPONSES.writer(parse(stream=True), "r")
        raw = writer.feed(chunk({"content": "a"})) + writer.fail(error)
        event, failed = [json.loads(event) for event in events_of(raw)][-2:]
        assert event["type"] == "error"
        assert (event["code"], event["message"]) == (error.code, error.message)
        assert event["error"]["message"] == error.message
        assert failed["type"] == "response.failed"
        assert failed["response"]["status"] == "failed"
        assert failed["response"]["error"] == {"code": code, "message": error.message}
        assert failed["response"]["id"] == "resp_abcdef"

    def test_a_stream_of_another_tells_it_without_a_beginning(self) -> None:
        raw = RESPONSES.in_band(errors.UpstreamBadReplyError("Cut.", code="upstream_cut"))
        assert short(raw) == ["error", "failed"]

    def test_quiet_streams_are_kept_alive_by_comments(self) -> None:
        assert RESPONSES.ping.startswith(b":")
        assert RESPONSES.ping.endswith(b"\n\n")
        assert RESPONSES.stream_type.startswith(b"text/event-stream")
        assert (RESPONSES.name, RESPONSES.id_header) == ("responses", b"")
