"""The end of a dead worker's books: everything it left is settled, then its leases go back and its files go away.

Safe to repeat at any point: the database is always changed before the files are, and a settled journal settled once
more changes nothing.

From a damaged journal only what can be read is charged. The rest of its leases stays counted (quarantined), its files
from the first fault on are kept as `.bad` and an operator decides (`Ledger.resolve`); then they are renamed to
`.resolved`, for people to look at: nothing reads or removes those any more.

A journal that reaches back to usage rows that are deleted by now counts as damaged: whether what it says was charged
can no longer be seen. That happens to a host that was away for longer than usage rows are kept.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from budgets import journal, retention, rollups
from budgets.journal_reader import JournalReader
from budgets.ledger import Ledger
from budgets.models.ledger import JournalPosition, Lease
from budgets.stats import WriterStats

log = logging.getLogger("hoosh.ledger")

BAD, RESOLVED = ".bad", ".resolved"


def open_reader(
    connection: BaseDatabaseWrapper, directory: Path, owner: str, position: tuple[int, int] | None
) -> JournalReader:
    """A reader of an owner's journal from a stored position on, for settling. Raises `OSError`."""
    return JournalReader(directory, owner, position, known_from_s=rollups.state(connection, retention.USAGE_FROM))


def bury(
    ledger: Ledger, stats: WriterStats, directory: Path, reader: JournalReader, on_end: Callable[[str], None]
) -> None:
    """Settle what a dead owner left, once its journal was read to the end (`reader` holds its lock).

    Holds without an end are charged. `on_end(owner)` is called before the files go: when that is interrupted, all of
    this is done once more.
    """
    owner = reader.owner
    stats.torn += reader.torn
    unfinished = reader.unfinished()
    if not reader.damaged and set_aside_segments(directory, owner):
        reader.damaged = "some of its files are set aside"  # by an end that was interrupted just then
    if reader.damaged:
        ledger.quarantine_owner(owner, reader.position())
        on_end(owner)
        journal.set_aside(directory, owner)
        stats.quarantined += 1
        log.critical("journal_quarantined", extra={"owner": owner, "reason": reader.damaged})
        return
    if unfinished:
        ledger.settle(owner, unfinished, {}, reader.position())
        stats.unfinished += len(unfinished)
        log.warning(
            "holds_without_end",
            extra={"owner": owner, "holds": len(unfinished), "tokens": sum(record.tokens for record in unfinished)},
        )
    ledger.end_owner(owner)
    on_end(owner)
    journal.remove(directory, owner)
    stats.buried += 1


def replay(ledger: Ledger, directory: Path, owner: str, batch_records: int) -> dict[str, Any]:
    """Read the files of a quarantined owner from their beginning and settle every record that can be read.

    For files that were repaired, or a version that can read more of them. The result has `owner`, `records` (how many
    were read), `new` (of them, not known before) and `damaged` (why the journal is not trusted, or ""). What is older
    than the usage rows that are kept would be charged again. Raises `FileNotFoundError` when nothing of such an owner
    is there.
    """
    segments = set_aside_segments(directory, owner)
    reader = JournalReader(directory, owner, (segments[0], 0) if segments else None, suffix=BAD)
    try:
        records = new = 0
        while True:
            batch = reader.read(segments, dead=True, limit=batch_records)
            if batch.usage or batch.shapes:
                new += ledger.settle(owner, batch.usage, batch.shapes, None)
                records += len(batch.usage)
            if batch.at_end:
                break
    finally:
        reader.close()
    log.warning("journal_replayed", extra={"owner": owner, "records": records, "new": new})
    return {"owner": owner, "records": records, "new": new, "damaged": reader.damaged}


def set_aside_segments(directory: Path, owner: str) -> list[int]:
    """The numbers of the segments of a quarantined owner, ascending."""
    names = [name.removesuffix(BAD) for name in os.listdir(directory) if name.endswith(BAD)]
    parsed = map(journal.parse_segment_name, names)
    return sorted(entry[1] for entry in parsed if entry is not None and entry[0] == owner)


def set_aside_owners(directory: Path) -> list[str]:
    """The owners whose files are kept as `.bad`: nobody decided about them so far."""
    end = f".lock{BAD}"
    return sorted(name.removesuffix(end) for name in os.listdir(directory) if name.endswith(end))


def mark_resolved(directory: Path, using: str) -> list[str]:
    """Rename the files of owners that were resolved (by any host's writer) since the last look; those owners."""
    waiting = set_aside_owners(directory)
    if not waiting:
        return []
    open_owners = {
        *JournalPosition.objects.using(using).filter(owner__in=waiting).values_list("owner", flat=True),
        *Lease.objects.using(using).filter(owner__in=waiting).values_list("owner", flat=True),
    }
    resolved = [owner for owner in waiting if owner not in open_owners]
    for owner in resolved:
        paths = sorted(directory.glob(f"{owner}.*{BAD}"), key=lambda path: ".lock" in path.name)  # the lock last
        for path in paths:
            path.rename(path.with_name(path.name.removesuffix(BAD) + RESOLVED))
        log.info("journal_resolved", extra={"owner": owner})
    return resolved
