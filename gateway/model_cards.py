"""What a model is and can do, as `GET /v1/models/{id}` and `/v1/models/catalog` tell it. Pure, from a snapshot.

A model is described by those who answer it, in the order in which they are tried. What is said of the model as a whole
is said of the first. A capability that nobody has declared is null, which is not the same as false.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gateway.errors import ModelNotFoundError
from providers.card_labels import capabilities, tier
from providers.globs import any_matcher, is_valid, matcher

if TYPE_CHECKING:
    from budgets.records import PriceRecord
    from gateway.snapshot import Candidate, Key, Snapshot
    from providers.config import CardDoc
    from providers.routing import Step

SLICE = 25  # models described between two yields: about 3 ms when nothing is remembered yet
_ANSWERS = frozenset(("chat", "completions"))
_CLASSES = ("input", "output", "cached_read", "cache_write", "reasoning", "input_audio", "output_audio", "input_image")
_LOCAL = frozenset(("loopback", "private", "unix"))


def describe(snapshot: Snapshot, model: str, *, at: float | None = None) -> dict[str, Any]:
    """The extended model object. Raises `ModelNotFoundError` when no provider answers it.

    `at` is the time of the prices in Unix seconds; None = now.
    """
    moment = time.time() if at is None else at
    answers = [_Answer(snapshot, candidate, step, moment) for candidate, step in _candidates(snapshot, model)]
    if not answers:
        raise ModelNotFoundError(model)
    providers = [answer.told() for answer in answers]
    first, told = answers[0], providers[0]
    return {
        "id": model,
        "object": "model",
        "created": 0,
        "owned_by": told["name"],
        "name": first.card.display_name or model,
        "tier": tier(first.labels),
        **{name: told[name] for name in ("context_length", "max_output_tokens", "capabilities", "pricing")},
        "providers": providers,
    }


def catalog(snapshot: Snapshot, key: Key, names: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Every model the key may use, described, sorted by name; see `catalog_in_slices`."""
    found: list[dict[str, Any]] = []
    for made in catalog_in_slices(snapshot, key, names):
        found = made or found
    return found


def catalog_in_slices(snapshot: Snapshot, key: Key, names: Iterable[str] = ()) -> Iterator[list[dict[str, Any]] | None]:
    """The models of the plain list, and of `names` (those that have a card of their own) the ones that a pattern with
    literal text serves where the plain list knows no model behind that pattern.

    Yields None between slices and the finished list at the end.
    """
    listed = {name for name, _ in snapshot.models}
    test = _unlisted(snapshot, listed)
    wanted = sorted(listed.union(name for name in names if test(name) and is_valid(name)))
    moment = time.time()
    found: list[dict[str, Any]] = []
    for number, name in enumerate(wanted, 1):
        if key.may_use is None or key.may_use(name):
            try:
                found.append(describe(snapshot, name, at=moment))
            except ModelNotFoundError:
                continue  # nobody can be asked for it at present
        if number % SLICE == 0:
            yield None
    yield found


def _unlisted(snapshot: Snapshot, listed: Iterable[str]) -> Callable[[str], bool]:
    """A test for names behind patterns whose provider has not listed anything that fits."""
    names = tuple(listed)
    patterns = {candidate.route.pattern for candidate in snapshot.candidates.values()}
    silent = [
        pattern
        for pattern in patterns
        if "*" in pattern and pattern.strip("*") and not any(map(matcher(pattern), names))
    ]
    return any_matcher(silent)


def _candidates(snapshot: Snapshot, model: str) -> list[tuple[Candidate, Step]]:
    """Who answers a model, each provider and upstream model once; without the stand-ins for when all of them fail."""
    steps = snapshot.table.plan(model).steps
    own = [step for step in steps if not step.reason.startswith("fallback ")]
    found: dict[tuple[int, str], tuple[Candidate, Step]] = {}
    for step in own or steps:
        candidate = snapshot.candidates.get(step.route.id)
        if candidate is not None:
            found.setdefault((candidate.provider.id, step.model), (candidate, step))
    return list(found.values())


class _Answer:
    """One provider's answer to a model."""

    __slots__ = ("_at", "_candidate", "_snapshot", "_step", "card", "labels")

    def __init__(self, snapshot: Snapshot, candidate: Candidate, step: Step, at: float) -> None:
        self._snapshot, self._candidate, self._step, self._at = snapshot, candidate, step, at
        self.card: CardDoc = snapshot.cards.find(step.model)
        self.labels = (*self.card.capabilities, *step.route.capabilities)

    def told(self) -> dict[str, Any]:
        """It as JSON."""
        provider, route = self._candidate.provider, self._step.route
        limits = [limit for limit in (self.card.max_output_tokens, route.output_cap) if limit]
        return {
            "name": provider.name,
            "kind": provider.kind,
            "local": provider.address_class in _LOCAL,
            "route": route.name,
            "model": self._step.model,
            "endpoints": sorted(self._candidate.serves),
            "context_length": self.card.context_tokens,
            "max_output_tokens": min(limits, default=None),
            "capabilities": self._capabilities(),
            "pricing": self._pricing(),
        }

    def _capabilities(self) -> dict[str, bool | None]:
        """What the labels say, within what the provider can be asked for at all."""
        can, serves = capabilities(self.labels), self._candidate.serves
        if serves.isdisjoint(_ANSWERS):
            can["streaming"] = False
        if "embeddings" not in serves:
            can["embeddings"] = False
        return can

    def _pricing(self) -> dict[str, Any]:
        provider, step = self._candidate.provider, self._step
        price = self._snapshot.prices.find(provider.name, provider.kind, step.model, self._at, route=step.route.name)
        if price is not None:
            return {"state": "known", **_amounts(price)}
        return {"state": "free" if self._candidate.free else "unknown"}


def _amounts(price: PriceRecord) -> dict[str, str]:
    """USD per million tokens by class, those that have a price of their own, as exact decimal numbers."""
    found = {f"{name}_usd_per_mtok": getattr(price, name) for name in _CLASSES}
    told = {name: _plain(Decimal(pico).scaleb(-6)) for name, pico in found.items() if pico is not None}
    return told | ({"request_usd": _plain(Decimal(price.request).scaleb(-12))} if price.request else {})


def _plain(amount: Decimal) -> str:
    return f"{amount.normalize():f}"
