"""Which import made which row of the configuration, as a version remembers it: one that comes back has its owner again.

It is no part of the document, since nothing that runs depends on it.
"""

from __future__ import annotations

from django.db import models

from providers.models import DataPattern, PrivacyPolicy, Provider, Route, RoutingPolicy

Stored = dict[str, dict[str, list[int]]]  # kind of row -> owner -> ids
Owners = dict[tuple[type[models.Model], int], str]
_MODELS: dict[str, type[models.Model]] = {
    model.__name__.lower(): model for model in (Provider, Route, RoutingPolicy, PrivacyPolicy, DataPattern)
}


def of_rows() -> Stored:
    """The owners of the rows as they are; rows of operators are not among them."""
    found: Stored = {}
    for kind, model in _MODELS.items():
        rows = model._default_manager.exclude(managed_by="").order_by("pk").values_list("pk", "managed_by")
        for number, owner in rows:
            found.setdefault(kind, {}).setdefault(owner, []).append(number)
    return found


def read(stored: Stored) -> Owners:
    """The owner of each row that has one."""
    return {
        (_MODELS[kind], number): owner
        for kind, owners in stored.items()
        if kind in _MODELS
        for owner, numbers in owners.items()
        for number in numbers
    }
