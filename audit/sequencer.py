"""The log's keeper: moves what waits in the outboxes, and the roots of settled batches, into the log.

A job of the ledger's writer, so that one thread of one process writes. Every second it takes what waits, in the order
of its numbers, and in one transaction per `CHUNK` entries writes entries, tiles and a checkpoint signed over them. The
rows in the outboxes go with it, or behind it where they are in another database; the primary key and the number per
source make a repetition harmless, so control may die at any moment. On a PostgreSQL that several hosts share an
advisory lock keeps all but one out; should two ever write, the second dies on the primary key.

Without a usable signing key nothing is appended and everything waits; requests go on.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from audit import growing, notes, outboxes, subjects
from audit.batches import USAGE_PRUNED
from audit.growing import BrokenLogError, Entry, Tail
from audit.heads import Head
from audit.keys import Signer, SigningKeyError
from audit.models import AuditState, Log, LoggedBatch, PendingBatch, UsageBatch
from audit.retention import PRUNED_THROUGH, TO_PRUNE

log = logging.getLogger("hoosh.audit")

PERIOD_S = 1.0
CHUNK = 100  # entries in one transaction: grants wait for it
BATCHES = 500  # in one entry
LOCK = 726002  # PostgreSQL's advisory lock of the one who appends
COMPLAIN_S = 60.0
INSTANCE, KEYS, KEEPER = "instance", "keys", "keeper"  # in AuditState
ERASE, USAGE_THROUGH = "erase/", "usage_through"  # likewise
OK, NO_KEY, BROKEN, STANDBY = "ok", "key", "broken", "standby"

OnCheckpoint = Callable[[Head], object]


class _Standby(Exception):
    """Another process keeps the log just now."""


class Sequencer:
    """The job. Everything but the constructor belongs to the writer's thread."""

    def __init__(
        self,
        signer: Signer,
        *,
        on_checkpoint: OnCheckpoint | None = None,
        clock: Callable[[], float] = time.time,
        grace_s: float = outboxes.GRACE_S,
        chunk: int = CHUNK,
    ) -> None:
        """`on_checkpoint` is told of every checkpoint, in the writer's thread: it must not wait. `clock`: Unix time."""
        self.period_s = PERIOD_S
        self._signer, self._on_checkpoint, self._clock, self._chunk = signer, on_checkpoint, clock, chunk
        self._site, self._ledger = outboxes.both(grace_s=grace_s)
        self._tail: Tail | None = None
        self._state = ""
        self._complained_at = self._next_complained_at = -COMPLAIN_S
        self._usage_pruned = ""

    def run(self, connection: BaseDatabaseWrapper) -> bool:
        """Append one transaction's worth of what waits; whether there is more."""
        try:
            more = self._step(connection)
        except _Standby:
            self._tail = None
            self._tell(connection, STANDBY, "")
            return False
        except (SigningKeyError, BrokenLogError) as exc:
            self._tail = None
            self._tell(connection, NO_KEY if isinstance(exc, SigningKeyError) else BROKEN, str(exc))
            _leave(connection)  # another host may have the key
            return False
        except BaseException:
            self._tail = None  # it is ahead of what is stored
            if self._site.using != connection.alias:
                connections[self._site.using].close()
            raise
        self._tell(connection, OK, "")
        return more

    def owner_ended(self, connection: BaseDatabaseWrapper, owner: str) -> None:
        """Nothing depends on workers."""

    # --- one transaction ----------------------------------------------------------------------------------------------

    def _step(self, connection: BaseDatabaseWrapper) -> bool:
        using = connection.alias
        tail = self._current(connection)
        if tail is None:
            return self._begin(connection)
        if (key := self._next_key()) is not None:
            return self._hand_over(connection, tail, key)
        now = self._now()
        name = max(f"{now:%Y-%m}", tail.name)  # a clock that is set back opens nothing
        site = self._site.look(tail.numbers["site"], self._chunk)
        ledger = self._ledger.look(tail.numbers["ledger"], max(0, self._chunk - len(site.rows)))
        batches = _pending(using)
        erasing = "" if site.rows or ledger.rows else _next_erasing(using)
        pruned = self._usage_pruned_through(using)
        going = _entries_going(using)
        idle = not (site.rows or site.gap or ledger.rows or ledger.gap or batches or erasing or pruned or going)
        overwriting = bool(ledger.rows or erasing)
        if idle and name == tail.name:
            self._site.delete(0)  # what could not go last time
            return False
        with self._writing(connection, tail):
            if name != tail.name:
                tail = self._open(using, tail.following(name), now, tail.last)
            for waiting, outbox in ((site, self._site), (ledger, self._ledger)):
                self._move(using, tail, waiting, outbox)
            if batches:
                self._commit_batches(using, tail, batches, now)
            if pruned:
                tail.say(growing.PRUNED, now, {"usage_through": pruned})
                growing.set_state(using, USAGE_THROUGH, str(pruned))
            if going:
                tail.say(growing.PRUNED, now, {"entries_through": going}, level="warning")
                growing.set_state(using, PRUNED_THROUGH, str(going))
            if overwriting:
                _overwrite(connection, True)
            if erasing:
                _erase(using, tail, erasing, now)
            head = tail.commit(using, now, self._signer.key) if tail.has_grown else None
            for outbox in (self._site, self._ledger):
                outbox.delete(tail.numbers[outbox.source], inside=using)
        self._tail = tail
        if overwriting:
            _overwrite(connection, False)
        more = bool(site.more or ledger.more or erasing or len(batches) == BATCHES)
        if not more:
            self._site.delete(0 if self._site.using == using else tail.numbers["site"])
        if head is not None:
            self._written(head)
        if erasing:
            _forget_pages(connection)
        return more

    def _current(self, connection: BaseDatabaseWrapper) -> Tail | None:
        """The log as this process knows it, loaded where it does not."""
        if self._tail is None:
            if not _enter(connection):
                raise _Standby
            tail = Tail.load(connection.alias)
            self._signer.load(None if tail is None else tail.vkey.public)
            if tail is None:
                return None
            self._resume(connection, tail)
            self._tail = tail
            if tail.last is not None:
                self._written(tail.last)  # for those who have just begun as well
        return self._tail

    def _next_key(self) -> Ed25519PrivateKey | None:
        """The key to hand over to; one that cannot be read is complained of, and the old one goes on."""
        try:
            return self._signer.following()
        except SigningKeyError as exc:
            if time.monotonic() - self._next_complained_at >= COMPLAIN_S:
                self._next_complained_at = time.monotonic()
                log.error("audit_next_key_unusable", extra={"reason": str(exc)})
            return None

    def _resume(self, connection: BaseDatabaseWrapper, tail: Tail) -> None:
        """What a process that died may have left behind, and what a database that was restored lacks."""
        with self._writing(connection, tail):
            behind = {}
            for outbox in (self._site, self._ledger):
                last = tail.numbers[outbox.source]
                if (counter := outbox.repaired(last)) is not None:
                    behind[outbox.source] = {"source": outbox.source, "counter": counter, "last": last}
            now = self._now()
            for data in behind.values():
                log.error("audit_outbox_reset", extra={"from_source": data["source"], "counter": data["counter"]})
                tail.say(growing.RESET, now, data, level="error")
            head = tail.commit(connection.alias, now, self._signer.key) if behind else None
        self._site.delete(tail.numbers["site"])
        if head is not None:
            self._written(head)

    def _begin(self, connection: BaseDatabaseWrapper) -> bool:
        """The first log there ever was."""
        using, now, key = connection.alias, self._now(), self._signer.key
        public = notes.public_bytes(key)
        instance = notes.instance_of(public)
        vkey = notes.make_vkey(f"hoosh/{instance}", public)
        tail = Tail(
            log=1,
            name=f"{now:%Y-%m}",
            first_seq=0,
            previous=notes.NO_PREVIOUS,
            vkey=vkey,
            epoch=1,
            numbers=dict.fromkeys(growing.SOURCES, 0),
        )
        with self._writing(connection, None):
            self._open(using, tail, now, None)
            growing.set_state(using, INSTANCE, instance)
            growing.set_state(using, KEYS, json.dumps([{"epoch": 1, "vkey": str(vkey)}]))
            head = tail.commit(using, now, key)
        self._resume(connection, tail)  # rows from before there was a log
        self._tail = tail
        self._written(head)
        return True

    def _writing(self, connection: BaseDatabaseWrapper, tail: Tail | None) -> _Writing:
        return _Writing(connection, tail)

    def _open(self, using: str, tail: Tail, now: dt.datetime, before: Head | None) -> Tail:
        """Begin a log with the entry that ties it to the one before."""
        data: dict[str, Any] = {"key": str(tail.vkey), "name": tail.name, "number": tail.log}
        if before is not None:
            data["previous"] = {
                "name": before.log,
                "size": before.size,
                "root": before.root.hex(),
                "note_sha256": notes.note_hash(before.note),
            }
        Log.objects.using(using).create(number=tail.log, name=tail.name, first_seq=tail.first_seq)
        tail.say(growing.OPENED, now, data)
        log.info("audit_log_opened", extra={"log_name": tail.name, "first_seq": tail.first_seq})
        return tail

    def _move(self, using: str, tail: Tail, waiting: outboxes.Waiting, outbox: outboxes.Outbox) -> None:
        """The rows of an outbox as entries, people as subjects."""
        if waiting.gap is not None:
            first, last = waiting.gap
            log.error("audit_outbox_gap", extra={"from_source": outbox.source, "first": first, "last": last})
            data = {"source": outbox.source, "from": first, "to": last}
            tail.say(growing.GAP, self._now(), data, level="error")
            tail.numbers[outbox.source] = last
        if not waiting.rows:
            return
        people = subjects.People(waiting.rows, using)
        for row in waiting.rows:
            tail.append(
                Entry(
                    source=outbox.source,
                    number=row.number,
                    at=row.at,
                    action=row.action,
                    actor=people.id_of(row.actor),
                    target=people.id_of(row.target) if row.about else row.target,
                    level=row.level,
                    data=row.data if isinstance(row.data, dict) else {"value": row.data},
                    sealed=people.sealed(row, outbox.source),
                )
            )

    def _commit_batches(self, using: str, tail: Tail, batches: Sequence[_Batch], now: dt.datetime) -> None:
        """One entry with the roots of the batches."""
        told = [
            {"count": count, "number": number, "owner": owner, "root": root.hex()}
            for _id, owner, number, count, root in batches
        ]
        data = {"batches": told, "requests": sum(batch[3] for batch in batches)}
        seq = tail.append(Entry("usage", tail.numbers["usage"] + 1, now, "usage.settled", data=data))
        ids = [batch[0] for batch in batches]
        LoggedBatch.objects.using(using).bulk_create([LoggedBatch(batch=number, seq=seq) for number in ids])
        PendingBatch.objects.using(using).filter(pk__in=ids).delete()

    def _hand_over(self, connection: BaseDatabaseWrapper, tail: Tail, key: Ed25519PrivateKey) -> bool:
        """The next key signs from now on; the checkpoint over the entry that says so is signed by both."""
        using, now, old = connection.alias, self._now(), self._signer.key
        before, after = tail.vkey, notes.make_vkey(tail.vkey.name, notes.public_bytes(key))
        proof = base64.b64encode(key.sign(notes.rotation_text(before, after))).decode()
        with self._writing(connection, tail):
            tail.epoch += 1
            data = {"epoch": tail.epoch, "old": str(before), "new": str(after), "proof": proof}
            tail.say(growing.ROTATED, now, data, level="warning")
            tail.vkey = after
            known = json.loads(growing.state(using, KEYS) or "[]")
            growing.set_state(using, KEYS, json.dumps([*known, {"epoch": tail.epoch, "vkey": str(after)}]))
            head = tail.commit(using, now, old, key)
        self._signer.handed_over(key)
        log.warning("audit_key_rotated", extra={"epoch": tail.epoch, "vkey": str(after)})
        self._written(head)
        return True

    def _usage_pruned_through(self, using: str) -> int:
        """The number of the log up to which usage rows are gone, when the log does not say so yet; else 0."""
        batch = growing.state(using, USAGE_PRUNED)
        if batch == self._usage_pruned:
            return 0
        seq = LoggedBatch.objects.using(using).filter(pk=int(batch)).values_list("seq", flat=True).first()
        rows = Log.objects.using(using).filter(first_seq__lte=-1 if seq is None else seq).order_by("-number")
        found = rows.values_list("number", flat=True).first() or 0
        if found <= int(growing.state(using, USAGE_THROUGH) or 0):
            self._usage_pruned = batch
            return 0
        return found

    # --- around it ----------------------------------------------------------------------------------------------------

    def _written(self, head: Head) -> None:
        """Behind a commit."""
        if self._on_checkpoint is not None:
            try:
                self._on_checkpoint(head)
            except Exception:
                log.exception("audit_checkpoint_not_told")

    def _tell(self, connection: BaseDatabaseWrapper, state: str, detail: str) -> None:
        """Keep the state for whoever asks, and say it in the log of the process: news at once, else once a minute."""
        text = json.dumps({"state": state, "detail": detail})
        if text == self._state and (state in (OK, STANDBY) or time.monotonic() - self._complained_at < COMPLAIN_S):
            return
        if state in (NO_KEY, BROKEN):
            log.critical("audit_log_stopped", extra={"state": state, "reason": detail})
        elif self._state:
            log.warning("audit_log_goes_on", extra={"state": state})
        self._state, self._complained_at = text, time.monotonic()
        if state != STANDBY:  # it is the other one's to tell
            now = f"{self._now():%Y-%m-%dT%H:%M:%SZ}"
            growing.set_state(connection.alias, KEEPER, json.dumps({"state": state, "detail": detail, "at": now}))

    def _now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self._clock(), dt.UTC)


_Batch = tuple[int, str, int, int, bytes]


class _Writing:
    """A durable transaction of the one who appends, in which the log is as `tail` knows it."""

    def __init__(self, connection: BaseDatabaseWrapper, tail: Tail | None) -> None:
        self._connection, self._tail = connection, tail
        self._atomic = transaction.atomic(using=connection.alias, durable=True)

    def __enter__(self) -> None:
        self._atomic.__enter__()
        try:
            self._look()
        except BaseException as exc:
            self._atomic.__exit__(type(exc), exc, exc.__traceback__)
            raise

    def __exit__(self, *exception: Any) -> None:
        self._atomic.__exit__(*exception)

    def _look(self) -> None:
        connection, tail = self._connection, self._tail
        with connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", (LOCK,))
                if not cursor.fetchone()[0]:
                    raise _Standby
            cursor.execute("SELECT MAX(seq) FROM audit_entry")
            last = cursor.fetchone()[0]
        if last != (None if tail is None else tail.seq - 1):
            raise _Standby  # another process appended since this one looked: it is loaded anew


def _pending(using: str) -> list[_Batch]:
    waiting = PendingBatch.objects.using(using).order_by("pk").values_list("pk", flat=True)[:BATCHES]
    found = UsageBatch.objects.using(using).filter(pk__in=list(waiting)).order_by("pk")
    return [
        (pk, owner, number, count, bytes(root))
        for pk, owner, number, count, root in found.values_list("id", "owner", "number", "count", "root")
    ]


def _entries_going(using: str) -> int:
    """The number of the log up to which bodies are to go, when the log does not say so yet; else 0."""
    wanted = int(growing.state(using, TO_PRUNE) or 0)
    return wanted if wanted > int(growing.state(using, PRUNED_THROUGH) or 0) else 0


def _next_erasing(using: str) -> str:
    return AuditState.objects.using(using).filter(name__startswith=ERASE).values_list("name", flat=True).first() or ""


def _enter(connection: BaseDatabaseWrapper) -> bool:
    """Become the one who appends; the lock goes with the connection."""
    if connection.vendor != "postgresql":
        return True  # one process has the journals' lock, and the database is on its host
    with connection.cursor() as cursor:
        # Never twice: each success would have to be undone.
        cursor.execute(
            "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND classid = 0 "
            "AND pid = pg_backend_pid() AND granted) OR pg_try_advisory_lock(%s)",
            (LOCK, LOCK),
        )
        return bool(cursor.fetchone()[0])


def _leave(connection: BaseDatabaseWrapper) -> None:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(%s)", (LOCK,))


def _erase(using: str, tail: Tail, name: str, now: dt.datetime) -> None:
    subject = name.removeprefix(ERASE)
    if subjects.erase(subject, using):
        tail.say(growing.ERASED, now, {"subject": subject}, target=subject, level="warning")
    AuditState.objects.using(using).filter(name=name).delete()


def _overwrite(connection: BaseDatabaseWrapper, on: bool) -> None:
    """Have SQLite write zeros over all that it deletes."""
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute(f"PRAGMA secure_delete = {'ON' if on else 'FAST'}")


def _forget_pages(connection: BaseDatabaseWrapper) -> None:
    """Have what was erased leave the write-ahead files as well. A reader that stands in the way leaves it to SQLite,
    which writes over it with the next changes."""
    for alias in {connection.alias, "default"}:
        each = connections[alias]
        if each.vendor == "sqlite":
            with each.cursor() as cursor:
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
