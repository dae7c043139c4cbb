"""The Responses API: nothing that a provider reads may be missing from what a call is held for."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from gateway.dialects import responses
from tests.gateway.responses_case import FUNCTION, parse, refusal, text

IMAGE = {"type": "input_image", "image_url": "https://e.org/a.png"}
FILE = {"type": "input_file", "file_id": "f"}
SCREEN = {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot"}}
RESULT = {"type": "function_call_output", "call_id": "c"}


def said(role: str, *parts: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": list(parts), **more}


@pytest.mark.parametrize(
    ("item", "images", "files", "others"),
    [
        (said("user", IMAGE, FILE), 1, 1, 0),
        (said("user", {**IMAGE, "file_id": None, "detail": "auto"}), 1, 0, 0),
        (said("user", {**IMAGE, "file_id": "f"}), 1, 0, 1),
        (said("user", {"type": "file", "file": {"file_id": "f", "file_data": "data:,x"}}), 0, 1, 1),
        (said("user", {"type": "input_text", "text": "x", "file_id": "f"}), 0, 0, 1),
        (said("user", {"type": "input_hologram"}), 0, 0, 1),
        (said("user", attachments=[FILE, FILE]), 0, 0, 2),
        (said("assistant", IMAGE, FILE), 0, 0, 2),
        (said("assistant", {"type": "output_text", "text": "x", "annotations": [{"file_id": "f"}]}), 0, 0, 0),
        (SCREEN, 0, 0, 1),
        ({**SCREEN, "output": {"image_url": "data:,x", "file_id": "f"}}, 0, 0, 2),
        ({**RESULT, "output": [IMAGE]}, 1, 0, 0),
        ({**RESULT, "output": {"content": "x", "file_url": "u"}}, 0, 0, 1),
        ({"type": "image_generation_call", "result": "AAAA"}, 0, 0, 1),
        ({"type": "of_tomorrow", "deep": [{"er": {"file_id": "f"}}, {"file_data": "x"}]}, 0, 0, 2),
        ({"type": "of_tomorrow", "text": "x"}, 0, 0, 0),
        (FILE, 0, 0, 1),
    ],
)
def test_every_file_is_counted(item: Any, images: int, files: int, others: int) -> None:
    call = parse(input=[text("user", "x"), item])
    assert (call.images, call.files, call.others) == (images, files, others)


def test_hosted_tools_are_taken_out_wherever_they_stand() -> None:
    search = {"type": "web_search"}
    space = {"type": "namespace", "name": "n", "tools": [search, FUNCTION]}
    kept = {**space, "tools": [FUNCTION]}
    brought = {"type": "additional_tools", "tools": [space, search]}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [search, FUNCTION]}}
    call = parse(
        input=[text("user", "x"), brought],
        instructions=[text("developer", "y"), brought],
        tools=[space],
        tool_choice=choice,
    )
    assert "tools.web_search" in call.dropped
    told = json.loads(responses.without_hosted_tools(call).native)
    assert told["tools"] == [kept]
    assert (told["input"][1]["tools"], told["instructions"][1]["tools"]) == ([kept], [kept])
    assert told["tool_choice"]["allowed_tools"]["tools"] == [FUNCTION]
    only = parse(instructions=[text("developer", "y"), {"type": "additional_tools", "tools": [search]}])
    assert "web_search" not in responses.without_hosted_tools(only).native.decode()


def test_a_forced_hosted_tool_counts_for_more_than_a_tier() -> None:
    call = parse(tools=[{"type": "web_search"}], tool_choice={"type": "web_search"}, service_tier="priority")
    assert call.surcharge == "tools"
    screen = parse(
        input=[text("user", "x"), SCREEN], tools=[{"type": "web_search"}], tool_choice={"type": "web_search"}
    )
    assert screen.surcharge == "tools"


def test_too_many_items_or_parts_are_refused_and_the_most_is_read_at_once() -> None:
    assert refusal(input=[text("user", "x")] * 4097).param == "input"
    assert refusal(instructions=[text("developer", "x")] * 4097).param == "instructions"
    assert refusal(input=[said("user", *[{"type": "input_text", "text": "x"}] * 16_385)]).param == "input"
    words = "x" * 2000
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    thoughts = [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": words}]}] * 2000
    began = time.process_time()
    told = parse(input=[*thoughts, call, *[text("assistant", words)] * 2000, {**RESULT, "output": "y"}])
    assert time.process_time() - began < 1.5
    message = json.loads(told.body)["messages"][0]
    assert (len(message["content"]), len(message["reasoning_content"])) == (2000 * 2002 - 2,) * 2


def test_deep_bodies_are_read() -> None:
    inner: Any = {"file_id": "f"}
    for _ in range(120):
        inner = {"in": inner}
    assert parse(input=[text("user", "x"), {"type": "of_tomorrow", "in": inner}]).others == 1
