"""The pages of model cards: one's own, which are edited here, and imported ones, which are shown."""

from __future__ import annotations

import re
from typing import Any

from django.contrib import admin
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.forms import model_to_dict
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from audit.admin_tools import LiveAdmin, badge, number
from providers import sequences, services, validation
from providers.card_form import CardForm
from providers.card_labels import KNOWN
from providers.models import ModelCard

_FACTS = ("pattern", "display_name", ("context_tokens", "max_output_tokens"), "min_bytes_per_token")


class OriginFilter(admin.SimpleListFilter):
    """Whose card it is."""

    title = "origin"
    parameter_name = "origin"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The choices beside the list."""
        return [
            ("own", "Your own"),
            ("imported", "Imported"),
            ("beneath", "Imported, with a card of your own above"),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Cards of the chosen origin; `ModelCardAdmin.get_queryset` has found out which lie beneath another."""
        match self.value():
            case "own":
                return queryset.filter(source="")
            case "imported":
                return queryset.exclude(source="")
            case "beneath":
                return queryset.filter(is_beneath=True)
        return queryset


class LabelFilter(admin.SimpleListFilter):
    """Cards with one of the labels the gateway knows."""

    title = "label"
    parameter_name = "label"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The choices beside the list."""
        return [(name, name) for name in KNOWN]

    def queryset(self, request: HttpRequest, queryset: QuerySet[ModelCard]) -> QuerySet[ModelCard]:
        """Cards with the chosen label."""
        value = self.value()
        if value is None or value not in KNOWN:
            return queryset
        return queryset.filter(capabilities__regex=rf"(^|,) *{re.escape(value)} *(,|$)")


class BlankFilter(admin.SimpleListFilter):
    """Cards that leave something open."""

    title = "not known"
    parameter_name = "blank"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The choices beside the list."""
        return [("context", "Context"), ("output", "Longest answer"), ("labels", "Labels")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[ModelCard]) -> QuerySet[ModelCard]:
        """Cards without the chosen fact."""
        blank = {
            "context": Q(context_tokens=None),
            "output": Q(max_output_tokens=None),
            "labels": Q(capabilities=""),
        }
        return queryset.filter(blank.get(self.value() or "", Q()))


@admin.register(ModelCard)
class ModelCardAdmin(LiveAdmin[ModelCard]):
    """What is known of models: live, no part of the published document."""

    form = CardForm
    list_display = ("pattern", "display_name", "context", "longest", "labels_listed", "origin")
    list_filter = (OriginFilter, LabelFilter, BlankFilter)
    search_fields = ("pattern", "display_name", "note")
    ordering = ("pattern", "source")
    readonly_fields = ("labels_shown", "source")
    show_full_result_count = False
    list_per_page = 50
    change_form_template = "admin/providers/modelcard/change_form.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[ModelCard]:
        """The imported cards too, with whether an operator's own has the same pattern."""
        above = ModelCard.objects.filter(pattern=OuterRef("pattern"))
        return ModelCard.every.annotate(is_beneath=Exists(above) & ~Q(source="")).order_by(*self.ordering)

    def get_fieldsets(self, request: HttpRequest, obj: ModelCard | None = None) -> Any:
        """Boxes to tick for who may change the card, the labels themselves for everybody else."""
        can_edit = self.has_add_permission(request) if obj is None else self.has_change_permission(request, obj)
        if not can_edit:
            return ((None, {"fields": (*_FACTS, "labels_shown", "note", "source")}),)
        return (
            (None, {"fields": _FACTS}),
            ("Labels", {"fields": ("labels", "further")}),
            (None, {"fields": ("note",)}),
        )

    def has_change_permission(self, request: HttpRequest, obj: ModelCard | None = None) -> bool:
        """Imported cards follow their list: to change what one says, an operator makes a card of their own."""
        return not (obj is not None and obj.is_imported) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: ModelCard | None = None) -> bool:
        """Imported cards go with `manage.py import_cards --remove`."""
        return not (obj is not None and obj.is_imported) and super().has_delete_permission(request, obj)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """Start from the card named by `?from=`, if any, else from the fields in the query string."""
        source = number(request.GET.get("from", ""))
        card = ModelCard.every.filter(pk=source).first() if source is not None else None
        if card is None:
            return super().get_changeform_initial_data(request)
        return {**model_to_dict(card, fields=CardForm.Meta.fields), "capabilities": card.capabilities}

    @admin.display(description="context", ordering="context_tokens")
    def context(self, card: ModelCard) -> SafeString:
        """Tokens of the context window."""
        return _tokens(card.context_tokens)

    @admin.display(description="longest answer", ordering="max_output_tokens")
    def longest(self, card: ModelCard) -> SafeString:
        """Tokens of the longest answer."""
        return _tokens(card.max_output_tokens)

    @admin.display(description="labels", ordering="capabilities")
    def labels_listed(self, card: ModelCard) -> SafeString:
        """The labels as small text: a page has many."""
        return format_html('<span class="mini quiet">{}</span>', " ".join(validation.split(card.capabilities)))

    @admin.display(description="labels")
    def labels_shown(self, card: ModelCard) -> SafeString:
        """The labels as badges."""
        return format_html_join(" ", "{}", ((badge(label),) for label in validation.split(card.capabilities)))

    @admin.display(description="origin", ordering="source")
    def origin(self, card: Any) -> SafeString:
        """Whose card it is, and whether another stands above it."""
        if not card.is_imported:
            return badge("configuration file" if card.managed_by else "your own", "good")
        return badge(f"{card.source}, yours above") if card.is_beneath else badge(card.source)

    def gate(self, request: HttpRequest, object_id: str | None) -> None:
        """Hold what writers of these rows take first."""
        sequences.locked(sequences.CARDS)

    def write(self, row: ModelCard, actor: str) -> None:
        """Create or change a card."""
        services.save_card(row, actor=actor)

    def erase(self, row: ModelCard, actor: str) -> None:
        """Delete a card."""
        services.delete_card(row, actor=actor)


def _tokens(count: int | None) -> SafeString:
    return format_html('<span class="hoosh-number">{}</span>', "" if count is None else f"{count:,}")
