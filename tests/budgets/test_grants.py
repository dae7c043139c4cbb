"""Leasing to workers and taking back, on a real database."""

from __future__ import annotations

import pytest
from django.conf import settings
from django.db import IntegrityError, transaction

from budgets.ledger_books import NO_WORKER
from budgets.models import Lease, PoolWindow
from tests.budgets.ledger_case import TOKENS, LedgerCase, spec
from tests.budgets.records import new_rid, usage_record

pytestmark = pytest.mark.database

SHAPE = bytes(range(16))


class GrantTests(LedgerCase):
    def test_a_first_block_is_a_share_of_what_is_free(self) -> None:
        writer = self.start_writer(capacity=160_000)
        assert self.ask(writer).next() == (10_000, True, False, 150_000)
        assert self.figures() == (0, 10_000, 0)

    def test_an_answer_that_was_lost_is_repeated_and_nothing_is_granted(self) -> None:
        writer = self.start_writer()
        total = self.ask(writer).next()[0]
        assert self.ask(writer, seen=0).next()[0] == total
        assert self.figures() == (0, total, 0)
        assert self.ask(writer, seen=total).next()[0] > total

    def test_a_question_is_answered_with_the_total_and_grants_nothing(self) -> None:
        """What a worker sends when an answer may have been lost with the line."""
        writer = self.start_writer()
        assert self.ask(writer, want=0).next()[0] == 0
        total = self.ask(writer).next()[0]
        for seen in (0, total, 0, total):
            assert self.ask(writer, seen=seen, want=0).next() == (total, True, False, 100_000 - total)
        assert self.figures() == (0, total, 0)
        assert self.ask(writer, seen=total).next()[0] > total

    def test_a_need_is_given_whole_or_not_at_all(self) -> None:
        writer = self.start_writer(capacity=1_000)
        assert self.ask(writer, need=600).next()[0] >= 600
        total = self.window().leased
        answer = self.ask(writer, "v", need=1_000 - total + 1)
        assert answer.next()[0] == 0
        assert self.ask(writer, "v", need=1_000 - total).next() == (1_000 - total, False, False, 0)

    def test_the_last_tokens_can_be_used(self) -> None:
        writer = self.start_writer(capacity=1_000)
        seen = 0
        for _ in range(100):
            seen = self.ask(writer, seen=seen, need=10).next()[0]
            if seen == 1_000:
                break
        assert seen == 1_000
        assert self.ask(writer, seen=seen, need=1).next() == (1_000, False, True, 0)

    def test_a_pool_is_spent_only_when_nobody_could_return_enough(self) -> None:
        writer = self.start_writer(capacity=1_000)
        self.ask(writer, "idle", want=1_000, need=900).next()
        left = 1_000 - self.window().leased
        _total, _more, spent_out, available = self.ask(writer, "w", need=left + 1).next()
        assert (spent_out, available) == (False, left)
        assert self.ask(writer, "w", need=1_001).next()[2] is True

    def test_what_a_caller_reserved_is_not_waited_for(self) -> None:
        writer = self.start_writer(capacity=1_000)
        self.ask(writer, f"reservation{NO_WORKER}1", need=1_000).next()
        assert self.ask(writer, need=1).next() == (0, False, True, 0)
        assert self.recalls == []

    def test_returned_tokens_go_to_whoever_lacked_them(self) -> None:
        writer = self.start_writer(capacity=1_000)
        total = self.ask(writer, "idle", need=1_000).next()[0]
        hungry = self.ask(writer, "w", need=400)
        assert hungry.next()[0] == 0
        assert self.recalls == [TOKENS]
        writer.give_back("idle", *TOKENS, total)
        assert hungry.next()[0] >= 400

    def test_a_raised_capacity_serves_those_who_wait(self) -> None:
        writer = self.start_writer(capacity=1_000)
        self.ask(writer, "idle", need=1_000).next()
        hungry = self.ask(writer, "w", need=400)
        assert hungry.next()[0] == 0
        self.sync(writer, spec(capacity=10_000))
        assert hungry.next()[0] >= 400

    def test_a_repeated_return_is_taken_once(self) -> None:
        writer = self.start_writer(capacity=1_000)
        self.ask(writer, need=600).next()
        before = self.window().leased
        for _ in range(3):
            writer.give_back("w", *TOKENS, 500)
        writer.give_back("w", *TOKENS, 100)
        writer.settle_now().result(10)
        assert self.figures() == (0, before - 500, 0)

    def test_an_unknown_window_is_not_answered(self) -> None:
        writer = self.start_writer(capacity=None)
        assert self.ask(writer, need=10).none_within(0.2)

    def test_a_total_that_the_ledger_lost_is_adopted(self) -> None:
        writer = self.start_writer(capacity=100_000)
        total = self.ask(writer, seen=5_000).next()[0]
        assert total > 5_000
        assert self.figures()[1] == total

    def test_a_lowered_capacity_stops_grants_and_breaks_nothing(self) -> None:
        writer = self.start_writer(capacity=100_000)
        worker = self.open_journal()
        total = self.ask(writer, need=10_000).next()[0]
        self.sync(writer, spec(capacity=5_000))
        assert self.figures() == (0, total, total - 5_000)
        assert self.ask(writer, seen=total, need=10).next() == (total, False, True, 0)
        worker.complete(usage_record(new_rid(), 8_000))
        writer.settle_now().result(10)
        assert self.figures()[0] == 8_000
        worker.close()
        self.eventually(lambda: not Lease.objects.exists())
        assert self.figures() == (8_000, 0, 3_000)
        self.sync(writer, spec(capacity=20_000))
        assert self.figures() == (8_000, 0, 0)

    def test_the_database_itself_refuses_more_than_the_capacity(self) -> None:
        window = PoolWindow.objects.create(pool_id=1, capacity=100, committed=60, leased=40)
        for change in ({"leased": 41}, {"committed": -1}, {"overrun": -1}):
            with pytest.raises(IntegrityError), transaction.atomic(using=settings.HOOSH_LEDGER_DB):
                PoolWindow.objects.filter(pk=window.pk).update(**change)
