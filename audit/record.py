"""The only writer of what is on its way into the log. Call it inside the transaction of the change it records."""

from __future__ import annotations

from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from audit.models import LedgerOutboxEntry, OutboxEntry


def record(
    action: str,
    *,
    actor: str = "",
    target: str = "",
    level: str = "info",
    data: dict[str, Any] | None = None,
    personal: dict[str, Any] | None = None,
    about: bool = False,
) -> None:
    """Note one event. `action` is dotted ("key.created"); `data` must hold neither secrets nor prompt text.

    `about` says that the target is a person. What else tells of a person (an address, a mail address) goes into
    `personal`, which is sealed with a key that can be destroyed: the target's where it is a person, else the actor's.
    """
    if personal and not (target if about else actor):
        raise ValueError("what is personal needs a person it belongs to")
    OutboxEntry.objects.create(
        action=action,
        actor=actor,
        target=target,
        level=level,
        data=data or {},
        personal=personal or {},
        about=about,
    )


def record_ledger(
    connection: BaseDatabaseWrapper,
    action: str,
    *,
    actor: str = "",
    target: str = "",
    level: str = "info",
    data: dict[str, Any] | None = None,
) -> None:
    """Note one event in a transaction of the ledger's writer, on its `connection`."""
    LedgerOutboxEntry.objects.using(connection.alias).create(
        action=action, actor=actor, target=target, level=level, data=data or {}
    )
