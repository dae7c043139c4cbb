"""Setting up: directories, keys, tables, the default pool, what is found on this host, the first published version.

Every step looks first, so running it again changes nothing that exists. One process does it at a time.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.db import connections
from django.db.migrations.executor import MigrationExecutor

from hoosh_site import keyfiles

ACTOR = "init"


@dataclass(slots=True)
class InitReport:
    """What was there and what was made, for people and for `--json`. Holds no secret unless shown on a terminal."""

    data_dir: str = ""
    keys_made: list[str] = field(default_factory=list)
    migrations: dict[str, int] = field(default_factory=dict)  # database alias -> migrations applied now
    pool: str = ""
    found: list[str] = field(default_factory=list)  # sentences about providers that were set up
    config_version: int = 0
    first_run: list[str] = field(default_factory=list, repr=False)  # lines of the first operator and key
    addresses: list[str] = field(default_factory=list)  # where the gateway will be, and a first request
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)


def initialise(*, terminal: bool = False) -> InitReport:
    """Set everything up. Raises `keyfiles.KeyFileError`, `OSError`, `VaultError`, `ValidationError`,
    `ImproperlyConfigured` or database errors; nothing is left half-made. Rows that cannot be published are a warning.

    `terminal` says whether secrets of the first run may be printed; otherwise they go to a file.
    """
    report = InitReport(data_dir=str(settings.HOOSH_DATA_DIR))
    settings.HOOSH_DATA_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone():
        for path in (settings.HOOSH_JOURNAL_DIR, settings.HOOSH_LOG_DIR, settings.HOOSH_RUN_DIR):
            keyfiles.make_private_directory(path)
        settings.STATIC_ROOT.mkdir(exist_ok=True)  # WhiteNoise asks for it, though finders serve all files
        report.keys_made = [str(path) for path in keyfiles.create_missing()]
        report.warnings = keyfiles.unsafe_files()
        for alias in settings.DATABASES:
            report.migrations[alias] = _migrate(alias)
        _rows(report, terminal=terminal)
    return report


@contextmanager
def _alone() -> Iterator[None]:
    with (settings.HOOSH_DATA_DIR / "init.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _migrate(alias: str) -> int:
    executor = MigrationExecutor(connections[alias])
    todo = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if todo:
        call_command("migrate", database=alias, interactive=False, verbosity=0)
    return len(todo)


def _rows(report: InitReport, *, terminal: bool) -> None:
    # Imported here, so that directories and keys are made before anything that reads them is loaded.
    from budgets import access
    from hoosh_site import discovery, first_run
    from providers import publish

    report.pool = access.default_pool(ACTOR).name
    with publish.held_back():
        report.found = discovery.discover()
    try:
        report.config_version = publish.publish(ACTOR, "first start").number
    except publish.PublishError as exc:  # what ran before goes on, and the operator mends the rows in admin
        report.config_version = (publish.latest() or (0,))[0]
        report.warnings.append(f"The configuration cannot be published; see the overview in admin. {exc}")
    report.first_run = first_run.ensure(terminal=terminal)
    report.addresses = first_run.describe(settings.HOOSH_PORT)
