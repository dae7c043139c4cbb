"""The management API's paths alone, where its description is made from."""

from __future__ import annotations

from django.urls import include, path

urlpatterns = [path("api/v1/", include("hoosh_site.management_api.urls"))]
