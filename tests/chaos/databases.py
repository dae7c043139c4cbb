"""The databases of a run: a PostgreSQL of its own that can be stopped at once, or the two files of SQLite.

Both keep what they committed when a process is killed. Only with `host_safe` they also wait for the disk at every
commit, which no kill can tell from the outside and which takes most of a run's time.

Rows are read with the drivers alone, past everything the product does.
"""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import psycopg

from tests import children, environment
from tests.postgres import PostgresServer
from tests.servers import PROJECT_DIR

AWAY = (psycopg.OperationalError, psycopg.InterfaceError, sqlite3.OperationalError)


class Database(Protocol):
    """What a run needs of its database."""

    name: str
    directory: Path

    def environment(self) -> dict[str, str]:
        """Settings that make the product use it."""

    def connect(self) -> Any:
        """A new connection (DB-API) for reading the ledger."""

    def stop_at_once(self) -> None:
        """Cut it off, then start it again."""

    def close(self) -> None:
        """End it."""


class Sqlite:
    """Two files, as the product has them. It has no server that could be stopped."""

    name = "SQLite"

    def __init__(self, directory: Path, *, host_safe: bool = False) -> None:
        self.directory = directory
        self._host_safe = host_safe
        (directory / "data").mkdir(mode=0o700, parents=True)
        migrate(self)

    def environment(self) -> dict[str, str]:
        """See `Database`."""
        return {**base_environment(self.directory), "HOST_SAFE": "1" if self._host_safe else ""}

    def connect(self) -> Any:
        """See `Database`."""
        return connect(self.directory / "data" / "ledger.sqlite3")

    def stop_at_once(self) -> None:
        """See `Database`."""
        raise NotImplementedError("SQLite is no server")

    def close(self) -> None:
        """See `Database`."""


class Postgres:
    """A server of the run's own: what it has committed must be there after an immediate stop."""

    name = "PostgreSQL"

    def __init__(self, directory: Path, *, host_safe: bool = False) -> None:
        self.directory = directory
        (directory / "data").mkdir(mode=0o700, parents=True)
        self.server = PostgresServer(directory / "pg", keeps_commits=True, host_safe=host_safe)
        self.server.start()
        self.url = self.server.create_database("hoosh")
        migrate(self)

    def environment(self) -> dict[str, str]:
        """See `Database`."""
        return {**base_environment(self.directory), "DATABASE_URL": self.url}

    def connect(self) -> Any:
        """See `Database`."""
        return connect(self.url)

    def stop_at_once(self) -> None:
        """See `Database`."""
        self.server.stop()
        self.server.start_again()

    def close(self) -> None:
        """See `Database`."""
        self.server.stop()


def base_environment(directory: Path) -> dict[str, str]:
    """The surroundings of the run's processes, with nothing of the developer's shell."""
    return {
        **environment.clean_environment(),
        "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
        "HOOSH_DATA_DIR": str(directory / "data"),
        "HOOSH_TESTING": "1",
        "PYTHONPATH": str(PROJECT_DIR),
    }


def migrate(database: Database) -> None:
    """Make the tables."""
    aliases = ["default"] if "DATABASE_URL" in database.environment() else ["default", "ledger"]
    for alias in aliases:
        done = subprocess.run(
            [sys.executable, "-m", "django", "migrate", "--database", alias, "--verbosity", "0", "--skip-checks"],
            cwd=PROJECT_DIR,
            env=database.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise children.ChildError(f"migrate: {done.stdout}{done.stderr}")


def connect(where: str | Path) -> Any:
    """A connection for reading: a PostgreSQL by its URL, SQLite by its path."""
    if isinstance(where, Path):
        return sqlite3.connect(f"file:{where}?mode=ro", uri=True, timeout=10)
    return psycopg.connect(where, connect_timeout=5, autocommit=True)


def rows(connection: Any, query: str) -> Iterator[tuple]:
    """The rows of a query, a few thousand at a time."""
    if isinstance(connection, psycopg.Connection):
        with connection.transaction(), connection.cursor(name="rows") as cursor:
            cursor.itersize = 10_000
            yield from cursor.execute(query.encode())
    else:
        with contextlib.closing(connection.execute(query)) as cursor:
            yield from cursor


def fetch(connection: Any, query: str) -> list[tuple]:
    """All rows of a small query at once."""
    if isinstance(connection, psycopg.Connection):
        return connection.execute(query.encode()).fetchall()
    return connection.execute(query).fetchall()
