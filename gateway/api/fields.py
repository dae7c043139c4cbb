"""Fields that take JSON values literally: "5", 5.0 and true are no whole numbers, 5 is no text."""

from __future__ import annotations

from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers


@extend_schema_field(OpenApiTypes.INT64)
class WholeNumberField(serializers.Field[int, Any, int, Any]):
    """A JSON number without a fraction, within limits."""

    def __init__(self, *, least: int = 0, most: int, **options: Any) -> None:
        super().__init__(**options)
        self.least, self.most = least, most

    def to_internal_value(self, data: Any) -> int:
        """The number; anything else is refused, not converted."""
        if type(data) is not int or not self.least <= data <= self.most:
            raise serializers.ValidationError(
                f"{self.field_name} must be a whole number from {self.least} to {self.most}."
            )
        return data

    def to_representation(self, value: int) -> int:
        """As it is."""
        return value


@extend_schema_field(OpenApiTypes.STR)
class TextField(serializers.Field[str, Any, str, Any]):
    """A JSON text that is not empty and that every database can keep (no NUL characters)."""

    def __init__(self, *, most: int, **options: Any) -> None:
        super().__init__(**options)
        self.most = most

    def to_internal_value(self, data: Any) -> str:
        """The text; a number is refused, not converted."""
        if not isinstance(data, str) or not 1 <= len(data) <= self.most or not is_plain(data):
            raise serializers.ValidationError(
                f"{self.field_name} must be a text of 1 to {self.most} characters without NUL."
            )
        return data

    def to_representation(self, value: str) -> str:
        """As it is."""
        return value


@extend_schema_field(OpenApiTypes.BOOL)
class TruthField(serializers.Field[bool, Any, bool, Any]):
    """JSON's true or false."""

    def to_internal_value(self, data: Any) -> bool:
        """The value; "yes" and 1 are refused, not converted."""
        if type(data) is not bool:
            raise serializers.ValidationError(f"{self.field_name} must be true or false.")
        return data

    def to_representation(self, value: bool) -> bool:
        """As it is."""
        return value


def is_plain(text: str) -> bool:
    """Whether a database takes the text: neither NUL characters nor halves of surrogate pairs."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def read(kind: type[serializers.Serializer[None]], data: Any) -> dict[str, Any]:
    """The fields of a request's body, checked. Raises REST framework's `ValidationError`, a 400 naming the field."""
    fields = kind(data=data)
    fields.is_valid(raise_exception=True)
    return dict(fields.validated_data)
