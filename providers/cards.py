"""Finding the card of a model among all cards. Pure.

Operators' own cards come before imported ones, whatever their patterns. In each of the two the pattern with the most
literal characters wins. Where an own card says nothing, the imported one speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import msgspec

from providers.config import CardDoc
from providers.globs import matcher, specificity

REMEMBERED = 4096
_FILLED = ("display_name", "context_tokens", "max_output_tokens", "capabilities")  # from an imported card where blank

T = TypeVar("T")


class Patterns(Generic[T]):
    """Things by glob: the one whose pattern fits a name and is the most specific."""

    def __init__(self, things: Sequence[tuple[str, T]]) -> None:
        self._exact: dict[str, T] = {}
        globs: list[tuple[str, T]] = []
        for pattern, thing in things:
            if "*" in pattern:
                globs.append((pattern, thing))
            else:
                self._exact.setdefault(pattern, thing)
        globs.sort(key=lambda each: specificity(each[0]), reverse=True)
        self._globs: list[tuple[Callable[[str], bool], T]] = [(matcher(pattern), thing) for pattern, thing in globs]

    def find(self, name: str) -> T | None:
        """The thing for a name, if any pattern fits."""
        exact = self._exact.get(name)
        return exact if exact is not None else next((thing for test, thing in self._globs if test(name)), None)

    @property
    def names(self) -> tuple[str, ...]:
        """The patterns that are plain names."""
        return tuple(self._exact)


class CardBook:
    """All model cards; answers are remembered per name."""

    def __init__(self, cards: Sequence[CardDoc]) -> None:
        self._own = Patterns([(card.pattern, card) for card in cards if not card.imported])
        self._imported = Patterns([(card.pattern, card) for card in cards if card.imported])
        self._known: dict[str, CardDoc] = {}

    def find(self, model: str) -> CardDoc:
        """The card of a model, or an empty card when none matches."""
        card = self._known.get(model)
        if card is None:
            card = self._find(model)
            if len(self._known) >= REMEMBERED:
                self._known.pop(next(iter(self._known)))
            self._known[model] = card
        return card

    @property
    def names(self) -> tuple[str, ...]:
        """The names of models that have a card of their own, sorted."""
        return tuple(sorted({*self._own.names, *self._imported.names}))

    def _find(self, model: str) -> CardDoc:
        own, imported = self._own.find(model), self._imported.find(model)
        if own is None or imported is None:
            return own or imported or CardDoc(pattern="")
        blank = {name: getattr(imported, name) for name in _FILLED if not getattr(own, name)}
        return msgspec.structs.replace(own, **blank)
