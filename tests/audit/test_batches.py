"""Every settled row is in exactly one batch, and the batch's leaves are the records of its rows as they are stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import TransactionTestCase
from rfc8785 import dumps

from audit import canonical
from audit.merkle import leaf_hash, root_of
from audit.models import PendingBatch, UsageBatch
from audit.tiles import hashes_of
from budgets import ledger_sql, usage_leaf
from budgets.ledger import Ledger
from budgets.models import Usage
from budgets.records import UsageRecord
from tests.budgets.ledger_rows import ledger_connection
from tests.budgets.records import new_rid, tokens_of, usage_record

pytestmark = pytest.mark.database

ODD = 'a "b" \\ \t\r\n\x01\x7f% %s %d \u20ac\u2028\U0001f600 {}'


def settle(*records: UsageRecord, owner: str = "w") -> int:
    return Ledger(ledger_connection()).settle(owner, list(records), {}, None)


def record(tokens: int = 10, **changes: Any) -> UsageRecord:
    return usage_record(new_rid(), tokens, draws=(tokens_of(7),), **changes)


def assert_batches_hold(owner: str = "w") -> None:
    """Each batch has the records of its rows, and no row is outside of one."""
    assert not Usage.objects.filter(batch=None).exists()
    batches = list(UsageBatch.objects.filter(owner=owner).order_by("number"))
    assert [batch.number for batch in batches] == list(range(1, len(batches) + 1))
    for batch in batches:
        rows = Usage.objects.filter(batch=batch.pk).order_by("id")
        leaves = [leaf_hash(usage_leaf.record_of(row)) for row in rows]
        assert hashes_of(bytes(batch.leaves)) == leaves
        assert (batch.count, bytes(batch.root)) == (len(leaves), root_of(leaves))


class BatchesCase(TransactionTestCase):
    databases = "__all__"

    def test_rows_of_one_transaction_are_one_batch_with_their_hashes(self) -> None:
        settle(*(record(tokens) for tokens in range(5)))
        settle(record())
        assert_batches_hold()
        assert list(UsageBatch.objects.order_by("id").values_list("count", flat=True)) == [5, 1]
        assert PendingBatch.objects.count() == 2

    def test_a_batch_without_rows_is_none(self) -> None:
        Ledger(ledger_connection()).settle("w", [], {b"x" * 16: b"{}"}, (1, 2))
        assert not UsageBatch.objects.exists()
        assert not PendingBatch.objects.exists()

    def test_rows_that_are_there_already_are_in_their_first_batch_only(self) -> None:
        old, new = record(), record()
        settle(old)
        assert settle(old, new, new) == 1
        assert settle(old, new) == 0
        assert_batches_hold()
        assert list(UsageBatch.objects.order_by("id").values_list("number", "count")) == [(1, 1), (2, 1)]

    def test_each_owner_counts_from_one_and_goes_on_after_a_restart(self) -> None:
        for owner in ("w", "v", "w"):
            settle(record(), owner=owner)
        found = UsageBatch.objects.order_by("id").values_list("owner", "number")
        assert list(found) == [("w", 1), ("v", 1), ("w", 2)]

    def test_odd_texts_and_values_that_are_cut_are_hashed_as_they_are_stored(self) -> None:
        settle(
            record(model=ODD, upstream_model="é" * 300, error="x" * 100, endpoint=ODD),
            record(model="a\0b", upstream_model="", error=""),
            record(stream=True, status=499, basis=4, cost_pico=10**18, shape=b"\xff" * 16, price_id=-2),
            record(10**17, cost_pico=10**30, latency_us=2**70, status=10**12),
            record(at_us=0),
            record(at_us=10**20),
            record(key_id=2**63 - 1, input_audio_tokens=3, output_audio_tokens=4, input_image_tokens=5),
            usage_record(new_rid(), 3, draws=tuple(tokens_of(number) for number in range(10**6, 10**6 + 40))),
        )
        assert_batches_hold()
        assert Usage.objects.count() == 8

    def test_records_are_canonical_and_name_what_was_charged(self) -> None:
        settle(record(12, model=ODD, at_us=1_700_000_000_000_001, stream=True, cost_pico=2**59, shape=b"\x0f" * 16))
        row = Usage.objects.get()
        body = usage_leaf.record_of(row)
        assert canonical.is_canonical(body)
        assert dumps(json.loads(body)) == body
        found = json.loads(body)
        assert list(found) == list(usage_leaf.KEYS)
        assert found["at"] == "2023-11-14T22:13:20.000001Z"
        assert (found["cost_pico"], found["tokens"], found["stream"]) == (str(2**59), "12", "true")
        assert (found["id"], found["decision"], found["model"]) == (row.rid, "0f" * 16, ODD)
        assert (found["agent"], found["key"], found["team"], found["pools"]) == ("2", "1", "3", "7@0")

    def test_a_template_that_is_remembered_gives_the_same_record_as_a_new_one(self) -> None:
        rows = ledger_sql.usage_rows(
            [record(tokens, model=f"m{tokens % 3}", stream=tokens % 2 == 0) for tokens in range(9)]
        )
        first = usage_leaf.records_of(rows)
        usage_leaf._templates.clear()
        assert usage_leaf.records_of(rows) == first == [usage_leaf.records_of([row])[0] for row in rows]
