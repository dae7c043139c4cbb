"""The end of a dead worker's books: everything it left is settled, then its leases go back and its files go away.

Safe to repeat at any point: the database is always changed before the files are, and a settled journal settled once
more changes nothing.
"""

from __future__ import annotations

import logging
from pathlib import Path

from budgets import journal
from budgets.journal_reader import JournalReader
from budgets.ledger import Ledger
from budgets.stats import WriterStats

log = logging.getLogger("hoosh.ledger")


def bury(ledger: Ledger, stats: WriterStats, directory: Path, reader: JournalReader) -> None:
    """Settle what a dead owner left, once its journal was read to the end (`reader` holds its lock).

    Holds without an end are charged. From a damaged journal only what can be read is charged: the rest of its leases
    stays counted, the files are kept as `.bad`, and an operator decides (`Writer.write_off`).
    """
    owner = reader.owner
    stats.torn += reader.torn
    if reader.damaged:
        ledger.quarantine_owner(owner)
        journal.set_aside(directory, owner)
        stats.quarantined += 1
        log.critical("journal_quarantined", extra={"owner": owner, "reason": reader.damaged})
        return
    unfinished = reader.unfinished()
    if unfinished:
        ledger.settle(owner, unfinished, {}, reader.position())
        stats.unfinished += len(unfinished)
        log.warning(
            "holds_without_end",
            extra={"owner": owner, "holds": len(unfinished), "tokens": sum(record.tokens for record in unfinished)},
        )
    ledger.end_owner(owner)
    journal.remove(directory, owner)
    stats.buried += 1
