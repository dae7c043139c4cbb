"""The part of `bench.audit` that runs inside an installation: `python -m bench.audit_inside ENTRIES`, prints JSON."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django

django.setup()

from django.conf import settings  # noqa: E402 - Django first
from django.contrib.auth import get_user_model  # noqa: E402
from django.db import connections, transaction  # noqa: E402
from django.test import Client  # noqa: E402

from audit import batches, checking, export, keys, proving  # noqa: E402
from audit.admin import VERIFIER  # noqa: E402
from audit.checking import Checker  # noqa: E402
from audit.models import AuditEntry, OutboxEntry  # noqa: E402
from audit.sequencer import Sequencer  # noqa: E402
from budgets import ledger_sql, usage_leaf  # noqa: E402
from budgets.ledger import Ledger  # noqa: E402
from gateway.usage_records import UsageRecords  # noqa: E402
from tests.audit.small_log import SmallLog  # noqa: E402
from tests.audit.test_batches import record as usage  # noqa: E402

BATCH = 200  # rows settled at once: some hundred requests a second
ROUNDS = 50
WAITING = 20_000


def cpu_us(work: Callable[[], object], count: int) -> float:
    """CPU microseconds of this thread per piece."""
    begin = time.thread_time()
    work()
    return (time.thread_time() - begin) * 1e6 / count


def settling() -> dict[str, float]:
    """What a request costs control: the whole of settling it, and what of that is the log's, in one run."""
    connection = connections[settings.HOOSH_LEDGER_DB]
    whole, leaves, rows = [], [], []
    for number in range(ROUNDS):
        records = [usage(tokens, model=f"m{tokens % 5}", shape=bytes(16)) for tokens in range(BATCH)]
        made = ledger_sql.usage_rows(records)
        leaves.append(cpu_us(lambda made=made: batches.sealed(usage_leaf.records_of(made)), BATCH))
        sealed = batches.sealed(usage_leaf.records_of(made))
        with transaction.atomic(using=connection.alias):
            rows.append(cpu_us(lambda sealed=sealed: batches.insert_batch(connection, "bench", sealed), BATCH))
            transaction.set_rollback(True, using=connection.alias)
        place = (1, number + 1)
        whole.append(cpu_us(lambda r=records, p=place: Ledger(connection).settle("w", r, {}, p), BATCH))
    added = statistics.median(leaves) + statistics.median(rows)
    return {"settle_us": round(statistics.median(whole), 2), "audit_us": round(added, 2)}


def sequencing(directory: Path) -> float:
    """Entries per second out of an outbox."""
    (directory / keys.KEY_FILE).write_bytes(keys.new_key_text())
    sequencer = Sequencer(keys.Signer(directory))
    connection = connections[settings.HOOSH_LEDGER_DB]
    while sequencer.run(connection):
        pass
    with transaction.atomic():
        for number in range(WAITING):
            data = {"object": f"providers.route:{number}", "fields": {"priority": ["1", str(number)]}}
            OutboxEntry.objects.create(action="route.changed", actor=f"user-{number % 9}", target="r", data=data)
    before, begin = AuditEntry.objects.count(), time.monotonic()
    while sequencer.run(connection):
        pass
    return round((AuditEntry.objects.count() - before) / (time.monotonic() - begin))


def verifying(directory: Path, signer: keys.Signer) -> dict[str, float]:
    """Export everything and verify it as an auditor does."""
    path = directory / "export.jsonl"
    begin = time.monotonic()
    with path.open("wb") as out:
        export.export(out, signer=signer, records=UsageRecords())
    exported = time.monotonic()
    command = [sys.executable, "-I", str(VERIFIER), str(path), "--key", proving.vkeys()[0]]
    done = subprocess.run(command, check=True, capture_output=True)
    assert b"OK" in done.stdout
    sizes = {"export_s": exported - begin, "verify_s": time.monotonic() - exported}
    return {**{name: round(value, 1) for name, value in sizes.items()}, "export_mb": round(path.stat().st_size / 1e6)}


def pages() -> dict[str, float]:
    """Milliseconds of a page, the slowest of its kind."""
    client = Client(HTTP_HOST="127.0.0.1")
    client.force_login(get_user_model().objects.filter(is_superuser=True).first())
    queries = ("", "?level=warning", "?action=key.", "?actor=user-3", "?target=t7", "?before=1000", "?q=5000")
    lists = ("", "?level=warning", "?kind=key", "?q=user-3", "?q=t7", "?before=1000", "?source=log")

    def slowest(paths: list[str]) -> float:
        return round(max(_median(client, path) for path in paths), 1)

    found = {
        "api_page_ms": slowest([f"/v1/audit{query}" for query in queries]),
        "admin_list_ms": slowest([f"/admin/audit/auditentry/{query}" for query in lists]),
        "admin_entry_ms": slowest([f"/admin/audit/auditentry/{seq}/change/" for seq in (0, 5000)]),
        "proof_ms": slowest(
            [f"/v1/audit/proof/inclusion?seq={seq}" for seq in (0, 5000, AuditEntry.objects.count() - 2)]
        ),
    }
    return found


def _median(client: Client, path: str) -> float:
    times = []
    for _ in range(5):
        begin = time.monotonic()
        status = client.get(path).status_code
        times.append((time.monotonic() - begin) * 1000)
        assert status == 200, (path, status)
    return statistics.median(times)


def large(entries: int) -> keys.Signer:
    """A log of so many entries in place of the one there is, written past the sequencer; its signing key."""
    from audit import growing, triggers
    from audit.models import AuditState, Checkpoint, Log, LoggedBatch, PendingBatch, Tile, UsageBatch

    connection = connections[settings.HOOSH_LEDGER_DB]
    with transaction.atomic(using=connection.alias):
        triggers.remove_guards(connection)
        for model in (AuditEntry, Checkpoint, Log, Tile, LoggedBatch, PendingBatch, UsageBatch, AuditState):
            model.objects.all().delete()
        triggers.install(connection)
    log = SmallLog()
    log.open()
    for number in range(entries):
        kind = ("route.changed", "key.created", "request.refused")[number % 3]
        level = "warning" if number % 50 == 0 else "info"
        data = {"object": f"providers.route:{number % 999}", "fields": {"priority": ["1", str(number)]}}
        log.add(kind, actor=f"user-{number % 9}", target=f"t{number % 5000}", level=level, data=data)
        if number % 1000 == 999:
            log.checkpoint()
    log.add("the.last")
    log.checkpoint()
    growing.set_state(connection.alias, "keys", json.dumps([{"epoch": 1, "vkey": log.vkey}]))
    path = Path(tempfile.mkdtemp(prefix="hb-")) / keys.KEY_FILE
    path.write_bytes(log.private_pem())
    return keys.Signer(path.parent)


def main() -> None:
    """Measure and print."""
    entries = int(sys.argv[1])
    found: dict[str, Any] = {"entries": entries}
    with tempfile.TemporaryDirectory(prefix="hb-") as directory:
        found["settling"] = settling()
        found["sequencer_entries_per_s"] = sequencing(Path(directory))
        begin = time.monotonic()
        signer = large(entries)
        found["made_s"] = round(time.monotonic() - begin, 1)
        checker, connection = Checker(), connections[settings.HOOSH_LEDGER_DB]
        begin = time.monotonic()
        while checking.look(0).behind:
            checker.run(connection)
        found["checker_entries_per_s"] = round(entries / (time.monotonic() - begin))
        found |= pages()
        found |= verifying(Path(directory), signer)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
