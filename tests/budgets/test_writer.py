"""The writer's thread: queue, jobs, outages of the database, its end."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.conf import settings
from django.db import OperationalError, connections

from budgets.models import Usage
from budgets.settle import WriterStoppedError
from tests.budgets.ledger_case import TOKENS, LedgerCase
from tests.budgets.records import new_rid, usage_record

pytestmark = pytest.mark.database


class ThreadTests(LedgerCase):
    def test_stopping_settles_to_the_end_first(self) -> None:
        writer = self.start_writer(period_s=60)
        worker = self.open_journal()
        self.ask(writer, need=1_000).next()
        for _ in range(100):
            worker.complete(usage_record(new_rid(), 1))
        worker.close()
        assert writer.stop()
        assert self.figures() == (100, 0, 0)

    def test_work_is_done_in_the_writers_thread_with_its_connection(self) -> None:
        writer = self.start_writer()

        def work(connection: Any) -> int:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 42")
                return int(cursor.fetchone()[0])

        assert writer.submit(work).result(10) == 42

    def test_a_failing_piece_of_work_tells_its_caller_and_nobody_else(self) -> None:
        writer = self.start_writer()

        def fail(_connection: Any) -> None:
            raise KeyError("mine")

        with pytest.raises(KeyError):
            writer.submit(fail).result(10)
        assert self.ask(writer, need=10).next()[0] >= 10

    def test_an_ask_waits_for_one_worker_to_be_settled_and_not_for_all(self) -> None:
        writer = self.start_writer(period_s=60)
        workers = [self.open_journal(f"w{number}") for number in range(10)]
        for worker in workers:
            worker.complete(usage_record(new_rid(), 1))
        go_on, settled = threading.Event(), []
        writer.submit(lambda _connection: go_on.wait(10))
        done = writer.settle_now()
        writer.grant("w0", *TOKENS, 0, 1, lambda *_told: settled.append(Usage.objects.count()))
        go_on.set()
        done.result(10)
        (rows,) = settled
        assert 1 <= rows < 10
        assert Usage.objects.count() == 10

    def test_workers_that_end_while_others_are_settled_are_settled_once(self) -> None:
        """Each pass that is asked for meanwhile is made in between."""
        writer = self.start_writer(period_s=60)
        workers = [self.open_journal(f"w{number}") for number in range(10)]
        for worker in workers:
            worker.complete(usage_record(new_rid(), 1))
            worker.close()
        go_on = threading.Event()
        writer.submit(lambda _connection: go_on.wait(10))
        passes = [writer.settle_now() for _ in range(20)]
        go_on.set()
        for done in passes:
            done.result(10)
        assert Usage.objects.count() == 10
        stats = writer.stats()
        assert (stats["buried"], stats["errors"], stats["outages"]) == (10, 0, 0)

    def test_after_the_end_work_is_refused(self) -> None:
        writer = self.start_writer()
        writer.stop()
        with pytest.raises(WriterStoppedError):
            writer.submit(lambda _connection: None).result(10)

    def test_a_second_writer_on_the_directory_waits_for_the_first_to_end(self) -> None:
        first = self.start_writer()
        second = self.start_writer(capacity=None)
        assert not second.ready.wait(0.2)
        first.stop()
        assert second.ready.wait(10)

    def test_a_second_writer_that_never_got_its_turn_can_be_stopped(self) -> None:
        self.start_writer()
        second = self.start_writer(capacity=None)
        assert second.stop(5)

    def test_an_outage_of_the_database_is_ridden_out(self) -> None:
        writer = self.start_writer()
        worker = self.open_journal()
        total = self.ask(writer, need=1_000).next()[0]

        def break_connection(connection: Any) -> None:
            connection.close()
            raise OperationalError("the server went away")

        for number in range(5):
            worker.complete(usage_record(new_rid(), 10))
            with pytest.raises(OperationalError):
                writer.submit(break_connection).result(10)
            self.eventually(lambda number=number: self.window().committed == 10 * (number + 1))
        assert self.figures() == (50, total - 50, 0)
        assert writer.stats()["outages"] == 5

    def test_tables_that_are_away_for_a_while_cost_nothing(self) -> None:
        writer = self.start_writer()
        worker = self.open_journal()
        self.ask(writer, need=1_000).next()
        connection, table = connections[settings.HOOSH_LEDGER_DB], Usage._meta.db_table
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {table} RENAME TO away")
        worker.complete(usage_record(new_rid(), 10))
        self.eventually(lambda: writer.stats()["outages"] > 0)
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE away RENAME TO {table}")
        self.eventually(lambda: self.window().committed == 10)
        assert Usage.objects.count() == 1


class Counting:
    """A job that notes what it was called for, and fails when told to."""

    def __init__(self, period_s: float = 0.01) -> None:
        self.period_s = period_s
        self.runs = 0
        self.ended: list[str] = []
        self.failure: Exception | None = None

    def run(self, connection: Any) -> None:
        assert connection.alias == settings.HOOSH_LEDGER_DB
        assert threading.current_thread().name == "ledger-writer"
        self.runs += 1
        if self.failure is not None:
            raise self.failure

    def owner_ended(self, connection: Any, owner: str) -> None:
        self.ended.append(owner)
        if self.failure is not None:
            raise self.failure


class JobTests(LedgerCase):
    def test_jobs_are_run_again_and_again(self) -> None:
        often, seldom = Counting(), Counting(period_s=3_600)
        writer = self.start_writer(jobs=(often, seldom))
        self.eventually(lambda: often.runs >= 5)
        assert seldom.runs == 1
        writer.run_jobs().result(10)
        assert seldom.runs == 2

    def test_jobs_are_told_of_dead_workers(self) -> None:
        job = Counting()
        writer = self.start_writer(period_s=60, jobs=(job,))
        self.open_journal("a").close()
        self.open_journal("b")
        writer.settle_now().result(10)
        assert job.ended == ["a"]

    def test_a_job_that_fails_stops_neither_money_nor_the_others(self) -> None:
        for failure in (KeyError("mine"), OperationalError("the server went away")):
            with self.subTest(failure=failure):
                bad, good = Counting(), Counting()
                bad.failure = failure
                writer = self.start_writer(jobs=(bad, good))
                worker = self.open_journal(f"w{id(failure)}")
                worker.complete(usage_record(new_rid(), 10))
                worker.close()
                self.eventually(lambda bad=bad: len(bad.ended) > 0)
                self.eventually(lambda good=good: good.runs > 3)
                assert bad.runs == 1, "it is left alone for a while"
                self.eventually(lambda writer=writer: writer.stats()["buried"] == 1)
                figures = writer.stats()
                assert (figures["errors"], figures["outages"]) == (0, 0)
                assert figures["jobs_failed"] >= 2
                writer.stop()
        assert self.figures()[0] == 20

    def test_a_long_job_lets_waiting_asks_through_before_the_next(self) -> None:
        order: list[str] = []

        class Slow(Counting):
            def run(self, connection: Any) -> None:
                order.append("job")
                if len(order) == 1:
                    begun.set()
                    assert go_on.wait(10)

        begun, go_on = threading.Event(), threading.Event()
        writer = self.start_writer(capacity=None, jobs=(Slow(), Slow()))
        assert begun.wait(10)
        work = writer.submit(lambda _connection: order.append("work"))
        go_on.set()
        work.result(10)
        assert order[:2] == ["job", "work"]
