"""The published configuration document: what an operator's rows become and all a worker knows of them.

A `ConfigDocument` is immutable, holds no secret (credentials by id and revision only) and is the unit that is
stored, diffed, pushed to workers and turned into a snapshot. This module is pure: no Django, no I/O.
"""

from __future__ import annotations

import hashlib
import zlib

import msgspec

FORMAT = 1


class CredentialDoc(msgspec.Struct, frozen=True, gc=False):
    """One credential of a provider; the secret itself travels apart, looked up by `id`."""

    id: int
    name: str
    revision: int
    enabled: bool = True


class ProviderDoc(msgspec.Struct, frozen=True):
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


class RouteDoc(msgspec.Struct, frozen=True):
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
    privacy_policy_id: int = 0  # of teams that have none of their own; 0 = nothing is looked at
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


_encoder = msgspec.json.Encoder(order="deterministic")
_decoder = msgspec.json.Decoder(ConfigDocument)


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
    try:
        document = _decoder.decode(zlib.decompress(blob))
    except (zlib.error, msgspec.MsgspecError) as exc:
        raise ValueError(f"not a configuration document: {exc}") from exc
    if document.format != FORMAT:
        raise ValueError(f"configuration format {document.format} is not known here (this is {FORMAT})")
    return document
