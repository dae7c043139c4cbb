"""The structs that cross process borders for keys, pools, prices and usage. Pure: no Django, no I/O.

They are sent over the link between control and workers and written to the journal (msgpack, as arrays, so field
order is the format: append only).
"""

from __future__ import annotations

import enum

import msgspec


class Unit(enum.IntEnum):
    """What a purse counts. The value is stored in the ledger and the journal."""

    TOKENS = 0
    PICO_USD = 1  # money: 1 USD = 10**12


class Draw(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A request's share in one purse, that is: one pool's window in one unit.

    `held` is the amount held in that unit before the upstream call. `OBSERVED` means that nothing was held, because
    the pool only counts (no limit in this unit, or mode "observe"): what was used is charged without a lease.
    """

    pool_id: int
    unit: int  # Unit
    window_start: int  # Unix seconds; 0 = the pool's lifetime
    held: int


OBSERVED = -1
# `price_id` where no row was used: nobody knows / a local provider / nothing to price (reported by a caller)
PRICE_UNKNOWN, PRICE_FREE, PRICE_NONE = 0, -1, -2


class Basis(enum.IntEnum):
    """How the numbers of a usage row were obtained."""

    REPORTED = 0  # the provider's own usage object
    ESTIMATED = 1  # counted from delivered bytes, usage was missing or absurd
    BOUND = 2  # the hold's upper bound: the end is unknown (crash before anything was delivered)
    DELIVERED = 3  # crash or cut: charged at the last delivered mark
    NONE = 4  # nothing was consumed (refused by the provider, never sent)
    KEPT = 5  # a part of what a kept answer cost at first


# Whose requests go first where they wait.
QUEUE_CLASSES = ("interactive", "agent", "batch")

# The names of the inference endpoints, as usage rows and keys have them.
ENDPOINTS = (
    *("chat", "completions", "embeddings", "responses", "messages", "generate", "embed"),
    *("ollama_chat", "ollama_generate", "ollama_embed", "ollama_embeddings", "count_tokens"),
)

# Requests per minute, tokens per minute, requests at once; 0 = no limit.
Limited = tuple[int, int, int]


class KeyRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
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
    budget_ids: tuple[int, ...] = ()  # pools of the team, the agent and the key itself: drawn on by every request
    pools_allowed: tuple[str, ...] = ()  # globs over the names of pools a request may name beside those of its team
    key_limits: Limited = (0, 0, 0)
    agent_limits: Limited = (0, 0, 0)
    team_limits: Limited = (0, 0, 0)
    privacy_policy_id: int = 0  # of the team; 0 = the gateway's
    queue_class: int = 0  # the place in `QUEUE_CLASSES` of what it sends
    endpoints: tuple[str, ...] = ()  # of `ENDPOINTS`; () = all
    addresses: tuple[str, ...] = ()  # networks a client must come from; () = anywhere
    loop_limit: int = 0  # the same prompt of its agent more often than this a minute is told; 0 = nobody counts


class WarmRecord(msgspec.Struct, frozen=True, array_like=True):
    """A question whose answer workers keep before anybody asks it, as it is asked with this key."""

    id: int
    key_id: int
    model: str
    system: str  # blank = none
    question: str


class PoolRecord(msgspec.Struct, frozen=True, array_like=True):
    """A pool as workers know it (balances come by grants, never in here)."""

    id: int
    name: str
    mode: str = "hard"  # "hard", "soft", "observe"
    enabled: bool = True
    window_start: int = 0  # 0 = lifetime
    window_end: int = 0  # Unix seconds at which the next window begins; 0 = never
    units: tuple[int, ...] = (0,)  # Unit values that have a limit; what has none is only counted
    shorten: bool = False  # an output limit that does not fit may be lowered
    team_id: int = 0  # a project pool: the keys of this team may name it; 0 = nobody's


class PriceRecord(msgspec.Struct, frozen=True, array_like=True):
    """A dated price row. Amounts are integer pico-USD per token (1 USD per million tokens = 1_000_000 pico per token)
    except `request`, pico-USD per request. The classes are disjoint: a token is paid once."""

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
    input_audio: int | None = None  # None = as input; likewise below
    output_audio: int | None = None  # None = as output
    input_image: int | None = None
    route: str = ""  # only on the route of this name; such a row wins over all others
    from_tokens: int = 0  # applies to requests with at least so many input tokens (providers' long-context tiers)
    imported: bool = False  # from a price list: an operator's own rows win over it


class HoldRecord(msgspec.Struct, array_like=True, gc=False):
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
    draws: tuple[Draw, ...] = ()  # () in records of before there were several: `tokens` of `pool_id`
    price_id: int = 0
    input_pico: int = 0  # the dearest input and output token of the price in force, and the price of the request
    output_pico: int = 0
    request_pico: int = 0


class UsageRecord(msgspec.Struct, array_like=True, gc=False):
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
    input_audio_tokens: int = 0  # parts of the input and output tokens above
    output_audio_tokens: int = 0
    input_image_tokens: int = 0
    draws: tuple[Draw, ...] = ()


def draws_of(record: HoldRecord | UsageRecord) -> tuple[Draw, ...]:
    """The purses a record draws on; a record of before there were several drew on the tokens of one pool."""
    if record.draws:
        return record.draws
    held = record.tokens if isinstance(record, HoldRecord) else record.held
    return (Draw(record.pool_id, Unit.TOKENS, record.window_start, held),)
