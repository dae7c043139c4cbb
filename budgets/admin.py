"""Admin pages of teams, agents and keys. Writing is `budgets.access` and `budgets.keys`.

Registered from here as well: pools, prices, usage, the ledger and orders to it.
"""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Count, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.crypto import get_random_string
from django.utils.html import format_html
from django.utils.safestring import SafeString

from audit.admin_tools import BULK_LIMIT, EDITABLE_ROWS, LiveAdmin, badge, live_site, number, operator
from budgets import access, keys, scopes, validation
from budgets.admin_anomaly import AnomalyAdmin
from budgets.admin_cells import pool_link, quiet
from budgets.admin_ledger import LeaseAdmin, LedgerEntryAdmin, PoolAlertAdmin, PoolWindowAdmin, ReservationAdmin
from budgets.admin_orders import LedgerOrderAdmin
from budgets.admin_pools import PoolAdmin
from budgets.admin_prices import PriceAdmin
from budgets.admin_usage import UsageAdmin
from budgets.admin_warming import WarmQuestionAdmin
from budgets.forms import SUBMISSION, ApiKeyForm, RotationForm, claim_submission
from budgets.models import Agent, ApiKey, Pool, Team

__all__ = [
    "AgentAdmin",
    "AnomalyAdmin",
    "ApiKeyAdmin",
    "LeaseAdmin",
    "LedgerEntryAdmin",
    "LedgerOrderAdmin",
    "PoolAdmin",
    "PoolAlertAdmin",
    "PoolWindowAdmin",
    "PriceAdmin",
    "ReservationAdmin",
    "TeamAdmin",
    "UsageAdmin",
    "WarmQuestionAdmin",
]

LIMITS: Any = (
    "Limits",
    {
        "fields": (("requests_per_minute", "tokens_per_minute", "concurrent_requests"),),
        "description": "Exact over all workers of this host; a request above one is refused with 429.",
    },
)
_SENT_BEFORE = "its key was created and shown then. Find it in the list."


@admin.register(Team)
class TeamAdmin(LiveAdmin[Team]):
    """Teams. Disabling one stops the keys of all its agents within a second."""

    list_display = ("name", "enabled", "budget", "agent_count")
    list_editable = ("enabled",)
    list_per_page = EDITABLE_ROWS
    ordering = ("name",)  # counting agents drops the model's own order
    search_fields = ("name",)
    list_select_related = ("pool",)
    autocomplete_fields = ("pool",)
    fieldsets = ((None, {"fields": ("name", "enabled", "pool", "privacy_policy", "note")}), LIMITS)

    def get_readonly_fields(self, request: HttpRequest, obj: Team | None = None) -> tuple[str, ...]:
        """What may leave the house is decided by who may change privacy policies."""
        return () if request.user.has_perm("providers.change_privacypolicy") else ("privacy_policy",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Team]:
        """With the number of agents."""
        return super().get_queryset(request).annotate(agents_found=Count("agents"))

    @admin.display(description="budget", ordering="pool__name")
    def budget(self, team: Team) -> SafeString:
        """The pool all its requests draw on."""
        return _budget(team)

    @admin.display(description="agents")
    def agent_count(self, team: Any) -> SafeString:
        """How many agents it has, as a link to them."""
        url = reverse("admin:budgets_agent_changelist")
        return format_html('<a href="{}?team__id__exact={}">{}</a>', url, team.pk, team.agents_found)

    def gate(self, request: HttpRequest, object_id: str | None) -> None:
        """Hold what writers of these rows take first."""
        access.hold()

    def write(self, row: Team, actor: str) -> None:
        """Create or change a team."""
        access.save_team(row, actor=actor)

    def erase(self, row: Team, actor: str) -> None:
        """Delete a team without agents."""
        access.delete_team(row, actor=actor)


@admin.register(Agent)
class AgentAdmin(LiveAdmin[Agent]):
    """Apps and agents of teams."""

    list_display = ("name", "team", "enabled", "budget", "key_count")
    list_editable = ("enabled",)
    list_per_page = EDITABLE_ROWS
    list_filter = ("enabled", "team")
    ordering = ("team__name", "name")  # counting keys drops the model's own order
    list_select_related = ("team", "pool")
    search_fields = ("name", "team__name")
    autocomplete_fields = ("team", "pool")
    fieldsets = (
        (None, {"fields": ("team", "name", "enabled", "pool", "note")}),
        LIMITS,
        (
            "Anomalies",
            {
                "fields": ("anomaly_action", ("loop_limit", "throttle_rpm"), "held_back"),
                "description": "Far more spent within five minutes than usual, or the same prompt again and again.",
            },
        ),
    )
    readonly_fields = ("held_back",)

    @admin.display(description="held back")
    def held_back(self, agent: Agent) -> str:
        """Until when it may send few requests only."""
        return f"until {agent.throttled_until:%Y-%m-%d %H:%M} UTC" if agent.throttled_until else "no"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Agent]:
        """With the number of keys that still work."""
        alive = Q(keys__revoked_at__isnull=True, keys__isnull=False)
        return super().get_queryset(request).annotate(keys_found=Count("keys", filter=alive))

    @admin.display(description="budget", ordering="pool__name")
    def budget(self, agent: Agent) -> SafeString:
        """The pool all its requests draw on."""
        return _budget(agent)

    @admin.display(description="keys")
    def key_count(self, agent: Any) -> SafeString:
        """How many keys it has that are not revoked, as a link to all of them."""
        url = reverse("admin:budgets_apikey_changelist")
        return format_html('<a href="{}?agent__id__exact={}">{}</a>', url, agent.pk, agent.keys_found)

    def gate(self, request: HttpRequest, object_id: str | None) -> None:
        """Hold what writers of these rows take first."""
        access.hold()

    def write(self, row: Agent, actor: str) -> None:
        """Create or change an agent."""
        access.save_agent(row, actor=actor)

    def erase(self, row: Agent, actor: str) -> None:
        """Delete an agent that never had a key."""
        access.delete_agent(row, actor=actor)


def _budget(row: Team | Agent) -> SafeString:
    return pool_link(row.pool_id, row.pool) if row.pool_id else quiet("-")


class KeyStateFilter(admin.SimpleListFilter):
    """Active, expired or revoked."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The choices beside the list."""
        return [("active", "Active"), ("expired", "Expired"), ("revoked", "Revoked")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
        """Keys in the chosen state."""
        expired = Q(expires_at__isnull=False, expires_at__lte=timezone.now())
        revoked = Q(revoked_at__isnull=False)
        chosen = {"active": ~expired & ~revoked, "expired": expired & ~revoked, "revoked": revoked}
        state = self.value()
        return queryset.filter(chosen[state]) if state in chosen else queryset


@admin.register(ApiKey)
class ApiKeyAdmin(LiveAdmin[ApiKey]):
    """API keys. The text of one is shown on the page that follows its creation, and nowhere else."""

    form = ApiKeyForm
    list_display = ("name", "state", "visible_prefix", "agent", "pool", "may", "models_shown", "expires")
    list_filter = (KeyStateFilter, "pool", "agent__team")
    list_select_related = ("agent__team", "pool")
    search_fields = ("name", "prefix", "agent__name")
    autocomplete_fields = ("agent", "pool", "own_pool")
    actions = ("revoke",)
    change_form_template = "admin/budgets/apikey/change_form.html"
    readonly_fields = ("visible_prefix", "state", "last_used", "rotation", "created_at")
    _pools = ("pool", "own_pool", "pools_allowed")

    def get_form(self, request: HttpRequest, obj: ApiKey | None = None, change: bool = False, **kwargs: Any) -> Any:
        """The form, which knows whether this user may give every scope."""
        form: Any = super().get_form(request, obj, change=change, **kwargs)
        form.has_perm = staticmethod(request.user.has_perm)
        return form

    def get_fieldsets(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        """A new key has no state yet."""
        state = ("visible_prefix", "state", "last_used", "rotation", "created_at") if obj else ()
        return (
            (None, {"fields": ("name", "agent", "scopes", "models_allowed", "expires_at", *state)}),
            ("Budgets", {"fields": self._pools}),
            ("Where it may be used", {"fields": ("endpoints_allowed", "addresses_allowed")}),
            LIMITS,
            ("Where requests wait", {"fields": ("queue_class",)}),
        )

    def get_urls(self) -> list[URLPattern]:
        """The buttons of the form."""
        wrap = self.admin_site.admin_view
        return [
            path("<int:key_id>/revoke/", wrap(self.revoke_view), name="budgets_apikey_revoke"),
            path("<int:key_id>/rotate/", wrap(self.rotate_view), name="budgets_apikey_rotate"),
            *super().get_urls(),
        ]

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """The digest is not searched piece by piece."""
        return "digest" not in lookup and super().lookup_allowed(lookup, value, request)  # type: ignore[arg-type]

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        """Usage rows name keys: a key is revoked, never deleted."""
        return False

    @admin.display(description="scopes", ordering="scopes")
    def may(self, key: ApiKey) -> str:
        """The scopes, so that they can wrap."""
        return ", ".join(validation.split(key.scopes))

    @admin.display(description="models", ordering="models_allowed")
    def models_shown(self, key: ApiKey) -> str:
        """The models it may use."""
        return ", ".join(validation.split(key.models_allowed)) or "every model"

    @admin.display(description="key", ordering="prefix")
    def visible_prefix(self, key: ApiKey) -> SafeString:
        """The start of the key."""
        return format_html('<span class="hoosh-mono">{}…</span>', key.prefix)

    @admin.display(description="expires (UTC)", ordering="expires_at")
    def expires(self, key: ApiKey) -> str:
        """To the minute."""
        return quiet("never") if key.expires_at is None else f"{key.expires_at:%Y-%m-%d %H:%M}"

    @admin.display(description="state")
    def state(self, key: ApiKey) -> SafeString:
        """Active, expired or revoked."""
        if key.revoked_at is not None:
            return badge("revoked", "bad")
        if key.expires_at is not None and key.expires_at <= timezone.now():
            return badge("expired", "warn")
        return badge("active", "good")

    @admin.display(description="last used")
    def last_used(self, key: ApiKey) -> SafeString | str:
        """When it was last used, as far as usage rows are kept."""
        return _used(key)

    @admin.display(description="rotation")
    def rotation(self, key: ApiKey) -> SafeString:
        """The key it replaces, or that replaces it, and whether the old one is still in use."""
        if (old := key.rotated_from) is not None:
            return format_html("replaces {}, which {} and was last used: {}", _link(old), _end(old), _used(old))
        new = key.rotated_to.order_by("-pk").first()
        return quiet("-") if new is None else format_html("{} replaces it; this one {}", _link(new), _end(key))

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """The only pool there is, where there is no choice."""
        pools = list(Pool.objects.filter(enabled=True).values_list("pk", flat=True)[:2])
        only = {"pool": pools[0]} if len(pools) == 1 else {}
        return {**only, **super().get_changeform_initial_data(request)}

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The form for a new key, numbered so that sending it twice makes one key."""
        context = {"show_save_and_add_another": False, "show_save_and_continue": False}
        return super().add_view(
            request, form_url, {**context, SUBMISSION: get_random_string(22), **(extra_context or {})}
        )

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The form of a key; its text is not known any more."""
        key_id = number(object_id)
        key = ApiKey.objects.filter(pk=key_id).first() if key_id is not None else None
        context = {"may_rotate": key is not None and _may_rotate(request, key)}
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        """Make or change a key; the text of a new one is kept for the very next page only."""
        if change:
            super().save_model(request, obj, form, change)
            return
        claim_submission(request, _SENT_BEFORE)
        made, text = keys.create_key(
            obj.agent,
            obj.pool,
            obj.name,
            validation.split(obj.scopes),
            actor=operator(request),
            models_allowed=validation.split(obj.models_allowed),
            expires_at=obj.expires_at,
            own_pool=obj.own_pool,
            pools_allowed=validation.split(obj.pools_allowed),
            limits=obj.limits,
            queue_class=obj.queue_class,
            endpoints=validation.split(obj.endpoints_allowed),
            addresses=validation.split(obj.addresses_allowed),
        )
        obj.pk, obj.prefix = made.pk, made.prefix
        request._hoosh_key_text = text  # type: ignore[attr-defined]
        self.after_commit(request)

    def response_add(self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None) -> HttpResponse:
        """Show the key, this once: the answer to the form itself, so that the text is stored nowhere."""
        return self._show_once(request, obj, request._hoosh_key_text)  # type: ignore[attr-defined]

    def _show_once(self, request: HttpRequest, key: ApiKey, text: str) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": f"API key “{key.name}” was created",
            "opts": self.opts,
            "key": key,
            "text": text,
            "last_used": keys.last_used(key.rotated_from) if key.rotated_from else None,
            "base_url": request.build_absolute_uri("/").rstrip("/"),
            "model": _example_model(key) or live_site(self).example_model(),
        }
        return TemplateResponse(request, "admin/budgets/apikey/created.html", context)

    def gate(self, request: HttpRequest, object_id: str | None) -> None:
        """Hold what writers of these rows take first."""
        access.hold()

    def write(self, row: ApiKey, actor: str) -> None:
        """Change a key."""
        keys.update_key(row, actor=actor)

    @admin.action(description="Revoke", permissions=("change",))
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> HttpResponse | None:
        """Stop the chosen keys for good, after a question."""
        if request.POST.get("post") != "yes":
            return self._ask(request, list(queryset.select_related("agent__team")[:BULK_LIMIT]))
        count = self.each(request, queryset, lambda key, actor: keys.revoke_key(key, actor=actor))
        self.message_user(request, f"{count} key(s) revoked; workers refuse them within a second.", messages.SUCCESS)
        return None

    def revoke_view(self, request: HttpRequest, key_id: int) -> HttpResponse:
        """Ask, then stop one key for good."""
        key = self._key(request, key_id)
        if request.method != "POST":
            return self._ask(request, [key], single=True)
        keys.revoke_key(key, actor=operator(request))
        self.committed(request)
        self.message_user(request, f"“{key.name}” is revoked; workers refuse it within a second.", messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:budgets_apikey_change", args=(key.pk,)))

    def _ask(self, request: HttpRequest, chosen: list[ApiKey], *, single: bool = False) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": "Revoke this key?" if single else f"Revoke {len(chosen)} key(s)?",
            "opts": self.opts,
            "keys": chosen,
            "single": single,
            "back": reverse("admin:budgets_apikey_change", args=(chosen[0].pk,))
            if single
            else reverse("admin:budgets_apikey_changelist"),
        }
        return TemplateResponse(request, "admin/budgets/apikey/revoke.html", context)

    def rotate_view(self, request: HttpRequest, key_id: int) -> HttpResponse:
        """Ask how long the old key shall go on, then make a new one with the same rights."""
        old = self._key(request, key_id)
        if not self.has_add_permission(request) or not _may_rotate(request, old):
            raise PermissionDenied
        form = RotationForm(request.POST if request.method == "POST" else None)
        if request.method != "POST" or not form.is_valid():
            return self._ask_to_rotate(request, old, form)
        try:
            claim_submission(request, _SENT_BEFORE)
            made, text = keys.rotate_key(old, actor=operator(request), overlap=form.overlap)
        except ValidationError as exc:
            self.message_user(request, " ".join(exc.messages), messages.ERROR)
            return HttpResponseRedirect(reverse("admin:budgets_apikey_change", args=(old.pk,)))
        self.committed(request)
        return self._show_once(request, made, text)

    def _ask_to_rotate(self, request: HttpRequest, key: ApiKey, form: RotationForm) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": f"Rotate “{key.name}”",
            "opts": self.opts,
            "key": key,
            "form": form,
            SUBMISSION: get_random_string(22),
        }
        return TemplateResponse(request, "admin/budgets/apikey/rotate.html", context)

    def _key(self, request: HttpRequest, key_id: int) -> ApiKey:
        if not self.has_change_permission(request):
            raise PermissionDenied
        key = ApiKey.objects.select_related("agent__team", "pool").filter(pk=key_id).first()
        if key is None:
            raise Http404("No such key.")
        return key


def _example_model(key: ApiKey) -> str:
    """A model this key may certainly name; "" = it may use every one, or says so by patterns only."""
    names = validation.split(key.models_allowed)
    return next((name for name in names if "*" not in name and "'" not in name and '"' not in name), "")


def _used(key: ApiKey) -> SafeString | str:
    at = keys.last_used(key)
    return f"{at:%Y-%m-%d %H:%M} UTC" if at is not None else quiet("not as far as usage rows are kept")


def _link(key: ApiKey) -> SafeString:
    return format_html('<a href="{}">{}…</a>', reverse("admin:budgets_apikey_change", args=(key.pk,)), key.prefix)


def _end(key: ApiKey) -> str:
    """Until when a key works, as the end of a sentence about it."""
    if key.revoked_at is not None:
        return f"was revoked {key.revoked_at:%Y-%m-%d %H:%M} UTC"
    if key.expires_at is None:
        return "works without an end"
    return f"{'works until' if key.expires_at > timezone.now() else 'ended'} {key.expires_at:%Y-%m-%d %H:%M} UTC"


def _may_rotate(request: HttpRequest, key: ApiKey) -> bool:
    """The new key's text is shown: only to who could have made such a key."""
    return not scopes.not_to_give(request.user.has_perm, validation.split(key.scopes))
