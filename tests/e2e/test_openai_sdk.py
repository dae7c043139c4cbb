"""The clients people really use, through the gateway's own processes, to a real llama.cpp server."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests import environment
from tests.servers import Gateway, LlamaServer, request_id

pytestmark = pytest.mark.processes

HERE = Path(__file__).parent
NODE_DIR = Path(sys.prefix) / "node"
MESSAGES: list[Any] = [{"role": "user", "content": "say a few words"}]


@pytest.fixture(scope="module")
def gateway(llama: LlamaServer) -> Iterator[Gateway]:
    with Gateway(environment.session_dir() / "sdk", providers=[llama.provider()]) as running:
        yield running


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key=gateway.key, max_retries=0, timeout=30) as made:
        yield made


def test_python_chat_is_answered_and_booked(gateway: Gateway, client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=MESSAGES, max_tokens=8)
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert raw.headers["x-request-id"]
    assert raw.headers["x-hoosh-config"]
    assert raw.headers["x-hoosh-route"]
    row = gateway.wait_settled(request_id(raw.headers))
    assert (row["input_tokens"], row["output_tokens"]) == (answer.usage.prompt_tokens, 8)
    assert row["tokens"] == answer.usage.total_tokens


def test_python_stream_delivers_the_text_and_usage_only_when_asked(client: openai.OpenAI) -> None:
    plain = list(client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=8, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in plain if chunk.choices)
    assert all(chunk.usage is None and chunk.choices for chunk in plain)
    asked = list(
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
    )
    usages = [chunk.usage for chunk in asked if chunk.usage is not None]
    assert [usage.completion_tokens for usage in usages] == [8]


def test_python_async_client_asks_and_streams_many_at_once(gateway: Gateway) -> None:
    async def ask(client: openai.AsyncOpenAI) -> int:
        answer = await client.chat.completions.create(model="tiny", messages=MESSAGES, max_completion_tokens=5)
        assert answer.usage is not None
        return answer.usage.completion_tokens

    async def stream(client: openai.AsyncOpenAI) -> str:
        chunks = await client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=5, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices])

    async def scenario() -> tuple[list[int], list[str]]:
        base_url = f"{gateway.base_url}/v1"
        async with openai.AsyncOpenAI(base_url=base_url, api_key=gateway.key, max_retries=0, timeout=30) as client:
            asked = asyncio.gather(*(ask(client) for _ in range(8)))
            streamed = asyncio.gather(*(stream(client) for _ in range(8)))
            return await asked, await streamed

    counts, texts = asyncio.run(scenario())
    assert counts == [5] * 8
    assert all(texts)


def test_python_completions_with_the_older_endpoint(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="once upon a time", max_tokens=6)
    assert answer.choices[0].text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6


def test_python_embeddings_are_the_same_as_base64_and_as_floats(client: openai.OpenAI) -> None:
    by_default = client.embeddings.create(model="tiny", input=["water under the line", "more water"])
    as_floats = client.embeddings.create(
        model="tiny", input=["water under the line", "more water"], encoding_format="float"
    )
    assert [len(item.embedding) for item in by_default.data] == [64, 64]
    for one, other in zip(by_default.data, as_floats.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-4)


def test_python_lists_the_models_of_the_upstream(client: openai.OpenAI) -> None:
    assert "tiny" in [model.id for model in client.models.list()]


def test_python_errors_have_the_types_the_client_knows(gateway: Gateway, client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="hk-wrong").chat.completions.create(model="tiny", messages=MESSAGES)
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="no-such-model", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=9)
    assert wrong.value.param == "temperature"


def test_a_client_that_leaves_mid_stream_is_charged_for_what_it_got(gateway: Gateway) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 4000, "stream": True}
    url = f"{gateway.base_url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=gateway.auth, timeout=30, trust_env=False) as response:
        rid = request_id(response.headers)
        for count, _ in enumerate(response.iter_lines()):
            if count > 20:
                break
    row = gateway.wait_settled(rid)
    assert row["status"] == 499
    assert 10 <= row["output_tokens"] < 4000


def test_node_client_chats_streams_and_embeds(gateway: Gateway) -> None:
    node = shutil.which("node")
    if node is None or not (NODE_DIR / "node_modules" / "openai").is_dir():
        pytest.skip("node or its openai package is missing: `make test` installs both")
    done = subprocess.run(
        [node, HERE / "node" / "client.mjs", NODE_DIR],
        env={**environment.clean_environment(), "BASE_URL": f"{gateway.base_url}/v1", "API_KEY": gateway.key},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["chat"]["completion_tokens"] == 8
    assert seen["stream"]["text"]
    assert seen["stream"]["usage"]["completion_tokens"] == 8
    assert seen["embedding"] == 64
    assert "tiny" in seen["models"]
    assert seen["wrong_key"] == 401


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is missing: `make test` installs it")
def test_curl_asks_and_streams_to_a_single_done(gateway: Gateway) -> None:
    def curl(**changes: Any) -> str:
        body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 5, **changes}
        done = subprocess.run(
            [
                *("curl", "-sS", "-N", "--fail-with-body", f"{gateway.base_url}/v1/chat/completions"),
                *("-H", f"Authorization: Bearer {gateway.key}", "-H", "Content-Type: application/json"),
                *("-d", json.dumps(body)),
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return done.stdout

    assert json.loads(curl())["usage"]["completion_tokens"] == 5
    lines = [line for line in curl(stream=True).splitlines() if line]
    assert all(line.startswith(("data: ", ":")) for line in lines)
    assert lines.count("data: [DONE]") == 1
    assert lines[-1] == "data: [DONE]"
