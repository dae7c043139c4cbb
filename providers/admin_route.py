"""The route pages: a list ordered by arrows, dragging or priorities, clones, and what a pattern means at present."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse, QueryDict
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.http import require_POST

from audit.admin_tools import EDITABLE_ROWS, Traffic, badge, live_site, number, operator
from providers import known_models, ordering, services
from providers.admin_base import PublishingAdmin, free_route_name, probe_badge
from providers.exporting import LIMIT_FIELDS
from providers.forms import RouteForm
from providers.globs import matcher
from providers.models import ProviderProbe, Route, RoutingPolicy

_MODELS_SHOWN = 8
_BAD_PERCENT = 10


class RouteChangeList(ChangeList):
    """The list of routes, each with the policy that orders its candidates, its neighbours and its traffic."""

    def get_results(self, request: HttpRequest) -> None:
        """Read the page, then name the policies and the traffic: two further queries."""
        super().get_results(request)
        find = policy_finder()
        rows: Any = list(self.result_list)  # stays a query set: the editable columns need one
        traffic = self._traffic(request, [route.pk for route in rows])
        movable = self.is_movable(request)
        for place, route in enumerate(rows):
            route.policy = find(route.pattern)
            route.traffic = traffic.get(route.pk)
            if movable:
                route.above = rows[place - 1].pk if place else None
                route.below = rows[place + 1].pk if place + 1 < len(rows) else None

    def is_movable(self, request: HttpRequest) -> bool:
        """Whether the page shows the order that moving changes, to somebody who may."""
        return "o" not in self.params and bool(self.model_admin.has_change_permission(request))

    def _traffic(self, request: HttpRequest, ids: list[int]) -> dict[int, Traffic]:
        if not request.user.has_perm("budgets.view_usage"):
            return {}
        return dict(live_site(self.model_admin).route_traffic(ids))


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
    list_display = ("move", "name", "models", "upstream", "policy_name", "traffic", "priority", "enabled")
    list_display_links = ("name",)
    list_editable = ("priority", "enabled")
    list_per_page = EDITABLE_ROWS
    list_filter = ("enabled", "provider")
    list_select_related = ("provider__probe",)
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
        (
            "Answers kept",
            {"classes": ("collapse",), "fields": ("cache_s", "cache_price_percent", "semantic_threshold")},
        ),
        ("Long prompts", {"classes": ("collapse",), "fields": ("compact_percent", "compress")}),
        ("Labels", {"classes": ("collapse",), "fields": ("tags", "capabilities")}),
    )

    def get_urls(self) -> list[URLPattern]:
        """The clone button, the arrows, and what a pattern means."""
        wrap = self.admin_site.admin_view
        return [
            path("<int:route_id>/clone/", wrap(self.clone_view), name="providers_route_clone"),
            path("move/", wrap(self.move_view), name="providers_route_move"),
            path("matches/", wrap(self.matches_view), name="providers_route_matches"),
            *super().get_urls(),
        ]

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list that knows policies."""
        return RouteChangeList

    @admin.display(description="order")
    def move(self, route: Any) -> SafeString | str:
        """A handle to drag the row by, and arrows that work without a script."""
        if not hasattr(route, "above"):
            return ""
        return format_html(
            '<span class="hoosh-move" data-route="{}"><span class="hoosh-handle" hidden></span>{}{}</span>',
            route.pk,
            _arrow(route, "up", "before", route.above),
            _arrow(route, "down", "after", route.below),
        )

    @admin.display(description="models", ordering="pattern")
    def models(self, route: Route) -> SafeString:
        """The pattern, and the name that is asked for instead."""
        if not route.upstream_model:
            return format_html('<code class="hoosh-pattern">{}</code>', route.pattern)
        text = '<code class="hoosh-pattern">{}</code><span class="quiet hoosh-under">as <code>{}</code></span>'
        return format_html(text, route.pattern, route.upstream_model)

    @admin.display(description="provider", ordering="provider__name")
    def upstream(self, route: Route) -> SafeString:
        """Who answers, and how it is."""
        provider = route.provider
        state = probe_badge(getattr(provider, "probe", None)) if provider.enabled else badge("disabled", "warn")
        return format_html('{} <span class="hoosh-under">{}</span>', provider.name, state)

    @admin.display(description="last hour")
    def traffic(self, route: Any) -> SafeString:
        """Requests, failures and cost since the start of the hour before this one."""
        found: Traffic | None = getattr(route, "traffic", None)
        if found is None or not found.attempts:
            return format_html('<span class="quiet">{}</span>', "none")
        share = 100 * found.errors / found.attempts
        failed = badge(f"{share:.1f} % failed", "bad" if share >= _BAD_PERCENT else "warn") if found.errors else ""
        return format_html(
            '<span class="hoosh-number">{} requests</span><span class="hoosh-under">{} {}</span>',
            f"{found.requests:,}",
            f"${found.cost_usd:,.4f}",
            failed,
        )

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

    @method_decorator(require_POST)
    def move_view(self, request: HttpRequest) -> HttpResponse:
        """Put one route before or behind another; `move` is "ID:before:ID" or "ID:after:ID"."""
        if not self.has_change_permission(request):
            raise PermissionDenied
        moved, _, rest = request.POST.get("move", "").partition(":")
        side, _, neighbour = rest.partition(":")
        rows = list(Route.objects.select_related("provider").order_by("priority", "name"))
        by_id = {route.pk: route for route in rows}
        route, other = by_id.get(number(moved) or 0), by_id.get(number(neighbour) or 0)
        query = QueryDict(request.POST.get("back", "")[:2000]).urlencode()
        url = reverse("admin:providers_route_changelist") + (f"?{query}" if query else "")
        if route is None or other is None or side not in ("before", "after") or route is other:
            self.message_user(request, "This route cannot go there: the list has changed. Look again.", messages.ERROR)
            return HttpResponseRedirect(url)
        place = [row.pk for row in rows if row is not route].index(other.pk) + (side == "after")
        changed = ordering.renumbered([(row.pk, row.priority) for row in rows], route.pk, place)
        try:
            self._renumber(request, [by_id[pk] for pk in changed], changed)
        except ValidationError as exc:
            self.message_user(request, " ".join(exc.messages), messages.ERROR)
            return HttpResponseRedirect(url)
        others = f" The priority of {len(changed) - 1} other route(s) changed with it." if len(changed) > 1 else ""
        if changed:
            text = f"“{route}” is now {side} “{other}”, with priority {route.priority}.{others}"
            self.message_user(request, text, messages.SUCCESS)
        # The button that was pressed, or would have been: browsers put the focus on it.
        return HttpResponseRedirect(f"{url}#{'up' if side == 'before' else 'down'}-{route.pk}")

    def _renumber(self, request: HttpRequest, rows: list[Route], priorities: dict[int, int]) -> None:
        def work(route: Route, actor: str) -> None:
            route.priority = priorities[route.pk]
            services.save_route(route, actor=actor)

        if rows:
            self.each(request, rows, work)
            for route in rows:
                self.log_change(request, route, [{"changed": {"fields": ["priority"]}}])

    def matches_view(self, request: HttpRequest) -> HttpResponse:
        """What a pattern means: JSON for the form's script, a page for its button."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method != "POST":
            return JsonResponse(known_models.told(request.GET.get("pattern", "")))
        context = {
            **self.admin_site.each_context(request),
            "title": "Which models does this pattern mean?",
            "opts": self.opts,
            "told": known_models.told(request.POST.get("pattern", "")),
        }
        return TemplateResponse(request, "admin/providers/route/matches.html", context)


def _arrow(route: Any, words: str, side: str, neighbour: int | None) -> SafeString:
    text = (
        '<button type="submit" form="hoosh-move" name="move" id="{}-{}" value="{}:{}:{}" class="hoosh-arrow {}" '
        'aria-label="Move {} {}" title="Move {}"{}></button>'
    )
    off = SafeString("" if neighbour else " disabled")
    return format_html(text, words, route.pk, route.pk, side, neighbour or 0, words, route.name, words, words, off)


def _clone(route: Route, actor: str) -> Route:
    copy = Route.objects.get(pk=route.pk)
    copy.pk = None
    copy._state.adding = True
    copy.name = free_route_name(f"{route.name} copy")
    copy.enabled = False
    copy.managed_by = ""
    return services.save_route(copy, actor=actor)
