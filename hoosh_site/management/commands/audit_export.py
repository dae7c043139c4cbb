"""`manage.py audit_export`: everything an auditor needs to verify the audit log, in one file.

Exit status: 0 written; 2 there is nothing to export, or no key to sign the export with.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.export import Exported, ExportError, export
from audit.keys import SigningKeyError
from gateway.usage_records import UsageRecords
from hoosh_site.audit_plane import signer

REFUSED = 2


def write(out: BinaryIO, first: str = "", last: str = "") -> Exported:
    """Export to an open file. Raises `CommandError`."""
    try:
        return export(out, first=first, last=last, signer=signer(), records=UsageRecords())
    except (ExportError, SigningKeyError, ValueError) as exc:
        raise CommandError(str(exc), returncode=REFUSED) from exc


class Command(BaseCommand):
    """Writes an export, also while the gateway runs."""

    help = "Write the audit log, its checkpoints and the usage records it commits to into one file for verify_audit.py."

    def add_arguments(self, parser: CommandParser) -> None:
        """The file and the months."""
        parser.add_argument("--out", required=True, metavar="FILE", help="where to; - is standard output")
        parser.add_argument("--from", dest="first", default="", metavar="MONTH", help='first month, such as "2026-11"')
        parser.add_argument("--to", dest="last", default="", metavar="MONTH", help="last month")

    def handle(self, *args: Any, **options: Any) -> None:
        """Write beside the file, then rename: a file of that name is always whole."""
        months = options["first"], options["last"]
        if options["out"] == "-":
            write(sys.stdout.buffer, *months)
            return
        path = Path(options["out"])
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                done = write(out, *months)
                out.flush()
                os.fsync(out.fileno())
            os.replace(part, path)
        except OSError as exc:
            raise CommandError(f"{path} cannot be written: {exc.strerror}.", returncode=REFUSED) from exc
        finally:
            part.unlink(missing_ok=True)
        self.stdout.write(f"{path}: {done.lines:,} lines, {done.bytes:,} bytes, up to entry {done.size} of {done.log}")
