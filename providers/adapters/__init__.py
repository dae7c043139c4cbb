"""Adapters: one per upstream API. Pure functions over bytes and structs; connections belong to `providers.upstream`.

`get(name)` finds the adapter that a catalogue row names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from types import MappingProxyType
from typing import Protocol

from providers.adapters.demo import DemoAdapter
from providers.adapters.openai_compatible import OpenAICompatible
from providers.canonical import Answer, Call, Target, UpstreamProblem, Usage


class StreamReader(Protocol):
    """Reads one upstream stream. `feed` and `finish` return what to deliver and never raise.

    `done`: the upstream said the stream is complete (the terminal event itself is not delivered: the caller emits
    its own). `error`: the upstream failed, in band or by ending early; nothing behind it is delivered. `usage`: the
    last valid one seen. `events` and `delivered_bytes`: content pieces and bytes of generated text handed out so far.
    """

    done: bool
    error: UpstreamProblem | None
    usage: Usage | None
    events: int
    delivered_bytes: int

    def feed(self, chunk: bytes) -> bytes:
        """Take what one upstream read brought; return the bytes to deliver, maybe b""."""
        ...

    def finish(self) -> bytes:
        """Tell that the upstream closed. Sets `error` unless the stream was complete."""
        ...


class Adapter(Protocol):
    """Translates between canonical calls and one upstream API. `local` adapters answer in process, without network."""

    local: bool

    def build(self, call: Call, target: Target, limit: int | None) -> bytes:
        """The upstream body. `limit` is the output limit to enforce in tokens; None leaves the client's as it is."""
        ...

    def read_unary(
        self,
        call: Call,
        status: int,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        target: Target | None = None,
    ) -> Answer:
        """Read a 2xx reply. `Answer.problem` is set when it is not a usable answer; `target` tells the quirks."""
        ...

    def open_stream(self, call: Call, target: Target | None = None) -> StreamReader:
        """A reader for the reply to a streaming call."""
        ...

    def read_error(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> UpstreamProblem:
        """Read a reply whose status is not 2xx."""
        ...


class LocalAdapter(Adapter, Protocol):
    """An adapter that generates the answers itself, in the shape its own `read_unary` and `open_stream` read."""

    async def answer(self, call: Call, limit: int | None) -> bytes:
        """The whole reply body."""
        ...

    def stream(self, call: Call, limit: int | None) -> AsyncIterator[bytes]:
        """The reply as server-sent events, terminal event included."""
        ...


def get(name: str) -> Adapter:
    """The adapter of that name. Raises `KeyError` for a name no catalogue row may carry."""
    return _ADAPTERS[name]


_ADAPTERS: Mapping[str, Adapter] = MappingProxyType({"openai_compatible": OpenAICompatible(), "demo": DemoAdapter()})
