"""Fixtures for all tests, and which tests run where. The environment itself is made in `tests.settings`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.test import TransactionTestCase

from audit import triggers
from tests import compatibility, environment
from tests.postgres import PostgresServer
from tests.servers import Gateway, LlamaServer, UpstreamProcess

_numbers = itertools.count(1)
_flush = TransactionTestCase._fixture_teardown


def _flush_the_log_too(case: TransactionTestCase) -> None:
    """Django empties all tables behind such a test, and those of the audit log refuse it: without their guards then."""
    databases = [connections[alias] for alias in case._databases_names(include_mirrors=False)]
    for connection in databases:
        triggers.remove_guards(connection)
    try:
        _flush(case)
    finally:
        for connection in databases:
            triggers.install(connection)


TransactionTestCase._fixture_teardown = _flush_the_log_too


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that writes a page of the documentation from what passed."""
    page = compatibility.PAGE.relative_to(compatibility.PROJECT_DIR)
    parser.addoption(compatibility.OPTION, action="store_true", help=f"write {page} from the tests that passed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On PostgreSQL leave out whatever is not marked `database`."""
    kept, left_out = [], []
    for item in items:
        unwanted = environment.on_postgres() and item.get_closest_marker("database") is None
        (left_out if unwanted else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.fixture(scope="session")
def django_db_keepdb() -> bool:
    """The PostgreSQL server ends with the session and its databases with it: to drop one fails while anybody is
    connected."""
    return environment.on_postgres()


@pytest.fixture
def short_dir() -> Path:
    """An empty directory with a short path: a Unix socket's path may have 107 bytes. Gone with the session."""
    path = environment.session_dir() / f"t{next(_numbers)}"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL: the session's own, or one for the tests that ask for it."""
    if environment.session_postgres is not None:
        yield environment.session_postgres
        return
    server = PostgresServer(environment.session_dir() / "pg-fixture")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def llama() -> Iterator[LlamaServer]:
    """A real llama.cpp server with the model "tiny"; random words until the output limit."""
    server = LlamaServer(environment.session_dir() / "llama").start()
    yield server
    server.stop()


@pytest.fixture
def upstream_process(short_dir: Path) -> Iterator[UpstreamProcess]:
    """The fault upstream in a process of its own."""
    server = UpstreamProcess(short_dir / "upstream").start()
    yield server
    server.stop()


@pytest.fixture
def start_gateway(request: pytest.FixtureRequest) -> Iterator[Callable[..., Gateway]]:
    """Starts gateways (arguments as for `Gateway`) on the session's kind of database; all end with the test."""
    started: list[tuple[Gateway, str]] = []

    def start(**options: Any) -> Gateway:
        number = next(_numbers)
        database = ""
        if environment.on_postgres():
            database = f"gateway_{number}"
            options["database_url"] = request.getfixturevalue("postgres").create_database(database)
        gateway = Gateway(environment.session_dir() / f"g{number}", **options)
        started.append((gateway, database))
        return gateway.start()

    yield start
    for gateway, database in reversed(started):
        gateway.stop()
        if database:
            request.getfixturevalue("postgres").drop_database(database)
