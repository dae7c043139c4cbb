"""What waits for an operator's decision: quarantined leases and what is known about them; and holds that are open now.

Reads only: the ledger, the site's pools and the journal directory of this host.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
from django.conf import settings
from django.db import connections

from budgets import amounts, bad_journals, journal, retention, rollups
from budgets.bad_journals import Contents
from budgets.journal_reader import JournalReader
from budgets.models import JournalPosition, Lease, Pool, Usage

_BATCH = 500
_LOCK = ".lock"


class LeaseLeft(msgspec.Struct):
    """What is left in one quarantined lease. `amount` is tokens or pico-USD, by `unit`."""

    pool_id: int
    pool: str
    unit: int
    window_start: int
    window: str
    amount: int


class Quarantined(msgspec.Struct):
    """A dead worker about whose leases somebody must decide."""

    owner: str
    reason: str  # why its journal is not trusted, as far as its files say
    leases: list[LeaseLeft]
    files: list[str]  # on this host
    records: int  # usage records that can be read
    new: int  # of them, not in the ledger
    open_holds: int
    open_tokens: int  # charged at most for those
    open_pico: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return msgspec.to_builtins(self)  # type: ignore[no-any-return]


class Held(msgspec.Struct):
    """The open holds of one worker. Amounts are what would be charged if it died now."""

    owner: str
    holds: int
    tokens: int
    pico: int
    oldest_s: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return msgspec.to_builtins(self)  # type: ignore[no-any-return]


def quarantined(directory: Path) -> list[Quarantined]:
    """Every owner of quarantined leases, and every one whose files were set aside on this host, by name."""
    leases: dict[str, list[LeaseLeft]] = {}
    rows = Lease.objects.filter(state=Lease.State.QUARANTINED).select_related("window").order_by("owner", "window")
    pools = Pool.objects.in_bulk({row.window.pool_id for row in rows})
    for row in rows:
        window, pool = row.window, pools.get(row.window.pool_id)
        span = amounts.span(window.window_start, window.window_end, pool.time_zone if pool else "UTC")
        name = pool.name if pool else f"pool {window.pool_id}"
        left = LeaseLeft(window.pool_id, name, window.unit, window.window_start, span, row.remaining)
        leases.setdefault(row.owner, []).append(left)
    owners = sorted({*leases, *bad_journals.owners(directory)})
    return [_described(directory, owner, leases.get(owner, [])) for owner in owners]


def running(directory: Path) -> list[Held]:
    """The workers of this host that have open holds, by name."""
    if not directory.is_dir():
        return []
    owners = sorted(path.name.removesuffix(_LOCK) for path in directory.glob(f"*{_LOCK}") if path.name != "writer.lock")
    known = JournalPosition.objects.filter(owner__in=owners).values_list("owner", "segment", "offset_bytes")
    positions = {owner: (segment, offset) for owner, segment, offset in known}
    found = (_held(directory, owner, positions.get(owner)) for owner in owners)
    return [held for held in found if held is not None]


def _described(directory: Path, owner: str, leases: list[LeaseLeft]) -> Quarantined:
    known_from_s = rollups.state(connections[settings.HOOSH_LEDGER_DB], retention.USAGE_FROM)
    try:
        read = bad_journals.contents(directory, owner, known_from_s=known_from_s)
    except OSError:
        reason = "its files are not in this host's journal directory"
        read = Contents(files=[], reason=reason, usage=[], open_holds=[])
    return Quarantined(
        owner=owner,
        reason=read.reason or "its journal can be read now",
        leases=leases,
        files=read.files,
        records=len(read.usage),
        new=_count_new(read.usage),
        open_holds=len(read.open_holds),
        open_tokens=sum(record.tokens for record in read.open_holds),
        open_pico=sum(record.cost_pico for record in read.open_holds),
    )


def _count_new(usage: list[tuple[str, int]]) -> int:
    wanted = set(usage)
    for start in range(0, len(usage), _BATCH):
        request_ids = [rid for rid, _attempt in usage[start : start + _BATCH]]
        wanted -= set(Usage.objects.filter(rid__in=request_ids).values_list("rid", "attempt"))
    return len(wanted)


def _held(directory: Path, owner: str, position: tuple[int, int] | None) -> Held | None:
    try:
        reader = JournalReader(directory, owner, position)
        try:
            segments = journal.list_segments(directory, owner)
            while not reader.read(segments, dead=False, limit=_BATCH).at_end:
                pass
            records = reader.unfinished()
        finally:
            reader.close()
    except FileNotFoundError:
        return None  # settled and removed just now
    if not records:
        return None
    oldest_us = min(record.at_us for record in records)
    tokens, pico = sum(record.tokens for record in records), sum(record.cost_pico for record in records)
    return Held(owner, len(records), tokens, pico, max(0.0, time.time() - oldest_us / 1e6))
