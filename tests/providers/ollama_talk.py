"""What the tests of the Ollama adapter share: calls, lines as the server writes them, and what was read of them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import strategies as st

from gateway.dialects import openai
from providers.adapters.ollama import Ollama
from providers.canonical import Answer, Call, Request, Target, UnsupportedParamError
from providers.catalog import CATALOG

ADAPTER = Ollama()
TARGET = Target(CATALOG["ollama"], "llama3.2:3b")
LENIENT = Target(CATALOG["ollama"], "llama3.2:3b", strict=False)
HELLO = [{"role": "user", "content": "hello"}]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\nrest").decode()
WHEN = "2026-11-21T07:30:00.123456789Z"


def chat(**fields: Any) -> Call:
    return openai.parse_chat(json.dumps({"model": "m", "messages": HELLO, **fields}).encode())


def embedding(**fields: Any) -> Call:
    return openai.parse_embeddings(json.dumps({"model": "m", "input": "hello", **fields}).encode())


def native(doc: dict[str, Any], *, endpoint: str = "chat") -> Call:
    body = json.dumps(doc).encode()
    return Call(
        endpoint, doc["model"], b"{}", stream=doc.get("stream", True), dialect="ollama", native=body, messages=1
    )


def built(call: Call, *, target: Target = TARGET, limit: int | None = None) -> tuple[dict[str, Any], Request]:
    request = ADAPTER.build(call, target, limit)
    return json.loads(request.body), request


def sent(call: Call, *, target: Target = TARGET, limit: int | None = None) -> dict[str, Any]:
    return built(call, target=target, limit=limit)[0]


def refusal(call: Call, target: Target = TARGET) -> UnsupportedParamError:
    with pytest.raises(UnsupportedParamError) as caught:
        ADAPTER.build(call, target, None)
    return caught.value


def read(doc: Any, call: Call | None = None) -> Answer:
    body = doc if isinstance(doc, bytes) else json.dumps(doc).encode()
    return ADAPTER.read_unary(call or chat(), 200, [], body, TARGET)


def line(content: str = "", *, done: bool = False, **fields: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **fields.pop("message", {})}
    return {"model": "llama3.2:3b", "created_at": WHEN, "message": message, "done": done, **fields}


def end(**fields: Any) -> dict[str, Any]:
    told = {"done_reason": "stop", "total_duration": 9, "prompt_eval_count": 26, "eval_count": 3, **fields}
    return line(done=True, **told)


def ndjson(*lines: Any) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def streamed(data: bytes, *, wants_usage: bool = True, pieces: int = 0) -> tuple[Any, list[dict[str, Any]]]:
    """A reader that was fed all of `data`, in pieces of that size, and the chunks it gave."""
    reader = ADAPTER.open_stream(chat(stream=True, stream_options={"include_usage": wants_usage}), TARGET)
    out = b"".join(
        reader.feed(data[at : at + (pieces or len(data))]) for at in range(0, len(data), pieces or len(data))
    )
    return reader, events(out + reader.finish())


def events(out: bytes) -> list[dict[str, Any]]:
    assert not out or out.endswith(b"\n\n")
    return [json.loads(event.removeprefix(b"data: ")) for event in out.split(b"\n\n")[:-1]]


def deltas(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]


def function(name: str, arguments: str) -> dict[str, str]:
    return {"name": name, "arguments": arguments}


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NAME = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(st.tuples(NAME, st.dictionaries(TEXT, VALUE, max_size=3)), max_size=3)
