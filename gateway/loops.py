"""Agents that ask the same thing again and again: how often each prompt came within this minute. Pure.

Only for keys whose agent asks for it (`KeyRecord.loop_limit`); nobody else pays more than one comparison. A prompt is
known by eight bytes of BLAKE2b over the messages of its canonical body (over the whole body where it has none), so
neither model nor sampling makes two of one. Counted per worker; control adds the workers' counts up.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from gateway.pipeline import Job

PROMPTS_MAX = 8192  # counted at once in a minute; further ones are not
TOLD_MAX = 200  # of them told in one second
HASHED = 256 * 1024  # bytes of a longer prompt: its beginning and its end, and its length
SHARE = 8  # a worker tells of a prompt from an eighth of the limit on: control adds up to eight workers exactly

Item = tuple[Any, ...]


class _Messages(msgspec.Struct, gc=False):
    messages: msgspec.Raw = msgspec.Raw(b"")


_decode = msgspec.json.Decoder(_Messages).decode


def digest_of(body: bytes) -> bytes:
    """Eight bytes that stand for the prompt of a canonical body."""
    try:
        prompt = bytes(_decode(body).messages) or body
    except (msgspec.MsgspecError, RecursionError):
        prompt = body
    if len(prompt) > HASHED:
        half = HASHED // 2
        prompt = b"%d %b%b" % (len(prompt), prompt[:half], prompt[-half:])
    return hashlib.blake2b(prompt, digest_size=8).digest()


class Loops:
    """The counts of one worker. Every method belongs to the worker's loop."""

    def __init__(self, *, most: int = PROMPTS_MAX) -> None:
        """`most` prompts are counted at once."""
        self._most = most
        self._minute = 0
        self._counts: dict[tuple[int, bytes], int] = {}
        self._changed: dict[tuple[int, bytes], int] = {}

    def count(self, agent_id: int, body: bytes, limit: int, now: float) -> int:
        """Count one request; how often its prompt came within this minute (0: too many others did)."""
        minute = int(now // 60)
        if minute != self._minute:
            self._minute = minute
            self._counts.clear()
            self._changed.clear()
        name = (agent_id, digest_of(body))
        seen = self._counts.get(name, 0) + 1
        if seen == 1 and len(self._counts) >= self._most:
            return 0
        self._counts[name] = seen
        if seen * SHARE > limit and (seen > 1 or limit == 1):
            self._changed[name] = seen
        return seen

    def tell(self, told: Callable[[Item], object]) -> None:
        """Tell what changed since the last time, as ("loop", minute, agent id, digest, count). Called once a second."""
        if not self._changed:
            return
        changed, self._changed = self._changed, {}
        for (agent_id, digest), seen in sorted(changed.items(), key=lambda item: -item[1])[:TOLD_MAX]:
            told(("loop", self._minute * 60, agent_id, digest.hex(), seen))


def look(job: Job) -> None:
    """Count a request where its agent asks for that."""
    assert job.key is not None
    limit = job.key.record.loop_limit
    if limit:
        assert job.call is not None
        job.runtime.loops.count(job.key.record.agent_id, job.call.body, limit, time.time())
