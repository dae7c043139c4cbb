"""The environment of one test session: a private data directory and, if asked for, a private PostgreSQL.

`tests.settings` calls `prepare` before Django's settings are read, because they look at the environment once. With
`HOOSH_TEST_DATABASE=postgres` the session's database is a real PostgreSQL started here; otherwise SQLite files.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from tests.postgres import PostgresServer

# What a developer's shell may carry and no test may see.
_FOREIGN = ("DATABASE_URL", "PORT", "DJANGO_SETTINGS_MODULE", "PROMETHEUS_MULTIPROC_DIR")

# They choose among the tests.
_KEPT = ("HOOSH_TEST_DATABASE", "HOOSH_TEST_WITHOUT_BROWSER", "HOOSH_TEST_WITHOUT_CLIS")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

session_postgres: PostgresServer | None = None
_session_dir: Path | None = None


def on_postgres() -> bool:
    """Whether this session runs the `database` tests on PostgreSQL."""
    return os.environ.get("HOOSH_TEST_DATABASE", "sqlite") == "postgres"


def session_dir() -> Path:
    """The session's temporary directory; short, since Unix sockets in it may have paths of 107 bytes only."""
    if _session_dir is None:
        raise RuntimeError("tests.environment.prepare() has not run: are the settings of tests.settings in use?")
    return _session_dir


def clean_environment() -> dict[str, str]:
    """The process environment without any setting of ours, for the processes that tests start."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _FOREIGN and not name.startswith("HOOSH_") and not name.endswith("_API_KEY")
    }


def prepare() -> None:
    """Point every setting at the session's own directory and database. Runs once, before Django's settings load."""
    global _session_dir, session_postgres
    if _session_dir is not None:
        return
    _session_dir = Path(tempfile.mkdtemp(prefix="hs-", dir="/tmp" if os.path.isdir("/tmp") else None))
    atexit.register(_clean_up, os.getpid())
    for name in list(os.environ):
        if (name.startswith("HOOSH_") and name not in _KEPT) or name in ("DATABASE_URL", "PORT"):
            del os.environ[name]
    _bypass_proxies()
    os.environ["HOOSH_DATA_DIR"] = str(_session_dir / "data")
    os.environ["HOOSH_TESTING"] = "1"
    os.environ["HOOSH_ACCESS_LOG"] = "off"
    (_session_dir / "data").mkdir(mode=0o700)
    (_session_dir / "data" / "static").mkdir()  # what collectstatic makes; WhiteNoise warns without it
    if on_postgres():
        session_postgres = PostgresServer(_session_dir / "pg")
        session_postgres.start()
        os.environ["DATABASE_URL"] = session_postgres.url("postgres")


def _bypass_proxies() -> None:
    """Have no client ask a proxy of the machine for the servers that tests start on this host."""
    for name in ("no_proxy", "NO_PROXY"):
        known = [entry for entry in os.environ.get(name, "").split(",") if entry]
        os.environ[name] = ",".join(dict.fromkeys([*known, *_LOOPBACK]))


def _clean_up(owner_pid: int) -> None:
    if os.getpid() != owner_pid:  # a forked child runs the parent's exit handlers too
        return
    if session_postgres is not None:
        session_postgres.stop()
    if _session_dir is not None:
        shutil.rmtree(_session_dir, ignore_errors=True)
