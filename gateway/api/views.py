"""Views of the control API: provider health, reload, one request's record, metrics, and a JSON 404 for the rest."""

from __future__ import annotations

import ipaddress
import re
from typing import Any
from urllib.parse import urlsplit

from django.http import HttpResponse
from drf_spectacular.utils import OpenApiResponse, extend_schema
from drf_spectacular.views import SpectacularJSONAPIView
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.permissions import AllowAny
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from gateway import metrics, plane
from gateway.api import reports
from gateway.api.authentication import Caller, HasKey, IsOperator, caller_of
from gateway.api.parsers import StrictJSONParser
from gateway.api.reload import reload_configuration
from gateway.api.serializers import (
    ErrorSerializer,
    HeartbeatSerializer,
    ProvidersHealthSerializer,
    ReloadSerializer,
    RequestSerializer,
)
from gateway.errors import ForbiddenError, NotFoundError, UnauthorizedError

_ERRORS = {
    401: OpenApiResponse(ErrorSerializer, "No usable API key."),
    403: OpenApiResponse(ErrorSerializer, "The key may not do this."),
}
_REQUEST_ID = re.compile(r"[0-9a-f]{32}\Z")


class IgnoreAccept(DefaultContentNegotiation):
    """JSON whatever the Accept header says: an API answers a scraper or a browser, never with 406."""

    def select_renderer(self, request: Request, renderers: Any, format_suffix: Any = None) -> Any:
        """The first renderer."""
        return renderers[0], renderers[0].media_type


class ControlView(APIView):
    """What all views here share: JSON only, no self-description on OPTIONS (that is the preflight's method)."""

    parser_classes = (StrictJSONParser,)
    content_negotiation_class = IgnoreAccept
    metadata_class = None

    @property
    def allowed_methods(self) -> list[str]:
        """What the Allow header of a 405 lists."""
        return [method for method in super().allowed_methods if method != "OPTIONS"]

    @property
    def default_response_headers(self) -> dict[str, str]:
        """Answers depend on the key, so nothing may keep them."""
        return {"Cache-Control": "no-store"}

    def handle_exception(self, exc: Exception) -> Response:
        """As REST framework, with the Allow header where it belongs: on a 405 only."""
        response = super().handle_exception(exc)
        if response.status_code == 405:
            response["Allow"] = ", ".join(self.allowed_methods)
        return response


class ProvidersHealthView(ControlView):
    """The state of every provider."""

    permission_classes = (HasKey,)

    @extend_schema(responses={200: ProvidersHealthSerializer, **_ERRORS}, summary="State of every provider")
    def get(self, request: Request) -> Response:
        """Names and states for every key; addresses, details and the workers' own view for operators."""
        return Response(reports.providers_health(detailed=caller_of(request).is_operator))


class HeartbeatView(ControlView):
    """When each provider was last found well."""

    permission_classes = (HasKey,)

    @extend_schema(responses={200: HeartbeatSerializer, **_ERRORS}, summary="Heartbeats of all providers")
    def get(self, request: Request) -> Response:
        """Names and states for every key, addresses for operators."""
        return Response(reports.heartbeat(detailed=caller_of(request).is_operator))


class ReloadView(ControlView):
    """Load the configuration again now."""

    permission_classes = (IsOperator,)

    @extend_schema(
        request=None,
        responses={200: ReloadSerializer, 409: ErrorSerializer, 503: ErrorSerializer, **_ERRORS},
        summary="Load the configuration again",
    )
    def post(self, request: Request) -> Response:
        """Answers only when every worker runs the newest version; otherwise says why not."""
        version = reload_configuration(caller_of(request).name)
        return Response({"status": "reloaded", "version": version})


class RequestView(ControlView):
    """What became of one request."""

    permission_classes = (HasKey,)

    @extend_schema(
        responses={200: RequestSerializer, 404: ErrorSerializer, **_ERRORS}, summary="Usage and decision of a request"
    )
    def get(self, request: Request, request_id: str) -> Response:
        """`request_id` is the reply's x-hoosh-request. A key sees its own requests, an operator all."""
        rid = request_id.replace("-", "").lower()
        found = reports.request_report(rid, caller_of(request)) if _REQUEST_ID.match(rid) else None
        if found is None:
            # Somebody else's request and one that never was look the same on purpose.
            raise NotFoundError("No request of yours has this id. Usage is booked within a second.", param="id")
        return Response(found)


class MetricsView(ControlView):
    """Prometheus figures of all processes: open to this host itself, to operators from anywhere."""

    permission_classes = (AllowAny,)

    @extend_schema(exclude=True)
    def get(self, request: Request) -> HttpResponse:
        """The text exposition."""
        if not is_from_this_host(request):
            caller: object = request.user
            if not isinstance(caller, Caller):
                raise UnauthorizedError("From another host /metrics needs an API key with the operator scope.")
            if not caller.is_operator:
                raise ForbiddenError("/metrics needs an API key with the operator scope.")
        if plane.current is not None and plane.current.writer is not None:
            metrics.ledger_figures(plane.current.writer.stats())
        text, content_type = metrics.exposition()
        return HttpResponse(text, content_type=content_type)


class SchemaView(SpectacularJSONAPIView):
    """The OpenAPI description of this API."""

    permission_classes = (HasKey,)
    urlconf = "gateway.api.urls"
    renderer_classes = [JSONRenderer]
    content_negotiation_class = IgnoreAccept


class UnknownPathView(ControlView):
    """Whatever else is asked for below /v1: a JSON 404 for every method."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    schema = None

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Refuse before any method is looked at."""
        raise NotFoundError(f"There is nothing at {request.path[:200]}.")


def is_from_this_host(request: Request) -> bool:
    """Whether a loopback client asked for a loopback name.

    The name is looked at too: a page that has its own name resolve to 127.0.0.1 must not read anything, and a proxy
    on this host that passes the public name on must not open it to the world.
    """
    return is_loopback(request.META.get("REMOTE_ADDR", "")) and is_loopback(_host(request))


def is_loopback(host: str) -> bool:
    """True for 127.0.0.0/8, ::1 (also written v4-mapped) and "localhost"."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _host(request: Request) -> str:
    try:
        return urlsplit(f"//{request.META.get('HTTP_HOST', '')}").hostname or ""
    except ValueError:
        return ""
