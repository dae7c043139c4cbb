"""The Gemini API: nothing hides beside what is counted, large requests cost little, and what is sent was read here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.dialects import gemini, reading
from gateway.dialects.gemini_contents import CONTENTS_MAX, PARTS_MAX, Conversation, json_schema
from gateway.errors import BadRequestError
from providers.adapters.google import Google
from providers.canonical import Call, Target
from providers.catalog import CATALOG

HELLO = [{"role": "user", "parts": [{"text": "hello"}]}]
FILE = {"fileUri": "https://e.org/a.pdf", "mimeType": "application/pdf"}
BLOB = {"mimeType": "application/pdf", "data": "JVBE"}
CALL = {"name": "f", "args": {}}
RESULT = {"name": "f", "response": {}}
TARGET = Target(CATALOG["google"], "e")


def asked(action: str) -> Any:
    return SimpleNamespace(path=f"/v1beta/models/m:{action}", query=b"alt=sse", headers=[])


def parse(**fields: Any) -> Call:
    sent = json.dumps({"contents": HELLO, **fields}).encode()
    return gemini.parse_generate(sent, asked("generateContent"))


def counting(**fields: Any) -> Call:
    return gemini.parse_count(json.dumps(fields).encode(), asked("countTokens"))


def embedding(action: str, **fields: Any) -> Call:
    return gemini.parse_embed(json.dumps(fields).encode(), asked(action))


def embedded(text: str = "a", **part: Any) -> dict[str, Any]:
    return {"content": {"parts": [{"text": text, **part}]}}


# --- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", ["fileData", "file_data", "inlineData", "inline_data", "FileData", "file_Data"])
@pytest.mark.parametrize(
    "shown",
    [
        {"text": "x"},
        {"text": ""},
        {"functionCall": CALL},
        {"function_call": CALL},
        {"functionResponse": RESULT},
        {"executableCode": {"code": "1"}},
        {"code_execution_result": {"outcome": "OUTCOME_OK"}},
        {"text": "x", "thought": True},
    ],
)
@pytest.mark.parametrize("role", ["user", "model", "function"])
def test_nothing_stands_beside_the_content_of_a_part(role: str, shown: dict[str, Any], hidden: str) -> None:
    data = FILE if "ile" in hidden else BLOB
    for part in ({**shown, hidden: data}, {hidden: data, **shown}):
        with pytest.raises(BadRequestError) as caught:
            parse(contents=[{"role": role, "parts": [part]}])
        assert caught.value.param is not None
        assert caught.value.param.startswith("contents[0].parts[0].")


@pytest.mark.parametrize("role", ["user", "model"])
@pytest.mark.parametrize("part", [{"fileData": FILE}, {"inline_data": BLOB}])
def test_thoughts_hold_no_files(role: str, part: dict[str, Any]) -> None:
    assert parse(contents=[{"role": role, "parts": [part]}]).files == 1
    with pytest.raises(BadRequestError) as caught:
        parse(contents=[{"role": role, "parts": [{**part, "thought": True}]}])
    assert caught.value.message.endswith("cannot stand in a thought.")


@pytest.mark.parametrize("part", [{"fileData": FILE}, {"inlineData": BLOB}, {"functionCall": CALL}])
def test_only_text_stands_in_system_instructions_and_embeddings(part: dict[str, Any]) -> None:
    name = next(iter(part))
    for more in ({}, {"text": "x"}, {"text": None}):
        with pytest.raises(BadRequestError) as caught:
            parse(systemInstruction={"parts": [{"text": "x"}, {**more, **part}]})
        assert caught.value.param == f"systemInstruction.parts[1].{name}"
        content = {"parts": [{"text": "x"}, {**more, **part}]}
        with pytest.raises(BadRequestError) as caught:
            embedding("embedContent", content=content)
        assert caught.value.param == f"content.parts[1].{name}"
        with pytest.raises(BadRequestError) as caught:
            embedding("batchEmbedContents", requests=[embedded(), {"content": content}])
        assert caught.value.param == f"requests[1].content.parts[1].{name}"


def test_results_are_told_by_users_and_hold_no_further_results() -> None:
    with pytest.raises(BadRequestError) as caught:
        parse(contents=[{"role": "model", "parts": [{"functionResponse": {**RESULT, "parts": [{"fileData": FILE}]}}]}])
    assert caught.value.param == "contents[0].parts[0].functionResponse"
    inners: list[dict[str, Any]] = [
        {"functionResponse": RESULT},
        {"function_call": CALL},
        {"text": "", "fileData": FILE},
    ]
    for inner in inners:
        with pytest.raises(BadRequestError) as caught:
            parse(contents=[{"parts": [{"functionResponse": {**RESULT, "parts": [inner]}}]}])
        assert (caught.value.param or "").startswith("contents[0].parts[0].functionResponse.parts[0].")
    told = parse(contents=[{"parts": [{"functionResponse": {**RESULT, "parts": [{"fileData": FILE}] * 3}}]}])
    assert told.files == 3


def test_what_is_null_is_not_there_and_unknown_content_is_counted() -> None:
    part: dict[str, Any] = {
        "text": "x",
        "fileData": None,
        "functionCall": None,
        "thoughtSignature": None,
        "mediaResolution": {},
    }
    call = parse(contents=[{"parts": [part]}])
    assert (call.files, call.others, call.native_only) == (0, 0, "")
    for role in ("user", "model"):
        call = parse(contents=[{"role": role, "parts": [{"hologram": {}, "thought": True}]}])
        assert (call.others, call.native_only) == (1, "contents[0].parts[0].hologram")


# --- size -----------------------------------------------------------------------------------------------------------


def read(*contents: dict[str, Any]) -> list[dict[str, Any]]:
    conversation = Conversation(reading.Findings())
    conversation.read(list(contents))
    return conversation.messages


@pytest.mark.parametrize("ids", [True, False])
def test_results_find_their_calls_at_once_however_many_there_are(ids: bool) -> None:
    count = PARTS_MAX // 2
    calls = [{"functionCall": {"name": f"f{i}", **({"id": f"c{i}"} if ids else {})}} for i in range(count)]
    results = [
        {"functionResponse": {"name": f"f{i}", **({"id": f"c{i}"} if ids else {})}} for i in reversed(range(count))
    ]
    begin = time.process_time()
    told = read({"role": "model", "parts": calls}, {"role": "user", "parts": results})
    assert time.process_time() - begin < 2
    made = [call["id"] for call in told[0]["tool_calls"]]
    assert [message["tool_call_id"] for message in told[1:]] == made[::-1]


def test_calls_of_one_name_and_one_id_are_answered_in_their_order() -> None:
    count = PARTS_MAX // 2
    for id in ({}, {"id": "c"}):
        calls = [{"functionCall": {"name": "f", **id}}] * count
        told = read({"role": "model", "parts": calls}, {"parts": [{"functionResponse": {"name": "f", **id}}] * count})
        assert [message["tool_call_id"] for message in told[1:]] == [call["id"] for call in told[0]["tool_calls"]]


def test_long_thoughts_in_small_parts_are_joined_once() -> None:
    part = {"text": "x" * 2000, "thought": True}
    begin = time.process_time()
    told = read({"role": "model", "parts": [part] * PARTS_MAX})
    assert time.process_time() - begin < 2
    assert told[0]["reasoning_content"] == "x" * 2000 * PARTS_MAX


def test_too_many_turns_or_parts_are_refused_before_they_are_read() -> None:
    bad = {"text": 5}
    ids = range(40_000)
    calls = [{"functionCall": {"name": "f", "id": f"c{i}"}} for i in ids]
    results = [{"functionResponse": {"name": "f", "id": f"c{i}"}} for i in reversed(ids)]
    nested = {"functionResponse": {**RESULT, "parts": [{"text": "x"}] * PARTS_MAX}}
    for contents, param in (
        ([{"parts": [bad]}] * (CONTENTS_MAX + 1), "contents"),
        ([{"parts": [bad]}, {"parts": [bad] * PARTS_MAX}], "contents[1].parts"),
        ([{"role": "model", "parts": calls}, {"parts": results}], "contents[0].parts"),
        ([{"parts": [nested]}], "contents[0].parts[0].functionResponse.parts"),
    ):
        begin = time.process_time()
        with pytest.raises(BadRequestError) as caught:
            read(*contents)
        assert time.process_time() - begin < 1
        assert caught.value.param == param
    with pytest.raises(BadRequestError) as caught:
        parse(systemInstruction={"parts": [{"text": "x"}] * (PARTS_MAX + 1)})
    assert caught.value.param == "systemInstruction.parts"
    half = {"content": {"parts": [{"text": "x"}] * (PARTS_MAX // 2)}}
    assert embedding("batchEmbedContents", requests=[half, half]).messages == 2
    with pytest.raises(BadRequestError) as caught:
        embedding("batchEmbedContents", requests=[half, half, embedded()])
    assert caught.value.param == "requests[2].content.parts"


def test_many_allowed_tools_are_found_at_once() -> None:
    names = [f"f{i}" for i in range(20_000)]
    config = {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": names[::-1]}}
    begin = time.process_time()
    call = parse(tools=[{"functionDeclarations": [{"name": name} for name in names]}], toolConfig=config)
    assert time.process_time() - begin < 3
    assert len(json.loads(call.body)["tools"]) == len(names)


@pytest.mark.parametrize("way", ["items", "properties", "anyOf"])
def test_schemas_as_deep_as_bodies_may_be_are_read(way: str) -> None:
    wraps: dict[str, Callable[[Any], dict[str, Any]]] = {
        "items": lambda inner: {"type": "ARRAY", "items": inner},
        "properties": lambda inner: {"type": "OBJECT", "properties": {"x" * 64: inner}},
        "anyOf": lambda inner: {"anyOf": [inner]},
    }
    schema: dict[str, Any] = {"type": "STRING"}
    for _ in range(120 if way == "items" else 60):
        schema = wraps[way](schema)
    call = parse(
        generationConfig={"responseSchema": schema},
        tools=[{"functionDeclarations": [{"name": "f", "parameters": schema}]}],
    )
    told = json.loads(call.body)
    assert told["response_format"]["json_schema"]["schema"] == told["tools"][0]["function"]["parameters"]
    assert b'"STRING"' not in call.body
    broken = json.loads(json.dumps(schema).replace('{"type": "STRING"}', '{"items": 5}'))
    with pytest.raises(BadRequestError) as caught:
        json_schema(broken, "x")
    assert len(caught.value.param or "") < 700


# --- what is sent ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["generateContentRequest", "generate_content_request"])
def test_a_count_without_a_whole_request_is_one_of_its_contents(name: str) -> None:
    call = counting(contents=HELLO, **{name: None})
    assert json.loads(call.native) == {"contents": HELLO}
    expected = {"generateContentRequest": {"contents": HELLO, "model": "models/e"}}
    assert json.loads(Google().build_count(call, TARGET).body) == expected
    whole = counting(**{name: {"contents": HELLO, name: None}}, contents=None, pool="p")
    assert json.loads(Google().build_count(whole, TARGET).body) == expected
    call.native = json.dumps({"contents": HELLO, name: None}).encode()
    assert json.loads(Google().build_count(call, TARGET).body) == expected


@pytest.mark.parametrize("outer", ["generateContentRequest", "generate_content_request"])
@pytest.mark.parametrize("inner", ["generateContentRequest", "generate_content_request"])
@pytest.mark.parametrize("value", [{}, {"contents": HELLO}, [], 0, "x"])
def test_a_whole_request_holds_no_other(outer: str, inner: str, value: Any) -> None:
    with pytest.raises(BadRequestError) as caught:
        counting(**{outer: {"contents": HELLO, inner: value}})
    assert caught.value.param == "generateContentRequest.generateContentRequest"


@pytest.mark.parametrize("requests", [embedded(), [], "x", 5, [None], [[]], ["x"]])
def test_a_batch_is_an_array_of_requests(requests: Any) -> None:
    with pytest.raises(BadRequestError) as caught:
        embedding("batchEmbedContents", requests=requests)
    assert caught.value.param == "requests"


def test_single_texts_and_batches_exclude_each_other() -> None:
    given: tuple[Any, ...] = ([embedded("b")], [], {}, 0, False)
    for requests in given:
        with pytest.raises(BadRequestError) as caught:
            embedding("embedContent", **embedded(), requests=requests)
        assert caught.value.param == "requests"
    with pytest.raises(BadRequestError) as caught:
        embedding("batchEmbedContents", **embedded(), requests=[embedded("b")])
    assert caught.value.param == "content"


def test_what_was_read_is_what_is_sent() -> None:
    expected = {"requests": [{**embedded(), "model": "models/e"}]}
    for call in (
        embedding("embedContent", **embedded(), requests=None),
        embedding("batchEmbedContents", content=None, requests=[embedded()]),
        embedding("batchEmbedContents", ofTomorrow=1, requests=[embedded()]),
    ):
        assert json.loads(Google().build(call, TARGET, None).body) == expected
