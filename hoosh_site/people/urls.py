"""Pages of people outside admin: one's own account, and the team page."""

from __future__ import annotations

from django.urls import path

from hoosh_site.people.factor_page import SecondFactorView
from hoosh_site.people.oidc_views import begin, callback
from hoosh_site.people.password_page import PasswordView
from hoosh_site.people.team_page import urlpatterns as team_pages

app_name = "people"
urlpatterns = [
    path("account/second-factor/", SecondFactorView.as_view(), name="second_factor"),
    path("account/password/", PasswordView.as_view(), name="password"),
    path("account/oidc/", begin, name="oidc_begin"),
    path("account/oidc/callback/", callback, name="oidc_callback"),
    *team_pages,
]
