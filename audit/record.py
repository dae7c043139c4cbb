"""The only writer of audit entries. Call it inside the transaction of the change it records."""

from __future__ import annotations

from typing import Any

from audit.models import OutboxEntry


def record(
    action: str, *, actor: str = "", target: str = "", level: str = "info", data: dict[str, Any] | None = None
) -> None:
    """Append one entry. `action` is dotted ("key.created"); `data` must hold neither secrets nor prompt text."""
    OutboxEntry.objects.create(action=action, actor=actor, target=target, level=level, data=data or {})
