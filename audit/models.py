"""What happened, in two steps: outboxes, written in the transaction of a change itself, and the log, into which control
moves what they hold. `docs/audit.md` has the construction; the log's tables refuse every UPDATE and DELETE by triggers.

The outbox of the site lies beside the operators' rows; the ledger's outbox, the batches of usage rows and the log lie
with the ledger (`budgets.router`), where control's writer is the only one to write.
"""

from __future__ import annotations

from django.db import models


class Noted(models.Model):
    """One event on its way into the log. Rows are inserted with the change they tell of and deleted once logged.

    `number` is given by the database when the transaction ends (`audit.triggers`): contiguous in each outbox, so that
    a row that was taken out before it was logged leaves a gap.
    """

    number = models.BigIntegerField(null=True, unique=True, editable=False)
    at = models.DateTimeField(auto_now_add=True, db_index=True)
    action = models.CharField(max_length=100, db_index=True)  # dotted, e.g. "config.published"
    actor = models.CharField(max_length=150, blank=True)
    target = models.CharField(max_length=200, blank=True)
    about = models.BooleanField(default=False)  # whether `target` is a person
    data = models.JSONField(default=dict)
    personal = models.JSONField(default=dict)  # an address, a mail address: of `target` where `about`, else the actor's
    level = models.CharField(max_length=10, default="info")

    class Meta:
        abstract = True
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.action} {self.target}"


class OutboxEntry(Noted):
    """What happened to the site's rows."""

    class Meta(Noted.Meta):
        verbose_name = "audit entry on its way"
        verbose_name_plural = "audit entries on their way"


class Counter(models.Model):
    """The last number given in an outbox: one row. The triggers of `audit.triggers` count it."""

    value = models.BigIntegerField(default=0)

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return str(self.value)


class OutboxCounter(Counter):
    """Of `OutboxEntry`."""


class LedgerOutboxCounter(Counter):
    """Of `LedgerOutboxEntry`."""


class LedgerOutboxEntry(Noted):
    """What the ledger's writer did: money that moved other than by usage."""

    class Meta(Noted.Meta):
        verbose_name_plural = "ledger outbox entries"


class UsageBatch(models.Model):
    """Usage rows that were settled in one transaction, which wrote this row as well. Insert-only.

    `leaves` are the 32-byte hashes of the rows' canonical records in the order of the batch, `root` is their Merkle
    root. `number` counts the batches of an owner (a worker incarnation) from 1 without gaps.
    """

    owner = models.CharField(max_length=64)
    number = models.BigIntegerField()
    count = models.IntegerField()
    root = models.BinaryField(max_length=32)
    leaves = models.BinaryField()
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("owner", "number"), name="usage_batch_once"),)

    def __str__(self) -> str:
        return f"{self.owner}/{self.number}"


class PendingBatch(models.Model):
    """A batch that is not in the log yet: a queue, written with the batch and emptied with its log entry."""

    batch = models.BigIntegerField(primary_key=True)

    def __str__(self) -> str:
        return str(self.batch)


class LoggedBatch(models.Model):
    """In which entry a batch is. Insert-only."""

    batch = models.BigIntegerField(primary_key=True)
    seq = models.BigIntegerField()

    def __str__(self) -> str:
        return f"{self.batch} in {self.seq}"


class Log(models.Model):
    """One month's Merkle tree. Its first entry names the last checkpoint of the log before. Insert-only."""

    number = models.IntegerField(primary_key=True)  # from 1
    name = models.CharField(max_length=32, unique=True)  # the origin's last part: "2026-11"
    first_seq = models.BigIntegerField(unique=True)  # of its entries; leaf i of the tree is the entry first_seq + i

    class Meta:
        ordering = ("number",)

    def __str__(self) -> str:
        return self.name


class AuditEntry(models.Model):
    """One entry of the log. Insert-only; what it commits to is `body`, whose leaf hash is `leaf`.

    `seq` counts through all logs from 0 without gaps and is the fence: two writers cannot both insert it. Everything
    but `body` and `leaf` only repeats what the body says, for lists and filters.
    """

    seq = models.BigIntegerField(primary_key=True)
    log = models.IntegerField()
    at = models.DateTimeField(db_index=True)
    source = models.CharField(max_length=16)  # "site" | "ledger" | "usage" | "log"
    number = models.BigIntegerField()  # contiguous per source
    action = models.CharField(max_length=100)
    actor = models.CharField(max_length=40, blank=True)  # the id of a Subject
    target = models.CharField(max_length=200, blank=True)  # or the id of a Subject
    level = models.CharField(max_length=10)
    object = models.CharField(max_length=100, blank=True)  # the row it is about, as `audit.changes.object_of` names it
    body = models.TextField()
    leaf = models.BinaryField(max_length=32)

    class Meta:
        ordering = ("-seq",)
        db_table = "audit_entry"
        verbose_name = "audit entry"
        verbose_name_plural = "audit entries"
        constraints = (models.UniqueConstraint(fields=("source", "number"), name="audit_entry_once"),)
        indexes = (
            models.Index(fields=("action", "seq"), name="audit_entry_action"),
            models.Index(fields=("actor", "seq"), name="audit_entry_actor"),
            models.Index(fields=("target", "seq"), name="audit_entry_target"),
            models.Index(fields=("level", "seq"), name="audit_entry_level"),
            models.Index(fields=("object", "seq"), name="audit_entry_object", condition=~models.Q(object="")),
        )

    def __str__(self) -> str:
        return f"{self.seq}: {self.action} {self.target}"


class Tile(models.Model):
    """256 hashes of one level of a log's tree, once they are complete: level 0 has leaves, level n the roots of whole
    tiles below (C2SP tlog-tiles). Insert-only; the last, shorter tile of level 0 is kept when its month is pruned."""

    log = models.IntegerField()
    level = models.PositiveSmallIntegerField()
    index = models.BigIntegerField()
    hashes = models.BinaryField()

    class Meta:
        constraints = (models.UniqueConstraint(fields=("log", "level", "index"), name="audit_tile_once"),)

    def __str__(self) -> str:
        return f"{self.log}/{self.level}/{self.index}"


class Checkpoint(models.Model):
    """A signed tree head (C2SP tlog-checkpoint): the log had `size` entries and this root. Insert-only."""

    log = models.IntegerField()
    size = models.BigIntegerField()
    root = models.BinaryField(max_length=32)
    at = models.DateTimeField(db_index=True)
    note = models.TextField()

    class Meta:
        ordering = ("-id",)
        constraints = (models.UniqueConstraint(fields=("log", "size"), name="audit_checkpoint_once"),)

    def __str__(self) -> str:
        return f"{self.log}: {self.size}"


class Subject(models.Model):
    """A person (or program) that entries speak of, by a random id. Its name and the key of what is sealed for it are
    here only: erasing them makes entries anonymous and leaves every proof as it was."""

    id = models.CharField(primary_key=True, max_length=40)  # "s-" and 32 hexadecimal digits, random
    name = models.CharField(max_length=150, db_index=True, blank=True)  # blank once erased
    key = models.BinaryField(max_length=32, null=True)  # AES-256-GCM; None once erased
    erased_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return self.name or self.id


class AuditState(models.Model):
    """What the log's keeper remembers beside it: the last anchors, how far was verified. JSON texts by name."""

    name = models.CharField(primary_key=True, max_length=64)
    value = models.TextField()

    def __str__(self) -> str:
        return self.name
