"""Django classes that are generic for the type checker but cannot be subscripted when the program runs.

Write `Page[Row]`, `TableInline[Child, Parent]`, `RowForm[Row]` for what django-stubs calls `ModelAdmin[Row]` and so on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib.admin import ModelAdmin, TabularInline
from django.forms import ModelForm

from audit.unusable import Careful

if TYPE_CHECKING:
    Page = ModelAdmin
    TableInline = TabularInline
    RowForm = ModelForm
else:

    class _Subscriptable:
        def __class_getitem__(cls, parameters):
            return cls

    class Page(_Subscriptable, Careful, ModelAdmin):
        """A `ModelAdmin` that no value in an address or a form makes fail."""

    class TableInline(_Subscriptable, TabularInline):
        """A `TabularInline` whose fields have names, where Django's have only a column's heading."""

        def formfield_for_dbfield(self, db_field, request, **kwargs):
            field = super().formfield_for_dbfield(db_field, request, **kwargs)
            if field is not None:
                field.widget.attrs.setdefault("aria-label", str(field.label))
            return field

    class RowForm(_Subscriptable, ModelForm):
        """A `ModelForm`."""
