"""The admin site: Hoosh's title and order of pages, an index that shows the state of the gateway, live changes.

Loaded while applications are still being set up, so models are imported inside functions.
"""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from django.contrib.admin import AdminSite
from django.contrib.admin.apps import AdminConfig
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import NON_FIELD_ERRORS, BadRequest
from django.db import transaction
from django.db.models import Field
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse

from audit.admin_tools import ProbeOutcome, Traffic, number

log = logging.getLogger(__name__)
_ROW_OF_A_LIST = re.compile(r"form-\d+-id")

_HOUR_S = 3_600
_APPS = ("providers", "budgets", "events", "audit", "auth", "people")
_MODELS = (
    "Provider",
    "Route",
    "RoutingPolicy",
    "PrivacyPolicy",
    "DataPattern",
    "ModelCard",
    "GatewaySettings",
    "Draft",
    "ConfigVersion",
    "Playground",
    "Team",
    "Agent",
    "ApiKey",
    "ManagementApi",
    "Pool",
    "Costs",
    "Limits",
    "Usage",
    "Tail",
    "Price",
    "Anomaly",
    "PoolAlert",
    "PoolWindow",
    "LedgerEntry",
    "LedgerOrder",
    "Lease",
    "Reservation",
    "WarmQuestion",
    "Event",
    "Webhook",
    "AuditEntry",
    "OutboxEntry",
)
_COMPARISONS = frozenset(
    {"exact", "in", "isnull", "gt", "gte", "lt", "lte", "year", "iso_year", "month", "day", "date"}
)
_YEARS = frozenset({"year", "iso_year"})
_YEAR = re.compile(r"0*[1-9]\d{0,3}")


# A page without a model, as the menu wants it.
_PAGE = {"model": None, "perms": {"view": True}, "view_only": True, "add_url": None}
_COSTS = {"name": "Costs", "object_name": "Costs", **_PAGE}
_LIMITS = {"name": "Limits", "object_name": "Limits", **_PAGE}
_DRAFT = {"name": "Draft", "object_name": "Draft", **_PAGE}
_TAIL = {"name": "Live requests", "object_name": "Tail", **_PAGE}
_PLAYGROUND = {"name": "Playground", "object_name": "Playground", **_PAGE}
_API = {"name": "Management API", "object_name": "ManagementApi", **_PAGE}


def _place(name: str, order: tuple[str, ...]) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order), name)


@functools.cache
def _unlisted() -> frozenset[str]:
    """The comparisons of fields that no list of ours offers: some fail in the database, by what they compare with."""
    kinds: list[type[Field[Any, Any]]] = [Field]
    found: set[str] = set()
    for kind in kinds:
        kinds += [each for each in kind.__subclasses__() if each not in kinds]
        found |= kind.get_class_lookups().keys()
    return frozenset(found - _COMPARISONS)


def _refuse_unusable(request: HttpRequest) -> None:
    """Refuse a NUL in the address, which PostgreSQL takes nowhere, comparisons that no list offers, years that no
    calendar has, and rows of a list that are no ids."""
    if "\0" in request.path:
        raise BadRequest("The address has a NUL character.")
    for name, values in request.GET.lists():
        if "\0" in name or any("\0" in value for value in values):
            raise BadRequest("The query string has a NUL character.")
        if not _unlisted().isdisjoint(name.split("__")[1:]):
            raise BadRequest("No list can be asked that.")
    for name, values in request.GET.lists():
        years = [year for value in values for year in value.split(",")] if _YEARS & set(name.split("__")) else []
        if not all(_YEAR.fullmatch(year) for year in years):
            raise BadRequest("There is no such year.")
    rows = [str(value) for name, value in request.POST.items() if _ROW_OF_A_LIST.fullmatch(name)]
    if any(number(value) is None for value in (*rows, *request.POST.getlist(ACTION_CHECKBOX_NAME))):
        raise BadRequest("A chosen or edited row has no number.")


class _Page:
    """A page that is no model's, seen as what its views need of one."""

    def __init__(self, site: AdminSite) -> None:
        self.admin_site = site


class HooshAdminSite(AdminSite):
    """Django's admin with an overview instead of a bare list of models."""

    site_title = "Hoosh"
    site_header = "Hoosh"
    index_title = "Overview"
    site_url = None

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[Any]:
        """Applications and models in the order an operator meets them, not by alphabet."""
        from hoosh_site.limits_page import may_see
        from hoosh_site.playground import may_play

        apps: list[Any] = list(self._build_app_dict(request, app_label).values())
        apps.sort(key=lambda app: _place(app["app_label"], _APPS))
        for app in apps:
            if app["app_label"] == "providers" and request.user.has_perm("providers.view_configversion"):
                app["models"].append(_DRAFT | {"admin_url": reverse("admin:draft", current_app=self.name)})
            if app["app_label"] == "providers" and may_play(request.user):
                app["models"].append(_PLAYGROUND | {"admin_url": reverse("admin:playground", current_app=self.name)})
            if app["app_label"] == "budgets" and request.user.has_perm("budgets.view_usage"):
                app["models"].append(_COSTS | {"admin_url": reverse("admin:costs", current_app=self.name)})
                app["models"].append(_TAIL | {"admin_url": reverse("admin:tail", current_app=self.name)})
            if app["app_label"] == "budgets" and request.user.has_perm("budgets.view_apikey"):
                app["models"].append(_API | {"admin_url": reverse("management-docs")})
            if app["app_label"] == "budgets" and may_see(request.user):
                app["models"].append(_LIMITS | {"admin_url": reverse("admin:limits", current_app=self.name)})
            app["models"].sort(key=lambda model: _place(model["object_name"], _MODELS))
        return apps

    def get_urls(self) -> list[Any]:
        """The pages of models, and the page of costs, which has none."""
        from budgets.admin_reports import costs_view, period_view
        from hoosh_site.draft_page import disable_view, draft_view, revert_view
        from hoosh_site.explain_page import explain_view
        from hoosh_site.home import live_view, stream_view
        from hoosh_site.limits_page import limits_view
        from hoosh_site.playground import playground_key_view, playground_view
        from hoosh_site.tail_page import tail_rows_view, tail_stream_view, tail_view

        page = _Page(self)

        def of(view: Callable[..., Any]) -> Any:
            return self.admin_view(functools.partial(view, page))

        return [
            path("draft/", of(draft_view), name="draft"),
            path("live/", of(live_view), name="live"),
            path("live/stream/", of(stream_view), name="live_stream"),
            path("playground/", of(playground_view), name="playground"),
            path("playground/key/", of(playground_key_view), name="playground_key"),
            path("versions/<int:number>/revert/", of(revert_view), name="version_revert"),
            path("providers/<int:provider_id>/off/", of(disable_view), name="provider_off"),
            path("explain/", of(explain_view), name="explain"),
            path("limits/", of(limits_view), name="limits"),
            path("tail/", of(tail_view), name="tail"),
            path("tail/rows/", of(tail_rows_view), name="tail_rows"),
            path("tail/stream/", of(tail_stream_view), name="tail_stream"),
            path("costs/", of(costs_view), name="costs"),
            path("costs/period/", of(period_view), name="costs_period"),
            *super().get_urls(),
        ]

    def admin_view(self, view: Callable[..., Any], cacheable: bool = False) -> Any:
        """Every page behind the sign-in, with what no page can use refused before it."""

        @functools.wraps(view)
        def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            _refuse_unusable(request)
            return view(request, *args, **kwargs)

        return super().admin_view(checked, cacheable)

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """The first page: what runs, what is down, what needs attention, as far as this user may see it."""
        from hoosh_site.home import live
        from hoosh_site.overview import overview

        context = {"overview": overview(request.user), "live": live(request.user)}
        return super().index(request, context | (extra_context or {}))

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The form, which also asks for a code; 429 while too many sign-ins failed. Team leads go to their page."""
        from hoosh_site.people import oidc
        from hoosh_site.people.signing_in import LOCKED, SignInForm, leads

        self.login_form = SignInForm
        user: Any = request.user
        if request.method == "GET" and user.is_authenticated and not self.has_permission(request) and leads(user):
            return HttpResponseRedirect(reverse("people:team"))
        context = {"provider_name": oidc.name() if oidc.is_on() else "", **(extra_context or {})}
        response = super().login(request, context)
        form: Any = (getattr(response, "context_data", None) or {}).get("form")
        if form is not None and form.is_bound and form.has_error(NON_FIELD_ERRORS, LOCKED):
            response.status_code = 429
        return response

    def password_change(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """The form for one's own password; a change of it is recorded."""
        from hoosh_site.people import noting

        user: Any = request.user
        before = user.password
        with transaction.atomic():
            response = super().password_change(request, extra_context)
            if response.status_code == 302 and user.password != before:  # a refused form may renew the old one's hash
                noting.note(user, "password_set", actor=user.get_username())
        return response

    def wake(self) -> None:
        """Tell the control plane that something was committed. Without one (a bare web server, tests) do nothing."""
        from gateway import plane
        from hoosh_site import attention

        attention.forget()
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

    def next_steps(self, user: Any) -> list[tuple[str, str]]:
        """What this user may do once a model has its route: (text, address)."""
        from hoosh_site.playground import may_play

        found = []
        if user.has_perm("budgets.add_apikey"):
            found.append(("Create an API key for the app that asks", reverse("admin:budgets_apikey_add")))
        if may_play(user):
            found.append(("Ask a model in the playground", reverse("admin:playground")))
        if user.has_perm("providers.view_route"):
            found.append(("See where a request would go", reverse("admin:explain")))
        return found

    def example_model(self) -> str:
        """A model to ask for in an example: one that has a route of its own."""
        from hoosh_site.first_run import example_model

        return example_model()

    def provider_names(self) -> dict[int, str]:
        """The providers there are, by id: usage rows carry ids only."""
        from providers.models import Provider

        return dict(Provider.objects.values_list("id", "name"))

    def request_proofs(self, request_id: str) -> list[dict[str, Any]] | None:
        """One proof file for each attempt of a request; None when the text is no request's id."""
        from audit.proving import UnknownError
        from gateway import request_proofs

        rid = request_proofs.request_id(request_id)
        if rid is None:
            return None
        rows = request_proofs.usage_of(rid)
        if not rows:
            raise UnknownError("No request has this id. Usage is booked within a second.")
        return request_proofs.proofs(rows)

    def entry_of_request(self, request_id: str) -> int | None:
        """The entry of the log a request is in; None when it is not in the log (yet), or the text is no id."""
        from gateway import request_proofs

        rid = request_proofs.request_id(request_id)
        return None if rid is None else request_proofs.find(rid)

    def route_names(self, ids: Collection[int] | None = None) -> dict[int, str]:
        """What those of these routes that exist are called, by id; without any, of all there are."""
        from providers.models import Route

        routes = Route.objects.all() if ids is None else Route.objects.filter(pk__in=ids)
        return dict(routes.values_list("id", "name"))

    def route_traffic(self, route_ids: Collection[int]) -> Mapping[int, Traffic]:
        """What went over these routes since the start of the hour before this one; those without are missing."""
        from django.db.models import Sum

        from budgets.models import UsageRollup
        from budgets.models.fields import HIGH_PICO, usd

        since = (int(time.time()) // _HOUR_S - 1) * _HOUR_S
        rows = UsageRollup.objects.filter(start__gte=since, seconds=_HOUR_S, route_id__in=route_ids)
        summed = ("requests", "attempts", "errors", "cost_milli_usd", "cost_rest_pico")
        found = rows.order_by().values_list("route_id").annotate(*(Sum(name) for name in summed))
        return {
            route: Traffic(requests, attempts, errors, usd(milli * HIGH_PICO + rest))
            for route, requests, attempts, errors, milli, rest in found
        }


class HooshAdminConfig(AdminConfig):
    """Puts `HooshAdminSite` behind `django.contrib.admin.site` and records sign-ins."""

    default_site = "hoosh_site.admin_site.HooshAdminSite"

    def ready(self) -> None:
        """Register every application's pages, then listen to sign-ins."""
        super().ready()
        from hoosh_site import signals

        signals.connect()
