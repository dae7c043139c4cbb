"""Admin pages of the configuration. Pages read and show; writing and publishing is `providers.services`.

The larger pages have modules of their own, loaded here so that Django finds them.
"""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from audit.admin_tools import EDITABLE_ROWS
from providers import services
from providers.admin_base import PublishingAdmin
from providers.admin_card import ModelCardAdmin
from providers.admin_privacy import DataPatternAdmin, PrivacyPolicyAdmin
from providers.admin_provider import ProviderAdmin
from providers.admin_route import RouteAdmin
from providers.admin_version import ConfigVersionAdmin
from providers.forms import GatewaySettingsForm
from providers.models import GatewaySettings, RoutingPolicy

__all__ = [
    "ConfigVersionAdmin",
    "DataPatternAdmin",
    "GatewaySettingsAdmin",
    "ModelCardAdmin",
    "PrivacyPolicyAdmin",
    "ProviderAdmin",
    "RouteAdmin",
    "RoutingPolicyAdmin",
]


@admin.register(RoutingPolicy)
class RoutingPolicyAdmin(PublishingAdmin):
    """How candidates are ordered, by model; the first match wins."""

    list_display = ("name", "pattern", "strategy", "fallbacks", "position", "enabled")
    list_editable = ("position", "enabled")
    list_per_page = EDITABLE_ROWS
    ordering = ("position", "id")
    fields = ("name", "pattern", "strategy", "fallbacks", "tags", "position", "enabled")

    def write(self, row: RoutingPolicy, actor: str) -> None:
        """Create or change a policy."""
        services.save_policy(row, actor=actor)

    def erase(self, row: RoutingPolicy, actor: str) -> None:
        """Delete a policy."""
        services.delete_policy(row, actor=actor)


@admin.register(GatewaySettings)
class GatewaySettingsAdmin(PublishingAdmin):
    """The one settings row."""

    form = GatewaySettingsForm
    fieldsets = (
        ("Publishing", {"fields": ("drafts", "review")}),
        (
            "Routing",
            {
                "fields": (
                    "strategy",
                    "max_attempts",
                    "retry_percent",
                    ("breaker_failures", "breaker_open_s"),
                    "probe_interval_s",
                )
            },
        ),
        (
            "Requests",
            {
                "fields": (
                    ("body_limit_bytes", "body_timeout_s"),
                    ("default_output_cap", "hold_wait_s"),
                    ("queue_wait_s", "queue_size"),
                    "unsupported_params",
                    "cors_origins",
                )
            },
        ),
        ("Privacy", {"fields": ("privacy_policy",)}),
        ("Money", {"fields": ("unknown_price",)}),
        ("Answers kept", {"fields": ("cache_mb", "embedding_model")}),
        ("Audit", {"fields": ("audit_header",)}),
        (
            "Upstream times (seconds)",
            {
                "fields": (
                    ("connect_timeout_s", "first_byte_timeout_s"),
                    ("gap_timeout_s", "total_timeout_s"),
                    "ping_interval_s",
                )
            },
        ),
    )

    def get_readonly_fields(self, request: HttpRequest, obj: GatewaySettings | None = None) -> tuple[str, ...]:
        """What may leave the house is decided by who may change privacy policies."""
        return () if request.user.has_perm("providers.change_privacypolicy") else ("privacy_policy",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """There is exactly one row."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: GatewaySettings | None = None) -> bool:
        """There is always one row."""
        return False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Straight to the form."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        row = services.gateway_settings()
        return HttpResponseRedirect(reverse("admin:providers_gatewaysettings_change", args=(row.pk,)))

    def write(self, row: GatewaySettings, actor: str) -> None:
        """Change the settings."""
        services.save_settings(row, actor=actor)
