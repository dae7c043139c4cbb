"""The Gemini API: which model and action a path names, what becomes of requests, and what is refused."""

from __future__ import annotations

import base64
import contextlib
import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects import gemini, reading
from gateway.dialects.gemini_contents import STAND_IN, json_schema
from gateway.dialects.gemini_stream import GeminiCall
from gateway.errors import BadRequestError, NotFoundError
from tests.fuzz.cases import cases

HELLO = [{"role": "user", "parts": [{"text": "hello"}]}]
ASKED = [{"role": "user", "content": "hello"}]
PNG = {"mimeType": "image/png", "data": "AAAA"}
FORMAT = "google-gemini-v1"


def asked(path: str, query: bytes = b"") -> Any:
    return SimpleNamespace(path=path, query=query, headers=[])


def parse(action: str = "generateContent", query: bytes = b"alt=sse", model: str = "m", **fields: Any) -> GeminiCall:
    sent = json.dumps({"contents": HELLO, **fields}).encode()
    call = gemini.parse_generate(sent, asked(f"/v1beta/models/{model}:{action}", query))
    assert isinstance(call, GeminiCall)
    return call


def canonical(**fields: Any) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(parse(**fields).body)
    return told


def messages(*contents: dict[str, Any]) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = canonical(contents=list(contents))["messages"]
    return told


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "parts": list(parts)}


def model(*parts: Any) -> dict[str, Any]:
    return {"role": "model", "parts": list(parts)}


def configured(**config: Any) -> dict[str, Any]:
    told = canonical(generationConfig=config)
    return {name: value for name, value in told.items() if name not in ("model", "messages")}


# --- paths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/models/m:generateContent", ("m", "generateContent")),
        ("/v1beta/models/m:streamGenerateContent", ("m", "streamGenerateContent")),
        ("/models/m:countTokens", ("m", "countTokens")),
        ("/v1beta/models/models/m:embedContent", ("m", "embedContent")),
        ("/v1beta/models/org/m:batchEmbedContents", ("org/m", "batchEmbedContents")),
        ("/v1beta/models/accounts/a/models/m:generateContent", ("accounts/a/models/m", "generateContent")),
        ("/v1beta/models/models/a%2Fb%41:generateContent", ("a%2Fb%41", "generateContent")),
        ("/v1beta/models/llama3:8b:generateContent", ("llama3:8b", "generateContent")),
        ("/v1beta/tunedModels/t:generateContent", ("tunedModels/t", "generateContent")),
        ("/v1/projects/p/locations/l/publishers/google/models/m:generateContent", ("m", "generateContent")),
        ("/v1beta/models/m:predict", None),
        ("/v1beta/models/m", None),
        ("/v1beta/models/:generateContent", None),
        ("/v1beta/models", None),
        ("/v1beta/m:generateContent", None),
    ],
)
def test_model_and_action_stand_in_the_path(path: str, expected: tuple[str, str] | None) -> None:
    assert gemini.route(path) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"alt=sse", True),
        (b"key=x&alt=sse", True),
        (b"$alt=sse", True),
        (b"%24alt=sse%3Benum", True),
        (b"alt=json", False),
        (b"", False),
        (b"alt=", False),
        (b"\xff=%zz&alt", False),
    ],
)
def test_the_query_says_how_a_stream_is_told(query: bytes, expected: bool) -> None:
    assert gemini.is_sse(query) is expected
    dialect = gemini.GEMINI_SSE if expected else gemini.GEMINI_ARRAY
    assert gemini.dialect_of(asked("/v1/models/m:streamGenerateContent", query)) is dialect
    assert gemini.dialect_of(asked("/v1/models/m:generateContent", query)) is gemini.GEMINI_SSE


# --- requests -------------------------------------------------------------------------------------------------------


def test_a_plain_request_is_a_chat_request() -> None:
    sent = json.dumps({"contents": HELLO}).encode()
    call = gemini.parse_generate(sent, asked("/v1/models/m:generateContent"))
    assert json.loads(call.body) == {"model": "m", "messages": ASKED}
    assert call == GeminiCall(
        endpoint="chat",
        model="m",
        body=call.body,
        fields=frozenset(("model", "messages")),
        messages=1,
        wants_usage=True,
        dialect="gemini",
        native=sent,
        names=call.names,
    )


def test_the_action_says_whether_the_answer_streams() -> None:
    call = parse("streamGenerateContent")
    assert (call.stream, call.array, bool(call.native)) == (True, False, True)
    assert json.loads(call.body)["stream_options"] == {"include_usage": True}
    array = parse("streamGenerateContent", b"")
    # A provider of this API is asked for events: an array is always made here.
    assert (array.stream, array.array, array.native) == (True, True, b"")
    assert not parse().stream


def test_other_paths_and_other_models_are_refused() -> None:
    sent = json.dumps({"contents": HELLO}).encode()
    with pytest.raises(NotFoundError):
        gemini.parse_generate(sent, asked("/v1/models/m:countTokens"))
    other = json.dumps({"contents": HELLO, "model": "models/other"}).encode()
    with pytest.raises(BadRequestError) as caught:
        gemini.parse_generate(other, asked("/v1/models/m:generateContent"))
    assert caught.value.param == "model"
    same = json.dumps({"contents": HELLO, "model": "models/m"}).encode()
    assert gemini.parse_generate(same, asked("/v1/models/m:generateContent")).model == "m"
    assert gemini.parse_generate(same).model == "m"


def test_system_instructions_come_first_in_either_spelling() -> None:
    system = {"role": "system", "parts": [{"text": "Be wise."}, {"text": "Be brief."}]}
    expected = [{"role": "system", "content": "Be wise.\nBe brief."}, *ASKED]
    assert canonical(systemInstruction=system)["messages"] == expected
    assert canonical(system_instruction=system)["messages"] == expected
    assert canonical(systemInstruction="Be wise.")["messages"][0]["content"] == "Be wise."
    assert canonical(systemInstruction={"parts": {"text": "Be wise."}})["messages"][0]["content"] == "Be wise."
    assert canonical(systemInstruction={"parts": []})["messages"] == ASKED


def test_single_objects_stand_for_lists() -> None:
    assert canonical(contents={"parts": {"text": "hello"}})["messages"] == ASKED


def test_media_become_parts() -> None:
    pdf = {"mime_type": "application/pdf", "data": "JVBE", "displayName": "a.pdf"}
    call = parse(
        contents=[
            user(
                {"text": "What?"},
                {"inlineData": PNG},
                {"inline_data": pdf},
                {"inlineData": {"mimeType": "audio/x-wav", "data": "-_8="}},
                {"inlineData": {"mimeType": "video/mp4", "data": "AAAA"}, "mediaResolution": {"level": "LOW"}},
                {"inlineData": {"mimeType": "text/plain", "data": base64.b64encode(b"words").decode()}},
                {"inlineData": {"mimeType": "text/csv", "data": "/w=="}},
                {"fileData": {"fileUri": "https://e.org/a.png", "mimeType": "image/png"}},
            )
        ]
    )
    assert json.loads(call.body)["messages"][0]["content"] == [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBE"}},
        {"type": "input_audio", "input_audio": {"data": "+/8=", "format": "wav"}},
        {"type": "file", "file": {"filename": "file.mp4", "file_data": "data:video/mp4;base64,AAAA"}},
        {"type": "text", "text": "words"},
        {"type": "file", "file": {"filename": "file.csv", "file_data": "data:text/csv;base64,/w=="}},
        {"type": "image_url", "image_url": {"url": "https://e.org/a.png"}},
    ]
    assert (call.images, call.files, call.audios, call.others, call.native_only) == (2, 3, 1, 0, "")


@pytest.mark.parametrize(
    ("part", "where", "counted"),
    [
        ({"fileData": {"fileUri": "gs://b/a.png", "mimeType": "image/png"}}, "fileData.fileUri", (1, 0)),
        (
            {
                "fileData": {
                    "fileUri": "https://generativelanguage.googleapis.com/v1beta/files/x",
                    "mimeType": "image/png",
                }
            },
            "fileData.fileUri",
            (1, 0),
        ),
        ({"fileData": {"fileUri": "https://youtu.be/x"}}, "fileData.fileUri", (1, 0)),
        ({"file_data": {"file_uri": "https://e.org/a.pdf"}}, "fileData.fileUri", (1, 0)),
        ({"executableCode": {"code": "1"}}, "executableCode", (0, 0)),
        ({"codeExecutionResult": {"outcome": "OUTCOME_OK"}}, "codeExecutionResult", (0, 0)),
        ({"inlineData": {"mimeType": "video/mp4", "data": "A"}, "videoMetadata": {"fps": 1}}, "videoMetadata", (1, 0)),
        ({"hologram": {}}, "hologram", (0, 1)),
    ],
)
def test_what_only_this_api_can_read_is_for_its_providers_alone(
    part: Any, where: str, counted: tuple[int, int]
) -> None:
    call = parse(contents=[user({"text": "x"}, part)])
    assert call.native_only == f"contents[0].parts[1].{where}"
    assert (call.files, call.others) == counted
    with pytest.raises(BadRequestError) as caught:
        parse("streamGenerateContent", b"", contents=[user({"text": "x"}, part)])
    assert "alt=sse" in caught.value.message


def call_part(name: str, args: Any = None, **more: Any) -> dict[str, Any]:
    id = {"id": more.pop("id")} if "id" in more else {}
    return {"functionCall": {"name": name, "args": args or {}, **id}, **more}


def result(name: str, response: Any, **more: Any) -> dict[str, Any]:
    return {"functionResponse": {"name": name, "response": response, **more}}


def function(id: str, name: str, arguments: str = "{}", **more: Any) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def test_results_find_their_calls_by_id_else_by_name_and_order() -> None:
    told = messages(
        *HELLO,
        model(
            {"text": "Let me "}, {"text": "look."}, call_part("f", {"x": 1}), call_part("g"), call_part("f", id="own")
        ),
        {"role": "function", "parts": [result("g", {"a": 1, "b": 2})]},
        user(result("f", {"output": "first"}), {"text": "And?"}, result("f", {"error": "no"}, id="own")),
        model({"function_call": {"name": "f"}}),
        user({"function_response": {"name": "f", "response": {"result": [1]}}}),
        user(result("h", None), result("h", {}, id="h1")),
    )
    assert told == [
        *ASKED,
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [function("call_1", "f", '{"x":1}'), function("call_2", "g"), function("own", "f")],
        },
        {"role": "tool", "tool_call_id": "call_2", "content": '{"a":1,"b":2}'},
        {"role": "tool", "tool_call_id": "call_1", "content": "first"},
        {"role": "tool", "tool_call_id": "own", "content": "no", "is_error": True},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": None, "tool_calls": [function("call_3", "f")]},
        {"role": "tool", "tool_call_id": "call_3", "content": "[1]"},
        {"role": "tool", "tool_call_id": "call_4", "name": "h", "content": ""},
        {"role": "tool", "tool_call_id": "h1", "name": "h", "content": ""},
    ]


def test_a_generated_id_is_never_one_that_was_given() -> None:
    told = messages(model(call_part("f", id="call_1"), call_part("f")), user(result("f", {}), result("f", {})))
    assert [call["id"] for call in told[0]["tool_calls"]] == ["call_1", "call_2"]
    assert [message["tool_call_id"] for message in told[1:]] == ["call_1", "call_2"]


def test_pictures_in_a_result_are_kept() -> None:
    told = messages(model(call_part("f")), user(result("f", {"output": "see"}, parts=[{"inlineData": PNG}])))
    assert told[1]["content"] == [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]


def test_thoughts_and_signatures_are_kept() -> None:
    told = messages(
        *HELLO,
        model(
            {"text": "Hm", "thought": True},
            {"text": "m.", "thought": True, "thoughtSignature": "VEg="},
            {"text": "So."},
            {"text": "", "thought_signature": "VHg="},
            call_part("f", thoughtSignature="RmY="),
        ),
    )
    google = {"google": {"thought_signature": "RmY="}}
    assert told[1] == {
        "role": "assistant",
        "content": "So.",
        "extra_content": {"google": {"thought_signature": "VHg="}},
        "reasoning_content": "Hmm.",
        "reasoning_details": [{"type": "reasoning.text", "text": "Hmm.", "signature": "VEg=", "format": FORMAT}],
        "tool_calls": [function("call_1", "f", extra_content=google)],
    }


def test_a_signature_of_ours_goes_back_to_its_provider_and_to_none_of_this_api() -> None:
    details = [{"type": "reasoning.text", "text": "Hm.", "signature": "S", "format": "anthropic-claude-v1"}]
    google = {"google": {"thought_signature": "Z29v"}}
    plain, both = ({"reasoning_details": details}, {"reasoning_details": details, "extra_content": google})
    for wrap, left, extra in ((plain, STAND_IN, {}), (both, "Z29v", {"extra_content": google})):
        urlsafe = reading.wrapped(wrap).replace("+", "-").replace("/", "_").rstrip("=")
        part = {"functionCall": {"name": "f", "args": {}}, "thought_signature": urlsafe}
        call = parse(contents=[*HELLO, model({"text": "x"}, part)])
        read = json.loads(call.body)["messages"][1]
        assert read["reasoning_details"] == details
        assert read["tool_calls"] == [function("call_1", "f", **extra)]
        native = json.loads(call.native)["contents"][1]["parts"][1]
        assert native == {"functionCall": {"name": "f", "args": {}}, "thoughtSignature": left}
    text = parse(contents=[model({"text": "x", "thoughtSignature": reading.wrapped(plain)})])
    assert json.loads(text.native)["contents"] == [model({"text": "x"})]


def test_tools_are_translated_with_schemas_of_either_kind() -> None:
    schema = {
        "type": "OBJECT",
        "properties": {
            "type": {"type": "STRING", "nullable": True, "enum": ["a"], "format": "enum"},
            "n": {"type": "ARRAY", "items": {"type": "INTEGER"}, "minItems": "1", "max_items": 3},
            "u": {"anyOf": [{"type": "NUMBER"}, {"type": "TYPE_UNSPECIFIED", "example": 5}]},
        },
        "required": ["type"],
        "propertyOrdering": ["type", "n"],
    }
    declared = [
        {"name": "f", "description": "Does.", "parameters": schema, "response": {"type": "STRING"}},
        {"name": "g", "parametersJsonSchema": {"type": "object", "additionalProperties": False}},
        {"name": "h"},
    ]
    told = canonical(tools=[{"functionDeclarations": declared}])["tools"]
    assert [tool["function"]["name"] for tool in told] == ["f", "g", "h"]
    assert told[0]["function"]["description"] == "Does."
    assert told[0]["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "type": {"type": ["string", "null"], "enum": ["a", None], "format": "enum"},
            "n": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
            "u": {"anyOf": [{"type": "number"}, {"examples": [5]}]},
        },
        "required": ["type"],
    }
    assert told[1]["function"]["parameters"] == {"type": "object", "additionalProperties": False}
    assert told[2]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert canonical(tools={"function_declarations": declared[2]})["tools"] == told[2:]


def test_references_in_schemas_are_kept() -> None:
    told = json_schema(
        {"defs": {"a": {"type": "STRING"}}, "ref": "#/defs/a", "additional_properties": {"type": "STRING"}}, "x"
    )
    assert told == {
        "$defs": {"a": {"type": "string"}},
        "$ref": "#/defs/a",
        "additionalProperties": {"type": "string"},
    }


@pytest.mark.parametrize(
    ("config", "choice", "names"),
    [
        ({}, None, "fg"),
        ({"mode": "AUTO"}, "auto", "fg"),
        ({"mode": "MODE_UNSPECIFIED"}, None, "fg"),
        ({"mode": "NONE"}, "none", "fg"),
        ({"mode": "any"}, "required", "fg"),
        ({"mode": "ANY", "allowedFunctionNames": ["f", "g"]}, "required", "fg"),
        ({"mode": "ANY", "allowed_function_names": ["g"]}, {"type": "function", "function": {"name": "g"}}, "g"),
        ({"mode": "VALIDATED", "allowedFunctionNames": ["g"]}, "auto", "g"),
    ],
)
def test_every_calling_mode_has_its_tool_choice(config: Any, choice: Any, names: str) -> None:
    tools = [{"functionDeclarations": [{"name": "f"}, {"name": "g"}]}]
    told = canonical(tools=tools, toolConfig={"functionCallingConfig": config})
    assert told.get("tool_choice") == choice
    assert "".join(tool["function"]["name"] for tool in told["tools"]) == names
    assert "tool_choice" not in canonical(toolConfig={"functionCallingConfig": config})


@pytest.mark.parametrize(
    ("tool", "surcharge"),
    [
        ({"googleSearch": {}}, "googleSearch"),
        ({"google_search": {}}, "googleSearch"),
        ({"googleSearchRetrieval": {}}, "googleSearchRetrieval"),
        ({"googleMaps": {}}, "googleMaps"),
        ({"codeExecution": {}}, "codeExecution"),
        ({"urlContext": {}}, "urlContext"),
        ({"fileSearch": {}}, "fileSearch"),
        ({"file_search": {"fileSearchStoreNames": ["x"]}}, "fileSearch"),
        ({"mcpServers": [{}]}, "mcpServers"),
        ({"ofTomorrow": {}}, "ofTomorrow"),
        ({"computerUse": {"environment": "ENVIRONMENT_BROWSER"}}, ""),
    ],
)
def test_the_apis_own_tools_are_for_its_providers_and_may_cost_extra(tool: Any, surcharge: str) -> None:
    call = parse(tools=[{"functionDeclarations": [{"name": "f"}]}, tool])
    name = surcharge or "computerUse"
    assert (call.native_only, call.surcharge) == (f"tools[1].{name}", surcharge)
    assert len(json.loads(call.body)["tools"]) == 1
    assert parse(tools=[{"googleSearch": None, "functionDeclarations": []}]).native_only == ""


def test_settings_of_the_generation_are_carried_over() -> None:
    told = configured(
        temperature=1.5,
        topP=0.9,
        top_k=40.0,
        presencePenalty=0.1,
        frequencyPenalty=-0.1,
        maxOutputTokens=77,
        candidateCount=2,
        seed=5,
        stopSequences=["a"],
        responseLogprobs=True,
        logprobs=3,
        responseModalities=["TEXT"],
        mediaResolution="MEDIA_RESOLUTION_LOW",
    )
    assert told == {
        "temperature": 1.5,
        "top_p": 0.9,
        "top_k": 40,
        "presence_penalty": 0.1,
        "frequency_penalty": -0.1,
        "max_tokens": 77,
        "n": 2,
        "seed": 5,
        "stop": ["a"],
        "logprobs": True,
        "top_logprobs": 3,
    }
    call = parse(generation_config={"max_output_tokens": 77, "candidateCount": 2, "ofTomorrow": 1})
    assert (call.limit, call.n, call.dropped) == (77, 2, ("generationConfig.ofTomorrow",))


def test_structured_output_is_carried_over() -> None:
    schema = {"type": "OBJECT", "properties": {"x": {"type": "STRING"}}}
    lower = {"type": "object", "properties": {"x": {"type": "string"}}}
    expected = {"type": "json_schema", "json_schema": {"name": "answer", "schema": lower}}
    kind = {"responseMimeType": "application/json"}
    assert configured(**kind, responseSchema=schema)["response_format"] == expected
    assert configured(**kind, responseJsonSchema=lower)["response_format"] == expected
    assert configured(**kind, _responseJsonSchema=lower)["response_format"] == expected
    assert configured(**kind)["response_format"] == {"type": "json_object"}
    assert configured(responseMimeType="text/plain") == {}
    enum = parse(generationConfig={"responseMimeType": "text/x.enum", "responseSchema": {"type": "STRING"}})
    assert enum.native_only == "generationConfig.responseMimeType"


@pytest.mark.parametrize(
    ("config", "effort", "thoughts"),
    [
        ({}, None, False),
        ({"thinkingLevel": "HIGH"}, "high", False),
        ({"thinking_level": "minimal", "include_thoughts": True}, "minimal", True),
        ({"thinkingLevel": "THINKING_LEVEL_UNSPECIFIED"}, None, False),
        ({"thinkingBudget": 1024}, "low", False),
        ({"thinkingBudget": 8192, "includeThoughts": True}, "medium", True),
        ({"thinkingBudget": 24576}, "high", False),
        ({"thinkingBudget": -1}, None, False),
        ({"thinkingBudget": 0}, None, False),
    ],
)
def test_thinking_becomes_an_effort(config: Any, effort: str | None, thoughts: bool) -> None:
    call = parse(generationConfig={"thinkingConfig": config})
    assert (json.loads(call.body).get("reasoning_effort"), call.thoughts) == (effort, thoughts)
    zero = config.get("thinkingBudget") == 0
    assert call.dropped == (("generationConfig.thinkingConfig.thinkingBudget",) if zero else ())


@pytest.mark.parametrize(
    ("fields", "native_only", "surcharge"),
    [
        ({"cachedContent": "cachedContents/x"}, "cachedContent", "cachedContent"),
        ({"cached_content": "cachedContents/x"}, "cachedContent", "cachedContent"),
        ({"continuationToken": "x"}, "continuationToken", ""),
        (
            {"generationConfig": {"responseModalities": ["TEXT", "IMAGE"]}},
            "generationConfig.responseModalities",
            "responseModalities",
        ),
        ({"generationConfig": {"speechConfig": {"x": 1}}}, "generationConfig.speechConfig", "speechConfig"),
        ({"serviceTier": "priority"}, "", "service_tier"),
        ({"serviceTier": "SERVICE_TIER_STANDARD"}, "", ""),
        ({"service_tier": "flex"}, "", ""),
    ],
)
def test_what_cannot_be_carried_or_priced_is_noted(fields: Any, native_only: str, surcharge: str) -> None:
    call = parse(**fields)
    assert (call.native_only, call.surcharge) == (native_only, surcharge)
    assert json.loads(call.native).items() >= fields.items()


def test_harmless_fields_are_left_out_and_foreign_ones_reach_nobody() -> None:
    safety = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]
    call = parse(safetySettings=safety, labels={"a": "b"}, n=7, max_tokens=5, pool="team")
    assert (call.n, call.limit, call.pool) == (1, None, "team")
    assert call.dropped == ("safetySettings", "labels", "n", "max_tokens")
    assert json.loads(call.native) == {"contents": HELLO, "safetySettings": safety, "labels": {"a": "b"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"contents": []}, "contents"),
        ({"contents": "x"}, "contents"),
        ({"contents": ["x"]}, "contents"),
        ({"contents": [{"role": "system", "parts": []}]}, "contents[0].role"),
        ({"contents": [{"parts": "x"}]}, "contents[0].parts"),
        ({"contents": [user({"text": 5})]}, "contents[0].parts[0].text"),
        ({"contents": [user({"inlineData": "x"})]}, "contents[0].parts[0].inlineData"),
        ({"contents": [user({"inlineData": {"data": "x"}})]}, "contents[0].parts[0].inlineData.mimeType"),
        ({"contents": [user({"inlineData": {"mimeType": "a/b"}})]}, "contents[0].parts[0].inlineData.data"),
        ({"contents": [user({"fileData": 5})]}, "contents[0].parts[0].fileData"),
        ({"contents": [user({"fileData": {}})]}, "contents[0].parts[0].fileData.fileUri"),
        ({"contents": [user({"inlineData": PNG, "inline_data": PNG})]}, "contents[0].parts[0].inline_data"),
        ({"contents": [model({"functionCall": 5})]}, "contents[0].parts[0].functionCall"),
        ({"contents": [model({"functionCall": {}})]}, "contents[0].parts[0].functionCall.name"),
        ({"contents": [model(call_part("f", [1]))]}, "contents[0].parts[0].functionCall.args"),
        ({"contents": [user({"functionResponse": 5})]}, "contents[0].parts[0].functionResponse"),
        ({"contents": [user(result("", {}))]}, "contents[0].parts[0].functionResponse.name"),
        ({"contents": [user(result("f", "x"))]}, "contents[0].parts[0].functionResponse.response"),
        ({"systemInstruction": 5}, "systemInstruction"),
        ({"systemInstruction": {"parts": [{"inlineData": PNG}]}}, "systemInstruction.parts[0].inlineData"),
        ({"systemInstruction": {}, "system_instruction": {}}, "system_instruction"),
        ({"generationConfig": 5}, "generationConfig"),
        ({"generationConfig": {}, "generation_config": {}}, "generation_config"),
        ({"generationConfig": {"maxOutputTokens": 5, "max_output_tokens": 6}}, "generationConfig.max_output_tokens"),
        ({"generationConfig": {"maxOutputTokens": "5"}}, "generationConfig.maxOutputTokens"),
        ({"generationConfig": {"maxOutputTokens": 0}}, "generationConfig.maxOutputTokens"),
        ({"generationConfig": {"candidateCount": 1000}}, "generationConfig.candidateCount"),
        ({"generationConfig": {"candidateCount": 1.5}}, "generationConfig.candidateCount"),
        ({"generationConfig": {"temperature": 3}}, "generationConfig.temperature"),
        ({"generationConfig": {"temperature": "1"}}, "generationConfig.temperature"),
        ({"generationConfig": {"topP": 2}}, "generationConfig.topP"),
        ({"generationConfig": {"seed": "1"}}, "generationConfig.seed"),
        ({"generationConfig": {"stopSequences": "x"}}, "generationConfig.stopSequences"),
        ({"generationConfig": {"responseLogprobs": True, "logprobs": "5"}}, "generationConfig.logprobs"),
        ({"generationConfig": {"responseMimeType": 5}}, "generationConfig.responseMimeType"),
        ({"generationConfig": {"responseSchema": 5}}, "generationConfig.responseSchema"),
        ({"generationConfig": {"responseJsonSchema": 5}}, "generationConfig.responseJsonSchema"),
        ({"generationConfig": {"responseModalities": "TEXT"}}, "generationConfig.responseModalities"),
        ({"generationConfig": {"thinkingConfig": 5}}, "generationConfig.thinkingConfig"),
        (
            {"generationConfig": {"thinkingConfig": {"thinkingBudget": "5"}}},
            "generationConfig.thinkingConfig.thinkingBudget",
        ),
        (
            {"generationConfig": {"thinkingConfig": {"thinkingLevel": 5}}},
            "generationConfig.thinkingConfig.thinkingLevel",
        ),
        ({"tools": "x"}, "tools"),
        ({"tools": [{"functionDeclarations": "x"}]}, "tools[0].functionDeclarations"),
        ({"tools": [{"functionDeclarations": [{}]}]}, "tools[0].functionDeclarations[0].name"),
        (
            {"tools": [{"functionDeclarations": [{"name": "f", "parameters": 5}]}]},
            "tools[0].functionDeclarations[0].parameters",
        ),
        (
            {"tools": [{"functionDeclarations": [{"name": "f", "parametersJsonSchema": 5}]}]},
            "tools[0].functionDeclarations[0].parametersJsonSchema",
        ),
        (
            {"tools": [{"functionDeclarations": [{"name": "f", "parameters": {"properties": {"a": 5}}}]}]},
            "tools[0].functionDeclarations[0].parameters.properties.a",
        ),
        (
            {"tools": [{"functionDeclarations": [{"name": "f", "description": 5}]}]},
            "tools[0].functionDeclarations[0].description",
        ),
        ({"serviceTier": 5}, "serviceTier"),
        ({"pool": 5}, "pool"),
        ({"Tools": []}, "Tools"),
        ({"contents": [user({"text": "x"}), model({"text": "y"})] * 2049}, "contents"),
    ],
)
def test_a_bad_field_is_refused_by_its_name(fields: Any, param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse(**fields)
    assert caught.value.param == param
    assert f"'{param}'" in caught.value.message or "Tools" in param


@pytest.mark.parametrize(
    ("config", "param"),
    [
        (5, "toolConfig"),
        ({"functionCallingConfig": 5}, "toolConfig.functionCallingConfig"),
        ({"functionCallingConfig": {"mode": "SOME"}}, "toolConfig.functionCallingConfig.mode"),
        (
            {"functionCallingConfig": {"allowedFunctionNames": "f"}},
            "toolConfig.functionCallingConfig.allowedFunctionNames",
        ),
        (
            {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["x"]}},
            "toolConfig.functionCallingConfig.allowedFunctionNames",
        ),
    ],
)
def test_a_bad_tool_config_is_refused_by_its_name(config: Any, param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse(tools=[{"functionDeclarations": [{"name": "f"}]}], toolConfig=config)
    assert caught.value.param == param


@pytest.mark.parametrize("sent", [b"", b"[]", b"{", b'{"contents":[],"contents":[]}', b"\xff"])
def test_a_body_that_is_no_json_object_is_refused(sent: bytes) -> None:
    with pytest.raises(BadRequestError):
        gemini.parse_generate(sent, asked("/v1/models/m:generateContent"))


JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["role", "parts", "text", "thought", "thoughtSignature", "inlineData", "functionCall", "name", "args"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)
FIELDS = ["systemInstruction", "contents", "tools", "toolConfig", "generationConfig", "cachedContent", "serviceTier"]


@cases(200)
@given(st.dictionaries(st.sampled_from(FIELDS), JUNK))
def test_a_nonsense_request_is_refused_and_never_an_exception(fields: dict[str, Any]) -> None:
    with contextlib.suppress(BadRequestError):
        assert isinstance(parse(**fields), GeminiCall)
