"""What a canonical answer goes through before the caller's dialect writes it: kept for the cache, guarded, restored."""

from __future__ import annotations

from collections.abc import Callable

from gateway.dialects.base import StreamWriter
from gateway.errors import ForbiddenError, GatewayError
from gateway.privacy.answers import AnswerGuard, StreamGuard
from gateway.privacy.redaction import Redactor, StreamRestorer

ANSWER_REFUSED = "privacy_answer_refused"


class AnswerRefusedError(ForbiddenError):
    """The answer holds what the team's privacy policy does not let through."""

    code = ANSWER_REFUSED
    message_default = "The answer holds data that may not be shown here."


class Through:
    """The stages of one request's answer. Without any, answers pass as they are."""

    __slots__ = ("_guard", "_json_content", "_redactor", "_seen")

    def __init__(self) -> None:
        self._guard: AnswerGuard | None = None
        self._redactor: Redactor | None = None
        self._json_content = False
        self._seen: Callable[[bytes], None] | None = None  # gets what a stream says as the provider said it

    def look(self, guard: AnswerGuard | None, redactor: Redactor | None, *, json_content: bool) -> None:
        """Guard the answer, and put what was redacted back into it."""
        self._guard, self._redactor, self._json_content = guard, redactor, json_content

    def listen(self, seen: Callable[[bytes], None] | None) -> None:
        """Hear a stream as the provider said it; None = no more."""
        self._seen = seen

    @property
    def changes(self) -> bool:
        """Whether the answer may be changed on its way."""
        return self._guard is not None or self._redactor is not None

    def whole(self, body: bytes) -> bytes:
        """A whole answer. Raises `AnswerRefusedError`."""
        if self._guard is not None:
            guarded = self._guard.whole(body, json_content=self._json_content)
            if guarded.refused:
                raise AnswerRefusedError()
            body = guarded.body
        if self._redactor is not None:
            body = self._redactor.restore_answer(body, json_content=self._json_content)
        return body

    def looked_at(self, body: bytes) -> tuple[bytes, AnswerRefusedError | None]:
        """The same, with what forbids to tell it."""
        try:
            return self.whole(body), None
        except AnswerRefusedError as error:
            return b"", error

    def stream(self, writer: StreamWriter) -> StreamWriter:
        """The writer of a stream, with the stages before it."""
        if not self.changes and self._seen is None:
            return writer
        guard = self._guard.stream(json_content=self._json_content) if self._guard is not None else None
        restorer = None
        if self._redactor is not None:
            restorer = StreamRestorer(self._redactor, json_content=self._json_content)
        return _Staged(writer, self._heard, guard, restorer)

    def _heard(self, data: bytes) -> None:
        if self._seen is not None and data:
            self._seen(data)


class _Staged:
    """A stream writer behind the stages."""

    def __init__(
        self,
        writer: StreamWriter,
        heard: Callable[[bytes], None],
        guard: StreamGuard | None,
        restorer: StreamRestorer | None,
    ) -> None:
        self._writer, self._heard, self._guard, self._restorer = writer, heard, guard, restorer

    def feed(self, data: bytes) -> bytes:
        """What the client gets for these events. Raises `AnswerRefusedError`."""
        self._heard(data)
        if self._guard is not None:
            data = self._guard.feed(data)
            self._check()
        if self._restorer is not None:
            data = self._restorer.feed(data)
        return self._writer.feed(data)

    def finish(self) -> bytes:
        """What was held back, and the end of a complete answer. Raises `AnswerRefusedError`."""
        data = b""
        if self._guard is not None:
            data = self._guard.finish()
            self._check()
        if self._restorer is not None:
            data = self._restorer.feed(data) + self._restorer.finish()
        out = self._writer.feed(data) if data else b""
        return out + self._writer.finish()

    def fail(self, error: GatewayError) -> bytes:
        """The end of an answer that failed; what is held back is not told."""
        return self._writer.fail(error)

    def _check(self) -> None:
        if self._guard is not None and self._guard.refused:
            raise AnswerRefusedError()
