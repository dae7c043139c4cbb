"""The groups of the four roles in the database: made once, then the operators' own.

A permission is offered to a role once. Whoever takes it out of the group, or deletes or renames the group, is not
overruled by the next upgrade; a permission that an upgrade brings is added to the groups that still exist.
"""

from __future__ import annotations

from django.apps import apps
from django.contrib.auth.models import Group, Permission
from django.db import connection, transaction

from hoosh_site.people import noting, roles
from hoosh_site.people.models import RoleOffer

_ACTOR = "upgrade"


def offer(using: str) -> None:
    """Give the roles the permissions they were not given before. Asked after every migration."""
    if using != "default" or "people_roleoffer" not in connection.introspection.table_names():
        return
    with transaction.atomic():
        for role in roles.ROLES:
            _offer(role)


def restore(role: str, *, actor: str) -> int:
    """Give a role's group exactly its permissions again, making the group if it is gone. How many it has then."""
    wanted = list(_wanted(role))
    with transaction.atomic():
        group, _ = Group.objects.get_or_create(name=role)
        group.permissions.set(wanted)
        names = {_name(permission) for permission in wanted}
        known = set(RoleOffer.objects.filter(role=role).values_list("permission", flat=True))
        RoleOffer.objects.bulk_create([RoleOffer(role=role, permission=name) for name in sorted(names - known)])
        noting.note(group, "restored", actor=actor, data={"permissions": len(wanted)})
    return len(wanted)


def _offer(role: str) -> None:
    known = set(RoleOffer.objects.filter(role=role).values_list("permission", flat=True))
    new = [each for each in _wanted(role) if _name(each) not in known]
    if not new:
        return
    group = Group.objects.filter(name=role).first()
    if (group is None) == bool(known):
        return  # gone: somebody deleted or renamed it; there: somebody's own, from before there were roles
    group = group or Group.objects.create(name=role)
    group.permissions.add(*new)
    RoleOffer.objects.bulk_create([RoleOffer(role=role, permission=_name(each)) for each in new])
    if known:  # the first ones are what the role is
        added = sorted(_name(each) for each in new)
        noting.note(group, "changed", actor=_ACTOR, data={"permissions": {"added": added, "removed": []}})


def _wanted(role: str) -> list[Permission]:
    """The rows of a role's permissions."""
    rows = Permission.objects.select_related("content_type").order_by("pk")
    labels = {config.label for config in apps.get_app_configs()}
    wanted = None if role == roles.ADMIN else roles.permissions(role)
    return [row for row in rows if row.content_type.app_label in labels and (wanted is None or _name(row) in wanted)]


def _name(permission: Permission) -> str:
    return f"{permission.content_type.app_label}.{permission.codename}"
