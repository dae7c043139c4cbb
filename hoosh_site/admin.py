"""Admin pages of the people who use admin: Django's own, with every change recorded in the transaction of the change.

Entries name what was changed and who did it; a password is never in one, in whatever form.
"""

from __future__ import annotations

from typing import Any, TypeVar

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, Permission, User
from django.db import models, transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse

from audit.admin_tools import operator
from audit.changes import changed_fields, object_of, recordable
from audit.generics import Page
from audit.history import LogHistory
from audit.record import record
from hoosh_site.admin_webhooks import WebhookAdmin

__all__ = ["RecordedAdmin", "RecordedGroupAdmin", "RecordedUserAdmin", "WebhookAdmin"]

_Model = TypeVar("_Model", bound=models.Model)
_UNRECORDED = frozenset({"password", "last_login"})


class RecordedAdmin(LogHistory, Page[_Model]):
    """Records who created, changed and deleted rows; `memberships` names lists of related rows recorded with them."""

    memberships: tuple[str, ...] = ()
    personal: tuple[str, ...] = ()  # fields that tell of a person; with any, the rows are people

    def save_model(self, request: HttpRequest, obj: _Model, form: Any, change: bool) -> None:
        """Remember what the row was, for `save_related`, then save it."""
        before = type(obj)._default_manager.get(pk=obj.pk) if change else None
        form.before = before, {name: _names(before, name) for name in self.memberships}
        super().save_model(request, obj, form, change)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Save the lists, then record the whole change."""
        super().save_related(request, form, formsets, change)
        row, (before, lists) = form.instance, form.before
        fields = {
            name: values
            for name, values in changed_fields(before, row).items()
            if name not in _UNRECORDED and (not change or name in form.changed_data)
        }
        data: dict[str, Any] = {"fields": recordable(fields)} if fields else {}
        for name, old in lists.items():
            new = _names(row, name)
            if new != old:
                data[name] = {"added": sorted(new - old), "removed": sorted(old - new)}
        if data or not change:
            self.note(request, row, "changed" if change else "created", data)

    def delete_model(self, request: HttpRequest, obj: _Model) -> None:
        """Record the deletion, then delete."""
        with transaction.atomic():
            self.note(request, obj, "deleted", {})
            super().delete_model(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[_Model]) -> None:
        """Record the deletions, then delete."""
        with transaction.atomic():
            for row in queryset:
                self.note(request, row, "deleted", {})
            super().delete_queryset(request, queryset)

    def note(self, request: HttpRequest, row: _Model, what: str, data: dict[str, Any]) -> None:
        """Append one audit entry about a row."""
        fields: dict[str, Any] = data.get("fields", {})
        personal = {name: fields[name] for name in self.personal if name in fields}
        data = {"object": object_of(row), **data}
        if personal:
            data["fields"] = {name: values for name, values in fields.items() if name not in personal}
        record(
            f"{row._meta.model_name}.{what}",
            actor=operator(request),
            target=str(row)[:200],
            data=data,
            about=bool(self.personal),
            personal=personal,
        )


def _names(row: models.Model | None, name: str) -> set[str]:
    """The related rows in a list, by the names people know them by."""
    if row is None:
        return set()
    related = getattr(row, name)
    if related.model is Permission:
        return {f"{app}.{codename}" for app, codename in related.values_list("content_type__app_label", "codename")}
    return {str(each) for each in related.all()}


admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class RecordedUserAdmin(RecordedAdmin[User], UserAdmin):  # type: ignore[type-arg]  # not subscriptable when run
    """People who may sign in to admin."""

    memberships = ("groups", "user_permissions")
    personal = ("username", "first_name", "last_name", "email")

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:
        """The form for somebody's password; a change of it is recorded, the password is not."""
        with transaction.atomic():
            before = self.get_object(request, id)
            response: HttpResponse = super().user_change_password(request, id, form_url)
            after = User.objects.filter(pk=before.pk).first() if before is not None else None
            if before is not None and after is not None and after.password != before.password:
                self.note(request, after, "password_set", {"usable": after.has_usable_password()})
        return response


@admin.register(Group)
class RecordedGroupAdmin(RecordedAdmin[Group], GroupAdmin):
    """Permissions that several people share."""

    memberships = ("permissions",)
