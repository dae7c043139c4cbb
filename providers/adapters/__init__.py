"""Adapters: one per upstream API. Pure functions over bytes and structs; connections belong to `providers.upstream`.

`get(name)` finds the adapter that a catalogue row names. Installed packages offer further ones through entry points of
the group `hoosh.adapters`: a class without arguments that keeps the promises of `Adapter`.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Iterable, Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Protocol

from providers.canonical import Answer, Call, Request, Target, UpstreamProblem, Usage

ENTRY_POINTS = "hoosh.adapters"


class StreamReader(Protocol):
    """Reads one upstream stream. `feed` and `finish` return what to deliver and never raise.

    What is returned are whole events in the canonical form (chunks of the OpenAI API). `done`: the upstream said the
    stream is complete (the terminal event itself is not delivered: the caller emits its own). `error`: the upstream
    failed, in band or by ending early; nothing behind it is delivered. `usage`: the last valid one seen. `events` and
    `delivered_bytes`: content pieces and bytes of generated text handed out so far.

    `native`: what is returned is in the caller's own dialect, its terminal event included.
    """

    native: bool
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
    """Translates between canonical calls and one upstream API. `local` adapters answer in process, without network.

    `stream_types` are the content types a streamed answer may have.
    """

    local: bool
    stream_types: tuple[bytes, ...]

    def build(self, call: Call, target: Target, limit: int | None) -> Request:
        """The upstream request. `limit` is the output limit to enforce in tokens; None leaves the client's as it is.

        Raises `UnsupportedParamError` for what this provider cannot honour and what may not be dropped.
        """
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
    """The adapter of that name: one of ours, or one that an installed package offers. `KeyError` for any other."""
    adapter = _LOADED.get(name)
    if adapter is None:
        adapter = _LOADED[name] = _load(name)
    return adapter


def _load(name: str) -> Adapter:
    where = _OURS.get(name)
    if where is not None:
        module, _, attribute = where.partition(":")
        made: Adapter = getattr(importlib.import_module(module), attribute)()
        return made
    for point in metadata.entry_points(group=ENTRY_POINTS, name=name):
        offered: Adapter = point.load()()
        return offered
    raise KeyError(name)


# Imported when a provider first needs one: a worker that has no such provider does not pay for it.
_OURS: Mapping[str, str] = MappingProxyType(
    {
        "openai_compatible": "providers.adapters.openai_compatible:OpenAICompatible",
        "anthropic": "providers.adapters.anthropic:Anthropic",
        "google": "providers.adapters.google:Google",
        "ollama": "providers.adapters.ollama:Ollama",
        "responses": "providers.adapters.responses:Responses",
        "demo": "providers.adapters.demo:DemoAdapter",
    }
)
_LOADED: dict[str, Adapter] = {}
