"""The people who sign in to admin, and their groups. No key may see or change them.

Whoever is no superuser can neither make nor change one, nor give a permission they do not have themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from django.contrib.auth.models import Group, Permission, User
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import transaction
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from audit.changes import changed_fields, recordable
from gateway.api.authentication import caller_of
from gateway.errors import ForbiddenError
from hoosh_site.management_api.fields import Named, RowSerializer, Strict, Text
from hoosh_site.management_api.paging import Filter
from hoosh_site.management_api.rows import Rows, search
from hoosh_site.people import administrators, noting

_UNRECORDED = frozenset({"password", "last_login"})
_PASSWORD = 4096


class Permissions(serializers.ListField):
    """Permissions as "app.codename", for example "providers.view_route"."""

    child = Text(max_length=255)

    def to_internal_value(self, data: Any) -> Any:
        """The rows. Refused: names of none."""
        names = list(dict.fromkeys(super().to_internal_value(data)))
        known = {
            f"{row.content_type.app_label}.{row.codename}": row
            for row in Permission.objects.filter(
                codename__in=[each.partition(".")[2] for each in names]
            ).select_related("content_type")
        }
        if unknown := [each for each in names if each not in known]:
            raise serializers.ValidationError(f"There is no permission “{unknown[0]}”.")
        return [known[each] for each in names]

    def to_representation(self, data: Any) -> Any:
        """Their names, sorted."""
        return sorted(f"{row.content_type.app_label}.{row.codename}" for row in data.all())


class UserSerializer(RowSerializer):
    """Somebody who may sign in."""

    password = Text(
        write_only=True, required=False, max_length=_PASSWORD, help_text="When made; left out: none can be used yet."
    )
    groups = Named(many=True, queryset=Group.objects.all(), required=False)
    permissions = Permissions(source="user_permissions", required=False)

    class Meta:
        model = User
        fields = (
            *("id", "username", "password", "email", "first_name", "last_name", "is_active", "is_staff"),
            *("is_superuser", "groups", "permissions", "last_login", "date_joined"),
        )
        read_only_fields = ("id", "last_login", "date_joined")


class GroupSerializer(RowSerializer):
    """Permissions that several people share."""

    permissions = Permissions(required=False)

    class Meta:
        model = Group
        fields = ("id", "name", "permissions")
        read_only_fields = ("id",)


class PasswordSerializer(Strict):
    """A new password."""

    password = Text(max_length=_PASSWORD)


class Accounts(Rows):
    """Rows of Django's own, recorded in the transaction of their change."""

    lists: ClassVar[tuple[str, ...]] = ()

    def gate(self) -> None:
        """Before the row."""
        administrators.hold()

    def create(self, request: Request, **path: Any) -> Response:
        """A new row."""
        return self.told(self.again(self._write(self.read(request), None)), status=201)

    def partial_update(self, request: Request, **path: Any) -> Response:
        """Change the fields that are there, and no others."""
        with transaction.atomic():
            self.gate()
            row = self.get_queryset().model._default_manager.select_for_update().filter(pk=self.row().pk).first()
            row = row or self.row()
            self.match(request, row)
            self._write(self.read(request, partial=True), row)
        return self.told(self.again(row))

    def _write(self, values: dict[str, Any], row: Any) -> Any:
        lists = {name: values.pop(name) for name in self.lists if name in values}
        model = self.get_queryset().model
        before = model._default_manager.get(pk=row.pk) if row is not None else None
        row = row if row is not None else model()
        self.judge(before, values, lists)
        password = values.pop("password", None)
        for name, value in values.items():
            setattr(row, name, value)
        if isinstance(row, User) and before is None:
            _set_password(row, password)
        row.full_clean()
        administrators.refuse_disabling(caller_of(self.request).user, row)
        with transaction.atomic(), administrators.kept():
            row.save()
            data: dict[str, Any] = {}
            for name, rows in lists.items():
                old = {str(each) for each in getattr(row, name).all()}
                getattr(row, name).set(rows)
                new = {str(each) for each in rows}
                if old != new:
                    data[name] = {"added": sorted(new - old), "removed": sorted(old - new)}
            changes = {name: pair for name, pair in changed_fields(before, row).items() if name not in _UNRECORDED}
            if changes:
                data["fields"] = recordable(changes)
            if data or before is None:
                self.note(row, "created" if before is None else "changed", data)
        return row

    def note(self, row: Any, what: str, data: dict[str, Any]) -> None:
        """Append one audit entry."""
        noting.note(row, what, actor=self.actor, data=data)

    def erase(self, row: Any, actor: str) -> None:
        """Delete a row."""
        self.judge(row, {}, {})
        administrators.refuse_deletion(caller_of(self.request).user, row)
        with transaction.atomic(), administrators.kept():
            self.note(row, "deleted", {})
            row.delete()

    def judge(self, before: Any, values: dict[str, Any], lists: dict[str, Any]) -> None:
        """Refuse what would give more than the caller has."""
        raise NotImplementedError

    def refuse_permissions(self, permissions: Iterable[Permission]) -> None:
        """Nobody gives what they do not have."""
        user: Any = caller_of(self.request).user
        for row in permissions:
            name = f"{row.content_type.app_label}.{row.codename}"
            if not user.has_perm(name):
                raise ForbiddenError(f"You do not have the permission {name} yourself.", param="permissions")


def _set_password(row: User, password: str | None) -> None:
    if password is None:
        row.set_unusable_password()
        return
    try:
        validate_password(password, row)
    except ValidationError as exc:
        raise ValidationError({"password": exc.messages}) from exc
    row.set_password(password)


class Users(Accounts):
    """People who may sign in."""

    label = "auth.user"
    serializer_class = UserSerializer
    queryset = User.objects.prefetch_related("groups", "user_permissions__content_type")
    filters = {
        **search("username"),
        **{name: Filter(name, "truth") for name in ("is_active", "is_staff", "is_superuser")},
        "group": Filter("groups__name"),
    }
    lists = ("groups", "user_permissions")

    def judge(self, before: User | None, values: dict[str, Any], lists: dict[str, Any]) -> None:
        """Superusers are superusers' business."""
        if before is not None and "password" in values:
            raise ValidationError({"password": "A password is set at …/password."})
        user: Any = caller_of(self.request).user
        if user.is_superuser:
            return
        self._refuse_administrators(user, before, lists)
        if (before is not None and before.is_superuser) or values.get("is_superuser"):
            raise ForbiddenError("Only superusers make or change superusers.", param="is_superuser")
        self.refuse_permissions(lists.get("user_permissions", ()))
        for group in lists.get("groups", ()):
            self.refuse_permissions(group.permissions.select_related("content_type"))

    def _refuse_administrators(self, user: Any, before: User | None, lists: dict[str, Any]) -> None:
        """Administrators are changed and made by administrators; single permissions are given by them alone."""
        if not administrators.may_touch(user, before):
            raise ForbiddenError("Only administrators change administrators.")
        if administrators.is_admin(user):
            return
        if "user_permissions" in lists:
            given = set() if before is None else set(before.user_permissions.all())
            if set(lists["user_permissions"]) != given:
                raise ForbiddenError("Only administrators give single permissions.", param="permissions")
        kept = set() if before is None else set(before.groups.all())
        makes = set(administrators.admin_groups())
        if makes & (set(lists.get("groups", ())) - kept):
            raise ForbiddenError("Only administrators make administrators.", param="groups")

    @extend_schema(request=PasswordSerializer, responses={204: None}, summary="Set a password")
    def password(self, request: Request, **path: Any) -> Response:
        """Ends all sessions of that person."""
        serializer = PasswordSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        with transaction.atomic():
            row: User = self.row()
            self.judge(row, {}, {})
            _set_password(row, serializer.validated_data["password"])
            row.save(update_fields=["password"])
            self.note(row, "password_set", {"usable": True})
        return Response(status=204)


class Groups(Accounts):
    """Permissions that several people share."""

    label = "auth.group"
    serializer_class = GroupSerializer
    queryset = Group.objects.prefetch_related("permissions__content_type")
    filters = search()
    lists = ("permissions",)

    def judge(self, before: Group | None, values: dict[str, Any], lists: dict[str, Any]) -> None:
        """Nobody gives what they do not have."""
        user: Any = caller_of(self.request).user
        if not user.is_superuser:
            self.refuse_permissions(lists.get("permissions", ()))
