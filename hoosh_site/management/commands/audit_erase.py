"""`manage.py audit_erase NAME`: make somebody anonymous in the audit log."""

from __future__ import annotations

import json
import time
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit import growing, subjects
from audit.models import OutboxEntry, Subject
from audit.sequencer import ERASE, Sequencer
from budgets.jobs import WriterNotReadyError, attended
from hoosh_site.audit_plane import signer
from hoosh_site.people import lockout

_POLL_S = 0.1


class Command(BaseCommand):
    """Orders it from the log's keeper, or is that one itself where no control process runs."""

    help = (
        "Destroy a person's name and key in the audit log: entries about them stay and stay provable, but nobody can "
        "tell any more whom they are about. Failed sign-ins counted under the name go, too. The account itself is "
        "deleted in admin."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Whom, and the form of the answer."""
        parser.add_argument("name", help="as it stands in the log: a user name, or what was typed at a refused sign-in")
        parser.add_argument("--json", action="store_true", help="print a JSON object")
        parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="longest wait")

    def handle(self, *args: Any, **options: Any) -> None:
        """Erase and say how many subjects it were."""
        deadline = time.monotonic() + options["timeout"]
        failures = lockout.erase(options["name"])  # first: the log's keeper then empties SQLite's files of them as well
        try:
            with attended(jobs=[Sequencer(signer())]):
                found = self._erase(options["name"], deadline)
        except WriterNotReadyError as exc:
            raise CommandError(str(exc)) from exc
        if not found and not failures:
            raise CommandError("The audit log knows nobody of this name.")
        if options["json"]:
            self.stdout.write(json.dumps({"subjects": found, "failed_sign_ins": failures}))
            return
        self.stdout.write(f"Erased: {', '.join(found)}." if found else "The audit log knows nobody of this name.")
        if failures:
            self.stdout.write(f"{failures} counts of failed sign-ins deleted.")

    def _erase(self, name: str, deadline: float) -> list[str]:
        """What waits about the person is logged first, so that nothing of them is left in the outbox."""
        names = {name, lockout.counted_name(name)}  # locks are recorded under the name as it is counted
        while (
            OutboxEntry.objects.filter(actor__in=names).exists()
            or OutboxEntry.objects.filter(target__in=names, about=True).exists()
        ):
            _wait(deadline)
        found = sorted({subject for each in names for subject in subjects.ids_of(each)})
        for subject in found:
            growing.set_state(settings.HOOSH_LEDGER_DB, f"{ERASE}{subject}", "")
        while Subject.objects.filter(pk__in=found).exclude(key=None).exists():
            _wait(deadline)
        return found


def _wait(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise CommandError(
            "Not done in time: nobody keeps the log. See `manage.py info` and the messages of the control process."
        )
    time.sleep(_POLL_S)
