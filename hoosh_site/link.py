"""The line between control and its workers: length-prefixed MessagePack messages over one Unix socket.

Control listens (`LinkServer`), each worker keeps one connection (`LinkClient`) and dials again until it is taken. What
a new connection needs to know is sent at once by control's hello; later pushes go to everybody. A message of a type
the reader does not know is skipped, so old and new code may run side by side during a roll. Pure transport: it knows
nothing of databases, and neither side ever waits for the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import msgspec

from budgets.records import KeyRecord, PoolRecord, PriceRecord, WarmRecord
from providers.config import CardDoc

log = logging.getLogger("hoosh.link")

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
MAX_UNSENT_BYTES = 512 * 1024 * 1024  # a worker that reads nothing is cut off; it dials again and gets a fresh hello
_LENGTH = struct.Struct(">I")


class LinkError(RuntimeError):
    """The peer sent something that is not a frame of this protocol; the connection is closed."""


class Register(msgspec.Struct, tag="register"):
    """Worker: who is calling. The first message of every connection."""

    owner: str
    index: int
    pid: int
    version: str


class Ask(msgspec.Struct, tag="ask"):
    """Worker: more of one purse, please. `seen_total` is the absolute total granted so far as the worker knows it;
    `need` is what a waiting request lacks (0: asked ahead). Amounts are in the unit (`budgets.records.Unit`)."""

    owner: str
    pool_id: int
    window_start: int
    seen_total: int
    want: int
    need: int = 0
    unit: int = 0


class Return(msgspec.Struct, tag="return"):
    """Worker: a part of its lease given back, as an absolute total, so that a repetition does no harm."""

    owner: str
    pool_id: int
    window_start: int
    returned_total: int
    unit: int = 0


class IdemBegin(msgspec.Struct, tag="idem_begin"):
    """Worker: a request that carries an `Idempotency-Key` has come. `digest` is of the key, `request_digest` of the
    path and body (SHA-256, hexadecimal); `number` names the question in this worker."""

    owner: str
    number: int
    key_id: int
    digest: str
    request_digest: str
    rid: str


class IdemEnd(msgspec.Struct, tag="idem_end"):
    """Worker: that request has ended. Without `keep` it is forgotten, so that it may be sent again; `body` None = the
    answer is too large to be replayed."""

    owner: str
    key_id: int
    digest: str
    rid: str
    keep: bool
    status: int
    content_type: str
    body: bytes | None


class Status(msgspec.Struct, tag="status"):
    """Worker: its figures, once a second."""

    owner: str
    index: int
    data: dict[str, Any]


class Happened(msgspec.Struct, tag="happened"):
    """Worker: what happened there that is no money, about once a second (`gateway.happenings`). May get lost."""

    owner: str
    index: int
    items: list[tuple[Any, ...]]


class Explained(msgspec.Struct, tag="explained"):
    """Worker: the answer to `Explain` of that number, JSON."""

    owner: str
    number: int
    body: bytes


class ConfigPush(msgspec.Struct, tag="config"):
    """Control: the published configuration (`providers.config.pack`)."""

    version: int
    blob: bytes


class SecretsPush(msgspec.Struct, tag="secrets"):
    """Control: ciphertexts by credential id. Always the whole set."""

    items: dict[int, str]


class AccessPush(msgspec.Struct, tag="access"):
    """Control: keys and pools that changed up to `seq`, or all of them when `full`."""

    seq: int
    full: bool
    keys: list[KeyRecord]
    pools: list[PoolRecord]


class CardsPush(msgspec.Struct, tag="cards"):
    """Control: model cards, prices and discovered models by provider id. Always the whole set."""

    cards: list[CardDoc]
    prices: list[PriceRecord]
    models: dict[int, list[str]]


class HealthPush(msgspec.Struct, tag="health"):
    """Control: the providers whose active probe fails. A hint, never an order."""

    down: list[int]


class Granted(msgspec.Struct, tag="granted"):
    """Control: the answer to `Ask`. `total` is absolute, so a lost or repeated answer does no harm."""

    pool_id: int
    window_start: int
    total: int
    more: bool
    spent_out: bool
    available: int
    unit: int = 0
    others: int = 0  # left in other workers' leases


class Recall(msgspec.Struct, tag="recall"):
    """Control: another worker needs some of this purse; give back what is free."""

    pool_id: int
    window_start: int
    unit: int = 0


class IdemAnswer(msgspec.Struct, tag="idem_answer"):
    """Control: the answer to `IdemBegin`. `state`: "new" (go on, and say how it ended), "running", "mismatch" (another
    request carried the key), "done" (replay what follows) or "unavailable" (nobody knows)."""

    number: int
    state: str
    status: int = 0
    content_type: str = ""
    body: bytes | None = None


class Explain(msgspec.Struct, tag="explain"):
    """Control: where would this request go? `body` is JSON, as for `POST /v1/route/explain`."""

    number: int
    body: bytes


class WarmPush(msgspec.Struct, tag="warm"):
    """Control: the questions whose answers workers keep before anybody asks them. Always the whole list."""

    questions: list[WarmRecord]


class CachePurge(msgspec.Struct, tag="cache_purge"):
    """Control: forget every kept answer. A worker's status tells the highest `number` it has followed."""

    number: int


class AuditPush(msgspec.Struct, tag="audit"):
    """Control: the audit log's last checkpoint, "size:root" (the root in hexadecimal)."""

    head: str


FromWorker = Register | Ask | Return | IdemBegin | IdemEnd | Status | Happened | Explained
FromControl = (
    ConfigPush | SecretsPush | AccessPush | CardsPush | HealthPush
    | Granted | Recall | IdemAnswer | Explain | CachePurge | WarmPush | AuditPush
)  # fmt: skip

_encode = msgspec.msgpack.Encoder().encode
_from_worker = msgspec.msgpack.Decoder(FromWorker)
_from_control = msgspec.msgpack.Decoder(FromControl)


def pack(message: FromWorker | FromControl) -> bytes:
    """One frame: four bytes of length, most significant first, then the message."""
    body = _encode(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise LinkError(f"a message of {len(body)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Cuts received bytes into frames, however they arrive."""

    def __init__(self, limit_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._limit = limit_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies completed by `data`. Raises `LinkError` when a length is over the limit."""
        buffer = self._buffer
        buffer += data
        bodies: list[bytes] = []
        at = 0
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > self._limit:
                raise LinkError(f"a frame of {length} bytes is over the limit of {self._limit}")
            end = at + _LENGTH.size + length
            if len(buffer) < end:
                break
            bodies.append(bytes(buffer[at + _LENGTH.size : end]))
            at = end
        del buffer[:at]
        return bodies


class _Peer(asyncio.Protocol):
    """One connection, either side: frames in, frames out, nothing that waits."""

    def __init__(
        self,
        decoder: msgspec.msgpack.Decoder[Any],
        on_message: Callable[[_Peer, Any], None],
        on_open: Callable[[_Peer], None],
        on_lost: Callable[[_Peer], None],
    ) -> None:
        self.transport: asyncio.Transport | None = None
        self.register: Register | None = None
        self.status: dict[str, Any] = {}
        self.status_at = 0.0  # the loop's clock
        self._decoder, self._on_message, self._on_open, self._on_lost = decoder, on_message, on_open, on_lost
        self._frames = Frames()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of asyncio's
        self._on_open(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._on_lost(self)

    def data_received(self, data: bytes) -> None:
        try:
            bodies = self._frames.feed(data)
        except LinkError as exc:
            log.error("link_broken", extra={"reason": str(exc)})
            self.close()
            return
        for body in bodies:
            try:
                message = self._decoder.decode(body)
            except msgspec.MsgspecError as exc:
                # Another version of the code may send messages this one does not know.
                log.warning("link_message_skipped", extra={"reason": str(exc), "bytes": len(body)})
                continue
            try:
                self._on_message(self, message)
            except Exception:
                log.exception("link_message_failed", extra={"type": type(message).__name__})

    def write(self, frame: bytes) -> bool:
        """Send one packed frame. False when the connection is gone or its reader has stopped."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return False
        if transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            log.error("link_reader_stuck", extra={"owner": self.register.owner if self.register else ""})
            transport.abort()
            return False
        transport.write(frame)
        return True

    def send(self, message: FromWorker | FromControl) -> bool:
        """Pack and send one message; see `write`."""
        return self.write(pack(message))

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


def _unavailable(begin: IdemBegin, reply: Callable[[IdemAnswer], None]) -> None:
    reply(IdemAnswer(begin.number, "unavailable"))


class LinkServer:
    """Control's side. All methods but `broadcast_threadsafe` belong to the loop that called `start`."""

    def __init__(
        self,
        path: Path,
        *,
        hello: Callable[[], Iterable[FromControl]],
        on_ask: Callable[[Ask, Callable[[Granted], None]], None],
        on_return: Callable[[Return], None] = lambda message: None,
        on_idem_begin: Callable[[IdemBegin, Callable[[IdemAnswer], None]], None] = _unavailable,
        on_idem_end: Callable[[IdemEnd], None] = lambda message: None,
        on_happened: Callable[[Happened], None] = lambda message: None,
    ) -> None:
        """`hello` gives what a new worker is told first. `on_ask(ask, reply)` and `on_idem_begin(begin, reply)` may
        call `reply` from any thread, and an ask's more than once."""
        self._path, self._hello, self._on_ask, self._on_return = path, hello, on_ask, on_return
        self._on_idem_begin, self._on_idem_end, self._on_happened = on_idem_begin, on_idem_end, on_happened
        self._peers: set[_Peer] = set()
        self._questions: dict[int, Future[bytes]] = {}
        self._asked = 0
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Listen on the socket (mode 0600), replacing a stale one."""
        self._loop = asyncio.get_running_loop()
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._server = await self._loop.create_unix_server(self._accept, path=os.fspath(self._path))
        self._path.chmod(0o600)

    async def stop(self) -> None:
        """Stop listening and close every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for peer in list(self._peers):
            peer.close()
        await asyncio.sleep(0)

    def broadcast(self, messages: Sequence[FromControl]) -> None:
        """Send messages to every registered worker, packed once."""
        frame = b"".join(pack(message) for message in messages)
        for peer in list(self._peers):
            if peer.register is not None:
                peer.write(frame)

    def broadcast_threadsafe(self, messages: Sequence[FromControl]) -> None:
        """`broadcast` from another thread; a no-op once the loop is gone."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self.broadcast, messages)

    def explain(self, body: bytes, timeout_s: float) -> bytes:
        """Ask a worker where a request would go; from any thread but the loop's. Raises `LinkError` when no worker is
        there or none answers in time."""
        answer: Future[bytes] = Future()
        if self._loop is None:
            raise LinkError("no worker is connected")
        self._loop.call_soon_threadsafe(self._question, body, answer)
        try:
            return answer.result(timeout_s)
        except TimeoutError:
            answer.cancel()
            raise LinkError("no worker answered in time") from None

    def _question(self, body: bytes, answer: Future[bytes]) -> None:
        for number in [number for number, asked in self._questions.items() if asked.done()]:
            del self._questions[number]  # nobody waits for these any more
        self._asked += 1
        ready = [peer for peer in self._peers if peer.register is not None and peer.status.get("ready", True)]
        self._questions[self._asked] = answer
        if not any(peer.send(Explain(self._asked, body)) for peer in ready):
            answer.set_exception(LinkError("no worker is connected"))

    def workers(self) -> list[dict[str, Any]]:
        """One entry per connected worker: index, owner, pid, version, status, status_age_s (None before the first)."""
        now = self._loop.time() if self._loop is not None else 0.0
        entries = [
            {
                "index": peer.register.index,
                "owner": peer.register.owner,
                "pid": peer.register.pid,
                "version": peer.register.version,
                "status": peer.status,
                "status_age_s": now - peer.status_at if peer.status_at else None,
            }
            for peer in list(self._peers)
            if peer.register is not None
        ]
        return sorted(entries, key=lambda entry: (entry["index"], entry["owner"]))

    def _accept(self) -> _Peer:
        return _Peer(_from_worker, self._received, self._peers.add, self._peers.discard)

    def _received(self, peer: _Peer, message: FromWorker) -> None:
        if isinstance(message, Register):
            peer.register = message
            peer.write(b"".join(pack(item) for item in self._hello()))
        elif isinstance(message, Ask):
            self._on_ask(message, lambda granted: self._reply(peer, granted))
        elif isinstance(message, Return):
            self._on_return(message)
        elif isinstance(message, IdemBegin):
            self._on_idem_begin(message, lambda answer: self._reply(peer, answer))
        elif isinstance(message, IdemEnd):
            self._on_idem_end(message)
        elif isinstance(message, Happened):
            self._on_happened(message)
        elif isinstance(message, Explained):
            asked = self._questions.pop(message.number, None)
            if asked is not None and not asked.done():
                asked.set_result(message.body)
        else:
            peer.status = message.data
            peer.status_at = self._loop.time() if self._loop is not None else 0.0

    def _reply(self, peer: _Peer, answer: Granted | IdemAnswer) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closing: the worker asks control's successor again
                self._loop.call_soon_threadsafe(peer.send, answer)


class LinkClient:
    """A worker's side: connects, registers, keeps reconnecting. Callbacks run on the loop and must be quick."""

    RETRY_S = (0.05, 0.5)  # first and longest pause between two attempts

    def __init__(
        self,
        path: Path,
        *,
        register: Register,
        callbacks: Mapping[type[Any], Callable[[Any], None]],
        on_up: Callable[[], None] = lambda: None,
        on_down: Callable[[], None] = lambda: None,
    ) -> None:
        """`callbacks` maps message classes to handlers; `on_up` follows each registration, `on_down` each loss."""
        self._path, self._register, self._callbacks = path, register, dict(callbacks)
        self._on_up, self._on_down = on_up, on_down
        self._peer: _Peer | None = None
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection right now."""
        return self._peer is not None

    def start(self) -> None:
        """Begin connecting in the background of the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Disconnect for good."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._peer is not None:
            self._peer.close()
            await asyncio.sleep(0)

    def send(self, message: FromWorker) -> bool:
        """Send one message now. False while there is no connection: the message is not kept."""
        return self._peer is not None and self._peer.send(message)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s, longest_s = self.RETRY_S
        while True:
            self._lost.clear()
            try:
                await loop.create_unix_connection(self._dialled, os.fspath(self._path))
            except OSError:
                await asyncio.sleep(pause_s)
                pause_s = min(longest_s, pause_s * 1.5)
                continue
            pause_s = self.RETRY_S[0]
            await self._lost.wait()
            await asyncio.sleep(pause_s)

    def _dialled(self) -> _Peer:
        return _Peer(_from_control, self._received, self._opened, self._closed)

    def _opened(self, peer: _Peer) -> None:
        self._peer = peer
        peer.send(self._register)
        self._on_up()

    def _closed(self, peer: _Peer) -> None:
        self._peer = None
        self._lost.set()
        self._on_down()

    def _received(self, peer: _Peer, message: FromControl) -> None:
        handler = self._callbacks.get(type(message))
        if handler is not None:
            handler(message)
