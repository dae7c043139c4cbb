"""Drafts: what is saved and not published yet, who may publish it, and when it is published by itself.

The rows are the draft: there is one, shared by all operators. Where the version in force asks for drafts or a review,
saving a row publishes nothing; somebody publishes it, as it was when they looked at it, and under review whoever did
not take part in it. Switching a provider off does not wait for anybody.
"""

from __future__ import annotations

import datetime as dt
import logging
from typing import Any

import msgspec
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from audit.record import record
from providers import config, publish, revert, sequences, services
from providers.compile import compile_document
from providers.config import ConfigDocument
from providers.models import ConfigVersion, DraftChange, Provider, ScheduledPublication

log = logging.getLogger("hoosh.publish")

PUBLISH = "providers.change_gatewaysettings"
CHANGED = "The draft has changed since you looked at it. Look at it again."


class DraftError(Exception):
    """The draft may not be published by this person, or is not what they saw; the text says why."""


def authors() -> list[str]:
    """Who changed what waits, in the order of their first changes."""
    return list(dict.fromkeys(DraftChange.objects.order_by("id").values_list("author", flat=True)))


def in_force() -> ConfigDocument:
    """The document of the version in force; the default one before the first."""
    found = publish.latest()
    return config.unpack(found[1]) if found is not None else ConfigDocument()


def differs() -> bool:
    """Whether what is saved is not what is in force."""
    found = publish.latest()
    return found is None or config.digest(compile_document()) != config.digest(config.unpack(found[1]))


def refusal(actor: str) -> str:
    """Why this person may not publish the draft; "" = they may."""
    if publish.is_reviewed() and actor in authors():
        return "You changed this draft: somebody else has to publish it."
    return ""


def approve(actor: str, *, note: str = "", seen: str = "") -> ConfigVersion:
    """Publish the draft. `seen` is the digest of what its reviewer looked at; "" = whatever it is now.

    Raises `DraftError`, and `publish.PublishError` when it cannot run.
    """
    with transaction.atomic():
        sequences.locked(sequences.CONFIG)  # no row changes between the look and the publication
        if reason := refusal(actor):
            raise DraftError(reason)
        if seen and publish.draft_digest() != seen:
            raise DraftError(CHANGED)
        by = ", ".join(name for name in authors() if name != actor)
        told = (
            f"{note} (changes by {by})" if by and note else note or (f"changes by {by}" if by else "published by hand")
        )
        return publish.publish(actor, told)


def discard(actor: str, *, seen: str = "") -> list[str]:
    """Make the rows what the version in force says; warnings about what could not be undone. `seen` as in `approve`.

    Raises `DraftError`, and `RevertError`.
    """
    found = publish.latest()
    if found is None:
        raise DraftError("Nothing was published so far: there is nothing to go back to.")
    if seen and config.digest(compile_document()) != seen:
        raise DraftError(CHANGED)
    dropped = [f"{each.author}: {each.what}" for each in DraftChange.objects.all()[:50]]
    made = revert.revert(found[0], actor=actor, note="draft discarded")
    DraftChange.objects.all().delete()
    record("config.draft_discarded", actor=actor, target=f"Version {found[0]}", data={"dropped": dropped})
    for row in ScheduledPublication.objects.filter(state=ScheduledPublication.State.WAITING):
        cancel(row, actor, why=f"the draft was discarded by {actor}")
    return made.warnings


def disable_now(provider_id: int, actor: str) -> tuple[str, ConfigVersion]:
    """Switch a provider off in what is in force, whatever else waits, and in the draft; its name, and the version.

    Raises `DraftError` where there is none of this id, neither in force nor saved.
    """
    document = in_force()
    changed = tuple(
        msgspec.structs.replace(each, enabled=False) if each.id == provider_id else each for each in document.providers
    )
    row = Provider.objects.filter(pk=provider_id).first()
    name = next((each.name for each in document.providers if each.id == provider_id), row.name if row else "")
    if not name:
        raise DraftError("There is no such provider.")
    with transaction.atomic():
        version = publish.publish_document(
            msgspec.structs.replace(document, providers=changed), actor, f"provider {name} switched off"
        )
        if row is not None and row.enabled:
            row.enabled = False
            with publish.held_back():
                services.save_provider(row, actor=actor, address_class=row.address_class)
        record("provider.disabled_at_once", actor=actor, target=name, level="warning")
    return name, version


def schedule(actor: str, at: dt.datetime, *, seen: str, note: str = "") -> ScheduledPublication:
    """Publish the draft, as it is now, at a moment to come. Raises `ValidationError`, `DraftError`, `PublishError`."""
    if at <= timezone.now():
        raise ValidationError({"at": "This moment has passed."})
    with transaction.atomic():
        sequences.locked(sequences.CONFIG)
        if reason := refusal(actor):
            raise DraftError(reason)
        digest = publish.draft_digest()
        if seen and digest != seen:
            raise DraftError(CHANGED)
        row = ScheduledPublication.objects.create(at=at, author=actor[:150], note=note[:500], digest=digest)
        record("config.scheduled", actor=actor, target=str(row), data={"digest": digest, "note": note})
    return row


def cancel(row: ScheduledPublication, actor: str, *, why: str = "") -> bool:
    """Do not publish it; False when it was too late."""
    with transaction.atomic():
        waiting = ScheduledPublication.objects.filter(pk=row.pk, state=ScheduledPublication.State.WAITING)
        if not waiting.update(state=ScheduledPublication.State.CANCELLED, result=(why or f"by {actor}")[:500]):
            return False
        record("config.schedule_cancelled", actor=actor, target=str(row))
    return True


def publish_due() -> int:
    """Publish what is due; how many drafts were looked at. Control calls this every second."""
    due = ScheduledPublication.objects.filter(
        state=ScheduledPublication.State.WAITING, at__lte=timezone.now()
    ).order_by("at", "id")
    count = 0
    for row in due:
        count += 1
        _publish_scheduled(row)
    return count


def _check_still(author: str) -> None:
    """Whoever decided it may do so still. Raises `DraftError`."""
    user: Any = get_user_model()._default_manager.filter(**{get_user_model().USERNAME_FIELD: author}).first()
    if user is not None and not (user.is_active and user.is_staff and user.has_perm(PUBLISH)):
        raise DraftError("Who scheduled it may not publish any more.")


def _publish_scheduled(row: ScheduledPublication) -> None:
    try:
        _check_still(row.author)
        version = approve(row.author, note=row.note or "scheduled", seen=row.digest)
    except (DraftError, publish.PublishError) as exc:
        row.state, row.result = ScheduledPublication.State.FAILED, str(exc)[:500]
        record(
            "config.schedule_failed", actor=row.author, target=str(row), level="error", data={"reason": str(exc)[:500]}
        )
        log.error("config.schedule_failed", extra={"author": row.author, "reason": str(exc)[:500]})
    else:
        row.state, row.result = ScheduledPublication.State.DONE, str(version)
    row.save(update_fields=["state", "result"])
