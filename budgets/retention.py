"""What the ledger forgets, and when. Runs in the writer's thread, in chunks of some milliseconds each.

Usage rows go after `HOOSH_USAGE_DAYS`, or earlier when there are more than `HOOSH_USAGE_ROWS`, but never before they
are in the hourly sums, and not in the first week where an earlier version left such rows. Hourly sums become daily ones
after 90 days and stay for ever. Windows, entries and alerts stay as well. Money never waits for a deletion: each step
is one transaction of at most `CHUNK_ROWS` rows, made smaller when it took longer than `CHUNK_S`, with a pause behind
it.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from django.conf import settings
from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Max, Min
from django.db.models.functions import Length

from audit import batches
from budgets import journal, rollups
from budgets.models.ledger import DecisionShape, LedgerState, PoolSample, Reservation, Usage
from budgets.pace import Chunk

log = logging.getLogger("hoosh.ledger")

CHUNK_ROWS, LEAST_ROWS = 500, 50
CHUNK_S = 0.02
PAUSE_S = 0.05  # between two chunks
IDLE_S = 60.0  # between two looks when there was nothing to do
HOURLY_DAYS = 90  # so long sums stay hourly
RESERVATION_DAYS = 30
SAMPLE_DAYS = 35
SEARCH_BYTES = 2 * 1024 * 1024  # of a journal, in one step
DIGEST_LENGTH = 32  # of a decision shape; nothing else in LedgerState has so long a name
VACUUM_PAGES = 500  # given back to the file system in one step
DISK_LOG_S = 60.0
# A usage row keeps its request from being booked twice when a journal is read again, and a call may take a day.
LEAST_AGE_S = 25 * 3_600
USAGE_FROM = "usage_from"  # in LedgerState: usage rows of before this moment (Unix seconds) may be gone
SINCE = "retention_since"  # in LedgerState: before this moment (Unix seconds) no usage row goes for its age or number
GRACE_DAYS = 7  # that an operator has after an upgrade to choose how long rows are kept
FOLDED_TO = "folded_to"  # in LedgerState: hourly sums that begin before it are daily ones
_DAY_S = rollups.DAY_S


class Kept(NamedTuple):
    """What is kept of the usage rows."""

    days: int
    rows: int  # about so many; 0 = no such limit
    disk_free_bytes: int  # below it, less is kept


def kept() -> Kept:
    """What the settings say."""
    return Kept(settings.HOOSH_USAGE_DAYS, settings.HOOSH_USAGE_ROWS, settings.HOOSH_DISK_FREE_MB * 1024 * 1024)


class Retention:
    """The writer's job that deletes what is no longer kept. One step per run."""

    def __init__(
        self,
        keep: Kept | None = None,
        *,
        data_dir: Path | None = None,
        journals: Path | None = None,
        free_bytes: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Everything left out comes from the settings; `free_bytes` says what is free on the data directory's disk."""
        directory = data_dir or settings.HOOSH_DATA_DIR
        self.period_s = IDLE_S
        self._keep = keep or kept()
        self._journals = journals or settings.HOOSH_JOURNAL_DIR
        self._free_bytes = free_bytes or (lambda: shutil.disk_usage(directory).free)
        self._clock = clock
        self._days = self._keep.days  # less while the disk is nearly full
        self._disk_logged_at = -DISK_LOG_S
        self._chunk = chunk()
        self._since = 0  # as in LedgerState; 0 = not read yet
        self._steps: tuple[Callable[[BaseDatabaseWrapper], bool], ...] = (
            *(self._usage, self._reservations, self._samples, self._fold, self._shapes, self._pages),
        )
        self._next, self._begins = 0, True  # the step to do; whether a round of all steps begins with it
        self._search: JournalSearch | None = None

    def run(self, connection: BaseDatabaseWrapper) -> None:
        """Do the next step there is something to do for; soon again after one, else in a minute."""
        if self._begins:
            self._look_at_disk(connection)
            self._begins = False
        while self._next < len(self._steps):
            if self._steps[self._next](connection):
                self.period_s = PAUSE_S
                return
            self._next += 1
        self._next, self._begins = 0, True
        self.period_s = IDLE_S

    def owner_ended(self, connection: BaseDatabaseWrapper, owner: str) -> None:
        """Nothing here belongs to a worker."""

    def _usage(self, connection: BaseDatabaseWrapper) -> bool:
        """As many chunks as fit into half the time of one: it must outrun any rate at which rows come in."""
        if self._days == self._keep.days and self._clock() < self._retention_since(connection):
            return False  # on a disk that is nearly full there is no time to wait
        began, deleted_any = time.monotonic(), False
        while time.monotonic() - began < CHUNK_S / 2:
            with self._chunk as rows:
                deleted = delete_usage(connection, before_s=cutoff_s(self._days, self._clock()), limit=rows)
                if not deleted and self._keep.rows:
                    deleted = delete_surplus(connection, self._keep.rows, now_s=self._clock(), limit=rows)
            if not deleted:
                break
            deleted_any = True
        return deleted_any

    def _retention_since(self, connection: BaseDatabaseWrapper) -> int:
        """When deleting begins: at once, but a week later where an earlier version has left rows that would go."""
        self._since = self._since or rollups.state(connection, SINCE)
        if not self._since:
            now_s = self._clock()
            grace = has_surplus(connection, self._keep, now_s=now_s)
            since = int(now_s) + (GRACE_DAYS * _DAY_S if grace else 0)
            rollups.set_state(connection, SINCE, since)
            self._since = since
            if grace:
                at = f"{dt.datetime.fromtimestamp(since, dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
                log.warning("retention_begins", extra={"at": at, "usage_days": self._keep.days})
        return self._since

    def _look_at_disk(self, connection: BaseDatabaseWrapper) -> None:
        """Keep fewer days while the disk is nearly full: half as many at each look, at least one."""
        free = self._free_bytes()
        if free >= self._keep.disk_free_bytes:
            self._days = self._keep.days
            return
        # A PostgreSQL server's disk is another one: deleting there would free nothing here.
        if connection.vendor == "sqlite":
            self._days = max(1, self._days // 2)
        if (now := time.monotonic()) - self._disk_logged_at >= DISK_LOG_S:
            self._disk_logged_at = now
            log.error("disk_low", extra={"free_mb": free // 1024**2, "usage_days": self._days})

    def _reservations(self, connection: BaseDatabaseWrapper) -> bool:
        before = dt.datetime.fromtimestamp(self._clock() - RESERVATION_DAYS * _DAY_S, dt.UTC)
        resolved = (Reservation.State.REPORTED, Reservation.State.EXPIRED)
        rows = Reservation.objects.using(connection.alias)
        with self._chunk as limit:
            found = list(rows.filter(state__in=resolved, expires_at__lt=before).values_list("pk", flat=True)[:limit])
            if found:
                rows.filter(pk__in=found, state__in=resolved).delete()
        return bool(found)

    def _samples(self, connection: BaseDatabaseWrapper) -> bool:
        before = int(self._clock()) - SAMPLE_DAYS * _DAY_S
        samples = PoolSample.objects.using(connection.alias)
        with self._chunk as limit:
            oldest = samples.order_by("id").values_list("id", "at_s")[:limit]
            found = [number for number, at_s in oldest if at_s < before]
            if found:
                samples.filter(pk__in=found).delete()
        return bool(found)

    def _fold(self, connection: BaseDatabaseWrapper) -> bool:
        before = int(self._clock() - HOURLY_DAYS * _DAY_S) // _DAY_S * _DAY_S
        since = rollups.state(connection, FOLDED_TO)
        with self._chunk as limit:
            folded, folded_to = rollups.fold(connection, since=since, before=before, limit=limit)
        if folded_to > since:
            rollups.set_state(connection, FOLDED_TO, folded_to)
        return folded > 0

    def _shapes(self, connection: BaseDatabaseWrapper) -> bool:
        if self._search is None:
            digest = dead_shape(connection)
            if digest is None:
                return False
            self._search = JournalSearch(self._journals, digest)
        named = self._search.step()
        if named is None:
            return True
        digest, self._search = self._search.digest, None
        if named:
            keep_shape(connection, digest)
        else:
            delete_shape(connection, digest)
        return True

    def _pages(self, connection: BaseDatabaseWrapper) -> bool:
        return self._days < self._keep.days and give_back_pages(connection)


def chunk() -> Chunk:
    """The size of a deleting step."""
    return Chunk(CHUNK_ROWS, least=LEAST_ROWS, longest_s=CHUNK_S)


def cutoff_s(days: int, now_s: float) -> float:
    """Rows that began before it are not kept for `days` days (Unix seconds)."""
    return now_s - max(days * _DAY_S, LEAST_AGE_S)


def delete_usage(connection: BaseDatabaseWrapper, *, before_s: float, limit: int) -> int:
    """Delete up to `limit` usage rows that began before `before_s` and are in the sums; how many there were."""
    with transaction.atomic(using=connection.alias, durable=True):
        usage = Usage.objects.using(connection.alias)
        old = usage.filter(at__lt=dt.datetime.fromtimestamp(before_s, dt.UTC)).order_by("at")
        counted = old.filter(id__lte=rollups.state(connection, rollups.ROLLED_UP))
        found = list(counted.values_list("id", "at", "batch")[:limit])
        if not found:
            return 0
        usage.filter(id__in=[number for number, _at, _batch in found]).delete()
        batches.rows_are_gone(connection, max(batch or 0 for _number, _at, batch in found))
        known_from = max(rollups.state(connection, USAGE_FROM), int(found[-1][1].timestamp()) + 1)
        rollups.set_state(connection, USAGE_FROM, known_from)
    return len(found)


def has_surplus(connection: BaseDatabaseWrapper, keep: Kept, *, now_s: float) -> bool:
    """Whether there are usage rows older, or more, than are kept."""
    rows = Usage.objects.using(connection.alias)
    span = rows.aggregate(first=Min("id"), last=Max("id"))
    if keep.rows and span["first"] is not None and span["last"] - span["first"] + 1 > keep.rows:
        return True
    return rows.filter(at__lt=dt.datetime.fromtimestamp(cutoff_s(keep.days, now_s), dt.UTC)).exists()


def delete_surplus(connection: BaseDatabaseWrapper, most: int, *, now_s: float, limit: int) -> int:
    """Delete up to `limit` of the oldest usage rows while there are about more than `most`; how many there were."""
    span = Usage.objects.using(connection.alias).aggregate(first=Min("id"), last=Max("id"))
    if span["first"] is None:
        return 0
    surplus = span["last"] - span["first"] + 1 - most
    return delete_usage(connection, before_s=now_s - LEAST_AGE_S, limit=min(limit, surplus)) if surplus > 0 else 0


def dead_shape(connection: BaseDatabaseWrapper) -> str | None:
    """Digest (hexadecimal) of a decision shape that no usage row in the sums names any more; None = there is none."""
    oldest = Usage.objects.using(connection.alias).aggregate(first=Min("id"))["first"]
    if oldest is None:
        oldest = rollups.state(connection, rollups.ROLLED_UP) + 1
    named = LedgerState.objects.using(connection.alias).annotate(length=Length("name")).filter(length=DIGEST_LENGTH)
    return named.filter(value__lt=oldest).order_by("value").values_list("name", flat=True).first()


def delete_shape(connection: BaseDatabaseWrapper, digest: str) -> None:
    """Delete a decision shape, unless a usage row that is not in the sums yet names it."""
    with transaction.atomic(using=connection.alias, durable=True):
        counted = rollups.state(connection, rollups.ROLLED_UP)
        if Usage.objects.using(connection.alias).filter(id__gt=counted, shape=digest).exists():
            keep_shape(connection, digest)
            return
        DecisionShape.objects.using(connection.alias).filter(digest=digest).delete()
        LedgerState.objects.using(connection.alias).filter(name=digest).delete()


def keep_shape(connection: BaseDatabaseWrapper, digest: str) -> None:
    """Ask again only when the usage rows of today are gone."""
    rollups.set_state(connection, digest, rollups.state(connection, rollups.ROLLED_UP) + 1)


class JournalSearch:
    """Whether the journals on this host still name a decision shape, found out in small steps.

    A worker writes a shape once per segment, so that a record still to come may name one it wrote long ago.
    """

    def __init__(self, directory: Path, digest: str) -> None:
        self.digest = digest
        self._directory = directory
        self._needle = bytes.fromhex(digest)
        self._searched: dict[str, int] = {}  # bytes of each segment

    def step(self) -> bool | None:
        """True = it is named; False = it is not, at this moment; None = call again."""
        for name in sorted(os.listdir(self._directory)) if self._directory.exists() else ():
            if journal.parse_segment_name(name) is None:
                continue
            start = self._searched.get(name, 0)
            try:
                with open(self._directory / name, "rb") as file:
                    file.seek(start)
                    data = file.read(SEARCH_BYTES)
            except FileNotFoundError:
                continue  # settled and removed just now
            if self._needle in data:
                return True
            self._searched[name] = start + max(0, len(data) - len(self._needle) + 1)
            if len(data) == SEARCH_BYTES:
                return None
        return False


def give_back_pages(connection: BaseDatabaseWrapper) -> bool:
    """Return free pages of SQLite's file to the file system; whether there were any.

    Only files made with incremental vacuum give them; in others they are used again by rows to come.
    """
    if connection.vendor != "sqlite" or connection.in_atomic_block:  # a script would end the transaction
        return False
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA auto_vacuum")
        incremental = cursor.fetchone()[0] == 2
        cursor.execute("PRAGMA freelist_count")
        if not incremental or cursor.fetchone()[0] == 0:
            return False
    # As a script: executed as a statement it would be stepped once, and a step frees one page.
    connection.connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
    return True
