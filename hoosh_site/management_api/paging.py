"""Lists that are read along a key, never counted: `?limit=` rows, then `?cursor=` for those behind them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, NamedTuple

from django.db.models import DateTimeField, Q, QuerySet
from rest_framework.filters import BaseFilterBackend
from rest_framework.pagination import BasePagination
from rest_framework.request import Request
from rest_framework.response import Response

from audit.admin_tools import number
from gateway.api.fields import is_plain
from gateway.errors import BadRequestError

LIMIT, LIMIT_MAX = 100, 500
CURSOR, LIMIT_NAME = "cursor", "limit"
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_TEXT_LENGTH = 256


def one(request: Request, name: str) -> str | None:
    """A query parameter's value, None when it is not there. Given twice, or too long for anything, it is a 400."""
    values = request.query_params.getlist(name)
    if not values:
        return None
    if len(values) > 1 or len(values[0]) > _TEXT_LENGTH or not is_plain(values[0]):
        raise BadRequestError(f"'{name}' must be one text of at most {_TEXT_LENGTH} characters.", param=name)
    return values[0]


def whole(request: Request, name: str, default: int, *, least: int, most: int) -> int:
    """A query parameter that is a number."""
    text = one(request, name)
    if text is None:
        return default
    value = number(text)
    if value is None or not least <= value <= most:
        raise BadRequestError(f"'{name}' must be a whole number from {least} to {most}.", param=name)
    return value


def truth(request: Request, name: str) -> bool:
    """A query parameter that is a switch; absent = off."""
    text = one(request, name)
    if text not in (None, "0", "1", "true", "false"):
        raise BadRequestError(f"'{name}' must be 1 or 0.", param=name)
    return text in ("1", "true")


def moment(text: str, name: str) -> dt.datetime:
    """A time of a query parameter, ISO 8601; without a zone it is UTC."""
    try:
        found = dt.datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
    except (ValueError, OverflowError):
        raise BadRequestError(f"'{name}' must be a time such as 2027-01-31T06:00:00Z.", param=name) from None


class Filter(NamedTuple):
    """One query parameter that narrows a list: the lookup, and how its text is read."""

    lookup: str
    kind: str = "text"  # "text", "id", "truth" or "time"
    about: str = ""

    def read(self, text: str, name: str) -> Any:
        """The value to look up. Raises `BadRequestError`."""
        if self.kind == "time":
            return moment(text, name)
        if self.kind == "truth":
            if text not in ("0", "1", "true", "false"):
                raise BadRequestError(f"'{name}' must be true or false.", param=name)
            return text in ("1", "true")
        if self.kind == "id":
            value = number(text)
            if value is None:
                raise BadRequestError(f"'{name}' must be an id.", param=name)
            return value
        return text


_SCHEMAS: Mapping[str, dict[str, str]] = {
    "text": {"type": "string"},
    "id": {"type": "integer", "format": "int64"},
    "truth": {"type": "boolean"},
    "time": {"type": "string", "format": "date-time"},
}


def parameter(name: str, schema: dict[str, Any], about: str) -> dict[str, Any]:
    """A query parameter's OpenAPI object."""
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": about}


class Filters(BaseFilterBackend):
    """The view's `filters`, each a query parameter."""

    def filter_queryset(self, request: Request, queryset: QuerySet[Any], view: Any) -> QuerySet[Any]:
        """The rows that fit all that are given."""
        for name, each in view.filters.items():
            text = one(request, name)
            if text is not None:
                queryset = queryset.filter(**{each.lookup: each.read(text, name)})
        return queryset

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        """For the API's description."""
        return [
            parameter(name, _SCHEMAS[each.kind], each.about or "Only these.") for name, each in view.filters.items()
        ]


class Keyset(BasePagination):
    """Rows in the order of the view's `keyset` (one or two columns, the last unique); `newest_first` turns it."""

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any]:
        """One page, and whether there is another."""
        limit = whole(request, LIMIT_NAME, LIMIT, least=1, most=LIMIT_MAX)
        keyset, falls = view.keyset, view.newest_first
        rows = queryset.order_by(*(f"-{name}" if falls else name for name in keyset))
        if text := one(request, CURSOR):
            rows = rows.filter(_behind(queryset, keyset, text, falls=falls))
        found = list(rows[: limit + 1])
        self._next = _cursor(keyset, found[limit - 1]) if len(found) > limit else None
        return found[:limit]

    def get_paginated_response(self, data: Any) -> Response:
        """`next` is None on the last page."""
        return Response({"data": data, "next": self._next})

    def get_paginated_response_schema(self, schema: Any) -> dict[str, Any]:
        """For the API's description."""
        cursor = {"type": "string", "nullable": True, "description": "The `cursor` of the rows behind these."}
        properties = {"data": schema, "next": cursor}
        return {"type": "object", "required": ["data", "next"], "properties": properties}

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        """For the API's description."""
        size = {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT}
        return [
            parameter(LIMIT_NAME, size, "Rows of a page."),
            parameter(CURSOR, {"type": "string"}, "`next` of the page before."),
        ]


def _cursor(keyset: tuple[str, ...], row: Any) -> str:
    values = (getattr(row, name) for name in keyset)
    return "-".join(
        str((value - _EPOCH) // _MICROSECOND if isinstance(value, dt.datetime) else value) for value in values
    )


def _behind(rows: QuerySet[Any], keyset: tuple[str, ...], text: str, *, falls: bool) -> Q:
    parts = text.split("-", len(keyset) - 1)
    if len(parts) != len(keyset):
        raise _unknown()
    values = [_part(rows, name, part) for name, part in zip(keyset, parts, strict=True)]
    beyond = "lt" if falls else "gt"
    last = Q(**{f"{keyset[-1]}__{beyond}": values[-1]})
    if len(keyset) == 1:
        return last
    first = keyset[0]
    return Q(**{f"{first}__{beyond}e": values[0]}) & (Q(**{f"{first}__{beyond}": values[0]}) | last)


def _part(rows: QuerySet[Any], name: str, text: str) -> object:
    field = rows.model._meta.get_field(name)
    if field.get_internal_type() == "CharField":
        return text
    value = number(text)
    if value is None:
        raise _unknown()
    if not isinstance(field, DateTimeField):
        return value
    try:
        return _EPOCH + value * _MICROSECOND
    except OverflowError:
        raise _unknown() from None


def _unknown() -> BadRequestError:
    return BadRequestError("This cursor is of no list here.", param=CURSOR)
