"""A private PostgreSQL for tests: initdb in a temporary directory, loopback only, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from tests import children


class PostgresMissingError(RuntimeError):
    """No PostgreSQL server programs on this machine."""


def find_bin_dir() -> Path:
    """The directory of `initdb` and `postgres`: on PATH, or the newest version below Debian's directory."""
    found = shutil.which("initdb")
    if found and (Path(found).resolve().parent / "postgres").exists():
        return Path(found).resolve().parent
    versions = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not versions:
        raise PostgresMissingError("PostgreSQL is not installed: tools/ensure_system.sh installs or names it.")
    return max(versions, key=lambda path: int(path.parent.name) if path.parent.name.isdigit() else 0)


class PostgresServer:
    """One server process with one superuser `hoosh`.

    Nothing waits for the disk, so it is quick and never for real data. With `keeps_commits` it has what it committed
    after an immediate stop, with `host_safe` after a power cut as well.
    """

    def __init__(self, directory: Path, *, keeps_commits: bool = False, host_safe: bool = False) -> None:
        self.directory = directory
        self.port = 0
        self._writes = {
            "fsync": "on" if host_safe else "off",
            "full_page_writes": "on" if host_safe else "off",
            "synchronous_commit": "on" if keeps_commits or host_safe else "off",
        }
        self._bin = find_bin_dir()
        self._identity: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server's process id."""
        if self._process is None:
            raise children.ChildError("PostgreSQL is not running.")
        return self._process.pid

    def start(self) -> None:
        """Make a cluster and start it. As root the server runs as `postgres` (or `nobody`): it refuses to be root."""
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        if os.getuid() == 0:
            owner = _unprivileged_user()
            self._identity = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
            self._open_path_for_others()
            os.chown(self.directory, owner.pw_uid, owner.pw_gid)
        made = subprocess.run(
            [
                self._bin / "initdb",
                "-D",
                self.directory / "data",
                "-U",
                "hoosh",
                "-A",
                "trust",
                "--no-sync",
                "-E",
                "UTF8",
                "--locale=C",
            ],
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
            **self._identity,
        )
        if made.returncode != 0:
            raise children.ChildError(f"initdb failed:\n{made.stdout}\n{made.stderr}")
        self.port = children.free_port()
        self.start_again()

    def start_again(self) -> None:
        """Start the server on what `start` has made, on the same port, and wait until it answers."""
        log = self.directory / "log"
        log.touch()
        settings = {
            **{"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self.directory},
            **{"max_connections": 80, "shared_buffers": "32MB"},
            **self._writes,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._process = children.spawn(
            [self._bin / "postgres", "-D", self.directory / "data", *options],
            log=log,
            cwd=self.directory,
            **self._identity,
        )
        children.wait_for(self._answers, "PostgreSQL to answer", timeout_s=60, log=log)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def url(self, database: str) -> str:
        """A DATABASE_URL for one database of this server."""
        return f"postgres://hoosh@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str) -> str:
        """Make an empty database and return its DATABASE_URL."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, ending whatever is still connected to it."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def stop(self) -> None:
        """Stop the server at once (`pg_ctl stop -m immediate`): no goodbye, no checkpoint, every connection is cut.

        The directory is the caller's to delete."""
        if self._process is not None:
            children.stop(self._process, how=signal.SIGQUIT)
            self._process = None

    def _open_path_for_others(self) -> None:
        # The server's user must be able to walk down to its directory; mkdtemp makes directories for their owner only.
        for parent in self.directory.parents:
            status = parent.stat()
            if status.st_uid == 0 and not status.st_mode & 0o001:
                parent.chmod(status.st_mode | 0o011)


def _unprivileged_user() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PostgresMissingError("PostgreSQL does not run as root and neither user postgres nor nobody exists.")
