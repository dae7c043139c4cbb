"""The published versions: what ran, who published it and what it changed."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.http import require_POST

from audit.admin_tools import KeysetAdmin, live_site, operator
from providers import config, differences, drafts, publish
from providers.models import ConfigVersion

CHANGES_SHOWN = 200


@admin.register(ConfigVersion)
class ConfigVersionAdmin(KeysetAdmin[ConfigVersion]):
    """What was published, by whom, and what it changed."""

    keyset = ("number",)
    list_display = ("number", "created_at", "author", "note", "short_digest")
    fields = ("number",)
    change_form_template = "admin/providers/configversion/change_form.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[ConfigVersion]:
        """Lists leave the documents alone: they are large."""
        return super().get_queryset(request).defer("document", "owners")

    def get_urls(self) -> list[URLPattern]:
        """The button that publishes what is saved."""
        view = self.admin_site.admin_view(self.publish_view)
        return [path("publish/", view, name="providers_configversion_publish"), *super().get_urls()]

    @admin.display(description="digest")
    def short_digest(self, version: ConfigVersion) -> SafeString:
        """The start of the document's name."""
        return format_html('<span class="hoosh-mono" title="{}">{}</span>', version.digest, version.digest[:12])

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The document and what it changed, readable."""
        version = self.get_object(request, object_id) if self.has_view_permission(request) else None
        context = _version_context(version) if version is not None else {}
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    @method_decorator(require_POST)
    def publish_view(self, request: HttpRequest) -> HttpResponse:
        """Publish what is saved now."""
        if not request.user.has_perm("providers.change_gatewaysettings"):
            raise PermissionDenied
        if publish.is_reviewed():  # a review is of something: it is done where the changes stand
            messages.warning(request, "Changes are reviewed here. Look at them, then publish.")
            return HttpResponseRedirect(reverse("admin:draft"))
        try:
            version = drafts.approve(operator(request))
        except (publish.PublishError, drafts.DraftError) as exc:
            self.message_user(request, f"Not published. {exc}", messages.ERROR)
        else:
            live_site(self).wake()
            self.message_user(request, f"{version} is in force.", messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:index"))


def _version_context(version: ConfigVersion) -> dict[str, Any]:
    numbers = ConfigVersion.objects.order_by("number").values_list("number", flat=True)
    older = ConfigVersion.objects.filter(number__lt=version.number).order_by("-number").first()
    document = config.unpack(bytes(version.document))
    before = config.unpack(bytes(older.document)) if older else None
    lines = differences.difference(before, document) if before is not None else []
    newer = numbers.filter(number__gt=version.number).first()
    return {
        "older": older.number if older else None,
        "newer": newer,
        "is_live": newer is None,
        "document": differences.pretty(document),
        "difference": lines,
        "changes": differences.described(before, document)[:CHANGES_SHOWN] if before is not None else [],
        "is_cut": len(lines) >= differences.LINE_LIMIT,
        "title": f"Configuration version {version.number}",
        "subtitle": None,
    }
