"""Exports of the stored log, as the verifier that is handed out reads them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import override_settings

from audit import keys, proving
from audit.admin import VERIFIER
from audit.export import ExportError, export
from audit.models import AuditEntry, Log, OutboxEntry, PendingBatch
from audit.record import record
from audit.retention import AuditRetention
from audit.walking import Walk
from budgets.ledger import Ledger
from budgets.models import Usage
from gateway import request_proofs
from gateway.usage_records import UsageRecords
from tests.audit.log_case import LogCase
from tests.audit.test_batches import record as usage
from tests.audit.test_proving import changed

pytestmark = pytest.mark.database

MONTH_S = 31 * 86_400.0


class ExportCase(LogCase):
    def setUp(self) -> None:
        super().setUp()
        self.enterContext(override_settings(HOOSH_KEYS_DIR=self.directory, HOOSH_SIGNING_KEY=""))
        self.path = self.directory / "export.jsonl"

    def settle(self, *records: Any, owner: str = "w") -> None:
        Ledger(self.connection).settle(owner, list(records), {}, (1, 2))

    def busy(self, times: int = 3) -> None:
        """Some of everything."""
        for number in range(times):
            record("route.changed", actor="ada", target=f"r{number}", data={"fields": {"a": [None, "é\u2028"]}})
            self.settle(*(usage(tokens, model=f"m{number}") for tokens in range(5)), owner=f"w{number % 2}")
            self.log()

    def export(self, **months: str) -> None:
        with self.path.open("wb") as out:
            export(out, signer=keys.Signer(self.directory), records=UsageRecords(), **months)

    def verify(self, *more: str, key: str | None = None) -> dict[str, Any]:
        return self.run_verifier(str(self.path), "--key", key or proving.vkeys()[0], *more)

    def prove(self, proof: bytes) -> dict[str, Any]:
        path = self.directory / "proof.json"
        path.write_bytes(proof)
        return self.run_verifier("--proof", str(path), "--key", proving.vkeys()[0])

    def run_verifier(self, *arguments: str) -> dict[str, Any]:
        command = [sys.executable, "-I", str(VERIFIER), *arguments, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.directory)
        assert done.returncode in (0, 1), done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        assert found["ok"] == (done.returncode == 0)
        return found

    def verified(self, *more: str) -> dict[str, Any]:
        found = self.verify(*more)
        assert found["ok"], found["fault"]
        return found["summary"]

    def fault(self) -> dict[str, Any]:
        """What the verifier finds in a new export."""
        self.export()
        found = self.verify()
        assert not found["ok"]
        return found["fault"]


class GoodTest(ExportCase):
    def test_a_whole_log_verifies_with_every_request(self) -> None:
        self.busy()
        self.export()
        told = self.verified()
        assert (told["entries"], told["requests"], told["batches"]) == (AuditEntry.objects.count(), 15, 3)

    def test_months_and_changes_of_keys_verify_whole_and_from_any_month(self) -> None:
        self.busy()
        keys.write_next(self.directory)
        self.busy()
        self.clock.now += MONTH_S
        self.busy()
        keys.write_next(self.directory)
        self.busy()
        self.clock.now += MONTH_S
        self.busy()
        names = list(Log.objects.values_list("name", flat=True))
        assert names == ["2026-11", "2026-12", "2027-01"]
        for first in ("", *names):
            self.export(first=first)
            self.verified()
        self.export(first=names[1], last=names[1])
        assert self.verified()["requests"] == 30
        self.export(first=names[0], last=names[0])
        assert self.verified()["requests"] == 30
        assert Walk().step(10_000, key=proving.vkeys()[-1]) is None

    def test_a_checkpoint_that_was_being_stored_when_the_export_began_is_not_taken_for_cut_off(self) -> None:
        self.busy()
        self.clock.now = time.time()
        self.export()
        record("late.one")
        self.log()  # at a moment before the export's, and stored behind it
        anchors = self.directory / "anchors.jsonl"
        anchors.write_text("".join(json.dumps({"note": head.note}) + "\n" for head in self.heads))
        told = self.verified("--anchors", str(anchors))
        assert told["anchors_newer"] == 1

    def test_what_is_not_signed_yet_is_left_out(self) -> None:
        self.busy()
        record("late.one")
        self.settle(usage())
        self.export()
        assert self.verified()["requests"] == 15

    def test_proofs_verify_behind_changes_of_keys_and_in_every_month(self) -> None:
        self.busy()
        keys.write_next(self.directory)
        self.busy()
        self.clock.now += MONTH_S
        self.busy()
        for seq in range(AuditEntry.objects.count()):
            if seq % 11 == 0 or seq < 2:
                found = self.prove(proving.proof_bytes(proving.inclusion(seq)))
                assert found["ok"], (seq, found["fault"])
        row = Usage.objects.order_by("-pk").first()
        (proof,) = request_proofs.proofs([row])
        assert self.prove(proving.proof_bytes(proof))["summary"]["usage"]["id"] == row.rid
        log = Log.objects.get(number=1)
        sizes = [head.size for head in self.heads if head.log == log.name]
        for first in sizes[::4]:
            found = self.prove(proving.proof_bytes(proving.consistency(log, first, sizes[-1])))
            assert found["ok"], found["fault"]

    def test_a_request_of_several_attempts_is_one_file_of_proofs(self) -> None:
        self.settle(usage(1), usage(2))
        self.log()
        rows = list(Usage.objects.all())
        text = b"".join(proving.proof_bytes(each) for each in request_proofs.proofs(rows))
        found = self.prove(text)
        assert found["ok"], found["fault"]
        assert self.prove(text.replace(b'"index":"0"', b'"index":"1"'))["ok"] is False

    def test_before_there_is_a_log_there_is_nothing_to_export(self) -> None:
        with pytest.raises(ExportError, match="no log yet"):
            self.export()

    def test_months_that_are_not_there_are_told(self) -> None:
        self.busy()
        with pytest.raises(ExportError, match="There are 2026-11"):
            self.export(first="2027-01")

    def test_months_whose_text_was_pruned_verify_by_their_hashes(self) -> None:
        for _ in range(3):
            for _ in range(3):
                self.busy()
                self.clock.now += 1200.0
            self.clock.now += MONTH_S
        job = AuditRetention(1, clock=self.clock)
        for _ in range(200):
            job.run(self.connection)
            self.log()
        assert not AuditEntry.objects.filter(log=1, source="site").exists()
        self.export()
        told = self.verified()
        assert told["pruned_entries"] > 20
        walk = Walk()
        while walk.seq < AuditEntry.objects.order_by("-seq").first().seq:
            assert walk.step(7) is None
        assert Walk().step(10_000) is None

    def test_an_event_that_was_taken_out_before_it_was_logged_is_told_and_the_log_goes_on(self) -> None:
        self.busy()
        record("secret.deed")
        OutboxEntry.objects.all().delete()
        late = self.make_sequencer(grace_s=0.0)
        self.log(late)
        record("x.y")
        self.log(late)
        self.export()
        found = self.verify()
        assert not found["ok"]
        assert Walk().step(10_000) is None  # the log itself is whole, and says so


class TamperedTest(ExportCase):
    def test_a_changed_entry_is_named(self) -> None:
        self.busy()
        changed("audit_entry", "UPDATE audit_entry SET body = replace(body, 'r1', 'r9') WHERE target = 'r1'")
        assert self.fault()["seq"] == AuditEntry.objects.get(target="r1").seq

    def test_a_deleted_entry_makes_no_export(self) -> None:
        self.busy()
        changed("audit_entry", "DELETE FROM audit_entry WHERE target = 'r1'")
        with pytest.raises(ValueError, match="is not there"):
            self.export()

    def test_changed_deleted_and_added_usage_rows_are_found(self) -> None:
        self.busy()
        row = Usage.objects.order_by("pk")[7]
        Usage.objects.filter(pk=row.pk).update(tokens=10**6)
        assert "not those of its Merkle root" in self.fault()["what"]
        Usage.objects.filter(pk=row.pk).delete()
        assert "has 4 usage records and not 5" in self.fault()["what"]
        Usage.objects.filter(batch=row.batch).delete()
        assert "no entry says were pruned" in self.fault()["what"]

    def test_a_batch_kept_out_of_the_log_is_found(self) -> None:
        self.busy()
        self.settle(usage(), owner="w9")
        PendingBatch.objects.all().delete()
        self.busy()
        assert "named by no entry" in self.fault()["what"]


class CommandTest(ExportCase):
    def call(self, name: str, *arguments: str) -> tuple[int, str]:
        out = io.StringIO()
        try:
            call_command(name, *arguments, stdout=out, stderr=out)
        except SystemExit as exc:
            return int(exc.code or 0), out.getvalue()
        except CommandError as exc:
            return exc.returncode, str(exc)
        return 0, out.getvalue()

    def test_export_then_verify(self) -> None:
        self.busy()
        status, told = self.call("audit_export", "--out", str(self.path))
        assert (status, self.path.stat().st_mode & 0o777) == (0, 0o600), told
        assert self.call("audit_verify", str(self.path), "--key", proving.vkeys()[0])[0] == 0
        assert not list(self.directory.glob(".export*"))

    def test_the_live_log_is_verified_with_anchors(self) -> None:
        self.busy()
        anchors = self.directory / "anchors.jsonl"
        anchors.write_text("".join(json.dumps({"note": head.note}) + "\n" for head in self.heads[::2]))
        status, told = self.call("audit_verify", "--anchors", str(anchors))
        assert status == 0, told
        changed("audit_entry", "UPDATE audit_entry SET body = replace(body, 'r1', 'r9') WHERE target = 'r1'")
        status, told = self.call("audit_verify", "--json")
        assert status == 1
        assert json.loads(told[told.index("{") :])["fault"]["seq"] == AuditEntry.objects.get(target="r1").seq

    def test_an_entry_taken_out_of_the_live_log_is_a_fault_and_not_a_failure(self) -> None:
        self.busy()
        seq = AuditEntry.objects.get(target="r1").seq
        changed("audit_entry", "DELETE FROM audit_entry WHERE target = 'r1'")
        status, told = self.call("audit_verify")
        assert (status, f"FAULT at entry {seq}" in told, told.endswith("NOT OK.\n")) == (1, True, True), told
        status, told = self.call("audit_verify", "--json")
        found = json.loads(told)
        assert (status, found["ok"], found["fault"]["seq"]) == (1, False, seq)

    def test_what_cannot_be_done_is_status_2(self) -> None:
        assert self.call("audit_export", "--out", str(self.path))[0] == 2
        self.busy()
        assert self.call("audit_export", "--out", str(self.directory / "no" / "where"))[0] == 2
        self.key_file.write_bytes(keys.new_key_text())
        status, told = self.call("audit_export", "--out", str(self.path))
        assert (status, self.path.exists()) == (2, False), told
        assert self.call("audit_verify", str(Path("/nowhere")))[0] == 2
