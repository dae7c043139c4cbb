"""What one upstream call may cost, and the hold of that in every pool of its request. See `budgets.desk`.

`choose_pools` decides what a request draws on, `hold` reserves the upper bound of one call, in tokens and in money,
before anything is sent; what does not fit is waited for, then shortened where the pool says so, then refused with the
numbers.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from budgets.bound import SHORTEST_LIMIT, affordable, fitting_limit, output_limit
from budgets.chain import Chain
from budgets.desk import NoLeaseError, PoolDisabledError, PoolSpentError
from budgets.journal import JournalError
from budgets.prices import PICO_PER_USD, PriceBound
from budgets.records import PRICE_FREE, PRICE_UNKNOWN, Draw, Unit
from gateway.attempt import Attempt
from gateway.dialects import names
from gateway.errors import (
    BadRequestError,
    BudgetExceededError,
    ForbiddenError,
    GatewayError,
    GatewayUnavailableError,
    PriceUnknownError,
)
from gateway.snapshot import Candidate, Line, Snapshot
from providers.canonical import Call
from providers.routing import Step

if TYPE_CHECKING:
    from gateway.pipeline import Job

FREE = PriceBound(PRICE_FREE, 0, 0, 0)
UNKNOWN = PriceBound(PRICE_UNKNOWN, 0, 0, 0)
# What makes tokens dearer, not more: a matter of money only. Anything else that a call may ask of its provider
# (searches, tools that the provider runs, contents it keeps) also brings input that no bound covers.
ONLY_DEARER = frozenset({"service_tier", "cache_control", "speed", "inference_geo"})
SHORTENED_WAIT_S = 1.0  # for control's grant of what was seen to be left
# Answers that are read by programs are of no use when they are cut.
_STRUCTURED = frozenset(
    {
        *("tools", "functions", "response_format", "structured_outputs"),
        *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "json_schema", "grammar", "format"),
    }
)


def choose_pools(job: Job, snapshot: Snapshot) -> None:
    """Set the pools the request draws on: the key's budgets, and the pool that was named or the key's default.

    Raises 400 for a name nobody knows and 403 for a pool the key may not name.
    """
    call, head, key = job.call, job.head, job.key
    assert call is not None
    assert head is not None
    assert key is not None
    record = key.record
    job.pool_id, job.pool_ids = record.pool_id, key.pool_ids
    if not head.pool and call.pool is None:
        return
    in_header = head.pool.decode("utf-8", "replace")
    if in_header and call.pool is not None and in_header != call.pool:
        raise BadRequestError("The header 'x-hoosh-pool' and the field 'pool' name different pools.", param="pool")
    named = in_header or call.pool or ""
    pool = snapshot.pools_by_name.get(named)
    if pool is None:
        raise BadRequestError(f"There is no pool named '{named[:100]}'.", param="pool", code="unknown_pool")
    if pool.id == record.pool_id or pool.id in record.budget_ids:
        return
    if not ((pool.team_id and pool.team_id == record.team_id) or (key.may_name is not None and key.may_name(named))):
        raise ForbiddenError(
            f"This API key may not draw on the pool '{named[:100]}'.", code="pool_not_allowed", param="pool"
        )
    job.pool_id, job.pool_ids = pool.id, tuple(sorted({*record.budget_ids, pool.id}))


async def hold(job: Job, snapshot: Snapshot, candidate: Candidate, step: Step, line: Line) -> Attempt:
    """Reserve the upper bound of one upstream call and journal the hold. Raises the refusal when it does not fit."""
    runtime, call, endpoint = job.runtime, job.call, job.endpoint
    assert call is not None
    chain = chain_of(job)
    if endpoint.bounded is not None and chain.held:
        call = job.call = endpoint.bounded(call)
    if call.surcharge and (chain.limits_money or (chain.held and call.surcharge not in ONLY_DEARER)):
        raise surcharge_error(call)
    card = snapshot.cards.find(step.model)
    bound = endpoint.bound(call, card)
    price = price_bound(job, snapshot, candidate, step, chain, bound)
    limit: int | None = None
    if endpoint.generates:
        available: int | None = None
        if call.limit is None:
            room = runtime.desk.available(chain)
            available = affordable(room.tokens, room.pico, price.output_pico)
        limit = output_limit(
            asked=call.limit,
            card_max=card.max_output_tokens,
            default_cap=snapshot.settings.default_output_cap,
            route_cap=candidate.route.output_cap,
            available=available,
            choices=call.n,
        )
    attempt = Attempt(job, candidate, step, line, input_bound=bound, limit=limit, price=price)
    draws = runtime.desk.hold(chain, attempt.held, attempt.held_pico)
    if draws is None:
        draws = await wait_or_shorten(attempt, chain, snapshot.settings.hold_wait_s)
    try:
        attempt.begin(draws)
        attempt.journal_hold()
    except BaseException as exc:
        runtime.desk.release(draws)  # the journal knows nothing of it
        if not isinstance(exc, JournalError):
            raise
        raise GatewayUnavailableError(
            "The gateway cannot write its journal.", code="journal_unavailable", retry_after_s=5
        ) from exc
    return attempt


def chain_of(job: Job) -> Chain:
    """The purses the request draws on, as they are now: a further attempt may fall into the next window."""
    try:
        return job.runtime.desk.chain(job.pool_ids)
    except PoolDisabledError as disabled:
        raise disabled_error(job, disabled) from None


def price_bound(
    job: Job, snapshot: Snapshot, candidate: Candidate, step: Step, chain: Chain, input_bound: int
) -> PriceBound:
    """The dearest the call's tokens can be. Raises `PriceUnknownError` where that must be known and is not."""
    provider, route = candidate.provider, candidate.route
    # What has no price costs nothing here: then a price for some sizes only binds as far as it goes.
    partly = candidate.free or not chain.limits_money or snapshot.settings.unknown_price != "refuse"
    price = snapshot.prices.bound(
        provider.name,
        provider.kind,
        step.model,
        job.started_at_us / 1e6,
        route=route.name,
        input_tokens=input_bound,
        partly=partly,
    )
    if price is not None:
        return price
    if not partly:
        raise PriceUnknownError(provider.name, step.model)
    return FREE if candidate.free else UNKNOWN


async def hold_exactly(job: Job, snapshot: Snapshot, chain: Chain, pico: int) -> tuple[Draw, ...]:
    """Reserve a known sum of money, and no tokens. The caller books or releases it before it waits for anything.

    Raises the refusal when it does not fit.
    """
    try:
        return await job.runtime.desk.wait_hold(chain, 0, pico, snapshot.settings.hold_wait_s)
    except (PoolSpentError, NoLeaseError, PoolDisabledError) as exc:
        raise refusal_of(job, exc) from None


async def wait_or_shorten(attempt: Attempt, chain: Chain, timeout_s: float) -> tuple[Draw, ...]:
    """Wait for what a call lacks; when that does not come, try it with a shorter answer where the pools allow it."""
    job = attempt.job
    try:
        return await wait(attempt, chain, timeout_s)
    except PoolSpentError as spent:
        refusal = budget_error(job, spent)
    if not shorten(attempt):
        raise refusal
    try:
        return await wait(attempt, chain_of(job), SHORTENED_WAIT_S)
    except PoolSpentError as spent:
        raise budget_error(job, spent) from None


async def wait(attempt: Attempt, chain: Chain, timeout_s: float) -> tuple[Draw, ...]:
    """Wait for the holds of a call. Raises `PoolSpentError`; everything else as the caller is told it."""
    try:
        return await attempt.job.runtime.desk.wait_hold(chain, attempt.held, attempt.held_pico, timeout_s)
    except (NoLeaseError, PoolDisabledError) as exc:
        raise refusal_of(attempt.job, exc) from exc


def shorten(attempt: Attempt) -> bool:
    """Lower the call's output limit to what its pools have left, if they allow that and it is worth it."""
    job, desk, price = attempt.job, attempt.job.runtime.desk, attempt.price
    call = job.call
    assert call is not None
    chain = chain_of(job)
    if attempt.limit is None or not chain.shortens or not _STRUCTURED.isdisjoint(call.fields):
        return False
    room = desk.room_to_shorten(chain, attempt.held, attempt.held_pico)
    if room is None:
        return False
    limit = fitting_limit(
        tokens=room.tokens,
        pico=room.pico,
        input_bound=attempt.input_bound,
        choices=call.n,
        input_pico=price.input_pico,
        output_pico=price.output_pico,
        request_pico=price.request_pico,
    )
    if limit < SHORTEST_LIMIT:
        return False
    if limit < attempt.limit:
        attempt.shorten(limit)
    return True


def surcharge_error(call: Call) -> BadRequestError:
    """The 400 of a request that asks for what no bound covers, or what costs more than the prices say, on a pool with a
    limit on that."""
    if call.surcharge in ONLY_DEARER:
        text = "This may cost more than the prices known here, and a pool of this request limits money."
    else:
        text = "What the provider reads and runs for this cannot be bounded, and a pool of this request has a limit."
    field = names.told(call.names, call.surcharge)
    return BadRequestError(f"{text} Leave out '{field}'.", param=field)


def refusal_of(job: Job, exc: PoolSpentError | NoLeaseError | PoolDisabledError) -> GatewayError:
    """What the caller is told of a hold that could not be made."""
    match exc:
        case PoolSpentError():
            return budget_error(job, exc)
        case PoolDisabledError():
            return disabled_error(job, exc)
    return GatewayUnavailableError("The gateway cannot grant tokens right now.", code="no_lease", retry_after_s=1)


def disabled_error(job: Job, disabled: PoolDisabledError) -> ForbiddenError:
    """The 403 of a request one of whose pools is disabled."""
    assert job.snapshot is not None
    pool = job.snapshot.pools.get(disabled.pool_id)
    name = f"'{pool.name}' " if pool is not None else ""
    return ForbiddenError(f"The pool {name}of this request is disabled.", code="pool_disabled")


def budget_error(job: Job, spent: PoolSpentError) -> BudgetExceededError:
    """The 429 that carries the numbers."""
    assert job.snapshot is not None
    pool = job.snapshot.pools.get(spent.pool_id)
    name = pool.name if pool is not None else ""
    money = spent.unit == Unit.PICO_USD
    available, wanted = (
        (usd(spent.available), usd(spent.wanted)) if money else (str(spent.available), str(spent.wanted))
    )
    left, needed = (f"{available} USD", f"{wanted} USD") if money else (f"{available} tokens", wanted)
    text = f"The pool '{name}' has {left} left, this request may need up to {needed}. "
    if pool is not None and pool.mode == "soft":
        text = f"The pool '{name}' is spent: it has {left} left. "
    if spent.window_end:
        text += f"It begins anew at {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(spent.window_end))} UTC. "
    unit = b"usd" if money else b"tokens"
    return BudgetExceededError(
        text + "Ask for a smaller output limit, shorten the prompt, or have an operator raise the pool.",
        retry_after_s=spent.retry_after_s,
        extra_headers=(
            (b"x-hoosh-%b-available" % unit, available.encode("ascii")),
            (b"x-hoosh-%b-needed" % unit, wanted.encode("ascii")),
        ),
    )


def usd(pico: int) -> str:
    """Pico-USD as a decimal number of USD, exact and without superfluous zeros."""
    whole, part = divmod(pico, PICO_PER_USD)
    return f"{whole}.{part:012d}".rstrip("0").rstrip(".")
