"""Canonical answers and streams as Ollama's API tells them: NDJSON lines, counts, and times in nanoseconds.

The times are what the gateway measured, from the moment the request was read: a model is loaded elsewhere, so
`load_duration` is 0, and where an answer came whole all of its time counts as evaluation. Source of the format:
Ollama's API documentation and the types of its public Go client.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from gateway.dialects import reading
from gateway.errors import GatewayError
from providers import sse
from providers.canonical import Call, Usage, parse_usage

_REASONS = {"tool_calls": "stop", "function_call": "stop"}

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


class OllamaCall(Call):
    """A call that came in Ollama's API. `started_ns` is when, on the monotonic clock."""

    started_ns: int = 0


def error_body(error: GatewayError) -> bytes:
    """An error as this API tells it."""
    return _encode({"error": error.message})


def answer(call: Call, body: bytes, *, generate: bool) -> bytes:
    """A whole answer of /api/chat, or of /api/generate, from a chat completion. Never raises."""
    told = _load(body)
    pieces = _Pieces()
    try:
        choice = told["choices"][0]
        pieces.take(choice.get("message"), choice.get("logprobs"), whole=True)
        pieces.flush()
        reason = choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError):
        reason = None
    ended_ns = time.monotonic_ns()
    took_ns = max(1, ended_ns - _started(call, ended_ns))
    return _encode(
        {
            **_head(told.get("model"), call),
            **_piece(pieces, generate=generate, whole=True),
            **_end(reason, reading.usage_of(told), took_ns, took_ns),
        }
    )


def vectors(call: Call, body: bytes, *, single: bool) -> bytes:
    """The answer of /api/embed, or with `single` that of /api/embeddings, from canonical embeddings. Never raises."""
    told = _load(body)
    data = told.get("data")
    items = [item for item in data if isinstance(item, dict)] if isinstance(data, list) else []
    try:
        items.sort(key=lambda item: item.get("index", 0))
    except TypeError:
        pass
    found = [item.get("embedding") for item in items]
    if single:
        return _encode({"embedding": found[0] if found else []})
    usage = parse_usage(told["usage"], generates=False) if isinstance(told.get("usage"), dict) else None
    now_ns = time.monotonic_ns()
    model = told.get("model")
    return _encode(
        {
            "model": model if isinstance(model, str) and model else call.model,
            "embeddings": found,
            "total_duration": max(1, now_ns - _started(call, now_ns)),
            "load_duration": 0,
            "prompt_eval_count": usage.input if usage is not None else 0,
        }
    )


class Writer:
    """One stream of /api/chat or /api/generate; the promises are those of `gateway.dialects.base.StreamWriter`.

    Tool calls, whose arguments arrive in pieces and maybe interleaved, are told whole once the answer is complete.
    """

    def __init__(self, call: Call, *, generate: bool) -> None:
        self._call, self._generate = call, generate
        self._started_ns = _started(call, time.monotonic_ns())
        self._first_ns = 0
        self._model: Any = None
        self._reason: Any = None
        self._usage: Usage | None = None
        self._pieces = _Pieces()
        self._splitter = sse.Splitter(1 << 30)  # what comes here was bounded when it was read

    def feed(self, data: bytes) -> bytes:
        """The lines for these canonical events."""
        return b"".join(map(self._event, self._splitter.feed(data)))

    def finish(self) -> bytes:
        """The rest of the answer and the line that ends it."""
        out = self._event(rest + b"\n\n") if (rest := self._splitter.rest().strip()) else b""
        self._pieces.flush()
        out += self._line()
        now_ns = time.monotonic_ns()
        first_ns = self._first_ns or now_ns
        end = _end(self._reason, self._usage, max(1, now_ns - self._started_ns), max(1, now_ns - first_ns))
        end["prompt_eval_duration"] = max(1, first_ns - self._started_ns)
        empty = _piece(_Pieces(), generate=self._generate, whole=False)
        return out + _encode({**_head(self._model, self._call), **empty, **end}) + b"\n"

    def fail(self, error: GatewayError) -> bytes:
        """The line that tells an error."""
        return error_body(error) + b"\n"

    def _event(self, event: bytes) -> bytes:
        told = _load(sse.data_of(event) or b"")
        self._model = told.get("model") or self._model
        if isinstance(told.get("usage"), dict):
            self._usage = reading.usage_of(told) or self._usage
        choices = told.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return b""
        self._pieces.take(choice.get("delta"), choice.get("logprobs"))
        self._reason = reading.text_of(choice, "finish_reason") or self._reason
        return self._line()

    def _line(self) -> bytes:
        """The line for what has come together, b"" when that is nothing."""
        if not self._pieces.any:
            return b""
        self._first_ns = self._first_ns or time.monotonic_ns()
        line = {**_head(self._model, self._call), **_piece(self._pieces, generate=self._generate, whole=False)}
        self._pieces.clear()
        return _encode({**line, "done": False}) + b"\n"


class _Pieces:
    """What has come of an answer and was not told yet. Nothing in here raises on what a provider may have sent."""

    def __init__(self) -> None:
        self._calls = reading.ToolCalls()
        self.clear()

    def clear(self) -> None:
        """All was told, but for the calls that are not complete."""
        self.content = self.thinking = ""
        self.calls: list[dict[str, Any]] = []
        self.logprobs: list[Any] = []

    @property
    def any(self) -> bool:
        """Whether there is something to tell."""
        return bool(self.content or self.thinking or self.calls)

    def take(self, part: Any, logprobs: Any, *, whole: bool = False) -> None:
        """Take a delta, or with `whole` a message."""
        if not isinstance(part, dict):
            return
        self._content(part.get("content"))
        for name in ("reasoning_content", "reasoning"):
            if isinstance(part.get(name), str) and part[name]:
                self.thinking += part[name]
                break
        if isinstance(part.get("refusal"), str):
            self.content += part["refusal"]
        for _ in self._calls.take(part, whole=whole):
            pass
        tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
        if isinstance(tokens, list):
            self.logprobs += tokens

    def flush(self) -> None:
        """The answer is complete, and so are its calls. Arguments that are no object are told as text, as Ollama does
        with a call it cannot read: a tool must not be run with less than the model wrote."""
        for place, call in enumerate(sorted(self._calls.all, key=lambda call: call.index)):
            written = "".join(call.pieces)
            arguments: Any = {} if written.strip() == "null" else call.arguments()
            if arguments is None:
                self.content += written
                continue
            id = {"id": call.id} if call.id else {}
            self.calls.append({**id, "function": {"index": place, "name": call.name, "arguments": arguments}})
        self._calls = reading.ToolCalls()

    def _content(self, content: Any) -> None:
        """Text, or parts of text and thoughts as some providers send them."""
        if isinstance(content, str):
            self.content += content
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict):
                continue
            if part.get("type") == "thinking":
                self.thinking += _text(part.get("thinking"))
            else:
                self.content += _text(part.get("text"))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return (
        "".join(_text(part.get("text")) for part in value if isinstance(part, dict)) if isinstance(value, list) else ""
    )


def _load(data: bytes | str) -> dict[str, Any]:
    """A decoded object, empty when it is none."""
    try:
        told = _decode(data)
    except _ERRORS:
        return {}
    return told if isinstance(told, dict) else {}


def _started(call: Call, now_ns: int) -> int:
    started_ns = call.started_ns if isinstance(call, OllamaCall) else 0
    return started_ns or now_ns


def _head(model: Any, call: Call) -> dict[str, Any]:
    """What every line begins with."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {"model": model if isinstance(model, str) and model else call.model, "created_at": now}


def _piece(pieces: _Pieces, *, generate: bool, whole: bool) -> dict[str, Any]:
    """The part of a line that carries the answer."""
    told: dict[str, Any] = {}
    thinking = {"thinking": pieces.thinking} if pieces.thinking else {}
    if generate:
        told = {"response": pieces.content, **thinking}
    else:
        told["message"] = {"role": "assistant", "content": pieces.content, **thinking}
        if pieces.calls:
            told["message"]["tool_calls"] = pieces.calls
    if pieces.logprobs:
        told["logprobs"] = pieces.logprobs
    return told


def _end(reason: Any, usage: Usage | None, total_ns: int, eval_ns: int) -> dict[str, Any]:
    """What the last line adds. Clients divide the output by the time it took: neither time is 0."""
    reason = reading.reason_of(reason)
    told: dict[str, Any] = {
        "done": True,
        "done_reason": _REASONS.get(reason, reason),
        "total_duration": total_ns,
        "load_duration": 0,
    }
    if usage is not None:
        told["prompt_eval_count"] = usage.input
    told["prompt_eval_duration"] = 0
    if usage is not None:
        told["eval_count"] = usage.output
    told["eval_duration"] = eval_ns
    return told
