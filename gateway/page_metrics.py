"""django-prometheus' middleware for control's pages, which stays out of the way while the disk is full."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse
from django_prometheus.middleware import PrometheusAfterMiddleware, PrometheusBeforeMiddleware

from gateway.metrics import has_room


class BeforeMiddleware(PrometheusBeforeMiddleware):  # type: ignore[misc]
    """The outer half: counts and times whole requests."""

    def process_request(self, request: HttpRequest) -> None:
        """Start the clock."""
        if has_room():
            super().process_request(request)

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        """Count the answer."""
        if has_room():
            super().process_response(request, response)
        return response


class AfterMiddleware(PrometheusAfterMiddleware):  # type: ignore[misc]
    """The inner half: counts by view, method and status."""

    def process_request(self, request: HttpRequest) -> None:
        """Count the request."""
        if has_room():
            super().process_request(request)

    def process_view(self, request: HttpRequest, *args: Any) -> None:
        """Count the view."""
        if has_room():
            super().process_view(request, *args)

    def process_template_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        """Count the template."""
        if has_room():
            super().process_template_response(request, response)
        return response

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        """Count the answer."""
        if has_room():
            super().process_response(request, response)
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        """Count the failure."""
        if has_room():
            super().process_exception(request, exception)
