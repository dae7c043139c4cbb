"""What changed in a row, in a form that may be recorded. Used by the services of the applications above."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from datetime import datetime

from django.db import models

from audit.canonical import text_of

Changes = dict[str, tuple[object, object]]

_UNRECORDED = frozenset({"ciphertext", "digest", "seq"})
_TEXT_LIMIT = 200


def changed_fields(before: models.Model | None, row: models.Model) -> Changes:
    """Field name -> (old, new) of what differs; for a new row (`before` is None) everything that is not blank."""
    found: Changes = {}
    for field in row._meta.concrete_fields:
        name = field.attname
        if field.primary_key or name in ("created_at", "updated_at", "used_at"):
            continue
        old, new = (None if before is None else getattr(before, name)), getattr(row, name)
        if old != new and not (before is None and new in ("", None)):
            found[name] = (old, new)
    return found


def recordable(
    changes: Mapping[str, tuple[object, object]], *, texts: Collection[str] = ()
) -> dict[str, list[str | None]]:
    """Changes as text: ciphertexts and digests left out, long texts by their SHA-256; those of the fields `texts`,
    which models are sent, whatever their length."""
    return {
        name: [_shown(value, 0 if name in texts else _TEXT_LIMIT) for value in pair]
        for name, pair in changes.items()
        if name not in _UNRECORDED
    }


def object_of(row: models.Model) -> str:
    """How entries name a stored row for good, whatever it is called later: "budgets.pool:7". For `data["object"]`."""
    return f"{row._meta.label_lower}:{row.pk}"


def _shown(value: object, limit: int) -> str | None:
    if value is None:
        return None
    text = text_of(value) if isinstance(value, bool | datetime) else str(value)
    return text if len(text) <= limit else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
