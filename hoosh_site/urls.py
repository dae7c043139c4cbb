"""URLs of the control process. The inference API never comes here: workers answer it themselves."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

handler400 = "gateway.api.errors.bad_request"
handler404 = "gateway.api.errors.not_found"
handler500 = "gateway.api.errors.server_error"
urlpatterns = [
    path("admin/", admin.site.urls),
    path("api/v1/", include("hoosh_site.management_api.urls")),
    path("", include("hoosh_site.people.urls")),
    path("", include("gateway.api.urls")),
]
