"""Who may do what here: people have Django's permissions, keys with the scope "admin" those that it carries."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from budgets import scopes as scope_rules
from gateway.api.authentication import Caller, caller_of, scopes
from gateway.errors import ForbiddenError


def holds(caller: Caller, permission: str) -> bool:
    """Whether the caller has one of Django's permissions, "app.verb_model"."""
    if caller.key is not None:
        return scope_rules.ADMIN in scopes(caller.key) and permission in scope_rules.ADMIN_PERMISSIONS
    return caller.user is not None and caller.user.has_perm(permission)


def may(caller: Caller, permission: str) -> bool:
    """As `holds`; who may change rows may also see them, as on the admin's pages."""
    if holds(caller, permission):
        return True
    app, _, rest = permission.partition(".")
    verb, _, model = rest.partition("_")
    return verb == "view" and holds(caller, f"{app}.change_{model}")


def demand(request: Request, permission: str) -> None:
    """Refuse a caller without this permission with a 403 that names it."""
    caller = caller_of(request)
    if not may(caller, permission):
        raise ForbiddenError(_refusal(caller, permission))


def demand_scopes(request: Request, wanted: Collection[str]) -> None:
    """Refuse a caller who would make, or save, a key that can do more than the caller can."""
    caller = caller_of(request)
    if scope := scope_rules.not_to_give(lambda name: holds(caller, name), wanted):
        raise ForbiddenError(scope_rules.refusal(scope), param="scopes")


def _refusal(caller: Caller, permission: str) -> str:
    if caller.key is None:
        return f"This needs the permission {permission}."
    if scope_rules.ADMIN not in scopes(caller.key):
        return "This needs an API key with the scope “admin”."
    return f"This needs the permission {permission}, which no key has: sign in."


class MayManage(BasePermission):
    """Callers who have every permission that the view names for what is asked (`needed`)."""

    message = "This needs an API key with the scope “admin”."

    def has_permission(self, request: Request, view: Any) -> bool:
        """False for strangers, which makes a 401; a caller without a permission is told which."""
        caller: object = request.user
        if not isinstance(caller, Caller):
            return False
        for permission in view.needed():
            if not may(caller, permission):
                self.message = _refusal(caller, permission)
                return False
        return True
