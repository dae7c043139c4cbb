"""The route pages: an ordered list with editable priorities, clones, and what a pattern means at present."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.views.decorators.http import require_POST

from audit.admin_tools import EDITABLE_ROWS, operator
from providers import services
from providers.admin_base import PublishingAdmin, free_route_name
from providers.exporting import LIMIT_FIELDS
from providers.forms import RouteForm
from providers.globs import matcher
from providers.models import ProviderProbe, Route, RoutingPolicy

_MODELS_SHOWN = 8


class RouteChangeList(ChangeList):
    """The list of routes, each with the policy that orders its candidates."""

    def get_results(self, request: HttpRequest) -> None:
        """Read the page, then name the policies: one further query."""
        super().get_results(request)
        find = policy_finder()
        for route in self.result_list:  # stays a query set: the editable columns need one
            route.policy = find(route.pattern)


def policy_finder() -> Callable[[str], RoutingPolicy | None]:
    """A function from a route's pattern to the first enabled policy that covers it."""
    policies = [
        (matcher(row.pattern), row) for row in RoutingPolicy.objects.filter(enabled=True).order_by("position", "id")
    ]
    return lambda pattern: next((row for matches, row in policies if matches(pattern)), None)


@admin.register(Route)
class RouteAdmin(PublishingAdmin):
    """Which models go to which provider, in which order."""

    form = RouteForm
    list_display = ("name", "pattern", "provider", "upstream_model", "policy_name", "priority", "enabled")
    list_editable = ("priority", "enabled")
    list_per_page = EDITABLE_ROWS
    list_filter = ("enabled", "provider")
    list_select_related = ("provider",)
    search_fields = ("name", "pattern", "upstream_model", "tags")
    ordering = ("priority", "name")
    actions = ("clone",)
    change_form_template = "admin/providers/route/change_form.html"
    fieldsets = (
        (
            None,
            {"fields": ("name", "pattern", "provider", "upstream_model", ("priority", "weight"), "sticky", "enabled")},
        ),
        (
            "Limits and times",
            {
                "classes": ("collapse",),
                "fields": (
                    ("connect_timeout_s", "first_byte_timeout_s"),
                    ("gap_timeout_s", "total_timeout_s"),
                    "output_cap",
                    ("on_disconnect", "disconnect_cap"),
                    "duplicates_allowed",
                    LIMIT_FIELDS,
                ),
            },
        ),
        ("Answers kept", {"classes": ("collapse",), "fields": ("cache_s", "semantic_threshold")}),
        ("Long prompts", {"classes": ("collapse",), "fields": ("compact_percent", "compress")}),
        ("Labels", {"classes": ("collapse",), "fields": ("tags", "capabilities")}),
    )

    def get_urls(self) -> list[URLPattern]:
        """The clone button."""
        view = self.admin_site.admin_view(self.clone_view)
        return [path("<int:route_id>/clone/", view, name="providers_route_clone"), *super().get_urls()]

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list that knows policies."""
        return RouteChangeList

    @admin.display(description="policy")
    def policy_name(self, route: Any) -> str:
        """The policy that orders the candidates of this route's models."""
        policy = getattr(route, "policy", None)  # a row shown again with its errors has none
        return str(policy) if policy else "default"

    def write(self, row: Route, actor: str) -> None:
        """Create or change a route."""
        services.save_route(row, actor=actor)

    def erase(self, row: Route, actor: str) -> None:
        """Delete a route."""
        services.delete_route(row, actor=actor)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The form, with what the route means at present."""
        context: dict[str, Any] = {}
        route = self.get_object(request, object_id)
        if route is not None:
            probe = ProviderProbe.objects.filter(provider_id=route.provider_id).first()
            matching = list(filter(matcher(route.pattern), sorted(probe.models))) if probe else []
            context = {
                "policy": policy_finder()(route.pattern),
                "default_strategy": services.gateway_settings().get_strategy_display(),
                "matching_models": matching[:_MODELS_SHOWN],
                "more_models": max(0, len(matching) - _MODELS_SHOWN),
            }
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    @admin.action(description="Clone (disabled)", permissions=("add",))
    def clone(self, request: HttpRequest, queryset: QuerySet[Route]) -> None:
        """Copy the chosen routes under new names, disabled until looked at."""
        count = self.each(request, queryset, _clone)
        self.message_user(request, f"{count} route(s) cloned; the copies are disabled.", messages.SUCCESS)

    @method_decorator(require_POST)
    def clone_view(self, request: HttpRequest, route_id: int) -> HttpResponse:
        """Copy one route and open the copy."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        route = Route.objects.filter(pk=route_id).first()
        if route is None:
            raise Http404("No such route.")
        copy = _clone(route, operator(request))
        self.committed(request)
        self.message_user(
            request, f"“{copy}” was created as a copy. It is disabled until you enable it.", messages.SUCCESS
        )
        return HttpResponseRedirect(reverse("admin:providers_route_change", args=(copy.pk,)))


def _clone(route: Route, actor: str) -> Route:
    copy = Route.objects.get(pk=route.pk)
    copy.pk = None
    copy._state.adding = True
    copy.name = free_route_name(f"{route.name} copy")
    copy.enabled = False
    copy.managed_by = ""
    return services.save_route(copy, actor=actor)
