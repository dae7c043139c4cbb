"""Reading a stream of server-sent events whose bytes pass: cutting it, and what its end means.

The promises are those of `providers.adapters.StreamReader`. A subclass says in `_event` what is delivered of one event;
it sets `done`, `error` and `usage` and counts what was generated.
"""

from __future__ import annotations

from providers import sse
from providers.adapters import problems
from providers.canonical import UpstreamProblem, Usage


class PassingReader:
    """Base of the readers that deliver an upstream's own events."""

    __slots__ = ("_splitter", "delivered_bytes", "done", "error", "events", "usage")

    def __init__(self, *, limit_bytes: int = sse.EVENT_LIMIT_BYTES) -> None:
        self.done = False
        self.error: UpstreamProblem | None = None
        self.usage: Usage | None = None
        self.events = 0
        self.delivered_bytes = 0
        self._splitter = sse.Splitter(limit_bytes)

    def feed(self, chunk: bytes) -> bytes:
        """Take what one upstream read brought; return what to deliver: `chunk` itself when all of it passes."""
        if self._over():
            return b""
        try:
            events = self._splitter.feed(chunk)
        except sse.EventTooLargeError:
            self.error = problems.problem("protocol")
            return b""
        kept = []
        for event in events:
            kept.append(self._event(event))
            if self._over():
                break
        out = b"".join(kept)
        return chunk if out == chunk else out

    def finish(self) -> bytes:
        """The upstream closed: a last event without its empty line still counts. Sets `error` unless `done`."""
        if self._over():
            return b""
        out = b""
        if rest := self._splitter.rest().rstrip(b"\r\n"):
            out = self._event(rest + b"\n\n")
            if self.error == problems.problem("protocol"):  # half an event
                self.error = None
        if not self._over():
            self.error = problems.problem("cut")
        return out

    def _over(self) -> bool:
        return self.done or self.error is not None

    def _event(self, event: bytes) -> bytes:
        """What to deliver of one event: `event` itself when it passes, b"" when nothing."""
        raise NotImplementedError
