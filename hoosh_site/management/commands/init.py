"""`manage.py init`: make directories, keys, tables and the first configuration; safe to run again."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error as DatabaseProblem

from hoosh_site.initialise import InitReport, initialise
from hoosh_site.keyfiles import KeyFileError
from providers.vault import VaultError


class Command(BaseCommand):
    """Sets the gateway up and says what it made."""

    help = "Make keys, databases, the default pool and the first configuration. Running it again changes nothing."
    requires_system_checks: list[str] = []  # checks may ask for what is made here

    def add_arguments(self, parser: CommandParser) -> None:
        """One option: the form of the report."""
        parser.add_argument("--json", action="store_true", help="print the report as JSON; secrets go to a file")

    def handle(self, *args: Any, **options: Any) -> None:
        """Set up and report."""
        terminal = sys.stdout.isatty() and not options["json"]
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a letter it lacks must not cost secrets shown only once
        try:
            report = initialise(terminal=terminal)
        except (KeyFileError, OSError, VaultError, ImproperlyConfigured) as exc:
            raise CommandError(f"Set-up stopped: {exc}") from exc
        except ValidationError as exc:
            raise CommandError(f"Set-up stopped: {' '.join(exc.messages)}") from exc
        except DatabaseProblem as exc:
            raise CommandError(f"Set-up stopped, the database reports: {str(exc).strip()}") from exc
        if options["json"]:
            self.stdout.write(json.dumps(report.as_dict()))
            return
        for line in _lines(report):
            self.stdout.write(line)


def _lines(report: InitReport) -> list[str]:
    lines = [f"Data directory: {report.data_dir}"]
    lines += [f"Made {path} (mode 0600; keep a copy)." for path in report.keys_made]
    lines += [f"Database “{alias}”: {count} migrations applied." for alias, count in report.migrations.items() if count]
    version = f"Configuration version {report.config_version} is in force." if report.config_version else ""
    lines += [*report.found, *([version] if version else []), *report.first_run]
    return lines + report.addresses + [f"Warning: {warning}" for warning in report.warnings]
