"""Ollama's API as clients speak it: bodies into calls, and canonical answers into lines."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dialects import ollama, openai
from gateway.dialects.base import Dialect, StreamWriter
from gateway.errors import (
    BadRequestError,
    BudgetExceededError,
    GatewayError,
    GatewayUnavailableError,
    ModelNotFoundError,
    UnauthorizedError,
)
from providers.canonical import Call
from tests.gateway.odd_chunks import odd_chunks

HELLO = [{"role": "user", "content": "hello"}]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\nrest").decode()
DIALECTS: list[Dialect] = [ollama.CHAT, ollama.GENERATE, ollama.EMBED, ollama.EMBEDDINGS]


def chat(**fields: Any) -> Call:
    return ollama.parse_chat(json.dumps({"model": "m", "messages": HELLO, **fields}).encode())


def generate(**fields: Any) -> Call:
    return ollama.parse_generate(json.dumps({"model": "m", "prompt": "hello", **fields}).encode())


def embed(**fields: Any) -> Call:
    return ollama.parse_embed(json.dumps({"model": "m", "input": "hello", **fields}).encode())


def embeddings(**fields: Any) -> Call:
    return ollama.parse_embeddings(json.dumps({"model": "m", "prompt": "hello", **fields}).encode())


def canonical(call: Call) -> dict[str, Any]:
    doc: dict[str, Any] = json.loads(call.body)
    return doc


def refusal(parse: Callable[..., Call], **fields: Any) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        parse(**fields)
    return caught.value


def completion(message: dict[str, Any], finish: str | None = "stop", **more: Any) -> bytes:
    usage = {"prompt_tokens": 26, "completion_tokens": 3, "total_tokens": 29}
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, **more}
    return json.dumps({"id": "x", "model": "up", "choices": [choice], "usage": usage}).encode()


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, **more}
    return b"data: %b\n\n" % json.dumps({"id": "x", "model": "up", "choices": [choice]}).encode()


USAGE = b'data: {"id":"x","model":"up","choices":[],"usage":{"prompt_tokens":26,"completion_tokens":3}}\n\n'


def lines(data: bytes) -> list[dict[str, Any]]:
    """Decoded lines, without what differs from run to run; the times are checked here."""
    assert not data or data.endswith(b"\n")
    told = [json.loads(line) for line in data.splitlines()]
    for line in told:
        assert datetime.fromisoformat(line.pop("created_at")).tzinfo is not None
        for name in ("total_duration", "eval_duration", "prompt_eval_duration"):
            if name in line:
                assert line.pop(name) > 0
    return told


def written(writer: StreamWriter, *events: bytes) -> list[dict[str, Any]]:
    return lines(b"".join(map(writer.feed, events)) + writer.finish())


END = {"done": True, "done_reason": "stop", "load_duration": 0, "prompt_eval_count": 26, "eval_count": 3}


class TestChatBody:
    def test_a_plain_body_is_a_stream(self) -> None:
        body = b'{ "model":"m", "messages":[{"role":"user","content":"hello"}]}'
        call = ollama.parse_chat(body)
        assert canonical(call) == {
            "model": "m",
            "messages": HELLO,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        assert (call.endpoint, call.model, call.dialect, call.native) == ("chat", "m", "ollama", body)
        assert (call.stream, call.wants_usage, call.native_only, call.dropped) == (True, True, "", ())
        assert call.native is body

    def test_a_stream_that_is_not_wanted_is_none(self) -> None:
        call = chat(stream=False)
        assert (call.stream, call.wants_usage) == (False, True)
        assert canonical(call).keys() == {"model", "messages"}
        assert chat(stream=None).stream

    def test_options_get_their_canonical_names(self) -> None:
        options = {
            "num_predict": 50.0,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 20,
            "min_p": 0.1,
            "seed": 7,
            "stop": ["END"],
            "presence_penalty": 0.2,
            "frequency_penalty": 0.1,
            "repeat_penalty": 1.1,
            "num_ctx": 4096,
            "mirostat": None,
        }
        call = chat(stream=False, options=options, keep_alive="5m", novel=1, empty=None)
        assert {name: value for name, value in canonical(call).items() if name not in ("model", "messages")} == {
            "max_tokens": 50,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 20,
            "min_p": 0.1,
            "seed": 7,
            "stop": ["END"],
            "presence_penalty": 0.2,
            "frequency_penalty": 0.1,
            "repetition_penalty": 1.1,
        }
        assert (call.limit, call.limit_field) == (50, "max_tokens")
        assert set(call.dropped) == {"options.num_ctx", "keep_alive", "novel"}

    @pytest.mark.parametrize("number", [-1, -2, 0])
    def test_a_limit_that_is_none_is_none(self, number: int) -> None:
        assert chat(options={"num_predict": number}).limit is None

    def test_what_common_clients_send_empty_says_nothing(self) -> None:
        call = chat(stream=False, tools=[], options={}, format="", images=None, think=None)
        assert canonical(call).keys() == {"model", "messages"}
        assert call.dropped == ()

    def test_formats(self) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
        assert canonical(chat(format="json"))["response_format"] == {"type": "json_object"}
        wanted = canonical(chat(format=schema))["response_format"]
        assert (wanted["type"], wanted["json_schema"]["schema"]) == ("json_schema", schema)
        assert wanted["json_schema"]["name"]

    @pytest.mark.parametrize(
        ("think", "effort"),
        [(True, "medium"), ("low", "low"), ("medium", "medium"), ("high", "high"), ("max", "xhigh")],
    )
    def test_think_is_an_effort(self, think: object, effort: str) -> None:
        assert canonical(chat(think=think))["reasoning_effort"] == effort

    def test_the_wish_not_to_think_says_no_more_than_its_absence(self) -> None:
        call = chat(think=False)
        assert "reasoning_effort" not in canonical(call)
        assert call.dropped == ()

    def test_log_probabilities_pool_and_tools_pass(self) -> None:
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        call = chat(logprobs=True, top_logprobs=2, pool="team", tools=[tool, {"function": {"name": "g"}}])
        doc = canonical(call)
        assert (doc["logprobs"], doc["top_logprobs"], doc["pool"], call.pool) == (True, 2, "team", "team")
        assert doc["tools"] == [tool, {"type": "function", "function": {"name": "g"}}]
        assert "top_logprobs" not in canonical(chat(logprobs=False, top_logprobs=2))

    def test_images_become_parts_with_their_type(self) -> None:
        jpeg = base64.b64encode(b"\xff\xd8\xff\xe0").decode()
        call = chat(
            messages=[
                {"role": "User", "content": "what", "images": [PNG, jpeg]},
                {"role": "user", "images": ["UklGRg=="]},
            ]
        )
        messages = canonical(call)["messages"]
        assert messages[0] == {
            "role": "user",
            "content": [
                {"type": "text", "text": "what"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{jpeg}"}},
            ],
        }
        assert messages[1]["content"] == [
            {"type": "image_url", "image_url": {"url": "data:image/webp;base64,UklGRg=="}}
        ]
        assert (call.images, call.messages) == (3, 2)
        assert call.media_bytes > len(PNG) + len(jpeg)

    def test_tool_calls_without_ids_are_matched_with_their_results(self) -> None:
        calls = [
            {"function": {"index": 0, "name": "look", "arguments": {"at": 1}}},
            {"id": "own", "function": {"name": "now"}},
            {"function": {"name": "look", "arguments": {"at": 2}}},
        ]
        messages = [
            *HELLO,
            {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": calls},
            {"role": "tool", "content": "noon", "tool_name": "now"},
            {"role": "tool", "content": "a", "tool_name": "look"},
            {"role": "tool", "content": "b"},
            {"role": "tool", "content": "c", "tool_name": "lost"},
            {"role": "tool", "content": "d", "tool_call_id": "given"},
        ]
        told = canonical(chat(messages=messages))["messages"]
        assert told[1] == {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "call_1_0", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}},
                {"id": "own", "type": "function", "function": {"name": "now", "arguments": "{}"}},
                {"id": "call_1_2", "type": "function", "function": {"name": "look", "arguments": '{"at":2}'}},
            ],
        }
        assert [message["tool_call_id"] for message in told[2:]] == ["own", "call_1_0", "call_1_2", "call_5", "given"]
        assert told[5]["name"] == "lost"

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"model": ""}, "model"),
            ({"model": None}, "model"),
            ({"stream": 1}, "stream"),
            ({"messages": []}, "messages"),
            ({"messages": None}, "messages"),
            ({"messages": ["x"]}, "messages[0]"),
            ({"messages": [{"content": "x"}]}, "messages[0].role"),
            ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "Content": "x"}]}, "messages[0].Content"),
            ({"messages": [{"role": "user", "images": "x"}]}, "messages[0].images"),
            ({"messages": [{"role": "user", "images": [7]}]}, "messages[0].images"),
            ({"messages": [{"role": "user", "images": ["https://a.example/x.png"]}]}, "messages[0].images[0]"),
            ({"messages": [{"role": "user", "images": ["data:image/png;base64,AAAA"]}]}, "messages[0].images[0]"),
            ({"messages": [{"role": "assistant", "thinking": 1}]}, "messages[0].thinking"),
            ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls"),
            ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
            (
                {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
                "messages[0].tool_calls[0].function.arguments",
            ),
            ({"messages": [{"role": "tool", "content": "x", "tool_name": 1}]}, "messages[0].tool_name"),
            ({"tools": {}}, "tools"),
            ({"tools": [{"type": "function"}]}, "tools[0]"),
            ({"options": []}, "options"),
            ({"options": {"num_predict": "9"}}, "options.num_predict"),
            ({"options": {"num_predict": 9.5}}, "options.num_predict"),
            ({"options": {"num_predict": 2**31}}, "options.num_predict"),
            ({"options": {"temperature": 9}}, "options.temperature"),
            ({"options": {"top_p": "x"}}, "options.top_p"),
            ({"options": {"stop": [1]}}, "options.stop"),
            ({"format": "yaml"}, "format"),
            ({"format": [1]}, "format"),
            ({"think": "hard"}, "think"),
            ({"think": 1}, "think"),
            ({"logprobs": 1}, "logprobs"),
            ({"pool": 1}, "pool"),
            ({"Options": {}}, "Options"),
            ({"KEEP_ALIVE": 1}, "KEEP_ALIVE"),
            ({"prompt": "x"}, "prompt"),
        ],
    )
    def test_what_is_refused_is_named_as_the_client_wrote_it(self, fields: dict[str, Any], param: str) -> None:
        error = refusal(chat, **fields)
        assert error.param == param
        assert f"'{param}'" in error.message

    @pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model":"m","model":"n","messages":[]}', b"\xff"])
    def test_bodies_that_are_no_object_are_refused(self, body: bytes) -> None:
        for parse in (ollama.parse_chat, ollama.parse_generate, ollama.parse_embed, ollama.parse_embeddings):
            with pytest.raises(BadRequestError):
                parse(body)

    def test_the_canonical_body_is_one_that_the_canonical_parser_takes(self) -> None:
        call = chat(options={"num_predict": 5, "stop": "x"}, format="json", think=True)
        again = openai.parse_chat(call.body)
        assert (again.limit, again.stream, again.wants_usage, again.fields) == (5, True, True, call.fields)


class TestGenerateBody:
    def test_prompt_system_and_images_are_messages(self) -> None:
        call = generate(system="be brief", images=[PNG], options={"num_predict": 9}, format="json", think="low")
        doc = canonical(call)
        assert doc["messages"] == [
            {"role": "system", "content": "be brief"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "hello"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                ],
            },
        ]
        assert (call.endpoint, call.stream, call.limit, call.native_only, call.dropped) == ("chat", True, 9, "", ())
        assert (doc["response_format"], doc["reasoning_effort"]) == ({"type": "json_object"}, "low")
        assert canonical(generate(system="", images=[]))["messages"] == HELLO

    @pytest.mark.parametrize(
        "field",
        [{"suffix": "s"}, {"raw": True}, {"template": "{{ .Prompt }}"}, {"context": [1, 2]}, {"width": 64}],
        ids=lambda field: next(iter(field)),
    )
    def test_what_only_this_api_can_do_is_told(self, field: dict[str, Any]) -> None:
        call = generate(**field)
        assert (call.native_only, call.dropped) == (next(iter(field)), ())
        assert json.loads(call.native)["prompt"] == "hello"

    def test_what_asks_for_nothing_special_is_for_everyone(self) -> None:
        call = generate(suffix="", raw=False, template="", context=None, keep_alive=0)
        assert (call.native_only, call.dropped) == ("", ("keep_alive",))

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"prompt": ""}, "prompt"),
            ({"prompt": None}, "prompt"),
            ({"prompt": ["a"]}, "prompt"),
            ({"system": 1}, "system"),
            ({"images": [""]}, "images"),
            ({"images": ["http://x"]}, "images[0]"),
            ({"messages": []}, "messages"),
            ({"options": {"temperature": -1}}, "options.temperature"),
        ],
    )
    def test_refusals(self, fields: dict[str, Any], param: str) -> None:
        assert refusal(generate, **fields).param == param


class TestEmbedBodies:
    def test_the_new_one(self) -> None:
        call = embed(input=["a", "b"], dimensions=8, truncate=True, options={"num_ctx": 9}, keep_alive=None)
        assert canonical(call) == {"model": "m", "input": ["a", "b"], "encoding_format": "float", "dimensions": 8}
        assert (call.endpoint, call.stream, call.messages, call.dimensions) == ("embeddings", False, 2, 8)
        assert (call.dialect, set(call.dropped), call.encoding) == ("ollama", {"truncate", "options"}, "float")
        plain = embed(options={}, dimensions=0, truncate=False, pool="p")
        assert (plain.dropped, plain.pool) == ((), "p")

    def test_the_old_one(self) -> None:
        call = embeddings(options={"num_ctx": 9})
        assert canonical(call) == {"model": "m", "input": "hello", "encoding_format": "float"}
        assert (call.messages, call.dropped) == (1, ("options",))
        assert json.loads(call.native) == {"model": "m", "prompt": "hello", "options": {"num_ctx": 9}}

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"input": ""}, "input"),
            ({"input": []}, "input"),
            ({"input": [1, 2]}, "input"),
            ({"input": ["a", ""]}, "input"),
            ({"input": None}, "input"),
            ({"dimensions": -1}, "dimensions"),
            ({"prompt": "x"}, "prompt"),
            ({"model": 1}, "model"),
            ({"Truncate": True}, "Truncate"),
        ],
    )
    def test_refusals_of_the_new_one(self, fields: dict[str, Any], param: str) -> None:
        assert refusal(embed, **fields).param == param

    @pytest.mark.parametrize(("fields", "param"), [({"prompt": ""}, "prompt"), ({"input": "x"}, "input")])
    def test_refusals_of_the_old_one(self, fields: dict[str, Any], param: str) -> None:
        assert refusal(embeddings, **fields).param == param


class TestAnswers:
    def test_a_chat_answer(self) -> None:
        call = chat(stream=False)
        time.sleep(0.002)
        body = ollama.CHAT.answer(call, completion({"content": "Hi", "reasoning_content": "h"}, "length"))
        assert json.loads(body)["total_duration"] >= 2_000_000
        told = json.loads(body)
        assert told["created_at"].endswith("Z")
        assert {name for name in told if name.endswith("duration")} == {
            "total_duration",
            "load_duration",
            "prompt_eval_duration",
            "eval_duration",
        }
        for name in ("created_at", "total_duration", "eval_duration", "prompt_eval_duration"):
            del told[name]
        message = {"role": "assistant", "content": "Hi", "thinking": "h"}
        assert told == {"model": "up", "message": message, **END, "done_reason": "length"}

    def test_tool_calls_have_objects_for_arguments(self) -> None:
        calls = [
            {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"at": 1.0}'}},
            {"id": "b", "type": "function", "function": {"name": "now", "arguments": ""}},
        ]
        told = json.loads(ollama.CHAT.answer(chat(), completion({"content": None, "tool_calls": calls}, "tool_calls")))
        assert (told["done_reason"], told["message"]["content"]) == ("stop", "")
        assert told["message"]["tool_calls"] == [
            {"id": "a", "function": {"index": 0, "name": "look", "arguments": {"at": 1.0}}},
            {"id": "b", "function": {"index": 1, "name": "now", "arguments": {}}},
        ]

    def test_arguments_that_were_cut_are_told_as_text(self) -> None:
        calls = [{"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"at": '}}]
        told = json.loads(ollama.CHAT.answer(chat(), completion({"content": "so", "tool_calls": calls}, "length")))
        assert told["message"] == {"role": "assistant", "content": 'so{"at": '}
        assert told["done_reason"] == "length"

    def test_a_generate_answer(self) -> None:
        told = json.loads(ollama.GENERATE.answer(generate(), completion({"content": "Hi", "reasoning": "h"})))
        assert (told["response"], told["thinking"], told["done"], "message" in told) == ("Hi", "h", True, False)

    def test_refusals_lists_of_parts_and_log_probabilities(self) -> None:
        told = json.loads(ollama.CHAT.answer(chat(), completion({"content": None, "refusal": "no"}, "content_filter")))
        assert (told["message"]["content"], told["done_reason"]) == ("no", "content_filter")
        parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "h"}]}, {"type": "text", "text": "Hi"}, 7]
        tokens = [{"token": "Hi", "logprob": -1.0}]
        told = json.loads(ollama.CHAT.answer(chat(), completion({"content": parts}, logprobs={"content": tokens})))
        assert told["message"] == {"role": "assistant", "content": "Hi", "thinking": "h"}
        assert told["logprobs"] == tokens

    @pytest.mark.parametrize(
        "body", [b"", b"x", b"[]", b"{}", b'{"choices":[]}', b'{"choices":[7]}', b'{"choices":{}}']
    )
    def test_nothing_raises(self, body: bytes) -> None:
        told = json.loads(ollama.CHAT.answer(chat(), body))
        assert (told["model"], told["message"]["content"], told["done"]) == ("m", "", True)
        assert json.loads(ollama.EMBED.answer(embed(), body))["embeddings"] == []
        assert json.loads(ollama.EMBEDDINGS.answer(embeddings(), body)) == {"embedding": []}

    def test_embeddings_come_in_order(self) -> None:
        data = [{"index": 1, "embedding": [2, 3]}, {"index": 0, "embedding": [0.5, -1e-07]}]
        body = json.dumps({"data": data, "model": "up", "usage": {"prompt_tokens": 5, "total_tokens": 5}}).encode()
        told = json.loads(ollama.EMBED.answer(embed(input=["a", "b"]), body))
        assert told.pop("total_duration") > 0
        assert told == {
            "model": "up",
            "embeddings": [[0.5, -1e-07], [2, 3]],
            "load_duration": 0,
            "prompt_eval_count": 5,
        }
        assert json.loads(ollama.EMBEDDINGS.answer(embeddings(), body)) == {"embedding": [0.5, -1e-07]}


class TestStream:
    def test_every_chunk_is_a_line_and_the_last_one_counts(self) -> None:
        writer = ollama.CHAT.writer(chat(), "rid")
        told = written(
            writer,
            chunk({"role": "assistant", "content": ""}),
            chunk({"reasoning_content": "h"}),
            chunk({"content": "He"}) + chunk({"content": "llo é"}, logprobs={"content": [{"token": "x"}]}),
            chunk({}, "length"),
            USAGE,
        )
        assert told == [
            {"model": "up", "message": {"role": "assistant", "content": "", "thinking": "h"}, "done": False},
            {"model": "up", "message": {"role": "assistant", "content": "He"}, "done": False},
            {
                "model": "up",
                "message": {"role": "assistant", "content": "llo é"},
                "logprobs": [{"token": "x"}],
                "done": False,
            },
            {"model": "up", "message": {"role": "assistant", "content": ""}, **END, "done_reason": "length"},
        ]

    def test_interleaved_tool_calls_are_told_whole_and_in_order(self) -> None:
        def piece(index: int, **fields: Any) -> dict[str, Any]:
            id = {"id": fields.pop("id")} if "id" in fields else {}
            return {"index": index, **id, "function": fields}

        told = written(
            ollama.CHAT.writer(chat(), "rid"),
            chunk(
                {
                    "tool_calls": [
                        piece(1, id="b", name="now", arguments=""),
                        piece(0, id="a", name="look", arguments=""),
                    ]
                }
            ),
            chunk({"tool_calls": [piece(0, arguments='{"at"')]}),
            chunk({"tool_calls": [piece(1, arguments="{}")]}),
            chunk({"content": "meanwhile", "tool_calls": [piece(0, arguments=":[1]}")]}),
            chunk({}, "tool_calls"),
            USAGE,
        )
        assert [line["done"] for line in told] == [False, False, True]
        assert told[0]["message"] == {"role": "assistant", "content": "meanwhile"}
        assert told[1]["message"] == {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "a", "function": {"index": 0, "name": "look", "arguments": {"at": [1]}}},
                {"id": "b", "function": {"index": 1, "name": "now", "arguments": {}}},
            ],
        }
        assert told[2]["done_reason"] == "stop"

    def test_generate_streams_responses(self) -> None:
        told = written(
            ollama.GENERATE.writer(generate(), "rid"),
            chunk({"reasoning": "h"}),
            chunk({"content": "Hi"}, "stop"),
            USAGE,
        )
        assert told == [
            {"model": "up", "response": "", "thinking": "h", "done": False},
            {"model": "up", "response": "Hi", "done": False},
            {"model": "up", "response": "", **END},
        ]

    def test_times_are_measured(self) -> None:
        call = chat()
        writer = ollama.CHAT.writer(call, "rid")
        time.sleep(0.004)
        writer.feed(chunk({"content": "x"}))
        time.sleep(0.002)
        end = json.loads(writer.finish())
        assert end["prompt_eval_duration"] >= 4_000_000
        assert end["eval_duration"] >= 2_000_000
        assert end["total_duration"] >= end["prompt_eval_duration"] + end["eval_duration"] - 1
        assert "eval_count" not in end

    def test_a_failure_is_a_line(self) -> None:
        writer = ollama.CHAT.writer(chat(), "rid")
        writer.feed(chunk({"content": "x"}))
        assert writer.fail(GatewayError("It broke.")) == b'{"error":"It broke."}\n'

    def test_streams_that_others_wrote_in_their_own_way_are_read(self) -> None:
        data = b": hi\r\n\r\ndata:" + chunk({"content": "a"}).removeprefix(b"data: ").replace(b"\n\n", b"\r\n\r\n")
        told = written(ollama.CHAT.writer(chat(), "rid"), data, b"event: x\n" + chunk({"content": "b"}), b"data: {\n\n")
        assert [line["message"]["content"] for line in told] == ["a", "b", ""]
        assert told[-1]["done_reason"] == "stop"

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(
                        st.sampled_from(
                            [
                                "choices",
                                "delta",
                                "content",
                                "tool_calls",
                                "function",
                                "index",
                                "usage",
                                "logprobs",
                                "model",
                            ]
                        ),
                        inner,
                        max_size=4,
                    )
                ),
                max_leaves=12,
            ),
            max_size=4,
        )
    )
    def test_no_chunk_raises(self, chunks: list[Any]) -> None:
        writer = ollama.CHAT.writer(chat(), "rid")
        for one in chunks:
            writer.feed(b"data: %b\n\n" % json.dumps(one).encode())
        assert json.loads(writer.finish().splitlines()[-1])["done"] is True


class TestErrors:
    @pytest.mark.parametrize(
        "error",
        [
            BadRequestError("Bad.", param="x"),
            UnauthorizedError(),
            ModelNotFoundError("m"),
            BudgetExceededError(),
            GatewayUnavailableError("Away."),
            GatewayError(),
        ],
    )
    def test_an_error_is_its_words(self, error: GatewayError) -> None:
        for dialect in DIALECTS:
            assert json.loads(dialect.error(error, "rid")) == {"error": error.message}
            assert dialect.in_band(error) == dialect.error(error, "rid") + b"\n"

    def test_what_the_dialects_say_of_themselves(self) -> None:
        for dialect in DIALECTS:
            assert (dialect.name, dialect.stream_type) == ("ollama", b"application/x-ndjson")
            assert (dialect.ping, dialect.id_header) == (b"", b"")
        assert ollama.OLLAMA is ollama.CHAT


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NAME = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(TEXT, max_size=4),
    st.lists(TEXT, max_size=2),
    st.lists(st.tuples(NAME, st.dictionaries(TEXT, st.integers() | TEXT, max_size=2)), max_size=3),
    st.sampled_from(["stop", "length"]),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)
def test_what_a_provider_said_reaches_the_client_whole_and_streamed(
    texts: list[str], thoughts: list[str], calls: Any, reason: str, given: int, made: int
) -> None:
    usage = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
    made_calls: list[dict[str, Any]] = [
        {"index": i, "id": f"id-{i}", "type": "function", "function": {"name": name, "arguments": json.dumps(value)}}
        for i, (name, value) in enumerate(calls)
    ]
    finish = "tool_calls" if calls and reason == "stop" else reason
    message: dict[str, Any] = {
        "content": "".join(texts),
        "reasoning_content": "".join(thoughts),
        "tool_calls": made_calls,
    }
    whole = json.loads(completion(message, finish)) | {"usage": usage}
    answer = lines(
        ollama.CHAT.answer(chat(), json.dumps(whole).encode()).replace(b'"prompt_eval_duration":0,', b"") + b"\n"
    )[0]

    events = [chunk({"reasoning_content": thought}) for thought in thoughts] + [chunk({"content": t}) for t in texts]
    for one in made_calls:
        arguments = one["function"]["arguments"]
        half = len(arguments) // 2
        events.append(chunk({"tool_calls": [{**one, "function": {**one["function"], "arguments": arguments[:half]}}]}))
        events.append(chunk({"tool_calls": [{"index": one["index"], "function": {"arguments": arguments[half:]}}]}))
    events += [chunk({}, finish), b"data: %b\n\n" % json.dumps({"choices": [], "usage": usage}).encode()]
    streamed = written(ollama.CHAT.writer(chat(), "rid"), *events)

    told: list[dict[str, Any]] = [answer["message"], joined(streamed)]
    for message in told:
        assert message["content"] == "".join(texts)
        assert message.get("thinking", "") == "".join(thoughts)
        assert [
            (one["id"], one["function"]["index"], one["function"]["name"], one["function"]["arguments"])
            for one in message.get("tool_calls", [])
        ] == [(f"id-{index}", index, name, value) for index, (name, value) in enumerate(calls)]
    for end in (answer, streamed[-1]):
        assert (end["done"], end["done_reason"]) == (True, reason)
        assert (end["prompt_eval_count"], end["eval_count"]) == (given, made)


def joined(told: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that the lines of a stream come to."""
    messages = [line["message"] for line in told]
    return {
        "content": "".join(message["content"] for message in messages),
        "thinking": "".join(message.get("thinking", "") for message in messages),
        "tool_calls": [one for message in messages for one in message.get("tool_calls", ())],
    }


def test_the_most_tool_calls_and_results_are_matched_at_once_and_more_are_refused() -> None:
    calls = [{"function": {"name": f"f{n % 3}"}} for n in range(4000)]
    results = [{"role": "tool", "content": "x"} for _ in range(4000)]
    sent = json.dumps({"model": "m", "messages": [{"role": "assistant", "tool_calls": calls}, *results]}).encode()
    began = time.process_time()
    doc = json.loads(ollama.parse_chat(sent).body)
    assert time.process_time() - began < 1
    assert [message["tool_call_id"] for message in doc["messages"][1:]] == [f"call_0_{n}" for n in range(4000)]
    assert refusal(chat, messages=HELLO * 4097).param == "messages"
    assert refusal(chat, messages=[{"role": "assistant", "tool_calls": calls}] * 5).param == "messages"


@pytest.mark.parametrize(("arguments", "expected"), [({"a": 1}, {"a": 1}), ({}, {}), ('{"a":1}', {"a": 1})])
def test_arguments_that_came_as_an_object_reach_the_client(arguments: Any, expected: Any) -> None:
    message = {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": arguments}}]}
    whole = json.loads(ollama.CHAT.answer(chat(), completion(message)))
    told = written(ollama.CHAT.writer(chat(), ""), chunk(message, ["odd"]))  # type: ignore[arg-type]
    for line in (whole, told[0]):
        assert line["message"]["tool_calls"][0]["function"]["arguments"] == expected
    assert told[-1]["done_reason"] == "stop"


@settings(deadline=None)
@given(odd_chunks())
def test_odd_json_in_every_field_never_raises(doc: Any) -> None:
    sent = json.dumps(doc).encode()
    for dialect in (ollama.CHAT, ollama.GENERATE):
        dialect.answer(chat(), sent)
        writer = dialect.writer(chat(), "")
        lines(writer.feed(b"data: %b\n\n" % sent) + writer.feed(b"data: %b\n\n" % sent) + writer.finish())
