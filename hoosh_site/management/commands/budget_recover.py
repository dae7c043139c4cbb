"""`manage.py budget_recover`: quarantined leases of dead workers, and what to do about them.

Exit status: 0 nothing waits for a decision, or what was asked for is done; 1 leases wait for a decision; 2 refused,
or not confirmed with --yes; 3 not finished in time (the order stays and goes on).
"""

from __future__ import annotations

import json
import sys
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from budgets import amounts
from budgets.jobs import WriterNotReadyError, carry_out
from budgets.records import Unit
from budgets.recovery import Held, Quarantined, quarantined, running

ACTOR = "command line"
WAITING, NOT_DONE, LATE = 1, 2, 3

MEANING = {
    "replay": "Reads the worker's files once more and charges every record that is not in the ledger yet. For files "
    "you restored or repaired. The leases stay quarantined; decide about the rest afterwards.",
    "write_off": "Charges what is left in the leases to their pools, as if all of it had been spent. Right when the "
    "worker may have spent it: the budget is not passed, but may be charged too much.",
    "release": "Gives what is left in the leases back to their pools. Right when you know that the worker spent no "
    "more than what was read: otherwise the pools spend that amount twice.",
}


class Command(BaseCommand):
    """Lists quarantined leases and open holds, or resolves the leases of one worker."""

    help = (
        "Show leases of dead workers whose journals are damaged, and open holds; or resolve them. Exit status 1 while "
        "leases wait for a decision, 2 when refused, 3 when not finished in time."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Nothing = list."""
        action = parser.add_mutually_exclusive_group()
        action.add_argument("--replay", metavar="OWNER", help=MEANING["replay"])
        action.add_argument("--write-off", metavar="OWNER", help=MEANING["write_off"])
        action.add_argument("--release", metavar="OWNER", help=MEANING["release"])
        parser.add_argument("--yes", action="store_true", help="do it; without it the meaning is explained")
        parser.add_argument("--note", default="manage.py budget_recover", help="why, for the ledger and the audit log")
        parser.add_argument("--json", action="store_true", help="print a JSON object")
        parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="longest wait")

    def handle(self, *args: Any, **options: Any) -> None:
        """List or resolve."""
        for kind in MEANING:
            if options[kind]:
                self._resolve(kind, options[kind], options)
                return
        waiting, held = quarantined(settings.HOOSH_JOURNAL_DIR), running(settings.HOOSH_JOURNAL_DIR)
        if options["json"]:
            found = {
                "quarantined": [entry.as_dict() for entry in waiting],
                "open_holds": [entry.as_dict() for entry in held],
            }
            self.stdout.write(json.dumps(found))
        else:
            for line in [*_waiting_lines(waiting), *_held_lines(held)]:
                self.stdout.write(line)
        if waiting:
            sys.exit(WAITING)

    def _resolve(self, kind: str, owner: str, options: dict[str, Any]) -> None:
        if not options["yes"]:
            found = [entry for entry in quarantined(settings.HOOSH_JOURNAL_DIR) if entry.owner == owner]
            for line in _waiting_lines(found)[:-1] if found else [f"No quarantined lease of {owner} was found."]:
                self.stdout.write(line)
            raise CommandError(f"{MEANING[kind]} Nothing was done. Add --yes to do it.", returncode=NOT_DONE)
        try:
            note, timeout_s = options["note"], options["timeout"]
            order = carry_out(kind, {"owner": owner}, actor=ACTOR, note=note, timeout_s=timeout_s)
        except ValidationError as exc:
            raise CommandError(" ".join(exc.messages), returncode=NOT_DONE) from exc
        except WriterNotReadyError as exc:
            raise CommandError(str(exc), returncode=LATE) from exc
        if options["json"]:
            shown = {"order": order.pk, "kind": kind, "owner": owner, "state": order.state, "result": order.result}
            self.stdout.write(json.dumps(shown))
        if order.state == order.State.REFUSED:
            raise CommandError(order.result, returncode=NOT_DONE)
        if order.state == order.State.OPEN:
            raise CommandError(f"Order {order.pk} was not finished in time; it goes on.", returncode=LATE)
        if not options["json"]:
            self.stdout.write(order.result)


def _waiting_lines(entries: list[Quarantined]) -> list[str]:
    if not entries:
        return ["No lease waits for a decision."]
    lines = []
    for entry in entries:
        lines.append(f"{entry.owner}: {entry.reason}")
        for lease in entry.leases:
            lines.append(f"  {amounts.exact(lease.unit, lease.amount)} of {lease.pool}, {lease.window}")
        lines.append(f"  Files: {', '.join(entry.files) or 'none on this host'}")
        lines.append(
            f"  Readable: {entry.records:,} usage records, {entry.new:,} of them not in the ledger; "
            f"{entry.open_holds:,} holds without an end, {_both(entry.open_tokens, entry.open_pico)} at most"
        )
    lines.append("Resolve each with --replay, --write-off or --release OWNER; --help says what they mean.")
    return lines


def _held_lines(entries: list[Held]) -> list[str]:
    if not entries:
        return ["No open holds."]
    return [
        f"{entry.owner}: {entry.holds:,} open holds, {_both(entry.tokens, entry.pico)} at most, the oldest for "
        f"{entry.oldest_s:,.0f} s"
        for entry in entries
    ]


def _both(tokens: int, pico: int) -> str:
    return f"{amounts.exact(Unit.TOKENS, tokens)}, {amounts.exact(Unit.PICO_USD, pico)}"
