"""Asking ahead: a worker keeps the answers to an operator's questions, so that the first client gets a kept one.

A question is asked as its API key would ask it, through the whole path: models and pools of the key, its limits, the
privacy policy of its team, holds and charges. What is kept lies where the keys of that team look for it. Questions are
asked one at a time, with a pause behind each, by every worker for itself, and only while there is no kept answer: at
the start, when list or configuration change, and when an answer's time is over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from budgets.records import WarmRecord
from gateway import caching, inner, limiting, pipeline
from gateway.errors import GatewayError
from gateway.pipeline import Job
from gateway.screening import has_policy, screen

if TYPE_CHECKING:
    from gateway.runtime import Runtime

log = logging.getLogger("hoosh.warming")

PATH = "/v1/chat/completions"
PAUSE_S = 2.0  # behind each question that was asked: 30 a minute at most
LOOK_S = 1.0  # between two looks at what is due
AGAIN_S = (60.0, 3600.0)  # until a question that failed, or whose answer may not be kept, is asked again; doubles

# An answer to a similar question is not what is to be kept; and clients go first.
_HEADERS = [(b"cache-control", b"no-cache"), (b"x-hoosh-priority", b"batch")]
_encode = msgspec.json.Encoder().encode


class _Question:
    """A question of the list: when to look at it next, and how often in a row it has come to nothing."""

    __slots__ = ("due_at", "failures", "record")

    def __init__(self, record: WarmRecord) -> None:
        self.record = record
        self.due_at = 0.0
        self.failures = 0


def body_of(record: WarmRecord) -> bytes:
    """The request that asks a question, as clients send it."""
    system = [{"role": "system", "content": record.system}] if record.system else []
    return _encode({"model": record.model, "messages": [*system, {"role": "user", "content": record.question}]})


class Warmer:
    """Asks the questions of one worker. `asked` counts the answers it has kept, `failures` what came to nothing."""

    def __init__(self, runtime: Runtime) -> None:
        self.asked = self.failures = 0
        self.pause_s, self.look_s = PAUSE_S, LOOK_S
        self._runtime = runtime
        self._questions: dict[int, _Question] = {}
        self._seen = (0, 0)  # configuration and purges by which the questions were looked at
        self._changed = asyncio.Event()

    def set(self, records: Sequence[WarmRecord]) -> None:
        """The whole list. What is on it as before is not asked again for that."""
        known = self._questions
        self._questions = {
            record.id: known[record.id]
            if record.id in known and known[record.id].record == record
            else _Question(record)
            for record in records
        }
        self._changed.set()

    async def run(self) -> None:
        """Ask what is due, until cancelled."""
        while True:
            try:
                await self._look()
            except Exception:
                log.exception("warming_failed")
            self._changed.clear()
            if not self._questions:
                await self._changed.wait()
            await asyncio.sleep(self.look_s)

    async def _look(self) -> None:
        runtime = self._runtime
        seen = (runtime.config_version, runtime.cache.purges)
        if seen != self._seen:  # what was refused may be possible now, what was kept may be gone
            self._seen = seen
            for question in self._questions.values():
                question.due_at, question.failures = 0.0, 0
        for question in list(self._questions.values()):
            if not runtime.ready or not runtime.journal_writable:
                return
            if time.monotonic() < question.due_at or self._questions.get(question.record.id) is not question:
                continue
            if await self._warm(question):
                await asyncio.sleep(self.pause_s)

    async def _warm(self, question: _Question) -> bool:
        """Ask one question if its answer is not kept; whether it was asked."""
        store = self._runtime.cache.store
        asked, code = False, ""
        try:
            job = await self._prepared(question.record)
            key = None if job is None else caching.key_for(job)
            if job is None:
                code = "key_unusable"
            elif key is None:
                code = "not_kept"
            elif key not in store:
                asked = True
                told = await inner.run(job, _ask, max(0.0, job.deadline - time.monotonic()))
                code = told.code or ("" if key in store else "not_kept")
                self.asked += not code
        except GatewayError as error:
            key, code = None, error.code or error.type
        now = time.monotonic()
        if not code and key is not None:
            question.failures, question.due_at = 0, now + store.left_s(key)
            return asked
        shortest, longest = AGAIN_S
        question.due_at = now + min(longest, shortest * 2**question.failures)
        question.failures = min(question.failures + 1, 16)
        self.failures += 1
        if question.failures == 1:  # not each time
            log.warning("question_not_warmed", extra={"question": question.record.id, "code": code})
        return asked

    async def _prepared(self, record: WarmRecord) -> Job | None:
        """The request that asks a question, as far as a look into the cache; None where its key cannot be used."""
        runtime = self._runtime
        snapshot, key = runtime.snapshot, runtime.key(record.key_id)
        if snapshot is None or key is None or "inference" not in key.record.scopes:
            return None
        if key.record.expires_at is not None and key.record.expires_at <= time.time():
            return None
        job = inner.make(
            runtime, snapshot, key, PATH, body_of(record), client_id=f"warming-{record.id}", headers=_HEADERS
        )
        pipeline.guard(job)
        if has_policy(job):
            await screen(job)
        pipeline.route(job)
        return job


async def _ask(job: Job) -> None:
    limiting.admit(job)
    await caching.through(job, pipeline.call_candidates)
