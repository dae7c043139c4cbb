"""Legacy completions over chats: what is asked, what is answered, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.dialects.openai import parse_completions
from providers import adapters
from providers.adapters.completions import OverChat, Reader
from providers.canonical import Call, Request, Target, UnsupportedParamError
from providers.catalog import CATALOG

OVER = OverChat(adapters.get("openai_compatible"))
TARGET = Target(CATALOG["mistral"], "up")


def call(**fields: Any) -> Call:
    return parse_completions(json.dumps({"model": "m", "prompt": "Once", "max_tokens": 5, **fields}).encode())


def built(*, strict: bool = True, limit: int | None = None, **fields: Any) -> Request:
    return OVER.build(call(**fields), Target(CATALOG["mistral"], "up", strict=strict), limit)


def sent(**fields: Any) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(built(**fields).body)
    return told


@pytest.mark.parametrize("prompt", ["Once", ["Once"]])
def test_a_prompt_becomes_the_one_message_of_a_chat(prompt: Any) -> None:
    request = built(prompt=prompt, temperature=0.5, stop=["x"], seed=7, limit=3)
    assert json.loads(request.body) == {
        "model": "up",
        "messages": [{"role": "user", "content": "Once"}],
        "max_tokens": 3,
        "temperature": 0.5,
        "stop": ["x"],
        "random_seed": 7,
    }
    assert (request.operation, request.dropped) == ("chat", ())


def test_what_says_no_more_than_its_absence_is_left_out() -> None:
    told = sent(suffix="", echo=False, best_of=1, logprobs=None)
    assert set(told) == {"model", "messages", "max_tokens"}


@pytest.mark.parametrize(("name", "value"), [("suffix", "end"), ("echo", True), ("best_of", 2), ("logprobs", 0)])
def test_what_no_chat_has_is_refused_or_where_the_operator_is_lenient_dropped(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedParamError) as refused:
        built(**{name: value})
    assert refused.value.param == name
    lenient = built(strict=False, **{name: value})
    assert lenient.dropped == (name,)
    assert name not in json.loads(lenient.body)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (["a", "b"], "more than one"),
        ([1], "token numbers"),
        ([1, 2], "token numbers"),
        ([[1, 2]], "token numbers"),
        ([[1], [2]], "more than"),
    ],
)
def test_other_prompts_than_one_text_are_refused_even_where_the_operator_is_lenient(prompt: Any, words: str) -> None:
    with pytest.raises(UnsupportedParamError) as refused:
        built(strict=False, prompt=prompt)
    assert refused.value.param == "prompt"
    assert words in refused.value.message


USAGE = {
    **{"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
ANSWER = {"id": "c1", "object": "chat.completion", "created": 9, "model": "up-1", "usage": USAGE}


def whole(message: dict[str, Any], reason: str | None = "stop") -> dict[str, Any]:
    body = {**ANSWER, "choices": [{"index": 0, "message": message, "finish_reason": reason}]}
    answer = OVER.read_unary(call(), 200, [], json.dumps(body).encode(), TARGET)
    assert answer.problem is None
    assert not answer.native
    assert answer.usage is not None
    assert (answer.usage.input, answer.usage.output) == (3, 2)
    told: dict[str, Any] = json.loads(answer.body)
    return told


def test_an_answer_is_told_as_a_completion() -> None:
    assert whole({"role": "assistant", "content": " upon a time"}) == {
        **ANSWER,
        "object": "text_completion",
        "choices": [{"index": 0, "text": " upon a time", "logprobs": None, "finish_reason": "stop"}],
    }


def test_reasoning_is_no_part_of_the_text() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Yes"}]
    assert whole({"content": parts})["choices"][0]["text"] == "Yes"
    assert whole({"content": "Yes", "reasoning_content": "hm"})["choices"][0]["text"] == "Yes"


@pytest.mark.parametrize(
    ("told", "meant"), [("length", "length"), ("model_length", "length"), ("tool_calls", "stop"), (None, "stop")]
)
def test_the_end_is_one_that_completions_have(told: str | None, meant: str) -> None:
    assert whole({"content": "x"}, told)["choices"][0]["finish_reason"] == meant


def test_an_answer_that_is_none_is_the_providers_fault() -> None:
    answer = OVER.read_unary(call(), 200, [], b"<html>", TARGET)
    assert answer.problem is not None
    assert answer.problem.reason == "protocol"


def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
    told = {"id": "c1", "object": "chat.completion.chunk", "created": 9, "model": "up-1", "choices": choices, **more}
    return b"data: %b\n\n" % json.dumps(told).encode()


STREAM = b"".join(
    (
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "hm"}),
        chunk({"content": " upon"}),
        chunk({"content": " a ✓"}),
        chunk({}, "length"),
        chunk({}, choices=[], usage=USAGE),
        b"data: [DONE]\n\n",
    )
)


def read(data: list[bytes], *, usage: bool = True) -> tuple[Reader, list[dict[str, Any]]]:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    reader = OVER.open_stream(call(stream=True, **options), TARGET)
    out = b"".join(reader.feed(piece) for piece in data) + reader.finish()
    return reader, [json.loads(event.removeprefix(b"data: ")) for event in out.split(b"\n\n") if event]


def test_a_stream_is_told_in_chunks_of_a_completion_wherever_it_is_cut() -> None:
    reader, told = read([STREAM])
    base = {"id": "c1", "object": "text_completion", "created": 9, "model": "up-1"}
    assert told == [
        {**base, "choices": [{"index": 0, "text": " upon", "logprobs": None, "finish_reason": None}]},
        {**base, "choices": [{"index": 0, "text": " a ✓", "logprobs": None, "finish_reason": None}]},
        {**base, "choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]},
        {**base, "choices": [], "usage": USAGE},
    ]
    assert (reader.done, reader.error, reader.events) == (True, None, 3)
    assert reader.usage is not None
    assert (reader.usage.input, reader.usage.output) == (3, 2)
    for at in range(len(STREAM)):
        assert read([STREAM[:at], STREAM[at:]])[1] == told


def test_usage_is_told_only_to_who_asked() -> None:
    reader, told = read([STREAM], usage=False)
    assert all("usage" not in event for event in told)
    assert reader.usage is not None


@pytest.mark.parametrize("more", [{"usage": USAGE}, {"x_groq": {"usage": USAGE}}])
def test_usage_that_comes_on_the_finish_chunk_is_told_behind_it(more: dict[str, Any]) -> None:
    stream = [chunk({"content": "x"}), chunk({}, "stop", **more), b"data: [DONE]\n\n"]
    reader, told = read(stream)
    assert [("usage" in event, len(event["choices"])) for event in told] == [(False, 1), (False, 1), (True, 0)]
    assert (told[-1]["usage"], told[-1]["id"]) == (USAGE, "c1")
    reader, told = read(stream, usage=False)
    assert [("usage" in event, len(event["choices"])) for event in told] == [(False, 1), (False, 1)]
    assert reader.usage is not None


def test_a_stream_that_fails_says_so_and_what_came_before_is_kept() -> None:
    reader, told = read([STREAM[: STREAM.index(b"data: [DONE]")]])
    assert reader.error is not None
    assert reader.error.reason == "cut"
    assert not reader.done
    assert told[0]["choices"][0]["text"] == " upon"
    reader, told = read([b'data: {"error":{"message":"no","code":500}}\n\n'])
    assert reader.error is not None
    assert told == []


def test_an_error_is_read_as_the_adapter_behind_reads_it() -> None:
    problem = OVER.read_error(429, [(b"retry-after", b"7")], b'{"error":{"message":"slow down"}}')
    assert (problem.reason, problem.retry_after_s) == ("rate_limit", 7)
