"""Forms and lists that two people have open at once: nobody overwrites what they have not seen.

A form carries a digest of its row as it was shown. When it comes back and the row is another one by then, it is refused
once, with what was typed and the new digest in it: saving again is then a decision. In an editable list the cells carry
the values they were shown with; what was not touched is not written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models
from django.http import HttpRequest

from audit.changes import object_of

SEEN = "_seen"
_SHOWN = "_hoosh_row_shown"
_LIST_VALUES = "initial-form-"
_VALUE_CHARS = 80


def digest_of(row: models.Model) -> str:
    """Names the row by what people can edit in it; what the gateway writes itself is left out."""
    values = {field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields if field.editable}
    return hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:32]


def last_author(row: models.Model) -> str:
    """Who changed a row last, as far as it is recorded; "Somebody else" where it is not."""
    from audit import reading
    from audit.models import OutboxEntry

    waiting = OutboxEntry.objects.filter(data__object=object_of(row)).order_by("-pk").first()
    if waiting is not None:
        return waiting.actor or "Somebody else"
    entries = reading.readable(reading.page(reading.Question(object=object_of(row)), 1).entries)
    return (entries[0].actor if entries else "") or "Somebody else"


class NoticesOthers:
    """For a `ModelAdmin`: see above."""

    def get_form(self: Any, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """The form; one that refuses when the row is not the one that was shown."""
        form: Any = super().get_form(request, obj, change=change, **kwargs)  # type: ignore[misc]
        if obj is None:
            return form
        if not hasattr(request, _SHOWN):  # later the form has written into the row
            setattr(request, _SHOWN, digest_of(obj))
        seen = request.POST.get(SEEN, "") if request.method == "POST" else ""
        if seen and seen != getattr(request, _SHOWN):
            return type(form.__name__, (form,), {"clean": _refusing(form.clean, last_author(obj))})
        return form

    def render_change_form(self: Any, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The form with the digest of what it shows."""
        context["row_shown"] = getattr(request, _SHOWN, "")
        return super().render_change_form(request, context, *args, **kwargs)  # type: ignore[misc]

    def get_changelist_formset(self: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """The list's cells, each with the value it was shown with."""
        formset = super().get_changelist_formset(request, **kwargs)  # type: ignore[misc]
        if request.method != "POST" or any(name.startswith(_LIST_VALUES) for name in request.POST):
            for field in formset.form.base_fields.values():
                field.show_hidden_initial = True
        return formset


def _differing(form: Any) -> Iterator[tuple[str, str]]:
    """What is stored now (the form begins with it) where something else was typed."""
    columns = {field.name for field in form._meta.model._meta.concrete_fields}
    for name in form.changed_data:
        if name in columns:
            value = getattr(form.instance, name)
            shown = "blank" if value in (None, "") else "yes" if value is True else "no" if value is False else value
            yield str(form.fields[name].label or name).lower(), str(shown)[:_VALUE_CHARS]


def _refusing(clean: Callable[[Any], Any], author: str) -> Callable[[Any], Any]:
    def refuse(form: Any) -> Any:
        clean(form)
        theirs = "; ".join(f"{label} is {value}" for label, value in _differing(form))
        raise ValidationError(
            f"{author} saved this row while you had it open. Below stands what you typed"
            f"{f', in the row {theirs}' if theirs else ''}. Save again to put yours in its place."
        )

    return refuse
