"""The Node clients people really use, through the gateway to real llama.cpp servers: `node/*.mjs` say what they saw."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import environment
from tests.e2e.conftest import Site

pytestmark = pytest.mark.processes

PROGRAMS = Path(__file__).parent / "node"
PACKAGES = Path(sys.prefix) / "node"  # where `make test` installs them
PLACES: list[Any] = [{"city": "Oslo"}, {"city": "Rome"}]


def run(site: Site, program: str) -> dict[str, Any]:
    """What a program printed. Fails the test where Node or a package is missing."""
    node = shutil.which("node")
    if node is None or not (PACKAGES / "node_modules" / "ai").is_dir():
        pytest.fail("Node or its packages are missing: `make test` installs both.")
    done = subprocess.run(
        [node, PROGRAMS / program, PACKAGES],
        env={
            **environment.clean_environment(),
            **{"BASE_URL": site.base_url, "API_KEY": site.key, "SPENT_KEY": site.spent_key},
        },
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr[:4000]
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def are_calls(arguments: list[Any]) -> bool:
    """Whether there are tool calls, all with arguments the model could have been asked for."""
    return bool(arguments) and all(given in PLACES for given in arguments)


def test_openai_client_calls_tools_and_speaks_the_responses_api(site: Site) -> None:
    seen = run(site, "openai.mjs")
    assert are_calls(seen["chat_tools"])
    assert seen["chat_finish"] == "tool_calls"
    assert seen["text"]
    assert site.booked(seen["request"]) == (seen["usage"]["input_tokens"], 16)
    stream = seen["stream"]
    assert stream["kinds"][0] == "response.created"
    assert stream["kinds"].count("response.output_text.delta") > 3
    assert stream["text"]
    assert (stream["status"], stream["usage"]["output_tokens"]) == ("incomplete", 16)
    assert are_calls(seen["tools"])
    assert seen["status"] == "completed"
    assert seen["refusals"] == [401, 404, 429]


def test_ai_sdk_speaks_with_every_provider(site: Site) -> None:
    seen = run(site, "ai_sdk.mjs")
    assert list(seen) == ["openai", "openai_chat", "anthropic", "compatible"]
    for told in seen.values():
        assert told["text"]
        assert told["warnings"] == []
        assert site.booked(told["request"]) == (told["usage"]["inputTokens"], 16)
        stream = told["stream"]
        assert stream["parts"].count("text-delta") > 3
        assert "error" not in stream["parts"]
        assert stream["text"]
        assert (stream["finish"], stream["usage"]["outputTokens"]) == ("length", 16)
        assert are_calls(told["tools"])
        assert are_calls(told["streamed_tools"])
        assert told["finish"] == "tool-calls"
        assert told["object"] in PLACES
        assert told["refusals"] == [401, 404, 429]
