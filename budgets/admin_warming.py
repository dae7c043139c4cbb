"""The pages of questions asked ahead. Writing is `budgets.warming`."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.text import Truncator

from audit.admin_tools import EDITABLE_ROWS, LiveAdmin
from audit.generics import RowForm
from budgets import access, warming
from budgets.models import WarmQuestion


class WarmQuestionForm(RowForm[WarmQuestion]):
    """A question. Its texts keep the white space at their ends: a client's may have some."""

    class Meta:
        model = WarmQuestion
        fields = ("key", "model", "system", "question", "enabled", "note")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in {"system", "question"} & self.fields.keys():
            self.fields[name].strip = False  # type: ignore[attr-defined]


@admin.register(WarmQuestion)
class WarmQuestionAdmin(LiveAdmin[WarmQuestion]):
    """Questions that workers ask by themselves, so that the first client gets a kept answer."""

    form = WarmQuestionForm
    list_display = ("question_shown", "model", "key", "enabled")
    list_editable = ("enabled",)
    list_per_page = EDITABLE_ROWS
    list_filter = ("enabled", "key__agent__team")
    list_select_related = ("key",)
    search_fields = ("question", "system", "model", "note")
    ordering = ("model", "id")
    autocomplete_fields = ("key",)
    fieldsets = (
        (
            None,
            {
                "fields": ("key", "model", "system", "question", "enabled", "note"),
                "description": "Each worker asks a question once, and again when its answer's time is over, as a "
                "client of this key would: it counts to the key's limits, is charged to its pools and stands in its "
                "usage. Only routes that keep answers have something of it.",
            },
        ),
    )

    @admin.display(description="question", ordering="question")
    def question_shown(self, row: WarmQuestion) -> str:
        """How it begins."""
        return Truncator(row.question).chars(80)

    def gate(self, request: HttpRequest, object_id: str | None) -> None:
        """Hold what writers of these rows take first."""
        access.hold(warming.WARMING)

    def write(self, row: WarmQuestion, actor: str) -> None:
        """Create or change a question."""
        warming.save_question(row, actor=actor)

    def erase(self, row: WarmQuestion, actor: str) -> None:
        """Delete a question."""
        warming.delete_question(row, actor=actor)
