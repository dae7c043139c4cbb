"""The built-in demo provider: deterministic answers without network, in the OpenAI API's shape, with exact usage.

The same request always gets the same bytes, so it can be shown, tested and counted against. A token is at most twelve
characters of output and four bytes of input.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import zlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from providers.adapters.embeddings import packed
from providers.adapters.openai_compatible import OpenAICompatible
from providers.canonical import Call

MODELS = ("demo", "demo-embedding")
DIMENSIONS = 64  # of a vector, unless asked otherwise
DIMENSIONS_MAX = 4096
NUMBERS_MAX = 1_000_000  # in all vectors of one answer

_CREATED = 1_700_000_000  # a fixed date: equal requests have equal answers
_ECHO_CHARACTERS = 2000
_SCHEMA_DEPTH = 8
_PIECE = re.compile(r"\s*\S{1,12}|\s+")
_WORD = re.compile(r"\w+")

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class DemoAdapter(OpenAICompatible):
    """Answers in process. Replies are read back by the inherited readers, like any provider's."""

    local = True

    async def answer(self, call: Call, limit: int | None) -> bytes:
        """The whole reply body; an error object when the demo cannot do what is asked."""
        doc = _decode(call.body)
        if call.endpoint == "embeddings":
            return await _embeddings(call, doc)
        chat = call.endpoint == "chat"
        outputs, choices = [], []
        for index in range(_choices(call, doc)):
            out = _Output(call, doc, index, limit)
            outputs.append(out)
            choices.append({"index": index, **out.whole(chat=chat), "finish_reason": out.finish})
            await asyncio.sleep(0)  # a long answer must not keep other requests waiting
        kind = "chat.completion" if chat else "text_completion"
        return _encode({**_envelope(call, kind), "choices": choices, "usage": _usage(call, doc, outputs)})

    async def stream(self, call: Call, limit: int | None) -> AsyncIterator[bytes]:
        """The reply as server-sent events: one token each, then the finish, usage and terminal events."""
        doc = _decode(call.body)
        chat = call.endpoint == "chat"
        envelope = _envelope(call, "chat.completion.chunk" if chat else "text_completion")
        outputs = []
        for index in range(_choices(call, doc)):
            out = _Output(call, doc, index, limit)
            outputs.append(out)
            for part in out.parts(chat=chat):
                yield _event({**envelope, "choices": [{"index": out.index, **part}]})
                await asyncio.sleep(0)
        yield _event({**envelope, "choices": [], "usage": _usage(call, doc, outputs)})
        yield b"data: [DONE]\n\n"


class _Output:
    """One choice: what it says, cut at the limit, and why it ended."""

    def __init__(self, call: Call, doc: dict[str, Any], index: int, limit: int | None) -> None:
        limit = call.limit if limit is None else limit
        self.index = index
        self.tool = _tool_name(doc) if call.endpoint == "chat" else ""
        text = _chat_text(doc, self.tool) if call.endpoint == "chat" else _completion_text(call, doc, index)
        pieces = _PIECE.findall(text)
        self.pieces = pieces if limit is None else pieces[:limit]
        self.finish = "tool_calls" if self.tool else "stop"
        if len(self.pieces) < len(pieces):
            self.finish = "length"

    def whole(self, *, chat: bool) -> dict[str, Any]:
        """The choice's content in a reply that is sent at once."""
        text = "".join(self.pieces)
        if not chat:
            return {"text": text, "logprobs": None}
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self.tool:
            message |= {"content": None, "tool_calls": [self._tool_call(text)]}
        return {"message": message, "logprobs": None}

    def parts(self, *, chat: bool) -> list[dict[str, Any]]:
        """The choice's content as a stream tells it, the finish reason last."""
        if not chat:
            parts = [{"text": piece, "logprobs": None, "finish_reason": None} for piece in self.pieces]
            return [*parts, {"text": "", "logprobs": None, "finish_reason": self.finish}]
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None if self.tool else ""}]
        if self.tool:
            deltas[0]["tool_calls"] = [{"index": 0, **self._tool_call("")}]
            deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in self.pieces]
        else:
            deltas += [{"content": piece} for piece in self.pieces]
        return [
            *({"delta": delta, "finish_reason": None} for delta in deltas),
            {"delta": {}, "finish_reason": self.finish},
        ]

    def _tool_call(self, arguments: str) -> dict[str, Any]:
        function = {"name": self.tool, "arguments": arguments}
        return {"id": f"call_demo_{self.index}", "type": "function", "function": function}


def _choices(call: Call, doc: dict[str, Any]) -> int:
    wanted: int = doc.get("n") or 1
    return wanted if call.endpoint == "chat" else wanted * call.messages


def _envelope(call: Call, kind: str) -> dict[str, Any]:
    name = "chatcmpl" if call.endpoint == "chat" else "cmpl"
    digest = hashlib.sha256(call.body).hexdigest()[:24]
    return {"id": f"{name}-{digest}", "object": kind, "created": _CREATED, "model": call.model}


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % _encode(chunk)


def _usage(call: Call, doc: dict[str, Any], outputs: list[_Output]) -> dict[str, int]:
    given = call.prompt_tokens or _input_tokens(doc, call)
    made = sum(len(out.pieces) for out in outputs)
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


def _input_tokens(doc: dict[str, Any], call: Call) -> int:
    if call.endpoint == "chat":
        texts = [_content_text(message) for message in doc["messages"]]
        if doc.get("tools"):
            texts.append(_encode(doc["tools"]).decode())
        return sum(map(_tokens, texts)) + 3 * len(doc["messages"])
    value = doc["input" if call.endpoint == "embeddings" else "prompt"]
    return sum(map(_tokens, [value] if isinstance(value, str) else value))


def _tokens(text: str) -> int:
    return -(-len(text.encode()) // 4)


def _content_text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(part["text"] for part in content if part["type"] == "text")
    return content or ""


def _chat_text(doc: dict[str, Any], tool: str) -> str:
    asked = next((_content_text(item) for item in reversed(doc["messages"]) if item["role"] == "user"), "")
    asked = asked[:_ECHO_CHARACTERS]
    if tool:
        functions = [item["function"] for item in doc["tools"] if _function_name(item) == tool]
        return _encode(_example(functions[0].get("parameters") if functions else None, asked)).decode()
    wanted = doc.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        described = wanted.get("json_schema")
        schema = described.get("schema") if isinstance(described, dict) else None
        return _encode(_example(schema, asked)).decode()
    if wanted.get("type") == "json_object":
        return _encode({"echo": asked}).decode()
    return f"This is Hoosh's demo model. You said: {asked}" if asked else "This is Hoosh's demo model. Say something."


def _completion_text(call: Call, doc: dict[str, Any], index: int) -> str:
    prompt = doc["prompt"]
    if isinstance(prompt, list) and not isinstance(prompt[0], int):
        prompt = prompt[index // (doc.get("n") or 1)]
    if not isinstance(prompt, str):
        return f" This is Hoosh's demo model. You sent {len(prompt)} tokens."
    shown = prompt[:_ECHO_CHARACTERS]
    answer = f" This is Hoosh's demo model. You wrote: {shown}"
    return shown + answer if doc.get("echo") else answer


def _tool_name(doc: dict[str, Any]) -> str:
    """The function the request insists on, "" when it leaves the choice to the model: the demo then talks."""
    names = [name for item in doc.get("tools") or () if (name := _function_name(item))]
    choice = doc.get("tool_choice")
    if isinstance(choice, dict):
        asked = _function_name(choice)
        return asked if asked in names else ""
    return names[0] if choice == "required" and names else ""


def _function_name(item: Any) -> str:
    function = item.get("function") if isinstance(item, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def _example(schema: Any, text: str, depth: int = 0) -> Any:
    """A small value that fits the common parts of a JSON schema."""
    if not isinstance(schema, dict) or depth > _SCHEMA_DEPTH:
        return {} if depth == 0 else None
    if "const" in schema:
        return schema["const"]
    if isinstance(values := schema.get("enum"), list) and values:
        return values[0]
    kind = schema.get("type", "object" if "properties" in schema or depth == 0 else "string")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object":
        known = schema.get("properties")
        known = known if isinstance(known, dict) else {}
        names = schema.get("required")
        names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else known
        return {name: _example(known.get(name), text, depth + 1) for name in names}
    if kind == "array":
        return [_example(schema.get("items"), text, depth + 1)]
    return {"string": text, "integer": 0, "number": 0, "boolean": True}.get(str(kind))


def _refused(message: str, param: str) -> bytes:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": "invalid_request"}
    return _encode({"error": error})


async def _embeddings(call: Call, doc: dict[str, Any]) -> bytes:
    size = call.dimensions or DIMENSIONS
    if size > DIMENSIONS_MAX:
        return _refused(f"The demo model has at most {DIMENSIONS_MAX} dimensions.", "dimensions")
    value = doc["input"]
    inputs = [value] if isinstance(value, str) or isinstance(value[0], int) else value
    if len(inputs) * size > NUMBERS_MAX:
        return _refused(f"The demo model answers with at most {NUMBERS_MAX} numbers in all vectors.", "input")
    data = []
    for index, item in enumerate(inputs):
        vector = _vector(item, size)
        text = msgspec.Raw(_encode(packed(vector) if call.encoding == "base64" else vector))
        data.append({"object": "embedding", "index": index, "embedding": text})
        await asyncio.sleep(0)
    given = call.prompt_tokens or _input_tokens(doc, call)
    usage = {"prompt_tokens": given, "total_tokens": given}
    return _encode({"object": "list", "data": data, "model": call.model, "usage": usage})


def _vector(item: str | list[int], size: int) -> list[float]:
    """A unit vector from the words of a text: texts that share words point the same way."""
    words = _WORD.findall(item.casefold()) if isinstance(item, str) else [str(number) for number in item]
    vector = [0.0] * size
    for word in words or [""]:
        for salt in (b"a", b"b", b"c"):
            drawn = zlib.crc32(salt + word.encode())
            vector[(drawn >> 1) % size] += 1.0 if drawn & 1 else -1.0
    length = math.sqrt(sum(value * value for value in vector))
    if not length:  # the words cancelled each other out
        vector[0] = length = 1.0
    return [value / length for value in vector]
