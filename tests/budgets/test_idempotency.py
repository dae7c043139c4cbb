"""What control remembers of requests that carry an Idempotency-Key, on a real database and a real writer."""

from __future__ import annotations

import datetime as dt
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError, connections
from django.test import TransactionTestCase
from django.utils import timezone

from budgets.idempotency import ENDS_AT_ONCE, EXPIRED_PER_RUN, KEPT, IdempotencyExpiry, IdempotencyStore
from budgets.journal import Journal
from budgets.models import IdempotentReply
from budgets.settle import Writer

pytestmark = pytest.mark.database

KEY, OTHER_KEY = 7, 8
DIGEST, BODY, OTHER_BODY = "d" * 64, "b" * 64, "c" * 64
REPLY = b"sealed \x00\xff bytes"


class Answers:
    """Where a worker's answers arrive."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()

    def __call__(self, *answer: Any) -> None:
        self._queue.put(answer)

    def next(self) -> tuple[Any, ...]:
        return self._queue.get(timeout=10)


class StoreCase(TransactionTestCase):
    databases = "__all__"

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="hj-"))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        for owner in ("w", "other", "alive"):
            self.addCleanup(Journal.open(self.directory, owner).close)
        self.writer = self.start_writer()
        self.store = IdempotencyStore(self.writer, self.directory)

    def start_writer(self) -> Writer:
        writer = Writer(self.directory, period_s=0.02)
        writer.start()
        self.addCleanup(writer.stop)
        return writer

    def begin(
        self,
        rid: str = "r1",
        *,
        owner: str = "w",
        key: int = KEY,
        body: str = BODY,
        store: IdempotencyStore | None = None,
    ) -> tuple[Any, ...]:
        answers = Answers()
        (store or self.store).begin(owner, key, DIGEST, body, rid, answers)
        return answers.next()

    def end(self, rid: str = "r1", *, owner: str = "w", keep: bool = True, body: bytes | None = REPLY) -> None:
        self.store.end(owner, KEY, DIGEST, rid, keep, 200 if keep else 0, "text/event-stream" if keep else "", body)

    def job(self, function: Callable[..., None], *arguments: Any) -> None:
        self.writer.submit(lambda connection: function(connection, *arguments)).result(10)

    def test_a_first_request_runs_and_its_repetition_is_answered_from_memory(self) -> None:
        assert self.begin() == ("new", 0, "", None)
        self.end()
        assert self.begin("r2", owner="other") == ("done", 200, "text/event-stream", REPLY)
        assert IdempotentReply.objects.get().state == "done"

    def test_while_it_runs_the_same_request_is_told_so(self) -> None:
        assert self.begin()[0] == "new"
        assert self.begin("r2")[0] == "running"
        assert self.begin("r3", owner="other")[0] == "running"

    def test_of_many_at_once_one_runs(self) -> None:
        answers = [Answers() for _ in range(50)]
        for number, answer in enumerate(answers):
            self.store.begin("w", KEY, DIGEST, BODY, f"r{number}", answer)
        states = [answer.next()[0] for answer in answers]
        assert sorted(states) == ["new"] + ["running"] * 49

    def test_asked_again_under_the_same_request_id_it_is_still_new(self) -> None:
        assert [self.begin()[0], self.begin()[0]] == ["new", "new"]

    def test_another_request_under_the_key_is_a_mismatch_running_or_done(self) -> None:
        self.begin()
        assert self.begin("r2", body=OTHER_BODY)[0] == "mismatch"
        self.end()
        assert self.begin("r3", body=OTHER_BODY) == ("mismatch", 0, "", None)

    def test_other_api_keys_have_keys_of_their_own(self) -> None:
        assert [self.begin()[0], self.begin(key=OTHER_KEY)[0]] == ["new", "new"]

    def test_a_forgotten_request_runs_again(self) -> None:
        self.begin()
        self.end(keep=False, body=None)
        assert self.begin("r2")[0] == "new"
        self.end("r1")  # late, and of the first try
        assert self.begin("r3")[0] == "running"

    def test_an_answer_too_large_to_keep_is_done_without_a_body(self) -> None:
        self.begin()
        self.end(body=None)
        assert self.begin("r2") == ("done", 200, "text/event-stream", None)

    def test_ends_may_be_told_twice(self) -> None:
        self.begin()
        self.end()
        self.end()
        self.end(keep=False, body=None)
        assert self.begin("r2")[0] == "done"

    def test_a_dead_workers_running_requests_are_forgotten_and_its_answers_stay(self) -> None:
        self.begin()
        self.end()
        answers = Answers()
        self.store.begin("w", KEY, "e" * 64, BODY, "r2", answers)
        assert answers.next()[0] == "new"
        self.begin("r3", owner="alive", key=OTHER_KEY)
        self.job(IdempotencyExpiry().owner_ended, "w")
        assert sorted(IdempotentReply.objects.values_list("rid", flat=True)) == ["r1", "r3"]

    def test_answers_are_kept_for_a_day(self) -> None:
        self.begin()
        self.end()
        row = IdempotentReply.objects.get()
        assert abs(row.expires_at - timezone.now() - KEPT) < dt.timedelta(minutes=1)
        self.job(IdempotencyExpiry().run)
        assert self.begin("r2")[0] == "done"
        IdempotentReply.objects.update(expires_at=timezone.now())
        assert self.begin("r3", body=OTHER_BODY)[0] == "new", "an expired answer is as good as none"
        IdempotentReply.objects.update(expires_at=timezone.now())
        self.job(IdempotencyExpiry().run)
        assert not IdempotentReply.objects.exists()

    def test_one_run_of_the_expiry_is_bounded(self) -> None:
        over = timezone.now() - dt.timedelta(seconds=1)
        IdempotentReply.objects.bulk_create(
            IdempotentReply(key_id=KEY, digest=f"{n:064}", request_digest=BODY, created_at=over, expires_at=over)
            for n in range(EXPIRED_PER_RUN + 3)
        )
        self.job(IdempotencyExpiry().run)
        assert IdempotentReply.objects.count() == 3

    def test_answers_survive_a_restart_of_control(self) -> None:
        self.begin()
        self.end()
        self.begin("r9", key=OTHER_KEY)
        assert self.writer.stop()
        assert self.begin("r2")[0] == "unavailable"
        store = IdempotencyStore(self.start_writer(), self.directory)
        assert self.begin("r3", store=store) == ("done", 200, "text/event-stream", REPLY)
        assert self.begin("r4", key=OTHER_KEY, store=store)[0] == "running", "its worker did not die"

    def test_what_a_worker_sent_just_before_it_died_registers_nothing(self) -> None:
        worker = Journal.open(self.directory, "dying")
        writer = self.start_second_writer()
        store = IdempotencyStore(writer, self.directory)
        assert self.begin("r1", owner="dying", store=store)[0] == "new"
        worker.close()
        writer.settle_now().result(10)
        assert not IdempotentReply.objects.exists(), "what it ran is forgotten"
        assert self.begin("r2", owner="dying", store=store) == ("unavailable", 0, "", None)
        assert self.begin("r3", store=store)[0] == "new"

    def start_second_writer(self) -> Writer:
        assert self.writer.stop()
        writer = Writer(self.directory, period_s=60, jobs=[IdempotencyExpiry()])
        writer.start()
        self.addCleanup(writer.stop)
        return writer

    def hold_up(self) -> threading.Event:
        """Keep the writer busy until the event is set."""
        go_on = threading.Event()
        self.writer.submit(lambda _connection: go_on.wait(10))
        return go_on

    def test_an_end_told_before_its_beginning_was_registered_is_not_lost(self) -> None:
        """The worker gave up waiting while the writer was busy."""
        for already_storing in (False, True):
            with self.subTest(already_storing=already_storing):
                go_on = self.hold_up()
                if already_storing:
                    self.store.end("w", OTHER_KEY, DIGEST, "r0", False, 0, "", None)
                answers = Answers()
                self.store.begin("w", KEY, DIGEST, BODY, "r1", answers)
                self.end("r1", keep=False, body=None)
                go_on.set()
                assert answers.next()[0] == "new"
                assert self.begin("r2")[0] == "new"
                self.end("r2", keep=False, body=None)

    def test_many_ends_are_stored_in_bounded_steps_between_which_others_get_a_turn(self) -> None:
        count = 5 * ENDS_AT_ONCE
        now = timezone.now()
        IdempotentReply.objects.bulk_create(
            IdempotentReply(
                **{"key_id": KEY, "digest": f"{n:064}", "request_digest": BODY, "owner": "w", "rid": f"r{n}"},
                **{"created_at": now, "expires_at": now + KEPT},
            )
            for n in range(count)
        )
        left: list[int] = []
        go_on = self.hold_up()
        for n in range(count):
            keep = n % 2 == 0
            self.store.end("w", KEY, f"{n:064}", f"r{n}", keep, 200, "", b"reply" if keep else None)
            self.store.end("w", KEY, f"{n:064}", f"r{n}", not keep, 200, "", None)  # repeated otherwise: it is too late
        rows = IdempotentReply.objects.using(IdempotentReply.objects.db)
        last = self.writer.submit(lambda _connection: left.append(rows.filter(state="running").count()))
        go_on.set()
        last.result(10)
        assert left[0] >= count - ENDS_AT_ONCE, "it waited for one step only"
        ends_at = time.monotonic() + 10
        while rows.filter(state="running").exists():
            assert time.monotonic() < ends_at, "they were never stored"
            time.sleep(0.02)
        assert set(rows.values_list("rid", "state")) == {(f"r{n}", "done") for n in range(0, count, 2)}


class OutageCase(TransactionTestCase):
    """What is told while the database is away."""

    databases = "__all__"

    def test_ends_are_stored_when_the_database_is_back_and_before_the_next_question(self) -> None:
        class Flaky:
            away = False

            def submit(self, work: Callable[[Any], Any]) -> Future[Any]:
                future: Future[Any] = Future()
                try:
                    if self.away:
                        raise DatabaseError("away")
                    future.set_result(work(connections[IdempotentReply.objects.db]))
                except DatabaseError as exc:
                    future.set_exception(exc)
                return future

        directory = Path(tempfile.mkdtemp(prefix="hj-"))
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        self.addCleanup(Journal.open(directory, "w").close)
        writer, answers = Flaky(), Answers()
        store = IdempotencyStore(writer, directory)
        store.begin("w", KEY, DIGEST, BODY, "r1", answers)
        assert answers.next()[0] == "new"
        writer.away = True
        store.end("w", KEY, DIGEST, "r1", True, 200, "application/json", REPLY)
        store.begin("w", KEY, DIGEST, BODY, "r2", answers)
        assert answers.next() == ("unavailable", 0, "", None)
        writer.away = False
        store.begin("w", KEY, DIGEST, BODY, "r3", answers)
        assert answers.next() == ("done", 200, "application/json", REPLY)

    def test_they_are_stored_without_a_question_too(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="hj-"))
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        writer = Writer(directory, period_s=0.02)
        writer.start()
        self.addCleanup(writer.stop)
        self.addCleanup(Journal.open(directory, "w").close)
        store, answers = IdempotencyStore(writer, directory), Answers()
        store.begin("w", KEY, DIGEST, BODY, "r1", answers)
        assert answers.next()[0] == "new"
        table = IdempotentReply._meta.db_table
        writer.submit(lambda connection: rename(connection, table, f"{table}_away")).result(10)
        try:
            store.end("w", KEY, DIGEST, "r1", True, 200, "application/json", REPLY)
            writer.submit(lambda connection: None).result(10)
        finally:
            writer.submit(lambda connection: rename(connection, f"{table}_away", table)).result(10)
        ends_at = time.monotonic() + 10
        while IdempotentReply.objects.get().state != "done":
            assert time.monotonic() < ends_at, "it was never stored"
            time.sleep(0.02)


def rename(connection: Any, old: str, new: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")
