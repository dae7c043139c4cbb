"""What the commands that fill in rows from a package have in common: their switches, and asking before they write."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser


class AskingCommand(BaseCommand):
    """A command that shows a difference first and writes it when that is agreed to."""

    def add_arguments(self, parser: CommandParser) -> None:
        """Whether to write, and how to tell."""
        parser.add_argument("--dry-run", action="store_true", help="only show the difference")
        parser.add_argument("--yes", action="store_true", help="write without asking")
        parser.add_argument("--json", action="store_true", help="print the difference as JSON; asks nothing")

    def may_write(self, count: int, what: str, options: Mapping[str, Any]) -> bool:
        """Whether so many rows, called `what`, may be written: as the switches say, else as whoever is asked says.

        Raises `CommandError` where nobody can be asked."""
        if not count or options["dry_run"]:
            return False
        if options["yes"]:
            return True
        if options["json"]:
            return False
        if not sys.stdin.isatty():
            raise CommandError("There is no terminal to ask on: use --yes to write, or --dry-run only to look.")
        answer = input(f"Write {count} {what}? [y/N] ")
        return answer.strip().lower() in ("y", "yes")

    def tell_written(self, written: int, what: str, *, of: int) -> None:
        """The last line, for people: what was written `of` so many changes."""
        if written:
            self.stdout.write(f"{written} {what} were written. Workers use them within a second.")
        elif of:
            self.stdout.write("Nothing was written.")
