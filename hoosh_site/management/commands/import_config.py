"""`manage.py import_config FILE`: read hoosh's configuration file, or one of our own, and publish it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from hoosh_site.importing import ImportFileError, Report, check_file, import_file

ACTOR = "import_config"


class Command(BaseCommand):
    """Imports a file and says what it did and what it could not do."""

    help = "Import hoosh.toml, hoosh.cyml or a file of export_config. Changes only rows that an import made."

    def add_arguments(self, parser: CommandParser) -> None:
        """The file and how to treat it."""
        parser.add_argument("file", type=Path)
        parser.add_argument("--check", action="store_true", help="only say what the file holds; change nothing")
        parser.add_argument("--adopt", action="store_true", help="take over rows of the same names made by operators")
        parser.add_argument("--json", action="store_true", help="print the report as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        """Import and report."""
        try:
            if options["check"]:
                report = check_file(options["file"], adopt=options["adopt"])
            else:
                report = import_file(options["file"], ACTOR, adopt=options["adopt"])
        except ImportFileError as exc:
            raise CommandError(str(exc)) from exc
        if options["json"]:
            self.stdout.write(json.dumps(report.as_dict()))
            return
        for line in lines(report):
            self.stdout.write(line)


def lines(report: Report) -> list[str]:
    """The report for people."""
    shown = [f"{change}." for change in report.changes]
    shown += [f"Warning: {warning}" for warning in report.warnings]
    shown += [f"Without effect: {finding}" for finding in report.unsupported]
    shown += [f"Not known, ignored: {key}" for key in report.unknown]
    if report.version:
        shown.append(f"Configuration version {report.version} is in force.")
    return shown
