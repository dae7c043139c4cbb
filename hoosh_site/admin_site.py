"""The admin site: Hoosh's title and order of pages, an index that shows the state of the gateway, live changes.

Loaded while applications are still being set up, so models are imported inside functions.
"""

from __future__ import annotations

import logging
from typing import Any

from django.contrib.admin import AdminSite
from django.contrib.admin.apps import AdminConfig
from django.http import HttpRequest
from django.template.response import TemplateResponse

from audit.admin_tools import ProbeOutcome

log = logging.getLogger(__name__)

_APPS = ("providers", "budgets", "audit", "auth")
_MODELS = (
    "Provider",
    "Route",
    "RoutingPolicy",
    "ModelCard",
    "GatewaySettings",
    "ConfigVersion",
    "Team",
    "Agent",
    "ApiKey",
    "Pool",
    "Price",
    "Usage",
)


def _place(name: str, order: tuple[str, ...]) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order), name)


class HooshAdminSite(AdminSite):
    """Django's admin with an overview instead of a bare list of models."""

    site_title = "Hoosh"
    site_header = "Hoosh"
    index_title = "Overview"
    site_url = None

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[Any]:
        """Applications and models in the order an operator meets them, not by alphabet."""
        apps: list[Any] = list(self._build_app_dict(request, app_label).values())
        apps.sort(key=lambda app: _place(app["app_label"], _APPS))
        for app in apps:
            app["models"].sort(key=lambda model: _place(model["object_name"], _MODELS))
        return apps

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """The first page: what runs, what is down, what needs attention."""
        from hoosh_site.overview import overview

        shown = overview() if request.user.is_superuser or request.user.has_perm("providers.view_provider") else None
        return super().index(request, {"overview": shown, **(extra_context or {})})

    def wake(self) -> None:
        """Tell the control plane that something was committed. Without one (a bare web server, tests) do nothing."""
        from gateway import plane

        if plane.current is None:
            return
        try:
            plane.current.wake()
        except Exception:
            # The change is committed and the plane looks by itself every 250 ms: the page must not fail for this.
            log.exception("plane.wake_failed")

    def probe(self, provider_id: int) -> ProbeOutcome:
        """Connect to a provider now and report what was found."""
        from gateway.probes import probe_provider

        return probe_provider(provider_id)

    def provider_names(self) -> dict[int, str]:
        """The providers there are, by id: usage rows carry ids only."""
        from providers.models import Provider

        return dict(Provider.objects.values_list("id", "name"))


class HooshAdminConfig(AdminConfig):
    """Puts `HooshAdminSite` behind `django.contrib.admin.site` and records sign-ins."""

    default_site = "hoosh_site.admin_site.HooshAdminSite"

    def ready(self) -> None:
        """Register every application's pages, then listen to sign-ins."""
        super().ready()
        from hoosh_site import signals

        signals.connect()
