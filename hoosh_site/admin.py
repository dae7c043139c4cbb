"""Admin pages of the people who use admin: Django's own, with every change recorded in the transaction of the change.

Entries name what was changed and who did it; a password is never in one, in whatever form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from django.contrib import admin, messages
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, Permission, User
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import models, transaction
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from audit.admin_tools import number, operator
from audit.changes import changed_fields, recordable
from audit.generics import Page
from audit.history import LogHistory
from audit.shown_rows import ComparedPage
from hoosh_site.admin_webhooks import WebhookAdmin
from hoosh_site.people import administrators, factors, noting
from hoosh_site.people.models import SecondFactor

__all__ = ["RecordedAdmin", "RecordedGroupAdmin", "RecordedUserAdmin", "WebhookAdmin"]

_Model = TypeVar("_Model", bound=models.Model)
_UNRECORDED = frozenset({"password", "last_login"})


class RecordedAdmin(ComparedPage, LogHistory, Page[_Model]):
    """Records who created, changed and deleted rows; `memberships` names lists of related rows recorded with them."""

    memberships: tuple[str, ...] = ()

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
        noting.note(row, what, actor=operator(request), data=data)


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


class GuardedAdmin(RecordedAdmin[_Model]):
    """Rows that decide who is an administrator: no form, button or action here leaves the gateway without one, nor
    takes away the account of whoever presses it. What is refused is said above the page one comes back to."""

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """The form, and what it saves."""
        view = super().changeform_view
        return _guarded(request, lambda: view(request, object_id, form_url, extra_context))

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The question, and the deletion."""
        view = super().delete_view
        return _guarded(request, lambda: view(request, object_id, extra_context))

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The list, and its actions."""
        view = super().changelist_view
        return _guarded(request, lambda: view(request, extra_context))

    def save_model(self, request: HttpRequest, obj: _Model, form: Any, change: bool) -> None:
        """Nobody disables themselves."""
        administrators.refuse_disabling(request.user, obj)
        super().save_model(request, obj, form, change)

    def delete_model(self, request: HttpRequest, obj: _Model) -> None:
        """Nobody deletes themselves."""
        administrators.refuse_deletion(request.user, obj)
        super().delete_model(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[_Model]) -> None:
        """None of the chosen ones is deleted where one is not."""
        for row in queryset:
            administrators.refuse_deletion(request.user, row)
        super().delete_queryset(request, queryset)


def _guarded(request: HttpRequest, act: Callable[[], HttpResponse]) -> HttpResponse:
    """What a view answers; a refused change is undone and told on the page it was sent from."""
    if request.method != "POST":
        return act()
    try:
        with transaction.atomic(), administrators.kept():
            return act()
    except ValidationError as exc:
        for message in exc.messages:
            messages.error(request, message)
        return HttpResponseRedirect(request.get_full_path())


@admin.register(User)
class RecordedUserAdmin(GuardedAdmin[User], UserAdmin):  # type: ignore[type-arg]  # not subscriptable when run
    """People who may sign in to admin.

    Only administrators (`roles.MANAGE_ADMINS`) change administrators, make them, or give single permissions: whoever
    else manages people cannot make themselves one.
    """

    memberships = ("groups", "user_permissions")
    list_display = ("username", "email", "is_staff", "is_superuser", "is_active", "last_login", "signs_in_with")
    list_select_related = ("second_factor", "external_identity")
    change_form_template = "admin/auth/user/change_form.html"

    def get_urls(self) -> list[URLPattern]:
        """The button that resets a second factor."""
        view = self.admin_site.admin_view(self.reset_factor_view)
        return [path("<int:user_id>/second-factor/", view, name="auth_user_second_factor"), *super().get_urls()]

    @admin.display(description="signs in with")
    def signs_in_with(self, user: User) -> str:
        """What besides the name is asked for."""
        if getattr(user, "external_identity", None) is not None:
            return "identity provider"
        factor = getattr(user, "second_factor", None)
        return "password and code" if factor is not None and factor.confirmed_at else "password"

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        """Whoever has the permission, but for administrators."""
        return super().has_change_permission(request, obj) and may_touch(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        """Whoever has the permission, but for administrators."""
        return super().has_delete_permission(request, obj) and may_touch(request, obj)

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> tuple[str, ...]:
        """What signing in and joining wrote is nobody's to change; rights that would make somebody an administrator are
        an administrator's to give."""
        fixed = (*super().get_readonly_fields(request, obj), "last_login", "date_joined")
        if request.user.is_superuser:
            return fixed
        given = () if administrators.is_admin(request.user) else ("user_permissions",)
        return (*fixed, "is_superuser", *given)

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Groups that make administrators are not offered to others."""
        field = super().formfield_for_manytomany(db_field, request, **kwargs)
        if db_field.name == "groups" and field is not None and not administrators.is_admin(request.user):
            field.queryset = Group.objects.exclude(pk__in=administrators.admin_groups())
        return field

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The form, which knows whether there is a second factor to reset."""
        user_id = number(object_id)
        factor = SecondFactor.objects.filter(user_id=user_id).first() if user_id is not None else None
        context = {"factor": factor if factor is not None and self._may_reset(request, factor.user) else None}
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def reset_factor_view(self, request: HttpRequest, user_id: int) -> HttpResponse:
        """Ask, then take somebody's second factor away, so that they can set up another."""
        user = User.objects.filter(pk=user_id).first()
        if not self._may_reset(request, user):
            raise PermissionDenied
        factor = SecondFactor.objects.filter(user=user).first()
        if user is None or factor is None:
            raise Http404("No such second factor.")
        if request.method != "POST":
            context = {
                **self.admin_site.each_context(request),
                "title": f"Reset the second factor of {user}?",
                "opts": self.opts,
                "words": {"text": _RESET, "button": "Reset"},
            }
            return TemplateResponse(request, "admin/hoosh/question.html", context)
        factors.remove(factor, actor=operator(request))
        self.message_user(request, f"{user} signs in without a second factor until they set one up.", messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:auth_user_change", args=(user.pk,)))

    def _may_reset(self, request: HttpRequest, user: User | None) -> bool:
        return bool(request.user.has_perm("people.delete_secondfactor")) and may_touch(request, user)

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:
        """The form for somebody's password; a change of it is recorded, the password is not."""
        with transaction.atomic():
            before = self.get_object(request, id)
            response: HttpResponse = super().user_change_password(request, id, form_url)
            after = User.objects.filter(pk=before.pk).first() if before is not None else None
            if before is not None and after is not None and after.password != before.password:
                self.note(request, after, "password_set", {"usable": after.has_usable_password()})
        return response


_RESET = (
    "Their authenticator app and their recovery codes open nothing any more. Do this when both are lost, and only for "
    "somebody whom you have recognised."
)


def may_touch(request: HttpRequest, user: User | None) -> bool:
    """Whether the asking user may change this one."""
    return administrators.may_touch(request.user, user)


@admin.register(Group)
class RecordedGroupAdmin(GuardedAdmin[Group], GroupAdmin):
    """Permissions that several people share."""

    memberships = ("permissions",)
