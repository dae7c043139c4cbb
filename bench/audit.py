"""What the audit log costs: control's CPU per request, entries per second, verifying a million, pages of a million.

Everything runs in one process inside an installation of its own on SQLite (`bench.audit_inside`), nothing beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.servers import PROJECT_DIR, Gateway

ENTRIES = 1_000_000


def measure(directory: Path, *, entries: int = ENTRIES) -> dict[str, Any]:
    """All figures; times in the units their names end with."""
    gateway = Gateway(directory / "audit")
    gateway.directory.mkdir(parents=True)
    gateway.manage("init")
    done = subprocess.run(
        [sys.executable, "-m", "bench.audit_inside", str(entries)],
        cwd=PROJECT_DIR,
        env={**gateway.environment(), "DJANGO_SETTINGS_MODULE": "hoosh_site.settings"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-8000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
