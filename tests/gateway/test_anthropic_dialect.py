"""Anthropic's Messages API: what becomes of requests, and what is refused."""

from __future__ import annotations

import contextlib
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects import anthropic, reading
from gateway.dialects.anthropic_stream import AnthropicCall
from gateway.errors import BadRequestError
from providers.canonical import Call
from tests.fuzz.cases import cases

HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
CLOSED = {**SCHEMA, "required": ["city"], "additionalProperties": False}
TOOL = {"name": "weather", "description": "Looks out.", "input_schema": SCHEMA}
MARK = {"type": "ephemeral"}
GOOGLE = {"google": {"thought_signature": "Z29vZ2xl"}}
UPLOAD = "container_upload"
FORMAT = "anthropic-claude-v1"


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "max_tokens": 100, "messages": HELLO, **fields}).encode()


def parse(**fields: Any) -> Call:
    return anthropic.parse_messages(body(**fields))


def canonical(**fields: Any) -> dict[str, Any]:
    return json.loads(parse(**fields).body)


def messages(*given: dict[str, Any]) -> list[dict[str, Any]]:
    return canonical(messages=list(given))["messages"]


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def refusal(**fields: Any) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        parse(**fields)
    return caught.value


# --- requests -------------------------------------------------------------------------------------------------------


def test_a_plain_request_is_a_chat_request() -> None:
    sent = body()
    call = anthropic.parse_messages(sent)
    assert json.loads(call.body) == {"model": "m", "max_tokens": 100, "messages": HELLO}
    assert call == AnthropicCall(
        endpoint="chat",
        model="m",
        body=call.body,
        fields=frozenset(("model", "max_tokens", "messages")),
        limit=100,
        limit_field="max_tokens",
        messages=1,
        wants_usage=True,
        dialect="anthropic",
        native=sent,
        names=call.names,
    )


def test_a_streaming_request_asks_for_the_usage() -> None:
    call = parse(stream=True)
    assert (call.stream, call.wants_usage) == (True, True)
    assert json.loads(call.body)["stream_options"] == {"include_usage": True}


def test_instructions_come_first_and_those_in_the_middle_stay_there() -> None:
    sent = [*HELLO, {"role": "system", "content": "Be brief."}, {"role": "system", "content": [text("Be kind.")]}]
    assert canonical(system="Be wise.", messages=sent)["messages"] == [
        {"role": "system", "content": "Be wise."},
        *HELLO,
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
    ]
    blocks = [text("One."), text("Two.", cache_control=MARK)]
    assert canonical(system=blocks)["messages"][0] == {"role": "system", "content": blocks}
    assert canonical(system="")["messages"] == canonical(system=[])["messages"] == HELLO


def test_images_and_documents_become_parts() -> None:
    png = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}
    call = parse(
        messages=[
            user(
                {"type": "image", "source": png, "cache_control": MARK},
                {"type": "image", "source": {"type": "url", "url": "https://e.org/a.png"}},
                {"type": "document", "source": pdf, "title": "a.pdf"},
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "T"}, "title": "H"},
                {
                    "type": "document",
                    "source": {"type": "content", "content": [text("C"), {"type": "image", "source": png}]},
                },
                {"type": "document", "source": {"type": "content", "content": "D"}},
                {"type": "search_result", "title": "S", "source": "https://e.org", "content": [text("found")]},
                text("What?"),
            )
        ]
    )
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert json.loads(call.body)["messages"][0]["content"] == [
        {**image, "cache_control": MARK},
        {"type": "image_url", "image_url": {"url": "https://e.org/a.png"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBE"}},
        text("H"),
        text("T"),
        text("C"),
        image,
        text("D"),
        text("S\nhttps://e.org\nfound"),
        text("What?"),
    ]
    assert (call.images, call.files, call.others, call.native_only) == (3, 1, 0, "")
    assert call.media_bytes == 2 * len("data:image/png;base64,AAAA") + len("data:application/pdf;base64,JVBE")


@pytest.mark.parametrize(
    ("block", "where", "counted"),
    [
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "source.file_id", "files"),
        ({"type": "document", "source": {"type": "file", "file_id": "f"}}, "source.file_id", "files"),
        ({"type": "document", "source": {"type": "url", "url": "https://e.org/a.pdf"}}, "source.url", "files"),
        ({"type": "hologram", "data": "x"}, "type", "others"),
        ({"type": "container_upload", "file_id": "f"}, "type", "files"),
        ({"type": "mcp_tool_result", "content": [{"type": "x", "source": {"url": "u"}}]}, "type", "others"),
        ({"type": "web_fetch_tool_result", "content": {"content": {"type": "document"}}}, "type", "others"),
        ({"type": "server_tool_use", "citations": [{"file_id": "f"}]}, "type", ""),
        ({"type": "mcp_tool_use", "id": "x"}, "type", ""),
    ],
)
def test_what_only_this_api_can_read_is_for_its_providers_alone(block: Any, where: str, counted: str) -> None:
    call = parse(messages=[user(text("x"), block)])
    assert call.native_only == f"messages[0].content[1].{where}"
    assert json.loads(call.native)["messages"][0]["content"][1] == block
    assert (call.files, call.others) == (int(counted == "files"), int(counted == "others"))


def test_citations_are_for_providers_of_this_api_alone() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "T"}
    block = {"type": "document", "source": source, "citations": {"enabled": True}}
    assert parse(messages=[user(block)]).native_only == "messages[0].content[0].citations"
    assert parse(messages=[user({**block, "citations": {"enabled": False}})]).native_only == ""


def test_a_tool_loop_keeps_its_order_results_first() -> None:
    png = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    told = messages(
        *HELLO,
        assistant(
            text("Let me look."),
            {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Oslo"}},
            {"type": "tool_use", "id": "b", "name": "weather", "input": {}, "cache_control": MARK},
        ),
        user(
            text("And?"),
            {"type": "tool_result", "tool_use_id": "a", "content": [text("rain"), {"type": "image", "source": png}]},
            {"type": "tool_result", "tool_use_id": "b", "content": "no city", "is_error": True, "cache_control": MARK},
            {"type": "tool_result", "tool_use_id": "c"},
            {"type": "tool_result", "tool_use_id": "d", "content": [{"type": "tool_reference", "tool_name": "t"}]},
        ),
        assistant({"type": "tool_use", "id": "e", "name": "f", "input": {}}),
        user({"type": "tool_result", "tool_use_id": "e", "content": [text("x")]}),
    )
    assert told == [
        *HELLO,
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}},
                {
                    "id": "b",
                    "type": "function",
                    "function": {"name": "weather", "arguments": "{}"},
                    "cache_control": MARK,
                },
            ],
        },
        {
            "role": "tool",
            "tool_call_id": "a",
            "content": [text("rain"), {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
        },
        {"role": "tool", "tool_call_id": "b", "content": [text("no city", cache_control=MARK)], "is_error": True},
        {"role": "tool", "tool_call_id": "c", "content": ""},
        {"role": "tool", "tool_call_id": "d", "content": "Tool found: t"},
        {"role": "user", "content": "And?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "e", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "e", "content": "x"},
    ]


def test_signed_thinking_is_kept_and_unsigned_thinking_never_reaches_a_provider_of_this_api() -> None:
    blocks = [
        {"type": "thinking", "thinking": "Hm.", "signature": "SIG"},
        {"type": "redacted_thinking", "data": "xyz"},
        {"type": "thinking", "thinking": " Or so.", "signature": ""},
        text("Yes."),
    ]
    call = parse(messages=[*HELLO, assistant(*blocks), assistant(blocks[2]), *HELLO])
    told = json.loads(call.body)["messages"]
    assert told[1] == {
        "role": "assistant",
        "content": "Yes.",
        "reasoning_content": "Hm. Or so.",
        "reasoning_details": [
            {"type": "reasoning.text", "text": "Hm.", "signature": "SIG", "format": FORMAT},
            {"type": "reasoning.encrypted", "data": "xyz", "format": FORMAT},
        ],
    }
    assert told[2] == {"role": "assistant", "content": "", "reasoning_content": " Or so."}
    native = json.loads(call.native)["messages"]
    assert [message["role"] for message in native] == ["user", "assistant", "user"]
    assert native[1]["content"] == [blocks[0], blocks[1], blocks[3]]


def test_tools_and_their_choice_are_translated() -> None:
    tool = {**TOOL, "type": "custom", "strict": True, "cache_control": MARK, "eager_input_streaming": True}
    call = parse(tools=[tool, {"name": "bare", "input_schema": {"type": "object"}}], tool_choice={"type": "any"})
    told = json.loads(call.body)
    function = {"name": "weather", "description": "Looks out.", "parameters": SCHEMA, "strict": True}
    assert told["tools"] == [
        {"type": "function", "function": function, "cache_control": MARK},
        {"type": "function", "function": {"name": "bare", "parameters": {"type": "object"}}},
    ]
    assert told["tool_choice"] == "required"
    assert call.dropped == ("tools.eager_input_streaming",)


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        ({"type": "auto"}, "auto", None),
        ({"type": "none"}, "none", None),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "auto", "disable_parallel_tool_use": False}, "auto", None),
        (
            {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
            {"type": "function", "function": {"name": "weather"}},
            False,
        ),
    ],
)
def test_every_tool_choice_has_its_twin(choice: Any, expected: Any, parallel: bool | None) -> None:
    told = canonical(tools=[TOOL], tool_choice=choice)
    assert (told["tool_choice"], told.get("parallel_tool_calls")) == (expected, parallel)
    assert "tool_choice" not in canonical(tool_choice=choice)


@pytest.mark.parametrize(
    ("tool", "surcharge"),
    [
        ({"type": "web_search_20250305", "name": "web_search"}, "web_search"),
        ({"type": "web_fetch_20260318", "name": "web_fetch"}, "web_fetch"),
        ({"type": "code_execution_20250825", "name": "code_execution"}, "code_execution"),
        ({"type": "mcp_toolset", "mcp_server_name": "x"}, "mcp_toolset"),
        ({"type": "advisor_20260301", "name": "advisor"}, "advisor"),
        ({"type": "of_tomorrow_20300101", "name": "t"}, "t"),
        ({"type": "bash_20250124", "name": "bash"}, ""),
        ({"type": "text_editor_20250728", "name": "edit"}, ""),
        ({"type": "computer_toolset_20260801"}, ""),
        ({"type": "memory_20250818", "name": "memory"}, ""),
        ({"type": "tool_search_tool_bm25_20251119", "name": "find"}, ""),
    ],
)
def test_the_apis_own_tools_are_for_its_providers_and_may_cost_extra(tool: Any, surcharge: str) -> None:
    call = parse(tools=[TOOL, tool])
    assert (call.native_only, call.surcharge) == ("tools[1].type", surcharge)
    assert len(json.loads(call.body)["tools"]) == 1
    assert json.loads(call.native)["tools"][1] == tool


def test_sampling_stops_and_labels_are_carried_over() -> None:
    told = canonical(
        temperature=0.5, top_p=1, top_k=7, stop_sequences=["a"], metadata={"user_id": "u"}, service_tier="standard_only"
    )
    assert (told["temperature"], told["top_p"]) == (0.5, 1)
    assert (told["top_k"], told["stop"], told["user"], told["service_tier"]) == (7, ["a"], "u", "default")
    plain = canonical(stop_sequences=[], metadata={}, service_tier="auto", temperature=None)
    assert plain.keys() == {"model", "max_tokens", "messages"}
    assert parse(service_tier="priority").surcharge == "service_tier"
    assert parse(pool="team").pool == "team"
    assert "pool" not in json.loads(parse(pool="team").native)


@pytest.mark.parametrize(
    ("fields", "effort", "shown", "dropped"),
    [
        ({}, None, "", ()),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low", "shown", ()),
        ({"thinking": {"type": "enabled", "budget_tokens": 8192}}, "medium", "shown", ()),
        ({"thinking": {"type": "enabled", "budget_tokens": 32000, "display": "omitted"}}, "high", "hidden", ()),
        ({"thinking": {"type": "adaptive"}}, None, "shown", ("thinking",)),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "max", "shown", ()),
        ({"thinking": {"type": "between_tools"}, "output_config": {"effort": "xhigh"}}, "xhigh", "shown", ()),
        ({"thinking": {"type": "disabled"}}, None, "", ("thinking",)),
        (
            {"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}},
            None,
            "",
            ("thinking", "output_config.effort"),
        ),
        ({"output_config": {"effort": "low", "task_budget": {"total": 1}}}, "low", "", ("output_config.task_budget",)),
    ],
)
def test_thinking_becomes_an_effort(fields: Any, effort: str | None, shown: str, dropped: tuple[str, ...]) -> None:
    call = parse(**fields)
    assert isinstance(call, AnthropicCall)
    assert (json.loads(call.body).get("reasoning_effort"), call.thinking) == (effort, shown)
    assert call.dropped == dropped


def test_structured_output_is_strict_where_the_schema_is_closed() -> None:
    told = canonical(output_config={"format": {"type": "json_schema", "schema": CLOSED}})["response_format"]
    assert told == {"type": "json_schema", "json_schema": {"name": "answer", "schema": CLOSED, "strict": True}}
    old = canonical(output_format={"type": "json_schema", "schema": SCHEMA})["response_format"]
    assert old == {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    inner = {**CLOSED, "properties": {"city": {"anyOf": [{"type": "array", "items": SCHEMA}]}}}
    loose = canonical(output_config={"format": {"type": "json_schema", "schema": inner}})["response_format"]
    assert "strict" not in loose["json_schema"]


@pytest.mark.parametrize(
    ("fields", "native_only", "surcharge"),
    [
        ({"mcp_servers": [{"type": "url", "url": "https://e.org", "name": "n"}]}, "mcp_servers", "mcp_servers"),
        ({"mcp_servers": []}, "", ""),
        ({"container": "c"}, "container", "container"),
        ({"container": None}, "", ""),
        ({"compaction": {"type": "summarize"}}, "compaction", ""),
        ({"speed": "fast"}, "speed", "speed"),
        ({"speed": "standard"}, "", ""),
        ({"inference_geo": "us"}, "inference_geo", "inference_geo"),
        ({"inference_geo": "global"}, "", ""),
        ({"system": [text("x", cache_control={**MARK, "ttl": "1h"})]}, "", "cache_control"),
        ({"cache_control": {**MARK, "ttl": "1h"}}, "", "cache_control"),
        ({"cache_control": {**MARK, "ttl": "1h"}, "container": "c"}, "container", "container"),
        ({"service_tier": "priority", "tools": [{"type": "of_tomorrow", "name": "t"}]}, "tools[0].type", "t"),
        ({"speed": "fast", "tools": [{"type": "web_search_1", "name": "speed"}]}, "tools[0].type", "tools"),
        ({"tools": [{"type": "cache_control"}]}, "tools[0].type", "tools"),
        ({"messages": [user({"type": "container_upload", "file_id": "f"})]}, "messages[0].content[0].type", UPLOAD),
        ({"system": [text("x", cache_control={**MARK, "ttl": "5m"})]}, "", ""),
    ],
)
def test_what_cannot_be_carried_or_priced_is_noted(fields: Any, native_only: str, surcharge: str) -> None:
    call = parse(**fields)
    assert (call.native_only, call.surcharge) == (native_only, surcharge)
    assert json.loads(call.native).items() >= fields.items()


def test_unknown_fields_pass_to_providers_of_this_api_and_are_left_out_elsewhere() -> None:
    sent = {"context_management": {"edits": []}, "of_tomorrow": 1, "diagnostics": {}, "unset": None}
    call = parse(**sent)
    assert call.dropped == ("context_management", "of_tomorrow", "diagnostics")
    assert json.loads(call.native).items() >= sent.items()
    assert json.loads(call.body).keys() == {"model", "max_tokens", "messages"}


def test_fields_that_another_server_reads_as_a_price_reach_nobody() -> None:
    sent = {"n": 5, "n_predict": 9999, "models": ["x"], "fallbacks": [{"model": "y"}], "billing_policy": {}}
    call = parse(**sent)
    assert call.n == 1
    assert json.loads(call.native).keys() == {"model", "max_tokens", "messages"}
    assert set(call.dropped) == sent.keys()


def headed(*headers: tuple[bytes, bytes]) -> bytes:
    exchange: Any = SimpleNamespace(headers=list(headers), path="/v1/messages", query=b"beta=true")
    return anthropic.parse_messages(body(), exchange).native_headers


def test_version_and_betas_are_passed_on_and_nothing_else() -> None:
    assert headed((b"anthropic-version", b"2026-10-21"), (b"authorization", b"x"), (b"anthropic-beta", b"a,b")) == (
        b"anthropic-version: 2026-10-21\r\nanthropic-beta: a,b\r\n"
    )
    assert headed((b"anthropic-beta", b"a"), (b"Anthropic-Beta", b" b ")) == b"anthropic-beta: a,b\r\n"
    assert headed() == b""
    assert parse().native_headers == b""


@pytest.mark.parametrize("value", [b"a\r\nx-api-key: y", b"a\x00", b"\xff", b"a\x7f", b"x" * 5000, b"a\tb", b""])
def test_a_header_that_is_not_plain_text_is_left_out(value: bytes) -> None:
    assert headed((b"anthropic-beta", value), (b"anthropic-version", b"1")) == b"anthropic-version: 1\r\n"


def test_the_token_counter_takes_the_same_body_without_a_limit() -> None:
    sent = json.dumps({"model": "m", "messages": HELLO, "system": "s", "tools": [TOOL]}).encode()
    call = anthropic.parse_count(sent)
    assert (call.endpoint, call.limit, call.messages, call.native, call.stream) == ("chat", None, 2, sent, False)
    assert not anthropic.parse_count(body(stream=True)).stream
    assert anthropic.count_answer(12) == b'{"input_tokens":12}'
    with pytest.raises(BadRequestError):
        anthropic.parse_messages(sent)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": {}}]}, "messages[0].content"),
        ({"messages": [user("x")]}, "messages[0].content[0]"),
        ({"messages": [user({"type": 5})]}, "messages[0].content[0]"),
        ({"messages": [user({"type": "text"})]}, "messages[0].content[0].text"),
        ({"messages": [user({"type": "image"})]}, "messages[0].content[0].source"),
        ({"messages": [user({"type": "image", "source": {"type": "x"}})]}, "messages[0].content[0].source.type"),
        ({"messages": [user({"type": "image", "source": {"type": "base64"}})]}, "messages[0].content[0].source"),
        ({"messages": [user({"type": "image", "source": {"type": "url"}})]}, "messages[0].content[0].source.url"),
        ({"messages": [user({"type": "tool_result"})]}, "messages[0].content[0].tool_use_id"),
        (
            {"messages": [user({"type": "tool_result", "tool_use_id": "a", "content": 5})]},
            "messages[0].content[0].content",
        ),
        ({"messages": [assistant({"type": "tool_use", "name": "f", "input": {}})]}, "messages[0].content[0].id"),
        ({"messages": [assistant({"type": "tool_use", "id": "a", "input": {}})]}, "messages[0].content[0].name"),
        (
            {"messages": [assistant({"type": "tool_use", "id": "a", "name": "f", "input": "{}"})]},
            "messages[0].content[0].input",
        ),
        ({"messages": [assistant({"type": "thinking"})]}, "messages[0].content[0].thinking"),
        ({"messages": [assistant({"type": "redacted_thinking"})]}, "messages[0].content[0].data"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"tools": {}}, "tools"),
        ({"tools": ["x"]}, "tools[0]"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "f", "input_schema": {}, "description": 5}]}, "tools[0].description"),
        ({"tools": [{"type": 5}]}, "tools[0].type"),
        ({"tool_choice": "auto"}, "tool_choice.type"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"temperature": 1.5}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 0.5}, "top_k"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": [1]}, "stop_sequences"),
        ({"stream": "yes"}, "stream"),
        ({"thinking": "yes"}, "thinking"),
        ({"thinking": {"budget_tokens": 5}}, "thinking.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "text"}}}, "output_config.format.type"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
        ({"metadata": {"user_id": 5}}, "metadata.user_id"),
        ({"metadata": "x"}, "metadata"),
        ({"service_tier": 5}, "service_tier"),
        ({"pool": 5}, "pool"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"Max_Tokens": 5}, "Max_Tokens"),
        ({"messages": HELLO * 4097}, "messages"),
    ],
)
def test_a_bad_field_is_refused_by_its_name(fields: Any, param: str) -> None:
    error = refusal(**fields)
    assert error.param == param
    assert error.status == 400


@pytest.mark.parametrize("sent", [b"", b"[]", b"{", b'{"model":"m","model":"n"}', b"\xff"])
def test_a_body_that_is_no_json_object_is_refused(sent: bytes) -> None:
    with pytest.raises(BadRequestError):
        anthropic.parse_messages(sent)


JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "text",
                    "type",
                    "thinking",
                    "signature",
                    "data",
                    "source",
                    "name",
                    "input",
                    "id",
                    "input_schema",
                ]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@cases(200)
@given(st.dictionaries(st.sampled_from(["system", "messages", "tools", "tool_choice", "thinking", "metadata"]), JUNK))
def test_a_nonsense_request_is_refused_and_never_an_exception(fields: dict[str, Any]) -> None:
    with contextlib.suppress(BadRequestError):
        assert isinstance(parse(**fields), AnthropicCall)


PICTURE = {"type": "image", "source": {"type": "url", "url": "https://e.org/a.png"}}
THOUGHT = {"type": "thinking", "thinking": "t", "signature": "s"}
USE = {"type": "tool_use", "id": "t", "name": "f", "input": {}}


@pytest.mark.parametrize(
    "message",
    [
        assistant({**THOUGHT, "content": [PICTURE]}),
        assistant({**USE, "content": [{"type": "document"}]}),
        assistant({"type": "redacted_thinking", "data": "d", "content": [PICTURE]}),
        assistant({"type": "fallback", "content": [PICTURE]}),
        user(text("x", content=[PICTURE])),
        user(text("x", source=PICTURE["source"])),
        user({**PICTURE, "content": [PICTURE]}),
        user({"type": "tool_reference", "tool_name": "f", "file_id": "f"}),
        user({"type": "image", "source": {"type": "url", "url": "https://e.org", "file_id": "f"}}),
        user({"type": "document", "source": {"type": "text", "data": "T", "content": [PICTURE]}}),
        user({"type": "search_result", "content": [{**PICTURE, "text": "x"}]}),
        user({"type": "tool_result", "tool_use_id": "t", "content": [{**THOUGHT, "content": [PICTURE]}]}),
        {"role": "user", "content": "x", "attachments": [PICTURE]},
    ],
)
def test_files_where_the_api_has_none_are_refused(message: Any) -> None:
    assert (refusal(messages=[message]).param or "").startswith("messages[0]")


def test_what_looks_like_a_file_but_is_none_passes() -> None:
    cited = text("x", citations=[{"type": "char_location", "file_id": "f"}])
    call = parse(messages=[assistant({**USE, "input": {"file_id": "f", "type": "image"}}, cited)])
    assert (call.images, call.files, call.others, call.native_only) == (0, 0, 0, "")


def test_too_many_messages_or_blocks_are_refused_and_the_most_is_read_at_once() -> None:
    assert refusal(messages=HELLO * 4097).param == "messages"
    assert refusal(messages=[user(*[text("x")] * 16_385)]).param == "messages"
    assert refusal(system=[text("x")] * 16_385).param == "system"
    wraps = [
        {"type": "redacted_thinking", "data": reading.wrapped({"call": f"t{n}", "extra_content": GOOGLE})}
        for n in range(4000)
    ]
    uses = [{**USE, "id": f"t{n}"} for n in range(4000)]
    results = [{"type": "tool_result", "tool_use_id": f"t{n}", "content": "x"} for n in range(4000)]
    sent = body(messages=[assistant(*wraps, *uses), user(*results)])
    began = time.process_time()
    doc = json.loads(anthropic.parse_messages(sent).body)
    assert time.process_time() - began < 1
    assert doc["messages"][0]["tool_calls"][-1]["extra_content"] == GOOGLE
    assert len(doc["messages"]) == 4001


def test_deep_bodies_are_read() -> None:
    schema: Any = CLOSED
    for _ in range(61):
        schema = {**CLOSED, "properties": {"city": schema}}
    told = canonical(output_config={"format": {"type": "json_schema", "schema": schema}})
    assert told["response_format"]["json_schema"]["strict"] is True
    inner: Any = {"type": "hologram"}
    for _ in range(62):
        inner = {"type": "hologram", "content": [inner]}
    assert parse(messages=[user(inner)]).others == 1
