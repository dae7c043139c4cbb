"""Writing the canonical form: chat completions and their stream chunks, for adapters whose provider speaks another API.

`ChunkReader` is what such an adapter's stream reader is made from: it cuts the upstream's bytes into events, keeps the
counts the books need and writes chunks. A subclass says in `event` what one upstream event means.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from providers import sse
from providers.adapters import problems
from providers.canonical import UpstreamProblem, Usage

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)

_TEXT = b'%b"choices":[{"index":0,"delta":{"content":%b},"logprobs":null,"finish_reason":null}]}\n\n'


def usage_object(usage: Usage) -> dict[str, Any]:
    """A usage as the canonical form tells it."""
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_write},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def completion(
    *, id: str, model: str, message: dict[str, Any], finish_reason: str, usage: Usage | None, created: int = 0
) -> bytes:
    """A whole chat completion with one choice. `message` lacks only its role; content is null where it has none."""
    told: dict[str, Any] = {
        "id": id,
        "object": "chat.completion",
        "created": created or int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": None, "refusal": None, **message},
                "logprobs": None,
                "finish_reason": finish_reason,
            }
        ],
    }
    if usage is not None:
        told["usage"] = usage_object(usage)
    return _encode(told)


def tool_call(id: str, name: str, arguments: str, *, index: int | None = None, **extra: Any) -> dict[str, Any]:
    """One whole tool call of a message, or with `index` the first piece of one in a stream."""
    call: dict[str, Any] = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}, **extra}
    return call if index is None else {"index": index, **call}


def json_text(value: Any) -> str:
    """A decoded JSON value as text."""
    return _encode(value).decode()


class ChunkReader:
    """Base of the stream readers that translate; the promises are those of `providers.adapters.StreamReader`.

    A subclass implements `event(name, told)` and in it calls `delta`, `finished`, `failed` or `ended`. It sets `usage`
    itself. `id` and `model` are the upstream's own names, set as soon as they are known.
    """

    native = False

    def __init__(self, *, wants_usage: bool) -> None:
        self.done = False
        self.error: UpstreamProblem | None = None
        self.usage: Usage | None = None
        self.events = 0
        self.delivered_bytes = 0
        self.id = ""
        self.model = ""
        self._created = int(time.time())
        self._wants_usage = wants_usage
        self._begun = False
        self._head = b""  # how every chunk begins, for the id and the model in `_head_of`
        self._head_of: tuple[str, str] | None = None
        self._out: list[bytes] = []
        self._splitter = sse.Splitter()

    # --- for subclasses ---------------------------------------------------------------------------------------------

    def event(self, name: bytes, told: dict[str, Any]) -> None:
        """Handle one upstream event: its type (b"" when it names none) and its decoded data."""
        raise NotImplementedError

    def plain(self, name: bytes, data: bytes) -> bool:
        """Handle an event that is nothing but a piece of text, as most are, without looking for anything else in it.

        False leaves it to `event`, which would come to the same: for what is any different, and where in doubt.
        """
        return False

    def closed(self) -> None:
        """The upstream closed in good order without a terminal event of its own; the default calls that a cut."""
        self.failed(problems.problem("cut"))

    def delta(self, delta: dict[str, Any], *, text: str = "") -> None:
        """Hand out a piece of the answer. `text` is what in it a model generated: it is counted."""
        if not self._begun:
            self._begun = True
            delta = {"role": "assistant", **delta} if delta else {"role": "assistant", "content": ""}
        if text:
            self.events += 1
            self.delivered_bytes += len(text) if text.isascii() else len(text.encode())
        self._write([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])

    def say(self, text: str) -> None:
        """Hand out a piece of the first choice's text: what `delta` makes of it once the answer has begun, sooner."""
        self.events += 1
        self.delivered_bytes += len(text) if text.isascii() else len(text.encode())
        self._out.append(_TEXT % (self._begin_chunk(), _encode(text)))

    def finished(self, reason: str) -> None:
        """Hand out the finish reason."""
        if not self._begun:
            self.delta({})
        self._write([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": reason}])

    def ended(self) -> None:
        """The answer is complete: the usage chunk, where the caller asked for it, and no more."""
        if self._wants_usage and self.usage is not None:
            self._write([], usage=usage_object(self.usage))
        self.done = True

    def failed(self, problem: UpstreamProblem) -> None:
        """The upstream failed; nothing behind this is delivered."""
        self.error = problem

    def _write(self, choices: list[dict[str, Any]], **more: Any) -> None:
        rest = _encode({"choices": choices, **more})
        self._out.append(b"%b%b\n\n" % (self._begin_chunk(), rest[1:]))

    def _begin_chunk(self) -> bytes:
        names = (self.id, self.model)
        if names != self._head_of:
            told = {"id": self.id, "object": "chat.completion.chunk", "created": self._created, "model": self.model}
            self._head, self._head_of = b"data: %b," % _encode(told)[:-1], names
        return self._head

    # --- StreamReader -----------------------------------------------------------------------------------------------

    def feed(self, chunk: bytes) -> bytes:
        """Take what one upstream read brought; return the canonical chunks it comes to."""
        if self._over():
            return b""
        try:
            events = self.split(chunk)
        except sse.EventTooLargeError:
            self.error = problems.problem("protocol")
            return b""
        for event in events:
            self._one(event)
            if self._over():
                break
        return self._taken()

    def finish(self) -> bytes:
        """The upstream closed. Sets `error` unless the answer was complete."""
        if self._over():
            return b""
        if rest := self.rest():
            self._one(rest)
            if self.error == problems.problem("protocol"):  # half an event
                self.error = None
        if not self._over():
            self.closed()
        return self._taken()

    def split(self, chunk: bytes) -> list[bytes]:
        """The raw events a chunk completes; server-sent events unless a subclass knows better."""
        return self._splitter.feed(chunk)

    def rest(self) -> bytes:
        """What is left of an event when the upstream closed."""
        held = self._splitter.rest().rstrip(b"\r\n")
        return held + b"\n\n" if held else b""

    def named(self, event: bytes) -> tuple[bytes, bytes | None]:
        """Type and data of a raw event."""
        return sse.fields(event)

    def _over(self) -> bool:
        return self.done or self.error is not None

    def _taken(self) -> bytes:
        out = b"".join(self._out)
        self._out.clear()
        return out

    def _one(self, raw: bytes) -> None:
        name, data = self.named(raw)
        if data is None or not data.strip() or self.plain(name, data):
            return
        try:
            told = _decode(data if data.isascii() else data.decode("utf-8", "replace"))
        except _ERRORS:
            told = None
        if not isinstance(told, dict):
            self.error = problems.problem("protocol")
            return
        try:
            self.event(name, told)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError):
            # A provider's nonsense in a place where the subclass did not expect it.
            self.error = problems.problem("protocol")
