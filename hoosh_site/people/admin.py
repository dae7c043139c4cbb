"""Admin pages of team leads, second factors, failed sign-ins and external identities."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.safestring import SafeString

from audit.admin_tools import badge, operator
from hoosh_site.admin import RecordedAdmin
from hoosh_site.people import factors, lockout
from hoosh_site.people.models import ExternalIdentity, SecondFactor, SignInFailure, TeamLead


class _Unwritten(RecordedAdmin[Any]):
    """Rows that come about by themselves: seen and deleted here, never typed."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """They come about elsewhere."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nor are they changed."""
        return False


@admin.register(TeamLead)
class TeamLeadAdmin(RecordedAdmin[TeamLead]):
    """Who looks after which team on the team page."""

    list_display = ("team", "user")
    list_display_links = ("team", "user")
    list_select_related = ("team", "user")
    search_fields = ("team__name", "user__username")
    autocomplete_fields = ("team", "user")


@admin.register(SecondFactor)
class SecondFactorAdmin(_Unwritten):
    """Who has a second factor. Deleting one resets it, as the button on the user's page does."""

    list_display = ("user", "confirmed_at", "created_at")
    list_select_related = ("user",)
    search_fields = ("user__username",)
    fields = ("user", "confirmed_at", "created_at")
    readonly_fields = fields

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """The secret is not searched piece by piece, sealed as it is."""
        return "secret" not in lookup and super().lookup_allowed(lookup, value, request)  # type: ignore[arg-type]

    def delete_model(self, request: HttpRequest, obj: SecondFactor) -> None:
        """As the button does it."""
        factors.remove(obj, actor=operator(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[SecondFactor]) -> None:
        """The chosen ones; those of administrators are administrators' to reset."""
        with transaction.atomic():
            for row in queryset.select_related("user"):
                if not self.has_delete_permission(request, row):
                    raise PermissionDenied
                self.delete_model(request, row)

    def has_delete_permission(self, request: HttpRequest, obj: SecondFactor | None = None) -> bool:
        """Whoever has the permission; those of administrators are administrators' to reset."""
        from hoosh_site.admin import may_touch

        return super().has_delete_permission(request, obj) and may_touch(request, obj.user if obj else None)


@admin.register(SignInFailure)
class SignInFailureAdmin(_Unwritten):
    """Failed sign-ins of late. Deleting rows unlocks."""

    list_display = ("__str__", "attempts", "since", "state")
    search_fields = ("name", "address")
    fields = ("name", "address", "attempts", "since", "locked_until")
    readonly_fields = fields

    def delete_model(self, request: HttpRequest, obj: SignInFailure) -> None:
        """Unlock, with an entry that the person's erasure reaches."""
        lockout.forget(obj, actor=operator(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[SignInFailure]) -> None:
        """Unlock the chosen ones."""
        with transaction.atomic():
            for row in queryset:
                self.delete_model(request, row)

    @admin.display(description="state")
    def state(self, row: SignInFailure) -> SafeString:
        """Locked, or only counted."""
        if row.locked_until is not None and row.locked_until > timezone.now():
            return badge(f"locked until {row.locked_until:%H:%M:%S} UTC", "bad")
        return badge("counted")


@admin.register(ExternalIdentity)
class ExternalIdentityAdmin(_Unwritten):
    """Whom the identity provider knows. Deleting one: the next sign-in makes a new account."""

    list_display = ("user", "issuer", "subject", "created_at")
    list_select_related = ("user",)
    search_fields = ("user__username", "=subject")
    fields = ("user", "issuer", "subject", "created_at")
    readonly_fields = fields
