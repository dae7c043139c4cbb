"""Vectors of questions for the answer cache: by the model on this host, or by a route, as a call of its own.

A route is asked as any client would ask it, with the key of the request the vector is for: held, charged, booked and
shown with that key, under a request id of its own whose row names the request as its client's id. The key's own limits
are not asked again, since the request was counted already; the tokens count to it. Whatever goes wrong, the request
goes on without a vector.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway import caching, inner, pipeline
from gateway.cache.embedder import EmbedderError, LocalEmbedder
from gateway.cache.semantic import unit_of
from gateway.errors import GatewayError

if TYPE_CHECKING:
    from gateway.pipeline import Job

log = logging.getLogger("hoosh.embedding")

PATH = "/v1/embeddings"
LIMIT_S = 2.0  # for a call, and never more than a quarter of the time its request has left
PAUSES_S = (1.0, 60.0)  # without calls after one that failed: doubled with each, so that a dead provider costs no time


class _Vector(msgspec.Struct, gc=False):
    embedding: list[float]


class _Vectors(msgspec.Struct, gc=False):
    data: list[_Vector]


_decode = msgspec.json.Decoder(_Vectors).decode
_encode = msgspec.json.Encoder().encode


class Embedded(NamedTuple):
    """A vector at unit length, and what made it: vectors of different makers are never compared."""

    vector: Any
    source: bytes


class Embedder:
    """Makes the vectors of one worker's questions. `failures` counts those that could not be made."""

    def __init__(self, folder: Path | None) -> None:
        """`folder`: of the model on this host; None = there is none. Call `load` before it is used."""
        self.failures = 0
        self._folder = folder
        self._local: LocalEmbedder | None = None
        self._pause_s = self._paused_until = 0.0

    async def load(self) -> None:
        """Read the model beside the loop. One that cannot be read is logged, and done without."""
        if self._folder is None:
            return
        try:
            self._local = await asyncio.to_thread(_loaded, self._folder)
        except EmbedderError as exc:
            log.error("embedder_unusable", extra={"folder": str(self._folder), "reason": str(exc)})

    async def embed(self, job: Job, text: str) -> Embedded | None:
        """The vector of a request's question; None when it could not be made. Raises only where the client leaves."""
        assert job.snapshot is not None
        model = job.snapshot.settings.embedding_model
        if model:
            return await self._by_route(job, model, text)
        if self._local is None:
            self.failures += self._folder is not None  # where none is configured nothing failed
            return None
        vector = self._local.embed(text)  # some 0.1 ms; None: it knows none of these words
        return None if vector is None else Embedded(vector, b"\0local\0" + self._local.name.encode())

    async def _by_route(self, job: Job, model: str, text: str) -> Embedded | None:
        now = time.monotonic()
        if now < self._paused_until:
            return None
        assert job.snapshot is not None
        assert job.key is not None
        request = _encode({"model": model, "input": text})
        try:
            asked = inner.make(job.runtime, job.snapshot, job.key, PATH, request, client_id=job.rid_hex, headers=[])
        except GatewayError:
            self.failures += 1
            return None
        asked.pool_id, asked.pool_ids, asked.verdict = job.pool_id, job.pool_ids, job.verdict
        told = await inner.run(asked, _call, max(0.0, min(LIMIT_S, (job.deadline - now) / 4)))
        job.beside += told.tokens
        vector = _vector_of(told.body) if told.status == 200 else None
        if vector is None:
            self._failed(told)
            return None
        self._pause_s = 0.0
        return Embedded(vector, f"\0{model}\0{told.upstream_model}".encode())

    def _failed(self, told: inner.Told) -> None:
        self.failures += 1
        if 400 <= told.status < 499:  # this key may not, or not now; others may
            return
        now = time.monotonic()
        if now < self._paused_until:  # another call that was under way has failed meanwhile
            return
        shortest, longest = PAUSES_S
        self._pause_s = min(longest, max(shortest, 2 * self._pause_s))
        self._paused_until = now + self._pause_s
        log.warning("embedding_failed", extra={"status": told.status, "code": told.code, "pause_s": self._pause_s})


async def _call(job: Job) -> None:
    pipeline.route(job)
    await caching.through(job, pipeline.call_candidates)


def _vector_of(body: bytes) -> Any:
    try:
        told = _decode(body)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return unit_of(told.data[0].embedding) if len(told.data) == 1 else None


def _loaded(folder: Path) -> LocalEmbedder:
    embedder = LocalEmbedder(folder)
    embedder.embed("a")  # the first one loads what later ones need
    return embedder
