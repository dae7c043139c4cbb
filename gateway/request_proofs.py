"""From a request's id to its place in the audit log: every attempt's record, the batch it was settled in, the entry.

This is where usage rows, which belong to the ledger, and the log, which knows nothing of them, meet. Control's only.
"""

from __future__ import annotations

import re
from typing import Any

from audit import proving
from budgets.models import ApiKey, Usage
from budgets.usage_leaf import record_of

MAX_ATTEMPTS = 50
_ID = re.compile(r"[0-9a-f]{32}\Z")


def request_id(text: str) -> str | None:
    """The id as rows have it, from how people write it (a UUID's dashes, capitals); None when it is none."""
    rid = text.strip().replace("-", "").lower()
    return rid if _ID.match(rid) else None


def usage_of(rid: str, team_id: int | None = None) -> list[Usage]:
    """The usage rows of a request, one for each attempt, oldest first; of one team only when that is given."""
    rows = Usage.objects.filter(rid=rid).order_by("attempt")
    return list((rows if team_id is None else rows.filter(team_id=team_id))[:MAX_ATTEMPTS])


def team_of(key: ApiKey) -> int:
    """The team whose requests a key may have proven."""
    return int(key.agent.team_id)


def proofs(rows: list[Usage], size: int | None = None) -> list[dict[str, Any]]:
    """One proof file for each attempt. Raises `proving.ProofError`."""
    return [proving.of_usage(proving.UsageRow(record_of(row), row.batch), size) for row in rows]


def find(rid: str) -> int | None:
    """The sequence number of the entry a request's last attempt is in; None when it is not in the log (yet)."""
    row = Usage.objects.filter(rid=rid).order_by("-attempt").only("batch").first()
    if row is None or row.batch is None:
        return None
    return proving.seq_of_batch(row.batch)
