"""Who is an administrator, and whom they alone change: the same on admin's pages and in the management API."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import Group, Permission, User
from django.db.models import Q, QuerySet

from hoosh_site.people import roles


def is_admin(user: Any) -> bool:
    """Whether somebody looks after administrators."""
    return bool(user.has_perm(roles.MANAGE_ADMINS))


def may_touch(asking: Any, user: User | None) -> bool:
    """Whether the asking user may change this one: administrators are changed by administrators only, superusers by
    superusers."""
    if user is None or asking.is_superuser or asking.pk == user.pk:
        return True
    if user.is_superuser:
        return False
    return is_admin(asking) or not (
        user.groups.filter(pk__in=admin_groups()).exists()
        or user.user_permissions.filter(content_type__app_label="people", codename="manage_admins").exists()
    )


def admin_groups() -> QuerySet[Group]:
    """The groups whose members are administrators: they manage administrators, or what groups may do."""
    makes = Q(content_type__app_label="people", codename="manage_admins")
    makes |= Q(content_type__app_label="auth", codename="change_group")
    return Group.objects.filter(permissions__in=Permission.objects.filter(makes)).distinct()
