"""Anthropic's Messages API: how answers, streams, errors and model lists are told."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dialects import anthropic, reading
from gateway.dialects.anthropic import ANTHROPIC
from gateway.errors import GatewayError, RateLimitedError
from providers.answers import text_alone
from tests.fuzz.cases import cases
from tests.gateway.odd_chunks import odd_chunks
from tests.gateway.test_anthropic_dialect import FORMAT, HELLO, assistant, parse, text

USAGE = {
    "prompt_tokens": 30,
    "completion_tokens": 12,
    "total_tokens": 42,
    "prompt_tokens_details": {"cached_tokens": 20, "cache_write_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 5},
}
GOOGLE = {"google": {"thought_signature": "Z29vZ2xl"}}


# --- whole answers --------------------------------------------------------------------------------------------------


def completion(message: dict[str, Any], finish: str | None = "stop", usage: Any = USAGE, **more: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return json.dumps({"id": "c1", "model": "up", "choices": [choice], "usage": usage, **more}).encode()


def told(message: dict[str, Any], finish: str | None = "stop", thinking: Any = None, **more: Any) -> dict[str, Any]:
    call = parse(**({"thinking": thinking} if thinking else {}))
    return json.loads(ANTHROPIC.answer(call, completion(message, finish, **more)))


ADAPTIVE = {"type": "adaptive"}
CALL = {"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a": 1.10}'}}


def test_a_whole_answer_is_told_as_a_message() -> None:
    details = [{"type": "reasoning.text", "text": "Hm.", "signature": "SIG", "format": FORMAT}]
    message = {"content": "Hi.", "reasoning_content": "Hm.", "reasoning_details": details, "tool_calls": [CALL]}
    assert told(message, "tool_calls", ADAPTIVE) == {
        "id": "c1",
        "type": "message",
        "role": "assistant",
        "model": "up",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "SIG"},
            {"type": "text", "text": "Hi."},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1.1}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 6,
            "cache_creation_input_tokens": 4,
            "cache_read_input_tokens": 20,
            "output_tokens": 12,
            "output_tokens_details": {"thinking_tokens": 5},
        },
    }


def test_numbers_in_arguments_keep_their_digits() -> None:
    assert b'"input":{"a":1.10}' in ANTHROPIC.answer(parse(), completion({"tool_calls": [CALL]}))


@pytest.mark.parametrize(
    ("finish", "message", "expected"),
    [
        ("stop", {"content": "x"}, "end_turn"),
        ("length", {"content": "x"}, "max_tokens"),
        ("model_length", {"content": "x"}, "max_tokens"),
        ("tool_calls", {"tool_calls": [CALL]}, "tool_use"),
        ("stop", {"tool_calls": [CALL]}, "tool_use"),
        ("length", {"tool_calls": [CALL]}, "max_tokens"),
        ("function_call", {"function_call": {"name": "f", "arguments": ""}}, "tool_use"),
        ("content_filter", {"content": ""}, "refusal"),
        ("stop", {"content": None, "refusal": "No."}, "refusal"),
        ("of_tomorrow", {"content": "x"}, "end_turn"),
        (None, {"content": "x"}, "end_turn"),
    ],
)
def test_every_finish_reason_has_its_stop_reason(finish: str | None, message: Any, expected: str) -> None:
    assert told(message, finish)["stop_reason"] == expected


def test_thinking_is_told_only_where_it_was_asked_for() -> None:
    details = [
        {"type": "reasoning.text", "text": "Hm.", "signature": "SIG", "format": FORMAT},
        {"type": "reasoning.encrypted", "data": "xyz", "format": FORMAT},
    ]
    message = {"content": "Hi.", "reasoning": "Hm.", "reasoning_details": details}
    assert [block["type"] for block in told(message)["content"]] == ["text"]
    hidden = told(message, thinking={**ADAPTIVE, "display": "omitted"})["content"]
    assert hidden[:2] == [
        {"type": "thinking", "thinking": "", "signature": "SIG"},
        {"type": "redacted_thinking", "data": "xyz"},
    ]
    unsigned = told({"content": "Hi.", "reasoning": "Hm."}, thinking=ADAPTIVE)["content"]
    assert unsigned[0] == {"type": "thinking", "thinking": "Hm.", "signature": ""}


def test_content_of_other_shapes_is_read() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, text("Hi"), text(" you")]
    assert told({"content": parts}, thinking=ADAPTIVE)["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "Hi you"},
    ]


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "5", "nonsense"])
def test_arguments_that_are_no_object_are_told_as_what_they_are(arguments: str) -> None:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    assert told({"tool_calls": [call]}, "length")["content"][0]["input"] == {"INVALID_JSON": arguments}


def test_calls_without_ids_get_one_and_equal_ids_stay_apart() -> None:
    bare = {"function": {"name": "f", "arguments": {"a": 1}}}
    blocks = told({"tool_calls": [bare, bare, {**CALL, "id": "0"}, {**CALL, "id": "0"}]})["content"]
    assert [block["id"] for block in blocks[2:]] == ["0", "0"]
    assert all(block["id"].startswith("toolu_") for block in blocks[:2])
    assert blocks[0]["input"] == {"a": 1}


def test_without_a_usage_one_is_estimated() -> None:
    call = parse(messages=[{"role": "user", "content": "x" * 400}])
    usage = json.loads(ANTHROPIC.answer(call, completion({"content": "y" * 40}, usage=None)))["usage"]
    assert 100 <= usage["input_tokens"] <= 130
    assert usage["output_tokens"] == 10


def test_reasoning_that_a_provider_counts_apart_is_counted() -> None:
    apart = {
        "prompt_tokens": 663,
        "completion_tokens": 50,
        "total_tokens": 837,
        "completion_tokens_details": {"reasoning_tokens": 124},
    }
    assert told({"content": "x"}, usage=apart)["usage"]["output_tokens"] == 174


@pytest.mark.parametrize("sent", [b"", b"null", b"[]", b'{"choices":5}', b'{"choices":[5]}', b"\xff", b'{"usage":[]}'])
def test_nonsense_is_an_empty_message(sent: bytes) -> None:
    answer = json.loads(ANTHROPIC.answer(parse(), sent))
    assert (answer["content"], answer["model"], answer["stop_reason"]) == ([], "m", "end_turn")
    assert answer["id"].startswith("msg_")


def test_what_other_providers_signed_comes_back_to_them() -> None:
    sealed = {"type": "reasoning.encrypted", "data": "enc", "id": "rs_1", "format": "openai-responses-v1"}
    signed = {"type": "reasoning.text", "text": "Hm.", "signature": "S", "format": "google-gemini-v1"}
    call = {**CALL, "extra_content": GOOGLE}
    message = {
        "content": "Hi.",
        "extra_content": GOOGLE,
        "reasoning_content": "Hm.",
        "reasoning_details": [signed, sealed],
        "tool_calls": [call],
    }
    content = told(message, "tool_calls", ADAPTIVE)["content"]
    assert [block["type"] for block in content] == [
        "thinking",
        "redacted_thinking",
        "text",
        "redacted_thinking",
        "redacted_thinking",
        "tool_use",
    ]
    back = parse(messages=[*HELLO, assistant(*content)])
    read = json.loads(back.body)["messages"][1]
    assert read["reasoning_details"] == [signed, sealed]
    assert read["extra_content"] == read["tool_calls"][0]["extra_content"] == GOOGLE
    native = json.loads(back.native)["messages"][1]["content"]
    assert [block["type"] for block in native] == ["text", "tool_use"]


@pytest.mark.parametrize("told", [{}, {"detail": 5}, {"detail": {"type": 5}}, {"extra_content": 5}, {"call": "x"}, []])
def test_a_forged_wrap_means_nothing(told: Any) -> None:
    block = {"type": "redacted_thinking", "data": reading.wrapped(told)}
    message = json.loads(parse(messages=[*HELLO, assistant(block, text("x"))]).body)["messages"][1]
    allowed = {"role", "content"} if told != [] else {"role", "content", "reasoning_details"}
    assert message.keys() == allowed


# --- streams --------------------------------------------------------------------------------------------------------


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: %b\n\n" % json.dumps({"id": "c1", "model": "up", "choices": [choice], **more}).encode()


def usage_chunk(usage: Any = USAGE) -> bytes:
    return b"data: %b\n\n" % json.dumps({"id": "c1", "choices": [], "usage": usage}).encode()


def piece(index: int, arguments: str = "", **more: Any) -> dict[str, Any]:
    head = {"id": more.pop("id"), "type": "function"} if "id" in more else {}
    function = {"arguments": arguments, **({"name": more.pop("name")} if "name" in more else {})}
    return {"tool_calls": [{"index": index, **head, "function": function, **more}]}


def streamed(*deltas: dict[str, Any], finish: str = "stop", thinking: Any = ADAPTIVE, usage: Any = USAGE) -> bytes:
    writer = ANTHROPIC.writer(parse(stream=True, thinking=thinking), "rid")
    out = [writer.feed(chunk(delta)) for delta in deltas]
    out += [writer.feed(chunk({}, finish)), writer.feed(usage_chunk(usage)), writer.finish()]
    return b"".join(out)


def events(stream: bytes) -> list[dict[str, Any]]:
    """The events, each checked to carry the name its data tell."""
    found = []
    for event in stream.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        decoded = json.loads(data.removeprefix("data: "))
        assert name == f"event: {decoded['type']}"
        found.append(decoded)
    return found


def message_of(stream: bytes) -> dict[str, Any]:
    """What a client makes of a stream; the order of events is checked on the way."""
    told = events(stream)
    message: dict[str, Any] = told[0]["message"]
    assert (told[0]["type"], told[-1]["type"], told[-2]["type"]) == ("message_start", "message_stop", "message_delta")
    is_open = False
    for event in told[1:-2]:
        kind = event["type"].removeprefix("content_block_")
        assert kind == "start" or (is_open and event["index"] == len(message["content"]) - 1)
        if kind == "start":
            assert not is_open
            assert event["index"] == len(message["content"])
            is_open = True
            message["content"].append({**event["content_block"], "json": ""})
        elif kind == "delta":
            block, delta = message["content"][-1], event["delta"]
            name = delta["type"].removesuffix("_delta")
            key, value = ("json", delta["partial_json"]) if name == "input_json" else (name, delta[name])
            block[key] += value
        else:
            assert kind == "stop"
            is_open = False
    assert not is_open
    for block in message["content"]:
        arguments = block.pop("json")
        if block["type"] == "tool_use" and arguments:
            block["input"] = json.loads(arguments)
    return {**message, **told[-2]["delta"], "usage": told[-2]["usage"]}


def test_a_stream_has_the_events_of_this_api_in_their_order() -> None:
    out = streamed({"role": "assistant", "content": ""}, {"content": "Hi"}, {"content": " you."}, thinking=None)
    assert out.decode() == (
        "event: message_start\n"
        'data: {"type":"message_start","message":{"id":"c1","type":"message","role":"assistant","model":"up",'
        '"content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":32,'
        '"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":0}}}\n\n'
        "event: content_block_start\n"
        'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
        "event: content_block_delta\n"
        'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}\n\n'
        "event: content_block_delta\n"
        'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" you."}}\n\n'
        "event: content_block_stop\n"
        'data: {"type":"content_block_stop","index":0}\n\n'
        "event: message_delta\n"
        'data: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},'
        '"usage":{"input_tokens":6,"cache_creation_input_tokens":4,"cache_read_input_tokens":20,"output_tokens":12,'
        '"output_tokens_details":{"thinking_tokens":5}}}\n\n'
        "event: message_stop\n"
        'data: {"type":"message_stop"}\n\n'
    )


SIGNED = {"reasoning_details": [{"type": "reasoning.text", "text": "Hmm.", "signature": "SIG", "format": FORMAT}]}


def test_thinking_text_and_tools_are_blocks_one_after_the_other() -> None:
    out = streamed(
        {"reasoning_content": "Hm"},
        {"reasoning_content": "m."},
        SIGNED,
        {"content": "Hi."},
        piece(0, id="a", name="f"),
        piece(0, '{"x":'),
        piece(0, "1}"),
        piece(1, "", id="b", name="g"),
        finish="tool_calls",
    )
    assert [event["type"] for event in events(out)].count("content_block_delta") == 6
    assert message_of(out)["content"] == [
        {"type": "thinking", "thinking": "Hmm.", "signature": "SIG"},
        text("Hi."),
        {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "b", "name": "g", "input": {}},
    ]
    assert message_of(out)["stop_reason"] == "tool_use"


def test_mixed_pieces_of_tool_calls_are_put_in_order() -> None:
    out = streamed(
        piece(0, id="a", name="f"),
        piece(1, id="b", name="g"),
        piece(1, '{"y":{}'),
        piece(0, '{"x":'),
        {"content": "late"},
        piece(1, "}"),
        piece(0, "1}"),
        piece(2, "{}", id="c", name="h"),
    )
    assert message_of(out)["content"] == [
        {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "b", "name": "g", "input": {"y": {}}},
        text("late"),
        {"type": "tool_use", "id": "c", "name": "h", "input": {}},
    ]


def test_calls_that_all_count_as_the_first_are_told_apart() -> None:
    out = streamed(piece(0, '{"x":1}', id="a", name="f"), piece(0, '{"x":2}', id="b", name="f"))
    assert [block["input"] for block in message_of(out)["content"]] == [{"x": 1}, {"x": 2}]


def test_a_piece_for_a_call_that_was_closed_is_dropped() -> None:
    out = streamed(piece(0, "{}", id="a", name="f"), {"content": "x"}, piece(0, "}"))
    assert [block["type"] for block in message_of(out)["content"]] == ["tool_use", "text"]


def test_a_streams_thinking_is_told_only_where_it_was_asked_for() -> None:
    deltas = ({"reasoning": "Hmm."}, SIGNED, {"content": "Hi."})
    assert [block["type"] for block in message_of(streamed(*deltas, thinking=None))["content"]] == ["text"]
    hidden = message_of(streamed(*deltas, thinking={**ADAPTIVE, "display": "omitted"}))["content"]
    assert hidden[0] == {"type": "thinking", "thinking": "", "signature": "SIG"}
    # Servers that repeat the text in unsigned details, and the signature alone at the end.
    doubled = {"reasoning": "Hmm.", "reasoning_details": [{"type": "reasoning.text", "text": "Hmm."}]}
    alone = {"reasoning_details": [{"type": "reasoning.text", "signature": "SIG"}]}
    assert message_of(streamed(doubled, alone))["content"] == [
        {"type": "thinking", "thinking": "Hmm.", "signature": "SIG"}
    ]
    assert (
        message_of(streamed(SIGNED, SIGNED))["content"]
        == [{"type": "thinking", "thinking": "Hmm.", "signature": "SIG"}] * 2
    )


def test_signatures_of_a_stream_come_back_to_their_providers() -> None:
    sealed = {"type": "reasoning.encrypted", "data": "enc", "id": "rs_1", "format": "openai-responses-v1"}
    own = {"type": "reasoning.encrypted", "data": "xyz", "format": FORMAT}
    out = streamed(
        {"reasoning_details": [sealed, own]},
        {"content": "Hi.", "extra_content": GOOGLE},
        piece(0, "{}", id="a", name="f", extra_content=GOOGLE),
    )
    content = message_of(out)["content"]
    assert [block["type"] for block in content] == [
        "redacted_thinking",
        "redacted_thinking",
        "text",
        "redacted_thinking",
        "redacted_thinking",
        "tool_use",
    ]
    read = json.loads(parse(messages=[*HELLO, assistant(*content)]).body)["messages"][1]
    assert read["reasoning_details"] == [sealed, own]
    assert read["extra_content"] == read["tool_calls"][0]["extra_content"] == GOOGLE


def test_a_tool_calls_signature_is_told_even_where_thinking_was_not_asked_for() -> None:
    out = streamed(
        {"content": "x", "extra_content": GOOGLE}, piece(0, "{}", id="a", name="f", extra_content=GOOGLE), thinking=None
    )
    assert [block["type"] for block in message_of(out)["content"]] == ["text", "redacted_thinking", "tool_use"]


def test_an_empty_stream_is_an_empty_message_with_an_estimated_usage() -> None:
    writer = ANTHROPIC.writer(parse(stream=True), "rid")
    message = message_of(writer.feed(b"") + writer.finish())
    assert (message["content"], message["model"], message["stop_reason"]) == ([], "m", "end_turn")
    assert message["usage"]["input_tokens"] == 32
    assert message_of(streamed({"content": "x" * 40}, usage=None))["usage"]["output_tokens"] == 10


def test_the_last_usage_counts_wherever_it_stands() -> None:
    writer = ANTHROPIC.writer(parse(stream=True), "rid")
    out = writer.feed(chunk({"content": "x"}, usage={**USAGE, "completion_tokens": 1}))
    out += writer.feed(chunk({}, "length", usage=USAGE)) + writer.feed(chunk({}, None, usage=None)) + writer.finish()
    message = message_of(out)
    assert (message["usage"]["output_tokens"], message["stop_reason"]) == (12, "max_tokens")


def test_a_failure_is_an_error_event_with_the_request_id() -> None:
    writer = ANTHROPIC.writer(parse(stream=True), "rid")
    writer.feed(chunk({"content": "x"}))
    shape = {"type": "rate_limit_error", "message": RateLimitedError().message}
    assert events(writer.fail(RateLimitedError())) == [{"type": "error", "error": shape, "request_id": "rid"}]
    assert events(ANTHROPIC.in_band(RateLimitedError())) == [{"type": "error", "error": shape}]


WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
ARGUMENTS = st.dictionaries(WORDS, st.one_of(st.integers(), WORDS, st.lists(st.booleans())), max_size=3)


@st.composite
def answers(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A whole canonical message and the same as deltas, its tool calls mixed."""
    reasoning, content = draw(st.lists(WORDS, max_size=3)), draw(st.lists(WORDS, max_size=3))
    calls = [(f"id{place}", draw(WORDS), draw(ARGUMENTS)) for place in range(draw(st.integers(0, 3)))]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": words} for words in reasoning]
    message: dict[str, Any] = {"content": "".join(content) or None}
    if reasoning:
        message["reasoning_content"] = "".join(reasoning)
        detail = {"type": "reasoning.text", "text": "".join(reasoning), "signature": "SIG", "format": FORMAT}
        message["reasoning_details"] = [detail]
        deltas.append({"reasoning_details": [detail]})
    deltas += [{"content": words} for words in content]
    pieces = []
    for index, (id, name, arguments) in enumerate(calls):
        spelled = json.dumps(arguments)
        cut = draw(st.integers(0, len(spelled)))
        deltas.append(piece(index, "", id=id, name=name))
        pieces.append([piece(index, spelled[:cut]), piece(index, spelled[cut:])])
    while any(pieces):
        waiting = [queue for queue in pieces if queue]
        deltas.append(draw(st.sampled_from(waiting)).pop(0))
    if calls:
        message["tool_calls"] = [
            {"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for id, name, arguments in calls
        ]
    return message, deltas


@cases(150)
@given(answers())
def test_a_stream_and_a_whole_answer_tell_the_same_and_come_back_as_they_went(
    drawn: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    message, deltas = drawn
    finish = "tool_calls" if "tool_calls" in message else "stop"
    whole = told(message, finish, ADAPTIVE)
    stream = message_of(streamed(*deltas, finish=finish))
    assert stream["content"] == whole["content"]
    assert {**stream, "content": []} == {**whole, "content": []}
    read = json.loads(parse(messages=[*HELLO, assistant(*whole["content"])]).body)["messages"][1]
    assert (read["content"] or None) == message["content"]
    assert read.get("reasoning_details") == message.get("reasoning_details")
    assert read.get("reasoning_content") == message.get("reasoning_content")
    sent = [(call["id"], call["function"]["name"]) for call in message.get("tool_calls", ())]
    assert [(call["id"], call["function"]["name"]) for call in read.get("tool_calls", ())] == sent
    for back, call in zip(read.get("tool_calls", ()), message.get("tool_calls", ()), strict=True):
        assert json.loads(back["function"]["arguments"]) == json.loads(call["function"]["arguments"])


def test_a_stream_is_the_same_however_it_is_cut() -> None:
    data = b"".join(map(chunk, ({"reasoning_content": "Hé"}, {"content": "Ω"}, piece(0, "{}", id="a", name="f"))))
    data += chunk({}, "tool_calls") + usage_chunk()
    call = parse(stream=True, thinking=ADAPTIVE)
    whole = ANTHROPIC.writer(call, "rid")
    expected = whole.feed(data) + whole.finish()
    for cut in range(len(data)):
        writer = ANTHROPIC.writer(call, "rid")
        assert writer.feed(data[:cut]) + writer.feed(data[cut:]) + writer.finish() == expected
    last = ANTHROPIC.writer(call, "rid")
    assert last.feed(data[:-2]) + last.finish() == expected


@pytest.mark.parametrize(
    ("more", "beside", "inside"),
    [
        ({}, {}, {}),
        ({"usage": None, "system_fingerprint": "fp", "obfuscation": "x"}, {"logprobs": None}, {"role": "assistant"}),
        ({"provider": "P"}, {"native_finish_reason": None}, {"refusal": None, "reasoning": None}),
        ({"object": "chat.completion.chunk"}, {"stop_reason": None}, {"reasoning_content": None, "tool_calls": None}),
    ],
)
def test_a_piece_of_text_is_known_at_once(more: Any, beside: Any, inside: Any) -> None:
    choice = {"index": 0, "delta": {"content": "é", **inside}, "finish_reason": None, **beside}
    assert text_alone(json.dumps({"id": "c1", "choices": [choice], **more}).encode()) == "é"


FIELDS = (
    *("content", "role", "refusal", "reasoning", "reasoning_content", "reasoning_details", "extra_content", "new"),
    *("tool_calls", "function_call", "delta", "index", "finish_reason", "logprobs", "choices", "usage", "id"),
)
VALUES = (
    *(None, True, False, 0, 1, 0.0, -1, "", "x", "stop", "length", [], [{}], {}, GOOGLE, USAGE),
    *([{"index": 0, "function": {"name": "f"}}], [{"type": "text", "text": "x"}], {"name": "f", "arguments": "{}"}),
)


def odd_texts() -> Iterator[bytes]:
    """Pieces of text, each with one field of one object in them set to something else."""
    for place, field, value in itertools.product(range(3), FIELDS, VALUES):
        delta = {"content": "é"}
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        told = {"id": "c1", "model": "up", "choices": [choice], "usage": None}
        holder: Any = (delta, choice, told)[place]
        holder[field] = value
        yield json.dumps(told, ensure_ascii=place > 1).encode()
    yield from (b"", b"{", b"[DONE]", b'{"choices":[]}', b'{"choices":[{"delta":{"content":"\xff"}}]}')
    yield b'{"choices":[{"delta":{"content":"x"}},{"delta":{"content":"y"}}]}'
    yield b'{"choices":[{"delta":{"content":"far"},"x":-1e999}]}'
    yield b'{"choices":[{"delta":{"content":"%b"}}]}' % (b"x" * 5000)


@pytest.mark.parametrize("shown", [False, True])
def test_text_that_is_known_at_once_is_told_like_any_other(shown: bool) -> None:
    call = parse(stream=True, **({"thinking": ADAPTIVE} if shown else {}))
    text_, tool = chunk({"content": "a"}), chunk(piece(0, "{", id="a", name="f"))
    for body in odd_texts():
        # What the short way does not know by sight.
        slow = body.replace(b'{"content"', b'{"x":0,"content"') if text_alone(body) else body
        assert not text_alone(slow)
        for before in (text_, tool, b""):
            told = []
            for sent in (body, slow):
                writer = ANTHROPIC.writer(call, "rid")
                out = [writer.feed(one) for one in (before, b"data: %b\n\n" % sent, text_, tool)]
                told.append(SOME_ID.sub(b"", b"|".join(out) + writer.finish()))
            assert told[0] == told[1], body


SOME_ID = re.compile(rb"(toolu|msg)_[0-9a-f]+")

JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    "content",
                    "text",
                    "type",
                    "thinking",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "index",
                    "id",
                    "reasoning_details",
                    "signature",
                    "data",
                    "format",
                    "extra_content",
                    "google",
                    "refusal",
                ]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@cases(200)
@given(st.lists(JUNK, max_size=4), st.binary(max_size=30))
def test_nonsense_never_breaks_the_order_of_events(deltas: list[Any], noise: bytes) -> None:
    writer = ANTHROPIC.writer(parse(stream=True, thinking=ADAPTIVE), "rid")
    out = b""
    for delta in deltas:
        choice = {"index": 0, "delta": delta, "finish_reason": delta}
        data = json.dumps({"id": delta, "choices": [choice, delta], "usage": delta}).encode()
        out += writer.feed(b"data: %b\n\n" % data) + writer.feed(b"data: %b\n\n" % noise.replace(b"\n", b""))
        assert isinstance(
            ANTHROPIC.answer(parse(thinking=ADAPTIVE), completion({"x": delta, "tool_calls": delta})), bytes
        )
    told = events(out + writer.finish())
    kinds = [event["type"].removeprefix("content_block_") for event in told]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert kinds.count("start") == kinds.count("stop")


# --- errors and lists -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (408, "timeout_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_errors_are_named_by_their_status(status: int, kind: str) -> None:
    told = json.loads(ANTHROPIC.error(GatewayError("No.", status=status), "rid"))
    assert told == {"type": "error", "error": {"type": kind, "message": "No."}, "request_id": "rid"}


def test_models_are_listed_in_this_apis_shape() -> None:
    told = json.loads(anthropic.models(["a", "b"]))
    assert (told["first_id"], told["last_id"], told["has_more"]) == ("a", "b", False)
    assert told["data"][1] == json.loads(anthropic.model("b"))
    assert told["data"][1]["id"] == "b"
    assert told["data"][1]["type"] == "model"
    empty = {"data": [], "has_more": False, "first_id": None, "last_id": None}
    assert json.loads(anthropic.models([])) == empty


def test_the_dialect_says_how_it_is_served() -> None:
    assert (ANTHROPIC.name, ANTHROPIC.id_header) == ("anthropic", b"request-id")
    assert ANTHROPIC.stream_type.startswith(b"text/event-stream")
    assert events(ANTHROPIC.ping) == [{"type": "ping"}]


@pytest.mark.parametrize(("arguments", "expected"), [({"a": 1}, {"a": 1}), ([1], {"INVALID_JSON": "[1]"})])
def test_arguments_that_are_no_string_are_told_as_json(arguments: Any, expected: Any) -> None:
    call = {"id": "t", "function": {"name": "f", "arguments": arguments}}
    assert told({"tool_calls": [call]}, ["odd"])["content"][0]["input"] == expected  # type: ignore[arg-type]
    sent = streamed({"tool_calls": [{"index": 0, **call}]}, finish={"odd": 1})  # type: ignore[arg-type]
    assert json.dumps(arguments).replace(" ", "") in sent.decode().replace('\\"', '"')
    assert events(sent)[-2]["delta"]["stop_reason"] == "tool_use"


@settings(deadline=None)
@given(odd_chunks())
def test_odd_json_in_every_field_never_raises(doc: Any) -> None:
    sent, call = json.dumps(doc).encode(), parse(thinking=ADAPTIVE)
    json.loads(ANTHROPIC.answer(call, sent))
    writer = ANTHROPIC.writer(call, "")
    events(writer.feed(b"data: %b\n\n" % sent) + writer.feed(b"data: %b\n\n" % sent) + writer.finish())
