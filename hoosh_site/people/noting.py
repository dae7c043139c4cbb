"""Audit entries about people and what they may do: the same whether a page, the management API or a command changed it.

Who somebody is, is sealed with that person's key; the entry names the row for good, so that its history finds it.
"""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.db import models

from audit.changes import object_of
from audit.record import record
from hoosh_site.people.models import ExternalIdentity, TeamLead

_OF_USERS = frozenset({"username", "first_name", "last_name", "email"})


def note(row: models.Model, what: str, *, actor: str, data: dict[str, Any] | None = None, level: str = "info") -> None:
    """Append the entry "model.what" about a row that has its primary key. Call it inside the transaction of the change,
    before a deletion. `data["fields"]` holds changes as `audit.changes.recordable` makes them."""
    told = {"object": object_of(row), **(data or {})}
    personal: dict[str, Any] = {}
    if isinstance(row, User) and "fields" in told:
        personal = {name: values for name, values in told["fields"].items() if name in _OF_USERS}
        told["fields"] = {name: values for name, values in told["fields"].items() if name not in _OF_USERS}
    if isinstance(row, TeamLead):
        told["team"] = str(row.team)
    person = _person(row)
    record(
        f"{row._meta.model_name}.{what}",
        actor=actor,
        target=(str(row) if person is None else person.get_username())[:200],
        level=level,
        data=told,
        about=person is not None,
        personal=personal,
    )


def _person(row: models.Model) -> User | None:
    """Whom an entry is about; None = about no person."""
    if isinstance(row, User):
        return row
    return row.user if isinstance(row, TeamLead | ExternalIdentity) else None
