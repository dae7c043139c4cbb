"""An example of a package that brings a provider kind and its adapter: a server that says everything in capitals.

Its API: POST /say {"ask": TEXT, "most": TOKENS} -> {"said": TEXT, "took": [INPUT, OUTPUT]}; with "live": true a line
of JSON for each word, and one with "took" at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

from providers.adapters import chunks, params, problems
from providers.canonical import Answer, Call, Request, Target, UpstreamProblem, Usage
from providers.catalog import Kind

KIND = Kind(
    "acme",
    "Acme shouting server",
    "http://127.0.0.1:9999",
    adapter="acme",
    auth="x-acme-key",
    paths=MappingProxyType({"say": "/say"}),
    serves=("chat",),
    local=True,
)
RULES = {"tools": params.REFUSE, "user": params.DROP}


class Acme:
    """Keeps the promises of `providers.adapters.Adapter`."""

    local = False
    stream_types = (b"application/x-ndjson",)

    def build(self, call: Call, target: Target, limit: int | None) -> Request:
        """The last message is what is asked."""
        doc = json.loads(call.body)
        dropped = params.dropped(doc, target, RULES, {"messages"})
        told = {"ask": doc["messages"][-1]["content"], "most": limit or call.limit, "live": call.stream}
        return Request(json.dumps(told).encode(), "say", dropped)

    def read_unary(
        self,
        call: Call,
        status: int,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        target: Target | None = None,
    ) -> Answer:
        """A whole answer."""
        try:
            told = json.loads(body)
            text, usage = told["said"], Usage(input=told["took"][0], output=told["took"][1])
        except (ValueError, KeyError, TypeError):
            return Answer(b"", problem=problems.problem("protocol"))
        made = chunks.completion(
            id="acme-1", model="acme", message={"content": text}, finish_reason="stop", usage=usage
        )
        return Answer(made, usage, len(text))

    def open_stream(self, call: Call, target: Target | None = None) -> Reader:
        """A reader for lines of JSON."""
        return Reader(wants_usage=call.wants_usage)

    def read_error(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> UpstreamProblem:
        """The usual shapes will do."""
        return problems.from_reply(status, headers, body)


class Reader(chunks.ChunkReader):
    """Lines instead of server-sent events."""

    _held = b""

    def split(self, chunk: bytes) -> list[bytes]:
        """One line, one event."""
        *lines, self._held = (self._held + chunk).split(b"\n")
        return lines

    def rest(self) -> bytes:
        """What stands behind the last line end."""
        return self._held

    def named(self, event: bytes) -> tuple[bytes, bytes | None]:
        """No names here."""
        return b"", event

    def event(self, name: bytes, told: dict[str, Any]) -> None:
        """A word, or the end."""
        self.id, self.model = "acme-1", "acme"
        if "took" in told:
            self.usage = Usage(input=told["took"][0], output=told["took"][1])
            self.finished("stop")
            self.ended()
        else:
            self.delta({"content": told["word"]}, text=told["word"])
