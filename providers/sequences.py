"""Change counters of configuration rows. Every write through `providers.services` moves one in its own transaction.

"config" covers what becomes the configuration document, "secrets" the credentials' ciphertexts, "cards" model cards.
A bump holds its row until the transaction ends, so changes become visible in the order of their numbers. A writer takes
its counters in the order above and before any other row: two that did otherwise could wait for each other.
"""

from __future__ import annotations

from django.db.models import F

from providers.models import Sequence

CONFIG, SECRETS, CARDS = "config", "secrets", "cards"


def bump(name: str) -> int:
    """Move a counter by one and return it. Call inside the transaction of the change."""
    if not Sequence.objects.filter(name=name).update(value=F("value") + 1):
        Sequence.objects.get_or_create(name=name)
        Sequence.objects.filter(name=name).update(value=F("value") + 1)
    return current(name)


def current(name: str) -> int:
    """The counter's value; 0 before the first change."""
    return Sequence.objects.filter(name=name).values_list("value", flat=True).first() or 0


def lock_all() -> None:
    """Hold every counter until the transaction ends: for writers that do not know beforehand which they will move."""
    for name in (CONFIG, SECRETS, CARDS):
        locked(name)


def locked(name: str) -> int:
    """The counter's value, held until the transaction ends."""
    row = Sequence.objects.select_for_update().filter(name=name).first()
    if row is None:
        Sequence.objects.get_or_create(name=name)
        row = Sequence.objects.select_for_update().get(name=name)
    return row.value
