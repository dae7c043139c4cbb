"""The Gemini API: how answers, streams, errors and model lists are told; counting tokens and embedding."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects import gemini, reading
from gateway.dialects.gemini import GEMINI_ARRAY, GEMINI_SSE
from gateway.dialects.gemini_stream import GeminiCall
from gateway.errors import BadRequestError, GatewayError, RateLimitedError
from tests.fuzz.cases import cases
from tests.gateway.test_gemini_dialect import FORMAT, HELLO, PNG, asked, parse

USAGE = {
    "prompt_tokens": 30,
    "completion_tokens": 12,
    "total_tokens": 42,
    "prompt_tokens_details": {"cached_tokens": 20},
    "completion_tokens_details": {"reasoning_tokens": 5},
}
METADATA = {
    "promptTokenCount": 30,
    "candidatesTokenCount": 7,
    "totalTokenCount": 42,
    "cachedContentTokenCount": 20,
    "thoughtsTokenCount": 5,
}
CALL = {"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a": 1.10}'}}
GOOGLE = {"google": {"thought_signature": "Z29vZ2xl"}}
THINKING = {"generationConfig": {"thinkingConfig": {"includeThoughts": True}}}
CLAUDE = {"type": "reasoning.text", "text": "Hm.", "signature": "S", "format": "anthropic-claude-v1"}


# --- whole answers --------------------------------------------------------------------------------------------------


def completion(*messages: dict[str, Any], finish: Any = "stop", usage: Any = USAGE) -> bytes:
    choices = [
        {"index": index, "message": {"role": "assistant", **message}, "finish_reason": finish}
        for index, message in enumerate(messages)
    ]
    return json.dumps({"id": "c1", "model": "up", "choices": choices, "usage": usage}).encode()


def told(*messages: dict[str, Any], thoughts: bool = False, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(
        GEMINI_SSE.answer(parse(**(THINKING if thoughts else {})), completion(*messages, **more))
    )
    return answer


def parts(message: dict[str, Any], *, thoughts: bool = False, **more: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = told(message, thoughts=thoughts, **more)["candidates"][0]["content"]["parts"]
    return found


def test_a_whole_answer_is_told_as_a_response() -> None:
    message = {"content": "Hi.", "reasoning_content": "Hm.", "tool_calls": [CALL]}
    assert told(message, thoughts=True, finish="tool_calls") == {
        "candidates": [
            {
                "content": {
                    "parts": [
                        {"text": "Hm.", "thought": True},
                        {"text": "Hi."},
                        {"functionCall": {"id": "t", "name": "f", "args": {"a": 1.1}}},
                    ],
                    "role": "model",
                },
                "index": 0,
                "finishReason": "STOP",
            }
        ],
        "usageMetadata": METADATA,
        "modelVersion": "up",
        "responseId": "c1",
    }
    assert b'"args":{"a":1.10}' in GEMINI_SSE.answer(parse(), completion(message))
    assert parts(message)[0] == {"text": "Hi."}


@pytest.mark.parametrize(
    ("finish", "message", "expected"),
    [
        ("stop", {"content": "x"}, "STOP"),
        ("length", {"content": "x"}, "MAX_TOKENS"),
        ("tool_calls", {"tool_calls": [CALL]}, "STOP"),
        ("function_call", {"function_call": {"name": "f", "arguments": ""}}, "STOP"),
        ("content_filter", {"content": None}, "SAFETY"),
        ("of_tomorrow", {"content": "x"}, "STOP"),
        (None, {"content": "x"}, "STOP"),
    ],
)
def test_every_finish_reason_has_its_twin(finish: Any, message: Any, expected: str) -> None:
    assert told(message, finish=finish)["candidates"][0]["finishReason"] == expected


@pytest.mark.parametrize(("finish", "expected"), [("tool_calls", "MALFORMED_FUNCTION_CALL"), ("length", "MAX_TOKENS")])
@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "5"])
def test_a_call_with_broken_arguments_is_not_told(finish: str, expected: str, arguments: str) -> None:
    broken = {**CALL, "function": {"name": "f", "arguments": arguments}}
    candidate = told({"tool_calls": [broken, CALL]}, finish=finish)["candidates"][0]
    assert candidate["finishReason"] == expected
    assert len(candidate["content"]["parts"]) == 1
    assert ("finishMessage" in candidate) == (expected != "MAX_TOKENS")


def test_several_choices_are_candidates() -> None:
    answer = told({"content": "a"}, {"content": "b"})
    assert [(one["index"], one["content"]["parts"]) for one in answer["candidates"]] == [
        (0, [{"text": "a"}]),
        (1, [{"text": "b"}]),
    ]


def test_refusals_pictures_and_log_probabilities_are_told() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    found = parts({"refusal": "No.", "images": [image, 5, {"image_url": {"url": "https://e.org"}}]})
    assert found == [{"text": "No."}, {"inlineData": PNG}]
    top = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}]
    choice = {
        "index": 0,
        "message": {"content": "a"},
        "logprobs": {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": top}]},
    }
    answer = json.loads(GEMINI_SSE.answer(parse(), json.dumps({"choices": [choice]}).encode()))
    both = [{"token": "a", "logProbability": -0.5}, {"token": "b", "logProbability": -1.5}]
    expected = {"topCandidates": [{"candidates": both}], "chosenCandidates": both[:1]}
    assert answer["candidates"][0]["logprobsResult"] == expected
    assert "usageMetadata" not in answer
    assert answer["modelVersion"] == "m"


def test_signatures_of_this_api_stand_where_they_stood() -> None:
    own = [{"type": "reasoning.text", "text": text, "signature": "VEg=", "format": FORMAT} for text in ("Hm.", "So.")]
    message = {
        "content": "Hi.",
        "extra_content": GOOGLE,
        "reasoning_content": "Hm.So.",
        "reasoning_details": own,
        "tool_calls": [{**CALL, "extra_content": GOOGLE}, CALL],
    }
    found = parts(message, thoughts=True)
    assert found[:3] == [
        {"text": "Hm.", "thought": True, "thoughtSignature": "VEg="},
        {"text": "So.", "thought": True, "thoughtSignature": "VEg="},
        {"text": "Hi.", "thoughtSignature": "Z29vZ2xl"},
    ]
    assert [part.get("thoughtSignature") for part in found[3:]] == ["Z29vZ2xl", None]
    read = json.loads(parse(contents=[*HELLO, {"role": "model", "parts": found}]).body)["messages"][1]
    assert read["reasoning_details"] == own
    assert read["extra_content"] == read["tool_calls"][0]["extra_content"] == GOOGLE
    assert parts({"content": None, "extra_content": GOOGLE}) == [{"text": "", "thoughtSignature": "Z29vZ2xl"}]


def test_what_other_providers_signed_travels_with_the_first_call() -> None:
    sealed = {"type": "reasoning.encrypted", "data": "enc", "id": "rs", "format": "openai-responses-v1"}
    message = {
        "content": "Hi.",
        "reasoning_details": [CLAUDE, sealed],
        "tool_calls": [{**CALL, "extra_content": GOOGLE}, {**CALL, "id": "u"}],
    }
    found = parts(message)
    wrap = reading.unwrapped(found[1]["thoughtSignature"])
    assert wrap == {"reasoning_details": [CLAUDE, sealed], "extra_content": GOOGLE}
    base64.b64decode(found[1]["thoughtSignature"], validate=True)
    assert "thoughtSignature" not in found[0] | found[2]
    read = json.loads(parse(contents=[*HELLO, {"role": "model", "parts": found}]).body)["messages"][1]
    assert read["reasoning_details"] == [CLAUDE, sealed]
    assert read["tool_calls"][0]["extra_content"] == GOOGLE


@pytest.mark.parametrize("sent", [b"", b"null", b"[]", b'{"choices":5}', b"\xff", b'{"choices":[5],"usage":[]}'])
def test_nonsense_is_an_answer_without_candidates(sent: bytes) -> None:
    assert json.loads(GEMINI_SSE.answer(parse(), sent)) == {"candidates": [], "modelVersion": "m"}


# --- streams --------------------------------------------------------------------------------------------------------


def chunk(delta: Any, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return b"data: %b\n\n" % json.dumps({"id": "c1", "model": "up", "choices": [choice], **more}).encode()


def usage_chunk() -> bytes:
    return b"data: %b\n\n" % json.dumps({"id": "c1", "choices": [], "usage": USAGE}).encode()


def piece(index: int, arguments: str = "", **more: Any) -> dict[str, Any]:
    head = {"id": more.pop("id"), "type": "function"} if "id" in more else {}
    function = {"arguments": arguments, **({"name": more.pop("name")} if "name" in more else {})}
    return {"tool_calls": [{"index": index, **head, "function": function, **more}]}


def streamed(*deltas: dict[str, Any], finish: str = "stop", thoughts: bool = False, array: bool = False) -> bytes:
    call = parse("streamGenerateContent", b"" if array else b"alt=sse", **(THINKING if thoughts else {}))
    writer = (GEMINI_ARRAY if array else GEMINI_SSE).writer(call, "rid")
    out = [writer.feed(chunk(delta)) for delta in deltas]
    out += [writer.feed(chunk({}, finish)), writer.feed(usage_chunk()), writer.finish()]
    return b"".join(out)


def responses(stream: bytes) -> list[dict[str, Any]]:
    return [json.loads(event.removeprefix("data: ")) for event in stream.decode().split("\n\n")[:-1]]


def merged(stream: bytes) -> list[dict[str, Any]]:
    """The parts of a stream's first candidate; neighbouring texts of one kind are one."""
    found: list[dict[str, Any]] = []
    for response in responses(stream):
        for part in response["candidates"][0]["content"]["parts"]:
            last = found[-1] if found else {}
            joins = "text" in part and "text" in last and part.get("thought") == last.get("thought")
            if joins and "thoughtSignature" not in last:
                found[-1] = {**last, **part, "text": last["text"] + part["text"]}
            elif part != {"text": ""}:
                found.append(part)
    return found


def test_a_stream_is_a_row_of_responses_the_last_with_finish_and_usage() -> None:
    out = streamed(
        {"role": "assistant", "content": ""}, {"content": "Hi"}, {"content": " you."}, piece(0, "{}", id="a", name="f")
    )
    names = '"modelVersion":"up","responseId":"c1"'
    assert out.decode() == (
        'data: {"candidates":[{"content":{"parts":[{"text":"Hi"}],"role":"model"},"index":0}],' + names + "}\n\n"
        'data: {"candidates":[{"content":{"parts":[{"text":" you."}],"role":"model"},"index":0}],' + names + "}\n\n"
        'data: {"candidates":[{"content":{"parts":[{"functionCall":{"id":"a","name":"f","args":{}}}],"role":"model"},'
        '"index":0,"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":30,"candidatesTokenCount":7,'
        '"totalTokenCount":42,"cachedContentTokenCount":20,"thoughtsTokenCount":5},' + names + "}\n\n"
    )


def test_an_array_stream_is_one_json_array() -> None:
    out = streamed({"content": "Hi"}, {"content": " you."}, array=True)
    assert json.loads(out) == responses(streamed({"content": "Hi"}, {"content": " you."}))
    writer = GEMINI_ARRAY.writer(parse("streamGenerateContent", b""), "rid")
    begun = writer.feed(chunk({"content": "Hi"}))
    shape = json.loads(GEMINI_SSE.error(RateLimitedError(), ""))
    assert json.loads(begun + GEMINI_ARRAY.ping + writer.fail(RateLimitedError()))[1] == shape
    assert json.loads(begun + GEMINI_ARRAY.in_band(RateLimitedError()))[1] == shape
    fresh = GEMINI_ARRAY.writer(parse("streamGenerateContent", b""), "rid")
    assert (
        json.loads(fresh.fail(RateLimitedError())) == json.loads(GEMINI_ARRAY.error(RateLimitedError(), "")) == [shape]
    )
    empty = GEMINI_ARRAY.writer(parse("streamGenerateContent", b""), "rid")
    assert len(json.loads(empty.feed(b"") + empty.finish())) == 1


def test_tool_calls_wait_until_they_are_whole_and_thoughts_until_they_are_asked_for() -> None:
    deltas = (
        {"reasoning_content": "Hm."},
        {"reasoning_details": [CLAUDE]},
        piece(0, id="a", name="f"),
        piece(1, id="b", name="g", extra_content=GOOGLE),
        piece(1, '{"y":'),
        piece(0, "{}"),
        piece(1, "2}"),
        {"content": "late"},
    )
    found = merged(streamed(*deltas, thoughts=True, finish="tool_calls"))
    assert [{**part, "thoughtSignature": ""} for part in found[2:]] == [
        {"functionCall": {"id": "a", "name": "f", "args": {}}, "thoughtSignature": ""},
        {"functionCall": {"id": "b", "name": "g", "args": {"y": 2}}, "thoughtSignature": ""},
    ]
    assert found[:2] == [{"text": "Hm.", "thought": True}, {"text": "late"}]
    assert reading.unwrapped(found[2]["thoughtSignature"]) == {"reasoning_details": [CLAUDE]}
    assert found[3]["thoughtSignature"] == "Z29vZ2xl"
    assert merged(streamed(*deltas))[0] == {"text": "late"}
    own = {"type": "reasoning.text", "text": "Hm.", "signature": "VEg=", "format": FORMAT}
    signed = merged(streamed({"reasoning_content": "Hm."}, {"reasoning_details": [own]}, thoughts=True))
    assert signed == [{"text": "Hm.", "thought": True, "thoughtSignature": "VEg="}]
    unsigned = {"reasoning_details": [{"type": "reasoning.text", "text": "Hm."}]}
    assert merged(streamed(unsigned, thoughts=True)) == [{"text": "Hm.", "thought": True}]


def test_candidates_of_a_stream_keep_apart() -> None:
    writer = GEMINI_SSE.writer(parse("streamGenerateContent"), "rid")
    out = writer.feed(chunk({"content": "a"}) + chunk({"content": "b"}, index=1) + chunk({}, "length", 1))
    last = responses(out + writer.finish())
    assert [response["candidates"][0]["index"] for response in last[:2]] == [0, 1]
    assert [(one["index"], one["finishReason"]) for one in last[2]["candidates"]] == [(0, "STOP"), (1, "MAX_TOKENS")]


def test_an_empty_stream_still_ends_and_a_failure_is_told_in_band() -> None:
    writer = GEMINI_SSE.writer(parse("streamGenerateContent"), "rid")
    assert responses(writer.feed(b"") + writer.finish()) == [
        {
            "candidates": [{"content": {"parts": [{"text": ""}], "role": "model"}, "index": 0, "finishReason": "STOP"}],
            "modelVersion": "m",
            "responseId": "rid",
        }
    ]
    told = responses(GEMINI_SSE.writer(parse("streamGenerateContent"), "rid").fail(RateLimitedError()))
    assert told == responses(GEMINI_SSE.in_band(RateLimitedError()))
    assert told[0]["error"]["status"] == "RESOURCE_EXHAUSTED"


WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
ARGUMENTS = st.dictionaries(WORDS, st.one_of(st.integers(), WORDS, st.lists(st.booleans())), max_size=3)


@st.composite
def answers(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A whole canonical message and the same as deltas, its tool calls mixed."""
    reasoning, content = draw(st.lists(WORDS, max_size=3)), draw(st.lists(WORDS, max_size=3))
    calls = [(f"id{place}", draw(WORDS), draw(ARGUMENTS)) for place in range(draw(st.integers(0, 3)))]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": words} for words in reasoning]
    deltas += [{"content": words} for words in content]
    message: dict[str, Any] = {"content": "".join(content) or None}
    if reasoning:
        message["reasoning_content"] = "".join(reasoning)
    pieces = []
    for index, (id, name, arguments) in enumerate(calls):
        spelled = json.dumps(arguments)
        cut = draw(st.integers(0, len(spelled)))
        deltas.append(piece(index, "", id=id, name=name))
        pieces.append([piece(index, spelled[:cut]), piece(index, spelled[cut:])])
    while any(pieces):
        deltas.append(draw(st.sampled_from([queue for queue in pieces if queue])).pop(0))
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
    whole = [part for part in parts(message, thoughts=True, finish=finish) if part != {"text": ""}]
    stream = streamed(*deltas, finish=finish, thoughts=True)
    assert merged(stream) == whole
    assert responses(stream)[-1]["usageMetadata"] == METADATA
    if not whole:
        return
    read = json.loads(parse(contents=[*HELLO, {"role": "model", "parts": whole}]).body)["messages"][1]
    assert (read["content"] or None) == message["content"]
    assert read.get("reasoning_content") == message.get("reasoning_content")
    for back, call in zip(read.get("tool_calls", ()), message.get("tool_calls", ()), strict=True):
        assert (back["id"], back["function"]["name"]) == (call["id"], call["function"]["name"])
        assert json.loads(back["function"]["arguments"]) == json.loads(call["function"]["arguments"])


@pytest.mark.parametrize("array", [False, True])
def test_a_stream_is_the_same_however_it_is_cut(array: bool) -> None:
    data = b"".join(map(chunk, ({"reasoning_content": "Hé"}, {"content": "Ω"}, piece(0, "{}", id="a", name="f"))))
    data += chunk({}, "tool_calls") + usage_chunk()
    call = parse("streamGenerateContent", **THINKING)
    dialect = GEMINI_ARRAY if array else GEMINI_SSE
    whole = dialect.writer(call, "rid")
    expected = whole.feed(data) + whole.finish()
    for cut in range(len(data)):
        writer = dialect.writer(call, "rid")
        assert writer.feed(data[:cut]) + writer.feed(data[cut:]) + writer.finish() == expected
    last = dialect.writer(call, "rid")
    assert last.feed(data[:-2]) + last.finish() == expected


KEYS = (
    *("content", "text", "type", "thinking", "tool_calls", "function", "name", "arguments", "index", "id", "images"),
    *("reasoning_details", "signature", "data", "format", "extra_content", "google", "refusal", "image_url", "url"),
)
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)),
    max_leaves=12,
)


@cases(200)
@given(st.lists(JUNK, max_size=4), st.binary(max_size=30))
def test_nonsense_never_breaks_a_stream(deltas: list[Any], noise: bytes) -> None:
    writer = GEMINI_ARRAY.writer(parse("streamGenerateContent", b"", **THINKING), "rid")
    out = b""
    for delta in deltas:
        choice = {"index": 0, "delta": delta, "finish_reason": delta, "logprobs": {"content": delta}}
        data = json.dumps({"id": delta, "choices": [choice, delta], "usage": delta}).encode()
        out += writer.feed(b"data: %b\n\n" % data) + writer.feed(b"data: %b\n\n" % noise.replace(b"\n", b""))
        assert isinstance(GEMINI_SSE.answer(parse(), completion({"x": delta, "tool_calls": delta})), bytes)
    assert "finishReason" in json.loads(out + writer.finish())[-1]["candidates"][0]


# --- errors and lists -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "INVALID_ARGUMENT"),
        (401, "UNAUTHENTICATED"),
        (402, "FAILED_PRECONDITION"),
        (403, "PERMISSION_DENIED"),
        (404, "NOT_FOUND"),
        (405, "UNIMPLEMENTED"),
        (408, "DEADLINE_EXCEEDED"),
        (413, "INVALID_ARGUMENT"),
        (415, "INVALID_ARGUMENT"),
        (429, "RESOURCE_EXHAUSTED"),
        (500, "INTERNAL"),
        (502, "UNAVAILABLE"),
        (503, "UNAVAILABLE"),
        (504, "DEADLINE_EXCEEDED"),
    ],
)
def test_errors_have_the_names_of_googles_apis(status: int, name: str) -> None:
    told = json.loads(GEMINI_SSE.error(GatewayError("No.", status=status), "rid"))
    assert told == {"error": {"code": status, "message": "No.", "status": name}}


def test_models_are_listed_in_this_apis_shape() -> None:
    told = json.loads(gemini.models(["a", "org/b"]))
    assert [one["name"] for one in told["models"]] == ["models/a", "models/org/b"]
    assert told["models"][1] == json.loads(gemini.model("org/b"))
    assert "generateContent" in told["models"][0]["supportedGenerationMethods"]
    assert json.loads(gemini.models([])) == {"models": []}


def test_the_dialects_say_how_they_are_served() -> None:
    assert GEMINI_SSE.name == GEMINI_ARRAY.name == "gemini"
    assert GEMINI_SSE.stream_type.startswith(b"text/event-stream")
    assert GEMINI_ARRAY.stream_type.startswith(b"application/json")
    assert GEMINI_SSE.id_header == b""
    assert not (GEMINI_SSE.ping + GEMINI_ARRAY.ping).strip()


# --- counting and embedding -----------------------------------------------------------------------------------------


def counted(**fields: Any) -> Any:
    return gemini.parse_count(json.dumps(fields).encode(), asked("/v1beta/models/m:countTokens"))


def test_the_token_counter_takes_contents_or_a_whole_request() -> None:
    call = counted(contents=HELLO)
    assert (call.endpoint, call.model, call.messages, call.stream) == ("chat", "m", 1, False)
    whole = {"model": "models/m", "contents": HELLO, "systemInstruction": {"parts": [{"text": "s"}]}}
    call = counted(generateContentRequest=whole)
    assert (call.model, call.messages) == ("m", 2)
    assert json.loads(call.native) == whole
    assert gemini.count_answer(12) == b'{"totalTokens":12}'
    for fields in (
        {"generateContentRequest": 5},
        {"generateContentRequest": whole, "contents": HELLO},
        {"generateContentRequest": {**whole, "model": "models/x"}},
        {},
    ):
        with pytest.raises(BadRequestError):
            counted(**fields)


def embedded(action: str, **fields: Any) -> GeminiCall:
    call = gemini.parse_embed(json.dumps(fields).encode(), asked(f"/v1beta/models/m:{action}"))
    assert isinstance(call, GeminiCall)
    return call


def test_texts_are_embedded_alone_or_in_a_batch() -> None:
    content = {"parts": [{"text": "a"}, {"text": "b"}]}
    call = embedded("embedContent", content=content, outputDimensionality=8)
    assert json.loads(call.body) == {"model": "m", "input": ["a\nb"], "encoding_format": "float", "dimensions": 8}
    assert (call.endpoint, call.dimensions, call.batch, call.dialect, call.n) == ("embeddings", 8, False, "gemini", 0)
    request = {"model": "models/m", "content": {"parts": [{"text": "a"}]}}
    batch = embedded("batchEmbedContents", requests=[request, request])
    assert json.loads(batch.body)["input"] == ["a", "a"]
    assert (batch.messages, batch.batch, batch.native_only) == (2, True, "")
    typed = embedded("batchEmbedContents", requests=[{**request, "taskType": "RETRIEVAL_QUERY", "autoTruncate": True}])
    assert (typed.native_only, typed.dropped) == ("requests[0].taskType", ("autoTruncate",))
    assert gemini.parse_embed(json.dumps({"requests": [request]}).encode()).model == "m"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "requests"),
        ({"requests": []}, "requests"),
        ({"requests": [{}]}, "requests[0].content"),
        ({"requests": [{"content": {"parts": []}}]}, "requests[0].content"),
        ({"requests": [{"content": {"parts": [{"inlineData": PNG}]}}]}, "requests[0].content.parts[0]"),
        ({"requests": [{"model": "x", "content": {"parts": [{"text": "a"}]}}]}, "model"),
        (
            {
                "requests": [
                    {"content": {"parts": [{"text": "a"}]}, "outputDimensionality": 5},
                    {"content": {"parts": [{"text": "a"}]}},
                ]
            },
            "requests",
        ),
        (
            {"requests": [{"content": {"parts": [{"text": "a"}]}, "outputDimensionality": "5"}]},
            "requests[0].outputDimensionality",
        ),
        ({"requests": [{"content": {"parts": [{"text": "a"}]}, "outputDimensionality": -5}]}, "outputDimensionality"),
    ],
)
def test_a_bad_batch_is_refused_by_the_name_of_its_field(fields: Any, param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        embedded("batchEmbedContents", **fields)
    assert caught.value.param == param


def test_embeddings_are_told_alone_or_as_a_batch() -> None:
    packed = base64.b64encode(struct.pack("<2f", 0.5, 1.5)).decode()
    data = [{"index": 1, "embedding": packed}, {"index": 0, "embedding": [0.25, 1]}]
    body = json.dumps({"data": data, "usage": {"prompt_tokens": 3}}).encode()
    request = {"content": {"parts": [{"text": "a"}]}}
    batch = json.loads(GEMINI_SSE.answer(embedded("batchEmbedContents", requests=[request, request]), body))
    assert batch["embeddings"] == [{"values": [0.25, 1]}, {"values": [0.5, 1.5]}]
    single = embedded("embedContent", **request)
    assert json.loads(GEMINI_SSE.answer(single, body)) == {
        "embedding": {"values": [0.25, 1]},
        "usageMetadata": {"promptTokenCount": 3},
    }
    for broken in (b"", b'{"data":5}', b'{"data":[{"embedding":"!"}]}', b'{"data":[{"embedding":"AA=="}]}'):
        assert json.loads(GEMINI_SSE.answer(single, broken)) == {"embedding": {"values": []}}
