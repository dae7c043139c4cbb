"""What changed in a row, in a form that may be recorded. Used by the services of the applications above."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from django.db import models

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


def recordable(changes: Mapping[str, tuple[object, object]]) -> dict[str, list[str | None]]:
    """Changes as text: ciphertexts and digests left out, long texts by their SHA-256."""
    return {name: [_shown(old), _shown(new)] for name, (old, new) in changes.items() if name not in _UNRECORDED}


def object_of(row: models.Model) -> str:
    """How entries name a stored row for good, whatever it is called later: "budgets.pool:7". For `data["object"]`."""
    return f"{row._meta.label_lower}:{row.pk}"


def _shown(value: object) -> str | None:
    if value is None:
        return None
    text = str(value)
    return text if len(text) <= _TEXT_LIMIT else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
