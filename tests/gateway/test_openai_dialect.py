"""OpenAI request bodies: what becomes of their fields, and what is refused with which parameter."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway import endpoints
from gateway.dialects import openai
from gateway.errors import BadRequestError
from providers.canonical import Call

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> Call:
    return openai.parse_chat(json.dumps({"model": "m", "messages": HELLO, **fields}).encode())


def completion(**fields: Any) -> Call:
    return openai.parse_completions(json.dumps({"model": "m", "prompt": "hello", **fields}).encode())


def embedding(**fields: Any) -> Call:
    return openai.parse_embeddings(json.dumps({"model": "m", "input": "hello", **fields}).encode())


def refusal(parse: Callable[..., Call], **fields: Any) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        parse(**fields)
    return caught.value


def test_a_plain_chat_request_is_understood() -> None:
    body = b'{"model":"gpt","messages":[{"role":"user","content":"hi"}]}'
    call = openai.parse_chat(body)
    assert call == Call(endpoint="chat", model="gpt", body=body, fields=frozenset(("model", "messages")), messages=1)
    assert call.body is body
    assert (call.stream, call.wants_usage, call.limit, call.limit_field, call.n, call.pool) == (
        False,
        False,
        None,
        "",
        1,
        None,
    )


def test_every_field_the_gateway_reads_is_read_wherever_it_stands() -> None:
    fields = {
        "model": "m",
        "messages": HELLO * 3,
        "stream": True,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
        "max_completion_tokens": 77,
        "n": 3,
        "pool": "team-a",
    }
    for order in itertools.islice(itertools.permutations(fields), 0, None, 97):
        call = openai.parse_chat(json.dumps({name: fields[name] for name in order}).encode())
        assert (call.model, call.messages, call.stream, call.wants_usage) == ("m", 3, True, True)
        assert (call.limit, call.limit_field, call.n, call.pool) == (77, "max_completion_tokens", 3, "team-a")
        assert call.fields == set(fields)


def test_names_inside_tools_and_texts_are_not_taken_for_fields() -> None:
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": {"properties": {"temperature": {}, "n": {}}}}}
    ]
    call = chat(tools=tools, messages=[{"role": "user", "content": '{"model":"evil","max_tokens":1,"stream":true}'}])
    assert (call.model, call.limit, call.n, call.stream) == ("m", None, 1, False)


def test_null_means_absent() -> None:
    names = "stream max_tokens max_completion_tokens n temperature top_p stop tools stream_options response_format pool"
    call = chat(**dict.fromkeys(names.split()))
    assert (call.stream, call.limit, call.limit_field, call.n, call.pool) == (False, None, "", 1, None)


def test_unknown_fields_and_future_roles_pass() -> None:
    messages = [
        {"role": "oracle", "content": "x", "mood": {"a": 1}},
        {"role": "assistant", "tool_calls": [{"id": "0", "function": {"name": "f", "arguments": "{"}}]},
        {"role": "tool", "tool_call_id": "0", "content": None},
    ]
    call = chat(messages=messages, quantum=True, reasoning_effort="galactic", tools=[{"type": "namespace", "x": []}])
    assert call.messages == 3
    assert "quantum" in call.fields


def test_both_names_of_the_limit_may_agree() -> None:
    call = chat(max_tokens=9, max_completion_tokens=9)
    assert (call.limit, call.limit_field) == (9, "max_completion_tokens")


def test_usage_is_not_wanted_without_a_stream() -> None:
    assert not chat(stream_options={"include_usage": True}).wants_usage
    assert not chat(stream=True, stream_options={"include_usage": False}).wants_usage


NOT_COUNTS = (-1, 0, 2**63, 2**31, 1.5, 1.0, True, False, "10", "", [], {}, [1])

REFUSED: list[tuple[str, Callable[..., Call], dict[str, Any]]] = [
    *(("max_tokens", chat, {"max_tokens": value}) for value in NOT_COUNTS),
    *(("max_completion_tokens", chat, {"max_completion_tokens": value}) for value in NOT_COUNTS),
    *(("n", chat, {"n": value}) for value in (*NOT_COUNTS, 129)),
    *(("max_tokens", completion, {"max_tokens": value}) for value in NOT_COUNTS),
    *(("n", completion, {"n": value}) for value in (*NOT_COUNTS, 129)),
    *(("best_of", completion, {"best_of": value}) for value in (*NOT_COUNTS, 129)),
    *(("dimensions", embedding, {"dimensions": value}) for value in NOT_COUNTS),
    *(("model", parse, {"model": value}) for parse in (chat, completion, embedding) for value in (
        None, "", 1, True, ["m"], "a\nb", "a\r\nb", "a\x00b", "a\x7fb", "a\x9bb", "a\u2028b", "m" * 257,
    )),
    *(("stream", parse, {"stream": value}) for parse in (chat, completion) for value in ("true", 1, 0, [], {})),
    *(("messages", chat, {"messages": value}) for value in (None, [], {}, "hi", 1, HELLO * 4097)),
    *(("messages[0]", chat, {"messages": [value]}) for value in (None, "hi", 1, [])),
    *(("messages[1].role", chat, {"messages": [*HELLO, {"role": value}]}) for value in (None, "", 1, [])),
    ("messages[0].role", chat, {"messages": [{"content": "x"}]}),
    *(("messages[0].content", chat, {"messages": [{"role": "user", "content": value}]}) for value in (1, True, {})),
    *(
        ("messages[0].content[0]", chat, {"messages": [{"role": "user", "content": [value]}]})
        for value in ("hi", 1, None, [], {}, {"text": "x"}, {"type": 1})
    ),
    ("messages[0].content[0].text", chat, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
    ("messages[0].content[0].image_url", chat, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
    *(("temperature", chat, {"temperature": value}) for value in (-0.1, 2.1, "1", True, [])),
    *(("top_p", chat, {"top_p": value}) for value in (-0.1, 1.1, "1", True, [])),
    *(("stop", chat, {"stop": value}) for value in (1, {}, [1], ["a", None])),
    *(("stream_options", chat, {"stream": True, "stream_options": value}) for value in (1, [], "x")),
    ("stream_options.include_usage", chat, {"stream": True, "stream_options": {"include_usage": 1}}),
    *(("pool", chat, {"pool": value}) for value in (1, "", "a\nb", ["a"], "p" * 257)),
    *(("tools", chat, {"tools": value}) for value in ({}, "x", 1)),
    *(("response_format", chat, {"response_format": value}) for value in ("json", 1, [])),
    ("max_tokens", chat, {"max_tokens": 1, "max_completion_tokens": 2}),
    ("n_predict", chat, {"n_predict": 5}),
    ("models", chat, {"models": ["a", "b"]}),
    ("best_of", completion, {"n": 3, "best_of": 2}),
    ("suffix", completion, {"suffix": 1}),
    ("echo", completion, {"echo": "yes"}),
    *(("prompt", completion, {"prompt": value}) for value in (
        None, "", [], {}, 1, [1.5], [True], [1, "a"], [[1], "a"], [[]], [[1], []], [[1, "a"]], [-1], [2**31], [None],
    )),
    *(("input", embedding, {"input": value}) for value in (
        None, "", [], {}, 1, [""], ["a", ""], [1.5], [True], [1, "a"], [[]], [[1, "a"]], [-1], [["a"]], [{}],
    )),
    *(("encoding_format", embedding, {"encoding_format": value}) for value in ("hex", 1, [], {}, True)),
    ("stream", embedding, {"stream": True}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("param", "parse", "fields"), REFUSED, ids=[f"{index}-{item[0]}" for index, item in enumerate(REFUSED)]
)
def test_bad_values_are_refused_by_name(param: str, parse: Callable[..., Call], fields: dict[str, Any]) -> None:
    error = refusal(parse, **fields)
    assert (error.status, error.param, error.type) == (400, param, "invalid_request_error")
    assert error.message.endswith(".")


@pytest.mark.parametrize("name", ["max_tokens", "n", "temperature"])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 5000, "-0.5", "1e1000000"])
def test_numbers_beyond_reason_are_refused(name: str, number: str) -> None:
    with pytest.raises(BadRequestError):
        openai.parse_chat(b'{"model":"m","messages":[{"role":"user"}],"%b":%b}' % (name.encode(), number.encode()))


@pytest.mark.parametrize("model", ["m", "a/b:c@d", "../../etc/passwd?x=1#y", "größe", "模型", "m" * 256, "a b"])
def test_any_printable_model_name_passes(model: str) -> None:
    assert chat(model=model).model == model


@pytest.mark.parametrize("value", [0, 2, 1.5, 0.0, -0.0])
def test_the_ends_of_the_ranges_pass(value: float) -> None:
    chat(temperature=value, top_p=min(value, 1))


def test_media_are_counted_with_the_bytes_of_their_payloads() -> None:
    image, sound, paper = "data:image/png;base64," + "A" * 100, "B" * 200, "data:application/pdf;base64," + "C" * 50
    parts = [
        {"type": "text", "text": "look at data:image/png;base64,AAAA"},
        {"type": "image_url", "image_url": {"url": image, "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}},
        {"type": "image_url", "image_url": image},
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
        {"type": "file", "file": {"file_data": paper, "filename": "a.pdf"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "hologram", "x": 1},
        {"type": "refusal", "refusal": "no"},
    ]
    call = chat(messages=[{"role": "user", "content": parts}, {"role": "assistant", "audio": {"id": "audio_1"}}])
    assert (call.images, call.audios, call.files, call.others) == (3, 2, 2, 1)
    assert call.media_bytes == 2 * len(image) + len(sound) + len(paper)


def test_payloads_count_at_most_their_bytes_in_the_body() -> None:
    escaped = (
        b'{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:\\/\\/"}}]}]}'
    )
    assert openai.parse_chat(escaped).media_bytes == len("data://")


@pytest.mark.parametrize(
    ("prompt", "messages", "tokens"),
    [("hello", 1, 0), (["a", "b", ""], 3, 0), ([1, 2, 3], 1, 3), ([[1, 2], [3]], 2, 3)],
)
def test_prompts_are_counted(prompt: Any, messages: int, tokens: int) -> None:
    call = completion(prompt=prompt)
    assert (call.messages, call.prompt_tokens, call.n, call.endpoint) == (messages, tokens, messages, "completions")


def test_all_outputs_of_a_completion_are_counted() -> None:
    assert completion(prompt=["a", "b"], n=2, best_of=5).n == 10
    assert completion(prompt="a", n=2).n == 2
    assert chat(n=2, best_of=4).n == 4


def test_a_suffix_counts_beside_token_prompts() -> None:
    assert completion(prompt=[1, 2], suffix="é!").prompt_tokens == 5


def test_embedding_fields_are_read() -> None:
    call = embedding(input=["a", "b"], encoding_format="base64", dimensions=256)
    assert (call.endpoint, call.messages, call.encoding, call.dimensions, call.n) == ("embeddings", 2, "base64", 256, 0)
    assert embedding(input=[[1, 2, 3], [4]]).prompt_tokens == 4
    assert embedding().encoding == "float"


def test_the_word_of_one_provider_for_a_forced_tool_is_understood_for_all() -> None:
    endpoint = endpoints.INFERENCE["/v1/chat/completions"]
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"tools":[],"tool_choice":"any"}'
    assert json.loads(endpoint.parse(body, None).body)["tool_choice"] == "required"  # type: ignore[arg-type]
