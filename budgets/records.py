"""The structs that cross process borders for keys, pools, prices and usage. Pure: no Django, no I/O.

They are sent over the link between control and workers and written to the journal (msgpack, as arrays, so field
order is the format: append only).
"""

from __future__ import annotations

import enum

import msgspec


class Basis(enum.IntEnum):
    """How the numbers of a usage row were obtained."""

    REPORTED = 0  # the provider's own usage object
    ESTIMATED = 1  # counted from delivered bytes, usage was missing or absurd
    BOUND = 2  # the hold's upper bound: the end is unknown (crash before anything was delivered)
    DELIVERED = 3  # crash or cut: charged at the last delivered mark
    NONE = 4  # nothing was consumed (refused by the provider, never sent)


class KeyRecord(msgspec.Struct, frozen=True, array_like=True):
    """An API key as workers know it. `digest` is SHA-256 of the whole key text."""

    id: int
    digest: bytes
    prefix: str
    name: str
    agent_id: int
    team_id: int
    pool_id: int
    scopes: tuple[str, ...] = ("inference",)  # "inference", "operator"
    models: tuple[str, ...] = ()  # globs the key may use; () = all
    expires_at: float | None = None  # Unix seconds
    enabled: bool = True  # false = revoked: kept so that a feed can say so


class PoolRecord(msgspec.Struct, frozen=True, array_like=True):
    """A token pool as workers know it (balances come by grants, never in here)."""

    id: int
    name: str
    mode: str = "hard"
    enabled: bool = True
    window_start: int = 0  # 0 = lifetime


class PriceRecord(msgspec.Struct, frozen=True, array_like=True):
    """A dated price row. Amounts are integer pico-USD per token (1 USD per million tokens = 1_000_000 pico per token)
    except `request`, pico-USD per request."""

    id: int
    provider: str  # provider name, kind, or "*"
    pattern: str  # glob over the upstream model's name
    input: int = 0
    cached_read: int | None = None  # None = as input
    cache_write: int | None = None
    output: int = 0
    reasoning: int | None = None  # None = as output
    request: int = 0
    valid_from: float = 0.0  # Unix seconds


class HoldRecord(msgspec.Struct, array_like=True):
    """Journal `R`: written before the upstream call. Enough to make a usage row if no end follows."""

    rid: bytes  # 16 bytes, time-ordered, ours
    attempt: int
    at_us: int
    key_id: int
    agent_id: int
    team_id: int
    pool_id: int
    window_start: int
    tokens: int  # the bound held
    input_bound: int
    route_id: int
    provider_id: int
    endpoint: str
    model: str


class UsageRecord(msgspec.Struct, array_like=True):
    """Journal `C`: the complete usage record of one attempt, written before the last byte is delivered."""

    rid: bytes
    attempt: int
    at_us: int  # start of the request, Unix microseconds
    key_id: int
    agent_id: int
    team_id: int
    pool_id: int
    window_start: int
    route_id: int
    provider_id: int
    endpoint: str  # "chat", "completions", "embeddings", …
    model: str  # as requested
    upstream_model: str
    status: int  # what the client was told (499 = client left)
    error: str  # code of the error, "" on success
    stream: bool
    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    tokens: int  # what the pool is charged
    held: int  # what was held for it
    cost_pico: int
    price_id: int  # 0 = no price row matched
    basis: int  # Basis
    latency_us: int
    ttft_us: int  # time to first delivered byte; 0 = none
    config_version: int
    shape: bytes  # 16-byte digest of the decision shape
    attempts: int  # upstream calls made for the request so far
    client_request_id: str = ""
