"""Bringing lists of model cards into rows: what would change, and writing it.

Imported cards are rows of their own that follow the lists: new, changed and removed. The cards of operators are neither
read nor written; `providers.cards` puts them first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from django.db import transaction

from audit.record import record
from providers import sequences
from providers.card_list import Facts, Listed
from providers.models import ModelCard

_BATCH_ROWS = 200


class CardsMovedError(Exception):
    """The rows changed between the plan and its writing; nothing was written."""


class Change(NamedTuple):
    """One imported card. `before` None = it is new, `after` None = it goes."""

    pattern: str
    before: Facts | None
    after: Facts | None
    source: str


@dataclass(slots=True)
class Plan:
    """What an import would do. `own` are patterns of the lists for which an operator's own card stands first."""

    changes: list[Change] = field(default_factory=list)
    unchanged: int = 0
    own: list[str] = field(default_factory=list)


def plan(wanted: Mapping[str, Listed], *, removes: bool = True) -> Plan:
    """Compare lists with the imported rows. Writes nothing. `removes`: rows that are in no list go."""
    rows = {row.pattern: row for row in ModelCard.every.exclude(source="")}
    found = Plan()
    for pattern in sorted(rows.keys() | wanted.keys()):
        row, listed = rows.get(pattern), wanted.get(pattern)
        if listed is None and not removes:
            continue
        before = None if row is None else Facts(*(getattr(row, name) for name in Facts._fields))
        after = None if listed is None else listed.facts
        if before == after:
            found.unchanged += 1
            continue
        source = listed.source if listed is not None else row.source if row is not None else ""
        found.changes.append(Change(pattern, before, after, source))
    own = ModelCard.objects.values_list("pattern", flat=True).order_by("pattern")
    found.own = [pattern for pattern in own if pattern in wanted]
    return found


def apply(wanted: Mapping[str, Listed], planned: Plan, *, actor: str, removes: bool = True) -> int:
    """Write what was planned from the same lists, with one audit entry; the number of rows. `CardsMovedError` when the
    rows are not those any more that were compared."""
    with transaction.atomic():
        sequences.bump(sequences.CARDS)  # from here on nobody else writes cards
        if plan(wanted, removes=removes).changes != planned.changes:
            raise CardsMovedError("The model cards have changed in the meantime. Nothing was written; look again.")
        kinds = _write(planned.changes)
        if planned.changes:
            sources = sorted({change.source for change in planned.changes})
            record("card.imported", actor=actor, target=", ".join(sources)[:200], data=kinds)
    return len(planned.changes)


def _write(changes: Iterable[Change]) -> dict[str, int]:
    new: list[ModelCard] = []
    gone: list[str] = []
    changed = 0
    for pattern, before, after, source in changes:
        if after is None:
            gone.append(pattern)
            continue
        row = ModelCard(pattern=pattern, source=source, **after._asdict())
        row.clean_fields()
        if before is None:
            new.append(row)
        else:
            values = {**after._asdict(), "source": source}
            changed += ModelCard.every.exclude(source="").filter(pattern=pattern).update(**values)
    ModelCard.every.bulk_create(new, batch_size=_BATCH_ROWS)
    for start in range(0, len(gone), _BATCH_ROWS):
        ModelCard.every.exclude(source="").filter(pattern__in=gone[start : start + _BATCH_ROWS]).delete()
    return {"created": len(new), "changed": changed, "removed": len(gone)}
