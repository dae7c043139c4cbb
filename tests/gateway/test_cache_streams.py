"""The answer cache of a worker: streams put together into whole answers, and whole answers told as streams."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cache.collecting import CHOICES_MAX, Collector
from gateway.cache.replaying import PIECES_MAX, gathered, replay
from gateway.dialects import anthropic, openai, responses
from providers.adapters.openai_compatible import OpenAICompatible
from providers.canonical import Usage
from tests.gateway.odd_chunks import odd_chunks

USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
NAMES = {"id": "chatcmpl-1", "created": 1700000000, "model": "m-1"}


def chunk(*choices: dict[str, Any], **fields: Any) -> bytes:
    told = {**NAMES, "object": "chat.completion.chunk", "choices": list(choices), **fields}
    return b"data: " + json.dumps(told).encode() + b"\n\n"


def delta(index: int = 0, finish: str | None = None, beside: dict[str, Any] | None = None, **fields: Any) -> Any:
    return {"index": index, "delta": fields, "logprobs": None, "finish_reason": finish, **(beside or {})}


def collected(data: bytes, endpoint: str = "chat", **how: Any) -> Any:
    collector = Collector(endpoint, **how)
    collector.feed(data)
    told = collector.answer()
    return None if told is None else json.loads(told)


def whole(message: dict[str, Any], finish: str = "stop", **fields: Any) -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "refusal": None, **message},
        "logprobs": None,
        "finish_reason": finish,
    }
    return {**NAMES, "object": "chat.completion", "choices": [choice], **fields}


def told(answer: Any, *, wants_usage: bool = True, usage: Usage | None = None) -> list[Any]:
    """The chunks of an answer, decoded."""
    events = list(replay(json.dumps(answer).encode(), wants_usage=wants_usage, usage=usage))
    assert all(event.startswith(b"data: {") and event.endswith(b"}\n\n") for event in events)
    return [json.loads(event[6:]) for event in events]


# --- collecting -------------------------------------------------------------------------------------------------------


def test_a_stream_comes_to_the_answer_a_plain_request_gets() -> None:
    data = (
        chunk(delta(role="assistant", content="", refusal=None), system_fingerprint="fp", obfuscation="xx")
        + chunk(delta(reasoning_content="Hm"))
        + chunk(delta(reasoning_content="m."))
        + chunk(delta(content="Hel"))
        + b": ping\n\n"
        + chunk(delta(content="lo \u2028\r\n"), usage=None)
        + chunk(delta(finish="stop", beside={"stop_reason": 13, "content_filter_results": {"hate": {}}}))
        + chunk(usage=USAGE)
        + b"data: [DONE]\n\n"
    )
    expected = whole({"content": "Hello \u2028\r\n", "reasoning_content": "Hmm."}, usage=USAGE, system_fingerprint="fp")
    expected["choices"][0]["stop_reason"] = 13
    assert collected(data) == expected


def test_pieces_of_tool_calls_are_joined_by_index_and_by_id() -> None:
    google = {"google": {"thought_signature": "sig"}}

    def call(
        index: int | None, arguments: str = "", id: str | None = None, name: str | None = None, **more: Any
    ) -> Any:
        function = {"arguments": arguments, **({"name": name} if name else {})}
        begun = {"id": id, "type": "function"} if id else {}
        return {**({} if index is None else {"index": index}), **begun, "function": function, **more}

    data = (
        chunk(delta(role="assistant", content=None, tool_calls=[call(0, "", "a", "f", extra_content=google)]))
        + chunk(delta(tool_calls=[call(1, '{"x"', "b", "g")]))
        + chunk(delta(tool_calls=[call(0, "{"), call(1, ":1}")]))
        + chunk(delta(tool_calls=[call(0, "}")]))
        + chunk(delta(finish="tool_calls"))
    )
    expected = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}, "extra_content": google},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": '{"x":1}'}},
    ]
    assert collected(data) == whole({"content": None, "tool_calls": expected}, "tool_calls")
    same_index = chunk(
        delta(tool_calls=[call(0, "{}", "a", "f"), call(0, "{}", "b", "g")]), delta(1, content="x", finish="stop")
    )
    answer = collected(same_index + chunk(delta(finish="tool_calls")))
    assert [item["id"] for item in answer["choices"][0]["message"]["tool_calls"]] == ["a", "b"]


def test_choices_log_probabilities_signatures_and_sources_are_kept() -> None:
    tokens = [{"token": word, "logprob": -0.5, "bytes": None, "top_logprobs": []} for word in ("a", "b")]
    extra = {"google": {"thought_signature": "s"}}
    details = [{"type": "reasoning.text", "text": "t", "index": 0}, {"type": "reasoning.encrypted", "data": "e"}]
    data = (
        chunk(delta(1, content="B"), delta(0, content="a", beside={"logprobs": {"content": tokens[:1]}}))
        + chunk(delta(0, content="b", beside={"logprobs": {"content": tokens[1:], "refusal": None}}))
        + chunk(delta(1, reasoning_details=details[:1], extra_content=extra))
        + chunk(delta(1, reasoning_details=[{**details[0], "text": "u"}, details[1]], annotations=[{"type": "x"}]))
        + chunk(delta(1, annotations=[{"type": "y"}]), delta(0, finish="stop"), delta(1, finish="length"))
    )
    first, second = collected(data)["choices"]
    assert (first["index"], first["message"]["content"]) == (0, "ab")
    assert first["logprobs"] == {"content": tokens}
    assert second["message"] == {
        "role": "assistant",
        "content": "B",
        "refusal": None,
        "reasoning_details": [{**details[0], "text": "tu"}, details[1]],
        "annotations": [{"type": "x"}, {"type": "y"}],
        "extra_content": extra,
    }
    assert second["finish_reason"] == "length"


def test_legacy_completions_are_collected_as_such() -> None:
    def piece(text: str, **more: Any) -> bytes:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None, **more}
        return b"data: " + json.dumps({**NAMES, "object": "text_completion", "choices": [choice]}).encode() + b"\n\n"

    logprobs = {"tokens": ["a"], "token_logprobs": [-1.0], "text_offset": [0]}
    data = piece("a", logprobs=logprobs) + piece("b", logprobs=logprobs) + piece("", finish_reason="length")
    choice = {"index": 0, "text": "ab", "logprobs": {name: value * 2 for name, value in logprobs.items()}}
    expected = {**NAMES, "object": "text_completion", "choices": [{**choice, "finish_reason": "length"}]}
    assert collected(data, "completions") == expected
    assert collected(data) is None
    assert collected(chunk(delta(content="x", finish="stop")), "completions") is None


def test_usage_that_the_stream_did_not_tell_can_be_given() -> None:
    collector = Collector()
    collector.feed(chunk(delta(content="x", finish="stop")))
    answer = json.loads(collector.answer(Usage(3, cached=1, output=4)) or b"{}")
    assert answer["usage"]["total_tokens"] == 7
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 1
    collector.feed(chunk(usage=USAGE))
    assert json.loads(collector.answer(Usage(1)) or b"{}")["usage"] == USAGE


def test_a_last_event_without_its_empty_line_counts() -> None:
    assert collected(chunk(delta(content="x", finish="stop")).rstrip()) is not None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"data: [DONE]\n\n",
        chunk(delta(content="x")),  # cut
        chunk(delta(content="x", finish="stop"), delta(1, content="y")),
        chunk(delta(content="x", finish="content_filter")),
        chunk(delta(content="x", finish="error")),
        chunk(delta(refusal="No.", finish="stop")),
        chunk(delta(content="x", finish="stop"), error={"message": "x"}),
        chunk(delta(content="x", finish="stop")) + b'data: {"error":{"message":"x"}}\n\n',
        chunk(delta(content="x", finish="stop")) + b"data: {half\n\n",
        chunk(delta(content="x", finish="stop"), object="error"),
        chunk(delta(content=[{"type": "text", "text": "x"}], finish="stop")),
        chunk(delta(content="x", audio={"id": "a"}, finish="stop")),
        chunk(delta(content="x", images=[{"type": "image_url"}], finish="stop")),
        chunk(delta(content="x", function_call={"name": "f"}, finish="function_call")),
        chunk(delta(role="tool", content="x", finish="stop")),
        chunk(delta(tool_calls=[{"index": 0, "type": "custom", "custom": {"name": "f"}}], finish="tool_calls")),
        chunk(delta(tool_calls=[{"index": 0, "function": {"name": "f", "mood": "x"}}], finish="tool_calls")),
        chunk(delta(tool_calls=[{"index": 0, "id": "a", "extra_content": {"x": 1}}], finish="tool_calls")),
        chunk(delta(tool_calls=["x"], finish="tool_calls")),
        chunk(delta(tool_calls="x", finish="tool_calls")),
        chunk(delta(extra_content={"other": 1}, content="x", finish="stop")),
        chunk(delta(reasoning_details=["x"], content="x", finish="stop")),
        chunk(delta(content="x", finish="stop", beside={"logprobs": "x"})),
        chunk(delta(content="x", finish="stop", beside={"logprobs": {"content": "x"}})),
        chunk(delta(content="x", finish="stop", beside={"token_ids": [1]})),
        chunk(delta(content="x", finish="stop", beside={"delta": "x"})),
        chunk(delta(content="x", finish="stop", beside={"text": "x"})),
        chunk(delta(content="x", finish="stop", beside={"finish_reason": 1})),
        chunk(delta(content="x", finish="stop"), citations=["https://x"]),
        chunk(delta(content="x", finish="stop"), choices={"0": "x"}),
        chunk(delta(content="x", finish="stop"), choices=["x"]),
        chunk(*(delta(index, content="x", finish="stop") for index in range(CHOICES_MAX + 1))),
    ],
)
def test_what_is_not_whole_or_cannot_be_joined_is_not_kept(data: bytes) -> None:
    assert collected(data) is None


def test_embeddings_have_no_streams() -> None:
    assert Collector("embeddings").failed


@pytest.mark.parametrize(
    "pieces",
    [
        [chunk(delta(content="x" * 100))] * 100,
        [chunk(delta(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f", "arguments": "x"}}]))] * 500,
        [chunk(delta(reasoning_details=[{"type": "reasoning.encrypted", "data": "x"}]))] * 200,
        [chunk(delta(beside={"logprobs": {"content": [{"token": "x"}]}}))] * 500,
        [chunk(delta(extra_content={"google": {"thought_signature": "x" * 100}}))] * 100,
        [chunk(**{f"field_{number}": "x"}) for number in range(200)],
        [chunk(delta(beside={f"field_{number}": "x"})) for number in range(200)],
        [b"data: " + b"x" * 600] * 20,
    ],
)
def test_no_more_is_held_than_may_be_kept(pieces: list[bytes]) -> None:
    collector = Collector(most_bytes=8_000)
    for piece in pieces:
        collector.feed(piece)
    assert collector.failed
    collector.feed(chunk(delta(content="x", finish="stop")))
    assert collector.answer() is None


# --- replaying --------------------------------------------------------------------------------------------------------


def test_an_answer_is_told_in_the_order_and_pieces_of_a_stream() -> None:
    text = "The quick brown fox jumps over the lazy dog and then it sleeps."
    chunks = told(whole({"content": text, "reasoning_content": "Well."}, usage=USAGE, system_fingerprint="fp"))
    assert {(each["id"], each["created"], each["model"]) for each in chunks} == {tuple(NAMES.values())}
    assert {each["object"] for each in chunks} == {"chat.completion.chunk"}
    assert {each["system_fingerprint"] for each in chunks} == {"fp"}
    deltas = [each["choices"][0]["delta"] for each in chunks[:-1]]
    assert deltas[:2] == [{"role": "assistant", "content": ""}, {"reasoning_content": "Well."}]
    said = [each["content"] for each in deltas[2:-1]]
    assert ["".join(said), len(said)] == [text, 3]
    assert [each["choices"][0]["finish_reason"] for each in chunks[:-1]] == [None] * 5 + ["stop"]
    assert [each["usage"] for each in chunks] == [None] * 6 + [USAGE]
    assert chunks[-1]["choices"] == []


def test_usage_is_told_to_those_who_want_it() -> None:
    assert all("usage" not in each for each in told(whole({"content": "x"}, usage=USAGE), wants_usage=False))
    given_usage = told(whole({"content": "x"}), usage=Usage(3, output=4))[-1]
    assert given_usage["usage"]["total_tokens"] == 7
    assert told(whole({"content": "x"}))[-1]["choices"][0]["finish_reason"] == "stop"


def test_what_is_no_answer_has_no_events() -> None:
    for body in (b"", b"[]", b"{}", b'{"choices":[]}', b'{"choices":"x"}', b'{"choices":[1]}'):
        assert list(replay(body, wants_usage=True)) == []


def test_log_probabilities_stay_beside_their_tokens() -> None:
    words = [f" w{number}" for number in range(20)]
    tokens = [{"token": word, "logprob": -1.0} for word in words]
    answer = whole({"content": "".join(words)})
    answer["choices"][0]["logprobs"] = {"content": tokens}
    for each in told(answer)[1:-1]:
        choice = each["choices"][0]
        assert choice["delta"]["content"] == "".join(token["token"] for token in choice["logprobs"]["content"])
    answer["choices"][0]["logprobs"] = {"content": tokens[:-1]}  # they do not fit: told together
    assert len(told(answer)) == 3
    assert collected(b"".join(replay(json.dumps(answer).encode(), wants_usage=False))) == answer
    answer["choices"][0]["message"]["content"] = None
    assert told(answer)[1]["choices"][0]["logprobs"] == {"content": tokens[:-1]}


def test_parts_that_have_no_pieces_are_told_whole() -> None:
    message = {"content": [{"type": "text", "text": "x"}], "images": [{"a": 1}], "refusal": None, "audio": {"id": "a"}}
    call = {"id": "c", "type": "custom", "custom": {"name": "f", "input": "x"}}
    chunks = told(whole({**message, "tool_calls": [call]}, citations=["https://x"], service_tier=None))
    assert [each.get("citations") for each in chunks] == [["https://x"], None, None, None, None]
    assert chunks[1]["choices"][0]["delta"] == {"content": message["content"]}
    assert chunks[2]["choices"][0]["delta"] == {"images": message["images"], "audio": message["audio"]}
    assert chunks[3]["choices"][0]["delta"] == {"tool_calls": [{**call, "index": 0}]}


def test_a_long_answer_comes_in_few_pieces() -> None:
    for text in ("x " * 100_000, "\u6f22" * 100_000, " " * 100_000, "x" * 16_000):
        chunks = told(whole({"content": text}))
        assert len(chunks) <= PIECES_MAX + 2
        assert "".join(each["choices"][0]["delta"].get("content", "") for each in chunks) == text


def test_writes_hold_many_events() -> None:
    events = list(replay(json.dumps(whole({"content": "word " * 1000})).encode(), wants_usage=False))
    writes = list(gathered(iter(events), 4096))
    assert b"".join(writes) == b"".join(events)
    assert all(4096 <= len(data) < 4096 + 400 for data in writes[:-1])
    assert list(gathered(iter(()))) == []


def test_each_signature_comes_behind_the_thought_it_signs() -> None:
    details = [{"type": "reasoning.text", "text": text, "signature": f"s-{text}"} for text in ("one", "two")]
    answer = whole({"content": "x", "reasoning_content": "onetwo", "reasoning_details": details})
    deltas = [each["choices"][0]["delta"] for each in told(answer)[1:5]]
    assert [list(each) for each in deltas] == [["reasoning_content"], ["reasoning_details"]] * 2
    body = json.dumps({"model": "m", "max_tokens": 2000, "messages": [{"role": "user", "content": "x"}]}).encode()
    thinking = {"type": "enabled", "budget_tokens": 1024}
    call = anthropic.parse_messages(json.dumps({**json.loads(body), "thinking": thinking}).encode())
    writer = anthropic.ANTHROPIC.writer(call, "r")
    out = writer.feed(b"".join(replay(json.dumps(answer).encode(), wants_usage=True))) + writer.finish()
    events = [json.loads(line[6:]) for line in out.decode().splitlines() if line.startswith("data: ")]
    told_blocks: dict[int, dict[str, str]] = {}
    for event in events:
        if event["type"] == "content_block_delta":
            kind = event["delta"]["type"]
            told_blocks.setdefault(event["index"], {})[kind] = event["delta"][kind.removesuffix("_delta")]
    assert told_blocks[0] == {"thinking_delta": "one", "signature_delta": "s-one"}
    assert told_blocks[1] == {"thinking_delta": "two", "signature_delta": "s-two"}


# --- both -------------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=80)
NAME = st.text("abcdef", min_size=1, max_size=5)
SIGNED = st.fixed_dictionaries({"google": st.fixed_dictionaries({"thought_signature": NAME})})


@st.composite
def calls(draw: Any) -> list[dict[str, Any]]:
    """Tool calls with ids of their own."""
    made = []
    for number in range(draw(st.integers(0, 3))):
        function = {"name": draw(NAME), "arguments": draw(TEXT)}
        call = {"id": f"call_{number}", "type": "function", "function": function}
        made.append(call | ({"extra_content": draw(SIGNED)} if draw(st.booleans()) else {}))
    return made


@st.composite
def messages(draw: Any) -> dict[str, Any]:
    """Messages as the collector makes them."""
    message: dict[str, Any] = {"role": "assistant", "content": draw(TEXT | st.none()), "refusal": None}
    for name in ("reasoning_content", "reasoning"):
        if draw(st.booleans()):
            message[name] = draw(TEXT.filter(bool))
    kinds = ["reasoning.text", "reasoning.encrypted"]
    if draw(st.booleans()):
        message["reasoning_details"] = [
            {"type": draw(st.sampled_from(kinds)), "text": draw(TEXT), "signature": draw(NAME)} for _ in range(2)
        ]
    if draw(st.booleans()):
        message["annotations"] = [{"type": "url_citation", "url_citation": {"url": draw(NAME)}}]
    if draw(st.booleans()):
        message["extra_content"] = draw(SIGNED)
    if made := draw(calls()):
        message["tool_calls"] = made
    return message


@st.composite
def chat_answers(draw: Any) -> dict[str, Any]:
    choices = []
    for index in range(draw(st.integers(1, 3))):
        message = draw(messages())
        words = draw(st.lists(TEXT, min_size=1, max_size=3)) if draw(st.booleans()) else None
        if words is not None:
            message["content"] = "".join(words)
        tokens = None if words is None else {"content": [{"token": word, "logprob": -1.0} for word in words]}
        finish = draw(st.sampled_from(["stop", "length", "tool_calls"]))
        choices.append({"index": index, "message": message, "logprobs": tokens, "finish_reason": finish})
    return {**NAMES, "object": "chat.completion", "choices": choices, "usage": USAGE, "system_fingerprint": "fp"}


@st.composite
def text_answers(draw: Any) -> dict[str, Any]:
    texts = draw(st.lists(TEXT, min_size=1, max_size=3))
    choices = [
        {"index": index, "text": text, "logprobs": None, "finish_reason": "stop"} for index, text in enumerate(texts)
    ]
    return {**NAMES, "object": "text_completion", "choices": choices, "usage": USAGE}


@given(chat_answers() | text_answers(), st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=150, deadline=None)
def test_what_is_told_as_a_stream_comes_to_the_same_answer_however_it_is_cut(
    answer: Any, seed: Any, done: bool
) -> None:
    data = b"".join(replay(json.dumps(answer).encode(), wants_usage=True)) + (b"data: [DONE]\n\n" if done else b"")
    collector = Collector("chat" if answer["object"] == "chat.completion" else "completions")
    start = 0
    while start < len(data):
        end = start + seed.choice([1, 2, 7, 50, 400])
        collector.feed(data[start:end])
        start = end
    assert json.loads(collector.answer() or b"null") == answer


@given(chat_answers(), st.booleans())
@settings(max_examples=50, deadline=None)
def test_what_is_told_is_a_stream_that_our_own_reader_takes(answer: Any, wants_usage: bool) -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
    asked |= {"stream_options": {"include_usage": wants_usage}}
    reader = OpenAICompatible().open_stream(openai.parse_chat(json.dumps(asked).encode()))
    data = b"".join(replay(json.dumps(answer).encode(), wants_usage=wants_usage))
    assert reader.feed(data + b"data: [DONE]\n\n") == data
    assert reader.done
    assert reader.usage == (Usage(3, output=4) if wants_usage else None)


@given(odd_chunks(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_nothing_that_servers_send_makes_either_of_them_fail(odd: Any, finish: bool) -> None:
    events = list(replay(json.dumps(odd).encode(), wants_usage=True, usage=Usage(1)))
    collector = Collector()
    for event in [b"data: " + json.dumps(odd).encode() + b"\n\n", *events]:
        collector.feed(event)
    if finish:
        collector.feed(chunk(delta(content="x", finish="stop")))
    body = collector.answer()
    assert body is None or json.loads(body)["choices"]


@pytest.mark.parametrize("parse", [anthropic.parse_messages, responses.parse_responses])
def test_callers_of_other_dialects_hear_the_same_words_from_a_stream(parse: Any) -> None:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "stream": True}
    if parse is responses.parse_responses:
        body = {"model": "m", "input": "x", "stream": True}
    call = parse(json.dumps(body).encode())
    dialect = anthropic.ANTHROPIC if parse is anthropic.parse_messages else responses.RESPONSES
    function = {"name": "f", "arguments": '{"city":"Paris"}'}
    message = {"content": "one two three " * 9, "tool_calls": [{"id": "c", "type": "function", "function": function}]}
    answer = json.dumps(whole(message, "tool_calls", usage=USAGE)).encode()
    writer = dialect.writer(call, "r")
    out = writer.feed(b"".join(replay(answer, wants_usage=True))) + writer.finish()
    events = [json.loads(line[6:]) for line in out.decode().splitlines() if line.startswith("data: {")]
    deltas = [event["delta"] for event in events if "delta" in event]
    said = "".join(
        piece if isinstance(piece, str) else piece.get("text", "") + piece.get("partial_json", "") for piece in deltas
    )
    assert said == "one two three " * 9 + '{"city":"Paris"}'
    assert b"Paris" in dialect.answer(call, answer)
