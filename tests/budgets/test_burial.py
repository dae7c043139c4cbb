"""Workers that died: what they left is settled, their leases go back or are set aside."""

from __future__ import annotations

import random
import time
import zlib
from typing import Any

import pytest
from django.db import DatabaseError, connections

from budgets import burial, journal, retention, rollups, transfers
from budgets.journal import Journal
from budgets.ledger import Ledger
from budgets.models import JournalPosition, Lease, LedgerEntry, PoolWindow, Usage
from budgets.records import Basis
from budgets.settle import Writer
from tests.budgets.ledger_case import MONEY, USD, LedgerCase, spec
from tests.budgets.records import POOL, hold_record, money_of, new_rid, tokens_of, usage_record

pytestmark = pytest.mark.database


class DeadOwnerTests(LedgerCase):
    def test_a_dead_workers_holds_are_charged_and_its_lease_goes_back(self) -> None:
        writer = self.start_writer(period_s=60)
        worker = self.open_journal()
        self.ask(writer, need=5_000).next()
        ended, silent, streamed, released = (new_rid() for _ in range(4))
        for rid in (ended, silent, streamed, released):
            worker.hold(hold_record(rid, 1_000, input_bound=200))
        worker.complete(usage_record(ended, 300, held=1_000))
        worker.delivered(streamed, 0, 64, 120)
        worker.release(released, 0)
        worker.close()
        writer.settle_now().result(10)
        assert self.figures() == (300 + 1_000 + 264, 0, 0)
        assert not Lease.objects.exists()
        assert not JournalPosition.objects.exists()
        assert [path.name for path in self.directory.iterdir()] == ["writer.lock"]
        basis = dict(Usage.objects.values_list("rid", "basis"))
        assert basis == {
            ended.hex(): Basis.REPORTED,
            silent.hex(): Basis.BOUND,
            streamed.hex(): Basis.DELIVERED,
        }

    def test_what_a_worker_asked_for_just_before_it_died_is_not_granted_after_its_end(self) -> None:
        writer = self.start_writer()
        worker = self.open_journal()
        total = self.ask(writer, need=5_000).next()[0]
        worker.close()
        self.eventually(lambda: writer.stats()["buried"] == 1)
        late = self.ask(writer, seen=total, need=5_000)
        writer.give_back("w", POOL, 0, 0, 3_000)
        assert late.none_within(0.2)
        assert self.figures() == (0, 0, 0)
        assert not Lease.objects.exists()
        assert self.ask(writer, "v", need=5_000).next()[0] >= 5_000

    def test_a_live_workers_open_holds_are_left_alone(self) -> None:
        writer = self.start_writer(period_s=60)
        worker = self.open_journal()
        total = self.ask(writer, need=5_000).next()[0]
        worker.hold(hold_record(new_rid(), 1_000))
        writer.settle_now().result(10)
        assert self.figures() == (0, total, 0)
        assert writer.stats()["open_holds"] == 1

    def test_a_restarted_control_finds_open_holds_again(self) -> None:
        writer = self.start_writer(period_s=60)
        worker = self.open_journal()
        total = self.ask(writer, need=5_000).next()[0]
        worker.hold(hold_record(new_rid(), 1_000))
        worker.complete(usage_record(new_rid(), 10))
        assert writer.stop()
        assert self.figures() == (10, total - 10, 0)
        worker.close()
        self.start_writer(capacity=None, period_s=60).settle_now().result(10)
        assert self.figures() == (1_010, 0, 0)

    def test_files_left_behind_a_finished_burial_change_nothing(self) -> None:
        writer = self.start_writer(period_s=60)
        worker = self.open_journal()
        self.ask(writer, need=5_000).next()
        worker.hold(hold_record(new_rid(), 1_000))
        worker.complete(usage_record(new_rid(), 10))
        worker.close()
        copies = {path: path.read_bytes() for path in self.directory.glob("w.*")}
        writer.settle_now().result(10)
        for path, data in copies.items():
            path.write_bytes(data)
        writer.settle_now().result(10)
        assert self.figures() == (1_010, 0, 0)
        assert Usage.objects.count() == 2
        assert writer.stats()["buried"] == 2

    def test_a_quarantined_lease_is_not_waited_for(self) -> None:
        writer = self.start_writer(capacity=1_000)
        self.ask(writer, "bad", need=1_000).next()
        Lease.objects.update(state=Lease.State.QUARANTINED)
        assert self.ask(writer, "w", need=1).next()[2] is True

    def test_an_owner_that_died_before_its_first_segment_is_cleared_away(self) -> None:
        journal.lock_path(self.directory, "w").write_bytes(b"")
        writer = self.start_writer()
        self.eventually(lambda: writer.stats()["buried"] == 1)
        assert not journal.lock_path(self.directory, "w").exists()


class QuarantineTests(LedgerCase):
    """A damaged journal: what can be read is charged, the rest stays counted until an operator decides."""

    DRAWS = (tokens_of(POOL, 1_000), money_of(POOL, 10**6))

    def setUp(self) -> None:
        super().setUp()
        self.writer = self.start_writer(period_s=60)
        self.sync(self.writer, spec(MONEY, capacity=USD))
        self.tokens = self.ask(self.writer, need=5_000).next()[0]
        self.money = self.ask(self.writer, need=10**9, key=MONEY).next()[0]

    def quarantine(self) -> bytes:
        """Damage the second of three records; the file as it was before."""
        worker = self.open_journal()
        path = journal.segment_path(self.directory, "w", 1)
        worker.complete(usage_record(new_rid(), 10, cost_pico=1, draws=self.DRAWS))
        start = path.stat().st_size
        worker.complete(usage_record(new_rid(), 20, cost_pico=2, draws=self.DRAWS))
        worker.complete(usage_record(new_rid(), 30, cost_pico=3, draws=self.DRAWS))
        worker.close()
        whole = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(start + 8)
            file.write(b"\xff\xff")
        self.writer.settle_now().result(10)
        return whole

    def resolve(self, *, spent: bool, order_id: int | None = 1, token: str | None = "t1") -> dict[str, Any]:
        return self.writer.submit(
            lambda connection: Ledger(connection).resolve(
                "w", spent=spent, order_id=order_id, order_token=token, actor="ann", note="disk lost"
            )
        ).result(10)

    def replay(self) -> dict[str, Any]:
        return self.writer.submit(lambda connection: burial.replay(Ledger(connection), self.directory, "w", 2)).result(
            10
        )

    def suffixes(self) -> set[str]:
        return {path.suffix for path in self.directory.glob("w.*")}

    def test_its_files_are_set_aside_and_its_leases_stay_counted(self) -> None:
        self.quarantine()
        assert self.figures() == (40, self.tokens - 40, 0)
        assert self.figures(MONEY) == (4, self.money - 4, 0)
        assert set(Lease.objects.values_list("state", flat=True)) == {Lease.State.QUARANTINED}
        assert self.suffixes() == {".bad"}
        assert self.writer.stats()["quarantined"] == 1
        self.writer.run_jobs().result(10)
        self.writer.settle_now().result(10)
        assert self.suffixes() == {".bad"}, "nobody decided so far"

    def test_a_hold_nobody_understands_is_damage(self) -> None:
        worker = self.open_journal()
        worker.complete(usage_record(new_rid(), 10, draws=self.DRAWS))
        payload = journal.KEY.pack(new_rid(), 0) + b"\x93\x01\x02\x03"
        body = journal.HEAD.pack(journal.HOLD, len(payload)) + payload
        with journal.segment_path(self.directory, "w", 1).open("ab") as file:
            file.write(body + journal.CRC.pack(zlib.crc32(body)))
        worker.close()
        self.writer.settle_now().result(10)
        assert self.figures() == (10, self.tokens - 10, 0)
        assert self.suffixes() == {".bad"}

    def test_written_off_what_is_left_counts_as_spent(self) -> None:
        self.quarantine()
        expected = {"owner": "w", "spent": True, "leases": 2, "tokens": self.tokens - 40, "pico_usd": self.money - 4}
        assert self.resolve(spent=True) == {**expected, "repeated": False}
        assert self.figures() == (self.tokens, 0, 0)
        assert self.figures(MONEY) == (self.money, 0, 0)
        assert not Lease.objects.exists()
        entries = LedgerEntry.objects.order_by("unit").values_list("kind", "amount", "order_id", "actor", "note")
        assert list(entries) == [
            ("write_off", self.tokens - 40, 1, "ann", "w: disk lost"),
            ("write_off", self.money - 4, 1, "ann", "w: disk lost"),
        ]
        assert self.resolve(spent=True) == {**expected, "repeated": True}
        assert self.figures() == (self.tokens, 0, 0)
        assert LedgerEntry.objects.count() == 2

    def test_given_back_what_is_left_is_free(self) -> None:
        self.quarantine()
        result = self.resolve(spent=False)
        assert (result["tokens"], result["pico_usd"]) == (self.tokens - 40, self.money - 4)
        assert self.figures() == (40, 0, 0)
        assert set(LedgerEntry.objects.values_list("kind", flat=True)) == {"release"}

    def test_the_files_of_a_resolved_worker_are_kept_under_another_name(self) -> None:
        self.quarantine()
        self.resolve(spent=True)
        self.writer.run_jobs().result(10)
        assert self.suffixes() == {".resolved"}
        with pytest.raises(FileNotFoundError):
            self.replay()

    def test_a_decision_about_nobody_changes_nothing(self) -> None:
        before = self.figures()
        assert self.resolve(spent=True)["leases"] == 0, "its lease is not quarantined"
        assert self.figures() == before

    def test_files_that_were_repaired_are_read_again(self) -> None:
        whole = self.quarantine()
        assert self.replay()["new"] == 0
        [path] = self.directory.glob("w.0*.bad")
        path.write_bytes(whole)
        result = self.replay()
        assert result == {"owner": "w", "records": 3, "new": 1, "damaged": ""}
        assert self.figures() == (60, self.tokens - 60, 0)
        assert self.figures(MONEY) == (6, self.money - 6, 0)
        assert Usage.objects.count() == 3

    def test_those_who_wait_get_what_was_given_back(self) -> None:
        self.ask(self.writer, "idle", need=60_000).next()
        self.quarantine()
        hungry = self.ask(self.writer, "v", need=transfers.free_amount(self.window()) + 1_000)
        assert hungry.next()[0] == 0
        self.resolve(spent=False)
        self.writer.run_jobs().result(10)
        assert hungry.next()[0] > 0


class FaultTests(LedgerCase):
    """Damage is found again, whatever happens between finding it and the worker's end."""

    def damage(self, writer: Writer, **options: Any) -> tuple[Journal, bytes]:
        """A living worker in its second segment or later; in its first one a request of 4,000 tokens cannot be read.

        Returns the worker and what its first segment was.
        """
        self.ask(writer, need=5_000).next()
        worker = self.open_journal(segment_bytes=1_500, **options)
        path = journal.segment_path(self.directory, "w", 1)
        self.requests(worker, 1)
        start = path.stat().st_size
        lost = new_rid()
        worker.hold(hold_record(lost, 4_000))
        worker.complete(usage_record(lost, 4_000))
        end = path.stat().st_size
        while len(journal.list_segments(self.directory, "w")) < 3:
            self.requests(worker, 1)
        whole = path.read_bytes()
        path.write_bytes(whole[: start + 9] + b"\xff" * (end - start - 13) + whole[end - 4 :])
        return worker, whole

    def requests(self, worker: Journal, count: int) -> None:
        for _ in range(count):
            rid = new_rid()
            worker.hold(hold_record(rid, 100))
            worker.complete(usage_record(rid, 10, held=100))

    def is_quarantined(self, *, damaged: int = 1) -> bool:
        assert Lease.objects.get().state == Lease.State.QUARANTINED
        files = {path.name for path in self.directory.glob("w.*")}
        assert {name.rpartition(".")[2] for name in files} == {"bad"}
        first = f"w.{damaged:08d}.j.bad"
        assert {"w.lock.bad", first} <= files, "the damaged file must be there to be repaired"
        return True

    def test_after_a_restart_of_control(self) -> None:
        writer = self.start_writer(period_s=60)
        worker, _whole = self.damage(writer)
        writer.settle_now().result(10)
        assert writer.stats()["damaged"] == ["w"]
        assert len(journal.list_segments(self.directory, "w")) >= 3, "nothing is removed behind the damage"
        assert writer.stop()
        writer = self.start_writer(period_s=60, capacity=None)
        self.requests(worker, 5)
        writer.settle_now().result(10)
        assert writer.stats()["damaged"] == ["w"]
        worker.close()
        writer.settle_now().result(10)
        assert self.is_quarantined()

    def test_repaired_it_is_charged_in_full(self) -> None:
        writer = self.start_writer(period_s=60)
        worker, whole = self.damage(writer)
        writer.settle_now().result(10)
        worker.close()
        writer.settle_now().result(10)
        assert self.is_quarantined()
        charged = self.figures()[0]
        journal.segment_path(self.directory, "w", 1).with_suffix(".j.bad").write_bytes(whole)
        result = writer.submit(lambda connection: burial.replay(Ledger(connection), self.directory, "w", 3)).result(10)
        assert (result["new"], result["damaged"]) == (1, "")
        assert self.figures()[0] == charged + 4_000

    def test_after_an_outage_during_the_burial(self) -> None:
        """The lease cannot be quarantined for a while: its table is away."""
        writer = self.start_writer(period_s=60)
        worker, _whole = self.damage(writer)
        writer.settle_now().result(10)
        worker.close()
        table = Lease._meta.db_table
        writer.submit(lambda connection: rename(connection, table, f"{table}_away")).result(10)
        try:
            with pytest.raises(DatabaseError):
                writer.settle_now().result(10)
        finally:
            writer.submit(lambda connection: rename(connection, f"{table}_away", table)).result(10)
        writer.settle_now().result(10)
        assert self.is_quarantined()

    def test_after_a_death_of_control_while_the_files_were_renamed(self) -> None:
        for renamed in (1, 2, 99):
            with self.subTest(renamed=renamed):
                writer = self.start_writer(period_s=60)
                worker, _whole = self.damage(writer)
                worker.close()
                writer.settle_now().result(10)
                assert self.is_quarantined()
                assert writer.stop()
                bad = sorted(self.directory.glob("w.*.bad"))  # the lock last
                for path in bad[renamed:-1] + bad[-1:]:
                    path.rename(path.with_suffix(""))
                writer = self.start_writer(period_s=60, capacity=None)
                writer.settle_now().result(10)
                assert self.is_quarantined()
                assert writer.stop()
                Lease.objects.all().delete()
                PoolWindow.objects.update(committed=0, leased=0)
                JournalPosition.objects.all().delete()
                for path in self.directory.glob("w.*"):
                    path.unlink()

    def test_the_end_of_a_segment_that_has_a_successor_is_not_torn(self) -> None:
        writer = self.start_writer(period_s=60)
        self.ask(writer, need=5_000).next()
        worker = self.open_journal(segment_bytes=1_500)
        while len(journal.list_segments(self.directory, "w")) < 3:
            self.requests(worker, 1)
        with journal.segment_path(self.directory, "w", 2).open("r+b") as file:
            file.truncate(journal.segment_path(self.directory, "w", 2).stat().st_size - 3)
        worker.close()
        writer.settle_now().result(10)
        assert self.is_quarantined(damaged=2)

    def test_a_host_that_was_away_for_longer_than_usage_rows_are_kept_charges_nothing_twice(self) -> None:
        writer = self.start_writer(period_s=60)
        worker = self.open_journal()
        total = self.ask(writer, need=5_000).next()[0]
        worker.hold(hold_record(new_rid(), 100))  # open: reading begins here after a restart
        long_ago_us = int(time.time() - 30 * 3_600) * 1_000_000
        for _ in range(5):
            worker.complete(usage_record(new_rid(), 50, at_us=long_ago_us))
        writer.settle_now().result(10)
        assert self.figures() == (250, total - 250, 0)
        assert writer.stop()
        worker.close()
        connection = connections[Usage.objects.db]
        rollups.roll_up(connection)
        assert retention.delete_usage(connection, before_s=time.time() - 25 * 3_600, limit=100) == 5
        writer = self.start_writer(period_s=60, capacity=None)
        writer.settle_now().result(10)
        assert self.figures() == (250, total - 250, 0)
        assert self.is_quarantined()


def rename(connection: Any, old: str, new: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")


class CutTests(LedgerCase):
    """Workers whose journals end anywhere: every purse has exactly what the whole records say."""

    def test_journals_cut_anywhere(self) -> None:
        chance = random.Random(8)
        writer = self.start_writer(capacity=10**9, period_s=60)
        self.sync(writer, spec(MONEY, capacity=USD), spec((3, 0, 1_000), capacity=None))
        draws = (tokens_of(3, start=1_000), tokens_of(POOL, 100), money_of(POOL, 10**6))
        tokens = cost = 0
        for number in range(40):
            owner = f"w{number}"
            self.ask(writer, owner, need=1_000).next()
            self.ask(writer, owner, need=10**7, key=MONEY).next()
            worker = self.open_journal(owner)
            path = journal.segment_path(self.directory, owner, 1)
            marks = []  # where a record ends, and what is charged from there on, until the next
            held = charged = (0, 0)
            for _ in range(3):
                rid = new_rid()
                worker.hold(
                    hold_record(rid, 100, input_bound=60, draws=draws, input_pico=3, output_pico=5, request_pico=7)
                )
                held = (charged[0] + 100, charged[1] + 7 + 60 * 3 + 40 * 5)
                marks.append((path.stat().st_size, held))
                worker.complete(usage_record(rid, 30, cost_pico=11, draws=draws))
                charged = (charged[0] + 30, charged[1] + 11)
                marks.append((path.stat().st_size, charged))
            worker.close()
            cut = chance.randrange(journal.HEADER.size, path.stat().st_size + 1)
            with path.open("r+b") as file:
                file.truncate(cut)
            whole = [amounts for end, amounts in marks if end <= cut]
            tokens += whole[-1][0] if whole else 0
            cost += whole[-1][1] if whole else 0
        writer.settle_now().result(30)
        assert self.figures() == (tokens, 0, 0)
        assert self.figures(MONEY) == (cost, 0, 0)
        assert self.figures((3, 0, 1_000)) == (tokens, 0, 0)
        assert writer.stats()["buried"] == 40
