"""Values in addresses and forms that no row can have: numbers no database takes, texts where a number is meant.

`Careful` is part of every admin page. Whatever is asked of a list or sent for a related row, it is a list, a message or
an error at a field, never a failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from django import forms
from django.contrib import messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ERROR_FLAG, ChangeList
from django.contrib.admin.widgets import AutocompleteSelect
from django.core.exceptions import ValidationError
from django.db import DataError, models
from django.http import HttpRequest

_ID_DIGITS = 18
_UNFILTERED = "The list cannot be narrowed like that, so everything is shown."


def number(text: str) -> int | None:
    """What stands for a row's id in an address or a form: at most 18 ASCII digits, so that any database takes it."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _ID_DIGITS else None


class IdSelect(AutocompleteSelect):
    """A field that looks rows up as one types. What was sent and is no id is not looked up when it is shown again."""

    def optgroups(self, name: str, value: Sequence[str], attr: Any = None) -> Any:
        """The option of the chosen row, if there is one."""
        return super().optgroups(name, [each for each in value if number(str(each)) is not None], attr)


class IdsField(forms.ModelMultipleChoiceField):  # type: ignore[type-arg]  # not subscriptable when run
    """Several rows by their ids; one that is no id is an error of the field."""

    def clean(self, value: Any) -> Any:
        """The chosen rows. Raises `ValidationError`."""
        for each in value if isinstance(value, list | tuple) else ():
            pk = self.prepare_value(each)
            if number(str(pk)) is None:
                raise ValidationError(self.error_messages["invalid_pk_value"], "invalid_pk_value", {"pk": str(pk)[:40]})
        return super().clean(value)


class Careful:
    """For a `ModelAdmin` whose related rows have numbers as ids."""

    def formfield_for_foreignkey(
        self, db_field: models.ForeignKey[Any, Any], request: HttpRequest, **kwargs: Any
    ) -> Any:
        """With a field for what is looked up that can be shown again whatever was sent."""
        page: Any = self
        if db_field.name in page.get_autocomplete_fields(request):
            kwargs.setdefault("widget", IdSelect(db_field, page.admin_site, using=kwargs.get("using")))
        return cast(Any, super()).formfield_for_foreignkey(db_field, request, **kwargs)

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """With a field that takes ids only."""
        kwargs.setdefault("form_class", IdsField)
        return cast(Any, super()).formfield_for_manytomany(db_field, request, **kwargs)

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        """The list. A filter that no database can compare with raises `IncorrectLookupParameters`, as does one that
        names no field: Django then shows the list without filters. A message says why."""
        try:
            return cast(ChangeList, cast(Any, super()).get_changelist_instance(request))
        except (IncorrectLookupParameters, OverflowError, DataError, ValueError, TypeError) as exc:
            if request.GET.keys() <= {ERROR_FLAG}:  # nothing was asked, so it is no wrong question
                raise
            messages.error(request, _UNFILTERED)
            raise IncorrectLookupParameters(exc) from exc
