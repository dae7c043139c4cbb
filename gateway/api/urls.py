"""Paths of control that are not pages. The workers answer inference, models and health from memory before this."""

from __future__ import annotations

from django.urls import path, re_path

from gateway.api import schema, views

__all__ = ["schema", "urlpatterns"]  # importing `schema` is what makes the key known to the API's description

urlpatterns = [
    path("v1/health/providers", views.ProvidersHealthView.as_view(), name="providers-health"),
    path("v1/admin/reload", views.ReloadView.as_view(), name="reload"),
    path("v1/requests/<str:request_id>", views.RequestView.as_view(), name="request"),
    path("api/schema/", views.SchemaView.as_view(), name="schema"),
    path("metrics", views.MetricsView.as_view(), name="metrics"),
    re_path(r"^v1(?:/.*)?$", views.UnknownPathView.as_view(), name="unknown"),
]
