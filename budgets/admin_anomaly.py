"""The page of anomalies: what was seen, what was expected, and that somebody has seen it."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin import ShowFacets
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.http import require_POST

from audit.admin_tools import ReadOnlyAdmin, badge, live_site, operator
from budgets import anomalies, anomaly_watch
from budgets.admin_cells import figure, moment
from budgets.models import Anomaly

MAY_ACKNOWLEDGE = "budgets.change_anomaly"


@admin.register(Anomaly)
class AnomalyAdmin(ReadOnlyAdmin[Anomaly]):
    """What agents did unlike themselves."""

    list_display = ("when", "state_and_hold", "agent", "what", "seen", "usual")
    list_display_links = ("when",)
    list_filter = ("state", "kind")
    list_select_related = ("agent__team",)
    search_fields = ("agent__name", "agent__team__name")
    list_per_page = 50
    show_facets = ShowFacets.NEVER
    actions = ("acknowledge",)  # type: ignore[assignment]  # the one thing that can be said about a row
    change_form_template = "admin/budgets/anomaly/change_form.html"
    fields = (
        "agent",
        "when",
        "what",
        "seen",
        "usual",
        "times",
        "held",
        "state_badge",
        "acknowledged_by",
        "acknowledged_at",
    )

    def get_urls(self) -> list[URLPattern]:
        """The button of the page of one."""
        view = self.admin_site.admin_view(self.acknowledge_view)
        return [path("<int:anomaly_id>/acknowledge/", view, name="budgets_anomaly_acknowledge"), *super().get_urls()]

    def has_acknowledge_permission(self, request: HttpRequest) -> bool:
        """Who may say that they have seen one; an agent that is held back for it then goes on."""
        return request.user.has_perm(MAY_ACKNOWLEDGE)

    @admin.display(description="seen at (UTC)", ordering="id")
    def when(self, anomaly: Anomaly) -> SafeString:
        """When it was raised."""
        return moment(anomaly.at)

    @admin.display(description="kind")
    def what(self, anomaly: Anomaly) -> SafeString:
        """Spending or a loop, the latter with its prompt's digest."""
        if anomaly.kind == Anomaly.Kind.LOOP:
            return format_html(
                'loop <span class="hoosh-mono quiet" title="digest of the prompt">{}</span>', anomaly.prompt
            )
        return format_html("{}", "spending")

    @admin.display(description="seen")
    def seen(self, anomaly: Anomaly) -> SafeString:
        """What was unusual, per five minutes or per minute."""
        return _amount(anomaly, anomaly.observed)

    @admin.display(description="usual")
    def usual(self, anomaly: Anomaly) -> SafeString:
        """The mean of the agent's history and the bound above it; the limit of a loop."""
        if anomaly.kind == Anomaly.Kind.LOOP:
            return format_html("at most {}", _amount(anomaly, anomaly.expected))
        limit = anomaly.expected + anomalies.SIGMAS * anomaly.sigma
        return format_html(
            "{} <span class='quiet'>(bound {})</span>", _amount(anomaly, anomaly.expected), _amount(anomaly, limit)
        )

    @admin.display(description="sigmas above")
    def times(self, anomaly: Anomaly) -> str:
        """How many sigmas above the mean; nothing for a loop."""
        return f"{(anomaly.observed - anomaly.expected) / anomaly.sigma:.1f}" if anomaly.sigma else "-"

    @admin.display(description="held back")
    def held(self, anomaly: Anomaly) -> SafeString | str:
        """Whether the agent was held back, and whether it still is."""
        if not anomaly.throttled:
            return "-"
        until = anomaly.at + dt.timedelta(seconds=anomaly_watch.HELD_BACK_S)
        is_now = anomaly.state == Anomaly.State.OPEN and anomaly.agent.throttled_until is not None
        return badge(f"until {until:%H:%M}", "warn") if is_now else badge("was")

    @admin.display(description="state", ordering="state")
    def state_badge(self, anomaly: Anomaly) -> SafeString:
        """Open or acknowledged."""
        return badge("open", "bad") if anomaly.state == Anomaly.State.OPEN else badge("acknowledged", "good")

    @admin.display(description="state", ordering="state")
    def state_and_hold(self, anomaly: Anomaly) -> SafeString:
        """Open or acknowledged, and whether the agent is or was held back."""
        hold = self.held(anomaly) if anomaly.throttled else ""
        return format_html("{} {}{}", self.state_badge(anomaly), "held back " if hold else "", hold)

    @admin.action(description="Acknowledge", permissions=("acknowledge",))
    def acknowledge(self, request: HttpRequest, queryset: QuerySet[Anomaly]) -> None:
        """Say that the chosen ones were seen."""
        rows = list(queryset.filter(state=Anomaly.State.OPEN).select_related("agent")[:1000])
        for anomaly in rows:
            anomaly_watch.acknowledge(anomaly, actor=operator(request))
        live_site(self).wake()
        self.message_user(request, f"{len(rows)} acknowledged.", messages.SUCCESS)

    @method_decorator(require_POST)
    def acknowledge_view(self, request: HttpRequest, anomaly_id: int) -> HttpResponse:
        """Say that one was seen."""
        if not self.has_acknowledge_permission(request):
            raise PermissionDenied
        anomaly = Anomaly.objects.select_related("agent").filter(pk=anomaly_id).first()
        if anomaly is None:
            raise Http404("No such anomaly.")
        anomaly_watch.acknowledge(anomaly, actor=operator(request))
        live_site(self).wake()
        self.message_user(request, "Acknowledged.", messages.SUCCESS)
        is_from_first = request.POST.get("back") == "index"
        return HttpResponseRedirect(reverse("admin:index" if is_from_first else "admin:budgets_anomaly_changelist"))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The figures, how they were made, and the button."""
        context = {
            "may_acknowledge": self.has_acknowledge_permission(request),
            "sigmas": f"{anomalies.SIGMAS:g}",
            "alpha": f"{anomalies.ALPHA:g}",
            "least": anomalies.LEAST,
            "floor": f"{anomalies.FLOOR_SHARE:.0%}",
            "title": "Anomaly",
        }
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})


def _amount(anomaly: Anomaly, value: float) -> SafeString:
    if anomaly.unit == "usd":
        return figure(f"${value:,.4f}", f"${value:,.12f}")
    return figure(f"{value:,.0f} {anomaly.unit}")
