"""Control's memory of requests that carry an `Idempotency-Key`: what runs, and what was answered in the last day.

Workers ask by `begin` and tell by `end`; both are carried out in the writer's thread, in the order they came. Bodies
come encrypted and go out as they came. A request is forgotten (and may run again) when its worker says so, when its
worker dies before it ended, and after `KEPT`.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple, Protocol, TypeVar

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from budgets.models.ledger import IdempotentReply
from budgets.settle import WriterStoppedError

log = logging.getLogger("hoosh.ledger")

KEPT = dt.timedelta(hours=24)
RETRY_S = 0.5  # between two attempts to store what workers told while the database was away
WAITING_ENDS_BYTES = 64 * 1024 * 1024  # of bodies; what comes above is stored without its body
EXPIRED_PER_RUN = 200
_BUSY_S, _IDLE_S = 1.0, 30.0  # between two runs of the expiry: with more to do, and without

_T = TypeVar("_T")
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

    def __init__(self, writer: Submits) -> None:
        self._writer = writer
        self._lock = threading.Lock()
        self._ends: deque[_End] = deque()  # told, not in the database yet
        self._ends_bytes = 0
        self._retrying = False

    def begin(
        self, owner: str, key_id: int, digest: str, request_digest: str, rid: str, reply: IdempotencyReply
    ) -> None:
        """Register a request and call `reply(state, status, content_type, body)`, perhaps from the writer's thread.

        "new": it is registered and shall run; "unavailable": nobody knows, so it must not run.
        """
        asked = _Begin(owner, key_id, digest, request_digest, rid)

        def work(connection: BaseDatabaseWrapper) -> Answer:
            self._store_ends(connection)  # first: the answer may be among them
            return _begin(connection, asked)

        def answered(future: Future[Answer]) -> None:
            failed = future.cancelled() or future.exception() is not None
            reply(*(Answer("unavailable") if failed else future.result()))

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
            self._ends.append(_End(owner, key_id, digest, rid, keep, status, content_type, body))
        self._submit_ends()

    def _submit_ends(self) -> None:
        self._writer.submit(self._store_ends).add_done_callback(self._stored)

    def _stored(self, future: Future[None]) -> None:
        if future.cancelled() or isinstance(future.exception(), WriterStoppedError | None):
            return
        with self._lock:
            if self._retrying:
                return
            self._retrying = True
        timer = threading.Timer(RETRY_S, self._retry)
        timer.daemon = True
        timer.start()

    def _retry(self) -> None:
        with self._lock:
            self._retrying = False
        self._submit_ends()

    def _store_ends(self, connection: BaseDatabaseWrapper) -> None:
        while self._ends:
            ended = self._ends[0]
            _end(connection, ended)
            with self._lock:
                self._ends.popleft()
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


def _end(connection: BaseDatabaseWrapper, ended: _End) -> None:
    with transaction.atomic(using=connection.alias, durable=True):
        rows = IdempotentReply.objects.using(connection.alias).filter(
            key_id=ended.key_id, digest=ended.digest, owner=ended.owner, rid=ended.rid, state=_State.RUNNING
        )
        if not ended.keep:
            rows.delete()
            return
        rows.update(
            state=_State.DONE,
            status=ended.status,
            content_type=ended.content_type.replace("\0", "")[:100],
            body=ended.body,
            expires_at=timezone.now() + KEPT,
        )
