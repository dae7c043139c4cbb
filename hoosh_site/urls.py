"""URLs of the control process. The inference API never comes here: workers answer it themselves."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("", include("gateway.api.urls")),
]
