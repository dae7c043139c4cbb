"""What Ollama answers, read: lines of a stream, whole answers, counts and errors.

Source of the formats: Ollama's API documentation (`/api/chat`, `/api/generate`, `/api/embed`, errors) and the types of
its public Go client. A stream is newline-delimited JSON; the line with `done: true` ends it and carries the counts,
which are left out where they are 0. A failure after the first byte is a line `{"error": "text"}` inside status 200.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from providers import sse
from providers.adapters import chunks, problems
from providers.adapters.openai_compatible import utf8
from providers.canonical import UpstreamProblem, Usage, parse_usage

Headers = Iterable[tuple[bytes, bytes]]

# The last line of /api/generate may repeat the conversation as token numbers.
LINE_LIMIT_BYTES = 4 << 20

_FINISH = {"length": "length", "content_filter": "content_filter"}  # stop, load, unload and unknown ones: stop
_TOO_LONG = re.compile(r"(?:exceeds?|longer than) the (?:available |maximum )?context (?:length|size|window)")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


def load(body: bytes | str) -> Any:
    """The decoded JSON, None when it is none."""
    try:
        return _decode(body if isinstance(body, str) else body.decode("utf-8", "replace"))
    except _ERRORS:
        return None


# --- pieces of an answer ------------------------------------------------------------------------------------------


def message_of(told: dict[str, Any]) -> dict[str, Any]:
    """The message of a chat answer, or of one of /api/generate in the same words. Raises `TypeError`."""
    message = told.get("message")
    if message is None:
        message = {"content": told.get("response"), "thinking": told.get("thinking")}
    if not isinstance(message, dict):
        raise TypeError("message is no object")
    return message


def text_of(message: dict[str, Any], name: str) -> str:
    """A text field of a message, "" when absent. Raises `TypeError` for anything but text."""
    value = message.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    return value


def calls_of(told: dict[str, Any], message: dict[str, Any], first: int, *, streamed: bool) -> list[dict[str, Any]]:
    """The tool calls of a message in the canonical form, numbered from `first`. Raises `TypeError` on nonsense.

    Older servers give them no ids, and number the calls of every line from 0. An id made here depends on nothing but
    the answer itself, whose time stamp differs from that of any other.
    """
    made = []
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise TypeError("tool_calls is no list")
    for index, call in enumerate(calls or (), first):
        function = call["function"]
        name, arguments = function["name"], function.get("arguments")
        if not isinstance(name, str) or not isinstance(arguments, dict | str | None):
            raise TypeError("a tool call without a name")
        written = arguments if isinstance(arguments, str) else chunks.json_text(arguments or {})
        id = call.get("id")
        if not isinstance(id, str) or not id:
            id = "call_" + _digest(told.get("created_at"), index, name, written)
        made.append(chunks.tool_call(id, name, written, index=index if streamed else None))
    return made


def id_of(told: dict[str, Any]) -> str:
    """An id for an answer; Ollama gives none."""
    return "chatcmpl-" + _digest(told.get("model"), told.get("created_at"))


def _digest(*parts: Any) -> str:
    return hashlib.blake2b("\0".join(map(str, parts)).encode("utf-8", "replace"), digest_size=12).hexdigest()


def generated(message: dict[str, Any], calls: list[dict[str, Any]]) -> str:
    """Everything in a message that a model generated."""
    functions = [call["function"] for call in calls]
    written = "".join(function["name"] + function["arguments"] for function in functions)
    return text_of(message, "thinking") + text_of(message, "content") + written


def finish_of(told: dict[str, Any], *, called: bool) -> str:
    """The canonical finish reason; tool calls take the place of `stop` only."""
    reason = told.get("done_reason")
    found = _FINISH.get(reason, "stop") if isinstance(reason, str) else "stop"
    return "tool_calls" if called and found == "stop" else found


def usage_of(told: dict[str, Any], *, generated: bool) -> Usage | None:
    """The counts of a complete answer; a missing one is 0. None when absurd, or when text came and none is counted."""
    given, made = told.get("prompt_eval_count"), told.get("eval_count")
    if generated and not made:
        return None
    return parse_usage(
        {"prompt_tokens": 0 if given is None else given, "completion_tokens": 0 if made is None else made}
    )


def logprobs_of(told: dict[str, Any]) -> dict[str, Any] | None:
    """Token log probabilities in the canonical form, None where there are none."""
    tokens = told.get("logprobs")
    if not isinstance(tokens, list) or not tokens:
        return None
    told_tokens = [{"bytes": None, "top_logprobs": [], **token} for token in tokens if isinstance(token, dict)]
    return {"content": told_tokens, "refusal": None}


# --- errors -------------------------------------------------------------------------------------------------------


def problem_of(status: int, headers: Headers, body: bytes) -> UpstreamProblem:
    """Read an error reply. Its text may itself be the JSON of the server behind Ollama."""
    told = load(body) if len(body) <= LINE_LIMIT_BYTES else None
    if not isinstance(told, dict) or not isinstance(told.get("error"), str):
        return problems.from_reply(status, headers, body)
    return _told(status, headers, told["error"])


def problem_in_band(told: dict[str, Any]) -> UpstreamProblem:
    """Read an error inside status 200. What no status tells, the words do; else it is the server's failure."""
    error, status = told["error"], told.get("status")
    if not isinstance(error, str):
        return problems.from_in_band(_encode(told))
    return _told(status if isinstance(status, int) and 400 <= status <= 599 else 0, (), error)


def _told(status: int, headers: Headers, text: str) -> UpstreamProblem:
    inner = load(text) if text.startswith("{") else None
    if isinstance(inner, dict):
        inner = inner.get("error", inner)
    error: dict[str, Any] = inner if isinstance(inner, dict) else {"message": text}
    words = error.get("message")
    words = words.lower() if isinstance(words, str) else ""
    code, meant = _meaning(words)
    # Some versions call an input that is too long their own failure.
    if not status or (status == 500 and code == "context_length_exceeded"):
        status = meant or 500
    if code:
        error = {**error, "code": code}
    return problems.from_reply(status, headers, _encode({"error": error}))


def _meaning(words: str) -> tuple[str, int]:
    """Error code and status that a message stands for; "" and 0 when nobody knows."""
    if _TOO_LONG.search(words):
        return "context_length_exceeded", 400
    if "model" in words and "not found" in words:
        return "model_not_found", 404
    if "does not support" in words:
        return "", 400
    if "server busy" in words or "pending requests exceeded" in words:
        return "", 503
    return "", 401 if "unauthorized" in words else 0


# --- streams ------------------------------------------------------------------------------------------------------


class LineReader(chunks.ChunkReader):
    """Base of both readers: cuts a stream into lines of bounded length."""

    def __init__(self, *, wants_usage: bool) -> None:
        super().__init__(wants_usage=wants_usage)
        self._held = bytearray()

    def split(self, chunk: bytes) -> list[bytes]:
        """The lines a chunk completes. Raises `sse.EventTooLargeError`."""
        *complete, rest = chunk.split(b"\n")
        if complete:
            complete[0] = bytes(self._held) + complete[0]
            self._held.clear()
        self._held += rest
        if max(len(self._held), *map(len, complete), 0) > LINE_LIMIT_BYTES:
            raise sse.EventTooLargeError(LINE_LIMIT_BYTES)
        return complete

    def rest(self) -> bytes:
        """A last line without its end."""
        rest = bytes(self._held)
        self._held.clear()
        return rest

    def named(self, event: bytes) -> tuple[bytes, bytes | None]:
        """Lines have no names."""
        return b"", event


class Reader(LineReader):
    """Translates a stream of /api/chat into canonical chunks."""

    def __init__(self, *, wants_usage: bool) -> None:
        super().__init__(wants_usage=wants_usage)
        self._calls = 0
        self._logprobs: dict[str, Any] | None = None

    def event(self, name: bytes, told: dict[str, Any]) -> None:
        """One line: a piece of the answer, its end, or an error."""
        if told.get("error") is not None:
            self.failed(problem_in_band(told))
            return
        done, message = told.get("done") is True, message_of(told)
        self.id = self.id or id_of(told)
        self.model = self.model or (told["model"] if isinstance(told.get("model"), str) else "")
        calls = calls_of(told, message, self._calls, streamed=True)
        self._calls += len(calls)
        delta: dict[str, Any] = {}
        if thinking := text_of(message, "thinking"):
            delta["reasoning_content"] = thinking
        if content := text_of(message, "content"):
            delta["content"] = content
        if calls:
            delta["tool_calls"] = calls
        if delta:
            self._logprobs = logprobs_of(told)
            self.delta(delta, text=generated(message, calls))
        if done:
            self.usage = usage_of(told, generated=self.delivered_bytes > 0) or self.usage
            self.finished(finish_of(told, called=self._calls > 0))
            self.ended()

    def _write(self, choices: list[dict[str, Any]], **more: Any) -> None:
        if choices and self._logprobs is not None:
            choices[0]["logprobs"], self._logprobs = self._logprobs, None
        super()._write(choices, **more)


class NativeReader(LineReader):
    """Passes a stream of /api/chat or /api/generate on as it is, and keeps the books on the way."""

    native = True

    def __init__(self) -> None:
        super().__init__(wants_usage=False)
        self._line = b""

    def named(self, event: bytes) -> tuple[bytes, bytes | None]:
        """Keeps the line: it is what is delivered."""
        self._line = event
        return b"", event

    def event(self, name: bytes, told: dict[str, Any]) -> None:
        """One line: passed, unless it is an error."""
        if told.get("error") is not None:
            self.failed(problem_in_band(told))
            return
        message = message_of(told)
        if text := generated(message, calls_of(told, message, 0, streamed=False)):
            self.events += 1
            self.delivered_bytes += len(text.encode("utf-8", "replace"))
        self._out.append(utf8(self._line) + b"\n")
        if told.get("done") is True:
            self.usage = usage_of(told, generated=self.delivered_bytes > 0)
            self.done = True
