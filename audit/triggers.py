"""What the database itself keeps: rows of the log stay as they were written, and outboxes number their rows.

Triggers are made anew, where they are missing, at the end of every `manage.py migrate`: a migration that rebuilds a
table on SQLite takes its triggers away. They stop mistakes and programs that go astray. Whoever owns the database can
drop them; that is what the tree and its anchors are for.

Numbers are given in the order of commits and without gaps: on SQLite there is one writer at a time, on PostgreSQL a
deferred trigger counts when a transaction ends, so the counter's row is locked for the commit only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

# Tables of the log, and what is unique in them: on SQLite INSERT OR REPLACE would delete a row past a DELETE trigger.
GUARDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "audit_entry": (("seq",), ("source", "number")),
    "audit_tile": (("id",), ("log", "level", "index")),
    "audit_checkpoint": (("id",), ("log", "size")),
    "audit_log": (("number",), ("name",), ("first_seq",)),
    "audit_usagebatch": (("id",), ("owner", "number")),
    "audit_loggedbatch": (("batch",),),
}
NUMBERED = {"audit_outboxentry": "audit_outboxcounter", "audit_ledgeroutboxentry": "audit_ledgeroutboxcounter"}

_REFUSED = "rows of the audit log are never changed"
_POSTGRES_FUNCTIONS = (
    f"CREATE OR REPLACE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    f"RAISE EXCEPTION '{_REFUSED}' USING ERRCODE = 'integrity_constraint_violation'; END $$",
    "CREATE OR REPLACE FUNCTION audit_number() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE n bigint; BEGIN "
    "EXECUTE format('INSERT INTO %I AS c (id, value) VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET value = c.value + 1 "
    "RETURNING value', TG_ARGV[0]) INTO n; "
    "EXECUTE format('UPDATE %I SET number = $1 WHERE id = $2', TG_TABLE_NAME) USING n, NEW.id; RETURN NULL; END $$",
)


def after_migrate(sender: object, using: str, **kwargs: Any) -> None:
    """Django's signal at the end of a migration of the database `using`."""
    install(connections[using])


def install(connection: BaseDatabaseWrapper) -> None:
    """Make what is missing for those of the tables that are in this database."""
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        here = set(connection.introspection.table_names(cursor))
        if connection.vendor == "postgresql" and here & (GUARDED.keys() | NUMBERED.keys()):
            for statement in _POSTGRES_FUNCTIONS:
                cursor.execute(statement)
        known = _known(connection, cursor)
        for table in GUARDED:
            if table in here:
                for name, statement in _guards(connection, table):
                    if name not in known:
                        cursor.execute(statement)
        for table, counter in NUMBERED.items():
            if table in here and counter in here and f"{table}_number" not in known:
                cursor.execute(_numbering(connection, table, counter))


def remove_guards(connection: BaseDatabaseWrapper, tables: Sequence[str] = tuple(GUARDED)) -> None:
    """Let rows of these tables be changed and deleted until `install`: for pruning, and for tests that clean up."""
    with connection.cursor() as cursor:
        known = _known(connection, cursor)
        for table in tables:
            for name, _statement in _guards(connection, table):
                if name in known:
                    on = f" ON {table}" if connection.vendor == "postgresql" else ""
                    cursor.execute(f"DROP TRIGGER {name}{on}")


@contextmanager
def unguarded(connection: BaseDatabaseWrapper, tables: Sequence[str]) -> Iterator[None]:
    """A transaction in which rows of these tables may be deleted. Nobody else ever sees the tables unguarded."""
    with transaction.atomic(using=connection.alias, durable=True):
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:  # a weaker lock than dropping takes: others go on reading
                for table in tables:
                    cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
                yield
                for table in tables:
                    cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")
        else:
            remove_guards(connection, tables)
            yield
            install(connection)


def missing(connection: BaseDatabaseWrapper) -> list[str]:
    """The guarded tables that lack a trigger in this database."""
    with connection.cursor() as cursor:
        known = _known(connection, cursor)
    return [table for table in GUARDED if any(name not in known for name, _ in _guards(connection, table))]


def _known(connection: BaseDatabaseWrapper, cursor: Any) -> set[str]:
    if connection.vendor == "postgresql":
        cursor.execute("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D'")
    else:
        cursor.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
    return {name for (name,) in cursor.fetchall()}


def _guards(connection: BaseDatabaseWrapper, table: str) -> Iterator[tuple[str, str]]:
    if connection.vendor == "postgresql":
        row = f"BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION audit_refuse()"
        yield f"{table}_rows", f"CREATE TRIGGER {table}_rows {row}"
        whole = f"BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()"
        yield f"{table}_truncate", f"CREATE TRIGGER {table}_truncate {whole}"
        return
    refuse = f"BEGIN SELECT RAISE(ABORT, '{_REFUSED}'); END"
    for event in ("update", "delete"):
        yield f"{table}_{event}", f"CREATE TRIGGER {table}_{event} BEFORE {event.upper()} ON {table} {refuse}"
    same = (" AND ".join(f'"{name}" = NEW."{name}"' for name in names) for names in GUARDED[table])
    exists = " OR ".join(f"EXISTS (SELECT 1 FROM {table} WHERE {condition})" for condition in same)  # noqa: S608
    yield f"{table}_replace", f"CREATE TRIGGER {table}_replace BEFORE INSERT ON {table} WHEN {exists} {refuse}"


def _numbering(connection: BaseDatabaseWrapper, table: str, counter: str) -> str:
    if connection.vendor == "postgresql":
        return (
            f"CREATE CONSTRAINT TRIGGER {table}_number AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED "
            f"FOR EACH ROW EXECUTE FUNCTION audit_number('{counter}')"
        )
    return (
        f"CREATE TRIGGER {table}_number AFTER INSERT ON {table} BEGIN "  # noqa: S608
        f"INSERT INTO {counter} (id, value) VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET value = value + 1; "
        f"UPDATE {table} SET number = (SELECT value FROM {counter} WHERE id = 1) WHERE id = NEW.id; END"
    )
