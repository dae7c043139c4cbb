"""What goes wrong here, in the one shape of the control API, with every field that is at fault.

    {"error": {"type": …, "code": …, "message": …, "param": …, "fields": {"name": ["…"]}}}

`fields` is there where fields are at fault. No input is a 5xx.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.core.exceptions import NON_FIELD_ERRORS
from django.core.exceptions import ValidationError as ModelError
from django.db import DataError, IntegrityError
from django.db.models import ProtectedError
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import set_rollback

from gateway.api.errors import body, exception_handler
from gateway.errors import GatewayError
from hoosh_site.importing import ImportFileError
from providers.drafts import DraftError
from providers.publish import PublishError
from providers.revert import RevertError
from providers.vault import VaultError

_SHOWN = 100  # fields, and messages of one
_LENGTH = 1000  # characters of a message
_GENERAL = frozenset({NON_FIELD_ERRORS, "non_field_errors", "detail", ""})


class ConflictError(GatewayError):
    """What is asked for does not go together with what there is."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"
    message_default = "Another change came first. Look again."


class ChangedError(ConflictError):
    """The row is not what the caller last saw (`If-Match`)."""

    status = 412
    code = "changed_meanwhile"
    message_default = "The row has changed since you read it. Read it again."


def handler(exc: Exception, context: dict[str, Any]) -> Response:
    """REST framework's hook: the control API's own, and before it what only this API raises."""
    if isinstance(exc, ModelError | exceptions.ValidationError):
        set_rollback()
        return Response(refusal(fields_of(exc)), status=400)
    if isinstance(exc, ImportFileError):
        return Response(body(400, str(exc)[:20_000], code="import_refused"), status=400)
    if isinstance(exc, PublishError):
        told = body(409, str(exc)[:_LENGTH], code="not_publishable")
        told["error"]["problems"] = [
            {"row": each.row, "field": each.field, "remedy": each.remedy} for each in exc.problems[:_SHOWN]
        ]
        return Response(told, status=409)
    if isinstance(exc, DraftError | RevertError | VaultError):
        return Response(body(409, str(exc)[:_LENGTH], code="refused"), status=409)
    if isinstance(exc, ProtectedError):
        exc = ConflictError("Something else still needs this row.")
    elif isinstance(exc, IntegrityError):
        exc = ConflictError()
    elif isinstance(exc, DataError):
        return Response(body(400, "A value does not fit the database."), status=400)
    return exception_handler(exc, context)


def refusal(fields: dict[str, list[str]]) -> dict[str, Any]:
    """The body of a 400: the first message at the top, all of them by field; "" holds those of no field."""
    param, messages = next(iter(fields.items()))
    told = body(400, messages[0], param=param or None)
    told["error"]["fields"] = fields
    return told


def fields_of(exc: ModelError | exceptions.ValidationError) -> dict[str, list[str]]:
    """Messages by field, a dotted path where fields lie in others; never empty."""
    found: dict[str, list[str]] = {}
    for name, message in _flat(exc):
        if len(found) < _SHOWN or name in found:
            found.setdefault(name, []).append(message[:_LENGTH])
    return {name: messages[:_SHOWN] for name, messages in found.items()} or {"": ["The request is not valid."]}


def _flat(exc: ModelError | exceptions.ValidationError) -> Iterator[tuple[str, str]]:
    if isinstance(exc, exceptions.ValidationError):
        yield from _walk(exc.detail, "")
    elif hasattr(exc, "error_dict"):
        for name, messages in exc.message_dict.items():
            yield from ((_plain(name), message) for message in messages)
    else:
        yield from (("", message) for message in exc.messages)


def _walk(detail: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(detail, dict):
        for name, inner in detail.items():
            part = _plain(str(name))
            yield from _walk(inner, f"{path}.{part}" if path and part else path or part)
    elif isinstance(detail, list):
        for inner in detail:
            yield from _walk(inner, path)
    else:
        yield path, str(detail)


def _plain(name: str) -> str:
    return "" if name in _GENERAL else name[:_LENGTH]
