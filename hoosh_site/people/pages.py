"""What the pages outside admin share: who may open them, and what their frame shows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from django.contrib.auth.models import User
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import reverse
from django.views.decorators.cache import never_cache

from hoosh_site.people.signing_in import leads

View = Callable[..., HttpResponseBase]


def signed_in(view: View) -> View:
    """A page for everybody who is signed in; others go to the sign-in form. Never cached."""

    @never_cache
    @functools.wraps(view)
    def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if not (request.user.is_authenticated and request.user.is_active):
            return redirect_to_login(request.get_full_path(), reverse("admin:login"))
        return view(request, *args, **kwargs)

    return checked


def person(request: HttpRequest) -> User:
    """Who asks, behind `signed_in`."""
    user = request.user
    assert isinstance(user, User)
    return user


def show(request: HttpRequest, template: str, title: str, context: dict[str, Any], status: int = 200) -> HttpResponse:
    """A page in the frame that everybody has."""
    return TemplateResponse(request, template, {**frame(request, title), **context}, status=status)


def frame(request: HttpRequest, title: str) -> dict[str, Any]:
    """What the frame shows: the title, and where this person may go."""
    user = person(request)
    return {
        "title": title,
        "has_permission": False,
        "is_nav_sidebar_enabled": False,
        "leads_teams": leads(user),
        "home": reverse("admin:index") if user.is_staff else reverse("people:team"),
    }
