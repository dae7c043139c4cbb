"""What the log forgets, and when: the bodies of whole months, never a hash.

With `HOOSH_AUDIT_MONTHS` months kept, entries of older logs go (all but those the log wrote about itself), their
checkpoints but the last of each hour and of the log, and the hashes of usage batches they name. The tiles stay, the
last one, which is shorter, as well: the hash of every entry is still there, so that every checkpoint can be verified
and every proof ever given holds. Each deletion is a small transaction, in which alone the tables are unguarded, and is
told in the log before it begins.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
from collections.abc import Callable

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Max

from audit import growing, tiles, triggers
from audit.growing import LOG
from audit.models import AuditEntry, Checkpoint, Log, LoggedBatch, Tile, UsageBatch

log = logging.getLogger("hoosh.audit")

CHUNK = 100  # rows in one transaction
PAUSE_S = 0.05
IDLE_S = 60.0
TO_PRUNE = "prune_through"  # in AuditState: the number of the log up to which bodies may go
PRUNED_THROUGH = "pruned_through"  # likewise: up to which the log says that they went, and up to which they are gone
GONE_THROUGH = "gone_through"
_GUARDED = ("audit_entry", "audit_checkpoint", "audit_usagebatch", "audit_loggedbatch")


class AuditRetention:
    """The writer's job that prunes. One step per run."""

    def __init__(self, months: int, *, clock: Callable[[], float]) -> None:
        """`months` whole months are kept beside the current one; 0 = all. `clock` is Unix time."""
        self.period_s = IDLE_S
        self._months, self._clock = months, clock

    def run(self, connection: BaseDatabaseWrapper) -> None:
        """Do the next step there is something to do for; soon again after one, else in a minute."""
        self.period_s = IDLE_S
        if not self._months:
            return
        using = connection.alias
        due = self._due(using)
        told = int(growing.state(using, PRUNED_THROUGH) or 0)
        if due > told:
            if int(growing.state(using, TO_PRUNE) or 0) < due:
                growing.set_state(using, TO_PRUNE, str(due))  # the sequencer tells it in the log
            self.period_s = 1.0
            return
        gone = int(growing.state(using, GONE_THROUGH) or 0)
        if gone < told:
            self.period_s = PAUSE_S
            if not prune_step(connection, gone + 1):
                growing.set_state(using, GONE_THROUGH, str(gone + 1))
                log.info("audit_log_pruned", extra={"log_number": gone + 1})

    def owner_ended(self, connection: BaseDatabaseWrapper, owner: str) -> None:
        """Nothing here belongs to a worker."""

    def _due(self, using: str) -> int:
        """The number of the newest log that is older than what is kept; never the one that grows."""
        now = dt.datetime.fromtimestamp(self._clock(), dt.UTC)
        month = now.year * 12 + now.month - 1 - self._months
        oldest = f"{month // 12:04d}-{month % 12 + 1:02d}"
        rows = Log.objects.using(using).order_by("number")
        newest = rows.aggregate(last=Max("number"))["last"]
        found = rows.filter(name__lt=oldest).exclude(number=newest)
        return int(found.aggregate(last=Max("number"))["last"] or 0)


def prune_step(connection: BaseDatabaseWrapper, number: int) -> bool:
    """Delete one chunk of a log that has ended; whether there was something."""
    using = connection.alias
    row = Log.objects.using(using).get(number=number)
    end = Log.objects.using(using).get(number=number + 1).first_seq
    entries = AuditEntry.objects.using(using).filter(seq__gte=row.first_seq, seq__lt=end)
    _keep_numbers(using)
    _keep_last_tile(using, row, end)
    going = list(entries.exclude(source=LOG).order_by("-seq").values_list("seq", flat=True)[:CHUNK])
    heads = [] if going else _superfluous(using, number)
    if not going and not heads:
        return False
    with triggers.unguarded(connection, _GUARDED):
        if going:
            batches = list(LoggedBatch.objects.using(using).filter(seq__in=going).values_list("batch", flat=True))
            _delete_batches(using, batches)
            entries.filter(seq__in=going).delete()
        else:
            Checkpoint.objects.using(using).filter(pk__in=heads).delete()
    return True


def _delete_batches(using: str, numbers: list[int]) -> None:
    """The batches, but for the newest of each owner: its number is what the next one is counted from."""
    rows = UsageBatch.objects.using(using)
    for at in range(0, len(numbers), CHUNK):
        some = numbers[at : at + CHUNK]
        owners = rows.filter(pk__in=some).values_list("owner", flat=True).distinct()
        newest = [rows.filter(owner=owner).aggregate(last=Max("pk"))["last"] or 0 for owner in owners]
        rows.filter(pk__in=some).exclude(pk__in=newest).delete()
        LoggedBatch.objects.using(using).filter(batch__in=some).delete()


def _keep_numbers(using: str) -> None:
    """Where each source's numbers go on, should all of its entries go."""
    text = json.dumps(growing.numbers(using), sort_keys=True)
    if growing.state(using, growing.NUMBERS) != text:
        growing.set_state(using, growing.NUMBERS, text)


def _keep_last_tile(using: str, row: Log, end: int) -> None:
    index, rest = divmod(end - row.first_seq, tiles.TILE_WIDTH)
    if not rest or Tile.objects.using(using).filter(log=row.number, level=0, index=index).exists():
        return
    with transaction.atomic(using=using, durable=True):
        last = AuditEntry.objects.using(using).filter(seq__gte=end - rest, seq__lt=end).order_by("seq")
        leaves = [bytes(leaf) for leaf in last.values_list("leaf", flat=True)]
        if len(leaves) != rest:
            raise growing.BrokenLogError(f"Entries at the end of {row.name} are missing: nothing more is pruned.")
        Tile.objects.using(using).create(log=row.number, level=0, index=index, hashes=b"".join(leaves))


def _superfluous(using: str, number: int) -> list[int]:
    """Checkpoints that are neither the last of their log nor of their hour, nor signed twice."""
    rows = Checkpoint.objects.using(using).filter(log=number).order_by("size")
    last = rows.order_by("-size").values_list("pk", flat=True).first()
    found: list[int] = []
    kept_hour, kept = None, None
    for key, at in rows.order_by("-size").values_list("pk", "at").iterator():
        hour = at.replace(minute=0, second=0, microsecond=0)
        if key == last or hour != kept_hour:
            kept_hour, kept = hour, key
        elif key != kept:
            found.append(key)
        if len(found) == CHUNK:
            break
    twice = rows.filter(pk__in=found).values_list("pk", "note") if found else ()
    return [key for key, note in twice if note.count("\n\N{EM DASH} ") < 2]
