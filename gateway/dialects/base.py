"""What every API that clients may speak has to offer: errors, whole answers and streams in its own shape.

Requests come in through the parsers that `gateway.endpoints` names; each makes a `Call` whose body is in the canonical
form (chat completions of the OpenAI API), and whose `names` say what the caller has of it under which name. Answers go
out through a `Dialect`. Everything here is pure.
"""

from __future__ import annotations

from typing import Protocol

from gateway.errors import GatewayError
from providers.canonical import Call


class StreamWriter(Protocol):
    """Turns one canonical stream into the dialect's events.

    `feed` takes whole canonical events (`data: {…}\\n\\n`, several or none, never `[DONE]`) and returns what the client
    gets for them; the last of them is the usage chunk, as `Call.wants_usage` is set for every dialect but OpenAI's.
    `finish` returns the rest and the terminal event; nothing follows. `fail` returns the event that tells an error
    inside the stream; the connection is cut behind it. None of them raises.
    """

    def feed(self, data: bytes) -> bytes:
        """What the client gets for these events."""
        ...

    def finish(self) -> bytes:
        """The end of a complete answer."""
        ...

    def fail(self, error: GatewayError) -> bytes:
        """The end of an answer that failed after it had begun."""
        ...


class Dialect(Protocol):
    """One client-side API.

    `stream_type` is the content type of its streams; `ping` an event that keeps a quiet stream alive (b"" where the API
    has none); `id_header` a further header that carries the request id (b"" = none).
    """

    name: str
    stream_type: bytes
    ping: bytes
    id_header: bytes

    def error(self, error: GatewayError, request_id: str) -> bytes:
        """The body of an error answer."""
        ...

    def in_band(self, error: GatewayError) -> bytes:
        """The event that tells an error inside a stream, where there is no writer (the provider's own bytes pass)."""
        ...

    def answer(self, call: Call, body: bytes) -> bytes:
        """The whole answer, from a canonical one (a chat completion). Never raises."""
        ...

    def writer(self, call: Call, request_id: str) -> StreamWriter:
        """A writer for one streamed answer."""
        ...
