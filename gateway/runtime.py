"""A worker's state: the snapshot in use, wallets, journal, connections, counters, and how control's pushes change them.

One `Runtime` lives in each worker process, on its event loop, without threads. Control pushes documents, access rows,
secrets, cards and grants over the link (`on_…`); a push that changes the configuration builds a new `Snapshot` in
slices and swaps one reference. A build that fails keeps the old snapshot and says so in `status()`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budgets.desk import Desk
from budgets.journal import Journal, JournalError
from budgets.prices import PriceBook
from budgets.records import KeyRecord, PoolRecord, PriceRecord, UsageRecord, WarmRecord
from gateway import explain
from gateway.app import PATTERN, Asgi, GatewayApp
from gateway.cache.answers import AnswerCache
from gateway.embedding import Embedder
from gateway.endpoints import INFERENCE
from gateway.estimate import Ratios
from gateway.happenings import Happenings
from gateway.idempotency import Idempotency
from gateway.limits.limiter import Limiter
from gateway.limits.slots import Slots
from gateway.logs import AccessLog
from gateway.loops import Loops
from gateway.metrics import Metrics
from gateway.pipeline import Job
from gateway.queueing.waiting import Queue
from gateway.relay import Pinger
from gateway.screening import Screens, scanner_of, screens_of
from gateway.snapshot import SLICE, Builder, Candidate, Connections, Key, Snapshot, list_models, make_key
from gateway.warming import Warmer
from providers.cards import CardBook
from providers.config import CardDoc, ConfigDocument, PatternDoc, unpacking
from providers.pace import RetryBudget
from providers.privacy.scanner import Scanner
from providers.routing import RouteTable, Shape
from providers.vault import Vault, VaultError

log = logging.getLogger("hoosh.runtime")

TICK_S = 0.25
FLUSH_TICKS = 4  # metrics once a second
UNWRITTEN_MAX = 100_000
TURNS_MAX = 4096


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """What a worker is told at its start. `trust` turns an ASGI scope into the client's address."""

    owner: str
    index: int
    journal_dir: Path
    vault_path: Path
    version: str
    access_log: str = "off"
    journal_sync: str = "process"
    trust: Callable[[MutableMapping[str, Any]], str] | None = None
    limits_path: Path | None = None  # the table of limits of this host; None = beside the journals
    embedder_path: Path | None = None  # the model that embeds questions here; None = there is none


class Runtime:
    """Everything the request path needs, in memory."""

    def __init__(self, options: RuntimeOptions) -> None:
        self.options = options
        self.version = options.version
        self.trust = options.trust
        self.snapshot: Snapshot | None = None
        self.draining = False
        self.durable = options.journal_sync == "host"  # wait for the disk before an answer's last byte
        self.metrics = Metrics()
        self.ratios = Ratios()
        self.desk = Desk(options.owner)
        self.idempotency = Idempotency(options.owner, options.vault_path)
        self.connections = Connections()
        self.happenings = Happenings()
        self.loops = Loops()
        self.cache = AnswerCache()
        self.embedder = Embedder(options.embedder_path)
        self.warmer = Warmer(self)
        self.retries = RetryBudget()
        self.jobs: set[Job] = set()
        self.pingers: set[Pinger] = set()
        self.access_log: AccessLog | None = None
        self.journal: Journal
        self.limiter: Limiter
        self.queue: Queue
        self.app: GatewayApp | None = None
        self.build_error = ""
        self.audit_head = b""  # size and root of the audit log's last checkpoint, for headers
        self._builder = Builder(self.connections)
        self._seed, self._count = os.urandom(4), 0
        self._cache_purge = 0
        self._turns: dict[str, int] = {}
        self._unwritten: list[tuple[UsageRecord, Shape]] = []
        self._document: ConfigDocument | None = None
        self._document_version = 0
        self._secrets: Mapping[int, str] = {}
        self._keys: dict[bytes, Key] = {}
        self._keys_by_id: dict[int, bytes] = {}
        self._pools: dict[int, PoolRecord] = {}
        self._access_seen = False
        self._cards = CardBook(())
        self._prices = PriceBook.build(())
        self._discovered: Mapping[int, Sequence[str]] = {}
        self._down: frozenset[int] = frozenset()
        self._built: tuple[ConfigDocument, int, Mapping[int, Candidate], RouteTable, Screens | None] | None = None
        self._scanner: tuple[tuple[PatternDoc, ...], Scanner] | None = None  # for which patterns it was made
        self._listed: tuple[ConfigDocument | None, Mapping[int, Sequence[str]], tuple[tuple[str, str], ...]]
        self._listed = None, {}, ()  # for which document and discovered models the list was made
        self._stale = True  # what was built last is not what was pushed last
        self._pushed = asyncio.Event()
        self._pending: list[tuple[str, tuple[Any, ...]]] = []
        self._tasks: list[asyncio.Task[None]] = []

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the table of limits, the journal and the access log, load the embedder and start the tasks of the house.

        Raises OSError, SlotsError or JournalError.
        """
        path = self.options.limits_path or self.options.journal_dir.parent / "limits"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.limiter = Limiter(Slots(path))
        self.queue = Queue(self.limiter)
        self.journal = Journal.open(self.options.journal_dir, self.options.owner, sync=self.options.journal_sync)
        if self.options.access_log != "off":
            self.access_log = AccessLog(self.options.access_log)
        await self.embedder.load()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(run()) for run in (self._housekeeping, self._applying, self.warmer.run)]

    async def stop(self) -> None:
        """End housekeeping, flush what is buffered, close the journal; control then buries it and takes leases back."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.idempotency.close()
        self._retry_unwritten()
        self.metrics.ready = False
        self.metrics.flush()
        if self.access_log is not None:
            self.access_log.close()
        self.journal.close()
        self.limiter.slots.close()
        self.connections.close()

    def drain(self) -> None:
        """Answer `connection: close` from now on; running requests go on."""
        self.draining = True

    def abort_streams(self) -> None:
        """End every running request now: streams with an error in band, others with 503, all of them booked."""
        for job in tuple(self.jobs):
            if job.task is not None and not job.aborted:
                job.aborted = True
                job.task.cancel()

    def asgi(self, forward: Asgi) -> GatewayApp:
        """The callable to mount at `inference_pattern`; `forward` takes what belongs to control."""
        self.app = GatewayApp(self, forward)
        return self.app

    inference_pattern = PATTERN
    inference_paths: Collection[str] = tuple(INFERENCE)

    # --- what the request path asks --------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """A snapshot is loaded and the worker is not draining."""
        return self.snapshot is not None and not self.draining

    @property
    def config_version(self) -> int:
        """Number of the configuration in use, 0 before the first."""
        return self.snapshot.version if self.snapshot is not None else 0

    @property
    def journal_writable(self) -> bool:
        """False while the journal cannot be written; then nothing new is admitted."""
        return self.journal.writable and not self._unwritten

    @property
    def providers_configured(self) -> int:
        """Enabled providers of the configuration in use."""
        return sum(provider.enabled for provider in self._document.providers) if self._document else 0

    @property
    def providers_down(self) -> int:
        """Enabled providers that probes or calls hold for down."""
        if self._document is None:
            return 0
        now = time.monotonic()
        open_ = {number for number, circuit in self.connections.circuits() if circuit.open_until > now}
        return sum(p.enabled and (p.id in self._down or p.id in open_) for p in self._document.providers)

    @property
    def cors_origins(self) -> tuple[str, ...]:
        """Origins whose pages may call `/v1`; none before the first configuration."""
        return self.snapshot.settings.cors_origins if self.snapshot is not None else ()

    def explain(self, body: bytes) -> bytes:
        """Where a request would go by what this worker knows: the JSON of `gateway.explain`. Never raises."""
        return explain.answer(self, body)

    def new_id(self, at_us: int) -> bytes:
        """A time-ordered request id: 8 bytes of microseconds, 4 of this process, 4 counting."""
        self._count = (self._count + 1) & 0xFFFFFFFF
        return at_us.to_bytes(8, "big") + self._seed + self._count.to_bytes(4, "big")

    def key(self, number: int) -> Key | None:
        """An API key by its number; None where it is not known or was revoked."""
        digest = self._keys_by_id.get(number)
        return self._keys.get(digest) if digest is not None else None

    def next_turn(self, model: str) -> int:
        """The round-robin counter of a requested model."""
        turns, turn = self._turns, self.turn_ahead(model)
        if turn == 0 and len(turns) >= TURNS_MAX:
            turns.clear()
        turns[model] = turn
        return turn

    def turn_ahead(self, model: str) -> int:
        """What `next_turn` would say now; nobody's turn is taken."""
        return self._turns.get(model, -1) + 1

    def book(self, record: UsageRecord, shape: Shape, held_pico: int) -> None:
        """Journal a complete usage record and return the rest of its hold. Raises JournalError when it cannot be
        written; then the hold stays and the record is written as soon as the journal works again. On any other error
        nothing of the hold (`record.held` tokens and `held_pico`) returns: the ledger will charge all of it."""
        try:
            self.journal.shape(shape.digest, shape.payload)
            self.journal.complete(record)
        except JournalError:
            if len(self._unwritten) < UNWRITTEN_MAX:
                self._unwritten.append((record, shape))
            raise
        except Exception:
            # It can never be written: the ledger charges its hold when this worker's journal ends.
            self.desk.settle(record.draws, record.held, held_pico)
            raise
        self.desk.settle(record.draws, record.tokens, record.cost_pico)

    # --- housekeeping ------------------------------------------------------------------------------------------------

    async def _housekeeping(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(TICK_S)
            ticks += 1
            try:
                self._tick(flush=ticks % FLUSH_TICKS == 0)
            except Exception:
                log.exception("housekeeping failed")

    def _tick(self, *, flush: bool) -> None:
        now = time.monotonic()
        if self.app is not None:
            self.app.sweep(now)
        if self.snapshot is not None and self.pingers:
            interval_s = self.snapshot.settings.ping_interval_s
            for pinger in tuple(self.pingers):
                pinger.tick(now, interval_s)
        self._retry_unwritten()
        self.journal.sync_soon()
        if self.access_log is not None:
            self.access_log.flush()
        if flush:
            metrics = self.metrics
            metrics.inflight = len(self.jobs)
            metrics.waiting = self.queue.room.waiting_by_class()
            if self.access_log is not None:
                metrics.log_dropped(self.access_log.dropped)
            metrics.config_version = self.config_version
            metrics.ready = self.ready and self.journal_writable
            metrics.flush()
            self.cache.store.sweep()
            at = time.time()
            self.loops.tell(self.happenings.tell)
            self.happenings.watch(self.connections.circuits(), now, at)
            self.happenings.flush(at)
            self.limiter.slots.tend()

    def _retry_unwritten(self) -> None:
        while self._unwritten:
            record, shape = self._unwritten[0]
            try:
                self.journal.shape(shape.digest, shape.payload)
                self.journal.complete(record)
            except JournalError:
                return
            self._unwritten.pop(0)
            self.desk.settle(record.draws, record.tokens, record.cost_pico)

    # --- pushes from control -----------------------------------------------------------------------------------------

    def on_config(self, version: int, blob: bytes) -> None:
        """A published configuration document."""
        self._push("config", version, blob)

    def on_secrets(self, items: Mapping[int, str]) -> None:
        """Ciphertexts of credentials by id."""
        self._push("secrets", items)

    def on_access(self, seq: int, full: bool, keys: Sequence[KeyRecord], pools: Sequence[PoolRecord]) -> None:
        """Keys and pools: all of them (`full`) or those that changed."""
        self._push("access", seq, full, keys, pools)

    def on_cards(
        self, cards: Sequence[CardDoc], prices: Sequence[PriceRecord], models: Mapping[int, Sequence[str]]
    ) -> None:
        """Model cards, prices and discovered models."""
        self._push("cards", cards, prices, models)

    def on_health(self, down: Iterable[int]) -> None:
        """Providers whose active probes fail."""
        self._push("health", frozenset(down))

    def on_warming(self, questions: Sequence[WarmRecord]) -> None:
        """The questions whose answers are to be kept before anybody asks them: all of them."""
        self.warmer.set(questions)

    def on_audit(self, head: str) -> None:
        """The audit log's last checkpoint as answers may name it: "size:root"."""
        self.audit_head = head.encode("ascii", "replace")

    def on_cache_purge(self, number: int) -> None:
        """Forget every kept answer, now; `status()` tells the number."""
        self.cache.purge()
        self._cache_purge = max(self._cache_purge, number)

    def _push(self, what: str, *values: Any) -> None:
        self._pending.append((what, values))
        self._pushed.set()

    async def _applying(self) -> None:
        """Apply pushes in order, one snapshot for all that have arrived together."""
        while True:
            await self._pushed.wait()
            self._pushed.clear()
            pending, self._pending = self._pending, []
            changed: set[str] = set()
            for what, values in pending:
                try:
                    await getattr(self, f"_apply_{what}")(*values)
                    changed.add(what)
                except Exception as exc:
                    self.build_error = f"{what}: {exc}"
                    log.exception("a push from control could not be applied", extra={"what": what})
            try:
                await self._rebuild(changed)
            except Exception as exc:
                self.build_error = f"build: {exc}"
                log.exception("the new configuration could not be built; the old one stays")

    async def _apply_config(self, version: int, blob: bytes) -> None:
        document: ConfigDocument | None = None
        for document in unpacking(blob, self._document):
            if document is None:
                await asyncio.sleep(0)
        self._document, self._document_version = document, version
        self.build_error = ""

    async def _apply_secrets(self, items: Mapping[int, str]) -> None:
        self._secrets = items

    async def _apply_access(self, seq: int, full: bool, keys: Sequence[KeyRecord], pools: Sequence[PoolRecord]) -> None:
        known = {} if full else dict(self._keys)
        by_id = {} if full else dict(self._keys_by_id)
        for number, record in enumerate(keys, 1):
            old = by_id.pop(record.id, None)
            if old is not None:
                known.pop(old, None)
            if record.enabled:
                known[record.digest] = make_key(record)
                by_id[record.id] = record.digest
            if number % (SLICE * 5) == 0:
                await asyncio.sleep(0)
        all_pools = {} if full else dict(self._pools)
        all_pools.update((pool.id, pool) for pool in pools)
        self._keys, self._keys_by_id, self._pools = known, by_id, all_pools
        self._access_seen = True

    async def _apply_cards(
        self, cards: Sequence[CardDoc], prices: Sequence[PriceRecord], models: Mapping[int, Sequence[str]]
    ) -> None:
        self._cards, self._prices, self._discovered = CardBook(cards), PriceBook.build(prices), models

    async def _apply_health(self, down: frozenset[int]) -> None:
        self._down = down

    async def _rebuild(self, changed: set[str]) -> None:
        if self._document is None or not self._access_seen:
            return
        self._stale = self._stale or bool(changed & {"config", "secrets", "cards"})
        if self._stale:
            try:
                self._built = await self._build(self._document, self._document_version)
                self._stale, self.build_error = False, ""
            except Exception as exc:
                self.build_error = f"build: {exc}"
                log.exception("the new configuration could not be built; the old one stays")
        if self._built is None:
            return
        # Keys, pools, cards and health go on changing under the configuration that could be built last.
        document, version, candidates, table, screens = self._built
        models, before = await self._list_models(document), self.snapshot
        await asyncio.sleep(0)
        snapshot = Snapshot(
            version=version,
            version_header=b"%d" % version,
            settings=document.settings,
            table=table,
            candidates=candidates,
            keys=self._keys,
            pools=self._pools,
            pools_by_name={pool.name: pool for pool in self._pools.values() if pool.enabled},
            cards=self._cards,
            prices=self._prices,
            models=models,
            down=self._down,
            screens=screens,
        )
        self.snapshot = snapshot
        self.desk.set_pools(snapshot.pools.values())
        if before is None or before.candidates is not candidates:
            similar = any(route.semantic_threshold for route in document.routes)
            self.cache.resize(document.settings.cache_mb << 20, similar=similar)
            self.connections.retire_all_but(snapshot)
        await self.queue.changed()

    async def _build(
        self, document: ConfigDocument, version: int
    ) -> tuple[ConfigDocument, int, Mapping[int, Candidate], RouteTable, Screens | None]:
        candidates: Mapping[int, Candidate] = {}
        secrets = self._open_secrets(document)
        for made in self._builder.candidates(document, secrets, self._cards):
            if made is None:
                await asyncio.sleep(0)
            else:
                candidates = made
        providers = {provider.id: provider for provider in document.providers}
        await asyncio.sleep(0)
        table = RouteTable(document.routes, providers, document.policies, document.settings, version=version)
        await asyncio.sleep(0)
        screens = await self._screens(document)
        self._builder.keep(candidates, document.settings, secrets, self._cards)
        return document, version, candidates, table, screens

    async def _screens(self, document: ConfigDocument) -> Screens | None:
        """The privacy policies. Their scanner is made again only for other patterns, and beside the loop."""
        if not document.privacy:
            return None
        if self._scanner is None or self._scanner[0] != document.patterns:
            self._scanner = document.patterns, await asyncio.to_thread(scanner_of, document.patterns)
        return screens_of(document, self._scanner[1])

    async def _list_models(self, document: ConfigDocument) -> tuple[tuple[str, str], ...]:
        """The model list, made again only when the configuration or what was discovered is another."""
        for_document, for_discovered, models = self._listed
        if for_document is document and for_discovered is self._discovered:
            return models
        for made in list_models(document, self._discovered):
            if made is None:
                await asyncio.sleep(0)
            else:
                models = made
        self._listed = document, self._discovered, models
        return models

    def _open_secrets(self, document: ConfigDocument) -> dict[int, str]:
        """Decrypted credentials by id. One that does not open (its base URL changed, wrong key) counts as absent."""
        opened: dict[int, str] = {}
        if not any(provider.sealed for provider in document.providers):
            return opened
        vault = Vault.load(self.options.vault_path)
        for provider in document.providers:
            for number, name in provider.sealed:
                ciphertext = self._secrets.get(number)
                if not ciphertext:
                    continue
                try:
                    opened[number] = vault.open(ciphertext, provider.base_url)
                except VaultError:
                    log.error("a credential does not open", extra={"provider": provider.name, "what": name})
        return opened

    # --- what control and operators may know ----------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Plain figures for the status file, health pages and the admin."""
        now = time.monotonic()
        circuits = [
            {
                "provider": number,
                "failures": circuit.failures,
                "open_s": max(0.0, round(circuit.open_until - now, 1)),
                "cooldown_s": max(0.0, round(circuit.cooldown_until - now, 1)),
                "last_error": circuit.last_error,
            }
            for number, circuit in self.connections.circuits()
            if not circuit.quiet or circuit.failures
        ]
        return {
            "owner": self.options.owner,
            "index": self.options.index,
            "pid": os.getpid(),
            "version": self.version,
            "config_version": self.config_version,
            "build_error": self.build_error,
            "ready": self.ready,
            "draining": self.draining,
            "journal_writable": self.journal_writable,
            "unwritten": len(self._unwritten),
            "requests": len(self.jobs),
            "circuits": circuits,
            "idle": self.desk.idle(),
            "cache": {
                **self.cache.counts(),
                "embedding_failures": self.embedder.failures,
                "warmed": self.warmer.asked,
                "warming_failures": self.warmer.failures,
            },
            "cache_purge": self._cache_purge,
            "queue": self.queue.report(),
            "credentials": {
                str(number): round(ago, 1) for number, ago in self.connections.credentials_used(now).items()
            },
        }
