"""The published configuration document: what an operator's rows become and all a worker knows of them.

A `ConfigDocument` is immutable, holds no secret (credentials by id and revision only) and is the unit that is
stored, diffed, pushed to workers and turned into a snapshot. This module is pure: no Django, no I/O.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec

FORMAT = 1
SLICE = 200  # routes decoded between two yields: a quarter of a millisecond
INFLATED_BYTES = 1 << 20  # decompressed between two yields: half a millisecond


class CredentialDoc(msgspec.Struct, frozen=True, gc=False):
    """One credential of a provider; the secret itself travels apart, looked up by `id`."""

    id: int
    name: str
    revision: int
    enabled: bool = True


class ProviderDoc(msgspec.Struct, frozen=True, gc=False):
    """One upstream: where it is, what it speaks and which address class it may resolve to."""

    id: int
    name: str
    kind: str  # a key of providers.catalog.CATALOG
    base_url: str  # scheme://host[:port][/prefix], never ending in "/" or "/v1"; unix:///path for a Unix socket
    address_class: str  # "loopback" | "private" | "public" | "unix"
    enabled: bool = True
    credentials: tuple[CredentialDoc, ...] = ()
    ca_pem: str = ""  # private certificate authority, PEM; empty = the system's
    pins: tuple[str, ...] = ()  # of which the server's chain must have one; empty = none is needed
    client_certificate: str = ""  # its SHA-256, hex; itself and its key travel apart, looked up by `client_id`
    requests_per_minute: int | None = None  # limits over all routes of the provider; None = none
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None

    @property
    def client_id(self) -> int:
        """The id of the client certificate among the secrets; those of credentials are positive."""
        return -self.id

    @property
    def sealed(self) -> tuple[tuple[int, str], ...]:
        """(id among the secrets, name) of everything of this provider that travels apart."""
        client = ((self.client_id, "client certificate"),) if self.client_certificate else ()
        return (*((each.id, each.name) for each in self.credentials), *client)


class RouteDoc(msgspec.Struct, frozen=True, gc=False):
    """One rule 'models like this may be answered by that provider'. Times in seconds; None = the settings' default."""

    id: int
    name: str
    pattern: str  # glob over the requested model, "*" anywhere, case-sensitive
    provider_id: int
    upstream_model: str = ""  # blank = the requested name
    priority: int = 10  # lower first
    weight: int = 1
    tags: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    connect_timeout_s: float | None = None
    first_byte_timeout_s: float | None = None
    gap_timeout_s: float | None = None
    total_timeout_s: float | None = None
    output_cap: int | None = None  # tokens; caps what a request may ask for
    on_disconnect: str = "cancel"  # "cancel" | "drain" | "cap"
    duplicates_allowed: bool = False  # may a request that was already sent be sent again elsewhere
    enabled: bool = True
    disconnect_cap: int = 1024  # output tokens read after the client left, where `on_disconnect` is "cap"
    sticky: bool = False  # a conversation stays on this route where the strategy leaves a choice
    cache_s: int = 0  # how long answers are kept to be told again; 0 = not at all
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    semantic_threshold: float = 0.0  # cosine from which on two questions are the same to the cache; 0 = never
    compact_percent: int = 0  # of the model's context: longer conversations are shortened; 0 = never
    compress: bool = False  # white space in prompts
    cache_price_percent: int = 0  # of what an answer cost at first: what telling it again costs; 0 = nothing


class PolicyDoc(msgspec.Struct, frozen=True):
    """How candidates are ordered for the models a glob names; the first match in `position` order wins."""

    id: int
    name: str
    pattern: str
    strategy: str  # a value of providers.models.Strategy
    fallbacks: tuple[str, ...] = ()  # further model names to try, in order
    position: int = 0
    enabled: bool = True
    tags: tuple[str, ...] = ()  # which a route must have, all of them


class SettingsDoc(msgspec.Struct, frozen=True):
    """Behaviour of the whole gateway (the GatewaySettings row)."""

    strategy: str = "priority"  # where no policy matches
    default_output_cap: int = 8192  # tokens, where the request and the model card name none
    body_limit_bytes: int = 10 * 1024 * 1024
    body_timeout_s: float = 30.0
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 120.0
    gap_timeout_s: float = 60.0
    total_timeout_s: float = 600.0
    hold_wait_s: float = 5.0  # how long a request waits for tokens that other requests hold
    max_attempts: int = 3  # upstream calls for one request
    retry_percent: int = 20  # further calls per hundred requests, beyond 3 a second
    breaker_failures: int = 5  # consecutive failures that open a provider's circuit
    breaker_open_s: float = 30.0
    probe_interval_s: float = 30.0  # active health probes by control; 0 = off
    ping_interval_s: float = 15.0  # comment pings in quiet streams
    cors_origins: tuple[str, ...] = ("*",)
    unsupported_params: str = "strict"  # | "lenient": what a provider cannot honour is dropped, also where it matters
    cache_mb: int = 64  # memory for kept answers, per worker
    embedding_model: str = ""  # embeds questions for the cache; "" = the model on this host
    queue_wait_s: float = 10.0  # for a place where requests at once are limited; 0 = refused at once
    queue_size: int = 1000  # waiting requests per worker
    privacy_policy_id: int = 0  # of teams that have none of their own; 0 = nothing is looked at
    review: bool = False  # what is saved waits until somebody else publishes it
    drafts: bool = False  # what is saved waits until somebody publishes it, be it its author
    unknown_price: str = "refuse"  # "refuse" | "observe": a model without a price, where money is limited
    audit_header: bool = False  # answers name the audit log's last checkpoint


class PatternDoc(msgspec.Struct, frozen=True):
    """What privacy policies look for beside the built-in patterns: a regular expression as RE2 reads it."""

    id: int
    name: str
    source: str
    level: str  # "internal" | "confidential" | "restricted"
    ignore_case: bool = False
    enabled: bool = True


class PrivacyDoc(msgspec.Struct, frozen=True):
    """What may leave, and how: an action ("allow" | "redact" | "local" | "refuse") for each level of what is found."""

    id: int
    name: str
    default_level: str = "public"  # of a request in which nothing graver is found
    internal: str = "allow"
    confidential: str = "local"
    restricted: str = "refuse"
    disabled: tuple[str, ...] = ()  # names of patterns that are not looked for
    redact_local: bool = False  # redact also what is sent to local providers only
    scan_tool_results: bool = True
    scan_answers: bool = False
    answer_level: str = "restricted"  # from which on something in an answer counts
    answer_action: str = "redact"  # | "refuse"


class ConfigDocument(msgspec.Struct, frozen=True):
    """Everything a worker runs by. `encode` is canonical: equal documents have equal bytes and digests."""

    settings: SettingsDoc = SettingsDoc()
    providers: tuple[ProviderDoc, ...] = ()
    routes: tuple[RouteDoc, ...] = ()
    policies: tuple[PolicyDoc, ...] = ()
    format: int = FORMAT
    patterns: tuple[PatternDoc, ...] = ()
    privacy: tuple[PrivacyDoc, ...] = ()


class CardDoc(msgspec.Struct, frozen=True):
    """What is known of a model (a ModelCard row): limits and capabilities by glob over the upstream model's name."""

    pattern: str
    context_tokens: int | None = None
    max_output_tokens: int | None = None
    min_bytes_per_token: float = 1.0  # 1 is provable for byte-level BPE; higher is the operator's assumption
    capabilities: tuple[str, ...] = ()  # labels; providers.card_labels has those that are known
    display_name: str = ""
    imported: bool = False  # from a list: an operator's own cards win over it


class _Outline(ConfigDocument, frozen=True):
    """A document of which the routes, of which there may be many, are not decoded yet."""

    routes: tuple[msgspec.Raw, ...] = ()  # type: ignore[assignment]


_encoder = msgspec.json.Encoder(order="deterministic")
_outline = msgspec.json.Decoder(_Outline)
_route = msgspec.json.Decoder(RouteDoc)
_Row = TypeVar("_Row", ProviderDoc, RouteDoc)


def encode(document: ConfigDocument) -> bytes:
    """Canonical JSON of a document: sorted fields by declaration, no white space."""
    return _encoder.encode(document)


def digest(document: ConfigDocument) -> str:
    """SHA-256 over the canonical JSON, in hex: the document's name."""
    return hashlib.sha256(encode(document)).hexdigest()


def pack(document: ConfigDocument) -> bytes:
    """The stored and sent form: zlib over the canonical JSON."""
    return zlib.compress(encode(document), 6)


def unpack(blob: bytes) -> ConfigDocument:
    """Inverse of `pack`. Raises `ValueError` on anything that is not a document of a format we know."""
    *_, document = unpacking(blob)
    assert document is not None
    return document


def unpacking(blob: bytes, known: ConfigDocument | None = None) -> Iterator[ConfigDocument | None]:
    """`unpack` in slices: yields None between them and the document at the end.

    Settings, providers and routes that are equal in `known` are taken from there: what was made of them can be told
    to be up to date by their identity.
    """
    pieces: list[bytes] = []
    known = known or ConfigDocument()
    try:
        for piece in _inflated(blob):
            pieces.append(piece)
            yield None
        plain = b"".join(pieces)
        yield None
        told = msgspec.structs.asdict(_outline.decode(plain))
        yield None
        if told["format"] != FORMAT:
            raise ValueError(f"configuration format {told['format']} is not known here (this is {FORMAT})")
        told["providers"] = tuple(_known_first(told["providers"], known.providers))
        if told["settings"] == known.settings:
            told["settings"] = known.settings
        routes: list[RouteDoc] = []
        for route in _known_first(map(_route.decode, told["routes"]), known.routes):
            routes.append(route)
            if len(routes) % SLICE == 0:
                yield None
    except (zlib.error, msgspec.MsgspecError) as exc:
        raise ValueError(f"not a configuration document: {exc}") from exc
    yield ConfigDocument(**{**told, "routes": tuple(routes)})


def _inflated(blob: bytes) -> Iterator[bytes]:
    inflater = zlib.decompressobj()
    while not inflater.eof:
        piece = inflater.decompress(blob, INFLATED_BYTES)
        if not piece and not inflater.unconsumed_tail and not inflater.eof:
            raise zlib.error("incomplete data")
        yield piece
        blob = inflater.unconsumed_tail


def _known_first(rows: Iterable[_Row], known: Iterable[_Row]) -> Iterator[_Row]:
    """The rows, each as the known one of the same id where they are equal."""
    by_id = {row.id: row for row in known}
    for row in rows:
        old = by_id.get(row.id)
        yield old if old is not None and old == row else row
