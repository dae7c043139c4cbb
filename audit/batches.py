"""Batches of usage rows: what is written with them, so that the log can commit to every request."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper

from audit.merkle import leaf_hash, root_of
from audit.models import AuditState, PendingBatch, UsageBatch

USAGE_PRUNED = "usage_pruned"  # in AuditState: up to which batch usage rows were deleted
_BATCHES = UsageBatch._meta.db_table
# The next number of the owner: one look into the unique index. Who comes second at the same time is refused by it.
_INSERT = (
    f"INSERT INTO {_BATCHES} (owner, number, count, root, leaves, at) "  # noqa: S608
    f"SELECT %s, (SELECT COALESCE(MAX(number), 0) + 1 FROM {_BATCHES} WHERE owner = %s), %s, %s, %s, %s "
    "RETURNING id"
)
_PENDING = f"INSERT INTO {PendingBatch._meta.db_table} (batch) VALUES (%s)"  # noqa: S608


class Sealed(NamedTuple):
    """The hashes of a batch's records in their order, one behind the other, and their Merkle root."""

    rows: int
    leaves: bytes
    root: bytes


def sealed(records: Sequence[bytes]) -> Sealed:
    """The hashes of canonical records (RFC 6962). Done before the transaction, which it would make longer."""
    hashes = [leaf_hash(record) for record in records]
    return Sealed(len(hashes), b"".join(hashes), root_of(hashes))


def insert_batch(connection: BaseDatabaseWrapper, owner: str, batch: Sealed) -> int:
    """Write a batch in the transaction of its rows; the id they carry. `IntegrityError` when another writer of this
    owner was first."""
    now = connection.ops.adapt_datetimefield_value(dt.datetime.now(dt.UTC))
    with connection.cursor() as cursor:
        cursor.execute(_INSERT, (owner, owner, batch.rows, batch.root, batch.leaves, now))
        number = int(cursor.fetchone()[0])
        cursor.execute(_PENDING, (number,))
    return number


def rows_are_gone(connection: BaseDatabaseWrapper, batch_id: int) -> None:
    """Have the log say that usage rows of batches up to this one were deleted, in the transaction that does it."""
    states = AuditState.objects.using(connection.alias)
    known = states.filter(pk=USAGE_PRUNED).values_list("value", flat=True).first()
    if batch_id > int(known or 0):
        states.update_or_create(name=USAGE_PRUNED, defaults={"value": str(batch_id)})
