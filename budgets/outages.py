"""Telling a database that is away, which passes, from a statement it will never carry out, which does not."""

from __future__ import annotations

import sqlite3

from django.db import InterfaceError, OperationalError

# SQLSTATE: no connection, out of resources, rolled back for another's sake, locked, shut down, read-only, disk trouble.
_PASSING_STATES = ("08", "25006", "40", "53", "55P03", "57", "58")
_PASSING_CODES = frozenset(
    {
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY),
        *(sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN),
        sqlite3.SQLITE_PROTOCOL,
    }
)


def is_outage(exc: BaseException) -> bool:
    """Whether the same work can be done once the database is back: Django's exception, by what its driver said."""
    if isinstance(exc, InterfaceError):
        return True
    if not isinstance(exc, OperationalError):
        return False
    cause = exc.__cause__
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", None)  # none where the driver itself refused
        return code is None or code & 0xFF in _PASSING_CODES
    state = getattr(cause, "sqlstate", None)
    return state is None or str(state).startswith(_PASSING_STATES)
