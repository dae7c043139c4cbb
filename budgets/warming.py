"""Questions asked ahead: the only writer of the list, and its feed to the workers (`gateway.warming`)."""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.db import transaction

from audit.changes import changed_fields, object_of, recordable
from audit.record import record
from budgets.access import bump
from budgets.models.access import WarmQuestion
from budgets.records import WarmRecord

WARMING = "warming"  # the sequence that moves with each change
_TEXTS = ("question", "system")
QUESTIONS_MAX = 1_000  # enabled ones: every worker asks each of them


def save_question(row: WarmQuestion, *, actor: str) -> WarmQuestion:
    """Create or change a question; workers act on it within a second or so. Nothing changed = nothing done."""
    before = WarmQuestion.objects.filter(pk=row.pk).first() if row.pk else None
    row.full_clean()
    changes = changed_fields(before, row)
    if before is not None and not changes:
        return row
    with transaction.atomic():
        bump(WARMING)  # its row is locked from here on: of several writers one counts at a time
        others = WarmQuestion.objects.filter(enabled=True).exclude(pk=row.pk).count()
        if row.enabled and others >= QUESTIONS_MAX:
            raise ValidationError(f"At most {QUESTIONS_MAX} questions can be enabled.")
        if before is None:
            row.save(force_insert=True)
        else:
            row.save(update_fields=list(changes))
        action = "created" if before is None else "changed"
        data = {"object": object_of(row), "fields": recordable(changes, texts=_TEXTS)}
        record(f"warm_question.{action}", actor=actor, target=_named(row), data=data)
    return row


def delete_question(row: WarmQuestion, *, actor: str) -> None:
    """Delete a question. What is kept of it stays until its time is over."""
    with transaction.atomic():
        bump(WARMING)
        record("warm_question.deleted", actor=actor, target=_named(row), data={"object": object_of(row)})
        row.delete()


def _named(row: WarmQuestion) -> str:
    """What entries call a question: nothing of its texts, which are in no log."""
    return f"{row.model} #{row.pk}"[:200]


def records() -> list[WarmRecord]:
    """What is enabled, as workers know it."""
    rows = WarmQuestion.objects.filter(enabled=True).order_by("id")
    return [WarmRecord(row.pk, row.key_id, row.model, row.system, row.question) for row in rows]
