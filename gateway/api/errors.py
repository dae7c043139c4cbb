"""Failures of the control API, told in the same shape as the inference API tells its own.

    {"error": {"message": …, "type": …, "param": null, "code": …}}

`exception_handler` turns what a view raises into such a reply; an unexpected exception is logged and told without
detail. `bad_request`, `not_found` and `server_error` do the same for what Django refuses before any view.
"""

from __future__ import annotations

import logging
from typing import Any

from django.core.exceptions import DisallowedHost, PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views import defaults
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import set_rollback

from budgets.outages import is_outage
from gateway.errors import GatewayError

log = logging.getLogger(__name__)

AWAY = "The database does not answer. Try again shortly."
INTERNAL = "Something failed inside the gateway; its log has the details."

_PAGES = ("/admin/", "/team/", "/account/")
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    415: "unsupported_media_type",
    429: "rate_limit_exceeded",
    503: "unavailable",
}


class ReloadFailedError(GatewayError):
    """The configuration could not be loaded; the one before stays in force."""

    status = 409
    type = "configuration_error"
    code = "reload_failed"
    message_default = "The configuration could not be loaded."


def body(http_status: int, message: str, *, code: str = "", param: str | None = None) -> dict[str, Any]:
    """The error object for a status; type and code follow from the status unless a code is given."""
    kind = _TYPES.get(http_status, "server_error" if http_status >= 500 else "invalid_request_error")
    told = code or _CODES.get(http_status, "internal_error" if http_status >= 500 else "invalid_request")
    return {"error": {"message": message, "type": kind, "param": param, "code": told}}


def exception_handler(exc: Exception, context: dict[str, Any]) -> Response:
    """REST framework's hook: every exception of a view becomes an error object."""
    set_rollback()
    if isinstance(exc, Http404):
        exc = exceptions.NotFound()
    elif isinstance(exc, PermissionDenied):
        exc = exceptions.PermissionDenied()
    if isinstance(exc, GatewayError):
        return _reply_to_gateway_error(exc)
    if is_outage(exc):
        log.error("api.database_away", extra={"reason": f"{type(exc).__name__}: {exc}"})
        return Response(body(503, AWAY, code="database_unavailable"), status=503, headers={"Retry-After": "1"})
    if not isinstance(exc, exceptions.APIException):
        view = context.get("view")
        log.error("api.view_failed", exc_info=exc, extra={"view": type(view).__name__})
        return Response(body(500, INTERNAL), status=500)
    headers = {}
    if header := getattr(exc, "auth_header", None):
        headers["WWW-Authenticate"] = header
    if wait := getattr(exc, "wait", None):
        headers["Retry-After"] = str(int(wait) + 1)
    message, param = _first_message(exc.detail)
    return Response(body(exc.status_code, message, param=param), status=exc.status_code, headers=headers)


def _reply_to_gateway_error(exc: GatewayError) -> Response:
    headers = {name.decode("ascii"): value.decode("latin-1") for name, value in exc.headers if name != b"content-type"}
    error = {"message": exc.message, "type": exc.type, "param": exc.param, "code": exc.code}
    return Response({"error": error}, status=exc.status, headers=headers)


def _first_message(detail: Any, param: str | None = None) -> tuple[str, str | None]:
    """The first sentence of REST framework's nested detail, and the field it is about."""
    if isinstance(detail, dict):
        for name, inner in detail.items():
            return _first_message(inner, str(name))
    if isinstance(detail, list) and detail:
        return _first_message(detail[0], param)
    return str(detail), None if param in (None, "detail", "non_field_errors") else param


def _is_api(path: str) -> bool:
    return path == "/v1" or path.startswith(("/v1/", "/api/", "/metrics"))


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """`handler400`: what Django itself refuses, such as a Host header that is not allowed."""
    if not _is_api(request.path):
        return defaults.bad_request(request, exception)
    if isinstance(exception, DisallowedHost):
        return JsonResponse(body(400, "This host name is not allowed here; see HOOSH_ALLOWED_HOSTS."), status=400)
    return JsonResponse(body(400, "The request is not valid."), status=400)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """`handler404`: JSON, except where people look at pages."""
    if request.path.startswith(_PAGES):
        return defaults.page_not_found(request, exception)
    return JsonResponse(body(404, f"There is nothing at {request.path[:200]}."), status=404)


def server_error(request: HttpRequest) -> HttpResponse:
    """`handler500`: JSON for API paths, a page for the others."""
    if not _is_api(request.path):
        return defaults.server_error(request)
    return JsonResponse(body(500, INTERNAL), status=500)
