"""`manage.py budget_recover` and `manage.py prune` over a real ledger and a journal that was really damaged."""

from __future__ import annotations

import json
import queue
import time
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import TransactionTestCase, override_settings

from audit.models import OutboxEntry
from budgets import access, journal, retention, rollups
from budgets.jobs import default_jobs
from budgets.journal import Journal
from budgets.models import Lease, LedgerEntry, LedgerOrder, Pool, PoolWindow, Usage
from budgets.settle import Writer
from budgets.windows import WindowSpec
from tests import environment
from tests.budgets.ledger_rows import DAY_S, add_usage, ledger_connection
from tests.budgets.records import hold_record, new_rid, usage_record

pytestmark = pytest.mark.database


class RecoverCase(TransactionTestCase):
    databases = "__all__"

    def setUp(self) -> None:
        self.directory = environment.session_dir() / f"recover-{self.id()[-40:]}"
        self.directory.mkdir(exist_ok=True)
        chosen = override_settings(HOOSH_JOURNAL_DIR=self.directory)
        chosen.enable()
        self.addCleanup(chosen.disable)
        self.pool = access.save_pool(Pool(name="Research"), actor="test")

    def start_writer(self) -> Writer:
        writer = Writer(self.directory, period_s=0.02, jobs=default_jobs())
        writer.start()
        self.addCleanup(writer.stop)
        assert writer.ready.wait(10)
        return writer

    def damage(self, owner: str = "w1") -> bytes:
        """A worker with a lease of 5,000 tokens dies: 10 settled, 20 in a damaged record, 30 and a hold behind it.

        Returns what the file was before it was damaged.
        """
        writer = self.start_writer()
        writer.sync_windows([WindowSpec(self.pool.pk, 0, 0, 0, 5_000)]).result(10)
        granted: queue.Queue[int] = queue.Queue()
        writer.grant(owner, self.pool.pk, 0, 0, 0, 5_000, lambda total, *_rest: granted.put(total), 5_000)
        assert granted.get(timeout=60) == 5_000
        worker = Journal.open(self.directory, owner)
        path = journal.segment_path(self.directory, owner, 1)
        worker.complete(usage_record(new_rid(), 10, pool_id=self.pool.pk))
        start = path.stat().st_size
        worker.complete(usage_record(new_rid(), 20, pool_id=self.pool.pk))
        worker.complete(usage_record(new_rid(), 30, pool_id=self.pool.pk))
        worker.hold(hold_record(new_rid(), 700, pool_id=self.pool.pk))
        whole = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(start + 8)
            file.write(b"\xff\xff")
        worker.close()
        deadline = time.monotonic() + 60
        while not Lease.objects.filter(state="quarantined").exists() or path.exists():
            assert time.monotonic() < deadline, "the lease was not quarantined"
            time.sleep(0.01)
        writer.stop()
        return whole

    def run_command(self, *arguments: str, command: str = "budget_recover") -> str:
        out = StringIO()
        call_command(command, *arguments, stdout=out)
        return out.getvalue()

    def refused(self, *arguments: str, code: int = 2) -> str:
        with pytest.raises(CommandError) as ended:
            self.run_command(*arguments)
        assert ended.value.returncode == code
        return str(ended.value)

    def figures(self) -> tuple[int, int]:
        window = PoolWindow.objects.get(unit=0)
        return window.committed, window.leased


class ListTests(RecoverCase):
    def test_nothing_waits_and_the_status_is_0(self) -> None:
        text = self.run_command()
        assert text == "No lease waits for a decision.\nNo open holds.\n"
        assert json.loads(self.run_command("--json")) == {"quarantined": [], "open_holds": []}

    def test_a_damaged_journal_is_described_and_the_status_is_1(self) -> None:
        self.damage()
        out = StringIO()
        with pytest.raises(SystemExit) as ended:
            call_command("budget_recover", "--json", stdout=out)
        assert ended.value.code == 1
        (entry,) = json.loads(out.getvalue())["quarantined"]
        (lease,) = entry["leases"]
        assert (entry["owner"], lease["pool"], lease["amount"], lease["unit"]) == ("w1", "Research", 4_960, 0)
        assert "damaged record in segment 1" in entry["reason"]
        assert (entry["records"], entry["new"], entry["open_holds"], entry["open_tokens"]) == (2, 0, 1, 700)
        assert entry["files"] == ["w1.00000001.j.bad", "w1.lock.bad"]

    def test_the_list_for_people_names_amounts_files_and_the_way_on(self) -> None:
        self.damage()
        out = StringIO()
        with pytest.raises(SystemExit):
            call_command("budget_recover", stdout=out)
        text = out.getvalue()
        for part in ("4,960 tokens of Research, lifetime", "w1.00000001.j.bad", "2 usage records", "--write-off"):
            assert part in text

    def test_a_lease_whose_files_are_elsewhere_is_listed_too(self) -> None:
        window = PoolWindow.objects.create(pool_id=99, unit=1, capacity=10**12, leased=10**10)
        Lease.objects.create(owner="far", window=window, granted=10**10, remaining=10**10, state="quarantined")
        out = StringIO()
        with pytest.raises(SystemExit):
            call_command("budget_recover", stdout=out)
        assert "$0.010000000000 of pool 99" in out.getvalue()
        assert "none on this host" in out.getvalue()

    def test_open_holds_of_living_workers_are_shown(self) -> None:
        worker = Journal.open(self.directory, "w2")
        self.addCleanup(worker.close)
        worker.hold(hold_record(new_rid(), 700))
        worker.hold(hold_record(new_rid(), 300))
        (held,) = json.loads(self.run_command("--json"))["open_holds"]
        assert (held["owner"], held["holds"], held["tokens"]) == ("w2", 2, 1_000)
        assert "2 open holds, 1,000 tokens" in self.run_command()


class ResolveTests(RecoverCase):
    def test_without_yes_it_explains_and_does_nothing(self) -> None:
        self.damage()
        message = self.refused("--write-off", "w1")
        assert "as if all of it had been spent" in message
        assert "Nothing was done" in message
        assert self.figures() == (40, 4_960)
        assert not LedgerOrder.objects.exists()

    def test_written_off_without_control(self) -> None:
        self.damage()
        assert self.run_command("--write-off", "w1", "--yes") == "4,960 tokens written off as spent.\n"
        assert self.figures() == (5_000, 0)
        assert not Lease.objects.exists()
        assert LedgerEntry.objects.get().actor == "command line"
        assert OutboxEntry.objects.filter(action="ledger.write_off").exists()
        assert self.run_command().startswith("No lease waits")
        assert list(self.directory.glob("*.bad")) == []

    def test_released_beside_a_running_control(self) -> None:
        self.damage()
        self.start_writer()
        shown = json.loads(self.run_command("--release", "w1", "--yes", "--json"))
        assert (shown["state"], shown["result"]) == ("done", "4,960 tokens given back.")
        assert self.figures() == (40, 0)

    def test_a_restored_journal_is_replayed_and_charges_what_was_missing(self) -> None:
        whole = self.damage()
        (self.directory / "w1.00000001.j.bad").write_bytes(whole)
        assert self.run_command("--replay", "w1", "--yes") == "3 usage records read, 1 of them new.\n"
        assert self.figures() == (60, 4_940)
        again = self.run_command("--replay", "w1", "--yes")
        assert again == "3 usage records read, 0 of them new.\n"
        assert self.figures() == (60, 4_940)

    def test_a_replay_that_could_charge_twice_is_refused(self) -> None:
        self.damage()
        rollups.set_state(ledger_connection(), retention.USAGE_FROM, int(time.time()))
        assert "charged twice" in self.refused("--replay", "w1", "--yes")

    def test_unknown_owners_and_senseless_names_are_refused(self) -> None:
        assert "no quarantined lease" in self.refused("--release", "nobody", "--yes")
        assert "owner must be" in self.refused("--release", "../x", "--yes")
        assert "Nothing was done" in self.refused("--release", "nobody")

    def test_two_actions_at_once_are_refused(self) -> None:
        with pytest.raises(CommandError):
            self.run_command("--release", "a", "--write-off", "b", "--yes")

    def test_an_order_nobody_takes_in_time_goes_on(self) -> None:
        """The lock is held, but by a writer that does not know orders."""
        writer = Writer(self.directory)
        writer.start()
        self.addCleanup(writer.stop)
        assert writer.ready.wait(10)
        message = self.refused("--release", "w1", "--yes", "--timeout", "0.1", code=3)
        assert "not finished in time" in message


class PruneTests(RecoverCase):
    def setUp(self) -> None:
        super().setUp()
        add_usage(3, at_s=time.time() - 40 * DAY_S)
        add_usage(2, at_s=time.time() - 10 * DAY_S)
        rollups.roll_up(ledger_connection())

    def prune(self, *arguments: str) -> dict[str, Any]:
        return json.loads(self.run_command(*arguments, "--json", command="prune"))

    def test_a_dry_run_counts_and_deletes_nothing(self) -> None:
        assert self.prune("--dry-run")["rows"] == 3
        assert self.prune("--dry-run", "--days", "5")["rows"] == 5
        assert "3 usage rows from before" in self.run_command("--dry-run", command="prune")
        assert Usage.objects.count() == 5

    def test_rows_go_without_control(self) -> None:
        assert self.run_command(command="prune") == "3 usage rows deleted.\n"
        assert Usage.objects.count() == 2

    def test_rows_go_beside_a_running_control(self) -> None:
        self.start_writer()
        assert self.prune("--days", "5")["result"].endswith("usage rows deleted.")
        assert Usage.objects.count() == 0

    def test_days_outside_the_range_are_refused(self) -> None:
        for arguments in (("--days", "0"), ("--days", "0", "--dry-run"), ("--days", "99999")):
            with pytest.raises(CommandError, match="between 1 and 3650"):
                self.run_command(*arguments, command="prune")
        assert Usage.objects.count() == 5
