"""The audit entries in admin: read only, newest first."""

from __future__ import annotations

import json

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from audit.admin_tools import KeysetAdmin, badge
from audit.models import OutboxEntry

_TONES = {"warning": "warn", "error": "bad", "critical": "bad"}


class LevelFilter(admin.SimpleListFilter):
    """The known levels, without asking the table which ones occur."""

    title = "level"
    parameter_name = "level"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[OutboxEntry]) -> list[tuple[str, str]]:
        """The choices beside the list."""
        return [("info", "Info"), ("warning", "Warning"), ("error", "Error")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[OutboxEntry]) -> QuerySet[OutboxEntry]:
        """Rows of the chosen level."""
        return queryset.filter(level=self.value()) if self.value() else queryset


@admin.register(OutboxEntry)
class OutboxEntryAdmin(KeysetAdmin[OutboxEntry]):
    """Who did what to which row, with what it was before and what it became."""

    list_display = ("at", "action", "target", "actor", "level_badge")
    list_display_links = ("at", "action")
    list_filter = (LevelFilter,)
    search_fields = ("=action", "=actor", "=target")
    search_help_text = "Exact action, actor or target."
    fields = ("at", "action", "target", "actor", "level", "pretty_data")
    readonly_fields = fields

    @admin.display(description="level")
    def level_badge(self, entry: OutboxEntry) -> SafeString:
        """The level as a coloured label."""
        return badge(entry.level, _TONES.get(entry.level, ""))

    @admin.display(description="data")
    def pretty_data(self, entry: OutboxEntry) -> SafeString:
        """The recorded values, indented."""
        text = json.dumps(entry.data, indent=2, ensure_ascii=False, sort_keys=True, default=str)
        return format_html('<pre class="hoosh-code">{}</pre>', text)
