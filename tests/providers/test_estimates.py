"""Tokens by estimate, for each kind of provider."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dialects import openai
from providers import estimates
from providers.catalog import CATALOG

RATIOS = {
    3.8: ("openai", "azure", "deepseek", "mistral", "groq", "grok", "openrouter"),
    3.5: ("anthropic",),
    3.7: ("ollama", "ollama-v1", "llamacpp", "lmstudio", "localai", "vllm"),
    4.0: ("google", "custom"),
}
PNG = "data:image/png;base64," + "A" * 40_000


@pytest.mark.parametrize(("ratio", "kind"), [(ratio, kind) for ratio, kinds in RATIOS.items() for kind in kinds])
def test_each_kind_has_its_own_ratio(ratio: float, kind: str) -> None:
    weights = estimates.weights_of(CATALOG[kind])
    assert weights.bytes_per_token == ratio
    doc = {"messages": [{"role": "user", "content": "x" * 3800}]}
    assert estimates.prompt_tokens(doc, weights) == math.ceil(3800 / ratio) + 4 + 3


def test_every_kind_has_weights() -> None:
    assert all(estimates.weights_of(kind).bytes_per_token >= 3 for kind in CATALOG.values())


def test_messages_cost_more_than_their_text() -> None:
    one = {"messages": [{"role": "user", "content": "a" * 400}]}
    ten = {"messages": [{"role": "user", "content": "a" * 40}] * 10}
    assert estimates.prompt_tokens(ten, estimates.OTHER) == estimates.prompt_tokens(one, estimates.OTHER) + 9 * 4


def test_other_scripts_count_more_than_their_characters() -> None:
    english, russian, chinese = "word " * 20, "слово" * 20, "文字文字文" * 20  # a hundred characters each
    found = [estimates.text_tokens(text, estimates.OPENAI) for text in (english, russian, chinese)]
    assert found[0] == pytest.approx(100 / 3.8)
    assert found[0] * 2 < found[1] < found[2]
    assert 60 < found[2] < 130  # common tokenizers: about one for a character


def test_calls_tools_and_schemas_count() -> None:
    plain: dict[str, Any] = {"messages": [{"role": "assistant", "content": "x"}]}
    function = {"name": "look", "arguments": json.dumps({"city": "x" * 380})}
    calls = [{"id": "a", "type": "function", "function": function}]
    calling = {"messages": [{"role": "assistant", "content": "x", "tool_calls": calls}]}
    gained = estimates.prompt_tokens(calling, estimates.OPENAI) - estimates.prompt_tokens(plain, estimates.OPENAI)
    assert 100 < gained < 120
    tool = {"type": "function", "function": {"name": "look", "description": "x" * 380}}
    tooled = estimates.prompt_tokens({**plain, "tools": [tool]}, estimates.OPENAI)
    assert 100 < tooled - estimates.prompt_tokens(plain, estimates.OPENAI) < 160
    raw = {**plain, "tools": msgspec.Raw(msgspec.json.encode([tool]))}
    assert estimates.prompt_tokens(raw, estimates.OPENAI) == tooled
    none = {**plain, "tools": msgspec.Raw(b"[]"), "response_format": msgspec.Raw(b"null")}
    assert estimates.prompt_tokens(none, estimates.OPENAI) == estimates.prompt_tokens(plain, estimates.OPENAI)


def test_reasoning_and_old_calls_count() -> None:
    for more in (
        {"reasoning_content": "x" * 380},
        {"reasoning_details": [{"type": "reasoning.text", "text": "x" * 380}, "odd"]},
        {"function_call": {"name": "f", "arguments": "x" * 380}},
        {"refusal": "x" * 380},
    ):
        message = {"role": "assistant", "content": None, **more}
        assert 100 <= estimates.message_tokens(message, estimates.OPENAI) < 125


def test_images_are_weighed_by_the_table_not_by_their_bytes() -> None:
    def image(**more: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG, **more}}]}

    assert estimates.message_tokens(image(), estimates.OPENAI) == 765 + 4
    assert estimates.message_tokens(image(detail="low"), estimates.OPENAI) == 85 + 4
    assert estimates.message_tokens(image(), estimates.ANTHROPIC) == 1600 + 4
    assert estimates.message_tokens(image(), estimates.GOOGLE) == 1032 + 4
    sound = {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "A" * 680_000}}]}
    assert estimates.message_tokens(sound, estimates.GOOGLE) == 1000 + 4
    paper = {"role": "user", "content": [{"type": "file", "file": {"file_data": "A" * 400_000}}]}
    assert estimates.message_tokens(paper, estimates.OPENAI) == 10_000 + 4
    named = {"role": "user", "content": [{"type": "file", "file": {"file_id": "f" * 4000}}]}
    assert estimates.message_tokens(named, estimates.OPENAI) == 1500 + 4
    unknown = {"role": "user", "content": [{"type": "hologram"}, "odd"]}
    assert estimates.message_tokens(unknown, estimates.OPENAI) == 3000 + 4


def test_what_was_learned_corrects_the_table_within_bounds() -> None:
    kind = CATALOG["openai"]
    assert estimates.weights_of(kind, 3.0).bytes_per_token == 3.0
    assert estimates.weights_of(kind, 0.9).bytes_per_token == 1.9
    assert estimates.weights_of(kind, 30.0).bytes_per_token == 3.8 * 1.25
    chinese = "文" * 100
    assert estimates.text_tokens(chinese, estimates.weights_of(kind, 2.5)) == pytest.approx(120)


TEXT = st.text(max_size=60) | st.text('aé文😀\n"\\', max_size=60)
PART = st.one_of(
    TEXT.map(lambda text: {"type": "text", "text": text}),
    st.sampled_from(["low", "high"]).map(lambda d: {"type": "image_url", "image_url": {"url": PNG, "detail": d}}),
    st.integers(0, 9000).map(lambda n: {"type": "file", "file": {"file_data": "A" * n}}),
    st.integers(0, 9000).map(lambda n: {"type": "input_audio", "input_audio": {"data": "A" * n, "format": "mp3"}}),
    st.just({"type": "hologram"}),
)
CALLS = st.lists(
    TEXT.map(lambda text: {"id": "c", "type": "function", "function": {"name": "f", "arguments": text}}), max_size=3
)
MESSAGE = st.builds(
    lambda content, calls, more: {"role": "assistant", "content": content, "tool_calls": calls, **more},
    TEXT | st.lists(PART, max_size=3),
    CALLS,
    st.sampled_from([{}, {"reasoning_content": "文" * 30}, {"name": "n"}, {"reasoning_details": [{"data": "x" * 50}]}]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(MESSAGE, min_size=1, max_size=4), st.sampled_from(sorted(CATALOG)), st.none() | st.floats(0.5, 32))
def test_no_request_is_estimated_above_what_its_size_allows(
    messages: list[dict[str, Any]], kind: str, learned: float | None
) -> None:
    """The quick look must never miss a conversation that is too long."""
    weights = estimates.weights_of(CATALOG[kind], learned)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    doc = {"model": "m", "messages": messages, "tools": [tool]}
    call = openai.chat_call(doc, msgspec.json.encode(doc))
    assert estimates.prompt_tokens(doc, weights) <= estimates.most_of(call, weights)
