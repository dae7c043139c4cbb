"""Where a second factor is required, a session without one opens nothing but the page to set one up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.contrib.auth import logout
from django.contrib.auth.models import AnonymousUser, User
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.deprecation import MiddlewareMixin

from hoosh_site.people.session import EXTERNAL, FACTOR

_PAGES = ("/admin/", "/team/")
_OPEN = frozenset({"login", "logout", "jsi18n", "password_change", "password_change_done"})


class SecondFactorMiddleware(MiddlewareMixin):
    """Asks nothing of the database while `HOOSH_REQUIRE_SECOND_FACTOR` is off."""

    def process_view(
        self, request: HttpRequest, view: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> HttpResponse | None:
        """Lead a person without a second factor to the page that sets one up."""
        if not settings.HOOSH_REQUIRE_SECOND_FACTOR or not request.user.is_authenticated or _is_complete(request):
            return None
        if not request.path.startswith(_PAGES):
            if not request.path.startswith("/account/"):
                request.user = AnonymousUser()  # the control API sees nobody
            return None
        if request.resolver_match is not None and request.resolver_match.url_name in _OPEN:
            return None
        from hoosh_site.people import factors

        if factors.confirmed(request.user) is not None:  # set up since, in another session: this one must show it
            logout(request)
            return HttpResponseRedirect(reverse("admin:login"))
        return HttpResponseRedirect(reverse("people:second_factor"))


def _is_complete(request: HttpRequest) -> bool:
    from hoosh_site.people.models import SecondFactor

    known = request.session.get(FACTOR)
    if known == EXTERNAL:
        return True
    return (
        isinstance(request.user, User)
        and isinstance(known, int)
        and (SecondFactor.objects.filter(pk=known, user=request.user, confirmed_at__isnull=False).exists())
    )
