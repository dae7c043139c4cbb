"""The events in admin: read only, newest first. The page of webhooks is the site's: it needs vault and network."""

from __future__ import annotations

import datetime as dt
import json

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from audit.admin_tools import KeysetAdmin, badge
from events import names
from events.models import Event, Level

_TONES = {Level.WARNING.value: "warn", Level.ERROR.value: "bad"}
_SPANS = {"hour": dt.timedelta(hours=1), "day": dt.timedelta(days=1), "week": dt.timedelta(days=7)}


class LevelFilter(admin.SimpleListFilter):
    """The levels, without asking the table which ones occur."""

    title = "level"
    parameter_name = "level"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Event]) -> list[tuple[str, str]]:
        """The choices beside the list."""
        return [(level.value, level.label) for level in Level]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Event]) -> QuerySet[Event]:
        """Rows of the chosen level."""
        return queryset.filter(level=self.value()) if self.value() else queryset


class TopicFilter(admin.SimpleListFilter):
    """The topics there are."""

    title = "topic"
    parameter_name = "topic"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Event]) -> list[tuple[str, str]]:
        """The choices beside the list."""
        return [(topic, topic) for topic in names.TOPICS]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Event]) -> QuerySet[Event]:
        """Rows of the chosen topic."""
        return queryset.filter(topic=self.value()) if self.value() else queryset


class SpanFilter(admin.SimpleListFilter):
    """How far back."""

    title = "time"
    parameter_name = "span"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Event]) -> list[tuple[str, str]]:
        """The choices beside the list."""
        return [("hour", "Last hour"), ("day", "Last 24 hours"), ("week", "Last 7 days")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Event]) -> QuerySet[Event]:
        """Rows of that time."""
        span = _SPANS.get(self.value() or "")
        return queryset.filter(at__gte=timezone.now() - span) if span else queryset


@admin.register(Event)
class EventAdmin(KeysetAdmin[Event]):
    """What programs are told: `GET /v1/events` and webhooks."""

    list_display = ("at", "name", "topic", "summary", "level_badge")
    list_display_links = ("at", "name")
    list_filter = (LevelFilter, TopicFilter, SpanFilter)
    fields = ("id", "at", "name", "topic", "level", "pretty_data")
    readonly_fields = fields

    @admin.display(description="level")
    def level_badge(self, event: Event) -> SafeString:
        """The level as a coloured label."""
        return badge(event.level, _TONES.get(event.level, ""))

    @admin.display(description="about")
    def summary(self, event: Event) -> str:
        """The first few values."""
        shown = [f"{name}={value}" for name, value in event.data.items() if not isinstance(value, dict | list)]
        text = " ".join(shown[:5])
        return text if len(text) <= 120 else f"{text[:119]}…"

    @admin.display(description="data")
    def pretty_data(self, event: Event) -> SafeString:
        """The values, indented."""
        text = json.dumps(event.data, indent=2, ensure_ascii=False)
        return format_html('<pre class="hoosh-code">{}</pre>', text)
