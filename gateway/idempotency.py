"""Repeating a request safely: the worker's side of the `Idempotency-Key` header.

Control knows which requests run and what was answered; a worker asks it before it runs a request that carries the
header, and tells it the answer before the last byte is delivered, so that a caller that has the whole answer and asks
again finds it. While control cannot be asked nothing of the kind runs: a second charge by guessing would be worse.
Requests without the header pass by all of this.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.errors import BadRequestError, ClientError, GatewayUnavailableError
from gateway.exchange import Exchange, Headers
from providers.vault import Vault, VaultError

if TYPE_CHECKING:
    from gateway.pipeline import Job

log = logging.getLogger("hoosh.idempotency")

ANSWER_S = 2.0  # what a caller may have to wait for control to say whether the request is new
RECHECK_S = 0.05  # another worker's end may be on its way when control says "running"
REPLY_MAX_BYTES = 1024 * 1024  # larger answers are not kept
RESEND_S = 10.0  # ends told within this time before the line broke are told again: control may not have read them
FLUSH_S = 0.25
WAITING_BYTES = 32 * 1024 * 1024  # of bodies that could not be told yet; what comes above is told without its body
WAITING_ENDS = 65_536  # ends that could not be told yet; more than that are left to the burial of this worker
KEY_PATTERN = re.compile(rb"[\x20-\x7e]{1,255}\Z")
_NEVER_KEPT = frozenset({408, 409, 425, 429})  # a provider's refusals that another try may not meet

SendBegin = Callable[[str, int, int, str, str, str], bool]  # owner, number, key_id, digest, request_digest, rid
# owner, key_id, digest, rid, keep, status, content_type, body
SendEnd = Callable[[str, int, str, str, bool, int, str, bytes | None], bool]


class StoredReply(NamedTuple):
    """What was answered the first time."""

    status: int
    content_type: bytes
    body: bytes


class _Answer(NamedTuple):
    state: str
    status: int = 0
    content_type: str = ""
    body: bytes | None = None


class _End(NamedTuple):
    owner: str
    key_id: int
    digest: str
    rid: str
    keep: bool
    status: int
    content_type: str
    body: bytes | None


class Ticket:
    """The right to run one request; ends once, by `keep` or by `forget`."""

    __slots__ = ("_book", "digest", "ended", "key_id", "rid", "unclear")

    def __init__(self, book: Idempotency, key_id: int, digest: str, rid: str) -> None:
        self._book, self.key_id, self.digest, self.rid = book, key_id, digest, rid
        self.ended = False
        self.unclear = False  # control may have registered it

    def keep(self, status: int, content_type: bytes, body: bytes | None) -> None:
        """Have the answer replayed from now on; `body` None = it is too large for that."""
        if not self.ended:
            self.ended = True
            self._book.told(self, keep=True, status=status, content_type=content_type.decode("latin-1"), body=body)

    def forget(self) -> None:
        """Let a repetition run, unless the answer was kept."""
        if not self.ended:
            self.ended = True
            self._book.told(self, keep=False)


class Idempotency:
    """What one worker asks and tells control about repeated requests. Belongs to the worker's loop."""

    def __init__(self, owner: str, vault_path: Path, *, answer_s: float = ANSWER_S) -> None:
        self.send_begin: SendBegin | None = None
        self.send_end: SendEnd | None = None
        self._owner, self._vault_path, self._answer_s = owner, vault_path, answer_s
        self._vault: Vault | None = None
        self._number = 0
        self._waiting: dict[int, asyncio.Future[_Answer]] = {}
        self._unsent: deque[_End] = deque()
        self._unsent_bytes = 0
        self._recent: deque[tuple[float, _End]] = deque()  # sent a short while ago
        self._recent_bytes = 0
        self._flushing: asyncio.Task[None] | None = None

    async def begin(self, key_id: int, header: bytes, path: str, body: bytes, rid: str) -> Ticket | StoredReply:
        """The right to run the request, or the answer it got before.

        Raises `BadRequestError` for a header that is no key, 409 while the request runs, 422 when the key came with
        another request before, `GatewayUnavailableError` when control does not say.
        """
        if not KEY_PATTERN.match(header):
            raise BadRequestError(
                "The Idempotency-Key must be 1 to 255 printable ASCII characters.",
                param="idempotency-key",
                code="invalid_idempotency_key",
            )
        request_digest = hashlib.sha256(path.encode("utf-8", "surrogateescape") + b"\0" + body).hexdigest()
        ticket = Ticket(self, key_id, hashlib.sha256(header).hexdigest(), rid)
        try:
            answer = await self._ask(ticket, request_digest)
            if answer.state == "running":
                await asyncio.sleep(RECHECK_S)
                answer = await self._ask(ticket, request_digest)
            if answer.state == "new":
                return ticket
            return self._replay(ticket, answer)
        except BaseException:
            if ticket.unclear:
                ticket.forget()  # control may have registered it and could not say so
            ticket.ended = True
            raise

    def _replay(self, ticket: Ticket, answer: _Answer) -> StoredReply:
        if answer.state == "done":
            body = self._opened(ticket, answer.body)
            if body is None:
                raise ClientError(
                    "This request was answered before, but its answer is too large to be kept. Send it with another "
                    "Idempotency-Key to have it run, and charged, again.",
                    status=409,
                    code="idempotency_reply_not_kept",
                    should_retry=False,
                )
            ticket.ended = True
            return StoredReply(answer.status, answer.content_type.encode("latin-1", "replace"), body)
        if answer.state == "running":
            raise ClientError(
                "A request with this Idempotency-Key is still running. Its answer can be had when it has ended.",
                status=409,
                code="idempotency_in_progress",
                retry_after_s=1,
            )
        if answer.state == "mismatch":
            raise ClientError(
                "This Idempotency-Key was used for another request. Use a new one for each request.",
                status=422,
                param="idempotency-key",
                code="idempotency_mismatch",
            )
        raise unavailable()

    async def _ask(self, ticket: Ticket, request_digest: str) -> _Answer:
        self._flush()
        if self._unsent or self.send_begin is None:
            return _Answer("unavailable")
        self._number += 1
        number = self._number
        future: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            if not self.send_begin(self._owner, number, ticket.key_id, ticket.digest, request_digest, ticket.rid):
                return _Answer("unavailable")
            ticket.unclear = True
            async with asyncio.timeout(self._answer_s):
                answer = await future
            ticket.unclear = answer.state in ("new", "unavailable")
            return answer
        except TimeoutError:
            return _Answer("unavailable")
        finally:
            del self._waiting[number]

    def on_answer(self, number: int, state: str, status: int, content_type: str, body: bytes | None) -> None:
        """Control's answer to the begin of that number."""
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_result(_Answer(state, status, content_type, body))

    def disconnected(self) -> None:
        """The line is down: what was asked stays unanswered, and what was told last is told again."""
        for future in self._waiting.values():
            if not future.done():
                future.set_result(_Answer("unavailable"))
        since = time.monotonic() - RESEND_S
        again = [end for at, end in self._recent if at >= since]
        self._recent.clear()
        self._recent_bytes = 0
        for end in reversed(again):
            self._unsent.appendleft(end)
            self._unsent_bytes += len(end.body or b"")
        self._flush_later()

    def told(
        self, ticket: Ticket, *, keep: bool, status: int = 0, content_type: str = "", body: bytes | None = None
    ) -> None:
        """Send control the end of a request, or keep it for when the line is up again. Never raises."""
        sealed = self._sealed(ticket, body)
        if sealed is not None and self._unsent_bytes + len(sealed) > WAITING_BYTES:
            sealed = None
        end = _End(self._owner, ticket.key_id, ticket.digest, ticket.rid, keep, status, content_type, sealed)
        if len(self._unsent) >= WAITING_ENDS:
            log.error("idempotency_end_dropped")
            return
        self._unsent.append(end)
        self._unsent_bytes += len(end.body or b"")
        self._flush()

    def _flush(self) -> None:
        while self._unsent:
            end = self._unsent[0]
            if self.send_end is None or not self.send_end(*end):
                self._flush_later()
                return
            self._unsent.popleft()
            self._unsent_bytes -= len(end.body or b"")
            self._remember(end)

    def _remember(self, end: _End) -> None:
        now = time.monotonic()
        self._recent.append((now, end))
        self._recent_bytes += len(end.body or b"")
        while self._recent and (
            self._recent[0][0] < now - RESEND_S
            or self._recent_bytes > WAITING_BYTES
            or len(self._recent) > WAITING_ENDS
        ):
            self._recent_bytes -= len(self._recent.popleft()[1].body or b"")

    def _flush_later(self) -> None:
        if self._unsent and (self._flushing is None or self._flushing.done()):
            self._flushing = asyncio.get_running_loop().create_task(self._keep_flushing())

    async def _keep_flushing(self) -> None:
        while self._unsent:
            await asyncio.sleep(FLUSH_S)
            self._flush()

    def close(self) -> None:
        """Stop telling; what control has not heard by then is forgotten with this worker."""
        if self._flushing is not None:
            self._flushing.cancel()

    def _bound_to(self, ticket: Ticket) -> str:
        return f"idempotency:{ticket.key_id}:{ticket.digest}"

    def _sealed(self, ticket: Ticket, body: bytes | None) -> bytes | None:
        if body is None:
            return None
        try:
            self._vault = self._vault or Vault.load(self._vault_path)
            return self._vault.seal_bytes(body, self._bound_to(ticket))
        except VaultError as exc:
            log.error("idempotency_not_sealed", extra={"reason": str(exc)})
            return None

    def _opened(self, ticket: Ticket, body: bytes | None) -> bytes | None:
        """The kept answer; None when there is none or no key of the vault opens it."""
        if body is None:
            return None
        for vault in (self._vault, None):
            try:
                # Loaded anew when the one at hand fails: another worker may have a newer key.
                opener = self._vault = vault or Vault.load(self._vault_path)
                return opener.open_bytes(body, self._bound_to(ticket))
            except VaultError as exc:
                log.warning("idempotency_not_opened", extra={"reason": str(exc)})
        return None


def unavailable() -> GatewayUnavailableError:
    """What a caller hears while nobody knows whether the request was answered before."""
    return GatewayUnavailableError(
        "The gateway cannot tell whether this Idempotency-Key was used before. Try again shortly.",
        code="idempotency_unavailable",
        retry_after_s=1,
    )


class RecordingExchange:
    """An exchange whose answer is recorded and kept, if it is one that a repetition should get as well."""

    __slots__ = ("_content_type", "_exchange", "_pieces", "_size", "_status", "_ticket", "refused_by_provider")

    # The exchange's own, by `__getattr__`.
    method: str
    path: str
    headers: Headers
    client: str
    gone: bool
    begun: bool
    task: asyncio.Task[None] | None

    def __init__(self, exchange: Exchange, ticket: Ticket) -> None:
        self._exchange, self._ticket = exchange, ticket
        self.refused_by_provider = False  # set before a refusal is told that is the provider's own
        self._status, self._content_type = 0, b""
        self._pieces: list[bytes] = []
        self._size = 0

    def close(self) -> None:
        """The request is over: an answer that was not delivered to its end is forgotten."""
        self._ticket.forget()
        self._pieces.clear()

    async def read_body(self, limit_bytes: int, timeout_s: float) -> bytes:
        """As the exchange's own."""
        return await self._exchange.read_body(limit_bytes, timeout_s)

    async def respond(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """A complete answer."""
        if self._keeps(status) and not self._exchange.gone:
            self._ticket.keep(status, _content_type(headers), body if len(body) <= REPLY_MAX_BYTES else None)
        else:
            self._ticket.forget()
        await self._exchange.respond(status, headers, body)

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The head of an answer of unknown length."""
        self._status, self._content_type = status, _content_type(headers)
        await self._exchange.begin(status, headers)

    async def write(self, data: bytes) -> None:
        """One piece of the body."""
        self._record(data)
        await self._exchange.write(data)

    async def finish(self, data: bytes = b"") -> None:
        """The last piece and the clean end."""
        self._record(data)
        if self._keeps(self._status) and not self._exchange.gone:
            body = b"".join(self._pieces) if self._size <= REPLY_MAX_BYTES else None
            self._ticket.keep(self._status, self._content_type, body)
        else:
            self._ticket.forget()
        await self._exchange.finish(data)

    def _record(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= REPLY_MAX_BYTES:
            self._pieces.append(data)
        else:
            self._pieces.clear()

    def _keeps(self, status: int) -> bool:
        if 400 <= status < 500:
            return self.refused_by_provider and status not in _NEVER_KEPT
        return 200 <= status < 300

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exchange, name)

    @property
    def keep_running(self) -> bool:
        """As the exchange's own, which must hear of it."""
        return self._exchange.keep_running

    @keep_running.setter
    def keep_running(self, value: bool) -> None:
        self._exchange.keep_running = value


def _content_type(headers: list[tuple[bytes, bytes]]) -> bytes:
    return next((value for name, value in headers if name == b"content-type"), b"application/json")


async def replay(job: Job, header: bytes, body: bytes) -> int:
    """Tell the stored answer and return its status; 0 = the request shall run, and its answer is recorded."""
    assert job.key is not None
    assert job.head is not None
    # The pool is part of the request, wherever it is named; so is the query, which may ask for another form of answer.
    request = body + b"\0" + job.head.pool if job.head.pool else body
    if job.exchange.query:
        request += b"\0?" + job.exchange.query
    told = await job.runtime.idempotency.begin(job.key.record.id, header, job.exchange.path, request, job.rid_hex)
    if isinstance(told, Ticket):
        job.exchange = job.recorder = RecordingExchange(job.exchange, told)
        return 0
    headers = [(b"content-type", told.content_type), (b"x-hoosh-idempotent-replay", b"true"), *job.headers()]
    await job.exchange.respond(told.status, headers, told.body)
    return told.status
