"""Control's memory of requests that carry an `Idempotency-Key`: what runs, and what was answered in the last day.

Workers ask by `begin` and tell by `end`; both are carried out in the writer's thread, in the order they came. Bodies
come encrypted and go out as they came. A request is forgotten (and may run again) when its worker says so, when its
worker dies before it ended, and after `KEPT`.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from django.conf import settings
from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from budgets import journal
from budgets.models.ledger import IdempotentReply
from budgets.settle import WriterStoppedError

log = logging.getLogger("hoosh.ledger")

KEPT = dt.timedelta(hours=24)
RETRY_S = 0.5  # between two attempts to store what workers told while the database was away
WAITING_ENDS_BYTES = 64 * 1024 * 1024  # of bodies; what comes above is stored without its body
ENDS_AT_ONCE, ENDS_AT_ONCE_BYTES = 200, 4 * 1024 * 1024  # stored in one transaction, between which others get a turn
EXPIRED_PER_RUN = 200
_BUSY_S, _IDLE_S = 1.0, 30.0  # between two runs of the expiry: with more to do, and without

_T = TypeVar("_T")
_Key = tuple[int, str]  # id of the API key, digest of the header's value
_State = IdempotentReply.State

IdempotencyReply = Callable[[str, int, str, bytes | None], object]  # state, status, content_type, body


class Submits(Protocol):
    """What is needed of `budgets.settle.Writer`."""

    def submit(self, work: Callable[[BaseDatabaseWrapper], _T]) -> Future[_T]:
        """Run `work(connection)` in the writer's thread."""


class Answer(NamedTuple):
    """What a worker is told: "new", "running", "mismatch", "done" or "unavailable"."""

    state: str
    status: int = 0
    content_type: str = ""
    body: bytes | None = None


class _Begin(NamedTuple):
    owner: str
    key_id: int
    digest: str
    request_digest: str
    rid: str


class _End(NamedTuple):
    owner: str
    key_id: int
    digest: str
    rid: str
    keep: bool
    status: int
    content_type: str
    body: bytes | None


class IdempotencyStore:
    """The rows of one host's workers. Its methods may be called from any thread and never wait."""

    def __init__(self, writer: Submits, journals: Path | None = None) -> None:
        """`journals` is where workers' journals lie, by default as the settings say."""
        self._writer = writer
        self._journals = journals or settings.HOOSH_JOURNAL_DIR
        self._lock = threading.Lock()
        self._ends: dict[_Key, list[_End]] = {}  # told, not in the database yet; in the order they came
        self._ends_bytes = 0
        self._asking: set[tuple[str, str]] = set()  # owners and requests of which a `begin` is under way
        self._storing = False  # somebody sees to them

    def begin(
        self, owner: str, key_id: int, digest: str, request_digest: str, rid: str, reply: IdempotencyReply
    ) -> None:
        """Register a request and call `reply(state, status, content_type, body)`, perhaps from the writer's thread.

        "new": it is registered and shall run; "unavailable": nobody knows, so it must not run.
        """
        asked = _Begin(owner, key_id, digest, request_digest, rid)

        def work(connection: BaseDatabaseWrapper) -> Answer:
            # What its worker sent just before it died may be read after its end; nobody would ever end that request.
            if not journal.lock_path(self._journals, owner).exists():
                return Answer("unavailable")
            told = self._ends.get((key_id, digest), ())[:]
            own = [ended for ended in told if (ended.owner, ended.rid) == (owner, rid)]  # it gave up meanwhile
            self._store(connection, [ended for ended in told if ended not in own])  # first: the answer may be there
            answer = _begin(connection, asked)
            self._store(connection, own)
            return answer

        def answered(future: Future[Answer]) -> None:
            with self._lock:
                self._asking.discard((owner, rid))
            failed = future.cancelled() or future.exception() is not None
            reply(*(Answer("unavailable") if failed else future.result()))

        with self._lock:
            self._asking.add((owner, rid))
        self._writer.submit(work).add_done_callback(answered)

    def end(
        self,
        owner: str,
        key_id: int,
        digest: str,
        rid: str,
        keep: bool,
        status: int,
        content_type: str,
        body: bytes | None,
    ) -> None:
        """Keep the answer of a request (`body` None: too large to be kept), or forget the request. Repeats do no harm.

        While the database is away it is remembered here and stored later.
        """
        with self._lock:
            if body is not None and self._ends_bytes + len(body) > WAITING_ENDS_BYTES:
                body = None
            self._ends_bytes += len(body or b"")
            ended = _End(owner, key_id, digest, rid, keep, status, content_type, body)
            self._ends.setdefault((key_id, digest), []).append(ended)
            if self._storing:
                return
            self._storing = True
        self._submit_ends()

    def _submit_ends(self) -> None:
        self._writer.submit(self._store_some).add_done_callback(self._stored)

    def _stored(self, future: Future[None]) -> None:
        if future.cancelled() or isinstance(future.exception(), WriterStoppedError):
            return
        if future.exception() is not None:
            timer = threading.Timer(RETRY_S, self._submit_ends)
            timer.daemon = True
            timer.start()
            return
        with self._lock:
            self._storing = bool(self._ends)
            if not self._storing:
                return
        self._submit_ends()  # behind what waits in the writer's queue by now

    def _store_some(self, connection: BaseDatabaseWrapper) -> None:
        taken: list[_End] = []
        size = 0
        with self._lock:
            for ended in chain.from_iterable(self._ends.values()):
                if (ended.owner, ended.rid) in self._asking:
                    continue  # its beginning is not in the database yet
                taken.append(ended)
                size += len(ended.body or b"")
                if len(taken) >= ENDS_AT_ONCE or size >= ENDS_AT_ONCE_BYTES:
                    break
        self._store(connection, taken)

    def _store(self, connection: BaseDatabaseWrapper, ends: Sequence[_End]) -> None:
        """Bring these, the first of their keys, into the database, and forget them."""
        if not ends:
            return
        _end(connection, ends)
        with self._lock:
            for ended in ends:
                waiting = self._ends[ended.key_id, ended.digest]
                waiting.remove(ended)
                if not waiting:
                    del self._ends[ended.key_id, ended.digest]
                self._ends_bytes -= len(ended.body or b"")


class IdempotencyExpiry:
    """A job of the writer's: forgets answers after `KEPT`, and what ran in a worker that is dead."""

    def __init__(self) -> None:
        self.period_s = _IDLE_S

    def run(self, connection: BaseDatabaseWrapper) -> None:
        """Delete rows whose time is over, a bounded number at once."""
        rows = IdempotentReply.objects.using(connection.alias)
        with transaction.atomic(using=connection.alias, durable=True):
            over = rows.filter(expires_at__lte=timezone.now()).order_by("expires_at").values_list("pk", flat=True)
            found = list(over[:EXPIRED_PER_RUN])
            if found:
                rows.filter(pk__in=found).delete()
        self.period_s = _BUSY_S if len(found) == EXPIRED_PER_RUN else _IDLE_S

    def owner_ended(self, connection: BaseDatabaseWrapper, owner: str) -> None:
        """A worker died: what it was running will never be answered, so a repetition shall run."""
        with transaction.atomic(using=connection.alias, durable=True):
            rows = IdempotentReply.objects.using(connection.alias)
            rows.filter(owner=owner, state=_State.RUNNING).delete()


def _begin(connection: BaseDatabaseWrapper, asked: _Begin) -> Answer:
    now = timezone.now()
    rows = IdempotentReply.objects.using(connection.alias)
    with transaction.atomic(using=connection.alias, durable=True):
        rows.filter(key_id=asked.key_id, digest=asked.digest, expires_at__lte=now).delete()
        # Insert or nothing: on PostgreSQL the control of another host may do the same at this moment.
        rows.bulk_create(
            [
                IdempotentReply(
                    key_id=asked.key_id,
                    digest=asked.digest,
                    request_digest=asked.request_digest,
                    owner=asked.owner,
                    rid=asked.rid,
                    created_at=now,
                    expires_at=now + KEPT,
                )
            ],
            ignore_conflicts=True,
        )
        row = rows.filter(key_id=asked.key_id, digest=asked.digest).first()
    if row is None:  # the other one ended between the two statements
        return Answer("running")
    if row.request_digest != asked.request_digest:
        return Answer("mismatch")
    if row.state == _State.DONE:
        return Answer("done", row.status, row.content_type, None if row.body is None else bytes(row.body))
    return Answer("new" if (row.owner, row.rid) == (asked.owner, asked.rid) else "running")


def _end(connection: BaseDatabaseWrapper, ends: Sequence[_End]) -> None:
    """Keep or forget what runs; of several ends of one request the first counts. One transaction."""
    first: dict[tuple[str, int, str, str], _End] = {}
    for ended in ends:
        first.setdefault((ended.owner, ended.key_id, ended.digest, ended.rid), ended)
    rows = IdempotentReply.objects.using(connection.alias).filter(state=_State.RUNNING)
    with transaction.atomic(using=connection.alias, durable=True):
        known = rows.filter(key_id__in={end.key_id for end in ends}, digest__in={end.digest for end in ends})
        forgotten: list[int] = []
        for number, owner, key_id, digest, rid in known.values_list("pk", "owner", "key_id", "digest", "rid"):
            match = first.get((owner, key_id, digest, rid))
            if match is None:
                continue
            if not match.keep:
                forgotten.append(number)
                continue
            rows.filter(pk=number).update(
                state=_State.DONE,
                status=match.status,
                content_type=match.content_type.replace("\0", "")[:100],
                body=match.body,
                expires_at=timezone.now() + KEPT,
            )
        if forgotten:
            rows.filter(pk__in=forgotten).delete()
