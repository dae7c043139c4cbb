"""The provider pages: the provider with its credentials, the connection test, routes from what was found."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.http import require_POST

from audit.admin_tools import badge, live_site, number, operator
from audit.generics import TableInline
from providers import admin_tls, drafts, publish, services, validation
from providers.admin_base import PublishingAdmin, free_route_name, probe_badge
from providers.exporting import LIMIT_FIELDS
from providers.forms import CredentialForm, ProviderForm
from providers.globs import matcher
from providers.models import ClientCertificate, Credential, Provider, ProviderProbe, Route

_FOUND_LIMIT = 2_000
CATCH_ALL_PRIORITY = 100


class CredentialInline(TableInline[Credential, Provider]):
    """Secrets of a provider: typed, never shown."""

    model = Credential
    form = CredentialForm
    fields = ("name", "secret", "stored", "used", "enabled")
    readonly_fields = ("stored", "used")
    verbose_name = "credential"

    def get_extra(self, request: HttpRequest, obj: Provider | None = None, **kwargs: Any) -> int:
        """One empty line where there is no secret yet; left blank it is ignored."""
        return 0 if obj is not None and obj.credentials.exists() else 1

    @admin.display(description="stored")
    def stored(self, credential: Credential) -> SafeString:
        """The last characters of what is stored, and whether it may be sent to the present address."""
        if not credential.pk or not credential.ciphertext:
            return badge("none")
        state = badge("in use", "good") if credential.is_usable else badge("type it again", "warn")
        since = f"since {credential.rotated_at:%Y-%m-%d}" if credential.rotated_at else ""
        return format_html('<span class="hoosh-mono">…{}</span> {} {}', credential.last4, state, since)

    @admin.display(description="last used (UTC)")
    def used(self, credential: Credential) -> str:
        """When the last call was sent with it, to the minute."""
        return f"{credential.used_at:%Y-%m-%d %H:%M}" if credential.used_at else "never"


@admin.register(Provider)
class ProviderAdmin(PublishingAdmin):
    """Who answers: upstream servers with their credentials, a connection test and what it found."""

    form = ProviderForm
    inlines = (CredentialInline,)
    list_display = ("name", "health", "enabled_badge", "kind", "base_url", "address_class", "model_count")
    list_filter = ("enabled", "kind")
    list_select_related = ("probe", "client_certificate")
    search_fields = ("name", "base_url")
    actions = ("disable_now", "enable")
    change_form_template = "admin/providers/provider/change_form.html"
    readonly_fields = ("address_class", "health", "certificates", "managed_by")
    fieldsets = (
        (None, {"fields": ("kind", "name", "base_url", "enabled")}),
        ("Connection", {"fields": ("address_class", "health", "certificates")}),
        (
            "Limits",
            {
                "fields": (LIMIT_FIELDS,),
                "description": "Over all its routes and workers. At a limit, requests go on to the next candidate.",
            },
        ),
        ("TLS", {"classes": ("collapse",), "fields": ("ca_pem", "pins", "client_chain", "client_key")}),
        ("More", {"classes": ("collapse",), "fields": ("note", "managed_by")}),
    )

    def get_fieldsets(self, request: HttpRequest, obj: Provider | None = None) -> Any:
        """What was seen exists only once the provider is saved."""
        if obj:
            return self.fieldsets
        return (
            self.fieldsets[0],
            self.fieldsets[2],
            self.fieldsets[3],
            ("More", {"classes": ("collapse",), "fields": ("note",)}),
        )

    def get_urls(self) -> list[URLPattern]:
        """The connection test and one-click routes."""
        wrap = self.admin_site.admin_view
        return [
            path("<int:provider_id>/test/", wrap(self.test_view), name="providers_provider_test"),
            path("<int:provider_id>/found/", wrap(self.found_view), name="providers_provider_found"),
            path("<int:provider_id>/route/", wrap(self.route_view), name="providers_provider_route"),
            path("<int:provider_id>/pin/", wrap(self.pin_view), name="providers_provider_pin"),
            path("<int:provider_id>/observe/", wrap(self.observe_view), name="providers_provider_observe"),
            *super().get_urls(),
        ]

    @admin.display(description="health", ordering="probe__ok")
    def health(self, provider: Provider) -> SafeString:
        """What the last look at the provider found."""
        probe: ProviderProbe | None = getattr(provider, "probe", None)
        if probe is None or not probe.ok or probe.checked_at is None:
            return format_html("{} {}", probe_badge(probe), probe.detail if probe else "")
        latency = f"{probe.latency_ms:.0f} ms" if probe.latency_ms is not None else ""
        certificates = admin_tls.all_of(provider)
        ends = badge("a certificate ends soon", "warn") if any(each.ends_soon for each in certificates) else ""
        if any(each.has_ended for each in certificates):
            ends = badge("a certificate has ended", "bad")
        return format_html("{} {} {}", probe_badge(probe), latency, ends)

    @admin.display(description="certificates")
    def certificates(self, provider: Provider) -> SafeString:
        """Whose they are and when they end."""
        return admin_tls.table(provider)

    @admin.display(description="models")
    def model_count(self, provider: Provider) -> SafeString | str:
        """How many models were found, as a link to them."""
        probe: ProviderProbe | None = getattr(provider, "probe", None)
        url = reverse("admin:providers_provider_found", args=(provider.pk,))
        return format_html('<a href="{}">{}</a>', url, len(probe.models) if probe else "-")

    @admin.display(description="state", ordering="enabled")
    def enabled_badge(self, provider: Provider) -> SafeString:
        """Enabled or not, as a coloured label."""
        return badge("enabled", "good") if provider.enabled else badge("disabled", "warn")

    @admin.action(description="Emergency: disable now", permissions=("change",))
    def disable_now(self, request: HttpRequest, queryset: QuerySet[Provider]) -> None:
        """Stop sending anything to the chosen providers, at once."""
        self._switch(request, queryset, enabled=False)

    @admin.action(description="Enable", permissions=("change",))
    def enable(self, request: HttpRequest, queryset: QuerySet[Provider]) -> None:
        """Send to the chosen providers again."""
        self._switch(request, queryset, enabled=True)

    def _switch(self, request: HttpRequest, queryset: QuerySet[Provider], *, enabled: bool) -> None:
        def work(provider: Provider, actor: str) -> None:
            if not enabled and publish.waits():
                drafts.disable_now(provider.pk, actor)
                return
            provider.enabled = enabled
            services.save_provider(provider, actor=actor, address_class=provider.address_class)

        count = self.each(request, queryset, work)
        self.message_user(request, f"{count} provider(s) {'enabled' if enabled else 'disabled'}.", messages.SUCCESS)

    # Saving: addresses are looked up by the form, so the form must be judged before a transaction is open.

    def open_changeform(
        self, request: HttpRequest, object_id: str | None, form_url: str, extra_context: dict[str, Any] | None
    ) -> HttpResponse:
        """The form without a transaction around its validation; `save_related` opens the one for the writes."""
        return self._changeform_view(request, object_id, form_url, self._with_notices(object_id, extra_context))

    def _with_notices(self, object_id: str | None, extra_context: dict[str, Any] | None) -> dict[str, Any]:
        """What the page says above the form: secrets to type again, certificates that end soon, pins of nobody."""
        context: dict[str, Any] = {}
        rows = Provider.objects.select_related("probe", "client_certificate").prefetch_related("credentials")
        provider_id = number(object_id or "")
        provider = rows.filter(pk=provider_id).first() if provider_id is not None else None
        if provider is not None:
            found = [each for each in provider.credentials.all() if each.ciphertext and not each.is_usable]
            client: ClientCertificate | None = getattr(provider, "client_certificate", None)
            ending = [each for each in admin_tls.all_of(provider) if each.ends_soon]
            context = {
                "unusable_credentials": found,
                "unusable_client": client is not None and not client.is_usable,
                "ending_certificates": ending,
                "any_certificate_ended": any(each.has_ended for each in ending),
                "lost_pins": admin_tls.lost_pins(provider),
            }
        return {**context, **(extra_context or {})}

    def save_model(self, request: HttpRequest, obj: Provider, form: Any, change: bool) -> None:
        """Nothing yet: the provider and its credentials are one change, written by `save_related`."""

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Write the provider and its credentials in one transaction, published once."""
        actor = operator(request)
        with transaction.atomic():
            self.gate(request, None)
            self.refuse_changed(request)
            provider = services.save_provider(form.instance, actor=actor, address_class=form.address_class)
            if form.client is not None:
                _write_client(provider, form.client, actor)
            for formset in formsets:
                formset.save(commit=False)
                for credential in formset.deleted_objects:
                    services.delete_credential(credential, actor=actor)
                for row in formset.forms:
                    if row.has_changed() and row not in formset.deleted_forms:
                        _write_credential(provider, row, actor)
            self.after_commit(request)

    def erase(self, row: Provider, actor: str) -> None:
        """Delete a provider with its credentials and routes."""
        services.delete_provider(row, actor=actor)

    # The connection test

    @method_decorator(require_POST)
    def test_view(self, request: HttpRequest, provider_id: int) -> HttpResponse:
        """Connect now, then show what was found."""
        provider = self._provider(request, provider_id)
        found = live_site(self).probe(provider.pk)
        live_site(self).wake()
        if found.ok:
            self.message_user(request, f"{provider} answers; {len(found.models)} model(s) found.", messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:providers_provider_found", args=(provider.pk,)))

    def found_view(self, request: HttpRequest, provider_id: int) -> HttpResponse:
        """What the last connection test found, and routes to create from it."""
        provider = self._provider(request, provider_id, change=False)
        probe: ProviderProbe | None = getattr(provider, "probe", None)
        routes = [(matcher(route.pattern), route) for route in provider.routes.all()]
        names = sorted(probe.models)[:_FOUND_LIMIT] if probe else []
        models = [
            {
                "name": name,
                "routes": [route for matches, route in routes if matches(name)],
                "is_routed": any(route.pattern == name for _, route in routes),
            }
            for name in names
        ]
        context = {
            **self.admin_site.each_context(request),
            "title": f"Connection to {provider}",
            "opts": self.opts,
            "provider": provider,
            "probe": probe,
            "models": models,
            "can_choose": any(not model["is_routed"] for model in models),
            "is_routed": bool(routes),
            "next_steps": live_site(self).next_steps(request.user),
            "chain": admin_tls.server_chain(provider),
            "lost_pins": admin_tls.lost_pins(provider),
            "has_catch_all": any(route.pattern == "*" for _, route in routes),
            "can_change": self.has_change_permission(request, provider),
            "can_route": request.user.has_perm("providers.add_route"),
        }
        return TemplateResponse(request, "admin/providers/provider/found.html", context)

    def response_add(self, request: HttpRequest, obj: Provider, post_url_continue: str | None = None) -> HttpResponse:
        """Where to go behind a save."""
        return self._tested(request, obj) or super().response_add(request, obj, post_url_continue)

    def response_change(self, request: HttpRequest, obj: Provider) -> HttpResponse:
        """Where to go behind a save."""
        return self._tested(request, obj) or super().response_change(request, obj)

    def _tested(self, request: HttpRequest, provider: Provider) -> HttpResponse | None:
        """The connection test, where the save was asked for with it. The rows are committed by now."""
        return self.test_view(request, provider.pk) if "_test" in request.POST else None

    @method_decorator(require_POST)
    def route_view(self, request: HttpRequest, provider_id: int) -> HttpResponse:
        """Create the obvious route for each of the chosen models (or for `*`), as one version."""
        provider = self._provider(request, provider_id, change=False)
        if not request.user.has_perm("providers.add_route"):
            raise PermissionDenied
        chosen = list(dict.fromkeys(request.POST.getlist("model")))
        if len(chosen) != 1:
            return self._many_routes(request, provider, chosen)
        model = chosen[0]
        back = HttpResponseRedirect(reverse("admin:providers_provider_found", args=(provider.pk,)))
        route = Route(name=free_route_name(f"{provider.name} {model}"), pattern=model, provider=provider)
        if "*" in model:
            route.priority = CATCH_ALL_PRIORITY  # it takes what no better route answers
        try:
            services.save_route(route, actor=operator(request))
        except ValidationError as exc:
            self.message_user(request, " ".join(exc.messages), messages.ERROR)
            return back
        self.log_addition(request, route, [{"added": {}}])
        self.committed(request)
        url = reverse("admin:providers_route_change", args=(route.pk,))
        self.message_user(
            request, format_html('Route “<a href="{}">{}</a>” was created.', url, route), messages.SUCCESS
        )
        return back

    def _many_routes(self, request: HttpRequest, provider: Provider, chosen: list[str]) -> HttpResponse:
        back = HttpResponseRedirect(reverse("admin:providers_provider_found", args=(provider.pk,)))
        routed = set(provider.routes.values_list("pattern", flat=True))
        wanted = [Route(pattern=model, provider=provider) for model in chosen if model not in routed]
        if not wanted:
            self.message_user(request, "Choose models that have no route of their own yet.", messages.WARNING)
            return back

        def create(route: Route, actor: str) -> None:
            route.name = free_route_name(f"{provider.name} {route.pattern}")
            services.save_route(route, actor=actor)
            self.log_addition(request, route, [{"added": {}}])

        try:
            count = self.each(request, wanted, create)
        except ValidationError as exc:
            self.message_user(request, " ".join(exc.messages), messages.ERROR)
            return back
        self.message_user(request, f"{count} route(s) were created.", messages.SUCCESS)
        return back

    @method_decorator(require_POST)
    def pin_view(self, request: HttpRequest, provider_id: int) -> HttpResponse:
        """Pin one of the certificates the last look saw, besides those that are pinned."""
        provider = self._provider(request, provider_id)
        back = HttpResponseRedirect(reverse("admin:providers_provider_found", args=(provider.pk,)))
        seen = {each.pin: each for each in admin_tls.server_chain(provider)}
        chosen = seen.get(request.POST.get("pin", ""))
        if chosen is None:
            self.message_user(request, "This certificate is not the one seen last; test again.", messages.ERROR)
            return back
        provider.pins = ",".join((*validation.split_pins(provider.pins), chosen.pin))
        try:
            services.save_provider(provider, actor=operator(request), address_class=provider.address_class)
        except ValidationError as exc:
            self.message_user(request, " ".join(exc.messages), messages.ERROR)
            return back
        self.log_change(request, provider, [{"changed": {"fields": ["certificate pins"]}}])
        self.committed(request)
        self.message_user(request, f"“{chosen.name}” is pinned: {chosen.pin}", messages.SUCCESS)
        return back

    @method_decorator(require_POST)
    def observe_view(self, request: HttpRequest, provider_id: int) -> HttpResponse:
        """Accept the class the provider's address has now."""
        provider = self._provider(request, provider_id)
        back = HttpResponseRedirect(reverse("admin:providers_provider_change", args=(provider.pk,)))
        try:
            services.observe_again(provider, actor=operator(request))
        except ValidationError as exc:
            self.message_user(request, " ".join(exc.messages), messages.ERROR)
            return back
        self.committed(request)
        self.message_user(request, f"The address counts as {provider.get_address_class_display()}.", messages.SUCCESS)
        return back

    def _provider(self, request: HttpRequest, provider_id: int, *, change: bool = True) -> Provider:
        allowed = self.has_change_permission(request) if change else self.has_view_permission(request)
        if not allowed:
            raise PermissionDenied
        provider = Provider.objects.select_related("probe", "client_certificate").filter(pk=provider_id).first()
        if provider is None:
            raise Http404("No such provider.")
        return provider


def _write_client(provider: Provider, client: tuple[str, str], actor: str) -> None:
    chain, key = client
    if chain:
        services.set_client_certificate(provider, chain, key, actor=actor)
    else:
        services.remove_client_certificate(provider, actor=actor)


def _write_credential(provider: Provider, form: CredentialForm, actor: str) -> None:
    credential: Credential = form.instance
    credential.provider = provider
    secret: str = form.cleaned_data.get("secret", "")
    if not credential._state.adding:
        services.save_credential(credential, actor=actor)
        if secret:
            services.set_credential(provider, credential.name, secret, actor=actor)
        return
    made = services.set_credential(provider, credential.name, secret, actor=actor)
    if not credential.enabled:
        made.enabled = False
        services.save_credential(made, actor=actor)
