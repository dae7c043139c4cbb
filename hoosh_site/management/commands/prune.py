"""`manage.py prune`: delete old usage rows, events and anomalies now, by hand."""

from __future__ import annotations

import datetime as dt
import json
import time
from types import ModuleType
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections

from audit.record import record
from budgets import anomaly_retention, retention, rollups
from budgets.jobs import WriterNotReadyError, carry_out
from budgets.models import Usage
from events import retention as event_retention

ACTOR = "command line"


class Command(BaseCommand):
    """Orders the deletion from the ledger's writer, or is that writer itself where no control process runs."""

    help = (
        "Delete usage rows older than so many days. They stay in the sums that costs and reports are made of. "
        "Events older than HOOSH_EVENTS_DAYS and anomalies older than HOOSH_ANOMALY_DAYS go, too."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Without options it does what goes on by itself every minute."""
        parser.add_argument("--days", type=int, help="days to keep, 1 to 3650 (default: HOOSH_USAGE_DAYS)")
        parser.add_argument("--dry-run", action="store_true", help="only count what would go")
        parser.add_argument("--json", action="store_true", help="print a JSON object")
        parser.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS", help="longest wait")

    def handle(self, *args: Any, **options: Any) -> None:
        """Count or delete, and say how many rows."""
        days = settings.HOOSH_USAGE_DAYS if options["days"] is None else options["days"]
        if options["dry_run"]:
            found = _count(days)
            beside = {name: part.count(kept) for name, part, kept in _beside()}
            text = f"{found['rows']:,} usage rows from before {found['before']} would be deleted."
        else:
            found = _delete(days, options["timeout"])
            beside = {name: part.delete_all(kept) for name, part, kept in _beside()}
            text = str(found["result"])
            if any(beside.values()):
                record("records.pruned", actor=ACTOR, data=beside)
        for name, count in beside.items():
            if count:
                text += f" {count:,} {name} {'would be' if options['dry_run'] else 'were'} deleted."
        if options["json"]:
            text = json.dumps({"days": days, "dry_run": options["dry_run"], **found, **beside})
        self.stdout.write(text)


def _beside() -> tuple[tuple[str, ModuleType, int], ...]:
    """What goes along, each with the module that deletes it and the days it is kept."""
    return (
        ("events", event_retention, settings.HOOSH_EVENTS_DAYS),
        ("anomalies", anomaly_retention, settings.HOOSH_ANOMALY_DAYS),
    )


def _count(days: int) -> dict[str, Any]:
    if not 1 <= days <= 3650:
        raise CommandError("--days must be between 1 and 3650.")
    before = dt.datetime.fromtimestamp(retention.cutoff_s(days, time.time()), dt.UTC)
    counted = rollups.state(connections[settings.HOOSH_LEDGER_DB], rollups.ROLLED_UP)
    rows = Usage.objects.filter(at__lt=before, id__lte=counted).count()
    return {"rows": rows, "before": f"{before:%Y-%m-%dT%H:%M:%SZ}"}


def _delete(days: int, timeout_s: float) -> dict[str, Any]:
    try:
        order = carry_out("prune", {"days": days}, actor=ACTOR, note="manage.py prune", timeout_s=timeout_s)
    except ValidationError as exc:
        raise CommandError(" ".join(exc.messages)) from exc
    except WriterNotReadyError as exc:
        raise CommandError(str(exc)) from exc
    if order.state != order.State.DONE:
        raise CommandError(order.result or f"Order {order.pk} was not finished in time; it goes on.")
    return {"order": order.pk, "result": order.result}
