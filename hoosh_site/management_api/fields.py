"""Fields that take JSON values literally ("5" is no number, 1 is not true), and bodies without unknown fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db import models
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from gateway.api.fields import is_plain
from providers import validation


class Text(serializers.CharField):
    """A JSON text, as it is: nothing is cut off its ends."""

    def __init__(self, **options: Any) -> None:
        super().__init__(trim_whitespace=False, **{name: options[name] for name in options if name != _TRIM})

    def to_internal_value(self, data: Any) -> str:
        """The text. Refused: other values, and what no database keeps."""
        if not isinstance(data, str):
            raise serializers.ValidationError("Write a text.")
        if not is_plain(data):
            raise serializers.ValidationError("A text has no NUL characters and no halves of characters.")
        return str(super().to_internal_value(data))


_TRIM = "trim_whitespace"


class Whole(serializers.IntegerField):
    """A JSON number without a fraction."""

    def to_internal_value(self, data: Any) -> int:
        """The number; nothing is converted."""
        if type(data) is not int:
            raise serializers.ValidationError("Write a whole number.")
        if not -(2**63) <= data < 2**63:
            raise serializers.ValidationError("This number is too large.")
        return data


class Number(serializers.FloatField):
    """A JSON number."""

    def to_internal_value(self, data: Any) -> float:
        """The number; nothing is converted but whole numbers."""
        if type(data) not in (int, float):
            raise serializers.ValidationError("Write a number.")
        try:
            return float(data)
        except OverflowError:
            raise serializers.ValidationError("This number is too large.") from None


class Money(serializers.DecimalField):
    """A decimal number: a JSON text such as "2.50", or a number. Told as a text, so that no digit is lost."""

    def to_internal_value(self, data: Any) -> Any:
        """The number; true and false are none."""
        if type(data) not in (str, int, float) or len(str(data)) > 60:
            raise serializers.ValidationError("Write a decimal number, best as a text.")
        return super().to_internal_value(data)

    def to_representation(self, value: Any) -> Any:
        """Without zeros nobody wrote: 2.5 rather than 2.500000."""
        return f"{value.normalize():f}"


class Truth(serializers.BooleanField):
    """JSON's true or false."""

    def to_internal_value(self, data: Any) -> bool:
        """The value; "yes" and 1 are refused."""
        if type(data) is not bool:
            raise serializers.ValidationError("Write true or false.")
        return data


class Moment(serializers.DateTimeField):
    """A time as ISO 8601; without a zone it is UTC."""

    def to_internal_value(self, value: Any) -> Any:
        """The time; a number is none."""
        if not isinstance(value, str):
            raise serializers.ValidationError("Write a time such as 2027-01-31T06:00:00Z.")
        return super().to_internal_value(value)


class Joined(serializers.ListField):
    """A JSON array of texts that is stored comma-separated."""

    child = Text(allow_blank=False)

    def to_internal_value(self, data: Any) -> Any:
        """The stored form."""
        items = [str(each) for each in super().to_internal_value(data)]
        if any("," in each for each in items):
            raise serializers.ValidationError("An entry has no comma: write each as an entry of its own.")
        return ",".join(items)

    def to_representation(self, data: Any) -> Any:
        """The entries."""
        return list(validation.split(data))


@extend_schema_field(serializers.ListField(child=serializers.IntegerField()))
class Percents(serializers.ListField):
    """A JSON array of whole percents, stored comma-separated and ascending."""

    child = Whole(min_value=1)

    def to_internal_value(self, data: Any) -> Any:
        """The stored form."""
        return ",".join(map(str, sorted(set(super().to_internal_value(data)))))

    def to_representation(self, data: Any) -> Any:
        """The percents."""
        return [int(each) for each in validation.split(data)]


class Named(serializers.SlugRelatedField[Any]):
    """Another row, by its name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"slug_field": "name", **options})

    def to_internal_value(self, data: Any) -> Any:
        """The row. Refused: what is no text, and a name nobody has."""
        if not isinstance(data, str) or not is_plain(data):
            raise serializers.ValidationError("Write the name of a row.")
        return super().to_internal_value(data)


class Numbered(serializers.PrimaryKeyRelatedField[Any]):
    """Another row, by its id."""

    def to_internal_value(self, data: Any) -> Any:
        """The row. Refused: what is no id, and one nobody has."""
        if type(data) is not int or not 0 <= data < 2**63:
            raise serializers.ValidationError("Write the id of a row.")
        return super().to_internal_value(data)


class Strict(serializers.Serializer[Any]):
    """A body: fields it does not know, or may not be written, are refused rather than ignored."""

    def to_internal_value(self, data: Any) -> Any:
        """The values by field."""
        refuse_others(self, data)
        return super().to_internal_value(data)


def refuse_others(serializer: serializers.BaseSerializer[Any], data: Any) -> None:
    """Refuse what of a body is no writable field."""
    if not isinstance(data, Mapping):
        return
    fields: Mapping[str, serializers.Field[Any, Any, Any, Any]] = serializer.fields  # type: ignore[attr-defined]
    wrong = {name: ["There is no such field."] for name in data if name not in fields}
    wrong |= {name: ["This field is not written."] for name in data if name in fields and fields[name].read_only}
    if wrong:
        raise serializers.ValidationError(wrong)


class RowSerializer(serializers.ModelSerializer[Any]):
    """A row: literal values, no unknown fields. Whether a name is free is for the services to say."""

    serializer_field_mapping = {
        **serializers.ModelSerializer.serializer_field_mapping,
        models.CharField: Text,
        models.TextField: Text,
        models.BooleanField: Truth,
        models.FloatField: Number,
        models.DecimalField: Money,
        models.DateTimeField: Moment,
        models.IntegerField: Whole,
        models.BigIntegerField: Whole,
        models.PositiveIntegerField: Whole,
        models.PositiveSmallIntegerField: Whole,
        models.AutoField: Whole,
        models.BigAutoField: Whole,
    }

    def build_standard_field(self, field_name: str, model_field: Any) -> Any:
        """Without the check that a value is unique: the services make it, and the database."""
        kind, options = super().build_standard_field(field_name, model_field)
        if "validators" in options:
            options["validators"] = [each for each in options["validators"] if not hasattr(each, "queryset")]
        return kind, options

    def get_validators(self) -> list[Any]:
        """None over several fields: likewise."""
        return []

    def to_internal_value(self, data: Any) -> Any:
        """The values by field."""
        refuse_others(self, data)
        return super().to_internal_value(data)
