"""`manage.py export_config [FILE]`: write the configuration as TOML, without secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from hoosh_site.exporting import export_text


class Command(BaseCommand):
    """Prints the configuration or writes it to a file."""

    help = "Write the configuration as TOML that import_config reads back; secrets stand there as $NAME."

    def add_arguments(self, parser: CommandParser) -> None:
        """Where to."""
        parser.add_argument("file", type=Path, nargs="?", help="the file to write (default: standard output)")

    def handle(self, *args: Any, **options: Any) -> None:
        """Write it."""
        text = export_text()
        if options["file"] is None:
            self.stdout.write(text, ending="")
            return
        try:
            options["file"].write_text(text, encoding="utf-8")
        except OSError as exc:
            raise CommandError(f"{options['file']} cannot be written: {exc.strerror}.") from exc
