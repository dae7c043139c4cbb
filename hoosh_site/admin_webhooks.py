"""The page of webhooks: here, because saving one asks the network and the vault, which the events know nothing of."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.http import require_POST

from audit.admin_tools import LiveAdmin, badge, operator
from audit.generics import RowForm
from events import names, order
from events.models import Webhook
from hoosh_site import webhooks


class WebhookForm(RowForm[Webhook]):
    """A webhook. Its address is looked up here, before any transaction is open."""

    internal = forms.BooleanField(
        label="May be internal",
        required=False,
        help_text="Allow an address on this host or in a private network. It must stay in that network.",
    )

    class Meta:
        model = Webhook
        fields = ("name", "url", "topics", "enabled", "note")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.address_class = self.instance.address_class
        if self.address_class:
            self.initial["internal"] = self.address_class != Webhook.AddressClass.PUBLIC
        if (topics := self.fields.get("topics")) is not None:
            topics.help_text = f"{topics.help_text} There are: {', '.join(names.TOPICS)}."

    def clean_topics(self) -> str:
        """Topics that can be read."""
        text: str = self.cleaned_data["topics"]
        try:
            names.Wanted.parse(text)
        except ValueError as exc:
            raise ValidationError(str(exc)) from exc
        return text

    def clean(self) -> dict[str, Any]:
        """Look the address up, at every save: so a receiver that moved is accepted by saving."""
        super().clean()
        data: dict[str, Any] = self.cleaned_data
        if "url" in data:
            try:
                self.address_class = webhooks.observe(data["url"], internal=data.get("internal", False))
            except ValidationError as exc:
                self.add_error("url", exc.messages)
        return data


@admin.register(Webhook)
class WebhookAdmin(LiveAdmin[Webhook]):
    """Addresses that are told events."""

    form = WebhookForm
    list_display = ("name", "host", "topics_shown", "state", "waiting", "last_result")
    list_filter = ("enabled",)
    search_fields = ("name", "url")
    change_form_template = "admin/events/webhook/change_form.html"
    readonly_fields = ("state", "waiting", "last_result", "address_class", "delivered", "failing_since", "next_try_at")

    def get_fieldsets(self, request: HttpRequest, obj: Webhook | None = None) -> Any:
        """A new one has no state yet. Readers see no more of the URL than its host."""
        address = ("url", "internal") if self._may_read_url(request) else ("host",)
        form = (None, {"fields": ("name", *address, "topics", "enabled", "note")})
        return (form, ("Delivery", {"fields": self.readonly_fields})) if obj else (form,)

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        """Nobody finds out piece by piece what they are not shown."""
        return self.search_fields if self._may_read_url(request) else ("name",)

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """Nor by comparing with it."""
        return not lookup.startswith(("url", "secret")) and super().lookup_allowed(lookup, value, request)  # type: ignore[arg-type]

    def _may_read_url(self, request: HttpRequest) -> bool:
        return self.has_change_permission(request) or self.has_add_permission(request)

    def get_urls(self) -> list[URLPattern]:
        """The buttons of the form."""
        wrap = self.admin_site.admin_view
        return [
            path("<int:webhook_id>/test/", wrap(self.test_view), name="events_webhook_test"),
            path("<int:webhook_id>/secret/", wrap(self.secret_view), name="events_webhook_secret"),
            *super().get_urls(),
        ]

    @admin.display(description="host")
    def host(self, webhook: Webhook) -> str:
        """Where it is; the rest of a URL is often what lets one in."""
        return webhook.url.partition("://")[2].partition("/")[0].partition("?")[0]

    @admin.display(description="topics")
    def topics_shown(self, webhook: Webhook) -> str:
        """What it is told."""
        return webhook.topics or "every event"

    @admin.display(description="state")
    def state(self, webhook: Webhook) -> SafeString:
        """On, off or failing."""
        if not webhook.enabled:
            return badge("off", "bad" if webhook.failures else "warn")
        if webhook.failures:
            return badge(f"failing ({webhook.failures})", "bad")
        return badge("on", "good")

    @admin.display(description="events behind")
    def waiting(self, webhook: Webhook) -> str:
        """How far it is behind what happened."""
        behind = order.newest() - webhook.cursor
        return f"{behind:,}" if behind > 0 else "none"

    @admin.display(description="last result")
    def last_result(self, webhook: Webhook) -> SafeString:
        """What came of the last call."""
        if webhook.last_at is None:
            return badge("never called")
        good = not webhook.last_error
        label = badge(str(webhook.last_status or "no answer"), "good" if good else "bad")
        return format_html("{} {} {}", label, f"{webhook.last_at:%Y-%m-%d %H:%M:%S} UTC", webhook.last_error)

    def open_changeform(
        self, request: HttpRequest, object_id: str | None, form_url: str, extra_context: dict[str, Any] | None
    ) -> HttpResponse:
        """The form without a transaction around its validation, which asks the resolver."""
        return self._changeform_view(request, object_id, form_url, extra_context)

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The answer to a new one is the page with its secret, so nothing else can come next."""
        context = {"show_save_and_add_another": False, "show_save_and_continue": False}
        return super().add_view(request, form_url, {**context, **(extra_context or {})})

    def save_model(self, request: HttpRequest, obj: Webhook, form: Any, change: bool) -> None:
        """Write it; the secret of a new one is kept for the very next page only."""
        with transaction.atomic():
            if change:
                self.gate(request, str(obj.pk))
                self.refuse_changed(request)
                webhooks.change(obj, actor=operator(request), address_class=form.address_class)
            else:
                secret = webhooks.create(obj, actor=operator(request), address_class=form.address_class)
                request._hoosh_secret = secret  # type: ignore[attr-defined]
            self.after_commit(request)

    def response_add(self, request: HttpRequest, obj: Webhook, post_url_continue: str | None = None) -> HttpResponse:
        """Show the secret, this once: the answer to the form itself, so that it is stored nowhere in clear."""
        return self._show_once(request, obj, request._hoosh_secret)  # type: ignore[attr-defined]

    def erase(self, row: Webhook, actor: str) -> None:
        """Delete a webhook."""
        webhooks.delete(row, actor=actor)

    @method_decorator(require_POST)
    def test_view(self, request: HttpRequest, webhook_id: int) -> HttpResponse:
        """Send a test event now."""
        webhook = self._webhook(request, webhook_id)
        answer = webhooks.send_test(webhook)
        if answer.error:
            self.message_user(request, f"The test event was not taken. {answer.error}", messages.ERROR)
        else:
            self.message_user(request, f"The test event was taken ({answer.status}).", messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:events_webhook_change", args=(webhook.pk,)))

    @method_decorator(require_POST)
    def secret_view(self, request: HttpRequest, webhook_id: int) -> HttpResponse:
        """A new secret instead of the old one."""
        webhook = self._webhook(request, webhook_id)
        secret = webhooks.renew_secret(webhook, actor=operator(request))
        self.committed(request)
        return self._show_once(request, webhook, secret)

    def _show_once(self, request: HttpRequest, webhook: Webhook, secret: str) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": f"Secret of the webhook “{webhook.name}”",
            "opts": self.opts,
            "webhook": webhook,
            "secret": secret,
        }
        return TemplateResponse(request, "admin/events/webhook/secret.html", context)

    def _webhook(self, request: HttpRequest, webhook_id: int) -> Webhook:
        if not self.has_change_permission(request):
            raise PermissionDenied
        webhook = Webhook.objects.filter(pk=webhook_id).first()
        if webhook is None:
            raise Http404("No such webhook.")
        return webhook
