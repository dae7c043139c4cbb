"""Tokens that callers set aside themselves, on a real database and a real writer."""

from __future__ import annotations

import datetime as dt
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.test import TransactionTestCase
from django.utils import timezone

from budgets.grants import RECALL_PAUSE_S
from budgets.journal import Journal
from budgets.models import Lease, PoolAlert, PoolWindow, Reservation, Usage
from budgets.records import Basis
from budgets.reservations import (
    AlreadyReportedError,
    LedgerAwayError,
    NotYourReservationError,
    OtherReservationError,
    ReservationExpiry,
    ReservationNotFoundError,
    Reservations,
    Share,
    Used,
    Wanted,
    new_id,
    owner_of,
)
from budgets.settle import Writer
from budgets.windows import WindowSpec

pytestmark = pytest.mark.database

PROJECT, TEAM, OWN = 1, 2, 3  # pools
KEY, TEAM_ID = 7, 70


class ReservationCase(TransactionTestCase):
    databases = "__all__"

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="hj-"))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.recalled: list[tuple[int, int, int]] = []
        self.writer = self.start_writer()

    def start_writer(self, **options: Any) -> Writer:
        writer = Writer(self.directory, period_s=0.02, **options)
        writer.start()
        self.addCleanup(writer.stop)
        self.reservations = Reservations(writer, recall=lambda *purse: self.recalled.append(purse))
        return writer

    def window(self, pool: int = PROJECT, capacity: int | None = 1_000, *, start: int = 0, **more: Any) -> None:
        specs = [WindowSpec(pool, unit, start, 0, capacity if unit == 0 else None, **more) for unit in (0, 1)]
        self.writer.sync_windows(specs).result(10)

    def wanted(self, tokens: int = 100, *pools: int, **changes: Any) -> Wanted:
        mode = changes.pop("mode", "hard")
        shares = tuple(Share(pool, mode) for pool in pools or (PROJECT,))
        fields = {
            "id": new_id(),
            "pool_id": PROJECT,
            "shares": shares,
            "team_id": TEAM_ID,
            "agent_id": 77,
            "key_id": KEY,
        }
        return Wanted(**{**fields, "tokens": tokens, **changes})

    def reserve(self, tokens: int = 100, *pools: int, wait_s: float = 0, **changes: Any) -> Reservation | None:
        return self.reservations.reserve(self.wanted(tokens, *pools, **changes), wait_s=wait_s).made

    def made(self, *arguments: Any, **changes: Any) -> Reservation:
        made = self.reserve(*arguments, **changes)
        assert made is not None
        return made

    def report(self, actual: int, id: str = "", **changes: Any) -> Reservation:
        fields = {"pool_id": None if id else PROJECT, "team_id": TEAM_ID, "key_id": KEY, **changes}
        return self.reservations.report(Used(id=id, actual=actual, **fields))

    def expire(self) -> None:
        self.writer.submit(ReservationExpiry().run).result(10)

    def figures(self, pool: int = PROJECT, start: int = 0) -> tuple[int, int, int]:
        row = PoolWindow.objects.get(pool_id=pool, unit=0, window_start=start)
        assert row.leased == sum(lease.remaining for lease in Lease.objects.filter(window=row))
        return row.committed, row.leased, row.overrun


class ReserveTest(ReservationCase):
    def test_what_is_reserved_is_out_of_everybodys_reach(self) -> None:
        self.window()
        row = self.made(600)
        assert self.figures() == (0, 600, 0)
        assert self.reserve(401) is None
        assert self.made(400)
        assert self.figures() == (0, 1_000, 0)
        assert (row.tokens, row.state, row.draws, row.key_id) == (600, "open", "1@0", KEY)
        assert row.expires_at - row.created_at == dt.timedelta(seconds=600)
        granted: list[tuple[Any, ...]] = []
        answered = threading.Event()
        self.writer.grant("w", PROJECT, 0, 0, 0, 10, lambda *told: (granted.append(told), answered.set()), 10)
        assert answered.wait(10)
        assert granted[0] == (0, False, True, 0, 0), "a worker gets nothing, and is not told to wait for a reservation"

    def test_all_pools_of_the_chain_or_none(self) -> None:
        self.window(PROJECT, 1_000)
        self.window(TEAM, 150)
        self.window(OWN, 1_000)
        assert self.reserve(200, PROJECT, TEAM, OWN) is None
        assert [self.figures(pool)[1] for pool in (PROJECT, TEAM, OWN)] == [0, 0, 0]
        row = self.made(100, OWN, TEAM, PROJECT)
        assert row.draws == "1@0 2@0 3@0"
        assert [self.figures(pool)[1] for pool in (PROJECT, TEAM, OWN)] == [100, 100, 100]

    def test_only_what_has_a_limit_is_leased(self) -> None:
        self.window(PROJECT, None)
        assert self.made(10**12).draws == "1@0"
        assert not Lease.objects.exists()

    def test_observe_leases_nothing_and_soft_needs_room_for_one(self) -> None:
        self.window(PROJECT, 1)
        assert self.made(500, mode="observe")
        assert self.figures() == (0, 0, 0)
        assert self.made(500, mode="soft")
        assert self.figures() == (0, 1, 0)
        assert self.reserve(500, mode="soft") is None

    def test_the_present_window_is_drawn_on(self) -> None:
        self.window(PROJECT, 1_000, start=3_600)
        self.window(PROJECT, 1_000, start=7_200)
        assert self.made(10).draws == "1@7200"

    def test_a_pool_the_ledger_does_not_know_yet_is_no_refusal(self) -> None:
        with pytest.raises(LedgerAwayError):
            self.reserve(1)

    def test_of_many_at_once_exactly_those_that_fit_are_made(self) -> None:
        self.window(PROJECT, 1_000)
        made: list[Reservation | None] = []
        threads = [threading.Thread(target=lambda: made.append(self.reserve(100))) for _ in range(25)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sum(row is not None for row in made) == 10
        assert self.figures() == (0, 1_000, 0)

    def test_idle_tokens_of_workers_are_called_back_and_waited_for(self) -> None:
        self.window(PROJECT, 1_000)
        granted = threading.Event()
        self.writer.grant("w", PROJECT, 0, 0, 0, 900, lambda *told: granted.set(), 900)
        assert granted.wait(10)

        def give_back(*purse: int) -> None:
            self.recalled.append(purse)
            self.writer.give_back("w", *purse, 900)

        reservations = Reservations(self.writer, recall=give_back)
        assert reservations.reserve(self.wanted(800)).made is not None
        assert self.recalled[0] == (PROJECT, 0, 0)

    def test_what_workers_use_is_not_waited_for_for_ever(self) -> None:
        self.window(PROJECT, 1_000)
        granted = threading.Event()
        self.writer.grant("w", PROJECT, 0, 0, 0, 900, lambda *told: granted.set(), 900)
        assert granted.wait(10)
        begin = time.monotonic()
        assert self.reserve(800, wait_s=0.3) is None
        assert 0.2 < time.monotonic() - begin < 5
        assert len(self.recalled) >= 2
        self.recalled.clear()
        begin = time.monotonic()
        assert self.reserve(1_001, wait_s=5) is None
        assert time.monotonic() - begin < 2, "no worker could return so much: nothing to wait for"
        assert self.recalled == []

    def test_many_that_wait_call_back_no_more_often_than_one(self) -> None:
        self.window(capacity=1_000)
        answered = threading.Event()
        self.writer.grant("w", PROJECT, 0, 0, 0, 800, lambda *_told: answered.set(), 800)
        assert answered.wait(10)
        begin = time.monotonic()
        threads = [threading.Thread(target=self.reserve, args=(900,), kwargs={"wait_s": 0.5}) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        most = (time.monotonic() - begin) / RECALL_PAUSE_S + 1
        assert 1 <= len(self.recalled) <= most

    def test_the_same_call_again_makes_nothing_new(self) -> None:
        self.window()
        wanted = self.wanted(100)
        first, second = (self.reservations.reserve(wanted).made for _ in range(2))
        assert first is not None
        assert second is not None
        assert first.pk == second.pk
        assert self.figures() == (0, 100, 0)

    def test_an_idempotency_key_gives_the_same_reservation(self) -> None:
        self.window()
        first = self.made(100, idempotency_key="a" * 64)
        assert self.made(100, idempotency_key="a" * 64).pk == first.pk
        self.report(50, first.pk)
        assert self.made(100, idempotency_key="a" * 64).pk == first.pk
        for other in ({"tokens": 101}, {"ttl_s": 60}, {"pool_id": TEAM}):
            with pytest.raises(OtherReservationError):
                self.reserve(**{"tokens": 100, "idempotency_key": "a" * 64, **other})
        assert self.made(100, idempotency_key="a" * 64, key_id=8).pk != first.pk
        assert Reservation.objects.count() == 2

    def test_two_hosts_with_one_database_make_one_reservation_for_a_key(self) -> None:
        self.window(PROJECT, 100_000)
        first = self.reservations
        directory = Path(tempfile.mkdtemp(prefix="hj-"))
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        other = Writer(directory, period_s=0.02)
        other.start()
        self.addCleanup(other.stop)
        hosts, made = (first, Reservations(other)), []

        def reserve(number: int) -> None:
            wanted = self.wanted(100, idempotency_key=f"{number // 4:064}")
            made.append(hosts[number % 2].reserve(wanted, wait_s=0).made)

        threads = [threading.Thread(target=reserve, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len({row.pk for row in made if row is not None}) == 6
        assert (len(made), self.figures()) == (24, (0, 600, 0))

    def test_a_refusal_is_not_remembered_under_the_key(self) -> None:
        self.window(PROJECT, 50)
        assert self.reserve(100, idempotency_key="a" * 64) is None
        self.window(PROJECT, 500)
        assert self.made(100, idempotency_key="a" * 64)

    def test_a_stopped_writer_is_told(self) -> None:
        self.window()
        self.writer.stop()
        with pytest.raises(LedgerAwayError):
            self.reserve(1)


class ReportTest(ReservationCase):
    def test_what_was_used_is_charged_everywhere_and_the_rest_returns(self) -> None:
        for pool in (PROJECT, TEAM):
            self.window(pool)
        row = self.made(600, PROJECT, TEAM)
        assert self.report(320, row.pk).state == "reported"
        assert [self.figures(pool) for pool in (PROJECT, TEAM)] == [(320, 0, 0), (320, 0, 0)]
        assert not Lease.objects.exists()
        (usage,) = Usage.objects.all()
        assert (usage.rid, usage.attempt, usage.endpoint, usage.basis) == (row.pk, 0, "tokens", Basis.REPORTED)
        assert (usage.tokens, usage.held, usage.pool_id, usage.pools) == (320, 600, PROJECT, "1@0 2@0")
        assert (usage.key_id, usage.team_id, usage.agent_id, usage.cost_usd) == (KEY, TEAM_ID, 77, 0)

    def test_more_than_was_reserved_is_the_truth_all_the_same(self) -> None:
        self.window(PROJECT, 1_000)
        self.report(1_500, self.made(400).pk)
        assert self.figures() == (1_500, 0, 500)
        assert self.reserve(1) is None

    def test_pools_that_only_count_count(self) -> None:
        self.window(PROJECT, 100)
        self.window(TEAM, None)
        row = self.made(500, PROJECT, TEAM, mode="observe")
        self.report(300, row.pk)
        assert (self.figures(), self.figures(TEAM)) == ((300, 0, 200), (300, 0, 0))

    def test_a_report_of_nothing_gives_everything_back(self) -> None:
        self.window()
        self.report(0, self.made(600).pk)
        assert self.figures() == (0, 0, 0)

    def test_without_an_id_it_is_the_keys_oldest_open_one_on_the_pool(self) -> None:
        self.window()
        first, second = self.made(100), self.made(200)
        self.made(50, key_id=8)
        assert self.report(10).pk == first.pk
        assert self.report(20).pk == second.pk
        with pytest.raises(ReservationNotFoundError):
            self.report(30)
        assert self.figures() == (30, 50, 0)

    def test_the_same_report_again_changes_nothing_and_another_is_refused(self) -> None:
        self.window()
        row = self.made(100)
        self.report(40, row.pk)
        assert self.report(40, row.pk).actual == 40
        with pytest.raises(AlreadyReportedError):
            self.report(41, row.pk)
        assert (self.figures(), Usage.objects.count()) == ((40, 0, 0), 1)

    def test_two_reports_at_once_charge_once(self) -> None:
        self.window()
        row = self.made(100)
        threads = [threading.Thread(target=self.report, args=(40, row.pk)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert (self.figures(), Usage.objects.count()) == ((40, 0, 0), 1)

    def test_only_keys_of_the_team_report_it(self) -> None:
        self.window()
        row = self.made(100)
        with pytest.raises(NotYourReservationError):
            self.report(1, row.pk, team_id=71, key_id=9)
        assert self.report(1, row.pk, key_id=9).state == "reported"

    def test_an_unknown_id_and_another_pool_are_not_found(self) -> None:
        self.window()
        row = self.made(100)
        for changes in ({"id": new_id()}, {"id": row.pk, "pool_id": TEAM}):
            with pytest.raises(ReservationNotFoundError):
                self.report(1, **changes)
        assert self.report(1, row.pk, pool_id=PROJECT).state == "reported"

    def test_an_alert_is_raised_with_the_report(self) -> None:
        self.window(PROJECT, 1_000, alerts="80")
        self.report(800, self.made(900).pk)
        assert [(alert.percent, alert.committed) for alert in PoolAlert.objects.all()] == [(80, 800)]

    def test_it_is_charged_to_the_window_it_was_made_in(self) -> None:
        self.window(PROJECT, 1_000, start=3_600)
        row = self.made(100)
        self.window(PROJECT, 1_000, start=7_200)
        self.report(60, row.pk)
        assert (self.figures(start=3_600), self.figures(start=7_200)) == ((60, 0, 0), (0, 0, 0))

    def test_what_returns_is_carried_over_to_the_next_window(self) -> None:
        self.window(PROJECT, 1_000, start=3_600)
        row = self.made(1_000)
        self.window(PROJECT, 1_000, start=7_200, carry_from=3_600)
        self.report(100, row.pk)
        self.eventually(lambda: self.capacity(7_200) == 1_900)
        assert self.capacity(3_600) == 100

    def capacity(self, start: int) -> int | None:
        return PoolWindow.objects.get(pool_id=PROJECT, unit=0, window_start=start).capacity

    def eventually(self, condition: Callable[[], bool]) -> None:
        ends_at = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < ends_at, "it did not happen in time"
            time.sleep(0.02)


class ExpiryTest(ReservationCase):
    def test_it_ends_by_itself_when_its_time_is_over(self) -> None:
        self.window()
        late, early = self.made(100), self.made(200)
        self.expire()
        assert self.figures() == (0, 300, 0)
        Reservation.objects.filter(pk=late.pk).update(expires_at=timezone.now())
        self.expire()
        assert self.figures() == (0, 200, 0)
        states = dict(Reservation.objects.values_list("pk", "state"))
        assert states == {late.pk: "expired", early.pk: "open"}
        assert not Usage.objects.exists()

    def test_the_writer_does_it_every_second(self) -> None:
        self.writer.stop()
        self.writer = self.start_writer(jobs=[ReservationExpiry()])
        self.window()
        self.made(100, ttl_s=1)
        ends_at = time.monotonic() + 10
        while PoolWindow.objects.get(pool_id=PROJECT, unit=0).leased:  # beside a thread that writes: one row at a time
            assert time.monotonic() < ends_at, "it did not expire"
            time.sleep(0.05)
        self.writer.stop()
        assert self.figures() == (0, 0, 0)

    def test_a_report_that_comes_too_late_is_charged_all_the_same(self) -> None:
        self.window()
        row = self.made(1_000)
        Reservation.objects.update(expires_at=timezone.now())
        self.expire()
        other = self.made(900)
        self.report(300, row.pk)
        self.expire()
        assert self.figures() == (300, 900, 200)
        self.report(0, other.pk)
        assert self.figures() == (300, 0, 0)


class CrashTest(ReservationCase):
    def test_it_survives_control_and_is_nobodys_to_bury(self) -> None:
        self.window()
        row = self.made(600)
        worker = Journal.open(self.directory, "w")
        worker.close()  # a dead worker is buried meanwhile
        self.writer.settle_now().result(10)
        self.writer.stop()
        self.writer = self.start_writer()
        self.writer.settle_now().result(10)
        assert self.figures() == (0, 600, 0)
        assert Lease.objects.get().owner == owner_of(row.pk)
        assert Lease.objects.get().state == "active"
        assert self.report(100, row.pk).state == "reported"
        assert self.figures() == (100, 0, 0)

    def test_a_failure_between_two_steps_leaves_nothing_half_done(self) -> None:
        self.window(PROJECT)
        row = self.made(100)
        steps = {"reserve": lambda: self.reserve(50), "report": lambda: self.report(40, row.pk)}
        for name, call in steps.items():
            with self.subTest(name), self.refusing_writes_of_reservations(), pytest.raises(LedgerAwayError):
                call()
            assert self.figures() == (0, 100, 0)
            assert not Usage.objects.exists()
        assert self.report(40, row.pk).state == "reported"

    def refusing_writes_of_reservations(self) -> Any:
        """The last statement of each step fails, as a database does that goes away there."""
        return LockedTable(self.writer, Reservation._meta.db_table)


class LockedTable:
    """A trigger that refuses every write to a table."""

    def __init__(self, writer: Writer, table: str) -> None:
        self.writer, self.table = writer, table

    def __enter__(self) -> None:
        self.do(POSTGRES_LOCK if self.is_postgres() else SQLITE_LOCK)

    def __exit__(self, *exc: object) -> None:
        self.do(POSTGRES_UNLOCK if self.is_postgres() else SQLITE_UNLOCK)

    def is_postgres(self) -> bool:
        return bool(self.writer.submit(lambda connection: connection.vendor == "postgresql").result(10))

    def do(self, statements: tuple[str, ...]) -> None:
        def work(connection: Any) -> None:
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement.replace("TABLE_NAME", self.table))

        self.writer.submit(work).result(10)


SQLITE_LOCK = tuple(
    f"CREATE TRIGGER refuse_{kind.lower()} BEFORE {kind} ON TABLE_NAME BEGIN SELECT RAISE(ABORT, 'refused'); END"
    for kind in ("INSERT", "UPDATE")
)
SQLITE_UNLOCK = ("DROP TRIGGER refuse_insert", "DROP TRIGGER refuse_update")
POSTGRES_LOCK = (
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$",
    "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON TABLE_NAME FOR EACH ROW EXECUTE FUNCTION refuse()",
)
POSTGRES_UNLOCK = ("DROP TRIGGER refuse ON TABLE_NAME", "DROP FUNCTION refuse()")
