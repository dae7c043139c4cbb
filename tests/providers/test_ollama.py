"""The Ollama adapter: bodies sent to /api/chat, /api/embed and /api/generate, and embeddings that come back."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings

from gateway.dialects import openai
from providers.canonical import Answer, Call, Target, Usage
from providers.catalog import CATALOG
from tests.providers.ollama_talk import (
    ADAPTER,
    CALLS,
    HELLO,
    LENIENT,
    PNG,
    TARGET,
    TEXT,
    built,
    chat,
    embedding,
    function,
    native,
    read,
    refusal,
    sent,
)


class TestChatRequest:
    def test_a_plain_request_says_that_it_is_no_stream_and_that_nothing_may_be_cut(self) -> None:
        doc, request = built(chat())
        assert doc == {"model": "llama3.2:3b", "messages": HELLO, "stream": False, "truncate": False}
        assert (request.operation, request.dropped, request.headers) == ("chat", (), b"")

    def test_the_callers_name_of_the_model_is_sent_where_the_route_has_no_other(self) -> None:
        assert sent(chat(), target=Target(CATALOG["ollama"]))["model"] == "m"

    def test_a_stream_is_asked_for_without_stream_options(self) -> None:
        doc = sent(chat(stream=True, stream_options={"include_usage": True}, pool="team"))
        assert doc["stream"] is True
        assert doc.keys() == {"model", "messages", "stream", "truncate"}

    def test_sampling_fields_become_options(self) -> None:
        call = chat(
            temperature=0.5,
            top_p=0.9,
            top_k=20,
            min_p=0.1,
            seed=7,
            frequency_penalty=0.1,
            presence_penalty=0.2,
            repetition_penalty=1.1,
            stop="END",
            max_completion_tokens=50,
        )
        doc, request = built(call)
        assert doc["options"] == {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 20,
            "min_p": 0.1,
            "seed": 7,
            "frequency_penalty": 0.1,
            "presence_penalty": 0.2,
            "repeat_penalty": 1.1,
            "stop": ["END"],
            "num_predict": 50,
        }
        assert request.dropped == ()
        assert sent(chat(stop=["a", "b"]))["options"] == {"stop": ["a", "b"]}

    @pytest.mark.parametrize(("field", "limit", "expected"), [({}, 9, 9), ({"max_tokens": 50}, 9, 9)])
    def test_the_enforced_limit_replaces_the_callers(self, field: dict[str, Any], limit: int, expected: int) -> None:
        assert sent(chat(**field), limit=limit)["options"] == {"num_predict": expected}

    def test_labels_of_the_card_set_the_context_and_leave_cutting_on(self) -> None:
        target = Target(CATALOG["ollama"], "m", labels=frozenset({"num_ctx:8192", "truncate", "tools"}))
        assert sent(chat(), target=target)["options"] == {"num_ctx": 8192}
        assert "truncate" not in sent(chat(), target=target)
        odd = Target(CATALOG["ollama"], "m", labels=frozenset({"num_ctx:", "num_ctx:x", "num_ctx:-1"}))
        assert "options" not in sent(chat(), target=odd)

    @pytest.mark.parametrize(
        ("effort", "think"),
        [
            ("none", False),
            ("minimal", "low"),
            ("low", "low"),
            ("medium", "medium"),
            ("high", "high"),
            ("xhigh", "max"),
        ],
    )
    def test_reasoning_effort_becomes_think(self, effort: str, think: object) -> None:
        assert sent(chat(reasoning_effort=effort))["think"] == think

    def test_response_formats(self) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
        assert "format" not in sent(chat(response_format={"type": "text"}))
        assert sent(chat(response_format={"type": "json_object"}))["format"] == "json"
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
        assert sent(chat(response_format=wanted))["format"] == schema
        assert refusal(chat(response_format={"type": "grammar"})).param == "response_format"
        assert refusal(chat(response_format={"type": "json_schema"})).param == "response_format"

    def test_log_probabilities_are_asked_for(self) -> None:
        doc = sent(chat(logprobs=True, top_logprobs=3))
        assert (doc["logprobs"], doc["top_logprobs"]) == (True, 3)
        assert "logprobs" not in sent(chat(logprobs=False))

    def test_tools_are_sent_without_what_the_api_does_not_know(self) -> None:
        function = {"name": "look", "description": "d", "parameters": {"type": "object", "properties": {}}}
        tools = [{"type": "function", "function": {**function, "strict": True}, "cache_control": {"type": "ephemeral"}}]
        assert sent(chat(tools=tools, tool_choice="auto"))["tools"] == [{"type": "function", "function": function}]
        bare = [{"type": "function", "function": {"name": "now"}}]
        assert sent(chat(tools=bare))["tools"][0]["function"] == {
            "name": "now",
            "parameters": {"type": "object", "properties": {}},
        }

    def test_no_tool_is_offered_where_none_may_be_called(self) -> None:
        tools = [{"type": "function", "function": {"name": "now"}}]
        assert "tools" not in sent(chat(tools=tools, tool_choice="none"))

    @pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "now"}}])
    def test_a_forced_call_is_refused_or_told_as_dropped(self, choice: object) -> None:
        call = chat(tools=[{"type": "function", "function": {"name": "now"}}], tool_choice=choice)
        assert refusal(call).param == "tool_choice"
        doc, request = built(call, target=LENIENT)
        assert request.dropped == ("tool_choice",)
        assert doc["tools"]

    @pytest.mark.parametrize(
        "field",
        [
            {"n": 2},
            {"logit_bias": {"1": 5}},
            {"functions": [{"name": "f"}]},
            {"modalities": ["text", "audio"]},
            {"audio": {"voice": "x"}},
            {"web_search_options": {}},
            {"guided_regex": "a+"},
        ],
        ids=lambda field: next(iter(field)),
    )
    def test_what_would_be_another_answer_is_refused_or_told_as_dropped(self, field: dict[str, Any]) -> None:
        name = next(iter(field))
        error = refusal(chat(**field))
        assert (error.param, error.message[-1]) == (name, ".")
        doc, request = built(chat(**field), target=LENIENT)
        assert request.dropped == (name,)
        assert name not in doc

    def test_hints_and_unknown_fields_are_told_as_dropped(self) -> None:
        _, request = built(chat(user="u", parallel_tool_calls=False, store=True, novel=1, n=1, seed=None))
        assert request.dropped == ("user", "parallel_tool_calls", "store", "novel")

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"reasoning_effort": "extreme"}, "reasoning_effort"),
            ({"reasoning_effort": 3}, "reasoning_effort"),
            ({"tools": [{"type": "web_search"}]}, "tools[0]"),
            ({"tools": ["x"]}, "tools[0]"),
        ],
    )
    def test_values_that_have_no_translation_are_refused(self, fields: dict[str, Any], param: str) -> None:
        assert refusal(chat(**fields), LENIENT).param == param

    def test_legacy_completions_are_not_this_adapters(self) -> None:
        call = openai.parse_completions(b'{"model":"m","prompt":"x"}')
        assert refusal(call).param == "prompt"


class TestMessages:
    def test_system_and_developer_are_one_role_here(self) -> None:
        doc = sent(chat(messages=[{"role": "developer", "content": "a"}, {"role": "system", "content": "b"}, *HELLO]))
        assert [message["role"] for message in doc["messages"]] == ["system", "system", "user"]

    def test_parts_become_text_and_bare_images(self) -> None:
        parts = [
            {"type": "text", "text": "what", "cache_control": {"type": "ephemeral"}},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
            {"type": "text", "text": "is this"},
        ]
        assert sent(chat(messages=[{"role": "user", "content": parts}]))["messages"] == [
            {"role": "user", "content": "what\nis this", "images": [PNG]}
        ]

    @pytest.mark.parametrize(
        ("part", "param"),
        [
            ({"type": "image_url", "image_url": {"url": "https://a.example/x.png"}}, ".image_url"),
            ({"type": "image_url", "image_url": {"url": "data:image/svg+xml,<svg/>"}}, ".image_url"),
            ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, ""),
            ({"type": "file", "file": {"file_id": "f"}}, ""),
            ({"type": "novel"}, ""),
        ],
    )
    def test_other_parts_are_refused_by_their_place(self, part: dict[str, Any], param: str) -> None:
        call = chat(messages=[{"role": "user", "content": [{"type": "text", "text": "x"}, part]}])
        assert refusal(call, LENIENT).param == f"messages[0].content[1]{param}"

    def test_a_turn_with_tools_keeps_calls_ids_names_and_thoughts(self) -> None:
        calls = [
            {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": [1, 2.5], "é": null}'}},
            {"id": "c2", "type": "function", "function": {"name": "now", "arguments": ""}},
        ]
        messages = [
            *HELLO,
            {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "noon"}]},
            {"role": "tool", "tool_call_id": "c1", "content": "seen", "is_error": True},
            {"role": "tool", "tool_call_id": "lost", "content": "?"},
        ]
        assert sent(chat(messages=messages))["messages"][1:] == [
            {
                "role": "assistant",
                "content": "",
                "thinking": "hm",
                "tool_calls": [
                    {"id": "c1", "function": {"index": 0, "name": "look", "arguments": {"at": [1, 2.5], "é": None}}},
                    {"id": "c2", "function": {"index": 1, "name": "now", "arguments": {}}},
                ],
            },
            {"role": "tool", "content": "noon", "tool_name": "now", "tool_call_id": "c2"},
            {"role": "tool", "content": "seen", "tool_name": "look", "tool_call_id": "c1"},
            {"role": "tool", "content": "?", "tool_call_id": "lost"},
        ]

    def test_legacy_function_calls_are_tool_calls(self) -> None:
        messages = [
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "r"},
        ]
        assert sent(chat(messages=messages))["messages"] == [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"index": 0, "name": "f", "arguments": {}}}],
            },
            {"role": "tool", "content": "r", "tool_name": "f"},
        ]

    @pytest.mark.parametrize(
        "message",
        [
            {"reasoning": "deep"},
            {"reasoning_details": [{"type": "reasoning.text", "text": "de"}, {"type": "x", "text": "ep"}]},
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "deep"}]}]},
            {"content": [{"type": "thinking", "thinking": "deep"}]},
        ],
    )
    def test_thoughts_are_found_under_every_name(self, message: dict[str, Any]) -> None:
        told = sent(chat(messages=[{"role": "assistant", "content": "", **message}]))["messages"][0]
        assert told == {"role": "assistant", "content": "", "thinking": "deep"}

    def test_a_refusal_is_text(self) -> None:
        messages = [
            {"role": "assistant", "content": None, "refusal": "no"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "never"}]},
        ]
        assert [told["content"] for told in sent(chat(messages=messages))["messages"]] == ["no", "never"]

    @pytest.mark.parametrize(
        ("message", "param"),
        [
            ({"role": "critic", "content": "x"}, "role"),
            ({"role": "assistant", "audio": {"id": "a"}}, "audio"),
            ({"role": "assistant", "tool_calls": [{"type": "custom", "custom": {}}]}, "tool_calls[0]"),
            ({"role": "assistant", "tool_calls": ["x"]}, "tool_calls[0]"),
            (
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
                "tool_calls[0].function.arguments",
            ),
            (
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
                "tool_calls[0].function.arguments",
            ),
        ],
    )
    def test_what_cannot_be_said_here_is_refused(self, message: dict[str, Any], param: str) -> None:
        assert refusal(chat(messages=[message]), LENIENT).param == f"messages[0].{param}"


class TestNativeRequest:
    def test_a_chat_body_passes_with_model_stream_and_limit_written(self) -> None:
        body = {"model": "m", "messages": HELLO, "options": {"num_predict": -1, "top_k": 3}, "keep_alive": "5m"}
        doc, request = built(native({**body, "pool": "p"}), limit=20)
        assert doc == {
            "model": "llama3.2:3b",
            "messages": HELLO,
            "options": {"num_predict": 20, "top_k": 3},
            "keep_alive": "5m",
            "stream": True,
        }
        assert (request.operation, request.dropped) == ("chat", ())

    def test_without_a_limit_options_keep_their_bytes(self) -> None:
        call = Call("chat", "m", b"{}", dialect="ollama", native=b'{"model":"m","messages":[],"options":{"seed":1.50}}')
        request = ADAPTER.build(call, TARGET, None)
        assert b'"options":{"seed":1.50}' in request.body
        assert b'"stream":false' in request.body

    def test_the_context_of_the_card_is_only_a_default(self) -> None:
        target = Target(CATALOG["ollama"], "m", labels=frozenset({"num_ctx:8192"}))
        body = {"model": "m", "messages": HELLO}
        assert sent(native(body), target=target)["options"] == {"num_ctx": 8192}
        assert sent(native({**body, "options": {"num_ctx": 99}}), target=target)["options"] == {"num_ctx": 99}

    def test_fields_that_the_server_would_take_for_the_written_ones_are_left_out(self) -> None:
        body = {
            "model": "m",
            "messages": [],
            "Options": {"num_predict": 9},
            "STREAM": False,
            "\u017ftream": 1,
            "Modeł": 1,
        }
        assert sent(native(body), limit=5).keys() == {"model", "messages", "Modeł", "stream", "options"}

    def test_a_body_with_a_prompt_is_one_of_generate(self) -> None:
        doc, request = built(native({"model": "m", "prompt": "p", "suffix": "s", "stream": False}), limit=5)
        assert request.operation == "generate_text"
        assert doc == {
            "model": "llama3.2:3b",
            "prompt": "p",
            "suffix": "s",
            "stream": False,
            "options": {"num_predict": 5},
        }

    def test_embeddings_pass_and_the_old_ones_are_asked_of_the_new_path(self) -> None:
        doc, request = built(native({"model": "m", "input": ["a"], "truncate": True}, endpoint="embeddings"), limit=5)
        assert (doc, request.operation) == (
            {"model": "llama3.2:3b", "input": ["a"], "truncate": True},
            "embeddings",
        )
        doc, request = built(native({"model": "m", "prompt": "a"}, endpoint="embeddings"))
        assert (doc, request.operation) == ({"model": "llama3.2:3b", "input": "a"}, "embeddings")


class TestEmbeddings:
    def test_a_request(self) -> None:
        doc, request = built(embedding(input=["a", "b"], dimensions=8, encoding_format="base64", user="u"), limit=9)
        assert doc == {"model": "llama3.2:3b", "input": ["a", "b"], "truncate": False, "dimensions": 8}
        assert (request.operation, request.dropped) == ("embeddings", ("user",))
        labelled = Target(CATALOG["ollama"], "m", labels=frozenset({"num_ctx:512", "truncate"}))
        assert sent(embedding(), target=labelled) == {"model": "m", "input": "hello", "options": {"num_ctx": 512}}

    @pytest.mark.parametrize("tokens", [[1, 2], [[1, 2], [3]]])
    def test_token_numbers_are_refused(self, tokens: object) -> None:
        assert refusal(embedding(input=tokens), LENIENT).param == "input"

    def test_a_reply_in_the_openai_shape(self) -> None:
        call = embedding(input=["a", "b"])
        answer = read({"model": "e", "embeddings": [[0.25, -1e-07], [1, 2]], "prompt_eval_count": 5}, call)
        assert json.loads(answer.body) == {
            "object": "list",
            "data": [
                {"object": "embedding", "index": 0, "embedding": [0.25, -1e-07]},
                {"object": "embedding", "index": 1, "embedding": [1, 2]},
            ],
            "model": "e",
            "usage": {"prompt_tokens": 5, "total_tokens": 5},
        }
        assert answer.usage == Usage(5)

    def test_base64_is_made_where_it_was_asked_for(self) -> None:
        answer = read({"embeddings": [[0.25, -2]], "prompt_eval_count": 1}, embedding(encoding_format="base64"))
        packed = json.loads(answer.body)["data"][0]["embedding"]
        assert struct.unpack("<2f", base64.b64decode(packed)) == (0.25, -2.0)

    def test_a_missing_or_absurd_count_is_unknown(self) -> None:
        for count in ({}, {"prompt_eval_count": -1}):
            answer = read({"model": "e", "embeddings": [[1]], **count}, embedding())
            assert answer.usage is None
            assert json.loads(answer.body)["usage"] == {"prompt_tokens": 0, "total_tokens": 0}

    def test_native_replies_pass_or_are_told_as_the_old_api_does(self) -> None:
        body = b'{"model":"e", "embeddings":[[0.50,1]], "prompt_eval_count":2}'
        assert read(body, native({"model": "m", "input": "a"}, endpoint="embeddings")) == Answer(
            body, Usage(2), native=True
        )
        old = read(body, native({"model": "m", "prompt": "a"}, endpoint="embeddings"))
        assert (old.body, old.usage, old.native) == (b'{"embedding":[0.50,1]}', Usage(2), True)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"x",
            b"{}",
            b'{"embeddings":[]}',
            b'{"embeddings":[[1],[2]]}',
            b'{"embeddings":["x"]}',
            b'{"embeddings":[[null]]}',
        ],
    )
    def test_nonsense_is_a_problem(self, body: bytes) -> None:
        answer = read(body, embedding())
        assert answer.problem is not None
        assert answer.problem.reason == "protocol"

    def test_a_number_that_no_float32_holds_is_a_problem_in_base64(self) -> None:
        answer = read({"embeddings": [[1e300]]}, embedding(encoding_format="base64"))
        assert answer.problem is not None
        assert answer.problem.reason == "protocol"


def canonical(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a request's messages say, from Ollama's form back into the canonical one."""
    made = []
    for message in messages:
        told = {"role": message["role"], "content": message["content"]}
        if message.get("thinking"):
            told["reasoning_content"] = message["thinking"]
        if message.get("tool_calls"):
            told["tool_calls"] = [
                (given["id"], given["function"]["name"], given["function"]["arguments"])
                for given in sorted(message["tool_calls"], key=lambda given: given["function"]["index"])
            ]
        if message["role"] == "tool":
            told |= {"tool_call_id": message["tool_call_id"], "name": message["tool_name"]}
        made.append(told)
    return made


@settings(max_examples=80, deadline=None)
@given(TEXT, TEXT, TEXT, CALLS.filter(bool))
def test_what_is_said_in_a_request_arrives(system: str, content: str, thinking: str, calls: Any) -> None:
    made = [
        {"id": f"id-{index}", "type": "function", "function": function(name, json.dumps(arguments))}
        for index, (name, arguments) in enumerate(calls)
    ]
    results = [{"role": "tool", "tool_call_id": f"id-{index}", "content": content} for index in range(len(calls))]
    assistant = {"role": "assistant", "content": content, "reasoning_content": thinking, "tool_calls": made}
    doc = sent(chat(messages=[{"role": "system", "content": system}, *HELLO, assistant, *results]))
    expected: dict[str, Any] = {"role": "assistant", "content": content}
    if thinking:
        expected["reasoning_content"] = thinking
    expected["tool_calls"] = [(f"id-{index}", name, arguments) for index, (name, arguments) in enumerate(calls)]
    assert canonical(doc["messages"]) == [
        {"role": "system", "content": system},
        *HELLO,
        expected,
        *({**result, "name": calls[index][0]} for index, result in enumerate(results)),
    ]
