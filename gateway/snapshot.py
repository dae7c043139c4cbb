"""The immutable view of the world one request runs by: configuration, keys, cards, prices, upstream pools.

A `Snapshot` is built completely and then swapped in by one reference store, so no request ever sees half of a change.
Building yields between slices; see `Builder`. No Django, no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter
from typing import NamedTuple
from urllib.parse import quote

from budgets.prices import PriceBook
from budgets.records import KeyRecord, PoolRecord
from gateway import limiting
from gateway.limits.limiter import Subjects
from gateway.reach import Reach, reach_of
from gateway.screening import Screens
from providers import adapters
from providers.adapters import Adapter
from providers.adapters.completions import OverChat
from providers.canonical import Call, Target
from providers.cards import CardBook
from providers.catalog import CATALOG, Kind
from providers.config import ConfigDocument, ProviderDoc, RouteDoc, SettingsDoc
from providers.globs import any_matcher, is_valid, matcher
from providers.health import Circuit
from providers.pace import Pace
from providers.routing import RouteTable
from providers.upstream import Limits, Origin, Pool

SLICE = 200  # rows built between two yields: well under 5 ms
MODEL_TESTS = 4000  # models tried against a glob between two yields: about a millisecond
TARGETS_MAX = 4096
MODEL_PLACE = b"{model}"
TUNED = "tunedModels/"
CHAT, COMPLETIONS = "chat", "completions"
RESPONSES, RESPONSES_ONLY = "responses", "responses-only"
COMPLETIONS_BY_RESPONSES = "completions-by-responses"  # of models that answer nothing else
_SAME = frozenset({("gemini", "google")})  # a dialect and the adapter that speaks it under another name
LOCAL_CLASSES = frozenset({"loopback", "private", "unix"})
IDLE_MAX = 4096  # per upstream; fewer than are in use at a peak means closing and dialling again all the time


@dataclass(slots=True, frozen=True, eq=False)
class Line:
    """A provider with one of its credentials: where a call really goes, and what calls there have shown."""

    pool: Pool | None  # None for the built-in demo provider
    heads: Mapping[str, bytes]  # operation -> request head up to Content-Length
    circuit: Circuit
    kind: Kind
    strict: bool
    cards: CardBook
    targets: dict[str, Target] = field(default_factory=dict)  # per upstream model, bounded by TARGETS_MAX

    def target(self, model: str) -> Target:
        """What the adapter must know to write a request for `model`."""
        target = self.targets.get(model)
        if target is None:
            if len(self.targets) >= TARGETS_MAX:
                self.targets.pop(next(iter(self.targets)))
            target = self.targets[model] = self._target(model)
        return target

    def _target(self, model: str) -> Target:
        labels = frozenset(self.cards.find(model).capabilities)
        if any(matcher(pattern)(model) for pattern in self.kind.responses_only):
            labels |= {RESPONSES_ONLY}
        heads = self.heads
        if any(MODEL_PLACE in head for head in heads.values()):
            place, name = MODEL_PLACE, quote(model.removeprefix("models/"), safe="")
            if model.startswith(TUNED):  # a collection of its own, beside that of the models
                place, name = b"models/" + MODEL_PLACE, TUNED + quote(model.removeprefix(TUNED), safe="")
            heads = {operation: head.replace(place, name.encode("ascii")) for operation, head in heads.items()}
        return Target(kind=self.kind, upstream_model=model, strict=self.strict, labels=labels, heads=heads)


@dataclass(slots=True, frozen=True)
class Candidate:
    """A route made ready to call: adapter, lines, limits."""

    route: RouteDoc
    provider: ProviderDoc
    kind: Kind
    adapter: Adapter
    lines: tuple[Line, ...]  # at least one
    load: Load
    limits: Limits
    header: bytes  # the x-hoosh-route value
    free: bool  # a local provider: it costs nothing unless it has a price
    adapters: Mapping[str, Adapter]  # those that differ from `adapter`, by endpoint or dialect
    serves: frozenset[str]  # endpoints
    local: bool  # its provider is at an address of one's own
    limited: Subjects | None = None  # what counts its calls; None = nothing does

    def unavailable(self, now: float) -> str:
        """Why none of the lines should be called now; empty = one may be."""
        first = self.lines[0].circuit.reason(now)
        if not first or all(line.circuit.reason(now) for line in self.lines):
            return first
        return ""

    def line(self, now: float, tried: Collection[Line] = ()) -> Line | None:
        """The line to call: those that may be called take turns. Where none may be, any, but none twice."""
        lines = self.lines
        if len(lines) == 1:
            return None if tried else lines[0]
        turn = self.load.next_turn()
        # Those left out go first and the rest take turns: else the one behind a gap would have two turns.
        left = [line for line in lines if line not in tried and not line.circuit.reason(now)]
        if not left and not tried:
            left = list(lines)
        return left[turn % len(left)] if left else None

    def adapter_for(self, call: Call, target: Target) -> Adapter:
        """The adapter that writes and reads this call: the provider's own API where the caller speaks it."""
        if not self.adapters:
            return self.adapter
        if call.endpoint == CHAT:
            if call.dialect in self.adapters:
                return self.adapters[call.dialect]
            if RESPONSES_ONLY in target.labels and RESPONSES in self.adapters:
                return self.adapters[RESPONSES]
        elif call.endpoint == COMPLETIONS and RESPONSES_ONLY in target.labels and RESPONSES in self.adapters:
            return self.adapters[COMPLETIONS_BY_RESPONSES]
        return self.adapters.get(call.endpoint, self.adapter)

    def speaks(self, dialect: str) -> bool:
        """Whether what a caller of this dialect sent can be passed on as it is."""
        return dialect == self.kind.adapter or dialect in self.adapters or (dialect, self.kind.adapter) in _SAME


@dataclass(slots=True)
class Key:
    """An API key as the request path uses it."""

    record: KeyRecord
    may_use: Callable[[str], bool] | None  # None = every model
    may_name: Callable[[str], bool] | None  # pools beside those of its team; None = none
    pool_ids: tuple[int, ...]  # what it draws on where a request names no pool, ascending
    is_operator: bool
    limited: Subjects | None = None  # what counts its requests; None = nothing does
    reach: Reach | None = None  # where it may be used; None = anywhere


@dataclass(slots=True, frozen=True)
class Snapshot:
    """Everything one request needs to know. Never changed after it was published."""

    version: int
    version_header: bytes
    settings: SettingsDoc
    table: RouteTable
    candidates: Mapping[int, Candidate]  # by route id
    keys: Mapping[bytes, Key]  # by SHA-256 digest
    pools: Mapping[int, PoolRecord]
    pools_by_name: Mapping[str, PoolRecord]  # those that are enabled
    cards: CardBook
    prices: PriceBook
    models: tuple[tuple[str, str], ...]  # (model id, provider name), sorted
    down: frozenset[int]  # provider ids whose active probes fail: a hint
    screens: Screens | None = None  # privacy policies; None = there are none


class Load:
    """What a worker has under way with one provider, how fast its models answer, and whose turn it is."""

    __slots__ = ("_paces", "_turn", "busy")

    def __init__(self) -> None:
        self.busy = 0
        self._turn = -1
        self._paces: dict[str, Pace] = {}

    def pace(self, model: str) -> Pace:
        """The averages of a model, by its name at the provider."""
        pace = self._paces.get(model)
        if pace is None:
            if len(self._paces) >= TARGETS_MAX:
                self._paces.pop(next(iter(self._paces)))
            pace = self._paces[model] = Pace()
        return pace

    def next_turn(self) -> int:
        """The counter by which credentials take turns."""
        self._turn += 1
        return self._turn


class Connections:
    """Upstream pools, circuits and loads. They outlive snapshots: a reload must not drop warm connections or memory."""

    def __init__(self) -> None:
        self._pools: dict[tuple[Origin, int, int], Pool] = {}
        self._circuits: dict[tuple[int, int], Circuit] = {}
        self._shown_by: dict[tuple[int, int], Hashable] = {}  # what the failures of a circuit were failures of
        self._loads: dict[int, Load] = {}

    def pool(self, origin: Origin, credential_id: int, revision: int) -> Pool:
        """The pool of one (base URL with TLS identity, credential)."""
        key = (origin, credential_id, revision)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(origin, max_idle=IDLE_MAX)
        return pool

    def circuit(self, provider_id: int, credential_id: int, of: Hashable = None) -> Circuit:
        """The circuit of one (provider, credential). `of`: where its calls go, and with which secret. What calls have
        shown holds for that only: with another address or secret everything held against it is forgotten."""
        key = (provider_id, credential_id)
        known = self._circuits.get(key)
        if known is None:
            known = self._circuits[key] = Circuit()
        elif self._shown_by.get(key) != of:
            known.succeeded()
        self._shown_by[key] = of
        return known

    def load(self, provider_id: int) -> Load:
        """What is under way with a provider."""
        return self._loads.setdefault(provider_id, Load())

    def retire_all_but(self, snapshot: Snapshot) -> None:
        """Close the idle connections of pools the snapshot no longer names; calls under way finish."""
        live = {id(line.pool) for candidate in snapshot.candidates.values() for line in candidate.lines}
        for key, pool in list(self._pools.items()):
            if id(pool) not in live:
                del self._pools[key]
                pool.close()

    def circuits(self) -> Iterator[tuple[int, Circuit]]:
        """(provider id, circuit) of everything called so far."""
        for (provider_id, _), circuit in self._circuits.items():
            yield provider_id, circuit

    def credentials_used(self, now: float) -> dict[int, float]:
        """By id of a credential, how many seconds ago the last call was sent with it; those without any are missing."""
        found: dict[int, float] = {}
        for (_, credential_id), circuit in self._circuits.items():
            if credential_id and circuit.started_at:
                found[credential_id] = max(0.0, now - circuit.started_at)
        return found

    def close(self) -> None:
        """Close every idle connection."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()


def _head(origin: Origin, kind: Kind, path: str, secret: str) -> bytes:
    """The request head for one endpoint: everything that is equal in all calls."""
    lines = [
        f"POST {origin.prefix}{path} HTTP/1.1",
        f"Host: {origin.authority}",
        "Content-Type: application/json",
        "Accept-Encoding: identity",
        "User-Agent: hoosh",
    ]
    credential = kind.credential_header(secret)
    if credential is not None:
        lines.append(": ".join(credential))
    return ("\r\n".join(lines) + "\r\n").encode("latin-1")


class _Abilities(NamedTuple):
    """What is equal for all providers of a kind; see `Candidate`."""

    adapter: Adapter
    adapters: Mapping[str, Adapter]
    serves: frozenset[str]


@cache
def _abilities(name: str) -> _Abilities:
    kind = CATALOG[name]
    adapter = adapters.get(kind.adapter)
    others = {name: adapters.get(other) for name, other in kind.adapters.items()}
    serves = frozenset(kind.serves)
    if CHAT in serves and COMPLETIONS not in serves:
        others[COMPLETIONS] = OverChat(others.get(CHAT, adapter))
        serves |= {COMPLETIONS}
    if RESPONSES in others:
        others[COMPLETIONS_BY_RESPONSES] = OverChat(others[RESPONSES])
    return _Abilities(adapter, others, serves)


class Builder:
    """Makes the routes of a document ready to call, over connections and circuits that outlive it."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._made: dict[int, tuple[Line, ...]] = {}  # by provider id, of the document that is being built
        self._known: Mapping[int, Candidate] = {}
        self._known_by: tuple[object, ...] = ()  # what these were made by

    def keep(
        self, candidates: Mapping[int, Candidate], settings: SettingsDoc, secrets: Mapping[int, str], cards: CardBook
    ) -> None:
        """These candidates go into use: those of which nothing changes need not be made again for the next document.

        That the route and provider are the same objects counts as no change.
        """
        self._known, self._known_by = candidates, (settings, secrets, cards)

    def candidates(
        self, document: ConfigDocument, secrets: Mapping[int, str], cards: CardBook
    ) -> Iterator[dict[int, Candidate] | None]:
        """Yields None between slices and the finished mapping by route id at the end."""
        providers = {provider.id: provider for provider in document.providers}
        kept = self._known if self._known_by == (document.settings, secrets, cards) else {}
        self._made = {}
        made: dict[int, Candidate] = {}
        for number, route in enumerate(document.routes, 1):
            provider = providers.get(route.provider_id)
            if provider is not None and provider.enabled and route.enabled:
                known = kept.get(route.id)
                if known is not None and known.route is route and known.provider is provider:
                    self._made[provider.id] = known.lines
                else:
                    known = self._candidate(route, provider, document.settings, secrets, cards)
                made[route.id] = known
            if number % SLICE == 0:
                yield None
        yield made

    def _candidate(
        self,
        route: RouteDoc,
        provider: ProviderDoc,
        settings: SettingsDoc,
        secrets: Mapping[int, str],
        cards: CardBook,
    ) -> Candidate:
        kind = CATALOG[provider.kind]
        able = _abilities(provider.kind)
        return Candidate(
            route=route,
            provider=provider,
            kind=kind,
            adapter=able.adapter,
            lines=self._lines(provider, kind, settings, secrets, cards),
            load=self._connections.load(provider.id),
            limits=Limits(
                connect_s=route.connect_timeout_s or settings.connect_timeout_s,
                first_byte_s=route.first_byte_timeout_s or settings.first_byte_timeout_s,
                gap_s=route.gap_timeout_s or settings.gap_timeout_s,
                total_s=route.total_timeout_s or settings.total_timeout_s,
            ),
            header=header_safe(route.name),
            free=kind.local and provider.address_class in LOCAL_CLASSES,
            adapters=able.adapters,
            serves=able.serves,
            local=provider.address_class in LOCAL_CLASSES,
            limited=limiting.of_candidate(route, provider),
        )

    def _lines(
        self, provider: ProviderDoc, kind: Kind, settings: SettingsDoc, secrets: Mapping[int, str], cards: CardBook
    ) -> tuple[Line, ...]:
        """One line for each usable credential, or one without any. The routes of a provider share them."""
        known = self._made.get(provider.id)
        if known is not None:
            return known
        usable = [(doc.id, doc.revision) for doc in provider.credentials if doc.enabled and secrets.get(doc.id)]
        strict = settings.unsupported_params == "strict"
        lines = []
        for credential_id, revision in usable or [(0, 0)]:
            origin: Origin | None = None
            pool: Pool | None = None
            heads = dict.fromkeys(kind.paths, b"")
            if kind.adapter != "demo":
                origin = Origin.parse(
                    provider.base_url,
                    provider.address_class,
                    provider.ca_pem,
                    pins=provider.pins,
                    client_pem=secrets.get(provider.client_id) if provider.client_certificate else "",
                )
                pool = self._connections.pool(origin, credential_id, revision)
                secret = secrets[credential_id] if credential_id else ""
                heads = {name: _head(origin, kind, path, secret) for name, path in kind.paths.items()}
            circuit = self._connections.circuit(provider.id, credential_id, (origin, revision))
            lines.append(Line(pool=pool, heads=heads, circuit=circuit, kind=kind, strict=strict, cards=cards))
        made = self._made[provider.id] = tuple(lines)
        return made


def header_safe(text: str) -> bytes:
    """A name as a header value: printable ASCII as it is, anything else percent-encoded."""
    if text.isascii() and text.isprintable() and "%" not in text:
        return text.encode()
    return b"".join(
        bytes((byte,)) if 0x20 <= byte < 0x7F and byte != 0x25 else b"%%%02X" % byte for byte in text.encode()
    )


def make_key(record: KeyRecord) -> Key:
    """Prepare a key's globs and its chain."""
    return Key(
        record=record,
        may_use=any_matcher(record.models) if record.models else None,
        may_name=any_matcher(record.pools_allowed) if record.pools_allowed else None,
        pool_ids=tuple(sorted({*record.budget_ids, record.pool_id})),
        is_operator="operator" in record.scopes,
        limited=limiting.of_key(record),
        reach=reach_of(record),
    )


def list_models(
    document: ConfigDocument, discovered: Mapping[int, Sequence[str]]
) -> Iterator[tuple[tuple[str, str], ...] | None]:
    """What `GET /v1/models` offers: exact route names, and what was discovered behind the globs, as far as inference
    takes these names.

    A glob without anything discovered behind it lists nothing: a client could not use the pattern as a model.
    Yields None between slices and the finished list at the end.
    """
    providers = {provider.id: provider for provider in document.providers if provider.enabled}
    offered: dict[str, str] = {}
    tests = 0
    for route in sorted(document.routes, key=attrgetter("priority", "id")):
        provider = providers.get(route.provider_id)
        if provider is None or not route.enabled:
            continue
        if "*" not in route.pattern:
            if is_valid(route.pattern):
                offered.setdefault(route.pattern, provider.name)
            tests += 1
            if tests % MODEL_TESTS == 0:
                yield None
            continue
        test = matcher(route.pattern)
        for model in discovered.get(provider.id, ()):
            if test(model) and is_valid(model):
                offered.setdefault(model, provider.name)
            tests += 1
            if tests % MODEL_TESTS == 0:
                yield None
    yield tuple(sorted(offered.items()))
