"""The request path on a real server over real sockets: uvicorn in a thread, a runtime fed by the test itself.

`GatewayServer` plays control: it pushes a configuration, keys and pools, and `Bank` grants tokens the way control does.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.server
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
import uvloop

from budgets.chain import PurseKey
from budgets.journal import COMPLETE, DELIVERED, HEADER, HOLD
from budgets.journal import KEY as RECORD_KEY
from budgets.journal_reader import scan
from budgets.records import HoldRecord, KeyRecord, PoolRecord, PriceRecord, UsageRecord
from gateway.runtime import Runtime, RuntimeOptions
from hoosh_site.strict_http import HttpLimits, strict_protocol
from providers.config import (
    CardDoc,
    ConfigDocument,
    PatternDoc,
    PolicyDoc,
    PrivacyDoc,
    ProviderDoc,
    RouteDoc,
    SettingsDoc,
    pack,
)

KEY = "hk-test-0123456789abcdefghijklmnopqrstuvwxyzABCDEF"
OTHER_KEY = "hk-other-123456789abcdefghijklmnopqrstuvwxyzABCDEF"


class Bank:
    """Grants from purses of a fixed capacity to any number of workers, as control would."""

    def __init__(self, capacities: dict[tuple[int, int], int], *, block: int = 1_000_000) -> None:
        self.capacities, self.block = capacities, block  # by pool and unit, in every window
        self.leased: dict[tuple[str, PurseKey], int] = {}
        self.returned: dict[tuple[str, PurseKey], int] = {}
        self.silent = False
        self._workers: dict[str, tuple[asyncio.AbstractEventLoop, Runtime]] = {}
        self._lock = threading.Lock()  # workers live in threads of their own

    def attach(self, runtime: Runtime) -> None:
        """Serve a worker; call on its loop."""
        self._workers[runtime.options.owner] = (asyncio.get_running_loop(), runtime)
        runtime.desk.send_ask, runtime.desk.send_return = self.ask, self.give_back
        runtime.desk.connected()

    def free(self, key: PurseKey) -> int:
        """What is not leased."""
        leased = sum(total for (_, at), total in self.leased.items() if at == key)
        returned = sum(total for (_, at), total in self.returned.items() if at == key)
        return self.capacities.get(key[:2], 0) - leased + returned

    def ask(self, owner: str, pool: int, unit: int, window: int, seen: int, want: int, need: int) -> None:
        """Answer an ask on the loop's next turn; what others have idle is called back when there is too little."""
        if self.silent:
            return
        key = (pool, unit, window)
        with self._lock:
            free = self.free(key)
            block = max(want, need, self.block)
            # Near the edge as little as is needed, so that one worker does not get all there is.
            grant = 0 if free < need else block if block <= free // 4 else min(free, max(need, free // 4))
            grant = grant if want or need else 0  # only the total was asked for
            total = self.leased[owner, key] = self.leased.get((owner, key), 0) + max(0, grant)
            left = max(0, free - grant)
        others = [worker for name, worker in self._workers.items() if name != owner]
        out = sum(self._out(runtime, key) for _, runtime in others)
        loop, runtime = self._workers[owner]
        spent_out = grant <= 0 and left + out < max(1, need)
        loop.call_soon(runtime.desk.on_granted, *key, total, left > 0, spent_out, left, 0)
        if need and grant <= 0:
            for other_loop, other in others:
                other_loop.call_soon_threadsafe(other.desk.on_recall, *key)

    def _out(self, runtime: Runtime, key: PurseKey) -> int:
        wallets = [entry for entry in runtime.desk.status() if _key(entry) == key]
        return sum(entry["free"] + entry["held"] for entry in wallets)

    def give_back(self, owner: str, pool: int, unit: int, window: int, total: int) -> None:
        """Take what was returned in."""
        with self._lock:
            self.returned[owner, (pool, unit, window)] = total


def _key(entry: dict[str, Any]) -> PurseKey:
    return (entry["pool_id"], entry["unit"], entry["window_start"])


class GatewayServer:
    """A worker in a thread. Use as a context manager; `url` is its address.

    `binding` is "asgi" (uvicorn as it is, which tells of a client that left only when asked) or "worker" (our protocol
    on uvloop, as in production); the fixture of that name runs a test with both.
    """

    binding = "asgi"

    def __init__(
        self,
        directory: Path,
        *,
        providers: Sequence[ProviderDoc],
        routes: Sequence[RouteDoc],
        policies: Sequence[PolicyDoc] = (),
        patterns: Sequence[PatternDoc] = (),
        privacy: Sequence[PrivacyDoc] = (),
        settings: SettingsDoc | None = None,
        keys: Sequence[KeyRecord] | None = None,
        pools: Sequence[PoolRecord] | None = None,
        cards: Sequence[CardDoc] = (),
        prices: Sequence[PriceRecord] = (),
        capacity: int = 100_000_000,
        capacity_pico: int = 10**15,
        bank: Bank | None = None,
        discovered: dict[int, list[str]] | None = None,
        forward: Callable[..., Any] | None = None,
        embedder: Path | None = None,
    ) -> None:
        self.directory = directory
        self.document = ConfigDocument(
            settings=settings or SettingsDoc(),
            providers=tuple(providers),
            routes=tuple(routes),
            policies=tuple(policies),
            patterns=tuple(patterns),
            privacy=tuple(privacy),
        )
        self.pools = list(pools or [PoolRecord(id=1, name="default"), PoolRecord(id=2, name="other")])
        self.keys = list(keys or [key_record(1, KEY), key_record(2, OTHER_KEY, pool_id=2)])
        self.cards, self.prices, self.discovered = list(cards), list(prices), discovered or {}
        amounts = ((0, capacity), (1, capacity_pico))
        self.bank = bank or Bank({(pool.id, unit): amount for pool in self.pools for unit, amount in amounts})
        self.version = 1
        self._forward, self._embedder = forward or not_found, embedder
        self._ready = threading.Event()
        self._failure: BaseException | None = None

    def __enter__(self) -> GatewayServer:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        if not self._ready.wait(15) or self._failure:
            raise RuntimeError("the gateway did not start") from self._failure
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.should_exit = True
        self._thread.join(15)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            factory = uvloop.new_event_loop if self.binding == "worker" else None
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(self._main())
        except BaseException as exc:
            self._failure = exc
            self._ready.set()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        options = RuntimeOptions(
            owner=f"w0-test-{id(self):x}",
            index=0,
            journal_dir=self.directory / "journal",
            vault_path=self.directory / "vault.key",
            version="test",
            access_log=str(self.directory / "access.jsonl"),
            embedder_path=self._embedder,
        )
        self.runtime = Runtime(options)
        await self.runtime.start()
        self.bank.attach(self.runtime)
        self.push()
        while self.runtime.snapshot is None:
            await asyncio.sleep(0.005)
        listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            self.runtime.asgi(self._forward),
            http=strict_protocol(HttpLimits()) if self.binding == "worker" else "auto",
            ws="none",
            lifespan="off",
            log_level="critical",
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)
        self.loop.call_later(0.05, self._ready.set)
        await self._server.serve(sockets=[listener])
        await self.runtime.stop()

    def push(self) -> None:
        """Send everything control would send. Call on the loop, or use `reconfigure` from the test."""
        self.runtime.on_access(1, True, self.keys, self.pools)
        self.runtime.on_cards(self.cards, self.prices, self.discovered)
        self.runtime.on_config(self.version, pack(self.document))

    def reconfigure(self, document: ConfigDocument) -> None:
        """Publish another document and wait until requests run by it."""
        self.version += 1
        self.document = document
        self.call(self.push)
        wait_for(lambda: self.runtime.config_version == self.version)

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Run something on the gateway's loop and wait for it."""
        done = threading.Event()

        def run() -> None:
            function(*arguments)
            done.set()

        self.loop.call_soon_threadsafe(run)
        assert done.wait(5)


@contextlib.contextmanager
def canned(status: int, body: bytes, *, wait_s: float = 0.0, kind: str = "application/json") -> Iterator[str]:
    """The URL of an upstream that answers every POST with this head at once and with this body `wait_s` later."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.flush()
            time.sleep(wait_s)
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()


def held(server: GatewayServer) -> int:
    """What is held of all purses of a worker."""
    return sum(entry["held"] for entry in server.runtime.desk.status())


def wait_for(test: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """Poll until the test passes; its value."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        value = test()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


def key_record(id_: int, text: str, *, pool_id: int = 1, **more: Any) -> KeyRecord:
    """A key record for a key text."""
    return KeyRecord(
        id=id_,
        digest=hashlib.sha256(text.encode()).digest(),
        prefix=text[:11],
        name=f"key {id_}",
        agent_id=id_ * 10,
        team_id=id_ * 100,
        pool_id=pool_id,
        **more,
    )


def provider(id_: int, url: str, **more: Any) -> ProviderDoc:
    """A loopback provider of kind "custom"."""
    more.setdefault("kind", "custom")
    return ProviderDoc(id=id_, name=f"up{id_}", base_url=url, address_class="loopback", **more)


def route(id_: int, pattern: str = "*", provider_id: int = 1, **more: Any) -> RouteDoc:
    """A route named r<id>."""
    return RouteDoc(id=id_, name=f"r{id_}", pattern=pattern, provider_id=provider_id, **more)


async def not_found(scope: Any, receive: Any, send: Any) -> None:
    """Stands in for control."""
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"control: " + scope["path"].encode()})


def usage_rows(directory: Path) -> list[UsageRecord]:
    """The complete usage records in a test server's journal, oldest first."""
    return [msgspec.msgpack.decode(payload, type=UsageRecord) for payload in _payloads(directory, COMPLETE)]


def hold_records(directory: Path) -> list[HoldRecord]:
    """The hold records in a test server's journal, oldest first."""
    return [msgspec.msgpack.decode(payload, type=HoldRecord) for payload in _payloads(directory, HOLD)]


def delivered_marks(directory: Path) -> list[tuple[int, int]]:
    """Events and bytes of the delivered marks in a test server's journal, oldest first."""
    return [struct.unpack("<QQ", payload) for payload in _payloads(directory, DELIVERED)]


def _payloads(directory: Path, wanted: int) -> Iterator[bytes]:
    for path in sorted((directory / "journal").glob("*.j"), key=lambda p: p.name):
        for kind, payload, _start, _end in scan(path.read_bytes(), HEADER.size):
            if kind == wanted:
                yield payload[RECORD_KEY.size :]
