"""Streams of Google's Gemini API (`streamGenerateContent?alt=sse`): one reader translates, the other passes bytes on.

Every event is a whole `GenerateContentResponse` with the next parts of the answer and the usage so far. There is no
terminal event: the stream is complete when the upstream closes and each candidate told a finish reason. Format: the
API reference of `models.streamGenerateContent`.
"""

from __future__ import annotations

from typing import Any

from providers import sse
from providers.adapters import google_reply as reply
from providers.adapters import problems
from providers.adapters.chunks import ChunkReader
from providers.adapters.openai_compatible import utf8
from providers.canonical import Usage

# Generated pictures come in one event each.
EVENT_LIMIT_BYTES = 16 << 20
UNREAD_MAX = 8  # usages kept to be read later: the last one counts, or where it is absurd, one before it
_BOM = b"\xef\xbb\xbf"
_FIELDS = frozenset({b"", b"data", b"event", b"id", b"retry"})  # a comment has no name


class _Reader(ChunkReader):
    """What both readers do alike: usage, errors in band, and when the answer is complete."""

    def __init__(self, *, wants_usage: bool, outputs: int, single: bool) -> None:
        self._usage: Usage | None = None
        self._unread: list[dict[str, Any]] = []
        super().__init__(wants_usage=wants_usage)
        self._outputs = outputs
        self._single = single
        self._candidates: dict[int, reply.Candidate] = {}
        self._splitter = sse.Splitter(EVENT_LIMIT_BYTES)

    @property
    def usage(self) -> Usage | None:
        """The last valid usage told. Every event tells one, so it is read when somebody asks."""
        self._catch_up()
        return self._usage

    @usage.setter
    def usage(self, usage: Usage | None) -> None:
        self._usage = usage
        self._unread.clear()

    def _catch_up(self) -> None:
        while self._unread:
            usage = self.read_usage(self._unread.pop())
            if usage is not None:
                self.usage = usage

    def named(self, event: bytes) -> tuple[bytes, bytes | None]:
        """Type and data of a raw event. An error may come as bare JSON between the events."""
        name, data = sse.fields(event)
        if data is None and event.lstrip()[:1] == b"{":
            return b"", event
        return name, data

    def event(self, name: bytes, told: dict[str, Any]) -> None:
        """One response object, or an error in its place."""
        metadata = told.get("usageMetadata")
        if metadata is not None:
            self.usage = self.read_usage(metadata) or self.usage
        if name == b"error" or told.get("error") is not None:
            self.failed(reply.in_band(told))
            return
        try:
            self.response(told)
        except RecursionError:
            self.failed(problems.problem("protocol"))

    def read_usage(self, metadata: Any) -> Usage | None:
        """The usage an event tells; it is that of the whole answer so far."""
        return reply.usage(metadata)

    def response(self, told: dict[str, Any]) -> None:
        """Handle what one response object adds."""
        raise NotImplementedError

    def candidate(self, index: int) -> reply.Candidate:
        """The state of one candidate, new when it was not seen before."""
        found = self._candidates.get(index)
        if found is None:
            found = self._candidates[index] = reply.Candidate(index, single=self._single)
        return found

    def complete(self) -> bool:
        """Whether every candidate that began has ended."""
        return bool(self._candidates) and all(one.finish for one in self._candidates.values())


class GoogleReader(_Reader):
    """Translates one stream into canonical chunks; the promises are those of `providers.adapters.StreamReader`.

    `model` is told where the upstream names none. `outputs` is the number of candidates asked for, and `single` whether
    the caller takes one tool call at most.
    """

    def __init__(self, *, wants_usage: bool, model: str, outputs: int = 1, single: bool = False) -> None:
        super().__init__(wants_usage=wants_usage, outputs=outputs, single=single)
        self.model = model

    def plain(self, name: bytes, data: bytes) -> bool:
        """Handle an event that is a piece of text and the usage so far and nothing else."""
        state = self._candidates.get(0)
        if state is None or not state.begun or name == b"error":
            return False
        told = reply.text_alone(data)
        if told is None:
            return False
        text, metadata = told
        if metadata is not None:
            self._unread.append(metadata)
            if len(self._unread) == UNREAD_MAX:
                self._catch_up()
        state.generated = True
        self.say(text)
        return True

    def response(self, told: dict[str, Any]) -> None:
        """Hand out the new parts; the finish reason waits, as some models tell one with every event."""
        if not self.id:
            self.id, self.model = reply.names_of(told, self.model)
        for index, raw in reply.candidates_of(told):
            state = self.candidate(index)
            logprobs = reply.logprobs_of(raw)
            for delta, text in state.pieces(raw, self.id):
                self._say(state, delta, text, logprobs)
                logprobs = None
            if logprobs is not None:
                self._say(state, {}, "", logprobs)
            reason = reply.finish_of(raw)
            if reason:
                state.finish = reason
                problem = reply.broken(reason) if self._outputs <= 1 else None
                if problem is not None:
                    self.failed(problem)
                    return
        if reply.is_blocked(told):
            self.candidate(0).finish = reply.BLOCKED

    def closed(self) -> None:
        """The end of the stream is the end of the answer when all of it was told."""
        if not self.complete():
            self.failed(problems.problem("cut"))
            return
        for index in sorted(self._candidates):
            state = self._candidates[index]
            if not state.begun:
                self._say(state, {"content": ""}, "", None)
            self._choice(state, {}, None, state.reason())
        self.ended()

    def _say(self, state: reply.Candidate, delta: dict[str, Any], text: str, logprobs: dict[str, Any] | None) -> None:
        if not state.begun:
            state.begun = True
            delta = {"role": "assistant", **delta}
        if text or "images" in delta:
            self.events += 1
            self.delivered_bytes += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        self._choice(state, delta, logprobs, None)

    def _choice(
        self, state: reply.Candidate, delta: dict[str, Any], logprobs: dict[str, Any] | None, reason: str | None
    ) -> None:
        self._write([{"index": state.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}])


class GoogleNativeReader(_Reader):
    """Passes one stream on as it is, for callers that speak this API themselves.

    Events keep their bytes. An error event is kept back, for the caller of this reader tells errors itself; so are
    comments, which clients of this API take for broken data. What is no event at all is a failure.
    """

    native = True

    def __init__(self) -> None:
        super().__init__(wants_usage=False, outputs=1, single=False)

    def response(self, told: dict[str, Any]) -> None:
        """Count what was generated and note what ended."""
        size = reply.size_of(told)
        if size:
            self.events += 1
            self.delivered_bytes += size
        for index, raw in reply.candidates_of(told):
            state = self.candidate(index)
            state.finish = reply.finish_of(raw) or state.finish
        if reply.is_blocked(told):
            self.candidate(0).finish = reply.BLOCKED

    def closed(self) -> None:
        """The end of the stream is the end of the answer when all of it was told."""
        if self.complete():
            self.done = True
        else:
            self.failed(problems.problem("cut"))

    def _one(self, raw: bytes) -> None:
        super()._one(raw)
        if self.error is not None:
            return
        if (sse.fields(raw)[1] or b"").strip():
            self._out.append(utf8(raw))
        elif any(line.partition(b":")[0] not in _FIELDS for line in raw.removeprefix(_BOM).splitlines()):
            self.failed(problems.problem("protocol"))
