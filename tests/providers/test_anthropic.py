"""The adapter for Anthropic's Messages API: conversations, thinking, callers of that API itself, counts and models."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.adapters.anthropic import VERSION
from providers.canonical import Usage
from tests.providers.anthropic_case import (
    ADAPTER,
    DETAILS,
    FORMAT,
    HELLO,
    MESSAGE,
    NAMES,
    OBJECTS,
    PNG,
    TOOL,
    WORDS,
    call,
    left,
    native,
    refusal,
    sent,
    target,
    text,
    tool_call,
    turns,
)


class TestConversation:
    def test_a_plain_request_is_what_the_documentation_shows(self) -> None:
        assert sent([{"role": "system", "content": "Be brief."}, *HELLO], max_tokens=50, stop=["END"]) == {
            "model": "claude",
            "max_tokens": 50,
            "system": [text("Be brief.")],
            "messages": [{"role": "user", "content": [text("hello")]}],
            "stop_sequences": ["END"],
        }

    def test_the_clients_model_is_named_where_the_provider_has_no_other_name(self) -> None:
        assert sent(to=target(model=""))["model"] == "m"

    def test_instructions_are_hoisted_in_order_from_anywhere_with_their_cache_marks(self) -> None:
        mark = {"type": "ephemeral", "ttl": "1h"}
        told = sent(
            [
                {"role": "system", "content": [text("one", cache_control=mark), text(" ")]},
                {"role": "user", "content": "a"},
                {"role": "developer", "content": "two", "cache_control": mark},
                {"role": "user", "content": "b"},
                {"role": "system", "content": ""},
            ]
        )
        assert told["system"] == [text("one", cache_control=mark), text("two", cache_control=mark)]
        assert told["messages"] == [{"role": "user", "content": [text("a"), text("b")]}]

    def test_instructions_alone_are_the_users_turn(self) -> None:
        told = sent([{"role": "system", "content": "Tell a joke."}])
        assert told["messages"] == [{"role": "user", "content": [text("Tell a joke.")]}]
        assert "system" not in told

    def test_instructions_hold_only_text(self) -> None:
        image = {"type": "image_url", "image_url": {"url": PNG}}
        param, _ = refusal(messages=[{"role": "system", "content": [text("a"), image]}, *HELLO])
        assert param == "messages[0].content[1]"

    def test_neighbours_of_one_role_become_one_turn_and_blank_texts_vanish(self) -> None:
        assert turns(
            {"role": "user", "content": "a"},
            {"role": "user", "content": [text("b"), text("\n")]},
            {"role": "assistant", "content": "c"},
            {"role": "assistant", "content": ""},
            {"role": "assistant", "content": "d"},
            {"role": "user", "content": "e"},
        ) == [
            {"role": "user", "content": [text("a"), text("b")]},
            {"role": "assistant", "content": [text("c"), text("d")]},
            {"role": "user", "content": [text("e")]},
        ]

    def test_tool_calls_and_their_results_keep_ids_arguments_and_order(self) -> None:
        assert turns(
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [tool_call("a", "get", '{"city": "Zürich", "n": 1.10}'), tool_call("b", "now", "")],
            },
            {"role": "user", "content": "and hurry"},
            {"role": "tool", "tool_call_id": "a", "content": "sun"},
            {"role": "tool", "tool_call_id": "b", "content": [text("no clock")], "is_error": True},
            {"role": "tool", "tool_call_id": "c", "content": ""},
        ) == [
            {"role": "user", "content": [text("weather?")]},
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": "a", "name": "get", "input": {"city": "Zürich", "n": 1.1}},
                    {"type": "tool_use", "id": "b", "name": "now", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "a", "content": "sun"},
                    {"type": "tool_result", "tool_use_id": "b", "content": [text("no clock")], "is_error": True},
                    {"type": "tool_result", "tool_use_id": "c"},
                    text("and hurry"),
                ],
            },
        ]

    def test_arguments_keep_their_bytes(self) -> None:
        messages = [
            *HELLO,
            {"role": "assistant", "tool_calls": [tool_call(arguments='{"n": 1.10, "b": 12345678901234567890123}')]},
        ]
        assert b'"input":{"n": 1.10, "b": 12345678901234567890123}' in ADAPTER.build(call(messages), target(), 9).body

    def test_ids_other_providers_made_are_spelled_as_this_one_allows_and_still_match(self) -> None:
        told = turns(
            *HELLO,
            {"role": "assistant", "tool_calls": [tool_call("functions.f:0"), tool_call("functions.f 0")]},
            {"role": "tool", "tool_call_id": "functions.f:0", "content": "x"},
            {"role": "tool", "tool_call_id": "functions.f 0", "content": "y"},
        )
        uses = [block["id"] for block in told[1]["content"]]
        assert uses == [block["tool_use_id"] for block in told[2]["content"]]
        assert len(set(uses)) == 2
        assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in uses)

    def test_images_go_as_data_or_by_address(self) -> None:
        parts = [
            {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}, "cache_control": {"type": "ephemeral"}},
            {"type": "image_url", "image_url": {"url": "data:image/JPG;base64,/9j/"}},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        ]
        (turn,) = turns({"role": "user", "content": parts})
        assert [(block["type"], block["source"]) for block in turn["content"]] == [
            ("image", {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}),
            ("image", {"type": "base64", "media_type": "image/jpeg", "data": "/9j/"}),
            ("image", {"type": "url", "url": "https://example.org/a.png"}),
        ]
        assert turn["content"][0]["cache_control"] == {"type": "ephemeral"}

    def test_documents_go_as_pdf_text_or_image(self) -> None:
        words = base64.b64encode("Grüße".encode()).decode()
        parts = [
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
            {"type": "file", "file": {"file_data": f"data:text/csv;charset=utf-8;base64,{words}"}},
            {"type": "file", "file": {"filename": "b.png", "file_data": PNG}},
        ]
        (turn,) = turns({"role": "user", "content": parts})
        assert turn["content"] == [
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
                "title": "a.pdf",
            },
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Grüße"}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
        ]

    def test_a_stored_file_is_named_and_the_beta_asked_for(self) -> None:
        messages = [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file_1"}}]}]
        request = ADAPTER.build(call(messages), target(), None)
        assert request.headers == VERSION + b"anthropic-beta: files-api-2025-04-14\r\n"
        block = json.loads(request.body)["messages"][0]["content"][0]
        assert block == {"type": "document", "source": {"type": "file", "file_id": "file_1"}}

    def test_a_refusal_of_an_earlier_answer_stays_its_text(self) -> None:
        assert turns(*HELLO, {"role": "assistant", "content": None, "refusal": "No."}, *HELLO)[1]["content"] == [
            text("No.")
        ]

    @pytest.mark.parametrize(
        ("message", "param"),
        [
            ({"role": "function", "name": "f", "content": "x"}, ".role"),
            ({"role": "tool", "content": "x"}, ".tool_call_id"),
            ({"role": "assistant", "content": None, "audio": {"id": "a"}}, ".audio"),
            ({"role": "assistant", "content": None, "function_call": {"name": "f"}}, ".function_call"),
            ({"role": "assistant", "tool_calls": {}}, None),
            ({"role": "assistant", "tool_calls": {"a": 1}}, ".tool_calls"),
            ({"role": "assistant", "tool_calls": [{"type": "custom"}]}, ".tool_calls[0]"),
            ({"role": "assistant", "tool_calls": [tool_call("")]}, ".tool_calls[0].id"),
            ({"role": "assistant", "tool_calls": [tool_call(name="")]}, ".tool_calls[0].function.name"),
            ({"role": "assistant", "tool_calls": [tool_call(arguments="{")]}, ".tool_calls[0].function.arguments"),
            ({"role": "assistant", "tool_calls": [tool_call(arguments="[1]")]}, ".tool_calls[0].function.arguments"),
            ({"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}]}, ".content[0]"),
            ({"role": "user", "content": [{"type": "video", "video": "x"}]}, ".content[0]"),
            ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}, ".content[0]"),
            (
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:text/plain;base64,x"}}]},
                ".content[0]",
            ),
            ({"role": "user", "content": [{"type": "file", "file": {}}]}, ".content[0].file"),
            (
                {"role": "user", "content": [{"type": "file", "file": {"file_data": "JVBERi0="}}]},
                ".content[0].file.file_data",
            ),
            (
                {"role": "user", "content": [{"type": "file", "file": {"file_data": "data:video/mp4;base64,AA=="}}]},
                ".content[0].file.file_data",
            ),
            (
                {"role": "user", "content": [{"type": "file", "file": {"file_data": "data:text/plain;base64,/w=="}}]},
                ".content[0].file.file_data",
            ),
        ],
    )
    def test_what_cannot_be_translated_is_refused_by_its_place(
        self, message: dict[str, Any], param: str | None
    ) -> None:
        for strict in (True, False):
            if param is None:
                left(target(strict=strict), messages=[*HELLO, message])
                continue
            where, words = refusal(target(strict=strict), messages=[*HELLO, message])
            assert where == f"messages[1]{param}"
            assert where in words

    def test_names_of_speakers_are_told_as_left_out(self) -> None:
        assert left(messages=[{"role": "user", "content": "a", "name": "Ada"}]) == ("name",)


class TestThinking:
    SIGNED = {"type": "reasoning.text", "text": "hm", "signature": "c2ln", "format": FORMAT}
    HIDDEN = {"type": "reasoning.encrypted", "data": "ZGF0YQ==", "format": FORMAT}

    def test_signed_and_hidden_thinking_comes_back_first_in_the_turn_unchanged(self) -> None:
        told = turns(
            *HELLO,
            {
                "role": "assistant",
                "content": "so",
                "reasoning_content": "hm",
                "reasoning_details": [self.SIGNED, self.HIDDEN, {**self.SIGNED, "text": "", "signature": "x"}],
                "tool_calls": [tool_call()],
            },
            {"role": "tool", "tool_call_id": "toolu_1", "content": "x"},
        )
        assert told[1]["content"] == [
            {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "ZGF0YQ=="},
            {"type": "thinking", "thinking": "", "signature": "x"},
            text("so"),
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}},
        ]

    @pytest.mark.parametrize(
        ("message", "names"),
        [
            ({"reasoning_content": "hm"}, ("reasoning_content",)),
            ({"reasoning": "hm"}, ("reasoning_content",)),
            ({"reasoning_details": [{**SIGNED, "format": "openai-responses-v1"}]}, ("reasoning_details",)),
            (
                {"reasoning_details": [{"type": "reasoning.text", "text": "x", "format": FORMAT}]},
                ("reasoning_details",),
            ),
            ({"reasoning_details": ["x", None]}, ("reasoning_details",)),
            ({"reasoning_details": "x"}, ()),
        ],
    )
    def test_reasoning_this_provider_did_not_sign_is_left_out_and_told(
        self, message: dict[str, Any], names: tuple[str, ...]
    ) -> None:
        history = [*HELLO, {"role": "assistant", "content": "a", **message}, *HELLO]
        assert left(messages=history) == names
        assert sent(history)["messages"][1]["content"] == [text("a")]

    @pytest.mark.parametrize(
        ("effort", "level"),
        [
            ("minimal", "low"),
            ("low", "low"),
            ("medium", "medium"),
            ("high", "high"),
            ("xhigh", "xhigh"),
            ("max", "max"),
        ],
    )
    def test_an_effort_is_asked_for_with_adaptive_thinking(self, effort: str, level: str) -> None:
        told = sent(reasoning_effort=effort)
        assert (told["thinking"], told["output_config"]) == ({"type": "adaptive"}, {"effort": level})

    def test_no_effort_means_no_thinking(self) -> None:
        told = sent(reasoning_effort="none", temperature=0.5)
        assert (told["thinking"], told["temperature"]) == ({"type": "disabled"}, 0.5)
        assert "output_config" not in told

    def test_an_unknown_effort_is_refused(self) -> None:
        assert refusal(reasoning_effort="huge")[0] == "reasoning_effort"
        assert refusal(reasoning_effort=["low"])[0] == "reasoning_effort"

    @pytest.mark.parametrize(
        ("effort", "limit", "budget"),
        [
            ("minimal", 4096, 1024),
            ("low", 10_000, 2000),
            ("high", 10_000, 8000),
            ("max", 200_000, 32_000),
            ("max", 1025, 1024),
        ],
    )
    def test_models_with_a_budget_get_one_below_the_limit(self, effort: str, limit: int, budget: int) -> None:
        told = sent(to=target(labels=("thinking-budget",)), limit=limit, reasoning_effort=effort)
        assert told["thinking"] == {"type": "enabled", "budget_tokens": budget}
        assert budget < told["max_tokens"]
        assert "output_config" not in told

    @pytest.mark.parametrize(
        "more",
        [
            {"max_tokens": 1024},
            {"tools": [TOOL], "tool_choice": "required"},
            {"messages": [*HELLO, {"role": "assistant", "content": "prefix"}]},
            {
                "messages": [
                    *HELLO,
                    {"role": "assistant", "tool_calls": [tool_call()]},
                    {"role": "tool", "tool_call_id": "toolu_1", "content": "x"},
                ]
            },
        ],
    )
    def test_a_budget_the_provider_would_refuse_is_not_asked_for_and_told(self, more: dict[str, Any]) -> None:
        budgeted = target(labels=("thinking-budget",))
        assert left(budgeted, reasoning_effort="low", **more) == ("reasoning_effort",)
        assert "thinking" not in json.loads(
            ADAPTER.build(call(**{"messages": HELLO, "reasoning_effort": "low", **more}), budgeted, None).body
        )

    def test_a_turn_that_goes_on_with_its_thinking_keeps_the_budget(self) -> None:
        history = [
            *HELLO,
            {"role": "assistant", "tool_calls": [tool_call()], "reasoning_details": [self.SIGNED]},
            {"role": "tool", "tool_call_id": "toolu_1", "content": "x"},
        ]
        told = sent(history, to=target(labels=("thinking-budget",)), reasoning_effort="low")
        assert told["thinking"]["type"] == "enabled"

    def test_a_forced_tool_rules_thinking_out_but_not_the_effort(self) -> None:
        told = sent(tools=[TOOL], tool_choice="required", reasoning_effort="high")
        assert "thinking" not in told
        assert told["output_config"] == {"effort": "high"}
        assert left(tools=[TOOL], tool_choice="required", reasoning_effort="high") == ()

    def test_the_apis_own_thinking_field_is_taken_from_clients_that_send_it(self) -> None:
        assert sent(thinking={"type": "enabled", "budget_tokens": 2000}, max_tokens=1500)["thinking"] == {
            "type": "enabled",
            "budget_tokens": 1499,
        }
        assert sent(thinking={"type": "enabled"})["thinking"] == {"type": "adaptive"}
        assert sent(thinking={"type": "disabled"})["thinking"] == {"type": "disabled"}
        assert left(thinking={"type": "enabled", "budget_tokens": 2000}, max_tokens=500) == ("thinking",)
        assert refusal(thinking="yes")[0] == "thinking"
        assert refusal(thinking={"type": "enabled", "budget_tokens": "2"})[0] == "thinking.budget_tokens"

    def test_sampling_that_thinking_rules_out_is_left_out_and_told(self) -> None:
        asked = {"reasoning_effort": "low", "temperature": 0.2, "top_p": 0.5, "top_k": 3}
        assert left(**asked) == ("temperature", "top_p", "top_k")
        assert left(reasoning_effort="low", temperature=1, top_p=0.97) == ()


def canonical(told: dict[str, Any]) -> list[dict[str, Any]]:
    """The provider's side: a request's turns as canonical messages again."""
    messages: list[dict[str, Any]] = []
    if "system" in told:
        messages.append({"role": "system", "content": "".join(block["text"] for block in told["system"])})
    for turn in told["messages"]:
        message: dict[str, Any] = {"role": turn["role"]}
        for block in turn["content"]:
            if block["type"] == "tool_result":
                messages.append({"role": "tool", "tool_call_id": block["tool_use_id"], "content": block["content"]})
            elif block["type"] == "text":
                message["content"] = message.get("content", "") + block["text"]
            elif block["type"] == "tool_use":
                arguments = json.dumps(block["input"])
                message.setdefault("tool_calls", []).append(tool_call(block["id"], block["name"], arguments))
            elif block["type"] == "thinking":
                detail = {"text": block["thinking"], "signature": block["signature"], "format": FORMAT}
                message.setdefault("reasoning_details", []).append({"type": "reasoning.text", **detail})
            else:
                detail = {"type": "reasoning.encrypted", "data": block["data"], "format": FORMAT}
                message.setdefault("reasoning_details", []).append(detail)
        if len(message) > 1:
            messages.append(message)
    return messages


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if words := draw(st.none() | WORDS):
        messages.append({"role": "system", "content": words})
    for round_ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(WORDS)})
        answer: dict[str, Any] = {"role": "assistant"}
        if details := draw(st.lists(DETAILS, max_size=2)):
            answer["reasoning_details"] = details
        answer["content"] = draw(WORDS)
        calls = [
            tool_call(f"{name}-{round_}-{index}", name, json.dumps(draw(OBJECTS)))
            for index, name in enumerate(draw(st.lists(NAMES, max_size=3)))
        ]
        if calls:
            answer["tool_calls"] = calls
        messages.append(answer)
        messages += [{"role": "tool", "tool_call_id": made["id"], "content": draw(WORDS)} for made in calls]
    return messages


@given(conversations())
@settings(max_examples=100, deadline=None)
def test_a_conversation_comes_back_from_the_providers_side_as_it_was(messages: list[dict[str, Any]]) -> None:
    assert canonical(sent(messages)) == messages


BODY = b'{"model":"m", "max_tokens":100, "thinking":{"type":"enabled","budget_tokens":80}, "x":1.10,\n"messages":[]}'


class TestNative:
    def test_a_body_where_nothing_must_change_is_sent_as_the_same_object(self) -> None:
        request = ADAPTER.build(native(BODY), target(model="m"), 100)
        assert request.body is BODY
        assert ADAPTER.build(native(BODY), target(model=""), None).body is BODY
        assert (request.operation, request.dropped, request.headers) == ("messages", (), VERSION)

    def test_only_the_model_the_limit_and_the_pool_change(self) -> None:
        body = BODY[:-1] + b', "pool":"p"}'
        changed = ADAPTER.build(native(body), target(model="claude"), 90).body
        assert b'"x":1.10' in changed
        assert json.loads(changed) == {
            **{key: value for key, value in json.loads(body).items() if key != "pool"},
            "model": "claude",
            "max_tokens": 90,
        }
        assert json.loads(ADAPTER.build(native(body), target(model="claude"), None).body)["max_tokens"] == 100

    def test_a_budget_of_thinking_stays_below_a_lowered_limit(self) -> None:
        body = b'{"model":"m","max_tokens":9000,"thinking":{"type":"enabled","budget_tokens":8000},"messages":[]}'
        lowered = json.loads(ADAPTER.build(native(body), target(model="m"), 4000).body)
        assert (lowered["max_tokens"], lowered["thinking"]["budget_tokens"]) == (4000, 3999)
        kept = json.loads(ADAPTER.build(native(body), target(model="m"), 8500).body)
        assert kept["thinking"]["budget_tokens"] == 8000

    def test_a_limit_is_sent_even_where_the_client_had_none(self) -> None:
        body = b'{"model":"m","messages":[]}'
        assert json.loads(ADAPTER.build(native(body, limit=None), target(model="m"), None).body)["max_tokens"] == 4096
        assert json.loads(ADAPTER.build(native(body, limit=None), target(model="m"), 5).body)["max_tokens"] == 5

    @pytest.mark.parametrize(
        "given", [b"Anthropic-Version: 2026-10-21\r\n", b"anthropic-beta: a,b\r\nanthropic-version: 2026-10-21\r\n"]
    )
    def test_the_clients_headers_are_sent_and_a_version_added_where_it_named_none(self, given: bytes) -> None:
        assert ADAPTER.build(native(BODY, headers=given), target(), None).headers == given
        beta = b"anthropic-beta: anthropic-version\r\n"
        assert ADAPTER.build(native(BODY, headers=beta), target(), None).headers == VERSION + beta

    def test_a_caller_of_another_dialect_is_translated(self) -> None:
        request = ADAPTER.build(native(b"{}", dialect="gemini"), target(), None)
        assert json.loads(request.body)["messages"] == [{"role": "user", "content": [text("hello")]}]

    def test_the_answer_is_passed_on_as_it_is(self) -> None:
        body = json.dumps(MESSAGE, indent=1).encode()
        answer = ADAPTER.read_unary(native(BODY), 200, [], body)
        assert answer.body is body
        assert (answer.native, answer.usage, answer.output_bytes) == (True, Usage(140, 100, 30, 25, 20), 3)

    def test_an_error_in_an_answer_is_not_passed_on(self) -> None:
        body = b'{"type":"error","error":{"type":"api_error","message":"x"}}'
        answer = ADAPTER.read_unary(native(BODY), 200, [], body)
        assert answer.body == b""
        assert answer.problem is not None


class TestCountAndModels:
    def test_the_counter_gets_what_is_input_and_nothing_else(self) -> None:
        asked = call(
            [{"role": "system", "content": "s"}, *HELLO],
            tools=[TOOL],
            stream=True,
            temperature=0.5,
            n=3,
            user="u",
            stop=["x"],
            reasoning_effort="low",
        )
        request = ADAPTER.build_count(asked, target())
        assert (request.operation, request.headers) == ("count", VERSION)
        told = json.loads(request.body)
        assert sorted(told) == ["messages", "model", "output_config", "system", "thinking", "tools"]
        assert told["model"] == "claude"

    def test_a_native_body_is_counted_without_its_parameters(self) -> None:
        given = b"anthropic-version: 2026-10-21\r\n"
        request = ADAPTER.build_count(native(BODY[:-1] + b',"pool":"p","stream":true}', headers=given), target())
        assert request.headers == given
        assert json.loads(request.body) == {
            "model": "claude",
            "messages": [],
            "thinking": {"type": "enabled", "budget_tokens": 80},
        }

    @pytest.mark.parametrize(
        ("body", "count"),
        [
            (b'{"input_tokens": 14}', 14),
            (b'{"input_tokens": 0}', 0),
            (b'{"input_tokens": -1}', None),
            (b'{"input_tokens": true}', None),
            (b'{"input_tokens": "14"}', None),
            (b"[]", None),
            (b"", None),
        ],
    )
    def test_counts_are_read(self, body: bytes, count: int | None) -> None:
        assert ADAPTER.read_count(body) == count
