"""`manage.py audit_verify`: runs tools/verify_audit.py, as an auditor would, over an export or over the live log.

Exit status: the verifier's. 0 everything fits, 1 a fault, 2 the input cannot be used.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit import proving
from audit.admin import VERIFIER
from audit.export_lines import MissingEntryError
from hoosh_site.management.commands.audit_export import REFUSED, write


class Command(BaseCommand):
    """Verifies with the very file that is handed out."""

    help = "Verify an export of the audit log, or the live log; exit status 1 names the first fault."

    def add_arguments(self, parser: CommandParser) -> None:
        """What to verify with what."""
        parser.add_argument("export", nargs="?", help="an export; without it the live log is exported and verified")
        parser.add_argument("--key", default="", metavar="VKEY", help="the first public key, as you wrote it down")
        parser.add_argument("--anchors", action="append", default=[], metavar="FILE", help="anchored checkpoints")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the verifier in a process of its own, without this installation's modules."""
        if not VERIFIER.exists():
            raise CommandError(f"{VERIFIER} is missing.", returncode=REFUSED)
        more = [*(("--key", options["key"]) if options["key"] else ()), *(["--json"] if options["json"] else [])]
        for path in options["anchors"]:
            more += ["--anchors", path]
        if options["export"]:
            sys.exit(self._run(Path(options["export"]), more))
        with tempfile.TemporaryDirectory(prefix="hoosh-audit-") as directory:
            path = Path(directory) / "export.jsonl"
            try:
                with path.open("wb") as out:
                    write(out)
            except CommandError as exc:
                if not isinstance(exc.__cause__, MissingEntryError):
                    raise
                sys.exit(self._missing(exc.__cause__, as_json=options["json"]))
            if not options["key"] and (vkeys := proving.vkeys()):
                self.stderr.write(f"The first key is taken from the database itself: {vkeys[0]}")
            sys.exit(self._run(path, more))

    def _missing(self, missing: MissingEntryError, *, as_json: bool) -> int:
        """Tell a fault that is found before there is anything to run the verifier over, as it would."""
        fault = {"line": 0, "seq": missing.seq, "what": str(missing)}
        if as_json:
            result = {"ok": False, "fault": fault, "warnings": [], "summary": {}}
            self.stdout.write(json.dumps(result, indent=1, ensure_ascii=False))
        else:
            self.stdout.write(f"FAULT at entry {missing.seq}: {missing}\nNOT OK.")
        return 1

    def _run(self, path: Path, more: list[str]) -> int:
        command = [sys.executable, "-I", str(VERIFIER), str(path), *more]
        done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - our file, no shell
        self.stdout.write(done.stdout, ending="")
        self.stderr.write(done.stderr, ending="")
        return done.returncode
