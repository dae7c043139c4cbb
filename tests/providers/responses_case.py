"""A provider of the Responses API, and calls for it, as the tests of its adapter write and read them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from providers.adapters import StreamReader
from providers.adapters.responses import Responses
from providers.canonical import Answer, Call, Target, UnsupportedParamError, Usage
from providers.catalog import CATALOG

ADAPTER = Responses()
HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}}
ENCRYPTED = {"type": "reasoning.encrypted", "data": "gAAA", "format": "openai-responses-v1", "id": "rs_1"}
USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 15,
}
READ_USAGE = Usage(10, 4, 1, 5, 2)


def target(*, model: str = "gpt-5", strict: bool = True, labels: frozenset[str] = frozenset()) -> Target:
    return Target(CATALOG["openai"], model, strict, labels)


def call(**fields: Any) -> Call:
    doc = {"model": "alias", "messages": HELLO, **fields}
    limit = doc.get("max_completion_tokens")
    return Call(
        "chat",
        "alias",
        json.dumps(doc).encode(),
        frozenset(doc),
        stream=bool(doc.get("stream")),
        wants_usage=bool((doc.get("stream_options") or {}).get("include_usage")),
        limit=limit,
        limit_field="max_completion_tokens" if limit else "",
    )


def native(**fields: Any) -> Call:
    body = json.dumps({"model": "alias", "input": "hello", **fields}).encode()
    given = call(stream=fields.get("stream", False))
    given.dialect, given.native, given.limit = "responses", body, fields.get("max_output_tokens")
    given.pool = fields.get("pool")
    return given


def sent(*, to: Target | None = None, limit: int | None = None, **fields: Any) -> dict[str, Any]:
    request = ADAPTER.build(call(**fields), to or target(), limit)
    assert request.operation == "responses"
    told: dict[str, Any] = json.loads(request.body)
    return told


def items(*messages: Any) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = sent(messages=list(messages))["input"]
    return told


def refused(*, to: Target | None = None, **fields: Any) -> UnsupportedParamError:
    with pytest.raises(UnsupportedParamError) as caught:
        ADAPTER.build(call(**fields), to or target(), None)
    return caught.value


def message(text: str, **more: Any) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [part], **more}


def function_call(id: str, arguments: str = "{}", name: str = "weather") -> dict[str, Any]:
    told = {"id": f"fc_{id}", "status": "completed", "call_id": id, "name": name, "arguments": arguments}
    return {"type": "function_call", **told}


def reasoning(text: str = "", data: str = "gAAA", id: str = "rs_1") -> dict[str, Any]:
    summary = [{"type": "summary_text", "text": part} for part in text.split("\n\n") if part]
    return {"type": "reasoning", "id": id, "summary": summary, "encrypted_content": data or None}


def response(*output: Any, status: str = "completed", **fields: Any) -> dict[str, Any]:
    told = {"id": "resp_1", "object": "response", "created_at": 7, "status": status, "model": "gpt-5-2026"}
    return {**told, "error": None, "incomplete_details": None, "output": list(output), "usage": USAGE, **fields}


def read(doc: Any, given: Call | None = None) -> Answer:
    body = doc if isinstance(doc, bytes) else json.dumps(doc).encode()
    return ADAPTER.read_unary(given or call(), 200, (), body)


def answered(*output: Any, **fields: Any) -> dict[str, Any]:
    answer = read(response(*output, **fields))
    assert answer.problem is None
    told: dict[str, Any] = json.loads(answer.body)
    return told


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (str(e.get("type")).encode(), json.dumps(e).encode()) for e in events)


def stream_of(*output: dict[str, Any], cut: int = 2, **fields: Any) -> list[dict[str, Any]]:
    """The events of a response, as the API is documented to tell it; texts come in pieces of `cut` characters."""
    events: list[dict[str, Any]] = []

    def tell(kind: str, **more: Any) -> None:
        events.append({"type": f"response.{kind}", "sequence_number": len(events), **more})

    def pieces(text: str) -> list[str]:
        return [text[i : i + cut] for i in range(0, len(text), cut)]

    begun = response(status="in_progress", usage=None)
    tell("created", response=begun)
    tell("in_progress", response=begun)
    for index, item in enumerate(output):
        at = {"item_id": item.get("id"), "output_index": index}
        empty = {"content": [], "arguments": "", "summary": [], "input": ""}
        started = {key: empty.get(key, value) for key, value in item.items() if key != "encrypted_content"}
        tell("output_item.added", output_index=index, item=started)
        for place, part in enumerate(item.get("content", ())):
            tell("content_part.added", **at, content_index=place, part={"type": part["type"]})
            kind = "output_text" if part["type"] == "output_text" else "refusal"
            words = part.get("text", part.get("refusal"))
            for piece in pieces(words):
                tell(f"{kind}.delta", **at, content_index=place, delta=piece, logprobs=[])
            tell(f"{kind}.done", **at, content_index=place, text=words)
            tell("content_part.done", **at, content_index=place, part=part)
        for place, part in enumerate(item.get("summary", ())):
            tell("reasoning_summary_part.added", **at, summary_index=place)
            for piece in pieces(part["text"]):
                tell("reasoning_summary_text.delta", **at, summary_index=place, delta=piece)
            tell("reasoning_summary_text.done", **at, summary_index=place, text=part["text"])
        for field, kind in (("arguments", "function_call_arguments"), ("input", "custom_tool_call_input")):
            if field in item:
                for piece in pieces(item[field]):
                    tell(f"{kind}.delta", **at, delta=piece)
                tell(f"{kind}.done", **at, **{field: item[field]})
        tell("output_item.done", output_index=index, item=item)
    ended = response(*output, **fields)
    tell(ended["status"], response=ended)
    return events


def streamed(raw: bytes, *, at: int | None = None, given: Call | None = None) -> tuple[bytes, StreamReader]:
    """What a reader makes of these bytes, in one piece or cut at one place."""
    reader = ADAPTER.open_stream(given or call(stream=True, stream_options={"include_usage": True}))
    out = reader.feed(raw) if at is None else reader.feed(raw[:at]) + reader.feed(raw[at:])
    return out + reader.finish(), reader


def timeless(raw: bytes) -> list[dict[str, Any]]:
    events = [json.loads(event.removeprefix("data: ")) for event in raw.decode().split("\n\n") if event]
    for event in events:
        event.pop("created")
    return events


def joined(raw: bytes) -> dict[str, Any]:
    """The message that canonical chunks come to, with finish reason and usage."""
    told: dict[str, Any] = {"content": None}
    calls: list[dict[str, Any]] = []
    for event in timeless(raw):
        if event.get("usage"):
            told["usage"] = event["usage"]
        for choice in event["choices"]:
            told["finish"] = choice["finish_reason"]
            for name, value in choice["delta"].items():
                if name == "tool_calls":
                    for piece in value:
                        if piece["index"] == len(calls):
                            calls.append({key: piece[key] for key in ("id", "type")} | {piece["type"]: {}})
                        inner = calls[piece["index"]][calls[piece["index"]]["type"]]
                        for key, text in piece[calls[piece["index"]]["type"]].items():
                            inner[key] = inner.get(key, "") + text
                elif name in ("reasoning_details", "annotations"):
                    told[name] = told.get(name, []) + value
                elif name != "role":
                    told[name] = (told.get(name) or "") + value
    return told | ({"tool_calls": calls} if calls else {})
