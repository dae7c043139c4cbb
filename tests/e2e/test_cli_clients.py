"""The command line agents `codex` and `claude` through the gateway to a real llama.cpp server.

Each sends its whole system prompt and all its tools: tens of thousands of tokens. Nothing of them reaches the outside:
whatever is not on loopback is sent to a proxy that does not exist.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import children, environment
from tests.e2e.conftest import Site, make_spent_key
from tests.servers import Gateway, LlamaServer

WITHOUT = "HOOSH_TEST_WITHOUT_CLIS"
PROGRAMS = Path(sys.prefix) / "node" / "clis" / "node_modules" / ".bin"  # where `make test` installs them
PROMPT = "say hi"
_CODEX_CONFIG = """
model = "{model}"
model_provider = "gateway"
check_for_update_on_startup = false

[analytics]
enabled = false

[model_providers.gateway]
name = "gateway"
base_url = "{v1}"
env_key = "LOCAL_KEY"
wire_api = "responses"
"""

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(os.environ.get(WITHOUT) == "1", reason=f"{WITHOUT} is set"),
]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """In front of a model with room for such prompts, of one layer because they are long; its answers end."""
    directory = environment.session_dir() / "clis"
    llama = LlamaServer(directory / "llama", context=100_000, slots=2, layers=1, end_bias=1.0)
    try:
        with Gateway(directory / "gateway", providers=[llama.start().provider()]) as running:
            yield Site(running, make_spent_key(running))
    finally:
        llama.stop()


def run(program: str, *arguments: str, home: Path, fails: bool = False, **settings: str) -> str:
    """What one of the programs prints, in a home of its own. Fails the test where it is not installed."""
    path = PROGRAMS / program
    if not path.exists():
        pytest.fail(
            f"No {program} here: `make test` installs it. To do without the command line clients set {WITHOUT}=1."
        )
    nowhere = f"http://127.0.0.1:{children.free_port()}"
    done = subprocess.run(
        [path, *arguments],
        cwd=home,
        env={
            **{"PATH": os.environ["PATH"], "HOME": str(home)},
            **{"HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere, "NO_PROXY": "127.0.0.1"},
            **settings,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def codex(site: Site, home: Path, *, key: str = "", model: str = "tiny", fails: bool = False) -> list[dict[str, Any]]:
    """The events of a one-shot prompt."""
    (home / "config.toml").write_text(_CODEX_CONFIG.format(v1=site.v1, model=model))
    command = ("codex", "exec", "--skip-git-repo-check", "--json", PROMPT)
    told = run(*command, home=home, fails=fails, CODEX_HOME=str(home), LOCAL_KEY=key or site.key)
    return [json.loads(line) for line in told.splitlines()]


def claude(site: Site, home: Path, *, key: str = "", model: str = "tiny", fails: bool = False) -> dict[str, Any]:
    """The result of a one-shot prompt."""
    told = run(
        *("claude", "-p", PROMPT, "--output-format", "json"),
        home=home,
        fails=fails,
        ANTHROPIC_BASE_URL=site.base_url,
        ANTHROPIC_API_KEY=key or site.key,
        ANTHROPIC_MODEL=model,
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
    )
    result: dict[str, Any] = json.loads(told.splitlines()[-1])
    return result


def booked_once(gateway: Gateway, rows_before: int) -> dict[str, Any]:
    """The only usage row that was added."""
    rows = children.wait_for(lambda: list(gateway.usage().values())[rows_before:], "a usage row", log=gateway.log)
    assert len(rows) == 1
    assert rows[0]["status"] == 200
    return dict(rows[0])


def test_codex_answers_a_prompt(site: Site, tmp_path: Path) -> None:
    before = len(site.gateway.usage())
    events = codex(site, tmp_path)
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    (said,) = (item["text"] for item in items if item["type"] == "agent_message")
    assert said.strip()
    assert events[-1]["type"] == "turn.completed"
    usage = events[-1]["usage"]
    row = booked_once(site.gateway, before)
    assert row["input_tokens"] > 10_000
    assert (usage["input_tokens"], usage["output_tokens"]) == (row["input_tokens"], row["output_tokens"])


def test_claude_answers_a_prompt(site: Site, tmp_path: Path) -> None:
    before = len(site.gateway.usage())
    result = claude(site, tmp_path)
    assert result["result"].strip()
    assert (result["subtype"], result["is_error"], result["stop_reason"]) == ("success", False, "end_turn")
    usage = result["usage"]
    read = usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]
    row = booked_once(site.gateway, before)
    assert row["input_tokens"] > 10_000
    assert (read, usage["output_tokens"]) == (row["input_tokens"], row["output_tokens"])


def test_an_empty_pool_and_an_unknown_model_end_the_run_at_once(site: Site, tmp_path: Path) -> None:
    began_at = time.monotonic()
    spent = claude(site, tmp_path, key=site.spent_key, fails=True)
    assert (spent["is_error"], spent["api_error_status"]) == (True, 429)
    assert "pool 'spent' has 0 tokens left" in spent["result"]
    assert claude(site, tmp_path, model="no-such-model", fails=True)["api_error_status"] == 404
    assert claude(site, tmp_path, key="hk-wrong", fails=True)["api_error_status"] == 401
    for changes, words in (
        ({"key": site.spent_key}, "Quota exceeded"),
        ({"model": "no-such-model"}, "not served here"),
    ):
        last = codex(site, tmp_path, fails=True, **changes)[-1]
        assert last["type"] == "turn.failed"
        assert words in last["error"]["message"]
    assert time.monotonic() - began_at < 20  # none of them has tried again and again
