"""Django classes that are generic for the type checker but cannot be subscripted when the program runs.

Write `Page[Row]`, `TableInline[Child, Parent]`, `RowForm[Row]` for what django-stubs calls `ModelAdmin[Row]` and so on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib.admin import ModelAdmin, TabularInline
from django.forms import ModelForm

if TYPE_CHECKING:
    Page = ModelAdmin
    TableInline = TabularInline
    RowForm = ModelForm
else:

    class _Subscriptable:
        def __class_getitem__(cls, parameters):
            return cls

    class Page(_Subscriptable, ModelAdmin):
        """A `ModelAdmin`."""

    class TableInline(_Subscriptable, TabularInline):
        """A `TabularInline`."""

    class RowForm(_Subscriptable, ModelForm):
        """A `ModelForm`."""
