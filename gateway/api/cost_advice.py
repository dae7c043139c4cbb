"""What a request would cost before it is made, and which model would be the cheapest that can do it.

Both look at what workers run by: the published configuration, the price rows and the model cards.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from django.db.models import Max

from budgets import access
from budgets.models import ApiKey, Price
from budgets.models.fields import usd
from budgets.prices import PriceBook, cost
from budgets.records import PRICE_FREE
from gateway.api.cost_report import amounts
from gateway.errors import ModelNotFoundError, NotFoundError
from providers import feed, publish, validation
from providers.card_labels import TIERS as KNOWN_TIERS
from providers.card_labels import embeds_only
from providers.cards import CardBook
from providers.catalog import is_local
from providers.config import CardDoc, ProviderDoc, SettingsDoc, unpack
from providers.globs import any_matcher
from providers.routing import RouteTable, Step

TIERS = tuple(KNOWN_TIERS)  # ascending; a label among a card's capabilities
NO_SYSTEM = "no-system"  # the label of models that take no system prompt
_MANY_TOKENS, _MANY_WITH_TOOLS = 10_000, 2_000


class _World(NamedTuple):
    table: RouteTable
    providers: Mapping[int, ProviderDoc]
    patterns: tuple[str, ...]  # of enabled routes without "*"


class _Quote(NamedTuple):
    price: str  # "known", "free", "unknown"
    price_id: int | None
    pico: int | None


class _Choice(NamedTuple):
    pico: int
    rank: int
    model: str
    step: Step
    provider: ProviderDoc
    price_id: int | None


def estimate(model: str, key: ApiKey | None, *, input_tokens: int, output_tokens: int) -> dict[str, Any]:
    """What a request would cost at the candidate that is tried first. Raises `ModelNotFoundError`.

    To a key a model it may not use does not exist.
    """
    world = _world()
    may_use = _may_use(key)
    steps = world.table.plan(model).steps if may_use is None or may_use(model) else ()
    if not steps:
        raise ModelNotFoundError(model)
    provider = world.providers[steps[0].route.provider_id]
    quote = _quote(_book(), provider, steps[0], input_tokens, output_tokens)
    told: dict[str, Any] = {"estimated_cost_micro_usd": None, "estimated_cost_usd": None}
    if quote.pico is not None:
        told = amounts(usd(quote.pico), "estimated_cost")
    return {
        "model": model,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "provider": provider.name,
        "route": steps[0].route.name,
        "upstream_model": steps[0].model,
        "price": quote.price,
        "price_id": quote.price_id,
        **told,
    }


def recommend(needs: Mapping[str, Any], key: ApiKey | None) -> dict[str, Any]:
    """The cheapest model that can do what `needs` says, of those that routes name exactly and the key may use.

    Raises `NotFoundError` that says why when there is none.
    """
    required = required_tier(needs)
    reasons: Counter[str] = Counter()
    choices = sorted(_choices(needs, TIERS.index(required), key, reasons), key=lambda choice: choice[:3])
    if not choices:
        why = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
        seen = f"Of {reasons.total()} routes that name one model: {why}." if reasons else "No route names one model."
        raise NotFoundError(f"No model qualifies. {seen}", code="no_model_qualifies")
    best = choices[0]
    return {
        "model": best.model,
        "provider": best.provider.name,
        "route": best.step.route.name,
        "tier": TIERS[best.rank],
        "required_tier": required,
        "price_id": best.price_id,
        **amounts(usd(best.pico), "estimated_cost"),
    }


def required_tier(needs: Mapping[str, Any]) -> str:
    """The least tier: images, tools with a longer prompt and very long prompts need a standard model."""
    tokens = needs["input_tokens"]
    is_hard = needs["has_vision"] or tokens > _MANY_TOKENS or (needs["uses_tools"] and tokens > _MANY_WITH_TOOLS)
    return "standard" if is_hard else "economy"


def _choices(needs: Mapping[str, Any], least: int, key: ApiKey | None, reasons: Counter[str]) -> Iterator[_Choice]:
    """Every model that qualifies; the others are counted in `reasons`."""
    world, book, cards = _world(), _book(), CardBook(feed.cards()[1])
    may_use = _may_use(key)
    for model in world.patterns:
        steps = world.table.plan(model).steps
        if not steps or (may_use is not None and not may_use(model)):
            continue
        step, provider = steps[0], world.providers[steps[0].route.provider_id]
        card = cards.find(step.model)
        labels = frozenset((*card.capabilities, *step.route.capabilities))
        rank = max((TIERS.index(label) for label in labels if label in TIERS), default=0)
        quote = _quote(book, provider, step, needs["input_tokens"], needs["max_output_tokens"])
        reason = _reason_against(needs, card, labels)
        if not reason and rank < least:
            reason = f"below the tier {TIERS[least]}"
        if not reason and quote.pico is None:
            reason = "without a known price"
        if reason:
            reasons[reason] += 1
        elif quote.pico is not None:
            yield _Choice(quote.pico, rank, model, step, provider, quote.price_id)


def _may_use(key: ApiKey | None) -> Callable[[str], bool] | None:
    """Which models a key may use; None = all."""
    allowed = validation.split(key.models_allowed) if key is not None else ()
    return any_matcher(allowed) if allowed else None


def _reason_against(needs: Mapping[str, Any], card: CardDoc, labels: frozenset[str]) -> str:
    if embeds_only(labels):
        return "for embeddings only"
    if card.context_tokens is None:
        return "without a model card that names the context"
    if needs["input_tokens"] + needs["max_output_tokens"] > card.context_tokens:
        return "with too small a context"
    if card.max_output_tokens is not None and needs["max_output_tokens"] > card.max_output_tokens:
        return "with too short an output"
    if needs["uses_tools"] and "tools" not in labels:
        return "without tools"
    if needs["has_vision"] and "vision" not in labels:
        return "without vision"
    return "without a system prompt" if needs["has_system_prompt"] and NO_SYSTEM in labels else ""


def _quote(book: PriceBook, provider: ProviderDoc, step: Step, input_tokens: int, output_tokens: int) -> _Quote:
    price = book.find(
        provider.name, provider.kind, step.model, time.time(), route=step.route.name, input_tokens=input_tokens
    )
    if price is not None:
        return _Quote("known", price.id, cost(price, input=input_tokens, output=output_tokens))
    if is_local(provider.kind, provider.address_class):
        return _Quote("free", PRICE_FREE, 0)
    return _Quote("unknown", None, None)


def _world() -> _World:
    latest = publish.latest()
    if latest is None:
        return _World(RouteTable((), {}, (), SettingsDoc()), {}, ())
    return _world_of(*latest)


@lru_cache(maxsize=1)
def _world_of(number: int, packed: bytes) -> _World:
    document = unpack(packed)
    providers = {provider.id: provider for provider in document.providers}
    table = RouteTable(document.routes, providers, document.policies, document.settings, number)
    names = dict.fromkeys(route.pattern for route in document.routes if route.enabled and "*" not in route.pattern)
    return _World(table, providers, tuple(names))


def _book() -> PriceBook:
    return _book_of(access.sequences()[access.PRICES], Price.objects.aggregate(newest=Max("created_at"))["newest"])


@lru_cache(maxsize=1)
def _book_of(seq: int, newest: object) -> PriceBook:
    """The book of all rows, kept until a row is added (`newest` also tells a restored database)."""
    return PriceBook.build(access.prices())
