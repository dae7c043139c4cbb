"""Who is an administrator, and whom they alone change: the same on admin's pages and in the management API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.contrib.auth.models import Group, Permission, User
from django.core.exceptions import ValidationError
from django.db.models import Model, Q, QuerySet

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


def hold() -> None:
    """Let one change of administrators wait for another. Call it inside the transaction, before a row is read."""
    list(User.objects.select_for_update().filter(is_staff=True).order_by("pk").values_list("pk", flat=True))


@contextmanager
def kept() -> Iterator[None]:
    """Around a change of people or groups, inside its transaction: raises `ValidationError` behind it where it left
    nobody who can sign in as a superuser, or without superusers nobody who manages administrators."""
    hold()
    had_superuser, had_admin = _left()
    yield
    has_superuser, has_admin = _left()
    if had_superuser and not has_superuser:
        raise ValidationError("This would leave no active superuser with staff status. Make somebody else one first.")
    if had_admin and not has_admin:
        raise ValidationError("This would leave no active administrator. Make somebody else one first.")


def refuse_disabling(asking: Any, row: Model) -> None:
    """Raises `ValidationError` where somebody is about to save their own account as disabled."""
    if isinstance(row, User) and row.pk == asking.pk and not row.is_active:
        raise ValidationError({"is_active": "You cannot disable your own account. Ask another administrator."})


def refuse_deletion(asking: Any, row: Model) -> None:
    """Raises `ValidationError` where somebody is about to delete their own account, or a group that gives them what
    they may do."""
    if isinstance(row, User) and row.pk == asking.pk:
        raise ValidationError("You cannot delete your own account. Ask another administrator.")
    if isinstance(row, Group) and not asking.is_superuser and asking.groups.filter(pk=row.pk).exists():
        raise ValidationError(f"You cannot delete the group “{row}”, which you are in. Ask another administrator.")


def _left() -> tuple[bool, bool]:
    """Whether there is a superuser, and whether there is an administrator, who can sign in to admin."""
    staff = User.objects.filter(is_active=True, is_staff=True)
    has_superuser = staff.filter(is_superuser=True).exists()
    manages = Permission.objects.filter(content_type__app_label="people", codename="manage_admins")
    by_right = Q(groups__permissions__in=manages) | Q(user_permissions__in=manages)
    return has_superuser, has_superuser or staff.filter(by_right).exists()
