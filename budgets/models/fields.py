"""Money in the database: whole pico-USD in a 64-bit column, `Decimal` USD in Python.

SQLite keeps decimals as floating point, so a decimal column would lose the last digits of a sum. A whole number is
exact on every database, in sums as well. The range is ±9.2 million USD per row.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models

PLACES = 12  # 1 USD = 10**12 pico-USD
HIGH_PICO = 10**9  # sums are kept as this many pico-USD (a thousandth of a USD) and the rest, each in 64 bits
_STEP = Decimal(1).scaleb(-PLACES)


def usd(pico: int) -> Decimal:
    """Whole pico-USD as USD, exact."""
    return Decimal(pico).scaleb(-PLACES)


def pico(amount: Decimal) -> int:
    """USD as whole pico-USD; what is smaller than one is cut off."""
    return int(amount.scaleb(PLACES))


class UsdField(models.BigIntegerField):  # type: ignore[type-arg]  # not generic at run time
    """An amount of USD with twelve places. Sums are exact."""

    description = "Amount of USD, kept in whole pico-USD"

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Decimal | None:
        """The column's whole number (or a sum of them) as USD."""
        return None if value is None else usd(int(value))

    def to_python(self, value: Any) -> Any:
        """A Decimal from whatever a form or a fixture holds."""
        if value is None or isinstance(value, Decimal):
            return value
        try:
            return Decimal(str(value))
        except InvalidOperation as exc:
            raise ValidationError(f"“{value}” is not an amount.", code="invalid") from exc

    def get_prep_value(self, value: Any) -> Any:
        """The whole number to store."""
        amount = self.to_python(value)
        return amount if amount is None or not isinstance(amount, Decimal) else pico(amount)

    def formfield(self, **kwargs: Any) -> Any:
        """A decimal field: the column's own would take whole numbers only."""
        from django import forms

        return forms.DecimalField(**{"label": self.verbose_name, "required": not self.blank, **kwargs})
