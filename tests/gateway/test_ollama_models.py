"""What Ollama's clients ask beside inference: the lists of models, one model, and the version."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from gateway.dialects import ollama
from gateway.errors import BadRequestError


def test_tags_and_ps() -> None:
    told = json.loads(ollama.tags([("gpt", "openai"), ("x", "")]))["models"]
    assert [model["name"] for model in told] == [model["model"] for model in told] == ["gpt", "x"]
    assert len(told[0]["digest"]) == 64
    assert told[0]["digest"] != told[1]["digest"]
    assert told[0]["details"]["family"] == "openai"
    assert (told[0]["details"]["families"], told[1]["details"]["families"]) == (["openai"], [])
    assert datetime.fromisoformat(told[0]["modified_at"]).tzinfo is not None
    running = json.loads(ollama.ps([("gpt", "openai")]))["models"][0]
    assert datetime.fromisoformat(running["expires_at"]).tzinfo is not None
    assert (running["name"], running["size_vram"]) == ("gpt", 0)
    assert json.loads(ollama.tags([])) == {"models": []}


def test_show() -> None:
    card = {
        "owner": "openai",
        "context_tokens": 128_000,
        "max_output_tokens": 4096,
        "capabilities": ("tools", "vision", "reasoning", "economy"),
    }
    told = json.loads(ollama.show("gpt", card))
    assert told["capabilities"] == ["completion", "tools", "vision", "thinking"]
    architecture = told["model_info"]["general.architecture"]
    assert told["model_info"][f"{architecture}.context_length"] == 128_000
    assert (told["parameters"], told["details"]["family"]) == ("num_predict 4096", "openai")
    bare = json.loads(ollama.show("e", {"capabilities": ["embedding"], "context_tokens": None}))
    assert bare["capabilities"] == ["embedding"]


def test_what_show_asks_about() -> None:
    assert ollama.parse_show(b'{"model":"a"}') == ollama.parse_show(b'{"name":"a"}') == "a"
    for body in (b"{}", b'{"model":1}', b"x"):
        with pytest.raises(BadRequestError):
            ollama.parse_show(body)


def test_version() -> None:
    assert json.loads(ollama.version("0.12.0")) == {"version": "0.12.0"}
